package daemon

import (
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/process"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"

	"go.uber.org/zap"
)

// newObserver returns what watches the processes of the pools, or nil if nothing should.
func newObserver(opts Options, pools *fleet.Fleet, set *telemetry.Set) *process.Observer {
	if opts.Processes == nil {
		return nil
	}
	o := *opts.Processes
	o.Logger, o.Metrics = opts.Logger.With(zap.String("room", "process")), process.NewMetrics(set)
	o.Pools = func() []process.Pool {
		var watched []process.Pool
		for _, p := range pools.Pools() {
			watched = append(watched, watchedPool{p})
		}
		return watched
	}
	return process.New(o)
}

// watchedPool is a pool as package process needs it.
type watchedPool struct{ *pool.Pool }

func (p watchedPool) Name() string { return p.Spec().Name }

func (p watchedPool) Files() []process.FileID {
	open := p.OpenFiles()
	files := make([]process.FileID, len(open))
	for i, f := range open {
		files[i] = process.FileID{Dev: f.Dev, Ino: f.Ino, Name: f.Name, Worker: f.Worker}
	}
	return files
}

// processesBeside returns the process metrics as they are served beside the workers' own.
func (g gatherer) processesBeside(workers *view.Snapshot) []*view.Snapshot {
	if g.processes == nil {
		return nil
	}
	return []*view.Snapshot{g.processes.Aside(g.processes.All(), workers.Layout)}
}
