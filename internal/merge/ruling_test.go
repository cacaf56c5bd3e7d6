package merge

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

var allModes = []metric.Mode{
	metric.All, metric.LiveAll, metric.Sum, metric.LiveSum, metric.Max, metric.LiveMax,
	metric.Min, metric.LiveMin, metric.MostRecent, metric.LiveMostRecent,
}

func ruled(r *Ruling) Options {
	return Options{Rules: func(string, metric.Type) *Ruling { return r }}
}

// drop leaves a label out, and keeps a key without it.
func drop(name string) *Ruling {
	return &Ruling{
		Rule: "drop " + name,
		Labels: func(labels []metric.Label) []metric.Label {
			rest, _, _ := takeLabel(labels, name)
			return rest
		},
		Key: func(dst []byte, key metric.Key) []byte {
			text := key.Family + " " + key.Series.Sample + " H"
			for _, l := range key.Series.Labels {
				if l.Name != name {
					text += " " + l.Name + "=" + l.Value
				}
			}
			return append(dst, text...)
		},
	}
}

// TestModeInForce overrides every mode by every mode, for two living workers and a dead one.
func TestModeInForce(t *testing.T) {
	values := map[string]float64{"1": 5, "2": 2, "3": 9} // 3 is dead
	stamps := map[string]float64{"1": 100, "2": 200, "3": 300}
	for _, file := range allModes {
		for _, force := range allModes {
			t.Run(file.String()+" as "+force.String(), func(t *testing.T) {
				x := NewIndex(ruled(&Ruling{Rule: "r", Mode: force}))
				x.SetTime(1000)
				for _, id := range []string{"1", "2", "3"} {
					created, _ := strconv.Atoi(id)
					add(t, x, fileOf(file, id, int64(created)*1e9, id == "3", values[id], stamps[id]))
				}
				counted := []string{"1", "2"}
				if !force.Live() {
					counted = append(counted, "3")
				}
				var want []string
				switch force.Base() {
				case metric.All:
					for _, id := range counted {
						want = append(want, fmt.Sprintf("g pid=%s %v", id, values[id]))
					}
				case metric.Sum:
					sum := 0.0
					for _, id := range counted {
						sum += values[id]
					}
					want = []string{fmt.Sprintf("g %v", sum)}
				case metric.Max:
					want = []string{map[bool]string{true: "g 5", false: "g 9"}[force.Live()]}
				case metric.Min:
					want = []string{"g 2"}
				case metric.MostRecent:
					// Times and starts are in the same order.
					want = []string{map[bool]string{true: "g 2", false: "g 9"}[force.Live()]}
				}
				got := dump(x)
				if want := lines(append([]string{"# g gauge " + force.String() + " H"}, want...)...); got != want {
					t.Errorf("got:\n%swant:\n%s", got, want)
				}
				if f := x.Layout().Families[0]; f.Rule != "r" || !f.ModeByRule {
					t.Errorf("rule %q, mode by rule %v", f.Rule, f.ModeByRule)
				}
				for _, s := range slices.Clone(x.Sources()) {
					x.Remove(s)
				}
				if x.unpinned != 0 || len(x.free) != len(x.desc)-1 || len(x.spaces) != 0 || x.keys != 0 {
					t.Errorf("something is left: %d unpinned, %d spaces, %d keys", x.unpinned, len(x.spaces), x.keys)
				}
			})
		}
	}
}

func fileOf(mode metric.Mode, id string, created int64, dead bool, value, stamp float64) file {
	return file{kind: "gauge " + mode.String(), id: id, created: created, dead: dead, entries: []entry{{"g g H", value, stamp}}}
}

