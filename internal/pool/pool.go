// Package pool reads one or several directories of source files into one view: it knows
// which files there are, keeps them open, tells the merge index of their entries, loads
// their values for every snapshot and notices when a process is gone. The daemon and the
// read-only commands use it alike, so there is one way to read a directory.
//
// Its invariant: a counter, histogram or summary file that was once read counts until its
// values are folded, whether it becomes unreadable, is replaced or is removed by somebody
// else; no total falls for a reason that lies in the file system.
//
// What is said of the metrics by a policy is in force from one pass to the next: see
// Collector.SetPolicy.
//
// A Collector that archives folds the files of dead workers: see fold.go for the protocol.
// One that does not never changes anything in a directory.
package pool

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/merge"
	"aggregatord/internal/policy"
	"aggregatord/internal/store"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// DirSpec names one directory.
type DirSpec struct {
	// Pool is the value of the label pool that its series get; empty: none.
	Pool string
	Path string
}

// ParseDirSpec reads what --dir takes: a path, or NAME=PATH.
func ParseDirSpec(s string) (DirSpec, error) {
	d := DirSpec{Path: s}
	if name, path, ok := strings.Cut(s, "="); ok && !strings.Contains(name, "/") {
		d = DirSpec{Pool: name, Path: path}
		if name == "" {
			return d, fmt.Errorf("directory %q: the name before = is empty", s)
		}
	}
	if d.Path == "" {
		return d, fmt.Errorf("directory %q: the path is empty", s)
	}
	return d, nil
}

// Options of a Collector.
type Options struct {
	// Dirs are the directories; at least one. If there are several, each has a Pool.
	Dirs []DirSpec
	// Limits of what is believed of a source file; zero fields mean the store's defaults.
	Limits store.Limits
	// Merge holds the limits of the index.
	Merge merge.Options
	// Policy is what is in force at first, nil for none. Its limits, where it has any, come
	// before the two above.
	Policy *policy.Policy
	// Archive says what becomes of dead workers' files. Nil: nothing, they are only read, and
	// so is the archive that a daemon keeps or has left.
	Archive *ArchiveOptions
	// ArchiveDir is where the archives are, if not in the directories themselves.
	ArchiveDir string
	// OnProgress is called for each file of a directory's first scan that was taken up, if there
	// are many: how many of them were so far. It must return soon. Default: nothing.
	OnProgress func(done, files int)
	// Logger may be nil.
	Logger *zap.Logger
	// Metrics may be nil.
	Metrics *Metrics
}

// ArchiveOptions say how the archive is kept. Zero fields mean the defaults given.
type ArchiveOptions struct {
	// GaugeRetention is how long the gauges of a dead worker in mode all are served.
	// Default: DefaultGaugeRetention. Negative: for ever.
	GaugeRetention time.Duration
	// GaugeWorkers is how many dead workers' gauges in mode all are served at most; the
	// longest dead go first. Default: DefaultGaugeWorkers. Negative: any number.
	GaugeWorkers int
}

// Defaults of ArchiveOptions.
const (
	DefaultGaugeRetention = time.Hour
	DefaultGaugeWorkers   = 1000
)

// Collector is the merged view of some directories. It is safe for several goroutines.
// It starts none; Tend must be called now and then, and whenever something may have
// changed. Close gives up its files.
type Collector struct {
	logger  *zap.Logger
	metrics *Metrics
	ready   atomic.Bool
	now     func() time.Time

	// next is the pass that has not begun yet, for scrapes to join; nil if none waits.
	nextMu sync.Mutex
	next   *flight

	// foldMu is held while files are folded, and while the policy changes; it is taken before
	// mu.
	foldMu sync.Mutex

	fileLimits   store.Limits
	mergeOptions merge.Options
	onProgress   func(done, files int)

	// mu guards the index and everything in dirs. To change policy and dir.limits takes both
	// locks, so each is enough to read them.
	mu       sync.Mutex
	policy   *policy.Policy
	relabel  *relabeling
	share    *merge.Share
	dirs     []*dir
	joined   []*dir       // by name, as they are joined
	info     *merge.Index // the constant series of the policy, nil if there are none
	joiner   view.Joiner
	loads    []*tracked // reused by load
	reported map[conflict]bool
	closed   bool
	// openFiles is how many source files are open, maxFiles how many may be.
	openFiles, maxFiles int
	// lastPass is when the last pass began, and lastPassTook how long it was.
	lastPass     time.Time
	lastPassTook time.Duration
}

