package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// finding is what doctor prints.
type finding struct{ Level, Check, Found, Advice string }

// doctor runs aggregatord doctor, which asks no daemon unless the flags name one, and
// returns what it found. The exit code must agree with it.
func doctor(t *testing.T, attr *syscall.SysProcAttr, flags ...string) []finding {
	t.Helper()
	cmd := exec.Command(builtDaemon(t), append([]string{"doctor", "--format", "json", "--url", ""}, flags...)...)
	cmd.Env = withoutDir()
	cmd.SysProcAttr = attr
	cmd.Dir = "/"
	out, err := cmd.Output()
	var findings []finding
	if jsonErr := json.Unmarshal(out, &findings); jsonErr != nil {
		t.Fatalf("%v, %v: %s", err, jsonErr, out)
	}
	problem := 0
	for _, f := range findings {
		if f.Level == "problem" {
			problem = 1
			if f.Advice == "" {
				t.Errorf("a problem without advice: %v", f)
			}
		}
	}
	if exitCode(err) != problem {
		t.Errorf("exit code %d with %v", exitCode(err), findings)
	}
	return findings
}

// finds checks that there is a finding of the level whose text has the words.
func finds(t *testing.T, findings []finding, level, check, words string) {
	t.Helper()
	for _, f := range findings {
		if f.Level == level && f.Check == check && strings.Contains(f.Found, words) {
			return
		}
	}
	t.Errorf("no %s about %s that says %q among:\n%s", level, check, words, spell(findings))
}

// sound checks that nothing is wrong.
func sound(t *testing.T, findings []finding) {
	t.Helper()
	for _, f := range findings {
		if f.Level != "ok" {
			t.Errorf("%s where all is well: %v", f.Level, f)
		}
	}
}

func spell(findings []finding) string {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "%s %s: %s (%s)\n", f.Level, f.Check, f.Found, f.Advice)
	}
	return b.String()
}

// counting starts a Python process that counts one and waits; its environment is env.
func counting(t *testing.T, env []string, attr *syscall.SysProcAttr, code string) *process {
	t.Helper()
	interpreter := python(t, "prometheus_client")
	if code == "" {
		code = `import prometheus_client; prometheus_client.Counter("c_total", "Help.").inc()`
	}
	cmd := exec.Command(interpreter, "-c", code+"\nprint('done', flush=True); import sys; sys.stdin.read()")
	cmd.Env, cmd.SysProcAttr, cmd.Dir = env, attr, "/"
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	p := start(t, cmd)
	in.Close()
	t.Cleanup(func() { out.Close() })
	p.await("its count", func(line string) bool { return line == "done" })
	return p
}

// TestDoctorSound: where all is well nothing else is said.
func TestDoctorSound(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	d := serve(t, "--dir", dir)
	p := counting(t, appEnv(dir), nil, "")
	findings := doctor(t, nil, "--dir", dir, "--url", d.URL)
	sound(t, findings)
	finds(t, findings, "ok", "workers", strconv.Itoa(p.pid()))
	finds(t, findings, "ok", "daemon", fmt.Sprintf("process %d", d.pid()))
	finds(t, findings, "ok", "endpoint", "ready")
	// With a process instead of a directory it finds the rest by itself.
	findings = doctor(t, nil, "--pid", strconv.Itoa(p.pid()), "--url", d.URL)
	sound(t, findings)
	finds(t, findings, "ok", "environment", "was started with this directory, and writes there")
	// A variable that the application sets early enough is as good.
	p = counting(t, withoutDir(), nil, `import os; os.environ["PROMETHEUS_MULTIPROC_DIR"] = "`+dir+`"
import prometheus_client; prometheus_client.Counter("c_total", "Help.").inc()`)
	finds(t, doctor(t, nil, "--dir", dir, "--pid", strconv.Itoa(p.pid())), "ok", "environment", "sets it early enough itself")
	text, err := exec.Command(builtDaemon(t), "doctor", "--dir", dir, "--url", d.URL).Output()
	if err != nil || !strings.Contains(string(text), "Everything looks right.") {
		t.Errorf("for people: %v\n%s", err, text)
	}
}

// TestDoctorGunicorn: a server that was started without the variable is found by its name.
func TestDoctorGunicorn(t *testing.T) {
	t.Parallel()
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	python(t, "flask", "prometheus_client")
	socket := filepath.Join(t.TempDir(), "app.sock")
	cmd := exec.Command(gunicorn, "--bind", "unix:"+socket, "--chdir", filepath.Dir(app(t, "shop.py")), "shop:app")
	cmd.Env = withoutDir()
	server := start(t, cmd)
	client := unixClient(t, socket)
	eventually(t, patience, func() error { return fetch(client, "/order/1") })
	dir := sourceDir(t)
	finds(t, doctor(t, nil, "--dir", dir), "problem", "environment", "No process was started with this directory")
	finds(t, doctor(t, nil, "--dir", dir, "--pid", strconv.Itoa(server.pid())), "problem", "environment",
		fmt.Sprintf("gunicorn (%d) was started without PROMETHEUS_MULTIPROC_DIR, and writes nothing", server.pid()))
}

