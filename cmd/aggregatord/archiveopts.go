package main

import (
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/daemon"
	"aggregatord/internal/fold"
	"aggregatord/internal/pool"
)

// archiveOptions says how the archive of dead workers is kept.
type archiveOptions struct {
	dir            string
	disable        bool
	rest           time.Duration
	gaugeRetention time.Duration
	gaugeWorkers   int
	mirror         string
	mirrorWait     time.Duration
	mirrorFiles    int
}

// What --archive.mirror may be.
const (
	mirrorAuto = "auto"
	mirrorOff  = "off"
	mirrorOnly = "only"
)

func (o *archiveOptions) addFlags(f *pflag.FlagSet) {
	o.addDirFlag(f)
	f.BoolVar(&o.disable, "archive.disable", false, "only read: leave the files of dead workers where they are, and count them there")
	durationVar(f, &o.rest, "archive.rest", pool.DefaultRest,
		"how long a worker must be dead before its files are archived, so that hooks\nof the application that run at its death still find them; shorter when the\nfile system is nearly full")
	durationVar(f, &o.gaugeRetention, "archive.gauge-retention", pool.DefaultGaugeRetention,
		"how long the gauges of a dead worker in mode all are served; 0 means for ever")
	f.IntVar(&o.gaugeWorkers, "archive.gauge-workers", pool.DefaultGaugeWorkers,
		"the gauges of at most this many dead `WORKERS` are served; 0 is no limit")
	f.StringVar(&o.mirror, "archive.mirror", mirrorOff,
		"auto keeps what is archived in files of the client, too, so that an application\nthat serves the directory by itself misses nothing; only does this and serves\nnothing itself, unless it is given an address; `WHAT` is off, auto or only")
	durationVar(f, &o.mirrorWait, "archive.mirror-wait", fold.DefaultMirrorWait,
		"how long a dead worker's file waits for a moment in which nobody reads the\ndirectory; then it is archived all the same; 0 is for ever")
	f.IntVar(&o.mirrorFiles, "archive.mirror-files", fold.DefaultMirrorFiles, "how many `FILES` may wait for that; 0 is any number")
}

// addDirFlag adds the flag that read-only commands need, too.
func (o *archiveOptions) addDirFlag(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "archive.dir", "",
		"`DIR` for the archive of dead workers; with named directories, DIR/NAME\n(default: hidden files in each directory)")
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
	if o.mirror != mirrorAuto && o.mirror != mirrorOff && o.mirror != mirrorOnly {
		return usagef("--archive.mirror %q: use off, auto or only", o.mirror)
	}
	if o.mirror == mirrorOnly && o.disable {
		return usagef("--archive.mirror=only and --archive.disable leave nothing to do; leave one of them out")
	}
	if o.mirrorWait < 0 {
		return usagef("--archive.mirror-wait %v must not be negative", o.mirrorWait)
	}
	if o.mirrorFiles < 0 {
		return usagef("--archive.mirror-files %d must not be negative", o.mirrorFiles)
	}
	return nil
}

// options returns what the pool takes, where 0 means the default and -1 no bound.
func (o *archiveOptions) options() *pool.ArchiveOptions {
	if o.disable {
		return nil
	}
	a := &pool.ArchiveOptions{
		Rest: o.rest, GaugeRetention: o.gaugeRetention, GaugeWorkers: o.gaugeWorkers,
		Mirror: o.mirror != mirrorOff, MirrorWait: orNone(o.mirrorWait), MirrorFiles: orNone(o.mirrorFiles),
	}
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

// only has the daemon do nothing but archive, if that is what was asked for.
func (o *archiveOptions) only(flags *pflag.FlagSet, opts *daemon.Options) {
	if o.mirror != mirrorOnly {
		return
	}
	opts.NoListen = !flags.Changed("web.listen-address") && !opts.SystemdSocket
	opts.Processes = nil
}