// maxOpenFiles returns how many source files may be open: what the process may, less some
// for connections, the archive and the rest.
func maxOpenFiles() int {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return 512
	}
	const reserve = 128
	return max(int(min(limit.Cur, 1<<20))-reserve, int(limit.Cur)/2)
}

// ErrClosed is the error of a Collector that is closed.
var ErrClosed = errors.New("collector is closed")

// New returns a Collector that has not looked at its directories yet.
func New(opts Options) (*Collector, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(telemetry.NewSet())
	}
	if opts.Archive != nil {
		a := *opts.Archive
		a.GaugeRetention = cmp.Or(a.GaugeRetention, DefaultGaugeRetention)
		a.GaugeWorkers = cmp.Or(a.GaugeWorkers, DefaultGaugeWorkers)
		opts.Archive = &a
	}
	c := &Collector{
		onProgress: opts.OnProgress,
		logger:     opts.Logger, metrics: opts.Metrics,
		now: time.Now, maxFiles: maxOpenFiles(),
		fileLimits: opts.Limits, mergeOptions: opts.Merge, reported: map[conflict]bool{}, share: merge.NewShare(),
	}
	c.adoptPolicyLocked(opts.Policy)
	if len(opts.Dirs) == 0 {
		return nil, errors.New("no directory given")
	}
	seen := map[string]bool{}
	for _, spec := range opts.Dirs {
		if spec.Pool == "" && len(opts.Dirs) > 1 {
			return nil, fmt.Errorf("directory %q has no name: with several directories each needs one, as in --dir web=%s", spec.Path, spec.Path)
		}
		if seen[spec.Pool] {
			return nil, fmt.Errorf("two directories have the name %q", spec.Pool)
		}
		seen[spec.Pool] = true
		c.metrics.prepare(spec.Pool)
		c.dirs = append(c.dirs, newDir(c, spec, &opts))
	}
	c.joined = slices.SortedFunc(slices.Values(c.dirs), func(a, b *dir) int { return strings.Compare(a.spec.Pool, b.spec.Pool) })
	return c, nil
}

// Open takes the archives of the directories that are there. An error means that another
// daemon has one of them, or that a newer program wrote it: then nothing must be served. It
// is for Collectors that archive, and comes before the first Tend. What else is wrong with
// an archive is logged, and tried again by Tend.
func (c *Collector) Open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, d := range c.dirs {
		if err := d.attach(c.now()); fatal(err) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Tend brings the view up to date with the directories: files that appeared, went or were
// replaced, processes that died. force lists the directories even if they look unchanged.
// What goes wrong is logged and counted; it never keeps the rest from being looked at.
func (c *Collector) Tend(force bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	for _, d := range c.dirs {
		d.attach(c.now()) //nolint:errcheck // logged there
		d.scan(force)
		d.probe(false)
		d.settle()
		d.countWorkers()
		// So that no scrape has to wait for many new entries to be learned.
		for t := range d.all() {
			if t.file != nil && !t.folding {
				d.learnNew(t)
			}
		}
	}
	if !c.ready.Load() {
		c.ready.Store(c.completeLocked())
	}
}

// completeLocked reports whether every file that can be read is. Until it once was, a
// total could rise later without anything having been counted.
func (c *Collector) completeLocked() bool {
	return !slices.ContainsFunc(c.dirs, func(d *dir) bool { return d.deferred > 0 })
}

// Ready reports whether the first look at all directories is done.
func (c *Collector) Ready() bool { return c.ready.Load() }

// Err tells why directories could not be listed when they were last looked at. A daemon
// goes on and waits for better times; a command that looks once needs to know.
func (c *Collector) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	for _, d := range c.dirs {
		errs = append(errs, d.scanErr)
	}
	return errors.Join(errs...)
}

