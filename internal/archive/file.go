package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// lockTimeout is how long Open waits for another process to let go: a daemon that is being
// replaced by the next one.
const lockTimeout = 500 * time.Millisecond

// lockRetry is how long to wait between two attempts to lock.
const lockRetry = 20 * time.Millisecond

// lock opens the archive in dir and locks it, with bbolt's own kind of lock, so that it is
// known to be still before bbolt believes what it holds. The lock goes with the file's
// descriptor. A file that got another name while we waited for its lock is not the archive
// any more.
func lock(dir string) (*os.File, error) {
	path := filepath.Join(dir, FileName)
	for deadline := time.Now().Add(lockTimeout); ; {
		f, err := openRegular(path, os.O_RDWR)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			if same, err := leadsTo(path, f); same && err == nil {
				return f, nil
			} else if err != nil {
				return nil, errors.Join(err, f.Close())
			}
		}
		if closeErr := f.Close(); closeErr != nil {
			return nil, closeErr
		}
		switch {
		case err != nil && !errors.Is(err, unix.EWOULDBLOCK):
			return nil, &os.PathError{Op: "lock", Path: path, Err: err}
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%w: %s", ErrLocked, readOwner(dir))
		case err != nil:
			time.Sleep(lockRetry)
		}
	}
}

// leadsTo reports whether the file at the path is the one that is open.
func leadsTo(path string, f *os.File) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	there, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(open, there), err
}

// openRegular opens a file that others may have put there: it follows no link, which might
// lead anywhere, and does not wait for the other end of a pipe.
func openRegular(path string, flag int) (*os.File, error) {
	f, err := os.OpenFile(path, flag|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: path, Err: errNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

var errNotRegular = errors.New("not a regular file")

// open opens the archive in dir, locked and checked, and makes one if there is none.
func open(dir string) (*os.File, error) {
	f, err := lock(dir)
	for range 10 { // once, unless others make and remove archives at the same time
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err := create(dir); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		f, err = lock(dir)
	}
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = checkPages(f, info.Size())
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// create makes an empty archive in dir, in one step and durably. It replaces nothing: the
// error is fs.ErrExist then. On error nothing is left, not even half an archive when the
// disk is full.
func create(dir string) (err error) {
	removeHalfMade(dir)
	tmp, _, err := New().build(dir, nil)
	if err != nil {
		return err
	}
	if err := renameNoReplace(tmp, filepath.Join(dir, FileName)); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return SyncDir(dir)
}

// build writes all of an archive that has no file to a new one in dir, durably, and returns
// its path and what was written. A file without a commit to be told by counts as one that
// nobody has written to.
func (a *Archive) build(dir string, commit []byte) (path string, w write, err error) {
	f, err := os.CreateTemp(dir, FileName+".new-*")
	if err != nil {
		return "", w, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	db, err := openBolt(f, false)
	if err != nil {
		return "", w, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		w = write{a: a, b: NewBatch(time.Time{}), tx: tx, txid: tx.ID(), commit: commit}
		return w.run()
	})
	return f.Name(), w, errors.Join(err, db.Close())
}

// openBolt opens a bbolt file that is open already. The database owns it from now on; on
// error it is closed.
func openBolt(f *os.File, readOnly bool) (db *bolt.DB, err error) {
	defer func() {
		if db == nil { // an error, or a panic
			f.Close() //nolint:errcheck // bbolt has closed it in most cases
		}
	}()
	db, err = bolt.Open(f.Name(), 0o600, &bolt.Options{
		ReadOnly: readOnly, PageSize: pageBytes, Timeout: lockTimeout, NoStatistics: true,
		OpenFile: func(string, int, os.FileMode) (*os.File, error) { return f, nil },
	})
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return db, err
}

// SetAside renames an archive that cannot be used, under a name with the time that is not
// used yet, and returns that name. Nothing is lost that somebody could still read.
func SetAside(dir string, now time.Time) (string, error) {
	return aside(dir, "damaged", now, renameNoReplace)
}

// Reset starts anew: in place of the archive in dir there is an empty one, and the old one,
// damaged or not, is kept under a name with the time, which is returned. staged are the
// names of files in the staging; those of them that were folded into the old archive do
// not count for the new one either, except with what they gain. The error is, or wraps,
// ErrLocked while another process has the archive open, fs.ErrNotExist where there is none.
func Reset(dir string, staged []string, now time.Time) (kept string, err error) {
	err = guard(fmt.Sprintf("reset archive %q", filepath.Join(dir, FileName)), func() (err error) {
		held, err := lock(dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, held.Close()) }()
		old, err := Read(dir)
		if err != nil && !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			return err
		}
		fresh := New()
		for _, name := range staged {
			if values, ok := old.Baseline(name); ok {
				fresh.records[name] = values
				fresh.unsavedRecords[name] = true
			}
		}
		tmp, _, err := fresh.build(dir, newID())
		if err != nil {
			return err
		}
		// With a second name for the old one there is always an archive in place.
		if kept, err = aside(dir, "reset", now, os.Link); err != nil {
			return errors.Join(err, os.Remove(tmp))
		}
		if err := os.Rename(tmp, filepath.Join(dir, FileName)); err != nil {
			return errors.Join(err, os.Remove(tmp), os.Remove(kept))
		}
		return SyncDir(dir)
	})
	return kept, err
}

// aside gives the archive a name that says why and when, by a function that fails with
// fs.ErrExist if it is taken.
func aside(dir, why string, now time.Time, rename func(from, to string) error) (string, error) {
	from := filepath.Join(dir, FileName)
	for i := range 1000 {
		to := fmt.Sprintf("%s.%s-%s", from, why, now.UTC().Format("20060102T150405Z"))
		if i > 0 {
			to += fmt.Sprintf("-%d", i)
		}
		err := rename(from, to)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("set archive aside: %w", err)
		}
		return to, nil
	}
	return "", fmt.Errorf("set archive %q aside: no free name", from)
}

// SetAsides lists the names of the files in dir that SetAside and Reset have kept.
func SetAsides(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		for _, why := range []string{"damaged", "reset"} {
			if ok, _ := filepath.Match(FileName+"."+why+"-*", e.Name()); ok {
				names = append(names, e.Name())
			}
		}
	}
	return names, err
}
