//go:build !linux

package doctor

// Listener finds the process that listens on a TCP port; here it cannot.
func Listener(int) string { return "" }

func listenerIn(string, int, []process) (process, bool) { return process{}, false }
