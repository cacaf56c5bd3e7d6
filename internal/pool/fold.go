package pool

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// How the file of a dead worker is folded, so that each increment counts exactly once
// whatever dies, and when:
//
//  1. Take a read lease on it and keep it: nobody can write to it now, and who opens it
//     to write waits until we let go. See that it can be read to its end.
//  2. Rename it into the staging under a name never used before. A worker that gets the
//     same ID makes a fresh file; only one that had looked the old name up a moment before
//     can still open this one, and it waits.
//  3. Read it a last time.
//  4. Make the rename durable, then write its values and the record that this name is
//     folded into the archive, in one transaction.
//  5. In one step under the collector's lock, let the archive's values count instead of
//     the file's. Let go of the lease.
//  6. A moment later take the lease again. If the file still is as it was folded, remove
//     it, make that durable, and let the archive forget the name.
//
// From 4 on the file counts with what it has gained over the recorded values. Normally that
// is nothing. If the lease is refused in 6, or the values differ, the opener of step 2
// exists: the file is a source like any other, of its gains, until it is dead again and
// goes through 3 to 6 once more. So no step depends on seeing that opener in time.
//
// After a crash everything follows from what lies there. A file in the staging without a
// record is a source in full, one with a record a source of its gains; both go through
// the steps that are left. Leases die with their holder.

// A batch has foldFiles files, and foldBytes at most: that bounds how long leases are held,
// and how long scrapes wait. Each batch waits for some scrapes, too, which take the longer
// the more files there are, so where many wait each has twice as many as the one before.
const (
	foldFiles     = 128
	foldFilesMost = 1024
	foldBytes     = 64 << 20
)

// removeAfter is how long a folded file is kept for an opener that is under way between
// looking up its name and opening it: an eternity for the kernel.
const removeAfter = time.Second

// retryAfter is how long to wait after the archive could not be opened or written.
const retryAfter = 5 * time.Second

// spareBytes of the archive's file may be out of use, which matters in no directory; where it
// cannot be written anew, it is tried again after compactEvery.
const (
	spareBytes   = 1 << 20
	compactEvery = 10 * time.Minute
)

// wipeTime is how long nothing is made in a directory that somebody is about to empty.
const wipeTime = time.Second

// archiving is the part of a dir that deals with the dead. Its methods that change the
// archive or the staging are for the goroutine that tends the collector alone.
type archiving struct {
	opts       *ArchiveOptions // nil: read only
	archive    *archive.Archive
	archiveDir string
	staging    *archive.Staging
	// view is what a read-only dir has read of the archive.
	view *archive.View
	// folded are the sources of the index that show the archive's tables.
	folded     map[archive.Space]*foldedSource
	generation int
	// removing are the folded files in the staging.
	removing map[string]foldedFile

	// wiped is when the hidden directory was found removed, or the archive in it, while it is.
	wiped time.Time
	// batchFiles is the size of the next batch, if more than foldFiles.
	batchFiles int
	// ballastDue is when to look next whether there is room for a ballast.
	ballastDue time.Time
	// spare is how many bytes of the archive's file may be out of use, with three times those that
	// are in use; compactDue is when it may be written anew.
	spare      int64
	compactDue time.Time

	attachErr, foldErr     error
	attachRetry, foldRetry time.Time
	// step is called before each change that a fold makes outside memory, with its name; an
	// error is taken for that of the change, which is then not made. Nil except in tests.
	step func(name string) error
}

type foldedSource struct {
	source  *merge.Source
	learned int // positions of the table
	// What one worker left goes after a time: soonest and last are after how long the first
	// and the last of what is shown does; 0 is never.
	soonest, last time.Duration
	// asOf is when the worker was folded last; gone says that something of it went already.
	asOf time.Time
	gone bool
}

// foldedFile is a file that waits to be removed.
type foldedFile struct {
	due time.Time
	// recorded says that there is a record of its values. Nothing was kept of others.
	recorded bool
}

func newArchiving(spec DirSpec, opts *Options) archiving {
	a := archiving{
		opts: opts.Archive, archive: archive.New(), staging: archive.NewStaging(spec.Path),
		folded: map[archive.Space]*foldedSource{}, removing: map[string]foldedFile{},
		archiveDir: filepath.Join(spec.Path, archive.HiddenDir), spare: spareBytes,
	}
	if opts.ArchiveDir != "" {
		a.archiveDir = filepath.Join(opts.ArchiveDir, spec.Pool)
	}
	return a
}

