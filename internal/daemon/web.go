package daemon

import (
	"time"

	"aggregatord/internal/api"
	"aggregatord/internal/buildinfo"
	"aggregatord/internal/pool"
	"aggregatord/internal/status"
	"aggregatord/internal/telemetry"
)

// newAPI returns what answers questions about the daemon that is being started.
func newAPI(collector *pool.Collector, set *telemetry.Set, reloader *reloader) *api.API {
	info := buildinfo.Get()
	return api.New(api.Options{
		Collector: collector,
		Gather:    gatherer{collector: collector, set: set}.all,
		Build:     status.Build{Version: info.Version, Revision: info.Revision, GoVersion: info.GoVersion},
		Started:   time.Now(),
		Config:    reloader.status,
	})
}

// status tells the configuration in force.
func (r *reloader) status() status.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := status.Config{
		Settings: r.opts.Settings, File: r.inForce.File(),
		RestartKeys: restartKeys(r.opts.Config, r.inForce, r.opts.ByFlag),
	}
	if c.File != "" {
		c.YAML = string(r.inForce.YAML())
		c.Loaded = r.okTime.Value()
	}
	if r.failed != nil {
		c.Error = r.failed.Error()
	}
	return c
}
