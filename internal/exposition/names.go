package exposition

import (
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/common/model"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
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

// spelledAsIs reports whether a metric name is its own spelling in a scheme.
func spelledAsIs(name string, e Escaping) bool {
	if e == AllowUTF8 {
		return utf8.ValidString(name)
	}
	return model.LegacyValidation.IsValidMetricName(name)
}

// escapeLabelName spells a label name in a scheme. The functions of package model do not
// tell label names from metric names, where a colon is legal; here it is escaped like
// any other character, so that the result is always a label name.
func escapeLabelName(name string, e Escaping) string {
	name = clean(name)
	if e == AllowUTF8 || model.LegacyValidation.IsValidLabelName(name) {
		return name
	}
	if e == Values {
		return reversibleName(name)
	}
	escaped := model.EscapeName(name, schemes[e].model)
	if e == Dots {
		return strings.ReplaceAll(escaped, ":", "__")
	}
	return strings.ReplaceAll(escaped, ":", "_")
}

// labelStays reports whether a label name is its own spelling in a scheme. Those that begin
// with __ are Prometheus's own: readers refuse them, or take them for something else.
func labelStays(name string, e Escaping) bool {
	if name == "" || strings.HasPrefix(name, "__") {
		return false
	}
	return model.LegacyValidation.IsValidLabelName(name) || (e == AllowUTF8 && utf8.ValidString(name))
}

// reversibleName spells any name as Prometheus's scheme "values" spells those outside the
// classic set: model.UnescapeName gives it back, so that two names never become one. It is
// legal everywhere.
func reversibleName(name string) string {
	out := []byte("U__")
	for _, r := range clean(name) {
		switch {
		case r == '_':
			out = append(out, "__"...)
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			out = append(out, byte(r))
		default:
			out = append(out, '_')
			out = strconv.AppendInt(out, int64(r), 16)
			out = append(out, '_')
		}
	}
	return string(out)
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

// labelSpeller spells the labels of metrics in one scheme, family by family. Of the names it
// has met, of which a layout has few, it remembers how each is spelled by itself.
type labelSpeller struct {
	escaping Escaping
	known    map[string]spelledName
	// names holds the spellings in the present family; nil if all names stay as they are.
	names map[string]string
	// Reused by settle and spell.
	met, before    []string
	joined, labels []metric.Label
	blob           []byte // reused by addSection
}

type spelledName struct {
	name  string
	stays bool
}

func (s *labelSpeller) name(name string) spelledName {
	spelled, ok := s.known[name]
	if !ok {
		spelled = spelledName{escapeLabelName(name, s.escaping), labelStays(name, s.escaping)}
		s.known[name] = spelled
	}
	return spelled
}

// settle decides how the label names of a family are spelled: a name that needs no escaping
// has itself, and one that becomes a name that is taken, reserved or wanted by another is
// spelled reversibly. It reports whether spelling alters any label, so that two metrics
// might become equal.
func (s *labelSpeller) settle(fam *view.Family) (changes bool) {
	reserved := reservedLabel(fam.Type)
	s.names, s.met, s.before = nil, s.met[:0], s.before[:0]
	all := true
	for i := range fam.Metrics {
		at := 0
		for _, list := range [...][]metric.Label{fam.Metrics[i].Labels, fam.Metrics[i].Extra} {
			for k := range list {
				name := list[k].Name
				changes = changes || !utf8.ValidString(list[k].Value)
				// Most metrics have the names of the one before.
				if at < len(s.before) && s.before[at] == name {
					at++
					continue
				}
				s.before = append(s.before[:at], name)
				at++
				if !slices.Contains(s.met, name) {
					s.met = append(s.met, name)
					all = all && s.name(name).stays && name != reserved
				}
			}
		}
	}
	if all {
		return changes
	}
	stays := func(name string) bool { return s.name(name).stays && name != reserved }
	wanted := make(map[string]int, len(s.met))
	for _, name := range s.met {
		if stays(name) {
			wanted[name]++
		} else {
			wanted[s.name(name).name]++
		}
	}
	s.names = make(map[string]string, len(s.met))
	for _, name := range s.met {
		spelled := s.name(name).name
		if !stays(name) && (wanted[spelled] > 1 || spelled == "" || spelled == reserved || strings.HasPrefix(spelled, "__")) {
			spelled = reversibleName(name)
		}
		s.names[name] = spelled
	}
	return true
}

// reservedLabel is the label that tells the points of a type apart.
func reservedLabel(typ metric.Type) string {
	switch typ {
	case metric.Histogram:
		return "le"
	case metric.Summary:
		return "quantile"
	}
	return ""
}

// spell returns the labels of a metric of the family that was settled as they are exposed,
// sorted by name. They are not ok when a name occurs twice. The result is valid until the
// next call.
func (s *labelSpeller) spell(m *view.Metric) (spelled []metric.Label, ok bool) {
	labels := m.Labels
	if len(m.Extra) > 0 {
		s.joined = m.AppendLabels(s.joined[:0])
		labels = s.joined
	}
	s.labels = s.labels[:0]
	for _, l := range labels {
		if s.names != nil {
			l.Name = s.names[l.Name]
		}
		l.Value = clean(l.Value)
		s.labels = append(s.labels, l)
	}
	if s.names == nil {
		return s.labels, true
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
