package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"aggregatord/internal/daemon"
	"aggregatord/internal/doctor"
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/supervise"
)

// Exit codes of run beside those of the command, as env(1), nohup(1) and docker have them.
const (
	exitNotStarted    = 125
	exitNotExecutable = 126
	exitNotFound      = 127
)

type runOptions struct {
	dir     string
	linger  time.Duration
	config  configOptions
	archive archiveOptions
	process processOptions
	web     webOptions
	push    pushOptions
	log     logOptions
}

func (o *runOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "dir", "",
		"`DIR` for the source files, kept in the end (default: $PROMETHEUS_MULTIPROC_DIR, else\na new one in memory, removed in the end)")
	durationVar(f, &o.linger, "run.linger", 0,
		"how long to go on serving when the command has ended, so that its last values can be fetched")
	o.config.addFlags(f)
	o.archive.addFlags(f)
	o.process.addFlags(f)
	o.web.addFlags(f)
	o.push.addFlags(f)
	o.log.addFlags(f)
}

func newRunCmd() *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG…]",
		Short: "Start a command with a directory for its metrics, and serve them",
		Long: `Start a command, such as a web server with its workers, and serve the metrics that its
processes write, until it has ended. PROMETHEUS_MULTIPROC_DIR, in both spellings, names the
directory for them: --dir, or else the one that the variable names already, or else a new
one in memory ($XDG_RUNTIME_DIR or /dev/shm) that only this user may enter and that is
removed in the end.

The command has the standard input, output and error to itself; the log goes to standard
error, too. Signals are passed on, and as PID 1 of a container orphans are reaped. The exit
code is the command's, or 128 and the number of the signal that killed it; 127 if it is not
found, 126 if it cannot be executed, 125 if the metrics cannot be served: then it is not
started. A command that runs is never stopped because of its metrics.`,
		Example: `  aggregatord run -- gunicorn --workers 4 app:app
  aggregatord run --push.pushgateway http://gateway:9091 --push.job nightly -- ./nightly.py
  aggregatord run --web.listen-address 127.0.0.1:9500 -- celery --app tasks worker`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || args[0] == "" {
				return usagef("%s: which command? Use %s -- COMMAND [ARG…]", cmd.CommandPath(), cmd.CommandPath())
			}
			return nil
		},
		Annotations: map[string]string{keepsHangups: ""},
		RunE:        func(cmd *cobra.Command, args []string) error { return o.run(cmd, args) },
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().SetInterspersed(false) // what comes after the command is the command's
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *runOptions) validate() error {
	if o.linger < 0 {
		return usagef("--run.linger %v must not be negative", o.linger)
	}
	if o.web.systemdSocket {
		return usagef("--web.systemd-socket: sockets of systemd are for the command; give run an address, or use serve")
	}
	return errors.Join(o.web.validate(), o.archive.validate(), o.process.validate(), o.push.validate())
}

func (o *runOptions) run(cmd *cobra.Command, args []string) (err error) {
	// From here on a signal is the command's; it waits for the command to be there.
	signals := make(chan os.Signal, 64)
	hangupsTo(cmd.Context(), signals, supervise.Passed()...)
	defer signal.Stop(signals)

	var none dirOptions
	if err := o.config.load(cmd.Flags(), &none, &o.archive); err != nil {
		return err
	}
	if len(none.configured) > 0 {
		return usagef("--config.file %s: pools are for serve; run has one directory, by --dir", o.config.file)
	}
	if err := o.validate(); err != nil {
		return err
	}
	log, err := o.log.start(cmd.ErrOrStderr(), nil)
	if err != nil {
		return err
	}
	defer log.close()
	logger := log.logger
	dir, remove, err := o.directory(logger)
	if err != nil {
		return codeError{exitNotStarted, err}
	}
	defer func() {
		if removeErr := remove(); removeErr != nil {
			// The command has ended as it has ended.
			logger.Error("the directory for source files cannot be removed", zap.String("dir", dir), zap.Error(removeErr))
		}
	}()
	ctx, stop := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer stop()
	listening, primed := make(chan struct{}), make(chan struct{})
	hurry := make(chan struct{})
	var lastPush error
	opts := daemon.Options{
		Fleet: fleet.Options{
			Pools: []pool.Spec{{Path: dir}}, Pool: pool.Options{Archive: o.archive.options(), ArchiveDir: o.archive.dir},
		},
		Config: o.config.loaded, ByFlag: o.config.byFlag,
		Processes:   o.process.options(o.config.loaded),
		OnListening: func() { close(listening) },
		Outputs:     o.push.specs(), OutputExitTimeout: o.push.exit.timeout,
		OnOutputsReady: func() { close(primed) },
		OnLastPush:     func(err error) { lastPush = err },
		HurryUp:        hurry,
		Logger:         logger,
	}
	o.web.apply(&opts)
	o.archive.only(cmd.Flags(), &opts)
	opts.LogStats = log.stats
	opts.Settings = settings(cmd.Flags(), opts.Fleet.Pools, nil)
	served := make(chan error, 1)
	// Ends soon after stop.
	go func() { served <- runDaemon(ctx, opts) }()
	select {
	case <-listening:
	case err := <-served:
		return codeError{exitNotStarted, fmt.Errorf("the command was not started: %w", err)}
	}
	if len(opts.Outputs)+len(o.config.loaded.OutputSpecs()) > 0 {
		// So that all that the command counts is known to be new.
		select {
		case <-primed:
		case <-time.After(primeTimeout):
		}
	}
	status, err := o.supervise(args, dir, signals, served, logger)
	stop()
	pushed := make(chan struct{})
	defer close(pushed)
	// Ends with this function, or when a signal has asked for the end.
	go hurryOn(signals, pushed, hurry)
	if daemonErr := <-served; daemonErr != nil {
		logger.Error("the metrics were not served to the end", zap.Error(daemonErr))
	}
	if err != nil {
		return err
	}
	if status == 0 && lastPush != nil {
		status = o.push.exitCode
	}
	if status != 0 {
		return exitError(status)
	}
	return nil
}