// TestFoldedInForce has values that were archived in one mode take part in another.
func TestFoldedInForce(t *testing.T) {
	// What two dead workers left, of 3 and 4, and a living one of 10 beside it. In mode all
	// each has a folded source of its own.
	for _, c := range []struct {
		archived, force string
		want            []string
	}{
		{"all", "sum", []string{"g 17"}},
		{"all", "max", []string{"g 10"}},
		{"all", "min", []string{"g 3"}},
		{"all", "mostrecent", []string{"g 10"}},
		{"all", "all", []string{"g pid=1 3", "g pid=2 4", "g pid=9 10"}},
		{"all", "liveall", []string{"g pid=9 10"}},
		{"all", "livesum", []string{"g 10"}},
		{"sum", "all", []string{"g pid=9 10"}},
		{"sum", "max", []string{"g 10"}},
		{"sum", "min", []string{"g 7"}},
		{"sum", "mostrecent", []string{"g 10"}},
		{"sum", "livemin", []string{"g 10"}},
		{"max", "sum", []string{"g 14"}},
		{"max", "min", []string{"g 4"}},
		{"min", "sum", []string{"g 13"}},
		{"min", "max", []string{"g 10"}},
		{"mostrecent", "sum", []string{"g 14"}},
		{"mostrecent", "livemostrecent", []string{"g 10"}},
	} {
		t.Run(c.archived+" as "+c.force, func(t *testing.T) {
			mode, _ := metric.ParseMode(c.force)
			x := NewIndex(ruled(&Ruling{Rule: "r", Mode: mode}))
			archived, _ := metric.ParseMode(c.archived)
			folded := map[string][]float64{"": {3, 4}}
			if archived == metric.All {
				folded = map[string][]float64{"1": {3}, "2": {4}}
			}
			for _, id := range []string{"", "1", "2"} {
				if folded[id] == nil {
					continue
				}
				s := x.AddFolded(SourceSpec{Type: metric.Gauge, Mode: archived, ID: id, ParseKey: parseTestKey})
				if err := x.Learn(s, []byte("g g H"), uint32(s.Entries())); err != nil {
					t.Fatal(err)
				}
				s.Values()[0] = Zero(metric.Gauge, archived)
				for i, v := range folded[id] {
					stamp := 0.0
					if archived == metric.MostRecent {
						stamp = float64(i + 1)
					}
					s.Values()[0], s.Stamps()[0] = Combine(metric.Gauge, archived, s.Values()[0], s.Stamps()[0], v, stamp)
				}
			}
			add(t, x, file{kind: "gauge " + c.archived, id: "9", created: 9e9, entries: []entry{{"g g H", 10, 50}}})
			if got, want := dump(x), lines(append([]string{"# g gauge " + c.force + " H"}, c.want...)...); got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

// TestMostRecentWithoutTimes has a mode that needs times in force for files that have none.
func TestMostRecentWithoutTimes(t *testing.T) {
	x := NewIndex(ruled(&Ruling{Mode: metric.MostRecent}))
	x.SetTime(100)
	a := add(t, x, fileOf(metric.All, "a", 10e9, false, 1, 0))
	b := add(t, x, fileOf(metric.All, "b", 20e9, false, 2, 0))
	c := add(t, x, fileOf(metric.All, "c", 30e9, false, 0, 0))
	want := func(value string) {
		t.Helper()
		if got, want := dump(x), lines("# g gauge mostrecent H", "g "+value); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
	}
	want("2") // of the worker that began last, of those that have set it
	x.SetTime(200)
	a.Values()[0] = 7
	want("7")
	x.SetTime(300)
	b.Values()[0] = 0
	want("0")
	x.SetTime(400)
	c.Values()[0] = 5
	x.Observe(c)
	if got := c.Stamp(0); got != 400 {
		t.Errorf("c was set at %v", got)
	}
	want("5")
}

func TestRulingsLabels(t *testing.T) {
	t.Run("counters add", func(t *testing.T) {
		x := NewIndex(ruled(drop("user")))
		add(t, x, file{kind: "counter", id: "1", entries: []entry{
			{"c c_total H m=a user=1", 1, 0},
			{"c c_total H m=a user=2", 2, 0},
			{"c c_total H m=b user=2", 4, 0},
		}})
		s := add(t, x, file{kind: "counter", id: "2", entries: []entry{{"c c_total H m=a user=3", 8, 0}}})
		if got, want := dump(x), lines("# c counter H", "c_total m=a 11", "c_total m=b 4"); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
		if x.keys != 2 {
			t.Errorf("%d keys are kept, want those that are left", x.keys)
		}
		x.Each(s, func(raw string, value, _ float64) {
			if raw != "c c_total H m=a" || value != 8 {
				t.Errorf("%q is %v", raw, value)
			}
		})
	})
	t.Run("buckets add", func(t *testing.T) {
		x := NewIndex(ruled(drop("user")))
		add(t, x, file{kind: "histogram", id: "1", entries: []entry{
			{"h h_bucket H le=1.0 user=1", 1, 0},
			{"h h_bucket H le=+Inf user=1", 1, 0},
			{"h h_sum H user=1", 5, 0},
			{"h h_bucket H le=1.0 user=2", 2, 0},
			{"h h_bucket H le=+Inf user=2", 4, 0},
			{"h h_sum H user=2", 7, 0},
		}})
		if got, want := dump(x), lines("# h histogram H", "h_bucket le=1.0 3", "h_bucket le=+Inf 8", "h_sum 12", "h_count 8"); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
	})
	for mode, want := range map[string][]string{
		"all": {"g pid=1 3", "g pid=2 4"}, "liveall": {"g pid=1 3", "g pid=2 4"}, "sum": {"g 7"}, "max": {"g 4"}, "min": {"g 1"},
		"mostrecent": {"g 2"},
	} {
		t.Run("gauge "+mode, func(t *testing.T) {
			x := NewIndex(ruled(drop("user")))
			add(t, x, file{kind: "gauge " + mode, id: "1", entries: []entry{{"g g H user=1", 1, 1}, {"g g H user=2", 2, 3}}})
			add(t, x, file{kind: "gauge " + mode, id: "2", entries: []entry{{"g g H user=1", 4, 2}}})
			if got, want := dump(x), lines(append([]string{"# g gauge " + mode + " H"}, want...)...); got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
		})
	}
}

func TestRulingsDropHelpUnit(t *testing.T) {
	r := &Ruling{Drop: true}
	x := NewIndex(Options{Rules: func(family string, _ metric.Type) *Ruling {
		switch family {
		case "gone":
			return r
		case "size_bytes":
			return &Ruling{Help: "Mine.", Unit: "bytes", Rule: "units", Shape: view.StateSet}
		}
		return nil
	}})
	add(t, x, file{kind: "counter", id: "1", entries: []entry{
		{"gone gone_total H l=1", 1, 0},
		{"gone gone_total H l=2", 1, 0},
		{"size_bytes size_bytes_total H", 2, 0},
	}})
	if got, want := dump(x), lines("# size_bytes counter Mine.", "size_bytes_total 2"); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if f := x.Layout().Families[0]; f.Unit != "bytes" || f.Rule != "units" || f.ModeByRule || f.Type == metric.Gauge &&
		f.Shape != view.StateSet || f.Type != metric.Gauge && f.Shape != view.Plain {
		t.Errorf("family is %+v", f)
	}
	if x.Dropped() != 2 {
		t.Errorf("%d series dropped, want 2", x.Dropped())
	}
}

func TestExpire(t *testing.T) {
	opts := ruled(&Ruling{ExpireAfter: 60})
	x := NewIndex(opts)
	x.SetTime(1000)
	c := add(t, x, file{kind: "counter", id: "1", entries: []entry{{"c c_total H l=1", 1, 0}, {"c c_total H l=2", 2, 0}}})
	h := add(t, x, file{kind: "histogram", id: "1", entries: []entry{{"h h_bucket H le=1.0", 1, 0}, {"h h_sum H", 1, 0}}})
	both := lines("# c counter H", "c_total l=1 1", "c_total l=2 2", "# h histogram H", "h_bucket le=1.0 1", "h_bucket le=+Inf 1",
		"h_sum 1", "h_count 1")
	want := func(want string, expired int) {
		t.Helper()
		if got := dump(x); got != want {
			t.Errorf("got:\n%swant:\n%s", got, want)
		}
		if x.Expired() != expired {
			t.Errorf("%d series expired, want %d", x.Expired(), expired)
		}
	}
	want(both, 0)
	x.SetTime(1060)
	want(both, 0)
	c.Values()[0] = 4
	x.SetTime(1061)
	want(lines("# c counter H", "c_total l=1 4", "# h histogram H"), 5)
	h.Values()[1] = 1.5
	x.SetTime(1100)
	want(lines("# c counter H", "c_total l=1 4", "# h histogram H", "h_bucket le=1.0 1", "h_bucket le=+Inf 1", "h_sum 1.5", "h_count 1"), 1)

	// Another index of the same sources knows as much.
	old := x
	x = NewIndex(opts)
	add(t, x, file{kind: "counter", id: "1", entries: []entry{{"c c_total H l=1", 4, 0}, {"c c_total H l=2", 2, 0}}})
	x.Remember(old)
	want(lines("# c counter H", "c_total l=1 4"), 1)
	x.SetTime(1122)
	want(lines("# c counter H"), 2)
}

// TestRulingsAgainstModel runs random rulings on random files, against the slow and obvious way: let
// the worker itself have written what the ruling says.
func TestRulingsAgainstModel(t *testing.T) {
	for round := range 60 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("round=%d/seed=%d", round, seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			rulings := map[string]*Ruling{}
			dropped := map[string]string{}
			families := []string{"c", "g1", "g2", "g3"}
			for _, f := range families {
				rule := &Ruling{}
				if r.IntN(3) == 0 {
					dropped[f] = "l"
					rule = drop("l")
				}
				if r.IntN(2) == 0 {
					rule.Mode = allModes[r.IntN(8)] // without times, which the model does not know
				}
				rule.Drop = r.IntN(6) == 0
				rulings[f] = rule
			}
			x := NewIndex(Options{Rules: func(family string, _ metric.Type) *Ruling { return rulings[family] }})
			modes := map[string]metric.Mode{}
			for _, f := range families {
				modes[f] = allModes[r.IntN(8)]
			}
			var rewritten []file
			for id := range 6 {
				for _, f := range families {
					kind, eff := "gauge "+modes[f].String(), modes[f]
					sample := f
					if f == "c" {
						kind, sample = "counter", "c_total"
					} else if m := rulings[f].Mode; m != metric.NoMode {
						eff = m
					}
					in := file{kind: kind, id: strconv.Itoa(id), dead: r.IntN(3) == 0, created: int64(id + 1)}
					sums := map[string][]float64{}
					for user := range r.IntN(4) {
						v := float64(r.IntN(50))
						in.entries = append(in.entries, entry{fmt.Sprintf("%s %s H l=%d", f, sample, user), v, 0})
						key := fmt.Sprintf("%s %s H l=%d", f, sample, user)
						if dropped[f] != "" {
							key = fmt.Sprintf("%s %s H", f, sample)
						}
						sums[key] = append(sums[key], v)
					}
					s := add(t, x, file{kind: in.kind, id: in.id, created: in.created, entries: in.entries})
					x.SetAlive(s, !in.dead)
					if rulings[f].Drop {
						continue
					}
					out := file{kind: "gauge " + eff.String(), id: in.id, dead: in.dead, created: in.created}
					if f == "c" {
						out.kind = "counter"
					}
					keys := make([]string, 0, len(sums))
					for k := range sums {
						keys = append(keys, k)
					}
					sort.Strings(keys)
					for _, k := range keys {
						v := sums[k][0]
						for _, w := range sums[k][1:] {
							switch eff.Base() {
							case metric.Max:
								v = max(v, w)
							case metric.Min:
								v = min(v, w)
							default:
								v += w
							}
						}
						if f == "c" {
							v = 0
							for _, w := range sums[k] {
								v += w
							}
						}
						out.entries = append(out.entries, entry{k, v, 0})
					}
					rewritten = append(rewritten, out)
				}
			}
			if got, want := dump(x), model(rewritten); got != want {
				t.Fatalf("got:\n%s\nwant:\n%s", got, want)
			}
			for _, s := range slices.Clone(x.Sources()) {
				x.SetAlive(s, r.IntN(2) == 0)
				x.Remove(s)
			}
			if x.unpinned != 0 || len(x.free) != len(x.desc)-1 || len(x.families) != 0 || len(x.spaces) != 0 {
				t.Errorf("something is left: %d unpinned, %d families, %d spaces", x.unpinned, len(x.families), len(x.spaces))
			}
		})
	}
}

func TestLimits(t *testing.T) {
	x := NewIndex(Options{MaxFamilySeries: 2, MaxSeries: 5, MaxLabelName: 3, MaxLabelValue: 4})
	s := x.Add(file{kind: "counter", id: "1"}.spec())
	learn := func(key string, want error) {
		t.Helper()
		if err := x.Learn(s, []byte(key), uint32(s.Entries())); !errors.Is(err, want) {
			t.Errorf("learn %q: %v, want %v", key, err, want)
		}
	}
	learn("a a_total H l=1", nil)
	learn("a a_total H l=2", nil)
	learn("a a_total H l=3", ErrFamilyLimit)
	learn("a a_total H l=1", nil)
	learn("b b_total H long=1", ErrLabelLength)
	learn("b b_total H l=12345", ErrLabelLength)
	learn("b b_total H lon=1234", nil)
	learn("b b_total H", nil)
	learn("c c_total H", nil)
	learn("d d_total H", ErrSeriesLimit)
	// Another help text is another key of the same series, which goes on; but not for ever.
	for i := range 6 {
		learn(fmt.Sprintf("a a_total help%d l=1", i), nil)
	}
	learn("a a_total help6 l=1", ErrFamilyLimit)
	learn("a a_total help5 l=1", nil)
	x.opts.MaxSeries, x.opts.MaxFamilies = 10, 3
	learn("d d_total H", ErrFamiliesLimit)
	learn("c c_total H l=1", nil)
	x.Remove(s)
	if len(x.families) != 0 || x.series != 0 || x.keys != 0 || x.bytes != 0 || x.holding != 0 || len(x.free) != len(x.desc)-1 {
		t.Errorf("something is left: %d families, %d series, %d keys", len(x.families), x.series, x.keys)
	}
	s = x.Add(file{kind: "counter", id: "2"}.spec())
	learn("a a_total H l=3", nil)
	if n := strings.Count(dump(x), "\n"); n != 2 {
		t.Errorf("%d lines", n)
	}
}

// TestBytesLimit: long keys and labels are counted by their bytes. Those known go on, and what is
// gone makes room.
func TestBytesLimit(t *testing.T) {
	long := strings.Repeat("x", 1000)
	x := NewIndex(Options{MaxBytes: 10_000})
	learn := func(s *Source, key string, want error) {
		t.Helper()
		if err := x.Learn(s, []byte(key), uint32(s.Entries())); !errors.Is(err, want) {
			t.Errorf("learn %.20q: %v, want %v", key, err, want)
		}
	}
	s := x.Add(file{kind: "counter", id: "1"}.spec())
	for i := range 4 { // 2 kB each: the key, and the label
		learn(s, fmt.Sprintf("a a_total H l=%d%s", i, long), nil)
	}
	if want := int64(4 * (2*len("l=0"+long) + len("a a_total H ") - len("=") + seriesBytes)); x.Bytes() != want {
		t.Errorf("%d bytes, want %d", x.Bytes(), want)
	}
	learn(s, "a a_total H l=4"+long, ErrBytesLimit)
	learn(s, "a a_total H l=0"+long, nil)
	learn(s, "b b_total H", nil)
	// Another help text, and another spelling of the labels, are bytes of a series that is known.
	learn(s, "a a_total "+long+" l=0"+long, ErrBytesLimit)
	learn(s, "a a_total "+long[:500]+" l="+long[:50], nil)
	// Removing gives everything back.
	x.Remove(s)
	if x.Bytes() != 0 {
		t.Errorf("%d bytes are left", x.Bytes())
	}
	s = x.Add(file{kind: "counter", id: "2"}.spec())
	learn(s, "a a_total H l=4"+long, nil)
}
