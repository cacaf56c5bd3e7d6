package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// spawn starts the first worker of a program, by another program if prefix names one, and waits
// until it has done its steps. The first process is returned, which may be prefix's.
func spawn(t *testing.T, dir string, p program, prefix ...string) *process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "program.json")
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	args := append(prefix, python(t, "prometheus_client"), app(t, "worker.py"), file, "0")
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = appEnv(dir)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	proc := start(t, cmd)
	in.Close()
	t.Cleanup(func() { out.Close() })
	proc.await("the end of its steps", func(line string) bool { return strings.HasPrefix(line, "done") })
	return proc
}

// childrenOf lists the processes whose parent is pid.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	var children []int
	for _, path := range paths {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		// proc_pid_stat(5): pid (comm) state ppid; comm may contain anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			if child, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
				children = append(children, child)
			}
		}
	}
	return children
}

// gone waits for the end of a process that is not our child: a zombie holds no file.
func gone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, patience, func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || bytes.Contains(stat, []byte(") Z ")) {
			return nil
		}
		return fmt.Errorf("process %d is still there", pid)
	})
}

// sources lists the source files in a directory.
func sources(t *testing.T, dir string) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range paths {
		paths[i] = filepath.Base(path)
	}
	return paths
}

// expect fails unless the samples have these values; NaN stands for one that is not there.
func expect(v view, want map[string]float64) error {
	var errs []error
	for series, x := range want {
		sample, _, _ := strings.Cut(series, "{")
		if y := v.value(strings.TrimSuffix(sample, "_total"), series); !same(x, y) {
			errs = append(errs, fmt.Errorf("%s is %v, want %v", series, y, x))
		}
	}
	return errors.Join(errs...)
}

// lived is a worker with a counter and a live gauge.
func lived(id string, count int) program {
	return program{
		Metrics: []declared{
			{Name: "lived_total", Type: "counter", Help: "Count."},
			{Name: "lived_now", Type: "gauge", Help: "Level.", Mode: "livesum"},
			{Name: "lived_max", Type: "gauge", Help: "Level.", Mode: "max"},
		},
		Workers: []worker{{ID: id, Steps: []step{
			{Metric: "lived_total", Op: "inc", Value: strconv.Itoa(count)},
			{Metric: "lived_now", Op: "set", Value: "3"},
			{Metric: "lived_max", Op: "set", Value: strconv.Itoa(count)},
		}}},
	}
}

// TestOtherPIDNamespace has a worker with pid 1 in a namespace of its own, as in a
// container: a daemon that asked for that pid would see init, which never dies.
func TestOtherPIDNamespace(t *testing.T) {
	t.Parallel()
	needRoot(t)
	unshare := peer(t, "unshare", "apt-get install util-linux")
	dir := sourceDir(t)
	w := spawn(t, dir, lived("", 5), unshare, "--pid", "--fork", "--mount-proc", "--kill-child")
	if got := sources(t, dir); !slices.Contains(got, "counter_1.db") {
		t.Fatalf("the worker's files are %v, want counter_1.db among them", got)
	}
	children := childrenOf(t, w.pid())
	if len(children) != 1 {
		t.Fatalf("unshare has children %v, want one", children)
	}
	d := serve(t, "--dir", dir)
	if err := expect(d.mustText(), map[string]float64{"lived_total": 5, "lived_now": 3, "lived_max": 5}); err != nil {
		t.Fatal(err)
	}
	// Longer than the daemon needs to fold a file that it takes for dead.
	time.Sleep(2500 * time.Millisecond)
	if err := expect(d.mustText(), map[string]float64{"lived_total": 5, "lived_now": 3}); err != nil {
		t.Error(err)
	}
	if got := sources(t, dir); len(got) != 3 {
		t.Errorf("the files of the living are %v", got)
	}

	w.kill()
	gone(t, children[0])
	// The scrape right after the death must know of it.
	if err := expect(d.mustText(), map[string]float64{"lived_total": 5, "lived_now": math.NaN(), "lived_max": 5}); err != nil {
		t.Errorf("right after the death: %v", err)
	}
	eventually(t, patience, func() error { return empty(dir) })
	if err := expect(d.mustText(), map[string]float64{"lived_total": 5, "lived_now": math.NaN(), "lived_max": 5}); err != nil {
		t.Errorf("when all is folded: %v", err)
	}
}

