package process

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	helpers["worker"] = workerHelper
	helpers["master"] = masterHelper
}

// workerHelper is a worker: it has a source file mapped, and does what its standard input
// says. Each line is answered by one.
func workerHelper(args []string) error {
	if _, err := mapSource(args[0], args[1]); err != nil {
		return err
	}
	fmt.Println("ready", os.Getpid())
	in := bufio.NewScanner(os.Stdin)
	var keep []any
	for in.Scan() {
		words := strings.Fields(in.Text())
		switch words[0] {
		case "burn": // milliseconds of CPU
			ms, err := strconv.Atoi(words[1])
			if err != nil {
				return err
			}
			burn(time.Duration(ms) * time.Millisecond)
		case "rename": // to what breaks careless readers of /proc/PID/stat
			if err := os.WriteFile("/proc/self/comm", []byte(") R 1 (\n2 3"), 0); err != nil {
				return err
			}
		case "retitle": // as setproctitle does: into the memory of the arguments
			title := unsafe.Slice(unsafe.StringData(os.Args[0]), len(os.Args[0]))
			for i := range title {
				title[i] = ' '
			}
			copy(title, hostileTitle)
		case "maps": // makes so many mappings
			n, err := strconv.Atoi(words[1])
			if err != nil {
				return err
			}
			// Neighbours of one protection would be one mapping.
			region, err := unix.Mmap(-1, 0, n*4096, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
			if err != nil {
				return err
			}
			for i := 0; i < n; i += 2 {
				if err := unix.Mprotect(region[i*4096:(i+1)*4096], unix.PROT_READ|unix.PROT_WRITE); err != nil {
					return err
				}
			}
		case "listen": // network, address, how many may wait
			file, err := listenSocket(words[1], words[2], words[3])
			if err != nil {
				return err
			}
			keep = append(keep, file)
		case "exit":
			code, err := strconv.Atoi(words[1])
			if err != nil {
				return err
			}
			os.Exit(code)
		}
		fmt.Println("done", len(keep))
	}
	return in.Err()
}

// hostileTitle is what a worker calls itself: with a line feed, a sequence for terminals, markup and a
// byte that is no UTF-8.
const hostileTitle = "worker\n\x1b[31m<b>\xff"

// mapSource makes a source file and maps it as the clients do.
func mapSource(dir, id string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(dir, "counter_"+id+".db"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		return nil, err
	}
	return unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// burn uses CPU time of this process.
func burn(d time.Duration) {
	for end := cpuTime() + d; cpuTime() < end; {
		for i := range int(1e5) {
			_ = i * i
		}
	}
}

// listenSocket listens where at most so many connections wait.
func listenSocket(network, address, backlog string) (int, error) {
	n, err := strconv.Atoi(backlog)
	if err != nil {
		return 0, err
	}
	var family int
	var to unix.Sockaddr
	switch network {
	case "tcp":
		family, to = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
	case "tcp6":
		family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(net.IPv6loopback)}
	default:
		family, to = unix.AF_UNIX, &unix.SockaddrUnix{Name: address}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM, 0)
	if err != nil {
		return 0, err
	}
	if err := unix.Bind(fd, to); err != nil {
		return 0, err
	}
	return fd, unix.Listen(fd, n)
}

// masterHelper starts workers and hands on what is said to them: "I: COMMAND". Its own
// commands are spawn ID, wait I and rusage.
func masterHelper(args []string) error {
	if args[1] == "ignore" {
		signal.Ignore(unix.SIGCHLD) // so that the kernel waits for them, and tells nobody
	}
	var kids []*kid
	spawn := func(id string) error {
		k, err := newKid("worker", args[0], id)
		if err == nil {
			kids = append(kids, k)
		}
		return err
	}
	fmt.Println("ready", os.Getpid())
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		words := strings.Fields(in.Text())
		answer := "done"
		switch words[0] {
		case "spawn":
			if err := spawn(words[1]); err != nil {
				return err
			}
			answer = strconv.Itoa(kids[len(kids)-1].pid)
		case "wait":
			i, err := strconv.Atoi(words[1])
			if err != nil {
				return err
			}
			if err := kids[i].Wait(); err != nil && kids[i].ProcessState == nil && !errors.Is(err, unix.ECHILD) {
				return err
			}
		case "rusage": // clock ticks of its own and of the children it has waited for
			var self, children unix.Rusage
			if err := errors.Join(unix.Getrusage(unix.RUSAGE_SELF, &self), unix.Getrusage(unix.RUSAGE_CHILDREN, &children)); err != nil {
				return err
			}
			answer = strconv.FormatInt((self.Utime.Nano()+self.Stime.Nano()+children.Utime.Nano()+children.Stime.Nano())/1e7, 10)
		default:
			i, err := strconv.Atoi(strings.TrimSuffix(words[0], ":"))
			if err != nil {
				return err
			}
			if answer, err = kids[i].say(strings.Join(words[1:], " ")); err != nil && words[1] != "exit" {
				return err
			}
		}
		fmt.Println(answer)
	}
	for _, k := range kids {
		if k.ProcessState == nil {
			k.Process.Kill()
			k.Wait() //nolint:errcheck // it was killed
		}
	}
	return in.Err()
}

