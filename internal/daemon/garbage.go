package daemon

import (
	"runtime"
	"runtime/debug"
	runtimemetrics "runtime/metrics"
	"sync"
)

// garbage sets how much of it there may be before it is collected.
type garbage struct {
	most int // percent of what lives, 0: leave it as it is
	now  int // percent, as last set
	// mu guards starting, which says that the percentage is that of a start.
	mu       sync.Mutex
	starting bool
}

// The runtime first collects when the heap has 4 MiB, and again whenever it has doubled. A start
// fills a heap of which nearly all lives on, so that each of these collections looks through it
// for next to nothing. With startPercent in place of 100 the first comes at startPercent times
// 4 MiB, from which on the heap doubles as ever; a soft limit of memory still brings it earlier.
const startPercent = 1200

// start puts off the first collection of garbage, until limit sets a percentage.
func (g *garbage) start() {
	if g.most == 0 {
		return
	}
	g.starting = true
	usual := debug.SetGCPercent(startPercent)
	// What nothing leads to any more tells of the first collection.
	runtime.AddCleanup(new([16]byte), g.ended, usual)
}

// ended says that the first collection is over, and what the percentage was before start.
func (g *garbage) ended(usual int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.starting {
		g.starting = false
		debug.SetGCPercent(usual)
	}
}

// garbageBytes is how much garbage there may be in any heap, before it is that percentage of what
// the collector has to look through. Nearly all of a large heap are values, which it need not,
// so collecting often costs little.
const garbageBytes = 4 << 20

// limit sets the percentage for the heap as the last collection has left it.
func (g *garbage) limit() {
	if g.most == 0 {
		return
	}
	heap := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"}}
	runtimemetrics.Read(heap)
	percent := g.percent(heap[0].Value.Uint64(), heap[1].Value.Uint64())
	g.mu.Lock()
	defer g.mu.Unlock()
	g.starting = false
	if percent != g.now {
		g.now = percent
		debug.SetGCPercent(percent)
	}
}

// percent is the percentage for a heap of so many live bytes, and so many to look through.
func (g *garbage) percent(live, scanned uint64) int {
	allowed := max(garbageBytes*100, scanned*uint64(g.most)) // in hundredths of a byte
	return max(1, min(g.most, int(allowed/max(live, 1))))
}

// A tide tells when memory is worth giving back to the system at once. What many requests have used is
// garbage that only the next collection finds, and the next one is due when as much has been allocated
// again: without requests, after minutes.
type tide struct {
	// low is what the runtime held when memory was last given back, in bytes, and garbage how much more
	// there could be then before it would be collected. Both are 0 before the first time.
	low, garbage uint64
	// allocated is what had been allocated in all at the last look.
	allocated uint64
}

const (
	// tideBytes, or a tideShare-th of what was held, is how much more must be held for it to be worth a
	// collection.
	tideBytes = 1 << 20
	tideShare = 20
)

// memoryUse is what the runtime tells of its memory, in bytes.
type memoryUse struct {
	// held is what it has from the system for the heap and for stacks, used or not.
	held uint64
	// allocated is what has been allocated since the process began.
	allocated uint64
	// garbage is how much the heap may grow after a collection before the next one.
	garbage uint64
}

func readMemoryUse() memoryUse {
	read := []runtimemetrics.Sample{
		{Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"},
		{Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/gc/heap/allocs:bytes"},
		{Name: "/gc/heap/goal:bytes"},
		{Name: "/gc/heap/live:bytes"},
	}
	runtimemetrics.Read(read)
	at := func(i int) uint64 { return read[i].Value.Uint64() }
	return memoryUse{held: at(0) + at(1) + at(2) + at(3), allocated: at(4), garbage: at(5) - min(at(5), at(6))}
}

// out reports whether much more is held than when memory was last given back, and next to nothing was
// allocated since the last look: a collection while much is allocated would be one of many.
func (t *tide) out(now memoryUse) bool {
	quiet := now.allocated-t.allocated < garbageBytes
	t.allocated = now.allocated
	return quiet && now.held > t.low+t.garbage+max(tideBytes, t.low/tideShare)
}

// ebbed takes note of what is held after memory was given back.
func (t *tide) ebbed(now memoryUse) { t.low, t.garbage = now.held, now.garbage }

// giveBack has garbage collected and gives free memory back to the system, if that is worth it. It sets
// the percentage as limit does.
func (g *garbage) giveBack(t *tide) {
	if !t.out(readMemoryUse()) {
		g.limit()
		return
	}
	runtime.GC() // what lies in a sync.Pool, such as net/http's buffers, is garbage for the second collection only
	g.giveBackNow(t)
}

// giveBackNow does so in any case, with one collection.
func (g *garbage) giveBackNow(t *tide) {
	debug.FreeOSMemory()
	g.limit()
	t.ebbed(readMemoryUse())
}
