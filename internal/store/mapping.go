package store

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"unsafe"

	"github.com/edsrzf/mmap-go"

	"aggregatord/internal/deltas"
)

// A mapping shows a file's memory, shared with its writer. The zero mapping shows nothing.
//
// Two rules hold for whatever reads it. No byte past the used ones is touched, not even
// to look ahead: on tmpfs, reading a hole through a mapping allocates a page. And each
// reader is guarded by catch, because memory past the end of a file that was truncated
// raises SIGBUS (mmap(2)); looking at the size beforehand leaves a gap.
type mapping struct {
	mem mmap.MMap
	// refused is how often cover will return false before it asks the system again.
	refused int
}

// retryAfter is how many scrapes a file that could not be mapped is read otherwise
// before mapping it is tried again.
const retryAfter = 64

// cover makes the mapping show at least the first used bytes of the file, mapping all size
// bytes if it does not, so that it is made anew only when the writer has doubled the file.
// It returns false if the system refuses: typically ENOMEM from vm.max_map_count.
func (m *mapping) cover(f *os.File, used, size int64) bool {
	if used <= int64(len(m.mem)) {
		return true
	}
	if m.refused > 0 {
		m.refused--
		return false
	}
	err := m.unmap()
	if err == nil {
		m.mem, err = mmap.MapRegion(f, int(size), mmap.RDONLY, 0, 0)
	}
	if err != nil {
		// It costs time, nothing else, so it is a state (see File.Mapped) and no error.
		m.mem, m.refused = nil, retryAfter
		return false
	}
	return true
}

func (m *mapping) unmap() error {
	if m.mem == nil {
		return nil
	}
	return m.mem.Unmap()
}

// words returns the first used bytes as 8-byte words. The mapping begins at a page, so
// that every word is aligned.
func (m *mapping) words(used int64) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(m.mem))), len(m.mem)/8)[:used/8]
}

// used loads the used bytes from the header. The load is atomic, and so ordered before
// those of the entries it counts.
func (m *mapping) used() (used int32, d damage) {
	defer m.catch(debug.SetPanicOnFault(true), &d)
	return loadInt32((*int32)(unsafe.Pointer(unsafe.SliceData(m.mem)))), damage{}
}

// load is the hot loop of every scrape. The loads are atomic so that each value is whole
// and read exactly once: the writer stores it meanwhile, from another process. On the
// machines we support they cost what plain ones do. Nothing here may allocate.
func (m *mapping) load(used int64, slots *deltas.List, values []float64) (d damage) {
	defer m.catch(debug.SetPanicOnFault(true), &d)
	words := m.words(used)
	var buf [deltas.BlockLen]uint32
	for r := slots.Reader(); ; {
		block := r.Read(&buf)
		if len(block) == 0 {
			return damage{}
		}
		some := values[:len(block)]
		for i, slot := range block {
			some[i] = math.Float64frombits(loadWord(&words[slot]))
		}
		values = values[len(block):]
	}
}

// stampTries is how often a pair is read again whose timestamp changed meanwhile. The
// writer needs microseconds between two stores, we nanoseconds between two loads.
const stampTries = 8

// loadStamped is load for wide files. A pair is taken when its timestamp was the same
// before and after the value was loaded.
func (m *mapping) loadStamped(used int64, slots *deltas.List, values, stamps []float64) (d damage) {
	defer m.catch(debug.SetPanicOnFault(true), &d)
	words := m.words(used)
	var buf [deltas.BlockLen]uint32
	for r := slots.Reader(); ; {
		block := r.Read(&buf)
		if len(block) == 0 {
			return damage{}
		}
		some, at := values[:len(block)], stamps[:len(block)]
		for i, slot := range block {
			stamp := loadWord(&words[slot+1])
			for range stampTries {
				some[i] = math.Float64frombits(loadWord(&words[slot]))
				before := stamp
				if stamp = loadWord(&words[slot+1]); stamp == before {
					break
				}
			}
			at[i] = stampOf(math.Float64frombits(stamp))
		}
		values, stamps = values[len(block):], stamps[len(block):]
	}
}

// catch turns a fault in the mapping into damage. It is deferred with the setting of
// debug.SetPanicOnFault that was in force before, and restores it. Any other panic goes on.
func (m *mapping) catch(before bool, d *damage) {
	debug.SetPanicOnFault(before)
	r := recover()
	if r == nil {
		return
	}
	// See debug.SetPanicOnFault: only the error of a fault has an address.
	if fault, ok := r.(interface {
		runtime.Error
		Addr() uintptr
	}); ok {
		start := uintptr(unsafe.Pointer(unsafe.SliceData(m.mem)))
		if at := fault.Addr() - start; at < uintptr(len(m.mem)) {
			*d = damage{reason: Shrunk, offset: int64(at), err: fmt.Errorf("the file was truncated while it was read: %w", fault)}
			return
		}
	}
	panic(r)
}
