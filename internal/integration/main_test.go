package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
)

// scratch is a directory for the whole run, on a file system that allows programs to be
// executed. Everybody may enter it, as one test runs the daemon as another user.
var scratch string

// attackEnv has the test binary do what obey makes of the order in it, in place of tests.
const attackEnv = "AGGREGATORD_TEST_ATTACK"

// obey is set where such tests run.
var obey func(order string)

func TestMain(m *testing.M) {
	if order := os.Getenv(attackEnv); order != "" && obey != nil {
		obey(order)
		return
	}
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if !given {
		// Most of a test here is waiting for other processes.
		if err := flag.Set("test.parallel", strconv.Itoa(2*runtime.GOMAXPROCS(0))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if scratch, err = os.MkdirTemp("", "aggregatord-integration-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(scratch)
	if err := os.Chmod(scratch, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// build compiles the daemon once, with the race detector, and buildPlain without it, as it is shipped:
// the detector keeps memory of its own.
var (
	build      = sync.OnceValues(func() (string, error) { return compile("aggregatord", "-race") })
	buildPlain = sync.OnceValues(func() (string, error) { return compile("aggregatord-plain") })
)

func compile(name string, flags ...string) (path string, err error) {
	path = filepath.Join(scratch, name)
	cmd := exec.Command("go", append(append([]string{"build"}, flags...), "-o", path, "./cmd/aggregatord")...)
	cmd.Dir = moduleRoot
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the daemon: %w\n%s", err, out)
	}
	return path, nil
}

// moduleRoot is where go.mod is, seen from this package.
const moduleRoot = "../.."

// builtDaemon returns the path of the built daemon.
func builtDaemon(t *testing.T) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// app returns the absolute path of a Python program of testdata/apps.
func app(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(moduleRoot, "testdata", "apps", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// sourceDir makes a directory for source files, on a real tmpfs where there is one: that
// is where applications are told to put theirs, and where reading beyond the used
// bytes would cost memory.
func sourceDir(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if info, err := os.Stat(base); err != nil || !info.IsDir() {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "aggregatord-")
	if err != nil {
		if dir, err = os.MkdirTemp("", "aggregatord-"); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the source directory: %v", err)
		}
	})
	// The name must be the one the kernel shows in /proc/PID/maps, and another user
	// must be able to look inside.
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}
