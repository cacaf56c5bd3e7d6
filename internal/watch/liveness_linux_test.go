package watch

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["open"] = helpOpen
	helpers["map"] = helpMap
	helpers["open-in-thread"] = helpOpenInThread
	helpers["map-without-first-thread"] = helpMapWithoutFirst
	if os.Getenv(helperVariable) != "" {
		// Keeps the main goroutine on the process's first thread, and all others off it.
		runtime.LockOSThread()
	}
	helpers["lease"] = helpLease
	helpers["probe"] = func(args []string) error { return helpProbe(args, nil) }
	helpers["probe-some-hide"] = func(args []string) error { return helpProbe(args, mayHide) }
}

// helpOpen opens a file for writing, says so, and holds it.
func helpOpen(args []string) error {
	begin := time.Now()
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fmt.Println("open after", time.Since(begin).Milliseconds())
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// helpMap maps a file for writing, closes it, says so, and keeps the mapping.
func helpMap(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	fmt.Println("mapped")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, unix.Munmap(m))
}

// helpOpenInThread opens a file for writing in a thread that has descriptors of its own.
func helpOpenInThread(args []string) error {
	done := make(chan error)
	// Ends with the process.
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_FILES)
		if err == nil {
			_, err = unix.Open(args[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
		}
		if err == nil {
			fmt.Println("held")
			_, err = io.Copy(io.Discard, os.Stdin)
		}
		done <- err
	}()
	return <-done
}

// helpMapWithoutFirst maps a file for writing and ends the first thread, not the process.
func helpMapWithoutFirst(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	_, err = unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err = errors.Join(err, unix.Close(fd)); err != nil {
		return err
	}
	// Ends with the process.
	go func() {
		fmt.Println("held")
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	_, _, errno := unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
	return errno
}

// helpLease holds a lease until it is broken, and goes on for a while then, as a program
// that knows nothing of SIGIO.
func helpLease(args []string) error {
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	fd := int(f.Fd())
	if granted, err := TryLease(fd); !granted || err != nil {
		return fmt.Errorf("no lease: %w", err)
	}
	fmt.Println("granted")
	for {
		broken, err := LeaseBroken(fd)
		if err != nil {
			return err
		}
		if broken {
			break
		}
		runtime.Gosched()
	}
	time.Sleep(50 * time.Millisecond) // the opener waits all the while
	fmt.Println("broken")
	if err := ReleaseLease(fd); err != nil {
		return err
	}
	runtime.GC()
	_, err = io.Copy(io.Discard, os.Stdin)
	fmt.Println("well")
	return err
}

// helpProbe probes the directory of a file, says what it found, and checks the file at every
// line it reads. Further arguments drop all capabilities but those named by number.
func helpProbe(args []string, mayHide func(string) bool) error {
	if len(args) > 2 {
		if err := keepCapabilities(args[2:]); err != nil {
			return err
		}
	}
	p := NewProber(filepath.Dir(args[0]))
	p.proc.mayHide = mayHide
	choice, err := p.Probe()
	if err != nil {
		return err
	}
	fmt.Println(choice.Method)
	f, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	ref, err := refOf(f, args[1])
	if err != nil {
		return err
	}
	var line string
	for {
		if _, err := fmt.Scanln(&line); err != nil {
			return nil
		}
		state, method := p.Check(ref)
		fmt.Println(state, method)
	}
}

func keepCapabilities(keep []string) error {
	// Capabilities belong to a thread: the helper goes on with this one alone.
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, s := range keep {
		n, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		data[n/32].Permitted |= 1 << (n % 32)
		data[n/32].Effective |= 1 << (n % 32)
	}
	return unix.Capset(&header, &data[0])
}

func refOf(f *os.File, id string) (FileRef, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return FileRef{}, err
	}
	return FileRef{Fd: f.Fd(), Dev: uint64(st.Dev), Ino: st.Ino, ID: id}, nil //nolint:unconvert // Dev has 32 bits on some machines
}

// source makes a file of one page in dir and opens it as the daemon does.
func source(t testing.TB, dir, id string) (path string, ref FileRef) {
	t.Helper()
	path = filepath.Join(dir, "counter_"+id+".db")
	mustDo(t, os.WriteFile(path, make([]byte, os.Getpagesize()), 0o644))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if ref, err = refOf(f, id); err != nil {
		t.Fatal(err)
	}
	return path, ref
}

