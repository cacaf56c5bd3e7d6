package fold

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"aggregatord/internal/archive"
)

func put(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestPlace stages a file, gives it back, stages it again and removes it. No directory is ever
// made.
func TestPlace(t *testing.T) {
	dir := t.TempDir()
	p := NewPlace(dir)
	if err := p.Take(); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	put(t, filepath.Join(dir, "counter_1.db"))
	first, second := p.NewName("counter_1.db"), p.NewName("counter_1.db")
	if err := errors.Join(p.Stage("counter_1.db", first), p.Sync()); err != nil {
		t.Fatal(err)
	}
	if base, ok := BaseOf(first); !ok || base != "counter_1.db" || first == second {
		t.Errorf("%q and %q", first, second)
	}
	if staged, err := Staged(dir); err != nil || !slices.Equal(staged, []string{first}) {
		t.Errorf("staged %v, %v", staged, err)
	}
	put(t, filepath.Join(dir, "counter_1.db"))
	if err := p.Unstage(first, "counter_1.db"); err == nil {
		t.Error("a file was given back over another one")
	}
	if err := p.Stage("counter_1.db", first); err == nil {
		t.Error("a file was staged over another one")
	}
	if err := p.Remove(first, 1, 1); err == nil {
		t.Error("another file was removed")
	}
	if same, err := p.Is(first, 1, 1); same || err != nil {
		t.Errorf("taken for another file: %v, %v", same, err)
	}
	info, err := os.Stat(p.Path(first))
	if err != nil {
		t.Fatal(err)
	}
	id := identity(info)
	if err := p.Remove(first, id.Dev, id.Ino); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "counter_1.db" {
		t.Errorf("left is %v, %v", entries, err)
	}
}

// TestReplacedDirectory: what was put in the place of the directory is not touched.
func TestReplacedDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "metrics")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	p := NewPlace(dir)
	if err := p.Take(); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	elsewhere := t.TempDir()
	put(t, filepath.Join(elsewhere, "counter_1.db"))
	if err := errors.Join(os.Rename(dir, dir+".old"), os.Symlink(elsewhere, dir)); err != nil {
		t.Fatal(err)
	}
	if err := p.Stage("counter_1.db", p.NewName("counter_1.db")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("staged in another directory: %v", err)
	}
	if p.InPlace() {
		t.Error("the directory counts as in place")
	}
}

// TestSecondHolder: one process has the directory, and is named.
func TestSecondHolder(t *testing.T) {
	dir := t.TempDir()
	first, second := NewPlace(dir), NewPlace(dir)
	if err := first.Take(); err != nil {
		t.Fatal(err)
	}
	if err := second.Take(); !errors.Is(err, archive.ErrLocked) {
		t.Errorf("taken twice: %v", err)
	}
	if who, held, err := Holder(dir); !held || err != nil || who != "another process" && who != "process "+strconv.Itoa(os.Getpid()) {
		t.Errorf("held: %v by %q, %v", held, who, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, held, err := Holder(dir); held || err != nil {
		t.Errorf("held when nobody has it: %v", err)
	}
	if err := second.Take(); err != nil {
		t.Error(err)
	}
	second.Close()
}

// TestTakeOver moves what an earlier version staged, also when it was interrupted.
func TestTakeOver(t *testing.T) {
	dir := t.TempDir()
	old := filepath.Join(dir, ".aggregatord", "staged")
	if err := os.MkdirAll(old, 0o700); err != nil {
		t.Fatal(err)
	}
	names := []string{"counter_1.db.0123-1", "gauge_all_2.db.0123-2"}
	for _, name := range names {
		put(t, filepath.Join(old, name))
	}
	if staged, err := Staged(dir); err != nil || !slices.Equal(staged, names) {
		t.Errorf("before: %v, %v", staged, err)
	}
	p := NewPlace(dir)
	if err := p.Take(); err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for range 2 {
		if err := p.TakeOver(); err != nil {
			t.Fatal(err)
		}
		if staged, err := Staged(dir); err != nil || !slices.Equal(staged, names) {
			t.Errorf("after: %v, %v", staged, err)
		}
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
}
