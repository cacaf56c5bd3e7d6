package exposition

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"aggregatord/internal/view"
)

// An Encoder turns snapshots into bytes. The zero value is ready for use, by any number
// of goroutines. It keeps what it rendered of the layouts of the last call, for each
// format it was asked for, and nothing of earlier layouts.
type Encoder struct {
	// OnReport, if set before first use, is called when what a format does not carry has
	// changed, with empty lists when it carries everything again. It is called by the
	// goroutine that encodes, and never while another call is under way.
	OnReport func(Report)
	// CreatedSamples, if set before first use, has OpenMetrics carry the Starts of snapshots, as
	// samples named _created. In protobuf they are fields, and always there. Whoever reads the text
	// keeps them as series of their own, or has to know them.
	CreatedSamples bool

	// mu guards what follows. It is held while a new layout is rendered, so that scrapes
	// that arrive together render it once.
	mu    sync.Mutex
	plans []*plan     // all for the same layouts, last used first
	views []*rendered // of those layouts, last used first
	// stale are the views of the layouts before those, until they are rendered anew.
	stale []*rendered
	// reported is what OnReport was told last.
	reported map[reportKey]reportState

	// reporting makes calls of OnReport exclusive.
	reporting sync.Mutex
}

// reportKey is what reports are told apart by: a format that one client gets and another one
// avoids has two.
type reportKey struct{ format, instead Format }

type reportState struct{ omissions, untyped []Omission }

func (s reportState) equal(o reportState) bool {
	return slices.Equal(s.omissions, o.omissions) && slices.Equal(s.untyped, o.untyped)
}

// maxRendered bounds the formats that are kept rendered for one list of layouts. A pool has
// one or two kinds of scrapers; someone who asks for every format and scheme in turn must not
// make the daemon keep them all.
const maxRendered = 4

// A plan is the output of a list of layouts in one format: which sections, in which
// order. It never changes once built, but for what is rendered of it.
type plan struct {
	format  Format // canonical
	layouts []*view.Layout
	parts   []part
	// headings are those of the sections of each layout.
	headings [][]heading
	// What the format does not carry, whatever the values.
	omissions, untyped []Omission
	loss               loss
	// out is what is rendered of it, once it is written; nil until then. Encoder.mu guards it.
	out *output
	// size is the length in bytes of the last whole output, a hint for the next.
	size atomic.Int64
}

// An output is what is rendered of a plan. It never changes.
type output struct {
	views     []*rendered // one for each layout
	omissions []Omission  // of the views
}

// A part is one section of one of the snapshots.
type part struct {
	snapshot, section int
	// judged says that the values decide how the section is served.
	judged bool
}

// newPlan arranges the layouts of snapshots in a canonical format.
func newPlan(f Format, snaps []*view.Snapshot) *plan {
	p := &plan{format: f}
	for _, s := range snaps {
		p.layouts = append(p.layouts, s.Layout)
	}
	p.arrange()
	for i := range p.parts {
		part := &p.parts[i]
		part.judged = p.headings[part.snapshot][part.section].judged(f)
	}
	return p
}

// section returns the heading, the family and the values of a part.
func (p *plan) section(part *part, snaps []*view.Snapshot) (*heading, *view.Family, []float64) {
	h := &p.headings[part.snapshot][part.section]
	fam := &p.layouts[part.snapshot].Families[h.family]
	return h, fam, snaps[part.snapshot].Values[fam.First : fam.First+fam.Points]
}

// Append appends the exposition of a snapshot in a format. Families are sorted by name and
// type; the same snapshot gives the same bytes. What the format does not carry is left out
// and reported.
//
// Of several snapshots, families are sorted together. Where families claim the same name,
// those of the last snapshot win (a daemon's own metrics stay visible whatever the workers
// call theirs), then earlier families.
//
// It does not allocate if dst has room and the layouts are those of the last call.
func (e *Encoder) Append(dst []byte, f Format, sel Filter, snaps ...*view.Snapshot) []byte {
	dst, _ = e.Encode(dst, nil, AcceptOnly(f), sel, snaps...)
	return dst
}

// AppendSections is Append of everything that also appends to ends where each section of
// the output ends, in bytes from where the output begins; what is behind the last of them
// belongs to no section. As long as the layouts are the same, there are as many sections,
// with the same families in the same order.
func (e *Encoder) AppendSections(dst []byte, ends *[]int, f Format, snaps ...*view.Snapshot) []byte {
	dst, _ = e.Encode(dst, ends, AcceptOnly(f), Filter{}, snaps...)
	return dst
}