// do makes one change outside memory.
func (d *dir) do(name string, change func() error) error {
	if d.step != nil {
		if err := d.step(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return change()
}

// fatal reports whether an error of attach must keep a daemon from starting.
func fatal(err error) bool {
	return errors.Is(err, archive.ErrLocked) || errors.Is(err, archive.ErrNewer)
}

// attach opens the archive if it is not, or is no longer the one at its path.
func (d *dir) attach(now time.Time) error {
	switch {
	case d.opts == nil:
		return d.readArchive()
	case d.archive.Attached() && !d.archive.InPlace():
		d.logger.Warn("archive was removed with its directory; it will be written anew")
		if err := d.archive.Detach(); err != nil {
			d.logger.Warn("close archive", zap.Error(err))
		}
		d.wiped = now
	case d.archive.Attached() && d.staging.InPlace():
		d.wiped = time.Time{}
		return nil
	case now.Before(d.attachRetry), now.Before(d.foldRetry) && d.foldErr != nil:
		return d.attachErr
	}
	if _, err := os.Stat(d.spec.Path); missing(err) {
		return nil // nothing there to keep an archive for
	}
	if d.staging.Prepared() && !d.staging.InPlace() && d.wiped.IsZero() {
		d.wiped = now
	}
	if !d.wiped.IsZero() && now.Sub(d.wiped) < wipeTime {
		// Somebody removes the directory's contents, and perhaps the directory next, which would
		// fail if it filled again behind his back.
		return nil
	}
	d.wiped = time.Time{}
	err := d.openArchive(now)
	if err != nil {
		d.attachRetry = now.Add(retryAfter)
		unreadable := d.readForNow(err)
		// What keeps a daemon from starting is returned, and told once, there.
		starting := fatal(err) && !d.listed
		if !starting && (d.attachErr == nil || d.attachErr.Error() != err.Error()) {
			d.logger.Error("archive cannot be opened; no file is removed until it can", zap.Error(err))
			if unreadable != nil {
				d.logger.Error("archive cannot be read; what the dead left is missing", zap.Error(unreadable))
			}
		}
		d.attachErr = err
		return err
	}
	if d.attachErr != nil {
		d.logger.Info("archive is open again")
	}
	d.attachErr = nil
	stats := d.archive.Stats()
	d.logger.Info("archive is open", zap.String("path", d.archive.Path()), zap.Int("series", d.archive.Totals().Series()), zap.Uint64("files_folded", stats.Files))
	d.showAll()
	d.takeStaged()
	d.keepBallast(now)
	return nil
}

// openArchive makes what directories are missing and opens the archive, if it is not; one
// that is damaged is set aside.
func (d *dir) openArchive(now time.Time) error {
	if err := d.staging.Prepare(); err != nil || d.archive.Attached() {
		return err
	}
	if err := d.makeArchiveDir(); err != nil {
		return err
	}
	err := d.archive.Attach(d.archiveDir)
	if !errors.Is(err, archive.ErrDamaged) {
		return err
	}
	name, moveErr := archive.SetAside(d.archiveDir, now)
	if moveErr != nil {
		return errors.Join(err, moveErr)
	}
	d.c.metrics.archiveSetAside.With(d.spec.Pool).Inc()
	d.logger.Error("ARCHIVE IS DAMAGED and was set aside; what it held is missing from the totals, unless it is in memory",
		zap.String("kept_as", name), zap.Error(err))
	return d.archive.Attach(d.archiveDir)
}

// makeArchiveDir makes the directory of the archive, but never the watched one, which is the
// application's: it may be removing it at this moment, to make it anew with a mode of its own.
func (d *dir) makeArchiveDir() error {
	missing := []string{d.archiveDir}
	mkdir := os.MkdirAll
	if within, err := filepath.Rel(d.spec.Path, d.archiveDir); err == nil && filepath.IsLocal(within) {
		missing, mkdir = nil, os.Mkdir
		for path := d.archiveDir; within != "."; within = filepath.Dir(within) {
			missing = append(missing, path)
			path = filepath.Dir(path)
		}
	}
	for _, path := range slices.Backward(missing) {
		if err := mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make directory for the archive: %w", err)
		}
	}
	return nil
}

// readForNow serves what is in an archive that can be read but not opened for writing. It
// returns an error if there may be something that it cannot read.
func (d *dir) readForNow(err error) error {
	if fatal(err) || !d.archive.Totals().Empty() {
		return nil
	}
	view, err := archive.Read(d.archiveDir)
	if err != nil || view.Totals().Empty() {
		return err
	}
	d.archive = view.Archive
	d.logger.Info("archive is served as it was found", zap.Int("series", d.archive.Totals().Series()))
	d.showAll()
	d.takeStaged()
	return nil
}

// readArchive reads the archive once, for one who only looks.
func (d *dir) readArchive() error {
	if d.view != nil {
		return nil
	}
	view, err := archive.Read(d.archiveDir)
	d.view, d.attachErr = view, err
	if err != nil {
		d.logger.Error("archive cannot be read; what the dead left is missing", zap.Error(err))
	}
	d.archive = view.Archive
	d.showAll()
	d.takeStaged()
	return err
}

// showAll makes the index show the archive as it is.
func (d *dir) showAll() {
	if d.generation != d.archive.Generation() {
		for s := range d.folded {
			d.hide(s)
		}
		d.generation = d.archive.Generation()
	}
	for s := range d.archive.Totals().Spaces() {
		d.show(s)
	}
}

// show brings the index up to date with one table of the archive.
func (d *dir) show(s archive.Space) {
	table := d.archive.Totals().Table(s)
	f := d.folded[s]
	if f != nil && f.gone && !f.asOf.Equal(table.LastFold()) {
		d.hide(s) // another worker of the same ID may have left it anew
		f = nil
	}
	if f == nil {
		f = &foldedSource{asOf: table.LastFold(), source: d.index.AddFolded(merge.SourceSpec{
			Created: table.LastFold().UnixNano(), Type: s.Type, Mode: s.Mode, ID: s.Worker, ParseKey: store.ParseKey,
		})}
		d.folded[s] = f
	}
	for ; f.learned < table.Len(); f.learned++ {
		key := table.Key(f.learned)
		if s.Worker != "" {
			keep := d.retentionOf(s, key)
			if keep > 0 && d.c.now().Sub(table.LastFold()) > keep {
				f.gone = true
				continue
			}
			f.keepFor(keep)
		}
		if err := d.index.Learn(f.source, []byte(key), uint32(f.learned)); err != nil {
			reason := reasonOf(err)
			d.c.metrics.entryErrors.With(d.spec.Pool, string(reason)).Inc()
			if limit := asLimit(err); limit != nil {
				d.limitReached(d.archive.Path(), limit)
				continue
			}
			d.logger.Debug("archived entry left out", zap.String("key", key), zap.Error(err))
		}
	}
	values, stamps := f.source.Values(), f.source.Stamps()
	for i, pos := range f.source.Slots().All() {
		values[i], stamps[i] = table.Values()[pos], table.Stamps()[pos]
	}
}

// keepFor takes note that something is shown that goes after a time, 0 for never.
func (f *foldedSource) keepFor(t time.Duration) {
	if t == 0 {
		t = never
	}
	f.last = max(f.last, t)
	if f.soonest == 0 {
		f.soonest = t
	}
	f.soonest = min(f.soonest, t)
}

// never is longer than anything lasts.
const never = time.Duration(math.MaxInt64)

func (d *dir) hide(s archive.Space) {
	if f := d.folded[s]; f != nil {
		d.index.Remove(f.source)
		delete(d.folded, s)
	}
}

// takeStaged takes up what lies in the staging and is not known.
func (d *dir) takeStaged() {
	names, err := d.staging.List()
	if err != nil {
		d.logger.Warn("staged files cannot be listed", zap.Error(err))
		return
	}
	for _, name := range d.archive.Records() {
		// Removed, but a crash came before the archive could forget it.
		if _, ok := d.removing[name]; !ok && d.staged[name] == nil && !slices.Contains(names, name) {
			d.archive.Forget(name)
		}
	}
	for _, name := range names {
		if _, ok := d.removing[name]; ok {
			continue
		}
		t := d.staged[name]
		if t != nil && t.file != nil {
			baseline, _ := d.archive.Baseline(name)
			if slices.Equal(baseline, t.baseline) {
				continue
			}
			d.drop(t) // a commit that failed has reached the disk
		}
		d.takeOne(name)
	}
}

// takeOne makes a staged file a source, of its gains if it is recorded as folded.
func (d *dir) takeOne(name string) {
	base, ok := archive.BaseOf(name)
	parsed, err := store.ParseName(base)
	if !ok || err != nil {
		d.logger.Warn("foreign file in the staging; remove it", zap.String("path", d.staging.Path(name)))
		return
	}
	t := d.staged[name]
	if t == nil {
		t = &tracked{dir: d, name: parsed, path: d.staging.Path(name), staged: name}
		d.staged[name] = t
	}
	t.baseline, _ = d.archive.Baseline(name)
	d.note(t, d.take(t))
}

// absorb keeps what a file has counted whose bytes can no longer be read, or will be gone
// when it is closed, and closes it.
func (d *dir) absorb(t *tracked) {
	space, keep := archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	if keep && t.name.Type != metric.Gauge && t.source.Entries() > 0 {
		b := archive.NewBatch(d.c.now())
		f := b.File(space, nil, t.file.Size())
		d.index.Each(t.source, func(raw string, value, stamp float64) { f.Add([]byte(raw), value, stamp, true) })
		d.archive.Absorb(b)
		d.show(space)
	}
	d.drop(t)
}

// Fold archives dead workers' files: some, to be called again soon as long as it returns
// true. It must not run beside itself, Tend or Close.
func (c *Collector) Fold() (more bool) {
	c.foldMu.Lock()
	defer c.foldMu.Unlock()
	now := c.now()
	for _, d := range c.dirs {
		d.foldOrphans() // changes nothing in a directory
		if d.opts != nil {
			more = d.foldSome(now) || more
		}
	}
	return more
}

func (d *dir) foldSome(now time.Time) (more bool) {
	if !d.archive.Attached() || !d.wiped.IsZero() || now.Before(d.foldRetry) {
		return false
	}
	err := d.removeFolded(now)
	var batch []*tracked
	if err == nil {
		batch, more, err = d.pick(now)
		if err == nil || len(batch) > 0 {
			err = errors.Join(err, d.commit(batch, now))
		}
	}
	if err != nil {
		d.foldRetry = now.Add(retryAfter)
		if d.noRoom(err) && d.dropBallast() {
			// A full directory is emptied by folding, which needs some room itself.
			d.foldRetry = now
		}
		d.c.metrics.foldErrors.With(d.spec.Pool).Inc()
		if d.foldErr == nil || d.foldErr.Error() != err.Error() {
			d.logger.Error("dead workers' files cannot be archived; they stay and count on", zap.Error(err))
		}
		d.setFoldErr(err)
		return false
	}
	if d.foldErr != nil {
		d.logger.Info("dead workers' files can be archived again")
		d.setFoldErr(nil)
	}
	if len(batch) == 0 {
		d.compact(now)
	}
	d.keepBallast(now)
	if more = more && len(batch) > 0; more {
		d.batchFiles = min(2*max(d.batchFiles, foldFiles), foldFilesMost)
	} else {
		d.batchFiles = 0
	}
	return more
}

// compact writes the archive anew if that makes its file much smaller: in a tmpfs the files of
// a large backlog would otherwise take up room for ever. It waits until all of them are gone.
func (d *dir) compact(now time.Time) {
	if len(d.removing) > 0 || d.archive.Pending() || now.Before(d.compactDue) {
		return
	}
	size, used := d.archive.SizeBytes(), d.archive.UsedBytes()
	if used == 0 || size-used <= d.spare+3*used {
		return
	}
	d.compactDue = now.Add(compactEvery)
	if err := d.do("compact", d.archive.Compact); err != nil {
		d.c.metrics.compactErrors.With(d.spec.Pool).Inc()
		d.logger.Warn("archive cannot be written anew to make its file smaller; it is tried again later",
			zap.Int64("bytes", size), zap.Int64("used", used), zap.Error(err))
		return
	}
	d.c.metrics.compactions.With(d.spec.Pool).Inc()
	d.logger.Info("archive was written anew; its file is smaller", zap.Int64("bytes", d.archive.SizeBytes()), zap.Int64("before", size))
}

// setFoldErr takes note of how a fold went. A scrape may read it at the same time.
func (d *dir) setFoldErr(err error) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	d.foldErr = err
}

