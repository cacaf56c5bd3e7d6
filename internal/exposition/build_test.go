package exposition

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
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
	kind  view.PointKind
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
func one(kind view.PointKind, value float64, pairs ...string) met {
	return met{labels(pairs...), []pt{{kind: kind, value: value}}}
}

func value(v float64, pairs ...string) met { return one(view.Value, v, pairs...) }
func total(v float64, pairs ...string) met { return one(view.Total, v, pairs...) }

// buckets is a histogram metric with bounds 1, 2.5 and +Inf.
func buckets(b1, b2, inf, sum float64, pairs ...string) met {
	return met{labels(pairs...), []pt{
		{view.Bucket, 1, b1},
		{view.Bucket, 2.5, b2},
		{view.Bucket, math.Inf(1), inf},
		{view.Sum, 0, sum},
		{view.Count, 0, inf},
	}}
}

// summary is a summary metric without quantiles, as the Python client has them.
func summary(sum, count float64, pairs ...string) met {
	return met{labels(pairs...), []pt{{view.Sum, 0, sum}, {view.Count, 0, count}}}
}

// snapshot builds a snapshot the way package merge promises to: families sorted by name and
// type, metrics by labels, equal point lists shared.
func snapshot(fams ...fam) *view.Snapshot {
	fams = slices.Clone(fams)
	slices.SortFunc(fams, func(a, b fam) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.typ, b.typ)) })
	layout := &view.Layout{}
	s := &view.Snapshot{Layout: layout}
	for _, f := range fams {
		help := f.help
		if help == "" {
			help = "Help of " + f.name + "."
		}
		out := view.Family{Name: f.name, Type: f.typ, Help: help, Sparse: f.sparse, First: len(s.Values)}
		metrics := slices.Clone(f.metrics)
		slices.SortFunc(metrics, func(a, b met) int { return metric.CompareLabels(a.labels, b.labels) })
		var shared []view.Point
		for _, m := range metrics {
			var points []view.Point
			for _, p := range m.points {
				points = append(points, view.Point{Kind: p.kind, Bound: p.bound})
				s.Values = append(s.Values, p.value)
			}
			if slices.EqualFunc(points, shared, func(a, b view.Point) bool {
				return a.Kind == b.Kind && cmp.Compare(a.Bound, b.Bound) == 0
			}) {
				points = shared
			}
			shared = points
			out.Metrics = append(out.Metrics, view.Metric{Labels: m.labels, Points: points})
		}
		out.Points = len(s.Values) - out.First
		layout.Families = append(layout.Families, out)
	}
	layout.Points = len(s.Values)
	return s
}

// extra adds labels that all metrics of a snapshot share.
func extra(s *view.Snapshot, pairs ...string) *view.Snapshot {
	shared := labels(pairs...)
	for f := range s.Layout.Families {
		for m := range s.Layout.Families[f].Metrics {
			s.Layout.Families[f].Metrics[m].Extra = shared
		}
	}
	return s
}

// leftOut returns what an exposition does not have, not what is there without its type.
func leftOut(all []Omission) (left []Omission) {
	for _, o := range all {
		if !o.Untyped {
			left = append(left, o)
		}
	}
	return left
}

// encode returns the exposition of snapshots by a new encoder, and its report.
func encode(f Format, snaps ...*view.Snapshot) (string, []Omission) {
	var omissions []Omission
	e := &Encoder{OnReport: func(r Report) { omissions = append(r.Omissions, r.Untyped...) }}
	return string(e.Append(nil, f, Filter{}, snaps...)), omissions
}
