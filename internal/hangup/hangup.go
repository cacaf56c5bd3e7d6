// Package hangup keeps a SIGHUP that comes while the program starts from ending it: a service
// manager may send the signal as soon as the process is there, long before main runs.
//
// The invariant of the room: it imports nothing but what os/signal needs anyway. Packages are
// initialized in the order of their import paths, each as soon as what it imports is, so this one
// comes right behind os/signal, and before whatever takes time. What no program in Go can catch is a
// signal that comes before that: while the kernel loads the program, and the runtime and the few
// packages below os/signal begin.
package hangup

import (
	"os"
	"os/signal"
	"syscall"
)

// early is made while packages are initialized: that is what the package is for.
var early = catch()

func catch() chan os.Signal {
	c := make(chan os.Signal, 1)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(c, syscall.SIGHUP)
	}
	return c
}

// Early is where SIGHUP is sent since the program began, until the caller stops that by signal.Stop.
// One that came before Early was called is in it. Nothing is sent to it if the program was started
// to ignore SIGHUP, as under nohup.
func Early() chan os.Signal { return early }
