package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/deltas"
	"aggregatord/internal/metric"
)

// Limits bound what one file may cost us. Zero means the default.
type Limits struct {
	// FileBytes is the size of the largest file that is read, 1 GiB by default. A larger
	// one is refused, and one that grows beyond it yields no further entries.
	FileBytes int64
	// KeyBytes is the length of the longest key, 64 KiB by default. A longer one counts as
	// damage: neither it nor what follows it is read.
	KeyBytes int
}

func (l Limits) withDefaults() Limits {
	l.FileBytes = cmp.Or(l.FileBytes, 1<<30)
	l.KeyBytes = cmp.Or(l.KeyBytes, 64<<10)
	return l
}

// InForce returns the limits with the defaults filled in.
func (l Limits) InForce() Limits { return l.withDefaults() }

// Identity is what a file is, whatever it is called.
type Identity struct{ Dev, Ino uint64 }

// A File is an open source file. It belongs to whoever opened it, who closes it after
// the last use. One File is not safe for several goroutines at once; different Files
// are independent, even of one path.
//
// An error of one call leaves everything read before it valid. Unless [Reopenable] says
// otherwise, the next call may succeed.
type File struct {
	name    SourceName
	path    string
	lim     Limits
	fd      int      // -1 once closed
	mapper  *os.File // of the same descriptor, for mapping it; nil as long as it is settled
	id      Identity
	created time.Time
	born    bool        // created is the time of birth
	stat    unix.Stat_t // a buffer for fstat
	size    int64       // of the file, as last seen
	// used is the highest count of used bytes that was found right. Entries up to it
	// were yielded or are damaged, and no byte past it is touched through the mapping.
	used int64
	cur  cursor
	// ahead is what Prefetch has read from the start of the file, in a buffer of windows.
	ahead *[windowBytes]byte
	have  int
	// grown says that a read of values met more used bytes than these.
	grown bool
	// lost is set once the file was seen smaller than what was read of it: its entries
	// may have been written anew elsewhere, so that no position is trusted any more.
	lost    error
	mapping mapping
	settled bool
	// cumulative is nil but for histograms of the Ruby client.
	cumulative *cumulative
}

// Open opens the source file at path, of which name is what [ParseName] told. It refuses
// everything but regular files ([ErrNotRegular]; a symbolic link counts as what it is)
// and files beyond the limit ([ErrTooLarge]) without ever blocking, and reads nothing
// yet. Other errors wrap those of the operating system; see [ReasonOf].
func Open(path string, name SourceName, lim Limits) (*File, error) {
	lim = lim.withDefaults()
	fd, info, err := openRegular(path, lim)
	if err != nil {
		return nil, err
	}
	return &File{
		name: name, path: path, lim: lim, fd: fd,
		id: info.id, size: info.size, created: info.created, born: info.born, cur: cursor{next: headerBytes},
	}, nil
}

// fileInfo is what Open asks about a file.
type fileInfo struct {
	id      Identity
	mode    uint32
	size    int64
	created time.Time
	born    bool
}

// openRegular opens a regular file for reading. There may be many thousands, so this is
// as few system calls as can be: an os.File would cost three more for each.
func openRegular(path string, lim Limits) (fd int, info fileInfo, err error) {
	// The directory is written by others. O_NOFOLLOW: a link could lead anywhere.
	// O_NONBLOCK: opening a FIFO would wait for a writer.
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err = unix.Open(path, flags, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(path, flags, 0)
	}
	switch {
	case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO):
		// open(2): ELOOP for a symbolic link, ENXIO for a socket or a device that is not there.
		return -1, info, fmt.Errorf("open source file %q: %w: %w", path, ErrNotRegular, err)
	case err != nil:
		return -1, info, fmt.Errorf("open source file %q: %w", path, err)
	}
	info, err = statFile(fd)
	switch {
	case err != nil:
	case info.mode&unix.S_IFMT != unix.S_IFREG:
		err = ErrNotRegular
	case info.size > lim.FileBytes:
		err = fmt.Errorf("%d bytes: %w of %d", info.size, ErrTooLarge, lim.FileBytes)
	}
	if err != nil {
		return -1, info, errors.Join(fmt.Errorf("open source file %q: %w", path, err), unix.Close(fd))
	}
	return fd, info, nil
}

// statModified is statFile without a time of birth: the time of modification stands for it.
func statModified(fd int) (fileInfo, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fileInfo{}, err
	}
	return fileInfo{
		id:   Identity{Dev: uint64(st.Dev), Ino: st.Ino}, //nolint:unconvert // Dev is an int32 on macOS
		mode: uint32(st.Mode), size: st.Size,             //nolint:unconvert // Mode is a uint16 on macOS
		created: time.Unix(st.Mtim.Unix()),
	}, nil
}

