package serve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/gzip"

	"aggregatord/internal/exposition"
)

// A Server answers requests. It is an http.Handler for tests and for other servers; Run
// serves listeners of its own. All methods may be used by several goroutines.
type Server struct {
	opts     Options
	partial  exposition.Encoder // of responses that are a part of what there is
	page     []byte             // the status page
	handlers atomic.Int64       // requests of any kind, and responses in the making
	// questions are those to the API that are under way or wait, answering has room for those
	// that are answered at once.
	questions atomic.Int64
	answering chan struct{}
	stopping  atomic.Bool
	// state is the Outcome of the last scrape, as far as note cares.
	state atomic.Value

	conns    conns
	webFile  *webFile
	verifier *verifier
	samples  sampler
	outgoing outgoing

	plains, wires buffers
	compressors   freeList[*gzip.Writer]
	// encodingWhole and encodingParts have room for the responses that are encoded at once: of
	// everything, and of a part.
	encodingWhole, encodingParts chan struct{}

	// lanesMu guards the rest, and what is in lanes.
	lanesMu sync.Mutex
	// lanes are where responses are made that scrapes may share, by kind.
	lanes map[laneKey]*lane
	// selections is how many responses of a part are in the making.
	selections int
	// trimming says that trimTimer runs, until trimAt.
	trimming  bool
	trimAt    time.Time
	trimTimer *time.Timer
}

// New returns a server. It starts nothing.
func New(opts Options) *Server {
	opts.fill()
	half := max(1, runtime.GOMAXPROCS(0)/2)
	s := &Server{
		opts: opts, lanes: map[laneKey]*lane{}, page: homePage(opts.TelemetryPath),
		answering: make(chan struct{}, half), encodingWhole: make(chan struct{}, 2*half), encodingParts: make(chan struct{}, half),
	}
	s.partial.CreatedSamples = opts.Encoder.CreatedSamples
	s.outgoing.most = opts.MaxSendingBytes
	s.webFile, s.verifier = &webFile{path: opts.WebConfigFile, explain: opts.ExplainWebConfig, log: opts.Logger}, newVerifier()
	return s
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
	defer s.stopTrimming()
	var err error
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
			ErrorLog:          log.New(errorLog{s}, "", 0),
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
	s.conns.closeUnused()
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
