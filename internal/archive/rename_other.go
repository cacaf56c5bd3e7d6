//go:build !linux

package archive

func renameNoReplace(from, to string) error { return renameIfFree(from, to) }
