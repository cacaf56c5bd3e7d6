package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// merger is another archiver: it adds the values of a dead worker's file to its own.
type merger struct {
	t     *testing.T
	dir   string
	total map[string]float64
}

// byRename writes a new file and renames it over the old one.
func (m *merger) byRename(name string) func() {
	return func() {
		w := write(m.t, m.dir, name+".new")
		for sample, v := range m.total {
			w.set(sample, v)
		}
		w.die()
		if err := os.Rename(filepath.Join(m.dir, name+".new"), filepath.Join(m.dir, name)); err != nil {
			m.t.Fatal(err)
		}
	}
}

// inPlace opens the file, adds to it and closes it.
func (m *merger) inPlace(name string) func() {
	return func() {
		w := write(m.t, m.dir, name)
		for sample, v := range m.total {
			w.set(sample, v)
		}
		w.die()
	}
}

// TestMergedByOthers: what another archiver merges is counted once, whatever is looked at in
// between, with the archive and without.
func TestMergedByOthers(t *testing.T) {
	for name, how := range map[string]func(m *merger) func(){
		"renamed_over":  func(m *merger) func() { return m.byRename("counter_archive.db") },
		"in_place":      func(m *merger) func() { return m.inPlace("counter_archive.db") },
		"accumulator_0": func(m *merger) func() { return m.inPlace("counter_0.db") },
		"renamed_0":     func(m *merger) func() { return m.byRename("counter_0.db") },
	} {
		for _, look := range []string{"never", "between", "after", "always"} {
			t.Run(name+"/"+look, func(t *testing.T) {
				dir := tmpfs(t)
				h := collect(t, Spec{Path: dir})
				h.archiving.Rest = DefaultRest
				m := &merger{t, dir, map[string]float64{}}
				merge := how(m)
				sent := 0.0
				see := func() {
					t.Helper()
					h.want(fmt.Sprintf("hits_total %v", sent), fmt.Sprintf("jobs_total %v", 3*sent))
				}
				for n := range 6 {
					base := fmt.Sprintf("counter_%d.db", 1000+n)
					w := write(t, dir, base).set("hits_total", 10).set("jobs_total", 30)
					sent += 10
					m.total["hits_total"] += 10
					m.total["jobs_total"] += 30
					if look != "never" {
						see()
					}
					w.die()
					h.Tend(false)
					if look == "always" {
						see()
					}
					merge()
					// A first file of the ID 0 may be a worker's as well: it is believed when what it
					// holds is gone elsewhere.
					first := name == "accumulator_0" || name == "renamed_0"
					if (look == "between" || look == "always") && (!first || n != 0) {
						h.Tend(false)
						see()
					}
					if err := os.Remove(filepath.Join(dir, base)); err != nil {
						t.Fatal(err)
					}
					h.Tend(false)
					h.Fold()
					if look == "after" || look == "always" {
						see()
					}
				}
				see()
				if s := h.State(); s.Rival.IsZero() || h.logged("another archiver merges", "") != 1 {
					t.Errorf("the other archiver was not told of: %v", s.Rival)
				}
			})
		}
	}
}

// TestWipedIsNotMerged: files that a start script removes were merged by nobody, whatever the workers
// after it count in theirs.
func TestWipedIsNotMerged(t *testing.T) {
	for name, lives := range map[string][]float64{"more": {3, 10}, "as much": {3, 6}, "at once": {6}} {
		for _, base := range []string{"counter_1.db", "counter_0.db", "counter_web.db"} {
			t.Run(name+"/"+base, func(t *testing.T) {
				dir := tmpfs(t)
				h := collect(t, Spec{Path: dir})
				h.archiving.Rest = DefaultRest
				write(t, dir, "counter_7.db").set("hits_total", 3).die()
				h.want("hits_total 3")
				h.Tend(false)
				if err := os.Remove(filepath.Join(dir, "counter_7.db")); err != nil {
					t.Fatal(err)
				}
				// Born later than that by the kernel's clock, which ticks some hundred times a second.
				time.Sleep(20 * time.Millisecond)
				last := 0.0
				for _, v := range lives {
					write(t, dir, base).set("hits_total", v).die()
					for range 3 { // it is known to be dead, and to be still
						h.want(fmt.Sprintf("hits_total %v", 3+v))
						h.Tend(false)
					}
					last = v
				}
				h.Tend(false)
				h.want(fmt.Sprintf("hits_total %v", 3+last))
				h.fold()
				h.want(fmt.Sprintf("hits_total %v", 3+last))
			})
		}
	}
}

