package pool

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/store"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
	"aggregatord/internal/watch"
)

// Spec names one pool.
type Spec struct {
	// Name tells it from other pools; empty where there is only one.
	Name string
	// Path is the directory. It may be that of a descriptor, in /proc/self/fd, which must stay
	// open as long as the pool does.
	Path string
	// Origin is the path that people know the directory by. Default: Path.
	Origin string
	// Settings is the name under which the policy knows the pool. Default: Name. Pools that one
	// pattern matches share it.
	Settings string
	// Labels are added to those that tell the pool apart. They are sorted, and nobody changes
	// them.
	Labels []metric.Label
	// Own is what the pool's application says of its metrics, nil for nothing: its rules come before
	// those of the policy, and of its limits those that are lower hold.
	Own *policy.Policy
}

// RuledBy returns the name under which the policy knows the pool.
func (s Spec) RuledBy() string { return cmp.Or(s.Settings, s.Name) }

// Dir returns the path that people know the directory by.
func (s Spec) Dir() string { return cmp.Or(s.Origin, s.Path) }

// String is for logs.
func (s Spec) String() string { return strings.TrimPrefix(s.Name+"="+s.Dir(), "=") }

// Options of a Pool.
type Options struct {
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
	// ArchiveDir is where the archive is. Default: in the directory itself.
	ArchiveDir string
	// Descriptors is the budget of open files. Default: one of its own.
	Descriptors *Descriptors
	// Share has what pools with equal keys keep once. Default: nothing is shared.
	Share *merge.Share
	// OnProgress is called for each file of the first scan, if there are many: how many of them
	// are done. It must return soon. Default: nothing.
	OnProgress func(done, files int)
	// Logger may be nil.
	Logger *zap.Logger
	// Metrics may be nil.
	Metrics *Metrics
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Patience is how long somebody may be busy with the pool, as by a system call, before it counts
	// as one that does not answer: see IsSilent. Default: DefaultPatience.
	Patience time.Duration
	// Hub tells a mirror who reads the directory; one is shared by all pools. Default: one of its own.
	Hub *watch.Hub
}

// DefaultPatience is how long a pool may take to answer: less than a scraper waits.
const DefaultPatience = 5 * time.Second

// ArchiveOptions say how the archive is kept. Zero fields mean the defaults given.
type ArchiveOptions struct {
	// Mirror says that what is archived is kept in files of the client, too, for others who read the
	// directory. MirrorWait is how long files wait for a moment in which nobody does, and MirrorFiles how
	// many wait at most. Below 0: any. Default: fold.DefaultMirrorWait and fold.DefaultMirrorFiles.
	Mirror      bool
	MirrorWait  time.Duration
	MirrorFiles int
	// Rest is how long a worker must be dead before its files are archived: hooks of the
	// application that run at its death are done by then. Where room is short it is none.
	// Default: DefaultRest. Negative: none.
	Rest time.Duration
	// GaugeRetention is how long the gauges of a dead worker in mode all are served.
	// Default: DefaultGaugeRetention. Negative: for ever.
	GaugeRetention time.Duration
	// GaugeWorkers is how many dead workers' gauges in mode all are served at most; the
	// longest dead go first. Default: DefaultGaugeWorkers. Negative: any number.
	GaugeWorkers int
}

// Defaults of ArchiveOptions.
const (
	DefaultRest           = 5 * time.Second
	DefaultGaugeRetention = time.Hour
	DefaultGaugeWorkers   = 1000
)

func (o ArchiveOptions) withDefaults() ArchiveOptions {
	o.Rest = max(0, cmp.Or(o.Rest, DefaultRest))
	o.GaugeRetention = cmp.Or(o.GaugeRetention, DefaultGaugeRetention)
	o.GaugeWorkers = cmp.Or(o.GaugeWorkers, DefaultGaugeWorkers)
	return o
}

