package exposition

import (
	"strconv"
	"strings"

	"github.com/prometheus/common/model"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// appendTextHeader appends the HELP and TYPE lines of a section, and in OpenMetrics the UNIT
// line. An empty help has its line too, as the clients write it.
func appendTextHeader(dst []byte, h *heading, fam *view.Family, f Format) []byte {
	unit := ""
	if f.openMetrics() && h.shape == view.Plain && unitFits(h.head, fam.Unit) {
		unit = fam.Unit
	}
	return appendTextHead(dst, h.head, typeWord(h, f), unit, fam.Help, f)
}

// typeWord is what the TYPE line calls a section.
func typeWord(h *heading, f Format) string {
	switch {
	case h.shape != view.Plain:
		return h.shape.String()
	case h.typ == metric.Unknown && f.text():
		return "untyped"
	}
	return h.typ.String()
}

// appendTextHead appends the lines that come before the samples of a family.
func appendTextHead(dst []byte, name, typ, unit, help string, f Format) []byte {
	dst = append(dst, "# HELP "...)
	dst = appendName(dst, name)
	dst = append(dst, ' ')
	dst = appendEscaped(dst, clean(help), f.openMetrics())
	dst = append(dst, "\n# TYPE "...)
	dst = appendName(dst, name)
	dst = append(dst, ' ')
	dst = append(dst, typ...)
	dst = append(dst, '\n')
	if unit != "" {
		dst = append(dst, "# UNIT "...)
		dst = appendName(dst, name)
		dst = append(dst, ' ')
		dst = append(dst, unit...)
		dst = append(dst, '\n')
	}
	return dst
}

// unitFits reports whether a family of this name may be said to have the unit: OpenMetrics
// wants it at the end of the name.
func unitFits(name, unit string) bool {
	base, ok := strings.CutSuffix(name, unit)
	return ok && unit != "" && strings.HasSuffix(base, "_")
}

// appendTextLabels appends spelled labels as they stand between braces.
func appendTextLabels(dst []byte, labels []metric.Label) []byte {
	for i, l := range labels {
		if i > 0 {
			dst = append(dst, ',')
		}
		if model.LegacyValidation.IsValidLabelName(l.Name) {
			dst = append(dst, l.Name...)
		} else {
			dst = appendQuoted(dst, l.Name)
		}
		dst = append(dst, '=')
		dst = appendQuoted(dst, l.Value)
	}
	return dst
}

// appendTextPrefix appends all of a sample's line that comes before its value. A sample
// name outside the classic set goes into the braces, before the labels.
func appendTextPrefix(dst []byte, s *section, labels []byte, p view.Point) []byte {
	suffix := p.Kind.Suffix()
	separator := byte('{')
	if model.LegacyValidation.IsValidMetricName(s.base) {
		dst = append(dst, s.base...)
		dst = append(dst, suffix...)
	} else {
		dst = append(dst, '{')
		dst = appendQuoted(dst, s.base+suffix)
		separator = ','
	}
	if len(labels) > 0 {
		dst = append(dst, separator)
		dst = append(dst, labels...)
		separator = ','
	}
	bound := ""
	switch p.Kind {
	case view.Bucket:
		bound = `le="`
	case view.Quantile:
		bound = `quantile="`
	}
	if bound != "" {
		dst = append(dst, separator)
		dst = append(dst, bound...)
		dst = p.AppendBound(dst)
		dst = append(dst, '"')
		separator = ','
	}
	if separator == ',' { // a brace is open
		dst = append(dst, '}')
	}
	return append(dst, ' ')
}

// appendText appends a section's lines with the family's values.
func (v *rendered) appendText(dst []byte, s *section, kinds kindSet, values []float64) []byte {
	switch {
	case s.split:
		return v.appendSplit(dst, s, kinds, values)
	case kinds != s.kinds:
		return v.appendTextPart(dst, s, kinds, values, s.blob[:s.first])
	}
	if s.stems != nil {
		return s.stems.appendStems(dst, s.blob[:s.first], values, !s.gaps)
	}
	header, prefixes, ends := s.blob[:s.first], s.blob[s.first:], s.ends[:len(values)]
	if s.gaps {
		return appendTextGaps(dst, header, prefixes, ends, values)
	}
	// The hot loop: three appends for each sample, and no memory of its own.
	dst = append(dst, header...)
	start := uint32(0)
	for i, end := range ends {
		dst = append(dst, prefixes[start:end]...)
		dst = metric.AppendValue(dst, values[i])
		dst = append(dst, '\n')
		start = end
	}
	return dst
}

// appendTextGaps is the hot loop for values of which some are not shown.
func appendTextGaps(dst, header, prefixes []byte, ends []uint32, values []float64) []byte {
	shown := false
	start := uint32(0)
	for i, end := range ends {
		if start == end || view.IsAbsent(values[i]) {
			start = end
			continue
		}
		if !shown {
			shown = true
			dst = append(dst, header...)
		}
		dst = append(dst, prefixes[start:end]...)
		dst = metric.AppendValue(dst, values[i])
		dst = append(dst, '\n')
		start = end
	}
	return dst
}

// appendTextPart appends those lines of a section whose points are of the given kinds.
func (v *rendered) appendTextPart(dst []byte, s *section, kinds kindSet, values []float64, header []byte) []byte {
	all := prefixes{s: s}
	fam := &v.layout.Families[s.family]
	shown := false
	i := 0
	for m := range fam.Metrics {
		for _, p := range fam.Metrics[m].Points {
			before := len(dst)
			if !shown {
				dst = append(dst, header...)
			}
			line := len(dst)
			dst = all.appendNext(dst)
			if line < len(dst) && kinds.has(p.Kind) && !view.IsAbsent(values[i]) {
				shown = true
				dst = metric.AppendValue(dst, values[i])
				dst = append(dst, '\n')
			} else {
				dst = dst[:before]
			}
			i++
		}
	}
	return dst
}

// hasCreated reports whether samples named _created may be among those of a section, if a format
// shows these kinds of it.
func (s *section) hasCreated(f Format, kinds kindSet) bool {
	return f.openMetrics() && s.typ.Counts() && s.shape == view.Plain && !s.split && kinds == s.kinds
}

// createdSuffix is what the name of a sample has that says since when a metric counts.
const createdSuffix = "_created"

// appendTextCreated is appendText with a sample for each known start, after the others of its
// metric. Its line is that of a sample without a bound, but for the end of the name.
func (v *rendered) appendTextCreated(dst []byte, s *section, values []float64, starts []int64) []byte {
	var room [256]byte
	base := len(s.base) // in a prefix
	if !model.LegacyValidation.IsValidMetricName(s.base) {
		base = len(appendQuoted(append(room[:0], '{'), s.base)) - 1
	}
	all := prefixes{s: s}
	header := s.blob[:s.first]
	fam := &v.layout.Families[s.family]
	shown := false
	i := 0
	for m := range fam.Metrics {
		start := starts[i]
		from, to := 0, 0 // where in dst the prefix of a sample without a bound is
		suffix := 0      // how long the end of its name is
		for _, p := range fam.Metrics[m].Points {
			before := len(dst)
			if !shown {
				dst = append(dst, header...)
			}
			line := len(dst)
			dst = all.appendNext(dst)
			if line < len(dst) && !view.IsAbsent(values[i]) {
				shown = true
				if p.BoundLabel() == "" {
					from, to, suffix = line, len(dst), len(p.Kind.Suffix())
				}
				dst = metric.AppendValue(dst, values[i])
				dst = append(dst, '\n')
			} else {
				dst = dst[:before]
			}
			i++
		}
		if start > 0 && to > 0 {
			dst = append(dst, dst[from:from+base]...)
			dst = append(dst, createdSuffix...)
			dst = append(dst, dst[from+base+suffix:to]...)
			dst = strconv.AppendFloat(dst, float64(start)/1000, 'f', -1, 64)
			dst = append(dst, '\n')
		}
	}
	return dst
}

// oneName holds the kinds of points that have one sample name.
var oneName = [...]kindSet{
	setOf(view.Value, view.Quantile), setOf(view.Total), setOf(view.Bucket), setOf(view.Sum), setOf(view.Count),
}

// appendSplit appends the lines of a section as families without its type, one for each
// sample name: as of unknown type, or as gauges if the family is one of gauges.
func (v *rendered) appendSplit(dst []byte, s *section, kinds kindSet, values []float64) []byte {
	fam := &v.layout.Families[s.family]
	h := heading{typ: metric.Unknown}
	if fam.Type == metric.Gauge {
		h.typ = metric.Gauge
	}
	var room [512]byte
	for _, one := range oneName {
		if one &= kinds; one == 0 {
			continue
		}
		for k := view.Value; k <= view.Count; k++ {
			if one.has(k) {
				h.head = s.base + k.Suffix()
			}
		}
		header := appendTextHeader(room[:0], &h, fam, v.format)
		dst = v.appendTextPart(dst, s, one, values, header)
	}
	return dst
}
