//go:build !linux

package fold

func renameNoReplace(dir int, from, to string) error { return renameIfFree(dir, from, dir, to) }

func renameBetween(dir int, from string, toDir int, to string) error {
	return renameIfFree(dir, from, toDir, to)
}