// TestDeathNoticed asks for no scrape: the daemon finds a death out by itself.
func TestDeathNoticed(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	w := spawn(t, dir, lived("w", 5))
	d := serve(t, "--dir", dir)
	w.kill()
	died := time.Now()
	d.await("the death of its worker", func(line string) bool {
		entry, ok := parseLog(line)
		return ok && entry["worker"] == "w" && strings.HasPrefix(fmt.Sprint(entry["msg"]), "worker is dead")
	})
	took := time.Since(died)
	t.Logf("the death was noticed after %v", took.Round(time.Millisecond))
	// Within a second on an idle machine; this one may have other tests to do.
	if took > 5*time.Second {
		t.Error("that is too late")
	}
	eventually(t, patience, func() error { return empty(dir) })
}

// TestOtherUser runs the daemon as a user who owns none of the files, may not write to
// the directory and has no CAP_LEASE: then nothing tells it who is dead.
func TestOtherUser(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := sourceDir(t)
	spawn(t, dir, lived("dead", 2)).kill()
	w := spawn(t, dir, lived("alive", 3))
	before := sources(t, dir)
	d := serveAs(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, "--dir", dir)
	check := func(when string) {
		t.Helper()
		v := d.mustText()
		// In doubt alive: the dead worker's live gauge counts, too.
		if err := expect(v, map[string]float64{"lived_total": 5, "lived_now": 6, "lived_max": 3, "aggregatord_archive_up": 0}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		f := v["aggregatord_liveness_files"]
		if f == nil || f.Samples[`aggregatord_liveness_files{method="none"}`] != float64(len(before)) ||
			f.Samples[`aggregatord_liveness_files{method="lease"}`] != 0 || f.Samples[`aggregatord_liveness_files{method="proc"}`] != 0 {
			t.Errorf("%s: how life is known: %v, want none for %d files", when, f, len(before))
		}
		if got := sources(t, dir); !slices.Equal(got, before) {
			t.Errorf("%s: the files are %v, were %v", when, got, before)
		}
		if own, err := filepath.Glob(filepath.Join(dir, ".aggregatord*")); err != nil || len(own) > 0 {
			t.Errorf("%s: a directory that it may not write to has %v, %v", when, own, err)
		}
	}
	check("at the start")
	time.Sleep(2500 * time.Millisecond)
	check("some time later")
	w.kill()
	check("after another death")
	time.Sleep(2500 * time.Millisecond)
	check("some time later")
	said := map[string]bool{}
	for _, entry := range d.logs() {
		if entry["level"] == "warn" || entry["level"] == "error" {
			said[fmt.Sprint(entry["msg"])] = true
		}
	}
	for _, want := range []string{"dead processes cannot be known", "archive cannot be opened"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(said)), func(s string) bool { return strings.Contains(s, want) }) {
			t.Errorf("the log does not say %q, but only %v", want, said)
		}
	}
	d.stop()

	// One with the right takes over.
	d = serve(t, "--dir", dir)
	eventually(t, patience, func() error { return empty(dir) })
	if err := expect(d.mustText(), map[string]float64{
		"lived_total": 5, "lived_now": math.NaN(), "lived_max": 3,
		"aggregatord_archive_up": 1,
	}); err != nil {
		t.Error(err)
	}
}

// TestDumpWithoutRights looks at a directory whose archive it may not read: what it would
// show is wrong, so it says so, and ends.
func TestDumpWithoutRights(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := sourceDir(t)
	spawn(t, dir, lived("w", 5)).kill()
	d := serve(t, "--dir", dir)
	eventually(t, patience, func() error { return empty(dir) })
	for _, when := range []string{"beside a daemon", "after a kill"} {
		cmd := exec.Command(builtDaemon(t), "dump", "--dir", dir, "--format", "text")
		cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=50")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		looking := start(t, cmd)
		select {
		case <-looking.exited:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it goes on looking for ever", when)
		}
		var exit *exec.ExitError
		if !errors.As(looking.err, &exit) || exit.ExitCode() != 1 || !strings.Contains(looking.out.String(), "permission denied") {
			t.Errorf("%s: it ended with %v, want status 1 and a reason; it said:\n%s", when, looking.err, looking.out)
		}
		if !d.stopped {
			d.murder()
		}
	}
}

