package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"aggregatord/internal/store"
)

// emulate returns what a terminal shows that was sent these bytes. It knows what top may
// send, and nothing else: anything more is an error.
func emulate(sent string, columns, lines int) (shown []string, alternate bool, err error) {
	grid := make([][]rune, lines)
	row, column := 0, 0
	wipe := func() {
		for i := range grid {
			grid[i] = nil
		}
	}
	for sent != "" {
		if rest, ok := strings.CutPrefix(sent, "\x1b["); ok {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' && r <= '~' })
			if end < 0 {
				break // the rest is still to come
			}
			switch sequence := rest[:end+1]; {
			case sequence == "?1049h":
				alternate = true
			case sequence == "?1049l":
				alternate = false
				wipe()
			case sequence == "?25h", sequence == "?25l", strings.HasSuffix(sequence, "m"):
			case sequence == "2J":
				wipe()
			case sequence == "2K":
				grid[row] = nil
			case strings.HasSuffix(sequence, ";1H"):
				n, convErr := strconv.Atoi(strings.TrimSuffix(sequence, ";1H"))
				if convErr != nil || n < 1 || n > lines {
					return nil, alternate, fmt.Errorf("sequence %q", sequence)
				}
				row, column = n-1, 0
			default:
				return nil, alternate, fmt.Errorf("sequence %q", sequence)
			}
			sent = rest[end+1:]
			continue
		}
		r, n := utf8.DecodeRuneInString(sent)
		switch {
		case r == '\r' && !alternate:
			column = 0
		case r == '\n' && !alternate:
			row = min(row+1, lines-1)
		case r < ' ' || r == utf8.RuneError || r >= 0x7f && r < 0xa0:
			return nil, alternate, fmt.Errorf("control character %q", r)
		case column == columns && alternate:
			return nil, alternate, fmt.Errorf("line %d runs over the edge: %s", row, string(grid[row]))
		default:
			for len(grid[row]) <= column {
				grid[row] = append(grid[row], ' ')
			}
			grid[row][column] = r
			column++
		}
		sent = sent[n:]
	}
	for _, line := range grid {
		shown = append(shown, strings.TrimRight(string(line), " "))
	}
	return shown, alternate, nil
}

// topConsole is aggregatord top on a pseudo-terminal.
type topConsole struct {
	*process
	keyboard       *os.File
	columns, lines int
}

func startTop(t *testing.T, url string, env ...string) *topConsole {
	t.Helper()
	cmd := exec.Command(builtDaemon(t), "top", "--url", url, "--interval", "500ms")
	cmd.Env = append(os.Environ(), append([]string{"TERM=xterm", "NO_COLOR="}, env...)...)
	p, keyboard := console(t, cmd)
	return &topConsole{process: p, keyboard: keyboard, columns: 100, lines: 30}
}

// shows waits until the screen is as told, and returns it.
func (c *topConsole) shows(what string, check func(screen string) bool) string {
	c.t.Helper()
	var screen string
	eventually(c.t, patience, func() error {
		shown, alternate, err := emulate(c.out.String(), max(c.columns, 200), max(c.lines, 50))
		if err != nil {
			c.t.Fatalf("it sent the terminal a %v", err)
		}
		screen = strings.Join(shown, "\n")
		if !alternate || !check(screen) {
			return fmt.Errorf("not %s:\n%s", what, screen)
		}
		return nil
	})
	return screen
}

func (c *topConsole) showing(texts ...string) string {
	c.t.Helper()
	return c.shows(strings.Join(texts, " and "), func(screen string) bool {
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false
			}
		}
		return true
	})
}

func (c *topConsole) types(keys string) {
	c.t.Helper()
	if _, err := c.keyboard.WriteString(keys); err != nil {
		c.t.Fatal(err)
	}
}

// control does something with the terminal, whose descriptor must stay one that does not
// block: Fd would change that.
func (c *topConsole) control(f func(fd int) error) {
	c.t.Helper()
	raw, err := c.keyboard.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *topConsole) mode() (mode *unix.Termios) {
	c.t.Helper()
	c.control(func(fd int) (err error) {
		mode, err = unix.IoctlGetTermios(fd, unix.TCGETS)
		return err
	})
	return mode
}

// restored checks that the program ends, with this code, and leaves the terminal as one
// expects it: in line mode, with an echo, the cursor and what was there before.
func (c *topConsole) restored(code int) {
	c.t.Helper()
	if got := exitCode(c.wait()); got != code {
		c.t.Errorf("exit code %d, want %d", got, code)
	}
	const cooked = unix.ICANON | unix.ECHO | unix.ISIG
	if mode := c.mode(); mode.Lflag&cooked != cooked || mode.Oflag&unix.OPOST == 0 || mode.Iflag&unix.ICRNL == 0 {
		c.t.Errorf("the terminal is left in mode %+v", mode)
	}
	eventually(c.t, patience, func() error {
		sent := c.out.String()
		if !strings.HasSuffix(sent, "\x1b[?25h\x1b[?1049l") || strings.Count(sent, "\x1b[?1049h") != strings.Count(sent, "\x1b[?1049l") {
			return fmt.Errorf("the screen is not given back: it ends in %q", sent[max(0, len(sent)-40):])
		}
		return nil
	})
}

