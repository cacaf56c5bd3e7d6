package daemon

import (
	"runtime/debug"
	runtimemetrics "runtime/metrics"
)

// garbage sets how much of it there may be before it is collected.
type garbage struct {
	most int // percent of what lives, 0: leave it as it is
	now  int // percent, as last set
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
	if percent := g.percent(heap[0].Value.Uint64(), heap[1].Value.Uint64()); percent != g.now {
		g.now = percent
		debug.SetGCPercent(percent)
	}
}

// percent is the percentage for a heap of so many live bytes, and so many to look through.
func (g *garbage) percent(live, scanned uint64) int {
	allowed := max(garbageBytes*100, scanned*uint64(g.most)) // in hundredths of a byte
	return max(1, min(g.most, int(allowed/max(live, 1))))
}
