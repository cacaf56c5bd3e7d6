package main

import (
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/config"
	"aggregatord/internal/daemon"
	"aggregatord/internal/discover"
)

// discoverOptions says which pools are found that nobody has named.
type discoverOptions struct {
	processes bool
	retention time.Duration
	loaded    *config.Config
}

func (o *discoverOptions) addFlags(f *pflag.FlagSet) {
	o.addFlag(f, "serve")
	durationVar(f, &o.retention, "discover.retention", discover.DefaultRetention,
		"how long a found pool is served after its directory\nor last process is gone")
}

// addFlag is addFlags for a command that looks once.
func (o *discoverOptions) addFlag(f *pflag.FlagSet, verb string) {
	f.BoolVar(&o.processes, "discover", false,
		verb+" the directories that running processes write to, or name in PROMETHEUS_MULTIPROC_DIR,\nalso those of containers")
}

func (o *discoverOptions) validate() error {
	if o.retention <= 0 {
		return usagef("--discover.retention %v: use a time above 0", o.retention)
	}
	return nil
}

// on reports whether anything is looked for beside patterns.
func (o *discoverOptions) on(c *config.Config) bool {
	o.loaded = c
	return o.processes || len(c.Discovery) > 0
}

// sources are what finds pools beside patterns.
func (o *discoverOptions) sources() (sources []discover.Source) {
	byProcess := o.processes
	for _, d := range o.loaded.Discovery {
		if k := d.Kubelet; k != nil {
			sources = append(sources, discover.NewKubelet(discover.Kubelet{
				Root: k.Root, Logs: k.Logs, Volume: k.Volume, Settings: k.Settings, ReadSettings: config.ReadPoolSettings,
			}))
		}
		if p := d.Processes; p != nil {
			byProcess = false
			sources = append(sources, discover.NewProcesses(discover.Processes{
				Path: p.Path, User: p.User, Unit: p.Unit,
				Command: p.Command,
			}))
		}
	}
	if byProcess {
		sources = append(sources, discover.NewProcesses(discover.Processes{}))
	}
	return sources
}

// apply puts what was asked for into the daemon's options.
func (o *discoverOptions) apply(opts *daemon.Options, patterns []discover.Pattern) {
	var sources []discover.Source
	for _, p := range patterns {
		sources = append(sources, discover.NewPattern(p))
	}
	sources = append(sources, o.sources()...)
	if len(sources) == 0 {
		return
	}
	opts.Discovery = &discover.Options{Sources: sources, Retention: o.retention}
	if n := o.loaded.Limits.Pools; n != nil {
		opts.Discovery.MaxPools = *n
	}
}
