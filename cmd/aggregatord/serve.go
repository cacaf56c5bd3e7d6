package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/buildinfo"
	"aggregatord/internal/config"
	"aggregatord/internal/daemon"
	"aggregatord/internal/discover"
	"aggregatord/internal/doctor"
	"aggregatord/internal/fleet"
	"aggregatord/internal/output"
	"aggregatord/internal/pool"
	"aggregatord/internal/serve"
	"aggregatord/internal/status"

	"go.uber.org/zap"
)

// addressOptions says where to serve.
type addressOptions struct {
	listen          []string
	telemetryPath   string
	shutdownTimeout time.Duration
}

func (o *addressOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.listen, "web.listen-address", []string{daemon.DefaultListenAddress},
		"`ADDRESS` to serve on, host:port or unix:PATH; repeat it for several")
	f.StringVar(&o.telemetryPath, "web.telemetry-path", "/metrics", "`PATH` of the metrics")
	durationVar(f, &o.shutdownTimeout, "web.shutdown-timeout", 10*time.Second, "how long scrapes in flight may take when told to stop")
}

func (o *addressOptions) validate() error {
	for _, addr := range o.listen {
		if path, ok := strings.CutPrefix(addr, daemon.UnixPrefix); ok {
			// sun_path of unix(7) has room for 108 bytes, a final zero among them; 104 on a Mac.
			if path == "" || len(path) > 103 {
				return usagef("--web.listen-address %q: use unix:PATH with a path of 1 to 103 bytes", addr)
			}
			continue
		}
		_, port, err := net.SplitHostPort(addr)
		if err == nil && port != "" {
			_, err = net.LookupPort("tcp", port) // a number in range, or a name in /etc/services
		}
		if err != nil || port == "" {
			return usagef("--web.listen-address %q: use host:port, :port or unix:PATH", addr)
		}
	}
	if !strings.HasPrefix(o.telemetryPath, "/") {
		return usagef("--web.telemetry-path %q must begin with /", o.telemetryPath)
	}
	taken := []string{"/-/", "/api/", "/assets/", "/pools/"}
	if slices.ContainsFunc(taken, func(prefix string) bool { return strings.HasPrefix(o.telemetryPath, prefix) }) ||
		o.telemetryPath == "/" {
		return usagef("--web.telemetry-path %q is taken; use another, such as /metrics", o.telemetryPath)
	}
	if strings.ContainsAny(o.telemetryPath, "?#") {
		return usagef("--web.telemetry-path %q: a path has no ? and no #; use another, such as /metrics", o.telemetryPath)
	}
	if o.shutdownTimeout <= 0 {
		return usagef("--web.shutdown-timeout %v: use a time above 0", o.shutdownTimeout)
	}
	return nil
}

// apply puts what was asked for into the daemon's options.
func (o *addressOptions) apply(opts *daemon.Options) {
	opts.ListenAddresses = o.listen
	opts.TelemetryPath = o.telemetryPath
	opts.ShutdownTimeout = o.shutdownTimeout
}

// webOptions says where and how to serve.
type webOptions struct {
	addressOptions
	socketMode    string
	systemdSocket bool
	lifecycle     bool
	configFile    string
	maxRequests   int
	readTimeout   time.Duration
	writeTimeout  time.Duration
	idleTimeout   time.Duration
	maxConns      int
	allowedHosts  []string
	anyPath       bool
	selfMetrics   string
	forkMetrics   bool
	created       bool
	externalURL   string
}

// selfMetrics are the values of --web.self-metrics.
var selfMetrics = map[string]daemon.SelfMetrics{
	"with": daemon.SelfWith, "full": daemon.SelfFull, "separate": daemon.SelfSeparate, "off": daemon.SelfOff,
}

func (o *webOptions) addFlags(f *pflag.FlagSet) {
	o.addressOptions.addFlags(f)
	f.StringVar(&o.socketMode, "web.socket-mode", fmt.Sprintf("%04o", daemon.DefaultSocketMode), "`MODE` of unix sockets, in octal")
	f.BoolVar(&o.systemdSocket, "web.systemd-socket", false, "serve on the sockets that systemd passes, in place of addresses")
	f.StringVar(&o.configFile, "web.config.file", "",
		"`FILE` that turns on TLS, passwords or a rate limit, in the format of the Prometheus exporters")
	f.BoolVar(&o.lifecycle, "web.enable-lifecycle", false,
		"let a POST to /-/reload reload the configuration file, and one to\n/api/v1/archive/drop remove series from the archive")
	f.IntVar(&o.maxRequests, "web.max-requests", 40,
		"how many scrapes that select pools or names may be\nin the making; more get status 503; 0 is any number")
	f.IntVar(&o.maxConns, "web.max-connections", 0,
		"how many clients may be connected; one more takes the place of an idle one;\n0 is 512, or less if few files may be open; -1 is any number")
	f.StringVar(&o.externalURL, "web.external-url", "",
		"`URL` by which others reach the daemon, for the targets at /-/sd\n(default: the host that the request names)")
	f.StringSliceVar(&o.allowedHosts, "web.allowed-hosts", nil,
		"host `NAMES` by which the API may be asked for, beside addresses, localhost,\nthe names listened on and that of this machine; * is any")
	f.BoolVar(&o.anyPath, "web.any-path", false, "serve the metrics at every path that nothing else is at")
	f.StringVar(&o.selfMetrics, "web.self-metrics", "with",
		"which of the daemon's own metrics are served: with (the important ones, with the\nothers), full (all of them), separate (at /-/metrics only) or off")
	f.BoolVar(&o.forkMetrics, "web.fork-metrics", false,
		"serve prom_client_archive_duration_seconds too, as the archiving fork\nof the Python client does")
	f.BoolVar(&o.created, "web.created-samples", false,
		"serve in OpenMetrics since when each counter, histogram and summary counts, as\nsamples named ..._created; Prometheus keeps them as series of their own")
	durationVar(f, &o.readTimeout, "web.read-timeout", time.Minute, "how long a client may take to send a request; 0 is no limit")
	durationVar(f, &o.writeTimeout, "web.write-timeout", time.Minute,
		"how long a response may take, as a client may read it slowly; 0 is no limit")
	durationVar(f, &o.idleTimeout, "web.idle-timeout", 5*time.Minute, "how long a connection is kept for the next request; 0 is no limit")
}

