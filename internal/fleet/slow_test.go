package fleet

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
)

// TestSlowPool: a pool whose directory takes long, while it is tended, keeps no other one from being
// scraped, added and removed, and no scrape waits for a policy that waits for the slow one.
func TestSlowPool(t *testing.T) {
	slow, good, more := tmpfs(t), tmpfs(t), tmpfs(t)
	for i := range 200 { // the progress of many files is told
		write(t, slow, fmt.Sprintf("counter_%d.db", i), map[string]float64{"slow_total": 1})
	}
	write(t, good, "counter_1.db", map[string]float64{"hits_total": 1})
	write(t, more, "counter_1.db", map[string]float64{"hits_total": 2})
	stuck, open := make(chan struct{}), make(chan struct{})
	f, err := New(Options{
		Pools: []pool.Spec{{Name: "good", Path: good}, {Name: "slow", Path: slow}},
		Pool: pool.Options{Archive: &pool.ArchiveOptions{}, OnProgress: func(done, files int) {
			if done == 1 && files > 1 {
				close(stuck)
				<-open
			}
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{Fleet: f, t: t}
	if err := f.Open(); err != nil {
		t.Fatal(err)
	}
	f.Pool("good").Tend(true)
	tended, ruled := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(tended)
		f.Pool("slow").Tend(true)
	}()
	<-stuck
	go func() {
		ruled <- f.SetPolicy(compile(t, policy.Spec{Pools: map[string]policy.PoolSpec{"good": {Labels: map[string]string{"team": "a"}}}}))
	}()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		only := Selection{Pools: []string{"good"}}
		for begin, slowest := time.Now(), time.Duration(0); ; {
			at := time.Now()
			h.wantOf(only, "hits_total pool=good 1")
			slowest = max(slowest, time.Since(at))
			if time.Since(begin) > 300*time.Millisecond {
				t.Log("the slowest scrape took", slowest)
				break
			}
		}
		if err := f.Add(pool.Spec{Name: "more", Path: more}); err != nil {
			t.Error(err)
		}
		f.Pool("more").Tend(true)
		h.wantOf(Selection{Pools: []string{"more"}}, "hits_total pool=more 2")
		if err := f.Remove("more"); err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-finished:
	case <-time.After(20 * time.Second):
		t.Error("others wait for the slow pool")
	}
	select {
	case err := <-ruled:
		t.Errorf("the policy is in force before the slow pool has it: %v", err)
	default:
	}
	close(open)
	<-tended
	<-finished
	if err := <-ruled; err != nil {
		t.Error(err)
	}
	h.wantOf(Selection{Pools: []string{"good"}}, "hits_total pool=good team=a 1")
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestSlowToOpen: an application that keeps its archive locked, so that each attempt to open it takes
// half a second, keeps no other pool from being added, and no policy from coming into force.
func TestSlowToOpen(t *testing.T) {
	slow, good := tmpfs(t), tmpfs(t)
	write(t, good, "counter_1.db", map[string]float64{"hits_total": 1})
	h := start(t, pool.Spec{Name: "slow", Path: slow})
	if err := h.Remove("slow"); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(slow, ".aggregatord.archive*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no archive: %v", err)
	}
	for _, file := range files {
		locked, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer locked.Close()
		if err := unix.Flock(int(locked.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
	}
	var attempts atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := h.Add(pool.Spec{Name: "slow", Path: slow}); err == nil {
				t.Error("a locked archive is opened")
				return
			}
			attempts.Add(1)
		}
	}()
	// Once, all of this must fit between the ends of two attempts.
	for try := 1; ; try++ {
		before := attempts.Load()
		if err := h.Add(pool.Spec{Name: "good", Path: good}); err != nil {
			t.Fatal(err)
		}
		h.Pool("good").Tend(true)
		labels := map[string]string{"try": fmt.Sprint(try)}
		h.force(compile(t, policy.Spec{Pools: map[string]policy.PoolSpec{"good": {Labels: labels}}}))
		h.want(fmt.Sprintf("hits_total pool=good try=%d 1", try))
		if err := h.Remove("good"); err != nil {
			t.Fatal(err)
		}
		if attempts.Load() == before {
			break
		}
		if try == 20 {
			t.Fatal("others wait for the slow pool")
		}
	}
	close(stop)
	<-stopped
}
