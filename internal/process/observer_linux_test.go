package process

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// kill ends a process that a helper started, and has that wait for it.
func kill(t *testing.T, master *kid, i, pid int) {
	t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	master.told(t, "wait "+strconv.Itoa(i))
	// Whose end nobody waits for is told to be gone a moment before it is: exit_notify in the kernel
	// wakes the parent first.
	for deadline := time.Now().Add(10 * time.Second); !errors.Is(unix.Kill(pid, 0), unix.ESRCH); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("process %d does not go", pid)
		}
	}
}

func TestPool(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	pids := []int{master.spawn(t, "a"), master.spawn(t, "b"), master.spawn(t, "b_2")}
	master.told(t, "0: burn 30")
	start(t, "worker", t.TempDir(), "other") // of another pool
	o := observe(t, Options{}, directory{"", dir})
	o.Sample()
	got := map[int]string{}
	for _, p := range o.Processes() {
		got[p.Pid] = fmt.Sprintf("%s %v %d", p.Role, p.Workers, p.Files)
	}
	want := map[int]string{master.pid: "master [] 0", pids[0]: "worker [a] 1", pids[1]: "worker [b] 1", pids[2]: "worker [b_2] 1"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("processes\n%v\nwant\n%v", got, want)
	}

	var rss, vsize, fds, threads float64
	for _, pid := range append(pids, master.pid) {
		proc, err := o.fs.Proc(pid)
		if err != nil {
			t.Fatal(err)
		}
		s, err := proc.Stat()
		if err != nil {
			t.Fatal(err)
		}
		n, err := proc.FileDescriptorsLen()
		if err != nil {
			t.Fatal(err)
		}
		rss, vsize, fds, threads = rss+float64(s.ResidentMemory()), vsize+float64(s.VirtualMemory()), fds+float64(n),
			threads+float64(s.NumThreads)
	}
	proc, err := o.fs.Proc(master.pid)
	if err != nil {
		t.Fatal(err)
	}
	s, err := proc.Stat()
	if err != nil {
		t.Fatal(err)
	}
	began, err := s.StartTime()
	if err != nil {
		t.Fatal(err)
	}
	v := o.values("")
	for name, want := range map[string]float64{
		"process_resident_memory_bytes": rss, "process_virtual_memory_bytes": vsize, "process_open_fds": fds,
		"process_start_time_seconds": began,
		"aggregatord_pool_threads":   threads, "aggregatord_pool_workers": 3, "aggregatord_pool_worker_starts": 0,
		"aggregatord_pool_worker_exits ok": 0,
	} {
		if math.Abs(v[name]-want) > 0.02*want {
			t.Errorf("%s is %v, want %v", name, v[name], want)
		}
	}
	for _, name := range []string{
		"process_cpu_seconds", "process_max_fds", "aggregatord_pool_context_switches voluntary",
		"aggregatord_pool_largest_worker_resident_memory_bytes",
	} {
		if v[name] <= 0 {
			t.Errorf("%s is %v", name, v[name])
		}
	}
	if pss := v["aggregatord_pool_proportional_memory_bytes"]; pss <= 0 || pss >= v["process_resident_memory_bytes"] {
		t.Errorf("proportional memory is %v, resident %v: the program itself is shared", pss, v["process_resident_memory_bytes"])
	}
	layout := o.All().Layout
	o.Sample()
	if o.All().Layout != layout {
		t.Error("the layout is another one although its shape is the same")
	}
}

