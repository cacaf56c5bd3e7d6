//go:build !linux

package fold

import "os"

// holderOf says who has locked a directory.
func holderOf(*os.File) string {
	return "another process has locked it; is another aggregatord running?"
}
