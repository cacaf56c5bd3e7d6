package fold

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/mirror"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// With a mirror, a file keeps its name until its values are in the mirror:
//
//	stage    Link the file to its hidden name, in place of renaming it.
//	…        collect to swap, as without a mirror. The pool knows the file by its hidden name.
//	move     A second later, when nobody is in the middle of reading the directory, move the values
//	         to the mirror, and drain the file. Its record says nothing from then on.
//	unlink   When nobody may have listed the directory without having read it, remove the name.
//	remove   A second later remove the hidden name, and let the archive forget the record.
//
// Who opens the file before move goes on writing to it: it becomes a source of its gains, as without
// a mirror. Who opens it after move writes to an empty file: that gets its name back, and is a
// worker's like any other.

const (
	// moveFiles and moveEntries bound one move: openers of its files wait that long.
	moveFiles   = 128
	moveEntries = 16 << 10
	// moveTime is how long leases are held while files are read for a move.
	moveTime = 5 * time.Millisecond
)

// linksEvery is how often files that wait are looked at, whether a worker has opened them: what it adds counts
// that much later.
const linksEvery = time.Second

// look reports whether a file is to be looked at now.
func (l *link) look(now time.Time) bool {
	if now.Sub(l.looked) < linksEvery {
		return false
	}
	l.looked = now
	return true
}

// relinkRest is how long a file that got its name back keeps it: whoever had listed it has opened it then.
const relinkRest = 2 * time.Second

// DefaultMirrorWait is how long files wait for a moment in which nobody reads the directory, and
// DefaultMirrorFiles how many wait at most.
const (
	DefaultMirrorWait  = time.Minute
	DefaultMirrorFiles = 4096
)

// link is a file that has its own name besides the hidden one.
type link struct {
	base    string
	drained bool
	// since is when it was found ready to be moved, zero before.
	since time.Time
	// unlinked is when the name was removed; zero before.
	unlinked time.Time
	// relinked is when it got its name back, because somebody listed the directory.
	relinked time.Time
	// looked is when it was looked at last, whether a worker has opened it.
	looked time.Time
}

// MirrorState is what a folder tells about its mirror.
type MirrorState struct {
	// Wanted says that there is to be a mirror, Open that there is one.
	Wanted, Open bool
	mirror.Readers
	// Waiting are the files that wait to be moved.
	Waiting int
	// Forced counts the files that were moved though the directory was being read.
	Forced uint64
}

// mirrorState is what others read of it.
type mirrorState struct {
	mirror  atomic.Pointer[mirror.Mirror]
	waiting atomic.Int64
	forced  atomic.Uint64
}

// Mirror tells about the mirror. It may be called by any goroutine.
func (f *Folder) Mirror() MirrorState {
	s := MirrorState{Wanted: f.opts.Mirror && !f.opts.ReadOnly, Waiting: int(f.mirrored.waiting.Load()), Forced: f.mirrored.forced.Load()}
	if m := f.mirrored.mirror.Load(); m != nil {
		s.Open, s.Readers = true, m.Readers()
	}
	return s
}

// Mirrors reports whether files are moved to a mirror.
func (f *Folder) Mirrors() bool { return f.opts.Mirror && f.mirror != nil }

// IsMirror reports whether a file of the directory is a mirror file that does not count, because the
// archive has what it holds. It is for the pool, under its lock; ino is what the listing has.
func (f *Folder) IsMirror(base string, ino uint64) bool {
	if !mirror.IsName(base) {
		return false
	}
	if f.opts.ReadOnly && f.archive.Totals().Empty() {
		return false // it is all that there is
	}
	known, ok := f.mirrorFiles[base]
	if !ok || known.ino != ino {
		known = mirrorFile{ino, f.headOf(base).Tag == mirror.FileTag}
		f.mirrorFiles[base] = known
	}
	return known.is
}

// mirrorFile is what is known of a file with the name of a mirror file.
type mirrorFile struct {
	ino uint64
	is  bool
}

