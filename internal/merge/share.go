package merge

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"unsafe"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A Share keeps what several indexes have in common once: raw keys, labels, and the lists that
// layouts are made of. Pools of one application have nearly all of that in common. It forgets
// what no index uses any more. It is safe for several goroutines; those of different indexes
// wait for each other only when a series appears or goes.
type Share struct {
	keys    pile[string]
	labels  pile[[]metric.Label]
	points  pile[[]view.Point]
	metrics pile[[]view.Metric]
	lists   cellLists
	// parsed are keys that another index had before.
	parsed parsedKeys
	// sums is the memory in which indexes add up values.
	sums sumLists
}

// NewShare returns an empty Share.
func NewShare() *Share { return &Share{} }

// Len is the number of things that it keeps.
func (s *Share) Len() int { return s.keys.len() + s.labels.len() + s.points.len() + s.metrics.len() }

// cellLists has the list of cells that a source was left with last, by class: the next one often has
// the same, as of another worker that has counted in the same order, or in a pool that is equal.
type cellLists struct {
	mu   sync.Mutex // guards last
	last map[class][]uint32
}

// one returns an equal list without room for more: the one of the source before, if it can be.
func (l *cellLists) one(c class, cells []uint32) []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if last := l.last[c]; slices.Equal(last, cells) {
		return last
	}
	if n := len(cells); cap(cells)-n > n/16 {
		cells = append(make([]uint32, 0, n), cells...)
	}
	if l.last == nil {
		l.last = map[class][]uint32{}
	}
	l.last[c] = slices.Clip(cells)
	return l.last[c]
}

func (l *cellLists) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = nil
}

// parsedKeys remembers some keys of those in several indexes, as they were parsed: what many pools have
// in common is parsed once or twice, and a start leaves less garbage between what stays.
type parsedKeys struct {
	mu    sync.Mutex // guards slots
	slots []parsedKey
}

// parsedMost is how many keys are remembered, a power of two.
const parsedMost = 2048

type parsedKey struct {
	of  *kept[string]
	key metric.Key // whose labels nobody changes
}

// parse returns what parse, which is the same for all of a Share, makes of a raw key. The caller may
// change the labels.
func (s *Share) parse(raw []byte, hash uint32, parse func([]byte) (metric.Key, error)) (metric.Key, error) {
	e := s.keys.find(hash, func(v string) bool { return v == string(raw) })
	if e == nil {
		return parse(raw)
	}
	key, known := s.parsed.get(e)
	if !known {
		var err error
		if key, err = parse(raw); err != nil {
			return key, err
		}
		s.parsed.put(e, key)
	}
	key.Series.Labels = slices.Clone(key.Series.Labels)
	return key, nil
}

func (p *parsedKeys) get(e *kept[string]) (key metric.Key, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slots == nil {
		return key, false
	}
	s := &p.slots[e.hash%parsedMost]
	return s.key, s.of == e
}

func (p *parsedKeys) put(e *kept[string], key metric.Key) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slots == nil {
		p.slots = make([]parsedKey, parsedMost)
	}
	p.slots[e.hash%parsedMost] = parsedKey{e, key}
}

func (p *parsedKeys) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots = nil
}

// sums are the cells' values while a snapshot of an index is made, in two halves: see operations.
type sums struct{ hi, lo []float64 }

// sumLists keeps as many sums as there are snapshots in the making at once. Indexes of one Share
// use the same memory one after the other, which stays in the processor's caches, too.
type sumLists struct {
	mu   sync.Mutex // guards free
	free []*sums
}

// get returns sums for so many cells or more, with anything in them.
func (l *sumLists) get(cells int) *sums {
	s := l.last()
	if len(s.hi) < cells {
		s.hi, s.lo = make([]float64, cells), make([]float64, cells)
	}
	return s
}

func (l *sumLists) last() *sums {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free)
	if n == 0 {
		return &sums{}
	}
	s := l.free[n-1]
	l.free = l.free[:n-1]
	return s
}

func (l *sumLists) put(s *sums) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = append(l.free, s)
}

// forget gives back the memory: the largest index may be gone.
func (l *sumLists) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.free = nil
}

// A kept is an entry of a pile: is one value for all who use it. It never changes.
type kept[V any] struct {
	value V
	hash  uint32
	refs  uint32 // guarded by the pile's mu
}

