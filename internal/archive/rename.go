package archive

import (
	"errors"
	"io/fs"
	"os"
)

// renameIfFree is renameNoReplace where the kernel has no such call: only we make names in
// the directory that matters, so looking first is good enough.
func renameIfFree(from, to string) error {
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fs.ErrExist
		}
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return os.Rename(from, to)
}
