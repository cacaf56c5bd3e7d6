package discover

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"

	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/telemetry"
)

// A Node tells directories apart, by whatever path they were found. The zero value is unknown.
type Node struct{ Dev, Ino uint64 }

// Found is a directory that a source has found.
type Found struct {
	// Spec has the pool's name, labels, path and settings.
	Spec pool.Spec
	// ID differs if another directory has taken the place of the one of the same name, so that
	// the pool is to be made anew. A pool copes by itself with a path that leads elsewhere.
	ID string
	// Node is the directory.
	Node Node
	// Open returns a descriptor of the directory, by which the pool is reached as long as it is
	// served. Nil: Spec.Path leads to it.
	Open func() (*os.File, error)
	// Meta is told to who asks for targets, beside the labels.
	Meta map[string]string
	// From says which kind of source has found it.
	From string
}

// What Found.From may be.
const (
	FromPattern   = "pattern"
	FromProcesses = "processes"
	FromKubelet   = "kubelet"
)

// A Source finds directories. It is used by one goroutine at a time.
type Source interface {
	// String names it in a sentence: "the pattern /run/*/metrics".
	String() string
	// Find returns the directories that are there now, in an order that does not depend on
	// chance, and one error for each thing that could not be used. It must be cheap.
	Find() ([]Found, []error)
	// Hint says in a sentence why the last Find may have found nothing.
	Hint() string
}