// foldOrphans keeps what files counted that are gone for good: no name leads to them, so
// they cannot come back and be counted again. When nobody can write to them either, their
// space is given back at once, whether or not the archive can be written now.
func (d *dir) foldOrphans() {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	d.orphans = slices.DeleteFunc(d.orphans, func(t *tracked) bool {
		if t.linked() {
			return false
		}
		if t.alive || t.method != watch.MethodLease {
			d.keepGains(t)
			return false
		}
		if granted, err := watch.TryLease(int(t.file.Fd())); err != nil || !granted {
			return false
		}
		d.learn(t)
		d.note(t, errors.Join(t.learnErr, t.load()))
		d.logger.Info("file was removed by somebody else; its last values still count", zap.String("path", t.path), zap.Int("entries", t.source.Entries()))
		d.absorb(t)
		return true
	})
}

// keepGains archives what a file without a name has counted, although a process may go on
// writing to it: for a daemon that is started later there is no such file. From then on it
// counts with what it gains.
func (d *dir) keepGains(t *tracked) {
	if !d.archive.Attached() {
		return
	}
	d.learn(t)
	err := errors.Join(t.learnErr, t.load())
	d.note(t, err)
	values := t.source.Values()
	if err != nil || !slices.ContainsFunc(values, func(v float64) bool { return v != 0 }) {
		return
	}
	b := archive.NewBatch(d.c.now())
	part := b.Part(t.space())
	d.index.Each(t.source, func(raw string, value, stamp float64) { part.Add([]byte(raw), value, stamp, true) })
	d.archive.Absorb(b)
	d.show(t.space())
	// An entry that comes later has an empty baseline.
	if t.baseline == nil {
		t.base = slices.Clone(values)
	} else {
		copy(t.base, t.raw)
	}
	t.baseline = make([]float64, t.entries)
	clear(values)
}

