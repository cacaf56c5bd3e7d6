package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runArgs is a call of aggregatord run with a command.
func runArgs(flags []string, command ...string) []string {
	args := append([]string{"run", "--web.listen-address", "127.0.0.1:0", "--log.format", "json", "--log.level", "debug"}, flags...)
	return append(append(args, "--"), command...)
}

// withoutDir is this environment without a directory for source files.
func withoutDir(more ...string) []string {
	env := []string{quickExit, "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1"}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(strings.ToUpper(e), "PROMETHEUS_MULTIPROC_DIR=") {
			env = append(env, e)
		}
	}
	return append(env, more...)
}

// exitCode returns how a program ended.
func exitCode(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// TestRunGunicorn: the server and its metrics are there with one command, a signal ends both in
// order, and what was counted is there for the next run if the directory is.
func TestRunGunicorn(t *testing.T) {
	t.Parallel()
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	python(t, "flask", "prometheus_client")
	for _, tc := range []struct {
		name   string
		signal syscall.Signal
	}{
		{"term", syscall.SIGTERM},
		{"int", syscall.SIGINT},
		{"quit", syscall.SIGQUIT},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(sourceDir(t), "made")
			socket := filepath.Join(t.TempDir(), "app.sock")
			d := startDaemon(t, nil, "run", "--dir", dir, "--", gunicorn, "--workers", "3", "--bind", "unix:"+socket,
				"--chdir", filepath.Dir(app(t, "shop.py")), "shop:app")
			client := unixClient(t, socket)
			eventually(t, patience, func() error { return fetch(client, "/pid") })
			got := drive(t, client, 200, 4)
			if got.acknowledged != 200 {
				t.Fatalf("%d of 200 requests were answered", got.acknowledged)
			}
			if err := got.check(d.mustText()); err != nil {
				t.Error(err)
			}
			d.stopped = true
			d.signal(tc.signal)
			if err := d.wait(); err != nil {
				t.Errorf("it ended with %v", err)
			}
			if strings.Contains(d.out.String(), "DATA RACE") {
				t.Error(d.out.String())
			}
			if left := childrenOf(t, d.pid()); len(left) > 0 {
				t.Errorf("it left %v behind", left)
			}
			// The next one goes on from there; one worker is killed, the others go on.
			d = startDaemon(t, nil, "run", "--dir", dir, "--", gunicorn, "--workers", "3", "--bind", "unix:"+socket,
				"--chdir", filepath.Dir(app(t, "shop.py")), "shop:app")
			eventually(t, patience, func() error {
				v, err := d.text()
				if err != nil {
					return err
				}
				// gunicorn waits half a minute for a worker to end that was told so while it began.
				if n := strings.Count(d.out.String(), `"worker found"`); n < 3 {
					return fmt.Errorf("%d workers have begun", n)
				}
				return errors.Join(got.check(v), fetch(client, "/pid"))
			})
		})
	}
}

// TestRunSignals: each signal reaches the command, once; standard input and output are its own, the
// exit code too, and the directory is private, in memory, and gone in the end.
func TestRunSignals(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(builtDaemon(t), runArgs(nil, python(t, "prometheus_client"), app(t, "signals.py"))...)
	cmd.Env = withoutDir()
	p := start(t, cmd)
	waiting := p.await("the command", func(line string) bool { return strings.HasPrefix(line, "waiting ") })
	dir := strings.Fields(waiting)[2]
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Error(err)
	} else if inMemory := fs.Type == unix.TMPFS_MAGIC; !inMemory && !strings.Contains(p.out.String(), "no file system in memory") {
		t.Error("the directory is not in memory, and nothing says so")
	}
	sent := []syscall.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGWINCH, unix.SIGTTIN, unix.SIGTTOU, syscall.Signal(35),
	}
	for i, name := range []string{"HUP", "INT", "QUIT", "USR1", "USR2", "WINCH", "TTIN", "TTOU", "RT"} {
		p.signal(sent[i])
		p.await(name, func(line string) bool { return line == "got "+name })
	}
	// A stop that no terminal is behind is the command's own affair: we go on.
	p.signal(unix.SIGTSTP)
	p.signal(unix.SIGCONT)
	p.signal(unix.SIGTERM)
	if code := exitCode(p.wait()); code != 3 {
		t.Errorf("exit code %d, want the command's 3", code)
	}
	for _, name := range []string{"HUP", "INT", "QUIT", "USR1", "USR2", "WINCH", "TTIN", "TTOU", "RT", "TERM"} {
		if n := strings.Count(p.out.String(), "got "+name+"\n"); n != 1 {
			t.Errorf("%s arrived %d times", name, n)
		}
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the directory is still there: %v", err)
	}
}

