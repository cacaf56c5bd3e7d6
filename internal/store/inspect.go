package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
)

// An Inspection is all that can be told of a file, however damaged.
type Inspection struct {
	Path string
	// Size of the file and Used bytes of it, as its header has it, true or not.
	Size int64
	Used int64
	// Width is Narrow or Wide, 0 without entries; by one entry of a damaged file it is a guess.
	Width int
	// Entries are the well-formed ones in front of the damage, in file order.
	Entries []InspectedEntry
	// Damage is a [*CorruptionError] that names the first thing wrong, or nil. A key that
	// does not parse is damage of its entry only, and not shown here.
	Damage error
}

// An InspectedEntry is an [Entry] that owns its key.
type InspectedEntry struct {
	RawKey []byte
	// Key is what ParseKey made of it, unless KeyErr says why it could not. A key that is too
	// long (a [*KeyTooLongError]) is not shown.
	Key    metric.Key
	KeyErr error
	// Offset of the entry and of its value, in bytes from the start of the file.
	Offset, ValueOffset int64
	// Value and Stamp, in Unix seconds, 0 for none.
	Value, Stamp float64
}

// Inspect reads the file at path for people to look at. The name does not matter. It reads
// more of a damaged file than [File.Learn] trusts: if the header is wrong, what looks like
// entries up to the file's end. The error is one of [Open]; damage is no error.
func Inspect(path string, lim Limits) (Inspection, error) {
	lim = lim.withDefaults()
	fd, info, err := openRegular(unix.AT_FDCWD, path, path, lim, unix.O_RDONLY)
	if err != nil {
		return Inspection{}, err
	}
	in, err := inspectBytes(path, descriptor(fd), info.size, lim)
	return in, errors.Join(err, unix.Close(fd))
}

// inspectBytes inspects the size bytes of src.
func inspectBytes(path string, src io.ReaderAt, size int64, lim Limits) (Inspection, error) {
	in := Inspection{Path: path, Size: size}
	buf := windows.Get().(*[windowBytes]byte)
	defer windows.Put(buf)
	w := window{src: src, buf: buf[:], end: min(size, firstBytes)}
	if _, err := w.at(0, headerBytes); err != nil && !errors.Is(err, errShort) {
		return in, fmt.Errorf("read source file %q: %w", path, err)
	}
	var d damage
	in.Used, d = usedBytes(w.have[:min(len(w.have), headerBytes)], size)
	w.end = in.Used
	if d.reason != "" {
		w.end = size &^ 7
		if d.reason == UsedMisaligned {
			w.end = min(w.end, in.Used&^7)
		}
	}
	c := cursor{next: headerBytes}
	found := w.walk(&c, walk{format: format{keyLimit: lim.KeyBytes}}, func(e Entry) {
		ie := InspectedEntry{RawKey: bytes.Clone(e.Key), Offset: e.Offset, ValueOffset: e.ValueOffset(), Value: e.Value, Stamp: e.Stamp}
		if e.Err != nil {
			ie.KeyErr = e.Err
		} else {
			ie.Key, ie.KeyErr = ParseKey(ie.RawKey)
		}
		in.Entries = append(in.Entries, ie)
	})
	if c.entries > 0 {
		in.Width = c.width
	}
	if d.reason == "" {
		d = found
	}
	switch d.reason {
	case "":
	case IO:
		return in, d.error(path)
	default:
		in.Damage = d.error(path)
	}
	return in, nil
}
