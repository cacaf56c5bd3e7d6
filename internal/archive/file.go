package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
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

// lock opens the archive and locks it, with bbolt's own kind of lock, so that it is
// known to be still before anybody believes what it holds. The lock goes with the file's
// descriptor. A file that got another name while we waited for its lock is not the archive
// any more.
func (p *Place) lock() (*os.File, error) {
	name := p.name(archiveName)
	for deadline := time.Now().Add(lockTimeout); ; {
		f, err := p.open(name, unix.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
		if err == nil {
			if same, err := p.leadsTo(name, f); same && err == nil {
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
			return nil, &os.PathError{Op: "lock", Path: p.ArchivePath(), Err: err}
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%w: %s", ErrLocked, p.Owner())
		case err != nil:
			time.Sleep(lockRetry)
		}
	}
}

var errNotRegular = errors.New("not a regular file; remove it")

// openArchive opens the archive, locked and checked, and makes one if there is none. It returns
// what the file holds, too.
func (p *Place) openArchive() (*os.File, *contents, error) {
	f, err := p.lock()
	for range 10 { // once, unless others make and remove archives at the same time
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err := p.createArchive(); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, err
		}
		f, err = p.lock()
	}
	if err != nil {
		return nil, nil, err
	}
	p.removeSecondNames(f)
	var c *contents
	if err = p.checkWritable(f); err == nil {
		c, err = loadFile(f)
	}
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return f, c, nil
}

func loadFile(f *os.File) (*contents, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return load(f, info.Size())
}

// removeSecondNames ends a Reset that a crash has stopped half way: the archive has the name
// under which it was to be kept, too.
func (p *Place) removeSecondNames(f *os.File) {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Nlink < 2 {
		return
	}
	names, _ := p.SetAsides()
	for _, name := range names {
		if same, err := p.leadsTo(name, f); same && err == nil {
			p.remove(name) //nolint:errcheck // then it is not safe to write to, which will be said
		}
	}
}

// createArchive makes an empty archive, in one step and durably. It replaces nothing: the
// error is fs.ErrExist then. On error nothing is left, not even half an archive when the
// disk is full.
func (p *Place) createArchive() (err error) {
	p.removeHalfMade()
	tmp, _, err := New().build(p, nil)
	if err != nil {
		return err
	}
	if err := p.renameNoReplace(p.fd(), tmp, p.name(archiveName)); err != nil {
		return errors.Join(err, p.remove(tmp))
	}
	return p.sync()
}

// build writes all of an archive that has no file to a new one in the place, durably, and
// returns its name and what was written. A file without a commit to be told by counts as one
// that nobody has written to.
func (a *Archive) build(p *Place, commit []byte) (name string, w *write, err error) {
	f, tmp, err := p.createTemp()
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.remove(tmp))
		}
	}()
	db, err := openBolt(f, false)
	if err != nil {
		return "", nil, err
	}
	err = db.Update(func(tx *bolt.Tx) error {
		w = &write{a: a, b: NewBatch(time.Time{}), tx: tx, txid: tx.ID(), commit: commit}
		return w.run()
	})
	return tmp, w, errors.Join(err, db.Close())
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
// used yet, and returns its path. Nothing is lost that somebody could still read.
func (p *Place) SetAside(now time.Time) (string, error) {
	name, err := p.aside(p, p.name(archiveName), "damaged", now)
	if err != nil {
		return "", err
	}
	return p.pathOf(name), p.sync()
}

// SetAside is Place.SetAside for a directory that is for one archive alone.
func SetAside(dir string, now time.Time) (string, error) {
	p, err := OpenPlace(dir)
	if err != nil {
		return "", err
	}
	defer p.Close() //nolint:errcheck // see SetAside
	return p.SetAside(now)
}

// Reset is Place.Reset for a directory that is for one archive alone.
func Reset(dir string, staged []string, now time.Time) (kept string, err error) {
	p, err := OpenPlace(dir)
	if err != nil {
		return "", fmt.Errorf("reset archive: %w", err)
	}
	defer p.Close() //nolint:errcheck // what was done is durable
	return p.Reset(staged, now)
}

// Reset starts anew: in place of the archive there is an empty one, and the old one,
// damaged or not, is kept under a name with the time, whose path is returned. staged are the
// names of staged files; those of them that were folded into the old archive do
// not count for the new one either, except with what they gain; the same goes for files known
// by their identity. The error is, or wraps, ErrLocked while another process has the archive
// open, fs.ErrNotExist where there is none.
func (p *Place) Reset(staged []string, now time.Time) (kept string, err error) {
	err = guard(fmt.Sprintf("reset archive %q", p.ArchivePath()), func() (err error) {
		held, err := p.lock()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, held.Close()) }()
		p.removeSecondNames(held)
		fresh := New()
		switch c, err := loadFile(held); {
		case err == nil:
			for key, r := range c.records {
				if isIdentity(key) {
					fresh.records[key] = r
				}
			}
			for _, name := range staged {
				if r := c.records[name]; r != nil {
					fresh.records[name] = r
				}
			}
			for key := range fresh.records {
				fresh.unsavedRecords[key] = true
			}
		case !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer):
			return err
		}
		tmp, _, err := fresh.build(p, newID())
		if err != nil {
			return err
		}
		name := p.name(archiveName)
		// With a second name for the old one there is always an archive in place.
		if kept, err = p.secondName("reset", now); err != nil {
			return errors.Join(err, p.remove(tmp))
		}
		if err := p.rename(tmp, name); err != nil {
			return errors.Join(err, p.remove(tmp), p.remove(kept))
		}
		kept = p.pathOf(kept)
		return p.sync()
	})
	return kept, err
}

// secondName gives the archive a second name that says why and when, and returns it.
func (p *Place) secondName(why string, now time.Time) (string, error) {
	name := p.name(archiveName)
	for i := range 1000 {
		to := fmt.Sprintf("%s.%s-%s", name, why, now.UTC().Format("20060102T150405Z"))
		if i > 0 {
			to += fmt.Sprintf("-%d", i)
		}
		err := unix.Linkat(p.fd(), name, p.fd(), to, 0)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("set archive aside: %w", &os.LinkError{Op: "link", Old: p.pathOf(name), New: p.pathOf(to), Err: err})
		}
		return to, nil
	}
	return "", fmt.Errorf("set archive %q aside: no free name", p.pathOf(name))
}

// SetAsides is Place.SetAsides for a directory that is for one archive alone.
func SetAsides(dir string) ([]string, error) {
	p, err := OpenPlace(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer p.Close() //nolint:errcheck // it was only read
	return p.SetAsides()
}

// removeHalfMade removes what crashes have left of archives that were being made. What
// is young may be of somebody who is in the middle of it now. What it cannot remove takes up
// some room, no more. It lists the place once a minute at most: there may be thousands of names,
// and a start asks twice.
func (p *Place) removeHalfMade() {
	if time.Since(p.listed) < time.Minute {
		return
	}
	p.listed = time.Now()
	names, _ := p.names()
	for _, name := range names {
		if !strings.HasPrefix(name, p.name(archiveName)+tempSuffix) {
			continue
		}
		var st unix.Stat_t
		if unix.Fstatat(p.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && time.Since(time.Unix(st.Mtim.Unix())) > time.Minute {
			p.remove(name) //nolint:errcheck // see above
		}
	}
}
