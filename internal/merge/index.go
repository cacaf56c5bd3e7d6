package merge

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"aggregatord/internal/deltas"
	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// Options of an Index. The zero value is ready for use.
type Options struct {
	// MaxSeries bounds the series of one pool; 0 means DefaultMaxSeries. An entry that
	// would make one more is refused with ErrSeriesLimit; those known go on.
	MaxSeries int
	// MaxFamilySeries bounds the series of one family in one pool; 0 means
	// DefaultMaxFamilySeries. Beyond it there is ErrFamilyLimit.
	MaxFamilySeries int
	// MaxFamilies bounds the families of one pool, which cost more than series do; 0 means
	// DefaultMaxFamilies. Beyond it there is ErrFamiliesLimit.
	MaxFamilies int
	// MaxLabels bounds the labels of one series; 0 means DefaultMaxLabels.
	MaxLabels int
	// MaxLabelName and MaxLabelValue bound their lengths in bytes; 0: as long as a key is.
	MaxLabelName, MaxLabelValue int
	// Rules is asked once for each family of a pool what is in force for it; family is the
	// OpenMetrics name. Nil, or a Ruling that is nil: what the sources say.
	Rules func(pool, family string, typ metric.Type) *Ruling
}

// Defaults of Options.
const (
	DefaultMaxSeries       = 1_000_000
	DefaultMaxFamilySeries = 250_000
	DefaultMaxFamilies     = 20_000
	DefaultMaxLabels       = 64
)

// spellings is how many raw keys there may be for each series that may be: another help text
// or dialect makes another key of the same series, and a deployment may change all help texts.
const spellings = 4

// SourceSpec says what the entries of a source are. It is fixed for the source's life.
type SourceSpec struct {
	// Pool is the value of the label pool that every series gets; empty: no such label.
	Pool string
	// Name is unique among the sources of a pool; it decides the order of addition.
	Name string
	Type metric.Type
	// Mode is NoMode unless Type is Gauge.
	Mode metric.Mode
	// ID is the worker's, the label pid in modes All and LiveAll.
	ID string
	// Created decides who is right when files disagree on a family: the newest. Unix
	// nanoseconds.
	Created int64
	// ParseKey reads the raw key of an entry; it must not keep the bytes.
	ParseKey func(raw []byte) (metric.Key, error)
	// Fixed exempts the source from Options.Rules.
	Fixed bool
}

// A Source is what one file, or what the files of one kind that are no more, contribute.
type Source struct {
	spec  SourceSpec
	space *keyspace
	alive bool
	// folded sources hold what others left, combined already; they come first.
	folded bool

	slots  deltas.List
	cells  []uint32
	values []float64
	// second is the other half of each value where there is one: the timestamp in the most
	// recent modes, and in a folded source the rounding error carried beside a sum. Nil in
	// all others.
	second []float64
	// parts are the entries under rulings that the lists above cannot be combined by.
	parts []part
}

// Spec returns what the source was added with.
func (s *Source) Spec() SourceSpec { return s.spec }

// Slots returns, entry by entry, where the values are in the source's file, in units of
// 8 bytes. The caller must not change it, nor use it during the next Learn.
func (s *Source) Slots() *deltas.List { return &s.slots }

// Values returns the values in the order of Slots, for the caller to fill before a
// Snapshot. They are kept from one snapshot to the next. Valid until the next Learn.
func (s *Source) Values() []float64 { return s.values }

// Stamps returns the timestamps (Unix seconds, 0 = never set) in the order of Slots, or
// nil where the mode does not need them. Like Values it is the caller's to fill. For a
// source made by AddFolded it is the second halves that Combine made.
func (s *Source) Stamps() []float64 { return s.second }

// Cells returns, entry by entry, which series of the index it is of: equal numbers are one
// series. Entries that a ruling combines apart from the others have 0. Valid until the next
// Learn.
func (s *Source) Cells() []uint32 { return s.cells }

// Entries is the number of entries that were learned.
func (s *Source) Entries() int { return len(s.cells) }

// Alive reports what SetAlive said last.
func (s *Source) Alive() bool { return s.alive }

// active reports whether the source's values are served.
func (s *Source) active() bool { return s.serves(s.spec.Mode) }

// keyspace holds the cells of the raw keys of one kind of source. Sources whose equal
// keys mean equal series share one.
type keyspace struct {
	id      keyspaceID
	cells   map[string]uint32
	sources int
	// usual is how many entries the source has that was compacted last: most have as many.
	usual int
}

type keyspaceID struct {
	class
	// worker is the ID where series have a label pid, else empty.
	worker string
	// collapses says that labels are left out of what each process has, in mode all.
	collapses bool
}