// Options of a Finder. Zero fields mean the defaults given.
type Options struct {
	// Sources are asked in this order: of two directories with one name the first is served.
	Sources []Source
	// Static are the pools that are always there. Their names are taken, and what is in their
	// directories is not served again.
	Static []pool.Spec
	// Add and Remove change what is served. They may be called by several goroutines at once.
	Add    func(pool.Spec) error
	Remove func(name string) error
	// Change puts other settings of a pool into force, its labels and what its application says. It may be
	// called by several goroutines at once. Default: the pool is removed and added again.
	Change func(pool.Spec) error
	// Writing reports whether processes are known to write to a pool. Such a pool stays although its
	// source does not find it: somebody has removed the files that they write to, and what they
	// count is seen nowhere else. Default: none is known.
	Writing func(name string) bool
	// OnRound is called by Run when it begins, and after each round. It must return soon. Default:
	// nothing.
	OnRound func()
	// Retention is how long a pool is served after its source has found it for the last time.
	// Default: DefaultRetention.
	Retention time.Duration
	// MaxPools is how many pools there may be, with the static ones. Default: DefaultMaxPools.
	MaxPools int
	// Interval is how often sources are asked. Default: 1 s.
	Interval time.Duration
	// Patience is how long a round waits for the sources, and then for the pools that it adds. Then it goes on
	// without them: one directory that does not answer holds up nothing else. The first round, before
	// which nothing is served, waits ten times as long. Default: 1 s.
	Patience time.Duration
	// Set is where the finder's metrics go. Default: a set of its own.
	Set *telemetry.Set
	// Logger may be nil.
	Logger *zap.Logger
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Defaults of Options.
const (
	DefaultRetention = 5 * time.Minute
	DefaultMaxPools  = 1000
)

const (
	// maxGone is how many pools are remembered that are not served any more.
	maxGone = 1000
	// maxName bounds a pool's name, which becomes a path and the name of a directory.
	maxName = 200
	// maxWait is the longest time between two attempts to add a pool.
	maxWait = time.Minute
)

// A Finder keeps what is served like what its sources find.
type Finder struct {
	opts    Options
	logger  *zap.Logger
	metrics *metrics

	// asked are the sources, and first the static pools; rounds is how often. Only Round uses them.
	asked  []*asked
	rounds int

	// mu guards what follows. Nothing that may take long is done while it is held.
	mu       sync.Mutex
	pools    map[string]*served
	coming   map[string]*coming // that are being added
	leaving  map[string]bool    // that are being removed
	gone     map[string]gone
	problems map[string]bool
	failed   map[string]failure // pools that could not be added, by name
	leftOut  int                // how many pools more there are than there may be
	hints    []string           // of sources that found nothing

	// work are the goroutines that ask sources, and that add and remove pools.
	work sync.WaitGroup
}

// asked is a source, or whatever else is asked in each round.
type asked struct {
	name   string
	look   func() answer
	coming chan answer // of the look that has not ended yet, nil if there is none
	begun  time.Time   // when that was begun
	slow   bool        // the look takes longer than a round waits
	last   answer
}

// answer is what a look has found.
type answer struct {
	found []Found
	errs  []error
	hint  string          // if nothing is found
	nodes map[string]Node // of static pools, by path
}

// coming is a pool that is being added.
type coming struct {
	served
	done chan struct{} // closed when it was added, or could not be
}

// served is one pool that the finder has added.
type served struct {
	Found
	dir      *os.File  // nil if Spec.Path leads to it
	vanished time.Time // zero while its source finds it
	changing bool      // other settings are being put into force
}

// gone is a pool that is not served any more.
type gone struct {
	at  time.Time
	why string
}

// failure is why a pool could not be added, and when that is tried again.
type failure struct {
	err  error
	wait time.Duration
	next time.Time
}

type metrics struct {
	served, vanished, leftOut, problems, seconds telemetry.Gauge
	added, removed                               telemetry.Counter
}

// New returns a Finder. It starts nothing, and has asked no source yet.
func New(opts Options) *Finder {
	if opts.Retention == 0 {
		opts.Retention = DefaultRetention
	}
	if opts.MaxPools == 0 {
		opts.MaxPools = DefaultMaxPools
	}
	if opts.Interval == 0 {
		opts.Interval = time.Second
	}
	if opts.Patience == 0 {
		opts.Patience = time.Second
	}
	if opts.Set == nil {
		opts.Set = telemetry.NewSet()
	}
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Writing == nil {
		opts.Writing = func(string) bool { return false }
	}
	if opts.OnRound == nil {
		opts.OnRound = func() {}
	}
	f := &Finder{
		opts: opts, logger: opts.Logger, pools: map[string]*served{}, coming: map[string]*coming{}, leaving: map[string]bool{},
		gone:     map[string]gone{},
		problems: map[string]bool{}, failed: map[string]failure{},
		metrics: &metrics{
			served: opts.Set.Gauge("aggregatord_discovery_pools", "Discovered pools that are served."),
			vanished: opts.Set.Gauge("aggregatord_discovery_vanished_pools",
				"Discovered pools that are served until their retention ends, because their directory or last process is gone."),
			leftOut: opts.Set.Gauge("aggregatord_discovery_left_out_pools",
				"Discovered pools that are not served because there are more than limits.pools."),
			problems: opts.Set.Gauge("aggregatord_discovery_problems",
				"Things that discovery could not use when it looked last; the log names them."),
			seconds: opts.Set.Gauge("aggregatord_discovery_round_seconds", "Time that the last look for pools took."),
			added:   opts.Set.Counter("aggregatord_discovery_added_pools_total", "Pools that discovery added."),
			removed: opts.Set.Counter("aggregatord_discovery_removed_pools_total", "Pools that discovery removed."),
		},
	}
	f.asked = append(f.asked, &asked{name: "the directories that are named", look: f.lookAtStatic})
	for _, source := range opts.Sources {
		f.asked = append(f.asked, &asked{name: source.String(), look: func() answer {
			found, errs := source.Find()
			a := answer{found: found, errs: errs}
			if len(found) == 0 {
				a.hint = source.Hint()
			}
			return a
		}})
	}
	return f
}

// lookAtStatic tells which directories are served in any case.
func (f *Finder) lookAtStatic() answer {
	nodes := map[string]Node{}
	for _, s := range f.opts.Static {
		if n, err := NodeOf(s.Path); err == nil {
			nodes[s.Path] = n
		}
	}
	return answer{nodes: nodes}
}

// Once looks for pools once. What it finds stays reachable until closeAll is called.
func Once(opts Options) (found []pool.Spec, report Report, closeAll func() error) {
	var mu sync.Mutex
	opts.Add = func(s pool.Spec) error {
		mu.Lock()
		defer mu.Unlock()
		found = append(found, s)
		return nil
	}
	f := New(opts)
	f.Round()
	mu.Lock()
	defer mu.Unlock()
	all := slices.Clone(found)
	slices.SortFunc(all, func(a, b pool.Spec) int { return strings.Compare(a.Name, b.Name) })
	return all, f.Report(), f.Close
}

// Run looks for pools until ctx is done.
func (f *Finder) Run(ctx context.Context) {
	ticker := time.NewTicker(f.opts.Interval)
	defer ticker.Stop()
	defer f.work.Wait()
	for {
		f.opts.OnRound()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			f.Round()
		}
	}
}

