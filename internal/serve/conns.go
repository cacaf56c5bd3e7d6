package serve

import (
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// Closed says why a connection was closed before its client or a time limit closed it. It is
// short and constant, for use as a metric label.
type Closed string

// The reasons.
const (
	// ClosedIdle: another client connected, and this one was idle or had not said anything.
	ClosedIdle Closed = "idle"
	// ClosedBusy: another client connected, and none of the address with the most connections
	// was idle; this one was the oldest.
	ClosedBusy Closed = "busy"
	// ClosedSlow: responses on their way took too much memory, and this was the oldest.
	ClosedSlow Closed = "slow"
)

// ClosedReasons lists all reasons, so that a counter can be made for each.
func ClosedReasons() []Closed { return []Closed{ClosedIdle, ClosedBusy, ClosedSlow} }

// DefaultMaxConnections is how many clients may be connected unless the options say so: 512,
// and no more than a sixteenth of the files that the process may open, so that files and the
// archive have descriptors whatever clients do.
func DefaultMaxConnections() int {
	const most, least = 512, 16
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 64
	}
	return int(min(most, max(least, uint64(limit.Cur)/16))) //nolint:unconvert // signed on some systems
}

// conns keeps how many clients are connected within a bound.
type conns struct {
	// mu guards all.
	mu  sync.Mutex
	all map[net.Conn]*connInfo
}

type connInfo struct {
	address string
	state   http.ConnState
	// since is when it came to be in that state.
	since time.Time
}

// idle reports whether no request is under way.
func (c *connInfo) idle() bool { return c.state != http.StateActive }

// connState is http.Server.ConnState.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	victim, why := s.conns.note(c, state, s.opts.MaxConnections)
	if victim != nil {
		closeNow(victim)
		s.opts.OnConnectionClosed(why)
	}
}

// note keeps the state of a connection. If there are more than most, it returns one to close:
// one of the address that has the most, the longest idle of these or, if all are busy, the
// longest busy. So a client that opens many connections takes its own places first.
func (k *conns) note(c net.Conn, state http.ConnState, most int) (victim net.Conn, why Closed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(k.all, c)
		return nil, ""
	case http.StateNew:
		if k.all == nil {
			k.all = map[net.Conn]*connInfo{}
		}
		k.all[c] = &connInfo{address: addressOf(c.RemoteAddr())}
	}
	info := k.all[c]
	if info == nil {
		return nil, "" // it has been chosen before
	}
	info.state, info.since = state, time.Now()
	if state != http.StateNew || most <= 0 || len(k.all) <= most {
		return nil, ""
	}
	return k.victimLocked(c)
}

func (k *conns) victimLocked(newest net.Conn) (victim net.Conn, why Closed) {
	counts := map[string]int{}
	for _, info := range k.all {
		counts[info.address]++
	}
	var chosen *connInfo
	better := func(a, b *connInfo) bool {
		if x, y := counts[a.address], counts[b.address]; x != y {
			return x > y
		}
		if a.idle() != b.idle() {
			return a.idle()
		}
		return a.since.Before(b.since)
	}
	for c, info := range k.all {
		if c != newest && (chosen == nil || better(info, chosen)) {
			victim, chosen = c, info
		}
	}
	if chosen == nil {
		return nil, ""
	}
	delete(k.all, victim)
	if chosen.idle() {
		return victim, ClosedIdle
	}
	return victim, ClosedBusy
}

// count returns how many clients are connected.
func (k *conns) count() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.all)
}

// Connections returns how many clients are connected.
func (s *Server) Connections() int { return s.conns.count() }

// closeUnused closes the connections on which no request has begun, as browsers open them
// in advance. http.Server.Shutdown would wait up to five seconds for one.
func (k *conns) closeUnused() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c, info := range k.all {
		if info.state == http.StateNew {
			closeNow(c)
		}
	}
}

// closeNow closes a connection without a word: tls.Conn.Close would wait for a client that
// does not read.
func closeNow(c net.Conn) {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	c.Close() //nolint:errcheck // nobody waits for it
}

// addressOf is the client that an address stands for: the IP address without the port, of IPv6
// the network of 64 bits that one host usually has for itself.
func addressOf(a net.Addr) string {
	if a == nil {
		return ""
	}
	return clientOf(a.String())
}

func clientOf(remote string) string {
	p, err := netip.ParseAddrPort(remote)
	if err != nil {
		return "unix"
	}
	ip := p.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if prefix, err := ip.Prefix(64); err == nil {
			return prefix.Addr().String()
		}
	}
	return ip.String()
}

// takeIdle returns the connection that has been idle longest, which is to be closed, or nil.
func (k *conns) takeIdle() (victim net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c, info := range k.all {
		if info.idle() && (victim == nil || info.since.Before(k.all[victim].since)) {
			victim = c
		}
	}
	delete(k.all, victim)
	return victim
}
