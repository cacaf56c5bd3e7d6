package main

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"aggregatord/internal/metric"
)

// A floor does what nobody can avoid for a scrape of a directory, and nothing else:
// everything it needs to know, it knows beforehand.
type floor struct {
	dir *directory
	// cells are the merged values, other those that a second core merges.
	cells, other []float64
	// prefixes are the response without its numbers; ends says where each line's prefix
	// ends, and lines which number follows.
	prefixes []byte
	lines    []line
	text     []byte
}

// A line is one sample of the response.
type line struct {
	end  uint32 // of its prefix, in prefixes
	cell uint32
	op   lineOp
}

// lineOp says which number a line shows.
type lineOp uint8

const (
	// plain is the value of the cell, first that of the cell of a first bucket, next that
	// of another one added to the line before, and last the line before the sum.
	plain lineOp = iota
	first
	next
	last
)

// newFloor makes ready all that can be.
func newFloor(d *directory) *floor {
	f := &floor{dir: d, cells: make([]float64, len(d.schema.keys)), other: make([]float64, len(d.schema.keys))}
	families := slices.Clone(d.schema.families)
	slices.SortFunc(families, func(a, b family) int { return strings.Compare(a.name, b.name) })
	for i := range families {
		f.addFamily(&families[i])
	}
	return f
}

func (f *floor) addFamily(fam *family) {
	children := slices.Clone(fam.children)
	slices.SortFunc(children, func(a, b child) int { return metric.CompareLabels(a.labels, b.labels) })
	name := fam.name
	if fam.kind == counter {
		name += "_total"
	}
	f.prefixes = fmt.Appendf(f.prefixes, "# HELP %s %s\n# TYPE %s %s\n", name, fam.help, name, fam.kind.typ())
	add := func(suffix string, labels []metric.Label, cell int, op lineOp) {
		f.prefixes = append(f.prefixes, name...)
		f.prefixes = append(f.prefixes, suffix...)
		f.prefixes = append(appendLabels(f.prefixes, labels), ' ')
		f.lines = append(f.lines, line{uint32(len(f.prefixes)), uint32(cell), op})
	}
	for _, c := range children {
		switch fam.kind {
		case summary:
			add("_sum", c.labels, c.first+1, plain)
			add("_count", c.labels, c.first, plain)
		case histogram:
			for i, b := range fam.bounds {
				le := metric.Label{Name: "le", Value: string(metric.AppendBound(nil, b))}
				add("_bucket", append(slices.Clip(c.labels), le), c.first+1+i, []lineOp{next, first}[b2i(i == 0)])
			}
			// The count comes from the last bucket, two lines up.
			add("_sum", c.labels, c.first, plain)
			add("_count", c.labels, c.first, last)
		default:
			add("", c.labels, c.first, plain)
		}
	}
}

// appendLabels appends labels as a sample has them. Nothing in the generated values needs
// an escape.
func appendLabels(dst []byte, labels []metric.Label) []byte {
	for i, l := range labels {
		dst = append(dst, ",{"[b2i(i == 0)])
		dst = append(dst, l.Name...)
		dst = append(dst, '=', '"')
		dst = append(dst, l.Value...)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// load loads every value once, on one core.
func (f *floor) load() { f.loadPart(f.cells, f.dir.workers) }

// loadTwo loads every value once, on two cores.
func (f *floor) loadTwo() {
	half := len(f.dir.workers) / 2
	var wg sync.WaitGroup
	wg.Go(func() { f.loadPart(f.other, f.dir.workers[half:]) })
	f.loadPart(f.cells, f.dir.workers[:half])
	wg.Wait()
	from := f.dir.schema.firstCell[gaugeMax]
	for i, v := range f.other[:from] {
		f.cells[i] += v
	}
	for i, v := range f.other[from:] {
		f.cells[from+i] = max(f.cells[from+i], v)
	}
}

// loadPart merges the values of some workers. The loads are atomic because another
// process may store meanwhile; they cost what plain ones do.
func (f *floor) loadPart(cells []float64, workers []*worker) {
	clear(cells) // good for maxima, too: no generated value is negative
	for _, w := range workers {
		for k, file := range w {
			switch {
			case file == nil:
			case kind(k) == gaugeMax:
				for _, e := range file.entries {
					cells[e.cell] = max(cells[e.cell], math.Float64frombits(atomic.LoadUint64(&file.words[e.slot])))
				}
			default:
				for _, e := range file.entries {
					cells[e.cell] += math.Float64frombits(atomic.LoadUint64(&file.words[e.slot]))
				}
			}
		}
	}
}

// format writes the response into a buffer that is large enough after the first time.
func (f *floor) format() []byte {
	dst := f.text[:0]
	start := uint32(0)
	acc := 0.0
	for _, l := range f.lines {
		v := f.cells[l.cell]
		switch l.op {
		case first:
			acc = v
		case next:
			acc += v
			v = acc
		case last:
			v = acc
		}
		dst = append(dst, f.prefixes[start:l.end]...)
		if i := int64(v); float64(i) == v {
			dst = strconv.AppendInt(dst, i, 10)
		} else {
			dst = strconv.AppendFloat(dst, v, 'g', -1, 64)
		}
		dst = append(dst, '\n')
		start = l.end
	}
	f.text = dst
	return dst
}

// integralShare is the share of the merged values that are whole numbers.
func (f *floor) integralShare() float64 {
	n := 0
	for _, l := range f.lines {
		// A count is a number of whole observations; its line has no cell of its own.
		n += b2i(l.op == last || f.cells[l.cell] == math.Trunc(f.cells[l.cell]))
	}
	return float64(n) / float64(len(f.lines))
}

// ownPrefix begins the daemon's own metrics, which the floor does not have.
const ownPrefix = "aggregatord_"

// check compares a response of the daemon with the floor's. Only how sums are rounded may
// differ: the daemon carries what the floor forgets.
func check(daemon, floor []byte) error {
	rest := floor
	for l := range bytes.Lines(daemon) {
		name := bytes.TrimPrefix(bytes.TrimPrefix(l, []byte("# HELP ")), []byte("# TYPE "))
		if bytes.HasPrefix(name, []byte(ownPrefix)) {
			continue
		}
		i := bytes.IndexByte(rest, '\n') + 1
		want := rest[:i]
		rest = rest[i:]
		if !sameLine(l, want) {
			return fmt.Errorf("the daemon serves %q where %q is right", l, want)
		}
	}
	if len(rest) > 0 {
		return fmt.Errorf("the daemon serves nothing where %q is right", rest[:bytes.IndexByte(rest, '\n')])
	}
	return nil
}

func sameLine(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	i, j := bytes.LastIndexByte(a, ' '), bytes.LastIndexByte(b, ' ')
	if i < 0 || i != j || a[0] == '#' || !bytes.Equal(a[:i], b[:j]) {
		return false
	}
	x, errX := strconv.ParseFloat(string(bytes.TrimSpace(a[i:])), 64)
	y, errY := strconv.ParseFloat(string(bytes.TrimSpace(b[j:])), 64)
	return errX == nil && errY == nil && math.Abs(x-y) <= 1e-9*max(math.Abs(x), math.Abs(y))
}