// Round asks all sources once, and adds and removes pools.
func (f *Finder) Round() {
	start := time.Now()
	patience := f.opts.Patience
	if f.rounds == 0 {
		patience *= 10
	}
	f.rounds++
	problems := map[string]bool{}
	f.ask(patience, problems)
	begun := f.change(problems)
	late := time.After(patience)
	for over := false; len(begun) > 0 && !over; {
		select {
		case <-begun[0].done:
			begun = begun[1:]
		case <-late:
			over = true
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, fail := range f.failed {
		problems[fail.err.Error()] = true
	}
	for name, c := range f.coming {
		problems[fmt.Sprintf("pool %q of directory %q is not served yet: to open it takes long; its file system may not answer", name,
			c.Spec.Dir())] = true
	}
	f.tellLocked(problems)
	f.metrics.seconds.Set(time.Since(start).Seconds())
	vanished := 0
	for _, s := range f.pools {
		if !s.vanished.IsZero() {
			vanished++
		}
	}
	f.metrics.served.Set(float64(len(f.pools)))
	f.metrics.vanished.Set(float64(vanished))
}

// slowRounds is for how many times the patience of a round a look must take before it is told.
const slowRounds = 10

// ask asks all sources side by side. One that takes longer than patience is not waited for again
// until it has answered; what it found before counts meanwhile.
func (f *Finder) ask(patience time.Duration, problems map[string]bool) {
	deadline := time.Now().Add(patience)
	for _, a := range f.asked {
		if a.coming == nil {
			answers := make(chan answer, 1)
			a.coming, a.begun = answers, time.Now()
			// Ends when the source has answered.
			f.work.Go(func() { answers <- a.look() })
		}
	}
	for _, a := range f.asked {
		wait := time.Until(deadline)
		if a.slow {
			wait = 0
		}
		// On a busy machine many looks take a little longer than a round waits.
		told := slowRounds * f.opts.Patience
		if a.slow = !a.await(wait); a.slow && time.Since(a.begun) > told {
			problems[fmt.Sprintf("to look at %s takes longer than %v; until that ends nothing new is found there; a file system may not answer",
				a.name, told)] = true
		}
	}
}

// await takes the answer of the look that was begun, and reports whether it has come in time.
func (a *asked) await(wait time.Duration) bool {
	if wait > 0 {
		select {
		case a.last = <-a.coming:
			a.coming = nil
			return true
		case <-time.After(wait):
		}
	}
	select {
	case a.last = <-a.coming:
		a.coming = nil
		return true
	default:
		return false
	}
}

// change adds and removes pools, and returns those that it has begun to add.
func (f *Finder) change(problems map[string]bool) []*coming {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.opts.Now()
	wanted := f.wantedLocked(problems)
	f.retireLocked(wanted, now)
	return f.addLocked(wanted, now)
}

// wantedLocked puts together what the sources have answered. The result is in the order of the
// sources; no name and no directory is in it twice.
func (f *Finder) wantedLocked(problems map[string]bool) []Found {
	names, nodes := map[string]string{}, map[Node]bool{}
	for _, s := range f.opts.Static {
		names[s.Name] = s.Path
	}
	var wanted []Found
	f.hints = f.hints[:0]
	for _, a := range f.asked {
		for _, n := range a.last.nodes {
			nodes[n] = true
		}
		if a.last.hint != "" {
			f.hints = append(f.hints, a.last.hint)
		}
		for _, err := range a.last.errs {
			problems[err.Error()] = true
		}
		// The one that is served comes first, so that no newcomer takes its name.
		found := slices.Clone(a.last.found)
		slices.SortStableFunc(found, func(a, b Found) int { return f.rankLocked(a) - f.rankLocked(b) })
		for _, p := range found {
			name := p.Spec.Name
			if err := checkName(name); err != nil {
				problems[fmt.Sprintf("directory %q: %v", p.Spec.Dir(), err)] = true
				continue
			}
			if p.Node != (Node{}) && nodes[p.Node] {
				continue // served already
			}
			if other, ok := names[name]; ok {
				problems[fmt.Sprintf("directories %q and %q have the same pool name %q; only the first is served; "+
					"give the pattern a name with a * for each * of the path", other, p.Spec.Dir(), name)] = true
				continue
			}
			names[name], nodes[p.Node] = p.Spec.Dir(), true
			wanted = append(wanted, p)
		}
	}
	return wanted
}

func (f *Finder) rankLocked(p Found) int {
	if s := f.pools[p.Spec.Name]; s != nil && s.ID == p.ID {
		return 0
	}
	return 1
}

func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") || !utf8.ValidString(name):
		return fmt.Errorf("%q cannot be the name of a pool; rename the directory", name)
	case len(name) > maxName:
		return fmt.Errorf("the pool name %.40q... has %d bytes, more than %d; rename the directory", name, len(name), maxName)
	}
	return nil
}

