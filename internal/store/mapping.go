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

// header is used for whoever has guarded it already.
func (m *mapping) header() int64 {
	return int64(loadInt32((*int32)(unsafe.Pointer(unsafe.SliceData(m.mem)))))
}

// load is the hot loop of every scrape. The loads are atomic so that each value is whole
// and read exactly once: the writer stores it meanwhile, from another process. On the
// machines we support they cost what plain ones do. The word in front of a value is read
// after it: see File.Load. Nothing here may allocate.
func (m *mapping) load(used int64, slots *deltas.List, sums []uint64, values []float64) damage {
	words := m.words(used)
	var buf [deltas.BlockLen]uint32
	for r := slots.Reader(); ; {
		block := r.Read(&buf)
		if len(block) == 0 {
			return damage{}
		}
		some := values[:len(block)]
		sum := uint64(0)
		first := within(words, block, 1)
		for i, slot := range block {
			at := unsafe.Add(first, uintptr(slot)*valueBytes)
			value := loadWord((*uint64)(at))
			if beginsKey(value) {
				return overwritten(block)
			}
			some[i] = math.Float64frombits(value)
			sum += loadWord((*uint64)(unsafe.Add(at, -valueBytes)))
		}
		if sum != sums[0] {
			return overwritten(block)
		}
		values, sums = values[len(block):], sums[1:]
	}
}

// within returns where the words begin, after a look at whether each slot of the block has a
// word in front of it and n words of its own: they rise, so the first and the last tell.
func within(words []uint64, block []uint32, n int) unsafe.Pointer {
	if block[0] == 0 || int(block[len(block)-1])+n > len(words) {
		panic(fmt.Sprintf("BUG: slots %d to %d are not among %d words", block[0], block[len(block)-1], len(words)))
	}
	return unsafe.Pointer(unsafe.SliceData(words))
}

func overwritten(block []uint32) damage {
	return damage{reason: Overwritten, offset: int64(block[0]) * valueBytes, number: int64(block[len(block)-1]) * valueBytes}
}

// stampTries is how often a pair is read again whose timestamp changed meanwhile. The
// writer needs microseconds between two stores, we nanoseconds between two loads.
const stampTries = 8

// loadStamped is load for wide files. A pair is taken when its timestamp was the same
// before and after the value was loaded.
func (m *mapping) loadStamped(used int64, slots *deltas.List, sums []uint64, values, stamps []float64) damage {
	words := m.words(used)
	var buf [deltas.BlockLen]uint32
	for r := slots.Reader(); ; {
		block := r.Read(&buf)
		if len(block) == 0 {
			return damage{}
		}
		some, at := values[:len(block)], stamps[:len(block)]
		sum := uint64(0)
		first := within(words, block, 2)
		for i, slot := range block {
			place := unsafe.Add(first, uintptr(slot)*valueBytes)
			behind := (*uint64)(unsafe.Add(place, valueBytes))
			stamp := loadWord(behind)
			value := loadWord((*uint64)(place))
			for tries := 1; tries < stampTries; tries++ {
				before := stamp
				if stamp = loadWord(behind); stamp == before {
					break
				}
				value = loadWord((*uint64)(place))
			}
			if beginsKey(value) || beginsKey(stamp) {
				return overwritten(block)
			}
			sum += loadWord((*uint64)(unsafe.Add(place, -valueBytes)))
			some[i] = math.Float64frombits(value)
			at[i] = stampOf(math.Float64frombits(stamp))
		}
		if sum != sums[0] {
			return overwritten(block)
		}
		values, stamps, sums = values[len(block):], stamps[len(block):], sums[1:]
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
