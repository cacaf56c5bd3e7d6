package daemon

import (
	"fmt"
	"maps"

	"go.uber.org/zap"

	"aggregatord/internal/api"
	"aggregatord/internal/discover"
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/process"
	"aggregatord/internal/serve"
	"aggregatord/internal/status"
	"aggregatord/internal/telemetry"
)

// newFinder returns what finds pools that come and go, which has looked once, or nil if nothing
// should be looked for.
func newFinder(opts Options, pools *fleet.Fleet, observer *process.Observer, set *telemetry.Set) *discover.Finder {
	if opts.Discovery == nil {
		return nil
	}
	o := *opts.Discovery
	o.Static, o.Set, o.Logger = opts.Fleet.Pools, set, opts.Logger.With(zap.String("room", "discover"))
	o.Add = pools.Add
	o.Change = func(s pool.Spec) error { return pools.SetSettings(s.Name, s.Labels, s.Own) }
	o.Remove = func(name string) error {
		if observer != nil {
			observer.Save(name)
		}
		return pools.Remove(name)
	}
	o.OnRound = opts.Fleet.OnTend // while there is no pool, nobody else says that all is well
	o.Writing = func(name string) bool {
		p := pools.Pool(name)
		return p != nil && p.Writing()
	}
	f := discover.New(o)
	f.Round()
	return f
}

// closeFinder gives up what the finder holds.
func closeFinder(f *discover.Finder, log *zap.Logger) {
	if f == nil {
		return
	}
	if err := f.Close(); err != nil {
		log.Warn("discovery did not end cleanly", zap.Error(err))
	}
}

// noPool is the error for pools that are not served.
func (g gatherer) noPool(names []string, err error) error {
	if g.finder != nil {
		for _, name := range names {
			if why, ok := g.finder.Gone(name); ok {
				return fmt.Errorf("%w: %q was removed: %s", serve.ErrNoPool, name, why)
			}
		}
	}
	return fmt.Errorf("%w: %w", serve.ErrNoPool, err)
}

// poolReady tells why a pool cannot be scraped.
func (g gatherer) poolReady(name string) error {
	p := g.pools.Pool(name)
	switch {
	case p == nil:
		return g.noPool([]string{name}, fmt.Errorf("%w: %q", fleet.ErrNoPool, name))
	case !p.Ready():
		return fmt.Errorf("%w: %q", fleet.ErrComing, name)
	case g.pools.IsSilent(name):
		return fmt.Errorf("pool %q: %w", name, pool.ErrSilent)
	}
	return nil
}

// discovery tells how the search for pools went, and where they came from.
func (g gatherer) discovery() (status.Discovery, map[string]api.Origin) {
	r := g.finder.Report()
	origins := map[string]api.Origin{}
	for name, o := range g.finder.Origins() {
		origins[name] = api.Origin{Source: o.From, Vanished: o.Vanished, Until: o.Until}
	}
	return status.Discovery{
		LeftOut: r.LeftOut, Limit: r.Limit, Problems: append([]string{}, r.Problems...), Hints: append([]string{}, r.Hints...),
	}, origins
}

// targets lists the pools for Prometheus.
func (g gatherer) targets() []serve.Target {
	var all []serve.Target
	for _, p := range g.pools.Pools() {
		spec := p.Spec()
		t := serve.Target{Pool: spec.Name, Labels: map[string]string{"__meta_aggregatord_dir": spec.Dir()}}
		for _, l := range g.pools.TargetLabels(spec) {
			t.Labels[l.Name] = l.Value
		}
		if g.finder != nil {
			maps.Copy(t.Labels, g.finder.Meta(spec.Name))
		}
		all = append(all, t)
	}
	return all
}
