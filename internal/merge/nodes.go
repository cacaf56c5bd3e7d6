package merge

import (
	"iter"

	"aggregatord/internal/metric"
)

// nodeTable is a set of nodes by node.set: an open hash table with linear probing, of which there is
// one for each group, with a node for each of its metrics.
type nodeTable struct {
	slots []*node // a power of two, at most three quarters full
	n     int
}

func (t *nodeTable) len() int { return t.n }

// get returns the node with a set of labels, nil if there is none.
func (t *nodeTable) get(set *kept[[]metric.Label]) *node {
	if t.n == 0 || set == nil {
		return nil
	}
	mask := uint32(len(t.slots) - 1)
	for i := set.hash & mask; t.slots[i] != nil; i = (i + 1) & mask {
		if t.slots[i].set == set {
			return t.slots[i]
		}
	}
	return nil
}

// add adds a node whose labels no other one has.
func (t *nodeTable) add(n *node) {
	t.n++
	if t.n*4 > len(t.slots)*3 {
		old := t.slots
		t.slots = make([]*node, max(2, 2*len(old)))
		for _, o := range old {
			if o != nil {
				t.insert(o)
			}
		}
	}
	t.insert(n)
}

func (t *nodeTable) insert(n *node) {
	mask := uint32(len(t.slots) - 1)
	i := n.set.hash & mask
	for t.slots[i] != nil {
		i = (i + 1) & mask
	}
	t.slots[i] = n
}

// remove takes out a node that is there.
func (t *nodeTable) remove(n *node) {
	if t.n--; t.n == 0 {
		t.slots = nil
		return
	}
	mask := uint32(len(t.slots) - 1)
	gap := n.set.hash & mask
	for t.slots[gap] != n {
		gap = (gap + 1) & mask
	}
	t.slots[gap] = nil
	// What came after it because its place was taken moves up.
	for i := (gap + 1) & mask; t.slots[i] != nil; i = (i + 1) & mask {
		if home := t.slots[i].set.hash & mask; (i-home)&mask >= (i-gap)&mask {
			t.slots[gap], t.slots[i] = t.slots[i], nil
			gap = i
		}
	}
}

// all iterates over the nodes, in no order.
func (t *nodeTable) all() iter.Seq[*node] {
	return func(yield func(*node) bool) {
		for _, n := range t.slots {
			if n != nil && !yield(n) {
				return
			}
		}
	}
}
