package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// A Server answers requests. It is an http.Handler for tests and for other servers; Run
// serves listeners of its own. All methods may be used by several goroutines.
type Server struct {
	opts     Options
	inFlight atomic.Int64 // scrapes
	handlers atomic.Int64 // requests of any kind
	// questions are those to the API that are under way.
	questions atomic.Int64
	stopping  atomic.Bool
	// state is the Outcome of the last scrape, as far as note cares.
	state atomic.Value

	// lanesMu guards lanes and what is in them.
	lanesMu sync.Mutex
	// lanes are the responses that scrapes may share, by kind: there are few kinds.
	lanes map[laneKey]*lane

	// mu guards unused.
	mu sync.Mutex
	// unused holds the connections on which nothing has been received yet.
	unused map[net.Conn]struct{}
}

// New returns a server. It starts nothing.
func New(opts Options) *Server {
	opts.fill()
	return &Server{opts: opts, unused: make(map[net.Conn]struct{}), lanes: map[laneKey]*lane{}}
}

// Run serves on the listeners until ctx is done or a listener fails, then stops: it is
// not ready from then on, accepts nobody new, and gives the requests in flight
// ShutdownTimeout to finish. It closes the listeners in any case, and when it returns,
// its goroutines have ended.
//
// It returns nil if every request was finished. Call it once.
func (s *Server) Run(ctx context.Context, listeners ...net.Listener) error {
	if len(listeners) == 0 {
		return errors.New("serve: no listener")
	}
	// Requests outlive ctx, which only says that it is time to stop.
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	errorLog, err := zap.NewStdLogAt(s.opts.Logger, zap.WarnLevel)
	if err != nil {
		panic(fmt.Sprintf("BUG: log level: %v", err))
	}
	var serving sync.WaitGroup
	failed := make(chan error, len(listeners))
	// Each listener has a server of its own: exporter-toolkit wraps the handler of the
	// server that it is given, and would wrap that of a shared one several times.
	servers := make([]*http.Server, len(listeners))
	for i, l := range listeners {
		server := &http.Server{
			Handler:           s,
			BaseContext:       func(net.Listener) context.Context { return requests },
			ReadHeaderTimeout: s.opts.ReadHeaderTimeout,
			ReadTimeout:       max(s.opts.ReadTimeout, 0),
			WriteTimeout:      max(s.opts.WriteTimeout, 0),
			IdleTimeout:       s.opts.IdleTimeout, // 0 would be ReadTimeout, so none is below it
			MaxHeaderBytes:    s.opts.MaxHeaderBytes,
			ErrorLog:          errorLog,
			ConnState:         s.connState,
		}
		servers[i] = server
		// Accepts connections until server is shut down or l fails.
		serving.Go(func() {
			if err := s.accept(server, l); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve on %v: %w", l.Addr(), err)
			}
		})
	}
	select {
	case <-ctx.Done():
		err = nil
	case err = <-failed:
	}
	s.stopping.Store(true)
	err = errors.Join(err, s.stop(servers, cut))
	// A listener whose server failed before it accepted anybody is nobody's yet.
	for _, l := range listeners {
		l.Close() //nolint:errcheck // closed already, as a rule
	}
	serving.Wait()
	return err
}

// stop lets the requests in flight finish, and cuts off those that take too long.
func (s *Server) stop(servers []*http.Server, cut context.CancelFunc) error {
	ctx, cancel := context.WithTimeout(context.Background(), s.opts.ShutdownTimeout)
	defer cancel()
	s.closeUnused()
	err := each(servers, func(server *http.Server) error { return server.Shutdown(ctx) })
	if err == nil {
		return nil
	}
	err = fmt.Errorf("requests were cut off after %v: %w", s.opts.ShutdownTimeout, err)
	// Connections first, so that no handler that is told to give up answers one of them.
	err = errors.Join(err, each(servers, (*http.Server).Close))
	cut()
	// Close does not wait for handlers. Theirs are snapshots that others will take away.
	const patience, step = time.Second, 5 * time.Millisecond
	for waited := time.Duration(0); s.handlers.Load() > 0; waited += step {
		if waited >= patience {
			return errors.Join(err, fmt.Errorf("%d requests do not end", s.handlers.Load()))
		}
		time.Sleep(step)
	}
	return err
}

// each calls f for all servers at once and returns the first error.
func each(servers []*http.Server, f func(*http.Server) error) error {
	errs := make(chan error, len(servers))
	for _, server := range servers {
		go func() { errs <- f(server) }() // ends with f
	}
	var first error
	for range servers {
		first = cmp.Or(first, <-errs)
	}
	return first
}

// connState keeps unused up to date.
func (s *Server) connState(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == http.StateNew {
		s.unused[c] = struct{}{}
	} else {
		delete(s.unused, c)
	}
}

// closeUnused closes the connections on which no request has begun, as browsers open them
// in advance. http.Server.Shutdown would wait up to five seconds for one.
func (s *Server) closeUnused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.unused {
		c.Close() //nolint:errcheck // nobody uses it
	}
}
