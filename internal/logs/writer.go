package logs

import (
	"bytes"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

// A Writer hands lines to another writer, in their order, without waiting for it. It is safe
// for several goroutines.
type Writer struct {
	dst io.Writer
	max int
	// dropped counts lines that did not fit or could not be written.
	dropped atomic.Uint64

	// mu guards what follows.
	mu sync.Mutex
	// waiting is what has not been handed on, and spare the memory for the next.
	waiting, spare []byte
	// writing says that something is being handed on.
	writing bool
	closed  bool
	// wake has room for one: there is something to do. idle is closed when there is nothing, and
	// made anew when there is.
	wake chan struct{}
	idle chan struct{}
}

// DefaultBytes is how much may wait in a Writer.
const DefaultBytes = 1 << 20

// NewWriter returns a Writer to dst in which at most so many bytes wait; 0 means DefaultBytes.
// Run hands them on.
func NewWriter(dst io.Writer, most int) *Writer {
	if most == 0 {
		most = DefaultBytes
	}
	w := &Writer{dst: dst, max: most, wake: make(chan struct{}, 1), idle: make(chan struct{})}
	close(w.idle)
	return w
}

// Write takes a line, or drops it if there is no room. It never fails and never waits.
func (w *Writer) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed || len(w.waiting)+len(line) > w.max {
		w.dropped.Add(lines(line))
		return len(line), nil
	}
	if len(w.waiting) == 0 && !w.writing {
		w.idle = make(chan struct{})
	}
	w.waiting = append(w.waiting, line...)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return len(line), nil
}

// Dropped returns how many lines were dropped.
func (w *Writer) Dropped() uint64 { return w.dropped.Load() }

// Run hands lines on until Close is called and all are handed on. It may wait for dst for ever.
func (w *Writer) Run() {
	for {
		lines, done := w.take()
		if done {
			return
		}
		if lines == nil {
			<-w.wake
			continue
		}
		w.hand(lines)
	}
}

// take returns what is to be handed on next.
func (w *Writer) take() (text []byte, done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.waiting) == 0 {
		return nil, w.closed
	}
	text, w.waiting, w.spare, w.writing = w.waiting, w.spare[:0], nil, true
	return text, false
}

// keepBytes is how much memory a Writer keeps for later lines.
const keepBytes = 16 << 10

func (w *Writer) hand(text []byte) {
	if n, err := w.dst.Write(text); err != nil {
		w.dropped.Add(lines(text[min(n, len(text)):]))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.writing = false; cap(text) <= keepBytes {
		w.spare = text[:0]
	}
	if len(w.waiting) == 0 {
		close(w.idle)
	}
}

// Sync waits until everything is handed on, a second at most.
func (w *Writer) Sync() error {
	w.mu.Lock()
	idle := w.idle
	w.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(time.Second):
	}
	return nil
}

// Close has Run return when everything is handed on. Lines that come later are dropped.
func (w *Writer) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func lines(text []byte) uint64 { return uint64(max(1, bytes.Count(text, []byte{'\n'}))) }
