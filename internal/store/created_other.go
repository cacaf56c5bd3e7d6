//go:build !linux

package store

// statFile tells what a file is, and when it was last modified.
func statFile(fd int) (fileInfo, error) { return statModified(fd) }
