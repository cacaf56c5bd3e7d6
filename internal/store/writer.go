package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"runtime/debug"

	"github.com/edsrzf/mmap-go"
	"golang.org/x/sys/unix"
)

// WriterOptions choose a dialect. The zero value is that of client_python 0.18 and later.
type WriterOptions struct {
	// Width is Narrow or Wide, Wide by default. client_python to 0.17 writes narrow files.
	Width int
	// FirstBytes is the size a new file gets, 64 KiB by default; 1 MiB with the postmates
	// fork. It must be a multiple of 8.
	FirstBytes int64
	// NoStamp is the timestamp stored where there is none, 0 by default; +Inf with the
	// postmates fork.
	NoStamp float64
	// Tag is what a new file has after its used bytes, 0 by default: see [SetTag].
	Tag uint32
}

// A Writer writes a source file as a Prometheus client does: through a shared mapping,
// which other processes read at any time. It is for tests, for the demo and for taking
// data out of the archive.
//
// Readers see every value whole, and an entry only when all of it is there: values and
// the used bytes are stored by single atomic stores, the used bytes last.
//
// A Writer is not safe for several goroutines at once. Two writers of one file overwrite
// each other's entries; the Writer does not look.
type Writer struct {
	path  string
	opt   WriterOptions
	file  *os.File // nil once closed
	m     mapping
	used  int64
	tag   uint32
	slots map[string]int
	buf   []byte
}

// OpenWriter opens the source file at path for writing, and makes it if there is none. The
// entries of a file that exists are adopted; if it is damaged, or of another width than
// the options say, the error says so and the file is as it was.
func OpenWriter(path string, opt WriterOptions) (*Writer, error) {
	opt.Width = cmp.Or(opt.Width, Wide)
	opt.FirstBytes = cmp.Or(opt.FirstBytes, 64<<10)
	if opt.Width != Narrow && opt.Width != Wide || opt.FirstBytes < headerBytes || opt.FirstBytes%8 != 0 {
		return nil, fmt.Errorf("open %q for writing: width %d and first size %d cannot be", path, opt.Width, opt.FirstBytes)
	}
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o666)
	if err != nil {
		return nil, err
	}
	w := &Writer{path: path, opt: opt, file: file, slots: map[string]int{}}
	if err := w.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open %q for writing: %w", path, err), w.Close())
	}
	return w, nil
}

func (w *Writer) open() error {
	// Reading it as everybody does also checks what it is. Like the clients, a Writer is no reader to
	// who watches the directory.
	lim := Limits{FileBytes: math.MaxInt64, KeyBytes: math.MaxInt32}
	f, err := openFile(unix.AT_FDCWD, w.path, w.path, SourceName{}, lim, unix.O_RDWR)
	if err != nil {
		return err
	}
	err = f.Learn(func(e Entry) { w.slots[string(e.Key)] = int(e.Slot) })
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if f.Entries() > 0 && f.Width() != w.opt.Width {
		return fmt.Errorf("its entries have a width of %d, not of %d", f.Width(), w.opt.Width)
	}
	w.tag = w.opt.Tag
	if f.Size() > 0 {
		w.used = f.UsedBytes()
		if h, headErr := ReadHead(int(w.file.Fd())); headErr == nil {
			w.tag = h.Tag
		}
		err = w.remap(f.Size())
	} else {
		err = w.resize(w.opt.FirstBytes)
	}
	if err == nil && w.used == 0 {
		err = w.setUsed(headerBytes)
	}
	return err
}

// resize gives the file a size and maps it.
func (w *Writer) resize(size int64) error {
	if err := w.file.Truncate(size); err != nil {
		return err
	}
	return w.remap(size)
}

func (w *Writer) remap(size int64) error {
	if err := w.m.unmap(); err != nil {
		return err
	}
	mem, err := mmap.MapRegion(w.file, int(size), mmap.RDWR, 0, 0)
	if err != nil {
		return fmt.Errorf("map %d bytes: %w", size, err)
	}
	w.m.mem = mem
	return nil
}

// setUsed publishes what was written: a reader that sees the count sees the entries.
func (w *Writer) setUsed(used int64) (err error) {
	var d damage
	defer func() { err = w.full(d) }()
	defer w.m.catch(debug.SetPanicOnFault(true), &d)
	storeWord(w.word(0), uint64(used)|uint64(w.tag)<<32)
	w.used = used
	return nil
}