// Encode is Append, or with ends AppendSections, in the best format that a client accepts:
// the first one that carries everything, or if there is none the first of those that carry
// most. It returns which one it chose.
func (e *Encoder) Encode(dst []byte, ends *[]int, accept Accept, sel Filter, snaps ...*view.Snapshot) ([]byte, Format) {
	chosen := accept.Best()
	p, least, fits := e.weigh(chosen, snaps)
	if !least.none() {
		for _, f := range accept.formats[1:max(accept.n, 1)] {
			other, l, all := e.weigh(f, snaps)
			if l.less(least) {
				chosen, p, least, fits = f, other, l, all
			}
			if l.none() {
				break
			}
		}
	}
	out := e.render(p, snaps)
	if e.OnReport != nil {
		e.report(accept, chosen, p, out, fits, snaps)
	}
	return p.write(dst, ends, out.views, fits, e.CreatedSamples, sel, snaps), chosen
}

// WantsStarts reports whether a format that a client accepts carries the Starts of snapshots.
func (e *Encoder) WantsStarts(accept Accept) bool {
	return slices.ContainsFunc(accept.formats[:max(accept.n, 1)], func(f Format) bool {
		return f.Kind == Protobuf || e.CreatedSamples && f.openMetrics()
	})
}

// weigh returns the plan for a format, how much it loses, and whether all values fit.
func (e *Encoder) weigh(f Format, snaps []*view.Snapshot) (p *plan, l loss, fits bool) {
	p = e.plan(f.canonical(), snaps)
	l, fits = p.judge(snaps)
	l.left += p.loss.left
	l.untyped += p.loss.untyped
	return p, l, fits
}

// write appends the output of a plan. fits says that all values are fine, created that OpenMetrics
// has starts.
func (p *plan) write(dst []byte, ends *[]int, views []*rendered, fits, created bool, sel Filter, snaps []*view.Snapshot) []byte {
	if sel.All() {
		hint := int(p.size.Load())
		if hint == 0 {
			hint = p.expect(views)
		}
		if cap(dst)-len(dst) < hint {
			dst = slices.Grow(dst, hint+hint/16)
		}
	}
	start := len(dst)
	if p.format.Kind == JSON {
		dst = append(dst, '[')
	}
	for i := range p.parts {
		part := &p.parts[i]
		v := views[part.snapshot]
		s := &v.sections[part.section]
		kinds := s.kinds
		if !sel.All() {
			if kinds = sel.selects(v, s); kinds == 0 {
				continue
			}
		}
		_, fam, values := p.section(part, snaps)
		starts := snaps[part.snapshot].Starts
		if len(starts) > 0 {
			starts = starts[fam.First : fam.First+fam.Points]
		}
		if !fits && part.judged {
			s, values = s.fit(p.format, fam, values)
		}
		switch p.format.Kind {
		case Protobuf:
			dst = v.appendProtobuf(dst, s, values, starts)
		case JSON:
			dst = v.appendJSON(dst, s, values, len(dst) == start+1)
		default:
			if created && len(starts) > 0 && s.hasCreated(p.format, kinds) {
				dst = v.appendTextCreated(dst, s, values, starts)
			} else {
				dst = v.appendText(dst, s, kinds, values)
			}
		}
		if ends != nil {
			*ends = append(*ends, len(dst)-start)
		}
	}
	switch p.format.Kind {
	case JSON:
		dst = append(dst, "]\n"...)
	case OpenMetrics100:
		dst = append(dst, "# EOF\n"...)
	}
	if sel.All() {
		p.size.Store(int64(len(dst) - start))
	}
	return dst
}

// expect is about how long the first output of a plan is.
func (p *plan) expect(views []*rendered) (size int) {
	const value = 8 // bytes of most, with a line's end
	for i := range p.parts {
		s := &views[p.parts[i].snapshot].sections[p.parts[i].section]
		size += len(s.blob) + value*len(s.ends)
		if s.stems != nil {
			size += s.stems.bytes + value*len(s.stems.metrics)
		}
	}
	return size
}

// plan returns the plan for the layouts of the snapshots, the one of the last call if it
// still fits.
func (e *Encoder) plan(f Format, snaps []*view.Snapshot) *plan {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.plans) > 0 && !e.plans[0].of(snaps) {
		// Views of layouts that are served again are kept. The others help to make their
		// successors, and are garbage at the latest when the layouts change again.
		e.plans, e.stale = nil, nil
		e.views = slices.DeleteFunc(e.views, func(v *rendered) bool {
			again := slices.ContainsFunc(snaps, func(s *view.Snapshot) bool { return s.Layout == v.layout })
			if !again {
				e.stale = append(e.stale, v)
			}
			return !again
		})
	}
	for i, p := range e.plans {
		if p.format == f {
			copy(e.plans[1:i+1], e.plans[:i])
			e.plans[0] = p
			return p
		}
	}
	// There are as many plans as canonical formats at most, and they are small.
	p := newPlan(f, snaps)
	e.plans = slices.Insert(e.plans, 0, p)
	return p
}

