package watch

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// procMaxAge is how old a reading of all processes may be for an answer, or procShare
	// times what the reading took, if that is more: a death shall be noticed within a
	// second, but not at the cost of more than a fiftieth of a core.
	procMaxAge = 500 * time.Millisecond
	procShare  = 50
	// procOneMaxAge is how old the reading of a single process may be. All it can do is to
	// make an Unknown an Alive, and both count as alive.
	procOneMaxAge = 10 * time.Second
)

// The inode numbers of the initial namespaces, which the kernel never changes
// (include/linux/proc_ns.h: PROC_PID_INIT_INO, PROC_USER_INIT_INO).
const (
	initPidNamespace  = "pid:[4026531836]"
	initUserNamespace = "user:[4026531837]"
)

// A procProber answers from /proc. A reading serves all files that are asked for until it
// is too old.
type procProber struct {
	// mu guards everything below.
	mu sync.Mutex

	all   inodeSet  // inodes that some process holds; nil if one may have been missed
	gen   uint64    // counts readings
	until time.Time // when the reading in force is too old; zero: there is none

	// asked says for each file during which readings' time it was first and last asked for.
	// A reading tells of a file only if it began after the first question.
	asked map[FileRef]procQuestion

	one      map[string]inodeSet // inodes that a single process holds, by pid
	oneUntil time.Time

	// mayHide, if a test sets it, names processes that need not be readable. It is set
	// before the first use and never changed.
	mayHide func(pid string) bool
}

type procQuestion struct{ first, last uint64 }

type inodeSet map[uint64]struct{}

// checkProc answers from /proc as the comment of Check has it.
func (p *Prober) checkProc(f FileRef) State {
	p.proc.mu.Lock()
	defer p.proc.mu.Unlock()
	p.refreshProcLocked(time.Now())

	q, ok := p.proc.asked[f]
	if !ok {
		q.first = p.proc.gen
	}
	q.last = p.proc.gen
	p.proc.asked[f] = q

	// Devices are not compared, here and below: maps and stat disagree on them on some file
	// systems, and a number that is equal by chance only makes a file count as alive.
	if p.proc.all != nil {
		if _, held := p.proc.all[f.Ino]; held {
			return Alive
		}
		if q.first == p.proc.gen {
			return Unknown
		}
		if fsys, err := fileSystemOf(int(f.Fd)); err != nil || !fsys.maps {
			return Unknown
		}
		return Dead
	}
	if !isPid(f.ID) {
		return Unknown
	}
	held, ok := p.proc.one[f.ID]
	if !ok {
		// An error is no matter: the process may be gone, or hide from us; what was
		// found is true.
		held = inodeSet{}
		_ = addProcess(held, f.ID, false)
		p.proc.one[f.ID] = held
	}
	if _, ok := held[f.Ino]; ok {
		return Alive
	}
	return Unknown
}

// refreshProcLocked replaces what is too old.
func (p *Prober) refreshProcLocked(now time.Time) {
	if now.After(p.proc.oneUntil) {
		p.proc.one, p.proc.oneUntil = map[string]inodeSet{}, now.Add(procOneMaxAge)
	}
	if now.Before(p.proc.until) {
		return
	}
	// Who was not asked for during the last reading has no claim to an answer by this one:
	// its descriptor may have been closed and its inode number given to another file.
	for f, q := range p.proc.asked {
		if q.last != p.proc.gen {
			delete(p.proc.asked, f)
		}
	}
	if p.proc.asked == nil {
		p.proc.asked = map[FileRef]procQuestion{}
	}
	p.proc.gen++
	p.proc.all = nil
	// For files that nobody has asked for yet, a reading would tell nothing.
	if len(p.proc.asked) > 0 && p.proc.blind() == "" {
		if all, err := p.proc.readAll(); err == nil {
			p.proc.all = all
		}
	}
	p.proc.until = now.Add(max(procMaxAge, procShare*time.Since(now)))
}