// reader reads a file by its descriptor. Its memory is that of the File, so that it makes
// no garbage as an io.ReaderAt.
type reader File

// ReadAt implements io.ReaderAt.
func (r *reader) ReadAt(p []byte, off int64) (n int, err error) {
	return descriptor(r.fd).ReadAt(p, off)
}

type descriptor int

// ReadAt implements io.ReaderAt.
func (d descriptor) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		got, err := unix.Pread(int(d), p[n:], off+int64(n))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, err
		case got == 0:
			return n, io.EOF
		default:
			n += got
		}
	}
	return n, nil
}

// Name returns what Open was told.
func (f *File) Name() SourceName { return f.name }

// Path returns what Open was told; the file may have been renamed since.
func (f *File) Path() string { return f.path }

// Identity returns the device and inode of the file.
func (f *File) Identity() Identity { return f.id }

// Created returns when the file was made, where the file system records it, otherwise
// when it was last resized (a store through a mapping need not change the time of
// modification) as of Open.
func (f *File) Created() time.Time { return f.created }

// Born reports whether Created is when the file was made, to the nanosecond: together with
// Identity it then tells the file from all others, for ever.
func (f *File) Born() bool { return f.born }

// Size returns the size of the file in bytes, as last seen.
func (f *File) Size() int64 { return f.size }

// UsedBytes returns how many bytes of the file were used when it was last read.
func (f *File) UsedBytes() int64 { return f.used }

// Width returns Narrow or Wide, or 0 before the first entry. It is certain once the file
// was read to its end, or to its second entry.
func (f *File) Width() int {
	if f.cur.entries == 0 {
		return 0
	}
	return f.cur.width
}

// Entries returns how many entries were yielded so far.
func (f *File) Entries() int { return f.cur.entries }

// Mapped reports whether values are read through a mapping. False before the first Load,
// and where the system allows no more mappings.
func (f *File) Mapped() bool { return f.mapping.mem != nil }

// Fd returns the descriptor, open for reading until Close. It stands for the file itself,
// whatever happens to its name.
func (f *File) Fd() uintptr { return uintptr(f.fd) }

// SetSettled says whether the caller knows that nobody can write to the file, as that of
// a dead process. A settled file is not mapped but read, which is as good when nobody
// writes, cheaper for the once or twice that such a file is read, and does not count
// against vm.max_map_count.
func (f *File) SetSettled(settled bool) error {
	f.settled, f.grown = settled, false
	if !settled {
		f.readyToMap()
		return nil
	}
	return f.wrap("unmap", f.mapping.unmap())
}

// Settled reports what SetSettled has said last.
func (f *File) Settled() bool { return f.settled }

// readyToMap allocates what mapping takes: where mappings run out, memory does, too.
func (f *File) readyToMap() {
	if f.mapper == nil && f.fd >= 0 {
		f.mapper = os.NewFile(uintptr(f.fd), f.path)
	}
}

// Close unmaps and closes the file. Later calls of Learn and Load return os.ErrClosed.
func (f *File) Close() error {
	if f.fd < 0 {
		return os.ErrClosed
	}
	f.giveBack()
	err := f.wrap("unmap", f.mapping.unmap())
	if f.mapper != nil {
		err = errors.Join(err, f.mapper.Close())
	} else {
		err = errors.Join(err, f.wrap("close", unix.Close(f.fd)))
	}
	f.fd, f.mapper = -1, nil
	return err
}

func (f *File) wrap(action string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s source file %q: %w", action, f.path, err)
}

// lose makes the damage the File's last word.
func (f *File) lose(d damage) error {
	f.lost = d.error(f.path)
	return f.lost
}

// usable returns the error of a File that is closed or lost.
func (f *File) usable() error {
	if f.fd < 0 {
		return f.wrap("read", os.ErrClosed)
	}
	return f.lost
}

// refresh looks up the file's size.
func (f *File) refresh() error {
	if err := unix.Fstat(f.fd, &f.stat); err != nil {
		return f.wrap("stat", err)
	}
	f.size = f.stat.Size
	return nil
}