func newProber(t testing.TB, dir string) *Prober {
	t.Helper()
	p := NewProber(dir)
	c, err := p.Probe()
	if err != nil {
		t.Fatal(err)
	}
	if c.Method != MethodLease {
		t.Fatalf("Probe: %+v, want lease", c)
	}
	return p
}

func wantState(t testing.TB, p *Prober, f FileRef, want State, when string) {
	t.Helper()
	if got, method := p.Check(f); got != want || method != MethodLease {
		t.Fatalf("%s: %v by %v, want %v by lease", when, got, method, want)
	}
}

// wantDead wants a file to be dead whose last holder has just gone: at the next check, but
// that somebody else, who looks into all processes in /proc as other tests do, may for a
// moment have a share in what the holder had open.
func wantDead(t testing.TB, p *Prober, f FileRef, when string) {
	t.Helper()
	begin := time.Now()
	for n := 1; ; n++ {
		s, m := p.Check(f)
		if s == Dead && m == MethodLease {
			if n > 1 {
				t.Logf("%s: dead at check %d, after %v", when, n, time.Since(begin))
			}
			return
		}
		if time.Since(begin) > time.Second {
			t.Fatalf("%s: %v by %v a second later, want dead by lease", when, s, m)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCheckByLease(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			p := newProber(t, dir)
			for _, how := range []string{"open", "map"} {
				for _, end := range []string{"end", "kill"} {
					t.Run(how+"_"+end, func(t *testing.T) {
						// The ID is not that of any process: it must not matter.
						path, ref := source(t, dir, how+"-"+end)
						wantState(t, p, ref, Dead, "nobody yet")
						c := startHelper(t, how, []string{path}, nil)
						c.line(t)
						for range 100 {
							wantState(t, p, ref, Alive, "held")
						}
						if end == "kill" {
							c.kill()
						} else {
							c.end(t)
						}
						wantDead(t, p, ref, "the next probe after the end")
					})
				}
			}
		})
	}
}

func TestCheckTwoHolders(t *testing.T) {
	dir := t.TempDir()
	p := newProber(t, dir)
	path, ref := source(t, dir, "7")
	a, b := startHelper(t, "map", []string{path}, nil), startHelper(t, "open", []string{path}, nil)
	a.line(t)
	b.line(t)
	a.kill()
	wantState(t, p, ref, Alive, "one of two killed")
	b.kill()
	wantDead(t, p, ref, "both killed")
}

// A forked child that has inherited a mapping can still write when its parent is long dead
// and no descriptor is left.
func TestCheckInheritedMapping(t *testing.T) {
	const python = "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		skipUnlessCI(t, err.Error())
	}
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			p := newProber(t, dir)
			path, ref := source(t, dir, "1")
			// Python's mmap object keeps a duplicate of the descriptor: close them all.
			c, err := startChild(t, exec.Command(python, "-c", `
import mmap, os, sys
f = open(sys.argv[1], "r+b")
m = mmap.mmap(f.fileno(), 0)
os.closerange(3, 100)
if os.fork():
    os._exit(0)
print(os.getpid(), os.getppid(), flush=True)
sys.stdin.read()
`, path))
			if err != nil {
				t.Fatal(err)
			}
			var pid, parent int
			if _, err := fmt.Sscan(c.line(t), &pid, &parent); err != nil {
				t.Fatal(err)
			}
			// Wait returns when the parent is gone; the pipes belong to the child as well.
			if _, err := c.Process.Wait(); err != nil {
				t.Fatal(err)
			}
			wantState(t, p, ref, Alive, "the parent is dead, its child is not")
			fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
			if err != nil || len(fds) == 0 {
				t.Fatalf("descriptors of the child: %v, %v", fds, err)
			}
			for _, fd := range fds {
				if to, _ := os.Readlink(fd); to == path {
					t.Fatal("the child has the file open; the test wants nothing but a mapping")
				}
			}
			c.stdin.Close()
			eventually(t, "the file is dead", func() bool { s, _ := p.Check(ref); return s == Dead })
			c.done = true
		})
	}
}

