package merge

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// parseTestKey reads "family sample help a=b c=d"; a _ stands for no help, a - for an empty one.
func parseTestKey(raw []byte) (metric.Key, error) {
	f := strings.Fields(string(raw))
	if len(f) < 3 {
		return metric.Key{}, errors.New("bad test key")
	}
	k := metric.Key{Family: f[0], Series: metric.Series{Sample: f[1]}}
	switch f[2] {
	case "_":
		k.NoHelp = true
	case "-":
	default:
		k.Help = f[2]
	}
	for _, l := range f[3:] {
		name, value, _ := strings.Cut(l, "=")
		k.Series.Labels = append(k.Series.Labels, metric.Label{Name: name, Value: value})
	}
	metric.SortLabels(k.Series.Labels)
	return k, nil
}

// entry is one entry of a test source.
type entry struct {
	key          string
	value, stamp float64
}

// file describes a test source: its kind, by a name like "gauge max", its worker and when
// it was made.
type file struct {
	kind, id string
	created  int64
	dead     bool
	entries  []entry
}

func (f file) spec() SourceSpec {
	typ, mode, _ := strings.Cut(f.kind, " ")
	s := SourceSpec{Name: f.kind + "_" + f.id, ID: f.id, Created: f.created, ParseKey: parseTestKey}
	s.Type, _ = metric.ParseType(typ)
	s.Mode, _ = metric.ParseMode(mode)
	return s
}

func add(t testing.TB, x *Index, f file) *Source {
	t.Helper()
	s := x.Add(f.spec())
	for i, e := range f.entries {
		if err := x.Learn(s, []byte(e.key), uint32(i)); err != nil {
			t.Fatalf("learn %q: %v", e.key, err)
		}
	}
	set(s, f.entries)
	x.SetAlive(s, !f.dead)
	return s
}

func set(s *Source, entries []entry) {
	for i, e := range entries {
		s.Values()[i] = e.value
		if stamps := s.Stamps(); stamps != nil {
			stamps[i] = e.stamp
		}
	}
}

// dump writes a snapshot in a form made for reading and comparing.
func dump(x *Index) string {
	snap := x.Snapshot()
	defer snap.Release()
	var b strings.Builder
	i := 0
	for _, f := range snap.Layout.Families {
		if f.First != i {
			fmt.Fprintf(&b, "BAD First %d, want %d\n", f.First, i)
		}
		fmt.Fprintf(&b, "# %s %s %s\n", f.Name, strings.TrimSpace(f.Type.String()+" "+f.Mode.String()), f.Help)
		for _, m := range f.Metrics {
			for _, p := range m.Points {
				v := snap.Values[i]
				i++
				if view.IsAbsent(v) {
					if !f.Sparse {
						b.WriteString("BAD absent value\n")
					}
					continue
				}
				b.WriteString(f.Name + p.Kind.Suffix())
				for _, l := range m.Labels {
					b.WriteString(" " + l.Name + "=" + l.Value)
				}
				switch p.Kind {
				case view.Bucket:
					b.WriteString(" le=" + string(metric.AppendBound(nil, p.Bound)))
				case view.Quantile:
					b.WriteString(" quantile=" + string(metric.AppendBound(nil, p.Bound)))
				}
				b.WriteString(" " + string(metric.AppendValue(nil, v)) + "\n")
			}
		}
	}
	if i != snap.Layout.Points || i != len(snap.Values) {
		fmt.Fprintf(&b, "BAD %d points, %d in layout, %d values\n", i, snap.Layout.Points, len(snap.Values))
	}
	if err := checkAccounts(x, snap); err != nil {
		fmt.Fprintf(&b, "BAD account: %v\n", err)
	}
	return b.String()
}