// TestServedBesideASample: who serves what was found does not wait for a sample that reads.
func TestServedBesideASample(t *testing.T) {
	dir := t.TempDir()
	start(t, "master", dir, "wait").spawn(t, "a")
	o := observe(t, Options{}, directory{"web", dir})
	if n := len(o.All().Values) + len(o.Some([]string{"web"}, true).Values); n != 0 {
		t.Errorf("%d samples before the first look", n)
	}
	o.Sample()
	o.mu.Lock() // as a sample does while it reads
	defer o.mu.Unlock()
	served := make(chan int, 1)
	go func() { served <- min(len(o.All().Values), len(o.Some([]string{"web"}, true).Values)) }()
	select {
	case n := <-served:
		if n == 0 {
			t.Error("nothing is served")
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for the sample")
	}
}

// TestRefresh: at the end the processes that are known are read once more. That there is none any
// more is no reason to say what would be needed to see some.
func TestRefresh(t *testing.T) {
	dir := t.TempDir()
	core, logged := observer.New(zap.InfoLevel)
	o := observe(t, Options{Logger: zap.New(core)}, directory{"web", dir})
	worker := start(t, "worker", dir, "a")
	o.Sample()
	before := o.values("web")["process_cpu_seconds"]
	worker.told(t, "burn 50")
	start(t, "worker", dir, "b")
	o.Refresh()
	if v := o.values("web"); v["process_cpu_seconds"] < before+0.04 || v["aggregatord_pool_workers"] != 1 {
		t.Errorf("CPU is %v, was %v; %v workers", v["process_cpu_seconds"], before, v["aggregatord_pool_workers"])
	}

	// A batch that was too short to be seen, and files that seem to be in use for a moment longer.
	brief := t.TempDir()
	if _, err := mapSource(brief, "1"); err != nil {
		t.Fatal(err)
	}
	o = observe(t, Options{Logger: zap.New(core)}, directory{"batch", brief})
	o.Sample()
	o.Refresh()
	o.sample(final)
	if logged.Len() > 0 {
		t.Errorf("said %v", logged.All())
	}
}

// TestDescriptors: as many are held as there are processes, up to a limit, and none of those that have
// ended or in the end.
func TestDescriptors(t *testing.T) {
	held := func() (n int) {
		t.Helper()
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			// One in a pid namespace of its own may know its processes by another mount.
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, "/proc/") &&
				strings.HasSuffix(to, "/stat") {
				n++
			}
		}
		return n
	}
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	pids := []int{master.spawn(t, "a"), master.spawn(t, "b")}
	o := observe(t, Options{}, directory{"", dir})
	before := held()
	o.Sample()
	o.Sample()
	if n := held() - before; n != 3 || o.keptStats != 3 {
		t.Errorf("%d descriptors are held, and %d counted, of 3 processes", n, o.keptStats)
	}
	kill(t, master, 0, pids[0])
	o.Sample()
	if n := held() - before; n != 2 || o.keptStats != 2 {
		t.Errorf("%d descriptors are held, and %d counted, of 2 processes", n, o.keptStats)
	}
	o.keptStats = maxKeptStats
	master.spawn(t, "c")
	o.Sample()
	if v := o.values("")["aggregatord_pool_workers"]; v != 2 || held()-before != 2 {
		t.Errorf("%v workers, %d descriptors at the limit", v, held()-before)
	}
	o.close()
	if n := held() - before; n != 0 {
		t.Errorf("%d descriptors are held in the end", n)
	}
}

// TestPipeForALibrary: a program that is a pipe by now is not waited for.
func TestPipeForALibrary(t *testing.T) {
	path := filepath.Join(t.TempDir(), "libpython3.11.so.1.0")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan string, 1)
	go func() { done <- versionIn(path, runtime{kind: "python", version: "3.11"}) }()
	select {
	case version := <-done:
		if version != "" {
			t.Errorf("a pipe has version %q", version)
		}
	case <-time.After(10 * time.Second):
		t.Error("it waits for somebody to write into the pipe")
	}
}

// TestNewWorkers has workers come after the first sample, whose processes were there before
// they had a source file.
func TestNewWorkers(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	o := observe(t, Options{}, directory{"", dir})
	o.Sample()
	if v := o.values(""); len(v) > 0 {
		t.Errorf("served of no worker: %v", v)
	}
	for i := range 3 {
		master.spawn(t, fmt.Sprintf("w%d", i))
		o.Sample()
		if v := o.values(""); v["aggregatord_pool_workers"] != float64(i+1) || v["aggregatord_pool_worker_starts"] != float64(i+1) {
			t.Errorf("%v workers and %v starts, want %d", v["aggregatord_pool_workers"], v["aggregatord_pool_worker_starts"], i+1)
		}
	}
}

