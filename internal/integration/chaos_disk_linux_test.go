package integration

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a tmpfs for the test and returns where.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	needRoot(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	mount(t, "tmpfs", dir, "tmpfs", 0, options+",mode=0755")
	return dir
}

// mount mounts something until the test ends.
func mount(t *testing.T, source, target, fstype string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, fstype, flags, options); errors.Is(err, unix.EPERM) {
		missing(t, "the right to mount", "run the test as root with CAP_SYS_ADMIN")
	} else if err != nil {
		t.Fatalf("mount %s on %s: %v", source, target, err)
	}
	t.Cleanup(func() {
		err := unix.Unmount(target, 0)
		if errors.Is(err, unix.EBUSY) {
			err = unix.Unmount(target, unix.MNT_DETACH)
		}
		if err != nil && !errors.Is(err, unix.EINVAL) {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// remount changes whether a mount can be written to.
func remount(t *testing.T, target string, flags uintptr) {
	t.Helper()
	if err := unix.Mount("", target, "", unix.MS_REMOUNT|flags, ""); err != nil {
		t.Fatalf("remount %s: %v", target, err)
	}
}

// A herd is workers as far as a daemon sees them: files of the client's layout that
// somebody has open for writing, in this case the test itself. All of them count in
// herd_total, by herd, and raise herd_level_max.
type herd struct {
	t    *testing.T
	dir  string
	next int
	// fresh gives each worker series of its own, so that the archive has to grow.
	fresh bool
	open  []*os.File
	// total is what they have counted, level the greatest they have set.
	total, level float64
}

// entriesPerFile is how many entries a worker of a herd writes.
const entriesPerFile = 8

// born adds workers, whose files are whole when it returns.
func (h *herd) born(n int) error {
	for range n {
		h.next++
		var entries []entry
		for i := range entriesPerFile {
			amount := float64(1 + (h.next+i)%16)
			label := strconv.Itoa(i)
			if h.fresh {
				label = fmt.Sprintf("%d-%d-%s", h.next, i, strings.Repeat("x", 200))
			}
			entries = append(entries, entry{fmt.Sprintf(`["herd", "herd_total", {"i": %q}, "Help."]`, label), amount})
			h.total += amount
		}
		h.level = float64(h.next)
		counter, err := h.file(fmt.Sprintf("counter_%d.db", h.next), entries...)
		if err != nil {
			return err
		}
		gauge, err := h.file(fmt.Sprintf("gauge_max_%d.db", h.next), entry{`["herd_level_max", "herd_level_max", {}, "Help."]`, h.level})
		if err != nil {
			return err
		}
		h.open = append(h.open, counter, gauge)
	}
	return nil
}

// file makes a source file in one step, as a rename from another directory would.
func (h *herd) file(name string, entries ...entry) (*os.File, error) {
	path := filepath.Join(h.dir, "new")
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(sourceFile(4096, entries...)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, os.Rename(path, filepath.Join(h.dir, name))
}

// die ends all that live.
func (h *herd) die() {
	for _, f := range h.open {
		f.Close()
	}
	h.open = nil
}

// check fails unless a view has what the herd has counted, no more and no less.
func (h *herd) check(v view) error {
	var errs []error
	if x := v.total("herd", "herd_total"); x != h.total {
		errs = append(errs, fmt.Errorf("herd_total is %v, want %v", x, h.total))
	}
	if x := v.value("herd_level_max", "herd_level_max"); x != h.level {
		errs = append(errs, fmt.Errorf("herd_level_max is %v, want %v", x, h.level))
	}
	return errors.Join(errs...)
}

// mustBorn is born that has to succeed.
func (h *herd) mustBorn(n int) {
	h.t.Helper()
	if err := h.born(n); err != nil {
		h.t.Fatal(err)
	}
}

// mustCheck is check of what a daemon serves now.
func (h *herd) mustCheck(when string, d *daemon) {
	h.t.Helper()
	if err := h.check(d.mustText()); err != nil {
		h.t.Errorf("%s: %v", when, err)
	}
}

// fill takes all the room of a file system but some pages. It is not over until a page
// cannot be had, because what the daemon gives back meanwhile is taken, too.
func fill(t *testing.T, dir string, leave int64) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, 4096)
	for {
		if _, err := f.Write(page); errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(max(0, info.Size()-leave*4096)); err != nil {
		t.Fatal(err)
	}
}

// makeRoom removes what fill has made.
func makeRoom(t *testing.T, dir string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, "filler")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// own returns one of the daemon's own numbers.
func own(v view, name string) float64 { return v.total(strings.TrimSuffix(name, "_total"), name) }

// says fails unless the log has a line whose message contains the text.
func (d *daemon) says(text string) error {
	for _, entry := range d.logs() {
		if entry["level"] != "debug" && strings.Contains(fmt.Sprint(entry["msg"]), text) {
			return nil
		}
	}
	return fmt.Errorf("the log does not say %q", text)
}

// inTrouble fails unless the daemon says that it cannot archive.
func (d *daemon) inTrouble() error {
	if up := own(d.mustText(), "aggregatord_archive_up"); up != 0 {
		return fmt.Errorf("aggregatord_archive_up is %v, want 0", up)
	}
	if d.says("cannot be archived") != nil && d.says("archive cannot be opened") != nil {
		return errors.New("the log does not say that nothing can be archived")
	}
	return nil
}

// recovered fails unless all is archived and the daemon says that all is well.
func (d *daemon) recovered(dir string) error {
	if err := empty(dir); err != nil {
		return err
	}
	if up := own(d.mustText(), "aggregatord_archive_up"); up != 1 {
		return fmt.Errorf("aggregatord_archive_up is %v, want 1", up)
	}
	return nil
}

// TestFullBeforeTheFirstStart: not even an empty archive can be made.
func TestFullBeforeTheFirstStart(t *testing.T) {
	t.Parallel()
	dir := mountTmpfs(t, "size=1m")
	h := &herd{t: t, dir: dir}
	h.mustBorn(20)
	h.die()
	fill(t, dir, 0)
	before := sources(t, dir)
	d := serve(t, "--dir", dir)
	h.mustCheck("at the start", d)
	eventually(t, patience, d.inTrouble)
	// Each number of free pages up to what an empty archive takes, and more.
	for leave := range int64(12) {
		fill(t, dir, leave)
		d.murder()
		d = serve(t, "--dir", dir)
		h.mustCheck(fmt.Sprintf("with %d pages free", leave), d)
	}
	fill(t, dir, 0)
	if err := h.check(dumped(t, dir)); err != nil {
		t.Errorf("dump: %v", err)
	}
	asides, err := filepath.Glob(filepath.Join(dir, ".aggregatord*damaged*"))
	if err != nil || len(asides) > 0 {
		t.Errorf("an archive that could not be made was set aside as damaged: %v, %v", asides, err)
	}
	t.Logf("%d of %d files are left", len(sources(t, dir)), len(before))
	makeRoom(t, dir)
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustCheck("with room again", d)
	d.murder()
	h.mustCheck("after a restart", serve(t, "--dir", dir))
}

// TestFullWhileFolding fills the file system up to each page in turn while workers die,
// and kills the daemon now and then.
func TestFullWhileFolding(t *testing.T) {
	t.Parallel()
	dir := mountTmpfs(t, "size=1m")
	r := rand.New(rand.NewPCG(seed(t), 9))
	h := &herd{t: t, dir: dir, fresh: true}
	s := succeed(t, func() *daemon { return serve(t, "--dir", dir) })
	i := s.inspect(nil)
	defer i.finish()
	troubles := 0
	// The daemon keeps room for itself and makes its transactions smaller, so it is not in trouble
	// each time.
	numbers := []int64{0, 1, 2, 4, 7, 12}
	for n := 0; n < len(numbers) || troubles == 0 && n < 8*len(numbers); n++ {
		leave := numbers[n%len(numbers)]
		makeRoom(t, dir)
		h.mustBorn(5)
		s.current.Load().mustText() // it knows the files
		fill(t, dir, leave)
		failures := own(s.current.Load().mustText(), "aggregatord_archive_fold_errors_total")
		folds := own(s.current.Load().mustText(), "aggregatord_archive_folds_total")
		h.die()
		// It has tried, with or without success; what it gives up to have room is taken.
		eventually(t, patience, func() error {
			v := s.current.Load().mustText()
			fill(t, dir, leave)
			if own(v, "aggregatord_archive_fold_errors_total") == failures && own(v, "aggregatord_archive_folds_total") == folds {
				return errors.New("nothing was tried")
			}
			return h.check(v)
		})
		trouble := s.current.Load().inTrouble() == nil
		if trouble {
			troubles++
		}
		// One in trouble would wait a while before it tries again.
		if trouble && leave < 10 || r.IntN(3) == 0 {
			s.next((*daemon).murder)
			h.mustCheck(fmt.Sprintf("with %d pages free, after a kill", leave), s.current.Load())
		}
	}
	if troubles == 0 {
		t.Error("the archive could always be written: this has proved nothing")
	}
	t.Logf("in trouble with %d numbers of free pages", troubles)
	makeRoom(t, dir)
	d := s.current.Load()
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustCheck("with room again", d)
	s.next((*daemon).murder)
	h.mustCheck("after a restart", s.current.Load())
	t.Logf("%d scrapes", i.finish())
}

// TestReadOnlyAtStart starts the daemon on what it cannot change: it serves the files and
// the archive, with no other place to write to either, and goes on when it can. It is not
// parallel to others because it has an environment of its own.
func TestReadOnlyAtStart(t *testing.T) {
	for _, c := range []struct {
		name string
		// elsewhere has the archive alone on a file system that cannot be written.
		elsewhere bool
	}{{"all", false}, {"archive_dir", true}} {
		t.Run(c.name, func(t *testing.T) {
			frozen := mountTmpfs(t, "size=4m")
			dir, flags := frozen, []string{"--dir", frozen}
			if c.elsewhere {
				dir = sourceDir(t)
				flags = []string{"--dir", dir, "--archive.dir", frozen}
			}
			h := &herd{t: t, dir: dir}
			h.mustBorn(10)
			h.die()
			d := serve(t, flags...)
			eventually(t, patience, func() error { return d.recovered(dir) })
			d.stop()
			h.mustBorn(10)
			h.die()
			remount(t, frozen, unix.MS_RDONLY)
			t.Setenv("TMPDIR", frozen)
			d = serve(t, flags...)
			h.mustCheck("at the start", d)
			eventually(t, patience, d.inTrouble)
			if err := h.check(dumped(t, dir, flags[2:]...)); err != nil {
				t.Errorf("dump: %v", err)
			}
			if c.elsewhere {
				h.mustBorn(3) // the directory itself is fine
				h.die()
				h.mustCheck("later", d)
			}
			remount(t, frozen, 0)
			eventually(t, patience, func() error { return d.recovered(dir) })
			h.mustCheck("when it can be written again", d)
			d.murder()
			h.mustCheck("after a restart", serve(t, flags...))
		})
	}
}

// TestReadOnlyInFlight puts a read-only mount over the directory under a running daemon: no
// total changes, and nothing is left in the end.
func TestReadOnlyInFlight(t *testing.T) {
	t.Parallel()
	dir := mountTmpfs(t, "size=4m")
	h := &herd{t: t, dir: dir}
	d := serve(t, "--dir", dir)
	h.mustBorn(5)
	d.mustText()
	mount(t, dir, dir, "", unix.MS_BIND, "")
	remount(t, dir, unix.MS_BIND|unix.MS_RDONLY)
	h.die()
	// The daemon has the directory itself open, below the mount: it may go on or not.
	for range 5 {
		h.mustCheck("read-only", d)
	}
	remount(t, dir, unix.MS_BIND)
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustCheck("when it can be written again", d)
	d.murder()
	h.mustCheck("after a restart", serve(t, "--dir", dir))
}

// TestDiskFails has the kernel find an error on the file system under a running daemon, after
// which nothing can be written until it is mounted anew.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	needRoot(t)
	image, dir := filepath.Join(t.TempDir(), "image"), t.TempDir()
	run := func(name string, args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), peer(t, name, "apt-get install e2fsprogs mount"), args...).CombinedOutput()
		if err != nil {
			t.Skipf("no file system can be made to fail here: %s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-F", image)
	attach := func() (trigger string) {
		device := run("losetup", "--find", "--show", image)
		t.Cleanup(func() { exec.Command("losetup", "--detach", device).Run() }) //nolint:errcheck // detached already
		mount(t, device, dir, "ext4", 0, "errors=remount-ro")
		return filepath.Join("/sys/fs/ext4", filepath.Base(device), "trigger_fs_error")
	}
	trigger := attach()
	if _, err := os.Stat(trigger); err != nil {
		t.Skipf("no file system can be made to fail here: %v", err)
	}
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil {
		t.Fatal(err)
	}
	h := &herd{t: t, dir: dir}
	h.mustBorn(10)
	h.die()
	d := serve(t, "--dir", dir)
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustBorn(10)
	h.mustCheck("before", d)
	unix.Sync() // or the error would take with it what these workers wrote
	if err := os.WriteFile(trigger, []byte("1"), 0); err != nil {
		t.Skipf("no file system can be made to fail here: %v", err)
	}
	h.die()
	eventually(t, patience, d.inTrouble)
	for range 3 {
		h.mustCheck("after the error", d)
		time.Sleep(time.Second)
	}
	d.murder()
	d = serve(t, "--dir", dir)
	h.mustCheck("started after the error", d)
	d.stop()
	if err := unix.Unmount(dir, 0); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "fsck.ext4", "-fy", image).CombinedOutput(); err != nil {
		t.Logf("fsck: %v\n%s", err, out) // status 1: errors were corrected
	}
	attach()
	if err := os.Remove(filepath.Join(dir, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err) // fsck makes it
	}
	d = serve(t, "--dir", dir)
	h.mustCheck("mounted anew", d)
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustCheck("folded", d)
}

// TestArchiveDirFull has the archive on a file system of its own that is full, first
// before there is an archive, then under a running daemon.
func TestArchiveDirFull(t *testing.T) {
	t.Parallel()
	dir, elsewhere := sourceDir(t), mountTmpfs(t, "size=256k")
	flags := []string{"--dir", dir, "--archive.dir", elsewhere}
	h := &herd{t: t, dir: dir}
	h.mustBorn(10)
	h.die()
	fill(t, elsewhere, 0)
	d := serve(t, flags...)
	h.mustCheck("at the start", d)
	eventually(t, patience, d.inTrouble)
	h.mustBorn(5)
	h.die()
	h.mustCheck("later", d)
	makeRoom(t, elsewhere)
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustCheck("with room", d)

	fill(t, elsewhere, 0)
	// Some may still be archived, into pages that are free inside the file, or in place of
	// what was kept for such a case.
	eventually(t, patience, func() error {
		h.mustBorn(5)
		h.die()
		fill(t, elsewhere, 0)
		h.mustCheck("full", d)
		return d.inTrouble()
	})
	d.murder()
	d = serve(t, flags...)
	h.mustCheck("full, after a kill", d)
	makeRoom(t, elsewhere)
	eventually(t, patience, func() error { return d.recovered(dir) })
	h.mustCheck("with room again", d)
	d.murder()
	h.mustCheck("after a restart", serve(t, flags...))
}
