package view

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"aggregatord/internal/metric"
)

// A Part is one of several snapshots that are served as one, and what tells its series from
// those of the others.
type Part struct {
	Snapshot *Snapshot
	// Name is for Conflict.
	Name string
	// Target are labels for each series, as Prometheus has them for a target: a series' own
	// label of the name becomes exported_NAME. External are labels for the series that have
	// none of the name, neither their own nor from Target. Both are sorted by name. Whoever
	// passes a Part leaves them unchanged afterwards.
	Target, External []metric.Label
	// Sole says that nobody else may have the sample names of this part: the samples of other
	// parts are left out, whatever their type.
	Sole bool
}

// A Conflict says that a family is left out because another one has one of its sample names.
type Conflict struct {
	// Sample is the name that both want.
	Sample string
	// Winner is served, Loser left out.
	Winner, Loser Claim
	// Series is the number of series left out.
	Series int
}

// A Claim is a family of one part.
type Claim struct {
	// Part is the part's name.
	Part   string
	Family string
	Type   metric.Type
	Mode   metric.Mode
	// Sole is that of the part.
	Sole bool
}

// String describes what the family is, as in "gauge max".
func (c Claim) String() string { return strings.TrimSpace(c.Type.String() + " " + c.Mode.String()) }

// A Joiner makes one snapshot of several. It belongs to one goroutine at a time; what it
// returns may be read by any. The zero value is ready for use.
//
// It keeps what it has found out for as long as the parts keep their layouts and labels: then
// a join copies values and does nothing else. When a layout changes, the families that are
// still the same keep their part of the earlier joined layout.
//
// Families of one name and type become one. Its help, unit, mode and rule are those of the
// first part that has any, in the order of the parts. When two families of different type want
// the same sample name, that of the greatest Newest is served, then that of the earlier part.
// Of several series with the same name and labels that of the earliest part is served.
type Joiner struct {
	parts    []joinedPart
	families map[familyID]*joinedFamily
	order    []*joinedFamily // those of layout
	layout   *Layout
	members  [][]float64 // reused by Join
	// rivals are the families that share a sample name with another one. lost are those that
	// are left out, and conflicts tells of them.
	rivals    []*rival
	lost      map[partFamily]bool
	conflicts []Conflict
	equal     int
	// sole says that the one part is served as it is.
	sole  bool
	joins Recycler
}

// joinedPart is what the present layout was made of.
type joinedPart struct {
	layout           *Layout
	name             string
	target, external []metric.Label
	sole             bool
	// version is another one whenever what is above is, but for the layout.
	version *byte
	// extras are the lists of labels that were made for the part, by which of Target and
	// External they leave out. Most parts have one.
	extras []extra
}

type extra struct {
	without uint64 // a bit for each label of External that is left out
	labels  []metric.Label
}

type familyID struct {
	name string
	typ  metric.Type
}

// partFamily is a family of a part, by their indexes.
type partFamily struct{ part, family int }

// joinedFamily is a family of the joined layout and what it was made of.
type joinedFamily struct {
	Family
	from []source
	// runs say where its values are.
	runs  []run
	equal int
}

// source is one part's family in a joined one.
type source struct {
	part    int
	version *byte   // of the part
	family  *Family // in the part's layout
}

// run is values that follow one another in a source of a joined family and in the family; from
// counts from the first value of the source.
type run struct{ source, from, n uint32 }

// owner is whom a sample name belongs to: all families of one name and type, or those of one
// part if it is sole.
type owner struct {
	familyID
	sole int // the part, counted from 1
}

// rival is a family of a part that shares a sample name with another owner's.
type rival struct {
	partFamily
	owner
	names  []string
	newest int64
}

