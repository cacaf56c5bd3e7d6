package process

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// clockTicks is sysconf(_SC_CLK_TCK): USER_HZ, which is 100 on every machine we support.
const clockTicks = 100

func mkdev(major, minor uint32) uint64 { return unix.Mkdev(major, minor) }

// kernel is what is asked of the kernel beyond text files.
type kernel struct{}

func newKernel() kernel { return kernel{} }

// read reads a file into buf, which grows as needed, with no more system calls than it
// takes: a file of /proc says nothing of its size.
func (k *kernel) read(buf *[]byte, path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	b := (*buf)[:cap(*buf)]
	if len(b) == 0 {
		b = make([]byte, 16<<10)
	}
	n := 0
	for n < limit {
		if n == len(b) {
			b = append(b, make([]byte, len(b))...)
		}
		m, err := unix.Read(fd, b[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			*buf = b
			return nil, &os.PathError{Op: "read", Path: path, Err: err}
		}
		if m == 0 {
			break
		}
		n += m
	}
	if *buf = b; len(b) > keepBuffer {
		*buf = nil
	}
	return b[:min(n, limit)], nil
}

// readStat reads /proc/PID/stat.
func (k *kernel) readStat(buf *[]byte, path string) ([]byte, error) {
	fd, err := k.open(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was written
	return k.readOpenStat(buf, fd)
}

// open opens a file of /proc for reading.
func (k *kernel) open(path string) (fd int, err error) {
	if fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// readOpenStat reads /proc/PID/stat that is open, as of now. It comes whole with the first read if
// there is room for it: proc_pid_stat(5) has 52 numbers and a short name. When the process was waited
// for, the error is ESRCH, whoever has its pid by then.
func (k *kernel) readOpenStat(buf *[]byte, fd int) ([]byte, error) {
	if cap(*buf) < 4096 {
		*buf = make([]byte, 16<<10)
	}
	b := (*buf)[:cap(*buf)]
	for {
		n, err := unix.Pread(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: "/proc/PID/stat", Err: err}
		}
		return b[:n], nil
	}
}

// keepBuffer is how large the buffer for files may be for the next reading.
const keepBuffer = 1 << 20

// hold returns a descriptor of a process that tells how it has ended, or -1
// (pidfd_open(2), Linux 5.3).
func (k *kernel) hold(pid int) int {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	return fd
}

// release gives up what hold has returned.
func (k *kernel) release(fd int) {
	if fd >= 0 {
		unix.Close(fd) //nolint:errcheck // nothing was written
	}
}

// ended tells how a process has ended that was waited for, by a descriptor of hold
// (PIDFD_GET_INFO with PIDFD_INFO_EXIT, Linux 6.15).
func (k *kernel) ended(fd int) (status int, ok bool) {
	if fd < 0 {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	if err := unix.IoctlPidfdInfo(fd, &info); err != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return int(info.Exit_code), true
}

// reasonOf names how a process has ended, by its status as wait(2) has it.
func reasonOf(status int) string {
	w := unix.WaitStatus(status)
	switch {
	case w.Signaled():
		if name := unix.SignalName(w.Signal()); name != "" {
			return name
		}
		return "SIG" + strconv.Itoa(int(w.Signal()))
	case w.ExitStatus() == 0:
		return "ok"
	}
	return "error"
}

// uptime returns how long the machine runs, in clock ticks, as start times have it
// (CLOCK_BOOTTIME).
func uptime() uint64 {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) != nil {
		return 0
	}
	return uint64(t.Nano() / (1e9 / clockTicks))
}

// A descriptor is what a process has open.
type descriptor struct {
	dev, ino uint64 // of a regular file, else 0
	writable bool
	socket   uint64 // its number, or 0
}

// descriptors calls f for what a process has open, of which path is the directory; at most
// limit of them.
func (k *kernel) descriptors(path string, limit int, f func(descriptor)) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	names, err := dir.Readdirnames(limit)
	if len(names) == 0 {
		return err
	}
	fd := int(dir.Fd())
	var link [64]byte
	for _, name := range names {
		n, err := unix.Readlinkat(fd, name, link[:])
		if err != nil {
			if gone(err) {
				continue // closed meanwhile
			}
			return err
		}
		target := string(link[:n])
		if rest, ok := strings.CutPrefix(target, "socket:["); ok {
			if ino, err := strconv.ParseUint(strings.TrimSuffix(rest, "]"), 10, 64); err == nil {
				f(descriptor{socket: ino})
			}
			continue
		}
		if !strings.HasPrefix(target, "/") || strings.HasPrefix(target, "/dev/null") {
			continue
		}
		// The mode of the link itself is how the descriptor is open (proc_pid_fd(5)).
		var st unix.Stat_t
		if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&0o200 == 0 {
			continue
		}
		// Of a network file system, what is known here is enough: do not wait for its server.
		var stx unix.Statx_t
		if unix.Statx(fd, name, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &stx) != nil ||
			stx.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		f(descriptor{dev: unix.Mkdev(stx.Dev_major, stx.Dev_minor), ino: stx.Ino, writable: true})
	}
	return nil
}

// identity returns what file a path leads to.
func identity(path string) (dev, ino uint64, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return 0, 0, false
	}
	return st.Dev, st.Ino, true
}

// countDescriptors returns how many descriptors a process has open, of which path is the
// directory. Since Linux 6.2 that is the size of the directory.
func countDescriptors(path string) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	if st.Size > 0 {
		return int(st.Size), nil
	}
	dir, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	names, err := dir.Readdirnames(-1)
	return len(names), err
}

// A listener is a socket that connections are waiting at.
type listener struct {
	address string
	waiting uint32 // connections to be accepted
	limit   uint32 // of them; 0 where it is not known
}

