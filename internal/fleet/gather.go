package fleet

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/pool"
	"aggregatord/internal/view"
)

// A gathering takes a snapshot of each of some pools, by several goroutines. It gives up those that take
// too long: a goroutine that is inside of such a pool, one at most, goes on until the pool answers.
type gathering struct {
	ctx      context.Context //nolint:containedctx // of the one call that it is for
	patience time.Duration
	logger   *zap.Logger
	members  []*member
	take     taker
	done     chan struct{} // closed when left is 0

	// mu guards what follows.
	mu       sync.Mutex
	next     int // the pool that is taken next
	left     int // how many are waited for
	over     bool
	turns    []turn
	panicked any // what take has panicked with
}

// A turn is that of one pool.
type turn struct {
	begun        time.Time // zero: not yet
	ended, given bool      // given up
	snap         *view.Snapshot
	spec         pool.Spec // by whose settings the snapshot was made
	err          error
}

// A taker takes a snapshot of one pool. It does not wait for its turn at the pool any longer than wanted says
// so: those who ask and leave must not leave goroutines behind that wait for a busy pool.
type taker func(m *member, wanted func() bool) (*view.Snapshot, pool.Spec, error)

// helpAfter is how long a pool may take until the others get one goroutine more.
const helpAfter = 100 * time.Millisecond

// gather takes a snapshot of each pool, nil of those that are just being removed. One that does not answer has
// none either; all says that this is an error. It is one in any case if no pool answers.
func (f *Fleet) gather(ctx context.Context, members []*member, all bool, take taker) ([]turn, error) {
	g := &gathering{
		ctx: ctx, patience: f.opts.Pool.Patience, logger: f.logger, members: members, take: take, done: make(chan struct{}),
		left: len(members), turns: make([]turn, len(members)),
	}
	if len(members) == 0 {
		return nil, nil
	}
	g.wait()
	turns, silent, err := g.result(all)
	for i, t := range turns {
		if t.given || t.snap != nil {
			f.tellSilent(members[i], t.given)
		}
	}
	if err == nil && silent == len(members) {
		err = pool.ErrSilent
	}
	if err != nil {
		for _, t := range turns {
			if t.snap != nil {
				t.snap.Release()
			}
		}
		return nil, fmt.Errorf("merge: %w", err)
	}
	return turns, nil
}

// wait has all pools taken, and returns when the last one has answered or is given up.
func (g *gathering) wait() {
	for range min(runtime.GOMAXPROCS(0), len(g.members)) {
		go g.work() // ends when all pools are taken, and the one it has taken has answered
	}
	tick := time.NewTimer(helpAfter)
	defer tick.Stop()
	for {
		select {
		case <-g.done:
			return
		case <-g.ctx.Done():
			g.giveUp(0)
			return
		case <-tick.C:
			for range g.giveUp(g.patience) {
				go g.work() // in place of one that has been waiting for long; it ends as those above
			}
			tick.Reset(min(helpAfter, g.patience))
		}
	}
}

// work takes one pool after the other.
func (g *gathering) work() {
	for i := g.begin(); i >= 0; i = g.begin() {
		func() {
			var snap *view.Snapshot
			var spec pool.Spec
			var err error
			defer func() {
				v := recover()
				if v != nil {
					v = fmt.Sprintf("%v\n%s", v, debug.Stack())
				}
				g.end(i, snap, spec, err, v)
			}()
			snap, spec, err = g.take(g.members[i], func() bool { return g.wanted(i) })
		}()
	}
}

// begin returns the next pool, -1 if there is none any more.
func (g *gathering) begin() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	for ; g.next < len(g.turns) && !g.over; g.next++ {
		t := &g.turns[g.next]
		t.begun = time.Now()
		switch {
		case g.ctx.Err() != nil:
			t.err = g.ctx.Err()
		case g.members[g.next].silent():
			t.given = true
		default:
			g.next++
			return g.next - 1
		}
		g.endLocked(t)
	}
	return -1
}

// wanted reports whether somebody waits for the answer of a pool.
func (g *gathering) wanted(i int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return !g.turns[i].ended
}

// end takes what a pool has answered.
func (g *gathering) end(i int, snap *view.Snapshot, spec pool.Spec, err error, panicked any) {
	g.mu.Lock()
	defer g.mu.Unlock()
	t := &g.turns[i]
	if t.ended { // given up meanwhile
		if t.given {
			g.members[i].hanging.Add(-1)
		}
		if snap != nil {
			snap.Release()
		}
		if panicked != nil {
			g.logger.Error("panic while a pool was read that nobody waited for any more", zap.String("pool", g.members[i].Spec().Name),
				zap.Any("panic", panicked))
		}
		return
	}
	t.snap, t.spec, t.err = snap, spec, err
	if panicked != nil {
		g.panicked = panicked
	}
	g.endLocked(t)
}

func (g *gathering) endLocked(t *turn) {
	t.ended = true
	if g.left--; g.left == 0 {
		close(g.done)
	}
}

// giveUp gives up the pools that have been taken for longer than patience; 0 means all that have not
// answered, because nobody waits any more. It returns how many of the others take long.
func (g *gathering) giveUp(patience time.Duration) (long int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for i := range g.turns {
		switch t := &g.turns[i]; {
		case t.ended:
		case patience == 0:
			t.err = g.ctx.Err()
			g.over = true
			g.endLocked(t)
		case t.begun.IsZero():
		case time.Since(t.begun) > patience:
			t.given = true
			g.members[i].hanging.Add(1)
			g.endLocked(t)
		case time.Since(t.begun) > helpAfter:
			long++
		}
	}
	if g.next == len(g.turns) {
		return 0 // nobody needs help
	}
	return long
}

// result returns the turns, and how many pools do not answer.
func (g *gathering) result(all bool) (turns []turn, silent int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.panicked != nil {
		panic(g.panicked)
	}
	var errs []error
	for i := range g.turns {
		t := &g.turns[i]
		t.given = t.given || errors.Is(t.err, pool.ErrSilent)
		switch {
		case t.given:
			if silent++; all {
				errs = append(errs, fmt.Errorf("pool %q: %w", g.members[i].Spec().Name, pool.ErrSilent))
			}
		case t.err != nil && !errors.Is(t.err, pool.ErrClosed):
			errs = append(errs, t.err)
		}
	}
	return g.turns, silent, errors.Join(errs...)
}

// silent reports whether a pool does not answer. It waits for nobody.
func (m *member) silent() bool { return m.hanging.Load() > 0 || m.IsSilent() }

// tellSilent logs when a pool does not answer any more, and when it does again.
func (f *Fleet) tellSilent(m *member, silent bool) {
	if m.told.Load() == silent || m.told.Swap(silent) == silent {
		return
	}
	log := f.logger.With(zap.String("pool", m.Spec().Name), zap.String("dir", m.Spec().Dir()))
	if silent {
		log.Warn("directory does not answer; its pool is left out of the view of all pools until it does",
			zap.Duration("patience", f.opts.Pool.Patience))
	} else {
		log.Info("directory answers again; its pool is served")
	}
}

// IsSilent reports whether the pool of a name does not answer, so that nothing of it is served. It waits for
// nobody.
func (f *Fleet) IsSilent(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.find(name)
	return m != nil && m.silent()
}
