// Package daemon wires the rooms together: it owns every long-lived goroutine and the
// order in which they stop.
//
//	goroutine    started by  ends when              speaks through
//	fleet        Run         its context is done    nothing: it logs what goes wrong
//	memory loop  Run         its context is done    the garbage collector's settings
//	reload loop  Run         its context is done    Fleet.SetPolicy, Outputs.Apply, and the log
//	outputs      Run         its context is done    nothing: see package output
//	observer     Run         its context is done    Observer.All, which scrapes ask for
//	finder       Run         its context is done    Fleet.Add and Fleet.Remove
//	HTTP server  Run         Shutdown returns       http.Server
//
// Nothing in the order of stopping is needed for correctness; a tidy stop is only quick
// and quiet.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/config"
	"aggregatord/internal/discover"
	"aggregatord/internal/exposition"
	"aggregatord/internal/fleet"
	"aggregatord/internal/output"
	"aggregatord/internal/pool"
	"aggregatord/internal/process"
	"aggregatord/internal/serve"
	"aggregatord/internal/status"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// Options of Run. Zero fields mean the defaults given.
type Options struct {
	// Fleet says which directories to read; its Logger, Set, Policy, Reserve and OnTend are Run's to fill.
	Fleet fleet.Options
	// ListenAddresses are host:port pairs, or unix:PATH. Default: DefaultListenAddress.
	ListenAddresses []string
	// NoListen has nothing served, at no address.
	NoListen bool
	// SocketMode is the mode of unix sockets. Default: DefaultSocketMode.
	SocketMode fs.FileMode
	// SystemdSocket listens on the sockets that systemd has opened (sd_listen_fds(3)) in
	// place of ListenAddresses.
	SystemdSocket bool
	// Web says how requests are served. Run fills its Gatherer, Encoder, TelemetryPath,
	// Ready, Logger, Observe, OnRefused, ExplainWebConfig, Reload, API, OnQuestion and ShutdownTimeout.
	Web serve.Options
	// TelemetryPath is where the metrics are. Default: /metrics.
	TelemetryPath string
	// ShutdownTimeout is how long scrapes in flight may take once Run's context is done.
	// Default: 10 s.
	ShutdownTimeout time.Duration
	// GCPercent is given to debug.SetGCPercent a moment after the first scan, or less where the heap
	// is large. Until then the first collection of garbage is put off, but not beyond 48 MiB. 0 leaves
	// all that as it is.
	GCPercent int
	// LimitMemory sets a soft limit of the process's memory by what its control group may have,
	// unless GOMEMLIMIT is set, and a default of limits.bytes_per_pool by the soft limit. Default:
	// neither.
	LimitMemory bool
	// Config is what the configuration file says. What it says of pools and of the archive
	// must be in Pool already. Its file is loaded again when it changes. Default: no file.
	Config *config.Config
	// ByFlag are the keys of the file that flags override, such as pools and archive.dir: a
	// change of these in the file means nothing.
	ByFlag []string
	// ReloadSignals asks for the file to be loaded again. May be nil.
	ReloadSignals <-chan os.Signal
	// EnableLifecycle lets a POST to /-/reload do the same, and one to /api/v1/archive/drop remove
	// series from the archive.
	EnableLifecycle bool
	// SystemdNotify tells systemd, or whoever set $NOTIFY_SOCKET, when the daemon is ready,
	// when it stops and, if systemd has a watchdog, that it lives.
	SystemdNotify bool
	// Outputs are sent to beside those of Config.
	Outputs []output.Spec
	// OutputExitTimeout bounds the last push of each output. Default: that of package output.
	OutputExitTimeout time.Duration
	// WaitWorkers is how long to go on when told to stop, as long as workers are alive: what
	// they still count is served and sent. Default: not at all.
	WaitWorkers time.Duration
	// OnOutputsReady is called once, when outputs know what is there at the start: series that
	// appear later are known to be new. Not without outputs. Default: nothing.
	OnOutputsReady func()
	// HurryUp ends the last pushes when it is closed. May be nil.
	HurryUp <-chan struct{}
	// OnLastPush is told how the last pushes went, once. Default: nobody is.
	OnLastPush func(error)
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
	// CreatedSamples serves in OpenMetrics since when series count, as samples of their own. Protobuf
	// has that anyway. Default: it does not.
	CreatedSamples bool
	// LogStats returns how many lines of the log were dropped because nobody read them in time,
	// and how many were left out because there were many of their kind. Default: none were.
	LogStats func() (dropped, leftOut uint64)
	// Settings are told to who asks for the configuration in force.
	Settings []status.Setting
	// Processes says how the processes of the pools are watched; its Pools, Logger and Metrics
	// are Run's to fill. Nil: they are not.
	Processes *process.Options
	// Discovery finds pools that come and go; its Static, Add, Remove, Writing, OnRound, Set and Logger are
	// Run's to fill. Nil: there are only those of Fleet.
	Discovery *discover.Options
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
	garbage := &garbage{most: opts.GCPercent}
	garbage.start()
	set := telemetry.NewSet()
	m := newMetrics(set)
	manager := newManager(opts)
	if opts.LimitMemory {
		groups, _ := os.ReadFile("/proc/self/cgroup")
		opts.Fleet.Pool.Merge.MaxBytes = limitMemory(groupMemory(string(groups), "/sys/fs/cgroup"), log, set)
	}
	opts.Fleet.Growing = opts.Discovery != nil
	opts.Fleet.Logger, opts.Fleet.Set, opts.Fleet.Policy = log, set, opts.Config.Policy()
	opts.Fleet.Reserve = descriptorsBeside(opts.Web)
	start := newFirstScan(log)
	var pools *fleet.Fleet
	var wasReady atomic.Bool // pools that are ready stay so, and who comes later does not count
	opts.Fleet.OnTend = func() {
		ready := wasReady.Load() || pools.Ready()
		wasReady.Store(ready)
		start.tell(ready)
		manager.beat(ready)
	}
	if opts.Web.WebConfigFile != "" {
		if err := serve.CheckWebConfig(opts.Web.WebConfigFile); err != nil {
			return err
		}
	}
	pools, err := fleet.New(opts.Fleet)
	if err != nil {
		return err
	}
	own := newOwnMetrics(set)
	observer := newObserver(opts, pools, set)
	outputs, err := newOutputs(opts, gatherer{pools: pools, own: own, processes: observer}, set)
	if err != nil {
		return errors.Join(err, pools.Close())
	}
	defer outputs.Close()
	reloader := newReloader(opts, set, pools.SetPolicy)
	reloader.outputs = outputs
	if err := pools.Open(); err != nil {
		return errors.Join(err, pools.Close())
	}
	finder := newFinder(opts, pools, observer, set)
	defer closeFinder(finder, log)
	set.OnSnapshot(func() {
		pools.UpdateMetrics()
		m.update(pools)
	})
	m.addOptional(set, opts)

	// Listening comes first, so that an address that is taken is told at once; who asks
	// before the first scan is done is told to wait.
	listeners, err := listenAll(opts)
	if err != nil {
		return errors.Join(err, pools.Close())
	}
	if opts.OnListening != nil {
		opts.OnListening()
	}
	context.AfterFunc(ctx, manager.stopping)
	inner, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var loops sync.WaitGroup
	// Each ends when inner is done.
	loops.Go(func() { pools.Run(inner) })
	loops.Go(func() { tidy(inner, pools, garbage) })
	loops.Go(func() { reloader.run(inner) })
	loops.Go(func() { outputs.Run(inner) })
	ctx = afterWorkers(ctx, pools, opts)
	if finder != nil {
		loops.Go(func() { finder.Run(inner) })
	}
	if observer != nil {
		loops.Go(func() { observer.Run(inner) })
	}

	web := opts.Web
	gatherer := gatherer{pools, own, opts.SelfMetrics, observer, finder}
	web.Gatherer = gatherer
	web.NoSelfMetrics = opts.SelfMetrics == SelfOff
	web.AllowedHosts = append(ownNames(opts), web.AllowedHosts...)
	web.Encoder = &exposition.Encoder{OnReport: m.reporter(log), CreatedSamples: opts.CreatedSamples}
	web.TelemetryPath = opts.TelemetryPath
	web.Ready = pools.Ready
	web.PoolReady, web.Targets = gatherer.poolReady, gatherer.targets
	web.Logger = log
	web.Observe = func(i serve.ScrapeInfo) {
		m.observe(i)
		if observer != nil && i.Outcome == serve.OK {
			observer.Scraped()
		}
	}
	web.ExplainWebConfig = config.ExplainWeb
	web.OnRefused = func(r serve.Refusal) { m.refused.With(string(r)).Inc() }
	web.ShutdownTimeout = opts.ShutdownTimeout
	if opts.EnableLifecycle {
		web.Reload = func() error { return reloader.reload("request") }
	}
	questions := newAPI(gatherer, reloader, outputs)
	web.API = questions
	if opts.EnableLifecycle {
		web.Change = questions.Change
	}
	web.OnQuestion = func(code int) { m.questions.With(strconv.Itoa(code)).Inc() }
	web.OnConnectionClosed = func(why serve.Closed) { m.closed.With(string(why)).Inc() }
	if opts.NoListen {
		<-ctx.Done()
	} else {
		server := serve.New(web)
		m.server.Store(server)
		err = server.Run(ctx, listeners...)
		log.Info("stopped serving")
	}
	lastWords(outputs, observer, opts)
	stop()
	loops.Wait()
	err = errors.Join(err, pools.Close())
	log.Info("stopped", zap.Error(err))
	return err
}

