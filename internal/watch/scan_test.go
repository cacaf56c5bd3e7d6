package watch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fileSystems names a fresh directory on each file system the tests run on: where the
// tests' temporary files are (ext4 on most machines) and a tmpfs.
func fileSystems(t *testing.T) map[string]string {
	t.Helper()
	dirs := map[string]string{"tmpdir": t.TempDir()}
	if _, err := os.Stat("/dev/shm"); err == nil {
		dir, err := os.MkdirTemp("/dev/shm", "watch-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs["tmpfs"] = dir
	}
	return dirs
}

func touch(t testing.TB, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func names(entries []Dirent) []string {
	out := make([]string, len(entries))
	for i, e := range entries {
		out[i] = e.Name
	}
	return out
}

// settle scans until the directory counts as unchanged, which it must soon.
func settle(t testing.TB, d *Dir) Listing {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		l, err := d.Scan(false)
		if err != nil {
			t.Fatal(err)
		}
		if !l.Changed {
			return l
		}
		if time.Now().After(deadline) {
			t.Fatal("an untouched directory still counts as changed after 5 s")
		}
		time.Sleep(stampMargin / 4)
	}
}

func TestScanChanges(t *testing.T) {
	steps := []struct {
		name string
		do   func(dir string) error
		want []string
	}{
		{"create", func(dir string) error { return os.WriteFile(filepath.Join(dir, "b"), nil, 0o644) }, []string{"b"}},
		{"create_before", func(dir string) error { return os.WriteFile(filepath.Join(dir, "a"), nil, 0o644) }, []string{"a", "b"}},
		{"rename", func(dir string) error { return os.Rename(filepath.Join(dir, "a"), filepath.Join(dir, "c")) }, []string{"b", "c"}},
		{"rename_over", func(dir string) error { return os.Rename(filepath.Join(dir, "b"), filepath.Join(dir, "c")) }, []string{"c"}},
		{"link", func(dir string) error { return os.Symlink("nowhere", filepath.Join(dir, "l")) }, []string{"c", "l"}},
		{"mkdir", func(dir string) error { return os.Mkdir(filepath.Join(dir, ".d"), 0o755) }, []string{".d", "c", "l"}},
		{"remove", func(dir string) error { return os.Remove(filepath.Join(dir, "c")) }, []string{".d", "l"}},
		{"mtime_set_back", func(dir string) error {
			st, err := os.Stat(dir)
			if err != nil {
				return err
			}
			return errors.Join(os.WriteFile(filepath.Join(dir, "m"), nil, 0o644), os.Chtimes(dir, st.ModTime(), st.ModTime()))
		}, []string{".d", "l", "m"}},
	}
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			d := NewDir(dir)
			settle(t, d)
			for _, step := range steps {
				if err := step.do(dir); err != nil {
					t.Fatalf("%s: %v", step.name, err)
				}
				l, err := d.Scan(false)
				if err != nil || !l.Changed || l.Replaced || !slices.Equal(names(l.Entries), step.want) {
					t.Fatalf("%s: Scan = %+v, %v; want changed, %v", step.name, l, err, step.want)
				}
				if l = settle(t, d); !slices.Equal(names(l.Entries), step.want) {
					t.Fatalf("%s: an unchanged listing has %v, want %v", step.name, names(l.Entries), step.want)
				}
			}
			if l, err := d.Scan(true); err != nil || !l.Changed || !l.Same {
				t.Fatalf("forced Scan = %+v, %v; want changed, the same", l, err)
			}
			settle(t, d)
			if !d.Unchanged() {
				t.Fatal("a directory in which nothing happened is not unchanged")
			}
			if err := os.Rename(filepath.Join(dir, "l"), filepath.Join(dir, "n")); err != nil {
				t.Fatal(err)
			}
			if d.Unchanged() {
				t.Fatal("a directory in which a name has changed is unchanged")
			}
			if l, err := d.Scan(true); err != nil || !l.Changed || l.Same {
				t.Fatalf("Scan after a change = %+v, %v; want changed, not the same", l, err)
			}
		})
	}
}

func TestScanEntries(t *testing.T) {
	dir := t.TempDir()
	touch(t, filepath.Join(dir, "file"))
	if err := errors.Join(
		os.Mkdir(filepath.Join(dir, "dir"), 0o755),
		os.Symlink("file", filepath.Join(dir, "link")),
		syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	l, err := NewDir(dir).Scan(false)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]fs.FileMode{"dir": fs.ModeDir, "fifo": fs.ModeNamedPipe, "file": 0, "link": fs.ModeSymlink}
	if len(l.Entries) != len(want) {
		t.Fatalf("entries %v, want %v", l.Entries, want)
	}
	for _, e := range l.Entries {
		st, err := os.Lstat(filepath.Join(dir, e.Name))
		if err != nil {
			t.Fatal(err)
		}
		if ino := st.Sys().(*syscall.Stat_t).Ino; e.Ino != ino {
			t.Errorf("%s: inode %d, lstat says %d", e.Name, e.Ino, ino)
		}
		if e.Type != want[e.Name] {
			t.Errorf("%s: type %v, want %v", e.Name, e.Type, want[e.Name])
		}
	}
}