// A Pool is the merged view of one directory. It is safe for several goroutines. It starts
// none; Tend must be called now and then, and whenever something may have changed. Close gives
// up everything.
type Pool struct {
	spec         Spec                     // Labels and Own are in settings
	settings     atomic.Pointer[settings] // replaced as the policy is
	logger       *zap.Logger
	metrics      *Metrics
	folds        *fold.Metrics
	now          func() time.Time
	descriptors  *Descriptors
	fileLimits   store.Limits
	mergeOptions merge.Options
	share        *merge.Share
	archiving    ArchiveOptions
	archiveDir   string // empty: hidden files in the directory itself
	onProgress   func(done, files int)
	prober       *watch.Prober
	folder       *fold.Folder
	ready        atomic.Bool
	patience     time.Duration
	// listedOpen is what OpenFiles has returned last, nil for nothing.
	listedOpen atomic.Pointer[[]OpenFile]
	// shownSilent says that the metrics show the directory as one that does not answer.
	shownSilent atomic.Bool
	// conflicts, dropped and expired are for LeftOut.
	conflicts, dropped, expired atomic.Int64

	// turn is held by whoever tends, folds or changes the policy; it is taken before mu. To change
	// policy and limits takes both locks, so each is enough to read them.
	turn sync.Mutex

	// mu guards what follows, and what the fold changes in the archive's memory.
	mu     lock
	closed bool
	policy *policy.Policy
	limits store.Limits
	index  *merge.Index
	lister *watch.Dir
	// method is what the prober chose, once methodKnown.
	method      watch.Method
	methodKnown bool

	// files are the source files in the directory, by name; also those that failed.
	files map[string]*file
	// staged are the files with a hidden name, by record, and those that are just getting one.
	staged map[string]*file
	// orphans are files to which no name in the directory leads.
	orphans []*file
	// open finds the open files of all three by what they are, and opened has the same files in the
	// order in which they were opened. loadedEntries is how many entries they had at the last load.
	open          map[store.Identity]*file
	opened        openFiles
	loadedEntries int
	// deferred is how many files could not be opened for want of descriptors.
	deferred int
	foreign  int
	// unread counts the foreign files of a client whose files are not read yet, and names it and
	// the first of them. unreadTold says that the log has named it.
	unread struct {
		files         int
		client, first string
	}
	unreadTold bool

	listings uint64 // how many there were
	scanErr  error
	listed   bool            // at least once
	looks    uint64          // calls of Tend and Gather
	rounds   uint64          // calls of Tend
	asked    map[string]bool // workers that are alive, in one round
	room     Room

	census census

	// shown are the sources of the index that show the archive's tables, of the archive and
	// generation given.
	shown      map[archive.Space]*shown
	archive    *archive.Archive
	generation int
	// partsDue is when gains of removed files are archived again, and partsFrom when that last began.
	partsDue, partsFrom time.Time
	partsEvery          time.Duration
	// learnFor is roundTime but in tests.
	learnFor time.Duration
	// supersededDue is when to look next for archived series that lost to newer ones.
	supersededDue time.Time
	// forget says that records of files that are gone may be in the archive, and identities that
	// there are records by identity.
	forget, identities bool

	gauges  map[fileGauge]telemetry.Gauge // that updateMetricsLocked has set
	own     *ownGauges                    // nil before they are set first
	ownRoom *ownRoom                      // the same
	// awaits says that a file of the dead was there at the last probe, and growing that one was
	// opened since files were last asked for new entries, or had some.
	awaits, growing bool
	// guesses are what files of one kind most likely hold, while many are opened; guessed is how
	// many cells the index had freed when they began.
	guesses map[guessKey]*store.Guesses
	guessed uint64
	changed bool // since then
	// toll is what the entry that was just met costs beside its bytes: see store.LearnOptions. A variable
	// of its own would be made for each file at each scrape.
	toll int64
	// stirred says that something has changed since the last round that looked at everything, calm that
	// rounds may be quiet until then, and quiet that the last one was: see quiet.go. speakers are the
	// files that are asked for in a quiet round.
	stirred, calm, quiet bool
	speakers             []*file
	// watched says that file system events arrive, and disturbed that there were some since all files
	// were asked for, or that nobody would know.
	watched, disturbed bool
	// phase is added to rounds, so that not all pools ask for all files in one.
	phase    uint64
	refusals map[refusal]bool // that were told
	rivals   rivals
	// lost says that a dead worker's file was removed by somebody else since the last load.
	lost     bool
	reported map[merge.Conflict]bool
	loads    []*file // those of the last load with which more was to be done; reused
	// lastPass is when the last pass began, and lastPassTook how long it was.
	lastPass     time.Time
	lastPassTook time.Duration
	passes       uint64
}