// TestCleanedIsNotMerged: one dead worker's file is removed by somebody; another worker, whose file was
// there before, counts more than that in its second life.
func TestCleanedIsNotMerged(t *testing.T) {
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	h.archiving.Rest = DefaultRest
	write(t, dir, "counter_1.db").set("hits_total", 1).set("jobs_total", 1).die()
	write(t, dir, "counter_7.db").set("hits_total", 3).die()
	for range 3 { // it is known to be dead, and to be still
		h.want("hits_total 4", "jobs_total 1")
		h.Tend(false)
	}
	write(t, dir, "counter_1.db").set("hits_total", 5).set("jobs_total", 2).die()
	if err := os.Remove(filepath.Join(dir, "counter_7.db")); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total 8", "jobs_total 2")
	h.Tend(false)
	h.fold()
	h.want("hits_total 8", "jobs_total 2")
}

// TestHalfWipedIsNotMerged: somebody empties the directory, and the daemon looks when one file is gone. A
// worker that was just there has counted as much as that file held.
func TestHalfWipedIsNotMerged(t *testing.T) {
	for _, base := range []string{"counter_1.db", "counter_1a.db", "counter_master-1.db"} {
		t.Run(base, func(t *testing.T) {
			dir := tmpfs(t)
			h := collect(t, Spec{Path: dir})
			h.archiving.Rest = DefaultRest
			write(t, dir, base).set("hits_total", 1).die()
			write(t, dir, "counter_7.db").set("hits_total", 3).die()
			for range 3 { // they are known to be dead, and to be still
				h.want("hits_total 4")
				h.Tend(false)
			}
			write(t, dir, base).set("hits_total", 4).die()
			for _, name := range []string{"counter_7.db", base} {
				if err := os.Remove(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
				h.Tend(false)
				h.want("hits_total 7")
			}
			h.fold()
			h.want("hits_total 7")
			if s := h.State(); !s.Rival.IsZero() {
				t.Error("nobody has merged anything")
			}
		})
	}
}

// TestHardLink: a file with two names counts once, also when the first one is archived and the
// other one is found later, by this daemon or the next.
func TestHardLink(t *testing.T) {
	dir, outside := tmpfs(t), tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	if err := os.Link(filepath.Join(dir, "counter_1.db"), filepath.Join(outside, "kept")); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(dir, "counter_1.db"), filepath.Join(dir, "counter_2.db")); err != nil {
		t.Fatal(err)
	}
	h := collect(t, Spec{Path: dir})
	for range 4 {
		h.want("hits_total 5")
		h.fold()
	}
	h.want("hits_total 5")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(outside, "kept"), filepath.Join(dir, "counter_3.db")); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	h.want("hits_total 5")
	h.fold()
	h.want("hits_total 5")
}

// TestMovedAway: a file that leaves the directory and keeps a name is archived, and counts with
// what it gained when it comes back, also to the next daemon.
func TestMovedAway(t *testing.T) {
	dir, outside := tmpfs(t), tmpfs(t)
	w := write(t, dir, "counter_1.db").set("hits_total", 5)
	h := collect(t, Spec{Path: dir})
	h.want("hits_total 5")
	away, back := filepath.Join(outside, "x"), filepath.Join(dir, "counter_1.db")
	if err := os.Rename(back, away); err != nil {
		t.Fatal(err)
	}
	w.set("hits_total", 6)
	h.want("hits_total 6")
	h.fold()
	w.set("hits_total", 7)
	h.want("hits_total 7")
	w.die()
	h.fold()
	h.want("hits_total 7")
	if n := len(h.orphans); n != 0 {
		t.Errorf("%d files are still open", n)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	h.want("hits_total 7")
	if err := os.Rename(away, back); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total 7")
	write(t, dir, "counter_1.db").set("hits_total", 9).die()
	h.want("hits_total 9")
	h.fold()
	h.want("hits_total 9")
}
