package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// seenProcess is one of /api/v1/processes.
type seenProcess struct {
	Pid  int
	Role string
}

// processes are those that the daemon sees.
func (d *daemon) processes() ([]seenProcess, error) {
	body, _, err := d.get("/api/v1/processes?limit=1000", "application/json")
	if err != nil {
		return nil, err
	}
	var answer struct{ Data struct{ Items []seenProcess } }
	err = json.Unmarshal(body, &answer)
	return answer.Data.Items, err
}

// stopAll stops processes, or lets them go on if one of them has ended.
func stopAll(list []seenProcess) error {
	for _, p := range list {
		err := syscall.Kill(p.Pid, syscall.SIGSTOP)
		for err == nil {
			var text []byte
			if text, err = os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid)); err != nil {
				break
			}
			state := text[bytes.LastIndexByte(text, ')')+2]
			if state == 'T' {
				break
			}
			if state == 'Z' {
				err = fmt.Errorf("process %d has ended", p.Pid)
			}
		}
		if err != nil {
			for _, p := range list {
				_ = syscall.Kill(p.Pid, syscall.SIGCONT) // it may have ended
			}
			return err
		}
	}
	return nil
}

// TestProcessesUnderLoad: gunicorn replaces a worker after each 50 requests, workers and the daemon
// are killed, and CPU time never falls and is in the end what gunicorn and its children have used.
// While everything of gunicorn is stopped, the daemon and ss(8) tell the same backlog. It does 300
// requests, or 10,000 where AGGREGATORD_SOAK is set.
func TestProcessesUnderLoad(t *testing.T) {
	t.Parallel()
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	ss := peer(t, "ss", "apt-get install iproute2")
	python(t, "flask", "prometheus_client")
	requests := 300
	if os.Getenv("AGGREGATORD_SOAK") != "" {
		requests = 10_000
	}
	dir := sourceDir(t)
	socket, address := filepath.Join(t.TempDir(), "s"), freeAddress(t)
	cmd := exec.Command(gunicorn, "--workers", "2", "--max-requests", "50", "--backlog", "64",
		"--bind", "unix:"+socket, "--bind", address, "--chdir", filepath.Dir(app(t, "shop.py")), "shop:app")
	cmd.Env = appEnv(dir)
	server := start(t, cmd)
	flags := []string{"--dir", dir}
	d := serve(t, flags...)

	// A counter that falls is a fault, whoever is killed.
	last := 0.0
	cpu := func() float64 {
		t.Helper()
		now := d.mustText().value("process_cpu_seconds", "process_cpu_seconds_total")
		if now < last {
			t.Fatalf("CPU time fell from %v to %v", last, now)
		}
		if !math.IsNaN(now) { // it is absent until the next daemon has taken a sample
			last = now
		}
		return now
	}
	client := unixClient(t, socket)
	var done, killedWorkers atomic.Int64
	ask := func(n int64) error {
		resp, err := client.Get(fmt.Sprintf("http://app/order/%d", n))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var answer struct{ Pid int }
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			return err
		}
		// Five workers are killed, and most end by themselves.
		if n%(int64(requests)/6) == 20 && killedWorkers.Load() < 5 && syscall.Kill(answer.Pid, syscall.SIGKILL) == nil {
			killedWorkers.Add(1)
		}
		return nil
	}
	work := func() {
		for n := done.Add(1); n <= int64(requests); n = done.Add(1) {
			for begin := time.Now(); ; {
				err := ask(n)
				if err == nil {
					break
				}
				if time.Since(begin) > patience { // a worker was just ending, or gunicorn starts
					t.Errorf("request %d: %v", n, err)
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
		}
	}
	var workers sync.WaitGroup
	for range 2 {
		workers.Go(work) // ends when all requests are answered
	}
	answered := make(chan struct{})
	go func() { workers.Wait(); close(answered) }() // ends with them

	killedDaemons := 0
	for working := true; working; {
		select {
		case <-answered:
			working = false
		case <-time.After(20 * time.Millisecond):
		}
		cpu()
		if int(done.Load())*4 > requests*(killedDaemons+1) && killedDaemons < 3 {
			killedDaemons++
			d.stopped = true
			d.kill()
			d = serve(t, flags...)
		}
	}
	if killedWorkers.Load() != 5 || killedDaemons != 3 {
		t.Errorf("%d workers and %d daemons were killed", killedWorkers.Load(), killedDaemons)
	}
	var list []seenProcess
	eventually(t, patience, func() (err error) {
		// A worker has no source file before it has answered a request.
		if err := fetch(client, "/order/1"); err != nil {
			return err
		}
		if list, err = d.processes(); err == nil && len(list) != 3 {
			err = fmt.Errorf("%v are seen, want a master and two workers", list)
		}
		if err == nil {
			err = stopAll(list) // a worker may be just ending
		}
		return err
	})

	// Everything is stopped, and connections wait.
	for network, n := range map[string]int{"unix": 4, "tcp": 3} {
		for range n {
			conn, err := net.Dial(network, map[string]string{"unix": socket, "tcp": address}[network])
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
	}
	eventually(t, patience, func() error {
		out, err := exec.Command(ss, "-Hltnx").Output()
		if err != nil {
			return err
		}
		v, err := d.text()
		if err != nil {
			return err
		}
		for at, want := range map[string]int{socket: 4, address: 3} {
			label := at
			if at == socket {
				label = "unix:" + at
			}
			served := v.value("aggregatord_pool_listen_backlog", fmt.Sprintf("aggregatord_pool_listen_backlog{socket=%q}", label))
			limit := v.value("aggregatord_pool_listen_backlog_limit",
				fmt.Sprintf("aggregatord_pool_listen_backlog_limit{socket=%q}", label))
			said := fmt.Sprintf(" %v %v ", served, limit)
			line := ""
			for l := range strings.Lines(string(out)) {
				if strings.Contains(l, " "+at+" ") {
					line = strings.Join(strings.Fields(l), " ")
				}
			}
			if served < float64(want) || limit != 64 || !strings.Contains(line, said) {
				return fmt.Errorf("%v connections wait at %s, the limit is %v; ss says %q", served, at, limit, line)
			}
		}
		return nil
	})

	// Two more samples have all that was used until now.
	samples := func() float64 {
		return d.mustText().value("aggregatord_process_samples_total", "aggregatord_process_samples_total")
	}
	enough := samples() + 2
	eventually(t, patience, func() error {
		if n := samples(); n < enough {
			return fmt.Errorf("%v samples, want %v", n, enough)
		}
		return nil
	})
	served := cpu()
	// wait4(2) tells what the master and the workers that it has waited for have used, and schedstat,
	// in nanoseconds, what the living ones have.
	used := 0.0
	for _, p := range list {
		if p.Pid == server.pid() {
			continue
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", p.Pid))
		if err != nil {
			t.Fatal(err)
		}
		ns := 0.0
		if _, err := fmt.Sscan(string(text), &ns); err != nil {
			t.Fatal(err)
		}
		used += ns / 1e9
	}
	server.kill()
	state := server.cmd.ProcessState
	used += (state.UserTime() + state.SystemTime()).Seconds()
	t.Logf("%d requests, %d workers and %d daemons killed: %v s of CPU are served, gunicorn and its children have used %v s (%+.2f %%)",
		requests, killedWorkers.Load(), killedDaemons, served, used, 100*(served/used-1))
	if off := math.Abs(served - used); math.IsNaN(off) || off > 0.05*used {
		t.Errorf("%v s of CPU are served, gunicorn and its children have used %v s", served, used)
	}
}

// TestProcessesApart: in a pid namespace of its own the daemon serves what workers count, no process
// metric, and says once in one line what would be needed.
func TestProcessesApart(t *testing.T) {
	t.Parallel()
	needRoot(t)
	unshare := peer(t, "unshare", "apt-get install util-linux")
	dir := sourceDir(t)
	startWorkers(t, dir, readable)
	d := startDaemonBy(t, []string{unshare, "--pid", "--fork", "--mount-proc", "--kill-child"}, nil, "serve", "--dir", "web="+dir)
	told := func() (n int) {
		for _, entry := range d.logs() {
			if text, ok := entry["msg"].(string); ok && strings.Contains(text, "share the pid namespace") {
				n++
			}
		}
		return n
	}
	eventually(t, patience, func() error {
		if told() == 0 {
			return errors.New("nothing is said")
		}
		return nil
	})
	before := d.mustText().value("aggregatord_process_samples_total", "aggregatord_process_samples_total")
	eventually(t, patience, func() error {
		if n := d.mustText().value("aggregatord_process_samples_total", "aggregatord_process_samples_total"); n < before+2 {
			return fmt.Errorf("%v samples", n)
		}
		return nil
	})
	if n := told(); n != 1 {
		t.Errorf("said %d times that the pid namespace is not shared", n)
	}
	v := d.mustText()
	for name := range v {
		if strings.HasPrefix(name, "process_") || name == "python_info" || name == "aggregatord_pool_workers" {
			t.Errorf("%s is served", name)
		}
	}
	if n := v.value("aggregatord_pool_processes", `aggregatord_pool_processes{pool="web"}`); n != 0 {
		t.Errorf("%v processes are seen", n)
	}
	dump, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", "web="+dir)
	if err != nil {
		t.Fatal(err)
	}
	body, _, err := d.get("/metrics", acceptText)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(dump) {
		if !bytes.Contains(body, line) {
			t.Errorf("%q is not served", line)
		}
	}
	// unshare(1) takes the daemon with it.
	d.stopped = true
	d.kill()
}
