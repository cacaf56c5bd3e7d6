package fleet

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
	"aggregatord/internal/telemetry"
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

// TestSilentPool: a pool whose directory does not answer, while it is tended or while a view is taken, is left
// out of the view of all pools after a while, and at once from then on, until it answers.
func TestSilentPool(t *testing.T) {
	const patience = time.Second
	for name, hang := range map[string]func(stick func()) (progress func(int, int), now func() time.Time){
		"tended": func(stick func()) (func(int, int), func() time.Time) { return func(int, int) { stick() }, time.Now },
		"gathered": func(stick func()) (func(int, int), func() time.Time) {
			return nil, func() time.Time { stick(); return time.Now() }
		},
	} {
		t.Run(name, func(t *testing.T) {
			slow, good := tmpfs(t), tmpfs(t)
			for i := range 100 { // the progress of many files is told
				write(t, slow, fmt.Sprintf("counter_%d.db", i), map[string]float64{"hits_total": 1})
			}
			write(t, good, "counter_1.db", map[string]float64{"hits_total": 2})
			core, logs := observer.New(zapcore.InfoLevel)
			h := &harness{t: t, logs: logs, set: telemetry.NewSet()}
			var armed atomic.Bool
			stuck, open := make(chan struct{}), make(chan struct{})
			progress, now := hang(func() {
				if armed.CompareAndSwap(true, false) {
					close(stuck)
					<-open
				}
			})
			f, err := New(Options{
				Pools: []pool.Spec{{Name: "slow", Path: slow}}, Growing: true, Logger: zap.New(core), Set: h.set,
				Pool: pool.Options{Archive: &pool.ArchiveOptions{}, Patience: patience, OnProgress: progress, Now: now},
			})
			if err != nil {
				t.Fatal(err)
			}
			h.Fleet = f
			if err := f.Open(); err != nil {
				t.Fatal(err)
			}
			only := Selection{Pools: []string{"slow"}}
			hung := make(chan struct{})
			if progress == nil {
				f.Pool("slow").Tend(true)
			}
			armed.Store(true)
			go func() {
				defer close(hung)
				if progress != nil {
					f.Pool("slow").Tend(true)
				} else if _, err := f.View(t.Context(), only); !errors.Is(err, pool.ErrSilent) {
					t.Errorf("a view that hangs: %v", err)
				}
			}()
			<-stuck
			if err := f.Add(pool.Spec{Name: "good", Path: good}); err != nil {
				t.Fatal(err)
			}
			f.Pool("good").Tend(true)
			directoryUp := func(of string) float64 {
				f.UpdateMetrics()
				return h.own("aggregatord_directory_up pool=" + of)
			}
			h.want("hits_total pool=good 2")
			at := time.Now()
			for range 3 {
				h.want("hits_total pool=good 2")
			}
			if took := time.Since(at); took > patience {
				t.Errorf("three views without the pool took %v", took)
			}
			if _, err := f.View(t.Context(), only); !errors.Is(err, pool.ErrSilent) {
				t.Errorf("a view of the pool alone: %v", err)
			}
			if state := f.Pool("slow").State(); !f.IsSilent("slow") || f.IsSilent("good") || !state.Silent || directoryUp("slow") != 0 ||
				directoryUp("good") != 1 {
				t.Errorf("it is not told: %+v", state)
			}
			if n := h.logged("does not answer"); n != 1 {
				t.Errorf("the log has it %d times", n)
			}
			close(open)
			<-hung
			for deadline := time.Now().Add(10 * time.Second); f.IsSilent("slow"); time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it is never heard again")
				}
			}
			h.want("hits_total pool=good 2", "hits_total pool=slow 100")
			if h.logged("answers again") != 1 || directoryUp("slow") != 1 {
				t.Error("that it answers is not told")
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		})
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
