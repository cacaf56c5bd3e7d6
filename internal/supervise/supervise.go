// Package supervise runs one command in our place, as the init of a container and a
// shell do: it passes signals on, gives the command the terminal, reaps what others have
// left behind and tells how the command ended.
//
// Its one invariant: the command gets each signal once, as if it had been started without
// us. It has a process group of its own for that. Ctrl-C at a terminal goes to the group
// in the foreground, which is the command's, and not to us, who would pass on what the
// command has already; what is sent to us, or to our group, reaches the command through
// us.
//
// On Linux the command has the terminal if we have it: it is stopped by Ctrl-Z and then
// stops us, so that the shell notices, and gets the terminal back with the shell's fg.
// Elsewhere it runs without one.
package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Options of Start.
type Options struct {
	// Args are the command and its arguments. A command without a slash is looked for in
	// $PATH.
	Args []string
	// Env is the command's whole environment.
	Env []string
	// Logger may be nil.
	Logger *zap.Logger
}

// An Exit says how a command ended.
type Exit struct {
	// Code is the exit code; it means nothing if there is a Signal.
	Code int
	// Signal is what killed the command, or 0.
	Signal syscall.Signal
}

// Status is the number that a shell shows for the end: the exit code, or 128 and the
// number of the signal.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Code
}

// A Command is a command that was started. It must be waited for, once.
type Command struct {
	pid int
	log *zap.Logger
	// tty is the controlling terminal, nil without one.
	tty *terminal
}

// Errors of Start, beside others. Test with errors.Is.
var (
	ErrNotFound      = errors.New("command not found")
	ErrNotExecutable = errors.New("command cannot be executed")
)

// Start starts the command with the standard input, output and error of this process.
// From then on, and until it was waited for, this process must start and wait for no other
// child: all of them belong to Wait.
func Start(opts Options) (*Command, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	name := opts.Args[0]
	path, err := exec.LookPath(name)
	if err != nil && !errors.Is(err, exec.ErrDot) { // a dot in $PATH is there because somebody wants it
		return nil, startError(name, err)
	}
	pid, err := syscall.ForkExec(path, opts.Args, &syscall.ProcAttr{
		Env: opts.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		return nil, startError(name, err)
	}
	c := &Command{pid: pid, log: opts.Logger, tty: openTerminal()}
	if c.tty.foreground() == syscall.Getpgrp() {
		c.tty.give(pid)
	}
	return c, nil
}

// startError tells the errors apart for which shells have exit codes.
func startError(name string, err error) error {
	var cause error
	switch {
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		cause = ErrNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		cause = ErrNotExecutable
	default:
		return fmt.Errorf("start %q: %w", name, err)
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // without "exec:" and the name once more
	}
	return fmt.Errorf("start %q: %w: %w", name, cause, err)
}

// PID returns the command's process id, which is that of its process group, too.
func (c *Command) PID() int { return c.pid }

// A change is what wait4(2) tells of a child.
type change struct {
	pid    int
	status syscall.WaitStatus
}

// Wait passes the signals on until the command has ended. Meanwhile it reaps every child of
// this process: as PID 1, or as a subreaper, those that others have left behind.
func (c *Command) Wait(signals <-chan os.Signal) Exit {
	changes := make(chan change)
	// Ends when the command has.
	go func() {
		defer close(changes)
		for {
			ch := c.waitAny()
			changes <- ch
			if ch.pid == c.pid && !ch.status.Stopped() {
				return
			}
		}
	}()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGCONT {
				c.passStops(signals)
			}
			c.pass(s)
		case ch := <-changes:
			switch {
			case ch.pid != c.pid:
				if !ch.status.Stopped() {
					c.log.Debug("reaped a process that was left behind", zap.Int("pid", ch.pid))
				}
			case ch.status.Stopped():
				c.stopped(ch.status.StopSignal())
			default:
				c.tty.takeBack(c.pid)
				if ch.status.Signaled() {
					return Exit{Signal: ch.status.Signal()}
				}
				return Exit{Code: ch.status.ExitStatus()}
			}
		}
	}
}

// waitAny waits until a child has ended or stopped.
func (c *Command) waitAny() change {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WUNTRACED, nil)
		switch {
		case err == nil:
			return change{pid, status}
		case !errors.Is(err, syscall.EINTR):
			// ECHILD: somebody has waited for the command before us.
			panic(fmt.Sprintf("BUG: wait for process %d: %v", c.pid, err))
		}
	}
}

// together is how long signals that came together may come apart on their way through
// Go's runtime.
const together = 50 * time.Millisecond

// passStops passes on what comes with a SIGCONT, before it. The runtime tells of signals in
// the order of their numbers, not in that in which they came, so a stop that was ended at
// once would come last, and the command would be stopped for ever. Who means it the other
// way round finds the command running.
func (c *Command) passStops(signals <-chan os.Signal) {
	for end := time.After(together); ; {
		select {
		case s := <-signals:
			if s != syscall.SIGCONT {
				c.pass(s)
			}
		case <-end:
			return
		}
	}
}

// pass sends a signal to the command.
func (c *Command) pass(received os.Signal) {
	s, ok := received.(syscall.Signal)
	if !ok {
		return
	}
	target := c.pid
	if s == syscall.SIGCONT {
		// What stops at a terminal is the whole group.
		target = -c.pid
		if c.tty.foreground() == syscall.Getpgrp() {
			c.tty.give(c.pid)
		}
	}
	c.log.Debug("signal passed on", zap.Stringer("signal", s), zap.Int("pid", target))
	if err := syscall.Kill(target, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		// EPERM: it has become another user, as set-user-ID programs do.
		c.log.Error("a signal cannot be passed on", zap.Stringer("signal", s), zap.Int("pid", c.pid), zap.Error(err))
	}
}

// stopped follows the command when it stopped at the terminal, as Ctrl-Z makes it: the
// shell waits for us, not for the command. When the shell lets us go on, so does the
// command. A stop that has nothing to do with the terminal is between the command and
// whoever sent it.
func (c *Command) stopped(by syscall.Signal) {
	inFront := c.tty.foreground() == c.pid
	wantsTerminal := by == syscall.SIGTTIN || by == syscall.SIGTTOU
	switch {
	case c.tty == nil:
	case inFront && wantsTerminal:
		// It asked for the terminal in the moment before it had it.
		c.pass(syscall.SIGCONT)
	case inFront || wantsTerminal:
		c.tty.takeBack(c.pid)
		c.tty.stopUs()
		c.pass(syscall.SIGCONT)
	}
}