// TestRunEnds: exit codes, and what of the directory is left.
func TestRunEnds(t *testing.T) {
	t.Parallel()
	taken := startDaemon(t, nil, "serve", "--dir", sourceDir(t))
	address := strings.TrimPrefix(taken.URL, "http://")
	script := filepath.Join(t.TempDir(), "no-interpreter")
	if err := os.WriteFile(script, []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	plain := filepath.Join(t.TempDir(), "plain")
	if err := os.WriteFile(plain, []byte("data\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		flags   []string
		command []string
		code    int
		says    string
	}{
		"success": {command: []string{"true"}},
		"failure": {command: []string{"sh", "-c", "exit 42"}, code: 42},
		"killed": {
			command: []string{"sh", "-c", "kill -KILL $$"}, code: 128 + 9,
			says: `"msg":"command was killed","signal":"killed"`,
		},
		"crash": {command: []string{"sh", "-c", "kill -SEGV $$"}, code: 128 + 11},
		"not_found": {
			command: []string{"no-such-command-anywhere"}, code: 127,
			says: `start "no-such-command-anywhere": command not found`,
		},
		"no_such_path":   {command: []string{"/no/such/command"}, code: 127, says: "command not found"},
		"no_interpreter": {command: []string{script}, code: 127, says: "command not found"},
		"not_executable": {command: []string{plain}, code: 126, says: "cannot be executed: permission denied"},
		"directory":      {command: []string{"/"}, code: 126, says: "cannot be executed"},
		"address_in_use": {
			flags: []string{"--web.listen-address", address}, command: []string{"echo", "started"}, code: 125,
			says: "the command was not started: port",
		},
		"dir_is_file":      {flags: []string{"--dir", plain}, command: []string{"echo", "started"}, code: 125, says: "is not a directory"},
		"no_command":       {code: 2, says: "which command?"},
		"negative_linger":  {flags: []string{"--run.linger", "-1s"}, command: []string{"echo", "started"}, code: 2, says: "--run.linger"},
		"output_untouched": {command: []string{"sh", "-c", `printf '\000\377no newline'`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			cmd := exec.Command(builtDaemon(t), runArgs(tc.flags, tc.command...)...)
			cmd.Env = withoutDir("XDG_RUNTIME_DIR=")
			var out strings.Builder
			cmd.Stdout = &out
			cmd.Dir = home
			p := start(t, cmd)
			if code := exitCode(p.wait()); code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			if said := p.out.String(); !strings.Contains(said, tc.says) {
				t.Errorf("it does not say %q:\n%s", tc.says, said)
			}
			if want := map[string]string{"output_untouched": "\x00\xffno newline"}[name]; out.String() != want {
				t.Errorf("standard output is %q, want %q", out.String(), want)
			}
			for _, dir := range regexp.MustCompile(`"dir":"([^"]*aggregatord-run-[^"]*)"`).FindAllStringSubmatch(p.out.String(), -1) {
				if _, err := os.Stat(dir[1]); !os.IsNotExist(err) {
					t.Errorf("%s is still there: %v", dir[1], err)
				}
			}
		})
	}
}

// TestRunLeftBehind: the directory stays as long as it is needed by processes that outlive the
// command, as those of a server that goes to the background do, and no longer.
func TestRunLeftBehind(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		seconds string
		kept    bool
	}{
		"for_long":     {"60", true},
		"for_a_moment": {"1", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(builtDaemon(t),
				runArgs(nil, "sh", "-c", "sleep "+tc.seconds+" >/dev/null 2>&1 & echo left $! $PROMETHEUS_MULTIPROC_DIR")...)
			cmd.Env = withoutDir()
			p := start(t, cmd)
			words := strings.Fields(p.await("the command", func(line string) bool { return strings.HasPrefix(line, "left ") }))
			if err := p.wait(); err != nil {
				t.Error(err)
			}
			pid, err := strconv.Atoi(words[1])
			if err != nil {
				t.Fatal(err)
			}
			dir := words[2]
			if tc.kept {
				defer os.RemoveAll(dir)
				defer unix.Kill(pid, unix.SIGKILL)
			}
			if _, err := os.Stat(dir); os.IsNotExist(err) == tc.kept {
				t.Errorf("the directory is kept: %v, want %v", !tc.kept, tc.kept)
			}
			if said := strings.Contains(p.out.String(), fmt.Sprintf(`"pids":[%d]`, pid)); said != tc.kept {
				t.Errorf("the log names the process: %v, want %v", said, tc.kept)
			}
		})
	}
}

