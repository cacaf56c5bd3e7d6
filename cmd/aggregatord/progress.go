package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"aggregatord/internal/terminal"
)

// progress shows people at a terminal how far a long work has come, in one line that is
// overwritten and gone in the end. Work that is soon done shows nothing, and into a file
// nothing is ever shown. It is a writer to the same place: what is written through it, such as
// the log, does not mix with the line. It is safe for several goroutines.
type progress struct {
	out io.Writer
	// visible says that out is a terminal.
	visible bool
	// mu guards what is below, and the order of what is written to out.
	mu sync.Mutex
	// began is when the work began, drawn when the line was last drawn; zero: never.
	began, drawn time.Time
	// showing says that the line is on the screen.
	showing bool
}

const (
	// progressAfter is how long a work takes before it is worth a line.
	progressAfter = 400 * time.Millisecond
	// progressEvery is how often the line is drawn.
	progressEvery = 100 * time.Millisecond
	// eraseLine goes to the beginning of the line and empties it.
	eraseLine = "\r\x1b[K"
)

// newProgress returns a progress to w, which shows nothing unless w is a terminal.
func newProgress(w io.Writer) *progress {
	f, ok := w.(*os.File)
	return &progress{out: w, visible: ok && terminal.Interactive(f), began: time.Now()}
}

// Write implements io.Writer: for the log.
func (p *progress) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eraseLocked()
	return p.out.Write(b)
}

// step tells that so many of all are done.
func (p *progress) step(what string, done, all int) {
	if !p.visible { // asked first: it is called for each file
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if done == all {
		p.eraseLocked()
		return
	}
	p.drawLocked(func() string { return fmt.Sprintf("%s: %d of %d", what, done, all) })
}

// files is step for the first look at a directory's files.
func (p *progress) files(done, all int) { p.step("reading source files", done, all) }

// during shows how long a work takes of which no more is known. The work is over when end is
// called.
func (p *progress) during(what string) (end func()) {
	if !p.visible {
		return func() {}
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	// Ends with end.
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(progressEvery)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				p.mu.Lock()
				p.drawLocked(func() string {
					return fmt.Sprintf("%s: %v", what, time.Since(p.began).Truncate(progressEvery))
				})
				p.mu.Unlock()
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		p.end()
	}
}

// end takes the line away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eraseLocked()
}

// drawLocked draws the line if it is time for it. That a line cannot be drawn is no reason not
// to work.
func (p *progress) drawLocked(line func() string) {
	now := time.Now()
	if now.Sub(p.began) < progressAfter || now.Sub(p.drawn) < progressEvery {
		return
	}
	p.drawn, p.showing = now, true
	_, _ = io.WriteString(p.out, eraseLine+line())
}

func (p *progress) eraseLocked() {
	if p.showing {
		p.showing = false
		_, _ = io.WriteString(p.out, eraseLine)
	}
}