// flight is one pass and those who wait for it.
type flight struct {
	done    chan struct{}
	waiters int // guarded by Collector.nextMu
	snap    *view.Snapshot
	err     error
}

// Gather merges what the files hold now. Calls that arrive while a pass is running share
// the next one, so that each answer is at least as new as its question and the work does
// not grow with the scrapers. The caller must Release the snapshot.
func (c *Collector) Gather(ctx context.Context) (*view.Snapshot, error) {
	c.nextMu.Lock()
	f := c.next
	leader := f == nil
	if leader {
		f = &flight{done: make(chan struct{})}
		c.next = f
	}
	f.waiters++
	c.nextMu.Unlock()
	if leader {
		c.fly(f)
	} else {
		c.metrics.shared.Inc()
	}
	select {
	case <-f.done:
	case <-ctx.Done():
		c.nextMu.Lock()
		defer c.nextMu.Unlock()
		select {
		case <-f.done: // it has counted us
			if f.snap != nil {
				f.snap.Release()
			}
		default:
			f.waiters--
		}
		return nil, fmt.Errorf("wait for the merge: %w", ctx.Err())
	}
	if f.err == nil && ctx.Err() != nil {
		f.snap.Release()
		return nil, fmt.Errorf("merge: %w", ctx.Err())
	}
	return f.snap, f.err
}

// fly runs a pass for all who wait for it.
func (c *Collector) fly(f *flight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextMu.Lock()
	c.next = nil // who comes now must not see what was read before
	c.nextMu.Unlock()
	snap, err := c.passLocked()
	c.nextMu.Lock()
	defer c.nextMu.Unlock()
	f.snap, f.err = snap, err
	if snap != nil {
		for range f.waiters - 1 {
			snap.Retain()
		}
		if f.waiters == 0 {
			snap.Release()
		}
	}
	close(f.done)
}

// passLocked reads all files and merges them.
func (c *Collector) passLocked() (*view.Snapshot, error) {
	if c.closed {
		return nil, ErrClosed
	}
	start := time.Now()
	for _, d := range c.dirs {
		// Directories tell cheaply that nothing has changed, so even the first scrape after
		// a change sees it, whether or not the watcher has been told yet. The same goes for
		// the processes behind live gauges: a lease costs about a microsecond to ask for.
		d.scan(false)
		d.probe(true)
	}
	c.loadLocked()
	snap := c.joinLocked()
	c.reportConflictsLocked()
	c.metrics.passes.Inc()
	dropped, expired := c.leftOutLocked()
	c.metrics.series.Set(float64(len(snap.Values) - expired))
	c.metrics.ruleDropped.Set(float64(dropped))
	c.metrics.ruleExpired.Set(float64(expired))
	snap = c.relabelLocked(snap)
	c.lastPass, c.lastPassTook = c.now(), time.Since(start)
	c.metrics.passSeconds.Observe(c.lastPassTook.Seconds())
	return snap, nil
}

// parallelEntries is how many entries make loading on several cores worth the while.
const parallelEntries = 20_000

// loadLocked loads the present values of all files into the index. New entries are
// learned first, one file after the other, because that changes the index; the values
// of different files are then loaded side by side. Files of the dead are not asked for new
// entries, since reading their values tells of them; there are few such surprises.
func (c *Collector) loadLocked() {
	c.loads = c.loads[:0]
	entries := 0
	take := func(d *dir, t *tracked) {
		if t.file != nil && !t.folding {
			d.learnNew(t)
			c.loads = append(c.loads, t)
			entries += t.source.Entries()
		}
	}
	for _, d := range c.dirs {
		for t := range d.all() {
			take(d, t)
		}
	}
	loads := c.loads
	var next atomic.Int64
	work := func() {
		for i := next.Add(1) - 1; int(i) < len(loads); i = next.Add(1) - 1 {
			loads[i].loadErr = loads[i].load()
		}
	}
	if entries < parallelEntries {
		work()
	} else {
		var wg sync.WaitGroup
		for range min(runtime.GOMAXPROCS(0), len(loads)) - 1 {
			// Ends when all files are loaded, below.
			wg.Go(work)
		}
		work()
		wg.Wait()
	}
	for _, t := range loads {
		if t.loadErr == nil && t.file.Grown() {
			t.dir.learn(t)
			t.loadErr = t.load()
		}
		t.dir.note(t, cmp.Or(t.learnErr, t.loadErr))
	}
	c.metrics.entriesRead.Add(float64(entries))
	clear(c.loads)
}