// render returns what is rendered of a plan.
func (e *Encoder) render(p *plan, snaps []*view.Snapshot) *output {
	e.mu.Lock()
	defer e.mu.Unlock()
	if p.out != nil {
		return p.out
	}
	p.out = &output{}
	for i, s := range snaps {
		v := e.renderedLocked(s.Layout, p.format, p.headings[i])
		p.out.views = append(p.out.views, v)
		for _, family := range slices.Sorted(maps.Keys(v.omissions)) {
			p.out.omissions = append(p.out.omissions, v.omissions[family]...)
		}
	}
	kept := 0
	for _, other := range e.plans {
		if other.out == nil {
			continue
		}
		if kept++; kept > maxRendered {
			other.out = nil
			e.views = slices.DeleteFunc(e.views, func(v *rendered) bool { return v.format == other.format })
		}
	}
	return p.out
}

// renderedLocked returns the view of a layout in a format under headings.
func (e *Encoder) renderedLocked(layout *view.Layout, f Format, headings []heading) *rendered {
	var earlier *rendered
	for i, v := range e.views {
		if v.layout == layout && v.format == f {
			if v.has(headings) {
				return v
			}
			// Names were given away differently, to families of another layout.
			earlier = v
			e.views = slices.Delete(e.views, i, i+1)
			break
		}
	}
	// A daemon serves few layouts at once, of which mostly one has changed.
	if i := slices.IndexFunc(e.stale, func(v *rendered) bool { return v.format == f }); i >= 0 && earlier == nil {
		earlier = e.stale[i]
		e.stale = slices.Delete(e.stale, i, i+1)
	}
	v := newRendered(layout, f, headings, earlier)
	e.views = append(e.views, v)
	return v
}

// has reports whether the view has sections under these headings and no others.
func (v *rendered) has(headings []heading) bool {
	if len(v.sections) != len(headings) {
		return false
	}
	for i := range headings {
		if v.sections[i].heading != headings[i] {
			return false
		}
	}
	return true
}

// A telling is what is to be reported under a key, if it has changed.
type telling struct {
	key reportKey
	reportState
}

// report tells OnReport what has changed.
func (e *Encoder) report(accept Accept, chosen Format, p *plan, out *output, fits bool, snaps []*view.Snapshot) {
	var room [maxAccepted + 1]telling
	told := e.tellings(room[:0], accept, chosen, p, out, fits, snaps)
	if len(e.changed(told, false)) == 0 {
		return
	}
	e.reporting.Lock()
	defer e.reporting.Unlock()
	for _, r := range e.changed(told, true) {
		e.OnReport(r)
	}
}

// tellings appends what is known of the chosen format, then of those that were weighed with
// it: what was avoided, and what this one was not avoided for.
func (e *Encoder) tellings(told []telling, accept Accept, chosen Format, p *plan, out *output, fits bool,
	snaps []*view.Snapshot,
) []telling {
	instead := chosen.canonical()
	now := p.state(fits, snaps)
	if len(out.omissions) > 0 {
		now.omissions = slices.Concat(now.omissions, out.omissions)
	}
	told = append(told, telling{reportKey{instead, instead}, now})
	avoided := true
	for _, f := range accept.formats[:accept.n] {
		switch f = f.canonical(); {
		case f == instead:
			avoided = false
		case avoided:
			other, _, all := e.weigh(f, snaps)
			told = append(told, telling{reportKey{f, instead}, other.state(all, snaps)})
		default:
			told = append(told, telling{reportKey{instead, f}, reportState{}})
		}
	}
	return told
}

// changed returns the reports of what differs from what was reported last, and with mark
// counts it as reported.
func (e *Encoder) changed(told []telling, mark bool) (reports []Report) {
	e.mu.Lock()
	defer e.mu.Unlock()
	note := func(key reportKey, now reportState) {
		if now.equal(e.reported[key]) {
			return
		}
		if mark {
			if e.reported == nil {
				e.reported = make(map[reportKey]reportState)
			}
			e.reported[key] = now
		}
		reports = append(reports, Report{key.format, key.instead, slices.Clone(now.omissions), slices.Clone(now.untyped)})
	}
	for _, t := range told {
		note(t.key, t.reportState)
	}
	if chosen := told[0]; chosen.equal(reportState{}) {
		// It carries everything, so that nobody avoids it.
		for key := range e.reported {
			if key.format == chosen.key.format && key.instead != chosen.key.format {
				note(key, reportState{})
			}
		}
	}
	return reports
}

// state is what a plan does not carry; fits says that all values are fine.
func (p *plan) state(fits bool, snaps []*view.Snapshot) reportState {
	s := reportState{p.omissions, p.untyped}
	if !fits {
		omissions, untyped := p.verdicts(snaps)
		s = reportState{slices.Concat(s.omissions, omissions), slices.Concat(s.untyped, untyped)}
	}
	return s
}

// of reports whether the plan is for the layouts of these snapshots.
func (p *plan) of(snaps []*view.Snapshot) bool {
	if len(p.layouts) != len(snaps) {
		return false
	}
	for i, s := range snaps {
		if p.layouts[i] != s.Layout {
			return false
		}
	}
	return true
}
