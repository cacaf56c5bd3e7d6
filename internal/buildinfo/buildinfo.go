// Package buildinfo tells which build this is.
package buildinfo

import (
	"runtime"
	"runtime/debug"
)

// Version is set by the linker: -ldflags "-X aggregatord/internal/buildinfo.Version=1.2.3".
var Version = "dev"

// Info describes the running binary.
type Info struct {
	Version, Revision, GoVersion, Platform string
}

// Get returns what the linker and the Go toolchain recorded.
func Get() Info {
	i := Info{Version: Version, Revision: "unknown", GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return i
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" {
			i.Revision = s.Value
		}
	}
	return i
}
