package process

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests here watch real servers, and compare with the Python client.

// peer finds a program, or skips the test.
func peer(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		missing(t, name+" is missing")
	}
	return path
}

// interpreter finds a Python that has the modules, or skips the test.
func interpreter(t *testing.T, modules string) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.Command(python, "-c", "import "+modules).Run() == nil {
			return python
		}
	}
	missing(t, "no Python with "+modules)
	return ""
}

// collect prints what the client's own ProcessCollector tells of processes, summed; of
// max_fds the least, and the start of the first.
const collect = `
import sys
from prometheus_client.process_collector import ProcessCollector
sums = {}
for pid in sys.argv[1:]:
    for metric in ProcessCollector(pid=lambda: pid, registry=None).collect():
        for s in metric.samples:
            if s.name not in sums:
                sums[s.name] = s.value
            elif s.name == "process_max_fds":
                sums[s.name] = min(sums[s.name], s.value)
            elif s.name != "process_start_time_seconds":
                sums[s.name] += s.value
for name, value in sums.items():
    print(name, repr(value))
`

// agree compares what is served of a pool with what the client tells of its processes.
func agree(t *testing.T, o *Observer, python string) {
	t.Helper()
	o.Sample()
	before := o.values("")
	var args []string
	for _, p := range o.Processes() {
		if p.Role == "master" {
			args = append([]string{strconv.Itoa(p.Pid)}, args...)
		} else {
			args = append(args, strconv.Itoa(p.Pid))
		}
	}
	out, err := exec.Command(python, append([]string{"-c", collect}, args...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	o.Sample()
	after := o.values("")
	seen := 0
	for line := range strings.Lines(string(out)) {
		name, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		theirs, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		seen++
		name = strings.TrimSuffix(name, "_total")
		// CPU time is given in hundredths of a second for each process, and that of children that
		// a process has waited for is ours alone.
		slack := 0.02 * theirs
		if name == "process_cpu_seconds" {
			slack = 0.05*theirs + 0.01*float64(len(args))
		}
		low, high := min(before[name], after[name])-slack, max(before[name], after[name])+slack
		t.Logf("%s is %v and then %v, the client says %v", name, before[name], after[name], theirs)
		if math.IsNaN(theirs) || theirs < low || theirs > high {
			t.Errorf("%s is %v and then %v, the client says %v", name, before[name], after[name], theirs)
		}
	}
	if seen != 6 {
		t.Errorf("the client told %d metrics: %s", seen, out)
	}
}

// serverOf starts a server with source files in dir, and waits until so many workers hold
// some.
func serverOf(t *testing.T, dir string, workers int, cmd *exec.Cmd) *Observer {
	t.Helper()
	cmd.Env = append(os.Environ(), append([]string{"PYTHONDONTWRITEBYTECODE=1", "PROMETHEUS_MULTIPROC_DIR=" + dir}, cmd.Env...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		said.Close()
		if cmd.ProcessState == nil {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait() //nolint:errcheck // it was killed
		}
	})
	o := observe(t, Options{}, directory{"", dir})
	for deadline := time.Now().Add(30 * time.Second); ; {
		o.Sample()
		if o.values("")["aggregatord_pool_workers"] == float64(workers) {
			return o
		}
		if time.Now().After(deadline) {
			log, err := os.ReadFile(said.Name())
			t.Fatalf("%v workers, want %d; processes %+v; %s, %v", o.values("")["aggregatord_pool_workers"], workers, o.Processes(), log,
				err)
		}
		time.Sleep(50 * time.Millisecond) // a server starts
	}
}

func apps(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../testdata/apps")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// expect checks the python_info and the roles.
func expect(t *testing.T, o *Observer, python string) {
	t.Helper()
	out, err := exec.Command(python, "-c",
		"import platform; print(platform.python_implementation(), *platform.python_version_tuple(), platform.python_version())").Output()
	if err != nil {
		t.Fatal(err)
	}
	if v := o.values(""); v["python_info "+strings.TrimSpace(string(out))] != 1 {
		t.Errorf("no python_info of %s: %v", out, v)
	}
	masters := 0
	for _, p := range o.Processes() {
		if p.Role == "master" {
			masters++
		}
	}
	if masters != 1 {
		t.Errorf("%d masters: %+v", masters, o.Processes())
	}
}

func unixClient(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}}
}

func get(client *http.Client) error {
	resp, err := client.Get("http://app/pid")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

func TestPeerGunicorn(t *testing.T) {
	t.Parallel()
	gunicorn, python := peer(t, "gunicorn"), interpreter(t, "flask, prometheus_client")
	dir := t.TempDir()
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command(gunicorn, "--workers", "3", "--max-requests", "20", "--bind", "unix:"+socket, "--chdir", apps(t), "shop:app")
	o := serverOf(t, dir, 3, cmd)
	agree(t, o, python)
	expect(t, o, python)

	// Workers come and go; some live between two samples only.
	client := unixClient(socket)
	last := 0.0
	for i := range 160 {
		if err := get(client); err != nil {
			continue // of a worker that was just ending
		}
		if i%25 == 0 {
			o.Sample()
			cpu := o.values("")["process_cpu_seconds"]
			if cpu < last {
				t.Fatalf("CPU fell from %v to %v", last, cpu)
			}
			last = cpu
		}
	}
	for _, p := range o.Processes() {
		if p.Role == "worker" {
			syscall.Kill(p.Pid, syscall.SIGKILL)
			break
		}
	}
	o.Sample()
	v := o.values("")
	if v["process_cpu_seconds"] < last {
		t.Errorf("CPU fell from %v to %v", last, v["process_cpu_seconds"])
	}
	if v["aggregatord_pool_worker_starts"] == 0 {
		t.Error("no worker was seen to start")
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	// When the master is a zombie, it has all that its workers have used.
	if err := unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	o.Sample()
	seen := o.values("")["process_cpu_seconds"]
	cmd.Wait() //nolint:errcheck // how it ends is its own business
	used := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if math.Abs(seen-used) > 0.05*used {
		t.Errorf("CPU is %v, the server and its children have used %v", seen, used)
	}
}

func TestPeerUWSGI(t *testing.T) {
	t.Parallel()
	uwsgi, python := peer(t, "uwsgi"), interpreter(t, "flask, prometheus_client")
	dir, run := t.TempDir(), t.TempDir()
	socket, stats := filepath.Join(run, "s"), filepath.Join(run, "stats")
	// With lazy-apps each worker loads the application, and so has files of its own at once.
	o := serverOf(t, dir, 3, exec.Command(uwsgi, "--plugin", "python3", "--master", "--processes", "3", "--lazy-apps", "--http-socket",
		socket,
		"--die-on-term", "--need-app", "--disable-logging", "--chdir", apps(t), "--module", "shop:app", "--stats", stats, "--listen", "77"))
	agree(t, o, python)
	expect(t, o, python)
	client := unixClient(socket)
	for range 10 {
		if err := get(client); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := askUWSGI(context.Background(), stats)
	v := byName(rows)
	// It counts a request when the client has the response already.
	for deadline := time.Now().Add(10 * time.Second); err == nil && v["uwsgi_requests"] < 10 &&
		time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		rows, err = askUWSGI(context.Background(), stats)
		v = byName(rows)
	}
	if err != nil || v["uwsgi_requests"] != 10 || v["uwsgi_workers idle"]+v["uwsgi_workers busy"] != 3 {
		t.Errorf("uWSGI tells %v, %v", v, err)
	}

	// Workers that are stopped accept nothing.
	for _, p := range o.Processes() {
		if err := syscall.Kill(p.Pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		conn, err := net.Dial("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	o.Sample()
	values := o.values("")
	if values["aggregatord_pool_listen_backlog unix:"+socket] != 4 || values["aggregatord_pool_listen_backlog_limit unix:"+socket] != 77 {
		t.Errorf("backlog: %v", values)
	}
}

func TestPeerCelery(t *testing.T) {
	t.Parallel()
	python, redis := interpreter(t, "celery, redis, prometheus_client"), peer(t, "redis-server")
	dir, data := t.TempDir(), t.TempDir()
	socket := filepath.Join(data, "redis.sock")
	broker := exec.Command(redis, "--port", "0", "--unixsocket", socket, "--dir", data, "--save", "", "--appendonly", "no")
	if err := broker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		broker.Process.Kill()
		broker.Wait() //nolint:errcheck // it was killed
	})
	url := "BROKER_URL=redis+socket://" + socket
	pool := exec.Command(python, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--concurrency", "3",
		"--without-gossip", "--without-mingle", "--without-heartbeat")
	pool.Dir, pool.Env = apps(t), []string{url}
	o := serverOf(t, dir, 3, pool)
	agree(t, o, python)
	expect(t, o, python)
	if list := o.Processes(); !strings.Contains(fmt.Sprint(list), "-m celery") {
		t.Errorf("commands: %+v", list)
	}
}
