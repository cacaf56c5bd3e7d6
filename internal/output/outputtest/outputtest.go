// Package outputtest makes views for tests of outputs, and says what is in them.
package outputtest

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/starts"
	"aggregatord/internal/view"
)

// A Family is a family to make. Families must be sorted by name, and metrics by labels.
type Family struct {
	Name, Help string
	Type       metric.Type
	// Bounds are the finite bounds of a histogram.
	Bounds []float64
	// Plain is for a counter whose samples have no _total.
	Plain bool
	// Sparse says that values may be view.Absent.
	Sparse  bool
	Metrics []Metric
}

// A Metric is one set of labels and its values: one, or cumulative buckets with that of +Inf,
// then sum, then count, or sum and count.
type Metric struct {
	// Labels are names and values in turn; Extra the same for view.Metric.Extra.
	Labels, Extra []string
	Values        []float64
}

func labels(pairs []string) (list []metric.Label) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, metric.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

func (f *Family) points() []view.Point {
	switch f.Type {
	case metric.Counter:
		if !f.Plain {
			return []view.Point{{Kind: view.Total}}
		}
	case metric.Histogram:
		var points []view.Point
		for _, b := range f.Bounds {
			points = append(points, view.Point{Kind: view.Bucket, Bound: b})
		}
		return append(points, view.Point{Kind: view.Bucket, Bound: math.Inf(1)}, view.Point{Kind: view.Sum}, view.Point{Kind: view.Count})
	case metric.Summary:
		return []view.Point{{Kind: view.Sum}, {Kind: view.Count}}
	}
	return []view.Point{{Kind: view.Value}}
}

// Snapshot makes a view of families.
func Snapshot(families ...Family) *view.Snapshot {
	snap := &view.Snapshot{Layout: &view.Layout{}}
	for _, f := range families {
		out := view.Family{Name: f.Name, Help: f.Help, Type: f.Type, Sparse: f.Sparse, First: len(snap.Values)}
		points := f.points()
		for _, m := range f.Metrics {
			if len(m.Values) != len(points) {
				panic(fmt.Sprintf("%s: %d values for %d points", f.Name, len(m.Values), len(points)))
			}
			out.Metrics = append(out.Metrics, view.Metric{Labels: labels(m.Labels), Extra: labels(m.Extra), Points: points})
			snap.Values = append(snap.Values, m.Values...)
		}
		out.Points = len(snap.Values) - out.First
		snap.Layout.Families = append(snap.Layout.Families, out)
	}
	snap.Layout.Points = len(snap.Values)
	return snap
}

// With returns a view of the same layout with other values.
func With(snap *view.Snapshot, values ...float64) *view.Snapshot {
	if len(values) != snap.Layout.Points {
		panic("wrong number of values")
	}
	return &view.Snapshot{Layout: snap.Layout, Values: values}
}

// All is a view with everything that a view can have, special floats among it.
func All() *view.Snapshot {
	nan, inf := math.NaN(), math.Inf(1)
	return Snapshot(
		Family{Name: "depth", Help: "", Type: metric.Gauge, Metrics: []Metric{{Values: []float64{-0.25}}}},
		Family{
			Name: "job_duration_seconds", Help: "Time a job takes.", Type: metric.Histogram, Bounds: []float64{0.1, 1, 2.5},
			Metrics: []Metric{
				{Labels: []string{"queue", "high"}, Extra: []string{"pool", "web"}, Values: []float64{1, 3, 3, 4, 12.5, 4}},
				{Labels: []string{"queue", "low"}, Extra: []string{"pool", "web"}, Values: []float64{0, 0, 0, 0, 0, 0}},
			},
		},
		Family{Name: "jobs", Help: "Jobs \"done\",\nby queue \\ kind.", Type: metric.Counter, Metrics: []Metric{
			{Labels: []string{"queue", "high"}, Values: []float64{100}},
			{Labels: []string{"queue", "lo\"w\n/é"}, Values: []float64{1e21}},
			{Labels: []string{"queue", "none", "zone", ""}, Values: []float64{0.5}},
		}},
		Family{Name: "odd", Help: "Special values.", Type: metric.Gauge, Metrics: []Metric{
			{Labels: []string{"v", "+inf"}, Values: []float64{inf}},
			{Labels: []string{"v", "-0"}, Values: []float64{math.Copysign(0, -1)}},
			{Labels: []string{"v", "-inf"}, Values: []float64{-inf}},
			{Labels: []string{"v", "nan"}, Values: []float64{nan}},
			{Labels: []string{"v", "tiny"}, Values: []float64{math.SmallestNonzeroFloat64}},
		}},
		Family{Name: "payload_bytes", Help: "Sizes.", Type: metric.Summary, Metrics: []Metric{
			{Labels: []string{"dir", "in"}, Values: []float64{1234.5, 7}},
		}},
		Family{Name: "recent", Help: "The last one.", Type: metric.Gauge, Sparse: true, Metrics: []Metric{
			{Labels: []string{"of", "a"}, Values: []float64{view.Absent}},
			{Labels: []string{"of", "b"}, Values: []float64{17}},
		}},
		Family{Name: "untyped", Type: metric.Unknown, Metrics: []Metric{{Values: []float64{3}}}},
	)
}