// Closing says that the pool is about to close a file that it has opened by that name, which the file
// still has. It may be called by any goroutine.
func (f *Folder) Closing(base string) {
	if m := f.mirrored.mirror.Load(); m != nil {
		m.Closing(base)
	}
}

// headOf reads the header of a file of the directory, and has nobody take that for another reader.
func (f *Folder) headOf(base string) store.Head {
	m := f.mirrored.mirror.Load()
	fd, err := unix.Open(filepath.Join(f.opts.Dir, base), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return store.Head{}
	}
	h, err := store.ReadHead(fd)
	if m != nil {
		m.Closing(base)
	}
	unix.Close(fd) //nolint:errcheck // it was only read
	if err != nil {
		return store.Head{}
	}
	return h
}

// IsAlias reports whether a source file is a staged one under its own name, given the inode numbers
// that the listing has for both.
func (f *Folder) IsAlias(base, record string, ino, stagedIno uint64) bool {
	if ino == stagedIno && ino != 0 {
		return true
	}
	// In a copy of the directory the two are files apart.
	h := f.headOf(base)
	return h.Tag == mirror.Tag(record, false) || h.Tag == mirror.Tag(record, true) && h.Drained()
}

// twoNames are the staged files that are to have both names. It is safe for several goroutines: any that
// looks at the directory asks for it, and only the one that folds changes it.
type twoNames struct {
	mu sync.Mutex
	// bases are the own names by record; mu guards them.
	bases map[string]string
}

func (n *twoNames) add(record, base string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.bases == nil {
		n.bases = map[string]string{}
	}
	n.bases[record] = base
}

func (n *twoNames) remove(record string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.bases, record)
}

func (n *twoNames) clear() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.bases)
}

// HasLinked reports whether there are staged files that have their own names, too. It may be called by any
// goroutine.
func (f *Folder) HasLinked() bool {
	f.both.mu.Lock()
	defer f.both.mu.Unlock()
	return len(f.both.bases) > 0
}

// Relink gives hidden names back that somebody has removed while the files have their own ones: what they
// hold is archived, and must not count twice. has reports whether a name is in the directory. It returns the
// files by their own names, with the names that they got back. It may be called by any goroutine.
func (f *Folder) Relink(has func(name string) bool) (relinked map[string]string) {
	f.both.mu.Lock()
	defer f.both.mu.Unlock()
	for record, base := range f.both.bases {
		hidden := FileName(record)
		if has(hidden) || !has(base) || !f.relink(record, base) {
			continue
		}
		f.opts.Logger.Warn("staged file was removed by somebody else, and is there again", zap.String("path", f.place.Path(record)))
		if relinked == nil {
			relinked = map[string]string{}
		}
		relinked[base] = hidden
	}
	return relinked
}

// relink gives a file its hidden name, if it is the one with that record.
func (f *Folder) relink(record, base string) bool {
	h := f.headOf(base)
	if h.Tag != mirror.Tag(record, false) && h.Tag != mirror.Tag(record, true) {
		return false
	}
	return unix.Linkat(unix.AT_FDCWD, filepath.Join(f.opts.Dir, base), unix.AT_FDCWD, f.place.Path(record), 0) == nil
}

// Linked reports whether a staged file has its own name, too, as far as we know.
func (f *Folder) Linked(record string) bool {
	l := f.linked[record]
	return l != nil && l.unlinked.IsZero()
}

// openMirror opens the mirror of a directory that was just taken, and brings what a crash has left
// into order.
func (f *Folder) openMirror() error {
	f.closeMirror()
	dir := f.place.fd()
	m, unwatched, err := mirror.Open(dir, f.opts.Dir,
		mirror.Options{Unwatched: !f.opts.Mirror, Hub: f.opts.Hub, Hidden: FileName, Logf: f.logMirror, Step: f.Step})
	if err != nil {
		return err
	}
	f.mirror, f.resyncs = m, 0
	if f.opts.Mirror {
		f.mirrored.mirror.Store(m)
		if unwatched != nil {
			f.opts.Logger.Warn("cannot tell who reads the directory; those who read it while dead workers' files are archived may see values twice or not at all", zap.Error(unwatched))
		}
	}
	if err := f.findLinks(); err != nil {
		f.closeMirror()
		return err
	}
	return nil
}