func (o *webOptions) validate() error {
	if err := o.addressOptions.validate(); err != nil {
		return err
	}
	if o.systemdSocket && !slices.Equal(o.listen, []string{daemon.DefaultListenAddress}) {
		return usagef("--web.systemd-socket and --web.listen-address: give one of them; the addresses are those of the .socket unit")
	}
	if _, err := o.mode(); err != nil {
		return err
	}
	if o.configFile != "" {
		if err := serve.CheckWebConfig(o.configFile); err != nil {
			return usagef("--web.config.file: %w", config.ExplainWeb(o.configFile, err))
		}
	}
	if o.maxRequests < 0 {
		return usagef("--web.max-requests %d must not be negative", o.maxRequests)
	}
	if o.maxConns < -1 {
		return usagef("--web.max-connections %d: use a number above 0, 0 for the default, or -1 for any number", o.maxConns)
	}
	if _, ok := selfMetrics[o.selfMetrics]; !ok {
		return usagef("--web.self-metrics %q: use with, full, separate or off", o.selfMetrics)
	}
	if o.externalURL != "" {
		if _, err := serve.ParseExternalURL(o.externalURL); err != nil {
			return usagef("--web.external-url: %w", err)
		}
	}
	for _, host := range o.allowedHosts {
		if host == "" || strings.ContainsAny(host, "/ ") {
			return usagef("--web.allowed-hosts %q: use host names without a path, such as shop.example, or *", host)
		}
	}
	for name, d := range map[string]time.Duration{"read": o.readTimeout, "write": o.writeTimeout, "idle": o.idleTimeout} {
		if d < 0 {
			return usagef("--web.%s-timeout %v must not be negative", name, d)
		}
	}
	return nil
}

func (o *webOptions) mode() (fs.FileMode, error) {
	mode, err := strconv.ParseUint(o.socketMode, 8, 32)
	if err != nil || mode > 0o777 || mode == 0 {
		return 0, usagef("--web.socket-mode %q: use an octal mode such as 0660", o.socketMode)
	}
	return fs.FileMode(mode), nil
}

// apply puts what was asked for into the daemon's options, after validate.
func (o *webOptions) apply(opts *daemon.Options) {
	o.addressOptions.apply(opts)
	opts.SystemdSocket = o.systemdSocket
	opts.SocketMode, _ = o.mode()
	opts.EnableLifecycle = o.lifecycle
	opts.Web.WebConfigFile = o.configFile
	opts.Web.MaxScrapesInFlight = orNone(o.maxRequests)
	opts.Web.ReadTimeout = orNone(o.readTimeout)
	opts.Web.WriteTimeout = orNone(o.writeTimeout)
	opts.Web.IdleTimeout = orNone(o.idleTimeout)
	opts.Web.MaxConnections = o.maxConns
	opts.Web.AllowedHosts = o.allowedHosts
	opts.Web.AnyPath = o.anyPath
	if o.externalURL != "" {
		opts.Web.ExternalURL, _ = serve.ParseExternalURL(o.externalURL)
	}
	opts.CreatedSamples = o.created
	opts.SelfMetrics = selfMetrics[o.selfMetrics]
	opts.ForkMetrics = o.forkMetrics
}

// orNone turns the 0 of a flag, which is no bound, into the negative number that is none in
// options, where 0 is the default.
func orNone[T int | time.Duration](v T) T {
	if v == 0 {
		return -1
	}
	return v
}

type serveOptions struct {
	dirs        dirOptions
	config      configOptions
	archive     archiveOptions
	process     processOptions
	discover    discoverOptions
	web         webOptions
	push        exitPushOptions
	waitWorkers time.Duration
	log         logOptions
}