// TestDoctorNotNamed: without a directory nothing is claimed of who writes there, and what
// processes were started with is told.
func TestDoctorNotNamed(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	counting(t, withoutDir(), nil, "")
	p := counting(t, appEnv(dir), nil, "")
	for _, f := range doctor(t, nil) {
		if f.Check != "directory" || !strings.Contains(f.Advice, "Processes here have ") {
			t.Errorf("found without a directory: %v", f)
		}
	}
	sound(t, slices.DeleteFunc(doctor(t, nil, "--pid", strconv.Itoa(p.pid())), func(f finding) bool { return f.Check == "daemon" }))
	p = counting(t, withoutDir(), nil, `import os; os.environ["PROMETHEUS_MULTIPROC_DIR"] = "`+dir+`"
import prometheus_client; prometheus_client.Counter("c_total", "Help.").inc()`)
	finds(t, doctor(t, nil, "--pid", strconv.Itoa(p.pid())), "problem", "environment", "and writes to "+dir)
}

// TestDoctorBroken makes each thing that can be wrong, one at a time.
func TestDoctorBroken(t *testing.T) {
	t.Parallel()
	nobody := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	for name, tc := range map[string]struct {
		root                bool
		make                func(t *testing.T, dir string) []finding
		level, check, words string
	}{
		"missing": {
			make:  func(t *testing.T, dir string) []finding { return doctor(t, nil, "--dir", dir+"/missing") },
			level: "problem", check: "directory", words: "does not exist",
		},
		"no_directory": {
			make: func(t *testing.T, dir string) []finding {
				file := filepath.Join(dir, "file")
				if err := os.WriteFile(file, nil, 0o644); err != nil {
					t.Fatal(err)
				}
				return doctor(t, nil, "--dir", file)
			},
			level: "problem", check: "directory", words: "is not a directory",
		},
		"not_named": {
			make:  func(t *testing.T, _ string) []finding { return doctor(t, nil) },
			level: "problem", check: "directory", words: "No directory is given",
		},
		"may_not_list": {
			root: true,
			make: func(t *testing.T, dir string) []finding {
				if err := os.Chmod(dir, 0o700); err != nil {
					t.Fatal(err)
				}
				return doctor(t, nobody, "--dir", dir)
			},
			level: "problem", check: "directory", words: "permission denied",
		},
		"workers_may_not_write": {
			root: true,
			make: func(t *testing.T, dir string) []finding {
				counting(t, appEnv(dir), nobody, "pass")
				return doctor(t, nil, "--dir", dir)
			},
			level: "problem", check: "permissions", words: "user 65534, may not make files",
		},
		"set_too_late": {
			make: func(t *testing.T, dir string) []finding {
				p := counting(t, withoutDir(), nil, `import prometheus_client, os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "`+dir+`"
prometheus_client.Counter("c_total", "Help.").inc()`)
				return doctor(t, nil, "--dir", dir, "--pid", strconv.Itoa(p.pid()))
			},
			level: "problem", check: "environment", words: "that is too late",
		},
		"other_directory": {
			make: func(t *testing.T, dir string) []finding {
				p := counting(t, appEnv(sourceDir(t)), nil, "")
				return doctor(t, nil, "--dir", dir, "--pid", strconv.Itoa(p.pid()))
			},
			level: "problem", check: "environment", words: "not with ",
		},
		"no_metric_yet": {
			make: func(t *testing.T, dir string) []finding {
				counting(t, appEnv(dir), nil, "import prometheus_client")
				return doctor(t, nil, "--dir", dir)
			},
			level: "warning", check: "environment", words: "nothing is written",
		},
		"no_such_process": {
			make:  func(t *testing.T, dir string) []finding { return doctor(t, nil, "--dir", dir, "--pid", "4194304") },
			level: "problem", check: "process", words: "no process 4194304",
		},
		"no_lease": {
			root: true,
			make: func(t *testing.T, dir string) []finding {
				counting(t, appEnv(dir), nil, "")
				return doctor(t, nobody, "--dir", dir)
			},
			level: "problem", check: "liveness", words: "no proof that a worker is dead",
		},
		"full": {
			root: true,
			make: func(t *testing.T, dir string) []finding {
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
					missing(t, "the right to mount", err.Error())
				}
				t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
				return doctor(t, nil, "--dir", dir)
			},
			level: "problem", check: "space", words: "The file system is full",
		},
		"no_inodes": {
			root: true,
			make: func(t *testing.T, dir string) []finding {
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,nr_inodes=2"); err != nil {
					missing(t, "the right to mount", err.Error())
				}
				t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
				if err := os.WriteFile(filepath.Join(dir, "counter_1.db"), nil, 0o644); err != nil {
					t.Fatal(err)
				}
				return doctor(t, nil, "--dir", dir)
			},
			level: "problem", check: "inodes", words: "no inodes left",
		},
		"old_client": {
			make: func(t *testing.T, dir string) []finding {
				counting(t, appEnv(dir), nil, `from prometheus_client.mmap_dict import MmapedDict
keep = MmapedDict("`+dir+`/counter_7.db"); keep.write_value('["c", "c_total", {}]', 1.0)`)
				return doctor(t, nil, "--dir", dir)
			},
			level: "warning", check: "client", words: "older than 0.16",
		},
		"reader": {
			make: func(t *testing.T, dir string) []finding {
				p := counting(t, appEnv(dir), nil, "")
				counting(t, withoutDir(), nil,
					fmt.Sprintf("keep = open(%q, 'rb')", filepath.Join(dir, fmt.Sprintf("counter_%d.db", p.pid()))))
				return doctor(t, nil, "--dir", dir)
			},
			level: "warning", check: "readers", words: "1 process reads the files besides the daemon",
		},
		"damaged": {
			make: func(t *testing.T, dir string) []finding {
				if err := os.WriteFile(filepath.Join(dir, "counter_1.db"), []byte("garbage that is no source file"), 0o644); err != nil {
					t.Fatal(err)
				}
				return doctor(t, nil, "--dir", dir)
			},
			level: "problem", check: "files", words: "1 file cannot be read, the first: counter_1.db",
		},
		"ruby": {
			make: func(t *testing.T, dir string) []finding {
				if err := os.WriteFile(filepath.Join(dir, "metric_http_requests___17.bin"), make([]byte, 64), 0o644); err != nil {
					t.Fatal(err)
				}
				return doctor(t, nil, "--dir", dir)
			},
			level: "warning", check: "client",
			words: "1 file was written by client_ruby (DirectFileStore), which is not read yet. The first: \"metric_http_requests___17.bin\"",
		},
		"removed_files": {
			make: func(t *testing.T, dir string) []finding {
				p := counting(t, appEnv(dir), nil, "")
				if err := os.Remove(filepath.Join(dir, fmt.Sprintf("counter_%d.db", p.pid()))); err != nil {
					t.Fatal(err)
				}
				return doctor(t, nil, "--dir", dir)
			},
			level: "warning", check: "removed files", words: "1 process writes to files that were removed",
		},
		"daemon_of_another_user": {
			root: true,
			make: func(t *testing.T, dir string) []finding {
				counting(t, appEnv(dir), nil, "")
				d := serveAs(t, nobody, "--dir", dir)
				return doctor(t, nil, "--dir", dir, "--url", d.URL)
			},
			level: "problem", check: "liveness", words: "The daemon cannot tell whether the workers of 1 file are alive",
		},
		"no_daemon": {
			make: func(t *testing.T, dir string) []finding {
				return doctor(t, nil, "--dir", dir, "--url", "http://127.0.0.1:1")
			},
			level: "problem", check: "endpoint", words: "Nobody answers",
		},
		"not_this_daemon": {
			make: func(t *testing.T, dir string) []finding {
				d := serve(t, "--dir", dir+"/not-there")
				return doctor(t, nil, "--dir", dir, "--url", d.URL)
			},
			level: "problem", check: "endpoint", words: "/not-there, not /",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tc.root {
				needRoot(t)
			}
			dir := sourceDir(t)
			finds(t, tc.make(t, dir), tc.level, tc.check, tc.words)
		})
	}
}

// TestDoctorNamespace: from within another pid namespace, where the writers cannot be seen,
// it says so and does not call that a problem.
func TestDoctorNamespace(t *testing.T) {
	t.Parallel()
	needRoot(t)
	unshare := peer(t, "unshare", "apt-get install util-linux")
	dir := sourceDir(t)
	counting(t, appEnv(dir), nil, "")
	cmd := exec.Command(unshare, "--pid", "--fork", "--kill-child", "--mount-proc", builtDaemon(t), "doctor", "--format", "json", "--url",
		"", "--dir", dir)
	cmd.Env = withoutDir()
	out, err := cmd.Output()
	if err != nil {
		t.Errorf("%v", err)
	}
	var findings []finding
	if err := json.Unmarshal(out, &findings); err != nil {
		t.Fatal(err)
	}
	finds(t, findings, "ok", "files", "1 source file")
	finds(t, findings, "warning", "environment", "in another container")
}
