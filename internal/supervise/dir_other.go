//go:build !linux

package supervise

// onTmpfs reports whether the directory is in memory; here that is not known.
func onTmpfs(string) bool { return false }

// startedWith returns the other processes that have the directory; here that is not known.
func startedWith(string) []int { return nil }
