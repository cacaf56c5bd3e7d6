package merge

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
	"strings"

	"aggregatord/internal/deltas"
	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// Options of an Index. The zero value is ready for use.
type Options struct {
	// MaxSeries bounds the series; 0 means DefaultMaxSeries. An entry that
	// would make one more is refused with ErrSeriesLimit; those known go on.
	MaxSeries int
	// MaxFamilySeries bounds the series of one family; 0 means
	// DefaultMaxFamilySeries. Beyond it there is ErrFamilyLimit.
	MaxFamilySeries int
	// MaxFamilies bounds the families, which cost more than series do; 0 means
	// DefaultMaxFamilies. Beyond it there is ErrFamiliesLimit.
	MaxFamilies int
	// MaxBytes bounds the bytes of the raw keys and of the labels that are kept, and seriesBytes
	// for each series; 0 means DefaultMaxBytes. With what is made of them, such as expositions, about
	// five times as much memory is in use. That, and what the entries of all sources take, is
	// bounded by six times MaxBytes, so that entries of known series have a sixth of it for
	// themselves. Beyond either there is ErrBytesLimit.
	MaxBytes int64
	// MaxLabels bounds the labels of one series; 0 means DefaultMaxLabels.
	MaxLabels int
	// MaxLabelName and MaxLabelValue bound their lengths in bytes; 0: as long as a key is.
	MaxLabelName, MaxLabelValue int
	// Rules is asked once for each family what is in force for it; family is the OpenMetrics
	// name. Nil, or a Ruling that is nil: what the sources say.
	Rules func(family string, typ metric.Type) *Ruling
	// Share keeps what this index has in common with others. Nil: it has one of its own.
	Share *Share
}

// Defaults of Options.
const (
	DefaultMaxSeries       = 1_000_000
	DefaultMaxFamilySeries = 250_000
	DefaultMaxFamilies     = 20_000
	DefaultMaxBytes        = 512 << 20
	DefaultMaxLabels       = 64
)

// seriesBytes is what a series counts beside the bytes of its keys and labels, against MaxBytes.
const seriesBytes = 80

// What a source and each of its entries take, in bytes.
const (
	sourceBytes     = 450
	entryBytes      = 13 // a cell, a value and, packed, a slot
	stampBytes      = 8  // a timestamp, or the other half of a value
	partBytes       = 8  // the places in a part
	recentPartBytes = 16 // two timestamps in a part
)

// What is made of keys and labels takes so many times their bytes, themselves included; with the
// entries it may be so many times MaxBytes.
const madeOfKeys, madeOfAll = 5, 6

// spellings is how many raw keys there may be for each series that may be: another help text
// or dialect makes another key of the same series, and a deployment may change all help texts.
const spellings = 4

// SourceSpec says what the entries of a source are. It is fixed for the source's life.
type SourceSpec struct {
	// Name is unique among the sources; it decides the order of addition.
	Name string
	Type metric.Type
	// Mode is NoMode unless Type is Gauge.
	Mode metric.Mode
	// ID is the worker's, the label pid in modes All and LiveAll.
	ID string
	// Created is when the file was made, or, of a folded source, when something was folded into
	// it last: Unix nanoseconds. It decides who is right when sources disagree: the newest,
	// living before dead, dead before folded, later folded before earlier folded.
	Created int64
	// ParseKey reads the raw key of an entry; it must not keep the bytes.
	ParseKey func(raw []byte) (metric.Key, error)
	// RawKey, of a folded source, returns the raw key of the entry with a slot, as long as the source
	// is in an index. Then the index keeps no raw keys of the source, of which nearly each is of a
	// series of its own and is not looked up again. Nil: it keeps them.
	RawKey func(slot uint32) string
}

