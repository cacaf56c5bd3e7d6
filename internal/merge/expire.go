package merge

import (
	"math"

	"aggregatord/internal/view"
)

// expire takes the metrics out of a family's values that have not changed for too long. All
// points of a metric go together, and are back when one of them changes.
func (x *Index) expire(g *group, values []float64) {
	for i, node := range g.expiry {
		n := len(g.built.Metrics[i].Points)
		points := values[:n]
		values = values[n:]
		seen, h := g.sightingOf(node), hash(points)
		if seen.changed == 0 || seen.hash != h {
			seen.hash, seen.changed = h, max(x.now, math.SmallestNonzeroFloat64)
		}
		if x.now-seen.changed > g.ruling.ExpireAfter {
			for k := range points {
				points[k] = view.Absent
			}
			x.expired += n
		}
	}
}

// sighting is what the values of a node were when they were last looked at, and when they became
// so, in Unix seconds; 0 if they were never looked at.
type sighting struct {
	hash    uint64
	changed float64
}

// sightingOf returns what was seen of a node, for the caller to change.
func (g *group) sightingOf(n *node) *sighting {
	s := g.seen[n]
	if s == nil {
		if g.seen == nil {
			g.seen = map[*node]*sighting{}
		}
		s = &sighting{}
		g.seen[n] = s
	}
	return s
}

// hash tells lists of values apart, bit by bit.
func hash(values []float64) uint64 {
	h := uint64(14695981039346656037)
	for _, v := range values {
		h = (h ^ math.Float64bits(v)) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return h
}

// Expired is the number of series of the last Snapshot that were not served because they had
// not changed for too long.
func (x *Index) Expired() int { return x.expired }

// Dropped is the number of series that the last Snapshot left out because a ruling says so.
func (x *Index) Dropped() int { return x.dropped }

// Remember takes over from an index of the same sources what this one has not been there to
// see: when series have changed, and who was the newest. It makes the layout, so call it when
// all sources are there.
func (x *Index) Remember(old *Index) {
	x.now = old.now
	for name, before := range old.families {
		for _, og := range before.groups {
			x.rememberRank(og)
			fam := x.families[name]
			if fam == nil {
				continue
			}
			for _, g := range fam.groups {
				for on, seen := range og.seen {
					if n := g.nodes.get(x.share.findLabels(on.set.value)); n != nil && seen.changed > g.sightingOf(n).changed {
						*g.sightingOf(n) = *seen
					}
				}
			}
		}
	}
	x.Layout()
}

// rememberRank takes over when something was folded last into a group, and the group itself if it
// is only remembered.
func (x *Index) rememberRank(og *group) {
	fam := x.families[og.family.name]
	if fam == nil {
		fam = &family{name: og.family.name}
	}
	g := fam.group(og.class)
	if g == nil {
		if len(og.rivals) == 0 || og.nodes.len() > 0 {
			return // by what is in force now, its series are of another class
		}
		g = newGroup(fam, og.class, x.rulingOf(nil, fam.name, og.typ))
		g.kinds = og.kinds
		fam.groups = append(fam.groups, g)
		x.families[fam.name] = fam
		x.findRivals(g)
		if len(g.rivals) == 0 {
			x.emptied(g)
			return
		}
	}
	g.folded = max(g.folded, og.folded)
	x.unranked = true
}

// RememberSource takes over from a source of another index what Observe has seen of it: s has
// entries with the same slots.
func (s *Source) RememberSource(old *Source) {
	type observed struct{ stamp, seen float64 }
	known := map[uint32]observed{}
	slots := old.slots.Numbers()
	for i := range old.parts {
		p := &old.parts[i]
		if p.recent() {
			for k, e := range p.entries {
				known[slots[e]] = observed{p.stamps[k], p.seen[k]}
			}
		}
	}
	if len(known) == 0 {
		return
	}
	slots = s.slots.Numbers()
	for i := range s.parts {
		p := &s.parts[i]
		if p.recent() {
			for k, e := range p.entries {
				if o, ok := known[slots[e]]; ok {
					p.stamps[k], p.seen[k] = o.stamp, o.seen
				}
			}
		}
	}
}
