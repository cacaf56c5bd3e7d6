package daemon

import (
	"context"
	"slices"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/buildinfo"
	"aggregatord/internal/fleet"
	"aggregatord/internal/output"
	"aggregatord/internal/process"
	"aggregatord/internal/starts"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// newOutputs returns the outputs of the configuration and of the flags.
func newOutputs(opts Options, g gatherer, set *telemetry.Set) (*output.Outputs, error) {
	o := output.New(output.Options{
		Source: allPools{g.pools}, Beside: g.allProcesses, Own: g.own.all, Ready: g.pools.Ready,
		Metrics: output.NewMetrics(set), ExitTimeout: opts.OutputExitTimeout,
		OnPrimed: opts.OnOutputsReady, Version: buildinfo.Get().Version, Logger: opts.Logger,
	})
	return o, o.Apply(slices.Concat(opts.Config.OutputSpecs(), opts.Outputs))
}

// allPools is the view of all pools.
type allPools struct{ *fleet.Fleet }

// Gather implements output.Source.
func (a allPools) Gather(ctx context.Context, withStarts bool) (*view.Snapshot, error) {
	return a.View(ctx, fleet.Selection{Starts: withStarts})
}

// ownMetrics are the daemon's own metrics, with the starts of their values where they are wanted.
type ownMetrics struct {
	set    *telemetry.Set
	starts *starts.Starts
}

func newOwnMetrics(set *telemetry.Set) ownMetrics { return ownMetrics{set, starts.New()} }

func (o ownMetrics) all(withStarts bool) *view.Snapshot { return o.look(o.set.Snapshot, withStarts) }

func (o ownMetrics) essential(withStarts bool) *view.Snapshot {
	return o.look(o.set.Essential, withStarts)
}

func (o ownMetrics) look(take func() *view.Snapshot, withStarts bool) *view.Snapshot {
	at := time.Now()
	snap := take()
	if withStarts {
		snap.Starts = o.starts.Append(snap.Starts[:0], snap, at)
	}
	return snap
}

// lastWords pushes for the last time, with what the processes have used by now.
func lastWords(outputs *output.Outputs, observer *process.Observer, opts Options) {
	if observer != nil && len(outputs.Status()) > 0 {
		observer.Refresh()
	}
	// Each output has its own time; where signals do not end the process, one ends this.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-opts.HurryUp:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := outputs.Last(ctx)
	if opts.OnLastPush != nil {
		opts.OnLastPush(err)
	}
}

// workersPoll is how often workers are looked for that are still alive.
const workersPoll = 100 * time.Millisecond

// afterWorkers returns a context that is done once ctx is and the workers have ended, or have
// taken longer than opts.WaitWorkers.
func afterWorkers(ctx context.Context, pools *fleet.Fleet, opts Options) context.Context {
	if opts.WaitWorkers <= 0 {
		return ctx
	}
	out, stop := context.WithCancel(context.WithoutCancel(ctx))
	context.AfterFunc(ctx, func() {
		defer stop()
		alive := workersAlive(pools)
		if alive == 0 {
			return
		}
		opts.Logger.Info("waiting for workers to end", zap.Int("alive", alive), zap.Duration("for", opts.WaitWorkers))
		start := time.Now()
		for alive > 0 && time.Since(start) < opts.WaitWorkers {
			time.Sleep(workersPoll)
			alive = workersAlive(pools)
		}
		if alive > 0 {
			opts.Logger.Warn("workers are still alive; what they count from now on is not sent", zap.Int("alive", alive))
		}
	})
	return out
}

func workersAlive(pools *fleet.Fleet) int {
	n := 0
	for _, p := range pools.Pools() {
		for _, w := range p.Workers() {
			if w.Alive {
				n++
			}
		}
	}
	return n
}
