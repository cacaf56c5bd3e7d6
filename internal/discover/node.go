package discover

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// NodeOf returns which directory a path leads to.
func NodeOf(path string) (Node, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Node{}, fmt.Errorf("look at a directory: %w", err)
	}
	return nodeOf(info), nil
}

func nodeOf(info fs.FileInfo) Node {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return Node{}
	}
	return Node{uint64(st.Dev), uint64(st.Ino)} //nolint:unconvert // int32 on a Mac
}
