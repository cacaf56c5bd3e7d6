package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestArchiveExportFull exports to a file system that is too small: it says so, and leaves
// nothing there.
func TestArchiveExportFull(t *testing.T) {
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("cannot mount a small tmpfs, for which it takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, 0); err != nil {
			t.Error(err)
		}
	})
	dir, _ := archivedDir(t)
	for name, to := range map[string]string{"empty": full, "new": filepath.Join(full, "new")} {
		t.Run(name, func(t *testing.T) {
			call(t, "archive", "export", "--dir", dir, "--to", to).oneLine(t, exitFailure, to, "no space left")
			if left, err := os.ReadDir(full); err != nil || len(left) > 0 {
				t.Errorf("it left %v, %v", left, err)
			}
		})
	}
}
