package pool

import (
	"errors"
	"fmt"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
)

// ErrAgain says that a daemon archived something while the pool was read, so that what was read
// is of no moment in time. Make another pool and try again.
var ErrAgain = errors.New("the directory changed while it was read")

// ReadOnce has a pool that archives nothing read everything once: the directory, what a daemon
// or a crash left staged, and the archive. It changes nothing in the directory. The error is
// that of a directory that cannot be listed or an archive that cannot be read.
//
// Call it, take a view, and then ask Moved: between the two a daemon may have moved values from
// where this pool had yet to look to where it had looked already.
func (p *Pool) ReadOnce() error {
	p.Tend(true)
	for !p.Ready() && p.absorbForRoom() {
		p.Tend(true)
	}
	// Once more: what was renamed while the directory was listed.
	p.Tend(true)
	if err := p.Err(); err != nil {
		return err
	}
	if !p.Ready() {
		return fmt.Errorf("%w: raise the limit (ulimit -n) above %d", errTooMany, p.descriptors.Max())
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	switch err := p.folder.State().Err; {
	case errors.Is(err, archive.ErrBusy):
		return fmt.Errorf("%w: %w", ErrAgain, err)
	default:
		return err
	}
}

// Moved returns ErrAgain if a daemon may have moved values since ReadOnce began.
func (p *Pool) Moved() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	listing, err := p.lister.Scan(true)
	if err != nil {
		return err
	}
	for _, e := range listing.Entries {
		if record, ok := fold.RecordOf(e.Name); ok && p.missedLocked(record) {
			return ErrAgain
		}
	}
	if !p.folder.View().Current() {
		return ErrAgain
	}
	return nil
}

// missedLocked reports whether a staged file was neither read as such nor under its own name;
// or was read under its own name and let go when that was gone, as gauges are.
func (p *Pool) missedLocked(record string) bool {
	t := p.staged[record]
	if t == nil || t.file == nil && t.failure == reasonDuplicate {
		id, err := identify(p.folder.Path(record))
		return err != nil || p.open[id] == nil
	}
	return false
}

func (p *Pool) absorbForRoom() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.deferred > 0 && p.absorbForRoomLocked()
}
