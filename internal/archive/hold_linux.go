package archive

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A reader asks for the archive to be left as it is by a lock of its own kind (open file
// description locks, fcntl(2)), which is apart from the one that says whose archive it is
// (flock(2)) and goes with the descriptor. It covers one byte that no file has.
func holdLock(kind int16) unix.Flock_t {
	return unix.Flock_t{Type: kind, Whence: io.SeekStart, Start: 1 << 62, Len: 1}
}

// askToHold asks. Where it cannot be asked, reading is tried again.
func askToHold(f *os.File) {
	lock := holdLock(unix.F_RDLCK)
	unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock) //nolint:errcheck // see above
}

// askedToHold reports whether somebody else has asked.
func askedToHold(f *os.File) bool {
	lock := holdLock(unix.F_WRLCK)
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock) == nil && lock.Type != unix.F_UNLCK
}