// class is what must agree for two values of one family to be combined.
type class struct {
	pool string
	typ  metric.Type
	mode metric.Mode
	// fixed sources are under no ruling, and right when others disagree.
	fixed bool
}

// An Index combines the values of sources by series. It is not safe for concurrent use:
// its owner holds one lock around every method. Different sources' Values may be filled
// by different goroutines at once; snapshots may be read by any.
type Index struct {
	opts     Options
	families map[string]*family
	spaces   map[keyspaceID]*keyspace
	// sources are in the order of addition, folded ones first, then by pool and name, unless
	// unsorted; some may be removed already. Thousands come and go at once.
	sources  []*Source
	unsorted bool
	removed  int
	// series and keys count the cells and the raw keys that lead to them, holding the families,
	// by pool.
	series, keys, holding map[string]int
	// now is the present time, in Unix seconds, as last told; 0: never.
	now float64
	// refused says that a limit has kept an entry out; seating that none does: see Seat.
	refused, seating bool
	// expired and dropped are of the last snapshot: see Expired and Dropped.
	expired, dropped int

	// The cells, by number. init is what hi starts from at every snapshot: 0 where values
	// are added, NaN elsewhere. pins counts the sources that have the cell, active those of
	// them that are served.
	desc   []cellDesc
	hi, lo []float64
	init   []float64
	pins   []int32
	active []int32
	free   []uint32
	// unpinned counts the cells with no pins that are not swept up yet.
	unpinned int

	layout    *view.Layout
	conflicts []Conflict
	keyBuf    []byte
	ownKey    []byte // what a ruling has made of a raw key
	snapshots view.Recycler
}

type cellDesc struct {
	group *group
	node  *node
	point view.Point
}

// NewIndex returns an empty index.
func NewIndex(opts Options) *Index {
	if opts.MaxSeries == 0 {
		opts.MaxSeries = DefaultMaxSeries
	}
	if opts.MaxFamilySeries == 0 {
		opts.MaxFamilySeries = DefaultMaxFamilySeries
	}
	if opts.MaxFamilies == 0 {
		opts.MaxFamilies = DefaultMaxFamilies
	}
	if opts.MaxLabels == 0 {
		opts.MaxLabels = DefaultMaxLabels
	}
	x := &Index{
		opts:     opts,
		families: map[string]*family{},
		spaces:   map[keyspaceID]*keyspace{},
		series:   map[string]int{},
		keys:     map[string]int{},
		holding:  map[string]int{},
	}
	x.newCell(cellDesc{group: &group{family: &family{}}}) // the sink
	x.unpinned--
	x.desc[sink] = cellDesc{}
	return x
}

// SetTime tells the index what time it is, in Unix seconds: when a change that it sees has
// happened.
func (x *Index) SetTime(now float64) { x.now = now }

// Add makes a source without entries, of a process that is alive.
func (x *Index) Add(spec SourceSpec) *Source { return x.add(&Source{spec: spec, alive: true}) }

// AddFolded makes a source for what sources that are no more have left, combined by
// Combine: Values and Stamps are for the first and second half of each value. What lives
// replaces it in mode All, and is right when files disagree.
func (x *Index) AddFolded(spec SourceSpec) *Source {
	spec.Created = math.MinInt64
	return x.add(&Source{spec: spec, alive: true, folded: true})
}

func (x *Index) add(s *Source) *Source {
	s.space = x.spaceOf(&s.spec)
	s.space.sources++
	x.sources = append(x.sources, s)
	x.unsorted = true
	return s
}

func (x *Index) spaceOf(spec *SourceSpec) *keyspace {
	id := keyspaceID{class: class{spec.Pool, spec.Type, spec.Mode, spec.Fixed}}
	if spec.Mode.Base() == metric.All {
		id.worker = spec.ID
	}
	return x.keyspace(id)
}

func (x *Index) keyspace(id keyspaceID) *keyspace {
	space := x.spaces[id]
	if space == nil {
		space = &keyspace{id: id, cells: map[string]uint32{}}
		x.spaces[id] = space
	}
	return space
}

func compareSources(a, b *Source) int {
	if a.folded != b.folded {
		if a.folded {
			return -1
		}
		return 1
	}
	return cmp.Or(strings.Compare(a.spec.Pool, b.spec.Pool), strings.Compare(a.spec.Name, b.spec.Name),
		cmp.Compare(a.spec.Created, b.spec.Created))
}

