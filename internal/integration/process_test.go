package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for something that takes milliseconds on an idle machine.
const patience = 60 * time.Second

// transcript collects what a process prints, for several goroutines.
type transcript struct {
	// mu guards buf and grown.
	mu sync.Mutex
	// buf is everything printed so far.
	buf []byte
	// grown is closed, and replaced, whenever buf grows.
	grown chan struct{}
}

func newTranscript() *transcript { return &transcript{grown: make(chan struct{})} }

// Write implements io.Writer.
func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.buf = append(tr.buf, p...)
	close(tr.grown)
	tr.grown = make(chan struct{})
	return len(p), nil
}

// lines returns the whole lines printed so far, and a channel that is closed when there
// is more.
func (tr *transcript) lines() ([]string, <-chan struct{}) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	end := bytes.LastIndexByte(tr.buf, '\n')
	if end < 0 {
		return nil, tr.grown
	}
	return strings.Split(string(tr.buf[:end]), "\n"), tr.grown
}

// String returns everything printed so far.
func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return string(tr.buf)
}

// tail returns the last bytes printed, for messages.
func (tr *transcript) tail() string {
	s := tr.String()
	if most := 4096; len(s) > most {
		s = "…" + s[len(s)-most:]
	}
	return s
}

// process is a child that is stopped, at the latest, when its test ends.
type process struct {
	t    *testing.T
	name string
	cmd  *exec.Cmd
	// out is what it prints on standard output and standard error.
	out *transcript
	// exited is closed after the child was waited for; then err is Wait's result.
	exited chan struct{}
	err    error
}

// start starts cmd. The child dies a little before the test binary's own time limit, so
// that a test that hangs leaves nothing behind.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, name: filepath.Base(cmd.Path), cmd: cmd, out: newTranscript(), exited: make(chan struct{})}
	if cmd.Stdout == nil {
		cmd.Stdout = p.out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.out
	}
	// Grandchildren hold the pipes too; Wait must not wait for them for ever.
	cmd.WaitDelay = 5 * time.Second
	// A group of its own, so that whatever the child has forked can be ended with it.
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	} else {
		own := *cmd.SysProcAttr // tests that run beside each other may share what they give
		cmd.SysProcAttr = &own
	}
	cmd.SysProcAttr.Setpgid = !cmd.SysProcAttr.Setsid // a session brings a group along
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", p.name, err)
	}
	// Ends when the child has ended, which the cleanup below sees to.
	go func() {
		p.err = cmd.Wait()
		close(p.exited)
	}()
	if deadline, ok := t.Deadline(); ok {
		timer := time.AfterFunc(time.Until(deadline)-10*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		t.Cleanup(func() { timer.Stop() })
	}
	t.Cleanup(func() {
		p.end(15 * time.Second)
		if t.Failed() {
			t.Logf("%s printed:\n%s", p.name, p.out.tail())
		}
	})
	return p
}

// pid returns the child's process id.
func (p *process) pid() int { return p.cmd.Process.Pid }

// signal sends sig to the child.
func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// wait waits for the child's end and returns how it ended.
func (p *process) wait() error {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.err
	case <-time.After(patience):
		p.t.Fatalf("%s does not end; it printed:\n%s", p.name, p.out.tail())
		return nil
	}
}

// terminate sends SIGTERM and waits for the end.
func (p *process) terminate() error {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	return p.wait()
}

// end ends the child and everything it has forked: by SIGTERM, and what is left after
// the grace time by SIGKILL. It reports whether the child ended by itself.
func (p *process) end(grace time.Duration) bool {
	tidy := true
	select {
	case <-p.exited:
	default:
		_ = p.cmd.Process.Signal(syscall.SIGTERM) // It may have ended just now.
		select {
		case <-p.exited:
		case <-time.After(grace):
			tidy = false
		}
	}
	// The group outlives its leader as long as there are others in it.
	_ = syscall.Kill(-p.pid(), syscall.SIGKILL)
	<-p.exited
	return tidy
}

// kill sends SIGKILL and waits for the end.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	_ = p.wait() // "signal: killed", or how it had ended before.
}