// pick takes leases on dead files and moves them into the staging: steps 1 to 3.
func (d *dir) pick(now time.Time) (batch []*tracked, more bool, err error) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	d.expireLocked(now)
	bytes, most := int64(0), max(d.batchFiles, foldFiles)
	consider := func(t *tracked) bool {
		if t.file == nil || t.alive || t.folding || t.unfoldable || t.failure != "" || t.method != watch.MethodLease || err != nil {
			return true
		}
		if len(batch) >= most || bytes >= foldBytes {
			more = true
			return false
		}
		var ok bool
		if ok, err = d.pickOne(t); ok {
			batch = append(batch, t)
			bytes += t.file.UsedBytes()
		}
		return err == nil
	}
	for _, t := range d.staged {
		if !consider(t) {
			return batch, more, err
		}
	}
	for _, t := range d.files {
		if !consider(t) {
			return batch, more, err
		}
	}
	return batch, more, err
}

func (d *dir) pickOne(t *tracked) (ok bool, err error) {
	fd := int(t.file.Fd())
	granted, err := watch.TryLease(fd)
	if err != nil || !granted {
		return false, nil // it lives again, or it cannot be known: the next probe will say
	}
	defer func() {
		if !ok {
			err = errors.Join(err, watch.ReleaseLease(fd))
		}
	}()
	d.learn(t)
	if err := errors.Join(t.learnErr, t.load()); err != nil {
		d.note(t, err) // it stays, with what was read of it
		return false, nil
	}
	d.index.SetTime(unixSeconds(d.c.now()))
	d.index.Observe(t.source)
	if t.staged == "" {
		same, err := d.stage(t)
		if errors.Is(err, unix.ENAMETOOLONG) {
			d.logger.Warn("file of a dead worker cannot be archived, because its name is too long; it stays and counts on", zap.String("path", t.path))
			t.unfoldable = true
			return false, nil
		}
		if err != nil || !same {
			return false, err
		}
	}
	t.folding = true
	return true, nil
}