// fold moves what a source holds into the folded source of its kind, as an archive does.
func fold(t testing.TB, x *Index, s *Source) {
	t.Helper()
	spec := s.Spec()
	if !spec.Mode.Live() && s.Entries() > 0 {
		var into *Source
		for _, f := range x.Sources() {
			if f.folded && f.space == s.space {
				into = f
			}
		}
		if into == nil {
			into = x.AddFolded(spec)
		}
		for i, c := range s.cells {
			at := slices.Index(into.cells, c)
			if at < 0 {
				if err := x.Learn(into, []byte(x.desc[c].key.value), uint32(into.Entries())); err != nil {
					t.Fatal(err)
				}
				at = into.Entries() - 1
				into.Values()[at] = Zero(spec.Type, spec.Mode)
			}
			stamp := 0.0
			if s.second != nil {
				stamp = s.second[i]
			}
			into.Values()[at], into.Stamps()[at] = Combine(spec.Type, spec.Mode, into.Values()[at], into.Stamps()[at], s.values[i], stamp)
		}
	}
	x.Remove(s)
}

func lines(s ...string) string { return strings.Join(s, "\n") + "\n" }

func TestSnapshot(t *testing.T) {
	nan, inf := math.NaN(), math.Inf(1)
	two := func(kind string, a, b entry) []file {
		return []file{{kind: kind, id: "1", entries: []entry{a}}, {kind: kind, id: "2", entries: []entry{b}}}
	}
	g := func(v, stamp float64) entry { return entry{"g g Help", v, stamp} }
	for _, tc := range []struct {
		name  string
		files []file
		want  string
	}{
		{"nothing", nil, ""},
		{
			"counter adds", two("counter", entry{"c c_total H a=b", 1, 0}, entry{"c c_total H a=b", 2.5, 0}),
			lines("# c counter H", "c_total a=b 3.5"),
		},
		{
			"counter named like its sample", two("counter", entry{"c_total c_total H", 1, 0}, entry{"c c_total H", 2, 0}),
			lines("# c counter H", "c_total 3"),
		},
		{
			"counter without total", two("counter", entry{"c c _", 1, 0}, entry{"c c _", 2, 0}),
			lines("# c counter Multiprocess metric", "c 3"),
		},
		{"all", two("gauge all", g(1, 0), g(2, 0)), lines("# g gauge all Help", "g pid=1 1", "g pid=2 2")},
		{"sum", two("gauge sum", g(1, 0), g(-3, 0)), lines("# g gauge sum Help", "g -2")},
		{"max", two("gauge max", g(1, 0), g(3, 0)), lines("# g gauge max Help", "g 3")},
		{"max below zero", two("gauge max", g(-1, 0), g(-3, 0)), lines("# g gauge max Help", "g -1")},
		{"max passes over NaN", two("gauge max", g(nan, 0), g(-3, 0)), lines("# g gauge max Help", "g -3")},
		{"max of NaN", two("gauge max", g(nan, 0), g(nan, 0)), lines("# g gauge max Help", "g NaN")},
		{"max of zeros", two("gauge max", g(0, 0), g(math.Copysign(0, -1), 0)), lines("# g gauge max Help", "g 0")},
		{"min", two("gauge min", g(1, 0), g(3, 0)), lines("# g gauge min Help", "g 1")},
		{"min passes over NaN", two("gauge min", g(7, 0), g(nan, 0)), lines("# g gauge min Help", "g 7")},
		{"min of infinities", two("gauge min", g(inf, 0), g(-inf, 0)), lines("# g gauge min Help", "g -Inf")},
		{"most recent", two("gauge mostrecent", g(9, 100), g(3, 200)), lines("# g gauge mostrecent Help", "g 3")},
		{"most recent of equal stamps", two("gauge mostrecent", g(9, 100), g(3, 100)), lines("# g gauge mostrecent Help", "g 9")},
		{"most recent never set", two("gauge mostrecent", g(0, 0), g(0, 0)), lines("# g gauge mostrecent Help")},
		{"latest is another name", two("gauge latest", g(9, 100), g(0, 0)), lines("# g gauge mostrecent Help", "g 9")},
		{"live modes drop the dead", []file{
			{kind: "gauge livesum", id: "1", entries: []entry{g(1, 0)}},
			{kind: "gauge livesum", id: "2", dead: true, entries: []entry{g(5, 0)}},
		}, lines("# g gauge livesum Help", "g 1")},
		{"nobody lives", []file{{kind: "gauge liveall", id: "2", dead: true, entries: []entry{g(5, 0)}}}, ""},
		{"the dead count in the others", []file{
			{kind: "gauge max", id: "1", dead: true, entries: []entry{g(5, 0)}},
			{kind: "counter", id: "1", dead: true, entries: []entry{{"c c_total H", 1, 0}}},
		}, lines("# c counter H", "c_total 1", "# g gauge max Help", "g 5")},
		{
			"a gauge's own pid",
			[]file{
				{kind: "gauge max", id: "1", entries: []entry{{"g g _ pid=9 z=1", 5, 0}, {"g g _ pid=8 z=1", 4, 0}}},
				{kind: "gauge max", id: "2", entries: []entry{{"g g _ pid=9 z=1", 7, 0}}},
				{kind: "gauge all", id: "1", entries: []entry{{"h h _ pid=9 z=1", 6, 0}}},
			},
			lines("# g gauge max Multiprocess metric", "g pid=8 z=1 4", "g pid=9 z=1 7", "# h gauge all Multiprocess metric",
				"h exported_pid=9 pid=1 z=1 6"),
		},
		{
			"a counter's own pid",
			[]file{{kind: "counter", id: "1", entries: []entry{{"c c_total H pid=9", 5, 0}}}},
			lines("# c counter H", "c_total pid=9 5"),
		},
		{"histograms with different buckets", []file{
			{kind: "histogram", id: "1", entries: []entry{
				{"h h_sum H", 3, 0}, {"h h_bucket H le=10.0", 2, 0}, {"h h_bucket H le=2.0", 1, 0}, {"h h_bucket H le=+Inf", 4, 0},
			}},
			{kind: "histogram", id: "2", entries: []entry{
				{"h h_sum H", 4, 0}, {"h h_bucket H le=5", 10, 0}, {"h h_bucket H le=2", 20, 0}, {"h h_bucket H le=Infinity", 40, 0},
			}},
		}, lines("# h histogram H", "h_bucket le=2.0 21", "h_bucket le=5.0 31", "h_bucket le=10.0 33", "h_bucket le=+Inf 77", "h_sum 7",
			"h_count 77")},
		{
			"histogram cut short",
			[]file{{kind: "histogram", id: "1", entries: []entry{{"h h_sum H a=1", 3, 0}, {"h h_bucket H le=1.0 a=1", 2, 0}}}},
			lines("# h histogram H", "h_bucket a=1 le=1.0 2", "h_bucket a=1 le=+Inf 2", "h_sum a=1 3", "h_count a=1 2"),
		},
		{
			"histogram with a count of its own",
			[]file{{kind: "histogram", id: "1", entries: []entry{{"h h_count H", 3, 0}, {"h h_bucket H le=1.0", 2, 0}}}},
			lines("# h histogram H", "h_bucket le=1.0 2", "h_bucket le=+Inf 2", "h_count 2"),
		},
		{
			"summary", two("summary", entry{"s s_count H", 1, 0}, entry{"s s_sum H", 2.25, 0}),
			lines("# s summary H", "s_sum 2.25", "s_count 1"),
		},
		{"the newest file says the type", []file{
			{kind: "counter", id: "1", created: 1, entries: []entry{{"x x_total H", 1, 0}}},
			{kind: "gauge max", id: "2", created: 2, entries: []entry{{"x_total x_total H", 2, 0}}},
		}, lines("# x_total gauge max H", "x_total 2")},
		{"no sample in common", []file{
			{kind: "counter", id: "1", created: 1, entries: []entry{{"x x_total H", 1, 0}}},
			{kind: "gauge max", id: "2", created: 2, entries: []entry{{"x x H", 2, 0}}},
			{kind: "histogram", id: "1", created: 1, entries: []entry{{"y y_bucket H le=1", 3, 0}}},
			{kind: "counter", id: "1", created: 1, entries: []entry{{"y y_total H", 4, 0}}},
			{kind: "summary", id: "1", created: 1, entries: []entry{{"z z_count H", 5, 0}}},
			{kind: "counter", id: "2", created: 1, entries: []entry{{"z z_total H", 6, 0}}},
		}, lines("# x counter H", "x_total 1", "# x gauge max H", "x 2", "# y counter H", "y_total 4", "# y histogram H",
			"y_bucket le=1.0 3",
			"y_bucket le=+Inf 3", "y_count 3", "# z counter H", "z_total 6", "# z summary H", "z_count 5")},
		{"a gauge named like a histogram's sample", []file{
			{kind: "histogram", id: "1", created: 1, entries: []entry{{"h h_sum H", 1, 0}, {"h h_bucket H le=1", 1, 0}}},
			{kind: "gauge max", id: "2", created: 2, entries: []entry{{"h_count h_count H", 2, 0}}},
		}, lines("# h_count gauge max H", "h_count 2")},
		{"a counter without total beside a gauge", []file{
			{kind: "counter", id: "1", created: 3, entries: []entry{{"x x H", 1, 0}}},
			{kind: "gauge max", id: "2", created: 2, entries: []entry{{"x x H", 2, 0}}},
		}, lines("# x counter H", "x 1")},
		{"who loses pushes nobody out", []file{
			{kind: "summary", id: "1", created: 2, entries: []entry{{"s s_sum H", 1, 0}}},
			{kind: "gauge max", id: "2", created: 1, entries: []entry{{"s_sum s_sum H", 2, 0}}},
			{kind: "gauge min", id: "3", created: 3, entries: []entry{{"s_count s_count H", 3, 0}}},
		}, lines("# s_count gauge min H", "s_count 3", "# s_sum gauge max H", "s_sum 2")},
		{"the living come first", []file{
			{kind: "gauge max", id: "1", created: 1, entries: []entry{{"x x H", 1, 0}}},
			{kind: "gauge min", id: "2", created: 2, dead: true, entries: []entry{{"x x H", 2, 0}}},
		}, lines("# x gauge max H", "x 1")},
		{"the newest of the dead", []file{
			{kind: "gauge max", id: "1", created: 1, dead: true, entries: []entry{{"x x H", 1, 0}}},
			{kind: "gauge livemin", id: "2", created: 2, dead: true, entries: []entry{{"x x H", 2, 0}}},
		}, ""},
		{"an empty help", two("counter", entry{"c c_total -", 1, 0}, entry{"c c_total _", 2, 0}), "# c counter \nc_total 3\n"},
		{"NaN is not added", []file{
			{kind: "counter", id: "1", entries: []entry{{"c c_total H", nan, 0}}},
			{kind: "counter", id: "2", entries: []entry{{"c c_total H", 4, 0}}},
			{kind: "histogram", id: "1", entries: []entry{{"h h_sum H", nan, 0}, {"h h_bucket H le=+Inf", 1, 0}}},
			{kind: "gauge sum", id: "1", entries: []entry{{"g g H a=1", nan, 0}, {"g g H a=2", nan, 0}}},
			{kind: "gauge sum", id: "2", entries: []entry{{"g g H a=1", 5, 0}, {"g g H a=2", nan, 0}}},
		}, lines("# c counter H", "c_total 4", "# g gauge sum H", "g a=1 5", "g a=2 NaN", "# h histogram H", "h_bucket le=+Inf 1",
			"h_sum 0", "h_count 1")},
		{"the newest file says the mode", []file{
			{kind: "gauge max", id: "2", created: 3, entries: []entry{{"x x H", 2, 0}}},
			{kind: "gauge min", id: "1", created: 2, entries: []entry{{"x x H", 1, 0}}},
		}, lines("# x gauge max H", "x 2")},
		{"a conflict with the dead of a live mode is none", []file{
			{kind: "gauge max", id: "1", created: 1, entries: []entry{{"x x H", 2, 0}}},
			{kind: "gauge livemax", id: "2", created: 2, dead: true, entries: []entry{{"x x H", 1, 0}}},
		}, lines("# x gauge max H", "x 2")},
		{"the newest help", []file{
			{kind: "counter", id: "1", created: 2, entries: []entry{{"c c_total New a=1", 1, 0}, {"c c_total New", 1, 0}}},
			{kind: "counter", id: "2", created: 1, entries: []entry{{"c c_total Old", 1, 0}}},
			{kind: "counter", id: "3", created: 3, entries: []entry{{"c c_total _", 1, 0}}},
		}, lines("# c counter New", "c_total 3", "c_total a=1 1")},
		{"special sums", two("counter", entry{"c c_total H", inf, 0}, entry{"c c_total H", 1, 0}), lines("# c counter H", "c_total +Inf")},
		{"sum to NaN", two("counter", entry{"c c_total H", inf, 0}, entry{"c c_total H", -inf, 0}), lines("# c counter H", "c_total NaN")},
		{
			"sum of the greatest", two("counter", entry{"c c_total H", math.MaxFloat64, 0}, entry{"c c_total H", math.MaxFloat64, 0}),
			lines("# c counter H", "c_total +Inf"),
		},
		{
			"sum that cancels", two("counter", entry{"c c_total H", 1e300, 0}, entry{"c c_total H", 1, 0}),
			lines("# c counter H", "c_total 1e+300"),
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			forward, backward := NewIndex(Options{}), NewIndex(Options{})
			for i := range tc.files {
				add(t, forward, tc.files[i])
				add(t, backward, tc.files[len(tc.files)-1-i])
			}
			if got := dump(forward); got != tc.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, tc.want)
			}
			if got := dump(backward); got != tc.want {
				t.Errorf("added in the other order, got:\n%s\nwant:\n%s", got, tc.want)
			}
		})
	}
}