// TestRunDirectory: the directory that the environment names is used as it is, and kept.
func TestRunDirectory(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	for _, variable := range []string{"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} {
		cmd := exec.Command(builtDaemon(t), runArgs(nil, "sh", "-c", `echo "$PROMETHEUS_MULTIPROC_DIR $prometheus_multiproc_dir"`)...)
		cmd.Env = withoutDir(variable + "=" + dir)
		p := start(t, cmd)
		if err := p.wait(); err != nil {
			t.Error(err)
		}
		if !strings.Contains(p.out.String(), dir+" "+dir+"\n") {
			t.Errorf("with %s the command has other directories:\n%s", variable, p.out.String())
		}
	}
	if _, err := os.Stat(dir); err != nil {
		t.Error(err)
	}
}

// TestRunLinger: the last values of the command can be fetched, and a signal ends that.
func TestRunLinger(t *testing.T) {
	t.Parallel()
	d := startDaemon(t, nil, "run", "--dir", sourceDir(t), "--run.linger", "1h", "--", python(t, "prometheus_client"), "-c",
		`from prometheus_client import Counter; Counter("batch_rows_total", "Rows.").inc(12)`)
	d.await("the command's end", func(line string) bool { return strings.Contains(line, "serving the last values") })
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		return expect(v, map[string]float64{"batch_rows_total": 12})
	})
	d.stop()
}

// TestRunPID1: as the init of a pid namespace it reaps what others leave behind, passes
// signals on, and ends with its command.
func TestRunPID1(t *testing.T) {
	t.Parallel()
	needRoot(t)
	unshare := peer(t, "unshare", "apt-get install util-linux")
	args := append([]string{"--pid", "--fork", "--kill-child", "--mount-proc", builtDaemon(t)},
		runArgs(nil, python(t, "prometheus_client"), app(t, "signals.py"), "--orphans")...)
	cmd := exec.Command(unshare, args...)
	cmd.Env = withoutDir()
	p := start(t, cmd)
	zombies := p.await("the count of zombies", func(line string) bool { return strings.HasPrefix(line, "zombies ") })
	if zombies != "zombies 0" {
		t.Error(zombies)
	}
	p.await("the command", func(line string) bool { return strings.HasPrefix(line, "waiting ") })
	if n := strings.Count(p.out.String(), "reaped a process that was left behind"); n != 20 {
		t.Errorf("%d orphans were reaped, want 20", n)
	}
	inner := childrenOf(t, p.pid())
	if len(inner) != 1 {
		t.Fatalf("unshare has the children %v", inner)
	}
	for _, s := range []syscall.Signal{unix.SIGUSR1, unix.SIGTERM} {
		if err := syscall.Kill(inner[0], s); err != nil {
			t.Fatal(err)
		}
		p.await(s.String(), func(line string) bool {
			return line == map[syscall.Signal]string{unix.SIGUSR1: "got USR1", unix.SIGTERM: "got TERM"}[s]
		})
	}
	if code := exitCode(p.wait()); code != 3 {
		t.Errorf("exit code %d, want the command's 3", code)
	}
}

