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

// garbageBytes is how much garbage there may be in a heap of which the usual percentage would
// be more. Nearly all of a large heap are values, which the collector does not look into,
// so collecting often costs little.
const garbageBytes = 4 << 20

// limit sets the percentage for the heap as the last collection has left it.
func (g *garbage) limit() {
	if g.most == 0 {
		return
	}
	live := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
	runtimemetrics.Read(live)
	if percent := g.percent(live[0].Value.Uint64()); percent != g.now {
		g.now = percent
		debug.SetGCPercent(percent)
	}
}

// percent is the percentage for a heap of so many live bytes.
func (g *garbage) percent(live uint64) int {
	const least = 4
	return max(least, min(g.most, int(garbageBytes*100/max(live, 1))))
}
