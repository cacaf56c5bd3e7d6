package archive

import (
	"os"

	"golang.org/x/sys/unix"
)

// memoryFile makes a file that is nowhere but in memory (memfd_create(2)).
func memoryFile() (*os.File, error) {
	const name = "aggregatord-archive"
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