// A Source is what one file, or what the files of one kind that are no more, contribute.
type Source struct {
	spec  SourceSpec
	space *keyspace
	alive bool
	// folded sources hold what others left, combined already; they come first.
	folded bool

	slots  deltas.List
	cells  []uint32 // other sources may have the same memory: it only grows, by a copy
	values []float64
	// second is the other half of each value where there is one: the timestamp in the most
	// recent modes, and in a folded source the rounding error carried beside a sum. Nil in
	// all others.
	second []float64
	// parts are the entries under rulings that the lists above cannot be combined by.
	parts []part
	// groups are those that it has an entry in; seldom one twice.
	groups []*group
	// ahead are the entries, by number, whose timestamps are in the future.
	ahead map[uint32]ahead
	// seat is set for sources that only keep places: see Seat.
	seat bool
	// bytes is what it takes, with its entries.
	bytes int64
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
	cells   keyTable
	sources int
	// usual is how many entries the source has that was compacted last, and usualGroups in how many
	// groups: most have as many.
	usual, usualGroups int
	lists              *cellLists
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
	typ  metric.Type
	mode metric.Mode
}

// An Index combines the values of the sources of one pool by series. It is not safe for
// concurrent use: its owner holds one lock around every method. Different sources' Values may
// be filled by different goroutines at once; snapshots may be read by any. Close gives back
// what it has in a Share.
type Index struct {
	opts     Options
	share    *Share
	families map[string]*family
	spaces   map[keyspaceID]*keyspace
	// sources are in the order of addition, folded ones first, then by name, unless
	// unsorted; some may be removed already. Thousands come and go at once.
	sources  []*Source
	unsorted bool
	removed  int
	// series and keys count the cells and the raw keys that lead to them, holding the families.
	series, keys, holding int
	// bytes is what counts against MaxBytes; entryBytes is what the sources take.
	bytes, entryBytes int64
	// now is the present time, in Unix seconds, as last told; 0: never.
	now float64
	// refused says that a limit has kept an entry out; seating that none does: see Seat.
	refused, seating bool
	// careful says that sums must look out for NaN: the last snapshot had one.
	careful bool

	// What is known of the last snapshot: see Expired, Dropped, Zeros and NaNs.
	expired, dropped, zeros, nanCount int
	nanName                           string
	nans                              map[uint32]int32 // by cell

	// The cells, by number. pins counts the sources that have the cell, active those of them that
	// are served.
	desc   []cellDesc
	pins   []int32
	active []int32
	// owed is how long the raw key is that a cell was made for, of those that no raw key leads to: see
	// SourceSpec.RawKey. It may be shorter than the others.
	owed []uint32
	free []uint32
	// unset has a bit for each cell whose value is NaN before the first source, as where nothing
	// is added; the others are 0.
	unset []uint64
	// hi and lo are what is known of the cells' values while a snapshot is made; nil at other times.
	hi, lo []float64
	freed  uint64 // how many cells ever were
	// unpinned counts the cells with no pins that are not swept up yet.
	unpinned int

	layout *view.Layout
	// shown are the groups that the families of layout are of.
	shown []*group
	// contested are the groups that have rivals; unranked says that it is to be found out again
	// which of them are the newest.
	contested []*group
	unranked  bool
	conflicts []Conflict
	// ownPID is the first family, by name, whose label pid has given way to ours.
	ownPID string
	// styleAt is how new the source is that has said how a bound is spelled, by cell.
	styleAt   map[uint32]int64
	ownKey    []byte         // what a ruling has made of a raw key
	snapshots *view.Recycler // of its own life: snapshots may outlive the index
}