// Samples lists what is in views as a scrape would show it: series and values. Labels without
// a value are left out, as Prometheus does.
func Samples(snaps ...*view.Snapshot) map[string]float64 {
	out := map[string]float64{}
	for _, s := range snaps {
		at := 0
		for _, f := range s.Layout.Families {
			for i := range f.Metrics {
				for _, p := range f.Metrics[i].Points {
					list := f.Metrics[i].AppendLabels(nil)
					if bound := p.BoundLabel(); bound != "" {
						list = append(list, metric.Label{Name: bound, Value: string(p.AppendBound(nil))})
					}
					if !view.IsAbsent(s.Values[at]) {
						out[Series(f.Name+p.Kind.Suffix(), list)] = s.Values[at]
					}
					at++
				}
			}
		}
	}
	return out
}

// Series spells a series: name{label="value",…}, labels sorted, values quoted as Go does.
func Series(name string, list []metric.Label) string {
	list = append([]metric.Label(nil), list...)
	metric.SortLabels(list)
	var b strings.Builder
	b.WriteString(name)
	separator := "{"
	for _, l := range list {
		if l.Value != "" {
			fmt.Fprintf(&b, "%s%s=%q", separator, l.Name, l.Value)
			separator = ","
		}
	}
	if separator == "," {
		b.WriteString("}")
	}
	return b.String()
}

// Same reports whether two values are equal as Prometheus stores them: bit by bit, but any
// NaN is as good as another.
func Same(a, b float64) bool {
	return math.Float64bits(a) == math.Float64bits(b) || math.IsNaN(a) && math.IsNaN(b)
}

// Diff says what differs between what was wanted and what came, "" if nothing does.
func Diff(want, got map[string]float64) string {
	var b strings.Builder
	for series, v := range want {
		if w, ok := got[series]; !ok {
			fmt.Fprintf(&b, "missing: %s %v\n", series, v)
		} else if !Same(v, w) {
			fmt.Fprintf(&b, "%s: %v, want %v\n", series, w, v)
		}
	}
	for series, v := range got {
		if _, ok := want[series]; !ok {
			fmt.Fprintf(&b, "too much: %s %v\n", series, v)
		}
	}
	return b.String()
}

// A Source gives the view that it was given last. It is safe for several goroutines.
type Source struct {
	// mu guards what follows.
	mu   sync.Mutex
	snap *view.Snapshot
	err  error
	// known are the starts of the series it has given.
	known *starts.Starts
	// gathers counts the calls of Gather.
	gathers int
}

// NewSource returns a source of a view.
func NewSource(snap *view.Snapshot) *Source { return &Source{snap: snap, known: starts.New()} }

// Set changes what it gives.
func (s *Source) Set(snap *view.Snapshot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.snap, s.err = snap, err
}

// Gathers returns how often it was asked.
func (s *Source) Gathers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gathers
}

// Gather implements output.Source.
func (s *Source) Gather(_ context.Context, withStarts bool) (*view.Snapshot, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gathers++
	if s.err != nil {
		return nil, s.err
	}
	if withStarts {
		return &view.Snapshot{Layout: s.snap.Layout, Values: s.snap.Values, Starts: s.known.Append(nil, s.snap, time.Now())}, nil
	}
	s.snap.Retain()
	return s.snap, nil
}
