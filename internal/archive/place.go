package archive

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"
)

// A Place is where an archive and the files around it lie: a directory of our own, or hidden
// files in the watched directory. Everything is reached from one descriptor of the directory,
// step by step and through no link, because others may write to the directory: a name may
// lead to another file a moment later, what is open stays what it is.
//
// A file is made with O_EXCL and mode 0600. One that exists is written to only if it is
// regular, has this one name, and belongs to us, to root or to the owner of the directory.
type Place struct {
	dir    *os.File
	path   string
	hidden bool
	// listed is when removeHalfMade has listed it last.
	listed time.Time
}

// The files of a place, by what they are.
const (
	archiveName = "archive"
	ballastName = "ballast"
	ownerName   = "owner"
)

// HiddenDir is the name of the directory in a watched one where earlier versions kept their files.
const HiddenDir = ".aggregatord"

// HiddenPrefix begins the name of each file of ours in a watched directory. None ends in .db,
// for which clients look.
const HiddenPrefix = HiddenDir + "."

// OpenPlace opens a directory that is for one archive alone. The error wraps fs.ErrNotExist
// where there is none.
func OpenPlace(dir string) (*Place, error) { return openPlace(dir, false) }

// OpenHiddenPlace opens a watched directory, for an archive in hidden files in it.
func OpenHiddenPlace(dir string) (*Place, error) { return openPlace(dir, true) }

func openPlace(dir string, hidden bool) (*Place, error) {
	// The directory itself may well be reached through a link: which one is the operator's to say.
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open directory of the archive", Path: dir, Err: err}
	}
	return &Place{dir: os.NewFile(uintptr(fd), dir), path: dir, hidden: hidden}, nil
}

// MakePlace makes a directory for one archive alone, with those above it, and opens it. What
// is missing of the watched directory, if it lies in there, is not made: that is the
// application's.
func MakePlace(dir, watched string) (*Place, error) {
	missing, mkdir := []string{dir}, os.MkdirAll
	if within, err := filepath.Rel(watched, dir); err == nil && filepath.IsLocal(within) {
		missing, mkdir = nil, os.Mkdir
		for path := dir; within != "."; within = filepath.Dir(within) {
			missing = append([]string{path}, missing...)
			path = filepath.Dir(path)
		}
	}
	for _, path := range missing {
		if err := mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make directory for the archive: %w", err)
		}
	}
	return OpenPlace(dir)
}

// Close closes the directory. An archive that is attached to the place stays so.
func (p *Place) Close() error { return p.dir.Close() }

// Dir returns the path of the directory.
func (p *Place) Dir() string { return p.path }

// Hidden reports whether the files are hidden ones in a watched directory.
func (p *Place) Hidden() bool { return p.hidden }

// ArchivePath returns the path of the archive, for people.
func (p *Place) ArchivePath() string { return p.pathOf(p.name(archiveName)) }

func (p *Place) pathOf(name string) string { return filepath.Join(p.path, name) }

// name returns the name of one of our files in the place.
func (p *Place) name(what string) string {
	switch {
	case p.hidden:
		return HiddenPrefix + what
	case what == archiveName:
		return FileName
	}
	return what
}

// InPlace reports whether the path still leads to the directory that is open.
func (p *Place) InPlace() bool {
	open, err := p.dir.Stat()
	if err != nil {
		return false
	}
	there, err := os.Stat(p.path)
	return err == nil && os.SameFile(open, there)
}

func (p *Place) fd() int { return int(p.dir.Fd()) }

