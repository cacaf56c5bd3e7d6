package merge

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"testing"

	"aggregatord/internal/metric"
)

// archived adds what was folded at a time, in seconds.
func archived(t *testing.T, x *Index, kind string, at int64, entries ...entry) *Source {
	t.Helper()
	spec := file{kind: kind, created: at * 1e9}.spec()
	s := x.AddFolded(spec)
	for i, e := range entries {
		if err := x.Learn(s, []byte(e.key), uint32(i)); err != nil {
			t.Fatal(err)
		}
	}
	set(s, entries)
	return s
}

// TestNewestOfTheDead: a deployment has changed a mode; what the workers before it have left does
// not come back when those after it are gone.
func TestNewestOfTheDead(t *testing.T) {
	const none = ""
	livesum := file{kind: "gauge livesum", id: "2", created: 200e9, entries: []entry{{"g g H", 5, 0}}}
	served := lines("# g gauge livesum H", "g 5")
	for name, c := range map[string]func(x *Index) (want string){
		"alive": func(x *Index) string { add(t, x, livesum); return served },
		"dead": func(x *Index) string {
			s := add(t, x, livesum)
			dump(x)
			x.SetAlive(s, false)
			return none
		},
		"folded": func(x *Index) string {
			s := add(t, x, livesum)
			x.SetTime(300)
			x.Remove(s)
			return none
		},
		"folded, then an old worker again": func(x *Index) string {
			x.Remove(add(t, x, livesum))
			add(t, x, file{kind: "gauge sum", id: "3", created: 150e9, entries: []entry{{"g g H", 1, 0}}})
			return lines("# g gauge sum H", "g 38")
		},
		"folded, and all others too": func(x *Index) string {
			x.Remove(add(t, x, livesum))
			for _, s := range slices.Clone(x.Sources()) {
				x.Remove(s)
			}
			return none
		},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex(Options{})
			x.SetTime(250)
			archived(t, x, "gauge sum", 100, entry{"g g H", 37, 0})
			want := c(x)
			if got := dump(x); got != want {
				t.Errorf("got:\n%swant:\n%s", got, want)
			}
			// Another index of the same sources knows as much.
			y := NewIndex(Options{})
			archived(t, y, "gauge sum", 100, entry{"g g H", 37, 0})
			if name == "folded" {
				y.Remember(x)
				if got := dump(y); got != want {
					t.Errorf("remembered, got:\n%swant:\n%s", got, want)
				}
			}
			for _, s := range slices.Clone(x.Sources()) {
				x.Remove(s)
			}
			if len(x.families)+len(x.contested) != 0 || x.share.Len() != 0 {
				t.Errorf("an empty index keeps %d families, %d rivals and %d shared things", len(x.families), len(x.contested),
					x.share.Len())
			}
		})
	}
}

// TestLaterFoldedWins: after a restart there is only the archive.
func TestLaterFoldedWins(t *testing.T) {
	x := NewIndex(Options{})
	counters := archived(t, x, "counter", 100, entry{"a a_total H", 1, 0}, entry{"x x_total H", 2, 0})
	gauges := archived(t, x, "gauge max", 200, entry{"x_total x_total H", 3, 0})
	x.SetTime(1000)
	if got, want := dump(x), lines("# a counter H", "a_total 1", "# x_total gauge max H", "x_total 3"); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	var lost []Loss
	x.Losses(counters, func(l Loss) { lost = append(lost, l) })
	x.Losses(gauges, func(l Loss) { lost = append(lost, l) })
	if want := []Loss{{Entry: 1, Family: "x", Winner: "gauge max x_total", Since: 1000}}; !slices.Equal(lost, want) {
		t.Errorf("lost are %+v, want %+v", lost, want)
	}
	want := []Conflict{{Sample: "x_total", Family: "x", Winner: "gauge max x_total", Loser: "counter x", Series: 1}}
	if got := x.Conflicts(); !slices.Equal(got, want) {
		t.Errorf("conflicts are %+v, want %+v", got, want)
	}
	// With a source that is not folded the winner is the newer one for certain.
	for _, step := range []struct {
		kind, key string
		settled   bool
	}{{"gauge max", "x_total x_total H", true}, {"counter", "x x_total H", false}} {
		add(t, x, file{kind: step.kind, id: "9" + step.kind, created: 150e9, entries: []entry{{step.key, 0, 0}}})
		dump(x)
		lost = nil
		x.Losses(counters, func(l Loss) { lost = append(lost, l) })
		for _, l := range lost {
			if l.Settled != step.settled {
				t.Errorf("beside a %s: %+v", step.kind, l)
			}
		}
	}
	for _, s := range slices.Clone(x.Sources()) {
		if s != counters && s != gauges {
			x.Remove(s)
		}
	}
	// An entry of its own time.
	if err := x.LearnAt(counters, []byte("x x_total H"), 7, 300e9); err != nil {
		t.Fatal(err)
	}
	counters.Values()[2] = 4
	if got, want := dump(x), lines("# a counter H", "a_total 1", "# x counter H", "x_total 6"); got != want {
		t.Errorf("folded again later, got:\n%swant:\n%s", got, want)
	}
}

