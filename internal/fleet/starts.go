package fleet

import (
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/pool"
	"aggregatord/internal/starts"
	"aggregatord/internal/view"
)

// keptStarts are the starts of one pool's series, which are kept beside its archive: what one
// daemon has learned, the next one knows. member.looking guards what is beside them.
type keptStarts struct {
	*starts.Starts
	restored bool
	saved    time.Time
	failing  bool
}

const (
	// startsFile is the name of what is kept.
	startsFile = "starts"
	// saveStarts is how far apart starts are saved at least.
	saveStarts = 5 * time.Second
)

// take takes a snapshot of a pool, with starts if they are wanted. It waits for its turn as long as wanted says so.
func (f *Fleet) take(m *member, wanted func() bool, withStarts bool) (*view.Snapshot, pool.Spec, error) {
	if !withStarts {
		return m.GatherWhile(wanted)
	}
	for !m.looking.TryLock() {
		if !wanted() {
			return nil, pool.Spec{}, pool.ErrSilent
		}
		time.Sleep(time.Millisecond)
	}
	defer m.looking.Unlock()
	f.restoreStarts(m)
	at := time.Now()
	snap, spec, err := m.GatherWhile(wanted)
	if err == nil {
		snap.Starts = m.starts.Append(snap.Starts[:0], snap, at)
	}
	return snap, spec, err
}

// restoreStarts has the starts of a pool go on where an earlier daemon has stopped.
func (f *Fleet) restoreStarts(m *member) {
	if m.starts.restored {
		return
	}
	m.starts.restored = true
	data, err := m.Kept(startsFile, int64(starts.MaxState))
	if err == nil {
		err = m.starts.Restore(data)
	}
	if err != nil {
		f.logger.Warn("start times of series could not be read; those of present series are unknown", zap.String("dir", m.Spec().Dir()),
			zap.Error(err))
	}
}

// keepStarts saves the starts of a pool if they have changed.
func (f *Fleet) keepStarts(m *member, last bool) {
	m.looking.Lock()
	defer m.looking.Unlock()
	if !m.starts.Changed() || !last && time.Since(m.starts.saved) < saveStarts {
		return
	}
	// What an earlier daemon knew is kept, too, although no view was taken yet.
	f.restoreStarts(m)
	m.starts.saved = time.Now()
	err := m.Keep(startsFile, m.starts.State())
	if err != nil && !m.starts.failing {
		f.logger.Warn("start times of series could not be saved; the next daemon will not know them", zap.String("dir", m.Spec().Dir()),
			zap.Error(err))
	}
	m.starts.failing = err != nil
}
