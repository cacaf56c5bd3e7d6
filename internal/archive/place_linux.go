package archive

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renameatNoReplace renames a file between directories that are open unless the new name
// exists.
func renameatNoReplace(fromDir int, from string, toDir int, to string) error {
	err := unix.Renameat2(fromDir, from, toDir, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return renameatIfFree(fromDir, from, toDir, to) // not every file system has the flag
	}
	return err
}
