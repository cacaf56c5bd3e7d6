package watch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// getdentsRoom is how much room in bytes each call of getdents64 gets: enough for some
	// 1,000 names of source files. A larger one saves little.
	getdentsRoom = 64 << 10

	// struct linux_dirent64 (getdents(2)): inode and offset of 8 bytes each, the length of
	// the record in 2, the type in 1, then the name up to a NUL, then padding.
	direntReclen = 16
	direntType   = 18
	direntName   = 19

	// direntUsual is how large a record is with the name of a source file.
	direntUsual = 40
)

// records are buffers for getdents records. All directories share them: each would keep 192 KiB.
var records = sync.Pool{New: func() any { return new([]byte) }}

// dirPlatform is what a Dir needs on Linux: everything that would otherwise be allocated
// by each Scan.
type dirPlatform struct {
	cpath   []byte // the path with a NUL
	stx     unix.Statx_t
	noStatx bool
}

func newDirPlatform(path string) dirPlatform {
	return dirPlatform{cpath: append([]byte(path), 0)}
}

// stat stats the path. It uses a raw statx(2), because the wrappers copy the path each
// time and only statx tells the time of birth.
func (d *Dir) stat() (dirStamp, error) {
	return d.statx(unix.AT_FDCWD, d.cpath, 0)
}

func (d *Dir) statx(at int, cpath []byte, flags int) (dirStamp, error) {
	if !d.noStatx {
		const mask = unix.STATX_INO | unix.STATX_MTIME | unix.STATX_CTIME | unix.STATX_BTIME
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(at), uintptr(unsafe.Pointer(&cpath[0])),
			uintptr(flags), mask, uintptr(unsafe.Pointer(&d.stx)), 0)
		switch errno {
		case 0:
			s := dirStamp{
				dirID: dirID{dev: unix.Mkdev(d.stx.Dev_major, d.stx.Dev_minor), ino: d.stx.Ino},
				mtime: d.stx.Mtime.Sec*1e9 + int64(d.stx.Mtime.Nsec),
				ctime: d.stx.Ctime.Sec*1e9 + int64(d.stx.Ctime.Nsec),
			}
			if d.stx.Mask&unix.STATX_BTIME != 0 {
				s.btime = d.stx.Btime.Sec*1e9 + int64(d.stx.Btime.Nsec)
			}
			return s, nil
		case unix.ENOSYS, unix.EPERM:
			// Kernels before 4.11, and sandboxes that know no statx and say EPERM.
			d.noStatx = true
		default:
			return dirStamp{}, &fs.PathError{Op: "stat directory", Path: d.path, Err: errno}
		}
	}
	var st unix.Stat_t
	var err error
	if flags&unix.AT_EMPTY_PATH != 0 {
		err = unix.Fstat(at, &st)
	} else {
		err = unix.Stat(d.path, &st)
	}
	if err != nil {
		return dirStamp{}, &fs.PathError{Op: "stat directory", Path: d.path, Err: err}
	}
	return dirStamp{
		dirID: dirID{dev: uint64(st.Dev), ino: st.Ino}, //nolint:unconvert // Dev has 32 bits on some machines
		mtime: st.Mtim.Nano(), ctime: st.Ctim.Nano(),
	}, nil
}

var emptyPath = []byte{0}

func (d *Dir) fstat(fd int) (dirStamp, error) { return d.statx(fd, emptyPath, unix.AT_EMPTY_PATH) }

func openDirectory(path string) (int, error) {
	return open(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK)
}

// read reads the whole directory into d.entries. It returns what the directory's stat
// was before, and the time in nanoseconds at which reading began.
func (d *Dir) read() (stamp dirStamp, began int64, err error) {
	if err := d.attach(); err != nil {
		return stamp, 0, err
	}
	if stamp, err = d.fstat(d.fd); err != nil {
		return stamp, 0, err
	}
	began = time.Now().UnixNano()

	// The names of what is found are borrowed from raw until adopt has copied them.
	buf := records.Get().(*[]byte)
	defer records.Put(buf)
	raw := (*buf)[:0]
	defer func() { *buf = raw }()
	for {
		if cap(raw)-len(raw) < getdentsRoom {
			grown := make([]byte, len(raw), 2*cap(raw)+getdentsRoom)
			copy(grown, raw)
			raw = grown
		}
		n, err := unix.Getdents(d.fd, raw[len(raw):cap(raw)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return stamp, began, &fs.PathError{Op: "list directory", Path: d.path, Err: err}
		}
		if n == 0 {
			break
		}
		raw = raw[:len(raw)+n]
	}
	found := d.spare[:0]
	if cap(found) == 0 {
		found = make([]Dirent, 0, len(raw)/direntUsual)
	}
	found, err = appendDirents(found, raw)
	if err != nil {
		return stamp, began, &fs.PathError{Op: "list directory", Path: d.path, Err: err}
	}
	for i := range found {
		if found[i].Type == fs.ModeIrregular {
			found[i].Type = d.typeOf(found[i].Name)
		}
	}
	d.adopt(found)
	return stamp, began, nil
}

// appendDirents appends the entries in raw, records as getdents64 returns them. The names
// are borrowed from raw.
func appendDirents(dst []Dirent, raw []byte) ([]Dirent, error) {
	for len(raw) > 0 {
		if len(raw) < direntName {
			return dst, fmt.Errorf("directory record of %d bytes", len(raw))
		}
		size := int(binary.NativeEndian.Uint16(raw[direntReclen:]))
		if size < direntName || size > len(raw) {
			return dst, fmt.Errorf("directory record of %d bytes in %d", size, len(raw))
		}
		ino, kind, name := binary.NativeEndian.Uint64(raw), raw[direntType], raw[direntName:size]
		raw = raw[size:]
		if end := bytes.IndexByte(name, 0); end >= 0 {
			name = name[:end]
		}
		// Some file systems leave entries without an inode behind for removed files.
		if ino == 0 || len(name) == 0 || string(name) == "." || string(name) == ".." {
			continue
		}
		dst = append(dst, Dirent{Name: unsafe.String(&name[0], len(name)), Ino: ino, Type: direntFileType(kind)})
	}
	return dst, nil
}

// direntFileType returns ModeIrregular for what the directory does not tell.
func direntFileType(kind byte) fs.FileMode {
	switch kind {
	case unix.DT_REG:
		return 0
	case unix.DT_DIR:
		return fs.ModeDir
	case unix.DT_LNK:
		return fs.ModeSymlink
	case unix.DT_FIFO:
		return fs.ModeNamedPipe
	case unix.DT_SOCK:
		return fs.ModeSocket
	case unix.DT_CHR, unix.DT_BLK:
		return fs.ModeDevice
	}
	return fs.ModeIrregular
}

// open opens a path relative to the directory at, never to be inherited by a child.
func open(at int, path string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(at, path, flags|unix.O_CLOEXEC, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// closeFd closes a descriptor through which nothing was written, so that its error tells nothing.
func closeFd(fd int) { _ = unix.Close(fd) }