// resize tells the terminal another size.
func (c *topConsole) resize(columns, lines int) {
	c.t.Helper()
	c.columns, c.lines = columns, lines
	c.control(func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(lines), Col: uint16(columns)})
	})
}

// hostile is part of workers' names, a label's value and a help: it tries to do something to
// the terminal.
const hostile = "evil\x1b]0;owned\a\x1b[2J\u009b31m\r"

// TestTop looks at a real pool with a real daemon through a terminal.
func TestTop(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	play(t, dir)
	d := serve(t, "--dir", dir)
	c := startTop(t, d.URL)

	c.showing("aggregatord ", d.URL, "POOL", "FAMILY", "WORKER", dir, "q quit", "Scrapes", `evil\x1b]0;owned\a\x1b[2J\u009b31m\r`)
	if mode := c.mode(); mode.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		t.Errorf("it reads keys in mode %+v", mode)
	}
	c.shows("rates of counters", func(screen string) bool {
		for line := range strings.Lines(screen) {
			fields := strings.Fields(line)
			if len(fields) > 4 && fields[0] == "evil" && fields[4] == "counter" {
				rate, err := strconv.ParseFloat(fields[1], 64)
				return err == nil && rate > 30 && rate < 1000 // about 300
			}
		}
		return false
	})
	c.showing("\n0evil", "\n1evil", "\n2evil")
	for range 3 {
		d.mustText()
	}
	c.showing("3 in all")

	c.types("h")
	c.showing("this help, and back")
	c.types("hs")
	c.showing("s families by series", "WORKER")
	c.types("ww\x1b[Z") // a sequence that is no key of ours does nothing
	c.showing("w workers by size")
	c.types("o")
	c.showing("aggregatord_")
	c.types(" ")
	c.showing("Paused")
	c.types(" \x0c")
	c.types("/zzz")
	c.showing("Filter: zzz")
	c.shows("nothing of that name", func(screen string) bool { return !strings.Contains(screen, "evil") })
	c.types("\x1b")
	c.showing("evil", "q quit")
	c.types("\t\x1b[B")
	c.showing("▸ WORKER")
	c.types("\t\x1b[A")
	c.shows("no pause", func(screen string) bool { return !strings.Contains(screen, "Paused") })

	for _, size := range [][2]int{{80, 24}, {200, 50}, {20, 5}, {100, 30}} {
		c.resize(size[0], size[1])
		c.shows(fmt.Sprintf("a screen of %v", size), func(screen string) bool {
			lines := strings.Split(screen, "\n")
			if strings.HasPrefix(lines[size[1]-1], "q quit") {
				for i, line := range lines {
					if utf8.RuneCountInString(line) > size[0] || i >= size[1] && line != "" {
						return false
					}
				}
				return true
			}
			return false
		})
	}

	// The daemon goes and comes back at the same address, as a new one.
	address := strings.TrimPrefix(d.URL, "http://")
	d.stop()
	c.showing("No answer for", "connection refused", "WORKER")
	serve(t, "--dir", dir, "--web.listen-address", address)
	c.shows("that it goes on", func(screen string) bool { return !strings.Contains(screen, "No answer") })
	c.types("q")
	c.restored(0)
}

