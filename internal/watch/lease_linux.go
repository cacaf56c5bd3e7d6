package watch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// TryLease asks for a read lease on fd, a regular file opened for reading only. It does
// not block.
//
// granted true: no process, in any pid namespace, has the file open or mapped for writing
// through this file system (see [Prober.Check] for where that is not the whole truth), and
// the caller holds the lease until ReleaseLease, or until fd and all its duplicates are
// closed. granted false without an error: somebody may write (EAGAIN), or another lease of
// somebody else is just being broken. An error satisfies [ErrLeasePermission] or
// [ErrLeaseUnsupported], or is what fcntl(2) said of a bad descriptor; it tells nothing of
// writers. The rest is in fcntl(2), "Leases", and the kernel's generic_add_lease:
//
//   - The answer is that of the inode's count of writers (i_writecount), which a shared
//     writable mapping holds beyond its descriptor, and which falls the moment the last
//     holder ends, by SIGKILL too. A mapping for reading holds nothing: ours does not
//     disturb. fd itself counts if it is open for writing, so the answer is then always no.
//   - It takes the file's owner (by fsuid) or CAP_LEASE in the initial user namespace.
//   - While the lease is held, whoever opens the file for writing or truncates it blocks
//     (with O_NONBLOCK: fails with EWOULDBLOCK) until the lease is released, at most
//     /proc/sys/fs/lease-break-time seconds, by default 45; then it is taken from us. So
//     hold it for milliseconds. LeaseBroken tells that somebody waits.
//   - A break sends SIGIO to this process. Its default action would be to end the process,
//     but Go's runtime installs a handler for it and does nothing unless the program asked
//     for it with signal.Notify. A test keeps that so.
//
// The lease belongs to the open file description: two descriptors from two opens have two
// leases, a duplicate shares it.
func TryLease(fd int) (granted bool, err error) { return lease(fd, unix.F_RDLCK) }

func lease(fd, kind int) (granted bool, err error) { return leaseResult(setLease(fd, kind)) }

func leaseResult(err unix.Errno) (granted bool, _ error) {
	switch err {
	case 0:
		return true, nil
	case unix.EAGAIN:
		return false, nil
	case unix.EACCES, unix.EPERM:
		return false, errLeasePermission
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOLCK:
		return false, errLeaseUnsupported
	default:
		return false, fmt.Errorf("take lease: %w", err)
	}
}

// Made once: a probe of ten thousand files must not make garbage.
var (
	errLeasePermission  = fmt.Errorf("take lease: %w", ErrLeasePermission)
	errLeaseUnsupported = fmt.Errorf("take lease: %w", ErrLeaseUnsupported)
)

// LeaseBroken reports whether a lease that TryLease granted on fd is broken: somebody
// waits in open or truncate for us to release it, or no longer waits because it was taken
// from us. From then until ReleaseLease, nobody has written yet unless the lease-break-time
// has run out. It is also true if there was no lease.
func LeaseBroken(fd int) (bool, error) {
	kind, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_GETLEASE, 0)
	if errno != 0 {
		return false, fmt.Errorf("look at lease: %w", errno)
	}
	return kind != unix.F_RDLCK, nil
}

// TryWriteLease asks for a write lease on fd, a regular file. It does not block, and its errors
// are those of TryLease.
//
// granted true: nobody else has the file open at all. The caller's own open file
// description, with its duplicates and mappings, does not count; a second one of the caller's
// does. Until ReleaseLease, or until fd and all its duplicates are closed, everybody who opens
// the file waits in open, also to read. What TryLease says of waiting, of the lease-break-time
// and of SIGIO holds here, too. granted false without an error: somebody has the file open.
func TryWriteLease(fd int) (granted bool, err error) { return lease(fd, unix.F_WRLCK) }

// ReleaseLease gives up the lease on fd, so that whoever waits in open goes on. Releasing a
// lease that was broken is the way to let go. One that is not there any more, because it was
// taken from us, is no error.
func ReleaseLease(fd int) error {
	// EAGAIN is what the kernel says when there is no lease (generic_delete_lease).
	if errno := setLease(fd, unix.F_UNLCK); errno != 0 && errno != unix.EAGAIN {
		return fmt.Errorf("release lease: %w", errno)
	}
	return nil
}

func setLease(fd, kind int) unix.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLEASE, uintptr(kind))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// A fileSystem is what is known of one by its type (statfs(2)).
type fileSystem struct {
	name string
	// leases says what a lease that was granted there is worth.
	leases leaseWorth
	// maps says that /proc/PID/maps shows the inode numbers that stat shows, so that they
	// can be compared. On btrfs and overlayfs they may be others.
	maps bool
}

