package output

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// missing skips the test, as something it needs is not there; where CI=true it fails.
func missing(t *testing.T, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing", what)
	}
	t.Skipf("%s is missing", what)
}

// TestPublishedReceivers runs the tests of the module beside this package: remote write and
// OTLP against Prometheus' own handlers.
func TestPublishedReceivers(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds much")
	}
	// With a copy of its go.mod, which may have to follow ours.
	dir := t.TempDir()
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join("receivertest", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-mod=mod", "-modfile="+filepath.Join(dir, "go.mod"), "./...")
	cmd.Dir = "receivertest"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