// Sources lists the sources in the order of addition. The slice is the index's own:
// read it before the next change.
func (x *Index) Sources() []*Source {
	if x.removed > 0 {
		x.sources = slices.DeleteFunc(x.sources, func(s *Source) bool { return s.space == nil })
		x.removed = 0
	}
	if x.unsorted {
		slices.SortFunc(x.sources, compareSources)
		x.unsorted = false
	}
	return x.sources
}

// Learn tells the index of one more entry of the source: its raw key, which is not kept,
// and its slot, which must be beyond that of the last one. The entry's value is 0 until the caller
// loads it. An error concerns this
// entry alone, which is then left out: what ParseKey returned, or one that is ErrSample,
// ErrSeriesLimit or ErrLabelLimit.
func (x *Index) Learn(s *Source, raw []byte, slot uint32) error {
	// The conversion in the index expression does not allocate.
	cell, ok := s.space.cells[string(raw)]
	if !ok {
		return x.learnNew(s, raw, slot)
	}
	if g := x.desc[cell].group; s.spec.Created > g.newest {
		x.newer(g, s.spec.Created)
		if key, err := s.spec.ParseKey(raw); err == nil {
			x.offerHelp(g, key.Help, s.spec.Created)
		}
	}
	x.pin(s, cell)
	s.append(slot, cell)
	return nil
}

func (s *Source) append(slot, cell uint32) {
	if s.cells == nil && s.space.usual > 0 {
		s.slots.Grow(s.space.usual)
		s.cells = make([]uint32, 0, s.space.usual)
		s.values = make([]float64, 0, s.space.usual)
	}
	s.slots.Append(slot)
	s.cells = append(s.cells, cell)
	s.values = append(s.values, 0)
	if s.folded || s.spec.Mode.Base() == metric.MostRecent {
		s.second = append(s.second, 0)
	}
}

// newer takes note that a source made then is the newest with an entry in g so far. It
// happens at the first entry of a source in a family, if at all.
func (x *Index) newer(g *group, created int64) {
	g.newest = created
	if len(g.family.groups) > 1 {
		x.touch(g.family)
	}
}

// touch says that the family's part of the layout is out of date.
func (x *Index) touch(fam *family) {
	fam.dirty = true
	x.layout = nil
}

// offerHelp takes the help text of the newest source that has one.
func (x *Index) offerHelp(g *group, help string, created int64) {
	if help == "" || (g.help != "" && (created < g.helpAt || (created == g.helpAt && help <= g.help))) {
		return
	}
	if g.help != help {
		x.touch(g.family)
	}
	g.help, g.helpAt = help, created
}

// newKey finds or makes the cell of a raw key that its keyspace has not seen. fam is the
// family that key is of, or nil if there is none yet; raw may be another spelling of key.
func (x *Index) newKey(s *Source, space *keyspace, fam *family, r *Ruling, key metric.Key, raw []byte) (uint32, error) {
	id, err := identify(key, &s.spec)
	if err != nil {
		return 0, err
	}
	if err := x.relabel(&id, &s.spec, space.id.mode, r); err != nil && !x.seating {
		return 0, err
	}
	pool := space.id.pool
	if fam == nil {
		fam = &family{name: id.family, groups: map[class]*group{}, held: map[string]held{}}
	}
	g := fam.groups[space.id.class]
	if g == nil {
		g = &group{family: fam, class: space.id.class, ruling: r, nodes: map[string]*node{}, newest: math.MinInt64}
	}
	x.keyBuf = appendLabelsKey(x.keyBuf[:0], id.labels)
	n := g.nodes[string(x.keyBuf)]
	point := view.Point{Kind: id.kind, Bound: id.bound}
	held := fam.held[pool]
	if n != nil {
		for _, cp := range n.points {
			if cp.Point == point {
				// Another spelling of a key: another help text, another dialect.
				switch {
				case x.seating:
				case held.keys >= spellings*x.opts.MaxFamilySeries:
					return 0, limited(ErrFamilyLimit, id.family, "%d keys", held.keys)
				case x.keys[pool] >= spellings*x.opts.MaxSeries:
					return 0, limited(ErrSeriesLimit, id.family, "%d keys with one more", x.keys[pool])
				}
				x.spell(n, fam, id.labels)
				x.addKey(space, fam, raw, cp.cell)
				return cp.cell, nil
			}
		}
	}
	switch {
	case x.seating:
	case held.series >= x.opts.MaxFamilySeries:
		return 0, limited(ErrFamilyLimit, id.family, "%d series", held.series)
	case x.series[pool] >= x.opts.MaxSeries:
		return 0, limited(ErrSeriesLimit, id.family, "%d series with one more", x.series[pool])
	case held.series == 0 && x.holding[pool] >= x.opts.MaxFamilies:
		return 0, limited(ErrFamiliesLimit, id.family, "%d families without one", x.holding[pool])
	}
	if held.series == 0 {
		x.holding[pool]++
	}
	if n == nil {
		n = &node{labels: slices.Clip(id.labels)}
		g.nodes[string(x.keyBuf)] = n
	}
	x.spell(n, fam, id.labels)
	x.families[id.family] = fam
	fam.groups[g.class] = g
	cell := x.newCell(cellDesc{g, n, point})
	n.points = append(n.points, cellPoint{point, cell})
	slices.SortFunc(n.points, comparePoints)
	x.series[pool]++
	held.series++
	fam.held[pool] = held
	x.addKey(space, fam, raw, cell)
	return cell, nil
}

