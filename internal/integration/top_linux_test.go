package integration

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTop: at a terminal it shows workers and rates, live, and leaves the terminal as it was,
// however it is ended.
func TestTop(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	d := serve(t, "--dir", dir)
	counting(t, appEnv(dir), nil, `import prometheus_client, threading, time
c = prometheus_client.Counter("ticks_total", "Help.")
def run():
    while True:
        c.inc(10)
        time.sleep(0.01)
threading.Thread(target=run, daemon=True).start()`)
	for _, end := range []string{"q", "\x03", "term"} {
		cmd := exec.Command(builtDaemon(t), "top", "--url", d.URL, "--interval", "200ms")
		cmd.Env = withoutDir("TERM=xterm")
		p, keyboard := console(t, cmd)
		before, err := unix.IoctlGetTermios(int(keyboard.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		p.await("a frame with a rate", func(line string) bool {
			fields := strings.Fields(line)
			return len(fields) > 4 && strings.HasPrefix(fields[4], "ticks") && !strings.HasPrefix(fields[0], "0.0") && fields[0] != "-"
		})
		raw, err := unix.IoctlGetTermios(int(keyboard.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if raw.Lflag&unix.ECHO != 0 {
			t.Error("the terminal is not raw: keys need a return")
		}
		if end == "term" {
			p.signal(syscall.SIGTERM)
		} else if _, err := keyboard.WriteString(end); err != nil {
			t.Fatal(err)
		}
		if err := p.wait(); err != nil {
			t.Errorf("after %q it ended with %v", end, err)
		}
		after, err := unix.IoctlGetTermios(int(keyboard.Fd()), unix.TCGETS)
		if err != nil {
			t.Fatal(err)
		}
		if after.Lflag != before.Lflag || after.Iflag != before.Iflag || after.Oflag != before.Oflag {
			t.Errorf("after %q the terminal is another one", end)
		}
		eventually(t, patience, func() error {
			if !strings.HasSuffix(p.out.String(), "\x1b[?25h\x1b[?1049l") {
				return os.ErrNotExist
			}
			return nil
		})
	}
	// A pipe gets plain text, once.
	out, err := exec.Command(builtDaemon(t), "top", "--url", d.URL, "--interval", "200ms").Output()
	if err != nil || strings.Contains(string(out), "\x1b") || !strings.Contains(string(out), "ticks") || !strings.Contains(string(out), "alive") {
		t.Errorf("%v\n%s", err, out)
	}
	out, err = exec.Command(builtDaemon(t), "top", "--url", "http://127.0.0.1:1").CombinedOutput()
	if exitCode(err) != 1 || strings.Count(string(out), "\n") != 1 {
		t.Errorf("without a daemon: %v\n%s", err, out)
	}
}
