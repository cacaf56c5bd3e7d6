package main

import (
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/pool"
)

// archiveOptions says how the archive of dead workers is kept.
type archiveOptions struct {
	dir            string
	disable        bool
	rest           time.Duration
	gaugeRetention time.Duration
	gaugeWorkers   int
}

func (o *archiveOptions) addFlags(f *pflag.FlagSet) {
	o.addDirFlag(f)
	f.BoolVar(&o.disable, "archive.disable", false, "only read: leave the files of dead workers where they are, and count them there")
	durationVar(f, &o.rest, "archive.rest", pool.DefaultRest, "how long a worker must be dead before its files are archived, so that hooks\nof the application that run at its death still find them; shorter when the\nfile system is nearly full")
	durationVar(f, &o.gaugeRetention, "archive.gauge-retention", pool.DefaultGaugeRetention, "how long the gauges of a dead worker in mode all are served; 0 means for ever")
	f.IntVar(&o.gaugeWorkers, "archive.gauge-workers", pool.DefaultGaugeWorkers, "the gauges of at most this many dead `WORKERS` are served; 0 is no limit")
}

// addDirFlag adds the flag that read-only commands need, too.
func (o *archiveOptions) addDirFlag(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "archive.dir", "", "`DIR` for the archive of dead workers; with named directories, DIR/NAME\n(default: hidden files in each directory)")
}

func (o *archiveOptions) validate() error {
	if o.gaugeRetention < 0 {
		return usagef("--archive.gauge-retention %v must not be negative", o.gaugeRetention)
	}
	if o.rest < 0 {
		return usagef("--archive.rest %v must not be negative", o.rest)
	}
	if o.gaugeWorkers < 0 {
		return usagef("--archive.gauge-workers %d must not be negative", o.gaugeWorkers)
	}
	return nil
}

// options returns what the pool takes, where 0 means the default and -1 no bound.
func (o *archiveOptions) options() *pool.ArchiveOptions {
	if o.disable {
		return nil
	}
	a := &pool.ArchiveOptions{Rest: o.rest, GaugeRetention: o.gaugeRetention, GaugeWorkers: o.gaugeWorkers}
	if a.Rest == 0 {
		a.Rest = -1
	}
	if a.GaugeRetention == 0 {
		a.GaugeRetention = -1
	}
	if a.GaugeWorkers == 0 {
		a.GaugeWorkers = -1
	}
	return a
}
