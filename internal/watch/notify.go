package watch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/fsnotify/fsnotify"
)

// NotifierOptions says how a Notifier looks. The zero value works.
type NotifierOptions struct {
	// Poll is how often the path is looked at beside the events (default 1 s): a directory
	// that was replaced without an event, or appeared out of sight, is found this much
	// later. Where events cannot be had, every poll wakes.
	Poll time.Duration
	// Quiet is the least time between two wakes (default 10 ms), so that a worker that
	// starts and makes a dozen files, or a client that uses write(2) for every value, does
	// not cost a rescan each. The first event after a pause wakes at once.
	Quiet time.Duration
	// Ignore lists names in the directory whose events are of no interest. The default is
	// the daemon's own hidden directory, ".aggregatord".
	Ignore []string
	// OnFallback, if set, is called from Run when the kernel gives no events (EMFILE: too
	// many inotify instances or descriptors; ENOSPC: fs.inotify.max_user_watches is used up)
	// and Run polls instead. It is called once for each time this begins, with the cause.
	OnFallback func(error)
	// Hub is shared by the Notifiers of many directories. Default: one of its own.
	Hub *Hub
}

func (o NotifierOptions) withDefaults() NotifierOptions {
	if o.Poll <= 0 {
		o.Poll = time.Second
	}
	if o.Quiet <= 0 {
		o.Quiet = 10 * time.Millisecond
	}
	if o.Ignore == nil {
		o.Ignore = []string{".aggregatord"}
	}
	if o.Hub == nil {
		o.Hub = &Hub{}
	}
	return o
}

// NotifierStats counts what a Notifier has met. Any goroutine may read it at any time.
type NotifierStats struct {
	Events    atomic.Uint64 // events of interest
	Ignored   atomic.Uint64 // events of ignored names and of attributes
	Overflows atomic.Uint64 // times the kernel's queue was full and events were lost
	Errors    atomic.Uint64 // other errors from the event queue
	Rewatches atomic.Uint64 // times the path was watched again after it was gone or replaced
	Wakes     atomic.Uint64 // calls of wake
	Watching  atomic.Bool   // the directory exists and its events arrive
	Polling   atomic.Bool   // events cannot be had
}

// A Notifier tells when it is worth listing a directory again. What it tells is never
// complete (queues overflow, network file systems say nothing of other machines), so list
// now and then without it.
type Notifier struct {
	// Stats may be read while Run runs.
	Stats NotifierStats

	opts  NotifierOptions
	retry time.Duration // how long to poll before asking for events again
}

// NewNotifier returns a Notifier. It starts nothing.
func NewNotifier(opts NotifierOptions) *Notifier {
	return &Notifier{opts: opts.withDefaults(), retry: 30 * time.Second}
}

// Run calls wake whenever a file of the directory at path may have appeared, gone, been
// renamed or changed its size, and whenever the directory itself appeared, vanished or
// became another one; also once when watching begins, for what was missed until then.
// Changes that come close together share one wake, which follows the last of them. Wake is
// called from Run and must not block: let it put a token into a channel of size one.
//
// Run returns nil when ctx is done, and leaves no goroutine behind. It may be called
// again, but not twice at a time.
func (n *Notifier) Run(ctx context.Context, path string, wake func()) error {
	p := &pacer{quiet: n.opts.Quiet, wake: func() { n.Stats.Wakes.Add(1); wake() }}
	defer p.stop()
	poll := time.NewTicker(n.opts.Poll)
	defer poll.Stop()
	// Those of many directories wake up in the same few moments: to wake up costs more than to look.
	const moment = time.Second / 8
	defer time.AfterFunc(time.Until(time.Now().Truncate(moment).Add(moment)), func() { poll.Reset(n.opts.Poll) }).Stop()
	defer n.Stats.Watching.Store(false)
	defer n.Stats.Polling.Store(false)

	watched := false
	for ctx.Err() == nil {
		a, err := n.attach(filepath.Clean(path))
		if err != nil {
			if !n.Stats.Polling.Swap(true) && n.opts.OnFallback != nil {
				n.opts.OnFallback(err)
			}
			n.pollFor(ctx, n.retry, poll.C, p)
			continue
		}
		n.Stats.Polling.Store(false)
		if a.whole {
			if watched {
				n.Stats.Rewatches.Add(1)
			}
			watched = true
			n.Stats.Watching.Store(true)
			p.poke()
		}
		n.follow(ctx, a, poll.C, p)
		if a.whole {
			n.Stats.Watching.Store(false)
			p.poke()
		}
		a.tap.close()
	}
	return nil
}

// An attachment watches one directory: the wanted one, or while that does not exist the
// nearest one above it that does.
type attachment struct {
	tap    *tap
	path   string      // what is wanted
	target string      // what is watched
	info   fs.FileInfo // of target
	whole  bool        // target is path
	next   string      // otherwise: the name in target that leads to path
}

