package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
)

// Sizes of the layout, in bytes; see the package comment.
const (
	headerBytes = 8
	lengthBytes = 4
	valueBytes  = 8

	// Narrow is the width of a file whose entries have a value after the key.
	Narrow = 8
	// Wide is the width of a file whose entries have a value and a timestamp.
	Wide = 16
)

// An Entry is one record of a source file.
type Entry struct {
	// Key is borrowed: it is valid until the function it was yielded to returns.
	Key []byte
	// Offset is where the entry begins, in bytes from the start of the file.
	Offset int64
	// Slot is where its value lies: the offset in bytes, divided by 8. It is the same for
	// as long as the file is there.
	Slot uint32
	// Value and Stamp (Unix seconds, 0 for none and in narrow files) are what they were
	// when the key was read, by a plain read: they are exact if nobody was writing, as in
	// the file of a dead process. See [File.Load] for the file of a living one.
	Value, Stamp float64
}

// ValueOffset returns the offset of the value in bytes from the start of the file.
func (e Entry) ValueOffset() int64 { return int64(e.Slot) * valueBytes }

// padding returns how many spaces follow a key of n bytes: 1 to 8, so that with its length
// and padding the key fills multiples of 8. An aligned key gets 8 of them.
func padding(n int) int { return 8 - (lengthBytes+n)%8 }

// stampOf turns a stored timestamp into ours: the postmates fork stores +Inf for none.
func stampOf(f float64) float64 {
	if math.IsInf(f, 1) || math.IsNaN(f) {
		return 0
	}
	return f
}

// windowBytes is how much of a file is read at once. A window always holds a whole entry
// with a key of usual size; a longer one gets a window of its own.
const windowBytes = 64 << 10

// firstBytes is how much of a file is read at first: its header, and in most files all of
// the entries. A read of a hole costs little and makes no page.
const firstBytes = 16 << 10

// windows are shared by all files, because memory for each of thousands of them would be
// much more than is ever in use.
var windows = sync.Pool{New: func() any { return new([windowBytes]byte) }}

// errShort says that a file ends before its used bytes do.
var errShort = errors.New("the file ends before its used bytes")

// A window shows a file's bytes up to end, some at a time. It reads ahead, but never past
// end but for the first read of a file, before its used bytes are known; a read, unlike
// a touch through a mapping, allocates no memory in a hole.
type window struct {
	src io.ReaderAt
	end int64
	buf []byte // what is read into; replaced by a larger one if an entry needs it
	off int64  // offset of have in the file
	// have is what was read of the file.
	have []byte
}

// at returns the n bytes at off, which must end at or before end. They are borrowed: valid
// until the next call. The error is errShort or one of the operating system.
func (w *window) at(off int64, n int) ([]byte, error) {
	if i := off - w.off; i >= 0 && i+int64(n) <= int64(len(w.have)) {
		return w.have[i : i+int64(n)], nil
	}
	return w.fill(off, n)
}

func (w *window) fill(off int64, n int) ([]byte, error) {
	if n > len(w.buf) {
		w.buf = make([]byte, n)
	}
	size := max(int64(n), min(int64(len(w.buf)), w.end-off))
	got, err := w.src.ReadAt(w.buf[:size], off)
	w.off, w.have = off, w.buf[:got]
	if got >= n {
		return w.have[:n], nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = errShort
	}
	return nil, err
}

// A damage is a CorruptionError before the file's path is known. It is a value because
// guessing a file's width meets it on every file.
type damage struct {
	reason Reason
	offset int64
	// number is what the text of the reason speaks of.
	number int64
	err    error
}

// error returns the damage as an error; it must not be called on the zero damage.
func (d damage) error(path string) error {
	if d.reason == IO {
		return fmt.Errorf("read source file %q at byte %d: %w", path, d.offset, d.err)
	}
	err := d.err
	if err == nil {
		var text string
		switch d.reason {
		case ShortHeader:
			text = "the file has only %d bytes"
		case UsedNegative, UsedMisaligned:
			text = "its header says that %d bytes are used"
		case UsedPastEnd:
			text = "its header says that %d bytes are used, more than the file has"
		case UsedShrunk:
			text = "its header says that %d bytes are used, fewer than before"
		case BadKeyLength:
			text = "the length of a key is %d"
		case BadPadding:
			text = "a key of %d bytes is not followed by spaces"
		case BadKey:
			text = "a key of %d bytes is not a JSON array"
		case TornEntry:
			text = "an entry runs past the %d used bytes"
		case Shrunk:
			text = "the file has shrunk to %d bytes while it was read"
		}
		err = fmt.Errorf(text, d.number)
	}
	return &CorruptionError{Path: path, Offset: d.offset, Reason: d.reason, Err: err}
}

