//go:build !linux

package fold

import "os"

// holderOf names the process that has locked a directory.
func holderOf(*os.File) string {
	return "another process"
}
