package pool

import (
	"cmp"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Descriptors is a budget of open source files that several pools share. It is safe for
// several goroutines.
//
// Each pool has a part of it, made by Part. A pool may take more than its fair share as long as a
// quarter of all is left: so one with too many files never keeps another one from its own.
type Descriptors struct {
	max  int
	used atomic.Int64
	// whole is what this is a part of, nil of the whole, and parts is how many parts that has.
	whole *Descriptors
	parts atomic.Int64
}

// Part returns a part for one pool, which is given up by EndPart.
func (d *Descriptors) Part() *Descriptors {
	d.parts.Add(1)
	return &Descriptors{max: d.max, whole: d}
}

// EndPart gives up a part, of which nothing must be taken.
func (d *Descriptors) EndPart() { d.whole.parts.Add(-1) }

// Grows says that there will be more parts, so that no single one takes everything.
func (d *Descriptors) Grows() { d.parts.Add(1) }

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

// Used is how many are, of all parts.
func (d *Descriptors) Used() int {
	if d.whole != nil {
		return d.whole.Used()
	}
	return int(d.used.Load())
}

// Room is how many more may be.
func (d *Descriptors) Room() int {
	room := max(0, d.max-d.Used())
	if d.whole == nil {
		return room
	}
	parts := int(d.whole.parts.Load())
	if parts < 2 {
		return room
	}
	share, rest := d.max/parts-int(d.used.Load()), d.max-d.max/4-d.Used()
	return min(room, max(0, share, rest))
}

// Full reports whether there is no room.
func (d *Descriptors) Full() bool { return d.Room() == 0 }

// Take takes note of a file that was opened, Give of one that was closed.
func (d *Descriptors) Take() { d.add(1) }

// Give gives back what Take took.
func (d *Descriptors) Give() { d.add(-1) }

func (d *Descriptors) add(n int64) {
	d.used.Add(n)
	if d.whole != nil {
		d.whole.used.Add(n)
	}
}
