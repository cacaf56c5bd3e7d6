package supervise

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
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
	for look := range 200 {
		if users := startedWith(dir); !slices.Contains(users, cmd.Process.Pid) {
			t.Fatalf("look %d found the processes %v, not %d", look, users, cmd.Process.Pid)
		}
	}
}

func TestHasNoEnviron(t *testing.T) {
	for name, env := range map[string][]string{"empty": {}, "some": {"A=B"}} {
		cmd := exec.Command("sleep", "60")
		cmd.Env = env
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		process := fmt.Sprintf("/proc/%d", cmd.Process.Pid)
		if got := environ(process); string(got) != strings.Join(append(env, ""), "\x00") {
			t.Errorf("%s: %q", name, got)
		}
		if got := hasNoEnviron(process); got != (len(env) == 0) {
			t.Errorf("%s: no environment: %v", name, got)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		for range 1000 { // until it is a zombie
			if _, err := os.Readlink(process + "/exe"); err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if !hasNoEnviron(process) || len(environ(process)) > 0 {
			t.Errorf("%s: a zombie has an environment", name)
		}
		cmd.Wait() //nolint:errcheck // it was killed
	}
}
