package view

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/metric"
)

// snapshot makes one of families that are spelled "counter name", "gauge max name" or
// "histogram name", each followed by its series: "a=1 b=2 5", labels and the first value, the
// next point's is one more.
func snapshot(lines ...string) *Snapshot {
	l := &Layout{}
	var values []float64
	for _, line := range lines {
		words := strings.Fields(line)
		if typ, ok := metric.ParseType(words[0]); ok {
			f := Family{Type: typ, Name: words[1], First: l.Points}
			if typ == metric.Gauge {
				f.Mode, _ = metric.ParseMode(words[1])
				f.Name = words[2]
			}
			f.Help = "help of " + f.Name
			l.Families = append(l.Families, f)
			continue
		}
		f := &l.Families[len(l.Families)-1]
		points := []Point{{Kind: Value}}
		switch f.Type {
		case metric.Counter:
			points[0].Kind = Total
		case metric.Histogram:
			points = []Point{{Kind: Bucket, Bound: 1}, {Kind: Sum}, {Kind: Count}}
		case metric.Summary:
			points = []Point{{Kind: Sum}, {Kind: Count}}
		}
		n := len(words) - 1
		var pairs []string
		for _, w := range words[:n] {
			name, value, _ := strings.Cut(w, "=")
			pairs = append(pairs, name, value)
		}
		f.Metrics = append(f.Metrics, Metric{Labels: labels(pairs...), Points: points})
		f.Points += len(points)
		l.Points += len(points)
		var v float64
		fmt.Sscan(words[n], &v) //nolint:errcheck // a 0 is seen
		for i := range points {
			values = append(values, v+float64(i))
		}
	}
	s := new(Recycler).Take(l)
	copy(s.Values, values)
	return s
}

// spell writes a snapshot, family by family.
func spell(t *testing.T, s *Snapshot) (lines []string) {
	t.Helper()
	i := 0
	for k, f := range s.Layout.Families {
		if f.First != i {
			t.Errorf("family %s begins at %d, want %d", f.Name, f.First, i)
		}
		if k > 0 && (s.Layout.Families[k-1].Name > f.Name || s.Layout.Families[k-1].Name == f.Name &&
			s.Layout.Families[k-1].Type >= f.Type) {
			t.Errorf("%s comes after %s", f.Name, s.Layout.Families[k-1].Name)
		}
		for n, m := range f.Metrics {
			if n > 0 && metric.CompareLabels(f.Metrics[n-1].AllLabels(), m.AllLabels()) >= 0 {
				t.Errorf("%s: %v comes after %v", f.Name, m.AllLabels(), f.Metrics[n-1].AllLabels())
			}
			for _, p := range m.Points {
				line := f.Name + p.Kind.Suffix()
				for _, l := range m.AllLabels() {
					line += " " + l.Name + "=" + l.Value
				}
				lines = append(lines, fmt.Sprintf("%s %v", line, s.Values[i]))
				i++
			}
		}
		if f.First+f.Points != i {
			t.Errorf("family %s has %d points, want %d", f.Name, f.Points, i-f.First)
		}
	}
	if i != len(s.Values) || i != s.Layout.Points {
		t.Errorf("%d points, %d values, %d in the layout", i, len(s.Values), s.Layout.Points)
	}
	return lines
}

func part(name string, s *Snapshot, target ...string) Part {
	return Part{Snapshot: s, Name: name, Target: labels(target...)}
}

func newest(s *Snapshot, of ...int64) *Snapshot {
	s.Newest = append(s.Newest, of...)
	return s
}

