package merge

import (
	"math"

	"aggregatord/internal/view"
)

// expire takes the metrics out of a family's values that have not changed for too long. All
// points of a metric go together, and are back when one of them changes.
func (x *Index) expire(fam *family, values []float64) {
	for i, e := range fam.expiry {
		n := len(fam.built.Metrics[i].Points)
		points := values[:n]
		values = values[n:]
		h := hash(points)
		if e.node.changed == 0 || e.node.hash != h {
			e.node.hash, e.node.changed = h, max(x.now, math.SmallestNonzeroFloat64)
		}
		if e.after > 0 && x.now-e.node.changed > e.after {
			for k := range points {
				points[k] = view.Absent
			}
			x.expired += n
		}
	}
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
// see: when series have changed. It makes the layout, so call it when all sources are there.
func (x *Index) Remember(old *Index) {
	x.now = old.now
	x.Layout()
	for name, fam := range x.families {
		before := old.families[name]
		if before == nil {
			continue
		}
		for _, g := range fam.groups {
			for key, n := range g.nodes {
				for _, og := range before.groups {
					if on := og.nodes[key]; on != nil && on.changed > n.changed {
						n.hash, n.changed = on.hash, on.changed
					}
				}
			}
		}
	}
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