// full turns a fault while writing into an error.
func (w *Writer) full(d damage) error {
	if d.reason == "" {
		return nil
	}
	return fmt.Errorf("write source file %q at byte %d: no space left, or it was truncated: %w", w.path, d.offset, d.err)
}

func (w *Writer) word(slot int) *uint64 { return &w.m.words(int64(len(w.m.mem)) &^ 7)[slot] }

// Slot returns the handle of the entry with this key, which is made, with value 0, if the
// file has none. The handle is an [Entry]'s Slot and stays good until Close. An error
// says that the file could not be enlarged: where a store into a full file system would
// kill other programs by SIGBUS, it is an error here.
func (w *Writer) Slot(key []byte) (int, error) { return w.SlotWith(key, 0, 0) }

// SlotWith is Slot, but that an entry that is made has a value and a timestamp from the start.
func (w *Writer) SlotWith(key []byte, value, stamp float64) (int, error) {
	if slot, ok := w.slots[string(key)]; ok {
		return slot, nil
	}
	w.buf = appendEntry(w.buf[:0], key, value, stamp, w.opt.Width)
	end := w.used + int64(len(w.buf))
	if len(key) == 0 || end > math.MaxInt32 {
		return 0, fmt.Errorf("write source file %q: no room for a key of %d bytes", w.path, len(key))
	}
	size := int64(len(w.m.mem))
	for size < end {
		size *= 2
	}
	if size > int64(len(w.m.mem)) {
		if err := w.resize(size); err != nil {
			return 0, fmt.Errorf("enlarge source file %q: %w", w.path, err)
		}
	}
	if err := w.put(w.buf); err != nil {
		return 0, err
	}
	if err := w.setUsed(end); err != nil {
		return 0, err
	}
	slot := int(end-int64(w.opt.Width)) / valueBytes
	w.slots[string(key)] = slot
	return slot, nil
}

// put copies an entry behind the used bytes.
func (w *Writer) put(entry []byte) (err error) {
	var d damage
	defer func() { err = w.full(d) }()
	defer w.m.catch(debug.SetPanicOnFault(true), &d)
	copy(w.m.mem[w.used:], entry)
	return nil
}

// Has reports whether there is an entry with this key.
func (w *Writer) Has(key []byte) bool {
	_, ok := w.slots[string(key)]
	return ok
}

// Fd returns the descriptor, which is the only one by which the Writer has the file open.
func (w *Writer) Fd() int { return int(w.file.Fd()) }

// Stamp returns the timestamp of the entry with this handle, as it is stored; 0 in a narrow file.
func (w *Writer) Stamp(slot int) float64 {
	if w.opt.Width != Wide {
		return 0
	}
	return w.Value(slot + 1)
}

// Value returns the value of the entry with this handle.
func (w *Writer) Value(slot int) float64 {
	return math.Float64frombits(loadWord(w.word(slot)))
}

// Add adds delta to the value, and takes its timestamp away as the clients do.
func (w *Writer) Add(slot int, delta float64) { w.Set(slot, w.Value(slot)+delta, w.opt.NoStamp) }

// Set stores the value, and in a wide file the timestamp in Unix seconds; the option
// NoStamp says what stands for none. If somebody truncates the file meanwhile, the store
// kills the program, as it does the clients.
func (w *Writer) Set(slot int, value, stamp float64) {
	storeWord(w.word(slot), math.Float64bits(value))
	if w.opt.Width == Wide {
		storeWord(w.word(slot+1), math.Float64bits(stamp))
	}
}

// UsedBytes returns how many bytes of the file are used.
func (w *Writer) UsedBytes() int64 { return w.used }

// Close unmaps and closes the file, which stays as large as it is. The kernel writes the
// mapped pages to the disk in its own time.
func (w *Writer) Close() error {
	if w.file == nil {
		return os.ErrClosed
	}
	err := errors.Join(w.m.unmap(), w.file.Close())
	w.file = nil
	return err
}

// appendEntry appends an entry as the layout in the package comment draws it.
func appendEntry(dst, key []byte, value, stamp float64, width int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(key)))
	dst = append(dst, key...)
	dst = append(dst, "        "[:padding(len(key))]...)
	dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(value))
	if width == Wide {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(stamp))
	}
	return dst
}