func (o *serveOptions) addFlags(f *pflag.FlagSet) {
	o.dirs.addFlags(f)
	o.config.addFlags(f)
	o.archive.addFlags(f)
	o.process.addFlags(f)
	o.discover.addFlags(f)
	o.web.addFlags(f)
	f.DurationVar(&o.waitWorkers, "shutdown.wait-workers", 0,
		"how long to go on serving and sending when told to stop, as long as workers are alive")
	o.push.addFlags(f, output.DefaultExitTimeout)
	o.log.addFlags(f)
}

func newServeCmd() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Watch directories of source files and serve the merged metrics",
		Long: `Watch directories of source files and serve their merged metrics until SIGTERM or SIGINT.
A directory may be made later. The files of dead workers are archived and removed, so
totals stay and the directory stays small. Run it as the user of the workers.`,
		Example: `  aggregatord serve --dir /dev/shm/myapp
  aggregatord serve --dir web=/dev/shm/web --dir jobs=/dev/shm/celery`,
		Args:        noArgs,
		Annotations: map[string]string{keepsHangups: ""},
		RunE:        func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *serveOptions) run(cmd *cobra.Command) error {
	if err := o.config.load(cmd.Flags(), &o.dirs, &o.archive); err != nil {
		return err
	}
	o.dirs.discovers = o.discover.on(o.config.loaded)
	dirs, patterns, err := o.dirs.watchable()
	if err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.end()
	log, err := o.log.start(cmd.ErrOrStderr(), progress)
	if err != nil {
		return err
	}
	defer log.close()
	if err := errors.Join(o.web.validate(), o.archive.validate(), o.process.validate(), o.discover.validate(),
		o.push.validate()); err != nil {
		return err
	}
	if o.waitWorkers < 0 {
		return usagef("--shutdown.wait-workers %v must not be negative", o.waitWorkers)
	}
	// Without a file it is of no use, but who sends it does not expect that to end the program.
	hangup := make(chan os.Signal, 1)
	hangupsTo(cmd.Context(), hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	opts := daemon.Options{
		Fleet:  fleet.Options{Pools: dirs, Pool: pool.Options{Archive: o.archive.options(), ArchiveDir: o.archive.dir}},
		Config: o.config.loaded, ByFlag: o.config.byFlag, ReloadSignals: hangup,
		Processes:     o.process.options(o.config.loaded),
		SystemdNotify: true,
		WaitWorkers:   o.waitWorkers, OutputExitTimeout: o.push.timeout,
		Logger: log.logger,
	}
	o.discover.apply(&opts, patterns)
	o.web.apply(&opts)
	o.archive.only(cmd.Flags(), &opts)
	opts.LogStats = log.stats
	opts.Fleet.Pool.OnProgress = progress.files
	opts.Settings = settings(cmd.Flags(), dirs, patterns)
	return runDaemon(cmd.Context(), opts)
}

// settings lists what the flags say, for who asks the daemon what is in force.
func settings(flags *pflag.FlagSet, dirs []pool.Spec, patterns []discover.Pattern) []status.Setting {
	var all []status.Setting
	flags.VisitAll(func(f *pflag.Flag) {
		switch f.Name {
		case "help":
		case "dir":
			for _, d := range dirs { // of the environment, too
				all = append(all, status.Setting{Name: "--dir", Value: d.String()})
			}
			for _, p := range patterns {
				all = append(all, status.Setting{Name: "--dir", Value: strings.TrimPrefix(p.Name+"="+p.Glob, "=")})
			}
		default:
			value := f.Value.String()
			if list, ok := f.Value.(pflag.SliceValue); ok {
				value = strings.Join(list.GetSlice(), " ")
			}
			all = append(all, status.Setting{Name: "--" + f.Name, Value: value})
		}
	})
	return all
}

// runDaemon runs the daemon until ctx is done.
func runDaemon(ctx context.Context, opts daemon.Options) error {
	info := buildinfo.Get()
	opts.Logger.Info("aggregatord starts", zap.String("version", info.Version), zap.String("revision", info.Revision))
	if os.Getenv("GOGC") == "" {
		// Scrapes make next to no garbage, so collecting it early costs little, and the memory
		// that is not left to grow into is a third of all.
		opts.GCPercent = 25
	}
	opts.LimitMemory = true
	defer opts.Logger.Sync() //nolint:errcheck // standard error cannot be synced everywhere, and nothing is lost
	return inUse(daemon.Run(ctx, opts))
}

// inUse adds to the error of an address that is taken who has it, and what to do.
func inUse(err error) error {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || !errors.Is(err, syscall.EADDRINUSE) {
		return err
	}
	if tcp, ok := op.Addr.(*net.TCPAddr); ok {
		return portInUse(tcp.Port)
	}
	return fmt.Errorf("%s is in use by another process; stop that, or choose another address by --web.listen-address", op.Addr)
}

// portInUse says who has a port.
func portInUse(port int) error {
	who := doctor.Listener(port)
	if who == "" {
		who = "another process"
	}
	return fmt.Errorf("port %d is in use by %s; stop that, or choose another address by --web.listen-address", port, who)
}
