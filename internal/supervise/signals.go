package supervise

import (
	"os"
	"os/signal"
	"syscall"
)

// Passed lists the signals that a command should get through us, for signal.Notify: all
// that people and service managers send, the real-time ones of Linux among them. Not
// those that tell of our own children and connections (SIGCHLD, SIGPIPE, SIGURG), nor those that
// mean us whatever we do (SIGKILL, SIGSTOP), nor those of a crash. Those that we were
// started to ignore, as SIGHUP under nohup, the command ignores as well, so they are left
// out.
func Passed() []os.Signal {
	all := []syscall.Signal{
		syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGALRM, syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU,
	}
	for n := firstRealTime; n <= lastRealTime; n++ {
		all = append(all, syscall.Signal(n))
	}
	var passed []os.Signal
	for _, s := range all {
		if !signal.Ignored(s) {
			passed = append(passed, s)
		}
	}
	return passed
}
