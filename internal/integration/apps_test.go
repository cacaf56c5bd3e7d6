package integration

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// countFiles returns how many source files of a kind the directory holds: one for each
// process there ever was, as long as nobody removes any.
func countFiles(t *testing.T, dir, pattern string) int {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

// shop runs shop.py under a web server that recycles its workers, beside the daemon, and
// compares what is served with what was acknowledged and with the client's collector:
// under load, at rest with workers alive, when they all have ended, and, with an archive,
// when all their files are in it.
func shop(t *testing.T, archived bool, processes int, command func(socket string) []string) {
	p := newParity(t, archived)
	d := p.serve()
	socket := filepath.Join(t.TempDir(), "app.sock")
	args := command(socket)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = appEnv(p.dir)
	server := start(t, cmd)
	client := unixClient(t, socket)
	eventually(t, patience, func() error {
		select {
		case <-server.exited:
			t.Fatalf("the server ended: %v\n%s", server.err, server.out.tail())
		default:
		}
		return fetch(client, "/pid")
	})

	watch := d.watchScrapes()
	const requests = 1000
	got := drive(t, client, requests, 4)
	scrapes := watch.finish()
	workers := p.count("counter_*.db")
	t.Logf("%d requests answered, %d failed; %d scrapes meanwhile; files of %d workers", got.acknowledged, got.failed, scrapes, workers)
	if got.acknowledged < requests*9/10 {
		t.Errorf("only %d of %d requests were answered: no load", got.acknowledged, requests)
	}
	if workers <= processes {
		t.Errorf("files of %d workers: none was recycled", workers)
	}
	if scrapes < 10 {
		t.Errorf("only %d scrapes under load", scrapes)
	}

	// A worker that reaches its limit with its last request may still be on its way out.
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		return errors.Join(got.check(v), p.agree(d))
	})
	// Every worker has this one. The others belong to those that have answered a request,
	// and these may all have been recycled by now.
	eventually(t, patience, func() error {
		v, err := d.text()
		if err == nil && v["shop_busy"] == nil {
			err = errors.New("no live gauge with workers alive")
		}
		return err
	})
	if archived {
		// A master that has loaded the application may have files, too.
		eventually(t, patience, func() error {
			if n := countFiles(t, p.dir, "counter_*.db"); n > processes+1 {
				return fmt.Errorf("the directory holds files of %d workers, and %d are alive", n, processes)
			}
			return nil
		})
	}

	// Whether a server ends in time is its own business: from here on nobody is alive.
	if !server.end(15 * time.Second) {
		t.Log("the server did not end by itself")
	}
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		for name := range v.workers() {
			if strings.HasPrefix(name, "shop_level_live") || name == "shop_busy" {
				return fmt.Errorf("live gauge %s is served, and no worker is alive", name)
			}
		}
		return errors.Join(got.check(v), p.agree(d))
	})
	p.folded(d)
	if err := errors.Join(got.check(d.mustText()), p.agree(d)); err != nil {
		t.Errorf("all archived: %v", err)
	}
	d.stop()
	// The next daemon has it all from its first answer on.
	d = p.serve()
	if err := errors.Join(got.check(d.mustText()), p.agree(d)); err != nil {
		t.Errorf("started again: %v", err)
	}
	d.stop()
}

func TestGunicorn(t *testing.T) {
	t.Parallel()
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	python(t, "flask", "prometheus_client")
	bothModes(t, func(t *testing.T, archived bool) {
		shop(t, archived, 4, func(socket string) []string {
			return []string{
				gunicorn, "--workers", "4", "--max-requests", "100", "--max-requests-jitter", "40",
				"--bind", "unix:" + socket, "--chdir", filepath.Dir(app(t, "shop.py")), "shop:app",
			}
		})
	})
}

func TestUWSGI(t *testing.T) {
	t.Parallel()
	uwsgi := peer(t, "uwsgi", "apt-get install uwsgi uwsgi-plugin-python3")
	python(t, "flask", "prometheus_client")
	// The master imports the application and then forks, so that workers inherit the
	// mappings of its files until they first touch a metric. When they end
	// faster than this, uWSGI holds their successors back for seconds.
	bothModes(t, func(t *testing.T, archived bool) {
		shop(t, archived, 3, func(socket string) []string {
			return []string{
				uwsgi, "--plugin", "python3", "--master", "--processes", "3", "--max-requests", "150",
				"--min-worker-lifetime", "0", "--http-socket", socket, "--die-on-term", "--need-app",
				"--disable-logging", "--chdir", filepath.Dir(app(t, "shop.py")), "--module", "shop:app",
			}
		})
	})
}