// spell gives a node the labels of an entry that differ from its own, if at all, in those
// without a value. The more labels are served, so that it does not matter who came first.
func (x *Index) spell(n *node, fam *family, labels []metric.Label) {
	if len(labels) > len(n.labels) || (len(labels) == len(n.labels) && metric.CompareLabels(labels, n.labels) < 0) {
		n.labels = slices.Clip(labels)
		x.touch(fam)
	}
}

// addKey makes a raw key lead to a cell.
func (x *Index) addKey(space *keyspace, fam *family, raw []byte, cell uint32) {
	space.cells[string(raw)] = cell
	x.keys[space.id.pool]++
	held := fam.held[space.id.pool]
	held.keys++
	fam.held[space.id.pool] = held
}

func (x *Index) newCell(d cellDesc) uint32 {
	init := Zero(d.group.typ, d.group.mode)
	x.unpinned++
	if n := len(x.free); n > 0 {
		c := x.free[n-1]
		x.free = x.free[:n-1]
		x.desc[c], x.init[c] = d, init
		return c
	}
	x.desc = append(x.desc, d)
	x.init = append(x.init, init)
	x.hi = append(x.hi, 0)
	x.lo = append(x.lo, 0)
	x.pins = append(x.pins, 0)
	x.active = append(x.active, 0)
	return uint32(len(x.desc) - 1)
}

func (x *Index) pin(s *Source, cell uint32) {
	if x.pins[cell]++; x.pins[cell] == 1 {
		x.unpinned--
	}
	if s.active() {
		x.activate(cell, 1)
	}
}

func (x *Index) activate(cell uint32, by int32) {
	was := x.active[cell]
	x.active[cell] += by
	if was == 0 || was+by == 0 {
		x.touch(x.desc[cell].group.family)
	}
}

// Compact gives back the room that the source's lists have for more entries, where it is
// much. Call it when no more entries are expected soon.
func (s *Source) Compact() {
	if s.space != nil {
		s.space.usual = len(s.cells)
	}
	s.slots.Compact()
	if n := len(s.cells); cap(s.cells)-n > n/16 {
		s.cells = append(make([]uint32, 0, n), s.cells...)
		s.values = append(make([]float64, 0, n), s.values...)
		if s.second != nil {
			s.second = append(make([]float64, 0, n), s.second...)
		}
	}
	for i := range s.parts {
		p := &s.parts[i]
		if n := len(p.cells); cap(p.cells)-n > n/16 {
			p.entries, p.cells = slices.Clip(slices.Clone(p.entries)), slices.Clip(slices.Clone(p.cells))
			p.stamps, p.seen = slices.Clip(slices.Clone(p.stamps)), slices.Clip(slices.Clone(p.seen))
		}
	}
}

// SetAlive says whether the source's process lives; the live gauge modes count only the
// living. A source is alive when it is added.
func (x *Index) SetAlive(s *Source, alive bool) {
	if alive == s.alive {
		return
	}
	// What is not live is served before and after.
	if !alive {
		x.activateAll(s, -1, metric.Mode.Live)
	}
	s.alive = alive
	if alive {
		x.activateAll(s, 1, metric.Mode.Live)
	}
}

// activateAll adds by to the number of sources that serve a cell, for those cells that s
// serves in modes that which is true of.
func (x *Index) activateAll(s *Source, by int32, which func(metric.Mode) bool) {
	each := func(mode metric.Mode, cells []uint32) {
		if !s.serves(mode) || !which(mode) {
			return
		}
		for _, c := range cells {
			if c != sink {
				x.activate(c, by)
			}
		}
	}
	each(s.spec.Mode, s.cells)
	for i := range s.parts {
		each(s.parts[i].space.id.mode, s.parts[i].cells)
	}
}

