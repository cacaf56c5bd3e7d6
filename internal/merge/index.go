package merge

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"aggregatord/internal/metric"
)

// Options of an Index. The zero value is ready for use.
type Options struct {
	// MaxSeries bounds the series of one pool; 0 means DefaultMaxSeries. An entry that
	// would make one more is refused with ErrSeriesLimit; those known go on.
	MaxSeries int
	// MaxLabels bounds the labels of one series; 0 means DefaultMaxLabels.
	MaxLabels int
}

// Defaults of Options.
const (
	DefaultMaxSeries = 1_000_000
	DefaultMaxLabels = 64
)

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
}

// A Source is what one file, or what the files of one kind that are no more, contribute.
type Source struct {
	spec  SourceSpec
	space *keyspace
	alive bool
	// folded sources hold what others left, combined already; they come first.
	folded bool

	slots  []uint32
	cells  []uint32
	values []float64
	// second is the other half of each value where there is one: the timestamp in the most
	// recent modes, and in a folded source the rounding error carried beside a sum. Nil in
	// all others.
	second []float64
}

// Spec returns what the source was added with.
func (s *Source) Spec() SourceSpec { return s.spec }

// Slots returns, entry by entry, where the values are in the source's file, in units of
// 8 bytes. The caller must not change it; it is valid until the next Learn.
func (s *Source) Slots() []uint32 { return s.slots }

// Values returns the values in the order of Slots, for the caller to fill before a
// Snapshot. They are kept from one snapshot to the next. Valid until the next Learn.
func (s *Source) Values() []float64 { return s.values }

// Stamps returns the timestamps (Unix seconds, 0 = never set) in the order of Slots, or
// nil where the mode does not need them. Like Values it is the caller's to fill. For a
// source made by AddFolded it is the second halves that Combine made.
func (s *Source) Stamps() []float64 { return s.second }

// Entries is the number of entries that were learned.
func (s *Source) Entries() int { return len(s.cells) }

// Alive reports what SetAlive said last.
func (s *Source) Alive() bool { return s.alive }

// active reports whether the source's values are served.
func (s *Source) active() bool { return s.alive || !s.spec.Mode.Live() }

// keyspace holds the cells of the raw keys of one kind of source. Sources whose equal
// keys mean equal series share one.
type keyspace struct {
	id      keyspaceID
	cells   map[string]uint32
	sources int
}

type keyspaceID struct {
	class
	// worker is the ID where series have a label pid, else empty.
	worker string
}

// class is what must agree for two values of one family to be combined.
type class struct {
	pool string
	typ  metric.Type
	mode metric.Mode
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
	series   map[string]int // by pool

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

	layout    *Layout
	conflicts []Conflict
	keyBuf    []byte
	snapshots sync.Pool
}

type cellDesc struct {
	group *group
	node  *node
	point Point
}

// NewIndex returns an empty index.
func NewIndex(opts Options) *Index {
	if opts.MaxSeries == 0 {
		opts.MaxSeries = DefaultMaxSeries
	}
	if opts.MaxLabels == 0 {
		opts.MaxLabels = DefaultMaxLabels
	}
	return &Index{
		opts:     opts,
		families: map[string]*family{},
		spaces:   map[keyspaceID]*keyspace{},
		series:   map[string]int{},
	}
}

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
	id := keyspaceID{class: class{spec.Pool, spec.Type, spec.Mode}}
	if spec.Mode.Base() == metric.All {
		id.worker = spec.ID
	}
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
// and its slot. The entry's value is 0 until the caller loads it. An error concerns this
// entry alone, which is then left out: what ParseKey returned, or one that is ErrSample,
// ErrSeriesLimit or ErrLabelLimit.
func (x *Index) Learn(s *Source, raw []byte, slot uint32) error {
	// The conversion in the index expression does not allocate.
	cell, ok := s.space.cells[string(raw)]
	if !ok {
		var err error
		if cell, err = x.newKey(s, raw); err != nil {
			return err
		}
	}
	if g := x.desc[cell].group; s.spec.Created > g.newest {
		x.newer(g, s, raw)
	}
	x.pin(s, cell)
	s.slots = append(s.slots, slot)
	s.cells = append(s.cells, cell)
	s.values = append(s.values, 0)
	if s.folded || s.spec.Mode.Base() == metric.MostRecent {
		s.second = append(s.second, 0)
	}
	return nil
}

