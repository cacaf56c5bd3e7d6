package exposition

import (
	"bytes"
	"math"
	"slices"
	"strings"
	"unsafe"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// stems are the prefixes of a section in a text format in which many metrics have the same labels,
// but for those that tell pools apart (view.Metric.Extra). What such metrics have in common, a stem,
// is kept once. The text of the labels that differ is put in when it is written.
type stems struct {
	// text has the prefixes of all points of all stems, without the labels that differ.
	text []byte
	// ends holds where each of them ends in text.
	ends []uint32
	// cuts holds for each of them the places in text, in order, where the labels that differ belong.
	cuts []uint32
	list []stem
	// metrics are those of the family, in its order.
	metrics []stemmed
	// labels are the texts of the labels that differ, as in pool="web".
	labels []string
	// bytes is how long all prefixes are when they are written.
	bytes int
}

// stem is one of them: its first byte in text, the first of its points in ends, the first of its
// cuts, and how many points it has and cuts each.
type stem struct{ from, point, cut, points, cutsEach uint32 }

// stemmed is a metric: its stem, and the first of its labels.
type stemmed struct{ stem, label uint32 }

// grouping says which metrics of a family are of one stem.
type grouping struct {
	// examples has one metric of each stem.
	examples []*view.Metric
	metrics  []stemmed
	labels   []string
}

// stemKey is what metrics of one stem have in common: labels, points, and the names of the others.
type stemKey struct {
	labels         *metric.Label
	points         *view.Point
	nLabels, names int
	nPoints        int
}

// groupMetrics finds the stems of a family, nil if they are not worth it. Equal labels and points
// are told by their address: an index keeps what is equal once.
func groupMetrics(fam *view.Family) *grouping {
	const few = 8
	if len(fam.Metrics) < few {
		return nil
	}
	type extra struct {
		label uint32
		names int
	}
	g := &grouping{metrics: make([]stemmed, 0, len(fam.Metrics))}
	known, extras, lists := map[stemKey]uint32{}, map[*metric.Label]extra{}, map[string]int{}
	for i := range fam.Metrics {
		m := &fam.Metrics[i]
		if len(m.Extra) == 0 {
			return nil
		}
		e, ok := extras[&m.Extra[0]]
		if !ok {
			e.label = uint32(len(g.labels))
			var names strings.Builder
			for k := range m.Extra {
				g.labels = append(g.labels, string(appendTextLabels(nil, m.Extra[k:k+1])))
				names.WriteString(m.Extra[k].Name)
				names.WriteByte(gap)
			}
			if e.names, ok = lists[names.String()]; !ok {
				e.names = len(lists)
				lists[names.String()] = e.names
			}
			extras[&m.Extra[0]] = e
		}
		key := stemKey{unsafe.SliceData(m.Labels), unsafe.SliceData(m.Points), len(m.Labels), e.names, len(m.Points)}
		at, ok := known[key]
		if !ok {
			at = uint32(len(g.examples))
			known[key] = at
			g.examples = append(g.examples, m)
		}
		g.metrics = append(g.metrics, stemmed{at, e.label})
		if i == few*few && len(g.examples) > i/2 {
			return nil
		}
	}
	if len(g.examples) > len(fam.Metrics)/2 {
		return nil
	}
	return g
}

// gap stands for a label that differs, while a stem is made. It is in no UTF-8 text.
const gap = 0xff

// addAllStems is addFamily for a family whose labels are spelled as they are, if many of its metrics
// have most of their labels in common; otherwise it reports false.
func (v *rendered) addAllStems(headings []heading, speller *labelSpeller) bool {
	g := groupMetrics(&v.layout.Families[headings[0].family])
	if g == nil {
		return false
	}
	n := len(v.sections)
	for _, h := range headings {
		if !v.addStems(section{heading: h}, g, speller) {
			v.sections = v.sections[:n]
			return false
		}
	}
	return true
}

// addStems renders the header and the stems of a section. It reports false, and does nothing, if the
// stems are too long to be told apart.
func (v *rendered) addStems(s section, g *grouping, speller *labelSpeller) bool {
	fam := &v.layout.Families[s.family]
	header := appendTextHeader(nil, &s.heading, fam, v.format)
	st := &stems{metrics: g.metrics, labels: g.labels, list: make([]stem, 0, len(g.examples))}
	s.gaps = fam.Sparse
	blob := speller.blob[:0]
	var labels, prefix []byte
	for _, m := range g.examples {
		labels = appendStemLabels(labels[:0], m)
		one := stem{uint32(len(blob)), uint32(len(st.ends)), uint32(len(st.cuts)), uint32(len(m.Points)), uint32(len(m.Extra))}
		for _, p := range m.Points {
			if showable(p, s.kinds) {
				prefix = appendTextPrefix(prefix[:0], &s, labels, p)
				for rest := prefix; ; {
					at := bytes.IndexByte(rest, gap)
					if at < 0 {
						blob = append(blob, rest...)
						break
					}
					blob = append(blob, rest[:at]...)
					st.cuts = append(st.cuts, uint32(len(blob)))
					rest = rest[at+1:]
				}
			} else {
				s.gaps = true
				for range m.Extra {
					st.cuts = append(st.cuts, uint32(len(blob)))
				}
			}
			st.ends = append(st.ends, uint32(len(blob)))
		}
		st.list = append(st.list, one)
	}
	speller.blob = blob
	if len(blob) == 0 || len(blob) > math.MaxUint32/2 {
		return false
	}
	st.text, st.ends, st.cuts = bytes.Clone(blob), slices.Clip(st.ends), slices.Clip(st.cuts)
	for _, m := range st.metrics {
		one := &st.list[m.stem]
		st.bytes += int(st.ends[one.point+one.points-1] - one.from)
		for _, l := range st.labels[m.label:][:one.cutsEach] {
			st.bytes += len(l) * int(one.points)
		}
	}
	s.blob, s.first, s.stems = bytes.Clone(header), len(header), st
	v.sections = append(v.sections, s)
	return true
}

// appendStemLabels appends the labels of a metric as they stand between braces, with a gap for each
// of Extra.
func appendStemLabels(dst []byte, m *view.Metric) []byte {
	own, extra := m.Labels, m.Extra
	for first := true; len(own)+len(extra) > 0; first = false {
		if !first {
			dst = append(dst, ',')
		}
		if len(extra) > 0 && (len(own) == 0 || extra[0].Name <= own[0].Name) {
			dst, extra = append(dst, gap), extra[1:]
			continue
		}
		dst, own = appendTextLabels(dst, own[:1]), own[1:]
	}
	return dst
}

// appendStems appends a section's lines with the family's values. always has the header there even
// without a line.
func (st *stems) appendStems(dst, header []byte, values []float64, always bool) []byte {
	shown := always
	if always {
		dst = append(dst, header...)
	}
	i := 0
	for _, m := range st.metrics {
		one := &st.list[m.stem]
		from, cut := one.from, one.cut
		for _, end := range st.ends[one.point:][:one.points] {
			v := values[i]
			i++
			if from == end || !always && view.IsAbsent(v) {
				from, cut = end, cut+one.cutsEach
				continue
			}
			if !shown {
				shown = true
				dst = append(dst, header...)
			}
			for _, l := range st.labels[m.label:][:one.cutsEach] {
				dst = append(dst, st.text[from:st.cuts[cut]]...)
				dst = append(dst, l...)
				from, cut = st.cuts[cut], cut+1
			}
			dst = append(dst, st.text[from:end]...)
			dst = metric.AppendValue(dst, v)
			dst = append(dst, '\n')
			from = end
		}
	}
	return dst
}

// prefixes goes through the prefixes of a section in a text format, in the order of its values.
type prefixes struct {
	s    *section
	from uint32
	// at is how many were before. With stems it is how many metrics are done, and point and cut are
	// where the present one is.
	at         int
	point, cut uint32
}

// appendNext appends the next prefix: nothing for a point that is not shown.
func (p *prefixes) appendNext(dst []byte) []byte {
	st := p.s.stems
	if st == nil {
		from := p.from
		p.from = p.s.ends[p.at]
		p.at++
		return append(dst, p.s.blob[p.s.first:][from:p.from]...)
	}
	m := st.metrics[p.at]
	one := &st.list[m.stem]
	if p.point == 0 {
		p.from, p.cut = one.from, one.cut
	}
	end := st.ends[one.point+p.point]
	if p.from == end {
		p.cut += one.cutsEach
	} else {
		for _, l := range st.labels[m.label:][:one.cutsEach] {
			dst = append(dst, st.text[p.from:st.cuts[p.cut]]...)
			dst = append(dst, l...)
			p.from, p.cut = st.cuts[p.cut], p.cut+1
		}
		dst = append(dst, st.text[p.from:end]...)
		p.from = end
	}
	if p.point++; p.point == one.points {
		p.point, p.at = 0, p.at+1
	}
	return dst
}
