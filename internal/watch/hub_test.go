package watch

import (
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
)

// TestHub: many directories take one inotify instance, each Notifier is told of its own, and the last
// one gives the instance back.
func TestHub(t *testing.T) {
	var made atomic.Int64
	hub := &Hub{newWatcher: func() (*fsnotify.Watcher, error) { made.Add(1); return fsnotify.NewWatcher() }}
	base := t.TempDir()
	var all []*listener
	for _, name := range []string{"a", "b", "later", "later too"} {
		path := filepath.Join(base, name)
		if name[0] != 'l' {
			mustDo(t, os.Mkdir(path, 0o755))
		}
		all = append(all, listen(t, path, NotifierOptions{Hub: hub, Poll: never, Quiet: time.Millisecond}, nil))
	}
	all[0].await(t, "watching begins")
	all[1].await(t, "watching begins")
	for n := range 3 {
		touch(t, filepath.Join(base, "a", string(rune('0'+n))))
		all[0].await(t, "a file in the first directory")
	}
	if n := all[1].Stats.Events.Load(); n != 0 {
		t.Errorf("%d events in the second directory, want none", n)
	}
	eventually(t, "both of those that are not there yet are waited for", func() bool {
		hub.mu.Lock()
		defer hub.mu.Unlock()
		return len(hub.byPath[base]) == 2
	})
	mustDo(t, os.Mkdir(filepath.Join(base, "later"), 0o755))
	all[2].await(t, "the directory that came later")
	eventually(t, "watching it", func() bool { return all[2].Stats.Watching.Load() })
	touch(t, filepath.Join(base, "later", "file"))
	all[2].await(t, "a file in the directory that came later")

	mustDo(t, os.RemoveAll(filepath.Join(base, "b")))
	all[1].await(t, "the end of the second directory")
	mustDo(t, os.Mkdir(filepath.Join(base, "b"), 0o755))
	all[1].await(t, "the second directory again")
	eventually(t, "watching it", func() bool { return all[1].Stats.Watching.Load() })
	touch(t, filepath.Join(base, "b", "file"))
	all[1].await(t, "a file in the new second directory")

	if n := made.Load(); n != 1 {
		t.Errorf("%d inotify instances for %d directories, want 1", n, len(all))
	}
	for _, l := range all {
		l.stop()
	}
	if hub.watcher != nil || len(hub.taps) != 0 || len(hub.byPath) != 0 {
		t.Errorf("nobody watches, and the hub has %d taps and %d directories", len(hub.taps), len(hub.byPath))
	}
}

// TestHubTwoPaths: events are named by the first path of a directory, so another one gets an instance
// of its own.
func TestHubTwoPaths(t *testing.T) {
	hub := &Hub{}
	dir := filepath.Join(t.TempDir(), "pool")
	link := dir + "-link"
	mustDo(t, os.Mkdir(dir, 0o755))
	mustDo(t, os.Symlink(dir, link))
	first := listen(t, dir, NotifierOptions{Hub: hub, Poll: never, Quiet: time.Millisecond}, nil)
	first.await(t, "watching begins")
	second := listen(t, link, NotifierOptions{Hub: hub, Poll: never, Quiet: time.Millisecond}, nil)
	second.await(t, "watching begins")
	touch(t, filepath.Join(dir, "file"))
	first.await(t, "a file, by the first path")
	second.await(t, "a file, by the second path")
}

// TestHubBurst: more events than wait for a reader wake it all the same.
func TestHubBurst(t *testing.T) {
	hub := &Hub{}
	dir := t.TempDir()
	info, err := os.Stat(dir)
	mustDo(t, err)
	tap, err := hub.open()
	mustDo(t, err)
	defer tap.close()
	mustDo(t, tap.add(dir, info))
	for range 4 * tapEvents {
		touch(t, filepath.Join(dir, "file"))
		mustDo(t, os.Remove(filepath.Join(dir, "file")))
	}
	if err := <-tap.Errors; !errors.Is(err, errMany) {
		t.Errorf("%v, want %v", err, errMany)
	}
}
