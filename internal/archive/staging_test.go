package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newStaging(t testing.TB) (watched string, s *Staging) {
	t.Helper()
	watched = t.TempDir()
	s = NewStaging(watched)
	mustDo(t, s.Prepare())
	return watched, s
}

func writeFile(t testing.TB, path, data string) {
	t.Helper()
	mustDo(t, os.WriteFile(path, []byte(data), 0o600))
}

// wantFile checks what a file holds; "" stands for no file.
func wantFile(t testing.TB, path, want string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if want == "" {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %q, %v", path, data, err)
		}
	} else if err != nil || string(data) != want {
		t.Errorf("%s is %q, %v; want %q", path, data, err, want)
	}
}

// TestNewName: names never repeat, in one run or in many, and tell the old one.
func TestNewName(t *testing.T) {
	seen := map[string]bool{}
	for range 50 {
		s := NewStaging("/nowhere")
		for range 200 {
			for _, base := range []string{"counter_1.db", "gauge_all_pod.1-2.db", "histogram_.db"} {
				name := s.NewName(base)
				if seen[name] {
					t.Fatalf("%q twice", name)
				}
				seen[name] = true
				if got, ok := BaseOf(name); !ok || got != base {
					t.Fatalf("%q was %q, %v; want %q", name, got, ok, base)
				}
				if strings.HasSuffix(name, ".db") || strings.Contains(name, "/") {
					t.Fatalf("%q", name)
				}
			}
		}
	}
	for _, name := range []string{"", "counter", ".hidden"} {
		if base, ok := BaseOf(name); ok {
			t.Errorf("%q was %q", name, base)
		}
	}
}

func TestPrepare(t *testing.T) {
	watched, s := newStaging(t)
	mustDo(t, s.Prepare()) // again
	if s.Dir() != filepath.Join(watched, ".aggregatord", "staged") {
		t.Errorf("%q", s.Dir())
	}
	for _, dir := range []string{s.Dir(), filepath.Dir(s.Dir())} {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s is %v, %v", dir, info.Mode(), err)
		}
	}
	for name, spoil := range map[string]func(path string) error{
		"file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
		"link": func(path string) error { return os.Symlink(t.TempDir(), path) },
	} {
		for _, depth := range []string{HiddenDir, filepath.Join(HiddenDir, "staged")} {
			watched := t.TempDir()
			mustDo(t, os.MkdirAll(filepath.Dir(filepath.Join(watched, depth)), 0o700))
			mustDo(t, spoil(filepath.Join(watched, depth)))
			if err := NewStaging(watched).Prepare(); err == nil || !strings.Contains(err.Error(), "is no directory; remove it") {
				t.Errorf("%s as %s: %v", depth, name, err)
			}
		}
	}
	if err := NewStaging(filepath.Join(watched, "none")).Prepare(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestStage(t *testing.T) {
	watched, s := newStaging(t)
	path := filepath.Join(watched, "counter_1.db")
	writeFile(t, path, "one")
	name := s.NewName("counter_1.db")
	mustDo(t, s.Stage(path, name))
	wantFile(t, path, "")
	wantFile(t, s.Path(name), "one")

	// It never replaces a file, and neither does Unstage.
	writeFile(t, path, "two")
	if err := s.Stage(path, name); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("stage: %v", err)
	}
	if err := s.Unstage(name, path); !errors.Is(err, fs.ErrExist) {
		t.Errorf("unstage: %v", err)
	}
	wantFile(t, path, "two")
	wantFile(t, s.Path(name), "one")

	mustDo(t, os.Remove(path))
	mustDo(t, s.Unstage(name, path))
	wantFile(t, path, "one")
	wantFile(t, s.Path(name), "")
	if err := s.Unstage(name, path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unstage: %v", err)
	}
	if err := s.Stage(filepath.Join(watched, "none"), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("stage: %v", err)
	}
	mustDo(t, s.Sync())
}

// TestRenameIfFree is what file systems without RENAME_NOREPLACE get.
func TestRenameIfFree(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeFile(t, a, "a")
	writeFile(t, b, "b")
	if err := renameIfFree(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	mustDo(t, os.Remove(b))
	mustDo(t, os.Symlink("nowhere", b)) // a name that is taken, by a link that leads nowhere
	if err := renameIfFree(a, b); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	mustDo(t, os.Remove(b))
	mustDo(t, renameIfFree(a, b))
	wantFile(t, a, "")
	wantFile(t, b, "a")
}

// TestRemove removes the file that was folded, and no other that has its name now.
func TestRemove(t *testing.T) {
	_, s := newStaging(t)
	writeFile(t, s.Path("one"), "one")
	writeFile(t, s.Path("two"), "two")
	var one, two unix.Stat_t
	mustDo(t, unix.Lstat(s.Path("one"), &one))
	mustDo(t, unix.Lstat(s.Path("two"), &two))
	dev := uint64(one.Dev) //nolint:unconvert // an int32 on macOS
	if err := s.Remove("one", dev, two.Ino); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("other inode: %v", err)
	}
	if err := s.Remove("one", dev+1, one.Ino); err == nil || !strings.Contains(err.Error(), "replaced") {
		t.Errorf("other device: %v", err)
	}
	// A link to the right file is not that file.
	mustDo(t, os.Symlink(s.Path("one"), s.Path("link")))
	if err := s.Remove("link", dev, one.Ino); err == nil {
		t.Error("it removed a link")
	}
	wantFile(t, s.Path("one"), "one")
	mustDo(t, s.Remove("one", dev, one.Ino))
	wantFile(t, s.Path("one"), "")
	wantFile(t, s.Path("two"), "two")
	if err := s.Remove("one", dev, one.Ino); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if list, err := s.List(); err != nil || !slices.Equal(list, []string{"link", "two"}) {
		t.Errorf("%q, %v", list, err)
	}
}

func TestListAndSyncWithout(t *testing.T) {
	s := NewStaging(filepath.Join(t.TempDir(), "none"))
	if list, err := s.List(); err != nil || len(list) != 0 {
		t.Errorf("%q, %v", list, err)
	}
	if err := s.Sync(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	path := filepath.Join(t.TempDir(), "file")
	writeFile(t, path, "")
	writeFile(t, filepath.Join(filepath.Dir(path), HiddenDir), "") // List is for a directory
	if _, err := NewStaging(filepath.Dir(path)).List(); err == nil {
		t.Error("listed a file")
	}
}

// TestStagingTaken: one process has it, wherever its archive is, until it lets go; and it
// takes it again when somebody has removed it.
func TestStagingTaken(t *testing.T) {
	watched := t.TempDir()
	one, two := NewStaging(watched), NewStaging(watched)
	mustDo(t, one.Prepare())
	if err := two.Prepare(); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) || two.Prepared() {
		t.Errorf("the second: %v", err)
	}
	mustDo(t, one.Prepare()) // once more is fine
	mustDo(t, os.RemoveAll(filepath.Join(watched, HiddenDir)))
	if one.InPlace() || !one.Prepared() {
		t.Errorf("removed: in place %v, prepared %v", one.InPlace(), one.Prepared())
	}
	mustDo(t, one.Prepare())
	if err := two.Prepare(); !errors.Is(err, ErrLocked) || !one.InPlace() {
		t.Errorf("the second, after a removal: %v", err)
	}
	mustDo(t, one.Close())
	mustDo(t, two.Prepare())
	mustDo(t, two.Close())
	mustDo(t, two.Close())
}
