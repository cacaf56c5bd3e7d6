package exposition

import (
	"bytes"
	"math"
	"strings"

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
	format   Format // canonical
	blob     []byte
	sections []section // in the order of the layout's families
	// firstSection holds, for each family and one more, the index of its first section.
	firstSection []int
	// omissions holds what could not be shown, by index of the family.
	omissions map[int][]Omission
}

// A section is one family of the output with its own TYPE line. Most families of a
// layout are one section; a counter of old and new clients is two outside of OpenMetrics.
// It is the unit that is copied where a layout has changed elsewhere.
type section struct {
	family int // index into the layout's families
	typ    metric.Type
	// kinds are the kinds of points shown here.
	kinds kindSet
	// base is the exposed name to which the suffixes of sample names are appended, and
	// headSuffix what the name in the TYPE line has after it.
	base, headSuffix string
	// header is where the section begins in the view's blob, first where its prefixes do.
	header, first int
	// ends holds where each prefix ends, counted from first. There is one prefix for
	// each point of the family in the texts, for each metric elsewhere. One that ends
	// where it begins belongs to a point or metric that is not shown.
	ends []uint32
	// gaps says that some points may not be shown, for want of a prefix or of a value.
	gaps bool
}

// text reports whether the format is a text of one line per sample in which a part of a
// family is valid.
func (f Format) text() bool { return f.Kind == Text004 || f.Kind == Text100 }

// openMetrics reports whether the format follows OpenMetrics' rules for names.
func (f Format) openMetrics() bool { return f.Kind == OpenMetrics001 || f.Kind == OpenMetrics100 }

// perMetric reports whether prefixes belong to metrics rather than to points.
func (f Format) perMetric() bool { return f.Kind == Protobuf || f.Kind == JSON }

// claims returns the names that a section takes for itself: another family that used
// one of them would make the output invalid or ambiguous. In OpenMetrics a type claims
// all its suffixes, used or not, and the family name, as the strict parser of
// client_python checks; elsewhere a counter or gauge is one name, and histograms and
// summaries claim what parsers would take for their samples.
func (s *section) claims(f Format) []string {
	names := []string{s.base + s.headSuffix}
	suffixes := func(kinds ...view.PointKind) {
		for _, k := range kinds {
			names = append(names, s.base+k.Suffix())
		}
	}
	switch s.typ {
	case metric.Counter:
		if f.openMetrics() {
			suffixes(view.Total)
			names = append(names, s.base+"_created")
		}
	case metric.Histogram:
		suffixes(view.Bucket, view.Sum, view.Count)
		if f.openMetrics() {
			names = append(names, s.base+"_created")
		}
	case metric.Summary:
		suffixes(view.Sum, view.Count)
		if f.openMetrics() {
			names = append(names, s.base+"_created")
		}
	}
	return names
}

// split returns the sections of a family, given the kinds of points it has.
func split(fam *view.Family, has kindSet, f Format) []section {
	name := func(suffix string) string { return escapeMetricName(fam.Name+suffix, f.Escaping) }
	// Counters are escaped with their suffix, as client_golang does it, which is also the
	// only spelling from which Prometheus can get the name back.
	counterBase := func() string { return strings.TrimSuffix(name("_total"), "_total") }
	var sections []section
	add := func(typ metric.Type, base string, head view.PointKind, kinds kindSet) {
		if kinds &= has; kinds != 0 {
			sections = append(sections, section{typ: typ, base: base, headSuffix: head.Suffix(), kinds: kinds})
		}
	}
	whole := view.Value // a head without a suffix
	switch fam.Type {
	case metric.Counter:
		total := setOf(view.Total)
		switch {
		case f.openMetrics() && has.has(view.Total):
			add(metric.Counter, counterBase(), whole, total)
		case f.openMetrics():
			// A counter must have _total, so a family without is of no known type.
			add(metric.Unknown, name(""), whole, setOf(view.Value))
		default:
			if has.has(view.Total) {
				add(metric.Counter, counterBase(), view.Total, total)
			}
			add(metric.Counter, name(""), whole, setOf(view.Value))
		}
	case metric.Histogram:
		add(metric.Histogram, name(""), whole, setOf(view.Bucket, view.Sum, view.Count))
	case metric.Summary:
		add(metric.Summary, name(""), whole, setOf(view.Quantile, view.Sum, view.Count))
	default:
		add(fam.Type, name(""), whole, setOf(view.Value))
	}
	return sections
}

// newRendered renders a layout in a canonical format. Families that are the same in the layout
// of an earlier view of that format, which may be nil, are copied from there.
func newRendered(layout *view.Layout, f Format, earlier *rendered) *rendered {
	v := &rendered{layout: layout, format: f, firstSection: make([]int, 0, len(layout.Families)+1)}
	speller := &labelSpeller{escaping: f.Escaping, names: make(map[string]spelledName)}
	if earlier == nil {
		earlier = &rendered{layout: &view.Layout{}}
	}
	v.blob = make([]byte, 0, len(earlier.blob)+len(earlier.blob)/64)
	old := 0
	for i := range layout.Families {
		v.firstSection = append(v.firstSection, len(v.sections))
		families := earlier.layout.Families
		for old < len(families) && families[old].Name < layout.Families[i].Name {
			old++
		}
		if old < len(families) && sameFamily(&families[old], &layout.Families[i]) {
			v.copyFamily(i, earlier, old)
		} else {
			v.addFamily(i, speller)
		}
	}
	v.firstSection = append(v.firstSection, len(v.sections))
	if cap(v.blob)-len(v.blob) > len(v.blob)/16 {
		v.blob = bytes.Clone(v.blob) // without the room it grew
	}
	return v
}

