package exposition

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
)

// A fam is a family as tests write it down.
type fam struct {
	name    string
	typ     metric.Type
	help    string
	sparse  bool
	metrics []met
}

// A met is a metric: its labels, and its points in order.
type met struct {
	labels []metric.Label
	points []pt
}

type pt struct {
	kind  merge.PointKind
	bound float64
	value float64
}

// labels returns name, value, name, value, ... as sorted labels.
func labels(pairs ...string) []metric.Label {
	var ls []metric.Label
	for i := 0; i < len(pairs); i += 2 {
		ls = append(ls, metric.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	metric.SortLabels(ls)
	return ls
}

// one is a metric with one point.
func one(kind merge.PointKind, value float64, pairs ...string) met {
	return met{labels(pairs...), []pt{{kind: kind, value: value}}}
}

func value(v float64, pairs ...string) met { return one(merge.Value, v, pairs...) }
func total(v float64, pairs ...string) met { return one(merge.Total, v, pairs...) }

// buckets is a histogram metric with bounds 1, 2.5 and +Inf.
func buckets(b1, b2, inf, sum float64, pairs ...string) met {
	return met{labels(pairs...), []pt{
		{merge.Bucket, 1, b1},
		{merge.Bucket, 2.5, b2},
		{merge.Bucket, math.Inf(1), inf},
		{merge.Sum, 0, sum},
		{merge.Count, 0, inf},
	}}
}

// summary is a summary metric without quantiles, as the Python client has them.
func summary(sum, count float64, pairs ...string) met {
	return met{labels(pairs...), []pt{{merge.Sum, 0, sum}, {merge.Count, 0, count}}}
}

// created adds a created point to a metric.
func created(m met, at float64) met {
	m.points = append(slices.Clone(m.points), pt{merge.Created, 0, at})
	return m
}

// snapshot builds a snapshot the way package merge promises to: families sorted by name,
// metrics by labels, equal point lists shared.
func snapshot(fams ...fam) *merge.Snapshot {
	fams = slices.Clone(fams)
	slices.SortFunc(fams, func(a, b fam) int { return strings.Compare(a.name, b.name) })
	layout := &merge.Layout{}
	s := &merge.Snapshot{Layout: layout}
	for _, f := range fams {
		help := f.help
		if help == "" {
			help = "Help of " + f.name + "."
		}
		out := merge.Family{Name: f.name, Type: f.typ, Help: help, Sparse: f.sparse, First: len(s.Values)}
		metrics := slices.Clone(f.metrics)
		slices.SortFunc(metrics, func(a, b met) int { return metric.CompareLabels(a.labels, b.labels) })
		var shared []merge.Point
		for _, m := range metrics {
			var points []merge.Point
			for _, p := range m.points {
				points = append(points, merge.Point{Kind: p.kind, Bound: p.bound})
				s.Values = append(s.Values, p.value)
			}
			if slices.EqualFunc(points, shared, func(a, b merge.Point) bool {
				return a.Kind == b.Kind && cmp.Compare(a.Bound, b.Bound) == 0
			}) {
				points = shared
			}
			shared = points
			out.Metrics = append(out.Metrics, merge.Metric{Labels: m.labels, Points: points})
		}
		out.Points = len(s.Values) - out.First
		layout.Families = append(layout.Families, out)
	}
	layout.Points = len(s.Values)
	return s
}

// encode returns the exposition of snapshots by a new encoder, and its report.
func encode(f Format, snaps ...*merge.Snapshot) (string, []Omission) {
	var omissions []Omission
	e := &Encoder{OnReport: func(r Report) { omissions = r.Omissions }}
	return string(e.Append(nil, f, Filter{}, snaps...)), omissions
}