// retireLocked removes pools that are not wanted any more.
func (f *Finder) retireLocked(wanted []Found, now time.Time) {
	named := map[string]Found{}
	for _, p := range wanted {
		named[p.Spec.Name] = p
	}
	for name, s := range f.pools {
		p, ok := named[name]
		switch {
		case ok && p.ID == s.ID:
			if !s.vanished.IsZero() {
				f.logger.Info("pool is back", zap.String("pool", name), zap.String("dir", s.Spec.Dir()))
				s.vanished = time.Time{}
			}
		case ok && p.Node == s.Node && p.Node != (Node{}) && p.Spec.Dir() == s.Spec.Dir() && f.opts.Change != nil:
			f.changeLocked(s, p)
		case ok && p.Node == s.Node && p.Node != (Node{}):
			f.removeLocked(name, "the settings that its application gives have changed; it is served again in a moment")
		case ok:
			f.removeLocked(name, "another directory has taken its name")
		case !ok && f.opts.Writing(name):
		case s.vanished.IsZero():
			s.vanished = now
			f.logger.Info("pool is gone; what it left is served until its retention ends", zap.String("pool", name),
				zap.String("dir", s.Spec.Dir()), zap.Duration("retention", f.opts.Retention))
		case now.Sub(s.vanished) >= f.opts.Retention:
			f.removeLocked(name, "its directory or its last process is gone since "+s.vanished.UTC().Format(time.RFC3339))
		}
	}
}

// changeLocked begins to put the settings that an application gives now into force, unless others are on their
// way. The pool is served meanwhile, and nothing waits for one that hangs.
func (f *Finder) changeLocked(s *served, to Found) {
	if s.changing {
		return
	}
	s.changing = true
	// Ends when they are in force.
	f.work.Go(func() {
		err := f.opts.Change(to.Spec)
		f.mu.Lock()
		defer f.mu.Unlock()
		s.changing = false
		switch {
		case f.pools[to.Spec.Name] != s: // it has been removed meanwhile
		case err != nil:
			f.removeLocked(to.Spec.Name,
				fmt.Sprintf("the settings that its application gives have changed, and cannot be put into force while it is served: %v",
					err))
		default:
			s.ID, s.Meta, s.Spec.Labels, s.Spec.Own = to.ID, to.Meta, to.Spec.Labels, to.Spec.Own
			f.logger.Info("the settings that an application gives of its pool have changed", zap.String("pool", to.Spec.Name),
				zap.String("dir", to.Spec.Dir()))
		}
	})
}

// removeLocked begins to remove a pool. A pool that hangs must not keep others from being found,
// so nothing waits for it.
func (f *Finder) removeLocked(name, why string) {
	s := f.pools[name]
	delete(f.pools, name)
	if len(f.gone) >= maxGone {
		oldest := ""
		for n, g := range f.gone {
			if oldest == "" || g.at.Before(f.gone[oldest].at) {
				oldest = n
			}
		}
		delete(f.gone, oldest)
	}
	f.gone[name] = gone{f.opts.Now(), why}
	f.leaving[name] = true
	f.metrics.removed.Inc()
	// Ends when the pool is closed.
	f.work.Go(func() {
		err := f.opts.Remove(name)
		if s.dir != nil {
			err = errors.Join(err, s.dir.Close())
		}
		f.logger.Info("pool removed", zap.String("pool", name), zap.String("dir", s.Spec.Dir()), zap.String("reason", why), zap.Error(err))
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.leaving, name)
	})
}

// addLocked begins to add the pools that are wanted and not served yet.
func (f *Finder) addLocked(wanted []Found, now time.Time) (begun []*coming) {
	leftOut, still := 0, map[string]failure{}
	for _, p := range wanted {
		name := p.Spec.Name
		if f.pools[name] != nil || f.leaving[name] || f.coming[name] != nil {
			continue
		}
		fail := f.failed[name]
		if now.Before(fail.next) {
			still[name] = fail
			continue
		}
		if len(f.opts.Static)+len(f.pools)+len(f.leaving)+len(f.coming) >= f.opts.MaxPools {
			leftOut++
			f.evictLocked()
			continue
		}
		begun = append(begun, f.beginLocked(p, fail.wait))
	}
	f.failed = still
	f.metrics.leftOut.Set(float64(leftOut))
	switch {
	case leftOut > 0 && f.leftOut == 0:
		f.logger.Warn("more pools are found than may be served; the others are left out; raise limits.pools",
			zap.Int("limit", f.opts.MaxPools), zap.Int("left_out", leftOut))
	case leftOut == 0 && f.leftOut > 0:
		f.logger.Info("all pools that are found are served again")
	}
	f.leftOut = leftOut
	return begun
}

