package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"aggregatord/internal/daemon"
	"aggregatord/internal/demo"
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/status"
)

type demoOptions struct {
	workers           int
	requestsPerSecond float64
	maxRequests       int
	killEvery         time.Duration
	seed              uint64
	dir               string
	duration          time.Duration
	web               addressOptions
	log               logOptions
	settings          []status.Setting
}

func (o *demoOptions) addFlags(f *pflag.FlagSet) {
	f.IntVar(&o.workers, "workers", demo.DefaultWorkers, "how many worker processes to run")
	f.Float64Var(&o.requestsPerSecond, "requests-per-second", demo.DefaultRequestsPerSecond, "requests that all workers together get")
	f.IntVar(&o.maxRequests, "max-requests", demo.DefaultMaxRequests, "recycle a worker after about so many requests; 0: never")
	durationVar(f, &o.killEvery, "kill-every", demo.DefaultKillEvery, "mean time between two SIGKILLs, each of a random worker; 0: none")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the requests")
	f.StringVar(&o.dir, "dir", "",
		"`DIR` for the source files, kept in the end (default: a new one, in memory where the\nsystem has /dev/shm, removed in the end)")
	durationVar(f, &o.duration, "duration", 0, "stop after so long; 0: when interrupted")
	o.web.addFlags(f)
	o.web.shutdownTimeout = time.Second // who ends a demo does not want to wait
	f.Lookup("web.shutdown-timeout").DefValue = o.web.shutdownTimeout.String()
	o.log.addFlags(f)
}

func (o *demoOptions) validate() error {
	switch {
	case o.workers < 1:
		return usagef("--workers %d: use 1 or more", o.workers)
	case !(o.requestsPerSecond > 0) || math.IsInf(o.requestsPerSecond, 1): // NaN is not greater
		return usagef("--requests-per-second %v: use a number above 0", o.requestsPerSecond)
	case o.maxRequests < 0:
		return usagef("--max-requests %d: use 0 for never, or a number above it", o.maxRequests)
	case o.killEvery < 0:
		return usagef("--kill-every %v: use 0 for never, or a time above it", o.killEvery)
	case o.duration < 0:
		return usagef("--duration %v: use 0 for no end, or a time above it", o.duration)
	}
	for _, addr := range o.web.listen {
		if strings.HasPrefix(addr, daemon.UnixPrefix) {
			return usagef("--web.listen-address %q: the demo listens on host:port only", addr)
		}
	}
	return o.web.validate()
}

func newDemoCmd() *cobra.Command {
	var o demoOptions
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Try it on a built-in pool of worker processes",
		Long: `Run a small prefork application and serve its metrics, until interrupted. A master keeps
worker processes running, which play a web shop and write source files as a Python
application does: counters, histograms, a summary and a gauge in each mode. Workers are
recycled after some requests, and now and then one is killed with SIGKILL.`,
		Example: `  aggregatord demo
  aggregatord demo --workers 16 --requests-per-second 5000 --kill-every 2s`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	cmd.AddCommand(newDemoWorkerCmd())
	return cmd
}

// newDemoWorkerCmd is what the demo's master executes; see demo.WorkerArgs.
func newDemoWorkerCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Short:  "A worker process of the demo, started by its master",
		Hidden: true,
		Args:   noArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return demo.Worker(cmd.Context(), cmd.InOrStdin()) },
	}
}

func (o *demoOptions) run(cmd *cobra.Command) (err error) {
	if err := o.validate(); err != nil {
		return err
	}
	log, err := o.log.start(cmd.ErrOrStderr(), nil)
	if err != nil {
		return err
	}
	defer log.close()
	// Most of what can go wrong is an address that is taken, so that is looked at before
	// anything else is done.
	if o.web.listen, err = freeAddresses(o.web.listen); err != nil {
		return err
	}
	o.settings = settings(cmd.Flags(), nil, nil)
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp(memoryDir(), "aggregatord-demo-"); err != nil {
			return fmt.Errorf("make a directory for the demo: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if err := o.printWhereToLook(cmd.OutOrStdout(), dir); err != nil {
		return err
	}
	ctx := cmd.Context()
	if o.duration > 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithTimeout(ctx, o.duration)
		defer stop()
	}
	return o.runBoth(ctx, dir, log.logger)
}

// runBoth runs the pool and the daemon side by side. Each ends when ctx is done, and if
// one fails so does the other.
func (o *demoOptions) runBoth(ctx context.Context, dir string, logger *zap.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var poolErr, daemonErr error
	var both sync.WaitGroup
	both.Go(func() {
		defer stop()
		poolErr = demo.Run(ctx, demo.Options{
			Dir: dir, Workers: o.workers, RequestsPerSecond: o.requestsPerSecond,
			MaxRequests: o.maxRequests, KillEvery: o.killEvery, Seed: o.seed, Logger: logger,
		})
	})
	both.Go(func() {
		defer stop()
		opts := daemon.Options{
			Fleet:  fleet.Options{Pools: []pool.Spec{{Path: dir}}, Pool: pool.Options{Archive: &pool.ArchiveOptions{}}},
			Logger: logger,
		}
		o.web.apply(&opts)
		opts.Settings = o.settings
		daemonErr = runDaemon(ctx, opts)
	})
	both.Wait()
	return errors.Join(poolErr, daemonErr)
}

// printWhereToLook tells what there is to see.
func (o *demoOptions) printWhereToLook(w io.Writer, dir string) error {
	home := "http://" + reachable(o.web.listen[0])
	url := home + o.web.telemetryPath
	_, err := fmt.Fprintf(w, `A pool of %d worker processes writes source files to
  %s

Their metrics, merged:
  %s
  curl -s %s | grep ^http_requests_total
Only some of them:
  curl -s '%s?name[]=worker_up&name[]=inprogress_requests'
A page for the browser, and a view for the terminal:
  %s/
  %s top --url %s
What made a number:
  %s explain --url %s inprogress_requests
What single workers wrote:
  %s inspect %s/counter_*.db

Ctrl-C stops everything.

`, o.workers, dir, url, url, url, home, os.Args[0], home, os.Args[0], home, os.Args[0], dir)
	return err
}

// memoryDir is where files need no disk, or "" for the usual place of temporary files.
func memoryDir() string {
	const shm = "/dev/shm"
	if info, err := os.Stat(shm); err == nil && info.IsDir() {
		return shm
	}
	return ""
}

// freeAddresses checks that one can listen on all the addresses, and returns them with the
// ports that the system chose where they say 0. Somebody may still take one before the
// daemon does; then the daemon tells.
func freeAddresses(addrs []string) (free []string, err error) {
	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
	}()
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return nil, inUse(err)
		} else if err != nil {
			return nil, fmt.Errorf("listen on %q: %w", addr, err)
		}
		listeners = append(listeners, l)
		if host, port, err := net.SplitHostPort(addr); err == nil && port == "0" {
			_, port, _ = net.SplitHostPort(l.Addr().String())
			addr = net.JoinHostPort(host, port)
		}
		free = append(free, addr)
	}
	return free, nil
}

// reachable returns the address that a client on this machine uses for a listen address.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); host == "" || (ip != nil && ip.IsUnspecified()) {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}
