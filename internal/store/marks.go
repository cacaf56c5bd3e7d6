package store

import (
	"encoding/binary"
	"fmt"
	"math"

	"aggregatord/internal/deltas"
)

// Two processes may write one file: two containers in which the pids are equal, or an ID that
// is not a process's own. Each has its own idea of where the file ends, and writes its new
// entries over those of the other. What lies where an entry was learned may then be another
// value, or text, which reads as an absurd number. So a position is believed only as long as
// the key at it is what it was. Three checks see to that, from the cheapest to the dearest:
//
//   - Each load adds up the words in front of all values it reads: the ends of the keys, with
//     their padding. They share a cache line with the value, mostly. The value is read first
//     and the word after it, so that whoever overwrote what we read has changed what we
//     read next. See base.
//   - Each load compares the keys of a small part of the file with what they were when they
//     were learned, so that sweepLoads loads compare all. See marks.
//   - [File.Verify] compares all of them. So do the first load of new entries, and Learn when
//     it meets damage.
//
// And no value is believed that is the beginning of an entry: see beginsKey.
//
// A file that fails one is lost: its values stay what they were before the load that failed.

// marks remember the bytes of the entries, all but values and timestamps: a hash for each few
// KiB of the file, 8 bytes of memory.
type marks struct {
	closed []mark
	// The mark that is still growing: where it begins and ends, in bytes, and its hash so far.
	begin, end int64
	hash       uint64
}

// A mark is the end of a part of a file, in units of 8 bytes, and the hash of the part.
type mark struct{ end, hash uint32 }

const (
	// markBytes is how much of a file has one mark, at least.
	markBytes = 4 << 10
	// hashedBytes is how much of an entry is hashed: the beginning, if its key is longer.
	hashedBytes = 4 << 10
	// sweepLoads is how many loads compare all keys of a file, each a part.
	sweepLoads = 256

	hashSeed   = 0x9e3779b97f4a7c15
	hashFactor = 0xff51afd7ed558ccd
)

// hashText hashes the words of an entry in front of its value. Any other content of one word
// makes another hash.
func hashText(text []byte) uint64 {
	if len(text) > hashedBytes {
		text = text[:hashedBytes]
	}
	// Two lanes, because each step waits for a multiplication.
	a, b := uint64(hashSeed), uint64(len(text))
	for ; len(text) >= 16; text = text[16:] {
		a = (a ^ binary.LittleEndian.Uint64(text)) * hashFactor
		b = (b ^ binary.LittleEndian.Uint64(text[8:])) * hashSeed
	}
	if len(text) >= 8 {
		a = (a ^ binary.LittleEndian.Uint64(text)) * hashFactor
	}
	return a ^ b ^ a>>32
}

func fold(hash uint64) uint32 { return uint32(hash ^ hash>>32) }

// expect makes room for the marks of a file with so many used bytes, if there are none yet.
func (m *marks) expect(used int64) {
	if n := used / markBytes; m.closed == nil && n > 1 {
		m.closed = make([]mark, 0, n)
	}
}

// add takes note of an entry with this hash that ends at end.
func (m *marks) add(hash uint64, end int64) {
	if m.begin == 0 {
		m.begin = headerBytes
	}
	m.hash = (m.hash ^ hash) * hashFactor
	m.end = end
	if m.end-m.begin >= markBytes {
		m.closed = append(m.closed, mark{uint32(end / valueBytes), fold(m.hash)})
		m.begin, m.hash = end, 0
	}
}

// move says that the only entry ends elsewhere, because the file is of another width.
func (m *marks) move(end int64) {
	if len(m.closed) > 0 {
		m.closed[0].end, m.begin = uint32(end/valueBytes), end
	}
	m.end = end
}

// len returns how many marks there are.
func (m *marks) len() int {
	if m.end > m.begin {
		return len(m.closed) + 1
	}
	return len(m.closed)
}