func TestJoin(t *testing.T) {
	ab := func(a, b *Snapshot) []Part { return []Part{part("a", a, "pool", "a"), part("b", b, "pool", "b")} }
	for _, tc := range []struct {
		name      string
		parts     []Part
		want      []string
		conflicts []string
		equal     int
	}{
		{name: "nothing"},
		{name: "one as it is", parts: []Part{part("", snapshot("counter c", "x=1 5"))}, want: []string{"c_total x=1 5"}},
		{
			name:  "families of one name",
			parts: ab(snapshot("counter c", "a=1 5", "z=1 6", "gauge max g", "7"), snapshot("counter c", "1", "a=1 2")),
			want:  []string{"c_total a=1 pool=a 5", "c_total a=1 pool=b 2", "c_total pool=a z=1 6", "c_total pool=b 1", "g pool=a 7"},
		},
		{
			name: "histograms", parts: ab(snapshot("histogram h", "a=1 5"), snapshot("histogram h", "a=1 50", "a=2 60")),
			want: []string{
				"h_bucket a=1 pool=a 5", "h_sum a=1 pool=a 6", "h_count a=1 pool=a 7", "h_bucket a=1 pool=b 50", "h_sum a=1 pool=b 51",
				"h_count a=1 pool=b 52", "h_bucket a=2 pool=b 60", "h_sum a=2 pool=b 61", "h_count a=2 pool=b 62",
			},
		},
		{
			name:  "a target's label comes first",
			parts: []Part{part("a", snapshot("gauge max g", "exported_pool=y pool=x 1", "team=z 2"), "pool", "a", "team", "t")},
			want:  []string{"g exported_exported_pool=x exported_pool=y pool=a team=t 1", "g exported_team=z pool=a team=t 2"},
		},
		{
			name: "an external label comes last",
			parts: []Part{{
				Snapshot: snapshot("gauge max g", "1", "dc=own 2", "env=own 3"), Target: labels("team", "t"),
				External: labels("dc", "d", "env", "e", "team", "x"),
			}},
			want: []string{"g dc=d env=e team=t 1", "g dc=d env=own team=t 3", "g dc=own env=e team=t 2"},
		},
		{
			name:  "the same series twice",
			parts: []Part{part("a", snapshot("gauge max g", "x=1 1")), part("b", snapshot("gauge max g", "x=1 2", "x=2 3"))},
			want:  []string{"g x=1 1", "g x=2 3"}, equal: 1,
		},
		{
			name: "a gauge beside a counter", parts: ab(snapshot("gauge max jobs", "1"), snapshot("counter jobs", "2")),
			want: []string{"jobs_total pool=b 2", "jobs pool=a 1"},
		},
		{
			name:  "a gauge named like the counter's sample",
			parts: ab(newest(snapshot("gauge max jobs_total", "1"), 5), newest(snapshot("counter jobs", "2"), 6)),
			want:  []string{"jobs_total pool=b 2"}, conflicts: []string{"jobs_total: counter of b, not gauge max of a, 1 series"},
		},
		{
			name:  "a gauge named like a histogram's sample",
			parts: ab(newest(snapshot("gauge max h_sum", "1"), 7), newest(snapshot("histogram h", "2"), 6)),
			want:  []string{"h_sum pool=a 1"}, conflicts: []string{"h_sum: gauge max of a, not histogram of b, 3 series"},
		},
		{
			name:      "a gauge named like a histogram",
			parts:     ab(snapshot("gauge max h", "1"), newest(snapshot("histogram h", "2"), 6)),
			want:      []string{"h_bucket pool=b 2", "h_sum pool=b 3", "h_count pool=b 4"},
			conflicts: []string{"h: histogram of b, not gauge max of a, 1 series"},
		},
		{
			name:  "modes differ",
			parts: ab(newest(snapshot("gauge max g", "1"), 7), newest(snapshot("gauge min g", "2"), 6)),
			want:  []string{"g pool=a 1", "g pool=b 2"},
		},
		{
			name: "sole",
			parts: []Part{
				part("a", newest(snapshot("gauge max g", "1"), 7)),
				{Name: "info", Sole: true, Snapshot: snapshot("gauge max g", "x=1 2")},
			},
			want: []string{"g x=1 2"}, conflicts: []string{"g: gauge max of info, not gauge max of a, 1 series"},
		},
		{
			name: "who loses does not push others out",
			parts: []Part{
				part("a", newest(snapshot("summary s", "1"), 3)), part("b", newest(snapshot("gauge max s_sum", "1"), 2)),
				part("c", newest(snapshot("gauge max s_count", "1"), 4)),
			},
			want: []string{"s_count 1", "s_sum 1"}, conflicts: []string{"s_count: gauge max of c, not summary of a, 2 series"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var j Joiner
			for i := range tc.parts {
				tc.parts[i].Snapshot.Retain()
			}
			s := j.Join(tc.parts)
			if got := spell(t, s); !slices.Equal(got, tc.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(tc.want, "\n"))
			}
			var conflicts []string
			for _, c := range j.Conflicts() {
				conflicts = append(conflicts, fmt.Sprintf("%s: %s of %s, not %s of %s, %d series", c.Sample, c.Winner, c.Winner.Part,
					c.Loser, c.Loser.Part, c.Series))
			}
			if !slices.Equal(conflicts, tc.conflicts) || j.Equal() != tc.equal {
				t.Errorf("conflicts %q, %d equal, want %q, %d", conflicts, j.Equal(), tc.conflicts, tc.equal)
			}
			for value, v := range s.Values {
				if part, at := j.Origin(value); tc.parts[part].Snapshot.Values[at] != v {
					t.Errorf("value %d is not that of part %d, %d", value, part, at)
				}
			}
			for i := range tc.parts {
				tc.parts[i].Snapshot.Retain()
			}
			if again := j.Join(tc.parts); again.Layout != s.Layout {
				t.Error("the same parts make another layout")
			}
		})
	}
}

