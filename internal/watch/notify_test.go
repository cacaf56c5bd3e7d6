package watch

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// A listener runs a Notifier and collects its wakes.
type listener struct {
	*Notifier
	wakes chan struct{}
	stop  func()
}

func listen(t *testing.T, path string, opts NotifierOptions, adjust func(*Notifier)) *listener {
	t.Helper()
	l := &listener{Notifier: NewNotifier(opts), wakes: make(chan struct{}, 1)}
	if adjust != nil {
		adjust(l.Notifier)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	// Runs until the test stops it.
	go func() {
		done <- l.Run(ctx, path, func() {
			select {
			case l.wakes <- struct{}{}:
			default:
			}
		})
	}()
	stopped := false
	l.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run does not end")
		}
	}
	t.Cleanup(l.stop)
	return l
}

func (l *listener) await(t *testing.T, what string) {
	t.Helper()
	select {
	case <-l.wakes:
	case <-time.After(10 * time.Second):
		t.Fatalf("no wake for 10 s: %s", what)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	eventuallyWithin(t, 10*time.Second, what, ok)
}

func eventuallyWithin(t *testing.T, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// never is a poll interval that no test lives to see: what comes, comes from events.
const never = time.Hour

func TestNotifierWakes(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			file := func(name string) string { return filepath.Join(dir, name) }
			touch(t, file("old"))
			outside := filepath.Join(filepath.Dir(dir), filepath.Base(dir)+".outside")
			l := listen(t, dir, NotifierOptions{Poll: never, Quiet: time.Millisecond}, nil)
			l.await(t, "watching begins")
			for _, c := range []struct {
				name string
				do   func() error
			}{
				{"create", func() error { return os.WriteFile(file("new"), nil, 0o644) }},
				{"grow", func() error { return os.Truncate(file("new"), 65536) }},
				{"rename", func() error { return os.Rename(file("new"), file("renamed")) }},
				{"move_out", func() error { return os.Rename(file("renamed"), outside) }},
				{"move_in", func() error { return os.Rename(outside, file("back")) }},
				{"remove", func() error { return os.Remove(file("back")) }},
				{"remove_old", func() error { return os.Remove(file("old")) }},
			} {
				before := l.Stats.Events.Load()
				if err := c.do(); err != nil {
					t.Fatal(err)
				}
				eventually(t, "an event for "+c.name, func() bool { return l.Stats.Events.Load() > before })
				l.await(t, c.name)
				time.Sleep(5 * time.Millisecond) // let a second event of the same change pass
				select {
				case <-l.wakes:
				default:
				}
			}
		})
	}
}

func TestNotifierIgnores(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "counter_1.db")
	mustDo(t, os.WriteFile(file, make([]byte, 4096), 0o644))
	l := listen(t, dir, NotifierOptions{Poll: never, Quiet: time.Millisecond}, nil)
	l.await(t, "watching begins")

	hidden := filepath.Join(dir, ".aggregatord")
	mustDo(t, os.Mkdir(hidden, 0o700), os.Chmod(file, 0o600), os.Chmod(dir, 0o700))
	touch(t, filepath.Join(hidden, "archive"))
	mustDo(t, os.RemoveAll(hidden))
	// Stores through a mapping, the writers' way to change a value.
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	mustDo(t, err, f.Close())
	for i := range m {
		m[i] = 1
	}
	mustDo(t, syscall.Munmap(m))

	// The events are delivered in order: when this one is there, the others have been.
	touch(t, filepath.Join(dir, "end"))
	eventually(t, "the last event", func() bool { return l.Stats.Events.Load() > 0 })
	if got := l.Stats.Events.Load(); got != 1 {
		t.Errorf("%d events of interest, want that of the last file alone", got)
	}
	if l.Stats.Ignored.Load() == 0 {
		t.Error("no event was ignored")
	}
}

func TestNotifierCoalesces(t *testing.T) {
	dir := t.TempDir()
	l := listen(t, dir, NotifierOptions{Poll: never, Quiet: 50 * time.Millisecond}, nil)
	l.await(t, "watching begins")
	const files = 200
	begin := time.Now()
	for i := range files {
		touch(t, filepath.Join(dir, string(rune('a'+i%26))+time.Duration(i).String()))
	}
	eventually(t, "all events", func() bool { return l.Stats.Events.Load() >= files })
	l.await(t, "the files")
	spent := time.Since(begin)
	if got, most := l.Stats.Wakes.Load(), uint64(spent/(50*time.Millisecond))+3; got > most {
		t.Errorf("%d wakes for %d files in %v, want at most %d", got, files, spent, most)
	}
	// The last wake comes after the last event: drain, and see that none is owed for long.
	wakes := l.Stats.Wakes.Load()
	touch(t, filepath.Join(dir, "last"))
	eventually(t, "a wake after the last event", func() bool { return l.Stats.Wakes.Load() > wakes })
}