// A change right after a listing may leave the directory with the timestamp that the
// listing knows; it must be seen all the same.
func TestScanSeesChangesOfTheSameTick(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			d := NewDir(dir)
			for i := range 500 {
				name := fmt.Sprintf("%04d", i)
				touch(t, filepath.Join(dir, name))
				l, err := d.Scan(false)
				if err != nil {
					t.Fatal(err)
				}
				if !l.Changed || len(l.Entries) != i+1 {
					t.Fatalf("after %d files: changed %t, %d entries", i+1, l.Changed, len(l.Entries))
				}
			}
		})
	}
}

func TestOutside(t *testing.T) {
	const now = int64(1_700_000_000_000_000_000)
	for _, c := range []struct {
		name  string
		stamp int64
		want  bool
	}{
		{"same_instant", now, false},
		{"one_tick_ago", now - int64(10*time.Millisecond), false},
		{"one_tick_ahead", now + int64(10*time.Millisecond), false},
		{"at_margin", now - int64(stampMargin), false},
		{"long_ago", now - int64(time.Second), true},
		{"set_to_the_future", now + int64(time.Hour), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := outside(now, c.stamp); got != c.want {
				t.Errorf("outside = %t, want %t", got, c.want)
			}
		})
	}
}

func TestScanPathThatComesAndGoes(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "pool")
	d := NewDir(path)
	if _, err := d.Scan(false); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Scan of a missing directory: %v, want fs.ErrNotExist", err)
	}
	touch(t, path)
	if _, err := d.Scan(false); !errors.Is(err, syscall.ENOTDIR) {
		t.Fatalf("Scan of a file: %v, want ENOTDIR", err)
	}
	mustDo(t, os.Remove(path), os.Mkdir(path, 0o755))
	touch(t, filepath.Join(path, "old"))
	l, err := d.Scan(false)
	if err != nil || !l.Changed || l.Replaced {
		t.Fatalf("first listing = %+v, %v; want changed, not replaced", l, err)
	}
	settle(t, d)

	// Away and back: the same directory.
	mustDo(t, os.Rename(path, path+".away"))
	if _, err := d.Scan(false); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Scan of a renamed directory: %v, want fs.ErrNotExist", err)
	}
	mustDo(t, os.Rename(path+".away", path))
	if l, err = d.Scan(false); err != nil || !l.Changed || l.Replaced {
		t.Fatalf("Scan after the way back = %+v, %v; want changed, not replaced", l, err)
	}
	settle(t, d)

	// Another one with the same name.
	mustDo(t, os.Rename(path, path+".old"), os.Mkdir(path, 0o755))
	touch(t, filepath.Join(path, "new"))
	if l, err = d.Scan(false); err != nil || !l.Replaced || !slices.Equal(names(l.Entries), []string{"new"}) {
		t.Fatalf("Scan of another directory = %+v, %v; want replaced, [new]", l, err)
	}
	if l, err = d.Scan(true); err != nil || l.Replaced {
		t.Fatalf("the Scan after = %+v, %v; want not replaced", l, err)
	}
}

// Removed and made anew, a directory may get its inode number again (ext4 does that).
func TestScanReplacedWithTheSameInode(t *testing.T) {
	for fsname, base := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			path := filepath.Join(base, "pool")
			mustDo(t, os.Mkdir(path, 0o755))
			d := NewDir(path)
			settle(t, d)
			first := d.known
			mustDo(t, os.Remove(path), os.Mkdir(path, 0o755))
			l, err := d.Scan(false)
			if err != nil || !l.Changed {
				t.Fatalf("Scan = %+v, %v; want changed", l, err)
			}
			if first.btime != 0 && !l.Replaced {
				t.Errorf("not replaced: %+v then %+v", first, d.known)
			}
		})
	}
}