// stage moves the file into the staging. It reports whether it was this file that was
// moved: between the last listing and now its name may have got to another one.
func (d *dir) stage(t *tracked) (same bool, err error) {
	name := d.staging.NewName(t.name.Base)
	if err := d.do("stage", func() error { return d.staging.Stage(t.path, name) }); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			if _, statErr := os.Lstat(d.staging.Dir()); statErr == nil {
				return false, nil // the file was removed: the next listing will say
			}
		}
		return false, err
	}
	var st unix.Stat_t
	path := d.staging.Path(name)
	id := t.file.Identity()
	if err := unix.Lstat(path, &st); err != nil {
		return false, fmt.Errorf("look at staged file %q: %w", path, err)
	}
	if id.Dev != uint64(st.Dev) || id.Ino != st.Ino { //nolint:unconvert // Dev is an int32 on macOS
		d.logger.Info("file was replaced while it was to be archived", zap.String("path", t.path))
		if err := d.staging.Unstage(name, t.path); err != nil {
			// Its name is taken again, so it stays where it is, and counts.
			d.takeOne(name)
		}
		return false, nil
	}
	delete(d.files, t.name.Base)
	d.staged[name] = t
	t.staged, t.path = name, path
	return true, nil
}

// commit archives a batch: steps 3 to 5.
func (d *dir) commit(batch []*tracked, now time.Time) error {
	start := time.Now()
	b := archive.NewBatch(now)
	var folded []*tracked
	var bytes int64
	err := func() error {
		for _, t := range batch {
			recorded, err := d.addTo(b, t)
			if err != nil {
				t.unfoldable = true // the others go without it the next time
				return err
			}
			t.recorded = recorded
			folded = append(folded, t)
			bytes += t.file.Size()
		}
		if len(folded) == 0 && !d.archive.Pending() {
			return nil
		}
		if len(folded) > 0 {
			if err := d.do("sync", d.staging.Sync); err != nil {
				return err
			}
		}
		return d.do("commit", func() error { return d.archive.Commit(b, d.swap(folded, now)) })
	}()
	if err != nil {
		d.c.mu.Lock()
		defer d.c.mu.Unlock()
		for _, t := range batch { // of a commit that went well swap has closed them
			t.folding = false
			err = errors.Join(err, watch.ReleaseLease(int(t.file.Fd())))
		}
		if d.archive.Attached() {
			// Part of what failed may have come to the disk all the same, at worst all of it. The
			// next attempt begins by reading what is there; until then nothing has changed.
			err = errors.Join(err, d.archive.Detach())
		}
		return err
	}
	if len(folded) > 0 {
		m := d.c.metrics
		m.folds.With(d.spec.Pool).Inc()
		m.foldedFiles.With(d.spec.Pool).Add(float64(len(folded)))
		m.foldedBytes.With(d.spec.Pool).Add(float64(bytes))
		m.foldSeconds.Observe(time.Since(start).Seconds())
		m.lastFold.With(d.spec.Pool).Set(float64(now.UnixMilli()) / 1000)
		d.logger.Debug("dead workers' files archived", zap.Int("files", len(folded)), zap.Duration("duration", time.Since(start)))
	}
	return nil
}

