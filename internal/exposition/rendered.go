package exposition

import (
	"bytes"
	"math"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// kindSet is a set of point kinds.
type kindSet uint16

func setOf(kinds ...view.PointKind) kindSet {
	var s kindSet
	for _, k := range kinds {
		s |= 1 << k
	}
	return s
}

func (s kindSet) has(k view.PointKind) bool { return s&(1<<k) != 0 }

// A rendered layout is what one format makes of one layout: every byte of the output that does not
// depend on values. It never changes once built.
type rendered struct {
	layout   *view.Layout
	format   Format    // canonical
	sections []section // in the order of the layout's families
	// omissions holds what could not be shown, by index of the family.
	omissions map[int][]Omission
}

// A section is one family of the output with its own TYPE line. Most families of a
// layout are one section; a counter of old and new clients is two.
// It is the unit that is kept where a layout has changed elsewhere.
type section struct {
	heading
	// blob is the header and then, from first on, all prefixes. It never changes, and is the same
	// memory in views that have the section in common.
	blob  []byte
	first int
	// ends holds where each prefix ends, counted from first. There is one prefix for
	// each point of the family in the texts, for each metric elsewhere. One that ends
	// where it begins belongs to a point or metric that is not shown.
	ends []uint32
	// gaps says that some points may not be shown, for want of a prefix or of a value.
	gaps bool
	// stems holds the prefixes, and blob only the header, where many metrics have most of their
	// labels in common. Nil elsewhere.
	stems *stems
}

// text reports whether the format is a text of one line per sample in which a part of a
// family is valid.
func (f Format) text() bool { return f.Kind == Text004 || f.Kind == Text100 }

// openMetrics reports whether the format follows OpenMetrics' rules for names.
func (f Format) openMetrics() bool { return f.Kind == OpenMetrics001 || f.Kind == OpenMetrics100 }

// perMetric reports whether prefixes belong to metrics rather than to points.
func (f Format) perMetric() bool { return f.Kind == Protobuf || f.Kind == JSON }

// newRendered renders a layout in a canonical format, under the headings that were arranged.
// Families that are the same, under the same headings, in an earlier view of that format,
// which may be nil, are taken from there.
func newRendered(layout *view.Layout, f Format, headings []heading, earlier *rendered) *rendered {
	v := &rendered{layout: layout, format: f, sections: make([]section, 0, len(headings))}
	speller := &labelSpeller{escaping: f.Escaping, known: make(map[string]spelledName)}
	if earlier == nil {
		earlier = &rendered{layout: &view.Layout{}}
	}
	old := earlier.sections
	for len(headings) > 0 {
		n := 1
		for n < len(headings) && headings[n].family == headings[0].family {
			n++
		}
		fam := &layout.Families[headings[0].family]
		for len(old) > 0 && before(&earlier.layout.Families[old[0].family], fam) {
			old = old[1:]
		}
		if len(old) >= n && sameFamily(&earlier.layout.Families[old[0].family], fam) && sameHeadings(old, headings[:n]) {
			v.keepFamily(headings[0].family, earlier, old[:n])
		} else {
			v.addFamily(headings[:n], speller)
		}
		headings = headings[n:]
	}
	return v
}

// before reports whether a family comes before another in a layout.
func before(a, b *view.Family) bool {
	return a.Name < b.Name || (a.Name == b.Name && a.Type < b.Type)
}

// sameHeadings reports whether the sections that old begins with, of one family, are those
// under the headings and no more.
func sameHeadings(old []section, headings []heading) bool {
	family := old[0].family
	if len(old) > len(headings) && old[len(headings)].family == family {
		return false
	}
	for i, h := range headings {
		o := old[i].heading
		if o.family != family {
			return false
		}
		if h.family = family; h != o {
			return false
		}
	}
	return true
}

// sameFamily reports whether two layouts have the very same family: the index keeps the
// metrics of a family in which nothing appeared or went.
func sameFamily(a, b *view.Family) bool {
	if a.Name != b.Name || a.Type != b.Type || a.Mode != b.Mode || a.Help != b.Help || a.Unit != b.Unit || a.Shape != b.Shape ||
		a.Sparse != b.Sparse || a.Points != b.Points {
		return false
	}
	return len(a.Metrics) == len(b.Metrics) && len(a.Metrics) > 0 && &a.Metrics[0] == &b.Metrics[0]
}

// keepFamily is addFamily for a family whose sections are the same in an earlier view.
func (v *rendered) keepFamily(index int, earlier *rendered, old []section) {
	if o := earlier.omissions[old[0].family]; o != nil {
		v.omit(index, o...)
	}
	for _, s := range old {
		s.family = index
		v.sections = append(v.sections, s)
	}
}

// addFamily renders the sections of a family.
func (v *rendered) addFamily(headings []heading, speller *labelSpeller) {
	index := headings[0].family
	fam := &v.layout.Families[index]
	changes := speller.settle(fam)
	if v.format.text() || v.format.openMetrics() {
		if !changes && v.addAllStems(headings, speller) {
			return
		}
	}
	spelled, omitted, which := v.spellMetrics(fam, speller, changes)
	if omitted > 0 {
		v.omit(index, Omission{Family: fam.Name, Reason: LabelCollision, Metrics: omitted, Example: which})
	}
	for _, h := range headings {
		v.addSection(section{heading: h}, spelled, speller)
	}
}

// sameSlice reports whether two slices are the same piece of memory.
func sameSlice(a, b []view.Point) bool {
	return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0]
}

