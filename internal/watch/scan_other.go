//go:build !linux

package watch

import (
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

type dirPlatform struct{}

func newDirPlatform(string) dirPlatform { return dirPlatform{} }

func (d *Dir) stat() (dirStamp, error) {
	var st unix.Stat_t
	if err := unix.Stat(d.path, &st); err != nil {
		return dirStamp{}, &fs.PathError{Op: "stat directory", Path: d.path, Err: err}
	}
	return dirStamp{
		dirID: dirID{dev: uint64(st.Dev), ino: st.Ino, btime: st.Btim.Nano()},
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}, nil
}

// read reads the whole directory into d.entries. It returns what the directory's stat
// was before, and the time in nanoseconds at which reading began.
func (d *Dir) read() (dirStamp, int64, error) {
	stamp, err := d.stat()
	if err != nil {
		return stamp, 0, err
	}
	began := time.Now().UnixNano()
	list, err := os.ReadDir(d.path)
	if err != nil {
		return stamp, began, err
	}
	found := d.spare[:0]
	for _, e := range list {
		var st unix.Stat_t
		if err := unix.Lstat(d.path+"/"+e.Name(), &st); err != nil {
			continue // gone in the meantime
		}
		found = append(found, Dirent{Name: e.Name(), Ino: st.Ino, Type: fileType(e.Type())})
	}
	d.adopt(found)
	return stamp, began, nil
}

func fileType(m fs.FileMode) FileType {
	switch {
	case m.IsRegular():
		return TypeRegular
	case m.IsDir():
		return TypeDir
	case m&fs.ModeSymlink != 0:
		return TypeSymlink
	}
	return TypeOther
}
