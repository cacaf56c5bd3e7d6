package main

import (
	"context"

	"aggregatord/internal/exposition"
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/serve"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// A gatherer is the daemon's way from files to snapshots, in this process: for counting
// allocations and for profiles.
type gatherer struct {
	pools *fleet.Fleet
	set   *telemetry.Set
}

// newGatherer opens a directory for reading only.
func newGatherer(dir string) (*gatherer, error) {
	g := &gatherer{set: telemetry.NewSet()}
	var err error
	if g.pools, err = fleet.New(fleet.Options{Pools: []pool.Spec{{Path: dir}}, Set: g.set}); err != nil {
		return nil, err
	}
	g.pools.Pool("").Tend(true)
	return g, nil
}

// Gather implements serve.Gatherer.
func (g *gatherer) Gather(ctx context.Context, _ serve.Request) ([]*view.Snapshot, error) {
	workers, err := g.pools.View(ctx, fleet.Selection{})
	if err != nil {
		return nil, err
	}
	return []*view.Snapshot{workers, g.set.Snapshot()}, nil
}

func (g *gatherer) close() error { return g.pools.Close() }

// encode gathers and appends the exposition to dst, as every scrape does.
func (g *gatherer) encode(dst []byte, e *exposition.Encoder) ([]byte, error) {
	snaps, err := g.Gather(context.Background(), serve.Request{})
	if err != nil {
		return dst, err
	}
	dst = e.Append(dst, exposition.Format{}, exposition.Filter{}, snaps...)
	for _, s := range snaps {
		s.Release()
	}
	return dst, nil
}

var _ serve.Gatherer = (*gatherer)(nil)