// hurryOn closes hurry when a signal asks for the end before pushed is closed.
func hurryOn(signals <-chan os.Signal, pushed <-chan struct{}, hurry chan<- struct{}) {
	for {
		select {
		case s := <-signals:
			if slices.Contains(ending, s) {
				close(hurry)
				return
			}
		case <-pushed:
			return
		}
	}
}

// ending are the signals that ask for the end when the command has ended.
var ending = []os.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM}

// primeTimeout is how long the command waits for the first look at its directory.
const primeTimeout = 5 * time.Second

// supervise runs the command and returns its status when it has ended and --run.linger is
// over. A daemon that fails meanwhile, or a signal when the command has ended, cuts that
// short; served keeps the error.
func (o *runOptions) supervise(args []string, dir string, signals chan os.Signal, served chan error, logger *zap.Logger) (status int,
	err error,
) {
	command, err := supervise.Start(supervise.Options{Args: args, Env: supervise.Environ(os.Environ(), dir), Logger: logger})
	switch {
	case errors.Is(err, supervise.ErrNotFound):
		return 0, codeError{exitNotFound, err}
	case errors.Is(err, supervise.ErrNotExecutable):
		return 0, codeError{exitNotExecutable, err}
	case err != nil:
		return 0, codeError{exitNotStarted, err}
	}
	logger.Info("command started", zap.String("command", args[0]), zap.Int("pid", command.PID()), zap.String("dir", dir))
	ended, watched := make(chan struct{}), make(chan struct{})
	// Ends when the command has ended.
	go func() {
		defer close(watched)
		watchElsewhere(command.PID(), dir, ended, logger)
	}()
	exit := command.Wait(signals)
	close(ended)
	<-watched
	if exit.Signal != 0 {
		logger.Warn("command was killed", zap.Stringer("signal", exit.Signal))
	} else {
		logger.Info("command ended", zap.Int("code", exit.Code))
	}
	if o.linger > 0 {
		logger.Info("serving the last values", zap.Duration("for", o.linger))
		linger(o.linger, signals, served)
	}
	return exit.Status(), nil
}

// lookElsewhere is after how long it is looked where the command's processes write.
var lookElsewhere = []time.Duration{10 * time.Second, time.Minute, 10 * time.Minute}

// watchElsewhere warns once if the command writes its metrics somewhere else than into dir.
func watchElsewhere(pid int, dir string, ended <-chan struct{}, logger *zap.Logger) {
	for _, after := range lookElsewhere {
		select {
		case <-ended:
			return
		case <-time.After(after):
		}
		switch there, others := doctor.Elsewhere(pid, dir); {
		case there:
			return
		case len(others) > 0:
			logger.Warn("the command writes its metrics to another directory, so none are served; take PROMETHEUS_MULTIPROC_DIR out of its configuration, or give its directory by --dir",
				zap.String("dir", dir), zap.Strings("writes_to", others))
			return
		}
	}
}

// linger returns after d, or when a signal asks for the end or the daemon has failed.
func linger(d time.Duration, signals <-chan os.Signal, served chan error) {
	over := time.After(d)
	for {
		select {
		case <-over:
			return
		case err := <-served:
			served <- err
			return
		case s := <-signals:
			if slices.Contains(ending, s) {
				return
			}
		}
	}
}

// directory returns the directory for the source files, and what removes it if it is ours.
func (o *runOptions) directory(logger *zap.Logger) (dir string, remove func() error, err error) {
	kept := func() error { return nil }
	dir, from := o.dir, "--dir"
	if dir == "" {
		dir, from = dirOfEnvironment()
	}
	if dir != "" {
		// The command may go elsewhere before it looks for it.
		if dir, err = filepath.Abs(dir); err != nil {
			return "", nil, err
		}
		made, err := supervise.ClaimDir(dir)
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", from, err)
		}
		logger.Info("directory for source files", zap.String("dir", dir), zap.String("from", from), zap.Bool("made", made))
		return dir, kept, nil
	}
	dir, inMemory, err := supervise.MakeDir()
	if err != nil {
		return "", nil, err
	}
	if !inMemory {
		logger.Warn("no file system in memory was found, so the source files are on a disk", zap.String("dir", dir))
	}
	logger.Info("directory for source files", zap.String("dir", dir), zap.String("from", "run"), zap.Bool("made", true))
	remove = func() error {
		users, err := supervise.RemoveDir(dir)
		if len(users) > 0 {
			logger.Warn("processes of the command still run, so their directory is kept; serve it by aggregatord serve --dir, and remove it when they have ended",
				zap.String("dir", dir), zap.Ints("pids", users))
		}
		return err
	}
	return dir, remove, nil
}
