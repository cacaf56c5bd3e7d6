package merge

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// checkAccounts explains every point of a snapshot and checks that what counts adds up to
// its value. Every dump of the other tests does it, the random ones included.
func checkAccounts(x *Index, snap *view.Snapshot) error {
	refs, values := everyPoint(snap)
	var errs []error
	for i, a := range x.Explain(refs) {
		sum, counting := 0.0, 0
		for _, c := range a.Contributions {
			if c.Counts {
				sum += c.Value
				counting++
			}
			if c.Counts == (c.Why != "") {
				errs = append(errs, fmt.Errorf("%v: a contribution counts: %v, because %q", refs[i], c.Counts, c.Why))
			}
		}
		want := values[i]
		switch {
		case view.IsAbsent(want):
		case counting == 0 && a.Operation == metric.Sum && (want == 0 || want != want): // all are NaN
		case counting == 0:
			errs = append(errs, fmt.Errorf("%v: nothing makes %v", refs[i], want))
		case a.Operation != metric.Sum && counting > 1:
			errs = append(errs, fmt.Errorf("%v: %d make a %s", refs[i], counting, a.Operation))
		case !near(sum, want):
			errs = append(errs, fmt.Errorf("%v: %v adds up to %v, want %v", refs[i], a.Contributions, sum, want))
		}
	}
	return errors.Join(errs...)
}

// near allows for the rounding that the view itself does not do.
func near(a, b float64) bool {
	return a == b || math.IsNaN(a) && math.IsNaN(b) || math.Abs(a-b) <= 1e-9*math.Max(math.Abs(a), math.Abs(b))
}

func everyPoint(snap *view.Snapshot) (refs []view.PointRef, values []float64) {
	for f, fam := range snap.Layout.Families {
		for m := range fam.Metrics {
			for p := range fam.Metrics[m].Points {
				refs = append(refs, view.PointRef{Family: f, Metric: m, Point: p})
			}
		}
	}
	return refs, snap.Values
}

