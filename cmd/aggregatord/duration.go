package main

import (
	"errors"
	"time"

	"github.com/prometheus/common/model"
	"github.com/spf13/pflag"
)

// duration is a flag that takes a time as Prometheus writes it (7d, 1h30m) or as Go does (1.5s).
type duration time.Duration

// durationVar makes a flag for a time.
func durationVar(f *pflag.FlagSet, p *time.Duration, name string, otherwise time.Duration, usage string) {
	*p = otherwise
	f.Var((*duration)(p), name, usage)
}

// Set implements pflag.Value.
func (d *duration) Set(text string) error {
	if p, err := model.ParseDuration(text); err == nil {
		*d = duration(p)
		return nil
	}
	p, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("write a time as in 30s, 5m, 1h30m or 7d")
	}
	*d = duration(p)
	return nil
}

// Type implements pflag.Value.
func (d *duration) Type() string { return "duration" }

// String implements pflag.Value.
func (d *duration) String() string {
	switch t := time.Duration(*d); {
	case t == 0:
		return "0"
	case t%time.Millisecond != 0 || t < 0:
		return t.String()
	}
	return model.Duration(*d).String()
}