// keeping joins snapshots that go on being used.
type keeping struct{ j *Joiner }

func (k keeping) Join(parts []Part) *Snapshot {
	for i := range parts {
		parts[i].Snapshot.Retain()
	}
	return k.j.Join(parts)
}

// TestJoinChanges: what stays the same keeps its place in memory, and what changes shows.
func TestJoinChanges(t *testing.T) {
	var joiner Joiner
	j := keeping{&joiner}
	a, b := snapshot("counter c", "1", "gauge max g", "2"), snapshot("counter c", "3")
	first := j.Join([]Part{part("a", a, "pool", "a"), part("b", b, "pool", "b")})
	b2 := snapshot("counter c", "4", "x=1 5")
	second := j.Join([]Part{part("a", a, "pool", "a"), part("b", b2, "pool", "b")})
	want := []string{"c_total pool=a 1", "c_total pool=b 4", "c_total pool=b x=1 5", "g pool=a 2"}
	if got := spell(t, second); !slices.Equal(got, want) {
		t.Errorf("a series more: %q, want %q", got, want)
	}
	if &first.Layout.Families[1].Metrics[0] != &second.Layout.Families[1].Metrics[0] || len(first.Layout.Families[0].Metrics) != 2 {
		t.Error("a family that is the same was made again, or a layout that was handed out has changed")
	}
	// A part goes: the families of the others are as they were.
	third := j.Join([]Part{part("b", b2, "pool", "b")})
	if got, want := spell(t, third), []string{"c_total pool=b 4", "c_total pool=b x=1 5"}; !slices.Equal(got, want) {
		t.Errorf("a part less: %q, want %q", got, want)
	}
	fourth := j.Join([]Part{part("new", snapshot("gauge max a", "9")), part("b", b2, "pool", "b")})
	if &third.Layout.Families[0].Metrics[0] != &fourth.Layout.Families[1].Metrics[0] {
		t.Error("another part's coming makes a family again")
	}
	// Labels change.
	fifth := j.Join([]Part{{Name: "b", Snapshot: b2, External: labels("dc", "x")}})
	if got, want := spell(t, fifth), []string{"c_total dc=x 4", "c_total dc=x x=1 5"}; !slices.Equal(got, want) {
		t.Errorf("other labels: %q, want %q", got, want)
	}
	// The newest changes, and the layouts do not.
	g, c := snapshot("gauge max x_total", "1"), snapshot("counter x", "2")
	for _, newer := range []int64{1, 3, 1} {
		g.Newest, c.Newest = []int64{newer}, []int64{2}
		want := "x_total 2"
		if newer == 3 {
			want = "x_total 1"
		}
		if got := spell(t, j.Join([]Part{part("g", g), part("c", c)})); len(got) != 1 || got[0] != want {
			t.Errorf("with %d and 2 there is %q", newer, got)
		}
	}
}

