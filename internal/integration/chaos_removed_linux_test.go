package integration

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// awaitSaved returns when all that was removed before is archived, with the archive itself if that was
// removed: what is only in its memory goes with a daemon that is killed.
func (d *daemon) awaitSaved() {
	d.t.Helper()
	begin := own(d.mustText(), "aggregatord_rounds_total")
	eventually(d.t, patience, func() error {
		// The round that is under way may have looked before it was removed. The second one sees it, and
		// what it sees is archived before the third one ends.
		if n := own(d.mustText(), "aggregatord_rounds_total") - begin; n < 3 {
			return fmt.Errorf("the daemon has made %v rounds", n)
		}
		return d.saved()
	})
}

// saved fails unless the archive has all that was in files that are gone, with their workers.
func (d *daemon) saved() error {
	v := d.mustText()
	if n := ownTotal(v, "aggregatord_files", "state", "removed"); n != 0 {
		return fmt.Errorf("%v removed files are not archived yet", n)
	}
	return d.written(v)
}

// written fails unless all that is in the archive is on its disk.
func (d *daemon) written(v view) error {
	if up, n := own(v, "aggregatord_archive_up"), own(v, "aggregatord_archive_unsaved_series"); up != 1 || n != 0 {
		return fmt.Errorf("aggregatord_archive_up is %v, want 1; %v series are in memory alone, want 0", up, n)
	}
	return nil
}

// shell runs a script as an application's start does, where any command that fails is the
// end of it.
func shell(t *testing.T, script string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-euc", script, "sh"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s: %v: %s", script, err, out)
	}
}

// TestRemovedByOthers removes files of the living and of the dead. Their counts stay, those
// of the living go on; gauges go.
func TestRemovedByOthers(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	busy := program{
		Metrics: []declared{
			{Name: "busy_total", Type: "counter", Help: "Count."},
			{Name: "busy_seconds", Type: "histogram", Help: "Time.", Buckets: []string{"1", "2"}},
			{Name: "busy_now", Type: "gauge", Help: "Level.", Mode: "livesum"},
		},
		Workers: []worker{{ID: "busy", Busy: true, Steps: []step{
			{Metric: "busy_seconds", Op: "observe", Value: "1.5"},
			{Metric: "busy_now", Op: "set", Value: "1"},
			{Metric: "busy_total", Op: "inc", Value: "1"},
		}}},
	}
	s := succeed(t, func() *daemon { return serve(t, "--dir", dir) })
	w := spawn(t, dir, busy)
	h := &herd{t: t, dir: dir}
	h.mustBorn(10)
	d := s.current.Load()
	d.mustText()
	i := s.inspect(nil)
	defer i.finish()
	shell(t, `rm -f "$1"/counter_*.db "$1"/histogram_*.db "$1"/gauge_livesum_*.db`, dir)
	before := d.mustText()
	if x := before.total("herd", "herd_total"); x != h.total {
		t.Errorf("removed from the living: herd_total is %v, want %v", x, h.total)
	}
	eventually(t, patience, func() error {
		if x := d.mustText().value("busy", "busy_total"); x <= before.value("busy", "busy_total") {
			return fmt.Errorf("what the living write to removed files does not count: busy_total is %v", x)
		}
		return nil
	})
	w.kill()
	h.die()
	last := d.mustText()
	if err := expect(last, map[string]float64{"busy_now": math.NaN()}); err != nil {
		t.Errorf("dead: %v", err)
	}
	if n, sum := last.value("busy_seconds", "busy_seconds_count"), last.value("busy_seconds", "busy_seconds_sum"); n != 1 || sum != 1.5 {
		t.Errorf("dead: busy_seconds has count %v and sum %v, want 1 and 1.5", n, sum)
	}
	d.awaitSaved()
	eventually(t, patience, func() error { return empty(dir) })
	last = d.mustText() // while a file is archived it is shown as it was just before

	// The dead, before the daemon has had the time to archive them.
	h.mustBorn(10)
	d.mustText()
	h.die()
	shell(t, `rm -f "$1"/counter_*.db`, dir)
	if x := d.mustText().total("herd", "herd_total"); x != h.total {
		t.Errorf("removed from the dead: herd_total is %v, want %v", x, h.total)
	}
	d.awaitSaved()
	s.next((*daemon).murder)
	v := s.current.Load().mustText()
	if x := v.total("herd", "herd_total"); x != h.total {
		t.Errorf("after a restart: herd_total is %v, want %v", x, h.total)
	}
	if x, y := v.value("busy", "busy_total"), last.value("busy", "busy_total"); x != y {
		t.Errorf("after a restart: busy_total is %v, want %v", x, y)
	}
	i.finish()
}

