package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"aggregatord/internal/store"
)

// openRuby is write for a file of the Ruby client.
func openRuby(t *testing.T, dir, base string) *process {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{Width: store.Narrow})
	if err != nil {
		t.Fatal(err)
	}
	return &process{t, w}
}

func (w *process) raw(key string, value float64) *process {
	w.t.Helper()
	slot, err := w.w.Slot([]byte(key))
	if err != nil {
		w.t.Fatal(err)
	}
	w.w.Set(slot, value, 0)
	return w
}

// observed sets the histogram h as it is after observations of which so many are up to 1, up
// to 5, and in all. Each is 2.
func (w *process) observed(to1, to5, all float64) *process {
	w.t.Helper()
	return w.raw(`["h","h_sum",[],[]]`, 2*all).raw(`["h","h_count",[],[]]`, all).
		raw(`["h","h_bucket",["le"],["+Inf"]]`, all).raw(`["h","h_bucket",["le"],["1"]]`, to1).raw(`["h","h_bucket",["le"],["5"]]`, to5)
}

// histogram is what is served of h.
func histogram(to1, to5, all int) []string {
	return []string{
		fmt.Sprint("h_bucket ", to1), fmt.Sprint("h_bucket ", to5), fmt.Sprint("h_bucket ", all),
		fmt.Sprint("h_sum ", 2*all), fmt.Sprint("h_count ", all),
	}
}

// TestRubyHistogram follows cumulative buckets through all that may happen to a file: each
// observation counts once.
func TestRubyHistogram(t *testing.T) {
	dir := tmpfs(t)
	w := openRuby(t, dir, "histogram_7-0.db").observed(1, 3, 4)
	h := collect(t, Spec{Path: dir})
	h.want(histogram(1, 3, 4)...)
	readOnly(t, dir, nil, histogram(1, 3, 4)...)
	w.observed(1, 4, 5)
	h.want(histogram(1, 4, 5)...)
	h.force(nil) // every file is learned anew
	h.want(histogram(1, 4, 5)...)

	// Archived, and then opened late by a process with the same ID, that adds to it.
	w.die()
	h.want(histogram(1, 4, 5)...)
	h.Tend(true)
	h.Fold()
	h.want(histogram(1, 4, 5)...)
	names := stagedNames(t, dir)
	if len(names) != 1 {
		t.Fatalf("%v wait to be removed", names)
	}
	late := openRuby(t, dir, names[0]).observed(2, 5, 6)
	advance(h.Pool)
	h.Tend(true)
	h.Fold()
	h.want(histogram(2, 5, 6)...)
	h.force(nil)
	h.want(histogram(2, 5, 6)...)
	late.observed(2, 6, 8)
	h.want(histogram(2, 6, 8)...)
	late.die()
	h.wantFolded(dir)
	h.want(histogram(2, 6, 8)...)

	// Removed by somebody else while its process lives, and archived in parts.
	w = openRuby(t, dir, "histogram_8-0.db").observed(0, 1, 1)
	h.want(histogram(2, 7, 9)...)
	if err := os.Remove(filepath.Join(dir, "histogram_8-0.db")); err != nil {
		t.Fatal(err)
	}
	h.fold()
	h.want(histogram(2, 7, 9)...)
	w.observed(1, 2, 3)
	h.want(histogram(3, 8, 11)...)
	h.fold()
	readOnly(t, dir, nil, histogram(3, 8, 11)...)
	w.observed(1, 3, 4)
	h.want(histogram(3, 9, 12)...)
	w.die()
	h.fold()
	h.want(histogram(3, 9, 12)...)

	// Beside Python's, and read by the next daemon.
	write(t, dir, "histogram_9.db").raw(`["h", "h_bucket", {"le": "1.0"}, "Help."]`, 10).raw(`["h", "h_bucket", {"le": "+Inf"}, "Help."]`,
		1).die()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	want := append(histogram(13, 19, 23)[:3], "h_sum 24", "h_count 23")
	h.want(want...)
	h.wantFolded(dir)
	h.want(want...)
}

// TestRubyWorkerID: the number behind a worker's ID is no part of it.
func TestRubyWorkerID(t *testing.T) {
	dir := tmpfs(t)
	empty := openRuby(t, dir, "gauge_all_8-0.db")
	w := openRuby(t, dir, "gauge_all_7-0.db").raw(`["g","g",[],[]]`, 1)
	openRuby(t, dir, "counter_7-0.db").raw(`["c","c",["code"],[200]]`, 5).die()
	write(t, dir, "gauge_all_web-0.db").set("p", 2)
	h := collect(t, Spec{Path: dir})
	h.want("c code=200 5", "g pid=7 1", "p pid=web-0 2")
	empty.raw(`["g","g",[],[]]`, 3)
	h.want("c code=200 5", "g pid=7 1", "g pid=8 3", "p pid=web-0 2")
	w.die()
	h.fold()
	h.want("c code=200 5", "g pid=7 1", "g pid=8 3", "p pid=web-0 2")
	workers := map[string]bool{}
	for _, w := range h.Workers() {
		workers[w.ID] = true
	}
	if len(workers) != 2 || !workers["8"] || !workers["web-0"] {
		t.Errorf("the workers are %v", workers)
	}
}

// Files of the other Ruby client are not read yet: the log names it, once.
func TestUnreadClient(t *testing.T) {
	dir := tmpfs(t)
	put := func(base string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, base), make([]byte, 64), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("notes.bin")
	put("metric_a_total___1.bin")
	put("metric_b_total___1.bin")
	h := collect(t, Spec{Path: dir})
	put("metric_a_total___2.bin")
	h.Tend(true)
	told := h.logs.FilterMessage("files of a client that is not read yet; its metrics are not served").All()
	if len(told) != 1 {
		t.Fatalf("told %d times, want once", len(told))
	}
	if got := told[0].ContextMap(); got["client"] != "client_ruby (DirectFileStore)" || got["files"] != int64(2) {
		t.Errorf("told %v", got)
	}
}