// addTo reads a file of which we hold the lease and adds it to the batch, which is of no
// use any more after an error.
func (d *dir) addTo(b *archive.Batch, t *tracked) (recorded bool, err error) {
	f, recorded, err := d.collect(b, t)
	if recorded {
		f.Record(t.staged)
	}
	return recorded, err
}

// collect adds a file's values to the batch, and reports whether any is to be recorded.
func (d *dir) collect(b *archive.Batch, t *tracked) (f *archive.FoldedFile, recorded bool, err error) {
	ruled := d.c.policy.Says(d.spec.Pool)
	space, keep := archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	if !keep && !ruled {
		return nil, false, nil
	}
	f = b.File(space, t.baseline, t.file.Size())
	// Workers may have had the same ID one after the other: the last one's gauges stay.
	began := float64(t.file.Created().UnixNano()) / 1e9
	slots := t.source.Slots().Numbers()
	k := 0
	err = t.file.Walk(func(e store.Entry) {
		known := k < len(slots) && slots[k] == e.Slot
		if known {
			k++
		}
		key, to, kept, stamp := e.Key, space, keep, e.Stamp
		if ruled && known {
			key, to, kept = d.spaceOf(t, e.Key)
		}
		switch {
		case to.Mode == metric.All:
			stamp = began
		case to.Mode == metric.MostRecent && known:
			stamp = t.source.Stamp(k - 1)
		}
		recorded = recorded || known && kept
		if known && kept {
			f.AddTo(to, stamp, key, e.Value, e.Stamp)
		} else {
			f.Add(e.Key, e.Value, e.Stamp, false)
		}
	})
	if err == nil && k != len(slots) {
		err = fmt.Errorf("only %d of %d entries were found again", k, len(slots))
	}
	if err != nil {
		return f, false, fmt.Errorf("source file %q changed while nobody could write to it; it stays: %w", t.path, err)
	}
	return f, recorded || keep, nil
}

