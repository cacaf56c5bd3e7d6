package watch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// A Hub watches many directories by one inotify instance: the kernel lets a user have 128 of them by
// custom (inotify(7), max_user_instances), and the events of each are read by a goroutine with a buffer
// of 64 KiB. It has a second one for those who want to know who reads a directory: see OpenReaders. The
// zero Hub works, and has an instance as long as something is watched. It is safe for several goroutines.
type Hub struct {
	newWatcher func() (*fsnotify.Watcher, error) // nil: that of fsnotify

	// changing is held while what is watched changes. The reader of the watcher may hold up such a
	// change until an error is taken from it, so pass never waits for this lock, but for mu, which
	// nobody holds for long.
	changing sync.Mutex
	watcher  *fsnotify.Watcher // nil while there is no tap

	mu     sync.Mutex
	taps   map[*tap]struct{}
	byPath map[string][]*tap // by what they watch

	// looking is held while a Readers is opened or closed; it guards looker.
	looking sync.Mutex
	looker  *looker // nil while there are no Readers
}

// A tap is what one attachment gets of the events of a hub. Whoever has opened it receives from the
// channels; what does not fit is told as errMany.
type tap struct {
	Events chan fsnotify.Event
	Errors chan error

	hub  *Hub
	dir  string      // what is watched, "" for nothing
	info fs.FileInfo // of dir
}

// tapEvents is how many events wait for a reader.
const tapEvents = 64

// errMany says that more events came than wait for a reader. What they tell of can be seen now.
var errMany = errors.New("more events than are waited for")

// open returns a tap that gets nothing yet. An error means that events cannot be had.
func (h *Hub) open() (*tap, error) {
	h.changing.Lock()
	defer h.changing.Unlock()
	if h.watcher == nil {
		begin := h.newWatcher
		if begin == nil {
			begin = fsnotify.NewWatcher
		}
		w, err := begin()
		if err != nil {
			return nil, err
		}
		h.watcher = w
		// Ends when the watcher is closed, with the last tap.
		go h.pass(w)
	}
	t := &tap{Events: make(chan fsnotify.Event, tapEvents), Errors: make(chan error, 1), hub: h}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.taps == nil {
		h.taps, h.byPath = map[*tap]struct{}{}, map[string][]*tap{}
	}
	h.taps[t] = struct{}{}
	return t, nil
}

// errTwoPaths says that the hub watches the same directory under another path, by which its events
// would be named.
var errTwoPaths = errors.New("directory is watched under another path")

// add begins to watch a directory; a tap watches one at a time.
func (t *tap) add(dir string, info fs.FileInfo) error {
	h := t.hub
	h.changing.Lock()
	defer h.changing.Unlock()
	if err := t.enter(dir, info); err != nil {
		return err
	}
	// Also where others watch the path already: there may be another directory now.
	if err := h.watcher.Add(dir); err != nil {
		t.leave()
		return err
	}
	return nil
}

func (t *tap) enter(dir string, info fs.FileInfo) error {
	h := t.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	for path, taps := range h.byPath {
		if path != dir && os.SameFile(taps[0].info, info) {
			return errTwoPaths
		}
	}
	t.dir, t.info = dir, info
	h.byPath[dir] = append(h.byPath[dir], t)
	return nil
}

// leave undoes enter, and returns the directory if nobody watches it any more.
func (t *tap) leave() (last string) {
	h := t.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if t.dir == "" {
		return ""
	}
	taps := h.byPath[t.dir]
	if i := slices.Index(taps, t); i >= 0 {
		taps = slices.Delete(taps, i, i+1)
	}
	if h.byPath[t.dir] = taps; len(taps) == 0 {
		delete(h.byPath, t.dir)
		last = t.dir
	}
	t.dir, t.info = "", nil
	return last
}

// remove ends what add began.
func (t *tap) remove() {
	t.hub.changing.Lock()
	defer t.hub.changing.Unlock()
	t.removeChanging()
}

// removeChanging is remove for who holds Hub.changing.
func (t *tap) removeChanging() {
	if last := t.leave(); last != "" {
		_ = t.hub.watcher.Remove(last) // gone by itself where the directory is gone
	}
}

// close gives back what the tap takes.
func (t *tap) close() {
	h := t.hub
	h.changing.Lock()
	defer h.changing.Unlock()
	t.removeChanging()
	h.mu.Lock()
	delete(h.taps, t)
	left := len(h.taps)
	h.mu.Unlock()
	if left == 0 {
		_ = h.watcher.Close() // its errors tell nothing that the next one will not
		h.watcher = nil
	}
}

// pass passes events on until the watcher is closed.
func (h *Hub) pass(w *fsnotify.Watcher) {
	for {
		select {
		case ev, ok := <-w.Events:
			if !ok {
				return
			}
			h.mu.Lock()
			for _, t := range h.byPath[ev.Name] {
				t.send(ev)
			}
			for _, t := range h.byPath[filepath.Dir(ev.Name)] {
				t.send(ev)
			}
			h.mu.Unlock()
		case err, ok := <-w.Errors:
			if !ok {
				return
			}
			h.mu.Lock()
			for t := range h.taps {
				t.fail(err)
			}
			h.mu.Unlock()
		}
	}
}

// send passes an event on, without waiting.
func (t *tap) send(ev fsnotify.Event) {
	select {
	case t.Events <- ev:
	default:
		t.fail(errMany)
	}
}

// fail passes an error on, without waiting.
func (t *tap) fail(err error) {
	select {
	case t.Errors <- err:
	default: // one is waiting, and says enough
	}
}