// blind returns why /proc cannot show us every process of this kernel with all its files,
// or "" if it may.
func (*procProber) blind() string {
	for link, want := range map[string]string{"pid": initPidNamespace, "user": initUserNamespace} {
		got, err := os.Readlink("/proc/self/ns/" + link)
		if err != nil {
			return "cannot read /proc/self/ns"
		}
		if got != want {
			return "not in the initial " + link + " namespace"
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil || data[0].Effective&(1<<unix.CAP_SYS_PTRACE) == 0 {
		return "no CAP_SYS_PTRACE"
	}
	return ""
}

// useless returns why /proc can prove no death on a file system, or "".
func (p *procProber) useless(fsys fileSystem) string {
	if !fsys.maps {
		return "inode numbers there cannot be compared with those of this file system"
	}
	if reason := p.blind(); reason != "" {
		return reason
	}
	// Forks are a matter of luck. A process that hides from us will do so again.
	if _, err := p.readAll(); err != nil && !errors.Is(err, errForked) {
		return err.Error()
	}
	return ""
}

// errForked says that processes were made while they were being read.
var errForked = errors.New("processes were forked meanwhile")

// readAll returns the inodes that any process holds, or an error if it may have missed one.
// On a machine that forks all the time, that is errForked.
func (p *procProber) readAll() (held inodeSet, err error) {
	for range 4 {
		if held, err = p.readOnce(); !errors.Is(err, errForked) {
			break
		}
	}
	return held, err
}

func (p *procProber) readOnce() (inodeSet, error) {
	before, err := countForks()
	if err != nil {
		return nil, err
	}
	list, err := readNames("/proc")
	if err != nil {
		return nil, err
	}
	held := inodeSet{}
	for _, name := range list {
		if !isPid(name) {
			continue
		}
		if err := addProcess(held, name, true); err != nil && (p.mayHide == nil || !p.mayHide(name)) {
			return nil, fmt.Errorf("look into process %s: %w", name, err)
		}
	}
	after, err := countForks()
	if err != nil {
		return nil, err
	}
	if after != before {
		return nil, errForked
	}
	return held, nil
}

// countForks returns how many processes and threads were ever made (proc_stat(5),
// "processes"). The kernel counts one under the lock under which it becomes visible.
func countForks() (uint64, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	_, rest, ok := bytes.Cut(stat, []byte("\nprocesses "))
	if !ok {
		return 0, errors.New("no count of processes in /proc/stat")
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
}

// addProcess adds to held the inodes that a process has in a shared mapping or open for
// writing. A process that ends meanwhile holds nothing and is no error. With threads it
// also looks for threads that share neither descriptors nor, because the first thread has
// ended, memory with the process.
func addProcess(held inodeSet, pid string, threads bool) error {
	dir := "/proc/" + pid
	self := pid == strconv.Itoa(os.Getpid())
	mapped, err := addMaps(held, dir+"/maps", self)
	if err == nil {
		err = addDescriptors(held, dir+"/fd")
	}
	if err != nil || !threads {
		return err
	}
	tasks, err := readNames(dir + "/task")
	if err != nil {
		return goneIsFine(err)
	}
	for _, tid := range tasks {
		if tid == pid {
			continue
		}
		if !mapped {
			if _, err := addMaps(held, dir+"/task/"+tid+"/maps", self); err != nil {
				return err
			}
		}
		if !sameDescriptors(pid, tid) {
			if err := addDescriptors(held, dir+"/task/"+tid+"/fd"); err != nil {
				return err
			}
		}
	}
	return nil
}

// addMaps adds the inodes of shared mappings (proc_pid_maps(5)). Those of a private one
// cannot be written to. One that is shared but not writable now counts too, since mprotect
// may change that; only of ourselves we know that we never do. It reports whether there were any
// mappings at all.
func addMaps(held inodeSet, path string, self bool) (mapped bool, err error) {
	maps, err := os.ReadFile(path)
	if err != nil {
		return false, goneIsFine(err)
	}
	for line := range bytes.Lines(maps) {
		mapped = true
		// address perms offset dev inode path
		_, rest := cutField(bytes.TrimSuffix(line, []byte("\n")))
		perms, rest := cutField(rest)
		if len(perms) != 4 || perms[3] != 's' || (self && perms[1] != 'w') {
			continue
		}
		_, rest = cutField(rest)
		_, rest = cutField(rest)
		inode, _ := cutField(rest)
		ino, err := strconv.ParseUint(string(inode), 10, 64)
		if err != nil {
			return mapped, fmt.Errorf("line %q in %s: %w", line, path, err)
		}
		if ino != 0 {
			held[ino] = struct{}{}
		}
	}
	return mapped, nil
}

// addDescriptors adds the inodes of regular files that are open for writing.
func addDescriptors(held inodeSet, path string) error {
	dir, err := open(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return goneIsFine(err)
	}
	defer closeFd(dir)
	list, err := readNames(path)
	if err != nil {
		return goneIsFine(err)
	}
	for _, name := range list {
		// The mode of the link itself is how the descriptor is open (proc_pid_fd(5)).
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if goneIsFine(err) != nil {
				return err
			}
			continue // closed meanwhile
		}
		if st.Mode&0o200 == 0 {
			continue
		}
		// Of a network file system, what is known here is enough: do not wait for its server.
		var stx unix.Statx_t
		err := unix.Statx(dir, name, unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_INO, &stx)
		if err != nil {
			if goneIsFine(err) != nil {
				return err
			}
			continue
		}
		if stx.Mode&unix.S_IFMT == unix.S_IFREG {
			held[stx.Ino] = struct{}{}
		}
	}
	return nil
}

// sameDescriptors reports whether two tasks certainly share one table of descriptors
// (kcmp(2), KCMP_FILES; the kernel may be built without it).
func sameDescriptors(pid, tid string) bool {
	const kcmpFiles = 2
	p, err1 := strconv.Atoi(pid)
	t, err2 := strconv.Atoi(tid)
	if err1 != nil || err2 != nil {
		return false
	}
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(p), uintptr(t), kcmpFiles, 0, 0, 0)
	return errno == 0 && order == 0
}

// goneIsFine drops the error of a process or descriptor that has ended.
func goneIsFine(err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

func readNames(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // nothing was written
	return f.Readdirnames(-1)
}

// isPid reports whether s is written as the kernel writes a pid.
func isPid(s string) bool {
	if s == "" || len(s) > 10 || s[0] == '0' {
		return false
	}
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}
