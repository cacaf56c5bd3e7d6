package archive

import (
	"os"

	"golang.org/x/sys/unix"
)

// nextData returns where the next bytes that are no hole begin, and where they end (lseek(2)).
// It moves the file's position. The error is that of a file in which only a hole is left.
func nextData(f *os.File, at int64) (from, to int64, err error) {
	if from, err = f.Seek(at, unix.SEEK_DATA); err != nil {
		return 0, 0, err
	}
	to, err = f.Seek(from, unix.SEEK_HOLE)
	return from, to, err
}
