package fold

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/mirror"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// A Pool has the files, and serves what they and the archive hold. Every method takes the
// pool's lock for a moment by itself.
type Pool interface {
	// Offer returns files that may be folded now, up to the limit, and whether there are more.
	// Nameless orphans are offered whatever the limit is. Files under a name of their own get
	// the name of their record from name.
	Offer(limit Limit, name func(base string) string) (files []*File, more bool)
	// Staged says that files were renamed to the names of their records.
	Staged(files []*File)
	// Return gives files back that were not folded: they count as before. A file with an error
	// is not to be offered again.
	Return(files []*File, err error)
	// Swap calls change, which brings the archive's values up to date, and has them count in
	// place of those of the files: in one step for all readers. The files are closed, or, where
	// a process may write to them, count on with their gains.
	Swap(files []*File, change func())
	// Change calls change, which changes the archive in memory, and shows what it holds then.
	Change(change func())
	// Found says that a staged file lies in the directory that is to be a source again, of its
	// gains if it has a record.
	Found(record string)
}

// A Limit bounds what is offered at once. What is beyond one file counts only with it.
type Limit struct {
	Files int
	// Bytes are the used bytes of the files.
	Bytes int64
}

// The limit of one transaction. Each batch makes scrapes wait for a moment, so where many
// files wait each batch has twice as many as the one before.
var (
	firstLimit = Limit{Files: 128, Bytes: 8 << 20}
	mostLimit  = Limit{Files: 1024, Bytes: 16 << 20}
)

const (
	// removeAfter is how long a folded file is kept for an opener that is under way between
	// looking up its name and opening it: an eternity for the kernel.
	removeAfter = time.Second
	// removeSoon is removeAfter where room is short.
	removeSoon = 100 * time.Millisecond
	// looksPerStep is how many folded files one Step tries to remove.
	looksPerStep = 2048
)

