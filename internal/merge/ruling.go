package merge

import (
	"math"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A Ruling is what somebody other than the workers says about a family: see Options.Rules.
// It never changes once it was given to an Index.
type Ruling struct {
	// Rule is the name of what decided, for people; empty if nothing was said about this
	// family.
	Rule string
	// Mode is the mode in force for gauges; NoMode: the one of each source.
	Mode metric.Mode
	// Drop leaves the family out of the view. Its values are kept all the same.
	Drop bool
	// Help and Unit are those in force; empty: the workers' help, and no unit.
	Help, Unit string
	// Shape is what a family of gauges is in OpenMetrics.
	Shape view.Shape
	// Labels returns what becomes of the labels that a worker wrote, sorted by name as they
	// came. It may change the list in place. Nil: they stay.
	Labels func(labels []metric.Label) []metric.Label
	// Key appends the raw key under which an entry is kept in place of its own: equal keys are
	// one series, and are what Each yields. It must not change the key that it is given. Nil:
	// its own.
	Key func(dst []byte, key metric.Key) []byte
	// ExpireAfter is after how many seconds without a change a series is not served, until it
	// changes again. 0: never.
	ExpireAfter float64
	// DropZero leaves out the series of gauges in modes all and liveall that are 0.
	DropZero bool
}

// dropsZero reports whether series of a class are left out where they are 0.
func (r *Ruling) dropsZero(c class) bool {
	return r.DropZero && c.typ == metric.Gauge && c.mode.Base() == metric.All
}

// noRuling is in force where nothing was said.
var noRuling = &Ruling{}

// part is the entries of a source that are combined in another way than the source's own
// class is: under a mode that a ruling has set, or in mode all with labels left out.
// The source's main list has the sink in their place.
type part struct {
	space   *keyspace
	entries []uint32 // positions in the source's lists
	cells   []uint32
	// In the most recent modes: when each value was set, in Unix seconds, and for a source
	// that does not know, which value that was.
	stamps, seen []float64
}

// sink is the cell of entries that are not combined as their source is. What is in it means
// nothing.
const sink = 0

// serves reports whether values of the source count in a mode.
func (s *Source) serves(mode metric.Mode) bool {
	return !mode.Live() || s.alive && !s.folded
}

// partOf returns the source's part in a keyspace.
func (x *Index) partOf(s *Source, space *keyspace) *part {
	for i := range s.parts {
		if s.parts[i].space == space {
			return &s.parts[i]
		}
	}
	space.sources++
	s.parts = append(s.parts, part{space: space})
	return &s.parts[len(s.parts)-1]
}

// add puts the entry that comes next in the source into the part.
func (p *part) add(s *Source, cell uint32) {
	p.entries = append(p.entries, uint32(len(s.cells)))
	p.cells = append(p.cells, cell)
	if p.recent() {
		p.stamps = append(p.stamps, 0)
		p.seen = append(p.seen, math.NaN())
	}
}

func (p *part) recent() bool { return p.space.id.mode.Base() == metric.MostRecent }

// Live reports whether it matters for any value of the source that its process lives.
func (s *Source) Live() bool {
	if s.spec.Mode.Live() {
		return true
	}
	for i := range s.parts {
		if s.parts[i].space.id.mode.Live() {
			return true
		}
	}
	return false
}

// value returns an entry's value as that of one process.
func (s *Source) value(entry uint32) float64 {
	if s.folded && rule(s.space.id.class) == metric.Sum {
		return total(s.values[entry], s.second[entry])
	}
	return s.values[entry]
}

// unsetScale moves the times of values that nobody can be seen to have set, because they are
// 0, before all other times.
const unsetScale = 1e-12

// Observe finds out when the values of a source were set that do not say so themselves, as a
// most recent mode needs it that the source's own mode is not: a change is as old as the
// first look that finds it, and a value that was there at the first look as old as its
// process, one that is 0 older than any other. It also finds the timestamps that are in the future. Snapshot
// does it for all sources.
func (x *Index) Observe(s *Source) {
	if s.spec.Mode.Base() == metric.MostRecent {
		for i, t := range s.second {
			if t > x.now {
				x.clamp(s, uint32(i), t)
			}
		}
	}
	for i := range s.parts {
		p := &s.parts[i]
		if !p.recent() {
			continue
		}
		stamped := s.spec.Mode.Base() == metric.MostRecent
		for k, e := range p.entries {
			if stamped {
				p.stamps[k] = s.second[e]
				if p.stamps[k] > x.now {
					p.stamps[k] = x.clamp(s, e, p.stamps[k])
				}
				continue
			}
			v := s.value(e)
			if math.Float64bits(v) == math.Float64bits(p.seen[k]) && p.stamps[k] > 0 {
				continue
			}
			switch {
			case p.stamps[k] > 0 && x.now > p.stamps[k]:
				p.stamps[k] = x.now
			case p.stamps[k] > 0:
			case s.folded:
				p.stamps[k] = foldedStamp(s, e)
			default:
				p.stamps[k] = max(float64(s.spec.Created)/1e9, unsetScale)
			}
			if math.IsNaN(p.seen[k]) && v == 0 {
				p.stamps[k] *= unsetScale
			}
			p.seen[k] = v
		}
	}
}

// foldedStamp is how old a folded value is that has no time: as its worker in mode all, or
// older than all that lives.
func foldedStamp(s *Source, e uint32) float64 {
	if s.spec.Mode == metric.All && s.second[e] > 0 {
		return s.second[e]
	}
	return unsetScale
}

// Stamp returns when an entry's value was set, in Unix seconds, as far as is known: for
// keeping it in a most recent mode. One that says it was set in the future has the time at
// which a Snapshot or Observe has seen it first.
func (s *Source) Stamp(entry int) float64 {
	for i := range s.parts {
		if !s.parts[i].recent() {
			continue
		}
		if k, ok := slices.BinarySearch(s.parts[i].entries, uint32(entry)); ok {
			return s.parts[i].stamps[k]
		}
	}
	if s.second != nil && !s.folded {
		if a, ok := s.ahead[uint32(entry)]; ok && a.stamp == s.second[entry] {
			return a.seen
		}
		return s.second[entry]
	}
	return 0
}

// accumulateParts adds the values of a source's parts to the cells.
func (x *Index) accumulateParts(s *Source) {
	x.Observe(s)
	hi, lo := x.hi, x.lo
	for i := range s.parts {
		p := &s.parts[i]
		if !s.serves(p.space.id.mode) {
			continue
		}
		base := rule(p.space.id.class)
		switch base {
		case metric.Sum:
			for k, c := range p.cells {
				if v := s.value(p.entries[k]); v == v {
					x.hi[c], x.lo[c] = sumStep(x.hi[c], x.lo[c], v, 0)
				} else {
					x.leaveOut(c)
				}
			}
		case metric.All:
			// All that is equal of one worker is added, but what lives replaces what was folded:
			// lo tells which of both is in the cell.
			origin := 2.0
			if s.folded {
				origin = 1
			}
			for k, c := range p.cells {
				v := s.value(p.entries[k])
				if p.space.id.collapses && lo[c] == origin {
					v += hi[c]
				}
				hi[c], lo[c] = v, origin
			}
		default:
			step := operations[base].step
			for k, c := range p.cells {
				t := 0.0
				if p.recent() {
					t = p.stamps[k]
				}
				hi[c], lo[c] = step(hi[c], lo[c], s.value(p.entries[k]), t)
			}
		}
	}
}

// learnNew is Learn for an entry whose raw key the source's keyspace does not have. parsed may be nil.
func (x *Index) learnNew(s *Source, raw []byte, parsed *metric.Key, hash, slot uint32, created int64) error {
	err := x.learnKey(s, raw, parsed, hash, slot, created)
	_, limited := err.(*LimitError) //nolint:errorlint // made in this package, never wrapped
	if limited && x.unpinned > 0 {
		x.sweep()                                          // what nobody has any more makes room
		err = x.learnKey(s, raw, nil, hash, slot, created) // what was parsed is used up
		_, limited = err.(*LimitError)                     //nolint:errorlint // the same
	}
	x.refused = x.refused || limited
	return err
}

func (x *Index) learnKey(s *Source, raw []byte, parsed *metric.Key, hash, slot uint32, created int64) (err error) {
	var key metric.Key
	if parsed != nil {
		key = *parsed
	} else if key, err = x.share.parse(raw, hash, s.spec.ParseKey); err != nil {
		return err
	}
	name := FamilyOf(key, s.spec.Type)
	fam := x.families[name]
	r := x.rulingOf(fam, name, s.spec.Type)
	class := s.space.id.class
	if r.Mode != metric.NoMode && class.typ == metric.Gauge {
		class.mode = r.Mode
	}
	collapses := r.Labels != nil && class.typ == metric.Gauge && class.mode.Base() == metric.All
	worker := ""
	if class.mode.Base() == metric.All {
		worker = s.spec.ID
		if s.folded && worker == "" {
			// What processes left together in another mode belongs to none of them.
			x.append(s, slot, sink)
			return nil
		}
	}
	help := key
	if r.Key != nil {
		x.ownKey = r.Key(x.ownKey[:0], key)
		raw = x.ownKey
		hash = hashBytes(raw)
	}
	space, elsewhere := s.space, class != s.space.id.class || collapses
	if elsewhere {
		space = x.keyspace(keyspaceID{class: class, worker: worker, collapses: collapses})
	}
	cell, ok := uint32(0), false
	if elsewhere || r.Key != nil { // else it was just looked for
		cell, ok = space.cells.find(hash, raw)
	}
	if !ok {
		keep := s.spec.RawKey == nil || elsewhere || r.Key != nil
		if cell, err = x.newKey(s, space, fam, r, key, raw, hash, created, keep); err != nil {
			if space.sources == 0 {
				delete(x.spaces, space.id)
			}
			return err
		}
	}
	g := x.desc[cell].node.group
	x.offerHelp(g, help, clampTime(created))
	g.newest = max(g.newest, clampTime(created))
	x.join(s, g, created, raw)
	x.pins[cell]++
	if x.pins[cell] == 1 {
		x.unpinned--
	}
	if s.serves(class.mode) {
		x.activate(cell, 1)
	}
	if elsewhere {
		part := x.partOf(s, space)
		part.add(s, cell)
		cell = sink
		x.count(s, partBytes)
		if part.recent() {
			x.count(s, recentPartBytes)
		}
	}
	x.append(s, slot, cell)
	return nil
}

// rulingOf returns what holds for a family. fam is nil if the index has none of the name.
func (x *Index) rulingOf(fam *family, name string, typ metric.Type) *Ruling {
	if x.opts.Rules == nil {
		return noRuling
	}
	if fam != nil && fam.rulings[typ] != nil {
		return fam.rulings[typ]
	}
	r := x.opts.Rules(name, typ)
	if r == nil {
		r = noRuling
	}
	if fam != nil {
		fam.rulings[typ] = r
	}
	return r
}

// relabel makes the labels that are served of those that a worker wrote. The error is that of
// a limit on labels, for a series that is not known.
//
// In the modes that serve one series per process a gauge gets the process's ID as pid. A label
// pid of its own becomes exported_pid there, and stays as it is in the other modes: series that
// differ in nothing else would become one. (prometheus_client's multiprocess.py removes it in
// both, and serves one of them.)
func (x *Index) relabel(id *identity, spec *SourceSpec, mode metric.Mode, r *Ruling) error {
	if r.Labels != nil {
		id.labels = r.Labels(id.labels)
	}
	if spec.Type == metric.Gauge && mode.Base() == metric.All {
		if i := labelIndex(id.labels, "pid"); i >= 0 && id.labels[i].Value != "" {
			id.labels = renameLabel(id.labels, "pid")
			if x.ownPID == "" || id.family < x.ownPID {
				x.ownPID = id.family
			}
		}
		id.labels, _, _ = takeLabel(id.labels, "pid")
		id.labels = withLabel(id.labels, metric.Label{Name: "pid", Value: spec.ID})
	}
	return x.checkLabels(id)
}

// OwnPID names a gauge, the first by name, that has a label pid of its own in a mode that serves
// one series per process, where ours is called pid: its own is exported_pid. Empty: none.
func (x *Index) OwnPID() string { return x.ownPID }

func (x *Index) checkLabels(id *identity) error {
	if len(id.labels) > x.opts.MaxLabels {
		return limited(ErrLabelLimit, id.family, "%d labels", len(id.labels))
	}
	for _, l := range id.labels {
		if x.opts.MaxLabelName > 0 && len(l.Name) > x.opts.MaxLabelName {
			return limited(ErrLabelLength, id.family, "a name of %d bytes", len(l.Name))
		}
		if x.opts.MaxLabelValue > 0 && len(l.Value) > x.opts.MaxLabelValue {
			return limited(ErrLabelLength, id.family, "%d bytes in %s", len(l.Value), l.Name)
		}
	}
	return nil
}

// Seat makes room for every entry of a source of another index, whatever the limits are:
// series that are known go on when limits change. Remove the source that it returns when all
// sources are there.
func (x *Index) Seat(old *Index, s *Source) *Source {
	seat := x.add(&Source{spec: s.spec, alive: s.alive, folded: s.folded, seat: true})
	x.seating = true
	defer func() { x.seating = false }()
	old.Each(s, func(raw string, _, _ float64) {
		if raw != "" {
			x.Learn(seat, []byte(raw), uint32(seat.Entries())) //nolint:errcheck // it was good in the other index
		}
	})
	return seat
}

// Refused reports whether a limit has ever kept an entry out.
func (x *Index) Refused() bool { return x.refused }
