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

// A Table is the keys of a space and their values. A key keeps its position for good.
type Table struct {
	space  Space
	keys   map[string]uint32
	raw    []string
	hi     []float64
	second []float64
	// folded is when a file was last folded into the table.
	folded time.Time
	// changed says that values or keys have changed since Totals.Changed was asked last.
	changed bool
	// id is the table's number on disk, 0 if it is not there; saved how many keys are.
	id    uint32
	saved int
}

// Space returns what the table is of.
func (t *Table) Space() Space { return t.space }

// Len is the number of keys.
func (t *Table) Len() int { return len(t.raw) }

// Key returns the raw key at a position.
func (t *Table) Key(pos int) string { return t.raw[pos] }

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
	case merge.Zero(t.space.Type, t.space.Mode) != 0: // NaN, of what is not added
		return hi, 0
	}
	if sum := hi + second; !math.IsNaN(sum) && !math.IsInf(sum, 0) {
		return sum, 0
	}
	return hi, 0 // where a sum has left the finite numbers its error means nothing
}

// LastFold is when a file was last folded into the table.
func (t *Table) LastFold() time.Time { return t.folded }

func newTable(space Space) *Table {
	return &Table{space: space, keys: map[string]uint32{}, changed: true}
}

// add combines a value with that of a key.
func (t *Table) add(key []byte, value, second float64) {
	pos, ok := t.keys[string(key)]
	if !ok {
		pos = t.append(string(key))
	}
	t.combine(pos, value, second)
}

func (t *Table) append(key string) uint32 {
	pos := uint32(len(t.raw))
	t.keys[key] = pos
	t.raw = append(t.raw, key)
	t.hi = append(t.hi, merge.Zero(t.space.Type, t.space.Mode))
	t.second = append(t.second, 0)
	return pos
}

func (t *Table) combine(pos uint32, value, second float64) {
	t.changed = true
	t.hi[pos], t.second[pos] = merge.Combine(t.space.Type, t.space.Mode, t.hi[pos], t.second[pos], value, second)
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

// Add combines one value with what the key has, and says when.
func (t *Totals) Add(s Space, key []byte, value, second float64, now time.Time) {
	table := t.table(s)
	table.add(key, value, second)
	if now.After(table.folded) {
		table.folded = now
	}
}

// merge combines everything in from with t.
func (t *Totals) merge(from *Totals) {
	for s, src := range from.tables {
		dst := t.table(s)
		for i, key := range src.raw {
			pos, ok := dst.keys[key]
			if !ok {
				pos = dst.append(key)
			}
			dst.combine(pos, src.hi[i], src.second[i])
		}
		if src.folded.After(dst.folded) {
			dst.folded = src.folded
		}
	}
}
