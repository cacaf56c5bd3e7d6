package fold

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// holderOf names the process that has locked a directory, as far as proc_locks(5) tells: "process 12".
func holderOf(f *os.File) string {
	const unknown = "another process"
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return unknown
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return unknown
	}
	// 1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.Lines(string(locks)) {
		if fields := strings.Fields(line); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == want && fields[4] != "-1" &&
			fields[4] != "0" {
			return "process " + fields[4]
		}
	}
	return unknown
}