type leaseWorth uint8

const (
	leaseNoProof    leaseWorth = iota // writers may be outside this kernel, or nothing is known
	leaseIfTested                     // local, but it depends on the version what a mapping holds
	leaseIsEvidence                   // local, and the inode itself counts its writers
)

var knownFileSystems = map[int64]fileSystem{
	unix.TMPFS_MAGIC:           {"tmpfs", leaseIsEvidence, true},
	unix.EXT4_SUPER_MAGIC:      {"ext4", leaseIsEvidence, true}, // ext2 and ext3 have the same type
	unix.XFS_SUPER_MAGIC:       {"xfs", leaseIsEvidence, true},
	unix.F2FS_SUPER_MAGIC:      {"f2fs", leaseIsEvidence, true},
	unix.RAMFS_MAGIC:           {"ramfs", leaseIsEvidence, true},
	unix.BTRFS_SUPER_MAGIC:     {"btrfs", leaseIsEvidence, false},
	unix.OVERLAYFS_SUPER_MAGIC: {"overlayfs", leaseIfTested, false},
	0x2fc12fc1:                 {"zfs", leaseIfTested, false},
	0xca451a4e:                 {"bcachefs", leaseIfTested, false},
	unix.NFS_SUPER_MAGIC:       {"nfs", leaseNoProof, false},
	unix.CIFS_SUPER_MAGIC:      {"cifs", leaseNoProof, false},
	unix.SMB2_SUPER_MAGIC:      {"smb", leaseNoProof, false},
	unix.V9FS_MAGIC:            {"9p", leaseNoProof, false},
	unix.CEPH_SUPER_MAGIC:      {"ceph", leaseNoProof, false},
	unix.FUSE_SUPER_MAGIC:      {"fuse", leaseNoProof, false}, // and virtiofs
}

func fileSystemOf(fd int) (fileSystem, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fileSystem{}, err
	}
	magic := int64(st.Type) & 0xffffffff //nolint:unconvert // Type has 32 bits on some machines
	if fsys, ok := knownFileSystems[magic]; ok {
		return fsys, nil
	}
	return fileSystem{name: "0x" + strconv.FormatInt(magic, 16)}, nil
}

// A selfTest is the outcome of trying on a file of our own whether leases tell the truth.
type selfTest struct {
	dev  uint64 // of the file system on which it was made
	done bool   // false where no file could be made: nothing is known
	err  error  // why leases are of no use there; nil if all was as it must be
}

// leaseProves reports whether a lease that was granted on f proves that nobody can write.
func (p *Prober) leaseProves(f FileRef) bool {
	fsys, err := fileSystemOf(int(f.Fd))
	if err != nil {
		return false
	}
	p.mu.Lock()
	lab := p.lab
	p.mu.Unlock()
	return fsys.trusted(lab, f.Dev)
}

func (fsys fileSystem) trusted(lab selfTest, dev uint64) bool {
	tested := lab.done && lab.dev == dev
	switch {
	case fsys.leases == leaseNoProof || (tested && lab.err != nil):
		return false
	case fsys.leases == leaseIfTested:
		return tested
	}
	return true
}

// probe looks at the directory for Probe.
func (p *Prober) probe() (Choice, selfTest, error) {
	fd, err := open(unix.AT_FDCWD, p.dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return Choice{}, selfTest{}, err
	}
	dir := os.NewFile(uintptr(fd), p.dir)
	defer dir.Close() //nolint:errcheck // nothing was written
	fsys, err := fileSystemOf(fd)
	if err != nil {
		return Choice{}, selfTest{}, fmt.Errorf("statfs: %w", err)
	}
	lab := testLeases(fd)
	choice := Choice{Method: MethodLease, FileSystem: fsys.name}
	switch {
	case fsys.leases == leaseNoProof:
		choice.Reason = "leases on this file system do not tell of writers elsewhere"
	case lab.done && lab.err != nil:
		choice.Reason = lab.err.Error()
	case fsys.leases == leaseIfTested && !lab.done:
		choice.Reason = "leases on this file system must be tested first, and no file can be made to do so"
	default:
		if err := tryExisting(dir); err != nil {
			choice.Reason = err.Error()
		}
	}
	if choice.Reason != "" {
		choice.Method = MethodNone
		if reason := p.proc.useless(fsys); reason != "" {
			choice.Reason += "; /proc: " + reason
		} else {
			choice.Method = MethodProc
		}
	}
	return choice, lab, nil
}

