package watch

import (
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stampMargin is how old a directory's timestamps must be, when a listing begins, for
// the listing to be trusted afterwards. The kernel stamps files with a clock that moves
// once a timer tick (10 ms where CONFIG_HZ is 100; since Linux 6.13 some file systems
// have finer stamps, once somebody looks), so a change that follows a listing within
// one tick may leave the very same mtime. Two of the longest ticks are enough.
const stampMargin = 20 * time.Millisecond

// A Dirent is one name in a directory.
type Dirent struct {
	Name string
	// Ino is the inode number of the name, 0 where it is not known. It is a hint: a file
	// system may give the number of a removed file to the next one at once (ext4 does), and
	// where the name is a mount point it is that of the directory below.
	Ino uint64
	// Type is what the name is: 0 for a regular file, [fs.ModeDir], [fs.ModeSymlink], and so
	// on; [fs.ModeIrregular] where neither the directory nor a stat tells. The file may be
	// another one by the time it is opened, so look again then.
	Type fs.FileMode
}

// A Listing is the outcome of one Scan.
type Listing struct {
	// Changed is false when nothing can have changed since the last listing; nothing was
	// read then. It is true whenever the directory was read, also if that brought the same
	// entries again: equal names and inode numbers do not prove equal files.
	Changed bool
	// Replaced says that the path leads to another directory than at the last listing. A
	// directory that was away for a while and came back is not replaced.
	Replaced bool
	// Same says that a directory that was read brought what the last listing had: the same names,
	// with the same inode numbers, all of which are known.
	Same bool
	// Entries are all names but "." and "..", sorted by Name; the last listing's when
	// nothing changed. The slice is borrowed: it is valid until the next Scan and must not
	// be written to. The Names may be kept.
	Entries []Dirent
}

// A Dir lists one path again and again, cheaply. It starts nothing. It keeps the directory
// that it has listed last open until the path leads to another one, or until Close: so what is
// listed, and what is opened, renamed and removed by that descriptor, is in one directory,
// whatever happens to the path. It is not safe for several goroutines.
type Dir struct {
	path string
	dirPlatform

	fd   int   // of the directory that was listed last, or -1
	open dirID // what fd is

	known dirStamp // of the last listing; the identity stays after an error
	ever  bool     // known.dirID is that of a directory
	// quiet says that the last listing succeeded and began safely after the change that
	// known's timestamps are of, so that equal timestamps mean an equal directory.
	quiet bool

	entries, spare []Dirent
	// before is how many entries the listing before had, which are in spare until Scan has compared.
	before int
}

// dirID tells a directory from another one that later gets its path. The time of birth
// (0 where the file system has none) tells apart two that got the same inode number.
type dirID struct {
	dev, ino uint64
	btime    int64
}

// dirStamp is what a stat tells of a directory. Times are nanoseconds since 1970. The
// ctime is there because a user can set the mtime back, but not the ctime.
type dirStamp struct {
	dirID
	mtime, ctime int64
}

// NewDir returns a Dir for path, which need not exist yet. A symbolic link is followed
// anew by every Scan.
func NewDir(path string) *Dir {
	return &Dir{path: path, fd: -1, dirPlatform: newDirPlatform(path)}
}

// Path returns the path that NewDir was given.
func (d *Dir) Path() string { return d.path }

// Fd returns the descriptor of the directory whose names the last Scan has listed, or -1 if
// none has succeeded. It belongs to the Dir: it is valid until the next Scan or Close.
func (d *Dir) Fd() int { return d.fd }

// Dup returns another descriptor of that directory, which belongs to the caller: for one who
// has work left in a directory after the path has begun to lead to another one. It leads to the
// same open directory as Fd, so do not list by it.
func (d *Dir) Dup() (*os.File, error) {
	if d.fd < 0 {
		return nil, &fs.PathError{Op: "open directory", Path: d.path, Err: fs.ErrClosed}
	}
	fd, err := unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open directory", Path: d.path, Err: err}
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// Close closes the descriptor. The next Scan would open the directory again.
func (d *Dir) Close() error {
	if d.fd < 0 {
		return nil
	}
	err := unix.Close(d.fd)
	d.fd, d.quiet = -1, false
	return err
}

// attach opens the directory that the path leads to, unless it is open already.
func (d *Dir) attach() error {
	stamp, err := d.stat()
	if err != nil {
		return err
	}
	if d.fd >= 0 && stamp.dirID == d.open {
		if _, err := unix.Seek(d.fd, 0, unix.SEEK_SET); err != nil {
			return &fs.PathError{Op: "list directory", Path: d.path, Err: err}
		}
		return nil
	}
	fd, err := openDirectory(d.path)
	if err != nil {
		return &fs.PathError{Op: "list directory", Path: d.path, Err: err}
	}
	if stamp, err = d.fstat(fd); err != nil {
		_ = unix.Close(fd) // it was only looked at
		return err
	}
	if d.fd >= 0 {
		_ = unix.Close(d.fd) // nothing was written through it
	}
	d.fd, d.open = fd, stamp.dirID
	return nil
}

// typeOf asks for the type of a name where the directory does not tell it.
func (d *Dir) typeOf(name string) fs.FileMode {
	var st unix.Stat_t
	if unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return fs.ModeIrregular
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 0
	case unix.S_IFDIR:
		return fs.ModeDir
	case unix.S_IFLNK:
		return fs.ModeSymlink
	case unix.S_IFIFO:
		return fs.ModeNamedPipe
	case unix.S_IFSOCK:
		return fs.ModeSocket
	}
	return fs.ModeDevice
}

// Scan lists the directory. Where nothing has changed since the last listing, that is
// found out with one stat and no allocation. With force it reads in any case: do so now
// and then, because a file system of another machine need not keep its timestamps by our
// clock.
//
// An error satisfies [fs.ErrNotExist] while the path does not exist and
// [syscall.ENOTDIR] while something else is in its place. After an error the next Scan
// reads the directory, and Replaced compares with the last listing that succeeded.
func (d *Dir) Scan(force bool) (Listing, error) {
	if d.quiet && !force {
		stamp, err := d.stat()
		if err != nil {
			d.quiet = false
			return Listing{}, err
		}
		if stamp == d.known {
			return Listing{Entries: d.entries}, nil
		}
	}
	d.quiet = false
	stamp, began, err := d.read()
	if err != nil {
		return Listing{}, err
	}
	same := d.ever && slices.EqualFunc(d.entries, d.spare[:d.before], func(a, b Dirent) bool { return a == b && a.Ino != 0 })
	clear(d.spare[:d.before]) // names of files that are gone must not live on
	replaced := d.ever && stamp.dirID != d.known.dirID
	d.known, d.ever = stamp, true
	d.quiet = outside(began, stamp.mtime) && outside(began, stamp.ctime)
	return Listing{Changed: true, Replaced: replaced, Same: same && !replaced, Entries: d.entries}, nil
}

// Unchanged reports whether nothing can have changed since the last listing, by one stat and without
// an allocation. The next Scan lists the directory if that is false.
func (d *Dir) Unchanged() bool {
	if !d.quiet {
		return false
	}
	stamp, err := d.stat()
	return err == nil && stamp == d.known
}

// outside reports whether a listing that began at one time is safe from changes that
// would leave the given timestamp again. A timestamp well in the future (somebody set
// it, or the clock) is safe too: a change would bring it to now.
func outside(began, stamp int64) bool {
	delta := began - stamp
	return delta > int64(stampMargin) || delta < -int64(stampMargin)
}

// adopt makes found, whose names are borrowed, the current entries. It takes names that
// were there before from the last listing, so that a directory in which little changes
// costs no allocation however large it is.
func (d *Dir) adopt(found []Dirent) {
	slices.SortFunc(found, func(a, b Dirent) int { return strings.Compare(a.Name, b.Name) })
	old := d.entries
	for i := range found {
		name := found[i].Name
		for len(old) > 0 && old[0].Name < name {
			old = old[1:]
		}
		if len(old) > 0 && old[0].Name == name {
			found[i].Name = old[0].Name
		} else {
			found[i].Name = strings.Clone(name)
		}
	}
	d.entries, d.spare, d.before = found, d.entries[:0], len(d.entries)
}