// kid is a helper that somebody started.
type kid struct {
	*exec.Cmd
	pid int
	in  io.WriteCloser
	out *bufio.Reader
}

func newKid(name string, args ...string) (*kid, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, err
	}
	return startKid(exec.Command(exe, args...), name)
}

func startKid(cmd *exec.Cmd, name string) (*kid, error) {
	// The race detector would let each process sleep for a second at its end.
	cmd.Env = append(os.Environ(), helperVariable+"="+name, "GORACE=atexit_sleep_ms=0", "GOMAXPROCS=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	k := &kid{Cmd: cmd, in: in, out: bufio.NewReader(out)}
	line, err := k.out.ReadString('\n')
	if err == nil {
		_, err = fmt.Sscanf(line, "ready %d", &k.pid)
	}
	return k, err
}

func (k *kid) say(command string) (string, error) {
	if _, err := io.WriteString(k.in, command+"\n"); err != nil {
		return "", err
	}
	answer, err := k.out.ReadString('\n')
	return strings.TrimSpace(answer), err
}

// start starts a helper of the test, which ends with it.
func start(t testing.TB, name string, args ...string) *kid {
	t.Helper()
	k, err := newKid(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.end)
	return k
}

// end lets the standard input of a helper end, and waits for its end.
func (k *kid) end() {
	if k.ProcessState != nil {
		return
	}
	timer := time.AfterFunc(20*time.Second, func() { k.Process.Kill() })
	defer timer.Stop()
	k.in.Close()
	k.Wait() //nolint:errcheck // what it did was judged before
}

// told is say for a test.
func (k *kid) told(t testing.TB, command string) string {
	t.Helper()
	answer, err := k.say(command)
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return answer
}

// spawn has a master start a worker, and returns its pid.
func (k *kid) spawn(t testing.TB, id string) int {
	t.Helper()
	pid, err := strconv.Atoi(k.told(t, "spawn "+id))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// directory is a pool: the source files in a directory.
type directory struct{ name, dir string }

func (d directory) Name() string { return d.name }

func (d directory) Files() []FileID {
	paths, err := filepath.Glob(filepath.Join(d.dir, "*.db"))
	if err != nil {
		panic(err)
	}
	var files []FileID
	for _, path := range paths {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		_, id, _ := strings.Cut(strings.TrimSuffix(filepath.Base(path), ".db"), "_")
		files = append(files, FileID{Dev: st.Dev, Ino: st.Ino, Name: filepath.Base(path), Worker: id})
	}
	return files
}

// observe returns an Observer of pools.
func observe(t testing.TB, opts Options, pools ...Pool) *Observer {
	t.Helper()
	opts.Pools = func() []Pool { return pools }
	o := New(opts)
	t.Cleanup(o.close)
	return o
}

// values are the samples of a pool, by name and label values.
func (o *Observer) values(pool string) map[string]float64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, g := range o.groups {
		if g.name == pool && g.pool != nil {
			return byName(slices.Clone(g.rows))
		}
	}
	return nil
}

// missing skips a test that the machine does not allow. In CI it must allow it.
func missing(t testing.TB, what string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(what)
	}
	t.Skip(what)
}