// TestCPU kills workers and compares with what their master knows of them.
func TestCPU(t *testing.T) {
	for _, how := range []string{"wait", "ignore"} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			master := start(t, "master", dir, how)
			store := &memory{}
			pool := directory{"web", dir}
			o := observe(t, Options{Store: store}, pool)
			last := 0.0
			sample := func() float64 {
				t.Helper()
				o.Sample()
				cpu := o.values("web")["process_cpu_seconds"]
				if cpu < last {
					t.Fatalf("CPU fell from %v to %v", last, cpu)
				}
				last = cpu
				return cpu
			}
			var pids []int
			spawn := func() {
				pids = append(pids, master.spawn(t, fmt.Sprintf("w%d", len(pids))))
			}
			for i := range 3 {
				spawn()
				master.told(t, fmt.Sprintf("%d: burn 60", i))
			}
			sample()
			kill(t, master, 0, pids[0])
			sample()
			// One that is never seen alive, and one whose last work is not seen.
			spawn()
			master.told(t, "3: burn 60")
			kill(t, master, 3, pids[3])
			master.told(t, "1: burn 60")
			kill(t, master, 1, pids[1])
			sample()
			// The daemon is killed; a worker ends and another one starts meanwhile. Where nobody
			// waits for workers, only a daemon that stops by itself keeps what it has seen last.
			if how == "ignore" {
				o.sample(final)
			}
			spawn()
			kill(t, master, 2, pids[2])
			o.close()
			o = observe(t, Options{Store: store}, pool)
			total := sample()
			v := o.values("web")
			if v["aggregatord_pool_workers"] != 1 || v["aggregatord_pool_worker_starts"] != 4 {
				t.Errorf("%v workers, %v starts", v["aggregatord_pool_workers"], v["aggregatord_pool_worker_starts"])
			}
			exits := 0.0
			for name, n := range v {
				if strings.HasPrefix(name, "aggregatord_pool_worker_exits") {
					exits += n
				}
			}
			if exits != 3 {
				t.Errorf("%v exits seen, want 3", exits)
			}
			ticks, err := strconv.ParseFloat(master.told(t, "rusage"), 64)
			if err != nil {
				t.Fatal(err)
			}
			alive, err := o.fs.Proc(pids[4])
			if err != nil {
				t.Fatal(err)
			}
			s, err := alive.Stat()
			if err != nil {
				t.Fatal(err)
			}
			want := ticks/100 + s.CPUTime()
			if how == "ignore" {
				want = 0.18 // what was seen of the three
			}
			// The kernel rounds each process's down to a tick.
			if total < want-0.08 || (how == "wait" && total > want+0.08) {
				t.Errorf("CPU is %v, want %v", total, want)
			}
		})
	}
}

// TestWorkerBeforeMaster: a worker that ends before its master is known to be one counts once, whether
// its end is seen before the master is, and whether a new daemon comes between.
func TestWorkerBeforeMaster(t *testing.T) {
	for name, tc := range map[string]struct{ seen, restart bool }{
		"not_seen": {}, "seen": {seen: true},
		"seen_by_another_daemon": {true, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			master := start(t, "master", dir, "wait")
			o := observe(t, Options{}, directory{"web", dir})
			o.Sample()
			group := func() *group {
				return newGroup(o, "web", "", directory{"web", dir}, nil)
			}
			read := func(pid int) stat {
				t.Helper()
				data, err := o.readStat(pid)
				if err != nil {
					t.Fatal(err)
				}
				s, err := parseStat(data)
				if err != nil {
					t.Fatal(err)
				}
				return s
			}
			g := group()
			// One that nobody has seen, and two that are.
			for i := range 3 {
				pid := master.spawn(t, fmt.Sprintf("w%d", i))
				master.told(t, fmt.Sprintf("%d: burn 150", i))
				if i > 0 {
					g.adopt(pid, read(pid), map[string]bool{"w": true})
				}
				kill(t, master, i, pid)
			}
			if tc.seen {
				g.readStats()
				if len(g.procs) != 0 {
					t.Fatalf("%d processes are there", len(g.procs))
				}
			}
			if tc.restart {
				data := g.state()
				g = group()
				if err := g.restore(data); err != nil {
					t.Fatal(err)
				}
			}
			g.setMasters([]int{master.pid})
			living := master.spawn(t, "w3")
			master.told(t, "3: burn 150")
			g.adopt(living, read(living), map[string]bool{"w": true})
			g.read(time.Now())
			kill(t, master, 3, living)
			g.read(time.Now())
			s := read(master.pid)
			got, want := g.served.Waited[cpuTicks], s.utime+s.stime+s.cutime+s.cstime
			if got > want || got+8 < want {
				t.Errorf("%d clock ticks are served, the master and those it has waited for have used %d", got, want)
			}
		})
	}
}

// TestPoolGoes: what was counted of a pool that goes is there when it comes back, although nobody
// else keeps it.
func TestPoolGoes(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "ignore")
	store, pool := &memory{}, directory{"web", dir}
	o := observe(t, Options{Store: store}, pool)
	pid := master.spawn(t, "w0")
	o.Sample()
	master.told(t, "0: burn 60")
	o.Sample() // nothing new but the time, so it is not saved
	before := o.values("web")["process_cpu_seconds"]
	o.Save("other")
	o.Save("web")
	kill(t, master, 0, pid)
	o.close()
	again := observe(t, Options{Store: store}, pool)
	master.spawn(t, "w1")
	again.Sample()
	if got := again.values("web")["process_cpu_seconds"]; got < before || before < 0.05 {
		t.Errorf("CPU is %v, was %v", got, before)
	}
}

// memory is a Store.
type memory struct {
	mu    sync.Mutex
	state map[string][]byte
	err   error
	saves int
}

func (m *memory) Load(pool string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state[pool], m.err
}

func (m *memory) Save(pool string, state []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saves++
	if m.state == nil {
		m.state = map[string][]byte{}
	}
	m.state[pool] = state
	return m.err
}

