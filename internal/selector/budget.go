package selector

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"regexp"
	"regexp/syntax"
	"slices"

	"aggregatord/internal/metric"
)

// Bounds of what Parse takes.
const (
	// maxText is the length of a selector, maxExpression that of a regular expression in it.
	maxText, maxExpression = 8192, 1024
	// maxMatchers is how many conditions a selector has.
	maxMatchers = 64
	// maxSize is the size of an expression in instructions. (a?){1000} has 2000; what people
	// write has fewer than 100.
	maxSize = 1000
)

// compile returns an expression that must match a whole value, and its size. The size is
// estimated before anything of that size is made.
func compile(text string) (re *regexp.Regexp, size int, err error) {
	if len(text) > maxExpression {
		return nil, 0, fmt.Errorf("it has %d bytes, more than %d", len(text), maxExpression)
	}
	tree, err := syntax.Parse(text, syntax.Perl)
	if err != nil {
		return nil, 0, err
	}
	if size = sizeOf(tree); size > maxSize {
		return nil, 0, fmt.Errorf("it is too large, as %d instructions; at most %d are allowed", size, maxSize)
	}
	re, err = regexp.Compile("^(?s:" + text + ")$")
	return re, size + 4, err
}

// sizeOf estimates the number of instructions of an expression from above. It grows with the
// product of nested repetitions.
func sizeOf(re *syntax.Regexp) int {
	n := 1 + len(re.Rune)/16 // a class of many ranges takes longer to search
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	inner := 0
	for _, sub := range re.Sub {
		inner = min(inner+sizeOf(sub), math.MaxInt32)
	}
	if re.Op == syntax.OpRepeat {
		inner = min((inner+1)*max(re.Min+1, re.Max), math.MaxInt32)
	}
	return min(n+inner+1, math.MaxInt32)
}

// A Budget bounds the work of the selectors that share it. When it is used up nothing matches
// any more, and Err says so. It belongs to one goroutine.
type Budget struct {
	// Steps is how much work is left: one for each series, and for each expression its size
	// times the length of the value.
	Steps int
	// Stop is asked now and then; an error ends the work. Nil: never.
	Stop func() error

	unasked int
	err     error
}

// ErrCost says that a selector costs too much.
var ErrCost = errors.New("the question costs too much: name the metric, or use a simpler expression")

const (
	// maxOne is how much work one expression may be for one value: it cannot be interrupted.
	maxOne = 1 << 24
	// askEvery is the work after which Stop is asked again: some milliseconds.
	askEvery = 1 << 18
)

// Within returns the selector with a budget. It may then be used by one goroutine only.
func (s Selector) Within(b *Budget) Selector {
	s.budget = b
	return s
}

// Err returns why nothing matches any more: ErrCost, the error of Stop, or nil.
func (b *Budget) Err() error { return b.err }

// spend reports whether so much work may be done.
func (b *Budget) spend(steps int) bool {
	switch {
	case b == nil:
		return true
	case b.err != nil:
		return false
	case steps > maxOne || steps > b.Steps:
		b.err = ErrCost
		return false
	}
	b.Steps -= steps
	if b.unasked += steps; b.unasked >= askEvery && b.Stop != nil {
		b.unasked = 0
		b.err = b.Stop()
	}
	return b.err == nil
}

// A Series is one series: its sample name, its labels sorted by name, and the label that
// tells a bucket or quantile from the others, if there is one.
type Series struct {
	Name              string
	Labels            []metric.Label
	BoundLabel, Bound string
}

// exact is a set of series.
type exact struct {
	seed  maphash.Seed
	names map[string]struct{}
	all   map[uint64][]Series
}

// Exact returns the selector of some series. It costs little for each series that it is asked
// about, however many it has.
func Exact(series ...Series) Selector {
	e := &exact{seed: maphash.MakeSeed(), names: map[string]struct{}{}, all: map[uint64][]Series{}}
	for _, s := range series {
		e.names[s.Name] = struct{}{}
		h := e.hash(s.Labels, s.Bound)
		e.all[h] = append(e.all[h], s)
	}
	sel := Selector{exact: e}
	if len(e.names) == 1 {
		sel.Name = series[0].Name
	}
	return sel
}

func (e *exact) hash(labels []metric.Label, bound string) uint64 {
	var h maphash.Hash
	h.SetSeed(e.seed)
	for _, l := range labels {
		h.WriteString(l.Name)
		h.WriteByte(0xff)
		h.WriteString(l.Value)
		h.WriteByte(0xff)
	}
	h.WriteString(bound)
	return h.Sum64()
}

func (e *exact) has(name string, labels []metric.Label, boundLabel, bound string) bool {
	if _, ok := e.names[name]; !ok {
		return false
	}
	return slices.ContainsFunc(e.all[e.hash(labels, bound)], func(s Series) bool {
		return s.Name == name && s.BoundLabel == boundLabel && s.Bound == bound && slices.Equal(s.Labels, labels)
	})
}