// open opens a file of the place, if it is a regular one. It follows no link and waits for
// nobody, as at the other end of a pipe.
func (p *Place) open(name string, flags int, perm uint32) (*os.File, error) {
	var fd int
	err := ignoringEINTR(func() (err error) {
		fd, err = unix.Openat(p.fd(), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, perm)
		return err
	})
	if err != nil {
		if errors.Is(err, unix.ELOOP) {
			err = errNotRegular
		}
		return nil, &os.PathError{Op: "open", Path: p.pathOf(name), Err: err}
	}
	f := os.NewFile(uintptr(fd), p.pathOf(name))
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = &os.PathError{Op: "open", Path: p.pathOf(name), Err: errNotRegular}
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// create makes a file that does not exist yet.
func (p *Place) create(name string) (*os.File, error) {
	return p.open(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)
}

// createTemp makes a file whose name begins with that of the archive and is new.
func (p *Place) createTemp() (*os.File, string, error) {
	id := make([]byte, 6)
	rand.Read(id)
	name := p.name(archiveName) + tempSuffix + hex.EncodeToString(id)
	f, err := p.create(name)
	return f, name, err
}

// tempSuffix follows the archive's name in that of a file which is to become it.
const tempSuffix = ".new-"

// ErrUnsafe says that a file is not written to, because somebody may have put it there so that another
// one is changed.
var ErrUnsafe = errors.New("file is not safe to write to")

// checkWritable reports whether a file that was there before may be written to.
func (p *Place) checkWritable(f *os.File) error {
	var st, dir unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	if err := unix.Fstat(p.fd(), &dir); err != nil {
		return &os.PathError{Op: "stat", Path: p.path, Err: err}
	}
	switch {
	case st.Nlink != 1:
		return fmt.Errorf("%w: %q has %d names; remove the others, or copy it", ErrUnsafe, f.Name(), st.Nlink)
	case st.Uid != 0 && st.Uid != uint32(os.Geteuid()) && st.Uid != dir.Uid:
		return fmt.Errorf("%w: %q belongs to user %d", ErrUnsafe, f.Name(), st.Uid)
	}
	return nil
}

// leadsTo reports whether a name of the place is that of the file which is open.
func (p *Place) leadsTo(name string, f *os.File) (bool, error) {
	var open, there unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &open); err != nil {
		return false, &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	err := unix.Fstatat(p.fd(), name, &there, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, &os.PathError{Op: "stat", Path: p.pathOf(name), Err: err}
	}
	return open.Dev == there.Dev && open.Ino == there.Ino, nil
}

// rename gives a file another name, which it takes from whatever has it.
func (p *Place) rename(from, to string) error {
	if err := unix.Renameat(p.fd(), from, p.fd(), to); err != nil {
		return &os.LinkError{Op: "rename", Old: p.pathOf(from), New: p.pathOf(to), Err: err}
	}
	return nil
}

// renameNoReplace renames a file, also from another directory, unless the new name exists:
// fs.ErrExist.
func (p *Place) renameNoReplace(fromDir int, from, to string) error {
	err := renameatNoReplace(fromDir, from, p.fd(), to)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: p.pathOf(to), Err: err}
	}
	return nil
}

// renameatIfFree is renameatNoReplace where there is no such call: only we make these names,
// so looking first is good enough.
func renameatIfFree(fromDir int, from string, toDir int, to string) error {
	var st unix.Stat_t
	err := unix.Fstatat(toDir, to, &st, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.ENOENT) {
		if err == nil {
			err = unix.EEXIST
		}
		return err
	}
	return unix.Renameat(fromDir, from, toDir, to)
}

// remove removes a name.
func (p *Place) remove(name string) error {
	if err := unix.Unlinkat(p.fd(), name, 0); err != nil {
		return &os.PathError{Op: "remove", Path: p.pathOf(name), Err: err}
	}
	return nil
}

// exists reports whether there is something of this name.
func (p *Place) exists(name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(p.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// names lists the directory.
func (p *Place) names() ([]string, error) {
	// A descriptor of its own has a position of its own.
	fd, err := unix.Openat(p.fd(), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.path, Err: err}
	}
	d := os.NewFile(uintptr(fd), p.path)
	defer d.Close() //nolint:errcheck // it was only read
	return d.Readdirnames(-1)
}

// sync makes what happened to the names in the directory durable.
func (p *Place) sync() error { return syncDir(p.dir) }

// SyncDir makes what happened to the names in a directory durable (fsync(2)).
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(syncDir(d), d.Close())
}

func syncDir(d *os.File) error {
	err := d.Sync()
	if errors.Is(err, unix.EINVAL) {
		return nil // a file system without such a thing
	}
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return nil
}

func ignoringEINTR(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readSmall reads a small file. What is longer than most bytes is an error.
func (p *Place) readSmall(name string, most int64) ([]byte, error) {
	f, err := p.open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("read %q: more than %d bytes", f.Name(), most)
	}
	return data, err
}