// newer takes note that s is the newest source with an entry in g so far. It happens at
// the first entry of a source in a family, if at all.
func (x *Index) newer(g *group, s *Source, raw []byte) {
	g.newest = s.spec.Created
	if len(g.family.groups) > 1 {
		x.touch(g.family)
	}
	if key, err := s.spec.ParseKey(raw); err == nil {
		x.offerHelp(g, key.Help, s.spec.Created)
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

// newKey finds or makes the cell of a raw key that its keyspace has not seen.
func (x *Index) newKey(s *Source, raw []byte) (uint32, error) {
	key, err := s.spec.ParseKey(raw)
	if err != nil {
		return 0, err
	}
	id, err := identify(key, &s.spec)
	if err != nil {
		return 0, err
	}
	if len(id.labels) > x.opts.MaxLabels {
		return 0, fmt.Errorf("%w: %d labels on %q, %d allowed", ErrLabelLimit, len(id.labels), id.family, x.opts.MaxLabels)
	}
	fam := x.families[id.family]
	if fam == nil {
		fam = &family{name: id.family, groups: map[class]*group{}}
	}
	g := fam.groups[s.space.id.class]
	if g == nil {
		g = &group{family: fam, class: s.space.id.class, nodes: map[string]*node{}, newest: math.MinInt64}
	}
	x.keyBuf = appendLabelsKey(x.keyBuf[:0], id.labels)
	n := g.nodes[string(x.keyBuf)]
	point := Point{Kind: id.kind, Bound: id.bound}
	if n != nil {
		for _, cp := range n.points {
			if cp.Point == point {
				// Another spelling of a key: another help text, another dialect.
				s.space.cells[string(raw)] = cp.cell
				x.offerHelp(g, key.Help, s.spec.Created)
				return cp.cell, nil
			}
		}
	}
	if x.series[s.spec.Pool] >= x.opts.MaxSeries {
		return 0, fmt.Errorf("%w: %d", ErrSeriesLimit, x.opts.MaxSeries)
	}
	if n == nil {
		n = &node{labels: slices.Clip(id.labels)}
		g.nodes[string(x.keyBuf)] = n
	}
	x.families[id.family] = fam
	fam.groups[g.class] = g
	x.offerHelp(g, key.Help, s.spec.Created)
	cell := x.newCell(cellDesc{g, n, point})
	n.points = append(n.points, cellPoint{point, cell})
	slices.SortFunc(n.points, comparePoints)
	x.series[s.spec.Pool]++
	s.space.cells[string(raw)] = cell
	return cell, nil
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
	if n := len(s.cells); cap(s.cells)-n > n/16 {
		s.slots = append(make([]uint32, 0, n), s.slots...)
		s.cells = append(make([]uint32, 0, n), s.cells...)
		s.values = append(make([]float64, 0, n), s.values...)
		if s.second != nil {
			s.second = append(make([]float64, 0, n), s.second...)
		}
	}
}

// SetAlive says whether the source's process lives; the live gauge modes count only the
// living. A source is alive when it is added.
func (x *Index) SetAlive(s *Source, alive bool) {
	was := s.active()
	s.alive = alive
	if now := s.active(); now != was {
		by := int32(-1)
		if now {
			by = 1
		}
		for _, c := range s.cells {
			x.activate(c, by)
		}
	}
}

// Remove takes a source and its values out of the view.
func (x *Index) Remove(s *Source) {
	if s.space == nil {
		panic("BUG: source " + s.spec.Name + " removed twice")
	}
	for _, c := range s.cells {
		if s.active() {
			x.activate(c, -1)
		}
		if x.pins[c]--; x.pins[c] == 0 {
			x.unpinned++
		}
	}
	s.slots, s.cells, s.values, s.second = nil, nil, nil, nil
	space := s.space
	s.space = nil
	x.removed++
	space.sources--
	if space.sources == 0 {
		delete(x.spaces, space.id)
	}
	if x.unpinned > 256 && x.unpinned > len(x.desc)-len(x.free)-x.unpinned || space.sources == 0 {
		x.sweep(space)
	}
}

// sweep frees the cells that no source has any more. gone is a keyspace that has just
// lost its last source, or one that still has some.
func (x *Index) sweep(gone *keyspace) {
	if x.unpinned == 0 {
		return
	}
	free := func(space *keyspace) {
		for raw, c := range space.cells {
			if x.pins[c] == 0 {
				delete(space.cells, raw)
				x.freeCell(c)
			}
		}
	}
	if gone.sources == 0 {
		free(gone)
		return
	}
	for _, space := range x.spaces {
		free(space)
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
	if fam := d.group.family; len(d.group.nodes) == 0 {
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
	raws := make(map[uint32]string, len(s.cells))
	for raw, c := range s.space.cells {
		// Several spellings may lead to one series; any will do, as long as it is always the
		// same one.
		if old, ok := raws[c]; !ok || raw < old {
			raws[c] = raw
		}
	}
	for i, c := range s.cells {
		stamp := 0.0
		if s.second != nil {
			stamp = s.second[i]
		}
		yield(raws[c], s.values[i], stamp)
	}
}

// Snapshot combines the values of all sources. The caller must have filled them and must
// Release the snapshot; it is the caller's, of any goroutine, until then. A source that
// could not be read counts with what was last loaded into it.
func (x *Index) Snapshot() *Snapshot {
	layout := x.Layout()
	copy(x.hi, x.init)
	clear(x.lo)
	for _, s := range x.Sources() {
		if !s.active() || len(s.cells) == 0 {
			continue
		}
		x.accumulate(s)
	}
	snap, _ := x.snapshots.Get().(*Snapshot)
	if snap == nil {
		snap = &Snapshot{}
		snap.release = func(s *Snapshot) { s.Layout = nil; x.snapshots.Put(s) }
	}
	snap.Layout = layout
	snap.Values = slices.Grow(snap.Values[:0], layout.Points)[:layout.Points]
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
