package integration

import (
	"errors"
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// ruby returns the interpreter, if it has prometheus-client-mmap.
func ruby(t *testing.T) string {
	t.Helper()
	const hint = "apt-get install ruby ruby-prometheus-client-mmap"
	path := peer(t, "ruby", hint)
	if out, err := exec.Command(path, "-e", "require 'prometheus/client'; require 'fast_mmaped_file'").CombinedOutput(); err != nil {
		missing(t, fmt.Sprintf("prometheus-client-mmap: %v: %s", err, out), hint)
	}
	return path
}

// rubyView is what the client's own collector makes of a directory. It knows nothing of who
// lives, so its live gauges are left out unless all do.
func rubyView(t *testing.T, dir string, allAlive bool) (view, error) {
	t.Helper()
	out, err := output(t.Context(), nil, ruby(t), app(t, "pool.rb"), "--collect", dir)
	if err != nil {
		return nil, err
	}
	v, err := parseText(out)
	if err != nil {
		return nil, err
	}
	return rubySpelled(v, allAlive), nil
}

// rubySpelled is what can be compared of a view: that client spells bounds in ways of its own.
func rubySpelled(v view, live bool) view {
	v = v.workers().numericBounds()
	maps.DeleteFunc(v, func(name string, _ *family) bool { return !live && strings.HasPrefix(name, "pool_level_live") })
	return v
}

// TestRuby compares with the collector of prometheus-client-mmap: workers that were forked from
// a master with metrics of its own, killed, and replaced.
func TestRuby(t *testing.T) {
	t.Parallel()
	ruby(t)
	bothModes(t, func(t *testing.T, archived bool) {
		p := newParity(t, archived)
		d := p.serve()
		agree := func(live bool) {
			t.Helper()
			eventually(t, patience, func() error {
				want, err := rubyView(t, p.all(), live)
				if err != nil {
					return err
				}
				for format, read := range map[string]func() (view, error){
					"text": d.text, "protobuf": d.protobuf,
					"OpenMetrics": d.openMetrics,
				} {
					got, err := read()
					if err == nil {
						err = differences(want, rubySpelled(got, live))
					}
					if err != nil {
						return fmt.Errorf("%s: %w", format, err)
					}
				}
				return nil
			})
		}
		const workers = 3
		for generation := range 3 {
			cmd := exec.Command(ruby(t), app(t, "pool.rb"), strconv.Itoa(workers), "500", strconv.Itoa(100*generation))
			cmd.Env = withoutDir("prometheus_multiproc_dir=" + p.dir)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			pool := start(t, cmd)
			pids := map[string]int{}
			for range workers {
				line := pool.await("a worker", func(line string) bool {
					pid, ok := strings.CutPrefix(line, "worked ")
					return ok && pids[pid] == 0
				})
				pid, err := strconv.Atoi(strings.TrimPrefix(line, "worked "))
				if err != nil {
					t.Fatal(err)
				}
				pids[strconv.Itoa(pid)] = pid
			}
			agree(generation == 0)
			v := d.mustText()
			// Only the living have live gauges, and what a worker is called is its pid.
			for _, name := range []string{"pool_level_liveall", "pool_level_all"} {
				seen := map[string]bool{}
				for series := range v[name].Samples {
					_, rest, _ := strings.Cut(series, `pid="`)
					pid, _, _ := strings.Cut(rest, `"`)
					seen[pid] = true
				}
				for pid := range pids {
					if !seen[pid] {
						t.Errorf("%s has nothing of worker %s", name, pid)
					}
				}
				if name == "pool_level_liveall" && len(seen) != workers {
					t.Errorf("%s has %d workers", name, len(seen))
				}
			}
			if generation == 1 {
				for _, pid := range pids {
					if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			} else if err := stdin.Close(); err != nil {
				t.Error(err)
			}
			if err := pool.wait(); err != nil {
				t.Errorf("the pool ended with %v", err)
			}
			agree(false)
		}
		if archived {
			awaitFolded(t, p.dir)
			agree(false)
			got, err := parseText(dump(t, "--dir", p.dir))
			if err != nil {
				t.Fatal(err)
			}
			want, err := rubyView(t, p.all(), false)
			if err != nil {
				t.Fatal(err)
			}
			if err := differences(want, rubySpelled(got, false)); err != nil {
				t.Errorf("dump: %v", err)
			}
		}
		d.stop()
	})
}

// TestRunPuma: puma and its metrics are there with one command, a worker is killed, and the
// next run goes on from what was counted.
func TestRunPuma(t *testing.T) {
	t.Parallel()
	ruby(t)
	puma := peer(t, "puma", "apt-get install puma")
	dir := filepath.Join(sourceDir(t), "made")
	socket := filepath.Join(t.TempDir(), "app.sock")
	client := unixClient(t, socket)
	begin := func() *daemon {
		d := startDaemon(t, nil, "run", "--dir", dir, "--", puma, "--workers", "3", "--preload", "--bind", "unix://"+socket,
			"--environment", "production", app(t, "shop.ru"))
		eventually(t, patience, func() error { return fetch(client, "/pid") })
		return d
	}
	agrees := func(d *daemon, got orders) {
		t.Helper()
		eventually(t, patience, func() error {
			v, err := d.text()
			if err != nil {
				return err
			}
			return got.check(v)
		})
	}
	d := begin()
	got := drive(t, client, 200, 4)
	if got.acknowledged != 200 {
		t.Fatalf("%d of 200 requests were answered", got.acknowledged)
	}
	agrees(d, got)
	for _, pid := range childrenOf(t, childrenOf(t, d.pid())[0]) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Error(err)
		}
	}
	agrees(d, got)
	eventually(t, patience, func() error { return fetch(client, "/pid") })
	more := drive(t, client, 200, 4)
	got.acknowledged, got.failed, got.amount = got.acknowledged+more.acknowledged, got.failed+more.failed, got.amount+more.amount
	agrees(d, got)
	d.stopped = true
	d.signal(syscall.SIGTERM)
	if code := exitCode(d.wait()); code != 128+15 && code != 0 { // puma ends by the signal, if not told otherwise
		t.Errorf("exit code %d", code)
	}
	d = begin()
	agrees(d, got)
	d.stopped = true
	d.signal(syscall.SIGTERM)
	d.wait() //nolint:errcheck // as above
}