// TestTopEnds: however it ends, the terminal is as it was.
func TestTopEnds(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	play(t, dir)
	d := serve(t, "--dir", dir)
	for name, end := range map[string]func(c *topConsole){
		"q":      func(c *topConsole) { c.types("q") },
		"ctrl_c": func(c *topConsole) { c.types("\x03") },
		"term":   func(c *topConsole) { c.signal(syscall.SIGTERM) },
		"int":    func(c *topConsole) { c.signal(syscall.SIGINT) },
		"hup":    func(c *topConsole) { c.signal(syscall.SIGHUP) },
		"quit":   func(c *topConsole) { c.signal(syscall.SIGQUIT) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startTop(t, d.URL, "NO_COLOR=1")
			c.showing("evil", "q quit")
			end(c)
			c.restored(0)
			sent := c.out.String()
			if strings.Contains(sent, "\x1b[1m") || strings.Contains(sent, "\x1b[7m") || strings.Contains(sent, "\x1b[33m") {
				t.Error("there is colour, despite NO_COLOR")
			}
		})
	}
	// As a job, stopped and continued: the shell has the terminal meanwhile.
	t.Run("ctrl_z", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command("bash", "--norc", "-i")
		cmd.Env = append(os.Environ(), "TERM=xterm", "PS1=prompt> ", "HISTFILE=", "NO_COLOR=1", "TOP="+builtDaemon(t), "URL="+d.URL)
		p, keyboard := console(t, cmd)
		c := &topConsole{process: p, keyboard: keyboard, columns: 100, lines: 30}
		told := func(times int, what string) {
			t.Helper()
			eventually(t, patience, func() error {
				if n := strings.Count(p.out.String(), what); n < times {
					return fmt.Errorf("%q is there %d times, want %d", what, n, times)
				}
				return nil
			})
		}
		told(1, "prompt> ")
		c.types("$TOP top --url $URL\n")
		told(1, "q quit")
		c.types("\x1a")
		told(1, "Stopped")
		told(1, "\x1b[?1049l")
		c.types("fg\n")
		told(2, "q quit")
		c.types("q")
		told(2, "\x1b[?1049l")
		c.types("echo and $((40+2))\n")
		told(1, "and 42")
		c.types("exit\n")
		if err := p.wait(); err != nil {
			t.Error(err)
		}
	})
}

// TestTopPlain: without a terminal that can show it, there are frames of plain text.
func TestTopPlain(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	play(t, dir)
	d := serve(t, "--dir", dir)
	for name, tc := range map[string]struct {
		flags  []string
		frames int
	}{
		"once":  {nil, 1},
		"twice": {[]string{"--iterations", "2"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := output(t.Context(), nil, builtDaemon(t),
				append([]string{"top", "--url", d.URL, "--interval", "500ms"}, tc.flags...)...)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(out), "aggregatord "); n != tc.frames {
				t.Errorf("%d frames:\n%s", n, out)
			}
			if _, _, err := emulate(string(out), 1<<20, 100); err != nil || strings.ContainsRune(string(out), '\x1b') {
				t.Errorf("%v in\n%q", err, out)
			}
		})
	}
	t.Run("dumb_terminal", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command(builtDaemon(t), "top", "--url", d.URL, "--interval", "500ms")
		cmd.Env = append(os.Environ(), "TERM=dumb")
		p, _ := console(t, cmd)
		if err := p.wait(); err != nil {
			t.Error(err)
		}
		eventually(t, patience, func() error {
			if !strings.Contains(p.out.String(), "WORKER") {
				return errors.New(p.out.String())
			}
			return nil
		})
		if strings.ContainsRune(p.out.String(), '\x1b') {
			t.Errorf("%q", p.out.String())
		}
	})
	// An exposition goes byte for byte to anything but a terminal.
	t.Run("dump", func(t *testing.T) {
		t.Parallel()
		cmd := exec.Command(builtDaemon(t), "dump", "--dir", dir)
		p, _ := console(t, cmd)
		if err := p.wait(); err != nil {
			t.Error(err)
		}
		eventually(t, patience, func() error {
			if !strings.Contains(p.out.String(), `\x1b]0;owned`) {
				return errors.New(p.out.String())
			}
			return nil
		})
		if strings.ContainsAny(p.out.String(), "\x1b\u009b\a") {
			t.Errorf("%q", p.out.String())
		}
		out, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir)
		if err != nil || !strings.Contains(string(out), hostile) {
			t.Errorf("%v: %q", err, out)
		}
	})
	t.Run("nobody_there", func(t *testing.T) {
		t.Parallel()
		out, err := exec.Command(builtDaemon(t), "top", "--url", "unix:/nonexistent/socket").CombinedOutput()
		if exitCode(err) != 1 || !strings.Contains(string(out), "start it, or give its address") || strings.Count(string(out), "\n") != 1 {
			t.Errorf("%v: %s", err, out)
		}
	})
}

// play has three workers with hostile names count, a hundred times a second, until the test
// ends. What a worker is called is up to whoever may write to the directory.
func play(t *testing.T, dir string) {
	t.Helper()
	key, err := json.Marshal([]any{"evil", "evil_total", map[string]string{"label": hostile}, "help " + hostile})
	if err != nil {
		t.Fatal(err)
	}
	var all []func()
	for i := range 3 {
		w, err := store.OpenWriter(filepath.Join(dir, fmt.Sprintf("counter_%d%s.db", i, hostile)), store.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		slot, err := w.Slot(key)
		if err != nil {
			t.Fatal(err)
		}
		count := 0.0
		all = append(all, func() { count++; w.Set(slot, count, 0) })
		t.Cleanup(func() { w.Close() })
	}
	stop, done := make(chan struct{}), make(chan struct{})
	// Ends with the test.
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				for _, step := range all {
					step()
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
}
