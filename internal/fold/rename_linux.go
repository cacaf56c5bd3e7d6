package fold

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renameNoReplace renames a file of a directory unless the new name exists.
func renameNoReplace(dir int, from, to string) error { return renameBetween(dir, from, dir, to) }

func renameBetween(dir int, from string, toDir int, to string) error {
	err := unix.Renameat2(dir, from, toDir, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		return renameIfFree(dir, from, toDir, to) // not every file system has the flag
	}
	return err
}
