package watch

import (
	"errors"
	"fmt"
	"sync"
)

// State says whether a process may still write to a file.
type State uint8

// The states. Only Dead is a proof; Unknown, the zero value, counts as alive.
const (
	Unknown State = iota
	Alive
	Dead
)

// String returns "unknown", "alive" or "dead".
func (s State) String() string {
	switch s {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// MayWrite reports whether the file must be treated as one that somebody writes to.
func (s State) MayWrite() bool { return s != Dead }

// Method is a rung of the ladder of ways to learn whether a file's writer is alive.
type Method uint8

// The methods, worst first.
const (
	// MethodNone: nothing is known, every file counts as alive.
	MethodNone Method = iota
	// MethodProc: /proc shows who has which file mapped or open.
	MethodProc
	// MethodLease: the kernel grants a read lease only when nobody can write to the file.
	MethodLease
)

// Methods is the number of methods.
const Methods = int(MethodLease) + 1

// String returns "lease", "proc" or "none".
func (m Method) String() string {
	switch m {
	case MethodLease:
		return "lease"
	case MethodProc:
		return "proc"
	}
	return "none"
}

var (
	// ErrLeasePermission says that this process may take no lease on a file: its fsuid is
	// not the file's owner and it has no CAP_LEASE in the initial user namespace.
	ErrLeasePermission = errors.New("lease not permitted: needs the file's owner or CAP_LEASE")
	// ErrLeaseUnsupported says that there are no leases: not on this file system, this kernel
	// (/proc/sys/fs/leases-enable) or this operating system.
	ErrLeaseUnsupported = errors.New("no leases here")
)

// FileRef is an open file whose writer is asked for.
type FileRef struct {
	// Fd is the caller's descriptor. It must be open for reading only: the kernel counts
	// any other as a writer, so that the file would live as long as it is open. It must
	// stay open from the first Check to the last, so that the inode number keeps its meaning.
	Fd uintptr
	// Dev and Ino are what fstat says of Fd.
	Dev, Ino uint64
	// ID is the worker ID from the file's name. It is only used where it is a pid.
	ID string
}

// A Choice is what a probe of a directory found.
type Choice struct {
	// Method is the best method that works for the files there.
	Method Method
	// FileSystem is the name of the directory's file system, or its type in hexadecimal.
	FileSystem string
	// Reason says in words why no better method works; it is empty for MethodLease.
	Reason string
}

// A Prober tells whether files of one directory can still be written to. It is safe for
// several goroutines. It starts nothing and has nothing to close.
type Prober struct {
	dir string

	// chosen and lab are what the last Probe found; mu guards them.
	mu     sync.Mutex
	chosen Choice
	lab    selfTest

	proc procProber
}

// NewProber returns a Prober for the files in dir, which need not exist yet. Until Probe is
// called, it trusts only the file systems that are known to keep the promise of a lease.
func NewProber(dir string) *Prober {
	return &Prober{dir: dir}
}

// Choice returns what the last Probe that succeeded found.
func (p *Prober) Choice() Choice {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.chosen
}

// Probe finds out which method works in the directory. It leaves no trace: it uses a file
// without a name where it may write, and otherwise, or in addition, some of the files that
// are there. Call it at the start and whenever the path leads to another directory. An
// error means that the directory cannot be opened; the last Choice stays in force.
//
// Files of another owner may come later, so the answer for a file is decided anew by
// each Check, and may rest on a worse method than the Choice.
func (p *Prober) Probe() (Choice, error) {
	choice, lab, err := p.probe()
	if err != nil {
		return Choice{}, fmt.Errorf("probe liveness in %q: %w", p.dir, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.chosen, p.lab = choice, lab
	return choice, nil
}

// Check tells whether anybody can still write to the file, and by which method that is
// known (MethodNone with Unknown). A file that is Dead now may be opened again by
// name the next moment: whoever acts on a death must take a lease of their own and keep it,
// whatever Check says.
//
// The ladder, for each file:
//
// Lease: [AskLease]. Refused because somebody may write: Alive, by any
// file system's word. Granted: Dead, where a grant is a proof. It is one where the file's
// own inode counts everybody who has it open or mapped for writing, and they are all
// below this kernel. So it is a proof on tmpfs, ext2/3/4, xfs, btrfs, f2fs and ramfs; on
// overlayfs, zfs and bcachefs if Probe saw in the same file system that a mapping alone is
// counted. (overlayfs as of Linux 6.18 fails this: mapped, the overlay's inode is not held
// but the one below, and a process that keeps its mapping but closed its descriptor, as a
// daemon does that closes everything, goes unseen.) On all others, among them NFS, CIFS, 9p
// and FUSE with virtiofs, a writer on another machine, or outside this virtual machine,
// would go unseen: a grant there means nothing. (A local file system that is exported to
// other machines by this one's NFS server cannot be told from one that is not.)
//
// /proc: next, when no lease was to be had or its grant proves nothing. Alive if the ID is
// a pid of our namespace and that process has the inode mapped for sharing or open for
// writing. Dead only if it is certain that every process was seen: that a pid
// does not exist says nothing, because the writer may be in another pid namespace, or
// a child of the writer that inherited the mapping. So all of the following must hold:
//
//   - we are in the initial pid namespace, with a /proc of it, so that no process of this
//     kernel is hidden behind a namespace;
//   - we are in the initial user namespace and have CAP_SYS_PTRACE (and, not being root,
//     CAP_DAC_READ_SEARCH), so that no process is hidden by hidepid or hides its maps and
//     descriptors from us, and indeed none did;
//   - the file system is a local one, so that all writers are processes of this kernel,
//     and one that shows in maps the inode number that stat shows;
//   - no process was forked while we read (the kernel counts forks in /proc/stat), so that
//     no mapping moved from a process we had yet to read to one we did not know of;
//   - the reading began after the file was first asked for, so that it is about this file.
//
// Such a reading serves for half a second, or fifty times as long as it took; within that
// time a file that was dead and is opened again still counts as dead. A descriptor that is
// on its way through a socket while we read is not seen. No client does such things, and a
// live gauge that is missing for half a second does no lasting harm, but it is why this Dead
// must never be the ground for removing a file: that takes the lease.
//
// Otherwise Unknown, which counts as alive.
func (p *Prober) Check(f FileRef) (State, Method) {
	granted, err := AskLease(int(f.Fd))
	switch {
	case err == nil && !granted:
		return Alive, MethodLease
	case err == nil && p.leaseProves(f):
		return Dead, MethodLease
	}
	if s := p.checkProc(f); s != Unknown {
		return s, MethodProc
	}
	return Unknown, MethodNone
}
