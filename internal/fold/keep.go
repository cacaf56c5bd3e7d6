package fold

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
)

// wipeTime is how long nothing is made in a directory that somebody is about to empty.
const wipeTime = time.Second

// compactEvery is how long to wait after the archive could not be written anew.
const compactEvery = 10 * time.Minute

// keeping is the archive of one pool and what is needed to keep it.
type keeping struct {
	opts    *Options
	archive *archive.Archive
	dir     string
	// view is what a read-only folder has read of the archive.
	view *archive.View

	// wiped is when the archive was found removed, while it is.
	wiped time.Time
	// ballastDue is when to look next whether there is room for a ballast.
	ballastDue time.Time
	compactDue time.Time

	err   error
	retry time.Time
}

func (k *keeping) init(opts *Options) {
	k.opts, k.archive = opts, archive.New()
	k.dir = opts.ArchiveDir
	if k.dir == "" {
		k.dir = filepath.Join(opts.Dir, archive.HiddenDir)
	}
}

// State is what a folder tells about itself.
type State struct {
	// ReadOnly says that nothing is archived.
	ReadOnly bool
	// Open says that there is an archive that can be written, and Err why not, or why the last
	// fold failed.
	Open bool
	Err  error
	// Path is where the archive is or would be, Bytes its size.
	Path  string
	Bytes int64
}

// stateHolder has the part of a State that one goroutine sets and others read.
type stateHolder struct {
	mu      sync.Mutex
	foldErr error
	openErr error
}

func (f *Folder) setErr(err error) {
	f.foldErr = err
	f.state.mu.Lock()
	defer f.state.mu.Unlock()
	f.state.foldErr = err
}

func (f *Folder) setOpenErr(err error) {
	f.keeping.err = err
	f.state.mu.Lock()
	defer f.state.mu.Unlock()
	f.state.openErr = err
}

// State may be called by any goroutine that holds the pool's lock.
func (f *Folder) State() State {
	f.state.mu.Lock()
	defer f.state.mu.Unlock()
	s := State{ReadOnly: f.opts.ReadOnly, Open: f.keeping.archive.Attached(), Path: f.keeping.archive.Path(), Bytes: f.keeping.archive.SizeBytes()}
	if s.Err = f.state.foldErr; s.Err == nil {
		s.Err = f.state.openErr
	}
	if v := f.keeping.view; v != nil {
		s.Path, s.Bytes = v.Path(), v.SizeBytes()
	}
	return s
}

// View returns what a read-only folder has read of the archive, nil before Open.
func (f *Folder) View() *archive.View { return f.keeping.view }

// Fatal reports whether an error of Open must keep a daemon from starting.
func Fatal(err error) bool {
	return errors.Is(err, archive.ErrLocked) || errors.Is(err, archive.ErrNewer)
}

// Open opens the archive if it is not, or is no longer the one at its path. Call it now and
// then. It logs what goes wrong; starting says that the caller tells of an error that is Fatal.
func (f *Folder) Open(starting bool) error {
	k, now, log := &f.keeping, f.opts.Now(), f.opts.Logger
	switch {
	case f.opts.ReadOnly:
		return f.read()
	case k.archive.Attached() && !k.archive.InPlace():
		log.Warn("archive was removed with its directory; it is written anew")
		if err := k.archive.Detach(); err != nil {
			log.Warn("close archive", zap.Error(err))
		}
		k.wiped = now
	case k.archive.Attached() && f.place.InPlace():
		k.wiped = time.Time{}
		return nil
	case now.Before(k.retry), now.Before(f.retry) && f.foldErr != nil:
		return k.err
	}
	if _, err := os.Stat(f.opts.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing there to keep an archive for
	}
	if f.place.Taken() && !f.place.InPlace() && k.wiped.IsZero() {
		k.wiped = now
	}
	if !k.wiped.IsZero() && now.Sub(k.wiped) < wipeTime {
		// Somebody removes the directory's contents, and perhaps the directory next, which would
		// fail if it filled again meanwhile.
		return nil
	}
	k.wiped = time.Time{}
	if err := f.open(now); err != nil {
		k.retry = now.Add(retryAfter)
		unreadable := f.readForNow(err)
		// What keeps a daemon from starting is returned, and told once, there.
		told := starting && Fatal(err)
		if !told && (k.err == nil || k.err.Error() != err.Error()) {
			log.Error("archive cannot be opened; no file is removed until it can", zap.Error(err))
			if unreadable != nil {
				log.Error("archive cannot be read; what is archived is missing", zap.Error(unreadable))
			}
		}
		f.setOpenErr(err)
		return err
	}
	if k.err != nil {
		log.Info("archive is open again")
	}
	f.setOpenErr(nil)
	stats := k.archive.Stats()
	log.Info("archive is open", zap.String("path", k.archive.Path()), zap.Int("series", k.archive.Totals().Series()), zap.Uint64("files_folded", stats.Files))
	k.keepBallast(now)
	return nil
}