func TestExits(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	var pids []int
	for i := range 4 {
		pids = append(pids, master.spawn(t, fmt.Sprintf("w%d", i)))
	}
	o := observe(t, Options{}, directory{"", dir})
	o.Sample()
	master.told(t, "0: exit 0")
	master.told(t, "wait 0")
	master.told(t, "1: exit 3")
	master.told(t, "wait 1")
	kill(t, master, 2, pids[2])
	o.Sample()
	v := o.values("")
	if v["aggregatord_pool_worker_exits unknown"] == 3 {
		missing(t, "this kernel does not tell how a process has ended that was waited for (Linux 6.15 does)")
	}
	for reason, want := range map[string]float64{"ok": 1, "error": 1, "SIGKILL": 1} {
		if got := v["aggregatord_pool_worker_exits "+reason]; got != want {
			t.Errorf("%v exits with reason %s, want %v", got, reason, want)
		}
	}
	if v["aggregatord_pool_workers"] != 1 {
		t.Errorf("%v workers, want 1", v["aggregatord_pool_workers"])
	}
}

// TestZombie has a worker end that nobody waits for yet.
func TestZombie(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	master.spawn(t, "a")
	pid := master.spawn(t, "b")
	o := observe(t, Options{}, directory{"", dir})
	o.Sample()
	before := o.values("")
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for { // until it is a zombie
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if s, err := parseStat(data); err != nil || s.state == 'Z' {
			break
		}
	}
	o.Sample()
	v := o.values("")
	if v["aggregatord_pool_workers"] != 1 || v["process_cpu_seconds"] < before["process_cpu_seconds"] ||
		v["process_max_fds"] != before["process_max_fds"] {
		t.Errorf("with a zombie %v, before %v", v, before)
	}
	master.told(t, "wait 1")
	o.Sample()
	exits := 0.0
	for _, how := range []string{"ok", "SIGKILL", "unknown"} {
		exits += o.values("")["aggregatord_pool_worker_exits "+how]
	}
	if exits != 1 {
		t.Errorf("%v exits: %v", exits, o.values(""))
	}
}

func TestStrangeWorkers(t *testing.T) {
	for name, command := range map[string]string{"renamed": "rename", "retitled": "retitle", "many_maps": "maps 10000"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			w := start(t, "worker", dir, "a")
			w.told(t, command)
			o := observe(t, Options{}, directory{"", dir})
			o.Sample()
			list := o.Processes()
			if len(list) != 1 || list[0].Pid != w.pid || list[0].Role != "worker" {
				t.Fatalf("processes %+v", list)
			}
			if v := o.values(""); v["aggregatord_pool_workers"] != 1 || v["process_resident_memory_bytes"] <= 0 {
				t.Errorf("values %v", v)
			}
			if title := strings.ToValidUTF8(hostileTitle, "\uFFFD"); name == "retitled" && !strings.HasPrefix(list[0].Command, title) {
				t.Errorf("command %q, want %q", list[0].Command, title)
			}
			if out, err := json.Marshal(list); err != nil || strings.ContainsAny(string(out), "\n\x00") {
				t.Errorf("JSON %s, %v", out, err)
			}
		})
	}
}

// TestReaders: who only reads source files is no worker.
func TestReaders(t *testing.T) {
	dir := t.TempDir()
	if _, err := mapSource(dir, "1"); err != nil { // by this process, which watches
		t.Fatal(err)
	}
	tail := exec.Command("tail", "-f", filepath.Join(dir, "counter_1.db"))
	if err := tail.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tail.Process.Kill()
		tail.Wait() //nolint:errcheck // it was killed
	})
	core, logged := observer.New(zap.InfoLevel)
	o := observe(t, Options{Logger: zap.New(core)}, directory{"web", dir})
	o.Sample()
	o.Sample()
	if list := o.Processes(); len(list) > 0 {
		t.Errorf("processes %+v", list)
	}
	if v := o.values("web"); len(v) > 0 {
		t.Errorf("values %v", v)
	}
	if n := logged.FilterMessageSnippet("no process of the pool is seen").Len(); n != 1 {
		t.Errorf("said %d times that no process is seen, want once: %v", n, logged.All())
	}
}

func init() { helpers["observe"] = observeHelper }

// observeHelper takes samples of a directory and prints what it has said and what it serves.
func observeHelper(args []string) error {
	core, logged := observer.New(zap.InfoLevel)
	pool := directory{"web", args[0]}
	o := New(Options{Logger: zap.New(core), Pools: func() []Pool { return []Pool{pool} }})
	o.Sample()
	o.Sample()
	fmt.Println("ready", len(o.Processes()))
	for _, e := range logged.All() {
		fmt.Println(e.Message)
	}
	fmt.Println("END", len(o.All().Values))
	return nil
}

