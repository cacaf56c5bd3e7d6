package daemon

import (
	"runtime/debug"
	"testing"
)

func TestGarbagePercent(t *testing.T) {
	g := garbage{most: 25}
	for live, want := range map[uint64]int{0: 25, 1 << 20: 25, 16 << 20: 25, 32 << 20: 12, 50 << 20: 8, 1 << 40: 4} {
		if got := g.percent(live); got != want {
			t.Errorf("%d bytes live: %d percent, want %d", live, got, want)
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
	if got := debug.SetGCPercent(77); got != 4 {
		t.Errorf("it is set to %d, want the least", got)
	}
}
