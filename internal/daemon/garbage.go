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
