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
	// Err is not nil for an entry whose key is longer than the limit; then there is no Key.
	Err *KeyTooLongError
	// Tag is what the caller keeps with this key: 0 at first, afterwards what it has stored
	// for an equal key of this file or another one. It is nil without [Guesses], and valid
	// until the function returns.
	Tag *uint32
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
	// text is what the last entry has in front of its value, at least as much as is hashed.
	// It is borrowed as its key is.
	text []byte
	// damage is what is wrong with the last entry, if it is not well formed.
	damage damage
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
			text = "a key of %d bytes has zero bytes in it"
		case Overwritten:
			text = "its entries are no longer what they were, up to byte %d: several processes write it"
		case TornEntry:
			text = "an entry runs past the %d used bytes"
		case Shrunk:
			text = "the file has shrunk to %d bytes while it was read"
		}
		err = fmt.Errorf(text, d.number)
	}
	return &CorruptionError{Path: path, Offset: d.offset, Reason: d.reason, Err: err}
}

// A format is how the entries of a file are to be read.
type format struct {
	keyLimit int
	// settled says that nobody can be in the middle of writing an entry.
	settled bool
}

// entry reads the entry at off of a file with the given width and w.end used bytes into e,
// but for its Tag. Its key is borrowed until the next call of a method of w. It returns the
// offset of the next entry, and true if the entry is well formed: its length and its padding
// are what a writer makes, which bytes read at a wrong place are not. What the key says does
// not matter here. Otherwise w.damage says what is wrong.
func (w *window) entry(e *Entry, off int64, width int, f format) (next int64, ok bool) {
	// The used bytes and off are multiples of 8, so that a length can be read.
	head, err := w.at(off, lengthBytes)
	if err != nil {
		return w.fail(w.unread(off, err))
	}
	n := int(int32(binary.LittleEndian.Uint32(head)))
	if n <= 0 || int64(n) >= w.end {
		return w.fail(damage{reason: BadKeyLength, offset: off, number: int64(n)})
	}
	text := lengthBytes + n + padding(n)
	next = off + int64(text+width)
	if next > w.end {
		return w.fail(damage{reason: TornEntry, offset: off, number: w.end})
	}
	if n > f.keyLimit {
		return w.tooLong(e, off, n, width, f.keyLimit)
	}
	raw, err := w.at(off, text+width)
	if err != nil {
		return w.fail(w.unread(off, err))
	}
	if !blank(raw[lengthBytes+n : text]) {
		return w.fail(damage{reason: BadPadding, offset: off, number: int64(n)})
	}
	key := raw[lengthBytes : lengthBytes+n : lengthBytes+n]
	// On machines that reorder stores, the used bytes may be seen before the last of the
	// entry's: no client stores a zero byte in a key, so one means that it is not all here.
	if !f.settled && bytes.IndexByte(key, 0) >= 0 {
		return w.fail(damage{reason: BadKey, offset: off, number: int64(n)})
	}
	w.text = raw[:text]
	e.set(raw, off, text, width, key)
	return next, true
}

func (w *window) fail(d damage) (next int64, ok bool) {
	w.damage = d
	return 0, false
}

// set makes e the entry with these bytes.
func (e *Entry) set(raw []byte, off int64, text, width int, key []byte) {
	e.Key = key
	e.Offset = off
	e.Slot = uint32((off + int64(text)) / valueBytes)
	e.Value, e.Stamp = float64At(raw[text:]), 0
	if width == Wide {
		e.Stamp = stampOf(float64At(raw[text+valueBytes:]))
	}
	e.Err = nil
}

func blank(padding []byte) bool {
	for _, c := range padding {
		if c != ' ' {
			return false
		}
	}
	return true
}

