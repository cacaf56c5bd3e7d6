package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"aggregatord/internal/store"
)

// TestMain keeps the caller's directories out of the tests and looks for goroutines that
// a command left behind.
func TestMain(m *testing.M) {
	for _, name := range []string{"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} {
		if err := os.Unsetenv(name); err != nil {
			panic(err)
		}
	}
	goleak.VerifyTestMain(m)
}

// called is what came of one call of the program.
type called struct {
	code           int
	stdout, stderr string
}

// call runs the program in this process, to its end.
func call(t *testing.T, args ...string) called {
	t.Helper()
	var stdout, stderr lockedBuffer
	code := run(t.Context(), args, &stdout, &stderr)
	return called{code, stdout.String(), stderr.String()}
}

// must is call for a call that has to succeed; it returns the standard output.
func must(t *testing.T, args ...string) string {
	t.Helper()
	c := call(t, args...)
	if c.code != 0 || c.stderr != "" {
		t.Fatalf("%q: exit code %d, standard error:\n%s", args, c.code, c.stderr)
	}
	return c.stdout
}

// An entry of a source file, in readable form.
type entry struct {
	family, sample string
	labels         map[string]string
	value, stamp   float64
}

// key spells the key as client_python does.
func (e entry) key(t *testing.T) []byte {
	t.Helper()
	labels := e.labels
	if labels == nil {
		labels = map[string]string{}
	}
	key, err := json.Marshal([]any{e.family, e.sample, labels, "Help of " + e.family + "."})
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// write puts entries into a source file as a worker does. The worker lives, as far as
// anybody can tell, until the writer returned is closed.
func write(t *testing.T, dir, base string, entries ...entry) *store.Writer {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	for _, e := range entries {
		slot, err := w.Slot(e.key(t))
		if err != nil {
			t.Fatal(err)
		}
		w.Set(slot, e.value, e.stamp)
	}
	return w
}

// bury is write for a worker that is dead.
func bury(t *testing.T, dir, base string, entries ...entry) {
	t.Helper()
	if err := write(t, dir, base, entries...).Close(); err != nil {
		t.Fatal(err)
	}
}

// sourceDir returns a new directory, on a tmpfs where there is one: there it is certain
// who is dead.
func sourceDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(memoryDir(), "aggregatord-cmd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// oneLine checks that an error is told in one line that contains every one of the words.
func (c called) oneLine(t *testing.T, code int, says ...string) {
	t.Helper()
	if c.code != code {
		t.Errorf("exit code %d, want %d", c.code, code)
	}
	if c.stdout != "" {
		t.Errorf("it prints %q", c.stdout)
	}
	if !strings.HasPrefix(c.stderr, "aggregatord: ") || strings.Count(c.stderr, "\n") != 1 || !strings.HasSuffix(c.stderr, "\n") {
		t.Errorf("not one line: %q", c.stderr)
	}
	for _, word := range says {
		if !strings.Contains(c.stderr, word) {
			t.Errorf("it does not mention %q: %q", word, c.stderr)
		}
	}
}