func TestNotifierFollowsThePath(t *testing.T) {
	for _, c := range []struct {
		name string
		poll time.Duration
		// begin prepares what is there when Run starts, then changes it; after it, path is a
		// directory which must be watched.
		begin, change func(base, path string) error
		rewatches     uint64
	}{
		{
			"appears", never,
			func(string, string) error { return nil },
			func(_, path string) error { return os.MkdirAll(path, 0o755) }, 0,
		},
		{
			"removed_and_made_anew", never,
			func(_, path string) error { return os.MkdirAll(path, 0o755) },
			func(_, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, 1,
		},
		{
			"removed_with_its_parent", never,
			func(_, path string) error { return os.MkdirAll(path, 0o755) },
			func(base, path string) error {
				return errors.Join(os.RemoveAll(filepath.Join(base, "a")), os.MkdirAll(path, 0o755))
			}, 1,
		},
		{
			"renamed_removed_and_made_anew", never,
			func(_, path string) error { return os.MkdirAll(path, 0o755) },
			func(_, path string) error {
				return errors.Join(os.Rename(path, path+".old"), os.Remove(path+".old"), os.Mkdir(path, 0o755))
			}, 1,
		},
		{
			"file_in_its_place_first", never,
			func(_, path string) error {
				return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644))
			},
			func(_, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, 0,
		},
		{
			// Nothing happens in the watched directory itself, nor in one that is watched.
			"parent_replaced", 20 * time.Millisecond,
			func(_, path string) error { return os.MkdirAll(path, 0o755) },
			func(base, path string) error {
				return errors.Join(os.Rename(filepath.Join(base, "a"), filepath.Join(base, "z")), os.MkdirAll(path, 0o755))
			}, 1,
		},
		{
			"link_swapped", 20 * time.Millisecond,
			func(base, path string) error {
				return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Mkdir(filepath.Join(base, "1"), 0o755),
					os.Mkdir(filepath.Join(base, "2"), 0o755), os.Symlink(filepath.Join(base, "1"), path))
			},
			func(base, path string) error {
				return errors.Join(os.Symlink(filepath.Join(base, "2"), path+".new"), os.Rename(path+".new", path))
			}, 1,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			path := filepath.Join(base, "a", "b", "pool")
			mustDo(t, c.begin(base, path))
			st, err := os.Stat(path)
			exists := err == nil && st.IsDir()
			var attached atomic.Int64
			l := listen(t, path, NotifierOptions{Poll: c.poll, Quiet: time.Millisecond}, func(n *Notifier) {
				n.opts.Hub.newWatcher = func() (*fsnotify.Watcher, error) { attached.Add(1); return fsnotify.NewWatcher() }
			})
			if exists {
				l.await(t, "watching begins")
			} else {
				eventually(t, "a watcher", func() bool { return attached.Load() > 0 })
				time.Sleep(20 * time.Millisecond) // its Add is not visible from here
			}
			mustDo(t, c.change(base, path))
			l.await(t, "the change of the directory")
			eventually(t, "watching again", func() bool {
				return l.Stats.Watching.Load() && l.Stats.Rewatches.Load() >= c.rewatches
			})
			events := l.Stats.Events.Load()
			// A file made at any time after is seen: Watching is set after the watch is there.
			eventually(t, "an event from the new directory", func() bool {
				touch(t, filepath.Join(path, "file"))
				mustDo(t, os.Remove(filepath.Join(path, "file")))
				return l.Stats.Events.Load() > events
			})
		})
	}
}

func TestNotifierVanish(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pool")
	mustDo(t, os.Mkdir(path, 0o755))
	l := listen(t, path, NotifierOptions{Poll: never, Quiet: time.Millisecond}, nil)
	l.await(t, "watching begins")
	mustDo(t, os.Remove(path))
	l.await(t, "the end of the directory")
	eventually(t, "not watching", func() bool { return !l.Stats.Watching.Load() })
}

func TestNotifierOverflow(t *testing.T) {
	watchers := make(chan *fsnotify.Watcher, 1)
	l := listen(t, t.TempDir(), NotifierOptions{Poll: never, Quiet: time.Millisecond}, func(n *Notifier) {
		n.opts.Hub.newWatcher = func() (*fsnotify.Watcher, error) {
			w, err := fsnotify.NewWatcher()
			watchers <- w
			return w, err
		}
	})
	w := <-watchers
	l.await(t, "watching begins")
	w.Errors <- fsnotify.ErrEventOverflow
	l.await(t, "the overflow")
	w.Errors <- errors.New("something else")
	l.await(t, "the error")
	if o, e := l.Stats.Overflows.Load(), l.Stats.Errors.Load(); o != 1 || e != 1 {
		t.Errorf("%d overflows and %d errors counted, want 1 and 1", o, e)
	}
}

func TestNotifierWithoutInotify(t *testing.T) {
	for _, cause := range []error{syscall.EMFILE, syscall.ENOSPC} {
		t.Run(cause.Error(), func(t *testing.T) {
			var broken atomic.Bool
			broken.Store(true)
			reports := make(chan error, 100)
			dir := t.TempDir()
			l := listen(t, dir, NotifierOptions{
				Poll: 5 * time.Millisecond, Quiet: time.Millisecond,
				OnFallback: func(err error) { reports <- err },
			}, func(n *Notifier) {
				n.retry = 20 * time.Millisecond
				n.opts.Hub.newWatcher = func() (*fsnotify.Watcher, error) {
					if broken.Load() {
						return nil, cause
					}
					return fsnotify.NewWatcher()
				}
			})
			for range 10 {
				l.await(t, "a poll")
			}
			if !l.Stats.Polling.Load() || l.Stats.Watching.Load() {
				t.Error("does not say that it polls")
			}
			if err := <-reports; !errors.Is(err, cause) {
				t.Errorf("reported %v, want %v", err, cause)
			}
			broken.Store(false)
			eventually(t, "watching once inotify is back", func() bool { return l.Stats.Watching.Load() && !l.Stats.Polling.Load() })
			if len(reports) != 0 {
				t.Errorf("the fallback was reported %d times more", len(reports))
			}
		})
	}
}
