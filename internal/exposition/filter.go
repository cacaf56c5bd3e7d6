package exposition

import "aggregatord/internal/view"

// A Filter selects part of an exposition by name, as the parameter name[] of a scrape
// does. The zero value selects everything. It may be used by several goroutines.
type Filter struct {
	names map[string]struct{}
}

// NewFilter returns the filter for the values of name[]. Without any, or with only empty
// ones, it selects everything.
//
// A value that names a family, by its OpenMetrics name or by the name in its TYPE line,
// selects the family. A value that names a sample (X_bucket, X_sum) selects only those
// samples in the text formats, as the Python client does, and the whole family in the
// formats that know no part of one. Names may be given as the format spells them or as
// the worker wrote them.
func NewFilter(names []string) Filter {
	var f Filter
	for _, name := range names {
		if name == "" {
			continue
		}
		if f.names == nil {
			f.names = make(map[string]struct{}, len(names))
		}
		f.names[name] = struct{}{}
	}
	return f
}

// All reports whether the filter selects everything.
func (f Filter) All() bool { return f.names == nil }

func (f Filter) has(name string) bool {
	_, ok := f.names[name]
	return ok
}

// selects returns the kinds of points of a section that the filter lets through.
func (f Filter) selects(v *rendered, s *section) kindSet {
	if f.All() {
		return s.kinds
	}
	name := v.layout.Families[s.family].Name
	raw := clean(name)
	if f.has(name) || f.has(raw) || f.has(s.head) {
		return s.kinds
	}
	var selected kindSet
	for k := view.Value; k <= view.Count; k++ {
		if s.kinds.has(k) && (f.has(s.base+k.Suffix()) || f.has(raw+k.Suffix())) {
			selected |= setOf(k)
		}
	}
	if selected != 0 && !v.format.text() {
		return s.kinds
	}
	return selected
}
