// Package daemon wires the rooms together: it owns every long-lived goroutine and the
// order in which they stop.
//
//	goroutine    started by  ends when              speaks through
//	tend loop    Run         its context is done    nothing: it logs what goes wrong
//	notifiers    Run         its context is done    a channel that wakes the tend loop
//	reload loop  Run         its context is done    Collector.SetPolicy, and the log
//	HTTP server  Run         Shutdown returns       http.Server
//
// Nothing in the order of stopping is needed for correctness; a tidy stop is only quick
// and quiet.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/config"
	"aggregatord/internal/exposition"
	"aggregatord/internal/pool"
	"aggregatord/internal/serve"
	"aggregatord/internal/status"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
	"aggregatord/internal/watch"
)

// Options of Run. Zero fields mean the defaults given.
type Options struct {
	// Pool says which directories to read; its Logger, Metrics and Policy are Run's to fill.
	Pool pool.Options
	// ListenAddresses are host:port pairs, or unix:PATH. Default: DefaultListenAddress.
	ListenAddresses []string
	// SocketMode is the mode of unix sockets. Default: DefaultSocketMode.
	SocketMode fs.FileMode
	// SystemdSocket listens on the sockets that systemd has opened (sd_listen_fds(3)) in
	// place of ListenAddresses.
	SystemdSocket bool
	// Web says how requests are served. Run fills its Gatherer, Encoder, TelemetryPath,
	// Ready, Logger, Observe, OnRefused, Reload, API, OnQuestion and ShutdownTimeout.
	Web serve.Options
	// TelemetryPath is where the metrics are. Default: /metrics.
	TelemetryPath string
	// TendInterval is how often processes are asked for signs of life. A death is noticed
	// within it, or at the next scrape where live gauges depend on it. Default: 1 s.
	TendInterval time.Duration
	// RescanInterval is how often directories are listed although nothing told that they
	// changed. Default: 10 s.
	RescanInterval time.Duration
	// ShutdownTimeout is how long scrapes in flight may take once Run's context is done.
	// Default: 10 s.
	ShutdownTimeout time.Duration
	// GCPercent is given to debug.SetGCPercent a moment after the first scan, which makes much
	// more garbage than all that follows, or less where the heap is large. 0 leaves it as it is.
	GCPercent int
	// Config is what the configuration file says. What it says of pools and of the archive
	// must be in Pool already. Its file is loaded again when it changes. Default: no file.
	Config *config.Config
	// ByFlag are the keys of the file that flags override, such as pools and archive.dir: a
	// change of these in the file means nothing.
	ByFlag []string
	// ReloadSignals asks for the file to be loaded again. May be nil.
	ReloadSignals <-chan os.Signal
	// EnableLifecycle lets a POST to /-/reload do the same.
	EnableLifecycle bool
	// SystemdNotify tells systemd, or whoever set $NOTIFY_SOCKET, when the daemon is ready,
	// when it stops and, if systemd has a watchdog, that it lives.
	SystemdNotify bool
	// OnListening is called once, when every address is listened on: what could keep the
	// daemon from starting is behind it. It must return soon. Default: nothing.
	OnListening func()
	// Logger may be nil.
	Logger *zap.Logger
	// SelfMetrics says which of the daemon's own metrics are served, and where. Default: SelfWith.
	SelfMetrics SelfMetrics
	// ForkMetrics serves prom_client_archive_duration_seconds too, for users of the fork of the
	// Python client that archives by itself.
	ForkMetrics bool
	// LogStats returns how many lines of the log were dropped because nobody read them in time,
	// and how many were left out because there were many of their kind. Default: none were.
	LogStats func() (dropped, leftOut uint64)
	// Settings are told to who asks for the configuration in force.
	Settings []status.Setting
}

// DefaultListenAddress is where the metrics are served unless told otherwise.
const DefaultListenAddress = ":9500"

// DefaultSocketMode lets the daemon's user and group connect to its unix sockets.
const DefaultSocketMode fs.FileMode = 0o660

