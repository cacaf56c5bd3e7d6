package exposition

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/common/model"

	"aggregatord/internal/metric"
)

// clean returns s as every format can carry it: each byte that is not part of valid UTF-8
// becomes U+FFFD. Prometheus refuses a whole scrape for one such label value. (It has
// nothing against control characters, NUL included.)
func clean(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s)) // one U+FFFD for each byte; strings.ToValidUTF8 has one for all
}

// escapeMetricName spells a metric name in a scheme, as expfmt's encoders do it: a name
// that is legal in the classic set is left alone in every scheme.
func escapeMetricName(name string, e Escaping) string {
	name = clean(name)
	if model.LegacyValidation.IsValidMetricName(name) {
		return name
	}
	return model.EscapeName(name, schemes[e].model)
}

// escapeLabelName spells a label name in a scheme. The functions of package model do not
// tell label names from metric names, where a colon is legal; here it is escaped like
// any other character, so that the result is always a label name.
func escapeLabelName(name string, e Escaping) string {
	name = clean(name)
	if e == AllowUTF8 || model.LegacyValidation.IsValidLabelName(name) {
		return name
	}
	escaped := model.EscapeName(name, schemes[e].model)
	if strings.IndexByte(escaped, ':') < 0 {
		return escaped
	}
	switch e {
	case Dots:
		return strings.ReplaceAll(escaped, ":", "__")
	case Values:
		if model.LegacyValidation.IsValidMetricName(name) {
			escaped = "U__" + strings.ReplaceAll(name, "_", "__")
		}
		return strings.ReplaceAll(escaped, ":", "_3a_")
	}
	return strings.ReplaceAll(escaped, ":", "_")
}

// appendName appends a metric name as it stands outside of braces, quoted if it has to be.
func appendName(dst []byte, name string) []byte {
	if model.LegacyValidation.IsValidMetricName(name) {
		return append(dst, name...)
	}
	return appendQuoted(dst, name)
}

// appendQuoted appends s, which must be clean, between quotes.
func appendQuoted(dst []byte, s string) []byte {
	dst = append(dst, '"')
	dst = appendEscaped(dst, s, true)
	return append(dst, '"')
}

// appendEscaped appends s with backslashes and line feeds escaped, and quotes too if
// asked, copying what needs no escape in runs.
func appendEscaped(dst []byte, s string, quotes bool) []byte {
	run := 0
	for i := 0; i < len(s); i++ {
		var escape string
		switch s[i] {
		case '\\':
			escape = `\\`
		case '\n':
			escape = `\n`
		case '"':
			if !quotes {
				continue
			}
			escape = `\"`
		default:
			continue
		}
		dst = append(dst, s[run:i]...)
		dst = append(dst, escape...)
		run = i + 1
	}
	return append(dst, s[run:]...)
}

// labelSpeller spells the labels of metrics in one scheme and remembers the names it has
// met, of which a layout has few.
type labelSpeller struct {
	escaping Escaping
	names    map[string]spelledName
	labels   []metric.Label // reused by spell
}

type spelledName struct {
	name    string
	changed bool
	legal   bool
}

func (s *labelSpeller) name(name string) spelledName {
	spelled, ok := s.names[name]
	if !ok {
		spelled.name = escapeLabelName(name, s.escaping)
		spelled.changed = spelled.name != name
		// Prometheus keeps the metric name in a label of this name.
		spelled.legal = spelled.name != "" && spelled.name != model.MetricNameLabel
		s.names[name] = spelled
	}
	return spelled
}

// changes reports whether spelling the labels alters any of them, so that they might
// become equal to others.
func (s *labelSpeller) changes(labels []metric.Label) bool {
	for _, l := range labels {
		if s.name(l.Name).changed || clean(l.Value) != l.Value {
			return true
		}
	}
	return false
}

// spell returns the labels as they are exposed, sorted by name. They are not ok when a
// name is illegal, is the reserved one or occurs twice. The result is valid until the
// next call.
func (s *labelSpeller) spell(labels []metric.Label, reserved string) (spelled []metric.Label, ok bool) {
	s.labels = s.labels[:0]
	for _, l := range labels {
		name := s.name(l.Name)
		if !name.legal || name.name == reserved {
			return nil, false
		}
		s.labels = append(s.labels, metric.Label{Name: name.name, Value: clean(l.Value)})
	}
	sorted := func(a, b metric.Label) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(s.labels, sorted) {
		slices.SortFunc(s.labels, sorted)
	}
	for i := 1; i < len(s.labels); i++ {
		if s.labels[i].Name == s.labels[i-1].Name {
			return nil, false
		}
	}
	return s.labels, true
}

// appendLabelsKey appends an unambiguous spelling of labels, to find equal ones.
func appendLabelsKey(dst []byte, labels []metric.Label) []byte {
	for _, l := range labels {
		dst = appendQuoted(dst, l.Name)
		dst = appendQuoted(dst, l.Value)
	}
	return dst
}