// What the daemon itself does with a file must not keep it alive.
func TestCheckOurOwnMapping(t *testing.T) {
	dir := t.TempDir()
	p := newProber(t, dir)
	_, ref := source(t, dir, "1")
	m, err := unix.Mmap(int(ref.Fd), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	mustDo(t, err)
	wantState(t, p, ref, Dead, "mapped for reading by us")
	mustDo(t, unix.Munmap(m))
}

// A lease that is not released makes the next worker wait; Check must leave none behind,
// and must not make a worker that opens the file at any moment wait for long.
func TestCheckHoldsNobodyUp(t *testing.T) {
	dir := t.TempDir()
	p := newProber(t, dir)
	path, ref := source(t, dir, "1")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	// Checks until the test has opened often enough.
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				p.Check(ref)
			}
		}
	})
	var worst time.Duration
	for range 2000 {
		begin := time.Now()
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		worst = max(worst, time.Since(begin))
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
	close(stop)
	wg.Wait()
	t.Logf("longest open: %v", worst)
	if worst > 2*time.Second {
		t.Errorf("an open took %v", worst)
	}
	if broken, err := LeaseBroken(int(ref.Fd)); err != nil || !broken {
		t.Errorf("LeaseBroken = %t, %v; want true: no lease is left", broken, err)
	}
}

// SIGIO, which the kernel sends when a lease is broken, ends a process by default. A Go
// program that does not ask for the signal must live on.
func TestLeaseBreakDoesNotDisturb(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			path, _ := source(t, dir, "1")
			holder := startHelper(t, "lease", []string{path}, nil)
			if got := holder.line(t); got != "granted" {
				t.Fatalf("the holder says %q", got)
			}
			opener := startHelper(t, "open", []string{path}, nil)
			if got := holder.line(t); got != "broken" {
				t.Fatalf("the holder says %q", got)
			}
			var waited int
			if _, err := fmt.Sscanf(opener.line(t), "open after %d", &waited); err != nil {
				t.Fatal(err)
			}
			if waited < 40 || waited > 10_000 {
				t.Errorf("the opener waited %d ms, want about 50: until the release", waited)
			}
			opener.end(t)
			holder.stdin.Close()
			if got := holder.line(t); got != "well" {
				t.Fatalf("the holder says %q", got)
			}
			holder.end(t)
		})
	}
}

// The counterpart of TestLeaseBreakDoesNotDisturb: the signal really is sent.
func TestLeaseBreakSignals(t *testing.T) {
	path, ref := source(t, t.TempDir(), "1")
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGIO)
	defer signal.Stop(signals)
	fd := int(ref.Fd)
	if granted, err := TryLease(fd); !granted || err != nil {
		t.Fatalf("TryLease = %t, %v", granted, err)
	}
	if broken, err := LeaseBroken(fd); broken || err != nil {
		t.Fatalf("LeaseBroken = %t, %v; nobody broke it", broken, err)
	}
	opener := startHelper(t, "open", []string{path}, nil)
	select {
	case <-signals:
	case <-time.After(10 * time.Second):
		t.Error("no SIGIO")
	}
	if broken, err := LeaseBroken(fd); !broken || err != nil {
		t.Errorf("LeaseBroken = %t, %v; want true", broken, err)
	}
	mustDo(t, ReleaseLease(fd))
	opener.line(t)
	if granted, err := TryLease(fd); granted || err != nil {
		t.Errorf("TryLease = %t, %v with a writer", granted, err)
	}
	mustDo(t, ReleaseLease(fd)) // there is none: no error
	opener.end(t)
}

// After a rename, who opens the old name gets a new file and does not wait for our lease.
func TestLeaseAfterRename(t *testing.T) {
	dir := t.TempDir()
	path, ref := source(t, dir, "1")
	if granted, err := TryLease(int(ref.Fd)); !granted || err != nil {
		t.Fatalf("TryLease = %t, %v", granted, err)
	}
	mustDo(t, os.Rename(path, path+".taken"))
	touch(t, path)
	opener := startHelper(t, "open", []string{path}, nil)
	opener.line(t)
	if broken, err := LeaseBroken(int(ref.Fd)); broken || err != nil {
		t.Errorf("LeaseBroken = %t, %v; want false", broken, err)
	}
	mustDo(t, ReleaseLease(int(ref.Fd)))
	opener.end(t)
}

