package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime/debug"
	"strings"
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
	// KeyBytes is the length of the longest key, 64 KiB by default. A longer one is not read:
	// see [KeyTooLongError].
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
// An error of one call leaves everything read before it valid. If its reason is
// UsedShrunk, Shrunk or, from Load or Verify, Overwritten, the File is lost: the file was
// cut, written anew, or is written by several processes, so that the positions of its
// entries are no longer known. Every later call returns the same error; the values that the
// caller has are the last good ones. After any other error the next call may succeed.
type File struct {
	name    SourceName
	path    string
	lim     Limits
	fd      int      // -1 once closed
	mapper  *os.File // of the same descriptor, for mapping it; nil as long as it is settled
	id      Identity
	created time.Time
	size    int64 // of the file, as last seen
	links   uint32
	born    bool // created is the time of birth
	// used is the highest count of used bytes that was found right. Entries up to it
	// were yielded, are still to be, or are damaged, and no byte past it is touched through
	// the mapping.
	used int64
	// looked says that Learn has read a header that can be.
	looked bool
	cur    cursor
	// shortest is the length of the shortest key that was too long.
	shortest int
	// ahead is what Prefetch has read from the start of the file, in a buffer of windows.
	ahead *[windowBytes]byte
	have  int
	// grown says that a load met another count of used bytes than this.
	grown bool
	// lost is set once positions are no longer known.
	lost error
	// bad is the damage that Learn has met last, at cur with these used bytes, and how
	// often.
	bad      error
	badTries int
	mapping  mapping
	settled  bool

	marks marks
	bases [2]base
	// credit is how many bytes of keys may be compared, and swept the mark that is next.
	credit int64
	swept  int

	// cumulative is nil but for histograms of the Ruby client.
	cumulative *cumulative
}

// looksAtDamage is how often Learn looks at the same damage before it waits for the used
// bytes to change, or for [File.Look]. Twice would do: what a writer was writing at the
// first look is there at the second.
const looksAtDamage = 8

// Open opens the source file at path, of which name is what [ParseName] told. It refuses
// everything but regular files ([ErrNotRegular]; a symbolic link counts as what it is)
// and files beyond the limit ([ErrTooLarge]) without ever blocking, and reads nothing
// yet. Other errors wrap those of the operating system; see [ReasonOf].
func Open(path string, name SourceName, lim Limits) (*File, error) {
	return openFile(unix.AT_FDCWD, path, path, name, lim, unix.O_RDONLY)
}

// OpenToEmpty is Open for the file of a dead worker that is to be emptied: see [Drain] and
// SetTag. It has the file open for writing, too, so it takes the right to.
func OpenToEmpty(path string, name SourceName, lim Limits) (*File, error) {
	return openFile(unix.AT_FDCWD, path, path, name, lim, unix.O_RDWR)
}

// OpenAt is Open for the file called base in the directory that is open as dir, whatever
// leads to that directory now. The path is for messages only. A base that is not the name
// of something in the directory itself is refused ([ErrNotRegular]).
func OpenAt(dir int, base, path string, name SourceName, lim Limits) (*File, error) {
	if base == "" || base == "." || base == ".." || strings.ContainsAny(base, "/\x00") {
		return nil, fmt.Errorf("open source file %q: %q is no file in the directory: %w", path, base, ErrNotRegular)
	}
	return openFile(dir, base, path, name, lim, unix.O_RDONLY)
}

func openFile(dir int, base, path string, name SourceName, lim Limits, access int) (*File, error) {
	lim = lim.withDefaults()
	fd, info, err := openRegular(dir, base, path, lim, access)
	if err != nil {
		return nil, err
	}
	return &File{
		name: name, path: path, lim: lim, fd: fd,
		id: info.id, size: info.size, links: info.links, created: info.created, born: info.born,
		cur: cursor{next: headerBytes},
	}, nil
}

// fileInfo is what Open asks about a file.
type fileInfo struct {
	id      Identity
	mode    uint32
	links   uint32
	size    int64
	created time.Time
	born    bool
}