// Learn calls yield for every entry that appeared since the last call, in file order, and
// reads nothing else: once all entries are known it costs one load. The counts of the Ruby
// client's histograms are left out: they are in the buckets, too.
//
// A [*CorruptionError] says that the file is damaged, after the entries in front of the
// damage were yielded. The next call tries again at the same place, because a writer's
// count of used bytes can become visible before the last entry does. Other errors are
// those of the operating system and [ErrTooLarge]. The error of a file that has shrunk,
// or whose used bytes have, is for ever: see [Reopenable].
func (f *File) Learn(yield func(Entry)) error {
	if err := f.usable(); err != nil {
		return err
	}
	if f.Mapped() {
		used, d := f.mapping.used()
		switch {
		case d.reason != "":
			return f.lose(d)
		case int64(used) == f.used && f.cur.next >= f.used:
			return nil
		}
	}

	if !f.settled {
		f.readyToMap()
	}
	// Keys are read once, so they are not worth the page faults of reading them through
	// the mapping, and a plain read cannot fault. It is coherent with the writer's mapping
	// on every Unix with one page cache.
	buf := f.ahead
	if buf == nil {
		buf = windows.Get().(*[windowBytes]byte)
	}
	defer windows.Put(buf)
	w := window{src: (*reader)(f), buf: buf[:], end: firstBytes}
	if f.ahead != nil {
		w.have, f.ahead = buf[:f.have], nil
	} else if f.cur.entries > 0 {
		w.end = headerBytes
	}
	header, used, d, err := f.header(&w)
	if err != nil {
		return err
	}
	switch {
	case header < headerBytes && f.used > 0:
		return f.lose(damage{reason: Shrunk, number: int64(header)})
	case d.reason != "":
		return d.error(f.path)
	case used < f.used:
		return f.lose(damage{reason: UsedShrunk, number: used})
	case f.size > f.lim.FileBytes:
		return f.wrap("read", fmt.Errorf("%d bytes: %w of %d", f.size, ErrTooLarge, f.lim.FileBytes))
	}
	f.used, w.end, f.grown = used, used, false
	d = w.walk(&f.cur, f.lim.KeyBytes, f.meets(yield))
	switch d.reason {
	case "":
		return nil
	case Shrunk:
		return f.lose(d)
	}
	return d.error(f.path)
}

// Prefetch reads the beginning of the file ahead for the next Learn, most often all that
// is used of it: so several goroutines can read what one learns. It holds a buffer of 64
// KiB until then, or until Close. What goes wrong, Learn will meet too.
func (f *File) Prefetch() {
	if f.fd < 0 || f.ahead != nil {
		return
	}
	f.ahead = windows.Get().(*[windowBytes]byte)
	n, err := (*reader)(f).ReadAt(f.ahead[:firstBytes], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		f.giveBack()
		return
	}
	f.have = n
}

func (f *File) giveBack() {
	if f.ahead != nil {
		windows.Put(f.ahead)
		f.ahead = nil
	}
}

// header reads how many bytes are used, through a window that has not been used yet. It
// also returns how many bytes of the header there are.
func (f *File) header(w *window) (n int, used int64, d damage, err error) {
	if _, err := w.at(0, headerBytes); err != nil && !errors.Is(err, errShort) {
		return 0, 0, damage{}, f.wrap("read", err)
	}
	header := w.have[:min(len(w.have), headerBytes)]
	used, d = usedBytes(header, f.size)
	// What was read reaches past the used bytes of most files, so that one that has shrunk
	// shows in it, and its size need not be asked for.
	if d.reason != "" || used > int64(len(w.have)) || len(w.have) <= headerBytes {
		// Used bytes before size: the writer enlarges the file before it uses what it gained.
		if err := f.refresh(); err != nil {
			return 0, 0, damage{}, err
		}
		used, d = usedBytes(header, f.size)
	}
	return len(header), used, d, nil
}

// usedBytes returns what the header of a file of size bytes claims, if that can be.
func usedBytes(header []byte, size int64) (int64, damage) {
	switch len(header) {
	case 0:
		// What a worker leaves that was killed before it gave its new file a size.
		return 0, damage{}
	case headerBytes:
	default:
		return 0, damage{reason: ShortHeader, number: int64(len(header))}
	}
	used := int64(int32(binary.LittleEndian.Uint32(header)))
	switch {
	case used < 0:
		return used, damage{reason: UsedNegative, number: used}
	case used%8 != 0:
		return used, damage{reason: UsedMisaligned, number: used}
	case used > size:
		return used, damage{reason: UsedPastEnd, number: used}
	}
	return used, damage{}
}

// Complete reports whether Learn need not be asked before the next Load, because the file
// is settled and Load itself tells of new entries: see Grown.
func (f *File) Complete() bool {
	return f.settled && !f.grown && f.cur.entries > 0 && f.cur.next >= f.used
}

// Grown reports whether the last Load of a settled file has met entries that Learn has not
// yielded yet.
func (f *File) Grown() bool { return f.grown }

