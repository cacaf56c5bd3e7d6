package supervise

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// wait waits for a command that gets the signals in that order, and fails if it does not
// end.
func wait(t *testing.T, signals []os.Signal, args ...string) Exit {
	t.Helper()
	c, err := Start(Options{Args: args, Env: os.Environ()})
	if err != nil {
		t.Fatal(err)
	}
	queue := make(chan os.Signal, len(signals))
	for _, s := range signals {
		queue <- s
	}
	hung := time.AfterFunc(30*time.Second, func() {
		t.Errorf("%q does not end after %v", args, signals)
		_ = syscall.Kill(-c.PID(), syscall.SIGKILL)
	})
	defer hung.Stop()
	return c.Wait(queue)
}

// TestStopAndContinue: a stop that was ended at once does not last, in whatever order the
// runtime tells of the two.
func TestStopAndContinue(t *testing.T) {
	for _, signals := range [][]os.Signal{
		{syscall.SIGTSTP, syscall.SIGCONT},
		{syscall.SIGCONT, syscall.SIGTSTP},
		{syscall.SIGCONT, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGCONT, syscall.SIGTTOU},
	} {
		if exit := wait(t, signals, "sleep", "0.3"); exit != (Exit{}) {
			t.Errorf("after %v: %+v", signals, exit)
		}
	}
	// What ends a command is not kept from it meanwhile.
	if exit := wait(t, []os.Signal{syscall.SIGCONT, syscall.SIGTERM}, "sleep", "60"); exit != (Exit{Signal: syscall.SIGTERM}) {
		t.Errorf("after SIGTERM: %+v", exit)
	}
}
