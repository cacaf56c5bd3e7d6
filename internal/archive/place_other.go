//go:build !linux

package archive

func renameatNoReplace(fromDir int, from string, toDir int, to string) error {
	return renameatIfFree(fromDir, from, toDir, to)
}