func (f *Folder) logMirror(message string, err error) {
	if err == nil {
		f.opts.Logger.Info(message)
		return
	}
	f.opts.Metrics.mirrorErrors.Inc()
	f.opts.Logger.Warn(message, zap.Error(err))
}

func (f *Folder) closeMirror() {
	if f.mirror == nil {
		return
	}
	f.mirrored.mirror.Store(nil)
	f.mirror.Close() //nolint:errcheck // what was stored is stored
	f.mirror, f.linked = nil, map[string]*link{}
	f.both.clear()
}

// findLinks finds the staged files that have their own names, too.
func (f *Folder) findLinks() error {
	f.linked = map[string]*link{}
	records, err := Staged(f.opts.Dir)
	if err != nil {
		return err
	}
	for _, record := range records {
		base, ok := BaseOf(record)
		if !ok {
			continue
		}
		h, err := store.ReadHeadAt(f.place.fd(), FileName(record))
		if err != nil {
			continue // no file of ours, or one that cannot be read: the pool will say
		}
		if h.Tag == mirror.Tag(record, true) {
			if err := f.giveBack(record, base); err != nil {
				return err
			}
			continue
		}
		alias, err := f.place.alias(record, base)
		if err != nil {
			return err
		}
		switch {
		case !alias:
		case f.opts.Mirror:
			f.linked[record] = &link{base: base}
			f.both.add(record, base)
		default:
			if err := unix.Unlinkat(f.place.fd(), base, 0); err != nil {
				return fmt.Errorf("remove second name of staged file %q: %w", f.place.Path(record), err)
			}
		}
	}
	return nil
}

// alias reports whether a staged file has its own name, too. Where a copy was made of it, it is
// given it.
func (p *Place) alias(record, base string) (bool, error) {
	var hidden, named unix.Stat_t
	if err := unix.Fstatat(p.fd(), FileName(record), &hidden, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("look at staged file %q: %w", p.Path(record), err)
	}
	if unix.Fstatat(p.fd(), base, &named, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false, nil
	}
	if hidden.Dev == named.Dev && hidden.Ino == named.Ino {
		return true, nil
	}
	if h, err := store.ReadHeadAt(p.fd(), base); err != nil || h.Tag != mirror.Tag(record, false) {
		return false, nil //nolint:nilerr // it is another file
	}
	temp := mirror.Prefix + "link"
	unix.Unlinkat(p.fd(), temp, 0) //nolint:errcheck // of a start that has crashed
	err := unix.Linkat(p.fd(), FileName(record), p.fd(), temp, 0)
	if err == nil {
		err = unix.Renameat(p.fd(), temp, p.fd(), base)
	}
	if err != nil {
		return false, fmt.Errorf("link staged file %q: %w", p.Path(record), err)
	}
	return true, nil
}

// Link gives a source file its hidden name, besides its own one, and says so in its tag.
func (p *Place) link(base, record string) error {
	hidden := FileName(record)
	if err := unix.Linkat(p.fd(), base, p.fd(), hidden, 0); err != nil {
		return err
	}
	err := p.tag(hidden, mirror.Tag(record, false))
	if err != nil {
		err = errors.Join(err, unix.Unlinkat(p.fd(), hidden, 0))
	}
	return err
}

