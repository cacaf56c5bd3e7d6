package pool

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// ErrSilent says that a pool does not answer: something in it has been waiting for longer than
// Options.Patience, as for a file system that does not answer.
var ErrSilent = errors.New("the directory does not answer; its file system may be gone")

// A lock is a mutex that knows since when somebody has it.
type lock struct {
	sync.Mutex
	since atomic.Int64 // after epoch, in nanoseconds; 0: nobody has it
}

var epoch = time.Now()

func (l *lock) Lock() {
	l.Mutex.Lock()
	l.since.Store(int64(time.Since(epoch)))
}

func (l *lock) TryLock() bool {
	ok := l.Mutex.TryLock()
	if ok {
		l.since.Store(int64(time.Since(epoch)))
	}
	return ok
}

func (l *lock) Unlock() {
	l.since.Store(0)
	l.Mutex.Unlock()
}

// heldFor is how long the one who has the lock has had it.
func (l *lock) heldFor() time.Duration {
	if since := l.since.Load(); since > 0 {
		return time.Since(epoch) - time.Duration(since)
	}
	return 0
}

// lockWhile takes the lock unless wanted says before that nobody wants it any more, and reports whether it
// did. A nil wanted means for ever.
func (l *lock) lockWhile(wanted func() bool) bool {
	if wanted == nil {
		l.Lock()
		return true
	}
	for wait := 50 * time.Microsecond; !l.TryLock(); wait = min(2*wait, time.Millisecond) {
		if !wanted() {
			return false
		}
		time.Sleep(wait)
	}
	return true
}

// lockWithin takes the lock unless somebody has it for longer than patience, and reports whether it did.
func (l *lock) lockWithin(patience time.Duration) bool {
	for wait := 50 * time.Microsecond; !l.TryLock(); wait = min(2*wait, 5*time.Millisecond) {
		if l.heldFor() > patience {
			return false
		}
		time.Sleep(wait)
	}
	return true
}

// IsSilent reports whether the pool does not answer: whoever asks it for a view would wait for as long as
// that lasts. It waits for nobody.
func (p *Pool) IsSilent() bool { return p.mu.heldFor() > p.patience }
