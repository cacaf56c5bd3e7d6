package doctor

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Listener finds the process that listens on a TCP port of this network namespace: "gunicorn
// (123)", or "" where we may not look at it.
func Listener(port int) string {
	const procRoot = "/proc"
	p, ok := listenerIn(procRoot, port, readProcesses(procRoot))
	if !ok {
		return ""
	}
	return fmt.Sprintf("%s (%d)", p.name, p.pid)
}

// listenerIn finds the one of some processes that listens on a port.
func listenerIn(procRoot string, port int, processes []process) (process, bool) {
	inodes := map[string]bool{}
	for _, table := range []string{"net/tcp", "net/tcp6"} {
		listening(filepath.Join(procRoot, table), port, inodes)
	}
	if len(inodes) == 0 {
		return process{}, false
	}
	for _, p := range processes {
		fds, err := os.ReadDir(filepath.Join(p.root, "fd"))
		if err != nil {
			continue // another user's
		}
		for _, fd := range fds {
			target, err := os.Readlink(filepath.Join(p.root, "fd", fd.Name()))
			if inode, ok := strings.CutPrefix(target, "socket:["); err == nil && ok && inodes[strings.TrimSuffix(inode, "]")] {
				return p, true
			}
		}
	}
	return process{}, false
}

// listening adds the inodes of the sockets in a table of proc(5) that listen on a port.
func listening(path string, port int, inodes map[string]bool) {
	f, err := os.Open(path)
	if err != nil {
		return
	}
	defer f.Close() //nolint:errcheck // it was only read
	const stateListen = "0A"
	for lines := bufio.NewScanner(f); lines.Scan(); {
		// sl local_address rem_address st … inode; an address is hexadecimal, with :PORT.
		fields := strings.Fields(lines.Text())
		if len(fields) < 10 || fields[3] != stateListen {
			continue
		}
		_, hex, _ := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && int(n) == port {
			inodes[fields[9]] = true
		}
	}
}
