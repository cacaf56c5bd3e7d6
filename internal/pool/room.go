package pool

import "golang.org/x/sys/unix"

// Room is the room of a file system. Known is false where it cannot be asked.
type Room struct {
	Known                                          bool
	TotalBytes, FreeBytes, TotalInodes, FreeInodes uint64
}

// roomAt asks how much room the file system at a path has.
func roomAt(path string) Room {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return Room{}
	}
	block := uint64(st.Bsize)
	return Room{true, st.Blocks * block, st.Bavail * block, st.Files, st.Ffree}
}

// shortPart is the part of a file system whose rest means that room is short.
const shortPart = 8

// short reports whether the file system has little room.
func (r Room) short() bool {
	return r.TotalBytes > 0 && r.FreeBytes < r.TotalBytes/shortPart ||
		r.TotalInodes > 0 && r.FreeInodes < r.TotalInodes/shortPart
}
