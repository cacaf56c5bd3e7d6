package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
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
					if (look == "between" || look == "always") && !(first && n == 0) {
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