// makeRoom lets a collector that looks once read more files than may be open: it takes what
// they hold into memory, as the archive would, and closes them. Gauges of the living are
// left open. It reports whether there is any room now.
func (d *dir) makeRoom() (room bool) {
	for _, t := range d.files {
		if t.file == nil || t.failure != "" || t.alive && t.name.Type == metric.Gauge {
			continue
		}
		b := archive.NewBatch(d.c.now())
		if _, _, err := d.collect(b, t); err != nil {
			continue // it changes under our eyes: it stays open
		}
		d.archive.Absorb(b)
		d.drop(t)
		t.absorbed = true
		room = true
	}
	d.showAll()
	return room
}

// swap returns what a commit is followed by: in one step for all scrapes the archive has
// the values, and the files have not.
func (d *dir) swap(folded []*tracked, now time.Time) func(change func()) {
	return func(change func()) {
		d.c.mu.Lock()
		defer d.c.mu.Unlock()
		change()
		d.showAll()
		for _, t := range folded {
			delete(d.staged, t.staged)
			d.removing[t.staged] = foldedFile{now.Add(removeAfter), t.recorded}
			d.drop(t)
		}
	}
}

// removeFolded removes folded files that are still as they were: step 6.
func (d *dir) removeFolded(now time.Time) error {
	var gone []string
	var errs []error
	for name, f := range d.removing {
		if now.Before(f.due) || len(errs) > 0 {
			continue
		}
		switch removed, err := d.removeOne(name, f.recorded); {
		case err != nil:
			errs = append(errs, err)
		case removed:
			gone = append(gone, name)
		default:
			d.c.mu.Lock()
			delete(d.removing, name)
			d.c.metrics.reopened.With(d.spec.Pool).Inc()
			d.logger.Info("a worker writes to a file that was archived; what it adds counts", zap.String("path", d.staging.Path(name)))
			d.takeOne(name)
			d.c.mu.Unlock()
		}
	}
	if len(gone) == 0 {
		return errors.Join(errs...)
	}
	if err := d.do("sync", d.staging.Sync); err != nil {
		return errors.Join(append(errs, err)...)
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	for _, name := range gone {
		delete(d.removing, name)
		d.archive.Forget(name)
	}
	return errors.Join(errs...)
}

// removeOne removes a folded file, unless somebody has opened it since.
func (d *dir) removeOne(name string, recorded bool) (removed bool, err error) {
	base, _ := archive.BaseOf(name)
	parsed, err := store.ParseName(base)
	if err != nil {
		return false, err
	}
	file, err := store.Open(d.staging.Path(name), parsed, d.limits)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }() // lets go of the lease, too
	if granted, err := watch.TryLease(int(file.Fd())); err != nil || !granted {
		return false, err
	}
	if recorded {
		space, _ := archive.SpaceOf(parsed.Type, parsed.Mode, parsed.ID)
		baseline, ok := d.archive.Baseline(name)
		if !ok {
			return false, nil
		}
		c := archive.Compare(space, baseline)
		if err := file.Walk(func(e store.Entry) { c.Add(e.Value, e.Stamp) }); err != nil || !c.Equal() {
			return false, nil
		}
	}
	id := file.Identity()
	err = d.do("remove", func() error {
		if broken, err := watch.LeaseBroken(int(file.Fd())); err != nil || broken {
			return errors.Join(errReopened, err) // somebody waits for us to let go
		}
		return d.staging.Remove(name, id.Dev, id.Ino)
	})
	if errors.Is(err, errReopened) {
		return false, nil
	}
	return err == nil, err
}

// errReopened says that a file to be removed was opened by a worker.
var errReopened = errors.New("file was opened for writing")

// The ballast is a file that only takes up room, so that there is some to give back when a
// directory is full of dead workers' files and the archive needs a few pages to take them.
const (
	ballastName  = "ballast"
	ballastBytes = 1 << 20
	// ballastPart is the part of a file system that a ballast may take at most.
	ballastPart = 16
)

