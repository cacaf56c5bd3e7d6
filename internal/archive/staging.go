package archive

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
)

// A Staging is where dead workers' files wait to be folded, under names that were never
// used before, out of reach of new workers with the same ID. It lies on the same file
// system as the watched directory, because files are renamed into it.
type Staging struct {
	dir  string
	run  string // tells the names of this run from those of all others
	next uint64
	held *os.File // the directory, locked; nil while it is not ours
}

// NewStaging returns the staging of a watched directory. It makes nothing yet.
func NewStaging(watched string) *Staging {
	id := make([]byte, 8)
	rand.Read(id)
	return &Staging{dir: filepath.Join(watched, HiddenDir, "staged"), run: hex.EncodeToString(id)}
}

// Dir returns the directory's path.
func (s *Staging) Dir() string { return s.dir }

// Path returns the path of a staged file.
func (s *Staging) Path(name string) string { return filepath.Join(s.dir, name) }

// Prepare makes the directory where it is missing, for nobody else to enter, and takes it
// for this process until Close: two daemons with their archives in different places would
// move each other's files away. The lock (flock(2) on the directory) dies with its holder.
// The error is, or wraps, ErrLocked while another process has it.
func (s *Staging) Prepare() error {
	if err := s.mkdir(); err != nil {
		return err
	}
	return s.Take()
}

// Take is Prepare without making anything: the error wraps fs.ErrNotExist where there is no
// directory to take.
func (s *Staging) Take() error {
	if s.InPlace() {
		return nil
	}
	if err := s.Close(); err != nil {
		return err
	}
	f, err := os.OpenFile(s.dir, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("take directory for staged files: %w", err)
	}
	hidden := filepath.Dir(s.dir)
	for deadline := time.Now().Add(lockTimeout); ; time.Sleep(lockRetry) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline) {
			continue
		}
		if errors.Is(err, unix.EWOULDBLOCK) {
			return errors.Join(fmt.Errorf("take directory %q: %w: %s", filepath.Dir(hidden), ErrLocked, readOwner(hidden)), f.Close())
		}
		break // any other error is that of a file system without such locks
	}
	s.held = f
	writeOwner(hidden)
	return nil
}

// InPlace reports whether Prepare has taken the directory, and it is still there.
func (s *Staging) InPlace() bool {
	if s.held == nil {
		return false
	}
	same, err := leadsTo(s.dir, s.held)
	return same && err == nil
}

// Prepared reports whether Prepare has taken the directory, though somebody may have removed
// it since.
func (s *Staging) Prepared() bool { return s.held != nil }

// Close lets go of the directory.
func (s *Staging) Close() error {
	if s.held == nil {
		return nil
	}
	f := s.held
	s.held = nil
	return f.Close()
}

func (s *Staging) mkdir() error {
	hidden := filepath.Dir(s.dir)
	for _, dir := range []string{hidden, s.dir} {
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make directory for staged files: %w", err)
		}
		info, err := os.Lstat(dir)
		if err != nil {
			return fmt.Errorf("make directory for staged files: %w", err)
		}
		if !info.IsDir() {
			return fmt.Errorf("make directory for staged files: %q is no directory; remove it", dir)
		}
	}
	return nil
}

// NewName returns a name for a source file that was never used before. It does not end
// in .db: some clients look for that in directories below, too.
func (s *Staging) NewName(base string) string {
	s.next++
	return base + "." + s.run + "-" + strconv.FormatUint(s.next, 36)
}

// BaseOf returns the source file's name of which NewName made a staged one.
func BaseOf(name string) (base string, ok bool) {
	base, _, ok = cutLast(name, ".")
	return base, ok && base != ""
}

func cutLast(s, sep string) (before, after string, ok bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Stage renames a file into the staging. After nil the file has the new name and no
// other, though not durably so before Sync; after an error it has the old one. It never
// replaces a file.
func (s *Staging) Stage(path, name string) error {
	if err := renameNoReplace(path, s.Path(name)); err != nil {
		return fmt.Errorf("stage source file %q: %w", path, err)
	}
	return nil
}

// Unstage gives a file back its old name, if that is free.
func (s *Staging) Unstage(name, path string) error {
	if err := renameNoReplace(s.Path(name), path); err != nil {
		return fmt.Errorf("give back source file %q: %w", path, err)
	}
	return nil
}

// Remove removes a staged file, if it is the one with this device and inode. That it is
// gone is durable after Sync.
func (s *Staging) Remove(name string, dev, ino uint64) error {
	var st unix.Stat_t
	path := s.Path(name)
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("remove staged file %q: %w", path, err)
	}
	if uint64(st.Dev) != dev || st.Ino != ino { //nolint:unconvert // Dev is an int32 on macOS
		return fmt.Errorf("remove staged file %q: it was replaced by another file", path)
	}
	if err := unix.Unlink(path); err != nil {
		return fmt.Errorf("remove staged file %q: %w", path, err)
	}
	return nil
}

// Sync makes renames and removals durable: of the staging and of the watched directory.
func (s *Staging) Sync() error {
	return errors.Join(SyncDir(s.dir), SyncDir(filepath.Dir(filepath.Dir(s.dir))))
}

// List returns the names of the staged files.
func (s *Staging) List() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list staged files: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// Holder tells which daemon has the directory of source files, as text for people, and
// whether one has. It makes nothing, and asks for the lock for a moment in a way that
// a daemon that is just starting waits out. The error is that of a directory that may not
// be looked into.
func Holder(dir string) (who string, held bool, err error) {
	hidden := filepath.Join(dir, HiddenDir)
	f, err := os.OpenFile(filepath.Join(hidden, "staged"), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("look for a daemon: %w", err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return readOwner(hidden), true, nil
	} else if err != nil {
		return "", false, fmt.Errorf("look for a daemon: %w", err)
	}
	return "", false, nil
}

// writeOwner says that this process has a directory.
func writeOwner(dir string) {
	if p, err := OpenPlace(dir); err == nil {
		p.WriteOwner()
		p.Close() //nolint:errcheck // nothing was written through it
	}
}

// readOwner describes who has a directory.
func readOwner(dir string) string {
	p, err := OpenPlace(dir)
	if err != nil {
		return "another aggregatord has " + dir + " open"
	}
	defer p.Close() //nolint:errcheck // it was only read
	return p.Owner()
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