// Join returns the snapshot of all parts, which is the caller's to Release, and releases those
// of the parts: a caller who goes on using one Retains it before.
func (j *Joiner) Join(parts []Part) *Snapshot {
	if !j.current(parts) || j.decide(parts) {
		j.rebuild(parts)
	}
	if j.sole {
		return parts[0].Snapshot
	}
	out := j.joins.Take(j.layout)
	values, at := out.Values, 0
	for _, f := range j.order {
		members := j.members[:0]
		for _, s := range f.from {
			members = append(members, parts[s.part].Snapshot.Values[s.family.First:][:s.family.Points])
		}
		j.members = members
		for _, r := range f.runs {
			from := members[r.source][r.from:][:r.n]
			if len(from) == 1 {
				values[at] = from[0]
			} else {
				copy(values[at:], from)
			}
			at += len(from)
		}
	}
	clear(j.members)
	j.joinStarts(out, parts)
	for i := range parts {
		parts[i].Snapshot.Release()
	}
	return out
}

// joinStarts joins the starts of the parts, if any has some.
func (j *Joiner) joinStarts(out *Snapshot, parts []Part) {
	if !slices.ContainsFunc(parts, func(p Part) bool { return len(p.Snapshot.Starts) > 0 }) {
		return
	}
	out.Starts = slices.Grow(out.Starts[:0], j.layout.Points)[:j.layout.Points]
	clear(out.Starts)
	at := 0
	for _, f := range j.order {
		for _, r := range f.runs {
			s := f.from[r.source]
			if starts := parts[s.part].Snapshot.Starts; len(starts) > 0 {
				copy(out.Starts[at:], starts[s.family.First+int(r.from):][:r.n])
			}
			at += int(r.n)
		}
	}
}

// Conflicts lists what the last Join left out, by sample name. It never changes.
func (j *Joiner) Conflicts() []Conflict { return j.conflicts }

// Equal is the number of samples that the last Join left out because an earlier part has the
// same series.
func (j *Joiner) Equal() int { return j.equal }

// current reports whether the parts are those of the present layout.
func (j *Joiner) current(parts []Part) bool {
	if j.layout == nil || len(parts) != len(j.parts) {
		return false
	}
	for i := range parts {
		p, was := &parts[i], &j.parts[i]
		if p.Snapshot.Layout != was.layout || !p.same(was) {
			return false
		}
	}
	return true
}

// same reports whether the part is called and labelled as another one.
func (p *Part) same(was *joinedPart) bool {
	return p.Name == was.name && p.Sole == was.sole && slices.Equal(p.Target, was.target) && slices.Equal(p.External, was.external)
}

// rebuild makes the layout.
func (j *Joiner) rebuild(parts []Part) {
	before := make(map[string]*joinedPart, len(j.parts))
	for i := range j.parts {
		before[j.parts[i].name] = &j.parts[i]
	}
	j.parts = make([]joinedPart, len(parts))
	for i := range parts {
		p := &parts[i]
		if was := before[p.Name]; was != nil && p.same(was) {
			// Families that are the same find their labels unchanged.
			j.parts[i] = *was
			j.parts[i].layout = p.Snapshot.Layout
			continue
		}
		j.parts[i] = joinedPart{
			layout: p.Snapshot.Layout, name: p.Name, target: p.Target, external: p.External, sole: p.Sole, version: new(byte),
		}
	}
	j.findRivals(parts)
	j.decide(parts)
	j.sole = len(parts) == 1 && len(parts[0].Target)+len(parts[0].External)+len(j.lost) == 0
	if j.sole {
		j.layout, j.order, j.families, j.equal = parts[0].Snapshot.Layout, nil, nil, 0
		return
	}
	members := map[familyID][]source{}
	var order []familyID
	for i := range parts {
		for f := range parts[i].Snapshot.Layout.Families {
			fam := &parts[i].Snapshot.Layout.Families[f]
			if j.lost[partFamily{i, f}] || len(fam.Metrics) == 0 {
				continue
			}
			id := familyID{fam.Name, fam.Type}
			if members[id] == nil {
				order = append(order, id)
			}
			members[id] = append(members[id], source{i, j.parts[i].version, fam})
		}
	}
	slices.SortFunc(order, func(a, b familyID) int { return cmp.Or(strings.Compare(a.name, b.name), cmp.Compare(a.typ, b.typ)) })
	families := make(map[familyID]*joinedFamily, len(order))
	layout := &Layout{Families: make([]Family, 0, len(order))}
	j.order, j.equal = make([]*joinedFamily, 0, len(order)), 0
	for _, id := range order {
		fam := j.families[id]
		if fam == nil || !fam.madeOf(members[id]) {
			fam = j.build(members[id])
		}
		fam.from = members[id] // which may have moved
		families[id] = fam
		fam.First = layout.Points
		layout.Points += fam.Points
		layout.Families = append(layout.Families, fam.Family)
		j.order = append(j.order, fam)
		j.equal += fam.equal
	}
	j.layout, j.families = layout, families
}