// joinLocked merges what is loaded and joins the pools.
func (c *Collector) joinLocked() *view.Snapshot {
	now := unixSeconds(c.now())
	parts := make([]view.Part, 0, len(c.joined)+1)
	for _, d := range c.joined {
		d.index.SetTime(now)
		target, external := c.policy.Labels(d.spec.Pool)
		parts = append(parts, view.Part{Snapshot: d.index.Snapshot(), Name: d.spec.Pool, Target: target, External: external})
	}
	if c.info != nil {
		parts = append(parts, view.Part{Snapshot: c.info.Snapshot(), Name: configured, Sole: true})
	}
	return c.joiner.Join(parts)
}

// leftOutLocked counts the series that rules have kept out of the last view.
func (c *Collector) leftOutLocked() (dropped, expired int) {
	for _, d := range c.dirs {
		dropped += d.index.Dropped()
		expired += d.index.Expired()
	}
	return dropped, expired
}

// conflict says that something of a pool is left out because of something else.
type conflict struct {
	family, pool  string
	winner, loser string // configured is that of the configuration
	series        int
}

// configured describes series that no file has, which win over those of files.
const configured = "info"

func (c *Collector) conflictsLocked() (all []conflict) {
	for _, d := range c.dirs {
		for _, k := range d.index.Conflicts() {
			all = append(all, conflict{k.Family, d.spec.Pool, k.Winner, k.Loser, k.Series})
		}
	}
	for _, k := range c.joiner.Conflicts() {
		winner := k.Winner.String()
		if k.Winner.Family != k.Loser.Family {
			winner += " " + k.Winner.Family
		}
		winner += " of pool " + k.Winner.Part
		if k.Winner.Sole {
			winner = configured
		}
		all = append(all, conflict{k.Loser.Family, k.Loser.Part, winner, k.Loser.String(), k.Series})
	}
	slices.SortStableFunc(all, func(a, b conflict) int { return strings.Compare(a.family, b.family) })
	return all
}

// reportConflictsLocked logs each disagreement once, when it begins and when it ends.
func (c *Collector) reportConflictsLocked() {
	now := c.conflictsLocked()
	c.metrics.conflicts.Set(float64(len(now)))
	if len(now) == 0 && len(c.reported) == 0 {
		return
	}
	current := make(map[conflict]bool, len(now))
	for _, k := range now {
		id := k
		id.series = 0
		current[id] = true
		if !c.reported[id] {
			msg := "files disagree on a metric; the newest file's samples are served, the others' left out"
			if k.winner == configured {
				msg = "info of the configuration has the name of a metric in files, whose samples are left out; choose another name"
			}
			c.logger.Warn(msg,
				zap.String("family", k.family), zap.String("pool", k.pool), zap.String("served", k.winner), zap.String("left_out", k.loser), zap.Int("series", k.series))
		}
	}
	for id := range c.reported {
		if !current[id] {
			c.logger.Info("files agree on a metric again", zap.String("family", id.family), zap.String("pool", id.pool), zap.String("served", id.winner))
		}
	}
	c.reported = current
}

// Close gives up all files. Later calls of Gather fail with ErrClosed.
func (c *Collector) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	for _, d := range c.dirs {
		for t := range d.all() {
			if t.file != nil {
				errs = append(errs, t.file.Close())
			}
		}
		errs = append(errs, d.archive.Detach(), d.staging.Close())
	}
	return errors.Join(errs...)
}

// UpdateMetrics brings the gauges that describe the directories up to date.
func (c *Collector) UpdateMetrics() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.dirs {
		d.updateMetrics()
	}
}

// missing reports whether an error says that a directory is not there (yet).
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
