package fold

import (
	"errors"

	"golang.org/x/sys/unix"
)

// renameIfFree is for systems whose rename always replaces. The new names are made by this
// process alone, so looking first is good enough.
func renameIfFree(dir int, from string, toDir int, to string) error {
	var st unix.Stat_t
	switch err := unix.Fstatat(toDir, to, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil:
		return unix.EEXIST
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	return unix.Renameat(dir, from, toDir, to)
}