// TestPidNamespace watches from a pid namespace apart.
func TestPidNamespace(t *testing.T) {
	if os.Geteuid() != 0 {
		missing(t, "only root may make a pid namespace")
	}
	if _, err := exec.LookPath("unshare"); err != nil {
		missing(t, "unshare is missing: apt-get install util-linux")
	}
	dir := t.TempDir()
	start(t, "worker", dir, "a")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k, err := startKid(exec.Command("unshare", "--pid", "--fork", "--mount-proc", exe, dir), "observe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.end)
	var lines []string
	for {
		line, err := k.out.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, lines)
		}
		lines = append(lines, strings.TrimSpace(line))
		if strings.HasPrefix(line, "END") {
			break
		}
	}
	if k.pid != 0 || len(lines) != 2 || !strings.Contains(lines[0], "share the pid namespace") || lines[1] != "END 0" {
		t.Errorf("%d processes, and it said %q", k.pid, lines)
	}
}

func TestByWorker(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	var pids []int
	for i := range 4 {
		pids = append(pids, master.spawn(t, fmt.Sprintf("w%d", i)))
		master.told(t, fmt.Sprintf("%d: burn 40", i))
	}
	o := observe(t, Options{ByWorker: true, Slots: 3}, directory{"", dir})
	sum := func() (cpu float64, labels []string) {
		for name, v := range o.values("") {
			if rest, ok := strings.CutPrefix(name, "process_cpu_seconds "); ok {
				cpu += v
				labels = append(labels, rest)
			}
		}
		slices.Sort(labels)
		return cpu, labels
	}
	o.Sample()
	before, labels := sum()
	if fmt.Sprint(labels) != "[0 1 2 master other]" {
		t.Errorf("labels %v", labels)
	}
	slot1 := o.values("")["process_cpu_seconds 1"]
	if slot1 < 0.03 {
		t.Errorf("slot 1 has used %v", slot1)
	}
	kill(t, master, 1, pids[1])
	o.Sample()
	v := o.values("")
	if v["process_cpu_seconds 1"] < slot1 {
		t.Errorf("CPU of slot 1 fell from %v to %v", slot1, v["process_cpu_seconds 1"])
	}
	if _, ok := v["process_resident_memory_bytes 1"]; ok {
		t.Error("memory of a worker that has ended")
	}
	// The next one takes the slot, and what is counted there goes on.
	master.spawn(t, "next")
	o.Sample()
	v = o.values("")
	if v["process_cpu_seconds 1"] < slot1 || v["process_resident_memory_bytes 1"] <= 0 {
		t.Errorf("slot 1 taken again: %v", v)
	}
	if after, labels := sum(); after < before || fmt.Sprint(labels) != "[0 1 2 master other]" {
		t.Errorf("%v seconds in all, were %v; labels %v", after, before, labels)
	}
}

// TestTwoPools have one parent, which is of neither.
func TestTwoPools(t *testing.T) {
	web, jobs := t.TempDir(), t.TempDir()
	start(t, "worker", web, "1")
	start(t, "worker", jobs, "1")
	o := observe(t, Options{}, directory{"web", web}, directory{"jobs", jobs})
	o.Sample()
	list := o.Processes()
	if len(list) != 2 || list[0].Pool != "web" || list[1].Pool != "jobs" || list[0].Role != "worker" || list[1].Role != "worker" {
		t.Fatalf("processes %+v", list)
	}
	snap := o.All()
	if snap != o.All() {
		t.Error("another snapshot although nothing was sampled")
	}
	seen := map[string]bool{}
	for _, f := range snap.Layout.Families {
		for _, m := range f.Metrics {
			if !slices.ContainsFunc(m.Labels, func(l metric.Label) bool { seen[l.Value] = true; return l.Name == "pool" }) {
				t.Errorf("%s has no label pool: %v", f.Name, m.Labels)
			}
			if !slices.IsSortedFunc(m.Labels, func(a, b metric.Label) int { return strings.Compare(a.Name, b.Name) }) {
				t.Errorf("%s: labels %v", f.Name, m.Labels)
			}
		}
	}
	if !seen["web"] || !seen["jobs"] {
		t.Errorf("label values %v", seen)
	}
	ofWeb := o.Some([]string{"web"}, true)
	for i := range ofWeb.Layout.Families {
		for _, m := range ofWeb.Layout.Families[i].Metrics {
			if slices.ContainsFunc(m.Labels, func(l metric.Label) bool { return l.Name == poolLabel }) {
				t.Errorf("%s of one pool has the label of pools: %v", ofWeb.Layout.Families[i].Name, m.Labels)
			}
		}
	}
	if named := o.Some([]string{"web"}, false); len(ofWeb.Values) == 0 || len(named.Values) != len(ofWeb.Values) ||
		len(o.Some([]string{"none"}, true).Values) > 0 {
		t.Errorf("views by pool: %d samples, with the label %d", len(ofWeb.Values), len(named.Values))
	}
}

