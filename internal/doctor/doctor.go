// Package doctor finds out why there is nothing to see: it looks at a directory of source
// files, at the processes that should write there and at the daemon that should read it, as
// far as it may, and tells what it finds and what to do.
//
// Its one invariant: it changes nothing, and claims no more than it has seen. Where it may
// not look, it says that.
package doctor

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// A Level says how bad a finding is.
type Level string

// The levels. Only a Problem keeps metrics from being right.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Problem Level = "problem"
)

// A Finding is one thing that was looked at.
type Finding struct {
	Level Level `json:"level"`
	// Check names what was looked at, in a word or two.
	Check string `json:"check"`
	// Found is what was seen, in a sentence.
	Found string `json:"found"`
	// Advice is what to do about it; empty if that is nothing.
	Advice string `json:"advice,omitempty"`
}

// Options of Examine.
type Options struct {
	// Dir is the directory of source files. Empty: that of the process PID or, without one, that
	// of the daemon if it has one only.
	Dir string
	// PID is a process that should write there, the master of a pool for instance; its
	// descendants are looked at as well. 0: all processes are searched.
	PID int
	// Daemon is where the daemon should answer; nil: it is not asked.
	Daemon *Daemon
	// Version is that of this program; a daemon of another one is told of. Empty: any.
	Version string
	// Timeout is how long the daemon may take to answer. Default: 3 s.
	Timeout time.Duration
	// procRoot is where proc(5) is; tests have others.
	procRoot string
}

// A Daemon is where a daemon should answer.
type Daemon struct {
	// URL is its address, without a path.
	URL *url.URL
	// Name is what to call it: the URL without a password, for instance.
	Name string
	// Client asks it.
	Client *http.Client
	// Given says that somebody named it, so that it is a problem if nobody answers.
	Given bool
}

// Examine looks at everything and returns what it found, in the order in which metrics come
// about: the directory, who writes, what they wrote, who reads.
func Examine(ctx context.Context, opts Options) []Finding {
	if opts.Timeout == 0 {
		opts.Timeout = 3 * time.Second
	}
	if opts.procRoot == "" {
		opts.procRoot = "/proc"
	}
	e := &examination{opts: opts}
	e.processes = readProcesses(opts.procRoot)
	if e.opts.PID != 0 && e.opts.Dir == "" {
		e.dirOfProcess()
	}
	// The daemon is asked first, as what it says of itself is better than a guess.
	var a *answered
	if opts.Daemon != nil {
		a = e.ask(ctx)
	}
	ofDaemon := e.findings
	e.findings = nil
	there := false
	switch {
	case e.opts.Dir != "":
		there = e.directory()
	case a != nil && a.Discovery != nil && e.opts.PID == 0:
		e.allPools(a)
	default:
		e.notNamed()
	}
	if there {
		e.fileSystem()
		e.liveness(a)
	}
	if e.opts.Dir != "" || e.opts.PID != 0 {
		e.workers(there)
	}
	if there {
		e.files()
		e.holder(a)
	}
	return append(e.findings, ofDaemon...)
}

// examination is what Examine knows so far.
type examination struct {
	opts      Options
	processes []process
	findings  []Finding
	// writers are the processes that have source files of the directory mapped or open for
	// writing.
	writers []process
}

func (e *examination) add(level Level, check, found, advice string) {
	e.findings = append(e.findings, Finding{level, check, found, advice})
}

func (e *examination) ok(check, format string, args ...any) {
	e.add(OK, check, fmt.Sprintf(format, args...), "")
}

// plural is "1 file" or "2 files".
func plural(n int, thing string) string {
	if n == 1 || thing == "series" {
		return fmt.Sprintf("%d %s", n, thing)
	}
	if thing == "process" {
		return fmt.Sprintf("%d processes", n)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// verb is the form that goes with the number.
func verb(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