// TestRemovedFromTheLivingThenRestart: a file that has no name any more is lost with the
// daemon that has it open. What it counted must not be.
func TestRemovedFromTheLivingThenRestart(t *testing.T) {
	t.Parallel()
	for _, end := range []struct {
		name string
		do   func(*daemon)
	}{{"stopped", (*daemon).stop}, {"killed", (*daemon).murder}} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			dir := sourceDir(t)
			s := succeed(t, func() *daemon { return serve(t, "--dir", dir) })
			h := &herd{t: t, dir: dir}
			h.mustBorn(5)
			s.current.Load().mustText()
			i := s.inspect(nil)
			defer i.finish()
			shell(t, `rm -f "$1"/counter_*.db`, dir)
			s.current.Load().mustText()
			// Whoever looks from outside sees what is archived, and nothing else.
			eventually(t, patience, func() error {
				if x := dumped(t, dir).total("herd", "herd_total"); x != h.total {
					return fmt.Errorf("%v of %v are archived", x, h.total)
				}
				return nil
			})
			s.next(end.do)
			if x := s.current.Load().mustText().total("herd", "herd_total"); x != h.total {
				t.Errorf("after a restart: herd_total is %v, want %v", x, h.total)
			}
			h.die()
		})
	}
}

// TestWipedByRestarts is an application whose start script empties its directory, again and
// again, with the daemon running.
func TestWipedByRestarts(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, script string
		// elsewhere keeps the archive in another directory.
		elsewhere bool
	}{
		// A fold that is under way may move a file to where rm has just been.
		{"rm_and_mkdir", `rm -rf "$1" 2>/dev/null || rm -rf "$1"; mkdir "$1"`, false},
		{"rm_contents", `rm -rf "$1"/* "$1"/.[!.]* 2>/dev/null || rm -rf "$1"/* "$1"/.[!.]*`, false},
		{"rm_files", `rm -f "$1"/*.db`, false},
		{"rm_and_mkdir_archive_elsewhere", `rm -rf "$1" 2>/dev/null || rm -rf "$1"; mkdir "$1"`, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(sourceDir(t), "metrics")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			flags := []string{"--dir", dir}
			if c.elsewhere {
				flags = append(flags, "--archive.dir", t.TempDir())
			}
			n := seed(t)
			s := succeed(t, func() *daemon { return serve(t, append(flags, "--log.level", "info")...) })
			i := s.inspect(nil)
			defer i.finish()
			var all *books
			var low, high []float64
			for round := range uint64(6) {
				pool := startChaosPool(t, dir, false, (n+round)%(1<<62), "--live", "4")
				time.Sleep(400 * time.Millisecond)
				pool.stop()
				pool.finish()
				// All that can be known of these workers is known to the daemon now. They are
				// dead, and about to be archived.
				s.current.Load().mustText()
				shell(t, c.script, dir)
				if all == nil {
					all, low, high = pool.books, make([]float64, len(pool.books.columns)), make([]float64, len(pool.books.columns))
				}
				acked, started := pool.books.acked(), pool.books.started()
				for j, column := range all.columns {
					if column.Op == "max" {
						low[j], high[j] = max(low[j], acked[j]), max(high[j], started[j])
					} else {
						low[j], high[j] = low[j]+acked[j], high[j]+started[j]
					}
				}
			}
			// Gauges go with their files, unless they were archived.
			for j, column := range all.columns {
				if strings.HasPrefix(column.Family, "chaos_level") {
					low[j] = 0
				}
			}
			check := func(when string) {
				t.Helper()
				if err := all.between(s.current.Load().mustText(), low, high); err != nil {
					t.Errorf("%s: %v", when, err)
				}
			}
			check("after the last wipe")
			s.current.Load().awaitSaved()
			eventually(t, patience, func() error { return empty(dir) })
			check("when all is archived")
			s.next((*daemon).murder)
			check("after a restart")
			t.Logf("%d scrapes", i.finish())
		})
	}
}

