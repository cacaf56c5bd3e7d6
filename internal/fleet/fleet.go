package fleet

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
	"aggregatord/internal/starts"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
	"aggregatord/internal/watch"
)

// Options of a Fleet. Zero fields mean the defaults given.
type Options struct {
	// Pools are there from the start. If there are several, each has a name.
	Pools []pool.Spec
	// Growing says that pools will be added, so that there need be none at the start, and that
	// each must have a name.
	Growing bool
	// Pool holds what all pools have in common; its Policy, Metrics, Descriptors and Logger are
	// the fleet's to fill. ArchiveDir there is the directory above those of the pools' archives.
	Pool pool.Options
	// Policy is what is in force at first, nil for none.
	Policy *policy.Policy
	// TendInterval is how often processes are asked for signs of life, in a pool in which nothing
	// else happens half as often. A death is noticed then, or at the next scrape where live gauges
	// depend on it. Default: 1 s.
	TendInterval time.Duration
	// RescanInterval is how often directories are listed although nothing told that they
	// changed, in a pool in which nothing happens a third as often, and no more often than
	// processes are asked. Default: 10 s.
	RescanInterval time.Duration
	// OnTend is called after each round of a pool, and may be called by several goroutines at
	// once. It must return soon. Default: nothing.
	OnTend func()
	// Reserve is how many descriptors stay free of source files: for connections, archives and the
	// rest. Default: pool.DefaultReserve.
	Reserve int
	// Set is where the fleet's own metrics go. Default: a set of its own.
	Set *telemetry.Set
	// Logger may be nil.
	Logger *zap.Logger
}

// A Fleet is a set of pools. It is safe for several goroutines.
type Fleet struct {
	opts    Options
	logger  *zap.Logger
	metrics *metrics
	hub     watch.Hub // of the file system events of all pools

	// policyMu is held for reading while a view is taken, so that each is wholly by one policy,
	// and for writing while the policy changes.
	policyMu sync.RWMutex
	policy   *policy.Policy
	info     *view.Snapshot // what the policy says of constant series, nil for nothing

	// mu guards what follows.
	mu sync.Mutex
	// adding has the names of pools that are being added.
	adding map[string]bool
	// members are sorted by name. The slice is never changed: a new one takes its place.
	members []*member
	joints  map[string]*joint
	running context.Context // of Run, nil before
	loops   sync.WaitGroup  // the tend loops
	closed  bool
}

// member is one pool of the fleet.
type member struct {
	*pool.Pool
	descriptors *pool.Descriptors
	policy      *policy.Policy // that it was made with
	notifier    *watch.Notifier
	// late says that the pool came while others were served: until its files are read once, it is
	// left out of the view of all pools, which does not wait for it.
	late bool
	// looking is held while a view with starts is taken of the pool, so that its starts meet
	// the views in their order.
	looking sync.Mutex
	// hanging is how many looks at the pool have not ended that nobody waits for any more, and told says
	// that the log has it.
	hanging atomic.Int64
	told    atomic.Bool
	starts  keptStarts
	stop    context.CancelFunc
	done    chan struct{} // closed when its loop has ended; nil before it was started
}

// Close gives back everything.
func (m *member) Close() error {
	defer m.descriptors.EndPart()
	return m.Pool.Close()
}

// isComing reports whether a pool that came late has files that were not read yet. A part of
// them would look like counters that fell.
func (m *member) isComing() bool { return m.late && !m.Ready() }

// Errors of Add.
var (
	// ErrClosed says that the fleet is closed.
	ErrClosed = errors.New("fleet is closed")
	// ErrName says that a pool's name is not free, or is needed and missing.
	ErrName = errors.New("pool name")
	// ErrNoPool says that there is no pool of a name.
	ErrNoPool = errors.New("no such pool")
	// ErrComing says that not all files of a pool have been read yet.
	ErrComing = errors.New("not all files of the pool have been read yet")
)

// New returns a fleet of the pools that the options name. It starts nothing, and has not
// looked at their directories yet.
func New(opts Options) (*Fleet, error) {
	if opts.Logger == nil {
		opts.Logger = zap.NewNop()
	}
	if opts.Set == nil {
		opts.Set = telemetry.NewSet()
	}
	if opts.TendInterval == 0 {
		opts.TendInterval = time.Second
	}
	if opts.Pool.Patience == 0 {
		opts.Pool.Patience = pool.DefaultPatience
	}
	if opts.RescanInterval == 0 {
		opts.RescanInterval = 10 * time.Second
	}
	opts.Pool.Logger = opts.Logger
	if opts.Pool.Metrics == nil {
		opts.Pool.Metrics = pool.NewMetrics(opts.Set)
	}
	opts.Pool.Descriptors, opts.Pool.Share = pool.NewDescriptors(opts.Reserve), merge.NewShare()
	if opts.Growing {
		opts.Pool.Descriptors.Grows()
	}
	f := &Fleet{opts: opts, logger: opts.Logger, metrics: newMetrics(opts.Set), joints: map[string]*joint{}, adding: map[string]bool{}}
	f.adoptPolicy(opts.Policy)
	if len(opts.Pools) == 0 && !opts.Growing {
		return nil, errors.New("no directory given")
	}
	for _, spec := range opts.Pools {
		if spec.Name == "" && (len(opts.Pools) > 1 || opts.Growing) {
			return nil, fmt.Errorf("directory %q has no name: with several directories, or a pattern, each needs one, as in --dir web=%s",
				spec.Path, spec.Path)
		}
		if f.find(spec.Name) != nil {
			return nil, fmt.Errorf("two directories have the name %q", spec.Name)
		}
		f.insert(f.newMember(spec))
	}
	return f, nil
}