func TestScanFollowsASwappedLink(t *testing.T) {
	base := t.TempDir()
	link := filepath.Join(base, "link")
	mustDo(t, os.Mkdir(filepath.Join(base, "one"), 0o755), os.Mkdir(filepath.Join(base, "two"), 0o755), os.Symlink("one", link))
	touch(t, filepath.Join(base, "two", "x"))
	d := NewDir(link)
	settle(t, d)
	mustDo(t, os.Symlink("two", link+".new"), os.Rename(link+".new", link))
	if l, err := d.Scan(false); err != nil || !l.Replaced || len(l.Entries) != 1 {
		t.Fatalf("Scan = %+v, %v; want replaced with one entry", l, err)
	}
}

func TestScanNamesMayBeKept(t *testing.T) {
	dir := t.TempDir()
	for i := range 100 {
		touch(t, filepath.Join(dir, fmt.Sprintf("counter_%d.db", i)))
	}
	d := NewDir(dir)
	l, err := d.Scan(true)
	if err != nil {
		t.Fatal(err)
	}
	kept := names(l.Entries)
	want := make([]string, len(kept))
	for i, name := range kept {
		want[i] = string([]byte(name))
		mustDo(t, os.Rename(filepath.Join(dir, name), filepath.Join(dir, "x"+name)))
	}
	for range 3 {
		if _, err := d.Scan(true); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(kept, want) {
		t.Errorf("names changed under their holder: %v", kept)
	}
}

func TestScanAllocations(t *testing.T) {
	dir := manyFiles(t, 1000)
	d := NewDir(dir)
	settle(t, d)
	scan := func(force bool) func() {
		return func() {
			if _, err := d.Scan(force); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := testing.AllocsPerRun(100, scan(false)); n != 0 {
		t.Errorf("an unchanged directory costs %v allocations, want 0", n)
	}
	// Opening copies the path; nothing may grow with the number of files.
	scan(true)()
	if n := testing.AllocsPerRun(20, scan(true)); n > 10 {
		t.Errorf("reading 1,000 known files costs %v allocations", n)
	}
}

func manyFiles(tb testing.TB, n int) string {
	dir := tb.TempDir()
	for i := range n {
		touch(tb, filepath.Join(dir, fmt.Sprintf("gauge_liveall_%d.db", i)))
	}
	return dir
}

func mustDo(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkScan(b *testing.B) {
	for _, n := range []int{64, 10_000} {
		dir := manyFiles(b, n)
		for _, force := range []bool{true, false} {
			name := fmt.Sprintf("files=%d/unchanged", n)
			if force {
				name = fmt.Sprintf("files=%d", n)
			}
			b.Run(name, func(b *testing.B) {
				d := NewDir(dir)
				settle(b, d)
				b.ReportAllocs()
				for b.Loop() {
					if l, err := d.Scan(force); err != nil || len(l.Entries) != n {
						b.Fatal(len(l.Entries), err)
					}
				}
			})
		}
	}
}

// TestDirFd: what was listed stays open, wherever the path leads to meanwhile.
func TestDirFd(t *testing.T) {
	base := t.TempDir()
	path := filepath.Join(base, "pool")
	mustDo(t, os.Mkdir(path, 0o755))
	touch(t, filepath.Join(path, "a"))
	d := NewDir(path)
	if _, err := d.Dup(); d.Fd() != -1 || !errors.Is(err, fs.ErrClosed) {
		t.Fatalf("descriptor %d, %v before the first listing", d.Fd(), err)
	}
	has := func(name string) bool {
		var st unix.Stat_t
		return unix.Fstatat(d.Fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
	}
	_, err := d.Scan(false)
	mustDo(t, err)
	first := d.Fd()
	mustDo(t, os.Rename(path, path+".old"), os.Mkdir(path, 0o755))
	touch(t, filepath.Join(path, "b"))
	if !has("a") || has("b") {
		t.Error("the descriptor follows the path")
	}
	old, err := d.Dup()
	mustDo(t, err)
	l, err := d.Scan(false)
	if err != nil || !l.Replaced || !slices.Equal(names(l.Entries), []string{"b"}) || has("a") || !has("b") {
		t.Errorf("%+v, %v", l, err)
	}
	if left, err := old.Readdirnames(-1); err != nil || !slices.Equal(left, []string{"a"}) && len(left) != 0 {
		t.Errorf("the old directory has %v, %v", left, err)
	}
	mustDo(t, old.Close(), os.Remove(filepath.Join(path, "b")))
	for range 3 {
		l, err = d.Scan(true)
		if err != nil || len(l.Entries) != 0 {
			t.Errorf("%+v, %v", l, err)
		}
	}
	if d.Fd() < 0 || first < 0 {
		t.Error("no descriptor")
	}
	mustDo(t, os.RemoveAll(path))
	if _, err := d.Scan(false); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	mustDo(t, d.Close(), d.Close())
	if d.Fd() != -1 {
		t.Error("still open")
	}
}