// TestMovedDirectory moves the directory away, with all that is in it, has the application
// make a new one, and then brings the old one back.
func TestMovedDirectory(t *testing.T) {
	t.Parallel()
	root := sourceDir(t)
	dir, away := filepath.Join(root, "metrics"), filepath.Join(root, "away")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s := succeed(t, func() *daemon { return serve(t, "--dir", dir) })
	i := s.inspect(nil)
	defer i.finish()
	d := s.current.Load()
	h := &herd{t: t, dir: dir}
	h.mustBorn(5)
	d.mustText()
	h.die()
	eventually(t, patience, func() error { return d.recovered(dir) })
	shell(t, `mv "$1" "$2" && mkdir "$1"`, dir, away)
	h.mustBorn(5)
	h.mustCheck("in a new directory", d)
	h.die()
	eventually(t, patience, func() error { return errors.Join(empty(dir), d.saved()) })
	h.mustCheck("archived in a new directory", d)
	shell(t, `rm -rf "$1" && mv "$2" "$1"`, dir, away)
	h.mustCheck("in the old directory", d)
	h.mustBorn(5)
	h.mustCheck("in the old directory, with more workers", d)
	h.die()
	time.Sleep(2500 * time.Millisecond)
	h.mustCheck("in the old directory, with more dead", d)
	// Its archive is not what was open last: either it was brought up to date, or the
	// daemon says that it is not archiving.
	up := false
	eventually(t, patience, func() error {
		if up = own(d.mustText(), "aggregatord_archive_up") == 1; up {
			return nil
		}
		return d.says("archive cannot be opened")
	})
	if up {
		eventually(t, patience, func() error { return d.recovered(dir) })
		s.next((*daemon).murder)
		h.mustCheck("after a restart", s.current.Load())
	}
	i.finish()
}

// TestLongNames: a name may be so long that there is no room for anything behind it.
func TestLongNames(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	h := &herd{t: t, dir: dir}
	d := serve(t, "--dir", dir)
	total := 0.0
	for n := 200; n+len("counter_.db") <= 255; n += 4 {
		f, err := h.file(fmt.Sprintf("counter_%s.db", strings.Repeat("x", n)), entry{counterKey("long"), 1})
		if err != nil {
			t.Fatal(err)
		}
		h.open = append(h.open, f)
		total++
	}
	h.mustBorn(20)
	h.die()
	check := func(when string) {
		t.Helper()
		h.mustCheck(when, d)
		if err := expect(d.mustText(), map[string]float64{"long_total": total}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	check("dead")
	eventually(t, patience, func() error {
		names, err := left(dir)
		for _, name := range names {
			if !strings.Contains(name, "xxx") {
				return errors.Join(err, errors.New("one that cannot be archived keeps others: "+strconv.Quote(name)+" is left"))
			}
		}
		return err
	})
	check("archived")
	names, err := left(dir)
	t.Logf("left are %d files with the longest names, %v", len(names), err)
	d.murder()
	d = serve(t, "--dir", dir)
	check("after a restart")
}