func TestCelery(t *testing.T) {
	t.Parallel()
	interpreter := python(t, "celery", "redis", "prometheus_client")
	redis := peer(t, "redis-server", "apt-get install redis-server")
	bothModes(t, func(t *testing.T, archived bool) { jobs(t, archived, interpreter, redis) })
}

// jobs runs tasks.py in Celery's prefork pool, which recycles its children, on a broker of
// its own, and compares as shop does.
func jobs(t *testing.T, archived bool, interpreter, redis string) {
	p := newParity(t, archived)
	d := p.serve()

	data := t.TempDir()
	socket := filepath.Join(data, "redis.sock")
	broker := start(t, exec.Command(redis, "--port", "0", "--unixsocket", socket, "--dir", data, "--save", "", "--appendonly", "no"))
	broker.await("readiness", func(line string) bool { return strings.Contains(line, "eady to accept connections") })

	url := "BROKER_URL=redis+socket://" + socket
	const processes, tasks = 3, 600
	pool := exec.Command(interpreter, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork", "--loglevel", "WARNING",
		"--concurrency", strconv.Itoa(processes), "--max-tasks-per-child", "40",
		"--without-gossip", "--without-mingle", "--without-heartbeat")
	pool.Dir = filepath.Dir(app(t, "tasks.py"))
	pool.Env = appEnv(p.dir, url)
	server := start(t, pool)

	watch := d.watchScrapes()
	// The sender is no part of the pool: its metrics go elsewhere.
	send := exec.Command(interpreter, app(t, "tasks.py"), "send", strconv.Itoa(tasks))
	send.Env = appEnv(sourceDir(t), url)
	if err := start(t, send).wait(); err != nil {
		t.Fatalf("send tasks: %v", err)
	}
	done := func(v view) float64 { return v.total("jobs_done", "jobs_done_total") }
	eventually(t, patience, func() error {
		select {
		case <-server.exited:
			t.Fatalf("celery ended: %v\n%s", server.err, server.out.tail())
		default:
		}
		v, err := d.text()
		if err == nil && done(v) != tasks {
			err = fmt.Errorf("%v tasks done, %d sent", done(v), tasks)
		}
		return err
	})
	t.Logf("%d scrapes meanwhile; files of %d processes", watch.finish(), p.count("counter_*.db"))
	check := func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		if sizes := v.total("jobs_size_bytes", "jobs_size_bytes_count"); done(v) != tasks || sizes != tasks {
			return fmt.Errorf("%v tasks, %v sizes; want %d of each", done(v), sizes, tasks)
		}
		return p.agree(d)
	}
	eventually(t, patience, check)
	if n := p.count("counter_*.db"); n <= processes+1 {
		t.Errorf("files of %d processes: no child was recycled", n)
	}
	if !server.end(15 * time.Second) {
		t.Log("celery did not end by itself")
	}
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		if v["jobs_active"] != nil {
			return errors.New("a live gauge is served, and no worker is alive")
		}
		return check()
	})
	p.folded(d)
	if err := check(); err != nil {
		t.Errorf("all archived: %v", err)
	}
	d.stop()
}