func TestTryLeaseErrors(t *testing.T) {
	dir := t.TempDir()
	d, err := os.Open(dir)
	mustDo(t, err)
	defer d.Close()
	if granted, err := TryLease(int(d.Fd())); granted || !errors.Is(err, ErrLeaseUnsupported) {
		t.Errorf("on a directory: %t, %v; want ErrLeaseUnsupported", granted, err)
	}
	if granted, err := TryLease(-1); granted || !errors.Is(err, syscall.EBADF) {
		t.Errorf("on no descriptor: %t, %v; want EBADF", granted, err)
	}
	path, _ := source(t, dir, "1")
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	mustDo(t, err)
	defer w.Close()
	if granted, err := TryLease(int(w.Fd())); granted || err != nil {
		t.Errorf("on a descriptor for writing: %t, %v; want false", granted, err)
	}
}

func TestProbeLeavesNoTrace(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			source(t, dir, "1")
			d := NewDir(dir)
			settle(t, d)
			for range 20 {
				newProber(t, dir)
			}
			if l, err := d.Scan(false); err != nil || l.Changed {
				t.Errorf("after 20 probes: %+v, %v; want unchanged", l, err)
			}
			if !NewProber(dir).testedHere(t) {
				t.Error("nothing was tested on a file of our own")
			}
		})
	}
	if _, err := NewProber(filepath.Join(t.TempDir(), "none")).Probe(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Probe of a missing directory: %v, want os.ErrNotExist", err)
	}
}

func (p *Prober) testedHere(t *testing.T) bool {
	t.Helper()
	if _, err := p.Probe(); err != nil {
		t.Fatal(err)
	}
	return p.lab.done && p.lab.err == nil
}

// On overlayfs, a mapping does not hold the inode that the lease is on: a grant is no proof.
func TestCheckOnOverlayfs(t *testing.T) {
	base := t.TempDir()
	sub := func(name string) string { return filepath.Join(base, name) }
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		mustDo(t, os.Mkdir(sub(name), 0o755))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", sub("lower"), sub("upper"), sub("work"))
	if err := unix.Mount("overlay", sub("merged"), "overlay", 0, options); err != nil {
		skipUnlessCI(t, "mount overlayfs: "+err.Error())
	}
	defer func() {
		if err := unix.Unmount(sub("merged"), 0); err != nil {
			t.Error(err)
		}
	}()

	p := NewProber(sub("merged"))
	choice, err := p.Probe()
	mustDo(t, err)
	if choice.FileSystem != "overlayfs" {
		t.Fatalf("Probe: %+v, want overlayfs", choice)
	}
	t.Logf("Probe: %+v", choice)
	path := filepath.Join(sub("merged"), "counter_1.db")
	mustDo(t, os.WriteFile(path, make([]byte, os.Getpagesize()), 0o644))
	f, err := os.Open(path)
	mustDo(t, err)
	defer f.Close()
	ref, err := refOf(f, "1")
	mustDo(t, err)

	c := startHelper(t, "map", []string{path}, nil)
	c.line(t)
	for range 3 {
		if s, m := p.Check(ref); s == Dead {
			t.Fatalf("mapped: dead by %v", m)
		}
		// Nor may a Prober that never probed believe it.
		if s, m := NewProber(base).Check(ref); s == Dead {
			t.Fatalf("mapped, without a probe: dead by %v", m)
		}
	}
	c.kill()
	c = startHelper(t, "open", []string{path}, nil)
	c.line(t)
	if s, m := p.Check(ref); s != Alive || m != MethodLease {
		t.Errorf("open: %v by %v, want alive by lease: a refusal can be believed", s, m)
	}
	c.end(t)
}

func TestTrusted(t *testing.T) {
	tested, failed := selfTest{dev: 1, done: true}, selfTest{dev: 1, done: true, err: errors.New("no")}
	for _, c := range []struct {
		name string
		fsys fileSystem
		lab  selfTest
		want bool
	}{
		{"known_untested", fileSystem{leases: leaseIsEvidence}, selfTest{}, true},
		{"known_tested", fileSystem{leases: leaseIsEvidence}, tested, true},
		{"known_failed", fileSystem{leases: leaseIsEvidence}, failed, false},
		{"doubtful_untested", fileSystem{leases: leaseIfTested}, selfTest{}, false},
		{"doubtful_tested", fileSystem{leases: leaseIfTested}, tested, true},
		{"doubtful_tested_elsewhere", fileSystem{leases: leaseIfTested}, selfTest{dev: 2, done: true}, false},
		{"doubtful_failed", fileSystem{leases: leaseIfTested}, failed, false},
		{"remote_tested", fileSystem{leases: leaseNoProof}, tested, false},
		{"unknown_tested", fileSystem{}, tested, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.fsys.trusted(c.lab, 1); got != c.want {
				t.Errorf("trusted = %t, want %t", got, c.want)
			}
		})
	}
}