// ErrClosed is the error of a Pool that is closed.
var ErrClosed = errors.New("pool is closed")

// New returns a Pool that has not looked at its directory yet.
func New(spec Spec, opts Options) *Pool {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.Metrics == nil {
		opts.Metrics = NewMetrics(telemetry.NewSet())
	}
	if opts.Descriptors == nil {
		opts.Descriptors = NewDescriptors(0)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Patience == 0 {
		opts.Patience = DefaultPatience
	}
	logger := opts.Logger.With(zap.String("dir", spec.Dir()))
	if spec.Name != "" {
		logger = logger.With(zap.String("pool", spec.Name))
	}
	p := &Pool{
		mu: newLock(), disturbed: true, patience: opts.Patience,
		spec: spec, logger: logger, metrics: opts.Metrics, folds: opts.Metrics.folds.For(spec.Name), now: opts.Now,
		descriptors: opts.Descriptors, fileLimits: opts.Limits, mergeOptions: opts.Merge, share: opts.Share, onProgress: opts.OnProgress,
		archiveDir: opts.ArchiveDir,
		partsEvery: time.Second, learnFor: roundTime,
		prober: watch.NewProber(spec.Path), lister: watch.NewDir(spec.Path),
		files: map[string]*file{}, staged: map[string]*file{}, open: map[store.Identity]*file{}, asked: map[string]bool{},
		shown: map[archive.Space]*shown{}, gauges: map[fileGauge]telemetry.Gauge{}, refusals: map[refusal]bool{},
		reported: map[merge.Conflict]bool{},
	}
	p.census.logger = logger
	p.rivals = rivals{now: func() time.Time { return p.now() }, check: p.checkLocked, note: p.noteLocked, heirs: map[string]bool{}}
	if opts.Archive != nil {
		p.archiving = opts.Archive.withDefaults()
	}
	p.folder = fold.New(fold.Options{
		Dir: spec.Path, ArchiveDir: opts.ArchiveDir, ReadOnly: opts.Archive == nil,
		Mirror: p.archiving.Mirror, MirrorWait: p.archiving.MirrorWait, MirrorFiles: p.archiving.MirrorFiles, Hub: opts.Hub, Logger: logger,
		Metrics: p.folds,
		Now:     func() time.Time { return p.now() },
	})
	p.folder.Serve(p)
	for _, c := range []byte(spec.Name) {
		p.phase += uint64(c)
	}
	p.archive = p.folder.Archive()
	p.metrics.prepare(spec.Name)
	p.settings.Store(&settings{spec.Labels, spec.Own})
	p.spec.Labels, p.spec.Own = nil, nil
	p.adoptPolicyLocked(opts.Policy)
	return p
}

// Spec returns what New was given, with the settings that are in force: see SetSettingsHeld.
func (p *Pool) Spec() Spec {
	spec, settings := p.spec, p.settings.Load()
	spec.Labels, spec.Own = settings.labels, settings.own
	return spec
}

// settings are the part of a Spec that may change.
type settings struct {
	labels []metric.Label
	own    *policy.Policy
}

// Open opens the archive, if the directory is there. An error means that another daemon has
// the directory, or that a newer program wrote the archive: then nothing must be served. It is
// for pools that archive, and comes before the first Tend. What else is wrong with an archive
// is logged, and tried again by Tend.
func (p *Pool) Open() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if err := p.folder.Open(true); archive.Fatal(err) {
		return err
	}
	return nil
}

// Tend brings the pool up to date with the directory: files that appeared, went or were
// replaced, processes that died. force lists the directory even if it looks unchanged.
// What goes wrong is logged and counted; it never keeps the rest from being looked at.
func (p *Pool) Tend(force bool) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if force || !p.quietRound(false) {
		p.tend(force)
	}
}

// Rescan is Tend, and lists the directory even if it looks unchanged. If that brings nothing new, it
// may be a quiet round.
func (p *Pool) Rescan() {
	p.turn.Lock()
	defer p.turn.Unlock()
	if !p.quietRound(true) {
		p.tend(true)
	}
}

