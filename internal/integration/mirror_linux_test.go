package integration

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// TestMirrorInApp runs an application that serves /metrics by itself, under gunicorn, beside a daemon
// that archives. Its workers are recycled and killed, processes with one ID follow each other, and
// the daemon is killed now and then. Nobody who reads the application's page meets an error or a
// total that falls, and in the end it has what we have, and what was counted.
func TestMirrorInApp(t *testing.T) {
	t.Parallel()
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	interpreter := python(t, "prometheus_client")
	dir := sourceDir(t)
	flags := []string{"--dir", dir, "--archive.mirror", "auto"}
	d := serve(t, flags...)
	socket := filepath.Join(t.TempDir(), "app.sock")
	cmd := exec.Command(gunicorn, "--workers", "3", "--max-requests", "25", "--bind", "unix:"+socket, "--chdir",
		filepath.Dir(app(t, "inapp.py")),
		"--config", app(t, "inapp_gunicorn.py"), "inapp:app")
	cmd.Env = appEnv(dir)
	server := start(t, cmd)
	client := unixClient(t, socket)
	eventually(t, patience, func() error { return fetch(client, "/ready") })
	other := exec.Command(interpreter, app(t, "inapp.py"), "again", "100000")
	other.Env = appEnv(dir)
	again := start(t, other)

	stop := make(chan struct{})
	var busy sync.WaitGroup
	var reads, started, answered atomic.Int64
	for i := range 3 {
		// Ends when stop is closed.
		busy.Go(func() {
			seen := map[string]float64{}
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(50+rand.IntN(600)) * time.Millisecond):
				}
				v, failed, err := inApp(client)
				switch {
				case failed:
					t.Errorf("reader %d: %v", i, err)
				case err == nil: // otherwise the worker that was asked has ended
					reads.Add(1)
					if err := grown(seen, v); err != nil {
						t.Errorf("reader %d: %v", i, err)
					}
				}
			}
		})
	}
	for range 2 {
		// Ends when stop is closed.
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if n := started.Add(1); fetch(client, fmt.Sprintf("/%d", n)) == nil {
					answered.Add(1)
				}
				time.Sleep(2 * time.Millisecond)
			}
		})
	}
	begin, length := time.Now(), soak(t, 8*time.Second)
	for round := 1; time.Since(begin) < length; round++ {
		time.Sleep(700 * time.Millisecond)
		if pids := childrenOf(t, server.pid()); len(pids) > 0 {
			_ = syscall.Kill(pids[rand.IntN(len(pids))], syscall.SIGKILL)
		}
		if round%8 == 0 {
			d.murder()
			d = serve(t, flags...)
		}
	}
	close(stop)
	busy.Wait()
	again.signal(syscall.SIGTERM)
	counted := 0
	again.await("the count", func(line string) bool {
		n, err := fmt.Sscanf(line, "counted %d", &counted)
		return n == 1 && err == nil
	})
	check := func() error {
		ours, err := d.text()
		if err != nil {
			return err
		}
		theirs, _, err := inApp(client)
		if err != nil {
			return err
		}
		errs := []error{equalTotals(ours.workers(), theirs)}
		hits := ours.value("inapp_hits", seriesOf("inapp_hits_total", map[string]string{"kind": "request"}))
		if hits < float64(answered.Load()) || hits > float64(started.Load()) {
			errs = append(errs, fmt.Errorf("%v requests counted, %d answered of %d", hits, answered.Load(), started.Load()))
		}
		if got := ours.value("inapp_hits", seriesOf("inapp_hits_total", map[string]string{"kind": "again"})); got != float64(counted) {
			errs = append(errs, fmt.Errorf("%v processes counted, want %d", got, counted))
		}
		// Each live worker has five files, and there are four mirror files.
		if n := countFiles(t, dir, "*.db"); n > 4*5+4 {
			errs = append(errs, fmt.Errorf("the directory holds %d files", n))
		}
		return errors.Join(errs...)
	}
	// The check lists the directory, and reads nothing: it leaves pauses in which files can be removed.
	eventually(t, patience, func() error {
		time.Sleep(3 * time.Second)
		return check()
	})
	t.Logf("%d reads, %d requests, %d processes of one ID", reads.Load(), answered.Load(), counted)
	if reads.Load() < 5 || counted < 3 {
		t.Errorf("only %d reads and %d processes of one ID", reads.Load(), counted)
	}
	if server.end(15 * time.Second); strings.Contains(server.out.tail(), "Traceback") {
		t.Errorf("gunicorn printed\n%s", server.out.tail())
	}
	// Nobody is alive, and the daemon is another one.
	d.stop()
	d = serve(t, flags...)
	eventually(t, patience, func() error {
		time.Sleep(3 * time.Second)
		if n := countFiles(t, dir, "*.db"); n > 4 {
			return fmt.Errorf("the directory holds %d files", n)
		}
		return nil
	})
	d.stop()
}

