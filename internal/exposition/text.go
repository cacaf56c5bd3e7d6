package exposition

import (
	"strings"

	"github.com/prometheus/common/model"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// appendTextHeader appends the HELP and TYPE lines of a section, and in OpenMetrics the UNIT
// line. A family without help has no HELP line.
func appendTextHeader(dst []byte, s *section, fam *view.Family, f Format) []byte {
	name := s.base + s.headSuffix
	if fam.Help != "" {
		dst = append(dst, "# HELP "...)
		dst = appendName(dst, name)
		dst = append(dst, ' ')
		dst = appendEscaped(dst, clean(fam.Help), f.openMetrics())
		dst = append(dst, '\n')
	}
	dst = append(dst, "# TYPE "...)
	dst = appendName(dst, name)
	dst = append(dst, ' ')
	if s.typ == metric.Unknown && f.text() {
		dst = append(dst, "untyped"...)
	} else {
		dst = append(dst, s.typ.String()...)
	}
	dst = append(dst, '\n')
	if f.openMetrics() && unitFits(name, fam.Unit) {
		dst = append(dst, "# UNIT "...)
		dst = appendName(dst, name)
		dst = append(dst, ' ')
		dst = append(dst, fam.Unit...)
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
		dst = metric.AppendBound(dst, p.Bound)
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
	header, prefixes, ends := v.blob[s.header:s.first], v.blob[s.first:], s.ends[:len(values)]
	switch {
	case kinds != s.kinds:
		return v.appendTextPart(dst, s, kinds, values)
	case s.gaps:
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

// appendTextPart appends those lines of a section whose points are of the given kinds.
func (v *rendered) appendTextPart(dst []byte, s *section, kinds kindSet, values []float64) []byte {
	prefixes := v.blob[s.first:]
	fam := &v.layout.Families[s.family]
	shown := false
	start, i := uint32(0), 0
	for m := range fam.Metrics {
		for _, p := range fam.Metrics[m].Points {
			end, value := s.ends[i], values[i]
			if start != end && kinds.has(p.Kind) && !view.IsAbsent(value) {
				if !shown {
					shown = true
					dst = append(dst, v.blob[s.header:s.first]...)
				}
				dst = append(dst, prefixes[start:end]...)
				dst = metric.AppendValue(dst, value)
				dst = append(dst, '\n')
			}
			start = end
			i++
		}
	}
	return dst
}
