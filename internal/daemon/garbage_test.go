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

func TestTideOut(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name      string
		low, held uint64 // MiB
		allocated uint64 // KiB since the last look
		garbage   uint64 // MiB that there may be before it is collected
		want      bool
	}{
		{"never_given_back", 0, 8, 10, 1, true},
		{"as_it_was", 8, 8, 10, 1, false},
		{"garbage_there_may_be", 8, 9, 10, 1, false},
		{"after_many_requests", 8, 20, 10, 1, true},
		{"many_requests", 8, 20, 20 << 10, 1, false},
		{"less", 20, 8, 10, 1, false},
		{"large_and_a_little_more", 400, 410, 10, 4, false},
		{"large_and_more", 400, 440, 10, 4, true},
	} {
		tide := tide{low: tc.low * mib, garbage: tc.garbage * mib, allocated: 5}
		now := memoryUse{held: tc.held * mib, allocated: 5 + tc.allocated<<10, garbage: 50 * mib}
		if got := tide.out(now); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		if tide.allocated != now.allocated {
			t.Errorf("%s: the look is forgotten", tc.name)
		}
	}
}

// TestTideGivesBack: what was used once is given back as soon as nothing is allocated any more, and a
// collection that would give back nothing is not made.
func TestTideGivesBack(t *testing.T) {
	const large = 64 << 20
	var tide tide
	var g garbage
	g.giveBackNow(&tide)
	low := tide.low
	runtime.KeepAlive(make([]byte, large)) // until here, and no longer
	g.giveBack(&tide)
	if held := readMemoryUse().held; held < large {
		t.Fatalf("%d bytes are held after %d were allocated: while much is allocated there is a collection", held, large)
	}
	g.giveBack(&tide)
	if held := readMemoryUse().held; held > low+large/4 {
		t.Errorf("%d bytes are held, %d before", held, low)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	g.giveBack(&tide)
	if runtime.ReadMemStats(&after); after.NumForcedGC != before.NumForcedGC {
		t.Errorf("collected again, with %d bytes held at the low of %d", readMemoryUse().held, tide.low)
	}
}
