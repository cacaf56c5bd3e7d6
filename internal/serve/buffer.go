package serve

import (
	"slices"
	"sync"
	"time"
)

// A buffer holds the bytes of a response. It is an io.Writer that appends.
type buffer struct {
	b []byte
	// since is since when nobody uses it; zero if its pages were given back since.
	since time.Time
}

func (b *buffer) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

// A freeList keeps some things for their next use. Unlike a sync.Pool it keeps them over
// garbage collections: responses are large, and a collection that took them away would make
// the next scrape allocate what soon makes the next collection due.
type freeList[T any] struct {
	mu   sync.Mutex
	free []T
}

// freeMost is how many things a freeList keeps: those of the two or three responses that
// are usually in the making or on their way.
const freeMost = 3

// get returns a thing that was put, if there is one.
func (l *freeList[T]) get() (thing T, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		thing, l.free = l.free[n-1], l.free[:n-1]
		return thing, true
	}
	return thing, false
}

func (l *freeList[T]) put(thing T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) < freeMost {
		l.free = append(l.free, thing)
	}
}

// buffers keeps buffers for their next use, as long as they are no larger than twice what
// was needed of late. A larger one is given back: a pool that once had an exposition of
// 150 MB does not hold on to it. Of one that is large by itself the pages are given back soon: they
// may be a third of what the daemon needs between two scrapes.
type buffers struct {
	// mu guards what follows.
	mu   sync.Mutex
	free []*buffer
	// need is the size of the largest response since the time since, and before that of the
	// largest in the period before it.
	need, before int
	since        time.Time
	// dropped counts the bytes given back, until trim is asked.
	dropped int
}

const (
	// needFor is the period after which a need is forgotten, at most twice it.
	needFor = time.Minute
	// needSlack is what a buffer may always be larger than twice the need.
	needSlack = 64 << 10
	// The pages of a buffer of more than largeBytes are given back after largeFor.
	largeBytes = 8 << 20
	largeFor   = time.Second
)

// get returns an empty buffer.
func (l *buffers) get() *buffer {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := len(l.free)
	if n == 0 {
		return new(buffer)
	}
	b := l.free[n-1]
	l.free = l.free[:n-1]
	b.b = b.b[:0]
	return b
}

// put takes a buffer that nobody uses any more.
func (l *buffers) put(b *buffer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.need = max(l.need, len(b.b))
	b.since = time.Now()
	l.free = append(l.free, b)
	l.trimLocked(b.since)
}

// trim gives back what is too large by now, and returns how many bytes were given back since
// it was last asked, and whether there is anything left to trim later.
func (l *buffers) trim() (dropped int, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.trimLocked(now)
	dropped, l.dropped = l.dropped, 0
	for _, b := range l.free {
		if b.large() && now.Sub(b.since) >= largeFor {
			forgetPages(b.b)
			b.since = time.Time{}
		}
	}
	return dropped, len(l.free) > 0
}

// large reports whether it has a buffer whose pages are soon given back.
func (l *buffers) large() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.free, (*buffer).large)
}

func (b *buffer) large() bool { return cap(b.b) > largeBytes && !b.since.IsZero() }

func (l *buffers) trimLocked(now time.Time) {
	if l.since.IsZero() {
		l.since = now
	}
	if age := now.Sub(l.since); age >= 2*needFor {
		l.need, l.before, l.since = 0, 0, now
	} else if age >= needFor {
		l.need, l.before, l.since = 0, l.need, now
	}
	most := 2*max(l.need, l.before) + needSlack
	kept := l.free[:0]
	for _, b := range l.free {
		if len(kept) < freeMost && cap(b.b) <= most {
			kept = append(kept, b)
		} else {
			l.dropped += cap(b.b)
		}
	}
	clear(l.free[len(kept):])
	l.free = kept
}
