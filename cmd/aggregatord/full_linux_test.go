package main

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDumpOutputFull writes to a file system that is too small: the old file stays, and
// nothing beside it.
func TestDumpOutputFull(t *testing.T) {
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=16k"); err != nil {
		t.Skipf("cannot mount a small tmpfs, for which it takes root: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(full, 0); err != nil {
			t.Error(err)
		}
	})
	dir := sourceDir(t)
	var entries []entry
	for i := range 2000 {
		entries = append(entries, entry{family: "c", sample: "c_total", labels: labels("i", strconv.Itoa(i)), value: 1})
	}
	bury(t, dir, "counter_1.db", entries...)
	path := filepath.Join(full, "c.prom")
	if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	call(t, "dump", "--dir", dir, "--output", path).oneLine(t, exitFailure, path, "no space left on device")
	onlyFile(t, path, "old")
}