// mark returns one of them, and where it begins.
func (m *marks) mark(i int) (begin, end int64, hash uint32) {
	begin = headerBytes
	if i > 0 {
		begin = int64(m.closed[i-1].end) * valueBytes
	}
	if i == len(m.closed) {
		return begin, m.end, fold(m.hash)
	}
	return begin, int64(m.closed[i].end) * valueBytes, m.closed[i].hash
}

// at returns the mark in which the byte at off is.
func (m *marks) at(off int64) int {
	low, high := 0, len(m.closed)
	for low < high {
		if mid := (low + high) / 2; int64(m.closed[mid].end)*valueBytes <= off {
			low = mid + 1
		} else {
			high = mid
		}
	}
	return low
}

// compare compares the keys of one mark with what they were.
func (w *window) compare(m *marks, i, width int) damage {
	begin, end, want := m.mark(i)
	hash := uint64(0)
	off := begin
	for off < end {
		head, err := w.at(off, lengthBytes)
		if err != nil {
			return w.unread(off, err)
		}
		n := int(int32(binary.LittleEndian.Uint32(head)))
		if n <= 0 || int64(n) > end-off {
			break
		}
		text := lengthBytes + n + padding(n)
		raw, err := w.at(off, min(text, hashedBytes))
		if err != nil {
			return w.unread(off, err)
		}
		hash = (hash ^ hashText(raw)) * hashFactor
		off += int64(text + width)
	}
	if off != end || fold(hash) != want {
		return damage{reason: Overwritten, offset: begin, number: end}
	}
	return damage{}
}

// A base is what the words in front of the values of a list of slots add up to, for each
// block of the list as a Reader reads it.
type base struct {
	list *deltas.List
	n    int // how many slots of the list are in sums
	sums []uint64
}

// extend adds the slots that came since the last time.
func (b *base) extend(w *window, list *deltas.List, used int64, size int) damage {
	from := b.n / deltas.BlockLen
	b.sums = b.sums[:from]
	var buf [deltas.BlockLen]uint32
	r := list.Reader()
	for i := 0; ; i++ {
		block := r.Read(&buf)
		if len(block) == 0 {
			break
		}
		if i < from {
			continue
		}
		sum := uint64(0)
		for _, slot := range block {
			off := int64(slot) * valueBytes
			if off < headerBytes+valueBytes || off+int64(size) > used {
				panic(fmt.Sprintf("BUG: slot %d is not among the %d used bytes", slot, used))
			}
			raw, err := w.at(off-valueBytes, valueBytes)
			if err != nil {
				return w.unread(off, err)
			}
			sum += binary.LittleEndian.Uint64(raw)
		}
		b.sums = append(b.sums, sum)
	}
	b.list, b.n = list, list.Len()
	return damage{}
}

// wholeBase returns the base of a list in a settled file, if it is that of the whole list, or of
// nothing yet: then base.read makes it of what it reads. Otherwise nil.
func (f *File) wholeBase(list *deltas.List) *base {
	b := f.baseIn(list)
	if b.n != list.Len() && b.n > 0 {
		return nil
	}
	return b
}

// read is File.read for a settled file of which all used bytes have been read, with a base of
// wholeBase. It is the hot loop of a start, and allocates nothing but a new base.
func (b *base) read(used []byte, list *deltas.List, values, stamps []float64) damage {
	size := valueBytes
	if stamps != nil {
		size = Wide
	}
	known := b.n > 0
	var buf [deltas.BlockLen]uint32
	r := list.Reader()
	for i, k := 0, 0; ; k++ {
		block := r.Read(&buf)
		if len(block) == 0 {
			break
		}
		sum := uint64(0)
		for _, slot := range block {
			off := int(slot) * valueBytes
			if off < headerBytes+valueBytes || off+size > len(used) {
				panic(fmt.Sprintf("BUG: slot %d is not among the %d used bytes", slot, len(used)))
			}
			raw := used[off-valueBytes : off+size]
			sum += binary.LittleEndian.Uint64(raw)
			bits := binary.LittleEndian.Uint64(raw[valueBytes:])
			if beginsKey(bits) {
				if !known {
					b.list = nil
				}
				return damage{reason: Overwritten, offset: int64(off), number: int64(off)}
			}
			values[i] = math.Float64frombits(bits)
			if stamps != nil {
				stamps[i] = stampOf(float64At(raw[2*valueBytes:]))
			}
			i++
		}
		switch {
		case !known:
			b.sums = append(b.sums, sum)
		case b.sums[k] != sum:
			off := int64(block[len(block)-1]) * valueBytes
			return damage{reason: Overwritten, offset: off, number: off}
		}
	}
	b.n = list.Len()
	return damage{}
}