// tooLong is entry for one whose key of n bytes is longer than the limit. Of the key only as
// much is read as is hashed.
func (w *window) tooLong(e *Entry, off int64, n, width, limit int) (next int64, ok bool) {
	pad := padding(n)
	text := lengthBytes + n + pad
	raw, err := w.at(off+int64(text-pad), pad+width)
	if err != nil {
		return w.fail(w.unread(off, err))
	}
	if !blank(raw[:pad]) {
		return w.fail(damage{reason: BadPadding, offset: off, number: int64(n)})
	}
	e.set(raw, off, pad, width, nil) // as if there were no text
	e.Slot = uint32((off + int64(text)) / valueBytes)
	e.Err = &KeyTooLongError{Offset: off, KeyBytes: n, Limit: limit}
	if w.text, err = w.at(off, min(text, hashedBytes)); err != nil {
		return w.fail(w.unread(off, err))
	}
	return off + int64(text+width), true
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
func (w *window) count(width int, f format, limit int) (n int, end int64) {
	off := int64(headerBytes)
	var e Entry
	for ; n < limit && off < w.end; n++ {
		next, ok := w.entry(&e, off, width, f)
		if !ok {
			break
		}
		off = next
	}
	return n, off
}

// guessedEntries is how many entries are looked at, at most, to guess a width.
const guessedEntries = 1 << 12

// guessWidth returns the width of a file with w.end used bytes, of which there must be
// some: the one with which the walk ends exactly at the used bytes with every key well
// formed. If neither does, the file is damaged, and it is the one whose walk meets more
// entries, Narrow if they meet equally many.
//
// Two entries tell: in a wide file read as narrow the second key's length is half of a
// timestamp, and in a narrow one read as wide it is part of a key. So usually nothing
// further is looked at. Only a file made up for it lets both walks pass the second entry;
// if both even end exactly, or go on and on, it is wide: text never reads as a small length,
// while a timestamp may.
//
// The first entry's value lies at the same place in both, so that a wrong guess by one
// entry alone does no harm that the next one could not repair.
func (w *window) guessWidth(f format) int {
	limit := 2
	for {
		narrow, narrowEnd := w.count(Narrow, f, limit)
		wide, wideEnd := w.count(Wide, f, limit)
		switch {
		case narrow == limit && wide == limit && limit < guessedEntries:
			limit = guessedEntries
			continue
		case wideEnd == w.end || wide == guessedEntries:
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

// A walk is one way over entries of a file.
type walk struct {
	format
	// marks, if not nil, remember the entries.
	marks *marks
	// guesses, if not nil, are used, and told of the entries.
	guesses *Guesses
	// stop is the offset at which to stop, 0 for none; toll, if not nil, brings it nearer by so
	// many bytes.
	stop int64
	toll *int64
}

// walk yields the entries from c on up to w.end, and moves c past those it yielded. With
// damage, c stays in front of it, so that the next walk meets it anew: it may have been
// a part that the writer had not yet written.
func (w *window) walk(c *cursor, how walk, yield func(Entry)) damage {
	if c.next >= w.end {
		return damage{}
	}
	if c.entries < 2 {
		// One entry is no proof: see guessWidth.
		width := w.guessWidth(how.format)
		if c.entries == 1 {
			c.next += int64(width - c.width)
			if how.marks != nil {
				how.marks.move(c.next)
			}
		}
		c.width = width
	}
	if how.guesses != nil && c.entries == 0 {
		how.guesses.start()
	}
	if how.marks != nil {
		how.marks.expect(w.end)
	}
	// The hot loop of a start: it allocates nothing. The cursor moves before the yield so
	// that the place is kept whatever the receiver does.
	var e Entry
	for c.next < w.end && (how.stop == 0 || c.next < how.stop) {
		next, ok := w.step(&e, c.next, c.width, &how)
		if !ok {
			return w.damage
		}
		c.next = next
		c.entries++
		yield(e)
		if how.toll != nil && how.stop > 0 {
			how.stop = max(1, how.stop-*how.toll)
			*how.toll = 0
		}
	}
	return damage{}
}

// step reads the entry at off, and remembers it.
func (w *window) step(e *Entry, off int64, width int, how *walk) (next int64, ok bool) {
	if how.guesses != nil {
		if next, ok = w.guessed(e, off, width, how); ok {
			return next, true
		}
	}
	if next, ok = w.entry(e, off, width, how.format); !ok {
		return next, false
	}
	certain, maybe := e.suspect()
	if certain {
		return w.fail(damage{reason: Overwritten, offset: off, number: next})
	}
	if maybe && next < w.end {
		// What two processes write over each other may still look like an entry here, with a
		// part of a key in the place of its value. Then what follows is none.
		if _, ok := w.entry(e, next, width, how.format); !ok {
			return w.fail(damage{reason: Overwritten, offset: off, number: next})
		}
		if next, ok = w.entry(e, off, width, how.format); !ok { // the look has moved the window on
			return next, false
		}
	}
	if how.marks == nil {
		return next, true
	}
	hash := hashText(w.text)
	how.marks.add(hash, next)
	if how.guesses != nil && e.Err == nil {
		e.Tag = how.guesses.wrong(w.text, hash)
	}
	return next, true
}

// guessed is step for an entry that is what the guesses say.
func (w *window) guessed(e *Entry, off int64, width int, how *walk) (next int64, ok bool) {
	e.Tag = nil
	text := how.guesses.guess()
	next = off + int64(len(text)+width)
	if len(text) == 0 || len(text) > how.keyLimit || next > w.end {
		return next, false
	}
	// What is equal to a good entry is as good.
	raw, err := w.at(off, len(text)+width)
	if err != nil || string(raw[:len(text)]) != string(text) {
		return next, false
	}
	n := lengthBytes + int(binary.LittleEndian.Uint32(text))
	e.set(raw, off, len(text), width, raw[lengthBytes:n:n])
	if _, maybe := e.suspect(); maybe {
		return next, false
	}
	hash, tag := how.guesses.right()
	e.Tag = tag
	if how.marks != nil {
		how.marks.add(hash, next)
	}
	return next, true
}