// testLeases tries, on a file without a name in the directory dir, what a lease must be
// refused for and granted after. O_TMPFILE changes neither the directory nor its timestamps.
func testLeases(dir int) selfTest {
	r, dev, err := heldByMapping(dir)
	if r < 0 {
		return selfTest{}
	}
	defer closeFd(r)
	for pause := time.Millisecond; err == nil; pause *= 2 {
		var granted bool
		if granted, err = AskLease(r); granted {
			break
		}
		// Who looks into our /proc/PID/fd at the wrong moment has a share in the descriptor
		// for writing, and gives it up a little later than we do.
		if pause > 200*time.Millisecond {
			err = errors.New("a lease is refused on a file that nobody writes")
		}
		time.Sleep(pause)
	}
	return selfTest{dev: dev, done: true, err: err}
}

// heldByMapping makes a file, holds it open, then only mapped for writing, and then not at
// all. It returns an error if a lease was granted while it was held. r is a descriptor for
// reading it, which the caller closes, or -1 where no file can be made: because we may not
// write there, the file system is full or read-only, or it or /proc is too simple.
func heldByMapping(dir int) (r int, dev uint64, err error) {
	// A child that is between fork and exec would have our descriptor for writing too.
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()

	w, err := open(dir, ".", unix.O_RDWR|unix.O_TMPFILE)
	if err != nil {
		return -1, 0, nil
	}
	r, err = open(unix.AT_FDCWD, "/proc/thread-self/fd/"+strconv.Itoa(w), unix.O_RDONLY)
	var st unix.Stat_t
	if err == nil {
		if err = unix.Fstat(r, &st); err != nil {
			closeFd(r)
		}
	}
	if err != nil {
		closeFd(w)
		return -1, 0, nil
	}
	dev = uint64(st.Dev) //nolint:unconvert // Dev has 32 bits on some machines

	granted, err := AskLease(r)
	if granted {
		err = errors.New("a lease is granted on a file that is open for writing")
	}
	m, mapErr := unix.Mmap(w, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	closeFd(w)
	if mapErr != nil {
		return r, dev, errors.Join(err, fmt.Errorf("map a file of our own: %w", mapErr))
	}
	if err == nil {
		if granted, err = AskLease(r); granted {
			err = errors.New("a lease is granted on a file that is mapped for writing")
		}
	}
	return r, dev, errors.Join(err, unix.Munmap(m))
}

// AskLease is [TryLease] for one who only wants the answer: a lease that is granted is released at
// once. Between the two calls there is nothing at which the scheduler of Go or a collection of
// garbage could hold us up: whoever opens the file just then waits as long as the lease is held.
// Only who stops the whole process within that microsecond makes it longer.
func AskLease(fd int) (granted bool, err error) {
	taken := rawLease(fd, unix.F_RDLCK)
	if taken != 0 {
		return leaseResult(taken)
	}
	if errno := rawLease(fd, unix.F_UNLCK); errno != 0 && errno != unix.EAGAIN {
		return true, fmt.Errorf("release lease: %w", errno)
	}
	return true, nil
}

// rawLease asks the kernel without telling the scheduler: neither call waits for anything.
func rawLease(fd, kind int) unix.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETLEASE, uintptr(kind))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// tryExisting asks for leases on some files of the directory and returns why that is no
// use, or nil.
func tryExisting(dir *os.File) error {
	const enough = 32 // some files, not the ten thousand that may be there
	list, err := dir.ReadDir(4 * enough)
	if len(list) == 0 && err != nil {
		return nil // empty, or not readable: nothing is known against leases
	}
	tried := 0
	for _, e := range list {
		if strings.HasPrefix(e.Name(), ".") || !e.Type().IsRegular() {
			continue
		}
		err := tryFile(int(dir.Fd()), e.Name())
		if errors.Is(err, ErrLeasePermission) || errors.Is(err, ErrLeaseUnsupported) {
			return err
		}
		if tried++; tried == enough {
			break
		}
	}
	return nil
}

func tryFile(dir int, name string) error {
	fd, err := open(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return err
	}
	defer closeFd(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return err
	}
	_, err = AskLease(fd)
	return err
}

// cutField returns the first field of line and what follows the spaces after it.
func cutField(line []byte) (field, rest []byte) {
	field, rest, _ = bytes.Cut(line, []byte(" "))
	return field, bytes.TrimLeft(rest, " ")
}