// In another pid namespace the writer's pid means nothing to us, and it may be that of
// somebody else here. The lease does not care.
func TestCheckOtherPidNamespace(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			p := newProber(t, dir)
			path, ref := source(t, dir, "1")
			inNamespace := func(cmd *exec.Cmd) {
				cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
			}
			c := startInNamespace(t, "map", []string{path}, inNamespace)
			c.line(t)
			wantState(t, p, ref, Alive, "mapped in another pid namespace")
			c.kill()
			wantDead(t, p, ref, "killed")

			// And the other way round: the sidecar in a namespace of its own.
			writer := startHelper(t, "open", []string{path}, nil)
			writer.line(t)
			prober := startInNamespace(t, "probe", []string{path, strconv.Itoa(writer.Process.Pid)}, inNamespace)
			if got := prober.line(t); got != "lease" {
				t.Fatalf("Probe in a pid namespace: %s", got)
			}
			prober.ask(t, "alive lease")
			writer.kill()
			eventually(t, "dead by lease", func() bool { return prober.answer(t) == "dead lease" })
			prober.end(t)
		})
	}
}

func startInNamespace(t *testing.T, name string, args []string, adjust func(*exec.Cmd)) *child {
	t.Helper()
	if os.Getuid() != 0 {
		skipUnlessCI(t, "a pid namespace needs root")
	}
	return startHelper(t, name, args, adjust)
}

// ask makes a probe helper check its file once and wants its answer.
func (c *child) ask(t testing.TB, want string) {
	t.Helper()
	if got := c.answer(t); got != want {
		t.Fatalf("check in another process: %s, want %s", got, want)
	}
}

func (c *child) answer(t testing.TB) string {
	t.Helper()
	if _, err := io.WriteString(c.stdin, "check\n"); err != nil {
		t.Fatal(err)
	}
	return c.line(t)
}

// nobody is another user.
const nobody = 65534

// publicHelper is a copy of the test binary in a place that other users may look into.
var publicHelper string

// copyHelper makes publicHelper, once, and removes it when the test has ended.
func copyHelper(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		skipUnlessCI(t, "another user needs root")
	}
	exe, err := os.Executable()
	mustDo(t, err)
	dir, err := os.MkdirTemp("", "watch-test-")
	mustDo(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	mustDo(t, os.Chmod(dir, 0o755))
	binary, err := os.ReadFile(exe)
	mustDo(t, err)
	publicHelper = filepath.Join(dir, "helper")
	mustDo(t, os.WriteFile(publicHelper, binary, 0o755))
}

// startAsNobody starts a helper as another user, who has only the given capabilities.
// copyHelper must have been called.
func startAsNobody(t *testing.T, name string, args []string, capabilities ...uintptr) *child {
	t.Helper()
	return startHelper(t, name, args, func(cmd *exec.Cmd) {
		cmd.Path, cmd.Dir = publicHelper, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
			AmbientCaps: capabilities,
		}
	})
}

// quietEnough is how long a test waits for a moment of a few milliseconds in which nothing
// else on the machine makes a process.
const quietEnough = 4 * time.Minute

// mayHide lets tests read /proc on machines whose first process hides even from root.
func mayHide(pid string) bool { return pid == "1" }