func TestNaN(t *testing.T) {
	x := NewIndex(Options{})
	a := add(t, x, file{kind: "counter", id: "1", entries: []entry{{"c c_total H", 1, 0}, {"d d_total H", 1, 0}}})
	add(t, x, file{kind: "counter", id: "2", entries: []entry{{"c c_total H", 2, 0}, {"d d_total H", 2, 0}}})
	for step, values := range [][]float64{{1, 1}, {math.NaN(), math.NaN()}, {5, math.NaN()}, {5, 6}} {
		copy(a.Values(), values)
		want, count, name := []float64{2, 2}, 0, ""
		for i, v := range values {
			if v == v {
				want[i] += v
				continue
			}
			count++
			if name == "" {
				name = []string{"c_total", "d_total"}[i]
			}
		}
		if got, w := dump(x), lines("# c counter H", fmt.Sprintf("c_total %v", want[0]), "# d counter H",
			fmt.Sprintf("d_total %v", want[1])); got != w {
			t.Errorf("step %d: got:\n%swant:\n%s", step, got, w)
		}
		if n, sample := x.NaNs(); n != count || sample != name {
			t.Errorf("step %d: %d NaNs, one of %q, want %d, %q", step, n, sample, count, name)
		}
	}
	hi, lo := Combine(metric.Summary, metric.NoMode, 3, 0.5, math.NaN(), 0)
	if hi != 3 || lo != 0.5 {
		t.Errorf("a NaN was folded: %v, %v", hi, lo)
	}
	if hi, lo = Combine(metric.Summary, metric.NoMode, math.NaN(), math.NaN(), 4, 0); hi != 4 || lo != 0 {
		t.Errorf("a sum that is NaN stays so: %v, %v", hi, lo)
	}
	if hi, _ = Combine(metric.Gauge, metric.Max, math.NaN(), 0, math.NaN(), 0); hi == hi {
		t.Errorf("the greatest of NaN is %v", hi)
	}
}

// TestClockAhead: a time of the future counts as the moment at which it was seen first.
func TestClockAhead(t *testing.T) {
	for _, rules := range []Options{{}, ruled(&Ruling{Mode: metric.MostRecent})} {
		mode := "gauge mostrecent"
		if rules.Rules != nil {
			mode = "gauge livemostrecent"
		}
		x := NewIndex(rules)
		x.SetTime(1000)
		ahead := add(t, x, file{kind: mode, id: "1", entries: []entry{{"g g H", 1, 9e9}}})
		other := add(t, x, file{kind: mode, id: "2", entries: []entry{{"g g H", 2, 999}}})
		for _, c := range []struct {
			now, ahead, other float64
			want              string
		}{{1000, 9e9, 999, "1"}, {1010, 9e9, 1009, "2"}, {1020, 9.1e9, 1009, "1"}, {1030, 9.1e9, 1025, "2"}} {
			x.SetTime(c.now)
			ahead.Stamps()[0], other.Stamps()[0] = c.ahead, c.other
			if got, want := dump(x), lines("# g gauge mostrecent H", "g "+c.want); got != want {
				t.Errorf("%s at %v: got:\n%swant:\n%s", mode, c.now, got, want)
			}
		}
		x.Observe(ahead)
		if got := ahead.Stamp(0); got != 1020 {
			t.Errorf("%s: the time to keep is %v, want 1020", mode, got)
		}
	}
}

func TestOwnPID(t *testing.T) {
	x := NewIndex(Options{})
	add(t, x, file{kind: "gauge max", id: "1", entries: []entry{{"a a H pid=7", 1, 0}}})
	if x.OwnPID() != "" {
		t.Errorf("named %q, which has no pid of ours", x.OwnPID())
	}
	add(t, x, file{kind: "gauge liveall", id: "1", entries: []entry{{"b b H pid=7", 1, 0}, {"b b H pid=8", 2, 0}}})
	want := lines("# a gauge max H", "a pid=7 1", "# b gauge liveall H", "b exported_pid=7 pid=1 1", "b exported_pid=8 pid=1 2")
	if got := dump(x); got != want || x.OwnPID() != "b" {
		t.Errorf("got:\n%swant:\n%s, named %q", got, want, x.OwnPID())
	}
}

