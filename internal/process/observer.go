package process

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/procfs"
	"go.uber.org/zap"

	"aggregatord/internal/telemetry"
)

// A Pool is what the room needs to know of one.
type Pool interface {
	// Name is empty for the only pool of a daemon that has no name.
	Name() string
	// Files lists the source files that some process may still write to, as far as the pool
	// knows. It is called once for each sample.
	Files() []FileID
}

// A FileID says what a source file is.
type FileID struct {
	Dev, Ino uint64
	// Name is its name in the directory; where the kernel tells another device in maps than
	// by stat (btrfs, overlayfs), the name is compared in place of it.
	Name string
	// Worker is the worker ID in the name, often a pid.
	Worker string
}

// A Daemon is a process beside the pools that is watched in the same way.
type Daemon struct {
	// Namespace is put before the names of its metrics, with a _.
	Namespace string
	// PidFile holds its pid, in digits. It is read again for each sample.
	PidFile string
}

// A Store keeps the state of a pool's counters for the next daemon. Its methods are called
// by Sample only.
type Store interface {
	// Load returns what Save was given last for the pool, or nil.
	Load(pool string) ([]byte, error)
	// Save is called when something changed that cannot be seen again, and now and then.
	Save(pool string, state []byte) error
}

// Options of an Observer. Zero fields mean the defaults given.
type Options struct {
	// Pools returns the pools there are. It must be cheap.
	Pools func() []Pool
	// Daemons are other processes to be watched.
	Daemons []Daemon
	// Sources are servers that tell how busy they are, if asked.
	Sources []Source
	// ByWorker gives the process metrics of a pool a label worker: the number of a slot, which
	// is used again when its worker has ended, or master.
	ByWorker bool
	// Slots is how many slots there are; workers beyond share the slot other. Default: 256.
	Slots int
	// MaxProcesses is how many processes of one pool are read; others are left out, and that
	// is said. Default: 4096.
	MaxProcesses int
	// Store may be nil: then counters begin anew with each daemon, with what the living
	// processes show.
	Store Store
	// Interval is the longest time between two samples. Default: 5 s.
	Interval time.Duration
	// Proc is where procfs is mounted. Default: /proc.
	Proc string
	// Cgroup is where the cgroup file systems are mounted. Default: /sys/fs/cgroup.
	Cgroup string
	// Logger may be nil.
	Logger *zap.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// DefaultInterval is the longest time between two samples unless told otherwise.
const DefaultInterval = 5 * time.Second

// minInterval is the shortest.
const minInterval = time.Second

func (o *Options) fill() {
	if o.Pools == nil {
		o.Pools = func() []Pool { return nil }
	}
	o.Slots = cmp.Or(o.Slots, 256)
	o.MaxProcesses = cmp.Or(o.MaxProcesses, 4096)
	o.Interval = cmp.Or(o.Interval, DefaultInterval)
	o.Proc = cmp.Or(o.Proc, "/proc")
	o.Cgroup = cmp.Or(o.Cgroup, "/sys/fs/cgroup")
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(telemetry.NewSet())
	}
}

// Metrics are the room's own metrics.
type Metrics struct {
	visible   telemetry.GaugeVec   // pool
	omitted   telemetry.GaugeVec   // pool
	samples   telemetry.Counter    //
	seconds   telemetry.Histogram  //
	errors    telemetry.CounterVec // what
	aside     telemetry.Gauge      //
	sourcesUp telemetry.GaugeVec   // pool, server
	stateErrs telemetry.Counter    //
}

// NewMetrics adds the room's metrics to set.
func NewMetrics(set *telemetry.Set) *Metrics {
	m := &Metrics{
		visible: set.GaugeVec("aggregatord_pool_processes",
			"Processes of the pool that are seen, the master among them; 0: none is, and the pool has no process metrics.", "pool"),
		omitted: set.GaugeVec("aggregatord_pool_processes_omitted",
			"Processes of the pool that are not read, because there are more than the limit.", "pool"),
		samples: set.Counter("aggregatord_process_samples_total", "Times the processes of all pools were read."),
		seconds: set.Histogram("aggregatord_process_sample_duration_seconds", "Time to read the processes of all pools.",
			[]float64{.0005, .001, .002, .005, .01, .025, .05, .1, .25, .5, 1}),
		errors: set.CounterVec("aggregatord_process_read_errors_total",
			"Reads of a process that failed although it exists, by what was read.", "what"),
		aside: set.Gauge("aggregatord_process_families_aside",
			"Families about processes that are not served, because workers write metrics of the same names."),
		sourcesUp: set.GaugeVec("aggregatord_pool_server_up", "1 if the server answered the last question about how busy it is.", "pool",
			"server"),
		stateErrs: set.Counter("aggregatord_process_state_errors_total",
			"Times the state of the process counters could not be loaded or saved."),
	}
	return m
}