// Another user without CAP_LEASE gets no lease. Then no file may be called dead while
// somebody holds it; and if not all processes can be seen, never.
func TestCheckWithoutLease(t *testing.T) {
	copyHelper(t)
	for _, c := range []struct {
		name, helper string
		caps         []uintptr
		probe        string
	}{
		{"blind", "probe", nil, "none"},
		{"sees_all_processes", "probe-some-hide", []uintptr{unix.CAP_SYS_PTRACE, unix.CAP_DAC_READ_SEARCH}, "proc"},
		// Enough for the mappings of others, not for their descriptors.
		{"sees_half", "probe-some-hide", []uintptr{unix.CAP_SYS_PTRACE}, "none"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // they wait most of the time
			if c.probe == "proc" {
				if why := new(procProber).blind(); why != "" {
					skipUnlessCI(t, why)
				}
			}
			// The temporary directory of a test is closed to others.
			dir, err := os.MkdirTemp("/dev/shm", "watch-test-")
			mustDo(t, err)
			defer os.RemoveAll(dir)
			mustDo(t, os.Chmod(dir, 0o755))

			type trial struct {
				name           string
				writer, prober *child
				answers        []string
			}
			var trials []*trial
			for _, how := range []string{"map", "open"} {
				path, _ := source(t, dir, how)
				writer := startHelper(t, how, []string{path}, nil)
				writer.line(t)
				for _, id := range []string{strconv.Itoa(writer.Process.Pid), "puma_0", "4000000000"} {
					prober := startAsNobody(t, c.helper, []string{path, id}, c.caps...)
					if got := prober.line(t); got != c.probe {
						t.Errorf("Probe: %s, want %s", got, c.probe)
					}
					trials = append(trials, &trial{name: how + "_" + id, writer: writer, prober: prober})
				}
			}
			for deadline := time.Now().Add(procMaxAge * 5 / 2); time.Now().Before(deadline); {
				for _, tr := range trials {
					if got := tr.prober.answer(t); !slices.Contains(tr.answers, got) {
						tr.answers = append(tr.answers, got)
					}
				}
				time.Sleep(procMaxAge / 10)
			}
			for i, tr := range trials {
				t.Logf("held, %s: %s", tr.name, strings.Join(tr.answers, ", "))
				for _, got := range tr.answers {
					if got != "alive proc" && got != "unknown none" {
						t.Errorf("held, %s: %s", tr.name, got)
					}
				}
				if isFirst := i%3 == 0; isFirst && c.probe == "proc" && !slices.Contains(tr.answers, "alive proc") {
					t.Errorf("held, %s: never seen alive", tr.name)
				}
			}
			for _, tr := range trials {
				tr.writer.kill()
			}
			for _, tr := range trials {
				if c.probe == "proc" {
					eventuallyWithin(t, quietEnough, tr.name+" is dead", func() bool { return tr.prober.answer(t) == "dead proc" })
				}
			}
			if c.probe == "none" {
				time.Sleep(2 * procMaxAge)
				for _, tr := range trials {
					// One that was seen alive may be called so for procOneMaxAge.
					if got := tr.prober.answer(t); got != "unknown none" && got != "alive proc" {
						t.Errorf("after the end, %s: %s", tr.name, got)
					}
				}
			}
			for _, tr := range trials {
				tr.prober.end(t)
			}
		})
	}
}

// Root without CAP_LEASE is the owner of its own files, and needs no capability for those.
func TestCheckOwnerNeedsNoCapability(t *testing.T) {
	if os.Getuid() != 0 {
		skipUnlessCI(t, "dropping capabilities needs some")
	}
	path, _ := source(t, t.TempDir(), "1")
	prober := startHelper(t, "probe", []string{path, "1", strconv.Itoa(unix.CAP_KILL)}, nil)
	if got := prober.line(t); got != "lease" {
		t.Fatalf("Probe: %s, want lease", got)
	}
	prober.ask(t, "dead lease")
	prober.end(t)
}

