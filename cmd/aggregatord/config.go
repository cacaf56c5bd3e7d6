package main

import (
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/config"
)

// configOptions says where the configuration file is.
type configOptions struct {
	file string
	// loaded is what it says, after load.
	loaded *config.Config
	// byFlag are the keys of the file that flags override.
	byFlag []string
}

func (o *configOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.file, "config.file", "", "`FILE` with rules for metrics, limits and pools, in YAML; flags win over it")
}

// load reads the file, if one is given, and has it say what the flags leave open.
func (o *configOptions) load(flags *pflag.FlagSet, dirs *dirOptions, archive *archiveOptions) error {
	o.loaded = new(config.Config)
	if o.file != "" {
		c, err := config.Load(o.file)
		if err != nil {
			return usageError{err}
		}
		o.loaded = c
	}
	// given reports whether a flag wins, and remembers so.
	given := func(flag, key string) bool {
		if !flags.Changed(flag) {
			return false
		}
		o.byFlag = append(o.byFlag, key)
		return true
	}
	if !given("dir", "pools") {
		dirs.configured = o.loaded.Pools
	}
	in := o.loaded.Archive
	if !given("archive.dir", "archive.dir") && in.Dir != nil {
		archive.dir = *in.Dir
	}
	if !given("archive.disable", "archive.disable") && in.Disable != nil {
		archive.disable = *in.Disable
	}
	if !given("archive.rest", "archive.rest") && in.Rest != nil {
		archive.rest = time.Duration(*in.Rest)
	}
	if !given("archive.gauge-retention", "archive.gauge_retention") && in.GaugeRetention != nil {
		archive.gaugeRetention = time.Duration(*in.GaugeRetention)
	}
	if !given("archive.gauge-workers", "archive.gauge_workers") && in.GaugeWorkers != nil {
		archive.gaugeWorkers = *in.GaugeWorkers
	}
	if !given("archive.mirror", "archive.mirror") && in.Mirror != nil {
		archive.mirror = *in.Mirror
	}
	if !given("archive.mirror-wait", "archive.mirror_wait") && in.MirrorWait != nil {
		archive.mirrorWait = time.Duration(*in.MirrorWait)
	}
	if !given("archive.mirror-files", "archive.mirror_files") && in.MirrorFiles != nil {
		archive.mirrorFiles = *in.MirrorFiles
	}
	return nil
}