// beginLocked begins to add a pool. A directory that takes long must not keep others from being found,
// so it is done aside. The pool has waited before this attempt, zero if it is the first.
func (f *Finder) beginLocked(p Found, waited time.Duration) *coming {
	c := &coming{served{Found: p}, make(chan struct{})}
	name := p.Spec.Name
	f.coming[name] = c
	// Ends when the pool is added, or could not be.
	f.work.Go(func() {
		defer close(c.done)
		err := f.add(&c.served)
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.coming, name)
		if err != nil {
			wait := min(max(2*waited, f.opts.Interval), maxWait)
			f.failed[name] = failure{
				fmt.Errorf("pool %q of directory %q is not served: %w", name, p.Spec.Dir(), err), wait,
				f.opts.Now().Add(wait),
			}
			return
		}
		f.pools[name] = &c.served
		delete(f.gone, name)
		f.metrics.added.Inc()
		f.logger.Info("pool found", zap.String("pool", name), zap.String("dir", p.Spec.Dir()))
	})
	return c
}

// evictLocked makes room by removing the pool that has vanished first, if one has.
func (f *Finder) evictLocked() {
	oldest := ""
	for name, s := range f.pools {
		if !s.vanished.IsZero() && (oldest == "" || s.vanished.Before(f.pools[oldest].vanished)) {
			oldest = name
		}
	}
	if oldest != "" {
		f.removeLocked(oldest, "it had vanished, and limits.pools left no room")
	}
}

// add opens a pool and has it served.
func (f *Finder) add(s *served) error {
	if s.Open != nil {
		dir, err := s.Open()
		if err != nil {
			return err
		}
		s.dir, s.Spec.Path = dir, fmt.Sprintf("/proc/self/fd/%d", dir.Fd())
	}
	err := f.opts.Add(s.Spec)
	if err != nil && s.dir != nil {
		err = errors.Join(err, s.dir.Close())
	}
	return err
}

// tellLocked logs each problem when it begins and when it ends.
func (f *Finder) tellLocked(problems map[string]bool) {
	for _, p := range slices.Sorted(maps.Keys(problems)) {
		if !f.problems[p] {
			f.logger.Warn("discovery cannot use something", zap.String("problem", p))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(f.problems)) {
		if !problems[p] {
			f.logger.Info("a problem of discovery is over", zap.String("problem", p))
		}
	}
	f.problems = problems
	f.metrics.problems.Set(float64(len(problems)))
}

// Gone tells why a pool is not served any more, if it once was.
func (f *Finder) Gone(name string) (why string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	g, ok := f.gone[name]
	return g.why, ok
}

// Meta returns what a source knows of a pool beside its labels.
func (f *Finder) Meta(name string) map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if s := f.pools[name]; s != nil {
		return s.Meta
	}
	return nil
}

// A Report is what the finder did in its last round.
type Report struct {
	// Problems are what it could not use, and LeftOut is how many pools more it found than Limit,
	// which is how many there may be.
	Problems       []string
	LeftOut, Limit int
	// Hints are of sources that found nothing.
	Hints []string
}

// Report tells what the finder did in its last round.
func (f *Finder) Report() Report {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Report{slices.Sorted(maps.Keys(f.problems)), f.leftOut, f.opts.MaxPools, slices.Clone(f.hints)}
}

// Origin is where a pool came from.
type Origin struct {
	// From is one of FromPattern and the others.
	From string
	// Vanished is when its source did not find it any more, and Until when it will be removed; both
	// are zero while it is found.
	Vanished, Until time.Time
}

// Origins returns where the pools came from that the finder has added, by name.
func (f *Finder) Origins() map[string]Origin {
	f.mu.Lock()
	defer f.mu.Unlock()
	all := make(map[string]Origin, len(f.pools))
	for name, s := range f.pools {
		o := Origin{From: s.From, Vanished: s.vanished}
		if !s.vanished.IsZero() {
			o.Until = s.vanished.Add(f.opts.Retention)
		}
		all[name] = o
	}
	return all
}

// Close gives up the descriptors of pools. Run must have returned, and the
// pools must be closed.
func (f *Finder) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, s := range f.pools {
		if s.dir != nil {
			errs = append(errs, s.dir.Close())
		}
	}
	f.pools = map[string]*served{}
	return errors.Join(errs...)
}

// labelsOf returns labels in order, without empty ones.
func labelsOf(in map[string]string) []metric.Label {
	var out []metric.Label
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if in[name] != "" {
			out = append(out, metric.Label{Name: name, Value: strings.ToValidUTF8(in[name], "\ufffd")})
		}
	}
	return out
}
