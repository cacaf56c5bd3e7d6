package pool

import (
	"errors"
	"sync/atomic"
	"time"
)

// ErrSilent says that a pool does not answer: something in it has been waiting for longer than
// Options.Patience, as for a file system that does not answer.
var ErrSilent = errors.New("the directory does not answer; its file system may be gone")

// A lock is a mutex that knows since when somebody has it, and for which one can wait for a time. Whoever
// waits gets it in the order of asking: a fold that takes it again and again keeps no scrape from it, as
// happens where one asks a [sync.Mutex] by TryLock.
type lock struct {
	// holder has something in it while somebody has the lock. A channel lets those who wait to send in one
	// after the other, and nobody else before them.
	holder chan struct{}
	since  atomic.Int64 // after epoch, in nanoseconds; 0: nobody has it
}

func newLock() lock { return lock{holder: make(chan struct{}, 1)} }

var epoch = time.Now()

func (l *lock) Lock() {
	l.holder <- struct{}{}
	l.taken()
}

func (l *lock) taken() { l.since.Store(int64(time.Since(epoch))) }

func (l *lock) TryLock() bool {
	select {
	case l.holder <- struct{}{}:
		l.taken()
		return true
	default:
		return false
	}
}

func (l *lock) Unlock() {
	l.since.Store(0)
	select {
	case <-l.holder:
	default:
		panic("BUG: unlock of a lock that nobody has")
	}
}

// heldFor is how long the one who has the lock has had it.
func (l *lock) heldFor() time.Duration {
	if since := l.since.Load(); since > 0 {
		return time.Since(epoch) - time.Duration(since)
	}
	return 0
}

// lockWhile takes the lock unless wanted says before that nobody wants it any more, and reports whether it
// did. A nil wanted means for ever. wanted is called every waitFor; who is asked loses their place among
// those who wait, of whom there are a few.
func (l *lock) lockWhile(wanted func() bool) bool {
	if wanted == nil {
		l.Lock()
		return true
	}
	if l.TryLock() {
		return true
	}
	tick := time.NewTicker(waitFor)
	defer tick.Stop()
	for {
		select {
		case l.holder <- struct{}{}:
			l.taken()
			return true
		case <-tick.C:
			if !wanted() {
				return false
			}
		}
	}
}

// waitFor is how long somebody waits for a lock before they ask whether they still want it.
const waitFor = 20 * time.Millisecond

// lockWithin takes the lock unless somebody has it for longer than patience, and reports whether it did.
func (l *lock) lockWithin(patience time.Duration) bool {
	return l.lockWhile(func() bool { return l.heldFor() <= patience })
}

// IsSilent reports whether the pool does not answer: whoever asks it for a view would wait for as long as
// that lasts. It waits for nobody.
func (p *Pool) IsSilent() bool { return p.mu.heldFor() > p.patience }