// ownerBytes is how long an owner file may be.
const ownerBytes = 4096

// owner tells people which process has the archive open. The lock is the truth; this only
// helps to find its holder, also from another pid namespace.
type owner struct {
	PID   int       `json:"pid"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
}

// WriteOwner says that this process has the place. Failing to is no reason not to work.
func (p *Place) WriteOwner() {
	host, _ := os.Hostname()
	data, err := json.Marshal(owner{os.Getpid(), host, time.Now().Truncate(time.Second)})
	if err != nil {
		return
	}
	p.KeepBeside(ownerName, append(data, '\n')) //nolint:errcheck // see above
}

// KeepBeside keeps data in a small file beside the archive: in one step for those who read it,
// and never into a file that somebody put there. It does not wait for the disk, so a power
// failure may take the data.
func (p *Place) KeepBeside(what string, data []byte) error {
	tmp := p.name(what) + ".new"
	p.remove(tmp) //nolint:errcheck // it is seldom there
	f, err := p.create(tmp)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = p.rename(tmp, p.name(what))
	}
	if err != nil {
		p.remove(tmp) //nolint:errcheck // see above
	}
	return err
}

// ReadBeside returns what KeepBeside kept, if it is not longer than most bytes. The error wraps
// fs.ErrNotExist if there is nothing.
func (p *Place) ReadBeside(what string, most int64) ([]byte, error) {
	return p.readSmall(p.name(what), most)
}

// Owner describes who has the place, as its owner file tells: for people, and only to be
// believed where a lock says that somebody has it.
func (p *Place) Owner() string {
	var o owner
	where := strings.TrimSuffix(p.path, "/")
	data, err := p.ReadBeside(ownerName, ownerBytes)
	if err != nil || json.Unmarshal(data, &o) != nil || strings.ContainsFunc(o.Host, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "another aggregatord has " + where + " open"
	}
	return fmt.Sprintf("aggregatord with pid %d on host %s has %s open since %s", o.PID, o.Host, where, o.Since.Format(time.RFC3339))
}

// A Room is how much a file system has left, in bytes and inodes. A file system that does not
// count its inodes has none of them.
type Room struct {
	FreeBytes, TotalBytes   int64
	FreeInodes, TotalInodes uint64
}

// Room asks the file system of the place.
func (p *Place) Room() (Room, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Fstatfs(p.fd(), &st) }); err != nil {
		return Room{}, &os.PathError{Op: "statfs", Path: p.path, Err: err}
	}
	block := int64(st.Bsize) //nolint:unconvert // a uint32 on macOS
	return Room{int64(st.Bavail) * block, int64(st.Blocks) * block, st.Ffree, st.Files}, nil
}

// makeBallast makes a file that only takes up room. On error, or where it exists, there is no
// new one.
func (p *Place) makeBallast(size int64) error {
	name := p.name(ballastName)
	f, err := p.create(name)
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	for left := size; left > 0 && err == nil; left -= int64(len(zeros)) {
		_, err = f.Write(zeros[:min(left, int64(len(zeros)))])
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, p.remove(name)) // not a part of it either
	}
	return nil
}

// What an earlier version kept in a directory of its own inside the watched one.
const (
	formerBallast = "ballast"
	formerOwner   = "owner"
	formerStaged  = "staged"
)

// A TakenOver is what TakeOver found.
type TakenOver struct {
	// Archive says that there was an archive, which has its new name now.
	Archive bool
	// SetAside are the new names of archives that were set aside, now or earlier. One of them is
	// the archive itself where the place had another one already.
	SetAside []string
	// Left says that the directory is still there, because there is something else in it.
	Left bool
}

// TakeOver moves what an earlier version left in the directory .aggregatord to the hidden
// names of the place, durably, and removes the directory when it is empty: staged files are
// another's to take over. Each file is renamed in one step, so it may be called again after a
// crash at any moment. Where there is no such directory nothing happens. The error is, or
// wraps, ErrLocked while a daemon of an earlier version has the directory.
func (p *Place) TakeOver(now time.Time) (t TakenOver, err error) {
	if !p.hidden {
		return t, nil
	}
	former, err := p.former()
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return t, nil // what is no directory is none of an earlier version either
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("take over %q: %w", p.pathOf(HiddenDir), err)
		}
	}()
	if err != nil {
		return t, err
	}
	defer former.Close() //nolint:errcheck // nothing was written through it
	unlock, err := former.lockFormer()
	if err != nil {
		return t, err
	}
	defer unlock()
	names, err := former.names()
	if err != nil {
		return t, err
	}
	moved := false
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(former.fd(), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue // it is not ours
		}
		to := ""
		switch suffix, ofArchive := strings.CutPrefix(name, FileName); {
		case name == formerBallast, name == formerOwner, name == formerOwner+".new", ofArchive && strings.HasPrefix(suffix, tempSuffix):
			if err := former.remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return t, err
			}
			continue
		case ofArchive:
			to = p.name(archiveName) + suffix
		default:
			continue
		}
		err := p.renameNoReplace(former.fd(), name, to)
		switch {
		case errors.Is(err, fs.ErrExist):
			// There is one of this name already: this one is kept beside it.
			if to, err = p.aside(former, name, "former", now); err != nil {
				return t, err
			}
			t.SetAside = append(t.SetAside, to)
		case err != nil:
			return t, err
		case name == FileName:
			t.Archive = true
		default:
			t.SetAside = append(t.SetAside, to)
		}
		moved = true
	}
	if moved {
		// The new names first: a crash must not leave neither.
		if err := errors.Join(p.sync(), former.sync()); err != nil {
			return t, err
		}
	}
	err = unix.Unlinkat(p.fd(), HiddenDir, unix.AT_REMOVEDIR)
	switch {
	case err == nil:
		return t, p.sync()
	case errors.Is(err, unix.ENOTEMPTY), errors.Is(err, unix.EEXIST):
		t.Left = true
		return t, nil
	}
	return t, err
}

// lockFormer takes the locks that a daemon of an earlier version holds as long as it runs.
func (p *Place) lockFormer() (unlock func(), err error) {
	var held []*os.File
	unlock = func() {
		for _, f := range held {
			f.Close() //nolint:errcheck // nothing was written through it
		}
	}
	for _, name := range []string{formerStaged, FileName} {
		flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
		fd, err := unix.Openat(p.fd(), name, flags, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			unlock()
			return nil, &os.PathError{Op: "open", Path: p.pathOf(name), Err: err}
		}
		f := os.NewFile(uintptr(fd), p.pathOf(name))
		held = append(held, f)
		if err := flock(f, unix.LOCK_EX, lockTimeout); err != nil {
			who := p.Owner()
			unlock()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, fmt.Errorf("%w: %s", ErrLocked, who)
			}
			// A file system without such locks had none before.
			continue
		}
	}
	return unlock, nil
}

// flock locks a file (flock(2)), and tries for some time.
func flock(f *os.File, how int, patience time.Duration) error {
	for deadline := time.Now().Add(patience); ; time.Sleep(lockRetry) {
		err := ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), how|unix.LOCK_NB) })
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			return err
		}
	}
}

// aside gives a file of from, which may be another place, a name in this one that says why
// and when, and is not used yet. It returns that name.
func (p *Place) aside(from *Place, name, why string, now time.Time) (string, error) {
	for i := range 1000 {
		to := fmt.Sprintf("%s.%s-%s", p.name(archiveName), why, now.UTC().Format("20060102T150405Z"))
		if i > 0 {
			to += fmt.Sprintf("-%d", i)
		}
		err := p.renameNoReplace(from.fd(), name, to)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("set archive aside: %w", err)
		}
		return to, nil
	}
	return "", fmt.Errorf("set archive %q aside: no free name", from.pathOf(name))
}

// asides are why an archive may have been set aside.
var asides = []string{"damaged", "reset", "former"}

// SetAsides lists the names of the archives in the place that were set aside, sorted.
func (p *Place) SetAsides() ([]string, error) {
	all, err := p.names()
	var found []string
	for _, name := range all {
		for _, why := range asides {
			if strings.HasPrefix(name, p.name(archiveName)+"."+why+"-") {
				found = append(found, name)
			}
		}
	}
	slices.Sort(found)
	return found, err
}
