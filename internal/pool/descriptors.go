package pool

import (
	"cmp"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Descriptors is a budget of open source files that several pools share. It is safe for
// several goroutines.
type Descriptors struct {
	max  int
	used atomic.Int64
}

// DefaultReserve is how many descriptors stay free unless somebody says otherwise: for the archive,
// the directory and the rest of a process that serves nobody.
const DefaultReserve = 128

// NewDescriptors returns a budget of what the process may have open, less reserve for connections,
// the archives and the rest; 0 means DefaultReserve. Where the limit is so low that next to
// nothing would be left for source files, they get a quarter of it.
func NewDescriptors(reserve int) *Descriptors {
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) != nil {
		return &Descriptors{max: 512}
	}
	return &Descriptors{max: budget(int(min(limit.Cur, 1<<20)), cmp.Or(reserve, DefaultReserve))}
}

// budget is how many of limit descriptors source files may have if reserve are to stay free.
func budget(limit, reserve int) int { return max(limit-reserve, limit/4) }

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
