package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// mountTmpfs mounts a small file system in memory for the time of the test.
func mountTmpfs(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, options); err != nil {
		skipUnlessCI(t, fmt.Sprintf("needs to mount a tmpfs: %v", err))
	}
	t.Cleanup(func() { mustDo(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

// TestFullFileSystem is TestFileSizeLimit with a tmpfs that others fill to a few pages.
func TestFullFileSystem(t *testing.T) {
	dir := mountTmpfs(t, "size=8m")
	c := startChild(t, "full", dir)
	out := strings.Fields(c.rest(t))
	if len(out) != 2 {
		t.Fatalf("%q", out)
	}
	failed, _ := strconv.Atoi(out[0])
	t.Logf("%s commits failed, %s succeeded", out[0], out[1])
	if failed < 3 {
		t.Error("that is no test")
	}
}

func init() {
	children["full"] = func(args []string) error {
		dir := args[0]
		ballast := filepath.Join(dir, "ballast")
		// squeeze leaves some pages free.
		squeeze := func(n int) error {
			var st unix.Statfs_t
			if err := unix.Statfs(dir, &st); err != nil {
				return err
			}
			return os.WriteFile(ballast, make([]byte, max(0, int(st.Bfree)-n%3)*int(st.Bsize)), 0o600)
		}
		relieve := func() error { return os.Remove(ballast) }
		// No room for a new archive either; nothing but the ballast stays.
		if err := squeeze(4); err != nil {
			return err
		}
		if _, err := Open(dir); !errors.Is(err, syscall.ENOSPC) || errors.Is(err, ErrDamaged) {
			return fmt.Errorf("open: %w", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
			return fmt.Errorf("left %v, %w", entries, err)
		}
		if err := relieve(); err != nil {
			return err
		}
		a, err := Open(dir)
		if err != nil {
			return err
		}
		return failing(dir, a, squeeze, relieve)
	}
}

// TestReadOnlyFileSystem: an archive on one can be read, and an error says why no more.
func TestReadOnlyFileSystem(t *testing.T) {
	dir := mountTmpfs(t, "size=1m")
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	want := contentsOf(a)
	mustDetach(t, a)
	mustDo(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := Open(dir); !errors.Is(err, syscall.EROFS) || errors.Is(err, ErrDamaged) {
		t.Errorf("open: %v", err)
	}
	wantContents(t, reread(t, dir).Archive, want)
	mustDo(t, unix.Mount("", dir, "", unix.MS_REMOUNT, ""))
	mustDo(t, a.Attach(dir))
	wantContents(t, a, want)
}

// TestKeeperOnFullFileSystem: the ballast is given up, what failed is told as what it is, and the
// archive is neither detached nor read again.
func TestKeeperOnFullFileSystem(t *testing.T) {
	dir := mountTmpfs(t, "size=16m")
	k := testKeeper(t, KeeperOptions{Watched: dir})
	mustBeReady(t, k.Open(at(0), nil))
	if c := k.Commit(at(0), mixed(1), nil); c.Err != nil {
		t.Fatal(c.Err)
	}
	if d := k.Tidy(at(0), nil); !d.Ballast {
		t.Fatalf("%+v", d)
	}
	want := contentsOf(k.Archive())
	generation := k.Archive().Generation()
	filler := filepath.Join(dir, "filler")
	room, err := k.Room()
	mustDo(t, err)
	mustDo(t, os.WriteFile(filler, make([]byte, room.FreeBytes), 0o600))
	batch := func(entries int) *Batch {
		b := NewBatch(at(1))
		for file := range 2 {
			f := b.File(counters, nil, 1000)
			for i := range entries {
				f.Add(fmt.Appendf(nil, "a key that takes some room %d of %d", i, file), 1, 0, true)
			}
			f.Record(fmt.Sprint("file-", file))
		}
		return b
	}
	c := k.Commit(at(1), batch(30_000), nil)
	if c.Err == nil || !c.Full || !c.Ballast || !c.New || !k.CanWrite(at(1)) {
		t.Fatalf("%+v", c)
	}
	c = k.Commit(at(1), batch(30_000), nil)
	if c.Err == nil || !c.Full || c.Ballast || !k.CanWrite(at(1)) {
		t.Fatalf("%+v", c)
	}
	one := NewBatch(at(1))
	f := one.File(counters, nil, 1000)
	for i := range 60_000 {
		f.Add(fmt.Appendf(nil, "a key that takes some room %d", i), 1, 0, true)
	}
	if c = k.Commit(at(1), one, nil); c.Err == nil || !c.Full || k.CanWrite(at(1)) || !k.CanWrite(k.Due()) {
		t.Fatalf("%+v", c)
	}
	if d := k.Tidy(k.Due(), nil); d.Ballast {
		t.Errorf("a ballast on a full file system: %+v", d)
	}
	wantContents(t, k.Archive(), want)
	if k.Archive().Generation() != generation || !k.Archive().Attached() {
		t.Error("it was read again")
	}
	// A small batch fits where the ballast was.
	if c = k.Commit(k.Due(), batch(100), nil); c.Err != nil || !c.Again {
		t.Errorf("%+v", c)
	}
}