type cellDesc struct {
	node *node // nil: not in use
	// key is the raw key that was there first, for Each. Nil as long as none leads to the cell.
	key   *kept[string]
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
	if opts.MaxBytes == 0 {
		opts.MaxBytes = DefaultMaxBytes
	}
	if opts.MaxLabels == 0 {
		opts.MaxLabels = DefaultMaxLabels
	}
	if opts.Share == nil {
		opts.Share = NewShare()
	}
	x := &Index{
		opts: opts, share: opts.Share, families: map[string]*family{}, spaces: map[keyspaceID]*keyspace{}, snapshots: &view.Recycler{},
	}
	x.newCell(cellDesc{node: &node{group: &group{}}}) // the sink
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
// replaces it in mode All, and is right when sources disagree.
func (x *Index) AddFolded(spec SourceSpec) *Source {
	return x.add(&Source{spec: spec, alive: true, folded: true})
}

func (x *Index) add(s *Source) *Source {
	s.space = x.spaceOf(&s.spec)
	s.space.sources++
	x.count(s, sourceBytes)
	x.sources = append(x.sources, s)
	x.unsorted = true
	return s
}

func (x *Index) spaceOf(spec *SourceSpec) *keyspace {
	id := keyspaceID{class: class{spec.Type, spec.Mode}}
	if spec.Mode.Base() == metric.All {
		id.worker = spec.ID
	}
	return x.keyspace(id)
}

func (x *Index) keyspace(id keyspaceID) *keyspace {
	space := x.spaces[id]
	if space == nil {
		space = &keyspace{id: id, lists: &x.share.lists}
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
	return cmp.Or(strings.Compare(a.spec.Name, b.spec.Name), cmp.Compare(a.spec.Created, b.spec.Created))
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
// and its slot, which must be beyond that of the last one. The entry's value is 0 until the
// caller loads it. An error concerns this entry alone, which is then left out: what ParseKey
// returned, or one that is ErrSample, ErrSeriesLimit or ErrLabelLimit.
func (x *Index) Learn(s *Source, raw []byte, slot uint32) error {
	return x.LearnAt(s, raw, slot, s.spec.Created)
}

// LearnAt is Learn for an entry of a folded source whose own time is known: created is when
// something was folded into it last, in Unix nanoseconds.
func (x *Index) LearnAt(s *Source, raw []byte, slot uint32, created int64) error {
	return x.learn(s, raw, nil, slot, created)
}

// LearnParsed is Learn for a key that is parsed already, which the index may keep parts of and change.
func (x *Index) LearnParsed(s *Source, raw []byte, key metric.Key, slot uint32) error {
	return x.learn(s, raw, &key, slot, s.spec.Created)
}

// learn is LearnAt. parsed may be nil.
func (x *Index) learn(s *Source, raw []byte, parsed *metric.Key, slot uint32, created int64) error {
	hash := hashBytes(raw)
	cell, ok := s.space.cells.find(hash, raw)
	if !ok {
		return x.learnNew(s, raw, parsed, hash, slot, created)
	}
	x.learnKnown(s, raw, slot, cell, created)
	return nil
}

// Expect makes room for so many entries of a source that are about to be learned, most of which
// no other source has.
func (x *Index) Expect(s *Source, entries int) {
	if entries < expectable {
		return
	}
	s.slots.Grow(entries)
	s.cells, s.values = slices.Grow(s.cells, entries), slices.Grow(s.values, entries)
	if s.folded {
		s.second = slices.Grow(s.second, entries)
	}
	// Cells that are free, or that nobody has any more, are the first to be used.
	room := min(entries, x.opts.MaxSeries-x.series) - len(x.free) - x.unpinned
	if room <= 0 {
		return
	}
	x.desc = slices.Grow(x.desc, room)
	x.pins, x.active = slices.Grow(x.pins, room), slices.Grow(x.active, room)
	if s.spec.RawKey == nil {
		s.space.cells.grow(room)
		x.share.keys.grow(room)
	} else {
		x.owed = slices.Grow(x.owed, max(0, len(x.desc)+room-len(x.owed)))
	}
}

// expectable is for how many entries it is worth the while to make room.
const expectable = 1024

// LearnTagged is Learn for an entry that was in no index before: it may be one too many, also if its
// series is known. The caller keeps a number with each raw key, for sources of one type and mode other
// than the modes all: 0 at first. Where it is another one, it stands for the key's hash and look-up.
// The numbers are good until Freed changes. tag may be nil.
func (x *Index) LearnTagged(s *Source, raw []byte, slot uint32, tag *uint32) error {
	if !x.hasRoomForEntry() {
		x.refused = true
		return limited(ErrBytesLimit, "", "%d bytes of entries", x.entryBytes)
	}
	if tag == nil {
		return x.Learn(s, raw, slot)
	}
	cell := *tag
	if cell == sink {
		hash := hashBytes(raw)
		var ok bool
		if cell, ok = s.space.cells.find(hash, raw); !ok {
			return x.learnNew(s, raw, nil, hash, slot, s.spec.Created)
		}
		*tag = cell
	}
	x.learnKnown(s, raw, slot, cell, s.spec.Created)
	return nil
}

// Freed counts the cells that were freed: see LearnTagged.
func (x *Index) Freed() uint64 { return x.freed }

// learnKnown is LearnAt for a key that leads to a cell.
func (x *Index) learnKnown(s *Source, raw []byte, slot, cell uint32, created int64) {
	d := &x.desc[cell]
	g := d.node.group
	if g.last != s || s.folded && created > g.folded {
		x.join(s, g, created, raw)
	}
	if metric.HasStyle(d.point.Bound) {
		x.offerStyle(s, cell, created, raw)
	}
	x.pin(s, cell)
	x.append(s, slot, cell)
}

// append puts an entry into a source.
func (x *Index) append(s *Source, slot, cell uint32) {
	s.append(slot, cell)
	bytes := int64(entryBytes)
	if s.second != nil {
		bytes += stampBytes
	}
	x.count(s, bytes)
}

// count takes note of what a source takes.
func (x *Index) count(s *Source, bytes int64) {
	if s.seat {
		return // the entry that it keeps a place for is counted
	}
	s.bytes += bytes
	x.entryBytes += bytes
}

// hasRoomForKey reports whether there is room for more bytes of keys and labels.
func (x *Index) hasRoomForKey(more int64) bool {
	keys := x.bytes + more
	return keys <= x.opts.MaxBytes && madeOfKeys*keys+x.entryBytes <= madeOfAll*x.opts.MaxBytes
}

// hasRoomForEntry reports whether there is room for one more entry, whatever keys there are.
func (x *Index) hasRoomForEntry() bool {
	entries := x.entryBytes + entryBytes
	return entries <= (madeOfAll-madeOfKeys)*x.opts.MaxBytes || madeOfKeys*x.bytes+entries <= madeOfAll*x.opts.MaxBytes
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

// join takes note that a source has an entry in a group, made or folded at created. raw is one
// key of those in the group.
func (x *Index) join(s *Source, g *group, created int64, raw []byte) {
	// An interleaved source may be listed twice, which does no harm.
	if recent := s.groups[max(0, len(s.groups)-32):]; !slices.Contains(recent, g) {
		if s.groups == nil {
			s.groups = make([]*group, 0, max(1, s.space.usualGroups))
		}
		s.groups = append(s.groups, g)
	}
	g.last = s
	created = clampTime(created)
	switch {
	case s.folded:
		g.folded = max(g.folded, created)
	case s.alive:
		g.alive = max(g.alive, created)
	default:
		g.dead = max(g.dead, created)
	}
	x.unranked = x.unranked || len(g.rivals) > 0
	if created > g.newest {
		g.newest = created
		if key, err := s.spec.ParseKey(raw); err == nil {
			x.offerHelp(g, key, created)
		}
	}
}

// touch says that the group's part of the layout is out of date.
func (x *Index) touch(g *group) {
	g.dirty = true
	x.layout = nil
}

// offerHelp takes the help text of the newest source that has one.
func (x *Index) offerHelp(g *group, key metric.Key, created int64) {
	if key.NoHelp || (g.hasHelp && (created < g.helpAt || (created == g.helpAt && key.Help <= g.help))) {
		return
	}
	if !g.hasHelp || g.help != key.Help {
		x.touch(g)
	}
	g.help, g.helpAt, g.hasHelp = key.Help, created, true
}

// offerStyle takes the spelling of a bound that clients have spelled in several ways from the
// newest source that has one.
func (x *Index) offerStyle(s *Source, cell uint32, created int64, raw []byte) {
	d := &x.desc[cell]
	if clampTime(created) < x.styleAt[cell] {
		return
	}
	key, err := s.spec.ParseKey(raw)
	if err != nil {
		return
	}
	if i := labelIndex(key.Series.Labels, d.point.BoundLabel()); i >= 0 {
		x.takeStyle(cell, metric.StyleOf(key.Series.Labels[i].Value), clampTime(created))
	}
}

// takeStyle is offerStyle for a style that is known.
func (x *Index) takeStyle(cell uint32, style metric.BoundStyle, created int64) {
	d, at := &x.desc[cell], x.styleAt[cell]
	if !metric.HasStyle(d.point.Bound) || created < at || created == at && style < d.point.Style {
		return
	}
	if x.styleAt == nil {
		x.styleAt = map[uint32]int64{}
	}
	x.styleAt[cell] = created
	if d.point.Style != style {
		d.point.Style = style
		x.touch(d.node.group)
	}
}

// newKey finds or makes the cell of a raw key that its keyspace has not seen. fam is the
// family that key is of, or nil if there is none yet; raw may be another spelling of key. keep says
// that the raw key is to lead to the cell from now on.
func (x *Index) newKey(s *Source, space *keyspace, fam *family, r *Ruling, key metric.Key, raw []byte, hash uint32, created int64,
	keep bool,
) (uint32, error) {
	id, err := identify(key, &s.spec)
	if err != nil {
		return 0, err
	}
	if err := x.relabel(&id, &s.spec, space.id.mode, r); err != nil && !x.seating {
		return 0, err
	}
	if fam == nil {
		fam = &family{name: id.family}
	}
	g := fam.group(space.id.class)
	set := x.share.labelSet(withoutEmpty(id.labels))
	var n *node
	if g != nil {
		n = g.nodes.get(set)
	}
	if n != nil {
		for _, c := range n.cells {
			d := &x.desc[c]
			if d.point.Kind != id.point.Kind || d.point.Bound != id.point.Bound {
				continue
			}
			x.share.labels.put(set)
			// Another spelling of a key: another help text, another dialect. Or the first that leads to
			// the cell, for which there is room.
			switch {
			case x.seating, !keep, d.key == nil && int64(len(raw)) <= x.owes(c):
			case fam.keys >= spellings*x.opts.MaxFamilySeries:
				return 0, limited(ErrFamilyLimit, id.family, "%d keys", fam.keys)
			case x.keys >= spellings*x.opts.MaxSeries:
				return 0, limited(ErrSeriesLimit, id.family, "%d keys with one more", x.keys)
			case !x.hasRoomForKey(int64(len(raw)) - x.owes(c)):
				return 0, limited(ErrBytesLimit, id.family, "%d bytes with one more key", x.bytes+int64(len(raw))-x.owes(c))
			}
			x.spell(n, id.labels)
			x.takeStyle(c, id.point.Style, clampTime(created))
			if keep {
				x.addKey(space, fam, raw, hash, c)
			}
			return c, nil
		}
	}
	switch {
	case x.seating:
	case fam.series >= x.opts.MaxFamilySeries:
		err = limited(ErrFamilyLimit, id.family, "%d series", fam.series)
	case x.series >= x.opts.MaxSeries:
		err = limited(ErrSeriesLimit, id.family, "%d series with one more", x.series)
	case fam.series == 0 && x.holding >= x.opts.MaxFamilies:
		err = limited(ErrFamiliesLimit, id.family, "%d families without one", x.holding)
	default:
		more := int64(len(raw)) + seriesBytes
		if n == nil {
			more += labelBytes(id.labels)
		}
		if !x.hasRoomForKey(more) {
			err = limited(ErrBytesLimit, id.family, "%d bytes with one more series", x.bytes+more)
		}
	}
	if err != nil {
		x.share.labels.put(set)
		return 0, err
	}
	if fam.series == 0 {
		x.holding++
	}
	x.families[fam.name] = fam
	if g == nil {
		g = newGroup(fam, space.id.class, r)
		fam.groups = append(fam.groups, g)
	}
	if n == nil {
		n = &node{group: g, set: set}
		g.nodes.add(n)
	} else {
		x.share.labels.put(set)
	}
	x.spell(n, id.labels)
	cell := x.newCell(cellDesc{n, nil, id.point})
	if keep {
		x.addKey(space, fam, raw, hash, cell)
	} else {
		x.owe(cell, len(raw))
	}
	n.cells = append(n.cells, cell)
	slices.SortFunc(n.cells, func(a, b uint32) int { return comparePoints(x.desc[a].point, x.desc[b].point) })
	x.series++
	x.bytes += seriesBytes
	fam.series++
	if g.kinds&(1<<id.point.Kind) == 0 {
		g.kinds |= 1 << id.point.Kind
		x.findRivals(g)
	}
	x.takeStyle(cell, id.point.Style, clampTime(created))
	return cell, nil
}

// spell gives a node the labels of an entry that differ from its own, if at all, in those
// without a value. The more labels are served, so that it does not matter who came first.
func (x *Index) spell(n *node, labels []metric.Label) {
	if n.served != nil {
		has := n.served.value
		if len(labels) < len(has) || len(labels) == len(has) && metric.CompareLabels(labels, has) >= 0 {
			return
		}
	}
	old := n.served
	x.bytes -= n.bytes()
	n.served = x.share.labelSet(labels)
	x.bytes += n.bytes()
	x.share.labels.put(old)
	x.touch(n.group)
}

// addKey makes a raw key lead to a cell.
func (x *Index) addKey(space *keyspace, fam *family, raw []byte, hash uint32, cell uint32) {
	key := x.share.key(raw, hash)
	space.cells.add(key, cell)
	if x.desc[cell].key == nil {
		x.desc[cell].key = key
		x.owe(cell, 0)
	}
	x.bytes += int64(len(raw))
	x.keys++
	fam.keys++
}

// owes returns what a cell that no raw key leads to counts for the one that it was made for, so that
// as much room is there when that key comes.
func (x *Index) owes(cell uint32) int64 {
	if int(cell) < len(x.owed) {
		return int64(x.owed[cell])
	}
	return 0
}

// owe sets what owes returns.
func (x *Index) owe(cell uint32, bytes int) {
	switch n := int(cell) + 1 - len(x.owed); {
	case n <= 0:
	case bytes == 0:
		return
	default:
		x.owed = append(x.owed, make([]uint32, n)...)
	}
	x.bytes += int64(bytes) - int64(x.owed[cell])
	x.owed[cell] = uint32(bytes)
}

func (x *Index) newCell(d cellDesc) uint32 {
	x.unpinned++
	var c uint32
	if n := len(x.free); n > 0 {
		c = x.free[n-1]
		x.free = x.free[:n-1]
		x.desc[c] = d
	} else {
		c = uint32(len(x.desc))
		x.desc = append(x.desc, d)
		x.pins = append(x.pins, 0)
		x.active = append(x.active, 0)
		if c%64 == 0 {
			x.unset = append(x.unset, 0)
		}
	}
	bit := uint64(1) << (c % 64)
	if x.unset[c/64] &^= bit; Zero(d.node.group.typ, d.node.group.mode) != 0 {
		x.unset[c/64] |= bit
	}
	return c
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
		x.touch(x.desc[cell].node.group)
	}
}

// Compact gives back the room that the source's lists have for more entries, where it is
// much. Call it when no more entries are expected soon.
func (s *Source) Compact() {
	if s.space != nil {
		s.space.usual, s.space.usualGroups = len(s.cells), len(s.groups)
	}
	s.slots.Compact()
	s.groups = slices.Clip(s.groups)
	if s.space != nil {
		s.cells = s.space.lists.one(s.space.id.class, s.cells)
	}
	if n := len(s.values); cap(s.values)-n > n/16 {
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
	x.unranked = true
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

// Remove takes a source and its values out of the view. What it was counts as folded now: of
// sources that disagree, those that were there before do not come back because of it.
func (x *Index) Remove(s *Source) {
	if s.space == nil {
		panic("BUG: source " + s.spec.Name + " removed twice")
	}
	x.activateAll(s, -1, func(metric.Mode) bool { return true })
	for _, g := range s.groups {
		if !s.folded && !s.seat {
			g.folded = max(g.folded, x.nanoseconds())
		}
		if g.last == s {
			g.last = nil
		}
	}
	x.unranked = true
	spaces := []*keyspace{s.space}
	x.unpin(s.cells)
	for i := range s.parts {
		x.unpin(s.parts[i].cells)
		spaces = append(spaces, s.parts[i].space)
	}
	if s.spec.RawKey != nil {
		for _, c := range s.cells {
			// No sweep meets a cell that no key leads to.
			if d := &x.desc[c]; x.pins[c] == 0 && d.node != nil && d.key == nil {
				x.freeCell(c)
			}
		}
	}
	x.entryBytes -= s.bytes
	s.bytes = 0
	s.slots = deltas.List{}
	s.cells, s.values, s.second, s.parts, s.groups, s.ahead = nil, nil, nil, nil, nil, nil
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
		x.sweep()
	}
}

// sweep frees all cells that no source has any more.
func (x *Index) sweep() {
	for _, space := range x.spaces {
		x.sweepSpace(space)
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

// sweepSpace frees the cells of a keyspace that no source has any more, and forgets the keys
// that lead to them; of one without sources, all keys.
func (x *Index) sweepSpace(space *keyspace) {
	if x.unpinned == 0 && space.sources > 0 {
		return
	}
	var gone []uint32
	space.cells.remove(func(k keyRef) bool {
		if x.pins[k.cell] > 0 && space.sources > 0 {
			return false
		}
		gone = append(gone, k.cell)
		x.desc[k.cell].node.group.family.keys--
		x.keys--
		x.bytes -= int64(len(k.key.value))
		x.share.keys.put(k.key)
		return true
	})
	for _, c := range gone {
		if x.pins[c] == 0 {
			x.freeCell(c)
		}
	}
}

// freeCell forgets a cell; several raw keys may lead to it, so it may be free already.
func (x *Index) freeCell(c uint32) {
	n := x.desc[c].node
	if n == nil {
		return
	}
	g, fam := n.group, n.group.family
	n.cells = slices.DeleteFunc(n.cells, func(has uint32) bool { return has == c })
	if len(n.cells) == 0 {
		g.nodes.remove(n)
		delete(g.seen, n)
		x.bytes -= n.bytes()
		x.share.labels.put(n.set)
		x.share.labels.put(n.served)
	}
	x.series--
	x.bytes -= seriesBytes
	if fam.series--; fam.series == 0 {
		x.holding--
	}
	x.owe(c, 0)
	x.desc[c] = cellDesc{}
	x.freed++
	delete(x.styleAt, c)
	x.free = append(x.free, c)
	x.unpinned--
	if g.nodes.len() == 0 {
		x.emptied(g)
	}
}

// Each calls yield for every entry of a source: a raw key that leads to its series, empty if it
// has none, its value and its timestamp. Entries of one series get one of its keys, always the
// same. It is for saving what a source holds whose file can no longer be read, and takes time
// in proportion to the source's entries.
func (x *Index) Each(s *Source, yield func(raw string, value, stamp float64)) {
	raws := make([]string, len(s.cells))
	for i, slot := range s.slots.All() {
		switch c := s.cells[i]; {
		case c == sink:
		case x.desc[c].key != nil:
			raws[i] = x.desc[c].key.value
		default:
			raws[i] = s.spec.RawKey(slot)
		}
	}
	for _, p := range s.parts {
		for k, c := range p.cells {
			raws[p.entries[k]] = x.desc[c].key.value
		}
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
	sums := x.share.sums.get(len(x.desc))
	x.hi, x.lo = sums.hi[:len(x.desc)], sums.lo[:len(x.desc)]
	defer func() {
		x.hi, x.lo = nil, nil
		x.share.sums.put(sums)
	}()
	x.combine()
	snap := x.snapshots.Take(layout)
	if nan := x.gather(snap); nan != x.careful {
		// Either a NaN has just been added to a sum, or there is none any more to look out for.
		x.careful = nan
		if nan {
			x.combine()
			x.gather(snap)
		}
	}
	return snap
}

// combine adds up the values of all sources in the cells.
func (x *Index) combine() {
	clear(x.hi)
	clear(x.lo)
	for i, set := range x.unset {
		for ; set != 0; set &= set - 1 {
			x.hi[64*i+bits.TrailingZeros64(set)] = math.NaN()
		}
	}
	clear(x.nans)
	x.nanCount, x.nanName = 0, ""
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
	for c, n := range x.nans {
		// A gauge that every process has set to NaN is NaN; nothing is spoilt by that.
		if x.desc[c].node.group.typ == metric.Gauge && n == x.active[c] {
			x.hi[c] = math.NaN()
		}
	}
}

// Close gives back what the index has in a Share. The index must not be used any more; layouts
// and snapshots that it has handed out stay good.
func (x *Index) Close() {
	for _, space := range x.spaces {
		for _, k := range space.cells.keys {
			x.share.keys.put(k.key)
		}
	}
	for _, fam := range x.families {
		for _, g := range fam.groups {
			for n := range g.nodes.all() {
				x.share.labels.put(n.set)
				x.share.labels.put(n.served)
			}
			x.discard(g)
		}
	}
	x.share.sums.forget()
	x.share.parsed.forget()
	x.share.lists.forget()
	*x = Index{}
}

// Entries is the number of entries of all sources.
func (x *Index) Entries() int {
	n := 0
	for _, s := range x.Sources() {
		n += len(s.cells)
	}
	return n
}