// TestJoinStarts: starts go with their values, through a join and a map; those of parts that have
// none are unknown.
func TestJoinStarts(t *testing.T) {
	parts := func() []Part {
		a := snapshot("counter jobs", "q=a 1", "q=c 2", "histogram t", "10")
		b := snapshot("counter jobs", "q=b 3", "counter only", "4")
		for _, v := range a.Values {
			a.Starts = append(a.Starts, int64(v)*1000)
		}
		return []Part{part("a", a, "pool", "a"), part("b", b, "pool", "b")}
	}
	check := func(s *Snapshot, want ...int64) {
		t.Helper()
		if !slices.Equal(s.Starts, want) {
			t.Errorf("starts %v of values %v, want %v", s.Starts, s.Values, want)
		}
	}
	var j Joiner
	joined := j.Join(parts())
	check(joined, 1000, 2000, 0, 0, 10_000, 11_000, 12_000)
	check(joined.Map(&Layout{Points: 2}, []uint32{4, 2}), 10_000, 0)
	bare := parts()
	bare[0].Snapshot.Starts = nil
	check(j.Join(bare))
	again := j.Join(parts())
	check(again, 1000, 2000, 0, 0, 10_000, 11_000, 12_000)
	again.Release()
	check(j.joins.Take(&Layout{Points: 1}))
}

// many makes the snapshots of many pools with equal series.
func many(pools, metrics int) []Part {
	lines := []string{}
	for f := range 26 {
		typ := []string{"counter", "gauge max", "histogram"}[f%3]
		lines = append(lines, fmt.Sprintf("%s %c", typ, 'a'+f))
		for m := range metrics {
			lines = append(lines, fmt.Sprintf("a=%d z=1 %d", m+10, m))
		}
	}
	parts := make([]Part, pools)
	for i := range parts {
		parts[i] = part(fmt.Sprint("pool", i), snapshot(lines...), "pool", fmt.Sprint("pool", i))
	}
	return parts
}

func TestJoinAllocations(t *testing.T) {
	var j Joiner
	parts := many(20, 3)
	join := func() {
		for i := range parts {
			parts[i].Snapshot.Retain()
		}
		j.Join(parts).Release()
	}
	join()
	if n := testing.AllocsPerRun(100, join); n > 1 {
		t.Errorf("%v allocations for a join of parts that are as before", n)
	}
	extra := map[*metric.Label]bool{}
	for i := range j.layout.Families {
		for _, m := range j.layout.Families[i].Metrics {
			extra[&m.Extra[0]] = true
		}
	}
	if len(extra) != len(parts) {
		t.Errorf("%d lists of labels for %d parts", len(extra), len(parts))
	}
}

func BenchmarkJoin(b *testing.B) {
	parts := many(350, 12) // 520 series each
	var j Joiner
	b.Run("same", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for i := range parts {
				parts[i].Snapshot.Retain()
			}
			j.Join(parts).Release()
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			for i := range parts {
				parts[i].Snapshot.Retain()
			}
			new(Joiner).Join(parts).Release()
		}
	})
	other := many(8, 12)[7] // with families of its own
	for f := 1; f < len(other.Snapshot.Layout.Families); f++ {
		other.Snapshot.Layout.Families[f].Metrics = parts[7].Snapshot.Layout.Families[f].Metrics
	}
	b.Run("one_changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			parts[7], other = other, parts[7]
			for i := range parts {
				parts[i].Snapshot.Retain()
			}
			j.Join(parts).Release()
		}
	})
}