// ownDescriptors is how many descriptors the daemon needs beside those of source files and
// connections: archives, directories, inotify, the log, listeners.
const ownDescriptors = 64

// descriptorsBeside is how many descriptors stay free of source files, so that neither can take
// what the other one needs.
func descriptorsBeside(web serve.Options) int {
	return cmp.Or(web.MaxConnections, serve.DefaultMaxConnections()) + ownDescriptors
}

// firstScan tells how the first look at all directories went.
type firstScan struct {
	log   *zap.Logger
	start time.Time
	once  sync.Once
}

func newFirstScan(log *zap.Logger) *firstScan { return &firstScan{log: log, start: time.Now()} }

func (f *firstScan) tell(ready bool) {
	if ready {
		f.once.Do(func() { f.log.Info("ready", zap.Duration("after", time.Since(f.start))) })
	}
}

// tidyEvery is how often the garbage collector is set anew, and memory given back that is not used any more.
const tidyEvery = 10 * time.Second

// tidy gives back what the first scan has left and what many requests have used, and keeps garbage in
// bounds until ctx is done.
func tidy(ctx context.Context, pools *fleet.Fleet, garbage *garbage) {
	var tide tide
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for first := true; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if first && !pools.Ready() {
			continue
		}
		if first {
			garbage.giveBackNow(&tide)
			ticker.Reset(tidyEvery)
			first = false
			continue
		}
		garbage.giveBack(&tide)
	}
}