// pathEvery is how often it is looked whether a pool's path leads elsewhere, beside the events that tell
// of it. Each round finds that out as well, so it only decides when events arrive again.
const pathEvery = 5 * time.Second

func (f *Fleet) newMember(spec pool.Spec) *member {
	opts := f.opts.Pool
	opts.Policy, opts.Hub = f.policy, &f.hub
	if opts.ArchiveDir != "" {
		opts.ArchiveDir = filepath.Join(opts.ArchiveDir, spec.Name)
	}
	opts.Descriptors = opts.Descriptors.Part()
	m := &member{Pool: pool.New(spec, opts), descriptors: opts.Descriptors, policy: opts.Policy}
	m.starts.Starts = starts.New()
	m.notifier = watch.NewNotifier(watch.NotifierOptions{Hub: &f.hub, Poll: pathEvery, OnFallback: func(err error) {
		f.logger.Warn("inotify is unavailable; looking at the directory every second", zap.String("dir", spec.Dir()), zap.Error(err))
	}})
	return m
}

func (f *Fleet) insert(m *member) {
	i, _ := slices.BinarySearchFunc(f.members, m.Spec().Name, compareMember)
	f.members = slices.Insert(slices.Clone(f.members), i, m)
}

func compareMember(m *member, name string) int { return strings.Compare(m.Spec().Name, name) }

func (f *Fleet) find(name string) *member {
	if i, ok := slices.BinarySearchFunc(f.members, name, compareMember); ok {
		return f.members[i]
	}
	return nil
}

// all returns the pools, sorted by name. The slice never changes.
func (f *Fleet) all() []*member {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.members
}

func (f *Fleet) isClosed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// Open opens the archives of the directories that are there. An error means that another
// daemon has one of the directories, or that a newer program wrote an archive: then nothing
// must be served. It comes before Run.
func (f *Fleet) Open() error {
	var errs []error
	for _, m := range f.all() {
		errs = append(errs, m.Open())
	}
	return errors.Join(errs...)
}

// Add adds a pool, which needs a name that no other one has. The error wraps ErrName, is one of
// pool.Open, or ErrClosed; then nothing has changed. A directory that takes long keeps no other pool
// from being added, and no policy from coming into force.
func (f *Fleet) Add(spec pool.Spec) error {
	if err := f.reserve(spec); err != nil {
		return err
	}
	f.policyMu.RLock()
	m := f.newMember(spec)
	f.policyMu.RUnlock()
	// Under no lock: to open may mean to wait for another process.
	err := m.Open()
	if err == nil {
		err = f.join(m)
	}
	f.mu.Lock()
	delete(f.adding, spec.Name)
	f.mu.Unlock()
	if err != nil {
		return errors.Join(err, m.Close())
	}
	return nil
}

// join makes an open pool one of the fleet's, with the policy that is in force then.
func (f *Fleet) join(m *member) error {
	f.policyMu.RLock() // no policy may pass by while the pool is in none of both
	defer f.policyMu.RUnlock()
	if m.policy != f.policy {
		if err := m.SetPolicy(f.policy); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	m.late = f.running != nil
	f.insert(m)
	if f.running != nil {
		f.startLocked(m)
	}
	return nil
}

// reserve takes the name of a pool that is to be added, or tells why it cannot be.
func (f *Fleet) reserve(spec pool.Spec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return ErrClosed
	case spec.Name == "":
		return fmt.Errorf("%w: directory %q has none", ErrName, spec.Dir())
	case f.find(spec.Name) != nil:
		return fmt.Errorf("%w: %q is that of %q already", ErrName, spec.Name, f.find(spec.Name).Spec().Dir())
	case f.adding[spec.Name]:
		return fmt.Errorf("%w: a pool named %q is just being added", ErrName, spec.Name)
	}
	f.adding[spec.Name] = true
	return nil
}

// Remove removes a pool and returns when everything of it is given back. What its files hold is
// served no more, and stays where it is. The error wraps ErrNoPool, or is one of giving back.
func (f *Fleet) Remove(name string) error {
	f.mu.Lock()
	m := f.find(name)
	if m == nil {
		f.mu.Unlock()
		return fmt.Errorf("%w: %q", ErrNoPool, name)
	}
	f.members = slices.DeleteFunc(slices.Clone(f.members), func(o *member) bool { return o == m })
	// What was joined refers to the pool's labels and layouts.
	clear(f.joints)
	stop, done := m.stop, m.done
	f.mu.Unlock()
	if done != nil {
		stop()
		<-done
	}
	return m.Close()
}

