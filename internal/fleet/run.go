package fleet

import (
	"context"
	"sync"
	"time"

	"go.uber.org/zap"
)

// firstFold is how long after the first scan the dead are folded: the first scrape has waited
// for the scan; folding can wait for the scrape.
const firstFold = 250 * time.Millisecond

// Run tends all pools until ctx is done, and returns when every goroutine has ended.
func (f *Fleet) Run(ctx context.Context) {
	f.mu.Lock()
	f.running = ctx
	for _, m := range f.members {
		f.startLocked(m)
	}
	f.mu.Unlock()
	<-ctx.Done()
	f.mu.Lock()
	f.running = nil
	f.mu.Unlock()
	f.loops.Wait()
}

// The rounds of all pools begin in a few moments of each interval: to wake up for each by itself would
// cost more than most of them.
const (
	moments  = 4
	mostStep = time.Second / moments
)

// inStep is how long it is until the first of these moments that is not before the time given.
func inStep(t time.Time, interval time.Duration) time.Duration {
	step := max(1, min(interval/moments, mostStep))
	return time.Until(t.Truncate(step).Add(step))
}

func (f *Fleet) startLocked(m *member) {
	ctx, stop := context.WithCancel(f.running)
	m.stop, m.done = stop, make(chan struct{})
	// Ends when the pool is removed, or Run's context is done.
	f.loops.Go(func() {
		defer close(m.done)
		defer stop()
		f.tend(ctx, m)
	})
}

// tend keeps one pool up to date until ctx is done.
func (f *Fleet) tend(ctx context.Context, m *member) {
	wake := make(chan struct{}, 1)
	var watching sync.WaitGroup
	defer watching.Wait()
	// Ends when ctx is done.
	watching.Go(func() { f.watch(ctx, m, wake) })
	start, log := time.Now(), f.logger.With(zap.String("dir", m.Spec().Dir()))
	m.Tend(true)
	for !m.Ready() && ctx.Err() == nil && m.Fold() {
		// More files than may be open: the dead have to make room first.
		m.Tend(true)
	}
	if m.Ready() {
		log.Debug("pool is ready", zap.Duration("after", time.Since(start)))
	} else {
		log.Error("not ready: not all source files can be opened; the log above says why")
	}
	f.told()
	select {
	case <-ctx.Done():
	case <-time.After(inStep(time.Now().Add(min(firstFold, f.opts.TendInterval)), f.opts.TendInterval)):
	}
	next := time.NewTimer(f.opts.TendInterval)
	defer next.Stop()
	rescanned := time.Now()
	for {
		select {
		case <-ctx.Done():
		case <-wake:
			m.Disturb()
		case <-next.C:
		}
		if ctx.Err() != nil { // whatever else there was to do
			m.FoldLast()
			f.keepStarts(m, true)
			return
		}
		rescan := f.opts.RescanInterval
		if m.Undisturbed() {
			rescan *= undisturbedRescans
		}
		force := time.Since(rescanned) >= rescan
		if force {
			rescanned = time.Now()
		}
		next.Reset(inStep(time.Now().Add(f.round(ctx, m, force)), f.opts.TendInterval))
	}
}

// round looks after a pool once, folds all that is to be folded, and tells how long the pool may then be
// left alone if no event tells of anything. force lists its directory.
func (f *Fleet) round(ctx context.Context, m *member, force bool) (pause time.Duration) {
	m.SetWatched(m.notifier.Stats.Watching.Load())
	if force {
		m.Rescan()
	} else {
		m.Tend(false)
	}
	f.told()
	f.keepStarts(m, false)
	for tended := time.Now(); m.Fold() && ctx.Err() == nil; {
		// Folding thousands of files takes a while, and looking at all that are left does,
		// too.
		f.told()
		if time.Since(tended) >= f.opts.TendInterval {
			m.Tend(false)
			tended = time.Now()
		}
	}
	pause = min(f.opts.TendInterval, f.opts.RescanInterval)
	if m.Undisturbed() {
		pause *= undisturbedRounds
	}
	return pause
}

// undisturbedRounds is how many rounds pass between two of a pool in which nothing happens and of whose
// directory events would tell. A worker that ends without any is noticed that much later; what it has
// counted, and that its live gauges are gone, each scrape finds out by itself.
const undisturbedRounds = 2

// undisturbedRescans is how much more seldom the directory of such a pool is listed.
const undisturbedRescans = 3

// told tells that a pool was tended.
func (f *Fleet) told() {
	if f.opts.OnTend != nil {
		f.opts.OnTend()
	}
}

// watch wakes the tend loop when the directory changes.
func (f *Fleet) watch(ctx context.Context, m *member, wake chan<- struct{}) {
	err := m.notifier.Run(ctx, m.Spec().Path, func() {
		select {
		case wake <- struct{}{}:
		default: // one is pending already
		}
	})
	if err != nil && ctx.Err() == nil {
		f.logger.Error("file system events ended; looking at the directory every second", zap.String("dir", m.Spec().Dir()), zap.Error(err))
	}
}

// Events tells of the file system events of a pool.
type Events struct {
	Pool string
	// Watching says that events arrive; otherwise the directory is polled.
	Watching          bool
	Events, Overflows uint64
}

// Events lists the pools with what is known of their file system events.
func (f *Fleet) Events() []Events {
	var all []Events
	for _, m := range f.all() {
		s := &m.notifier.Stats
		all = append(all, Events{m.Spec().Name, s.Watching.Load(), s.Events.Load(), s.Overflows.Load()})
	}
	return all
}