// madeOf reports whether the family would be the same if it were made of these.
func (f *joinedFamily) madeOf(from []source) bool {
	return slices.EqualFunc(f.from, from, func(a, b source) bool {
		x, y := a.family, b.family
		return a.version == b.version && len(x.Metrics) == len(y.Metrics) && &x.Metrics[0] == &y.Metrics[0] &&
			x.Help == y.Help && x.Mode == y.Mode && x.Unit == y.Unit && x.Rule == y.Rule && x.ModeByRule == y.ModeByRule &&
			x.Sparse == y.Sparse
	})
}

// appendRun adds a run, or makes the last one longer.
func appendRun(runs []run, r run) []run {
	if n := len(runs); n > 0 && runs[n-1].source == r.source && runs[n-1].from+runs[n-1].n == r.from {
		runs[n-1].n += r.n
		return runs
	}
	return append(runs, r)
}

// placed is a metric of a joined family: its place in the family's from and in the values there.
type placed struct {
	Metric
	member, value uint32
}

// build makes a family of those of several parts.
func (j *Joiner) build(from []source) *joinedFamily {
	first := from[0].family
	out := &joinedFamily{Family: *first, from: from}
	n := 0
	for i := range from {
		f := from[i].family
		n += len(f.Metrics)
		out.Help = cmp.Or(out.Help, f.Help)
		out.Unit = cmp.Or(out.Unit, f.Unit)
		out.Rule = cmp.Or(out.Rule, f.Rule)
		out.ModeByRule = out.ModeByRule || f.ModeByRule && f.Mode == first.Mode
		out.Sparse = out.Sparse || f.Sparse
	}
	all := make([]placed, 0, n)
	for i := range from {
		part, value := &j.parts[from[i].part], uint32(0)
		for k := range from[i].family.Metrics {
			m := from[i].family.Metrics[k]
			all = append(all, placed{part.label(m), uint32(i), value})
			value += uint32(len(m.Points))
		}
	}
	slices.SortFunc(all, func(a, b placed) int {
		return cmp.Or(CompareMetrics(&a.Metric, &b.Metric), cmp.Compare(a.member, b.member))
	})
	out.Metrics, out.Points = make([]Metric, 0, n), 0
	for i := range all {
		m := &all[i]
		if i > 0 && CompareMetrics(&all[i-1].Metric, &m.Metric) == 0 {
			out.equal += len(m.Points)
			m.Metric = all[i-1].Metric
			continue
		}
		out.Metrics = append(out.Metrics, m.Metric)
		out.Points += len(m.Points)
		out.runs = appendRun(out.runs, run{m.member, m.value, uint32(len(m.Points))})
	}
	out.runs = slices.Clip(out.runs)
	return out
}

// label returns a metric with the labels of its part.
func (p *joinedPart) label(m Metric) Metric {
	if len(p.target)+len(p.external) == 0 {
		return m
	}
	own := m.AllLabels() // without Extra, those of the part's layout themselves
	renamed := false
	for _, l := range p.target {
		i := indexOf(own, l.Name)
		if i < 0 {
			continue
		}
		if !renamed {
			own, renamed = slices.Clone(own), true
		}
		name := "exported_" + l.Name
		for indexOf(own, name) >= 0 || indexOf(p.target, name) >= 0 {
			name = "exported_" + name
		}
		own[i].Name = name
	}
	if renamed {
		metric.SortLabels(own)
	}
	without := uint64(0)
	for i, l := range p.external {
		if indexOf(own, l.Name) >= 0 || indexOf(p.target, l.Name) >= 0 {
			without |= 1 << min(i, 63)
		}
	}
	return Metric{Labels: own, Extra: p.extra(without, own), Points: m.Points}
}

