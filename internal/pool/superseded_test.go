package pool

import (
	"testing"
	"time"
)

// TestSuperseded: what workers before a deployment have left of a metric that has another mode since
// is kept for a while, in case the deployment is rolled back, and then dropped for good.
func TestSuperseded(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "gauge_sum_1.db").set("jobs", 37).set("others", 2).die()
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	h := collect(t, Spec{Path: dir})
	after := func(d time.Duration) {
		t.Helper()
		now := h.now().Add(d)
		h.now = func() time.Time { return now }
		h.Tend(true)
		h.view()
		h.fold()
	}
	h.fold()
	h.want("hits_total 5", "jobs 37", "others 2")
	keys := func(want int) {
		t.Helper()
		if n := h.folder.Archive().Totals().Series(); n != want {
			t.Fatalf("%d keys are archived, want %d", n, want)
		}
	}
	keys(3)

	old := write(t, dir, "gauge_sum_3.db").set("jobs", 1)
	time.Sleep(20 * time.Millisecond) // so that the next one is newer by the kernel's clock, too
	worker := write(t, dir, "gauge_livesum_2.db").set("jobs", 5)
	after(0)
	h.want("hits_total 5", "jobs 5", "others 2")
	after(2 * supersededFor)
	keys(3) // a worker of before is alive: the old values may be wanted once more
	old.die()
	after(0)
	after(supersededEvery)
	h.want("hits_total 5", "jobs 5", "others 2")
	keys(2)
	if n := h.own("aggregatord_archive_superseded_series_total"); n != 1 {
		t.Errorf("%v are counted", n)
	}
	if n := h.logged("archived series were dropped", ""); n != 1 {
		t.Errorf("%d are logged", n)
	}
	worker.die()
	h.wantFolded(dir)
	h.want("hits_total 5", "others 2")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	h.want("hits_total 5", "others 2")
	keys(2)
}

// TestSupersededForAMoment: a deployment that is rolled back within the hour loses nothing.
func TestSupersededForAMoment(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "gauge_sum_1.db").set("jobs", 37).die()
	h := collect(t, Spec{Path: dir})
	after := func(d time.Duration) {
		now := h.now().Add(d)
		h.now = func() time.Time { return now }
	}
	h.fold()
	for range 4 {
		worker := write(t, dir, "gauge_max_2.db").set("jobs", 5)
		h.Tend(true)
		h.want("jobs 5")
		after(supersededFor - 5*time.Minute)
		h.Tend(true)
		h.want("jobs 5")
		h.fold()
		worker.die()
		h.wantFolded(dir)
		again := write(t, dir, "gauge_sum_3.db").set("jobs", 0)
		h.Tend(true)
		h.want("jobs 37")
		after(10 * time.Minute)
		h.Tend(true)
		h.want("jobs 37")
		h.fold()
		again.die()
		h.wantFolded(dir)
	}
}