// tend is a round that is not quiet.
func (p *Pool) tend(force bool) {
	p.folder.Open(false) //nolint:errcheck // logged there
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.stirred, p.quiet = false, false
	p.looks++
	// Room matters at once where it is short or somebody waits to be archived.
	every := p.askAllLocked()
	if every || p.room.short() || p.awaits || !p.room.Known {
		p.room = roomAt(p.spec.Path)
	}
	p.scanLocked(force)
	p.retryLocked()
	p.probeLocked()
	p.replaceEmptiedLocked()
	p.census.take(p.allLocked(), p.now())
	// So that no scrape has to wait for many new entries to be learned. A pool that had none lately
	// is looked at more seldom: a scrape learns what is new in any case.
	if every || force || p.growing {
		p.learnAllLocked()
		if p.closed {
			return
		}
	}
	if p.lost {
		p.loadLocked() // before what was removed is archived: its values may be in another file
	}
	// Until all files were read once, a total could rise later without anything having been
	// counted.
	if p.deferred == 0 {
		p.ready.Store(true)
	}
	p.updateMetricsLocked()
	p.metrics.rounds.With(p.spec.Name).Inc()
	p.calm = p.calmLocked()
	if every {
		p.disturbed = !p.watched
	}
}

// Fold archives dead workers' files: some, to be called again soon as long as it returns true.
func (p *Pool) Fold() (more bool) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.isQuiet() {
		return false
	}
	p.dropSuperseded()
	return p.folder.Fold()
}

// FoldLast is Fold before the pool is closed: what files without a name have counted would go with it.
func (p *Pool) FoldLast() {
	p.mu.Lock()
	p.partsDue = time.Time{}
	p.stirLocked()
	p.mu.Unlock()
	p.Fold()
}

// DropArchived removes the archived series that m matches, in memory and durably, and returns how
// many. What living workers have counted stays. The error wraps archive.ErrDetached where the
// archive is not open. It waits for a fold that is under way.
func (p *Pool) DropArchived(m archive.Match) (dropped int, err error) {
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.isClosed() {
		return 0, ErrClosed
	}
	p.folder.Open(false) //nolint:errcheck // Drop tells
	dropped, err = p.folder.Drop(m.Matches)
	if dropped > 0 {
		p.logger.Info("series were dropped from the archive by request", zap.String("name", m.Name), zap.Int("series", dropped))
	}
	if err != nil {
		return dropped, fmt.Errorf("drop archived series of directory %q: %w", p.spec.Path, err)
	}
	return dropped, nil
}

func (p *Pool) isQuiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stillQuietLocked()
}

func (p *Pool) isClosed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.closed
}

// Ready reports whether all files were read once.
func (p *Pool) Ready() bool { return p.ready.Load() }

// Err tells why the directory could not be listed when it was last looked at. A daemon goes on
// and waits for better times; a command that looks once needs to know.
func (p *Pool) Err() error {
	if !p.mu.lockWithin(p.patience) {
		return ErrSilent
	}
	defer p.mu.Unlock()
	return p.scanErr
}

// Gather merges what the files hold now. The caller must Release the snapshot.
func (p *Pool) Gather() (*view.Snapshot, error) {
	snap, _, err := p.GatherWhile(nil)
	return snap, err
}

// GatherWhile is Gather, and returns the Spec by whose settings the snapshot was made. It waits for its turn as
// long as wanted says so, and returns ErrSilent then. A nil wanted means for ever.
func (p *Pool) GatherWhile(wanted func() bool) (*view.Snapshot, Spec, error) {
	if !p.mu.lockWhile(wanted) {
		return nil, p.spec, ErrSilent
	}
	defer p.mu.Unlock()
	if p.closed {
		return nil, p.spec, ErrClosed
	}
	start := time.Now()
	p.looks++
	// A directory tells cheaply that nothing has changed, so even the first scrape after a change
	// sees it, whether or not the watcher was told yet. The same goes for the processes behind
	// live gauges: a lease costs about a microsecond to ask for.
	p.scanLocked(false)
	p.probeLiveLocked()
	p.loadLocked()
	p.index.SetTime(unixSeconds(p.now()))
	snap := p.index.Snapshot()
	p.conflicts.Store(int64(len(p.index.Conflicts())))
	p.dropped.Store(int64(p.index.Dropped()))
	p.expired.Store(int64(p.index.Expired()))
	p.reportConflictsLocked()
	p.lastPass, p.lastPassTook = p.now(), time.Since(start)
	p.passes++
	p.metrics.passes.Inc()
	p.metrics.passSeconds.Observe(p.lastPassTook.Seconds())
	return snap, p.Spec(), nil
}

