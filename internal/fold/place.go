package fold

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
)

// Prefix begins the names of staged files. They lie in the watched directory itself: an
// application that empties it finds regular files only. They do not end in .db, so no client
// reads them.
const Prefix = ".aggregatord.staged."

// FileName returns the name in the directory of the file with a record's name.
func FileName(record string) string { return Prefix + record }

// RecordOf returns the record's name of a staged file, given its name in the directory.
func RecordOf(fileName string) (record string, ok bool) {
	record, ok = strings.CutPrefix(fileName, Prefix)
	return record, ok && record != ""
}

// BaseOf returns the name that a source file had before it was staged.
func BaseOf(record string) (base string, ok bool) {
	i := strings.LastIndex(record, ".")
	if i <= 0 {
		return "", false
	}
	return record[:i], true
}

// A Place is the watched directory of one pool, reached through one descriptor: whatever is
// put in its path's place, or in a name's place, no other directory is ever changed. It is
// for one goroutine.
type Place struct {
	path string
	run  string // tells the names of this run from those of all others
	next uint64
	held *os.File // the directory, locked; nil while it is not ours
}

// NewPlace returns the place at a path. It opens nothing yet.
func NewPlace(path string) *Place {
	id := make([]byte, 8)
	rand.Read(id)
	return &Place{path: path, run: hex.EncodeToString(id)}
}

// Path returns the path of a staged file, for messages and for opening it.
func (p *Place) Path(record string) string { return filepath.Join(p.path, FileName(record)) }

const (
	// lockTimeout is how long Take waits for another process to let go, such as a daemon that
	// is being replaced by the next one.
	lockTimeout = 500 * time.Millisecond
	// lockRetry is how long it waits between two attempts.
	lockRetry = 20 * time.Millisecond
)

// Take opens the directory and locks it (flock(2)) for this process until Close: two daemons
// would move each other's files away. The lock dies with its holder, and no file is made for
// it. The error wraps archive.ErrLocked while another process has it, and fs.ErrNotExist
// where there is no directory.
func (p *Place) Take() error {
	if p.InPlace() {
		return nil
	}
	if err := p.Close(); err != nil {
		return err
	}
	f, err := os.OpenFile(p.path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("take directory: %w", err)
	}
	if err := lockDir(f, p.path); err != nil {
		return errors.Join(err, f.Close())
	}
	p.held = f
	return nil
}

// lockDir locks an open directory. A file system without such locks is no error.
func lockDir(f *os.File, path string) error {
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("take directory %q: %w: %s has locked it; stop that first, as one daemon has a directory", path,
				archive.ErrLocked, holderOf(f))
		}
	}
}

// Holder names the process that has locked the directory ("process 12"), and tells whether one
// has. It changes nothing. It asks for the lock for a moment, in a way that a daemon that is
// just starting waits out.
func Holder(path string) (who string, held bool, err error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", false, fmt.Errorf("look for a daemon: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return holderOf(f), true, nil
	} else if err != nil {
		return "", false, fmt.Errorf("look for a daemon: %w", err)
	}
	return "", false, nil
}

// InPlace reports whether Take has the directory and its path still leads to it.
func (p *Place) InPlace() bool {
	if p.held == nil {
		return false
	}
	open, err := p.held.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(p.path)
	return err == nil && os.SameFile(open, there)
}

// Taken reports whether Take has the directory, which may have been replaced since.
func (p *Place) Taken() bool { return p.held != nil }

// Close lets go of the directory.
func (p *Place) Close() error {
	if p.held == nil {
		return nil
	}
	f := p.held
	p.held = nil
	return f.Close()
}

func (p *Place) fd() int {
	if p.held == nil {
		return -1 // the kernel says EBADF
	}
	return int(p.held.Fd())
}

// NewName returns a record's name for a source file that was never used before.
func (p *Place) NewName(base string) string {
	p.next++
	return base + "." + p.run + "-" + strconv.FormatUint(p.next, 36)
}

// Stage renames a source file to its hidden name. After nil the file has that name and no
// other, though not durably so before Sync; after an error it has the old one. It never
// replaces a file.
func (p *Place) Stage(base, record string) error {
	if err := renameNoReplace(p.fd(), base, FileName(record)); err != nil {
		return fmt.Errorf("stage source file %q: %w", filepath.Join(p.path, base), err)
	}
	return nil
}

// Unstage gives a file back its old name, if that is free.
func (p *Place) Unstage(record, base string) error {
	if err := renameNoReplace(p.fd(), FileName(record), base); err != nil {
		return fmt.Errorf("give back source file %q: %w", filepath.Join(p.path, base), err)
	}
	return nil
}

// Is reports whether the staged file is the one with this device and inode.
func (p *Place) Is(record string, dev, ino uint64) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(p.fd(), FileName(record), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, fmt.Errorf("look at staged file %q: %w", p.Path(record), err)
	}
	return uint64(st.Dev) == dev && st.Ino == ino, nil //nolint:unconvert // Dev is an int32 on macOS
}

// Remove removes a staged file, if it is the one with this device and inode. That it is gone
// is durable after Sync.
func (p *Place) Remove(record string, dev, ino uint64) error {
	same, err := p.Is(record, dev, ino)
	if err != nil {
		return err
	}
	if !same {
		return fmt.Errorf("remove staged file %q: it was replaced by another file", p.Path(record))
	}
	if err := unix.Unlinkat(p.fd(), FileName(record), 0); err != nil {
		return fmt.Errorf("remove staged file %q: %w", p.Path(record), err)
	}
	return nil
}

// Sync makes renames and removals durable (fsync(2) of the directory).
func (p *Place) Sync() error {
	err := unix.Fsync(p.fd())
	if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: a file system without such a thing
		return nil
	}
	return fmt.Errorf("sync directory %q: %w", p.path, err)
}

// legacyDir is where versions before 2 of this program kept what is theirs.
const legacyDir = archive.HiddenDir

// TakeOver moves the staged files of an earlier version to where this one has them. It may be
// called again after a crash. The error wraps archive.ErrLocked while such a version runs.
func (p *Place) TakeOver() error {
	dir := filepath.Join(p.path, legacyDir, "staged")
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take over staged files: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := lockDir(f, p.path); err != nil {
		return err
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("take over staged files: %w", err)
	}
	for _, name := range names {
		if err := renameBetween(int(f.Fd()), name, p.fd(), FileName(name)); err != nil {
			return fmt.Errorf("take over staged file %q: %w", filepath.Join(dir, name), err)
		}
	}
	if err := p.Sync(); err != nil {
		return err
	}
	return unix.Rmdir(dir)
}

// Staged lists the records of the files that are staged in a directory, also those that an
// earlier version staged. A directory that is not there has none.
func Staged(path string) (records []string, err error) {
	for _, dir := range []struct {
		path   string
		record func(name string) (string, bool)
	}{
		{path, RecordOf},
		{filepath.Join(path, legacyDir, "staged"), func(name string) (string, bool) { return name, true }},
	} {
		entries, err := os.ReadDir(dir.path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list staged files: %w", err)
		}
		for _, e := range entries {
			if record, ok := dir.record(e.Name()); ok {
				records = append(records, record)
			}
		}
	}
	return records, nil
}