// attach watches path, or the nearest existing directory above it. An error means that
// events cannot be had.
func (n *Notifier) attach(path string) (*attachment, error) {
	a, err := attachTo(n.opts.Hub, path)
	if errors.Is(err, errTwoPaths) {
		a, err = attachTo(&Hub{newWatcher: n.opts.Hub.newWatcher}, path)
	}
	if err != nil {
		return nil, fmt.Errorf("watch directory %q: %w", path, err)
	}
	return a, nil
}

func attachTo(h *Hub, path string) (a *attachment, err error) {
	t, err := h.open()
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	a = &attachment{tap: t, path: path}
	a.target, a.info, a.next = nearest(path)
	for range 10 {
		if a.info == nil {
			return nil, fs.ErrNotExist
		}
		err := t.add(a.target, a.info)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		// The path may have come to lead elsewhere between the stat and the watch.
		target, info, next := nearest(path)
		if err == nil && target == a.target && os.SameFile(info, a.info) {
			a.whole = target == path
			return a, nil
		}
		if err == nil {
			t.remove()
		}
		a.target, a.info, a.next = target, info, next
	}
	return nil, errors.New("the path changes all the time")
}

// nearest returns the longest part of path that is a directory, its stat (nil when there
// is none at all), and the name in it that leads on to path.
func nearest(path string) (target string, info fs.FileInfo, next string) {
	for target = path; ; {
		if info, err := os.Stat(target); err == nil && info.IsDir() {
			return target, info, next
		}
		up := filepath.Dir(target)
		if up == target {
			return target, nil, next
		}
		target, next = up, filepath.Base(target)
	}
}

// stale reports whether something else than the watched directory should be watched now.
func (a *attachment) stale() bool {
	target, info, _ := nearest(a.path)
	return target != a.target || info == nil || !os.SameFile(info, a.info)
}

// follow passes events on until ctx is done or the attachment watches the wrong directory.
func (n *Notifier) follow(ctx context.Context, a *attachment, poll <-chan time.Time, p *pacer) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.timer():
			p.fired()
		case <-poll:
			if a.stale() {
				return
			}
		case ev := <-a.tap.Events:
			if n.take(a, ev, p) {
				return
			}
		case err := <-a.tap.Errors:
			switch {
			case errors.Is(err, errMany):
				n.Stats.Events.Add(1)
			case errors.Is(err, fsnotify.ErrEventOverflow):
				n.Stats.Overflows.Add(1)
			default:
				n.Stats.Errors.Add(1)
			}
			// What was lost may have been the end of the directory itself.
			if a.stale() {
				return
			}
			if a.whole {
				p.poke()
			}
		}
	}
}

// take handles one event and reports whether to attach anew.
func (n *Notifier) take(a *attachment, ev fsnotify.Event, p *pacer) (again bool) {
	if ev.Name == a.target {
		// The directory itself: removed, renamed, or its attributes, which say nothing.
		if !ev.Has(fsnotify.Remove) && !ev.Has(fsnotify.Rename) {
			n.Stats.Ignored.Add(1)
			return false
		}
		n.Stats.Events.Add(1)
		return true
	}
	name := filepath.Base(ev.Name)
	if !a.whole {
		return name == a.next && a.stale()
	}
	const interest = fsnotify.Create | fsnotify.Remove | fsnotify.Rename | fsnotify.Write
	if ev.Op&interest == 0 || slices.Contains(n.opts.Ignore, name) {
		n.Stats.Ignored.Add(1)
		return false
	}
	n.Stats.Events.Add(1)
	p.poke()
	return false
}

// pollFor wakes at every poll for about d, or until ctx is done.
func (n *Notifier) pollFor(ctx context.Context, d time.Duration, poll <-chan time.Time, p *pacer) {
	p.poke()
	end := time.NewTimer(d)
	defer end.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			return
		case <-p.timer():
			p.fired()
		case <-poll:
			p.poke()
		}
	}
}

// A pacer calls wake at once after a pause, and otherwise so that calls are quiet apart and
// one follows the last poke. It belongs to one goroutine, which receives from timer.
type pacer struct {
	quiet time.Duration
	wake  func()

	t     *time.Timer // runs while the last wake is less than quiet ago
	runs  bool
	again bool
}

func (p *pacer) poke() {
	if p.runs {
		p.again = true
		return
	}
	p.wake()
	p.runs = true
	if p.t == nil {
		p.t = time.NewTimer(p.quiet)
	} else {
		p.t.Reset(p.quiet)
	}
}

// timer is ready when fired is to be called.
func (p *pacer) timer() <-chan time.Time {
	if p.t == nil {
		return nil
	}
	return p.t.C
}

func (p *pacer) fired() {
	p.runs = false
	if p.again {
		p.again = false
		p.poke()
	}
}

func (p *pacer) stop() {
	if p.t != nil {
		p.t.Stop()
	}
}