// listeners returns the listening sockets of our network namespace by their numbers, as ss(8)
// finds them (sock_diag(7)).
func (k *kernel) listeners() (map[uint64]listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // nothing is lost
	// The answer comes from the kernel at once, or not at all.
	tv := unix.Timeval{Sec: 1}
	unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv) //nolint:errcheck // then there is no limit
	found := map[uint64]listener{}
	var errs []error
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6, unix.AF_UNIX} {
		if err := dump(fd, diagRequest(family), func(message []byte) {
			if ino, l, ok := parseDiag(message); ok {
				found[ino] = l
			}
		}); err != nil {
			errs = append(errs, fmt.Errorf("ask for sockets of family %d: %w", family, err))
		}
	}
	if len(errs) == 3 {
		return nil, errors.Join(errs...)
	}
	return found, nil
}

const (
	// What to tell of a unix socket (include/uapi/linux/unix_diag.h).
	udiagShowName, udiagShowRqlen = 1, 0x10
	unixDiagName, unixDiagRqlen   = 0, 4

	inetMessage = 72 // struct inet_diag_msg
	unixMessage = 16 // struct unix_diag_msg
)

// diagRequest asks for all listening sockets of a family (struct inet_diag_req_v2 and
// struct unix_diag_req).
func diagRequest(family uint8) []byte {
	var body []byte
	if family == unix.AF_UNIX {
		body = make([]byte, 24)
		body[0] = family
		binary.NativeEndian.PutUint32(body[4:], 1<<stateListen)
		binary.NativeEndian.PutUint32(body[12:], udiagShowName|udiagShowRqlen)
	} else {
		body = make([]byte, 56)
		body[0], body[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(body[4:], 1<<stateListen)
	}
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(body))
	binary.NativeEndian.PutUint32(request, uint32(cap(request)))
	binary.NativeEndian.PutUint16(request[4:], unix.SOCK_DIAG_BY_FAMILY)
	binary.NativeEndian.PutUint16(request[6:], unix.NLM_F_REQUEST|unix.NLM_F_DUMP)
	return append(request, body...)
}

// dump sends a request and calls f for each message of the answer.
func dump(fd int, request []byte, f func([]byte)) error {
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		done, err := eachMessage(buf[:n], f)
		if done || err != nil {
			return err
		}
	}
}

var errNetlink = errors.New("not in the form of netlink(7)")

// eachMessage calls f for each message of one datagram (netlink(7)); done says that no more
// are to come.
func eachMessage(b []byte, f func([]byte)) (done bool, err error) {
	for len(b) > 0 {
		if len(b) < unix.SizeofNlMsghdr {
			return true, errNetlink
		}
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr || size > len(b) {
			return true, errNetlink
		}
		body := b[unix.SizeofNlMsghdr:size]
		switch binary.NativeEndian.Uint16(b[4:]) {
		case unix.NLMSG_DONE:
			return true, nil
		case unix.NLMSG_ERROR:
			if len(body) < 4 {
				return true, errNetlink
			}
			if errno := int32(binary.NativeEndian.Uint32(body)); errno != 0 {
				return true, unix.Errno(-errno)
			}
		case unix.SOCK_DIAG_BY_FAMILY:
			f(body)
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return false, nil
}

// parseDiag reads one socket (struct inet_diag_msg or struct unix_diag_msg, the latter with
// attributes). For a listening socket the queues are the connections that wait and how many
// may.
func parseDiag(b []byte) (ino uint64, l listener, ok bool) {
	if len(b) < unixMessage {
		return 0, l, false
	}
	switch b[0] {
	case unix.AF_INET, unix.AF_INET6:
		if len(b) < inetMessage || b[1] != stateListen {
			return 0, l, false
		}
		// struct inet_diag_sockid begins at 4: two ports, then source and destination.
		port := binary.BigEndian.Uint16(b[4:])
		addr := netip.AddrFrom16([16]byte(b[8:24]))
		if b[0] == unix.AF_INET {
			addr = netip.AddrFrom4([4]byte(b[8:12]))
		}
		l.address = netip.AddrPortFrom(addr, port).String()
		l.waiting, l.limit = binary.NativeEndian.Uint32(b[56:]), binary.NativeEndian.Uint32(b[60:])
		return uint64(binary.NativeEndian.Uint32(b[68:])), l, true
	case unix.AF_UNIX:
		if b[2] != stateListen {
			return 0, l, false
		}
		ino = uint64(binary.NativeEndian.Uint32(b[4:]))
		l.address = "unix:"
		for attrs := b[unixMessage:]; len(attrs) >= 4; {
			size := int(binary.NativeEndian.Uint16(attrs))
			if size < 4 || size > len(attrs) {
				return 0, l, false
			}
			value := attrs[4:size]
			switch binary.NativeEndian.Uint16(attrs[2:]) {
			case unixDiagName:
				l.address = "unix:" + unixName(value)
			case unixDiagRqlen:
				if len(value) < 8 {
					return 0, l, false
				}
				l.waiting, l.limit = binary.NativeEndian.Uint32(value), binary.NativeEndian.Uint32(value[4:])
			}
			attrs = attrs[min((size+3)&^3, len(attrs)):]
		}
		return ino, l, true
	}
	return 0, l, false
}

// unixName is the name of a unix socket as ss(8) shows it: an abstract one begins with @.
func unixName(b []byte) string {
	if len(b) > 0 && b[0] == 0 {
		return "@" + strings.TrimRight(strings.ReplaceAll(string(b[1:]), "\x00", "@"), "@")
	}
	return strings.TrimRight(string(b), "\x00")
}