func (p *Place) tag(name string, tag uint32) error {
	fd, err := unix.Openat(p.fd(), name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // it lies in memory
	if err = store.SetTag(fd, tag); errors.Is(err, io.EOF) {
		return nil // nothing was written to it
	}
	return err
}

// RemoveMirror removes the mirror files of a directory that was taken: what they hold is not to be
// archived anew.
func (p *Place) RemoveMirror() error {
	if p.held == nil {
		return nil
	}
	if _, err := mirror.Remove(p.fd(), p.path); err != nil {
		return fmt.Errorf("remove mirror files: %w", err)
	}
	return nil
}

// keepsName reports whether a file is to keep its name until its values are in the mirror.
func (f *Folder) keepsName(file *File) bool {
	return f.Mirrors() && !file.Ruby && !file.Name.Archive && !file.Name.Mode.Live()
}

// stageName gives a file its hidden name: see stage.
func (f *Folder) stageName(file *File) error {
	if !f.keepsName(file) {
		return f.place.Stage(file.Name.Base, file.Record)
	}
	err := f.place.link(file.Name.Base, file.Record)
	switch {
	case err == nil:
		f.linked[file.Record] = &link{base: file.Name.Base}
		f.both.add(file.Record, file.Name.Base)
		file.Linked = true
		return nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("link source file %q: %w", file.Path, err)
	}
	f.opts.Metrics.mirrorErrors.Inc()
	if !f.unmirrored {
		f.unmirrored = true
		f.opts.Logger.Warn("files of dead workers cannot be kept for others who read the directory; they see totals fall",
			zap.String("path", file.Path), zap.Error(err))
	}
	return f.place.Stage(file.Name.Base, file.Record)
}

// unstageName takes back what stageName did.
func (f *Folder) unstageName(file *File) error {
	l := f.linked[file.Record]
	if l == nil {
		return f.place.Unstage(file.Record, file.Name.Base)
	}
	f.unlink(file.Record)
	return unix.Unlinkat(f.place.fd(), FileName(file.Record), 0)
}

// unlink forgets a link.
func (f *Folder) unlink(record string) {
	f.both.remove(record)
	delete(f.linked, record)
}

// giveBack gives a drained file its own name back, or removes it if nothing is in it.
func (f *Folder) giveBack(record, base string) error {
	f.both.remove(record)
	fd := f.place.fd()
	alias, err := f.place.alias(record, base)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !alias {
		switch h, err := store.ReadHeadAt(fd, FileName(record)); {
		case err != nil:
			return fmt.Errorf("give back staged file %q: %w", f.place.Path(record), err)
		case h.Drained():
			// Nobody wrote to it, and nobody can find it.
		default:
			err := unix.Linkat(fd, FileName(record), fd, base, 0)
			if errors.Is(err, unix.EEXIST) {
				// It stays hidden, and counts. Its record must not be that of before.
				fresh := f.place.NewName(base)
				if err := renameNoReplace(fd, FileName(record), FileName(fresh)); err != nil {
					return fmt.Errorf("give back staged file %q: %w", f.place.Path(record), err)
				}
				f.pool.Found(fresh)
				return nil
			}
			if err != nil {
				return fmt.Errorf("give back staged file %q: %w", f.place.Path(record), err)
			}
		}
	}
	if err := unix.Unlinkat(fd, FileName(record), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give back staged file %q: %w", f.place.Path(record), err)
	}
	return nil
}

// reopened takes note that a worker has opened a folded file.
func (f *Folder) reopened(record string) {
	f.opts.Metrics.reopened.Inc()
	f.opts.Logger.Info("a worker writes to a file that was archived; what it adds counts", zap.String("path", f.place.Path(record)))
	f.pool.Change(func() { delete(f.removing, record) })
	f.pool.Found(record)
}

// moveLinked takes folded files with their own names a step on. It returns the records of those
// that are removed.
func (f *Folder) moveLinked(now time.Time) (gone []string, err error) {
	var ready []string
	waiting := 0
	for record, l := range f.linked {
		folded, ok := f.removing[record]
		if !ok {
			continue // it counts
		}
		if !l.drained {
			waiting++
		}
		if now.Before(folded.due) {
			continue
		}
		if l.since.IsZero() {
			l.since = now
		}
		ready = append(ready, record)
	}
	f.mirrored.waiting.Store(int64(waiting))
	if n := f.mirror.Readers().Resyncs; n > f.resyncs {
		f.opts.Metrics.mirrorResyncs.Add(float64(n - f.resyncs))
		f.opts.Logger.Info("some who listed the directory did not read all of it, and are taken to have ended")
		f.resyncs = n
	}
	if len(ready) == 0 {
		return nil, nil
	}
	sort.Slice(ready, func(i, j int) bool { return f.linked[ready[i]].since.Before(f.linked[ready[j]].since) })
	var full, drained []string
	for _, record := range ready {
		if f.linked[record].drained {
			drained = append(drained, record)
		} else {
			full = append(full, record)
		}
	}
	gone, err = f.unlinkDrained(drained, now)
	if err != nil {
		return gone, err
	}
	if full, err = f.dropReopened(full, now); err != nil {
		return gone, err
	}
	if err := f.prepare(full); err != nil {
		f.mirrorFailed(err)
		return gone, f.giveUp(full, len(f.overdue(full, waiting, now)) > 0 || f.keeper.IsFull(err))
	}
	for looked := 0; len(full) > 0 && looked < looksPerStep; {
		batch, forced := f.awaitFit(full), false
		n, moved, err := 0, 0, mirror.ErrBusy
		if len(batch) > 0 {
			n, moved, err = f.move(batch, false)
		}
		if errors.Is(err, mirror.ErrBusy) {
			if batch = f.overdue(full, waiting, now); len(batch) > 0 {
				forced = true
				n, moved, err = f.move(batch, true)
			}
		}
		looked += n
		full = without(full, batch[:n])
		waiting -= moved
		switch {
		case errors.Is(err, mirror.ErrBusy):
			f.opts.Metrics.mirrorWaits.Inc()
			return gone, nil
		case err != nil:
			f.mirrorFailed(err)
			return gone, f.giveUp(full, len(f.overdue(full, waiting, now)) > 0 || f.keeper.IsFull(err))
		case forced && moved > 0:
			f.opts.Metrics.mirrorForced.Add(float64(moved))
			f.mirrored.forced.Add(uint64(moved))
			f.opts.Logger.Warn("the directory is read all the time; dead workers' files were archived all the same, and readers may have seen values twice or not at all", zap.Int("files", moved))
		}
		if moved > 0 && f.mirrorErr != nil {
			f.mirrorErr = nil
			f.opts.Logger.Info("values of dead workers' files can be moved to the mirror again")
		}
	}
	f.mirrored.waiting.Store(int64(waiting))
	return gone, nil
}

func (f *Folder) mirrorFailed(err error) {
	f.opts.Metrics.mirrorErrors.Inc()
	if f.mirrorErr == nil || f.mirrorErr.Error() != err.Error() {
		f.opts.Logger.Error("values of dead workers' files cannot be moved to the mirror; the files stay", zap.Error(err))
	}
	f.mirrorErr = err
}

// prepare makes mirror files that are going to be needed. Whoever has listed the directory before does
// not know them, and is waited for.
func (f *Folder) prepare(records []string) error {
	for _, record := range records {
		name, err := store.ParseName(f.linked[record].base)
		if err != nil {
			return err
		}
		if f.mirror.Has(name) {
			continue
		}
		file, state, err := f.openToMove(record, f.mirror.Begin())
		if err != nil {
			return err
		}
		if state == isMovable {
			if err := file.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// overdue returns the files that are to be moved though somebody may be reading them: all if room is
// short or many wait, otherwise those that have waited for too long.
func (f *Folder) overdue(records []string, waiting int, now time.Time) []string {
	if f.short || f.tooMany(waiting) {
		return records
	}
	for i, record := range records { // the oldest come first
		if !f.tooLong(now.Sub(f.linked[record].since)) {
			return records[:i]
		}
	}
	return records
}

func (f *Folder) tooMany(files int) bool {
	return f.opts.MirrorFiles >= 0 && files > f.opts.MirrorFiles
}

func (f *Folder) tooLong(d time.Duration) bool {
	return f.opts.MirrorWait >= 0 && d > f.opts.MirrorWait
}

// without returns what is left of a list without a part of it, in order.
func without(list, part []string) []string {
	if len(part) == 0 {
		return list
	}
	gone := make(map[string]bool, len(part))
	for _, s := range part {
		gone[s] = true
	}
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return gone[s] })
}

// dropReopened returns the files that no worker has opened.
func (f *Folder) dropReopened(records []string, now time.Time) (rest []string, err error) {
	for _, record := range records {
		if !f.linked[record].look(now) {
			rest = append(rest, record) // move looks, too
			continue
		}
		switch alone, err := f.unwritten(record); {
		case errors.Is(err, fs.ErrNotExist) && f.relink(record, f.linked[record].base):
			rest = append(rest, record)
		case errors.Is(err, fs.ErrNotExist):
			f.opts.Logger.Warn("staged file was removed by somebody else", zap.String("path", f.place.Path(record)))
			f.unlink(record)
		case err != nil:
			return nil, err
		case !alone:
			f.reopened(record)
		default:
			rest = append(rest, record)
		}
	}
	return rest, nil
}

// giveUp has files go that cannot be mirrored and have waited for too long: room matters more than
// what others read.
func (f *Folder) giveUp(records []string, now bool) error {
	if !now {
		return nil
	}
	for _, record := range records {
		l := f.linked[record]
		alias, err := f.place.alias(record, l.base)
		if err == nil && alias {
			err = unix.Unlinkat(f.place.fd(), l.base, 0)
		}
		if err != nil {
			return err
		}
		f.unlink(record)
	}
	f.opts.Metrics.mirrorForced.Add(float64(len(records)))
	f.mirrored.forced.Add(uint64(len(records)))
	return nil
}

// move moves the values of some of the files to the mirror, and returns how many it has looked at.
func (f *Folder) move(records []string, forced bool) (looked, moved int, err error) {
	move := f.mirror.Begin()
	var open []*store.File
	var ready, reopened []string
	start := time.Now()
	defer func() {
		for _, file := range open {
			file.Close() //nolint:errcheck // lets go of the lease; what was written lies in memory
		}
		for _, record := range reopened {
			f.reopened(record)
		}
	}()
	for _, record := range records {
		if looked > 0 && (move.Files() >= moveFiles || move.Entries() >= moveEntries || time.Since(start) > moveTime) {
			break
		}
		looked++
		file, state, err := f.openToMove(record, move)
		switch {
		case err != nil:
			return looked - 1, 0, err
		case state == isReopened: // by one who has died since
			reopened = append(reopened, record)
		case state == isMovable:
			open, ready = append(open, file), append(ready, record)
		}
	}
	if len(ready) == 0 {
		return looked, 0, nil
	}
	if err := move.Apply(forced); err != nil {
		return 0, 0, err
	}
	for _, record := range ready {
		f.linked[record].drained = true
	}
	f.opts.Metrics.mirrorFiles.Add(float64(len(ready)))
	return looked, len(ready), nil
}

// A reader that is at work is waited for quietWait, in steps of quietStep, once in quietEvery.
const (
	quietStep  = 2 * time.Millisecond
	quietWait  = 60 * time.Millisecond
	quietEvery = 500 * time.Millisecond
)

// awaitFit returns which of the files may be moved now, as nobody who reads the directory is in the
// middle of them.
func (f *Folder) awaitFit(records []string) []string {
	fit := f.fitting(records)
	if len(fit) > 0 || time.Since(f.awaited) < quietEvery {
		return fit
	}
	defer func() { f.awaited = time.Now() }()
	for start := time.Now(); len(fit) == 0 && time.Since(start) < quietWait; {
		time.Sleep(quietStep)
		fit = f.fitting(records)
	}
	return fit
}

func (f *Folder) fitting(records []string) (fit []string) {
	bases := make([]string, len(records))
	for i, record := range records {
		bases[i] = f.linked[record].base
	}
	for i, ok := range f.mirror.Fits(bases) {
		if ok {
			fit = append(fit, records[i])
		}
	}
	return fit
}

type movability int

const (
	isBusy movability = iota
	isReopened
	isMovable
)

// openToMove takes the write lease of a file, and adds it to a move if it is as it was recorded.
func (f *Folder) openToMove(record string, move *mirror.Move) (*store.File, movability, error) {
	path := f.place.Path(record)
	base, _ := BaseOf(record)
	name, err := store.ParseName(base)
	if err != nil {
		return nil, isBusy, err
	}
	file, err := store.OpenToEmpty(path, name, anyLimits)
	if err != nil {
		return nil, isBusy, err
	}
	state := isBusy
	defer func() {
		if state != isMovable {
			file.Close() //nolint:errcheck // nothing was written
		}
	}()
	if granted, err := watch.TryWriteLease(int(file.Fd())); err != nil || !granted {
		return nil, isBusy, nil //nolint:nilerr // somebody reads it: the next time
	}
	space, _ := archive.SpaceOf(name.Type, name.Mode, name.ID)
	baseline, ok := f.archive.Baseline(record)
	c := archive.Compare(space, baseline)
	if err := move.Add(record, file, func(e store.Entry) { c.Add(e.Value, e.Stamp) }); err != nil {
		return nil, isBusy, err
	}
	if f.removing[record].recorded && (!ok || !c.Equal()) {
		move.Drop()
		return nil, isReopened, nil
	}
	state = isMovable
	return file, state, nil
}

// unwritten reports whether nobody can write to a staged file now.
func (f *Folder) unwritten(record string) (bool, error) {
	fd, err := unix.Openat(f.place.fd(), FileName(record), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open staged file %q: %w", f.place.Path(record), err)
	}
	defer unix.Close(fd) //nolint:errcheck // lets go of the lease
	return watch.TryLease(fd)
}

// unlinkDrained removes the names of drained files when nobody may be about to read them, and a
// second later the files.
func (f *Folder) unlinkDrained(records []string, now time.Time) (gone []string, err error) {
	fd := f.place.fd()
	var named []string
	for _, record := range records {
		l := f.linked[record]
		due := !l.unlinked.IsZero() && now.Sub(l.unlinked) >= removeSoon && (f.short || now.Sub(l.unlinked) >= removeAfter)
		if l.unlinked.IsZero() {
			named = append(named, record)
			if !l.look(now) {
				continue
			}
		} else if !due {
			continue // nobody can find it
		}
		h, err := store.ReadHeadAt(fd, FileName(record))
		alone := true
		if err == nil && due {
			alone, err = f.unwritten(record)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			gone = append(gone, record)
		case err != nil:
			return gone, err
		case !alone || !h.Drained():
			// A worker has the same ID, and has opened it: it begins at zero.
			if err := f.giveBack(record, l.base); err != nil {
				return gone, err
			}
			f.opts.Metrics.reopened.Inc()
			gone = append(gone, record)
		case due:
			if err := f.do("remove", func() error { return unix.Unlinkat(fd, FileName(record), 0) }); err != nil {
				return gone, err
			}
			gone = append(gone, record)
		}
	}
	if named = without(named, gone); len(named) == 0 {
		return gone, nil
	}
	back, err := f.unlinkNames(named, now)
	return append(gone, back...), err
}

// unlinkNames removes the own names of drained files. It returns the records of those that workers have
// opened, which are files of those workers from then on.
func (f *Folder) unlinkNames(records []string, now time.Time) (back []string, err error) {
	bases := make([]string, len(records))
	for i, record := range records {
		bases[i] = f.linked[record].base
	}
	settled, last := f.mirror.Settled(bases)
	for i, record := range records {
		l := f.linked[record]
		forced := f.short || f.tooMany(len(f.linked)/2) || f.tooLong(now.Sub(l.since)/2)
		if (now.Sub(l.relinked) < relinkRest || !settled[i]) && !forced {
			continue
		}
		free, err := f.unlinkName(record, l, last, now)
		if err == nil && !free {
			err = f.giveBack(record, l.base)
			f.opts.Metrics.reopened.Inc()
			back = append(back, record)
		}
		if err != nil {
			return back, err
		}
		if l.relinked.Equal(now) {
			return back, nil // somebody lists the directory just now
		}
	}
	return back, nil
}

// unlinkName removes the own name of a drained file. If a worker opens the file meanwhile, or somebody has
// listed the directory since the moment that is given, it gets it back. It reports whether no worker has the
// file open, or has written to it.
func (f *Folder) unlinkName(record string, l *link, last, now time.Time) (free bool, err error) {
	alias, err := f.place.alias(record, l.base)
	if err != nil || !alias {
		if err == nil {
			l.unlinked = now
		}
		return true, err
	}
	fd := f.place.fd()
	hidden, err := unix.Openat(fd, FileName(record), unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			l.looked = time.Time{}
			return true, nil // the next step finds that
		}
		return true, fmt.Errorf("open staged file %q: %w", f.place.Path(record), err)
	}
	defer unix.Close(hidden) //nolint:errcheck // lets go of the lease
	if granted, err := watch.TryLease(hidden); err != nil || !granted {
		return err != nil, err // otherwise a worker has opened it
	}
	if h, err := store.ReadHead(hidden); err != nil || !h.Drained() {
		return err != nil, nil //nolint:nilerr // what cannot be read is left for later
	}
	f.both.remove(record)
	if err := f.do("unlink", func() error { return unix.Unlinkat(fd, l.base, 0) }); err != nil {
		f.both.add(record, l.base)
		return true, err
	}
	broken, err := watch.LeaseBroken(hidden)
	if err == nil && !broken && !f.mirror.ListedSince(last) {
		l.unlinked = now
		return true, nil
	}
	f.opts.Metrics.mirrorWaits.Inc()
	if err := unix.Linkat(fd, FileName(record), fd, l.base, 0); err != nil {
		l.unlinked = now // another file has the name
		return true, nil
	}
	l.relinked = now
	f.both.add(record, l.base)
	return true, nil
}

// importMirror makes what mirror files hold the archive's, if there is a new archive beside them: the
// directory is a copy, or the archive was lost.
func (f *Folder) importMirror(now time.Time) error {
	names, err := f.mirror.Files()
	if err != nil || len(names) == 0 {
		return err
	}
	b := archive.NewBatch(now)
	entries := 0
	for _, base := range names {
		name, err := store.ParseName(base)
		if err != nil {
			return err
		}
		file, err := store.Open(f.opts.Dir+"/"+base, name, anyLimits)
		if err != nil {
			return err
		}
		space, keep := archive.SpaceOf(name.Type, name.Mode, name.ID)
		into := b.Part(space, nil)
		err = file.Walk(func(e store.Entry) {
			entries++
			into.Add(e.Key, e.Value, e.Stamp, keep)
		})
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	if entries == 0 {
		return nil
	}
	if c := f.keeper.Commit(now, b, f.pool.Change); c.Err != nil {
		return c.Err
	}
	f.opts.Logger.Info("there was no archive, but mirror files; what they hold was archived", zap.String("files", strings.Join(names, " ")),
		zap.Int("entries", entries))
	return nil
}

// settleMirror brings archive and mirror files together once the archive is open.
func (f *Folder) settleMirror(now time.Time) error {
	if f.settled || f.mirror == nil || !f.archive.Attached() {
		return nil
	}
	a := f.archive
	if a.Totals().Empty() && len(a.Records()) == 0 && a.Stats().Folds == 0 {
		if err := f.importMirror(now); err != nil {
			return fmt.Errorf("archive what mirror files hold: %w", err)
		}
	}
	f.settled = true
	if !f.opts.Mirror {
		if n, err := mirror.Remove(f.place.fd(), f.opts.Dir); err != nil {
			return fmt.Errorf("remove mirror files: %w", err)
		} else if n > 0 {
			f.opts.Logger.Info("mirror files were removed, as none are wanted", zap.Int("files", n))
		}
		f.closeMirror()
	}
	return nil
}

// SetStep sets Step, also of a mirror that is open. For tests.
func (f *Folder) SetStep(step func(name string) error) {
	f.Step = step
	if f.mirror != nil {
		f.mirror.SetStep(step)
	}
}

// SetMirrorWait changes Options.MirrorWait. For tests.
func (f *Folder) SetMirrorWait(d time.Duration) { f.opts.MirrorWait = d }

// MirrorLater has the clock by which readers are told to have ended go forward. For tests.
func (f *Folder) MirrorLater(d time.Duration) {
	if f.mirror != nil {
		f.mirror.Later(d)
	}
}