// TestEmptyLabels: a series whose label has no value is that without the label, whichever was
// there first, and in one file, too.
func TestEmptyLabels(t *testing.T) {
	files := []file{
		{kind: "counter", id: "1", entries: []entry{{"c c_total _", 1, 0}, {"c c_total _ a=x", 8, 0}}},
		{kind: "counter", id: "2", entries: []entry{{"c c_total _ a=", 2, 0}, {"c c_total _", 4, 0}}},
		{kind: "counter", id: "3", entries: []entry{{"c c_total _ a= b=", 16, 0}, {"c c_total _ b=", 32, 0}}},
		{kind: "histogram", id: "1", entries: []entry{{"h h_bucket _ le=1", 1, 0}, {"h h_sum _ a=", 2, 0}, {"h h_bucket _ a= le=1", 4, 0}}},
	}
	want := "# c counter Multiprocess metric\nc_total a= b= 55\nc_total a=x 8\n" +
		"# h histogram Multiprocess metric\nh_bucket a= le=1.0 5\nh_bucket a= le=+Inf 5\nh_sum a= 2\nh_count a= 5\n"
	for round := range 2 {
		x := NewIndex(Options{})
		for _, f := range files {
			add(t, x, f)
			x.Layout() // what is built already is built again
		}
		if got := dump(x); got != want {
			t.Errorf("round %d: got\n%s\nwant\n%s", round, got, want)
		}
		slices.Reverse(files)
	}
}

func TestLearnRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, kind, key string
		want            error
	}{
		{"sample of another family", "counter", "a b_total H", ErrSample},
		{"suffix of another type", "counter", "a a_bucket H", ErrSample},
		{"gauge with a suffix", "gauge max", "a a_total H", ErrSample},
		{"bucket without le", "histogram", "a a_bucket H", ErrSample},
		{"le is no number", "histogram", "a a_bucket H le=wide", ErrSample},
		{"le is NaN", "histogram", "a a_bucket H le=NaN", ErrSample},
		{"plain sample in a summary", "summary", "a a H", ErrSample},
		{"too many labels", "counter", "a a_total H a=1 b=2 c=3 d=4", ErrLabelLimit},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := NewIndex(Options{MaxLabels: 3})
			s := add(t, x, file{kind: tc.kind, id: "1"})
			if err := x.Learn(s, []byte(tc.key), uint32(s.Entries())); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if got := dump(x); got != "" || s.Entries() != 0 || len(x.families) != 0 {
				t.Errorf("the refused entry left something behind: %q, %d entries, %d families", got, s.Entries(), len(x.families))
			}
		})
	}
}

func TestSeriesLimit(t *testing.T) {
	x := NewIndex(Options{MaxSeries: 2})
	s := add(t, x, file{kind: "counter", id: "1", entries: []entry{{"c c_total H", 1, 0}, {"d d_total H", 2, 0}}})
	if err := x.Learn(s, []byte("e e_total H"), 9); !errors.Is(err, ErrSeriesLimit) {
		t.Fatalf("third series: %v", err)
	}
	// Known series go on, and what goes makes room.
	add(t, x, file{kind: "counter", id: "2", entries: []entry{{"c c_total H", 1, 0}}})
	x.Remove(s)
	add(t, x, file{kind: "counter", id: "3", entries: []entry{{"e e_total H", 3, 0}}})
	want := lines("# c counter H", "c_total 1", "# e counter H", "e_total 3")
	if got := dump(x); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestConflicts(t *testing.T) {
	x := NewIndex(Options{})
	old := add(t, x, file{kind: "gauge all", id: "1", created: 1, entries: []entry{{"x x H a=1", 1, 0}, {"x x H a=2", 1, 0}}})
	add(t, x, file{kind: "gauge max", id: "2", created: 2, entries: []entry{{"x x H", 2, 0}}})
	dump(x)
	want := []Conflict{{Sample: "x", Family: "x", Winner: "gauge max", Loser: "gauge all", Series: 2}}
	if got := x.Conflicts(); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	x.Remove(old)
	dump(x)
	if got := x.Conflicts(); len(got) != 0 {
		t.Errorf("still in conflict: %v", got)
	}
}

func TestLiveAgain(t *testing.T) {
	x := NewIndex(Options{})
	s := add(t, x, file{kind: "gauge livemax", id: "1", entries: []entry{{"x x H", 2, 0}}})
	want := dump(x)
	x.SetAlive(s, false)
	if got := dump(x); got != "" {
		t.Errorf("dead: %s", got)
	}
	x.SetAlive(s, true)
	if got := dump(x); got != want {
		t.Errorf("alive again: got %s, want %s", got, want)
	}
}

// TestLayoutStays checks what lets an encoder cache what it rendered: the same layout as
// long as no series appears or goes, another one afterwards, and never a changed one.
func TestLayoutStays(t *testing.T) {
	x := NewIndex(Options{})
	s := add(t, x, file{kind: "counter", id: "1", entries: []entry{{"a a_total H", 1, 0}, {"b b_total H", 1, 0}}})
	first := x.Layout()
	s.Values()[0] = 5
	add(t, x, file{kind: "counter", id: "2", created: 9, entries: []entry{{"a a_total H", 1, 0}}})
	if x.Layout() != first {
		t.Error("a worker with known series changed the layout")
	}
	add(t, x, file{kind: "counter", id: "3", entries: []entry{{"a a_total H x=y", 1, 0}}})
	second := x.Layout()
	if second == first || len(first.Families[0].Metrics) != 1 || len(second.Families[0].Metrics) != 2 {
		t.Error("a new series must make a new layout and leave the old one alone")
	}
}

// TestOrderDoesNotMatter adds fractions in random orders, with and without folding: every
// total must be the same to the last bit, or a fold would look like a counter reset.
func TestOrderDoesNotMatter(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	values := make([]float64, 200)
	for i := range values {
		values[i] = r.ExpFloat64() * math.Pow(10, float64(r.IntN(12)-6))
	}
	want := ""
	for range 200 {
		x := NewIndex(Options{})
		var sources []*Source
		for _, i := range r.Perm(len(values)) {
			sources = append(sources, add(t, x,
				file{kind: "counter", id: strconv.Itoa(i), entries: []entry{{"c c_total H", values[i], 0}}}))
		}
		r.Shuffle(len(sources), func(i, j int) { sources[i], sources[j] = sources[j], sources[i] })
		for _, s := range sources[:r.IntN(len(sources)+1)] {
			fold(t, x, s)
		}
		got := dump(x)
		if want == "" {
			want = got
		}
		if got != want {
			t.Fatalf("got %s, want %s", got, want)
		}
	}
}

// TestAgainstModel runs random changes against an index and against the obvious way to
// do it: keep every value in lists and combine them from nothing for every snapshot.
func TestAgainstModel(t *testing.T) {
	for round := range 40 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("round=%d/seed=%d", round, seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 2))
			x := NewIndex(Options{})
			type live struct {
				file
				source *Source
			}
			var files []*live
			var gone []*live // folded, in order
			kinds := []string{
				"counter", "histogram", "gauge all", "gauge sum", "gauge max", "gauge min", "gauge mostrecent",
				"gauge liveall", "gauge livesum", "gauge livemostrecent",
			}
			next := 0
			for step := range 150 {
				switch op := r.IntN(10); {
				case op < 4 || len(files) == 0:
					next++
					f := &live{file: file{kind: kinds[r.IntN(len(kinds))], id: strconv.Itoa(next), created: int64(next)}}
					fam := strings.ReplaceAll(f.kind, " ", "_")
					for i := range r.IntN(6) {
						e := entry{value: float64(r.IntN(100)) - 20, stamp: float64(r.IntN(4))}
						switch f.kind {
						case "counter":
							e.key = fmt.Sprintf("%s %s_total H l=%d", fam, fam, i*r.IntN(2))
						case "histogram":
							e.key = fmt.Sprintf("%s %s_bucket H le=%d.0 l=%d", fam, fam, i, r.IntN(2))
						default:
							e.key = fmt.Sprintf("%s %s H l=%d", fam, fam, i)
						}
						if !slices.ContainsFunc(f.entries, func(o entry) bool { return o.key == e.key }) {
							f.entries = append(f.entries, e)
						}
					}
					f.source = add(t, x, f.file)
					files = append(files, f)
				default:
					i := r.IntN(len(files))
					f := files[i]
					switch {
					case op < 6:
						for j := range f.entries {
							f.entries[j].value += float64(r.IntN(9))
							f.entries[j].stamp += float64(r.IntN(2))
						}
						set(f.source, f.entries)
					case op < 8:
						f.dead = !f.dead
						x.SetAlive(f.source, !f.dead)
					case op < 9:
						x.Remove(f.source)
						files = slices.Delete(files, i, i+1)
					default:
						fold(t, x, f.source)
						gone = append(gone, f)
						files = slices.Delete(files, i, i+1)
					}
				}
				var all []file
				for _, f := range gone {
					if !strings.Contains(f.kind, "live") {
						all = append(all, f.file)
					}
				}
				for _, f := range files {
					all = append(all, f.file)
				}
				if got, want := dump(x), model(all); got != want {
					t.Fatalf("step %d: got:\n%s\nwant:\n%s", step, got, want)
				}
			}
			for _, s := range slices.Clone(x.Sources()) {
				x.Remove(s)
			}
			if x.unpinned != 0 || len(x.free) != len(x.desc)-1 || len(x.families) != 0 || len(x.spaces) != 0 || x.series != 0 ||
				x.keys != 0 {
				t.Errorf("an empty index keeps %d unpinned cells, %d of %d free, %d families, %d keyspaces, %d series, %d keys",
					x.unpinned, len(x.free), len(x.desc)-1, len(x.families), len(x.spaces), x.series, x.keys)
			}
		})
	}
}