// openRegular opens a regular file, with O_RDONLY or O_RDWR for access: openat(2) and statx(2). There may be many
// thousands, so this is as few system calls as can be: an os.File would cost three more for
// each.
func openRegular(dir int, base, path string, lim Limits, access int) (fd int, info fileInfo, err error) {
	// The directory is written by others. O_NOFOLLOW: a link could lead anywhere.
	// O_NONBLOCK: opening a FIFO would wait for a writer.
	flags := access | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err = unix.Openat(dir, base, flags, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Openat(dir, base, flags, 0)
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
		links:   uint32(st.Nlink),
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

// Size returns the size of the file in bytes, as last seen: by Open, by Look, or by Learn
// when the used bytes went beyond it.
func (f *File) Size() int64 { return f.size }

// Links returns how many names the file has, as last seen by Open or by Look. With more than
// one, the same values may be met under another name: compare the Identity.
func (f *File) Links() int { return int(f.links) }

// Empty reports whether Learn has found nothing in the file, without damage: such a file
// need not be kept open. A worker that goes on to write it enlarges it or has done so
// already, which a directory watch tells of.
func (f *File) Empty() bool {
	return f.lost == nil && f.bad == nil && f.cur.entries == 0 && (f.size == 0 || f.looked && f.used <= headerBytes)
}

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

// Entries returns how many entries were met so far, also those that are too long.
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
	if settled != f.settled {
		f.badTries = 0      // what is in a settled file is all there
		f.bases = [2]base{} // what was added up while nobody could write proves nothing now
	}
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

// Look asks the operating system for the size of the file and for its names. Call it when
// something has happened to the file itself: a worker that enlarges it and somebody who cuts
// it off raise the same event. It returns an error of reason Shrunk if the file is smaller than
// what was read of it, and has Learn look again at damage.
func (f *File) Look() error {
	if err := f.usable(); err != nil {
		return err
	}
	f.badTries = 0
	if err := f.refresh(); err != nil {
		return err
	}
	if f.size < f.used {
		return f.lose(damage{reason: Shrunk, offset: f.size, number: f.size})
	}
	return nil
}

// refresh looks up the file's size.
func (f *File) refresh() error {
	var st unix.Stat_t
	if err := unix.Fstat(f.fd, &st); err != nil {
		return f.wrap("stat", err)
	}
	f.size, f.links = st.Size, uint32(st.Nlink)
	return nil
}

// SetLimits puts other limits in force. It returns true if entries that were left out
// because of their keys' length would not be now: then the next Learn yields all entries
// anew, from the first one, and the caller forgets those it knows.
func (f *File) SetLimits(lim Limits) (again bool) {
	f.lim = lim.withDefaults()
	f.badTries = 0
	if f.shortest == 0 || f.lim.KeyBytes < f.shortest || f.lost != nil {
		return false
	}
	f.cur = cursor{next: headerBytes}
	f.shortest, f.bad, f.grown = 0, nil, false
	f.marks, f.bases, f.swept = marks{}, [2]base{}, 0
	f.cumulative = nil
	return true
}

func (f *File) format() format { return format{keyLimit: f.lim.KeyBytes, settled: f.settled} }

// LearnOptions say how Learn goes about it. The zero value is that of Learn.
type LearnOptions struct {
	// MaxBytes bounds how much of the file one call walks over, give or take an entry. 0: all
	// there is. It bounds what a file costs that somebody has made large.
	MaxBytes int64
	// Toll, if not nil, is where the receiver says of an entry how many bytes it is worth beside
	// its own, against MaxBytes. It is 0 again before the next entry.
	Toll *int64
	// Guesses, if not nil, make files with equal keys cheaper.
	Guesses *Guesses
}

// Learn calls yield for every entry that appeared since the last call, in file order, and
// reads nothing else: once all entries are known it costs one load. The counts of the Ruby
// client's histograms are left out: they are in the buckets, too. An entry with Err set has
// a key that is too long. One whose key [ParseKey] does not understand is yielded as any other.
//
// A [*CorruptionError] says that the file is damaged, after the entries in front of the
// damage were yielded. The next calls try again at the same place, because a writer's
// count of used bytes can become visible before the last entry does; then they return
// the same error for nothing until the used bytes change. Other errors are
// those of the operating system and [ErrTooLarge]. The error of a file that is lost is for
// ever: see [File].
func (f *File) Learn(yield func(Entry)) error {
	_, err := f.LearnSome(LearnOptions{}, yield)
	return err
}

// LearnSome is Learn with options. It returns true if there is more to learn than
// MaxBytes allow: the next call goes on there. Values of entries already yielded can be
// loaded in between.
func (f *File) LearnSome(opts LearnOptions, yield func(Entry)) (more bool, err error) {
	if err := f.usable(); err != nil {
		return false, err
	}
	mappedUsed := int64(-1)
	if f.Mapped() {
		used, d := f.mapping.used()
		switch {
		case d.reason != "":
			return false, f.lose(d)
		case int64(used) == f.used && f.cur.next >= f.used:
			return false, nil
		case int64(used) == f.used && f.bad != nil && f.badTries >= looksAtDamage:
			return false, f.bad
		}
		mappedUsed = int64(used)
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
	header, used, d, err := f.header(&w, mappedUsed)
	if err != nil {
		return false, err
	}
	switch {
	case header < headerBytes && f.used > 0:
		return false, f.lose(damage{reason: Shrunk, number: int64(header)})
	case d.reason != "":
		return false, d.error(f.path)
	case used < f.used:
		return false, f.lose(damage{reason: UsedShrunk, number: used})
	case f.size > f.lim.FileBytes:
		return false, f.wrap("read", fmt.Errorf("%d bytes: %w of %d", f.size, ErrTooLarge, f.lim.FileBytes))
	case used == f.used && f.bad != nil && f.badTries >= looksAtDamage:
		return false, f.bad
	}
	if used != f.used {
		f.badTries = 0
	}
	f.used, w.end, f.grown, f.looked = used, used, false, true
	how := walk{format: f.format(), marks: &f.marks, guesses: opts.Guesses}
	if opts.MaxBytes > 0 {
		how.stop, how.toll = f.cur.next+opts.MaxBytes, opts.Toll
	}
	d = w.walk(&f.cur, how, f.meets(func(e Entry) {
		if e.Err != nil && (f.shortest == 0 || e.Err.KeyBytes < f.shortest) {
			f.shortest = e.Err.KeyBytes
		}
		yield(e)
	}))
	f.bad = nil
	switch d.reason {
	case "":
		return f.cur.next < f.used, nil
	case Shrunk:
		return false, f.lose(d)
	case IO:
		return false, d.error(f.path)
	}
	// Who has damaged what is new may have damaged what is known.
	if f.badTries++; f.badTries == 1 && !f.settled {
		if err := f.Verify(); err != nil {
			return false, err
		}
	}
	f.bad = d.error(f.path)
	return false, f.bad
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

// header reads how many bytes are used, through a window that has not been used yet, unless
// the mapping has told: then mapped is not below 0. It also returns how many bytes of the
// header there are.
func (f *File) header(w *window, mapped int64) (n int, used int64, d damage, err error) {
	if mapped >= 0 {
		var header [headerBytes]byte
		binary.LittleEndian.PutUint32(header[:], uint32(mapped))
		if used, d = usedBytes(header[:], f.size); d.reason == UsedPastEnd {
			if err := f.refresh(); err != nil {
				return 0, 0, damage{}, err
			}
			used, d = usedBytes(header[:], f.size)
		}
		return headerBytes, used, d, nil
	}
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

// Complete reports whether Learn need not be asked before the next Load, because Load itself
// tells of new entries: see Grown.
func (f *File) Complete() bool {
	return !f.grown && f.cur.entries > 0 && f.cur.next >= f.used
}

// Grown reports whether the last Load has met another count of used bytes than Learn has: most
// likely there are entries that it has not yielded yet.
func (f *File) Grown() bool { return f.grown }

// Load sets values[i] to the value at slots[i], for all slots, each of which must come
// from an [Entry] that this File has yielded; there must be as many values, or more. The
// list may grow from one call to the next, and must not change otherwise. Load
// allocates nothing but when the list is new or has grown.
//
// Each value is read whole, by one atomic load, however busy the writer is. Where the
// system refuses to map the file it is read by plain reads, which the standards do not
// promise to be atomic, though the kernels we know copy aligned words whole.
//
// With an error, all values are what they were before the call.
//
// The buckets of the Ruby client's histograms become what Python's would hold. For those
// it may allocate.
//
// # What is done to the file meanwhile
//
// A mapped file is loaded without a system call, so its size is not asked for. These are the
// ways in which somebody may cut the file or write it anew, and what shows it:
//
//   - Cut in front of a page that is read, before or while it is read: the load faults, the
//     fault is caught. Shrunk.
//   - Cut within the page that is read: the kernel clears the rest of the page, so the words
//     in front of the values are 0. Each value is read before the word in front of it, so
//     that a value that was cleared is followed by a word that was, too. The sum is wrong.
//     Shrunk.
//   - Cut to nothing and grown again before the load: the file is a hole, its header is 0.
//     UsedShrunk. If a writer has begun anew, the header is less than it was: the same.
//   - The same while it is loaded: the header is read again at the end, after the values.
//     And the words in front of the values are 0, or were written anew.
//   - Cut, grown and written anew up to as many bytes as before, between two loads: the words
//     in front of the values tell, if the keys are others. If they are the same, the
//     values are where they are looked for, and are those that the file has now.
//   - Cut exactly between the last key and its value, or in that value: the value reads as 0
//     and nothing in the mapping shows it. No writer does that. The cut raises an event of the
//     directory, and the caller who has heard of it calls Look.
//   - A second process writes its entries over those of the first: from the first word it
//     overwrites on to the last everything is its own, values and keys. Each value is read
//     before the word in front of it, which is overwritten, too. The sum is wrong, unless
//     keys of equal length end in equal words: then what is read is a number that the other
//     process has counted, until the sweep meets the key.
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
	// What is read is no use before all of it is.
	n := slots.Len()
	size := n
	if stamps != nil {
		size *= 2
	}
	own := scratch.Get().(*[]float64)
	defer scratch.Put(own)
	if cap(*own) < size {
		*own = make([]float64, size)
	}
	newValues, newStamps := (*own)[:n], (*own)[n:size]
	if stamps == nil {
		newStamps = nil
	}
	var d damage
	if !f.settled && f.mapping.cover(f.mapper, f.used, min(f.size, f.lim.FileBytes)) {
		d = f.loadMapped(slots, newValues, newStamps)
	} else {
		d = f.read(slots, newValues, newStamps)
	}
	if d.reason != "" {
		return f.failed(d)
	}
	copy(values[:n], newValues)
	copy(stamps, newStamps)
	return nil
}

// failed turns the damage that a load has met into an error.
func (f *File) failed(d damage) error {
	if d.reason == IO {
		return d.error(f.path)
	}
	if d.reason == Overwritten {
		// A cut that clears keys looks the same.
		if err := f.refresh(); err == nil && f.size < f.used {
			d = damage{reason: Shrunk, offset: f.size, number: f.size}
		}
	}
	return f.lose(d)
}

// loadMapped loads through the mapping.
func (f *File) loadMapped(slots *deltas.List, values, stamps []float64) (d damage) {
	m := &f.mapping
	defer m.catch(debug.SetPanicOnFault(true), &d)
	used := m.header()
	if used < f.used && used >= 0 {
		return damage{reason: UsedShrunk, number: used}
	}
	f.grown = used != f.used
	w := window{have: m.mem[:f.used], end: f.used}
	size := valueBytes
	if stamps != nil {
		size = Wide
	}
	b, d := f.baseOf(&w, slots, size)
	if d.reason != "" {
		return d
	}
	if stamps == nil {
		d = m.load(f.used, slots, b.sums, values)
	} else {
		d = m.loadStamped(f.used, slots, b.sums, values, stamps)
	}
	if d.reason != "" {
		return d
	}
	if d = f.sweep(&w); d.reason != "" {
		return d
	}
	if used := m.header(); used < f.used && used >= 0 {
		return damage{reason: UsedShrunk, number: used}
	}
	return damage{}
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
	if used < f.used && used >= 0 {
		return damage{reason: UsedShrunk, number: used}
	}
	f.grown = used != f.used
	if f.settled && w.off == 0 && int64(len(w.have)) >= f.used {
		if b := f.wholeBase(slots); b != nil {
			return b.read(w.have[:f.used], slots, values, stamps)
		}
	}
	b, d := f.baseOf(&w, slots, size)
	if d.reason != "" {
		return d
	}
	if w.off > 0 || !f.settled {
		w.have = w.have[:0] // what the base has read was there before the keys were compared
	}
	sum := uint64(0)
	for i, slot := range slots.All() {
		off := int64(slot) * valueBytes
		raw, err := w.at(off-valueBytes, valueBytes+size)
		if err != nil {
			return w.unread(off, err)
		}
		sum += binary.LittleEndian.Uint64(raw)
		values[i] = float64At(raw[valueBytes:])
		if beginsKey(math.Float64bits(values[i])) {
			return damage{reason: Overwritten, offset: off, number: off}
		}
		if stamps != nil {
			stamps[i] = stampOf(float64At(raw[2*valueBytes:]))
		}
		if i%deltas.BlockLen == deltas.BlockLen-1 || i == slots.Len()-1 {
			if sum != b.sums[i/deltas.BlockLen] {
				return damage{reason: Overwritten, offset: off, number: off}
			}
			sum = 0
		}
	}
	if f.settled {
		return damage{}
	}
	return f.sweep(&w)
}

// Verify compares the keys of all entries that Learn has met with what they were when they
// were learned. Call it before something is done that cannot be undone. An error of reason
// Overwritten or Shrunk makes the File lost. Of a key that is longer than 4 KiB it compares
// the beginning.
func (f *File) Verify() error {
	if err := f.usable(); err != nil {
		return err
	}
	buf := windows.Get().(*[windowBytes]byte)
	defer windows.Put(buf)
	w := window{src: (*reader)(f), buf: buf[:], end: f.used}
	header, err := w.at(0, min(headerBytes, int(f.used)))
	if err != nil {
		return f.failed(w.unread(0, err))
	}
	if len(header) == headerBytes {
		if used := int64(int32(binary.LittleEndian.Uint32(header))); used < f.used && used >= 0 {
			return f.lose(damage{reason: UsedShrunk, number: used})
		}
	}
	for i := range f.marks.len() {
		if d := w.compare(&f.marks, i, f.cur.width); d.reason != "" {
			return f.failed(d)
		}
	}
	return nil
}

// Walk calls yield for every entry of the file that Learn yields, from the first one, whatever
// it has yielded before, and with the values that Load would find now, also for those whose
// keys ParseKey does not understand. It changes nothing that
// Learn and Load know. Errors are those of Learn; a file that Learn has found damaged or
// lost yields what is in front of the damage, or nothing.
func (f *File) Walk(yield func(Entry)) error {
	if err := f.usable(); err != nil {
		return err
	}
	buf := windows.Get().(*[windowBytes]byte)
	defer windows.Put(buf)
	w := window{src: (*reader)(f), buf: buf[:], end: firstBytes}
	_, used, d, err := f.header(&w, -1)
	if err != nil {
		return err
	}
	if d.reason != "" {
		return d.error(f.path)
	}
	w.end = used
	if f.name.Type == metric.Histogram {
		d = w.walkHistogram(walk{format: f.format()}, yield)
	} else {
		d = w.walk(&cursor{next: headerBytes}, walk{format: f.format()}, yield)
	}
	if d.reason != "" {
		return d.error(f.path)
	}
	return nil
}