// A sidecar that has the directory mounted read-only can make no file to test leases on,
// but may trust the file system, whose writers have it mounted elsewhere.
func TestCheckThroughReadOnlyMount(t *testing.T) {
	for fsname, dir := range fileSystems(t) {
		t.Run(fsname, func(t *testing.T) {
			mounted := t.TempDir()
			if err := unix.Mount(dir, mounted, "", unix.MS_BIND, ""); err != nil {
				skipUnlessCI(t, "bind mount: "+err.Error())
			}
			defer func() {
				if err := unix.Unmount(mounted, 0); err != nil {
					t.Error(err)
				}
			}()
			mustDo(t, unix.Mount("", mounted, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
			path, _ := source(t, dir, "1")
			f, err := os.Open(filepath.Join(mounted, filepath.Base(path)))
			mustDo(t, err)
			defer f.Close()
			ref, err := refOf(f, "1")
			mustDo(t, err)

			p := newProber(t, mounted)
			if p.testedHere(t) {
				t.Error("a file was made through a read-only mount")
			}
			c := startHelper(t, "map", []string{path}, nil)
			c.line(t)
			wantState(t, p, ref, Alive, "mapped through the other mount")
			c.kill()
			wantDead(t, p, ref, "killed")
		})
	}
}

func TestProcSeesWhatAProcessHolds(t *testing.T) {
	dir := t.TempDir()
	for _, how := range []string{"map", "open"} {
		path, ref := source(t, dir, how)
		c := startHelper(t, how, []string{path}, nil)
		c.line(t)
		held := inodeSet{}
		mustDo(t, addProcess(held, strconv.Itoa(c.Process.Pid), true))
		if _, ok := held[ref.Ino]; !ok {
			t.Errorf("%s: inode %d is not among those held: %v", how, ref.Ino, held)
		}
		c.kill()
		held = inodeSet{}
		if err := addProcess(held, strconv.Itoa(c.Process.Pid), true); err != nil || len(held) != 0 {
			t.Errorf("%s: of a process that is gone: %v, %v", how, held, err)
		}
	}
	// Ourselves: a file that we read is not held.
	_, ref := source(t, dir, "ours")
	m, err := unix.Mmap(int(ref.Fd), 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	mustDo(t, err)
	defer unix.Munmap(m) //nolint:errcheck // the test is over
	held := inodeSet{}
	mustDo(t, addProcess(held, strconv.Itoa(os.Getpid()), true))
	if _, ok := held[ref.Ino]; ok {
		t.Error("a file that we map for reading counts as held")
	}
}

// A thread may have a table of descriptors of its own, and may outlive the process's first
// thread, after which the process itself shows neither descriptors nor mappings.
func TestProcSeesThreads(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct{ helper, first string }{{"open-in-thread", "S"}, {"map-without-first-thread", "Z"}} {
		t.Run(c.helper, func(t *testing.T) {
			path, ref := source(t, dir, c.helper)
			h := startHelper(t, c.helper, []string{path}, nil)
			if got := h.line(t); got != "held" {
				t.Fatalf("the helper says %q", got)
			}
			pid := strconv.Itoa(h.Process.Pid)
			eventually(t, "the state of the first thread is "+c.first, func() bool {
				stat, err := os.ReadFile("/proc/" + pid + "/stat")
				mustDo(t, err)
				_, rest, _ := strings.Cut(string(stat), ") ")
				return rest[:1] == c.first
			})
			held := inodeSet{}
			mustDo(t, addProcess(held, pid, false))
			if _, ok := held[ref.Ino]; ok {
				t.Fatal("the process itself shows the file; the test wants one that it does not show")
			}
			mustDo(t, addProcess(held, pid, true))
			if _, ok := held[ref.Ino]; !ok {
				t.Error("a file that is held by a thread is not seen")
			}
			h.kill()
		})
	}
}

// A file is judged only by a reading that began after the file was first asked for.
func TestProcJudgesNoFileByAnOldReading(t *testing.T) {
	if why := new(procProber).blind(); why != "" {
		skipUnlessCI(t, why)
	}
	dir, err := os.MkdirTemp("/dev/shm", "watch-test-")
	mustDo(t, err)
	defer os.RemoveAll(dir)
	p := NewProber(dir)
	p.proc.mayHide = mayHide
	_, old := source(t, dir, "old")
	if s := p.checkProc(old); s != Unknown {
		t.Fatalf("the first answer is %v, want unknown", s)
	}
	eventuallyWithin(t, quietEnough, "dead", func() bool { return p.checkProc(old) == Dead })
	// Make the reading last, so that the machine's speed does not matter.
	p.proc.until = time.Now().Add(time.Hour)
	path, fresh := source(t, dir, "new")
	w, err := os.OpenFile(path, os.O_RDWR, 0)
	mustDo(t, err)
	defer w.Close()
	for range 3 {
		if s := p.checkProc(fresh); s != Unknown {
			t.Fatalf("a file that came after the reading is %v, want unknown", s)
		}
	}
	if s := p.checkProc(old); s != Dead {
		t.Fatalf("the old file is %v, want dead", s)
	}
	// We ourselves have it open for writing: held.
	eventuallyWithin(t, quietEnough, "alive", func() bool { p.proc.until = time.Time{}; return p.checkProc(fresh) == Alive })
}

// While processes are made, none may be said to have been seen to the last.
func TestProcWhileOthersFork(t *testing.T) {
	if why := new(procProber).blind(); why != "" {
		skipUnlessCI(t, why)
	}
	before, err := countForks()
	mustDo(t, err)
	p := &procProber{mayHide: mayHide}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); wg.Wait() })
	defer end()
	// Makes threads, which count as well, until the test stops it.
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			var one sync.WaitGroup
			// Ends at once, and its thread with it, since that is never unlocked.
			one.Go(runtime.LockOSThread)
			one.Wait()
		}
	})
	eventually(t, "errForked", func() bool {
		held, err := p.readOnce()
		if err == nil {
			return false
		}
		if held != nil {
			t.Fatalf("an error and an answer: %v, %v", held, err)
		}
		return errors.Is(err, errForked)
	})
	end()
	if after, err := countForks(); err != nil || after <= before {
		t.Errorf("forks counted: %d, then %d, %v", before, after, err)
	}
	eventuallyWithin(t, quietEnough, "an answer when all is quiet", func() bool {
		_, err := p.readAll()
		if err != nil && !errors.Is(err, errForked) {
			t.Fatal(err)
		}
		return err == nil
	})
}

