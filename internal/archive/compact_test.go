package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// backlog makes an archive that has folded many files and forgotten most of them.
func backlog(t *testing.T, dir string) *Archive {
	t.Helper()
	a := mustOpen(t, dir)
	const files = 400
	b := NewBatch(at(1))
	for i := range files {
		var entries []entry
		for k := range 100 {
			entries = append(entries, entry{fmt.Sprintf(`["hits", "hits_total", {"n": "%d"}, ""]`, k), 0.1, 0})
		}
		fold(b, counters, fmt.Sprintf("counter_%d.db.run-%d", i, i), nil, entries...)
	}
	mustCommit(t, a, b)
	mustCommit(t, a, mixed(7))
	for i := range files - 3 {
		a.Forget(fmt.Sprintf("counter_%d.db.run-%d", i, i))
	}
	mustCommit(t, a, NewBatch(at(2)))
	mustCommit(t, a, NewBatch(at(3))) // what the last one freed can be counted now
	return a
}

func TestCompact(t *testing.T) {
	dir := t.TempDir()
	a := backlog(t, dir)
	want, size, used := contentsOf(a), a.SizeBytes(), a.UsedBytes()
	if used <= 0 || used > size/4 {
		t.Fatalf("%d bytes used of %d", used, size)
	}
	before := reread(t, dir)
	mustDo(t, a.Compact())
	wantContents(t, a, want)
	wantContents(t, reread(t, dir).Archive, want)
	if got := a.SizeBytes(); got > size/4 || got < a.UsedBytes() || a.UsedBytes() > used {
		t.Errorf("%d bytes, %d of them used, after %d and %d", got, a.UsedBytes(), size, used)
	}
	if before.Current() {
		t.Error("a view of the old file is current")
	}
	if got := names(t, dir); !slices.Equal(got, []string{FileName, ownerName}) {
		t.Errorf("files %q", got)
	}
	if other, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("the new file is not locked: %v", errors.Join(err, other.Detach()))
	}
	if !a.InPlace() {
		t.Error("not in place")
	}

	// It goes on as if nothing had happened, here and in another process.
	mustDetach(t, a)
	mustDo(t, a.Attach(dir))
	wantContents(t, a, want)
	mustCommit(t, a, mixed(8))
	a.Forget("counter_397.db.run-397")
	a.Drop(worker("7"))
	mustCommit(t, a, NewBatch(at(9)))
	want = contentsOf(a)
	wantContents(t, reread(t, dir).Archive, want)
	mustDetach(t, a)
	mustDo(t, a.Attach(dir))
	wantContents(t, a, want)
	mustCommit(t, a, mixed(10))
	want = contentsOf(a)
	mustDetach(t, a)
	wantContents(t, mustOpen(t, dir), want)
}

// TestCompactWaits: what is not on disk yet is for Commit.
func TestCompactWaits(t *testing.T) {
	dir := t.TempDir()
	a := backlog(t, dir)
	size := a.SizeBytes()
	a.Forget("counter_399.db.run-399")
	if err := a.Compact(); !errors.Is(err, errPending) || a.SizeBytes() != size {
		t.Errorf("%v, %d bytes, want %d", err, a.SizeBytes(), size)
	}
	mustCommit(t, a, NewBatch(at(9)))
	mustDetach(t, a)
	if err := a.Compact(); !errors.Is(err, ErrDetached) {
		t.Errorf("detached: %v", err)
	}
	if n := a.UsedBytes(); n != 0 {
		t.Errorf("detached: %d bytes used", n)
	}
}

// TestCompactElsewhere: a file that somebody has put in the place of ours is not replaced.
func TestCompactElsewhere(t *testing.T) {
	dir := t.TempDir()
	a := backlog(t, dir)
	want := contentsOf(a)
	mustDo(t, os.Rename(archivePath(dir), archivePath(dir)+".away"))
	mustDo(t, os.WriteFile(archivePath(dir), []byte("theirs"), 0o600))
	if err := a.Compact(); !errors.Is(err, errNotInPlace) {
		t.Errorf("got %v", err)
	}
	wantFile(t, archivePath(dir), "theirs")
	wantContents(t, a, want)
	if got := names(t, dir); !slices.Equal(got, []string{FileName, FileName + ".away", ownerName}) {
		t.Errorf("files %q", got)
	}
	mustDo(t, os.Rename(archivePath(dir)+".away", archivePath(dir)))
	mustCommit(t, a, mixed(8))
	want = contentsOf(a)
	wantContents(t, reread(t, dir).Archive, want)
}

// TestHalfMade: what a crash left of one that was being made goes when the archive is opened.
func TestHalfMade(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a[b") // which is no pattern
	mustDo(t, os.Mkdir(dir, 0o700))
	mustDetach(t, mustOpen(t, dir))
	for name, age := range map[string]time.Duration{"old": time.Hour, "young": time.Second} {
		path := filepath.Join(dir, FileName+".new-"+name)
		mustDo(t, os.WriteFile(path, nil, 0o600))
		then := time.Now().Add(-age)
		mustDo(t, os.Chtimes(path, then, then))
	}
	mustOpen(t, dir)
	if got := names(t, dir); !slices.Equal(got, []string{FileName, FileName + ".new-young", ownerName}) {
		t.Errorf("files %q", got)
	}
}

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

func writeFile(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}