// model is the slow, obvious merge for the kinds of files that TestAgainstModel makes.
func model(files []file) string {
	type cell struct {
		v, stamp float64
		set      bool
	}
	fams := map[string]map[string]*cell{} // "family type mode" to "labels le"
	for _, f := range files {
		spec := f.spec()
		if spec.Mode.Live() && f.dead {
			continue
		}
		for _, e := range f.entries {
			k, _ := parseTestKey([]byte(e.key))
			head := strings.TrimSpace(k.Family + " " + f.kind)
			if fams[head] == nil {
				fams[head] = map[string]*cell{}
			}
			id := ""
			le := ""
			for _, l := range k.Series.Labels {
				if l.Name == "le" {
					le = l.Value
					continue
				}
				id += " " + l.Name + "=" + l.Value
			}
			if spec.Mode.Base() == metric.All {
				id += " pid=" + f.id
			}
			if le != "" {
				id += " le=" + le
			}
			c := fams[head][id]
			if c == nil {
				c = &cell{}
				fams[head][id] = c
			}
			switch base := spec.Mode.Base(); {
			case base == metric.NoMode || base == metric.Sum:
				c.v += e.value
			case base == metric.All || !c.set || base == metric.Max && e.value > c.v || base == metric.Min && e.value < c.v:
				c.v, c.stamp = e.value, e.stamp
			case base == metric.MostRecent && (e.stamp > c.stamp || e.stamp == c.stamp && e.value > c.v):
				c.v, c.stamp = e.value, e.stamp
			}
			c.set = true
		}
	}
	heads := make([]string, 0, len(fams))
	for h := range fams {
		heads = append(heads, h)
	}
	sort.Strings(heads)
	var b strings.Builder
	for _, h := range heads {
		name, kind, _ := strings.Cut(h, " ")
		b.WriteString("# " + h + " H\n")
		ids := make([]string, 0, len(fams[h]))
		for id := range fams[h] {
			ids = append(ids, id)
		}
		sort.Strings(ids)
		for i, id := range ids {
			c := fams[h][id]
			switch {
			case kind == "histogram":
				// All bounds are one digit, so the order of text is that of numbers.
				labels, _, _ := strings.Cut(id, " le=")
				acc := 0.0
				last := true
				for j, other := range ids {
					if l, _, _ := strings.Cut(other, " le="); l == labels {
						if j <= i {
							acc += fams[h][other].v
						}
						if j > i {
							last = false
						}
					}
				}
				fmt.Fprintf(&b, "%s_bucket%s %v\n", name, id, acc)
				if last {
					fmt.Fprintf(&b, "%s_bucket%s le=+Inf %v\n%s_count%s %v\n", name, labels, acc, name, labels, acc)
				}
			case strings.Contains(kind, "mostrecent") && c.stamp == 0:
			case kind == "counter":
				fmt.Fprintf(&b, "%s_total%s %v\n", name, id, c.v)
			default:
				fmt.Fprintf(&b, "%s%s %v\n", name, id, c.v)
			}
		}
	}
	return b.String()
}