func (d *dir) ballastPath() string { return filepath.Join(d.archiveDir, ballastName) }

// keepBallast makes a ballast if there is none and much more room than it takes.
func (d *dir) keepBallast(now time.Time) {
	if now.Before(d.ballastDue) {
		return
	}
	d.ballastDue = now.Add(retryAfter)
	if _, err := os.Lstat(d.ballastPath()); !errors.Is(err, fs.ErrNotExist) || !d.archive.InPlace() {
		return // there is one, or somebody is about to remove it all
	}
	var st unix.Statfs_t
	if unix.Statfs(d.archiveDir, &st) != nil {
		return
	}
	block := int64(st.Bsize) //nolint:unconvert // a uint32 on macOS
	size := min(ballastBytes, int64(st.Blocks)*block/ballastPart)
	if int64(st.Bavail)*block < 4*size {
		return
	}
	if err := os.WriteFile(d.ballastPath(), make([]byte, size), 0o600); err != nil {
		d.dropBallast() // not a part of it either
	}
}

// noRoom reports whether an error may come of a full file system. bbolt tells the cause of
// some errors in words only, so the file system is asked as well.
func (d *dir) noRoom(err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return true
	}
	var st unix.Statfs_t
	return unix.Statfs(d.archiveDir, &st) == nil && int64(st.Bavail)*int64(st.Bsize) < ballastBytes //nolint:unconvert // Bsize is a uint32 on macOS
}

// dropBallast gives the ballast's room back and reports whether there was one.
func (d *dir) dropBallast() bool {
	if err := os.Remove(d.ballastPath()); err != nil {
		return false
	}
	d.ballastDue = d.c.now().Add(retryAfter)
	d.logger.Warn("file system is full; gave up the room kept in reserve to archive dead workers' files", zap.String("path", d.ballastPath()))
	return true
}

// expireLocked drops the gauges of workers that are dead for too long, or are too many.
func (d *dir) expireLocked(now time.Time) {
	type dead struct {
		space archive.Space
		since time.Time
	}
	all := map[metric.Mode][]dead{}
	for s, t := range d.archive.Totals().Spaces() {
		if s.Worker != "" {
			all[s.Mode] = append(all[s.Mode], dead{s, t.LastFold()})
		}
	}
	gone := map[string]bool{}
	for _, workers := range all {
		slices.SortStableFunc(workers, func(a, b dead) int { return b.since.Compare(a.since) })
		for i, w := range workers {
			f := d.folded[w.space]
			if f == nil {
				continue
			}
			switch age := now.Sub(w.since); {
			case age > f.last, d.opts.GaugeWorkers > 0 && i >= d.opts.GaugeWorkers:
				d.hide(w.space)
				d.archive.Drop(w.space)
				gone[w.space.Worker] = true
			case age > f.soonest:
				d.hide(w.space)
				d.show(w.space)
			}
		}
	}
	d.c.metrics.expired.With(d.spec.Pool).Add(float64(len(gone)))
}

func (d *dir) updateArchiveMetrics() {
	m, pool := d.c.metrics, d.spec.Pool
	var fsStat unix.Statfs_t
	if unix.Statfs(d.spec.Path, &fsStat) == nil {
		block := float64(fsStat.Bsize)
		m.directoryBytes.With(pool, "free").Set(float64(fsStat.Bavail) * block)
		m.directoryBytes.With(pool, "total").Set(float64(fsStat.Blocks) * block)
		m.directoryInodes.With(pool, "free").Set(float64(fsStat.Ffree))
		m.directoryInodes.With(pool, "total").Set(float64(fsStat.Files))
	}
	m.archiveSeries.With(pool).Set(float64(d.archive.Totals().Series()))
	m.archiveUnsaved.With(pool).Set(float64(d.archive.Unsaved()))
	m.archiveBytes.With(pool).Set(float64(d.archive.SizeBytes()))
	up := 0.0
	if d.archive.Attached() && d.foldErr == nil {
		up = 1
	}
	m.archiveUp.With(pool).Set(up)
	awaiting := 0
	for t := range d.all() {
		if t.file != nil && !t.alive {
			awaiting++
		}
	}
	m.awaiting.With(pool).Set(float64(awaiting))
	m.removing.With(pool).Set(float64(len(d.removing)))
}