// pile is a set of values by what is in them: an open hash table with linear probing.
type pile[V any] struct {
	// mu guards all below and the refs of all entries.
	mu    sync.Mutex
	slots []*kept[V] // a power of two, at most three quarters full
	n     int
}

func (p *pile[V]) len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

// get returns the entry whose value equal says yes to, or one with what fresh returns. The
// caller has a reference of it, to be given back by put.
func (p *pile[V]) get(hash uint32, equal func(V) bool, fresh func() V) *kept[V] {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.findLocked(hash, equal); e != nil {
		e.refs++
		return e
	}
	if (p.n+1)*4 > len(p.slots)*3 {
		p.growLocked()
	}
	e := &kept[V]{value: fresh(), hash: hash, refs: 1}
	p.insertLocked(e)
	p.n++
	return e
}

// find returns the entry without a reference of it, nil if there is none.
func (p *pile[V]) find(hash uint32, equal func(V) bool) *kept[V] {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.findLocked(hash, equal)
}

func (p *pile[V]) findLocked(hash uint32, equal func(V) bool) *kept[V] {
	if len(p.slots) == 0 {
		return nil
	}
	mask := uint32(len(p.slots) - 1)
	for i := hash & mask; p.slots[i] != nil; i = (i + 1) & mask {
		if e := p.slots[i]; e.hash == hash && equal(e.value) {
			return e
		}
	}
	return nil
}

func (p *pile[V]) insertLocked(e *kept[V]) {
	mask := uint32(len(p.slots) - 1)
	i := e.hash & mask
	for p.slots[i] != nil {
		i = (i + 1) & mask
	}
	p.slots[i] = e
}

// grow makes room for so many more entries.
func (p *pile[V]) grow(more int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if size := slotsFor(p.n + more); size > len(p.slots) {
		p.resizeLocked(size)
	}
}

// slotsFor is how long a table for so many entries is: a power of two, three quarters full at most.
func slotsFor(entries int) int {
	size := 8
	for entries*4 > size*3 {
		size *= 2
	}
	return size
}

func (p *pile[V]) growLocked() { p.resizeLocked(max(8, 2*len(p.slots))) }

func (p *pile[V]) resizeLocked(size int) {
	old := p.slots
	p.slots = make([]*kept[V], size)
	for _, e := range old {
		if e != nil {
			p.insertLocked(e)
		}
	}
}

// put gives back a reference; nil is none.
func (p *pile[V]) put(e *kept[V]) {
	if e == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.refs--; e.refs > 0 {
		return
	}
	mask := uint32(len(p.slots) - 1)
	gap := e.hash & mask
	for p.slots[gap] != e {
		gap = (gap + 1) & mask
	}
	p.slots[gap] = nil
	p.n--
	// What came after it because its place was taken moves up.
	for i := (gap + 1) & mask; p.slots[i] != nil; i = (i + 1) & mask {
		if home := p.slots[i].hash & mask; (i-home)&mask >= (i-gap)&mask {
			p.slots[gap], p.slots[i] = p.slots[i], nil
			gap = i
		}
	}
	if len(p.slots) > 64 && p.n < len(p.slots)/8 {
		old := p.slots
		p.slots = make([]*kept[V], len(old)/4)
		for _, e := range old {
			if e != nil {
				p.insertLocked(e)
			}
		}
	}
}

var seed = maphash.MakeSeed()

func hashBytes(b []byte) uint32 { return uint32(maphash.Bytes(seed, b)) }

// key returns the one entry of a raw key, of which it keeps a copy.
func (s *Share) key(raw []byte, hash uint32) *kept[string] {
	return s.keys.get(hash, func(v string) bool { return v == string(raw) }, func() string { return string(raw) })
}

func hashLabels(labels []metric.Label) uint32 {
	var h maphash.Hash
	h.SetSeed(seed)
	for _, l := range labels {
		h.WriteString(l.Name)
		h.WriteByte(0xff) // in no UTF-8 text
		h.WriteString(l.Value)
		h.WriteByte(0xff)
	}
	return uint32(h.Sum64())
}

// labelSet returns the one entry of a list of labels, which it may keep.
func (s *Share) labelSet(labels []metric.Label) *kept[[]metric.Label] {
	return s.labels.get(hashLabels(labels), func(v []metric.Label) bool { return slices.Equal(v, labels) },
		func() []metric.Label { return slices.Clip(labels) })
}

