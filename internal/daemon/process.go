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
	o.Store = processStore{pools}
	return process.New(o)
}

// processStore keeps what was counted of a pool's processes beside its archive.
type processStore struct{ pools *fleet.Fleet }

// processFile is the name of what is kept, and processBytes how long it may be.
const (
	processFile  = "processes"
	processBytes = 16 << 20
)

// Load implements process.Store.
func (s processStore) Load(name string) ([]byte, error) {
	if p := s.pool(name); p != nil {
		return p.Kept(processFile, processBytes)
	}
	return nil, nil
}

// Save implements process.Store.
func (s processStore) Save(name string, state []byte) error {
	if p := s.pool(name); p != nil {
		return p.Keep(processFile, state)
	}
	return nil
}

// pool returns the pool of a name; nil if it has been removed meanwhile.
func (s processStore) pool(name string) *pool.Pool {
	for _, p := range s.pools.Pools() {
		if p.Spec().Name == name {
			return p
		}
	}
	return nil
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
func (g gatherer) processesBeside(workers *view.Snapshot, sel fleet.Selection) []*view.Snapshot {
	switch {
	case g.processes == nil:
		return nil
	case len(sel.Pools) > 0:
		return []*view.Snapshot{process.AsideOnce(g.processes.Some(sel.Pools, sel.Bare), workers.Layout)}
	}
	return []*view.Snapshot{g.allProcesses(workers.Layout)}
}

// allProcesses returns the process metrics of all pools as they are shown beside the workers' own,
// nil if processes are not watched.
func (g gatherer) allProcesses(workers *view.Layout) *view.Snapshot {
	if g.processes == nil {
		return nil
	}
	return g.processes.Aside(g.processes.All(), workers)
}