func TestSnapshotAllocations(t *testing.T) {
	x := NewIndex(Options{})
	for id := range 8 {
		f := file{kind: "counter", id: strconv.Itoa(id)}
		for i := range 500 {
			f.entries = append(f.entries, entry{fmt.Sprintf("c c_total H i=%d", i), float64(i), 0})
		}
		add(t, x, f)
	}
	x.Snapshot().Release()
	if got := testing.AllocsPerRun(100, func() { x.Snapshot().Release() }); got > 1 {
		t.Errorf("%v allocations per snapshot of 4,000 entries", got)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	for _, shape := range []struct{ files, series int }{{16, 5000}, {64, 20000}} {
		b.Run(fmt.Sprintf("files=%d/series=%d", shape.files, shape.series), func(b *testing.B) {
			x := NewIndex(Options{})
			for id := range shape.files {
				f := file{kind: "counter", id: strconv.Itoa(id)}
				for i := range shape.series {
					f.entries = append(f.entries, entry{fmt.Sprintf("c%d c%d_total H i=%d", i%100, i%100, i), float64(i), 0})
				}
				add(b, x, f)
			}
			b.ReportAllocs()
			for b.Loop() {
				x.Snapshot().Release()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(shape.files*shape.series), "ns/entry")
		})
	}
}

func BenchmarkLearn(b *testing.B) {
	const series = 5000
	keys := make([][]byte, series)
	for i := range keys {
		keys[i] = fmt.Appendf(nil, "c%d c%d_total H i=%d", i%100, i%100, i)
	}
	x := NewIndex(Options{})
	spec := file{kind: "counter", id: "0"}.spec()
	learn := func() *Source {
		s := x.Add(spec)
		for i, k := range keys {
			if err := x.Learn(s, k, uint32(i)); err != nil {
				b.Fatal(err)
			}
		}
		return s
	}
	learn()
	b.ReportAllocs()
	for b.Loop() {
		x.Remove(learn())
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/series, "ns/entry")
}
