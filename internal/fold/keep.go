package fold

import (
	"errors"
	"io/fs"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
)

// wipeTime is how long nothing is done in a directory that somebody is about to empty.
const wipeTime = time.Second

// openRetry is how long to wait after the directory could not be taken.
const openRetry = 5 * time.Second

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
	f.openErr = err
	f.state.mu.Lock()
	defer f.state.mu.Unlock()
	f.state.openErr = err
}

// State may be called by any goroutine that holds the pool's lock.
func (f *Folder) State() State {
	f.state.mu.Lock()
	defer f.state.mu.Unlock()
	s := State{ReadOnly: f.opts.ReadOnly, Open: f.archive.Attached(), Path: f.archive.Path(), Bytes: f.archive.SizeBytes()}
	if s.Err = f.state.foldErr; s.Err == nil {
		s.Err = f.state.openErr
	}
	if f.view != nil {
		s.Path, s.Bytes = f.view.Path(), f.view.SizeBytes()
	}
	return s
}

// View returns what a read-only folder has read of the archive, nil before Open.
func (f *Folder) View() *archive.View { return f.view }

// Open takes the directory and opens the archive, if they are not, or are no longer in their
// places. Call it now and then. It logs what goes wrong; starting says that the caller tells of an
// error that is archive.Fatal.
func (f *Folder) Open(starting bool) error {
	now, log := f.opts.Now(), f.opts.Logger
	switch {
	case f.opts.ReadOnly:
		return f.read()
	case now.Before(f.retry):
		return f.openErr
	}
	if _, err := os.Stat(f.opts.Dir); errors.Is(err, fs.ErrNotExist) {
		return nil // nothing there to keep an archive for
	}
	if f.place.Taken() && !f.place.InPlace() {
		f.wiped = now // somebody made the directory anew
	}
	err := f.take()
	fresh := err != nil && (f.openErr == nil || f.openErr.Error() != err.Error())
	if err != nil {
		f.retry = now.Add(openRetry)
	} else {
		o := f.keeper.Open(now, f.pool.Change)
		f.tellOpened(&o)
		if f.archive != f.keeper.Archive() {
			f.pool.Change(func() { f.archive = f.keeper.Archive() })
		}
		err, fresh = o.Err, o.New
		if err == nil && !f.settled {
			if settleErr := f.settleMirror(now); settleErr != nil {
				log.Error("mirror files cannot be brought into order; it is tried again", zap.Error(settleErr))
			}
		}
		if o.ReadErr != nil && fresh {
			log.Error("archive cannot be read; what is archived is missing", zap.Error(o.ReadErr))
		}
	}
	// What keeps a daemon from starting is returned, and told once, there.
	if fresh && (!starting || !archive.Fatal(err)) {
		log.Error("archive cannot be opened; no file is removed until it can", zap.Error(err))
	}
	f.setOpenErr(err)
	return err
}

// take takes the directory, and moves what an earlier version staged.
func (f *Folder) take() error {
	if f.place.InPlace() {
		return nil
	}
	f.closeMirror()
	f.settled = false
	if err := f.place.Take(); err != nil {
		return err
	}
	if err := f.place.TakeOver(); err != nil {
		return err
	}
	return f.openMirror()
}

func (f *Folder) tellOpened(o *archive.Opened) {
	log := f.opts.Logger
	if o.Wiped {
		log.Warn("archive was removed by somebody else; it is written anew")
	}
	if o.SetAside != "" {
		f.opts.Metrics.setAside.Inc()
		log.Error("ARCHIVE IS DAMAGED and was set aside; what it held is missing from the totals, unless it is in memory",
			zap.String("kept_as", o.SetAside), zap.Error(o.Damage))
	}
	if !o.Opened {
		return
	}
	if o.Again {
		log.Info("archive is open again")
	}
	a := f.keeper.Archive()
	log.Info("archive is open", zap.String("path", a.Path()), zap.Int("series", a.Totals().Series()),
		zap.Uint64("files_folded", a.Stats().Files))
	f.tidy(f.opts.Now())
}

// read reads the archive once, for one who only looks.
func (f *Folder) read() error {
	if f.view != nil {
		return f.openErr
	}
	read := func() (*archive.View, error) { return archive.ReadHidden(f.opts.Dir) }
	if f.opts.ArchiveDir != "" {
		read = func() (*archive.View, error) { return archive.ReadHeld(f.opts.ArchiveDir) }
	}
	view, err := read()
	f.setOpenErr(err)
	if err != nil {
		f.opts.Logger.Error("archive cannot be read; what is archived is missing", zap.Error(err))
	}
	f.pool.Change(func() { f.view, f.archive = view, view.Archive })
	return err
}

// tidy does what can wait.
func (f *Folder) tidy(now time.Time) {
	m, log := f.opts.Metrics, f.opts.Logger
	var err error
	if f.keeper.Spares(now) {
		err = f.do("compact", func() error { return nil }) // a step, for tests
	}
	var t archive.Tidied
	if err == nil {
		t = f.keeper.Tidy(now, f.pool.Change)
		err = t.Err
	}
	if err != nil {
		m.compactErrors.Inc()
		log.Warn("archive cannot be written anew to make its file smaller; it is tried again later", zap.Error(err))
	}
	if t.Compacted {
		m.compactions.Inc()
		log.Info("archive was written anew; its file is smaller", zap.Int64("bytes", t.After), zap.Int64("before", t.Before))
	}
	if t.Forgotten > 0 {
		log.Info("records of files that left the directory were forgotten; they count in full if they come back",
			zap.Int("files", t.Forgotten))
	}
}
