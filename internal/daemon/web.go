package daemon

import (
	"net"
	"os"
	"strings"
	"time"

	"aggregatord/internal/api"
	"aggregatord/internal/buildinfo"
	"aggregatord/internal/output"
	"aggregatord/internal/status"
)

// newAPI returns what answers questions about the daemon that is being started.
func newAPI(g gatherer, reloader *reloader, outputs *output.Outputs) *api.API {
	info := buildinfo.Get()
	var processes func() []status.Process
	if g.processes != nil {
		processes = g.processes.Processes
	}
	var search func() (status.Discovery, map[string]api.Origin)
	if g.finder != nil {
		search = g.discovery
	}
	return api.New(api.Options{
		Fleet:     g.pools,
		Discovery: search,
		Gather:    g.all,
		Processes: processes,
		Build:     status.Build{Version: info.Version, Revision: info.Revision, GoVersion: info.GoVersion},
		Started:   time.Now(),
		Config:    reloader.status,
		Outputs:   outputs.Status,
	})
}

// ownNames lists the host names that are ours: those that are listened on, and that of the
// machine.
func ownNames(opts Options) []string {
	var names []string
	for _, addr := range opts.ListenAddresses {
		if strings.HasPrefix(addr, UnixPrefix) {
			continue
		}
		if host, _, err := net.SplitHostPort(addr); err == nil && host != "" {
			names = append(names, host)
		}
	}
	if name, err := os.Hostname(); err == nil && name != "" {
		names = append(names, name)
	}
	return names
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