// explain writes the accounts of all points, for reading and comparing.
func explain(x *Index) string {
	snap := x.Snapshot()
	defer snap.Release()
	refs, values := everyPoint(snap)
	var b strings.Builder
	for i, a := range x.Explain(refs) {
		fam := snap.Layout.Families[refs[i].Family]
		m := fam.Metrics[refs[i].Metric]
		p := m.Points[refs[i].Point]
		fmt.Fprintf(&b, "%s%s", fam.Name, p.Kind.Suffix())
		for _, l := range m.Labels {
			fmt.Fprintf(&b, " %s=%s", l.Name, l.Value)
		}
		if p.Kind == view.Bucket {
			fmt.Fprintf(&b, " le=%s", metric.AppendBound(nil, p.Bound))
		}
		fmt.Fprintf(&b, " %v: %s", values[i], a.Operation)
		for _, c := range a.Contributions {
			name := c.Source.Spec().Name
			if c.Source.Folded() {
				name = "archive"
			}
			fmt.Fprintf(&b, ", %s %v", name, c.Value)
			if !c.Counts {
				fmt.Fprintf(&b, " (%s)", c.Why)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func TestExplain(t *testing.T) {
	for _, tc := range []struct {
		name   string
		files  []file
		folded []file
		want   string
	}{
		{
			name: "counters add",
			files: []file{
				{kind: "counter", id: "1", entries: []entry{{"c c_total h", 2, 0}}},
				{kind: "counter", id: "2", dead: true, entries: []entry{{"c c_total h", 3, 0}}},
			},
			folded: []file{{kind: "counter", id: "0", entries: []entry{{"c c_total h", 5, 0}}}},
			want:   "c_total 10: sum, archive 5, counter_1 2, counter_2 3\n",
		},
		{
			name: "buckets are cumulative",
			files: []file{
				{
					kind: "histogram", id: "1",
					entries: []entry{{"h h_bucket h le=1", 1, 0}, {"h h_bucket h le=5", 2, 0}, {"h h_sum h", 7, 0}},
				},
				{kind: "histogram", id: "2", entries: []entry{{"h h_bucket h le=5", 4, 0}}},
			},
			want: lines(
				"h_bucket le=1.0 1: sum, histogram_1 1",
				"h_bucket le=5.0 7: sum, histogram_1 3, histogram_2 4",
				"h_bucket le=+Inf 7: sum, histogram_1 3, histogram_2 4",
				"h_sum 7: sum, histogram_1 7",
				"h_count 7: sum, histogram_1 3, histogram_2 4",
			),
		},
		{
			name: "the greatest of max",
			files: []file{
				{kind: "gauge max", id: "1", entries: []entry{{"g g h", 2, 0}}},
				{kind: "gauge max", id: "2", entries: []entry{{"g g h", 9, 0}}},
			},
			folded: []file{{kind: "gauge max", id: "0", entries: []entry{{"g g h", 5, 0}}}},
			want:   "g 9: max, archive 5 (another one is greater), gauge max_1 2 (another one is greater), gauge max_2 9\n",
		},
		{
			name: "the dead in a live mode",
			files: []file{
				{kind: "gauge livesum", id: "1", entries: []entry{{"g g h", 2, 0}}},
				{kind: "gauge livesum", id: "2", dead: true, entries: []entry{{"g g h", 9, 0}}},
			},
			want: "g 2: sum, gauge livesum_1 2, gauge livesum_2 9 (the worker is dead, and the mode counts the living only)\n",
		},
		{
			name: "all has one for each process",
			files: []file{
				{kind: "gauge all", id: "1", entries: []entry{{"g g h", 2, 0}}},
				{kind: "gauge all", id: "2", entries: []entry{{"g g h", 3, 0}}},
			},
			folded: []file{{kind: "gauge all", id: "2", entries: []entry{{"g g h", 9, 0}}}},
			want: lines(
				"g pid=1 2: all, gauge all_1 2",
				"g pid=2 3: all, archive 9 (a later process has the same ID), gauge all_2 3",
			),
		},
		{
			name: "the last one set",
			files: []file{
				{kind: "gauge mostrecent", id: "1", entries: []entry{{"g g h", 2, 20}}},
				{kind: "gauge mostrecent", id: "2", entries: []entry{{"g g h", 3, 10}}},
				{kind: "gauge mostrecent", id: "3", entries: []entry{{"g g h", 4, 0}}},
			},
			want: "g 2: mostrecent, gauge mostrecent_1 2, gauge mostrecent_2 3 (another one was set later), gauge mostrecent_3 4 (it was never set)\n",
		},
		{
			name: "files that disagree",
			files: []file{
				{kind: "gauge max", id: "1", created: 1, entries: []entry{{"g g h", 2, 0}}},
				{kind: "gauge sum", id: "2", created: 2, entries: []entry{{"g g h", 3, 0}}},
			},
			want: "g 3: sum, gauge max_1 2 (it is a gauge max, and a newer one is a gauge sum), gauge sum_2 3\n",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := NewIndex(Options{})
			for _, f := range tc.files {
				add(t, x, f)
			}
			for _, f := range tc.folded {
				fold(t, x, add(t, x, f))
			}
			if got := explain(x); got != tc.want {
				t.Errorf("got\n%swant\n%s", got, tc.want)
			}
			dump(x)
		})
	}
}

// TestExplainRuling: entries that a rule has made equal are one contribution of their source.
func TestExplainRuling(t *testing.T) {
	x := NewIndex(ruled(drop("user")))
	add(t, x, file{kind: "counter", id: "1", entries: []entry{{"c c_total h user=a", 2, 0}, {"c c_total h user=b", 3, 0}}})
	add(t, x, file{kind: "counter", id: "2", entries: []entry{{"c c_total h user=a", 4, 0}}})
	if got, want := explain(x), "c_total 9: sum, counter_1 5, counter_2 4\n"; got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	x = NewIndex(ruled(&Ruling{Mode: metric.Max}))
	add(t, x, file{kind: "gauge all", id: "1", entries: []entry{{"g g h", 2, 0}}})
	add(t, x, file{kind: "gauge all", id: "2", entries: []entry{{"g g h", 4, 0}}})
	if got := explain(x); !strings.HasPrefix(got, "g 4: max, ") || slices.Contains(strings.Fields(got), "pid=1") {
		t.Errorf("got\n%s", got)
	}
}