// Load sets values[i] to the value at slots[i], for all slots, each of which must come
// from an [Entry] that this File has yielded; there must be as many values, or more. It
// allocates nothing.
//
// Each value is read whole, by one atomic load, however busy the writer is. Where the
// system refuses to map the file it is read by plain reads, which the standards do not
// promise to be atomic, though the kernels we know copy aligned words whole.
//
// With an error of Reason Shrunk the file was truncated: values are untouched if that
// was seen before, and the first of them may be new if it happened under our hands. In
// any case each is a value that the file held.
//
// The buckets of the Ruby client's histograms become what Python's would hold. For those
// it may allocate.
func (f *File) Load(slots *deltas.List, values []float64) error {
	if f.cumulative != nil && slots.Len() > 0 {
		return f.cumulative.load(slots, values, func(slots *deltas.List, values []float64) error { return f.load(slots, values, nil) })
	}
	return f.load(slots, values, nil)
}

// LoadStamped does what Load does and sets stamps[i] to the timestamp beside values[i], in
// Unix seconds: 0 for none, which is also that of every entry in a narrow file.
//
// Value and timestamp are two words for the writer too: the pair is as it was at one
// moment between two of its stores, unless it stores faster than we can look.
func (f *File) LoadStamped(slots *deltas.List, values, stamps []float64) error {
	stamps = stamps[:slots.Len()]
	if f.cur.width != Wide {
		clear(stamps)
		return f.Load(slots, values)
	}
	return f.load(slots, values, stamps)
}

// load is Load if stamps is nil, otherwise LoadStamped of a wide file.
func (f *File) load(slots *deltas.List, values, stamps []float64) error {
	if err := f.usable(); err != nil {
		return err
	}
	if slots.Len() == 0 {
		return nil
	}
	values = values[:slots.Len()]
	var d damage
	if !f.settled {
		if err := f.refresh(); err != nil {
			return err
		}
		if f.size < f.used {
			return f.lose(damage{reason: Shrunk, offset: f.size, number: f.size})
		}
	}
	switch {
	case f.settled || !f.mapping.cover(f.mapper, f.used, min(f.size, f.lim.FileBytes)):
		d = f.read(slots, values, stamps)
	case stamps == nil:
		d = f.mapping.load(f.used, slots, values)
	default:
		d = f.mapping.loadStamped(f.used, slots, values, stamps)
	}
	switch d.reason {
	case "":
		return nil
	case Shrunk, UsedShrunk:
		return f.lose(d)
	}
	return d.error(f.path)
}

// read is load without a mapping. It also looks at the header, which costs nothing more.
func (f *File) read(slots *deltas.List, values, stamps []float64) damage {
	buf := windows.Get().(*[windowBytes]byte)
	defer windows.Put(buf)
	w := window{src: (*reader)(f), buf: buf[:], end: f.used}
	size := valueBytes
	if stamps != nil {
		size = Wide
	}
	header, err := w.at(0, headerBytes)
	if err != nil {
		return w.unread(0, err)
	}
	used := int64(int32(binary.LittleEndian.Uint32(header)))
	if used < f.used {
		return damage{reason: UsedShrunk, number: used}
	}
	f.grown = used > f.used
	for i, slot := range slots.All() {
		off := int64(slot) * valueBytes
		if off+int64(size) > f.used {
			panic(fmt.Sprintf("BUG: slot %d is past the %d used bytes of %q", slot, f.used, f.path))
		}
		raw, err := w.at(off, size)
		if err != nil {
			return w.unread(off, err)
		}
		values[i] = float64At(raw)
		if stamps != nil {
			stamps[i] = stampOf(float64At(raw[valueBytes:]))
		}
	}
	return damage{}
}

// Walk calls yield for every entry of the file that Learn yields, from the first one, whatever
// it has yielded before, and with the values that Load would find now. It changes nothing that
// Learn and Load know. Errors are those of Learn; a file that Learn has found damaged or
// lost yields what is in front of the damage, or nothing.
func (f *File) Walk(yield func(Entry)) error {
	if err := f.usable(); err != nil {
		return err
	}
	buf := windows.Get().(*[windowBytes]byte)
	defer windows.Put(buf)
	w := window{src: (*reader)(f), buf: buf[:], end: firstBytes}
	_, used, d, err := f.header(&w)
	if err != nil {
		return err
	}
	if d.reason != "" {
		return d.error(f.path)
	}
	w.end = used
	if f.name.Type == metric.Histogram {
		d = w.walkHistogram(f.lim.KeyBytes, yield)
	} else {
		d = w.walk(&cursor{next: headerBytes}, f.lim.KeyBytes, yield)
	}
	if d.reason != "" {
		return d.error(f.path)
	}
	return nil
}
