package serve

import (
	"bytes"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A sampler says which log lines of a kind are written: the first few of each minute. What is
// left out is told by the next one that is written.
type sampler struct {
	// mu guards what follows.
	mu   sync.Mutex
	seen map[sampleKey]*sampled
}

type sampleKey struct{ kind, address string }

type sampled struct {
	since   time.Time
	written int
	left    int // out since the last one written
}

const (
	// sampleEvery is the period in which a few lines of a kind are written.
	sampleEvery = time.Minute
	// maxSampled bounds the kinds and addresses that are told apart.
	maxSampled = 256
)

// allow reports whether a line may be written, at most so many a period, and how many of the
// same kind were left out before it.
func (s *sampler) allow(kind, address string, most int) (leftOut int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	key := sampleKey{kind, address}
	e := s.seen[key]
	if e == nil {
		if len(s.seen) >= maxSampled {
			for k, old := range s.seen {
				if now.Sub(old.since) >= sampleEvery {
					delete(s.seen, k)
				}
			}
		}
		if len(s.seen) >= maxSampled {
			key.address = "" // of any address
			e = s.seen[key]
		}
		if e == nil {
			if s.seen == nil {
				s.seen = map[sampleKey]*sampled{}
			}
			e = &sampled{since: now}
			s.seen[key] = e
		}
	}
	if now.Sub(e.since) >= sampleEvery {
		e.since, e.written = now, 0
	}
	if e.written >= most {
		e.left++
		return 0, false
	}
	e.written++
	leftOut, e.left = e.left, 0
	return leftOut, true
}

// errorLog takes what net/http has to say.
type errorLog struct{ s *Server }

// Write implements io.Writer. Each call is one message.
func (l errorLog) Write(p []byte) (int, error) {
	text := string(bytes.TrimSpace(p))
	kind, address, cause := splitHTTPError(text)
	if kind == acceptError {
		// There are no descriptors. Idle clients do not need theirs.
		l.s.closeIdle(8)
	}
	logger := l.s.opts.Logger
	if kind == handshakeError && saidNothing(cause) {
		// Whoever asks whether the port is open connects and leaves.
		logger.Debug("http server: connection without a request", zap.String("client", address), zap.String("error", cause))
		return len(p), nil
	}
	if left, ok := l.s.samples.allow(kind, address, 1); ok {
		fields := []zap.Field{zap.String("kind", kind), zap.String("client", address), zap.String("error", cause)}
		logger.Warn("http server", append(fields, leftOut(left)...)...)
	}
	return len(p), nil
}

const (
	handshakeError = "TLS handshake error"
	acceptError    = "Accept error"
)

// splitHTTPError takes a message of net/http apart: what kind it is, which client it speaks of
// and the rest.
func splitHTTPError(text string) (kind, address, cause string) {
	text = strings.TrimPrefix(text, "http: ")
	if rest, ok := strings.CutPrefix(text, handshakeError+" from "); ok {
		remote, cause, _ := strings.Cut(rest, ": ")
		return handshakeError, clientOf(remote), cause
	}
	kind, cause, _ = strings.Cut(text, ": ")
	if first, remote, ok := strings.Cut(kind, " from "); ok {
		return first, clientOf(remote), cause
	}
	return kind, "", cause
}

// saidNothing reports whether a handshake failed because the client sent nothing.
func saidNothing(cause string) bool {
	return cause == "EOF" || strings.HasSuffix(cause, "connection reset by peer") || strings.HasSuffix(cause, "i/o timeout")
}

// closeIdle closes some idle connections.
func (s *Server) closeIdle(n int) {
	for range n {
		victim := s.conns.takeIdle()
		if victim == nil {
			return
		}
		closeNow(victim)
		s.opts.OnConnectionClosed(ClosedIdle)
	}
}
