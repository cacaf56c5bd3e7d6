package fleet

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
)

// begun returns the starts of a view by series, "unknown" where they are.
func begun(t *testing.T, f *Fleet, sel Selection) map[string]string {
	t.Helper()
	sel.Starts = true
	snap, err := f.View(t.Context(), sel)
	if err != nil {
		t.Fatal(err)
	}
	defer snap.Release()
	if len(snap.Starts) != len(snap.Values) {
		t.Fatalf("%d starts for %d values", len(snap.Starts), len(snap.Values))
	}
	got := map[string]string{}
	for i, line := range strings.Split(strings.TrimSpace(text(snap)), "\n") {
		series := line[:strings.LastIndexByte(line, ' ')]
		if got[series] = "unknown"; snap.Starts[i] > 0 {
			got[series] = fmt.Sprint(snap.Starts[i])
		}
	}
	return got
}

// TestStarts: since when a series counts is known of what appears, by pool, is the same in each
// selection, and for the next daemon.
func TestStarts(t *testing.T) {
	web, late := tmpfs(t), tmpfs(t)
	write(t, web, "counter_1.db", map[string]float64{"hits_total": 1})
	write(t, late, "counter_1.db", map[string]float64{"hits_total": 100})
	h := start(t, pool.Spec{Name: "web", Path: web})
	if got := begun(t, h.Fleet, Selection{})["hits_total pool=web"]; got != "unknown" {
		t.Errorf("what is there before starts %s", got)
	}
	before := time.Now()
	begun(t, h.Fleet, Selection{})
	write(t, web, "counter_2.db", map[string]float64{"hits_total": 2, "more_total": 7})
	// A pool that comes with what it has counted is not new.
	if err := h.Add(pool.Spec{Name: "late", Path: late}); err != nil {
		t.Fatal(err)
	}
	h.Pool("late").Tend(true)
	got := begun(t, h.Fleet, Selection{})
	known := got["more_total pool=web"]
	if got["hits_total pool=late"] != "unknown" || got["hits_total pool=web"] != "unknown" || known == "unknown" {
		t.Errorf("starts %v", got)
	}
	if known < fmt.Sprint(before.UnixMilli()) || known > fmt.Sprint(time.Now().UnixMilli()) {
		t.Errorf("a series starts at %s, and came between %d and now", known, before.UnixMilli())
	}
	for name, sel := range map[string]struct {
		Selection
		series string
	}{
		"one pool": {Selection{Pools: []string{"web"}}, "more_total pool=web"},
		"bare":     {Selection{Pools: []string{"web"}, Bare: true}, "more_total"},
	} {
		if got := begun(t, h.Fleet, sel.Selection); got[sel.series] != known {
			t.Errorf("%s: starts %v, want %s", name, got, known)
		}
	}
	// Nobody asks, nobody pays.
	snap, err := h.View(t.Context(), Selection{})
	if err != nil || len(snap.Starts) != 0 {
		t.Errorf("%d starts, %v", len(snap.Starts), err)
	}
	snap.Release()

	// By other rules there are other names, which are not new.
	write(t, web, "counter_3.db", map[string]float64{"many_total u=1": 4, "many_total u=2": 5})
	if got := begun(t, h.Fleet, Selection{}); got["many_total pool=web u=1"] == "unknown" {
		t.Errorf("starts %v", got)
	}
	h.force(compile(t, policy.Spec{Rules: []policy.Rule{{Match: "many", DropLabels: []string{"u"}}}}))
	time.Sleep(2 * time.Millisecond) // starts are told apart by milliseconds
	if got := begun(t, h.Fleet, Selection{}); got["many_total pool=web"] != "unknown" || got["more_total pool=web"] != known {
		t.Errorf("by other rules starts are %v", got)
	}
	write(t, web, "counter_4.db", map[string]float64{"last_total": 1})
	last := begun(t, h.Fleet, Selection{})["last_total pool=web"]
	if last == "unknown" {
		t.Error("what comes after other rules has no start")
	}

	// The end of the loop saves; the next daemon goes on.
	ctx, stop := context.WithCancel(t.Context())
	ran := make(chan struct{})
	go func() { defer close(ran); h.Run(ctx) }()
	for !h.Ready() {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-ran
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	write(t, web, "counter_5.db", map[string]float64{"meanwhile_total": 1})
	next := start(t, pool.Spec{Name: "web", Path: web})
	next.force(compile(t, policy.Spec{Rules: []policy.Rule{{Match: "many", DropLabels: []string{"u"}}}}))
	if got := begun(t, next.Fleet, Selection{}); got["more_total pool=web"] != known || got["last_total pool=web"] != last ||
		got["meanwhile_total pool=web"] != "unknown" {
		t.Errorf("the next daemon has starts %v, want more_total from %s and last_total from %s", got, known, last)
	}
}

// TestStartsDamaged: a state that cannot be read costs what it says, and is told.
func TestStartsDamaged(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db", map[string]float64{"hits_total": 1})
	h := start(t, pool.Spec{Name: "web", Path: dir})
	if err := h.Pool("web").Keep(startsFile, []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	if got := begun(t, h.Fleet, Selection{}); got["hits_total pool=web"] != "unknown" {
		t.Errorf("starts %v", got)
	}
	if n := h.logged("start times of series could not be read"); n != 1 {
		t.Errorf("told %d times", n)
	}
	h.keepStarts(h.find("web"), true)
	if data, err := h.Pool("web").Kept(startsFile, 1<<20); err != nil || string(data) == "rubbish" {
		t.Errorf("kept %q, %v", data, err)
	}
}
