package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/merge"
	"aggregatord/internal/pool"
	"aggregatord/internal/store"
)

// TestHostilePool: an application that fills its directory with whatever costs most, and that keeps
// files from being opened, takes nothing from another one: neither series, nor descriptors, nor time.
func TestHostilePool(t *testing.T) {
	hostile, good := tmpfs(t), tmpfs(t)
	// Series without number, over the limits.
	for i := range 20 {
		samples := map[string]float64{}
		for k := range 200 {
			samples[fmt.Sprintf("junk_%d_total path=/%d", i, k)] = 1
		}
		write(t, hostile, fmt.Sprintf("counter_%d.db", i), samples)
	}
	// Files without number.
	for i := range 3000 {
		if err := os.WriteFile(filepath.Join(hostile, fmt.Sprintf("gauge_all_%d.db", 1000+i)), []byte("garbage"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// A file that says it is larger than memory, a pipe nobody writes to, a link to a device that
	// never ends, a directory and another application's file.
	huge := filepath.Join(hostile, "counter_999.db")
	if err := os.WriteFile(huge, []byte{255, 255, 255, 127, 0, 0, 0, 0}, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(huge, 1<<31); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(hostile, "histogram_1.db"), 0o600); err != nil {
		t.Fatal(err)
	}
	for base, target := range map[string]string{"histogram_2.db": "/dev/zero", "counter_998.db": filepath.Join(good, "counter_1.db")} {
		if err := os.Symlink(target, filepath.Join(hostile, base)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(hostile, "summary_1.db"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A file that its owner holds a write lease on: whoever opens it waits for 45 s.
	leased := filepath.Join(hostile, "counter_997.db")
	write(t, hostile, "counter_997.db", map[string]float64{"leased_total": 1})
	held, err := os.OpenFile(leased, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := unix.FcntlInt(held.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Log("no lease:", err)
	}

	const hits = 90
	samples := map[string]float64{}
	for k := range hits {
		samples[fmt.Sprintf("hits_total path=/%d", k)] = 1
	}
	write(t, good, "counter_1.db", samples)

	f, err := New(Options{
		Pools: []pool.Spec{{Name: "hostile", Path: hostile}, {Name: "good", Path: good}},
		Pool: pool.Options{
			Archive: &pool.ArchiveOptions{}, Merge: merge.Options{MaxSeries: 100},
			Limits: store.Limits{FileBytes: 1 << 20},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Open(); err != nil {
		t.Fatal(err)
	}
	tended := make(chan time.Duration, 2)
	for _, p := range f.Pools() {
		go func() {
			begin := time.Now()
			p.Tend(true)
			tended <- time.Since(begin)
		}()
	}
	for range 2 {
		select {
		case <-tended:
		case <-time.After(30 * time.Second): // of the 45 that a lease may take
			t.Fatal("a pool waits for its application")
		}
	}
	// The good one is there as a whole, and the hostile one takes as much as one may.
	snap, err := f.View(t.Context(), Selection{Pools: []string{"good"}, Bare: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(snap.Values) != hits {
		t.Errorf("%d series of the good pool", len(snap.Values))
	}
	snap.Release()
	for _, p := range f.Pools() {
		s := p.State()
		t.Logf("%s: %d series, errors of files %v, of entries %v", s.Name, s.Series, s.FileErrors, s.EntryErrors)
		switch {
		case s.Name == "good" && (s.Series != hits || len(s.FileErrors) > 0 || len(s.EntryErrors) > 0):
			t.Errorf("the good pool pays: %+v", s)
		case s.Name == "hostile" && (s.Series > 100 || len(s.FileErrors) == 0 || len(s.EntryErrors) == 0):
			t.Errorf("the hostile pool is believed: %+v", s)
		}
	}
	// Neither waits for the other: a scrape of the good one while the hostile one is busy.
	busy := f.Pool("hostile")
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				busy.Tend(true)
			}
		}
	}()
	slowest := time.Duration(0)
	for range 100 {
		begin := time.Now()
		snap, err := f.View(t.Context(), Selection{Pools: []string{"good"}, Bare: true})
		if err != nil {
			t.Fatal(err)
		}
		snap.Release()
		slowest = max(slowest, time.Since(begin))
	}
	close(stop)
	<-done
	t.Logf("the slowest of 100 views of the good pool took %v", slowest)
}

// TestDescriptorsAreShared: a pool with more files than may be open leaves room for the others,
// whichever comes first, and one pool alone may have everything.
func TestDescriptorsAreShared(t *testing.T) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	low := limit
	low.Cur = min(low.Cur, 400) // of which files may have 100
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) //nolint:errcheck // it was that before
	for name, others := range map[string]int{"alone": 0, "among_others": 3} {
		t.Run(name, func(t *testing.T) {
			greedy := tmpfs(t)
			specs := []pool.Spec{{Name: "a_greedy", Path: greedy}}
			for i := range 200 {
				write(t, greedy, fmt.Sprintf("counter_%d.db", i), map[string]float64{"greedy_total": 1})
			}
			for i := range others {
				dir := tmpfs(t)
				specs = append(specs, pool.Spec{Name: fmt.Sprint("other_", i), Path: dir})
				for k := range 5 {
					write(t, dir, fmt.Sprintf("counter_%d.db", k), map[string]float64{"others_total": 1})
				}
			}
			f, err := New(Options{Pools: specs, Reserve: 1000, Pool: pool.Options{Archive: &pool.ArchiveOptions{Rest: time.Hour}}})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if err := f.Open(); err != nil {
				t.Fatal(err)
			}
			for _, p := range f.Pools() { // the greedy one first
				p.Tend(true)
			}
			for _, p := range f.Pools() {
				s := p.State()
				switch failed := s.Files[pool.FileFailed]; {
				case s.Name != "a_greedy" && failed > 0:
					t.Errorf("%s: %d files are not open", s.Name, failed)
				case s.Name == "a_greedy" && others == 0 && failed != 100:
					t.Errorf("alone it has %d of 200 files closed, and may have 100", failed)
				case s.Name == "a_greedy" && others > 0 && failed != 125:
					t.Errorf("among others it has %d of 200 files closed, and may have 75", failed)
				}
			}
		})
	}
}