// Remove takes a source and its values out of the view.
func (x *Index) Remove(s *Source) {
	if s.space == nil {
		panic("BUG: source " + s.spec.Name + " removed twice")
	}
	x.activateAll(s, -1, func(metric.Mode) bool { return true })
	spaces := []*keyspace{s.space}
	x.unpin(s.cells)
	for i := range s.parts {
		x.unpin(s.parts[i].cells)
		spaces = append(spaces, s.parts[i].space)
	}
	s.slots = deltas.List{}
	s.cells, s.values, s.second, s.parts = nil, nil, nil, nil
	s.space = nil
	x.removed++
	for _, space := range spaces {
		space.sources--
		if space.sources == 0 {
			delete(x.spaces, space.id)
			x.sweepSpace(space)
		}
	}
	if x.unpinned > 256 && x.unpinned > len(x.desc)-len(x.free)-x.unpinned {
		for _, space := range x.spaces {
			x.sweepSpace(space)
		}
	}
}

func (x *Index) unpin(cells []uint32) {
	for _, c := range cells {
		if c == sink {
			continue
		}
		if x.pins[c]--; x.pins[c] == 0 {
			x.unpinned++
		}
	}
}

// sweepSpace frees the cells of a keyspace that no source has any more.
func (x *Index) sweepSpace(space *keyspace) {
	if x.unpinned == 0 {
		return
	}
	var gone []uint32
	for raw, c := range space.cells {
		if x.pins[c] == 0 {
			delete(space.cells, raw)
			gone = append(gone, c)
			fam, pool := x.desc[c].group.family, space.id.pool
			held := fam.held[pool]
			held.keys--
			fam.held[pool] = held
			x.keys[pool]--
		}
	}
	for _, c := range gone {
		x.freeCell(c)
	}
}

// freeCell forgets a cell; several raw keys may lead to it, so it may be free already.
func (x *Index) freeCell(c uint32) {
	d := x.desc[c]
	if d.group == nil {
		return
	}
	d.node.points = slices.DeleteFunc(d.node.points, func(p cellPoint) bool { return p.cell == c })
	if len(d.node.points) == 0 {
		x.keyBuf = appendLabelsKey(x.keyBuf[:0], d.node.labels)
		delete(d.group.nodes, string(x.keyBuf))
	}
	fam := d.group.family
	held := fam.held[d.group.pool]
	if held.series--; held.series == 0 {
		x.holding[d.group.pool]--
	}
	fam.held[d.group.pool] = held
	if len(d.group.nodes) == 0 {
		delete(fam.groups, d.group.class)
		if len(fam.groups) == 0 {
			delete(x.families, fam.name)
		}
	}
	x.series[d.group.pool]--
	x.desc[c] = cellDesc{}
	x.free = append(x.free, c)
	x.unpinned--
}

// Each calls yield for every entry of a source: a raw key that leads to its series, its
// value and its timestamp. It is for saving what a source holds whose file can no longer
// be read, and takes time in proportion to all keys of the source's kind.
func (x *Index) Each(s *Source, yield func(raw string, value, stamp float64)) {
	raws := make([]string, len(s.cells))
	fill := func(space *keyspace, cells []uint32, at func(i int) int) {
		byCell := make(map[uint32]string, len(cells))
		for raw, c := range space.cells {
			// Several spellings may lead to one series; any will do, as long as it is always the
			// same one.
			if old, ok := byCell[c]; !ok || raw < old {
				byCell[c] = raw
			}
		}
		for i, c := range cells {
			if c != sink {
				raws[at(i)] = byCell[c]
			}
		}
	}
	fill(s.space, s.cells, func(i int) int { return i })
	for _, p := range s.parts {
		fill(p.space, p.cells, func(i int) int { return int(p.entries[i]) })
	}
	for i, raw := range raws {
		stamp := 0.0
		if s.second != nil {
			stamp = s.second[i]
		}
		yield(raw, s.values[i], stamp)
	}
}

// Snapshot combines the values of all sources. The caller must have filled them and must
// Release the snapshot; it is the caller's, of any goroutine, until then. A source that
// could not be read counts with what was last loaded into it.
func (x *Index) Snapshot() *view.Snapshot {
	layout := x.Layout()
	copy(x.hi, x.init)
	clear(x.lo)
	for _, s := range x.Sources() {
		if len(s.cells) == 0 {
			continue
		}
		if s.active() {
			x.accumulate(s)
		}
		if s.parts != nil {
			x.accumulateParts(s)
		}
	}
	snap := x.snapshots.Take(layout)
	x.gather(snap.Values)
	return snap
}

// Entries is the number of entries of all sources.
func (x *Index) Entries() int {
	n := 0
	for _, s := range x.Sources() {
		n += len(s.cells)
	}
	return n
}