// await returns the first line that the child prints, or has printed, for which match
// is true.
func (p *process) await(what string, match func(line string) bool) string {
	p.t.Helper()
	return p.awaitWithin(patience, what, match)
}

// awaitWithin is await for what takes a while by itself.
func (p *process) awaitWithin(within time.Duration, what string, match func(line string) bool) string {
	p.t.Helper()
	timeout := time.After(within)
	seen := 0
	for {
		lines, grown := p.out.lines()
		for ; seen < len(lines); seen++ {
			if match(lines[seen]) {
				return lines[seen]
			}
		}
		select {
		case <-grown:
		case <-p.exited:
			if after, _ := p.out.lines(); len(after) > seen {
				continue
			}
			p.t.Fatalf("%s ended before %s (%v); it printed:\n%s", p.name, what, p.err, p.out.tail())
		case <-timeout:
			p.t.Fatalf("%s: no sign of %s; it printed:\n%s", p.name, what, p.out.tail())
		}
	}
}

// eventually repeats check until it returns nil, and fails the test with its last error
// when that takes too long.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	tick := time.NewTicker(25 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still wrong after %v: %v", within, err)
		}
		<-tick.C
	}
}

// missing skips the test, as a program it needs is not there; where CI=true it fails,
// so that no pipeline goes green without having run the test.
func missing(t *testing.T, what, hint string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is missing: %s", what, hint)
	}
	t.Skipf("%s is missing: %s", what, hint)
}

// peer returns the path of a program that the test needs. The hint says how to install it.
func peer(t *testing.T, name, hint string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name, hint)
	}
	return path
}

// needRoot skips the test for a user who may not do what it does.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "the right to act as another user", "run the test as root")
	}
}

// interpreters are tried in this order: the distribution's Python has the modules that
// the package manager installed.
var interpreters = []string{"/usr/bin/python3", "python3"}

// interpreterWith finds an interpreter that can import the modules.
var interpreterWith = func() func(modules string) (string, error) {
	var mu sync.Mutex
	known := map[string]string{}
	return func(modules string) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if path, ok := known[modules]; ok {
			return path, nil
		}
		for _, name := range interpreters {
			path, err := exec.LookPath(name)
			if err != nil {
				continue
			}
			if exec.Command(path, "-c", "import "+modules).Run() == nil {
				known[modules] = path
				return path, nil
			}
		}
		return "", fmt.Errorf("no Python here imports %s", modules)
	}
}()

// modulePackages says which Debian package holds a Python module.
var modulePackages = map[string]string{
	"prometheus_client": "python3-prometheus-client",
	"celery":            "python3-celery",
	"flask":             "python3-flask",
	"redis":             "python3-redis",
	"fastapi":           "python3-fastapi",
	"uvicorn":           "python3-uvicorn",
	"django":            "python3-django",
	"django_prometheus": "python3-django-prometheus",
}

// python returns an interpreter that can import the modules.
func python(t *testing.T, modules ...string) string {
	t.Helper()
	path, err := interpreterWith(strings.Join(modules, ", "))
	if err != nil {
		packages := make([]string, 0, len(modules))
		for _, m := range modules {
			packages = append(packages, modulePackages[m])
		}
		missing(t, err.Error(), "apt-get install "+strings.Join(packages, " "))
	}
	return path
}

// quickExit is for the environment of programs with the race detector, which otherwise
// sleep for a second before they exit.
const quickExit = "GORACE=atexit_sleep_ms=50"

// appEnv is the environment of the Python programs: this one, with dir for source files.
func appEnv(dir string, more ...string) []string {
	env := append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", "PYTHONUNBUFFERED=1", "PROMETHEUS_MULTIPROC_DIR="+dir)
	return append(env, more...)
}

// output runs a program to its end and returns its standard output. A failure is
// returned with what the program said on standard error.
func output(ctx context.Context, stdin []byte, path string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1", quickExit)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.Bytes(), fmt.Errorf("%s %s: %w\n%s", filepath.Base(path), strings.Join(args, " "), err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}
