package pool

import (
	"errors"
	"iter"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// A state is what is known of a file and what happens to it: see the package comment.
type state uint8

const (
	// closed: it is not open, because it could not be, or holds nothing.
	closed state = iota
	// unasked: whether a process may write to it is not known yet. It counts as alive.
	unasked
	// alive: a process may write to it, or nobody can tell.
	alive
	// dead: nobody can write to it.
	dead
	// stuck is dead, but folding it failed in a way that would fail again.
	stuck
	// folding: the fold reads it. What is served of it stays as it is.
	folding
	// absorbed: what it held is in memory, and it is closed.
	absorbed
)

// A place is where a file is.
type place uint8

const (
	named  place = iota // under its own name
	staged              // under a hidden name
	orphan              // no name in the directory leads to it
)

// file is one source file. Guarded by Pool.mu.
type file struct {
	pool    *Pool
	name    store.SourceName
	nameErr error // what is wrong with the name
	path    string
	hint    uint64 // the inode number that the listing gives
	listing uint64 // the last one that has it, of Pool.listings
	state   state
	place   place
	// record is the name of its record in the archive, from when it is offered to be folded.
	record string
	ruby   bool          // it is of the Ruby client
	opened string        // the name of the open file, as others see it closed by
	file   *store.File   // nil if it is not open
	at     int           // where it is in Pool.opened, if it is open
	source *merge.Source // nil exactly if file is
	method watch.Method  // by which it is known whether a process may write to it
	asked  uint64        // when that was asked last, of Pool.looks
	since  time.Time     // when it was found dead
	// loaded says that the values in the index were read from the file at least once.
	loaded bool
	// baseline is what of the file is archived already, nil for most: see archive.Baseline.
	// Where there is one, the index has what the file gained: raw holds the stored values, and
	// base is subtracted from them.
	baseline  []float64
	base, raw []float64
	entries   int // that were learned or refused
	// learned is where the last of them begins, in bytes, and more says that there are others that
	// a bound has kept for later: see learn.go.
	learned int64
	more    bool
	// retry is when a file is looked at again that was closed because nothing could be read of it;
	// zero if it was not.
	retry time.Time
	// failure is why the file cannot be read at present, "" if it can, and failed its error.
	failure store.Reason
	failed  error
	// seen are the reasons for which an entry of the file was left out and logged.
	seen map[store.Reason]bool
	// offered is what the fold has of it, while it is folding.
	offered *fold.File
	// muted is set while the file's values seem to be in another one: see rival.go. gained says that
	// a load found others than before, which were those in before, nil at the first load; late that
	// the file appeared while the daemon was there, and replaced is the file that had its name.
	muted        *muted
	gained, late bool
	// still says that nobody had it open at the load before.
	still    bool
	before   []float64
	replaced *file
	limited  bool // a limit kept out an entry
	learnErr error
	loadErr  error
	looked   look
}

// readable reports whether the file is read at a scrape.
func (t *file) readable() bool { return t.file != nil && t.state != folding }

// isAlive reports whether the file counts as one that a process may write to.
func (t *file) isAlive() bool { return t.source != nil && t.source.Alive() }

// answered reports whether it was asked at least once if a process may write to the file. One that a
// scrape has found is asked in the next round.
func (t *file) answered() bool { return t.asked > 0 && t.state != unasked }

// allLocked iterates over all files, also those that could not be opened.
func (p *Pool) allLocked() iter.Seq[*file] {
	return func(yield func(*file) bool) {
		for _, t := range p.files {
			if !yield(t) {
				return
			}
		}
		for _, t := range p.staged {
			// One that is just being staged is among the files yet.
			if t.place == staged && !yield(t) {
				return
			}
		}
		for _, t := range p.orphans {
			if !yield(t) {
				return
			}
		}
	}
}

// is reports whether the name still leads to the file that is open, given the inode
// number in the listing. Some file systems (overlayfs) list other numbers than stat gives,
// so a difference is looked into: to take a file for a new one would count it twice.
func (t *file) is(ino uint64) bool {
	if ino == t.hint && ino != 0 {
		return true
	}
	if id, err := identify(t.path); err != nil || id != t.file.Identity() {
		return false
	}
	t.hint = ino
	return true
}

// identify returns what lies at a path.
func identify(path string) (store.Identity, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	return store.Identity{Dev: uint64(st.Dev), Ino: st.Ino}, err //nolint:unconvert // Dev is an int32 on macOS
}

// links is how many names lead to the open file. In doubt one does.
func (t *file) links() int {
	var st unix.Stat_t
	if unix.Fstat(int(t.file.Fd()), &st) != nil {
		return 1
	}
	return int(st.Nlink)
}

// emptied reports whether the open file has no bytes.
func (t *file) emptied() bool {
	var st unix.Stat_t
	return unix.Fstat(int(t.file.Fd()), &st) == nil && st.Size == 0
}

// space is where the file's values are archived.
func (t *file) space() archive.Space {
	s, _ := archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	return s
}

// openLocked opens a file and adds its source to the index.
func (p *Pool) openLocked(t *file) error {
	if p.descriptors.Full() && !t.barren() {
		p.deferred++
		return errTooManyAt(t.path) // the limit is told once, by scan
	}
	f, err := store.Open(t.path, t.name, p.limits)
	if err != nil {
		return err
	}
	return p.adoptLocked(t, f)
}

// adoptLocked adds the source of an open file to the index. The file is t's from then on, or
// closed if that is an error.
func (p *Pool) adoptLocked(t *file, f *store.File) error {
	if old := p.open[f.Identity()]; old != nil {
		i := slices.Index(p.orphans, old)
		if i < 0 || old.state == folding {
			return errors.Join(duplicateError(t.path, old.path), f.Close())
		}
		// It was moved here, or the whole directory was away for a while. Its values are
		// read again before the next view.
		t.baseline = old.baseline
		p.orphans = slices.Delete(p.orphans, i, i+1)
		p.dropLocked(old)
	}
	p.descriptors.Take()
	t.opened = filepath.Base(t.path)
	if t.baseline == nil {
		t.baseline = p.baselineOfLocked(t, f)
	}
	t.file, t.entries, t.base, t.loaded = f, 0, nil, false
	t.learned, t.more = 0, false
	t.state = alive
	p.opened.add(t)
	t.source = p.index.Add(merge.SourceSpec{
		Name: t.name.Base, Type: t.name.Type, Mode: t.name.Mode, ID: t.name.ID,
		Created: f.Created().UnixNano(), ParseKey: store.ParseKey,
	})
	p.open[f.Identity()] = t
	p.growing = true
	return nil
}

// baselineOfLocked returns what of a file is archived, by the name of its record or by what it
// is.
func (p *Pool) baselineOfLocked(t *file, f *store.File) []float64 {
	a := p.folder.Archive()
	if t.record != "" {
		if b, ok := a.Baseline(t.record); ok {
			return b
		}
	}
	if !p.identities {
		return nil
	}
	if id := fold.IdentityOf(f); id != nil {
		b, _ := a.BaselineOf(*id)
		return b
	}
	return nil
}

// closeLocked closes the file. Its source stays in the index.
func (p *Pool) closeLocked(t *file) {
	delete(p.open, t.file.Identity())
	p.opened.remove(t)
	p.descriptors.Give()
	p.folder.Closing(t.opened)
	if err := t.file.Close(); err != nil {
		p.logger.Warn("close file", zap.String("path", t.path), zap.Error(err))
	}
	t.file, t.source, t.state = nil, nil, closed
}

// dropLocked closes a file and takes what it counted out of the view.
func (p *Pool) dropLocked(t *file) {
	p.index.Remove(t.source)
	p.closeLocked(t)
}

// guessKey is which files have one list of guesses: those whose equal keys are equal series.
type guessKey struct {
	typ  metric.Type
	mode metric.Mode
}

// guessesLocked returns what a file most likely holds, nil unless many files are being opened. In
// mode all, each worker has series of its own.
func (p *Pool) guessesLocked(t *file) *store.Guesses {
	if p.guesses == nil || t.name.Mode.Base() == metric.All {
		return nil
	}
	if now := p.index.Freed(); now != p.guessed {
		clear(p.guesses)
		p.guessed = now
	}
	key := guessKey{t.name.Type, t.name.Mode}
	g := p.guesses[key]
	if g == nil {
		g = &store.Guesses{}
		p.guesses[key] = g
	}
	return g
}

// identifyLocked gives the file the ID that its first key shows to be the worker's.
func (p *Pool) identifyLocked(t *file, key []byte) {
	id := t.name.WorkerID(key)
	if id == t.name.ID {
		return
	}
	t.name.ID = id
	t.ruby = true
	spec, live := t.source.Spec(), t.source.Alive()
	spec.ID = id
	p.index.Remove(t.source)
	t.source = p.index.Add(spec)
	p.index.SetAlive(t.source, live)
}

// load brings the values in the index up to date with the file. It touches nothing but
// its own file and source, so several may run at once.
func (t *file) load() error {
	if t.source.Entries() == 0 {
		return nil
	}
	values := t.source.Values()
	t.keepBefore(values)
	if t.baseline != nil {
		t.raw = slices.Grow(t.raw[:0], len(values))[:len(values)]
		values = t.raw
	}
	var err error
	if stamps := t.source.Stamps(); stamps != nil {
		err = t.file.LoadStamped(t.source.Slots(), values, stamps)
	} else {
		err = t.file.Load(t.source.Slots(), values)
	}
	if err != nil {
		return err
	}
	if t.baseline != nil {
		for i, v := range values {
			t.source.Values()[i] = archive.Gain(t.added(), v, t.base[i])
		}
	}
	t.gained = t.gained || (t.before != nil || t.late) && !slices.Equal(t.before, t.source.Values())
	t.loaded = true
	return nil
}

// keepBefore keeps the values of the load before, of files that others may merge into.
func (t *file) keepBefore(values []float64) {
	switch {
	case t.name.Type != metric.Gauge && t.loaded && (t.isArchive() || t.still && t.state == dead && t.pool.rivals.mayAccumulate(t)):
		t.before = append(t.before[:0], values...)
	default:
		t.before = nil
	}
	t.still = t.state == dead
}

// rebase has a file count with what it gains over what was just archived of it.
func (t *file) rebase(f *fold.File) {
	t.baseline = f.Values
	if t.baseline == nil {
		t.baseline = []float64{}
	}
	values := t.source.Values()
	t.base = slices.Grow(t.base[:0], len(values))[:len(values)]
	for i := range values {
		t.base[i] = f.Served[i]
		values[i] = 0
	}
}

// noteLocked keeps account of whether the file can be read; each change is logged and each
// failure counted once.
func (p *Pool) noteLocked(t *file, err error) {
	if err == nil {
		if t.failure != "" {
			t.failure, t.failed = "", nil
			p.stirLocked()
			p.logger.Info("file can be read again", zap.String("path", t.path))
		}
		return
	}
	reason := reasonOf(err)
	if reason == store.Gone && t.file == nil && t.place == named {
		// Removed between the listing and the opening: the next listing will tell.
		delete(p.files, t.name.Base)
		return
	}
	if reason == t.failure {
		return
	}
	t.failure, t.failed = reason, err
	p.stirLocked()
	p.metrics.fileErrors.With(p.spec.Name, string(reason)).Inc()
	if reason == reasonTooMany {
		return
	}
	msg := "file cannot be opened; its values are missing"
	if t.file != nil {
		msg = "file cannot be read; what was read of it before still counts"
	}
	p.logger.Warn(msg, zap.String("path", t.path), zap.String("reason", string(reason)), zap.Error(err))
}

// refusedLocked counts an entry that is left out and names the first of each file and reason.
func (p *Pool) refusedLocked(t *file, e store.Entry, err error) {
	reason := reasonOf(err)
	p.metrics.entryErrors.With(p.spec.Name, string(reason)).Inc()
	if limit := asLimit(err); limit != nil {
		t.limited = true
		p.limitReachedLocked(t.path, limit)
		return
	}
	if t.seen[reason] {
		return
	}
	if t.seen == nil {
		t.seen = map[store.Reason]bool{}
	}
	t.seen[reason] = true
	p.logger.Warn("entry left out, and others of this file for the same reason", zap.String("path", t.path),
		zap.Int64("offset", int64(e.Slot)*8), zap.String("reason", string(reason)), zap.Error(err))
}

// lostLocked handles a file that is no longer in the directory under its name. Gauges go with
// it; what else it holds counts on.
func (p *Pool) lostLocked(t *file) {
	if t.state == folding {
		return // the fold has renamed it, or will find it gone
	}
	if t.place == staged {
		delete(p.staged, t.record)
	} else {
		delete(p.files, t.name.Base)
	}
	switch {
	case t.file == nil:
	case t.name.Type == metric.Gauge && t.place == named:
		p.dropLocked(t)
	default:
		p.lost = true
		t.place, t.record = orphan, ""
		if t.muted != nil {
			p.mergedLocked(t)
		}
		p.orphans = append(p.orphans, t)
	}
}

// replaceEmptiedLocked gives a second life to files that were emptied.
func (p *Pool) replaceEmptiedLocked() {
	for _, t := range p.files {
		// What was read of a file that shrank still counts, and what is in it now may be the
		// same values or others; only when it was seen empty must all that comes be new.
		if t.readable() && t.failure == store.Shrunk && t.emptied() {
			p.logger.Warn("file was emptied by somebody else; its last values still count", zap.String("path", t.path))
			p.absorbLocked(t)
			t.failure, t.failed, t.baseline = "", nil, nil
			p.noteLocked(t, p.openLocked(t))
		}
	}
}

// absorbLocked keeps what a file has counted whose bytes can no longer be read, and closes it.
func (p *Pool) absorbLocked(t *file) {
	space, keep := archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	if keep && t.name.Type != metric.Gauge && t.source.Entries() > 0 {
		b := archive.NewBatch(p.now())
		f := b.File(space, nil, t.file.Size())
		p.index.Each(t.source, func(raw string, value, stamp float64) { f.Add([]byte(raw), value, stamp, true) })
		p.folder.Archive().Absorb(b)
		p.showLocked(space)
	}
	p.dropLocked(t)
}
