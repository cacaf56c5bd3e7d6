package fleet

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"aggregatord/internal/pool"
)

// TestPace: a pool in which nothing happens is left alone for two intervals after a round, but for the few
// rounds that ask for all files, and for one after whatever happens to it, or where events would not
// tell. What is counted is what the tend loop would wait for.
func TestPace(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db", map[string]float64{"hits_total": 1})
	worker, err := os.OpenFile(filepath.Join(dir, "counter_1.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close()
	h := start(t, pool.Spec{Name: "a", Path: dir})
	m := h.all()[0]
	const rounds = 30
	// pass makes rounds and returns how many intervals pass in them.
	pass := func() (intervals int) {
		for range rounds {
			pause := h.round(t.Context(), m, false)
			if pause%h.opts.TendInterval != 0 {
				t.Fatalf("the pause is %v", pause)
			}
			intervals += int(pause / h.opts.TendInterval)
		}
		return intervals
	}
	// calm makes rounds until the pool is known to be undisturbed: a change of a moment ago may not be the last one.
	calm := func() {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); h.round(t.Context(), m, false) == h.opts.TendInterval; {
			if time.Now().After(deadline) {
				t.Fatal("the pool is never undisturbed")
			}
		}
	}
	m.notifier.Stats.Watching.Store(true)
	calm()
	if got := pass(); got < rounds*7/4 || got > rounds*2 {
		t.Errorf("undisturbed, %d rounds are made in %d intervals", rounds, got)
	}
	for _, tc := range []struct {
		name    string
		happens func()
	}{
		{"event", m.Disturb},
		{"new_file", func() { write(t, dir, "counter_2.db", map[string]float64{"hits_total": 2}) }},
		{"death", func() { worker.Close() }},
	} {
		calm()
		tc.happens()
		if pause := h.round(t.Context(), m, false); pause != h.opts.TendInterval {
			t.Errorf("%s: the pause is %v", tc.name, pause)
		}
	}
	m.notifier.Stats.Watching.Store(false)
	pass()
	if got := pass(); got != rounds {
		t.Errorf("without events %d rounds are made in %d intervals", rounds, got)
	}
	if h.opts.TendInterval != time.Second {
		t.Errorf("an interval is %v, want 1 s", h.opts.TendInterval)
	}
}
