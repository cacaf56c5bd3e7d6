package main

import (
	"github.com/spf13/pflag"

	"aggregatord/internal/config"
	"aggregatord/internal/process"
)

// processOptions says how the processes of pools are watched.
type processOptions struct {
	disable bool
	by      string
}

func (o *processOptions) addFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.disable, "process.disable", false, "serve no metrics about the processes of the workers")
	f.StringVar(&o.by, "process.by", "pool", "serve process metrics by `WHAT`: pool, or worker (a label with a slot number)")
}

func (o *processOptions) validate() error {
	if o.by != "pool" && o.by != "worker" {
		return usagef("--process.by %q: use pool or worker", o.by)
	}
	return nil
}

// options returns what the daemon takes, nil for none.
func (o *processOptions) options(c *config.Config) *process.Options {
	if o.disable {
		return nil
	}
	opts := &process.Options{ByWorker: o.by == "worker"}
	for _, p := range c.Process {
		opts.Daemons = append(opts.Daemons, process.Daemon{Namespace: p.Namespace, PidFile: p.PidFile})
	}
	for _, p := range c.Pools {
		if p.GunicornControl != "" {
			opts.Sources = append(opts.Sources, process.Source{Pool: p.Name, Server: process.Gunicorn, Address: p.GunicornControl})
		}
		if p.UWSGIStats != "" {
			opts.Sources = append(opts.Sources, process.Source{Pool: p.Name, Server: process.UWSGI, Address: p.UWSGIStats})
		}
	}
	return opts
}