// TestBoundStyle: bounds are spelled as the newest file spells them.
func TestBoundStyle(t *testing.T) {
	spelled := func(x *Index) (bounds string) {
		for _, p := range x.Layout().Families[0].Metrics[0].Points[:2] {
			bounds += string(p.AppendBound(nil)) + " "
		}
		return bounds
	}
	old := []entry{{"h h_bucket H le=1e+010", 1, 0}, {"h h_bucket H le=1e+011", 1, 0}}
	late := []entry{{"h h_bucket H le=1e+10", 1, 0}, {"h h_bucket H le=1e+11", 1, 0}}
	x := NewIndex(Options{})
	for i, entries := range [][]entry{old, late, old} {
		add(t, x, file{kind: "histogram", id: fmt.Sprint(i), created: int64(i + 1), entries: entries})
		want := "1e+010 1e+011 "
		if i == 1 {
			want = "1e+10 1e+11 "
		}
		if got := spelled(x); got != want {
			t.Errorf("file %d: %q, want %q", i, got, want)
		}
		// Who is older changes nothing.
		add(t, x, file{kind: "histogram", id: "old", created: 0, entries: slices.Concat(late)})
		if got := spelled(x); got != want {
			t.Errorf("after file %d and an older one: %q, want %q", i, got, want)
		}
	}
}

func TestDropZero(t *testing.T) {
	x := NewIndex(ruled(&Ruling{DropZero: true}))
	for id, v := range []float64{0, 3} {
		add(t, x, file{kind: "gauge all", id: fmt.Sprint(id), entries: []entry{{"a a H", v, 0}}})
		add(t, x, file{kind: "gauge sum", id: fmt.Sprint(id), entries: []entry{{"b b H", 0, 0}}})
	}
	add(t, x, file{kind: "counter", id: "0", entries: []entry{{"c c_total H", 0, 0}}})
	if got, want := dump(x), lines("# a gauge all H", "a pid=1 3", "# b gauge sum H", "b 0", "# c counter H", "c_total 0"); got != want ||
		x.Zeros() != 1 {
		t.Errorf("got:\n%swant:\n%s, %d left out", got, want, x.Zeros())
	}
}

// TestShare: indexes have what is equal in common, and leave nothing behind.
func TestShare(t *testing.T) {
	share := NewShare()
	x, y := NewIndex(Options{Share: share}), NewIndex(Options{Share: share})
	files := []file{
		{kind: "histogram", id: "1", entries: []entry{{"h h_bucket H le=1", 1, 0}, {"h h_sum H", 2, 0}, {"h h_sum H a=", 2, 0}}},
		{kind: "gauge all", id: "1", entries: []entry{{"g g H a=1", 1, 0}, {"g g H a=2", 2, 0}}},
	}
	for _, f := range files {
		add(t, x, f)
	}
	x.Layout()
	n := share.Len()
	var sources []*Source
	for _, f := range files {
		sources = append(sources, add(t, y, f))
	}
	if a, b := x.Layout(), y.Layout(); &a.Families[0].Metrics[0] != &b.Families[0].Metrics[0] ||
		&a.Families[1].Metrics[0] != &b.Families[1].Metrics[0] {
		t.Error("two indexes of the same files have metrics of their own")
	}
	if share.Len() != n {
		t.Errorf("%d things for two indexes, %d for one", share.Len(), n)
	}
	x.Close()
	if share.Len() != n {
		t.Errorf("%d of %d things are left when one index is closed", share.Len(), n)
	}
	add(t, y, file{kind: "gauge all", id: "2", entries: []entry{{"g g H a=1", 1, 0}}})
	y.Layout()
	for _, s := range sources {
		y.Remove(s)
	}
	if got, want := dump(y), lines("# g gauge all H", "g a=1 pid=2 1"); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	y.Close()
	if share.Len() != 0 {
		t.Errorf("%d things are left when both are closed", share.Len())
	}
}

// TestEachOfSource: saving one source takes time in proportion to that source.
func TestEachOfSource(t *testing.T) {
	x := NewIndex(Options{})
	var few []entry
	for i := range 20_000 {
		few = append(few, entry{fmt.Sprintf("c c_total H i=%d", i), 1, 0})
	}
	add(t, x, file{kind: "counter", id: "1", entries: few})
	s := add(t, x, file{kind: "counter", id: "2", entries: few[:3]})
	var raws []string
	bytes := allocated(func() { x.Each(s, func(raw string, _, _ float64) { raws = append(raws, raw) }) })
	if want := []string{few[0].key, few[1].key, few[2].key}; !slices.Equal(raws, want) {
		t.Errorf("got %q, want %q", raws, want)
	}
	if bytes > 4096 {
		t.Errorf("%d bytes for three entries", bytes)
	}
}

// allocated is how many bytes f allocates.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}
