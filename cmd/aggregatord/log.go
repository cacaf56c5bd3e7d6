package main

import (
	"io"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

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

// logger returns a logger to w.
func (o *logOptions) logger(w io.Writer) (*zap.Logger, error) {
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
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), level)), nil
}
