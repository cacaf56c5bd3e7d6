package supervise

import "golang.org/x/sys/unix"

// onTmpfs reports whether the directory is there, and in memory.
func onTmpfs(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}
