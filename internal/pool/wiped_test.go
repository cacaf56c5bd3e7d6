package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// TestSecondLifeAtEachStep lets another process of the same ID live and die, unseen, before each step
// of the fold of the first one's files, and has the directory emptied before each step, or not. What
// it counted counts, unless it was in a file that was removed before anybody could have seen it.
func TestSecondLifeAtEachStep(t *testing.T) {
	t.Parallel()
	for _, elsewhere := range []bool{false, true} {
		for _, wiped := range []bool{false, true} {
			t.Run(fmt.Sprintf("elsewhere=%v/wiped=%v", elsewhere, wiped), func(t *testing.T) {
				t.Parallel()
				for life := 0; ; life++ {
					wipe := 0
					for wiped && secondLife(t, life, wipe, elsewhere, wiped) {
						wipe++ // in one step both come, in this order and in the other
					}
					if wipe == 0 && !secondLife(t, life, -1, elsewhere, false) {
						break
					}
				}
			})
		}
	}
}

// secondLife has the directory emptied before step wipe/2, before the other process if that is odd
// and both come there. It returns false when a fold has no such steps.
func secondLife(t *testing.T, life, wipe int, elsewhere, wiped bool) (more bool) {
	dir := tmpfs(t)
	opts := Options{Archive: &ArchiveOptions{Rest: -1}}
	if elsewhere {
		opts.ArchiveDir = t.TempDir()
	}
	begin := func() *harness {
		p := New(Spec{Path: dir}, opts)
		p.partsEvery = 0
		if err := p.Open(); err != nil {
			t.Fatal(err)
		}
		p.Tend(true)
		return &harness{Pool: p, t: t}
	}
	h := begin()
	defer func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	}()
	write(t, dir, "counter_1.db").set("hits_total", 1).die()
	write(t, dir, "gauge_all_1.db").set("temp", 1).die()
	recent(t, dir, 1, 100)
	h.Tend(true)
	h.want("hits_total 1", "last 1", "temp pid=1 1")

	hits, other := 1.0, 0.0
	// tends counts calls of Tend, and seen is how many there were when something came that only the
	// next one sees.
	tends, seen, lived, emptied := 0, -1, false, !wiped
	remove := func() {
		emptied = true
		if seen == tends {
			hits, other = 1, 0
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	live := func() {
		lived = true
		_, err := os.Stat(filepath.Join(dir, "counter_1.db"))
		known, value := err == nil, 1.0
		if known {
			value = 2 // on top of what is in it
		}
		write(t, dir, "counter_1.db").set("hits_total", value).set("hits_total", 3, "path", "/").die()
		write(t, dir, "gauge_all_1.db").set("temp", 2).die()
		recent(t, dir, 2, 200)
		if hits, other = 2, 3; !known {
			seen = tends
		}
	}
	check := func(when string) {
		t.Helper()
		want := []string{fmt.Sprintf("hits_total %v", hits)}
		if other > 0 {
			want = append(want, fmt.Sprintf("hits_total path=/ %v", other))
		}
		got := h.view()
		if !wiped { // else they go with their files, or not
			want = append(want, "last 2", "temp pid=1 2")
		} else {
			got = counters(got)
		}
		if got != lines(want) {
			t.Fatalf("life at %d, emptied at %d, %s: got:\n%swant:\n%s", life, wipe, when, got, lines(want))
		}
	}
	n := 0
	h.folder.Step = func(string) error {
		if n == wipe/2 && wiped && wipe%2 == 1 {
			remove()
		}
		if n == life {
			live()
		}
		if n == wipe/2 && wiped && wipe%2 == 0 {
			remove()
		}
		n++
		return nil
	}
	tend := func() {
		h.Tend(true)
		tends++
	}
	for range 6 {
		tend()
		for h.Fold() {
			tend()
		}
		if lived && emptied {
			break
		}
		advance(h.Pool)
	}
	h.folder.Step = nil
	if !lived || !emptied {
		return false
	}
	check("after the fold")
	h.Tend(true)
	check("after the next listing")
	h.fold()
	check("when all is archived")
	h.wantFolded(dir)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = begin()
	check("after a restart")
	return true
}

// recent sets a gauge in mode mostrecent as a worker that dies then.
func recent(t *testing.T, dir string, value, stamp float64) {
	t.Helper()
	w := write(t, dir, "gauge_mostrecent_1.db")
	slot, err := w.w.Slot(store.AppendKey(nil, metric.Key{Family: "last", Help: "Help.", Series: metric.Series{Sample: "last"}}))
	if err != nil {
		t.Fatal(err)
	}
	w.w.Set(slot, value, stamp)
	w.die()
}

// counters returns the lines of a view that begin with hits.
func counters(text string) string {
	var kept []string
	for l := range strings.Lines(text) {
		if strings.HasPrefix(l, "hits") {
			kept = append(kept, strings.TrimSuffix(l, "\n"))
		}
	}
	return lines(kept)
}

func lines(of []string) string { return strings.Join(append(of, ""), "\n") }