// gatherer gives a scrape the workers' metrics and the daemon's own.
type gatherer struct {
	pools *fleet.Fleet
	own   ownMetrics
	self  SelfMetrics
	// processes may be nil.
	processes *process.Observer
	// finder may be nil.
	finder *discover.Finder
}

// Gather implements serve.Gatherer.
func (g gatherer) Gather(ctx context.Context, r serve.Request) ([]*view.Snapshot, error) {
	if r.SelfOnly {
		return []*view.Snapshot{g.own.all(r.Starts)}, nil
	}
	sel := fleet.Selection{Pools: r.Pools, Bare: r.BarePools, Starts: r.Starts}
	workers, err := g.pools.View(ctx, sel)
	switch {
	case errors.Is(err, fleet.ErrNoPool):
		return nil, g.noPool(r.Pools, err)
	case errors.Is(err, fleet.ErrComing), errors.Is(err, pool.ErrSilent):
		return nil, fmt.Errorf("%w: %w", serve.ErrPoolNotReady, err)
	case err != nil:
		return nil, err
	}
	snaps := append([]*view.Snapshot{workers}, g.processesBeside(workers, sel)...)
	switch {
	case len(r.Pools) > 0, g.self == SelfSeparate, g.self == SelfOff:
		return snaps, nil
	case g.self == SelfFull:
		return append(snaps, g.own.all(r.Starts)), nil
	}
	return append(snaps, g.own.essential(r.Starts)), nil
}

// all returns the workers' metrics and all of the daemon's own, for the API.
func (g gatherer) all(ctx context.Context) ([]*view.Snapshot, error) {
	workers, err := g.pools.View(ctx, fleet.Selection{})
	if err != nil {
		return nil, err
	}
	beside := g.processesBeside(workers, fleet.Selection{})
	return append(append([]*view.Snapshot{workers}, beside...), g.own.all(false)), nil
}

var _ serve.Gatherer = gatherer{}