func TestQueues(t *testing.T) {
	dir := t.TempDir()
	w := start(t, "worker", dir, "a")
	path := filepath.Join(dir, "s.sock")
	w.told(t, "listen tcp - 5")
	w.told(t, "listen tcp6 - 6")
	w.told(t, "listen unix "+path+" 7")
	abstract := fmt.Sprintf("@aggregatord-test-%d", w.pid)
	w.told(t, "listen unix "+abstract+" 8")
	o := observe(t, Options{}, directory{"", dir})
	o.Sample()
	limits := map[string]string{"5": "", "6": "", "7": "", "8": ""}
	for name, v := range o.values("") {
		if socket, ok := strings.CutPrefix(name, "aggregatord_pool_listen_backlog_limit "); ok {
			limits[strconv.Itoa(int(v))] = socket
		}
	}
	if limits["7"] != "unix:"+path || limits["8"] != "unix:"+abstract || !strings.HasPrefix(limits["5"], "127.0.0.1:") ||
		!strings.HasPrefix(limits["6"], "[::1]:") {
		t.Fatalf("sockets by limit: %v; values %v", limits, o.values(""))
	}
	dial := func(network, address string, n int) {
		for range n {
			conn, err := net.Dial(network, address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
		}
	}
	dial("tcp", limits["5"], 3)
	dial("tcp6", limits["6"], 2)
	dial("unix", path, 4)
	dial("unix", abstract, 1)
	o.Sample()
	v := o.values("")
	for limit, want := range map[string]float64{"5": 3, "6": 2, "7": 4, "8": 1} {
		if got := v["aggregatord_pool_listen_backlog "+limits[limit]]; got != want {
			t.Errorf("%v connections wait at %s, want %v", got, limits[limit], want)
		}
	}
	// The text that is read for another network namespace has the same of TCP.
	tcp := o.tcpOf(w.pid)
	found := 0
	for _, l := range tcp {
		if (l.address == limits["5"] && l.waiting == 3) || (l.address == limits["6"] && l.waiting == 2) {
			found++
		}
	}
	if found != 2 {
		t.Errorf("/proc/PID/net tells %v", tcp)
	}
	ss, err := exec.LookPath("ss")
	if err != nil {
		missing(t, "ss is missing: apt-get install iproute2")
	}
	out, err := exec.Command(ss, "-Hltnx").Output()
	if err != nil {
		t.Fatal(err)
	}
	for limit, socket := range limits {
		at := strings.TrimPrefix(socket, "unix:")
		line := ""
		for l := range strings.Lines(string(out)) {
			if strings.Contains(l, " "+at+" ") {
				line = l
			}
		}
		// Netid State Recv-Q Send-Q Local...
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[2] != strconv.Itoa(int(v["aggregatord_pool_listen_backlog "+socket])) || fields[3] != limit {
			t.Errorf("ss says %q of %s, and we %v", line, socket, v["aggregatord_pool_listen_backlog "+socket])
		}
	}
}

func TestDaemons(t *testing.T) {
	dir := t.TempDir()
	pidFile := filepath.Join(dir, "daemon.pid")
	core, logged := observer.New(zap.InfoLevel)
	o := observe(t, Options{Logger: zap.New(core), Daemons: []Daemon{{Namespace: "mydaemon", PidFile: pidFile}}})
	cpu := func() float64 {
		t.Helper()
		o.Sample()
		snap := o.All()
		for _, f := range snap.Layout.Families {
			if f.Name == "mydaemon_process_cpu_seconds" {
				return snap.Values[f.First]
			}
		}
		return -1
	}
	for _, text := range []string{"", "x", "-1", "99999999999999999999"} {
		if text != "" {
			if err := os.WriteFile(pidFile, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if v := cpu(); v != -1 {
			t.Errorf("pid file %q gives %v", text, v)
		}
	}
	if n := logged.FilterMessageSnippet("does not name a process").Len(); n != 1 {
		t.Errorf("said %d times", n)
	}
	first := start(t, "worker", t.TempDir(), "x")
	first.told(t, "burn 50")
	if err := os.WriteFile(pidFile, fmt.Appendf(nil, "%d\n", first.pid), 0o600); err != nil {
		t.Fatal(err)
	}
	one := cpu()
	if one < 0.04 {
		t.Errorf("CPU %v", one)
	}
	names := []string{}
	for _, f := range o.All().Layout.Families {
		names = append(names, strings.TrimPrefix(f.Name, "mydaemon_process_"))
	}
	if fmt.Sprint(names) != "[cpu_seconds max_fds open_fds resident_memory_bytes start_time_seconds virtual_memory_bytes]" {
		t.Errorf("families %v", names)
	}
	first.end()
	cpu()
	second := start(t, "worker", t.TempDir(), "x")
	second.told(t, "burn 50")
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(second.pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	if two := cpu(); two < one+0.04 {
		t.Errorf("CPU is %v after a restart, was %v", two, one)
	}
}

func TestAside(t *testing.T) {
	dir := t.TempDir()
	start(t, "worker", dir, "a")
	core, logged := observer.New(zap.InfoLevel)
	o := observe(t, Options{Logger: zap.New(core)}, directory{"", dir})
	o.Sample()
	theirs := layoutOf([]row{
		{family{"process_cpu_seconds_total", "", metric.Gauge}, nil, 1},
		{family{"process_open_fds", "", metric.Gauge}, nil, 1},
	})
	all := o.All()
	names := func(s *view.Snapshot) string {
		var list []string
		at := 0
		for _, f := range s.Layout.Families {
			if strings.HasPrefix(f.Name, "process_") {
				list = append(list, f.Name)
			}
			if f.First != at {
				t.Errorf("%s begins at %d, want %d", f.Name, f.First, at)
			}
			at += f.Points
		}
		if at != s.Layout.Points || at != len(s.Values) {
			t.Errorf("%d points, %d values, want %d", s.Layout.Points, len(s.Values), at)
		}
		return strings.Join(list, " ")
	}
	for range 2 {
		got := o.Aside(o.All(), theirs)
		if names(got) != "process_max_fds process_resident_memory_bytes process_start_time_seconds process_virtual_memory_bytes" {
			t.Errorf("served: %s", names(got))
		}
		at := 0
		for _, f := range got.Layout.Families {
			for _, g := range all.Layout.Families {
				if f.Name == g.Name && got.Values[f.First] != all.Values[g.First] {
					t.Errorf("%s is %v, want %v", f.Name, got.Values[f.First], all.Values[g.First])
				}
			}
			at += f.Points
		}
	}
	if n := logged.FilterMessageSnippet("write a metric of this name").Len(); n != 2 {
		t.Errorf("said %d times, want once for each of two names", n)
	}
	if got := o.Aside(all, layoutOf(nil)); got != all {
		t.Error("another snapshot although nothing stands aside")
	}
}

func TestStates(t *testing.T) {
	dir := t.TempDir()
	master := start(t, "master", dir, "wait")
	master.spawn(t, "a")
	master.told(t, "0: burn 50")
	store := &memory{}
	pool := directory{"web", dir}
	o := observe(t, Options{Store: store}, pool)
	o.Sample()
	o.sample(final)
	state, _ := store.Load("web")
	cpu := o.values("web")["process_cpu_seconds"]
	with := func(change func(*state2)) []byte {
		var s state2
		if err := json.Unmarshal(state, &s); err != nil {
			t.Fatal(err)
		}
		change(&s)
		out, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, tc := range map[string]struct {
		state    []byte
		failed   bool
		atLeast  float64
		atMost   float64
		loadFail error
	}{
		"same":         {state, false, cpu, cpu + 1, nil},
		"none":         {nil, false, cpu - 0.01, cpu + 1, nil},
		"other_boot":   {with(func(s *state2) { s.Boot = "other" }), false, 2*cpu - 0.03, 2*cpu + 1, nil},
		"reused_pid":   {with(func(s *state2) { s.Processes[len(s.Processes)-1].Start++ }), false, cpu, 2*cpu + 1, nil},
		"newer":        {with(func(s *state2) { s.Version = 9 }), true, 0, cpu + 1, nil},
		"damaged":      {state[:len(state)/2], true, 0, cpu + 1, nil},
		"hostile_slot": {with(func(s *state2) { s.Processes[0].Slot = 1 << 40; s.Processes[1].Slot = -7 }), false, cpu, cpu + 1, nil},
		"not_loaded":   {nil, true, 0, cpu + 1, fs.ErrPermission},
	} {
		t.Run(name, func(t *testing.T) {
			core, logged := observer.New(zap.WarnLevel)
			again := observe(t, Options{Logger: zap.New(core), Store: &memory{state: map[string][]byte{"web": tc.state}, err: tc.loadFail}},
				pool)
			again.Sample()
			if got := again.values("web")["process_cpu_seconds"]; got < tc.atLeast || got > tc.atMost {
				t.Errorf("CPU is %v, want %v to %v", got, tc.atLeast, tc.atMost)
			}
			if failed := logged.FilterMessageSnippet("begin anew").Len() > 0; failed != tc.failed {
				t.Errorf("failed: %v; logged %v", failed, logged.All())
			}
			if n := again.values("web")["aggregatord_pool_workers"]; n != 1 {
				t.Errorf("%v workers", n)
			}
		})
	}
	saves := store.saves
	o.Sample()
	if store.saves != saves {
		t.Error("saved although nothing has happened that cannot be seen again")
	}
	store.err = errors.New("full")
	kill(t, master, 0, o.Processes()[1].Pid)
	o.Sample()
	if store.saves != saves+1 {
		t.Errorf("%d saves, were %d: a worker has ended", store.saves, saves)
	}
}

type state2 = state

func TestRun(t *testing.T) {
	dir := t.TempDir()
	start(t, "worker", dir, "a")
	address := fakeGunicorn(t, func(string) []byte {
		return []byte(`{"id": ID, "status": "ok", "data": {"workers_current": 3, "workers": []}}`)
	})
	store := &memory{}
	o := observe(t, Options{
		Store: store, Interval: 1,
		Sources: []Source{{Pool: "", Server: Gunicorn, Address: address}, {Server: UWSGI, Address: "/none"}},
	}, directory{"", dir})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { o.Run(ctx) }) // ends with ctx
	for o.values("")["gunicorn_workers"] != 3 {
		o.Scraped()
	}
	stop()
	running.Wait()
	if store.saves == 0 {
		t.Error("no state was kept at the end")
	}
}

// TestLimit: more processes than are read of one pool.
func TestLimit(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		start(t, "worker", dir, strconv.Itoa(i))
	}
	o := observe(t, Options{MaxProcesses: 2}, directory{"", dir})
	o.Sample()
	if n := len(o.Processes()); n != 2 {
		t.Errorf("%d processes are read", n)
	}
}

// forker is a master in Python with so many workers, which map their files as the client
// does.
const forker = `
import mmap, os, sys
for i in range(int(sys.argv[2])):
    if os.fork() == 0:
        f = open(os.path.join(sys.argv[1], "counter_%d.db" % os.getpid()), "a+b")
        f.truncate(65536)
        m = mmap.mmap(f.fileno(), 65536)
        break
os.write(1, b"ready %d\n" % os.getpid())
os.read(0, 1)
`

// BenchmarkSample reads a pool of 64 workers and a master. With new=true a process was made
// since the last sample, as on a machine that does something else, too.
func BenchmarkSample(b *testing.B) {
	python, err := exec.LookPath("python3")
	if err != nil {
		b.Skip("python3 is missing")
	}
	dir := b.TempDir()
	cmd := exec.Command(python, "-c", forker, dir, "64")
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		in.Close()
		cmd.Wait() //nolint:errcheck // its workers have ended with their input
	})
	lines := bufio.NewScanner(out)
	for range 65 {
		lines.Scan()
	}
	o := observe(b, Options{}, fixed(directory{"", dir}.Files()))
	for range 3 {
		o.Sample()
	}
	if n := len(o.Processes()); n != 65 {
		b.Fatalf("%d processes", n)
	}
	for _, busy := range []bool{false, true} {
		b.Run(fmt.Sprintf("workers=64/new=%v", busy), func(b *testing.B) {
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				if busy {
					o.newest = ""
				}
				o.Sample()
			}
			// On a machine with other work the time that passes says little.
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N)/1e3, "cpu-µs/op")
		})
	}
}