// Names lists the pools.
func (f *Fleet) Names() []string {
	var names []string
	for _, m := range f.all() {
		names = append(names, m.Spec().Name)
	}
	return names
}

// Pools returns the pools, sorted by name.
func (f *Fleet) Pools() []*pool.Pool {
	var pools []*pool.Pool
	for _, m := range f.all() {
		pools = append(pools, m.Pool)
	}
	return pools
}

// Pool returns the pool of a name, nil if there is none.
func (f *Fleet) Pool(name string) *pool.Pool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.find(name); m != nil {
		return m.Pool
	}
	return nil
}

// DropArchived removes archived series of a pool for good: see pool.Pool.DropArchived. The name may
// be empty where there is only one pool. The error wraps ErrNoPool where there is none of that name,
// and ErrName where one is needed. It returns when the archive is written, whatever becomes of ctx
// meanwhile.
func (f *Fleet) DropArchived(ctx context.Context, name string, m archive.Match) (dropped int, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	all := f.all()
	if name == "" && len(all) == 1 {
		return all[0].DropArchived(m)
	}
	names := f.Names()
	if name == "" {
		return 0, fmt.Errorf("%w: there are several pools; name one of %s", ErrName, strings.Join(names, ", "))
	}
	p := f.Pool(name)
	if p == nil {
		return 0, fmt.Errorf("%w: %q; there are %s", ErrNoPool, name, strings.Join(names, ", "))
	}
	return p.DropArchived(m)
}

// Ready reports whether all files of all pools that were there at the start were read once.
func (f *Fleet) Ready() bool {
	return !slices.ContainsFunc(f.all(), func(m *member) bool { return !m.Ready() && !m.late })
}

// SetPolicy puts another policy in force, nil for none: every view that is taken after it has
// returned is by the new one, every view wholly by one of both. It may be called from any
// goroutine, and waits for folds that are under way; views are taken until it has all pools.
func (f *Fleet) SetPolicy(p *policy.Policy) error {
	start := time.Now()
	members := f.hold()
	defer f.policyMu.Unlock()
	defer release(members)
	f.adoptPolicy(p)
	var errs []error
	for _, m := range members {
		m.starts.Unsure(time.Now())                                                   // names may be others
		if err := m.SetPolicyHeld(p); err != nil && !errors.Is(err, pool.ErrClosed) { // one that is just being removed
			errs = append(errs, err)
		}
	}
	f.logger.Info("policy is in force", zap.Duration("duration", time.Since(start)))
	return errors.Join(errs...)
}

// SetSettings puts into force what the application of a pool says of it now: its labels, and its own rules
// and limits, nil for none. The pool is served meanwhile; other pools do not wait for it. The error wraps
// ErrNoPool, or is pool.ErrClosed where it is just being removed.
func (f *Fleet) SetSettings(name string, labels []metric.Label, own *policy.Policy) error {
	f.mu.Lock()
	m := f.find(name)
	f.mu.Unlock()
	if m == nil {
		return fmt.Errorf("%w: %q", ErrNoPool, name)
	}
	m.Hold() // no other policy comes into force meanwhile
	defer m.Release()
	f.policyMu.RLock()
	now := f.policy
	f.policyMu.RUnlock()
	m.starts.Unsure(time.Now()) // names may be others
	err := m.SetSettingsHeld(now, labels, own)
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.joints) // they have the old labels
	return err
}

// hold returns all pools, each of them held, with policyMu locked. A pool that is busy for long is
// waited for with nothing else held: neither the views nor the other pools wait for it.
func (f *Fleet) hold() []*member {
	for {
		members := f.all()
		for _, m := range members {
			m.Hold()
			m.Release()
		}
		for _, m := range members {
			m.Hold()
		}
		f.policyMu.Lock()
		if slices.Equal(members, f.all()) {
			return members
		}
		f.policyMu.Unlock() // one has come or gone
		release(members)
	}
}

func release(members []*member) {
	for _, m := range members {
		m.Release()
	}
}

func (f *Fleet) adoptPolicy(p *policy.Policy) {
	f.policy, f.info = p, infoView(p)
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.joints)
}

// Err tells why directories could not be listed when they were last looked at.
func (f *Fleet) Err() error {
	var errs []error
	for _, m := range f.all() {
		errs = append(errs, m.Err())
	}
	return errors.Join(errs...)
}

// UpdateMetrics brings the gauges that describe the pools up to date. It waits for no pool that does not answer.
func (f *Fleet) UpdateMetrics() {
	for _, m := range f.all() {
		m.UpdateMetrics()
	}
}

// Close gives up all pools. Run must have returned.
func (f *Fleet) Close() error {
	f.mu.Lock()
	members := f.members
	f.members, f.closed = nil, true
	f.mu.Unlock()
	var errs []error
	for _, m := range members {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}
