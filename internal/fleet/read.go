package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"aggregatord/internal/pool"
	"aggregatord/internal/view"
)

// readTries is how often Read begins again when a daemon moves values from files to the archive
// while it looks.
const readTries = 100

// Read merges what is in the directories once, the archives included, changes nothing in them,
// and calls use with the view, which it must not keep, and a fleet that has the files open. It
// may run beside a daemon, and on what a crash has left. The error is that of a directory that
// cannot be listed, of an archive that cannot be read, of ctx or of use.
func Read(ctx context.Context, opts Options, use func(*Fleet, *view.Snapshot) error) error {
	opts.Pool.Archive = nil
	var err error
	for i := range readTries {
		if err = readOnce(ctx, opts, use); !errors.Is(err, pool.ErrAgain) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(time.Duration(min(i, 10)) * time.Millisecond):
		}
	}
	return fmt.Errorf("after %d attempts: %w", readTries, err)
}

func readOnce(ctx context.Context, opts Options, use func(*Fleet, *view.Snapshot) error) (err error) {
	f, err := New(opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for _, p := range f.Pools() {
		if err := p.ReadOnce(); err != nil {
			return err
		}
	}
	snap, err := f.View(ctx, Selection{})
	if err != nil {
		return err
	}
	defer snap.Release()
	for _, p := range f.Pools() {
		if err := p.Moved(); err != nil {
			return err
		}
	}
	return use(f, snap)
}
