package daemon

import (
	"sync"
	"sync/atomic"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
)

// manager tells systemd how the daemon is, in the protocol of sd_notify(3): READY=1 when all
// there is has been read, STOPPING=1 when no more requests are taken, and WATCHDOG=1 as long
// as pools are tended, so that a daemon that hangs is killed and started again. A nil
// manager tells nothing, and so does one without $NOTIFY_SOCKET.
type manager struct {
	log *zap.Logger
	// every is how long after a sign of life the next is due; 0 without a watchdog.
	every time.Duration
	// mu guards next, which is when it is due.
	mu   sync.Mutex
	next time.Time
	// ready says that READY=1 was told.
	ready atomic.Bool
}

// newManager returns what speaks to systemd, if opts want that.
func newManager(opts Options) *manager {
	if !opts.SystemdNotify {
		return nil
	}
	s := &manager{log: opts.Logger}
	if within, err := systemd.SdWatchdogEnabled(false); err != nil {
		s.log.Warn("the watchdog of systemd is left alone", zap.Error(err))
	} else {
		s.every = within / 3
	}
	return s
}

func (s *manager) tell(state string) {
	if _, err := systemd.SdNotify(false, state); err != nil {
		s.log.Warn("systemd cannot be notified", zap.String("state", state), zap.Error(err))
	}
}

// beat is a sign of life, told now and then, by any goroutine. The first one with ready tells that, too.
func (s *manager) beat(ready bool) {
	if s == nil {
		return
	}
	if ready && !s.ready.Swap(true) {
		s.tell(systemd.SdNotifyReady)
	}
	if s.due(time.Now()) {
		s.tell(systemd.SdNotifyWatchdog)
	}
}

func (s *manager) due(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.every == 0 || now.Before(s.next) {
		return false
	}
	s.next = now.Add(s.every)
	return true
}

// stopping tells that the daemon is about to end.
func (s *manager) stopping() {
	if s != nil {
		s.tell(systemd.SdNotifyStopping)
	}
}
