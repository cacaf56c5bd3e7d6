package pool

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Descriptors is a budget of open source files that several pools share. It is safe for
// several goroutines.
type Descriptors struct {
	max  int
	used atomic.Int64
}

// NewDescriptors returns a budget of what the process may have open, less some for
// connections, the archives and the rest.
func NewDescriptors() *Descriptors {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return &Descriptors{max: 512}
	}
	const reserve = 128
	return &Descriptors{max: max(int(min(limit.Cur, 1<<20))-reserve, int(limit.Cur)/2)}
}

// Max is how many source files may be open.
func (d *Descriptors) Max() int { return d.max }

// Used is how many are.
func (d *Descriptors) Used() int { return int(d.used.Load()) }

// Room is how many more may be.
func (d *Descriptors) Room() int { return max(0, d.max-d.Used()) }

// Full reports whether there is no room.
func (d *Descriptors) Full() bool { return d.Used() >= d.max }

// Take takes note of a file that was opened, Give of one that was closed.
func (d *Descriptors) Take() { d.used.Add(1) }

// Give gives back what Take took.
func (d *Descriptors) Give() { d.used.Add(-1) }
