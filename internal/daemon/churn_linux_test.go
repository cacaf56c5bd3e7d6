package daemon

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/discover"
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/status"
	"aggregatord/internal/store"
)

// eventually waits until check is content.
func eventually(t *testing.T, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still wrong: %v", err)
		}
	}
}

// descriptors counts those of the process.
func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// TestChurn: pools of a pattern appear, are replaced and vanish in the hundreds. Each total is what
// was counted, at any time, and what a pool had is given back.
func TestChurn(t *testing.T) {
	const pools = 100
	root, spare := sourceDir(t), sourceDir(t)
	d := startReady(t, Options{
		Fleet: fleet.Options{
			TendInterval: 200 * time.Millisecond, RescanInterval: time.Second,
			Pool: pool.Options{Archive: &pool.ArchiveOptions{Rest: -1}},
		},
		Discovery: &discover.Options{
			Sources: []discover.Source{discover.NewPattern(discover.Pattern{
				Glob: root + "/*/metrics", Name: "app-$1",
				Labels: map[string]string{"app": "$1"},
			})},
			Interval: 50 * time.Millisecond, Retention: 300 * time.Millisecond,
		},
	})
	d.scrape()
	files, goroutines := descriptors(t), runtime.NumGoroutine()

	ledger, writers := map[string]float64{}, map[string]*store.Writer{}
	name := func(i int) string { return fmt.Sprintf("app-%d", i) }
	dir := func(i int) string { return filepath.Join(root, fmt.Sprint(i), "metrics") }
	appear := func(i int) {
		if err := os.MkdirAll(dir(i), 0o755); err != nil {
			t.Fatal(err)
		}
		writers[name(i)] = write(t, dir(i), "counter_1.db", "hits_total", float64(i+1))
		ledger[name(i)] = float64(i + 1)
	}
	die := func(i int) {
		if err := writers[name(i)].Close(); err != nil {
			t.Fatal(err)
		}
	}
	// The daemon may be about to make its archive there.
	remove := func(path string) {
		t.Helper()
		eventually(t, func() error { return os.RemoveAll(path) })
	}
	vanish := func(i int) {
		die(i)
		remove(filepath.Dir(dir(i)))
		delete(ledger, name(i))
	}
	// replace puts another directory in its place, of an application that begins anew.
	replace := func(i int) {
		die(i)
		other := filepath.Join(spare, fmt.Sprint(i))
		if err := os.Mkdir(other, 0o755); err != nil {
			t.Fatal(err)
		}
		writers[name(i)] = write(t, other, "counter_2.db", "hits_total", 1000)
		if err := unix.Renameat2(unix.AT_FDCWD, other, unix.AT_FDCWD, dir(i), unix.RENAME_EXCHANGE); err != nil {
			t.Fatal(err)
		}
		remove(other)
		ledger[name(i)] += 1000
	}
	agree := func() {
		t.Helper()
		eventually(t, func() error {
			got := map[string]float64{}
			for _, m := range d.scrape()["hits_total"].GetMetric() {
				for _, l := range m.GetLabel() {
					if l.GetName() == "pool" {
						got[l.GetValue()] = m.GetCounter().GetValue()
					}
				}
			}
			for pool, want := range ledger {
				if got[pool] != want {
					return fmt.Errorf("%s has %v, want %v", pool, got[pool], want)
				}
			}
			if len(got) != len(ledger) {
				return fmt.Errorf("%d pools, want %d", len(got), len(ledger))
			}
			return nil
		})
	}

	begin := time.Now()
	for i := range pools {
		appear(i)
	}
	eventually(t, func() error {
		var targets []struct{ Labels map[string]string }
		if err := json.Unmarshal([]byte(d.get("/-/sd").body), &targets); err != nil || len(targets) != pools {
			return fmt.Errorf("%d targets, %w", len(targets), err)
		}
		return nil
	})
	listed := time.Since(begin)
	agree()
	t.Logf("%d pools at once are targets after %v and served after %v", pools, listed, time.Since(begin))

	for round := range 2 {
		for i := range pools {
			switch (i + round) % 4 {
			case 0:
				vanish(i)
			case 1:
				replace(i)
			default:
				write(t, dir(i), fmt.Sprintf("counter_%d.db", 10+round), "hits_total", 100).Close()
				ledger[name(i)] += 100
			}
		}
		for i := range pools / 4 {
			appear(pools*(round+1) + i)
		}
		agree()
		for i := range pools { // under their old names
			if (i+round)%4 == 0 {
				appear(i)
			}
		}
		agree()
	}

	// One that is there, one that has gone, and one that never was.
	vanish(0)
	agree()
	for _, tt := range []struct {
		path   string
		status int
		says   string
	}{
		{"/-/ready?pool=app-1", http.StatusOK, "is ready"},
		{"/pools/app-1/-/ready", http.StatusOK, "is ready"},
		{"/-/ready?pool=app-0", http.StatusNotFound, "was removed: its directory or its last process is gone"},
		{"/pools/app-0/metrics", http.StatusNotFound, "was removed: its directory or its last process is gone"},
		{"/-/ready?pool=app-x", http.StatusNotFound, `no such pool: "app-x"`},
		{"/pools/app-x/metrics", http.StatusNotFound, `no such pool: "app-x"`},
	} {
		eventually(t, func() error {
			if r := d.get(tt.path); r.status != tt.status || !strings.Contains(r.body, tt.says) {
				return fmt.Errorf("%s: %d %s", tt.path, r.status, r.body)
			}
			return nil
		})
	}
	var listing status.Response[status.Page[status.Pool]]
	if err := json.Unmarshal([]byte(d.get("/api/v1/pools?search=app-10&limit=3").body), &listing); err != nil {
		t.Fatal(err)
	}
	if p := listing.Data; p.Total != len(ledger) || p.Matching < 11 || len(p.Items) != 3 || p.Items[0].Source != discover.FromPattern ||
		p.Items[0].Labels["app"] == "" {
		t.Errorf("the list: %+v", p)
	}

	for i := range 3 * pools {
		if _, ok := ledger[name(i)]; ok {
			vanish(i)
		}
	}
	agree()
	eventually(t, func() error {
		runtime.GC()
		if f, g := descriptors(t), runtime.NumGoroutine(); f > files || g > goroutines {
			return fmt.Errorf("%d descriptors of %d, %d goroutines of %d", f, files, g, goroutines)
		}
		return nil
	})
	if err := d.end(); err != nil {
		t.Error(err)
	}
}
