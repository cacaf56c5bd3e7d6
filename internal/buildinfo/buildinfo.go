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
	// Version as the linker was told, "dev" if it was not.
	Version string
	// Revision is the commit that was built, with "-modified" after it if files had changed
	// since, and "unknown" where the toolchain did not record it: outside a checkout, or
	// with -buildvcs=false.
	Revision string
	// GoVersion and Platform are those of the toolchain, such as go1.25.1 and linux/amd64.
	GoVersion, Platform string
}

// Get returns what the linker and the Go toolchain recorded.
func Get() Info {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		bi = &debug.BuildInfo{}
	}
	return Info{
		Version: Version, Revision: revision(bi.Settings),
		GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
}

// revision finds the commit in the settings that the toolchain recorded.
func revision(settings []debug.BuildSetting) string {
	revision, modified := "unknown", ""
	for _, s := range settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "-modified"
		}
	}
	return revision + modified
}