// Options of a Folder.
type Options struct {
	// Dir is the watched directory.
	Dir string
	// ArchiveDir is where the archive is. Default: in the watched directory.
	ArchiveDir string
	// ReadOnly has the folder change nothing on any disk: the archive is read once, and what
	// nameless orphans hold is kept in memory.
	ReadOnly bool
	// Mirror says that what is archived is kept in files of the client, too, for others who read the
	// directory: see mirror.go.
	Mirror bool
	// MirrorWait is how long files wait for a moment in which nobody reads the directory, and MirrorFiles
	// how many wait at most; more, and all are moved. Below 0: any. Default: DefaultMirrorWait and
	// DefaultMirrorFiles.
	MirrorWait  time.Duration
	MirrorFiles int
	// Hub tells who reads the directory; one is shared by many pools. Default: one of its own.
	Hub *watch.Hub
	// SpareBytes of the archive's file may be out of use before it is written anew. Default:
	// 1 MiB. Below 0 it is written anew as soon as all is folded.
	SpareBytes int64
	// Logger and Metrics must not be nil.
	Logger  *zap.Logger
	Metrics *Metrics
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// A Folder folds the files of one directory. Its methods are for the goroutine that tends the
// pool; those of State and Archive say otherwise.
type Folder struct {
	opts   Options
	pool   Pool
	place  *Place
	keeper *archive.Keeper
	// archive is the keeper's, or what a read-only folder has read in view.
	archive *archive.Archive
	view    *archive.View
	openErr error
	retry   time.Time // when to open next
	wiped   time.Time // when the directory was found replaced
	// removing are the folded files that wait to be removed, by record.
	removing map[string]folded
	limit    Limit
	// short says that the archive met a full file system, and has not grown since.
	short   bool
	foldErr error
	state   stateHolder
	// mirror is open while the directory is ours, and linked are the staged files that have their own
	// names, too, by record. Where no mirror is wanted it is closed once what one has left is gone.
	mirror *mirror.Mirror
	linked map[string]*link
	// mirrorFiles is what is known of files by their names; it is for the pool, under its lock.
	mirrorFiles map[string]mirrorFile
	// settled says that archive and mirror files were brought together, unmirrored that it was told
	// that some files cannot be mirrored.
	settled, unmirrored bool
	mirrorErr           error     // of the last move
	resyncs             uint64    // as told of the mirror
	awaited             time.Time // when a reader was waited for last
	mirrored            mirrorState
	both                twoNames
	// Step is called before each change that a fold makes outside memory, with its name; an
	// error is taken for that of the change, which is then not made. For tests; nil elsewhere.
	Step func(name string) error
}

// folded is a file that waits to be removed.
type folded struct {
	due time.Time
	// recorded says that there is a record of its values. Nothing was kept of others.
	recorded bool
}

// New returns a folder that has not opened anything. Tell it the pool before any other call.
func New(opts Options) *Folder {
	if opts.SpareBytes == 0 {
		opts.SpareBytes = 1 << 20
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.MirrorWait == 0 {
		opts.MirrorWait = DefaultMirrorWait
	}
	if opts.MirrorFiles == 0 {
		opts.MirrorFiles = DefaultMirrorFiles
	}
	f := &Folder{
		opts: opts, place: NewPlace(opts.Dir), removing: map[string]folded{}, mirrorFiles: map[string]mirrorFile{},
		limit: firstLimit,
	}
	f.keeper = archive.NewKeeper(archive.KeeperOptions{Watched: opts.Dir, Dir: opts.ArchiveDir, SpareBytes: opts.SpareBytes})
	f.archive = f.keeper.Archive()
	return f
}

// ReadOnly reports whether the folder changes nothing on any disk.
func (f *Folder) ReadOnly() bool { return f.opts.ReadOnly }

// Path returns where a staged file lies.
func (f *Folder) Path(record string) string { return f.place.Path(record) }

// Serve says which pool's files are folded.
func (f *Folder) Serve(p Pool) { f.pool = p }

// Archive returns what is archived. Its memory changes only inside of Pool.Swap and
// Pool.Change, so whoever holds the pool's lock may read Totals and records.
func (f *Folder) Archive() *archive.Archive { return f.archive }

// Removing reports whether a staged file is folded and waits to be removed. It is for the
// pool, under its lock.
func (f *Folder) Removing(record string) bool {
	_, ok := f.removing[record]
	return ok
}

// SetSpare is archive.Keeper.SetSpare.
func (f *Folder) SetSpare(bytes int64) { f.keeper.SetSpare(bytes) }

// RemovingFiles is how many folded files wait to be removed. It is for the pool, under its lock.
func (f *Folder) RemovingFiles() int { return len(f.removing) }

// Busy reports whether folded files wait to be removed, or values to be written.
func (f *Folder) Busy() bool { return len(f.removing) > 0 || f.archive.Pending() }

// Idle reports whether there is nothing to do but to fold what is dead: all went well the last time,
// and nothing waits.
func (f *Folder) Idle() bool {
	return !f.Busy() && f.openErr == nil && f.foldErr == nil && (f.opts.ReadOnly || f.archive.Attached() && f.keeper.Rests())
}

// do makes one change outside memory.
func (f *Folder) do(name string, change func() error) error {
	if f.Step != nil {
		if err := f.Step(name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return change()
}

// Fold folds some files. It returns true as long as it should be called again soon.
func (f *Folder) Fold() (more bool) {
	now := f.opts.Now()
	limit := f.limit
	if !f.ready(now) {
		limit = Limit{}
	}
	var c archive.Committed
	if limit.Files > 0 {
		if err := f.removeFolded(now); err != nil {
			c = f.keeper.Failed(now, err, 0)
			limit = Limit{}
		}
	}
	files, more := f.pool.Offer(limit, f.place.NewName)
	nameless, named := split(files)
	f.absorb(nameless, now)
	if limit.Files == 0 {
		f.pool.Return(named, nil)
		named, more = nil, false
	}
	if limit.Files > 0 {
		c = f.commit(named, now)
	}
	if c.Err != nil {
		return f.failed(c, len(named))
	}
	if limit.Files > 0 {
		f.succeeded(now, len(named) > 0, more)
	}
	return more && len(named) > 0
}

// split tells files apart to which no name can lead.
func split(files []*File) (nameless, named []*File) {
	for _, f := range files {
		if f.Orphan && f.Identity == nil {
			nameless = append(nameless, f)
		} else {
			named = append(named, f)
		}
	}
	return nameless, named
}

// ready reports whether the archive can be written.
func (f *Folder) ready(now time.Time) bool {
	// What is not in its place was removed a moment ago, and what is written to it is lost.
	return !f.opts.ReadOnly && f.place.Taken() && now.Sub(f.wiped) >= wipeTime && f.keeper.CanWrite(now) && f.archive.InPlace()
}

// failed takes note of an error.
func (f *Folder) failed(c archive.Committed, files int) (again bool) {
	err := c.Err
	if c.Full || errors.Is(err, archive.ErrTooLarge) {
		f.short = f.short || c.Full
		if again = files > 1; again {
			f.limit = Limit{Files: max(1, files/2), Bytes: max(1, f.limit.Bytes/2)}
		}
	}
	if c.Ballast {
		f.opts.Logger.Warn("file system is full; gave up the room kept in reserve to archive dead workers' files")
		again = true
	}
	f.opts.Metrics.errors.Inc()
	switch told := f.foldErr != nil && f.foldErr.Error() == err.Error(); {
	case told:
	case again:
		f.opts.Logger.Warn("dead workers' files cannot be archived at once for want of room; trying fewer", zap.Error(err))
	case c.Full:
		f.opts.Logger.Error("dead workers' files cannot be archived, because the file system is full; they stay and count. Make room, or keep the archive elsewhere by --archive.dir", zap.Error(err))
	default:
		f.opts.Logger.Error("dead workers' files cannot be archived; they stay and count", zap.Error(err))
	}
	f.setErr(err)
	return again
}

// succeeded takes note that all went well.
func (f *Folder) succeeded(now time.Time, folded, more bool) {
	if f.foldErr != nil {
		f.opts.Logger.Info("dead workers' files can be archived again")
		f.setErr(nil)
	}
	if folded {
		f.short = false
	} else if len(f.removing) == 0 {
		f.tidy(now)
	}
	f.limit = firstLimit
	if more && folded {
		f.limit = Limit{Files: min(2*f.limit.Files, mostLimit.Files), Bytes: min(2*f.limit.Bytes, mostLimit.Bytes)}
	}
}

// absorb keeps in memory what nameless orphans hold, until it can be written: whether or not
// the archive can be, their room is given back.
func (f *Folder) absorb(files []*File, now time.Time) {
	for _, o := range files {
		b := archive.NewBatch(now)
		if err := o.Collect(b); err != nil {
			f.opts.Logger.Warn("removed file cannot be read; what was read of it before still counts", zap.Error(err))
			f.pool.Return([]*File{o}, err)
			continue
		}
		f.pool.Swap([]*File{o}, func() { f.archive.Absorb(b) })
	}
}

// commit archives files: stage to swap.
func (f *Folder) commit(files []*File, now time.Time) (c archive.Committed) {
	start := time.Now()
	files, err := f.stage(files)
	if err != nil {
		f.pool.Return(files, nil)
		return f.keeper.Failed(now, err, len(files))
	}
	b, files, err := f.collect(files, now)
	if err != nil {
		f.pool.Return(files, nil)
		return archive.Committed{Err: err}
	}
	var bytes int64
	for _, file := range files {
		bytes += file.Source.Size()
	}
	if len(files) > 0 {
		err = f.do("sync", f.place.Sync)
	}
	if err == nil && (len(files) > 0 || f.archive.Pending()) {
		err = f.do("commit", func() error {
			c = f.keeper.Commit(now, b, f.swap(files, now))
			return nil
		})
	}
	if err != nil {
		c = f.keeper.Failed(now, err, len(files))
	}
	if c.Err != nil {
		if errors.Is(c.Err, archive.ErrTooLarge) && len(files) == 1 {
			f.pool.Return(files, c.Err)
		} else {
			f.pool.Return(files, nil)
		}
		return c
	}
	if n, keys := b.NaNs(); n > 0 {
		f.opts.Metrics.nans.Add(float64(n))
		f.opts.Logger.Warn("values that are not a number were left out of archived sums", zap.Int("values", n), zap.Strings("keys", keys))
	}
	if len(files) > 0 {
		m := f.opts.Metrics
		m.folds.Inc()
		m.files.Add(float64(len(files)))
		m.bytes.Add(float64(bytes))
		m.seconds.Observe(time.Since(start).Seconds())
		m.last.With(m.pool).Set(float64(now.UnixMilli()) / 1000)
		f.opts.Logger.Debug("dead workers' files archived", zap.Int("files", len(files)), zap.Duration("duration", time.Since(start)))
	}
	return c
}

// mostCollects is how often a batch is begun anew because a file of it cannot be read.
const mostCollects = 4

// collect reads the files into a batch. It returns those that are in it; the others are given
// back, each with its error: a file that cannot be read costs the others no more than to be read
// again. An error says that files kept breaking while they were read.
func (f *Folder) collect(files []*File, now time.Time) (b *archive.Batch, good []*File, err error) {
	for range mostCollects {
		b, err = archive.NewBatch(now), nil
		for _, file := range files {
			if err = file.Collect(b); err != nil {
				break
			}
		}
		if err == nil {
			return b, files, nil
		}
		// The batch is of no use any more. Each file is tried by itself, so that however many are
		// bad, all of them are known now.
		good = nil
		for _, file := range files {
			if err := file.Collect(archive.NewBatch(now)); err != nil {
				f.opts.Metrics.errors.Inc()
				f.pool.Return([]*File{file}, err)
				continue
			}
			good = append(good, file)
		}
		files = good
	}
	return nil, files, err
}

// stage renames files, and returns those that are to be folded now.
func (f *Folder) stage(files []*File) (ready []*File, err error) {
	var staged []*File
	for i, file := range files {
		if file.Staged || file.Orphan {
			ready = append(ready, file)
			continue
		}
		same, stageErr := f.stageOne(file)
		switch {
		case errors.Is(stageErr, unix.ENAMETOOLONG):
			f.opts.Logger.Warn("file of a dead worker cannot be archived, because its name is too long; it stays and counts",
				zap.String("path", file.Path))
			f.pool.Return([]*File{file}, stageErr)
		case stageErr != nil:
			f.pool.Staged(staged)
			f.pool.Return(files[i:], nil)
			return ready, stageErr
		case !same:
			f.pool.Return([]*File{file}, nil)
		default:
			file.Staged = true
			staged, ready = append(staged, file), append(ready, file)
		}
	}
	f.pool.Staged(staged)
	return ready, nil
}

// stageOne reports whether it was this file that was moved: between the last listing and now
// its name may have got to another one.
func (f *Folder) stageOne(file *File) (same bool, err error) {
	err = f.do("stage", func() error { return f.stageName(file) })
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // the file was removed: the next listing will say
	}
	if err != nil {
		return false, err
	}
	id := file.Source.Identity()
	if same, err = f.place.Is(file.Record, id.Dev, id.Ino); same || err != nil {
		return same, err
	}
	f.opts.Logger.Info("file was replaced while it was about to be archived", zap.String("path", file.Path))
	if err := f.unstageName(file); err != nil {
		// Its name is taken again, so it stays where it is, and counts.
		f.pool.Found(file.Record)
	}
	return false, nil
}

// swap returns what a commit is followed by: in one step for all readers the archive has the
// values, and the files have not.
func (f *Folder) swap(files []*File, now time.Time) func(change func()) {
	after := removeAfter
	if f.short {
		after = removeSoon
	}
	return func(change func()) {
		f.pool.Swap(files, func() {
			change()
			for _, file := range files {
				if file.Staged {
					f.removing[file.Record] = folded{now.Add(after), file.recorded}
				}
			}
		})
	}
}

// removeFolded removes folded files that are still as they were.
func (f *Folder) removeFolded(now time.Time) error {
	var gone []string
	var errs []error
	looked := 0
	if f.Mirrors() && len(f.linked) > 0 {
		var err error
		if gone, err = f.moveLinked(now); err != nil {
			errs = append(errs, err)
		}
	}
	for record, file := range f.removing {
		if now.Before(file.due) || f.linked[record] != nil {
			continue
		}
		if looked++; looked > looksPerStep || len(errs) > 0 {
			break
		}
		switch removed, err := f.removeOne(record, file.recorded); {
		case err != nil:
			errs = append(errs, err)
		case removed:
			gone = append(gone, record)
		default:
			f.reopened(record)
		}
	}
	if len(gone) == 0 {
		return errors.Join(errs...)
	}
	if err := f.do("sync", f.place.Sync); err != nil {
		return errors.Join(append(errs, err)...)
	}
	f.pool.Change(func() {
		for _, record := range gone {
			delete(f.removing, record)
			f.archive.Forget(record)
		}
	})
	for _, record := range gone {
		f.unlink(record)
	}
	return errors.Join(errs...)
}

// errReopened says that a file to be removed was opened by a worker.
var errReopened = errors.New("file was opened for writing")

// lookEvery is after how many entries, read under a lease, it is asked whether somebody waits.
const lookEvery = 1024

// removeOne removes a folded file, unless somebody has opened it since.
func (f *Folder) removeOne(record string, recorded bool) (removed bool, err error) {
	base, _ := BaseOf(record)
	name, err := store.ParseName(base)
	if err != nil {
		return false, err
	}
	file, err := store.Open(f.place.Path(record), name, anyLimits)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }() // lets go of the lease, too
	fd := int(file.Fd())
	if granted, err := watch.TryLease(fd); err != nil || !granted {
		return false, err
	}
	if recorded {
		same, err := f.unchanged(record, name, file)
		if err != nil || !same {
			return false, err
		}
	}
	id := file.Identity()
	err = f.do("remove", func() error {
		if broken, err := watch.LeaseBroken(fd); err != nil || broken {
			return errors.Join(errReopened, err) // somebody waits for us to let go
		}
		return f.place.Remove(record, id.Dev, id.Ino)
	})
	if errors.Is(err, errReopened) {
		return false, nil
	}
	return err == nil, err
}

// unchanged reports whether a file of which we hold the lease has the values that are
// recorded. It gives up as soon as somebody waits for the lease.
func (f *Folder) unchanged(record string, name store.SourceName, file *store.File) (bool, error) {
	space, _ := archive.SpaceOf(name.Type, name.Mode, name.ID)
	baseline, ok := f.archive.Baseline(record)
	if !ok {
		return false, nil
	}
	c := archive.Compare(space, baseline)
	n, broken := 0, false
	err := file.Walk(func(e store.Entry) {
		if n++; n%lookEvery == 0 && !broken {
			b, err := watch.LeaseBroken(int(file.Fd()))
			if broken = b || err != nil; broken {
				// Whoever waits for us goes on now. The rest is read without a lease, for nothing.
				watch.ReleaseLease(int(file.Fd())) //nolint:errcheck // it was broken
			}
		}
		c.Add(e.Value, e.Stamp)
	})
	if err != nil || broken {
		return false, nil //nolint:nilerr // it is read as a source again, which tells of the error
	}
	return c.Equal(), nil
}

// Drop takes the archived series that match says out of the archive, for readers in one step, and
// durably. It returns how many. Where the error is not archive.ErrDetached, memory has changed, and
// the next commit writes it.
func (f *Folder) Drop(match func(s archive.Space, raw string) bool) (dropped int, err error) {
	if f.opts.ReadOnly || !f.archive.Attached() {
		return 0, archive.ErrDetached
	}
	dropped = f.archive.DropSeries(match, f.pool.Change)
	if dropped == 0 {
		return 0, nil
	}
	if c := f.commit(nil, f.opts.Now()); c.Err != nil {
		f.failed(c, 0)
		return dropped, c.Err
	}
	return dropped, nil
}

// Finish writes what is in memory alone because the archive was removed a short while ago: the next
// daemon would not know it. Elsewhere it does nothing. It comes before Close, which cannot call the
// pool.
func (f *Folder) Finish() {
	if f.opts.ReadOnly || !f.keeper.Hurry() {
		return
	}
	f.retry = time.Time{}
	if f.Open(false) == nil && f.keeper.State() == archive.Ready {
		f.wiped = time.Time{}
		f.Fold()
	}
}

// Close gives up the archive and the directory. SIGKILL in its place loses nothing but what is in
// memory alone because somebody has just removed the archive.
func (f *Folder) Close() error {
	if f.view != nil {
		f.view.Release()
	}
	f.closeMirror()
	return errors.Join(f.keeper.Close(), f.place.Close())
}
