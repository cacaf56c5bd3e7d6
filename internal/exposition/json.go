package exposition

import (
	"strings"
	"unicode/utf8"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// The shape is that of prom2json: an array of families with name, help, type and
// metrics; a metric has its labels, if any, and either a value or count and sum with
// buckets or quantiles. Numbers are strings, since JSON has no NaN and no infinity.

func appendJSONHeader(dst []byte, s *section, fam *view.Family) []byte {
	dst = append(dst, `{"name":`...)
	dst = appendJSONString(dst, s.head)
	dst = append(dst, `,"help":`...)
	dst = appendJSONString(dst, clean(fam.Help))
	dst = append(dst, `,"type":"`...)
	if s.typ == metric.Unknown {
		dst = append(dst, "UNTYPED"...)
	} else {
		dst = append(dst, strings.ToUpper(s.typ.String())...)
	}
	return append(dst, `","metrics":[`...)
}

// appendJSONLabels appends the beginning of a metric, up to its values.
func appendJSONLabels(dst []byte, labels []metric.Label) []byte {
	dst = append(dst, '{')
	for i, l := range labels {
		if i == 0 {
			dst = append(dst, `"labels":{`...)
		} else {
			dst = append(dst, ',')
		}
		dst = appendJSONString(dst, l.Name)
		dst = append(dst, ':')
		dst = appendJSONString(dst, l.Value)
	}
	if len(labels) > 0 {
		dst = append(dst, `},`...)
	}
	return dst
}

// appendJSON appends a section as an object, after a comma if it is not the first in dst
// from start on.
func (v *rendered) appendJSON(dst []byte, s *section, values []float64, first bool) []byte {
	fam := &v.layout.Families[s.family]
	prefixes := s.blob[s.first:]
	shown := false
	start, at := uint32(0), 0
	for i := range fam.Metrics {
		points := fam.Metrics[i].Points
		prefix, own := prefixes[start:s.ends[i]], values[at:at+len(points)]
		start = s.ends[i]
		at += len(points)
		if len(prefix) == 0 || !anyShown(s, points, own) {
			continue
		}
		switch {
		case shown:
			dst = append(dst, ',')
		case first:
			dst = append(dst, s.blob[:s.first]...)
		default:
			dst = append(dst, ",\n"...)
			dst = append(dst, s.blob[:s.first]...)
		}
		shown = true
		dst = append(dst, prefix...)
		dst = appendJSONPoints(dst, s, points, own)
		dst = append(dst, '}')
	}
	if shown {
		dst = append(dst, "]}"...)
	}
	return dst
}

func anyShown(s *section, points []view.Point, values []float64) bool {
	for i, p := range points {
		if showable(p, s.kinds) && !view.IsAbsent(values[i]) {
			return true
		}
	}
	return false
}

// appendJSONPoints appends the members of a metric that hold its values: buckets and
// quantiles, which come first, in an object of their own.
func appendJSONPoints(dst []byte, s *section, points []view.Point, values []float64) []byte {
	first, open := true, false
	separate := func() {
		if !first {
			dst = append(dst, ',')
		}
		first = false
	}
	leave := func() {
		if open {
			dst = append(dst, '}')
			open = false
		}
	}
	for i, p := range points {
		if !showable(p, s.kinds) || view.IsAbsent(values[i]) {
			continue
		}
		name := "value"
		switch p.Kind {
		case view.Bucket, view.Quantile:
			separate()
			if !open {
				if p.Kind == view.Bucket {
					dst = append(dst, `"buckets":{`...)
				} else {
					dst = append(dst, `"quantiles":{`...)
				}
				open = true
			}
			dst = append(dst, '"')
			dst = p.AppendBound(dst)
			dst = append(dst, `":"`...)
			dst = metric.AppendValue(dst, values[i])
			dst = append(dst, '"')
			continue
		case view.Sum:
			name = "sum"
		case view.Count:
			name = "count"
		}
		leave()
		separate()
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, `":"`...)
		dst = metric.AppendValue(dst, values[i])
		dst = append(dst, '"')
	}
	leave()
	return dst
}

const hexDigits = "0123456789abcdef"

// appendJSONString appends clean UTF-8 as a JSON string. U+2028 and U+2029 are escaped
// too, as encoding/json does it, for readers that take JSON for JavaScript.
func appendJSONString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	run := 0
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r >= ' ' && r != '"' && r != '\\' && r != '\u2028' && r != '\u2029' {
			i += size
			continue
		}
		dst = append(dst, s[run:i]...)
		switch r {
		case '"', '\\':
			dst = append(dst, '\\', byte(r))
		case '\n':
			dst = append(dst, `\n`...)
		case '\r':
			dst = append(dst, `\r`...)
		case '\t':
			dst = append(dst, `\t`...)
		default:
			dst = append(dst, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
		}
		i += size
		run = i
	}
	dst = append(dst, s[run:]...)
	return append(dst, '"')
}
