package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience bounds every wait for something that is expected.
const patience = time.Minute

// A server is a child process that serves over HTTP, on a port of its choice.
type server struct {
	// url is that of what it serves.
	url string
	// started is when it was executed.
	started time.Time

	cmd    *exec.Cmd
	stdin  io.Closer // nil, or what ends the child when closed
	exited chan struct{}
	err    error // of its end

	// mu guards printed, the last lines it printed.
	mu      sync.Mutex
	printed []string
}

// start executes cmd, reads what it prints on out, and returns once address has found
// where it listens in a line of that.
func start(ctx context.Context, cmd *exec.Cmd, out io.Reader, address func(line []byte) string) (*server, error) {
	s := &server{cmd: cmd, exited: make(chan struct{}), started: time.Now()}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	found := make(chan string, 1)
	// Ends when the child has ended.
	go func() {
		defer close(s.exited)
		sc := bufio.NewScanner(out)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			s.note(sc.Text())
			if a := address(sc.Bytes()); a != "" {
				select {
				case found <- a:
				default:
				}
			}
		}
		s.err = cmd.Wait()
	}()
	select {
	case a := <-found:
		s.url = "http://" + a + "/metrics"
		return s, nil
	case <-s.exited:
		return nil, fmt.Errorf("%s ended at once: %w\n%s", cmd.Path, s.err, s.tail())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.stop())
	case <-time.After(patience):
		return nil, errors.Join(fmt.Errorf("%s does not say where it listens:\n%s", cmd.Path, s.tail()), s.stop())
	}
}

func (s *server) note(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.printed) == 20 {
		s.printed = s.printed[1:]
	}
	s.printed = append(s.printed, line)
}

// tail is what the child printed last.
func (s *server) tail() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Join(s.printed, "\n")
}

// stop ends the child and waits for its end, which must be a clean one.
func (s *server) stop() error {
	if s.stdin != nil {
		s.stdin.Close() //nolint:errcheck // it may have ended
	} else if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-s.exited:
	case <-time.After(patience):
		err := s.cmd.Process.Kill()
		<-s.exited
		return errors.Join(fmt.Errorf("%s had to be killed", s.cmd.Path), err)
	}
	if s.err != nil {
		return fmt.Errorf("%s: %w\n%s", s.cmd.Path, s.err, s.tail())
	}
	return nil
}

// startDaemon runs the daemon, with its archive and these arguments.
func startDaemon(ctx context.Context, program string, args ...string) (*server, error) {
	cmd := exec.Command(program, append([]string{"serve", "--web.listen-address", "127.0.0.1:0", "--log.format", "json"}, args...)...)
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	return start(ctx, cmd, out, func(line []byte) string {
		var entry struct{ Msg, Address string }
		if json.Unmarshal(line, &entry) != nil || entry.Msg != "listening" {
			return ""
		}
		return entry.Address
	})
}

// roleVariable tells this program that it is the trivial server.
const roleVariable = "AGGREGATORD_BENCH_ROLE"

// startTrivial runs this program as a server that answers with the same bytes each time:
// plain, or packed where gzip is accepted. It ends with this process.
func startTrivial(ctx context.Context, plain, packed []byte) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), roleVariable+"=server")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	// Ends when the child has read it all, or has ended.
	go func() {
		for _, b := range [][]byte{plain, packed} {
			in.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(b)))) //nolint:errcheck // the child will say
			in.Write(b)                                                     //nolint:errcheck // the child will say
		}
	}()
	s, err := start(ctx, cmd, out, func(line []byte) string { return string(line) })
	if err != nil {
		return nil, errors.Join(err, in.Close())
	}
	s.stdin = in
	return s, nil
}

// serveTrivial is the trivial server, which ends with its standard input.
func serveTrivial() error {
	in := bufio.NewReader(os.Stdin)
	var bodies [2][]byte
	for i := range bodies {
		var size [8]byte
		if _, err := io.ReadFull(in, size[:]); err != nil {
			return err
		}
		bodies[i] = make([]byte, binary.LittleEndian.Uint64(size[:]))
		if _, err := io.ReadFull(in, bodies[i]); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	srv := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := bodies[b2i(r.Header.Get("Accept-Encoding") == "gzip")]
		w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
		if r.Header.Get("Accept-Encoding") == "gzip" {
			w.Header().Set("Content-Encoding", "gzip")
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body) //nolint:errcheck // the client will say
	})}
	// Ends with the process.
	go srv.Serve(l) //nolint:errcheck // the client will say
	_, err = io.Copy(io.Discard, in)
	return err
}

// rssAnon returns the anonymous resident memory of a process in bytes, by
// proc_pid_status(5); NaN where the system does not tell.
func rssAnon(pid int) float64 {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nan
	}
	for l := range bytes.Lines(status) {
		if rest, ok := bytes.CutPrefix(l, []byte("RssAnon:")); ok {
			kb, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(string(rest)), "kB")), 64)
			if err != nil {
				return nan
			}
			return kb * 1024
		}
	}
	return nan
}

// cpuTime returns the processor time a process has used in seconds, by proc_pid_stat(5);
// NaN where the system does not tell. It is exact to a hundredth of a second.
func cpuTime(pid int) float64 {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nan
	}
	// The second field is a name in parentheses that may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const utime, stime = 14 - 3, 15 - 3 // the manual counts from 1, and two fields are gone
	if len(fields) <= stime {
		return nan
	}
	u, errU := strconv.ParseFloat(fields[utime], 64)
	s, errS := strconv.ParseFloat(fields[stime], 64)
	if errU != nil || errS != nil {
		return nan
	}
	const ticksPerSecond = 100 // USER_HZ, on every architecture that we build for
	return (u + s) / ticksPerSecond
}
