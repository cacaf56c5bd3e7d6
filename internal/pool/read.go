package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/store"
	"aggregatord/internal/view"
)

// A View is what Read has found.
type View struct {
	*view.Snapshot
	// Collector has the files that were read open, for looking closer.
	Collector *Collector
}

// Read merges what is in the directories once, the archive included, changes nothing in
// them and gives the view to f, which must not keep it. It may run beside a daemon, and on
// what a crash has left. The error is that of a directory that cannot be listed, of an
// archive that cannot be read, of ctx or of f.
func Read(ctx context.Context, opts Options, f func(View) error) error {
	opts.Archive = nil
	for {
		c, err := New(opts)
		if err != nil {
			return err
		}
		again, err := c.readOnce(ctx, f)
		if !again {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(archive.ErrBusy, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// readOnce is one attempt, which closes the collector. A daemon that archives a file while we look could have moved its
// values from where we have yet to look to where we have looked; then the archive has
// changed, and it must be done again.
func (c *Collector) readOnce(ctx context.Context, f func(View) error) (again bool, err error) {
	defer func() { err = errors.Join(err, c.Close()) }()
	c.Tend(true)
	for !c.Ready() && c.makeRoom() {
		c.Tend(true)
	}
	c.mu.Lock()
	for _, d := range c.dirs {
		d.takeStaged() // once more: what was renamed between its listing and the directory's
	}
	c.mu.Unlock()
	if err := c.Err(); err != nil {
		return false, err
	}
	if !c.Ready() {
		return false, fmt.Errorf("%w: raise the limit (ulimit -n) above %d", errTooMany, c.maxFiles)
	}
	snap, err := c.Gather(ctx)
	if err != nil {
		return false, err
	}
	defer snap.Release()
	for _, d := range c.dirs {
		switch {
		case errors.Is(d.attachErr, archive.ErrBusy):
			return true, nil
		case d.attachErr != nil:
			return false, d.attachErr
		}
		missed, err := d.missed()
		if err != nil {
			return false, err
		}
		if missed || !d.view.Current() {
			return true, nil
		}
	}
	return false, f(View{snap, c})
}

// makeRoom reports whether another file can be opened now.
func (c *Collector) makeRoom() (room bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range c.dirs {
		if d.deferred > 0 {
			room = d.makeRoom() || room
		}
	}
	return room
}

// missed reports whether files are in the staging now that were not found there, nor taken
// along from the directory; or were found while they were open under their names in the
// directory, and let go as they were not there any more, as gauges are.
func (d *dir) missed() (bool, error) {
	names, err := d.staging.List()
	return slices.ContainsFunc(names, func(name string) bool {
		t := d.staged[name]
		if t == nil || t.failure != reasonDuplicate {
			return t == nil
		}
		var st unix.Stat_t
		return unix.Lstat(t.path, &st) != nil || d.open[store.Identity{Dev: uint64(st.Dev), Ino: st.Ino}] == nil //nolint:unconvert // Dev is an int32 on macOS
	}), err
}
