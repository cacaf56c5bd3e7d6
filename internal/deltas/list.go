// Package deltas keeps numbers that rise, such as the places of the values in a file, in a
// quarter of the memory: mostly a byte each, which is how much one is above the last.
package deltas

import (
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
)

// A List holds numbers, each larger than the one before. The zero List is empty. It may be
// read by several goroutines while nobody appends.
type List struct {
	// steps has a byte for each number, which is how much it is above the last one, or above 0.
	// Where that is too much, the byte is far and the number itself follows.
	steps []byte
	last  uint32
	n     int
}

const (
	far      = 0xff
	farBytes = 4 // that follow it
)

// Of returns a List of these numbers.
func Of(numbers ...uint32) *List {
	l := &List{}
	for _, n := range numbers {
		l.Append(n)
	}
	return l
}

// Append adds a number, which must be larger than the last one.
func (l *List) Append(n uint32) {
	if n <= l.last && l.n > 0 {
		panic(fmt.Sprintf("BUG: %d follows %d in a list of rising numbers", n, l.last))
	}
	if step := n - l.last; step < far {
		l.steps = append(l.steps, byte(step))
	} else {
		l.steps = binary.LittleEndian.AppendUint32(append(l.steps, far), n)
	}
	l.last = n
	l.n++
}

// Len returns how many numbers there are.
func (l *List) Len() int { return l.n }

// Grow makes room for so many more numbers, if they follow one another closely.
func (l *List) Grow(n int) { l.steps = slices.Grow(l.steps, n) }

// roomy is how many bytes of room for more are not worth a copy: the allocator rounds up as well.
const roomy = 16

// Compact gives back the room for more numbers, where it is much.
func (l *List) Compact() {
	if n := len(l.steps); cap(l.steps)-n > max(roomy, n/16) {
		l.steps = append(make([]byte, 0, n), l.steps...)
	}
}

// All iterates over the numbers and how many were before each.
func (l *List) All() iter.Seq2[int, uint32] {
	return func(yield func(int, uint32) bool) {
		var buf [BlockLen]uint32
		i := 0
		for r := l.Reader(); ; {
			block := r.Read(&buf)
			if len(block) == 0 {
				return
			}
			for _, n := range block {
				if !yield(i, n) {
					return
				}
				i++
			}
		}
	}
}

// Numbers returns the numbers in a slice of its own.
func (l *List) Numbers() []uint32 {
	all := make([]uint32, 0, l.n)
	for _, n := range l.All() {
		all = append(all, n)
	}
	return all
}

// BlockLen is the length of a buffer for Read. Fewer are read slower, and more hardly faster.
const BlockLen = 1024

// A Reader reads the numbers that are in a List when it is made.
type Reader struct {
	rest []byte
	at   uint32
}

// Reader returns one that is before the first number.
func (l *List) Reader() Reader { return Reader{rest: l.steps} }

// Read returns the numbers that come next, in buf, or none at the end. A loop that then looks
// something up for each of them, and does nothing else, has the processor look up many at once;
// one that finds out number by number where to look does not.
func (r *Reader) Read(buf *[BlockLen]uint32) []uint32 {
	rest, at, n, k := r.rest, r.at, 0, 0
	for n < len(buf) && k < len(rest) {
		// Eight bytes at once, as long as none of them is far: a byte of ^eight would be 0.
		for n <= len(buf)-8 && k <= len(rest)-8 {
			eight := binary.LittleEndian.Uint64(rest[k:])
			if (^eight-0x0101010101010101)&eight&0x8080808080808080 != 0 {
				break
			}
			out := buf[n : n+8 : n+8]
			for i := range out {
				at += uint32(eight & 0xff)
				out[i] = at
				eight >>= 8
			}
			n, k = n+8, k+8
		}
		if n == len(buf) || k == len(rest) {
			break
		}
		step := rest[k]
		k++
		at += uint32(step)
		if step == far {
			at = binary.LittleEndian.Uint32(rest[k:])
			k += farBytes
		}
		buf[n] = at
		n++
	}
	r.rest, r.at = rest[k:], at
	return buf[:n]
}
