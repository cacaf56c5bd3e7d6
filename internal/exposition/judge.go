package exposition

import (
	"math"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// Some values cannot be served under the type of their family:
//
//   - Buckets that are NaN, negative or fall, and a count that is not the last bucket, are no
//     histogram. Prometheus's own reader takes most of them, expfmt refuses the whole
//     exposition. Such a metric is left out, in every format that a scraper reads.
//   - OpenMetrics has counters, sums and counts that are neither negative nor NaN, counts and
//     buckets that are whole numbers, quantiles that are not negative, infos of 1, states of 0
//     and 1. Where values are not so, the family is served without its type.
//   - Protobuf has only whole numbers for the count of a summary. A metric with another one is
//     left out.
//
// All other values are the workers' own and are served as they are.

// A verdict is what the values of a section allow.
type verdict uint8

const (
	fine verdict = iota
	// splits: nothing is left out, but the type does not fit.
	splits
	// leaves: some metrics are left out. The others may need to split.
	leaves
)

// judged reports whether values can matter to how a section is served.
func (h *heading) judged(f Format) bool {
	switch {
	case f.Kind == JSON || h.split:
		return false
	case h.typ == metric.Histogram:
		return true
	case f.openMetrics():
		return h.typ == metric.Counter || h.typ == metric.Summary || h.shape != view.Plain
	case f.Kind == Protobuf:
		return h.typ == metric.Summary
	}
	return false
}

// judge looks at the values of a section that is judged. It runs at every scrape, over most
// values, and must not allocate.
func (h *heading) judge(f Format, fam *view.Family, values []float64) verdict {
	switch h.typ {
	case metric.Counter:
		for _, v := range values {
			if !(v >= 0) && !view.IsAbsent(v) {
				return splits
			}
		}
		return fine
	case metric.Gauge:
		for _, v := range values {
			if v != 1 && (v != 0 || h.shape == view.Info) && !view.IsAbsent(v) {
				return splits
			}
		}
		return fine
	}
	worst := fine
	at, buckets := 0, -1
	var seen []view.Point
	for i := range fam.Metrics {
		points := fam.Metrics[i].Points
		if !sameSlice(points, seen) {
			seen, buckets = points, usualBuckets(points)
		}
		own := values[at : at+len(points)]
		at += len(points)
		if h.typ == metric.Histogram && buckets > 0 && usual(own, buckets, f.openMetrics()) {
			continue
		}
		worst = max(worst, h.judgeMetric(f, points, own))
	}
	return worst
}

// usualBuckets returns the number of buckets of a histogram that has buckets, a sum and a
// count and nothing else; otherwise 0.
func usualBuckets(points []view.Point) int {
	n := len(points) - 2
	if n < 1 || points[n].Kind != view.Sum || points[n+1].Kind != view.Count {
		return 0
	}
	for _, p := range points[:n] {
		if p.Kind != view.Bucket || math.IsNaN(p.Bound) {
			return 0
		}
	}
	return n
}

// usual reports whether the values of such a histogram are certainly fine: the quick way to
// say what judgeMetric says.
func usual(values []float64, buckets int, openMetrics bool) bool {
	last := 0.0
	if openMetrics {
		for _, v := range values[:buckets] {
			if !(v >= last) || v > 1<<62 || float64(int64(v)) != v {
				return false
			}
			last = v
		}
		return values[buckets+1] == last && values[buckets] >= 0
	}
	for _, v := range values[:buckets] {
		if !(v >= last) {
			return false
		}
		last = v
	}
	return values[buckets+1] == last
}

// judgeMetric looks at the values of one histogram or summary.
func (h *heading) judgeMetric(f Format, points []view.Point, values []float64) verdict {
	if len(values) == 0 || view.IsAbsent(values[0]) {
		return fine
	}
	if h.typ == metric.Summary {
		return judgeSummary(f, points, values)
	}
	buckets, last, whole := 0, 0.0, true
	for i := range points {
		v := values[i]
		switch points[i].Kind {
		case view.Bucket:
			if math.IsNaN(points[i].Bound) {
				continue // it is not shown
			}
			if !(v >= last) {
				return leaves
			}
			buckets, last = buckets+1, v
			whole = whole && v == math.Trunc(v)
		case view.Count:
			if v != last && (buckets > 0 || v < 0) {
				return leaves
			}
			whole = whole && v >= 0 && v == math.Trunc(v)
		case view.Sum:
			whole = whole && v >= 0
		}
	}
	if f.openMetrics() && !(whole && last <= math.MaxFloat64) {
		return splits
	}
	return fine
}

func judgeSummary(f Format, points []view.Point, values []float64) verdict {
	worst := fine
	for i := range points {
		v := values[i]
		switch points[i].Kind {
		case view.Count:
			if _, ok := integral(v); !ok {
				if f.Kind == Protobuf {
					return leaves
				}
				if !(v >= 0 && v == math.Trunc(v) && v <= math.MaxFloat64) {
					worst = splits
				}
			}
		case view.Sum:
			if !(v >= 0) {
				worst = splits
			}
		case view.Quantile:
			if v < 0 {
				worst = splits
			}
		}
	}
	if !f.openMetrics() {
		return fine
	}
	return worst
}

// without returns the values with those of metrics that are left out absent, their number,
// the first of them, and whether the others must split.
func (h *heading) without(f Format, fam *view.Family, values []float64) (kept []float64, left int, first *view.Metric, split bool) {
	kept = make([]float64, len(values))
	copy(kept, values)
	at := 0
	for i := range fam.Metrics {
		points := fam.Metrics[i].Points
		switch h.judgeMetric(f, points, values[at:at+len(points)]) {
		case leaves:
			if left++; left == 1 {
				first = &fam.Metrics[i]
			}
			for k := range points {
				kept[at+k] = view.Absent
			}
		case splits:
			split = true
		}
		at += len(points)
	}
	return kept, left, first, split
}

// judge returns what is lost of a plan by the values of the snapshots, and whether all
// values fit their types. It must not allocate if they do.
func (p *plan) judge(snaps []*view.Snapshot) (l loss, fits bool) {
	fits = true
	for i := range p.parts {
		part := &p.parts[i]
		if !part.judged {
			continue
		}
		h, fam, values := p.section(part, snaps)
		v := h.judge(p.format, fam, values)
		if v == fine {
			continue
		}
		fits = false
		split := v == splits
		if v == leaves {
			var left int
			_, left, _, split = h.without(p.format, fam, values)
			l.left += left
		}
		if split && h.shape == view.Plain {
			l.untyped++
		}
	}
	return l, fits
}

// verdicts names what is lost of a plan by the values of the snapshots.
func (p *plan) verdicts(snaps []*view.Snapshot) (omissions, untyped []Omission) {
	for i := range p.parts {
		part := &p.parts[i]
		if !part.judged {
			continue
		}
		h, fam, values := p.section(part, snaps)
		v := h.judge(p.format, fam, values)
		split := v == splits
		if v == leaves {
			var left int
			var first *view.Metric
			_, left, first, split = h.without(p.format, fam, values)
			omissions = append(omissions, Omission{Family: fam.Name, Reason: BadValue, Metrics: left, Example: exampleOf(first)})
		}
		if split && h.shape == view.Plain {
			untyped = append(untyped, Omission{Family: fam.Name, Reason: BadValue, Untyped: true})
		}
	}
	return omissions, untyped
}

// fit returns the section as its values allow it to be served, and the values that are.
func (s *section) fit(f Format, fam *view.Family, values []float64) (*section, []float64) {
	v := s.judge(f, fam, values)
	if v == fine {
		return s, values
	}
	fitting := *s
	fitting.split = v == splits
	if v == leaves {
		fitting.gaps = true
		values, _, _, fitting.split = s.without(f, fam, values)
	}
	return &fitting, values
}
