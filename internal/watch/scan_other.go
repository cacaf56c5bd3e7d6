//go:build !linux

package watch

import (
	"errors"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

type dirPlatform struct{}

func newDirPlatform(string) dirPlatform { return dirPlatform{} }

func stampOf(st *unix.Stat_t) dirStamp {
	return dirStamp{
		dirID: dirID{dev: uint64(st.Dev), ino: st.Ino, btime: st.Btim.Nano()},
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}
}

func (d *Dir) stat() (dirStamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(d.path, &st); err != nil {
		return dirStamp{}, &fs.PathError{Op: "stat directory", Path: d.path, Err: err}
	}
	return stampOf(&st), nil
}

func (d *Dir) fstat(fd int) (dirStamp, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return dirStamp{}, &fs.PathError{Op: "stat directory", Path: d.path, Err: err}
	}
	return stampOf(&st), nil
}

func openDirectory(path string) (int, error) {
	return unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// read reads the whole directory into d.entries. It returns what the directory's stat
// was before, and the time in nanoseconds at which reading began.
func (d *Dir) read() (dirStamp, int64, error) {
	if err := d.attach(); err != nil {
		return dirStamp{}, 0, err
	}
	stamp, err := d.fstat(d.fd)
	if err != nil {
		return stamp, 0, err
	}
	began := time.Now().UnixNano()
	dir, err := d.Dup()
	if err != nil {
		return stamp, began, err
	}
	names, err := dir.Readdirnames(-1)
	if err := errors.Join(err, dir.Close()); err != nil {
		return stamp, began, err
	}
	found := d.spare[:0]
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(d.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			continue // gone in the meantime
		}
		found = append(found, Dirent{Name: name, Ino: st.Ino, Type: d.typeOf(name)})
	}
	d.adopt(found)
	return stamp, began, nil
}
