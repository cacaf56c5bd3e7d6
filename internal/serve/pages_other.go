//go:build !linux

package serve

// forgetPages does nothing: see pages_linux.go.
func forgetPages([]byte) {}