// countPoints counts the points that no section shows.
func countPoints(fam *view.Family, shown kindSet) int {
	n := 0
	for i := range fam.Metrics {
		for _, p := range fam.Metrics[i].Points {
			if !showable(p, shown) {
				n++
			}
		}
	}
	return n
}

// showable reports whether a point can be shown: it is of a kind that fits, and its
// bound is a number.
func showable(p view.Point, kinds kindSet) bool {
	return kinds.has(p.Kind) && !math.IsNaN(p.Bound)
}

// spelledLabels is the labels of the metrics of a family as the format writes them.
type spelledLabels struct {
	blob []byte
	ends []int // of each metric
	ok   []bool
}

func (s *spelledLabels) of(metric int) (labels []byte, ok bool) {
	start := 0
	if metric > 0 {
		start = s.ends[metric-1]
	}
	return s.blob[start:s.ends[metric]], s.ok[metric]
}

// spellMetrics renders the labels of all metrics of a family, in the format's own way,
// and counts those that cannot be shown: with a label name that occurs twice, or with the
// same labels as an earlier one. That can only happen where spelling changes something, so
// only then is it looked for. It returns the labels of the first of them too.
func (v *rendered) spellMetrics(fam *view.Family, speller *labelSpeller, changes bool) (spelled *spelledLabels, omitted int, which string) {
	var seen map[string]bool
	var key []byte
	if changes {
		seen = make(map[string]bool, len(fam.Metrics))
	}
	spelled = &spelledLabels{ends: make([]int, len(fam.Metrics)), ok: make([]bool, len(fam.Metrics))}
	for i := range fam.Metrics {
		labels, ok := speller.spell(&fam.Metrics[i])
		if ok && changes {
			key = appendLabelsKey(key[:0], labels)
			ok = !seen[string(key)]
			seen[string(key)] = true
		}
		if ok {
			spelled.blob = v.format.appendLabels(spelled.blob, labels)
		} else {
			if omitted == 0 {
				which = exampleOf(&fam.Metrics[i])
			}
			omitted++
		}
		spelled.ok[i] = ok
		spelled.ends[i] = len(spelled.blob)
	}
	return spelled, omitted, which
}

// exampleOf returns the labels of a metric, for people.
func exampleOf(m *view.Metric) string {
	labels := slices.Clone(m.AllLabels())
	for i := range labels {
		labels[i] = metric.Label{Name: clean(labels[i].Name), Value: clean(labels[i].Value)}
	}
	return example(appendTextLabels(nil, labels))
}

// appendLabels appends labels as the format writes them.
func (f Format) appendLabels(dst []byte, labels []metric.Label) []byte {
	switch f.Kind {
	case Protobuf:
		return appendProtobufLabels(dst, labels)
	case JSON:
		return appendJSONLabels(dst, labels)
	}
	return appendTextLabels(dst, labels)
}

// addSection renders the header and the prefixes of a section.
func (v *rendered) addSection(s section, labels *spelledLabels, speller *labelSpeller) {
	fam := &v.layout.Families[s.family]
	blob := speller.blob[:0]
	switch v.format.Kind {
	case Protobuf:
		blob = appendProtobufHeader(blob, &s, fam)
	case JSON:
		blob = appendJSONHeader(blob, &s, fam)
	default:
		blob = appendTextHeader(blob, &s.heading, fam, v.format)
	}
	s.first = len(blob)
	s.gaps = fam.Sparse
	end := func() {
		s.ends = append(s.ends, uint32(min(uint64(len(blob)-s.first), math.MaxUint32)))
	}
	if v.format.perMetric() {
		s.ends = make([]uint32, 0, len(fam.Metrics))
		for i := range fam.Metrics {
			if l, ok := labels.of(i); ok {
				blob = append(blob, l...)
			}
			end()
		}
	} else {
		s.ends = make([]uint32, 0, fam.Points)
		for i := range fam.Metrics {
			l, ok := labels.of(i)
			for _, p := range fam.Metrics[i].Points {
				if ok && showable(p, s.kinds) {
					blob = appendTextPrefix(blob, &s, l, p)
				} else {
					s.gaps = true
				}
				end()
			}
		}
	}
	switch size := uint64(len(blob) - s.first); {
	case size > math.MaxUint32: // more than the offsets can tell, and than a scrape can be
		v.omit(s.family, Omission{Family: fam.Name, Reason: TooLarge})
		fallthrough
	case size == 0: // a section all the same, of which nothing is shown
		blob, s.first = blob[:0], 0
		clear(s.ends)
		s.gaps = true
	}
	speller.blob = blob
	s.blob = bytes.Clone(blob)
	v.sections = append(v.sections, s)
}

func (v *rendered) omit(family int, o ...Omission) {
	if v.omissions == nil {
		v.omissions = make(map[int][]Omission)
	}
	v.omissions[family] = append(v.omissions[family], o...)
}
