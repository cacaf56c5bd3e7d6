package demo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.uber.org/zap"
)

// Defaults for who has no opinion. Those that are not zero's meaning in Options are for
// the command line.
const (
	DefaultWorkers           = 4
	DefaultRequestsPerSecond = 200
	DefaultMaxRequests       = 400
	DefaultKillEvery         = 20 * time.Second
)

// Options of Run.
type Options struct {
	// Dir is where the workers write their source files. It is made if it does not exist,
	// and left as it is in the end.
	Dir string
	// Workers is how many processes work at once. Default: DefaultWorkers.
	Workers int
	// RequestsPerSecond is what all workers together get. Default: DefaultRequestsPerSecond.
	RequestsPerSecond float64
	// MaxRequests is about how many requests a worker answers before another takes its
	// place: each draws its own limit, up to a fifth more or less. 0: no limit.
	MaxRequests int
	// KillEvery is the mean time between two SIGKILLs, each of a random worker. 0: none.
	KillEvery time.Duration
	// Seed of everything random but the time. Workers with one seed and one number, which
	// counts them as they are started, get the same requests.
	Seed uint64
	// Logger may be nil. Workers that come and go are logged at debug level.
	Logger *zap.Logger
}

func (o *Options) fill() {
	o.Workers = cmp.Or(o.Workers, DefaultWorkers)
	o.RequestsPerSecond = cmp.Or(o.RequestsPerSecond, DefaultRequestsPerSecond)
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

// WorkerArgs are the arguments with which Run executes its own program again. The program
// must call Worker then, with its standard input.
func WorkerArgs() []string { return []string{"demo", "worker"} }

const (
	// stopTimeout is how long a worker may take to end after SIGTERM.
	stopTimeout = 5 * time.Second
	// failurePause is how long a worker that failed waits for its successor, so that a full
	// disk does not turn the demo into a busy loop.
	failurePause = time.Second
)

// master keeps the workers running.
//
//	goroutine                   started by  ends when
//	one for each place          Run         its context is done and its worker is gone
//	the killer                  Run         its context is done
type master struct {
	opts       Options
	executable string
	log        *zap.Logger
	started    atomic.Uint64

	// mu guards places, the worker in each, nil where there is none at the moment, and
	// victims, those that the killer has killed.
	mu      sync.Mutex
	places  []*os.Process
	victims map[*os.Process]bool
}

// Run starts the workers and replaces those that end, until ctx is done. Then it stops
// them with SIGTERM, or SIGKILL where that does not help within some seconds, and returns nil
// once all are gone. An error means that the directory could not be made or no process be
// started.
func Run(ctx context.Context, opts Options) error {
	opts.fill()
	if opts.Workers < 0 || opts.RequestsPerSecond < 0 || opts.MaxRequests < 0 || opts.KillEvery < 0 {
		return errors.New("demo: workers, rate, limit and time between kills cannot be negative")
	}
	executable, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program to run as worker: %w", err)
	}
	if err := os.MkdirAll(opts.Dir, 0o755); err != nil {
		return fmt.Errorf("make the demo's directory: %w", err)
	}
	m := &master{
		opts: opts, executable: executable, log: opts.Logger, places: make([]*os.Process, opts.Workers),
		victims: map[*os.Process]bool{},
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, opts.Workers)
	var all sync.WaitGroup
	for place := range opts.Workers {
		all.Go(func() {
			if errs[place] = m.keep(ctx, place); errs[place] != nil {
				stop()
			}
		})
	}
	if opts.KillEvery > 0 {
		all.Go(func() { m.killNowAndThen(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// keep has a worker in this place until ctx is done.
func (m *master) keep(ctx context.Context, place int) error {
	for ctx.Err() == nil {
		var stderr bytes.Buffer
		cmd := m.command(ctx, &stderr)
		if err := m.start(cmd, place); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("start a worker: %w", err)
		}
		pid := zap.Int("pid", cmd.Process.Pid)
		err := cmd.Wait()
		m.setPlace(place, nil)
		victim := m.wasVictim(cmd.Process)

		status, _ := cmd.ProcessState.Sys().(syscall.WaitStatus)
		killed := status.Signaled() && status.Signal() == syscall.SIGKILL
		switch {
		case ctx.Err() != nil && killed && !victim:
			m.log.Warn("demo worker did not stop in time and was killed", pid)
		case ctx.Err() != nil:
		case err == nil:
			m.log.Debug("demo worker has had its requests; another takes its place", pid)
		case killed:
			m.log.Debug("demo worker was killed; another takes its place", pid)
		default:
			m.log.Warn("demo worker failed; another will take its place", pid, zap.Error(err),
				zap.String("stderr", strings.TrimSpace(stderr.String())))
			sleep(ctx, failurePause)
		}
	}
	return nil
}

// command prepares a worker process, which gets SIGTERM when ctx is done.
func (m *master) command(ctx context.Context, stderr *bytes.Buffer) *exec.Cmd {
	cmd := exec.CommandContext(ctx, m.executable, WorkerArgs()...)
	cmd.Stderr = stderr
	// In a process group of its own it does not get the terminal's Ctrl-C, which is for
	// the master: it would end on its own, and be replaced in the midst of stopping.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTimeout
	return cmd
}

// start starts a worker and tells it what to do. The pipe to its standard input is then
// held open until it has ended: the kernel closes it when the master dies, however that
// happens, and the worker takes that as the order to end. PR_SET_PDEATHSIG would be Linux
// only, and bound to the thread that happened to start the process.
func (m *master) start(cmd *exec.Cmd, place int) error {
	order, err := json.Marshal(orders{
		Dir:               m.opts.Dir,
		RequestsPerSecond: m.opts.RequestsPerSecond / float64(m.opts.Workers),
		MaxRequests:       m.opts.MaxRequests,
		Seed:              m.opts.Seed,
		Number:            m.started.Add(1),
	})
	if err != nil {
		return err
	}
	stdin, err := cmd.StdinPipe() // Wait closes it
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.setPlace(place, cmd.Process)
	// The pipe has room for it, and an error means that the worker is gone already, which
	// Wait tells better.
	_, _ = stdin.Write(append(order, '\n'))
	return nil
}

func (m *master) setPlace(place int, p *os.Process) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.places[place] = p
}

// killNowAndThen kills workers until ctx is done.
func (m *master) killNowAndThen(ctx context.Context) {
	rng := rand.New(rand.NewPCG(m.opts.Seed, 0)) // workers are numbered from 1
	for sleep(ctx, time.Duration(rng.ExpFloat64()*float64(m.opts.KillEvery))) {
		m.killOne(rng)
	}
}

// killOne kills a worker as the kernel does when memory is short.
func (m *master) killOne(rng *rand.Rand) {
	m.mu.Lock()
	defer m.mu.Unlock()
	running := slices.DeleteFunc(slices.Clone(m.places), func(p *os.Process) bool { return p == nil })
	if len(running) == 0 {
		return
	}
	// One that has just ended is an error, and as good. Its pid cannot be somebody else's:
	// os.Process knows whether it was waited for.
	victim := running[rng.IntN(len(running))]
	_ = victim.Kill()
	m.victims[victim] = true
}

// wasVictim reports, once, whether a worker that has ended was killed by the killer.
func (m *master) wasVictim(p *os.Process) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	defer delete(m.victims, p)
	return m.victims[p]
}

// sleep reports false if ctx is done before d is over.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