// An Observer watches processes. It is safe for several goroutines.
type Observer struct {
	opts   Options
	logger *zap.Logger
	fs     procfs.FS
	kernel kernel
	bootID string
	// bootTime is when the machine was started, in Unix seconds; 0: there is no procfs.
	bootTime float64
	ticks    float64 // of the clock, per second
	pageSize float64
	since    uint64 // when the Observer was made, in clock ticks after boot
	network  uint64 // inode of our network namespace

	// lastScrape and interval are in nanoseconds: when a scrape was last told of, and how far
	// apart scrapes are.
	lastScrape, interval atomic.Int64

	// sampled is what the last sample has found; it is never nil. allMu guards shape, which keeps
	// the layout of all.
	sampled atomic.Pointer[sampled]
	allMu   sync.Mutex
	shape   snapshots

	// mu guards everything below but what is in the groups that says otherwise. It is held
	// while a sample reads.
	mu     sync.Mutex
	groups []*group
	// strangers are processes that were looked into and are none of ours, by pid.
	strangers map[int]*stranger
	lookedAll lookedAll
	// newest is the process that was made last when all were listed, and listed the list.
	newest     string
	listed     []int
	buf        []byte // for reading files of /proc
	keptStats  int    // how many procs have a statFD
	generation uint64 // of the samples
	credit     credits
	unreadable int // strangers that may be ours, but cannot be looked into
	cgroups    cgroups
	runtimes   map[[2]uint64]runtime // by program

	// asideMu guards aside, which is what of a layout is left out beside another.
	asideMu sync.Mutex
	aside   aside
	sources []*source
}

// New returns an Observer that has not looked at anything yet. It starts nothing.
func New(opts Options) *Observer {
	opts.fill()
	o := &Observer{
		opts: opts, logger: opts.Logger, strangers: map[int]*stranger{}, runtimes: map[[2]uint64]runtime{},
		ticks: clockTicks, pageSize: float64(os.Getpagesize()), kernel: newKernel(), since: uptime(),
	}
	o.sampled.Store(&sampled{})
	o.cgroups.mount = opts.Cgroup
	_, o.network, _ = identity(filepath.Join(opts.Proc, "self/ns/net"))
	if fs, err := procfs.NewFS(opts.Proc); err == nil {
		o.fs = fs
		if s, err := fs.Stat(); err == nil {
			o.bootTime = float64(s.BootTime)
		}
	}
	if id, err := os.ReadFile(filepath.Join(opts.Proc, "sys/kernel/random/boot_id")); err == nil {
		// Pids of another namespace are not comparable either.
		ns, _ := os.Readlink(filepath.Join(opts.Proc, "self/ns/pid"))
		o.bootID = strings.TrimSpace(string(id)) + " " + ns
	}
	for i, d := range opts.Daemons {
		o.groups = append(o.groups, newGroup(o, "", d.Namespace, nil, &opts.Daemons[i]))
	}
	for _, s := range opts.Sources {
		o.sources = append(o.sources, &source{Source: s, o: o})
	}
	return o
}

// Scraped tells that a scrape was answered: samples keep up with scrapes.
func (o *Observer) Scraped() {
	now := time.Now().UnixNano()
	if last := o.lastScrape.Swap(now); last != 0 {
		o.interval.Store(now - last)
	}
}

// wait is how long to wait for the next sample.
func (o *Observer) wait(samples int) time.Duration {
	if samples < 10 && !o.seen() {
		return min(minInterval, o.opts.Interval) // the pools are being read for the first time
	}
	if i := time.Duration(o.interval.Load()); i > 0 {
		return min(max(i, minInterval), o.opts.Interval)
	}
	return o.opts.Interval
}