// LeftOut counts what the last view left out: disagreements between files, and the series that
// rules drop or have expired. It waits for nobody.
func (p *Pool) LeftOut() (conflicts, dropped, expired int) {
	return int(p.conflicts.Load()), int(p.dropped.Load()), int(p.expired.Load())
}

// manyFiles and manyEntries are how many make loading on several cores worth the while.
const (
	manyFiles   = 1000
	manyEntries = 20_000
)

// loadLocked loads the present values of all files into the index, of different files side by side.
// Files tell by that whether they have new entries. Those are learned one file after the other,
// because it changes the index, and loaded again; there are few such surprises.
func (p *Pool) loadLocked() {
	files := p.opened.files
	p.loads = p.loads[:0]
	var next, entries atomic.Int64
	var noting sync.Mutex
	const some = 16 // at a time: to count them one by one costs as much as to load one
	work := func() {
		loaded := 0
		for from := int(next.Add(some)) - some; from < len(files); from = int(next.Add(some)) - some {
			for _, t := range files[from:min(from+some, len(files))] {
				if t == nil || !t.readable() {
					continue
				}
				loaded += t.source.Entries()
				if t.surprises() {
					noting.Lock()
					p.loads = append(p.loads, t)
					noting.Unlock()
				}
			}
		}
		entries.Add(int64(loaded))
	}
	if p.loadedEntries < manyEntries && len(files) < manyFiles {
		work()
	} else {
		var wg sync.WaitGroup
		for range min(runtime.GOMAXPROCS(0), len(files)) - 1 {
			// Ends when all files are loaded, below.
			wg.Go(work)
		}
		work()
		wg.Wait()
	}
	left := int64(scrapeBytes)
	for _, t := range p.loads {
		if t.loadErr == nil && t.unlearned() {
			if left > 0 {
				left -= p.learnLocked(t, left)
			}
			t.loadErr = t.load()
		}
		p.noteLocked(t, cmp.Or(t.learnErr, t.loadErr))
	}
	p.lost, p.loadedEntries = false, int(entries.Load())
	for _, t := range p.rivals.compare(p.loads, p.files, p.orphans) {
		p.mergedLocked(t)
	}
	p.metrics.entriesRead.Add(float64(p.loadedEntries))
	clear(p.loads)
}

// surprises loads a file's values, unless there may be something to learn before. It reports whether
// there is more to do with the file.
func (t *file) surprises() bool {
	if t.loadErr = nil; t.unlearned() {
		return true
	}
	t.loadErr = t.load()
	return t.loadErr != nil || t.file.Grown() || t.failure != "" || t.gained || t.muted != nil
}

// reportConflictsLocked logs each disagreement once, when it begins and when it ends.
func (p *Pool) reportConflictsLocked() {
	now := p.index.Conflicts()
	if len(now) == 0 && len(p.reported) == 0 {
		return
	}
	current := make(map[merge.Conflict]bool, len(now))
	for _, k := range now {
		id := k
		id.Series = 0
		current[id] = true
		if !p.reported[id] {
			p.logger.Warn("files disagree on a metric; the newest file's samples are served, the others' left out",
				zap.String("family", k.Family), zap.String("served", k.Winner), zap.String("left_out", k.Loser),
				zap.Int("series", k.Series))
		}
	}
	for id := range p.reported {
		if !current[id] {
			p.logger.Info("files agree on a metric again", zap.String("family", id.Family), zap.String("served", id.Winner))
		}
	}
	p.reported = current
}

// Close gives up all files, the archive and the lock on the directory. Later calls of Gather
// fail with ErrClosed.
func (p *Pool) Close() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if !p.isClosed() {
		p.folder.Finish()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for t := range p.allLocked() {
		if t.file != nil {
			errs = append(errs, t.file.Close())
			p.descriptors.Give()
		}
	}
	p.files, p.staged, p.orphans, p.open, p.loads, p.opened = nil, nil, nil, nil, nil, openFiles{}
	p.shown = nil
	p.index.Close()
	p.index = merge.NewIndex(p.mergeOptions)
	p.metrics.forget(p.spec.Name)
	return errors.Join(append(errs, p.folder.Close(), p.lister.Close())...)
}

// missing reports whether an error says that a directory is not there (yet).
func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
