package exposition

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"aggregatord/internal/view"
)

// Reason says why something was left out of an exposition. It is short and constant, for
// use as a metric label.
type Reason string

// The reasons.
const (
	// NameCollision: a name of the family is already taken by another (With).
	NameCollision Reason = "name_collision"
	// BadName: the family has no name.
	BadName Reason = "bad_name"
	// LabelCollision: metrics had a label name that is illegal or reserved, or after
	// escaping two labels of one name, or the labels of an earlier metric.
	LabelCollision Reason = "label_collision"
	// BadPoint: points do not belong to the type of their family, or their bound is NaN.
	BadPoint Reason = "bad_point"
	// TooLarge: the labels of the family need more than 4 GiB.
	TooLarge Reason = "too_large"
)

// An Omission is what was left out of one family, and why.
type Omission struct {
	Family string // as the snapshot names it
	Reason Reason
	// With names the family that was preferred, in a NameCollision.
	With string
	// Metrics is the number of metrics left out, or Points that of points. The whole
	// family was left out if both are 0.
	Metrics, Points int
}

// String says it in a few words, for a log line.
func (o Omission) String() string {
	switch {
	case o.Metrics > 0:
		return fmt.Sprintf("%d metrics of %q: %s", o.Metrics, o.Family, o.Reason)
	case o.Points > 0:
		return fmt.Sprintf("%d points of %q: %s", o.Points, o.Family, o.Reason)
	case o.With != "":
		return fmt.Sprintf("%q: %s with %q", o.Family, o.Reason, o.With)
	}
	return fmt.Sprintf("%q: %s", o.Family, o.Reason)
}

// A Report lists what a format has to leave out of the layouts served last, in the order
// of the output.
type Report struct {
	Format    Format
	Omissions []Omission
}

// WholeFamilies counts the families that were left out whole.
func (r Report) WholeFamilies() int {
	n := 0
	for _, o := range r.Omissions {
		if o.Metrics == 0 && o.Points == 0 {
			n++
		}
	}
	return n
}

// An Encoder turns snapshots into bytes. The zero value is ready for use, by any number
// of goroutines. It keeps what it rendered of the layouts of the last call, for each
// format it was asked for, and nothing of earlier layouts.
type Encoder struct {
	// OnReport, if set before first use, is called when what must be left out of a format
	// has changed, with an empty list when nothing is left out any more. It is called by
	// the goroutine that encodes, and never while another call is under way.
	OnReport func(Report)

	// mu guards what follows. It is held while a new layout is rendered, so that scrapes
	// that arrive together render it once.
	mu    sync.Mutex
	plans []*plan     // all for the same layouts, newest first
	views []*rendered // of those layouts, newest first
	// stale are the views of the layouts before those, until they are rendered anew.
	stale []*rendered
	// reported is what OnReport was told last.
	reported map[Format][]Omission

	// reporting makes calls of OnReport exclusive.
	reporting sync.Mutex
}

// maxPlans bounds the formats kept for one list of layouts. A pool has one or two kinds
// of scrapers; someone who asks for every format and scheme in turn must not make the
// daemon keep them all.
const maxPlans = 4

// A plan is the output of a list of layouts in one format: which sections, in which
// order. It never changes once built.
type plan struct {
	format    Format // canonical
	layouts   []*view.Layout
	views     []*rendered // one for each layout
	parts     []part
	omissions []Omission
	// size is the length in bytes of the last whole output, a hint for the next.
	size atomic.Int64
}

// A part is one section of one of the snapshots.
type part struct {
	snapshot int
	section  *section
}

// Append appends the exposition of the snapshots in a format. Families are sorted by
// name, over all snapshots; the same snapshots give the same bytes. Where families claim
// the same name, those of the last snapshot win (a daemon's own metrics stay visible
// whatever the workers call theirs), then earlier families.
//
// It does not allocate if dst has room and the layouts are those of the last call.
func (e *Encoder) Append(dst []byte, f Format, sel Filter, snaps ...*view.Snapshot) []byte {
	return e.append(dst, nil, f, sel, snaps)
}

// AppendSections is Append of everything that also appends to ends where each section of
// the output ends, in bytes from where the output begins; what is behind the last of them
// belongs to no section. As long as the layouts are the same, there are as many sections,
// with the same families in the same order.
func (e *Encoder) AppendSections(dst []byte, ends *[]int, f Format, snaps ...*view.Snapshot) []byte {
	return e.append(dst, ends, f, Filter{}, snaps)
}