// open takes the directory and opens the archive, if it is not; one that is damaged is set
// aside.
func (f *Folder) open(now time.Time) error {
	k := &f.keeping
	if err := f.place.Take(); err != nil {
		return err
	}
	if err := f.place.TakeOver(); err != nil {
		return err
	}
	if k.archive.Attached() {
		return nil
	}
	if err := f.makeDir(); err != nil {
		return err
	}
	attach := func() (err error) {
		f.pool.Change(func() { err = k.archive.Attach(k.dir) })
		return err
	}
	err := attach()
	if !errors.Is(err, archive.ErrDamaged) {
		return err
	}
	name, moveErr := archive.SetAside(k.dir, now)
	if moveErr != nil {
		return errors.Join(err, moveErr)
	}
	f.opts.Metrics.setAside.Inc()
	f.opts.Logger.Error("ARCHIVE IS DAMAGED and was set aside; what it held is missing from the totals, unless it is in memory",
		zap.String("kept_as", name), zap.Error(err))
	return attach()
}

// makeDir makes the directory of the archive, but never the watched one, which is the
// application's: it may be removing it at this moment, to make it anew with a mode of its own.
func (f *Folder) makeDir() error {
	missing := []string{f.keeping.dir}
	mkdir := os.MkdirAll
	if within, err := filepath.Rel(f.opts.Dir, f.keeping.dir); err == nil && filepath.IsLocal(within) {
		missing, mkdir = nil, os.Mkdir
		for path := f.keeping.dir; within != "."; within = filepath.Dir(within) {
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
func (f *Folder) readForNow(err error) error {
	k := &f.keeping
	if Fatal(err) || !k.archive.Totals().Empty() {
		return nil
	}
	view, err := archive.Read(k.dir)
	if err != nil || view.Totals().Empty() {
		return err
	}
	f.pool.Change(func() { k.archive = view.Archive })
	f.opts.Logger.Info("archive is served as it was found", zap.Int("series", k.archive.Totals().Series()))
	return nil
}

// read reads the archive once, for one who only looks.
func (f *Folder) read() error {
	k := &f.keeping
	if k.view != nil {
		return k.err
	}
	view, err := archive.Read(k.dir)
	f.setOpenErr(err)
	if err != nil {
		f.opts.Logger.Error("archive cannot be read; what is archived is missing", zap.Error(err))
	}
	f.pool.Change(func() { k.view, k.archive = view, view.Archive })
	return err
}

// compact writes the archive anew if that makes its file much smaller: in a tmpfs the files of
// a large backlog would otherwise take up room for ever. It waits until all of them are gone.
func (f *Folder) compact(now time.Time) {
	k := &f.keeping
	if len(f.removing) > 0 || k.archive.Pending() || now.Before(k.compactDue) {
		return
	}
	size, used := k.archive.SizeBytes(), k.archive.UsedBytes()
	if used == 0 || size-used <= f.opts.SpareBytes+3*used {
		return
	}
	k.compactDue = now.Add(compactEvery)
	if err := f.do("compact", k.archive.Compact); err != nil {
		f.opts.Metrics.compactErrors.Inc()
		f.opts.Logger.Warn("archive cannot be written anew to make its file smaller; it is tried again later",
			zap.Int64("bytes", size), zap.Int64("used", used), zap.Error(err))
		return
	}
	f.opts.Metrics.compactions.Inc()
	f.opts.Logger.Info("archive was written anew; its file is smaller", zap.Int64("bytes", k.archive.SizeBytes()), zap.Int64("before", size))
}

// The ballast is a file that only takes up room, so that there is some to give back when a
// directory is full of dead workers' files and the archive needs a few pages to take them.
const (
	ballastName  = "ballast"
	ballastBytes = 1 << 20
	// ballastPart is the part of a file system that a ballast may take at most.
	ballastPart = 16
)

func (k *keeping) ballastPath() string { return filepath.Join(k.dir, ballastName) }

// keepBallast makes a ballast if there is none and much more room than it takes.
func (k *keeping) keepBallast(now time.Time) {
	if now.Before(k.ballastDue) {
		return
	}
	k.ballastDue = now.Add(retryAfter)
	if _, err := os.Lstat(k.ballastPath()); !errors.Is(err, fs.ErrNotExist) || !k.archive.InPlace() {
		return // there is one, or somebody is about to remove it all
	}
	var st unix.Statfs_t
	if unix.Statfs(k.dir, &st) != nil {
		return
	}
	block := int64(st.Bsize) //nolint:unconvert // a uint32 on macOS
	size := min(ballastBytes, int64(st.Blocks)*block/ballastPart)
	if int64(st.Bavail)*block < 4*size {
		return
	}
	if err := os.WriteFile(k.ballastPath(), make([]byte, size), 0o600); err != nil {
		k.dropBallast(now) // not a part of it either
	}
}

// noRoom reports whether an error may come of a full file system. bbolt tells the cause of
// some errors in words only, so the file system is asked as well.
func (k *keeping) noRoom(err error) bool {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return true
	}
	var st unix.Statfs_t
	return unix.Statfs(k.dir, &st) == nil && int64(st.Bavail)*int64(st.Bsize) < ballastBytes //nolint:unconvert // Bsize is a uint32 on macOS
}

// dropBallast gives the ballast's room back and reports whether there was one.
func (k *keeping) dropBallast(now time.Time) bool {
	if err := os.Remove(k.ballastPath()); err != nil {
		return false
	}
	k.ballastDue = now.Add(retryAfter)
	k.opts.Logger.Warn("file system is full; gave up the room kept in reserve to archive dead workers' files", zap.String("path", k.ballastPath()))
	return true
}
