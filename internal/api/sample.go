package api

import (
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/view"
)

// EachSample calls yield for the samples of a snapshot that a selector selects, in output
// order, the absent ones too, with the index of the value.
func EachSample(snap *view.Snapshot, sel selector.Selector, yield func(ref view.PointRef, value int)) {
	for f := range snap.Layout.Families {
		fam := &snap.Layout.Families[f]
		if sel.Name != "" && !strings.HasPrefix(sel.Name, fam.Name) {
			continue
		}
		at := fam.First
		names := map[view.PointKind]string{} // once for each family
		for m := range fam.Metrics {
			points := fam.Metrics[m].Points
			var labels []metric.Label
			for p, point := range points {
				name := names[point.Kind]
				if name == "" {
					name = fam.Name + point.Kind.Suffix()
					names[point.Kind] = name
				}
				if sel.Name != "" && sel.Name != name {
					continue
				}
				if labels == nil {
					labels = fam.Metrics[m].AllLabels()
				}
				boundLabel, bound := boundOf(point)
				if sel.Matches(name, labels, boundLabel, bound) {
					yield(view.PointRef{Family: f, Metric: m, Point: p}, at+p)
				}
			}
			at += len(points)
		}
	}
}

// SampleAt returns one sample of a snapshot, as EachSample names it.
func SampleAt(snap *view.Snapshot, ref view.PointRef, value int) status.Sample {
	fam := &snap.Layout.Families[ref.Family]
	labels, point := fam.Metrics[ref.Metric].AllLabels(), fam.Metrics[ref.Metric].Points[ref.Point]
	boundLabel, bound := boundOf(point)
	s := status.Sample{
		Name: fam.Name + point.Kind.Suffix(), Labels: make(map[string]string, len(labels)+1),
		Series: seriesAt(snap.Layout, ref), Value: status.Number(snap.Values[value]),
	}
	for _, l := range labels {
		s.Labels[l.Name] = l.Value
	}
	if boundLabel != "" {
		s.Labels[boundLabel] = bound
	}
	return s
}

// seriesAt spells the series of a point.
func seriesAt(l *view.Layout, ref view.PointRef) string {
	fam := &l.Families[ref.Family]
	point := fam.Metrics[ref.Metric].Points[ref.Point]
	boundLabel, bound := boundOf(point)
	return selector.Format(fam.Name+point.Kind.Suffix(), fam.Metrics[ref.Metric].AllLabels(), boundLabel, bound)
}

// boundOf returns the label that tells a bucket or quantile from the others.
func boundOf(p view.Point) (label, value string) {
	if label = p.BoundLabel(); label != "" {
		value = string(p.AppendBound(nil))
	}
	return label, value
}