func (e *Encoder) append(dst []byte, ends *[]int, f Format, sel Filter, snaps []*view.Snapshot) []byte {
	p := e.plan(f.canonical(), snaps)
	if hint := int(p.size.Load()); cap(dst)-len(dst) < hint && sel.All() {
		dst = slices.Grow(dst, hint+hint/16)
	}
	start := len(dst)
	if p.format.Kind == JSON {
		dst = append(dst, '[')
	}
	for _, part := range p.parts {
		v, s := p.views[part.snapshot], part.section
		kinds := s.kinds
		if !sel.All() {
			if kinds = sel.selects(v, s); kinds == 0 {
				continue
			}
		}
		fam := &v.layout.Families[s.family]
		values := snaps[part.snapshot].Values[fam.First : fam.First+fam.Points]
		switch p.format.Kind {
		case Protobuf:
			dst = v.appendProtobuf(dst, s, values)
		case JSON:
			dst = v.appendJSON(dst, s, values, len(dst) == start+1)
		default:
			dst = v.appendText(dst, s, kinds, values)
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

// plan returns the plan for the layouts of the snapshots, the one of the last call if it
// still fits.
func (e *Encoder) plan(f Format, snaps []*view.Snapshot) *plan {
	p, fresh := e.lookup(f, snaps)
	if fresh && e.OnReport != nil {
		e.report()
	}
	return p
}

func (e *Encoder) lookup(f Format, snaps []*view.Snapshot) (p *plan, fresh bool) {
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
			return p, false
		}
	}
	p = &plan{format: f}
	for _, s := range snaps {
		p.layouts = append(p.layouts, s.Layout)
		p.views = append(p.views, e.renderedLocked(s.Layout, f))
	}
	p.arrange()
	e.plans = slices.Insert(e.plans, 0, p)
	if len(e.plans) > maxPlans {
		dropped := e.plans[maxPlans].format
		e.plans = slices.Delete(e.plans, maxPlans, maxPlans+1)
		e.views = slices.DeleteFunc(e.views, func(v *rendered) bool { return v.format == dropped })
	}
	return p, true
}

// renderedLocked returns the view of a layout in a format.
func (e *Encoder) renderedLocked(layout *view.Layout, f Format) *rendered {
	for _, v := range e.views {
		if v.layout == layout && v.format == f {
			return v
		}
	}
	var earlier *rendered
	// A daemon serves few layouts at once, of which mostly one has changed.
	if i := slices.IndexFunc(e.stale, func(v *rendered) bool { return v.format == f }); i >= 0 {
		earlier = e.stale[i]
		e.stale = slices.Delete(e.stale, i, i+1)
	}
	v := newRendered(layout, f, earlier)
	e.views = append(e.views, v)
	return v
}

// report tells OnReport what has changed.
func (e *Encoder) report() {
	e.reporting.Lock()
	defer e.reporting.Unlock()
	for _, r := range e.changed() {
		e.OnReport(r)
	}
}

// changed returns the reports that differ from what was reported last, and counts them
// as reported.
func (e *Encoder) changed() []Report {
	e.mu.Lock()
	defer e.mu.Unlock()
	var reports []Report
	for _, p := range e.plans {
		if slices.Equal(e.reported[p.format], p.omissions) {
			continue
		}
		if e.reported == nil {
			e.reported = make(map[Format][]Omission)
		}
		e.reported[p.format] = p.omissions
		reports = append(reports, Report{Format: p.format, Omissions: slices.Clone(p.omissions)})
	}
	return reports
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

// arrange puts the sections of all views in order and leaves out the families whose
// names are taken.
func (p *plan) arrange() {
	type familyOf struct {
		snapshot, family int
		name             string
	}
	var order []familyOf
	for i, v := range p.views {
		for j := range v.layout.Families {
			order = append(order, familyOf{i, j, v.layout.Families[j].Name})
		}
	}
	slices.SortStableFunc(order, func(a, b familyOf) int { return strings.Compare(a.name, b.name) })

	// Names are given away to the last snapshot first, then in the order of the output.
	claimed := make(map[string]string) // by exposed name, the family that has it
	lost := make(map[familyOf]string)  // by family, the one it lost to
	claim := func(f familyOf) {
		sections := p.views[f.snapshot].sectionsOf(f.family)
		var names []string
		for i := range sections {
			names = append(names, sections[i].claims(p.format)...)
		}
		for _, name := range names {
			if winner, taken := claimed[name]; taken {
				lost[f] = winner
				return
			}
		}
		for _, name := range names {
			claimed[name] = f.name
		}
	}
	last := len(p.views) - 1
	for _, f := range order {
		if f.snapshot == last {
			claim(f)
		}
	}
	for _, f := range order {
		if f.snapshot != last {
			claim(f)
		}
	}
	for _, f := range order {
		if winner, ok := lost[f]; ok {
			p.omissions = append(p.omissions, Omission{Family: f.name, Reason: NameCollision, With: winner})
			continue
		}
		v := p.views[f.snapshot]
		p.omissions = append(p.omissions, v.omissions[f.family]...)
		sections := v.sectionsOf(f.family)
		for i := range sections {
			p.parts = append(p.parts, part{f.snapshot, &sections[i]})
		}
	}
}