// seen reports whether any process of a pool was ever seen.
func (o *Observer) seen() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.groups, func(g *group) bool { return g.pool != nil && g.seen })
}

// Run takes samples until ctx is done; at its end it takes a last one, for the state.
func (o *Observer) Run(ctx context.Context) {
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, s := range o.sources {
		// Asks one server again and again; ends when ctx is done.
		asking.Go(func() { s.run(ctx) })
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for samples := 0; ; samples++ {
		select {
		case <-ctx.Done():
			o.sample(final)
			o.close()
			return
		case <-timer.C:
		}
		o.Sample()
		timer.Reset(o.wait(samples))
	}
}

// close gives up the descriptors that are held.
func (o *Observer) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, g := range o.groups {
		for _, p := range g.procs {
			o.release(p)
		}
	}
}

// Sample reads all processes once.
func (o *Observer) Sample() { o.sample(regular) }

// Refresh reads the processes that are known once more. It looks for no others, and says nothing of
// pools whose processes are not seen: it is for the end, when those have just ended.
func (o *Observer) Refresh() { o.sample(refresh) }

// An occasion is why a sample is taken.
type occasion int

const (
	regular occasion = iota
	refresh
	final // the last one of Run
)

func (o *Observer) sample(why occasion) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.bootTime == 0 {
		return // there is no procfs; Run has nothing to do
	}
	start := time.Now()
	o.matchGroupsLocked()
	if why != refresh {
		o.discoverLocked(start)
	}
	o.credit.grow()
	for _, g := range o.groups {
		g.read(start)
	}
	o.queuesLocked()
	o.generation++
	for _, g := range o.groups {
		g.publish(start, why)
	}
	o.publishLocked()
	o.opts.Metrics.samples.Inc()
	o.opts.Metrics.seconds.Observe(time.Since(start).Seconds())
}

// matchGroupsLocked has one group for each pool.
func (o *Observer) matchGroupsLocked() {
	pools := o.opts.Pools()
	known := map[string]*group{}
	for _, g := range o.groups {
		if g.pool != nil {
			known[g.name] = g
		}
	}
	kept := o.groups[:0:0]
	for _, g := range o.groups {
		if g.daemon != nil {
			kept = append(kept, g)
		}
	}
	for _, p := range pools {
		g := known[p.Name()]
		delete(known, p.Name())
		if g == nil {
			g = newGroup(o, p.Name(), "", p, nil)
			g.load()
		}
		g.pool = p
		g.files = p.Files()
		kept = append(kept, g)
	}
	for _, g := range known {
		g.drop()
	}
	o.groups = kept
}

// readFile reads a small file of /proc into the buffer that all share; the result is valid
// until the next call. A file that is longer than limit is cut.
func (o *Observer) readFile(path string, limit int) ([]byte, error) {
	return o.kernel.read(&o.buf, path, limit)
}

// readStat reads what /proc/PID/stat says; the result is valid until the next call.
func (o *Observer) readStat(pid int) ([]byte, error) {
	return o.kernel.readStat(&o.buf, o.path(pid, "stat"))
}

// path is the path of a file of a process.
func (o *Observer) path(pid int, file string) string {
	return o.opts.Proc + "/" + strconv.Itoa(pid) + "/" + file
}

// failed counts a read that failed. That a process has ended is no failure.
func (o *Observer) failed(what string, err error) {
	if !gone(err) {
		o.opts.Metrics.errors.With(what).Inc()
	}
}

// credits bound what samples spend on reads that are not made of every process each time, in
// nanoseconds. New processes are read at once, whatever that costs.
type credits struct{ cheap, dear time.Duration }

const (
	// cheapCredit is for input, output and context switches, some 30 µs a process.
	cheapCredit = 200 * time.Microsecond
	// dearCredit is for proportional memory and descriptors, 1 ms or more for a large process,
	// during which it cannot change its mappings.
	dearCredit = 200 * time.Microsecond
)

func (c *credits) grow() {
	c.cheap = min(c.cheap+cheapCredit, 2*cheapCredit)
	c.dear = min(c.dear+dearCredit, 2*dearCredit)
}

// spend runs f if there is credit left.
func spend(credit *time.Duration, f func()) bool {
	if *credit <= 0 {
		return false
	}
	start := time.Now()
	f()
	*credit -= time.Since(start)
	return true
}