func (o *Options) fill() {
	if len(o.ListenAddresses) == 0 {
		o.ListenAddresses = []string{DefaultListenAddress}
	}
	if o.SocketMode == 0 {
		o.SocketMode = DefaultSocketMode
	}
	if o.TelemetryPath == "" {
		o.TelemetryPath = "/metrics"
	}
	if o.TendInterval == 0 {
		o.TendInterval = time.Second
	}
	if o.RescanInterval == 0 {
		o.RescanInterval = 10 * time.Second
	}
	if o.ShutdownTimeout == 0 {
		o.ShutdownTimeout = 10 * time.Second
	}
	if o.Config == nil {
		o.Config = new(config.Config)
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

// Run reads the directories and serves what is in them until ctx is done. It returns nil
// after a clean stop; an error means that it could not start or that a server failed.
func Run(ctx context.Context, opts Options) error {
	opts.fill()
	log := opts.Logger
	set := telemetry.NewSet()
	m := newMetrics(set)
	opts.Pool.Logger = log
	opts.Pool.Metrics = pool.NewMetrics(set)
	opts.Pool.Policy = opts.Config.Policy()
	if opts.Web.WebConfigFile != "" {
		if err := serve.CheckWebConfig(opts.Web.WebConfigFile); err != nil {
			return err
		}
	}
	collector, err := pool.New(opts.Pool)
	if err != nil {
		return err
	}
	reloader := newReloader(opts, set, collector.SetPolicy)
	if err := collector.Open(); err != nil {
		return errors.Join(err, collector.Close())
	}
	set.OnSnapshot(collector.UpdateMetrics)
	set.OnSnapshot(m.update)
	m.addOptional(set, opts)

	// Listening comes first, so that an address that is taken is told at once; who asks
	// before the first scan is done is told to wait.
	listeners, err := listenAll(opts)
	if err != nil {
		return errors.Join(err, collector.Close())
	}
	if opts.OnListening != nil {
		opts.OnListening()
	}
	manager := newManager(opts)
	context.AfterFunc(ctx, manager.stopping)
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var loops sync.WaitGroup
	wake := make(chan struct{}, 1)
	wakeUp := func() {
		select {
		case wake <- struct{}{}:
		default: // one is pending already
		}
	}
	for _, d := range opts.Pool.Dirs {
		n := watch.NewNotifier(watch.NotifierOptions{OnFallback: func(err error) {
			log.Warn("file system events cannot be had; the directory is looked at every second", zap.String("dir", d.Path), zap.Error(err))
		}})
		m.addNotifier(d.Pool, n)
		loops.Go(func() {
			if err := n.Run(inner, d.Path, wakeUp); err != nil && inner.Err() == nil {
				log.Error("file system events ended; changes are found by looking", zap.String("dir", d.Path), zap.Error(err))
			}
		})
	}
	loops.Go(func() { tend(inner, collector, wake, manager, opts) })
	loops.Go(func() { reloader.run(inner) })

	web := opts.Web
	web.Gatherer = gatherer{collector, set, opts.SelfMetrics}
	web.NoSelfMetrics = opts.SelfMetrics == SelfOff
	web.AllowedHosts = append(ownNames(opts), web.AllowedHosts...)
	web.Encoder = &exposition.Encoder{OnReport: m.reporter(log)}
	web.TelemetryPath = opts.TelemetryPath
	web.Ready = collector.Ready
	web.Logger = log
	web.Observe = m.observe
	web.OnRefused = func(r serve.Refusal) { m.refused.With(string(r)).Inc() }
	web.ShutdownTimeout = opts.ShutdownTimeout
	if opts.EnableLifecycle {
		web.Reload = func() error { return reloader.reload("request") }
	}
	web.API = newAPI(collector, set, reloader)
	web.OnQuestion = func(code int) { m.questions.With(strconv.Itoa(code)).Inc() }
	web.OnConnectionClosed = func(why serve.Closed) { m.closed.With(string(why)).Inc() }
	server := serve.New(web)
	m.server.Store(server)
	err = server.Run(ctx, listeners...)
	log.Info("stopped serving")
	stop()
	loops.Wait()
	err = errors.Join(err, collector.Close())
	log.Info("stopped", zap.Error(err))
	return err
}

// firstFold is how long after the first scan the dead are folded.
const firstFold = 250 * time.Millisecond

// tend keeps the view up to date until ctx is done.
func tend(ctx context.Context, c *pool.Collector, wake <-chan struct{}, m *manager, opts Options) {
	start := time.Now()
	c.Tend(true)
	for !c.Ready() && ctx.Err() == nil && c.Fold() {
		// More files than may be open: the dead have to make room first.
		c.Tend(true)
	}
	if c.Ready() {
		opts.Logger.Info("ready", zap.Duration("after", time.Since(start)))
	} else {
		opts.Logger.Error("not ready: not all source files can be opened; the log above says why")
	}
	m.beat(c.Ready())
	// The first scrape has waited for the first scan; folding can wait for the scrape.
	select {
	case <-ctx.Done():
	case <-time.After(min(firstFold, opts.TendInterval)):
	}
	garbage := garbage{most: opts.GCPercent}
	calm := time.After(opts.TendInterval)
	ticker := time.NewTicker(opts.TendInterval)
	defer ticker.Stop()
	rescan := time.NewTicker(opts.RescanInterval)
	defer rescan.Stop()
	for {
		force := false
		select {
		case <-ctx.Done():
		case <-calm:
			debug.FreeOSMemory() // what the first scan has left
			garbage.limit()
		case <-wake:
		case <-ticker.C:
		case <-rescan.C:
			force = true
			garbage.limit()
		}
		if ctx.Err() != nil { // whatever else there was to do
			c.Fold() // what files without a name have counted is lost with us
			return
		}
		c.Tend(force)
		m.beat(c.Ready())
		for tended := time.Now(); c.Fold() && ctx.Err() == nil; {
			// Folding thousands of files takes a while, and looking at all that are left does,
			// too.
			m.beat(c.Ready())
			if time.Since(tended) >= opts.TendInterval {
				c.Tend(false)
				tended = time.Now()
			}
		}
	}
}

// gatherer gives a scrape the workers' metrics and the daemon's own.
type gatherer struct {
	collector *pool.Collector
	set       *telemetry.Set
	self      SelfMetrics
}

// Gather implements serve.Gatherer.
func (g gatherer) Gather(ctx context.Context, r serve.Request) ([]*view.Snapshot, error) {
	if r.SelfOnly {
		return []*view.Snapshot{g.set.Snapshot()}, nil
	}
	if len(r.Pools) > 0 {
		return nil, fmt.Errorf("%w: %q; pools cannot be asked for one by one yet", serve.ErrNoPool, r.Pools[0])
	}
	workers, err := g.collector.Gather(ctx)
	if err != nil {
		return nil, err
	}
	switch g.self {
	case SelfSeparate, SelfOff:
		return []*view.Snapshot{workers}, nil
	case SelfFull:
		return []*view.Snapshot{workers, g.set.Snapshot()}, nil
	}
	return []*view.Snapshot{workers, g.set.Essential()}, nil
}

// all returns the workers' metrics and all of the daemon's own, for the API.
func (g gatherer) all(ctx context.Context) ([]*view.Snapshot, error) {
	workers, err := g.collector.Gather(ctx)
	if err != nil {
		return nil, err
	}
	return []*view.Snapshot{workers, g.set.Snapshot()}, nil
}

var _ serve.Gatherer = gatherer{}