func (s *Share) findLabels(labels []metric.Label) *kept[[]metric.Label] {
	return s.labels.find(hashLabels(labels), func(v []metric.Label) bool { return slices.Equal(v, labels) })
}

// pointList returns the one entry of a list of points, of which it keeps a copy.
func (s *Share) pointList(points []view.Point) *kept[[]view.Point] {
	var h maphash.Hash
	h.SetSeed(seed)
	var b [10]byte
	for _, p := range points {
		b[0], b[1] = byte(p.Kind), byte(p.Style)
		binary.LittleEndian.PutUint64(b[2:], math.Float64bits(p.Bound))
		h.Write(b[:])
	}
	return s.points.get(uint32(h.Sum64()), func(v []view.Point) bool { return slices.Equal(v, points) },
		func() []view.Point { return slices.Clone(points) })
}

// metricList returns the one entry of a list of metrics whose labels and points are those of
// entries; it may keep the list.
func (s *Share) metricList(metrics []view.Metric) *kept[[]view.Metric] {
	var h maphash.Hash
	h.SetSeed(seed)
	same := func(a, b *view.Metric) bool {
		return unsafe.SliceData(a.Labels) == unsafe.SliceData(b.Labels) && len(a.Labels) == len(b.Labels) &&
			unsafe.SliceData(a.Points) == unsafe.SliceData(b.Points) && len(a.Points) == len(b.Points)
	}
	for i := range metrics {
		m := &metrics[i]
		maphash.WriteComparable(&h, unsafe.SliceData(m.Labels))
		maphash.WriteComparable(&h, unsafe.SliceData(m.Points))
	}
	return s.metrics.get(uint32(h.Sum64()), func(v []view.Metric) bool {
		if len(v) != len(metrics) {
			return false
		}
		for i := range v {
			if !same(&v[i], &metrics[i]) {
				return false
			}
		}
		return true
	}, func() []view.Metric { return slices.Clip(metrics) })
}

// keyTable finds the cells of raw keys: an open hash table of the numbers of keys.
type keyTable struct {
	keys  []keyRef
	slots []uint32 // a power of two, at most three quarters full: number of a key + 1, or 0
}

type keyRef struct {
	key  *kept[string]
	cell uint32
}

// find returns the cell that a raw key leads to.
func (t *keyTable) find(hash uint32, raw []byte) (cell uint32, ok bool) {
	if len(t.slots) == 0 {
		return 0, false
	}
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; t.slots[i] != 0; i = (i + 1) & mask {
		k := &t.keys[t.slots[i]-1]
		if k.key.hash == hash && k.key.value == string(raw) { // the conversion does not allocate
			return k.cell, true
		}
	}
	return 0, false
}

// add makes a key that is not there lead to a cell.
func (t *keyTable) add(key *kept[string], cell uint32) {
	t.keys = append(t.keys, keyRef{key, cell})
	if len(t.keys)*4 > len(t.slots)*3 {
		t.rebuild(max(8, 2*len(t.slots)))
		return
	}
	t.insert(len(t.keys))
}

func (t *keyTable) insert(number int) {
	mask := uint32(len(t.slots) - 1)
	i := t.keys[number-1].key.hash & mask
	for t.slots[i] != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = uint32(number)
}

func (t *keyTable) rebuild(size int) {
	t.slots = make([]uint32, size)
	for n := range t.keys {
		t.insert(n + 1)
	}
}

// remove takes out the keys that gone says yes to.
func (t *keyTable) remove(gone func(keyRef) bool) {
	before := len(t.keys)
	t.keys = slices.DeleteFunc(t.keys, gone)
	if len(t.keys) == before {
		return
	}
	t.rebuild(slotsFor(len(t.keys)))
}

// compact gives back the room for more keys, where it is much.
func (t *keyTable) compact() {
	if n := len(t.keys); cap(t.keys)-n > n/16 {
		t.keys = append(make([]keyRef, 0, n), t.keys...)
	}
}

// grow makes room for so many more keys.
func (t *keyTable) grow(more int) {
	t.keys = slices.Grow(t.keys, more)
	if size := slotsFor(len(t.keys) + more); size > len(t.slots) {
		t.rebuild(size)
	}
}