// TestWorkersBeforeDaemon starts the daemon on a directory that is full already, and
// then on one that does not exist yet.
func TestWorkersBeforeDaemon(t *testing.T) {
	t.Parallel()
	one := program{
		Metrics: []declared{{Name: "c", Type: "counter", Help: "Count."}, {Name: "live", Type: "gauge", Help: "Level.", Mode: "livesum"}},
		Workers: []worker{
			{Steps: []step{{Metric: "c", Op: "inc", Value: "1"}, {Metric: "live", Op: "set", Value: "1"}}},
			{Steps: []step{{Metric: "c", Op: "inc", Value: "2"}, {Metric: "live", Op: "set", Value: "2"}}},
		},
	}
	t.Run("full", func(t *testing.T) {
		bothModes(t, func(t *testing.T, archived bool) {
			p := newParity(t, archived)
			w := startWorkers(t, p.dir, one)
			w.finish(0)
			d := p.serve()
			// Ready means that the first full scan is merged: no waiting here.
			v := d.mustText()
			if got := v.value("c", "c_total"); got != 3 {
				t.Errorf("c_total is %v right after ready, want 3", got)
			}
			if got := v.value("live", "live"); got != 2 {
				t.Errorf("the live gauge is %v right after ready, want 2", got)
			}
			if err := p.agreeAlive(d, true, w.alive()); err != nil {
				t.Error(err)
			}
			d.stop()
		})
	})
	t.Run("not_there_yet", func(t *testing.T) {
		bothModes(t, func(t *testing.T, archived bool) {
			p := newParityOf(t, filepath.Join(sourceDir(t), "later"), archived)
			d := p.serve()
			if v := d.mustText().workers(); len(v) != 0 {
				t.Errorf("served without a directory: %v", v)
			}
			if err := os.Mkdir(p.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			w := startWorkers(t, p.dir, one)
			eventually(t, patience, func() error { return p.agreeAlive(d, true, w.alive()) })
			w.processes[1].kill()
			w.finish(0)
			eventually(t, 5*time.Second, func() error { return p.agreeAlive(d, true, nil) })
			p.folded(d)
			if err := p.agreeAlive(d, true, nil); err != nil {
				t.Errorf("all archived: %v", err)
			}
			d.stop()
		})
	})
	t.Run("two_pools", func(t *testing.T) {
		web, jobs := sourceDir(t), sourceDir(t)
		startWorkers(t, web, one)
		startWorkers(t, jobs, one)
		d := serve(t, "--dir", "web="+web, "--dir", "jobs="+jobs)
		v := d.mustText()
		for _, pool := range []string{"web", "jobs"} {
			if got := v.value("c", fmt.Sprintf("c_total{pool=%q}", pool)); got != 3 {
				t.Errorf("pool %s: c_total is %v, want 3: %v", pool, got, v["c"])
			}
		}
	})
}

// TestDisagreement has two generations of an application declare one sample name with two
// types, as after a deployment that leaves old workers running. The newer one wins, and the
// exposition stays valid.
func TestDisagreement(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	d := serve(t, "--dir", dir)
	startWorkers(t, dir, program{
		Metrics: []declared{
			{Name: "thing_total", Type: "gauge", Help: "Old.", Mode: "max"}, {Name: "fine", Type: "counter", Help: "Count."},
		},
		Workers: []worker{{Steps: []step{
			{Metric: "thing_total", Op: "set", Value: "1"}, {Metric: "fine", Op: "inc", Value: "1"},
		}}},
	})
	if got := d.mustText().value("thing_total", "thing_total"); got != 1 {
		t.Errorf("the gauge is %v before anybody disagrees, want 1", got)
	}
	startWorkers(t, dir, program{
		Metrics: []declared{
			{Name: "thing", Type: "counter", Help: "New."}, {Name: "fine", Type: "counter", Help: "Count."},
		},
		Workers: []worker{{Steps: []step{
			{Metric: "thing", Op: "inc", Value: "2"}, {Metric: "fine", Op: "inc", Value: "2"},
		}}},
	})
	for format, scrape := range map[string]func() (view, error){"text": d.text, "protobuf": d.protobuf, "OpenMetrics": d.openMetrics} {
		v, err := scrape()
		if err != nil {
			t.Errorf("%s: %v", format, err)
			continue
		}
		if f := v["thing"]; f == nil || f.Type != "counter" || f.Help != "New." || len(f.Samples) != 1 || f.Samples["thing_total"] != 2 ||
			v["thing_total"] != nil {
			t.Errorf("%s: the name two generations disagree on is %+v, want the newer one's", format, f)
		}
		if got := v.value("fine", "fine_total"); got != 3 {
			t.Errorf("%s: the counter they agree on is %v, want 3", format, got)
		}
		if v["aggregatord_conflicts"] == nil || v.value("aggregatord_conflicts", "aggregatord_conflicts") == 0 {
			t.Errorf("%s: the disagreement is not counted: %+v", format, v["aggregatord_conflicts"])
		}
	}
	named := false
	for _, entry := range d.logs() {
		named = named || (entry["level"] == "warn" && entry["family"] == "thing_total")
	}
	if !named {
		t.Error("the log does not name the family")
	}
	d.stop()
}

// TestDemo scrapes the built-in demo while its workers are recycled and killed: they write
// the wide dialect, which no client that Debian packages does.
func TestDemo(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	d := startDaemon(t, nil, "demo", "--dir", dir, "--workers", "3", "--requests-per-second", "1000",
		"--max-requests", "200", "--kill-every", "300ms")
	watch := d.watchScrapes()
	// A worker writes more than one file.
	const archived, files = "aggregatord_archive_folded_files", 24
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		if n := v.total(archived, archived+"_total"); n < files {
			return fmt.Errorf("%v files of dead workers archived", n)
		}
		return nil
	})
	scrapes := watch.finish()
	v := d.mustText()
	types := map[string]bool{}
	for _, f := range v.workers() {
		types[f.Type] = true
	}
	t.Logf("%d scrapes; families %v", scrapes, slices.Sorted(maps.Keys(v.workers())))
	for _, typ := range []string{"counter", "gauge", "histogram", "summary"} {
		if !types[typ] {
			t.Errorf("the demo shows no %s", typ)
		}
	}
	if scrapes < 3 {
		t.Errorf("only %d scrapes while workers came and went", scrapes)
	}
	d.stop()
}
