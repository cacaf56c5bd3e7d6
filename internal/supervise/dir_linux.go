package supervise

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// onTmpfs reports whether the directory is there, and in memory.
func onTmpfs(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}

// startedWith returns the other processes that have the directory in their environment, as
// far as this user may see it.
func startedWith(dir string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	want := []byte("PROMETHEUS_MULTIPROC_DIR=" + dir)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		for v := range bytes.SplitSeq(environ("/proc/"+e.Name()), []byte{0}) {
			if bytes.Equal(v, want) {
				pids = append(pids, pid)
				break
			}
		}
	}
	return pids
}

// environ returns what a process had in its environment at its last execve, or nothing if
// it is a zombie, a thread of the kernel or another user's. In the middle of an execve the
// kernel shows no environment (fs/proc/base.c, environ_read: not before env_end is set): such
// a process is asked again, for a second at most.
func environ(process string) []byte {
	buf := make([]byte, 64<<10)
	for began := time.Now(); ; {
		n, err := readOnce(process+"/environ", buf)
		switch {
		case err != nil:
			return nil
		case n == len(buf):
			buf = make([]byte, 2*n)
		case n > 0 || hasNoEnviron(process) || time.Since(began) > time.Second:
			return buf[:n]
		default:
			time.Sleep(time.Millisecond)
		}
	}
}

// hasNoEnviron reports whether a process has an empty environment, or none as it is a
// zombie. Else it executes a program: the kernel notes where the code is when all of the
// environment is there (fs/binfmt_elf.c, load_elf_binary: start_code after
// create_elf_tables).
func hasNoEnviron(process string) bool {
	if _, err := os.Readlink(process + "/exe"); err != nil {
		return true
	}
	buf := make([]byte, 4<<10)
	n, err := readOnce(process+"/stat", buf)
	if err != nil {
		return true
	}
	// proc_pid_stat(5) counts fields from 1; the second is the program's name in
	// parentheses and may hold anything, these too.
	fields := strings.Fields(string(buf[bytes.LastIndexByte(buf[:n], ')')+1 : n]))
	const third, startCode, envStart, envEnd = 3, 26, 50, 51
	return len(fields) > envEnd-third && fields[startCode-third] != "0" &&
		fields[envStart-third] == fields[envEnd-third]
}

// readOnce reads a file from its start by a single read(2): what several return of a process
// ends where it executed a program between two of them.
func readOnce(name string, buf []byte) (int, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // only read
	n, err := f.Read(buf)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