// TestInheritedMappings kills processes whose mappings live on in others.
func TestInheritedMappings(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	cmd := exec.Command(python(t, "prometheus_client"), app(t, "chaos_family.py"))
	cmd.Env = appEnv(dir)
	family := start(t, cmd)
	pids := map[string]int{}
	for _, name := range []string{"heir", "child", "worker", "master"} {
		line := family.await(name, func(line string) bool { return strings.HasPrefix(line, name+" ") })
		pid, err := strconv.Atoi(line[len(name)+1:])
		if err != nil {
			t.Fatal(err)
		}
		pids[name] = pid
	}
	kill := func(name string) {
		t.Helper()
		if err := syscall.Kill(pids[name], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		gone(t, pids[name])
	}
	file := func(name string) string { return fmt.Sprintf("counter_%d.db", pids[name]) }
	d := serve(t, "--dir", dir)
	check := func(when string, total, alive float64, files ...string) {
		t.Helper()
		if err := expect(d.mustText(), map[string]float64{"family_total": total, "family_alive": alive}); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		// What is held stays, what is not goes.
		eventually(t, patience, func() error {
			got := slices.DeleteFunc(sources(t, dir), func(s string) bool { return !strings.HasPrefix(s, "counter_") })
			slices.Sort(files)
			if !slices.Equal(got, files) {
				return fmt.Errorf("%s: the files are %v, want %v", when, got, files)
			}
			return nil
		})
		if err := expect(d.mustText(), map[string]float64{"family_total": total, "family_alive": alive}); err != nil {
			t.Errorf("%s, later: %v", when, err)
		}
	}
	// Longer than the daemon needs to fold a file that it takes for dead.
	wait := func() { time.Sleep(2500 * time.Millisecond) }

	check("all alive", 11, 2, file("master"), file("worker"))
	kill("worker")
	wait()
	check("the worker is dead, its child is not", 11, 2, file("master"), file("worker"))
	if err := syscall.Kill(pids["child"], syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	family.await("the child's addition", func(line string) bool { return line == "added" })
	check("the child has written", 111, 2, file("master"), file("worker"))
	kill("master")
	wait()
	check("the master is dead, its heir is not", 111, 2, file("master"), file("worker"))
	kill("child")
	check("the child is dead", 111, 1, file("master"))
	kill("heir")
	check("all are dead", 111, math.NaN())
	eventually(t, patience, func() error { return empty(dir) })
}

// TestOneDaemonPerDirectory: the second says who has it and ends.
func TestOneDaemonPerDirectory(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	spawn(t, dir, lived("w", 5)).kill()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	first := serve(t, "--dir", dir)
	for _, c := range []struct {
		name  string
		flags []string
	}{
		{"same_path", []string{"--dir", dir}},
		{"through_a_link", []string{"--dir", link}},
		{"named", []string{"--dir", "name=" + dir}},
		{"archive_elsewhere", []string{"--dir", dir, "--archive.dir", t.TempDir()}},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command(builtDaemon(t), append([]string{"serve", "--web.listen-address", "127.0.0.1:0"}, c.flags...)...)
			cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=50")
			second := start(t, cmd)
			select {
			case <-second.exited:
			case <-time.After(10 * time.Second):
				t.Fatalf("a second daemon runs on the same directory; it said:\n%s", second.out)
			}
			var exit *exec.ExitError
			if !errors.As(second.err, &exit) || exit.ExitCode() != 1 {
				t.Errorf("it ended with %v, want status 1", second.err)
			}
			lines, _ := second.out.lines()
			naming := slices.DeleteFunc(lines, func(line string) bool { return !strings.Contains(line, strconv.Itoa(first.pid())) })
			if len(naming) != 1 {
				t.Errorf("%d lines name the daemon that has it, pid %d, want 1:\n%s", len(naming), first.pid(), second.out)
			}
		})
	}
	if err := expect(first.mustText(), map[string]float64{"lived_total": 5, "aggregatord_archive_up": 1}); err != nil {
		t.Errorf("the first one, afterwards: %v", err)
	}
	first.murder()
	third := serve(t, "--dir", dir)
	if err := expect(third.mustText(), map[string]float64{"lived_total": 5, "aggregatord_archive_up": 1}); err != nil {
		t.Errorf("the one after a kill: %v", err)
	}
}
