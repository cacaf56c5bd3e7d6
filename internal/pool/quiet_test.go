package pool

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// settle tends the pool until its rounds are quiet, and the next one asks for no more than it must.
func (h *harness) settle() {
	h.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(stampsTell / 4) {
		if h.Tend(false); h.isQuiet() && !h.askAllLocked() {
			return
		}
		h.Fold()
	}
	h.t.Fatal("rounds do not become quiet")
}

// stampsTell is how long after a change the stamp of a directory tells of the next one.
const stampsTell = 20 * time.Millisecond

// TestQuietRounds: whatever happens ends the quiet in the next round, or is seen by a scrape.
func TestQuietRounds(t *testing.T) {
	type scene struct {
		*harness
		dir         string
		a, b, gauge *process
	}
	for name, test := range map[string]func(s scene){
		"nothing": func(s scene) {
			for range 3 * askAllEvery {
				s.Tend(false)
			}
			s.settle()
			s.want("busy 3", "c_total 3")
		},
		"a worker dies": func(s scene) {
			s.a.die()
			s.gauge.die()
			s.Tend(false)
			if s.isQuiet() || s.State().Alive != 1 {
				s.t.Fatal("the round after a death is quiet")
			}
			s.want("c_total 3")
		},
		"a worker lets a file go": func(s scene) {
			s.gauge.die()
			s.want("c_total 3") // the next scrape asks
			s.Tend(false)
			if s.quiet {
				s.t.Fatal("the round after a scrape has found a dead file is quiet")
			}
		},
		"a worker lets a file go, nobody scrapes": func(s scene) {
			s.gauge.die()
			for range askAllEvery {
				s.Tend(false)
			}
			if s.isQuiet() || s.State().Files[FileDead] != 1 {
				s.t.Fatalf("after %d rounds the file is not known to be dead", askAllEvery)
			}
		},
		"a second life": func(s scene) {
			s.b.die()
			s.Tend(false)
			write(s.t, s.dir, "counter_2.db").set("c_total", 2).set("c_total", 5, "path", "/").die()
			s.Tend(false)
			s.wantFoldedExcept("counter_1.db", "gauge_livesum_1.db")
			s.want("busy 3", "c_total 3", "c_total path=/ 5")
		},
		"a file comes": func(s scene) {
			write(s.t, s.dir, "counter_3.db").set("c_total", 4)
			s.Tend(false)
			if s.isQuiet() || len(s.Workers()) != 3 {
				s.t.Fatal("the round after a file came is quiet")
			}
		},
		"a file is removed": func(s scene) {
			if err := os.Remove(filepath.Join(s.dir, "counter_1.db")); err != nil {
				s.t.Fatal(err)
			}
			s.a.set("c_total", 10)
			s.Tend(false)
			s.a.die()
			s.Tend(false)
			s.Fold()
			s.want("busy 3", "c_total 12")
		},
		"entries and values": func(s scene) {
			s.a.set("c_total", 7).set("d_total", 1)
			s.want("busy 3", "c_total 9", "d_total 1")
		},
		"entries, nobody scrapes": func(s scene) {
			s.a.set("d_total", 1)
			for range askAllEvery {
				s.Tend(false)
			}
			if n := s.State().Entries; n != 4 {
				s.t.Fatalf("%d entries are known after %d rounds, want 4", n, askAllEvery)
			}
		},
		"it is listed again": func(s scene) {
			s.Rescan()
			if !s.isQuiet() {
				s.t.Fatal("a listing that brings nothing new ends the quiet")
			}
			write(s.t, s.dir, "counter_3.db").set("c_total", 4)
			s.Rescan()
			if s.isQuiet() {
				s.t.Fatal("a listing that brings a file does not end the quiet")
			}
		},
		"another policy": func(s scene) {
			s.force(ruledDead())
			s.Tend(false)
			if s.quiet {
				s.t.Fatal("the round after another policy is quiet")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t)
			s := scene{dir: dir, a: write(t, dir, "counter_1.db").set("c_total", 1), b: write(t, dir, "counter_2.db").set("c_total", 2)}
			s.gauge = write(t, dir, "gauge_livesum_1.db").set("busy", 3)
			s.harness = collect(t, Spec{Path: dir})
			s.want("busy 3", "c_total 3")
			s.settle()
			test(s)
		})
	}
}

// TestWatchedRounds: where file system events tell of what is done to files, all of them are asked for
// seldom, unless there was such an event.
func TestWatchedRounds(t *testing.T) {
	dir := tmpfs(t)
	a := write(t, dir, "counter_1.db").set("c_total", 1)
	gauge := write(t, dir, "gauge_all_1.db").set("busy", 3)
	h := collect(t, Spec{Path: dir})
	h.SetWatched(true)
	h.settle()
	h.disturbed = false
	// In the rounds between, only one of the files is.
	asked := func() (rounds int) {
		for rounds = 1; rounds <= 2*askSeldomEvery; rounds++ {
			looks := h.opened.files[0].asked + h.opened.files[1].asked
			if h.Tend(false); h.opened.files[0].asked+h.opened.files[1].asked > looks+2 {
				return rounds
			}
		}
		t.Fatal("not all files are asked for any more")
		return 0
	}
	asked()
	if n := asked(); n != askSeldomEvery {
		t.Errorf("all files are asked for after %d rounds, want %d", n, askSeldomEvery)
	}
	h.Disturb()
	if n := asked(); n > askAllEvery {
		t.Errorf("after an event all files are asked for in %d rounds, want %d at most", n, askAllEvery)
	}
	h.SetWatched(false)
	if n := asked(); n > askAllEvery {
		t.Errorf("without events all files are asked for in %d rounds, want %d at most", n, askAllEvery)
	}
	a.die()
	gauge.die()
}

// wantFoldedExcept folds until these files are all that is left.
func (h *harness) wantFoldedExcept(bases ...string) {
	h.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if h.fold(); len(waiting(h.t, h.spec.Path)) == len(bases) {
			return
		}
	}
	h.t.Fatalf("not folded: %v", waiting(h.t, h.spec.Path))
}