// fixed is a pool with always the same files.
type fixed []FileID

func (fixed) Name() string      { return "" }
func (f fixed) Files() []FileID { return f }

// TestEndingWorker: a process that has given up its memory, and is about to end, holds no file any
// more. It was a worker to its end, other than one that goes on and has closed its files.
func TestEndingWorker(t *testing.T) {
	for name, c := range map[string]struct {
		vsize  string
		worker bool
	}{"ends": {"0", true}, "goes_on": {"45813760", false}} {
		t.Run(name, func(t *testing.T) {
			root, dir := t.TempDir(), t.TempDir()
			if _, err := mapSource(dir, "a"); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(root, "7", "fd"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("/dev/null", filepath.Join(root, "7", "fd", "0")); err != nil {
				t.Fatal(err)
			}
			for file, text := range map[string]string{"stat": strings.Replace(statLine("x"), "45813760", c.vsize, 1), "maps": ""} {
				if err := os.WriteFile(filepath.Join(root, "7", file), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			o := observe(t, Options{Proc: root})
			pool := directory{"", dir}
			g := newGroup(o, "", "", pool, nil)
			g.files = pool.Files()
			p := &proc{pid: 7, start: 987654, worker: true, dearAt: time.Now(), pidfd: -1}
			g.readDear(p, time.Now())
			if p.worker != c.worker {
				t.Errorf("worker: %v, want %v", p.worker, c.worker)
			}
			o.release(p)
		})
	}
}
