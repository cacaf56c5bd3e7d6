package pool

import (
	"sync/atomic"
	"testing"
	"time"
)

// TestLockInTurn: who waits for a lock gets it soon, however often somebody else takes it again.
func TestLockInTurn(t *testing.T) {
	l := newLock()
	var taken atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() { // ends when stop is closed
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			default:
			}
			l.Lock()
			taken.Add(1)
			time.Sleep(time.Millisecond)
			l.Unlock()
		}
	}()
	for taken.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 20 {
		before := taken.Load()
		if !l.lockWithin(time.Minute) {
			t.Fatal("it gave up")
		}
		// One that had it, and one for each time that it asked whether to go on, on a busy machine.
		if n := taken.Load() - before; n > 50 {
			t.Errorf("somebody else got it %d times meanwhile", n)
		}
		l.Unlock()
	}
	// Who has it for too long is not waited for.
	close(stop)
	<-stopped
	l.Lock()
	if l.lockWithin(time.Millisecond) {
		t.Error("two have it")
	}
	if l.lockWhile(func() bool { return false }) || l.TryLock() {
		t.Error("two have it")
	}
	l.Unlock()
	if !l.TryLock() || l.heldFor() <= 0 {
		t.Error("nobody has it")
	}
	l.Unlock()
	if l.heldFor() != 0 {
		t.Error("somebody has it")
	}
}