// baseIn returns the base of a list, which is empty if the list is new.
func (f *File) baseIn(list *deltas.List) *base {
	b := &f.bases[0]
	if b.list != list {
		b = &f.bases[1]
		if b.list != list {
			f.bases[0], f.bases[1] = f.bases[1], f.bases[0] // the older one goes
			b = &f.bases[0]
			*b = base{list: list, sums: b.sums[:0]}
		}
	}
	return b
}

// baseOf returns the base of a list, which must not change but by growing. It is made when
// a list is new or has grown: from then on, the words in front of the values must be what
// they are now, and now the keys are compared with what they were when they were learned.
// In a settled file they are not, unless it has grown: nobody can have changed them.
func (f *File) baseOf(w *window, list *deltas.List, size int) (*base, damage) {
	b := f.baseIn(list)
	if b.n == list.Len() {
		return b, damage{}
	}
	known := b.n
	if d := b.extend(w, list, f.used, size); d.reason != "" {
		b.list = nil
		return b, d
	}
	if f.settled && known == 0 {
		return b, damage{}
	}
	first := 0
	if known >= deltas.BlockLen {
		first = f.firstMark(list, known/deltas.BlockLen*deltas.BlockLen)
	}
	for i := first; i < f.marks.len(); i++ {
		if d := w.compare(&f.marks, i, f.cur.width); d.reason != "" {
			b.list = nil
			return b, d
		}
	}
	return b, damage{}
}

// firstMark returns the mark of the slot with that number in the list.
func (f *File) firstMark(list *deltas.List, number int) int {
	for i, slot := range list.All() {
		if i == number {
			return f.marks.at(int64(slot)*valueBytes - 1)
		}
	}
	return 0
}

// sweep compares the next part of the file's keys with what they were.
func (f *File) sweep(w *window) damage {
	for f.credit += f.used/sweepLoads + 1; ; f.swept++ {
		if f.swept >= f.marks.len() {
			f.swept = 0
		}
		if f.marks.len() == 0 {
			return damage{}
		}
		begin, end, _ := f.marks.mark(f.swept)
		if f.credit < end-begin {
			return damage{}
		}
		f.credit -= end - begin
		if d := w.compare(&f.marks, f.swept, f.cur.width); d.reason != "" {
			return d
		}
	}
}

// beginsKey reports whether the eight bytes of a value are the length of a key and its first four
// characters: an entry of another process begins exactly there, behind a key that is as it
// was. As a number that would be 1e77 or more, so it is none that anybody counts. What begins in
// capital letters may look like a usual number, and is not told.
func beginsKey(bits uint64) bool {
	return bits>>56-0x50 < 0x2f && bits>>32&0xffff == '['|'"'<<8 && uint32(bits) < 1<<24
}

// textual reports whether the eight bytes of a value may be a part of a key: characters only.
// About one in a thousand numbers looks the same, so it takes more than that.
func textual(v float64) bool {
	const tops, blanks = 0x8080808080808080, 0x2020202020202020
	bits := math.Float64bits(v)
	// No byte is 128 or above, and from none can 32 be subtracted in vain.
	return bits&tops == 0 && ((bits|tops)-blanks)&tops == tops || bits>>32&0xffff == '['|'"'<<8
}

// suspect reports whether the value or the timestamp of an entry certainly is, or may be, text.
func (e *Entry) suspect() (certain, maybe bool) {
	certain = beginsKey(math.Float64bits(e.Value)) || beginsKey(math.Float64bits(e.Stamp))
	return certain, certain || textual(e.Value) || textual(e.Stamp)
}
