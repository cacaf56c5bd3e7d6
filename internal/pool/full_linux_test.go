package pool

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBallastOnWords: room kept in reserve is given up on a full file system although the
// error of the archive's library wraps no ENOSPC.
func TestBallastOnWords(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("needs to mount a tmpfs, as root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	h := collect(t, Spec{Path: dir})
	ballast := filepath.Join(dir, ".aggregatord.ballast")
	if _, err := os.Stat(ballast); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	h.Tend(true)
	fail := errors.New("file resize error: no space left on device")
	failed := 0
	h.folder.Step = func(name string) error {
		if name == "commit" && fail != nil {
			failed++
			return fail
		}
		return nil
	}
	// With room the error is that of something else.
	h.Fold()
	if _, err := os.Stat(ballast); err != nil || failed != 1 {
		t.Fatalf("after %d failures: %v", failed, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "other"), make([]byte, 64<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	advance(h.Pool)
	h.Tend(false)
	h.Fold()
	if _, err := os.Stat(ballast); err == nil || failed != 2 {
		t.Errorf("after %d failures the reserve is still there: %v", failed, err)
	}
	fail = nil
	h.Tend(false)
	if h.Fold(); failed != 2 || h.folder.State().Err != nil {
		t.Errorf("%v", h.folder.State().Err)
	}
	if err := os.Remove(filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	h.wantFolded(dir)
	h.want("hits_total 5")
}
