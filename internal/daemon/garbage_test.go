package daemon

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestGarbagePercent(t *testing.T) {
	const mib = 1 << 20
	g := garbage{most: 25}
	for _, tc := range []struct {
		live, scanned uint64
		want          int
	}{
		{0, 0, 25},
		{mib, 0, 25},
		{16 * mib, 8 * mib, 25},
		{50 * mib, 16 * mib, 8},    // 4 MiB
		{100 * mib, 16 * mib, 4},   // 4 MiB
		{600 * mib, 400 * mib, 16}, // 100 MiB
		{600 * mib, 600 * mib, 25}, // 150 MiB
		{1 << 40, mib, 1},
	} {
		if got := g.percent(tc.live, tc.scanned); got != tc.want {
			t.Errorf("%d bytes live, %d scanned: %d percent, want %d", tc.live, tc.scanned, got, tc.want)
		}
	}
}

func TestGarbageLimit(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	(&garbage{}).limit()
	if got := debug.SetGCPercent(77); got != 77 {
		t.Errorf("without a percentage it is set to %d", got)
	}
	(&garbage{most: 3}).limit()
	if got := debug.SetGCPercent(77); got < 1 || got > 3 {
		t.Errorf("it is set to %d, want at most 3", got)
	}
}

// TestGarbageStart checks that the first collection after start ends what start has set, unless
// limit has done so before.
func TestGarbageStart(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	percent := func() int {
		now := debug.SetGCPercent(-1)
		debug.SetGCPercent(now)
		return now
	}
	(&garbage{}).start()
	if got := percent(); got != 77 {
		t.Errorf("without a percentage it is set to %d", got)
	}
	g := &garbage{most: 25}
	g.start()
	if got := percent(); got != startPercent {
		t.Errorf("at the start it is %d", got)
	}
	for deadline := time.Now().Add(10 * time.Second); percent() != 77; runtime.Gosched() {
		if runtime.GC(); time.Now().After(deadline) {
			t.Fatalf("after a collection it is %d", percent())
		}
	}
	g = &garbage{most: 25}
	g.start()
	g.limit()
	set := percent()
	if set > 25 {
		t.Errorf("limit has set %d", set)
	}
	g.ended(77)
	if got := percent(); got != set {
		t.Errorf("a collection that comes late sets it to %d", got)
	}
}
