package main

import (
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"aggregatord/internal/logs"
	"aggregatord/internal/terminal"
)

// logOptions says what is logged and how.
type logOptions struct {
	level, format string
}

func (o *logOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.level, "log.level", "info", "log from this `LEVEL` on: debug, info, warn, error")
	f.StringVar(&o.format, "log.format", "console", "log as `FORMAT`: console or json")
}

// logger returns a logger to w, for a command that is soon over.
func (o *logOptions) logger(w io.Writer) (*zap.Logger, error) {
	core, err := o.core(w)
	if err != nil {
		return nil, err
	}
	return zap.New(core), nil
}

// A runningLog is the log of a command that runs for long: nothing waits for whoever reads it,
// and no kind of line fills it.
type runningLog struct {
	logger *zap.Logger
	core   *logs.Core
	writer *logs.Writer
	done   chan struct{}
}

// start returns a log to standard error, or to where a progress shows itself, which is then not
// waited for either. The caller closes it.
func (o *logOptions) start(stderr io.Writer, p *progress) (*runningLog, error) {
	w := logs.NewWriter(stderr, 0)
	var through io.Writer = w
	if p != nil {
		p.out, through = w, p
	}
	core, err := o.core(through)
	if err != nil {
		return nil, err
	}
	l := &runningLog{core: logs.NewCore(core), writer: w, done: make(chan struct{})}
	l.logger = zap.New(l.core)
	// Whoever reads the log may go. By default the next line would end the process (SIGPIPE).
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	// Ends with close, or with the process if nobody reads the log.
	go func() {
		defer close(l.done)
		w.Run()
	}()
	return l, nil
}

// stats counts the lines that nobody will read.
func (l *runningLog) stats() (dropped, leftOut uint64) { return l.writer.Dropped(), l.core.LeftOut() }

// close waits until the log is written, a second at most.
func (l *runningLog) close() {
	l.writer.Close()
	select {
	case <-l.done:
	case <-time.After(time.Second):
	}
}

// core writes what is logged to w.
func (o *logOptions) core(w io.Writer) (zapcore.Core, error) {
	level, err := zapcore.ParseLevel(o.level)
	if err != nil || level > zapcore.ErrorLevel {
		return nil, usagef("--log.level %q: use debug, info, warn or error", o.level)
	}
	c := zap.NewProductionEncoderConfig()
	c.EncodeTime = zapcore.ISO8601TimeEncoder
	c.EncodeDuration = zapcore.StringDurationEncoder
	var enc zapcore.Encoder
	switch o.format {
	case "console":
		c.ConsoleSeparator = "  "
		c.EncodeLevel = zapcore.CapitalLevelEncoder
		enc = zapcore.NewConsoleEncoder(c)
		w = terminal.Lines(w) // JSON strings may hold some control characters; this is for people
	case "json":
		enc = zapcore.NewJSONEncoder(c)
	default:
		return nil, usagef("--log.format %q: use console or json", o.format)
	}
	return zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level), nil
}
