package archive

import (
	"cmp"
	"iter"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
)

// A Space is a kind of source file: what must be equal for the values of equal keys to be
// combined.
type Space struct {
	Type metric.Type
	// Mode is NoMode unless Type is Gauge. It is never a live mode: nothing of those is kept.
	Mode metric.Mode
	// Worker is the worker's ID where each worker's values are kept apart: in mode All, and for
	// gauges in other modes that are to go some time after their worker. Empty elsewhere.
	Worker string
}

// SpaceOf returns where the values of a source file go unless somebody says otherwise, and
// whether any are kept.
func SpaceOf(typ metric.Type, mode metric.Mode, worker string) (Space, bool) {
	s := Space{Type: typ, Mode: mode}
	if mode.Base() == metric.All {
		s.Worker = worker
	}
	return s, !mode.Live()
}

func compareSpaces(a, b Space) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Mode, b.Mode), strings.Compare(a.Worker, b.Worker))
}

// A Table is the keys of a space and their values. A key keeps its position for good, unless
// the archive's generation changes.
type Table struct {
	space  Space
	keys   keySet
	hi     []float64
	second []float64
	// folded is when a file was last folded into the table.
	folded time.Time
	// changed says that values or keys have changed since Totals.Changed was asked last.
	changed bool
	// id is the table's number on disk, 0 if it is not there; saved how many keys are.
	id    uint32
	saved int
	// loaded is how many values load has read so far.
	loaded int
}

// Space returns what the table is of.
func (t *Table) Space() Space { return t.space }

// Len is the number of keys.
func (t *Table) Len() int { return t.keys.len() }

// KeyBytes is how long all keys are together.
func (t *Table) KeyBytes() int64 { return t.keys.bytes }

// Key returns a copy of the raw key at a position.
func (t *Table) Key(pos int) string { return t.keys.get(pos) }

// AppendKey appends the raw key at a position.
func (t *Table) AppendKey(dst []byte, pos int) []byte { return t.keys.appendKey(dst, pos) }

// Find returns the position of a raw key.
func (t *Table) Find(key []byte) (pos int, ok bool) {
	p, ok := t.keys.find(key)
	return int(p), ok
}

// Values returns the first halves by position. They must not be changed.
func (t *Table) Values() []float64 { return t.hi }

// Stamps returns the second halves by position. They must not be changed.
func (t *Table) Stamps() []float64 { return t.second }

// Value returns what the key at a position stands for: a value, and in the most recent modes
// when it was set, in Unix seconds; 0 then says that it never was.
func (t *Table) Value(pos int) (value, stamp float64) {
	hi, second := t.hi[pos], t.second[pos]
	switch {
	case t.space.stamped():
		return hi, second
	case !t.space.summed(): // NaN, of what is not added
		return hi, 0
	}
	if sum := hi + second; !math.IsNaN(sum) && !math.IsInf(sum, 0) {
		return sum, 0
	}
	return hi, 0 // where a sum has left the finite numbers its error means nothing
}

// LastFold is when a file was last folded into the table.
func (t *Table) LastFold() time.Time { return t.folded }

func newTable(space Space) *Table { return &Table{space: space, changed: true} }

// add combines a value with that of a key, and reports whether the key is new.
func (t *Table) add(key []byte, value, second float64) (fresh bool) {
	pos, ok := t.keys.find(key)
	if !ok {
		pos = t.append(key)
	}
	t.combine(pos, value, second)
	return !ok
}

// append adds a key that stands for nothing yet.
func (t *Table) append(key []byte) uint32 {
	t.hi = append(t.hi, t.space.zero())
	t.second = append(t.second, 0)
	return t.keys.append(key)
}

func (t *Table) combine(pos uint32, value, second float64) {
	t.changed = true
	t.hi[pos], t.second[pos] = t.space.combine(t.hi[pos], t.second[pos], value, second)
}

// zero is what combine starts from.
func (s Space) zero() float64 { return merge.Zero(s.Type, s.Mode) }

// summed reports whether values are added.
func (s Space) summed() bool { return s.zero() == 0 }

// counted reports whether values are added that only grow: all but gauges.
func (s Space) counted() bool { return s.Type != metric.Gauge }

// combine is merge.Combine, but that a sum never becomes NaN: of two infinities the one that
// was there stays. A sum that earlier versions have let become NaN begins anew.
func (s Space) combine(hi, second, v, vsecond float64) (float64, float64) {
	if !s.summed() {
		return merge.Combine(s.Type, s.Mode, hi, second, v, vsecond)
	}
	if math.IsNaN(hi) {
		hi, second = 0, 0
	}
	sum, err := merge.Combine(s.Type, s.Mode, hi, second, v, vsecond)
	if math.IsNaN(sum) {
		return hi, second
	}
	return sum, err
}

// Totals are the tables of all spaces. The zero value is empty and ready for use. It is not
// safe for concurrent use.
type Totals struct {
	tables map[Space]*Table
}

// Table returns the table of a space, or nil.
func (t *Totals) Table(s Space) *Table { return t.tables[s] }

// Spaces iterates over the tables in a fixed order.
func (t *Totals) Spaces() iter.Seq2[Space, *Table] {
	return func(yield func(Space, *Table) bool) {
		for _, s := range slices.SortedFunc(maps.Keys(t.tables), compareSpaces) {
			if !yield(s, t.tables[s]) {
				return
			}
		}
	}
}

// Changed iterates over the tables that were changed since it was asked last.
func (t *Totals) Changed() iter.Seq2[Space, *Table] {
	return func(yield func(Space, *Table) bool) {
		for s, table := range t.tables {
			if !table.changed {
				continue
			}
			table.changed = false
			if !yield(s, table) {
				return
			}
		}
	}
}

// Empty reports whether there is nothing in it.
func (t *Totals) Empty() bool { return len(t.tables) == 0 }

// Series is the number of keys in all tables.
func (t *Totals) Series() int {
	n := 0
	for _, table := range t.tables {
		n += table.Len()
	}
	return n
}

func (t *Totals) table(s Space) *Table {
	table := t.tables[s]
	if table == nil {
		table = newTable(s)
		if t.tables == nil {
			t.tables = map[Space]*Table{}
		}
		t.tables[s] = table
	}
	return table
}

// KeyBytes is how long the keys of all tables are together.
func (t *Totals) KeyBytes() int64 {
	n := int64(0)
	for _, table := range t.tables {
		n += table.KeyBytes()
	}
	return n
}

// Add combines one value with what the key has, and says when.
func (t *Totals) Add(s Space, key []byte, value, second float64, now time.Time) {
	t.add(s, key, value, second, now)
}

// add is Add. It reports whether the key is new.
func (t *Totals) add(s Space, key []byte, value, second float64, now time.Time) (fresh bool) {
	table := t.table(s)
	fresh = table.add(key, value, second)
	if now.After(table.folded) {
		table.folded = now
	}
	return fresh
}

// merge combines everything in from with t.
func (t *Totals) merge(from *Totals) {
	for s, src := range from.tables {
		dst := t.table(s)
		var raw []byte
		for i := range src.Len() {
			raw = src.AppendKey(raw[:0], i)
			pos, ok := dst.keys.find(raw)
			if !ok {
				pos = dst.append(raw)
			}
			dst.combine(pos, src.hi[i], src.second[i])
		}
		if src.folded.After(dst.folded) {
			dst.folded = src.folded
		}
	}
}
