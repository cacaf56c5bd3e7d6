//go:build !linux

package supervise

// There are none that could be named.
const (
	firstRealTime = 1
	lastRealTime  = 0
)

// terminal is a controlling terminal; here there is none.
type terminal struct{}

func openTerminal() *terminal     { return nil }
func (*terminal) foreground() int { return -1 }
func (*terminal) give(int)        {}
func (*terminal) takeBack(int)    {}
func (*terminal) stopUs()         {}
