package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A layout is how entries are laid out.
type layout struct {
	name string
	// width is the bytes after each key: the value, and a timestamp in wide files.
	width int
}

// The layouts of prometheus_client: from 0.18 on, and up to 0.17.
var (
	py16 = layout{"py16", 16}
	py8  = layout{"py8", 8}
)

// firstBytes is the size that the clients give a new file.
const firstBytes = 64 << 10

// A directory is a generated directory of source files. Unless its shape is dead, its
// files are mapped for writing until close, so that every reader takes their workers for
// alive.
type directory struct {
	path   string
	shape  shape
	schema *schema
	// workers are empty where the shape is dead.
	workers []*worker
	// bytes is how much of all files is used, files how many there were made, by how many
	// workers.
	bytes, files, started int
	layout                layout
	buf                   []byte
	// total is the sum of the values that were generated for the schema's witness.
	total   float64
	rng     *rand.Rand
	touched int
}

// A worker is the files of one process, by kind; nil where the schema has none.
type worker [kinds]*sourceFile

// A sourceFile is one file of a worker.
type sourceFile struct {
	mem   []byte
	words []uint64
	// entries are in the order of the file.
	entries []entry
	// slots are by cell, from the first cell of the kind on.
	slots []uint32
}

// An entry is what the floor needs to know of one.
type entry struct {
	slot uint32 // of the value, in words
	cell uint32
}

// generate makes a directory at path, which must not exist. The same shape gives the same
// files.
func generate(path string, sh shape, lay layout) (*directory, error) {
	return generateAs(path, sh, newSchema(sh), lay)
}

// generateAs is generate with the series of another shape.
func generateAs(path string, sh shape, s *schema, lay layout) (d *directory, err error) {
	d = &directory{path: path, shape: sh, schema: s, rng: rand.New(rand.NewPCG(1, 2))}
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.remove())
		}
	}()
	d.layout = lay
	for range sh.workers {
		w, err := d.start()
		if err != nil {
			return nil, err
		}
		if !sh.dead {
			d.workers = append(d.workers, w)
		}
	}
	return d, nil
}

// start makes the files of one more worker.
func (d *directory) start() (*worker, error) {
	_, witness := d.schema.witness()
	w := new(worker)
	rng := rand.New(rand.NewPCG(uint64(d.started), 3))
	for k := range kinds {
		if !d.schema.has(k) {
			continue
		}
		f := &sourceFile{}
		d.buf = f.fill(d.buf[:0], d.schema, k, rng, d.layout)
		if k == counter {
			d.total += math.Float64frombits(binary.LittleEndian.Uint64(d.buf[8*f.slots[witness.first]:]))
		}
		name := fmt.Sprintf("%s_%d.db", k.prefix(), 1000+d.started)
		if err := f.create(filepath.Join(d.path, name), d.buf, !d.shape.dead); err != nil {
			return nil, err
		}
		d.bytes += len(d.buf)
		d.files++
		w[k] = f
	}
	d.started++
	return w, nil
}

// replace lets a worker die and starts another one.
func (d *directory) replace(i int) error {
	if err := d.workers[i].end(); err != nil {
		return err
	}
	w, err := d.start()
	if err == nil {
		d.workers[i] = w
	}
	return err
}

// end ends the process: its files are no longer mapped.
func (w *worker) end() error {
	var errs []error
	for _, f := range w {
		if f != nil && f.mem != nil {
			errs = append(errs, unix.Munmap(f.mem))
			f.mem, f.words = nil, nil
		}
	}
	return errors.Join(errs...)
}

// fill appends the used bytes of a file, and takes note of where its values are.
func (f *sourceFile) fill(dst []byte, s *schema, k kind, rng *rand.Rand, lay layout) []byte {
	first := s.firstCell[k]
	f.slots = make([]uint32, s.firstCell[k+1]-first)
	dst = append(dst, "        "...) // the header, written below
	for _, c := range s.order(k, rng) {
		for cell := c.first; cell < c.first+c.size; cell++ {
			key := s.keys[cell]
			dst = binary.LittleEndian.AppendUint32(dst, uint32(len(key)))
			dst = append(dst, key...)
			for pad := 8 - (4+len(key))%8; pad > 0; pad-- {
				dst = append(dst, ' ')
			}
			slot := uint32(len(dst) / 8)
			f.entries = append(f.entries, entry{slot, uint32(cell)})
			f.slots[cell-first] = slot
			dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(firstValue(rng, s.integral[cell])))
			if lay.width == 16 {
				dst = binary.LittleEndian.AppendUint64(dst, 0)
			}
		}
	}
	binary.LittleEndian.PutUint64(dst, uint64(len(dst)))
	return dst
}

// firstValue draws a value: many are small, a few large.
func firstValue(rng *rand.Rand, whole bool) float64 {
	v := math.Exp(2.5 * rng.NormFloat64())
	if whole {
		return math.Floor(4 * v)
	}
	return v
}

// create writes the file as a client leaves it: as large as its first size doubled until
// the entries fit. If alive, it stays mapped for writing; the kernel counts a mapping as
// it counts a descriptor.
func (f *sourceFile) create(path string, used []byte, alive bool) (err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	size := firstBytes
	for size < len(used) {
		size *= 2
	}
	if err := file.Truncate(int64(size)); err != nil {
		return err
	}
	if _, err := file.WriteAt(used, 0); err != nil || !alive {
		return err
	}
	if f.mem, err = unix.Mmap(int(file.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map %q: %w", path, err)
	}
	f.words = unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(f.mem))), size/8)
	return nil
}

// touch does what an application does between two scrapes: one worker, another one each
// time, counts something in all series of some families. share is the share of the
// families.
func (d *directory) touch(share float64) {
	d.touched++
	families := d.schema.families
	n := int(math.Ceil(share * float64(len(families))))
	start := d.rng.IntN(len(families))
	for i := range n {
		// Spread over all families, large and small ones.
		f := &families[(start+i*len(families)/n)%len(families)]
		file := d.workers[(d.touched+i)%len(d.workers)][f.kind]
		first := d.schema.firstCell[f.kind]
		for cell := f.firstCell(); cell < f.endCell(); cell++ {
			by := 1.0
			if !d.schema.integral[cell] {
				by = d.rng.Float64()
			}
			word := &file.words[file.slots[cell-first]]
			atomic.StoreUint64(word, math.Float64bits(math.Float64frombits(atomic.LoadUint64(word))+by))
		}
	}
}

// remove lets go of the files and removes the directory.
func (d *directory) remove() error {
	var errs []error
	for _, w := range d.workers {
		errs = append(errs, w.end())
	}
	d.workers = nil
	return errors.Join(append(errs, os.RemoveAll(d.path))...)
}

// baseDir returns where the directories are made: on the tmpfs that applications are told
// to use, where there is one with room.
func baseDir(given string, need int64) (string, error) {
	base := given
	if base == "" {
		base = "/dev/shm"
		if info, err := os.Stat(base); err != nil || !info.IsDir() {
			base = os.TempDir()
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(base, &st); err != nil {
		return "", fmt.Errorf("look for room in %q: %w", base, err)
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < need { //nolint:unconvert // the types differ between systems
		return "", fmt.Errorf("%s has %s free, and %s are needed", base, mebibytes(float64(free)), mebibytes(float64(need)))
	}
	dir, err := os.MkdirTemp(base, "aggregatord-bench-")
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

func mebibytes(bytes float64) string {
	if !known(bytes) {
		return "?"
	}
	return strconv.FormatFloat(bytes/(1<<20), 'f', 1, 64) + " MiB"
}