// inApp reads the application's own page. failed says that it has answered with an error.
func inApp(client *http.Client) (v view, failed bool, err error) {
	resp, err := client.Get("http://app/metrics")
	if err != nil {
		return nil, false, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, false, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, resp.StatusCode != http.StatusServiceUnavailable, fmt.Errorf("%s: %s", resp.Status, body)
	}
	v, err = parseText(body)
	return v, err != nil, err
}

// grown compares all that only grows with what was seen before.
func grown(seen map[string]float64, v view) error {
	var errs []error
	now := map[string]float64{}
	for _, f := range v {
		if f.Type != "gauge" {
			maps.Copy(now, f.Samples)
		}
	}
	for series, x := range seen {
		if now[series] < x {
			errs = append(errs, fmt.Errorf("%s fell from %v to %v", series, x, now[series]))
		}
	}
	maps.Copy(seen, now)
	return errors.Join(errs...)
}

// equalTotals compares the families that do not depend on who is alive.
func equalTotals(ours, theirs view) error {
	var errs []error
	for name, f := range theirs {
		if name == "inapp_level" {
			continue
		}
		for series, x := range f.Samples {
			if got := ours.value(name, series); got != x {
				errs = append(errs, fmt.Errorf("%s is %v, in the application %v", series, got, x))
			}
		}
	}
	if len(theirs) < 4 {
		errs = append(errs, fmt.Errorf("only %d families in the application", len(theirs)))
	}
	return errors.Join(errs...)
}

// TestMirrorOnly: with --archive.mirror=only a daemon serves nothing, and what it archives is there for the
// client's own collector. In a copy without an archive, a daemon has all from the mirror.
func TestMirrorOnly(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	h := &herd{t: t, dir: dir}
	h.mustBorn(5)
	h.die()
	p := start(t, exec.Command(builtDaemon(t), "serve", "--dir", dir, "--archive.mirror", "only", "--archive.rest", "300ms"))
	eventually(t, patience, func() error {
		time.Sleep(mirrorPause) // who lists the directory without a pause keeps its files
		return beside(dir)
	})
	p.end(patience)
	if said := p.out.tail(); strings.Contains(said, "listening") || !strings.Contains(said, "serving at no address") {
		t.Errorf("it printed\n%s", said)
	}
	if x := dumped(t, dir).total("herd", "herd_total"); x != h.total {
		t.Errorf("herd_total is %v, want %v", x, h.total)
	}
	other := sourceDir(t)
	shell(t, `cp "$1"/*.db "$2"`, dir, other)
	if x := dumped(t, other).total("herd", "herd_total"); x != h.total {
		t.Errorf("in a copy: herd_total is %v, want %v", x, h.total)
	}
	for _, mirror := range []string{"auto", "off"} {
		d := serve(t, "--dir", other, "--archive.mirror", mirror)
		if x := d.mustText().total("herd", "herd_total"); x != h.total {
			t.Errorf("a daemon without an archive, mirror %s: herd_total is %v, want %v", mirror, x, h.total)
		}
		d.stop()
	}
}

// beside fails unless all that is left in a directory are mirror files, and there are some.
func beside(dir string) error {
	names, err := filepath.Glob(filepath.Join(dir, "[^.]*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		if !stays.MatchString(filepath.Base(name)) {
			return fmt.Errorf("%s is left", name)
		}
	}
	if len(names) == 0 {
		return errors.New("there is no mirror")
	}
	return nil
}
