package store

import (
	"encoding/binary"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// A tag is what lies in the four bytes after the used bytes of a file's header. The Python clients
// leave 0 there, neither read nor write it later, and keep it when they open a file again: they
// read and write the used bytes as an int32 (mmap_dict.py, _pack_integer). So it is a place for a
// word of ours that goes with the file.

// Head is what a file's header says.
type Head struct {
	// UsedBytes is the count of used bytes, as it is.
	UsedBytes int64
	Tag       uint32
}

// ReadHead reads the header of the file that is open as fd. The error is io.EOF, or wraps it, for
// a file that has none.
func ReadHead(fd int) (Head, error) {
	var raw [headerBytes]byte
	if _, err := descriptor(fd).ReadAt(raw[:], 0); err != nil {
		return Head{}, err
	}
	return Head{int64(int32(binary.LittleEndian.Uint32(raw[:]))), binary.LittleEndian.Uint32(raw[4:])}, nil
}

// ReadHeadAt is ReadHead for a file of the directory that is open as dir.
func ReadHeadAt(dir int, base string) (Head, error) {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return Head{}, err
	}
	defer unix.Close(fd) //nolint:errcheck // it was only read
	return ReadHead(fd)
}

// SetTag stores a tag in a file that is open for writing as fd, and has a header. It disturbs
// nobody who writes to the file.
func SetTag(fd int, tag uint32) error {
	if _, err := ReadHead(fd); err != nil {
		return fmt.Errorf("tag source file: %w", err)
	}
	return pwrite(fd, binary.LittleEndian.AppendUint32(nil, tag), 4)
}

// Drain makes a source file one that has no entries, in one store, and gives it a tag. Nobody may
// have the file open but the caller, who has it open for writing as fd. A client that opens it
// later finds a file to which nothing was written yet.
func Drain(fd int, tag uint32) error {
	head := binary.LittleEndian.AppendUint32(nil, headerBytes)
	return pwrite(fd, binary.LittleEndian.AppendUint32(head, tag), 0)
}

func pwrite(fd int, p []byte, off int64) error {
	for {
		n, err := unix.Pwrite(fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("write header of source file: %w", err)
		case n < len(p):
			return fmt.Errorf("write header of source file: %w", io.ErrShortWrite)
		default:
			return nil
		}
	}
}

// Drained reports whether a header says that nothing was written since Drain.
func (h Head) Drained() bool { return h.UsedBytes <= headerBytes }

// Restore takes back what Drain has done.
func Restore(fd int, h Head) error {
	head := binary.LittleEndian.AppendUint32(nil, uint32(h.UsedBytes))
	return pwrite(fd, binary.LittleEndian.AppendUint32(head, h.Tag), 0)
}
