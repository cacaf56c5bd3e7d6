package supervise

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
)

// TestStartedWithInExec: a process is found while it executes its next program, too, when
// its environment can't be read for a moment.
func TestStartedWithInExec(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "again")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec \"$0\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script)
	cmd.Env = Environ(os.Environ(), dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait() //nolint:errcheck // it was killed
	}()
	for look := range 500 {
		if users := startedWith(dir); !slices.Contains(users, cmd.Process.Pid) {
			t.Fatalf("look %d found the processes %v, not %d", look, users, cmd.Process.Pid)
		}
	}
}