// A process that hides itself may hold anything.
func TestProcWithAHiddenProcess(t *testing.T) {
	if why := new(procProber).blind(); why != "" {
		skipUnlessCI(t, why)
	}
	if _, err := os.ReadFile("/proc/1/maps"); err == nil {
		t.Skip("no process hides here")
	} else {
		t.Log(err)
	}
	if held, err := new(procProber).readAll(); held != nil || err == nil {
		t.Errorf("readAll = %v, %v; want an error", held, err)
	}
	dir := t.TempDir()
	p := NewProber(dir)
	_, ref := source(t, dir, "1")
	for range 5 {
		p.proc.until = time.Time{}
		if s := p.checkProc(ref); s != Unknown {
			t.Fatalf("%v, want unknown", s)
		}
	}
}

func TestIsPid(t *testing.T) {
	for s, want := range map[string]bool{
		"1": true, "4194304": true, "": false, "0": false, "01": false, "puma_0": false, "-1": false,
		"1-0": false, "self": false, "../1": false, "12345678901": false, "１": false,
	} {
		if got := isPid(s); got != want {
			t.Errorf("isPid(%q) = %t, want %t", s, got, want)
		}
	}
}

func TestCheckCosts(t *testing.T) {
	dir := t.TempDir()
	p := newProber(t, dir)
	_, ref := source(t, dir, "1")
	if n := testing.AllocsPerRun(100, func() { p.Check(ref) }); n != 0 {
		t.Errorf("a check costs %v allocations", n)
	}
	ref.Fd = 1 << 20 // not open
	if s, m := p.Check(ref); s != Unknown || m != MethodNone {
		t.Errorf("a bad descriptor: %v by %v", s, m)
	}
}

func BenchmarkCheck(b *testing.B) {
	dirs := map[string]string{"tmpdir": b.TempDir()}
	if dir, err := os.MkdirTemp("/dev/shm", "watch-test-"); err == nil {
		b.Cleanup(func() { os.RemoveAll(dir) })
		dirs["tmpfs"] = dir
	}
	for fsname, dir := range dirs {
		for _, state := range []State{Dead, Alive} {
			b.Run(fmt.Sprintf("fs=%s/state=%v", fsname, state), func(b *testing.B) {
				p := newProber(b, dir)
				path, ref := source(b, dir, state.String())
				if state == Alive {
					f, err := os.OpenFile(path, os.O_RDWR, 0)
					mustDo(b, err)
					defer f.Close()
				}
				b.ReportAllocs()
				for b.Loop() {
					if s, _ := p.Check(ref); s != state {
						b.Fatal(s)
					}
				}
			})
		}
	}
}

func BenchmarkReadAllProcesses(b *testing.B) {
	if why := new(procProber).blind(); why != "" {
		b.Skip(why)
	}
	p := &procProber{mayHide: mayHide}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.readOnce(); err != nil && !errors.Is(err, errForked) {
			b.Fatal(err)
		}
	}
}
