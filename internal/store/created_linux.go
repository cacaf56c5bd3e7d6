package store

import (
	"time"

	"golang.org/x/sys/unix"
)

// statFile tells what a file is and when it was made: its time of birth, which ext4, xfs,
// btrfs and tmpfs (since Linux 5.19 or so) record, otherwise the time of modification.
func statFile(fd int) (fileInfo, error) {
	const want = unix.STATX_TYPE | unix.STATX_SIZE | unix.STATX_INO | unix.STATX_NLINK | unix.STATX_BTIME
	var st unix.Statx_t
	// Old kernels and narrow seccomp filters have no statx(2): then the other will do.
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, want, &st); err != nil || st.Mask&want != want {
		return statModified(fd)
	}
	return fileInfo{
		id:      Identity{Dev: unix.Mkdev(st.Dev_major, st.Dev_minor), Ino: st.Ino},
		mode:    uint32(st.Mode),
		links:   st.Nlink,
		size:    int64(st.Size),
		created: time.Unix(st.Btime.Sec, int64(st.Btime.Nsec)), born: true,
	}, nil
}
