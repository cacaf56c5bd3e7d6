package main

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/buildinfo"
	"aggregatord/internal/daemon"
	"aggregatord/internal/pool"

	"go.uber.org/zap"
)

// webOptions says where and how to serve.
type webOptions struct {
	listen          []string
	telemetryPath   string
	shutdownTimeout time.Duration
}

func (o *webOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.listen, "web.listen-address", []string{daemon.DefaultListenAddress}, "`ADDRESS` to serve on, host:port; repeat it for several")
	f.StringVar(&o.telemetryPath, "web.telemetry-path", "/metrics", "`PATH` of the metrics")
	f.DurationVar(&o.shutdownTimeout, "web.shutdown-timeout", 10*time.Second, "how long scrapes in flight may take when told to stop")
}

func (o *webOptions) validate() error {
	for _, addr := range o.listen {
		_, port, err := net.SplitHostPort(addr)
		if err == nil && port != "" {
			_, err = net.LookupPort("tcp", port) // a number in range, or a name in /etc/services
		}
		if err != nil || port == "" {
			return usagef("--web.listen-address %q: use host:port or :port", addr)
		}
	}
	if !strings.HasPrefix(o.telemetryPath, "/") {
		return usagef("--web.telemetry-path %q must begin with /", o.telemetryPath)
	}
	if strings.HasPrefix(o.telemetryPath, "/-/") || o.telemetryPath == "/" {
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

type serveOptions struct {
	dirs    dirOptions
	archive archiveOptions
	web     webOptions
	log     logOptions
}

func (o *serveOptions) addFlags(f *pflag.FlagSet) {
	o.dirs.addFlags(f)
	o.archive.addFlags(f)
	o.web.addFlags(f)
	o.log.addFlags(f)
}

func newServeCmd() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Watch directories of source files and serve the merged metrics",
		Long: `Watch one or several directories of source files and serve what they hold, merged,
until SIGTERM or SIGINT. A directory need not exist yet. The files of dead workers are
archived, so that their counts stay and the directory stays small.`,
		Example: `  aggregatord serve --dir /dev/shm/myapp
  aggregatord serve --dir web=/dev/shm/web --dir jobs=/dev/shm/celery`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *serveOptions) run(cmd *cobra.Command) error {
	dirs, err := o.dirs.watchable()
	if err != nil {
		return err
	}
	logger, err := o.log.logger(cmd.ErrOrStderr())
	if err != nil {
		return err
	}
	if err := errors.Join(o.web.validate(), o.archive.validate()); err != nil {
		return err
	}
	return serveDirs(cmd.Context(), pool.Options{Dirs: dirs, Archive: o.archive.options(), ArchiveDir: o.archive.dir}, o.web, logger)
}

// serveDirs runs the daemon on some directories.
func serveDirs(ctx context.Context, dirs pool.Options, web webOptions, logger *zap.Logger) error {
	info := buildinfo.Get()
	logger.Info("aggregatord starts", zap.String("version", info.Version), zap.String("revision", info.Revision))
	if os.Getenv("GOGC") == "" {
		// Scrapes make next to no garbage, so collecting it early costs little, and the memory
		// that is not left to grow into is a third of all.
		debug.SetGCPercent(25)
	}
	defer logger.Sync() //nolint:errcheck // standard error cannot be synced everywhere, and nothing is lost
	return daemon.Run(ctx, daemon.Options{
		Pool:            dirs,
		ListenAddresses: web.listen,
		TelemetryPath:   web.telemetryPath,
		ShutdownTimeout: web.shutdownTimeout,
		Logger:          logger,
	})
}
