package main

import (
	"context"

	"aggregatord/internal/exposition"
	"aggregatord/internal/pool"
	"aggregatord/internal/serve"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// A gatherer is the daemon's way from files to snapshots, in this process: for counting
// allocations and for profiles.
type gatherer struct {
	collector *pool.Collector
	set       *telemetry.Set
}

// newGatherer opens a directory for reading only.
func newGatherer(dir string) (*gatherer, error) {
	g := &gatherer{set: telemetry.NewSet()}
	var err error
	if g.collector, err = pool.New(pool.Options{Dirs: []pool.DirSpec{{Path: dir}}, Metrics: pool.NewMetrics(g.set)}); err != nil {
		return nil, err
	}
	g.set.OnSnapshot(g.collector.UpdateMetrics)
	g.collector.Tend(true)
	return g, nil
}

// Gather implements serve.Gatherer.
func (g *gatherer) Gather(ctx context.Context, _ serve.Request) ([]*view.Snapshot, error) {
	workers, err := g.collector.Gather(ctx)
	if err != nil {
		return nil, err
	}
	return []*view.Snapshot{workers, g.set.Snapshot()}, nil
}

func (g *gatherer) close() error { return g.collector.Close() }

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