// extra returns Target and External, less those of External that a metric has already.
func (p *joinedPart) extra(without uint64, own []metric.Label) []metric.Label {
	for i := range p.extras {
		if e := &p.extras[i]; e.without == without && without>>63 == 0 {
			return e.labels
		}
	}
	labels := slices.Clone(p.target)
	for _, l := range p.external {
		if indexOf(own, l.Name) < 0 && indexOf(p.target, l.Name) < 0 {
			labels = append(labels, l)
		}
	}
	metric.SortLabels(labels)
	labels = slices.Clip(labels)
	p.extras = append(p.extras, extra{without, labels})
	return labels
}

func indexOf(labels []metric.Label, name string) int {
	for i := range labels {
		if labels[i].Name == name {
			return i
		}
	}
	return -1
}

// CompareMetrics orders metrics by all their labels, as metric.CompareLabels does.
func CompareMetrics(a, b *Metric) int {
	if len(a.Extra)+len(b.Extra) == 0 {
		return metric.CompareLabels(a.Labels, b.Labels)
	}
	x, y := cursor{a.Labels, a.Extra}, cursor{b.Labels, b.Extra}
	for {
		l, more := x.next()
		m, also := y.next()
		switch {
		case !more || !also:
			return cmp.Compare(len(x.own)+len(x.extra)+btoi(more), len(y.own)+len(y.extra)+btoi(also))
		case l.Name != m.Name:
			return strings.Compare(l.Name, m.Name)
		case l.Value != m.Value:
			return strings.Compare(l.Value, m.Value)
		}
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// cursor goes through Labels and Extra in the order of names.
type cursor struct{ own, extra []metric.Label }

func (c *cursor) next() (l *metric.Label, more bool) {
	list := &c.own
	switch {
	case len(c.own)+len(c.extra) == 0:
		return nil, false
	case len(c.own) == 0 || len(c.extra) > 0 && c.extra[0].Name < c.own[0].Name:
		list = &c.extra
	}
	l = &(*list)[0]
	*list = (*list)[1:]
	return l, true
}

// Claims calls yield for each name that a family takes for itself in a text format, where a
// name may have one type: those of its samples, and that of its TYPE line.
func (f *Family) Claims(yield func(name string)) {
	switch f.Type {
	case metric.Counter:
		kinds := f.kinds()
		if kinds&(1<<Total) != 0 {
			yield(f.Name + Total.Suffix())
		}
		if kinds&(1<<Value) != 0 {
			yield(f.Name)
		}
	case metric.Histogram:
		yield(f.Name)
		yield(f.Name + Bucket.Suffix())
		yield(f.Name + Sum.Suffix())
		yield(f.Name + Count.Suffix())
	case metric.Summary:
		yield(f.Name)
		yield(f.Name + Sum.Suffix())
		yield(f.Name + Count.Suffix())
	default:
		yield(f.Name)
	}
}

// kinds has a bit for each kind of point in a counter.
func (f *Family) kinds() (kinds uint8) {
	if f.Type != metric.Counter {
		return 0
	}
	var last *Point
	for i := range f.Metrics {
		points := f.Metrics[i].Points
		if len(points) > 0 && &points[0] != last {
			last = &points[0]
			for _, p := range points {
				kinds |= 1 << p.Kind
			}
		}
	}
	return kinds
}

// findRivals finds the families that share a sample name with another owner's.
func (j *Joiner) findRivals(parts []Part) {
	j.rivals, j.lost, j.conflicts = nil, nil, nil
	each := func(f func(at partFamily, fam *Family, o owner)) {
		for i := range parts {
			sole := 0
			if parts[i].Sole {
				sole = i + 1
			}
			for k := range parts[i].Snapshot.Layout.Families {
				if fam := &parts[i].Snapshot.Layout.Families[k]; len(fam.Metrics) > 0 {
					f(partFamily{i, k}, fam, owner{familyID{fam.Name, fam.Type}, sole})
				}
			}
		}
	}
	// What one owner claims is nearly always the same in all parts, so the names are made once.
	type claimant struct {
		owner
		kinds uint8
	}
	known := map[claimant]bool{}
	owners := map[string]owner{}
	contested := map[string]bool{}
	each(func(_ partFamily, fam *Family, o owner) {
		c := claimant{o, fam.kinds()}
		if known[c] {
			return
		}
		known[c] = true
		fam.Claims(func(name string) {
			if has, taken := owners[name]; !taken {
				owners[name] = o
			} else if has != o {
				contested[name] = true
			}
		})
	})
	if len(contested) == 0 {
		return
	}
	each(func(at partFamily, fam *Family, o owner) {
		r := &rival{partFamily: at, owner: o}
		fam.Claims(func(name string) {
			if contested[name] {
				r.names = append(r.names, name)
			}
		})
		if len(r.names) > 0 {
			j.rivals = append(j.rivals, r)
		}
	})
}

// decide finds out which of the rivals are served, and reports whether that has changed.
func (j *Joiner) decide(parts []Part) (changed bool) {
	if len(j.rivals) == 0 {
		return false
	}
	for _, r := range j.rivals {
		r.newest = math.MinInt64
		if newest := parts[r.part].Snapshot.Newest; len(newest) > 0 {
			r.newest = newest[r.family]
		}
		if parts[r.part].Sole {
			r.newest = math.MaxInt64
		}
	}
	slices.SortFunc(j.rivals, func(a, b *rival) int {
		return cmp.Or(cmp.Compare(b.newest, a.newest), cmp.Compare(a.part, b.part), cmp.Compare(a.family, b.family))
	})
	lost := map[partFamily]bool{}
	taken := map[string]*rival{}
	var conflicts []Conflict
	for _, r := range j.rivals {
		i := slices.IndexFunc(r.names, func(name string) bool { return taken[name] != nil && taken[name].owner != r.owner })
		if i < 0 {
			for _, name := range r.names {
				taken[name] = r
			}
			continue
		}
		lost[r.partFamily] = true
		conflicts = append(conflicts, Conflict{
			Sample: r.names[i], Winner: claimOf(parts, taken[r.names[i]]), Loser: claimOf(parts, r),
			Series: parts[r.part].Snapshot.Layout.Families[r.family].Points,
		})
	}
	slices.SortStableFunc(conflicts, func(a, b Conflict) int {
		return cmp.Or(strings.Compare(a.Sample, b.Sample), strings.Compare(a.Loser.Part, b.Loser.Part))
	})
	if len(lost) == len(j.lost) && slices.Equal(conflicts, j.conflicts) {
		return false
	}
	j.lost, j.conflicts = lost, conflicts
	return true
}

func claimOf(parts []Part, r *rival) Claim {
	f := &parts[r.part].Snapshot.Layout.Families[r.family]
	return Claim{parts[r.part].Name, f.Name, f.Type, f.Mode, parts[r.part].Sole}
}

// Origin says which part a value of the last joined snapshot is of, and which value of that
// part's snapshot it is.
func (j *Joiner) Origin(value int) (part, at int) {
	if j.sole {
		return 0, value
	}
	i, found := slices.BinarySearchFunc(j.order, value, func(f *joinedFamily, value int) int { return cmp.Compare(f.First, value) })
	if !found {
		i--
	}
	f := j.order[i]
	rest := uint32(value - f.First)
	for _, r := range f.runs {
		if rest < r.n {
			s := f.from[r.source]
			return s.part, s.family.First + int(r.from+rest)
		}
		rest -= r.n
	}
	panic("BUG: value of no part")
}
