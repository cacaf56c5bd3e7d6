package store

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// created returns the time of birth, which ext4, xfs, btrfs and tmpfs (since Linux 5.19 or
// so) record, otherwise the time of modification.
func created(f *os.File) (time.Time, error) {
	var stx unix.Statx_t
	// Old kernels and narrow seccomp filters have no statx(2): then the other will do.
	err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &stx)
	if err == nil && stx.Mask&unix.STATX_BTIME != 0 {
		return time.Unix(stx.Btime.Sec, int64(stx.Btime.Nsec)), nil
	}
	return modified(f)
}
