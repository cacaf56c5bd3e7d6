package supervise

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The real-time signals that can be had: the C library keeps 32 and 33 for itself, and Go's
// runtime lets nobody have 34, as another C library uses that.
const (
	firstRealTime = 35
	lastRealTime  = 64
)

// terminal is the controlling terminal of this process. The methods of a nil terminal do
// nothing.
type terminal struct{ fd int }

// openTerminal returns the controlling terminal, or nil. From then on this process may
// write to it and move it to other groups whoever has it: the kernel would stop us for
// that, by SIGTTOU. The command, started before, does not inherit that.
func openTerminal() *terminal {
	fd, err := unix.Open("/dev/tty", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil // ENXIO: there is none
	}
	signal.Ignore(syscall.SIGTTOU)
	return &terminal{fd}
}

// foreground returns the process group that has the terminal, or -1.
func (t *terminal) foreground() int {
	if t == nil {
		return -1
	}
	group, err := unix.IoctlGetInt(t.fd, unix.TIOCGPGRP)
	if err != nil {
		return -1 // it has hung up
	}
	return group
}

// give gives the terminal to a process group of our session. If that fails, because the
// terminal has hung up or the group is gone, nothing is left to be done.
func (t *terminal) give(group int) {
	if t != nil {
		_ = unix.IoctlSetPointerInt(t.fd, unix.TIOCSPGRP, group)
	}
}

// takeBack gives the terminal to our own group if the other one has it.
func (t *terminal) takeBack(from int) {
	if t.foreground() == from {
		t.give(syscall.Getpgrp())
	}
}

// stopUs stops our process group, as the terminal stops one, and returns when it goes on.
// Where no shell is there to let it go on, it returns at once.
func (t *terminal) stopUs() {
	if orphaned() {
		return
	}
	// Not SIGTSTP: once Go has had a handler for it, its default action is gone.
	_ = syscall.Kill(0, unix.SIGSTOP)
	// Another thread may take the signal, a moment after this one has gone on.
	time.Sleep(10 * time.Millisecond)
}

// orphaned reports whether nobody outside our process group, but in our session, is the
// parent of one in it: then nobody would ever let it go on, and the kernel does not let the
// terminal stop it either (POSIX, "orphaned process group").
func orphaned() bool {
	group := syscall.Getpgrp()
	session, err := unix.Getsid(0)
	if err != nil {
		return true
	}
	for pid := os.Getppid(); pid > 0; pid = parentOf(pid) {
		g, err := unix.Getpgid(pid)
		if err != nil {
			return true
		}
		if g != group {
			s, err := unix.Getsid(pid)
			return err != nil || s != session
		}
	}
	return true
}

// parentOf returns the parent of a process, 0 if there is none that we can see.
func parentOf(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// proc_pid_stat(5): pid (comm) state ppid; comm may contain anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return 0
	}
	return parent
}
