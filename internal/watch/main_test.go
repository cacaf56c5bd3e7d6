package watch

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// helperVariable makes the test binary play a part in a test of another process: its value
// is the name of one of the helpers.
const helperVariable = "WATCH_TEST_HELPER"

// helpers are the parts, by name. Each prints what it has to say, line by line, and may wait
// for its standard input to end.
var helpers = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(helperVariable); name != "" {
		if err := helpers[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A child is a process that a test started.
type child struct {
	*exec.Cmd
	stdin io.WriteCloser
	out   *bufio.Reader
	done  bool
}

// startHelper starts the test binary as a helper. adjust, if not nil, may change how.
func startHelper(t testing.TB, name string, args []string, adjust func(*exec.Cmd)) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	// The race detector would let each process sleep for a second at its end.
	cmd.Env = append(os.Environ(), helperVariable+"="+name, "GORACE=atexit_sleep_ms=0")
	if adjust != nil {
		adjust(cmd)
	}
	c, err := startChild(t, cmd)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func startChild(t testing.TB, cmd *exec.Cmd) (*child, error) {
	c := &child{Cmd: cmd}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c.stdin, c.out = in, bufio.NewReader(out)
	t.Cleanup(c.kill)
	return c, nil
}

// line returns the next line that the child prints.
func (c *child) line(t testing.TB) string {
	t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	s, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("child said %q, then %v", s, err)
	}
	return strings.TrimSpace(s)
}

// end lets the child's standard input end and waits until it has ended.
func (c *child) end(t testing.TB) {
	t.Helper()
	timer := time.AfterFunc(20*time.Second, func() { _ = c.Process.Kill() })
	defer timer.Stop()
	c.stdin.Close()
	c.done = true
	if err := c.Wait(); err != nil {
		t.Fatalf("child: %v", err)
	}
}

// kill ends the child with SIGKILL and waits until it is gone.
func (c *child) kill() {
	if !c.done {
		c.done = true
		_ = c.Process.Kill()
		_ = c.Wait()
	}
}

// skipUnlessCI skips a test that the machine does not allow. In CI it must allow it.
func skipUnlessCI(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