// TestRunCtrlC: at a terminal the key reaches the command once; it is not sent again by us.
func TestRunCtrlC(t *testing.T) {
	t.Parallel()
	cmd := exec.Command(builtDaemon(t), runArgs(nil, python(t, "prometheus_client"), app(t, "signals.py"))...)
	cmd.Env = withoutDir()
	p, keyboard := console(t, cmd)
	has := func(what string) func(string) bool {
		return func(line string) bool { return strings.Contains(line, what) }
	}
	p.await("the command", has("waiting "))
	for _, key := range []struct{ key, name string }{{"\x03", "INT"}, {"\x1c", "QUIT"}} {
		if _, err := keyboard.WriteString(key.key); err != nil {
			t.Fatal(err)
		}
		p.await(key.name, has("got "+key.name))
	}
	p.signal(unix.SIGTERM)
	if code := exitCode(p.wait()); code != 3 {
		t.Errorf("exit code %d, want the command's 3", code)
	}
	for _, name := range []string{"INT", "QUIT", "TERM"} {
		if n := strings.Count(p.out.String(), "got "+name); n != 1 {
			t.Errorf("%s arrived %d times", name, n)
		}
	}
}

// TestRunGunicornCtrlC: gunicorn at a terminal ends as it does without us.
func TestRunGunicornCtrlC(t *testing.T) {
	t.Parallel()
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	python(t, "flask", "prometheus_client")
	socket := filepath.Join(t.TempDir(), "app.sock")
	cmd := exec.Command(builtDaemon(t), runArgs(nil, gunicorn, "--workers", "2", "--bind", "unix:"+socket,
		"--chdir", filepath.Dir(app(t, "shop.py")), "shop:app")...)
	cmd.Env = withoutDir()
	p, keyboard := console(t, cmd)
	client := unixClient(t, socket)
	eventually(t, patience, func() error { return fetch(client, "/pid") })
	if _, err := keyboard.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(p.wait()); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if n := strings.Count(p.out.String(), "Handling signal: int"); n != 1 {
		t.Errorf("gunicorn handled the signal %d times", n)
	}
}

// TestRunCtrlZ: a shell sees us stop with the command, in the foreground and while reading
// from the terminal in the background, and fg lets both go on.
func TestRunCtrlZ(t *testing.T) {
	t.Parallel()
	bash := peer(t, "bash", "apt-get install bash")
	cmd := exec.Command(bash, "--norc", "--noprofile", "--noediting", "-i")
	cmd.Env = withoutDir("PS1=ready> ", "PS2=", "HISTFILE=")
	p, keyboard := console(t, cmd)
	at := 0
	// say types a line; see waits for something new on the screen.
	say := func(line string) {
		t.Helper()
		at = len(p.out.String())
		if _, err := keyboard.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	see := func(what string) {
		t.Helper()
		eventually(t, patience, func() error {
			if s := p.out.String()[at:]; !strings.Contains(s, what) {
				return fmt.Errorf("no %q, but %q", what, s)
			}
			return nil
		})
		at += strings.Index(p.out.String()[at:], what) + len(what)
	}
	call := strings.Join(append([]string{builtDaemon(t)}, runArgs([]string{"--log.level", "error"}, "cat")...), " ")
	see("ready> ")
	say(call + "; echo ended with $?\r")
	see("\r\n")
	say("one\r")
	see("one\r\none\r\n")
	say("\x1a")
	see("Stopped")
	see("ready> ")
	say("fg\r")
	see("cat")
	say("two\r")
	see("two\r\ntwo\r\n")
	say("\x04")
	see("ready> ")
	// In the background it may not read, until it is brought to the foreground.
	say(call + " &\r")
	see("ready> ")
	for range 100 {
		say("jobs\r")
		time.Sleep(50 * time.Millisecond)
		if strings.Contains(p.out.String()[at:], "Stopped") {
			break
		}
	}
	see("Stopped")
	say("fg\r")
	see("cat")
	say("three\r")
	see("three\r\nthree\r\n")
	say("\x03")
	see("ready> ")
	say("echo code $?\r")
	see("code 130\r\n")
	say("exit\r")
	_ = p.wait()
}