// sameFamily reports whether two layouts have the very same family: the index keeps the
// metrics of a family in which nothing appeared or went.
func sameFamily(a, b *view.Family) bool {
	if a.Name != b.Name || a.Type != b.Type || a.Mode != b.Mode || a.Help != b.Help || a.Unit != b.Unit || a.Sparse != b.Sparse || a.Points != b.Points {
		return false
	}
	return len(a.Metrics) == len(b.Metrics) && len(a.Metrics) > 0 && &a.Metrics[0] == &b.Metrics[0]
}

// copyFamily is addFamily for a family that is the same as the old one of an earlier view.
func (v *rendered) copyFamily(index int, earlier *rendered, old int) {
	if o := earlier.omissions[old]; o != nil {
		v.omit(index, o...)
	}
	for _, s := range earlier.sectionsOf(old) {
		from := s.header
		end := s.first
		if n := len(s.ends); n > 0 {
			end += int(s.ends[n-1])
		}
		s.family, s.header, s.first = index, len(v.blob), len(v.blob)+s.first-from
		v.blob = append(v.blob, earlier.blob[from:end]...)
		v.sections = append(v.sections, s)
	}
}

// sectionsOf returns the sections of a family of the layout.
func (v *rendered) sectionsOf(family int) []section {
	return v.sections[v.firstSection[family]:v.firstSection[family+1]]
}

func (v *rendered) addFamily(index int, speller *labelSpeller) {
	fam := &v.layout.Families[index]
	if fam.Name == "" {
		v.omit(index, Omission{Family: fam.Name, Reason: BadName})
		return
	}
	var has kindSet
	var changes bool
	var seen []view.Point
	for i := range fam.Metrics {
		m := &fam.Metrics[i]
		if !sameSlice(m.Points, seen) {
			for _, p := range m.Points {
				has |= setOf(p.Kind)
			}
			seen = m.Points
		}
		changes = changes || speller.changes(m.Labels)
	}
	sections := split(fam, has, v.format)
	var shown kindSet
	for _, s := range sections {
		shown |= s.kinds
	}
	spelled, omitted := v.spellMetrics(fam, speller, changes)
	if omitted > 0 {
		v.omit(index, Omission{Family: fam.Name, Reason: LabelCollision, Metrics: omitted})
	}
	if n := countPoints(fam, shown); n > 0 {
		v.omit(index, Omission{Family: fam.Name, Reason: BadPoint, Points: n})
	}
	for _, s := range sections {
		s.family = index
		v.addSection(s, spelled)
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
// and counts those that cannot be shown: with a label name that is illegal or occurs
// twice, or with the same labels as an earlier one. The second can only happen where
// spelling changes something, so only then is it looked for.
func (v *rendered) spellMetrics(fam *view.Family, speller *labelSpeller, changes bool) (spelled *spelledLabels, omitted int) {
	reserved := ""
	switch fam.Type {
	case metric.Histogram:
		reserved = "le"
	case metric.Summary:
		reserved = "quantile"
	}
	var seen map[string]bool
	var key []byte
	if changes {
		seen = make(map[string]bool, len(fam.Metrics))
	}
	spelled = &spelledLabels{ends: make([]int, len(fam.Metrics)), ok: make([]bool, len(fam.Metrics))}
	for i := range fam.Metrics {
		labels, ok := speller.spell(fam.Metrics[i].Labels, reserved)
		if ok && changes {
			key = appendLabelsKey(key[:0], labels)
			ok = !seen[string(key)]
			seen[string(key)] = true
		}
		if ok {
			spelled.blob = v.format.appendLabels(spelled.blob, labels)
		} else {
			omitted++
		}
		spelled.ok[i] = ok
		spelled.ends[i] = len(spelled.blob)
	}
	return spelled, omitted
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
func (v *rendered) addSection(s section, labels *spelledLabels) {
	fam := &v.layout.Families[s.family]
	s.header = len(v.blob)
	switch v.format.Kind {
	case Protobuf:
		v.blob = appendProtobufHeader(v.blob, &s, fam)
	case JSON:
		v.blob = appendJSONHeader(v.blob, &s, fam)
	default:
		v.blob = appendTextHeader(v.blob, &s, fam, v.format)
	}
	s.first = len(v.blob)
	s.gaps = fam.Sparse
	end := func() {
		s.ends = append(s.ends, uint32(min(uint64(len(v.blob)-s.first), math.MaxUint32)))
	}
	if v.format.perMetric() {
		s.ends = make([]uint32, 0, len(fam.Metrics))
		for i := range fam.Metrics {
			if l, ok := labels.of(i); ok {
				v.blob = append(v.blob, l...)
			}
			end()
		}
	} else {
		s.ends = make([]uint32, 0, fam.Points)
		for i := range fam.Metrics {
			l, ok := labels.of(i)
			for _, p := range fam.Metrics[i].Points {
				if ok && showable(p, s.kinds) {
					v.blob = appendTextPrefix(v.blob, &s, l, p)
				} else {
					s.gaps = true
				}
				end()
			}
		}
	}
	switch size := uint64(len(v.blob) - s.first); {
	case size > math.MaxUint32: // more than the offsets can tell, and than a scrape can be
		v.omit(s.family, Omission{Family: fam.Name, Reason: TooLarge})
	case size > 0:
		v.sections = append(v.sections, s)
		return
	}
	v.blob = v.blob[:s.header]
}

func (v *rendered) omit(family int, o ...Omission) {
	if v.omissions == nil {
		v.omissions = make(map[int][]Omission)
	}
	v.omissions[family] = append(v.omissions[family], o...)
}