// entry reads the entry at off of a file with the given width and w.end used bytes. Its
// key is borrowed until the next call of a method of w. It returns the offset of the next
// entry. The damage is zero if the entry is well formed: cheap checks that a real entry
// passes and bytes read at a wrong place do not, not a parse of the key.
func (w *window) entry(off int64, width, keyLimit int) (e Entry, next int64, d damage) {
	// The used bytes and off are multiples of 8, so that a length can be read.
	head, err := w.at(off, lengthBytes)
	if err != nil {
		return e, off, w.unread(off, err)
	}
	n := int(int32(binary.LittleEndian.Uint32(head)))
	if n <= 0 || n > keyLimit {
		return e, off, damage{reason: BadKeyLength, offset: off, number: int64(n)}
	}
	text := lengthBytes + n + padding(n)
	next = off + int64(text+width)
	if next > w.end {
		return e, off, damage{reason: TornEntry, offset: off, number: w.end}
	}
	raw, err := w.at(off, text+width)
	if err != nil {
		return e, off, w.unread(off, err)
	}
	for _, c := range raw[lengthBytes+n : text] {
		if c != ' ' {
			return e, off, damage{reason: BadPadding, offset: off, number: int64(n)}
		}
	}
	key := raw[lengthBytes : lengthBytes+n : lengthBytes+n]
	// On machines that reorder stores, the used bytes may be seen before the last of the
	// entry's: no writer stores a zero byte in a key, so one means that it is not all here.
	if key[0] != '[' || key[n-1] != ']' || bytes.IndexByte(key, 0) >= 0 {
		return e, off, damage{reason: BadKey, offset: off, number: int64(n)}
	}
	e = Entry{
		Key:    key,
		Offset: off,
		Slot:   uint32((off + int64(text)) / valueBytes),
		Value:  float64At(raw[text:]),
	}
	if width == Wide {
		e.Stamp = stampOf(float64At(raw[text+valueBytes:]))
	}
	return e, next, damage{}
}

func float64At(b []byte) float64 { return math.Float64frombits(binary.LittleEndian.Uint64(b)) }

func (w *window) unread(off int64, err error) damage {
	if errors.Is(err, errShort) {
		return damage{reason: Shrunk, offset: off, err: err}
	}
	return damage{reason: IO, offset: off, err: err}
}

// count walks over at most limit entries and returns how many are well formed and where
// the last of them ends.
func (w *window) count(width, keyLimit, limit int) (n int, end int64) {
	off := int64(headerBytes)
	for ; n < limit && off < w.end; n++ {
		_, next, d := w.entry(off, width, keyLimit)
		if d.reason != "" {
			break
		}
		off = next
	}
	return n, off
}

// guessWidth returns the width of a file with w.end used bytes, of which there must be
// some: the one with which the walk ends exactly at the used bytes with every key well
// formed. If neither does, the file is damaged, and it is the one whose walk meets more
// entries, Narrow if they meet equally many.
//
// Two entries tell: in a wide file read as narrow the second key's length is half of a
// timestamp, and in a narrow one read as wide it is part of a key. So usually nothing
// further is looked at. Only a file made up for it lets both walks pass the second entry;
// if both even end exactly, it is wide: text never reads as a small length, while a
// timestamp may.
//
// The first entry's value lies at the same place in both, so that a wrong guess by one
// entry alone does no harm that the next one could not repair.
func (w *window) guessWidth(keyLimit int) int {
	limit := 2
	for {
		narrow, narrowEnd := w.count(Narrow, keyLimit, limit)
		wide, wideEnd := w.count(Wide, keyLimit, limit)
		switch {
		case narrow == limit && wide == limit && limit < math.MaxInt:
			limit = math.MaxInt
			continue
		case wideEnd == w.end:
			return Wide
		case narrowEnd == w.end:
			return Narrow
		case wide > narrow:
			return Wide
		}
		return Narrow
	}
}

// A cursor is a place between two entries of a file, from which the walk goes on when the
// used bytes have risen.
type cursor struct {
	// next is the offset of the next entry. While only one was met it is that of a narrow
	// file, as long as the width is a guess.
	next    int64
	width   int // 0 before the first entry
	entries int
}

// walk yields the entries from c on up to w.end, and moves c past those it yielded. With
// damage, c stays in front of it, so that the next walk meets it anew: it may have been
// a part that the writer had not yet written.
func (w *window) walk(c *cursor, keyLimit int, yield func(Entry)) damage {
	if c.next >= w.end {
		return damage{}
	}
	if c.entries < 2 {
		// One entry is no proof: see guessWidth.
		width := w.guessWidth(keyLimit)
		if c.entries == 1 {
			c.next += int64(width - c.width)
		}
		c.width = width
	}
	// The hot loop of a start: it allocates nothing. The cursor moves before the yield so
	// that the place is kept whatever the receiver does.
	for c.next < w.end {
		e, next, d := w.entry(c.next, c.width, keyLimit)
		if d.reason != "" {
			return d
		}
		c.next = next
		c.entries++
		yield(e)
	}
	return damage{}
}
