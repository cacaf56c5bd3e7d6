package integration

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// randomApp makes its directory at random, as many applications do, and counts.
const randomApp = `
import os, sys, tempfile, time
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="aggregatord-app-", dir=sys.argv[2])
from prometheus_client import Counter
Counter("hits", "Hits.").inc(int(sys.argv[1]))
time.sleep(600)
`

// sampled is what Prometheus answers for one series.
type sampled struct {
	Metric map[string]string
	Value  [2]any
}

// prometheusOf starts a Prometheus that scrapes what the daemon tells it to, and returns how to ask it.
func prometheusOf(t *testing.T, prometheus, root string, d *daemon) (query func(q string) ([]sampled, error)) {
	t.Helper()
	address := freeAddress(t)
	config := writeFile(t, filepath.Join(root, "prometheus.yml"), fmt.Sprintf(
		"global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs: [{job_name: pools, http_sd_configs: [{url: '%s/-/sd', refresh_interval: 500ms}]}]\n", d.URL))
	start(t, exec.Command(prometheus, "--config.file", config, "--storage.tsdb.path", filepath.Join(root, "tsdb"), "--web.listen-address",
		address))
	return func(q string) (out []sampled, err error) {
		resp, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(q))
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		var body struct{ Data struct{ Result []sampled } }
		err = json.NewDecoder(resp.Body).Decode(&body)
		return body.Data.Result, err
	}
}

// TestDiscovered finds processes that make their directories at random, one of them in
// namespaces of its own, and pools by pattern; Prometheus scrapes each as a target.
func TestDiscovered(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("to look at processes in namespaces takes root")
	}
	prometheus := peer(t, "prometheus", "apt-get install prometheus")
	unshare := peer(t, "unshare", "apt-get install util-linux")
	interpreter := python(t, "prometheus_client")
	root := t.TempDir()
	script := writeFile(t, filepath.Join(root, "random_app.py"), randomApp)
	start(t, exec.Command(interpreter, script, "7", root))
	inside := start(t, exec.Command(unshare, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `mount -t tmpfs none /mnt && exec "$0" "$1" 9 /mnt`, interpreter, script))
	// Other tests may have applications at the same time.
	config := writeFile(t, filepath.Join(root, "aggregatord.yml"), "discovery: [{processes: {command: random_app.py}}]\npools: [{glob: '"+
		root+"/apps/*/metrics', name: 'jobs-$1', labels: {app: '$1'}}]\n")
	d := serve(t, "--config.file", config, "--discover.retention", "2s")
	if err := os.MkdirAll(filepath.Join(root, "apps", "blog", "metrics"), 0o755); err != nil {
		t.Fatal(err)
	}
	query := prometheusOf(t, prometheus, root, d)
	var gone string
	eventually(t, patience, func() error {
		up, err := query("up==1")
		if err != nil {
			return err
		}
		hits, err := query("hits_total")
		if err != nil || len(up) != 3 || len(hits) != 2 {
			return fmt.Errorf("up %v, hits %v, %w", up, hits, err)
		}
		sum := ""
		for _, h := range hits {
			sum += fmt.Sprint(h.Value[1])
			if h.Value[1] == "9" {
				gone = h.Metric["pool"]
			}
			if h.Metric["command"] != "random_app.py" {
				t.Fatalf("labels %v", h.Metric)
			}
		}
		if sum != "79" && sum != "97" {
			return fmt.Errorf("hits %v", hits)
		}
		return nil
	})
	if err := inside.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if body, err := get(d, "/pools/"+gone+"/metrics"); !strings.Contains(body+fmt.Sprint(err), "was removed") {
			return fmt.Errorf("%s: %q, %w", gone, body, err)
		}
		return nil
	})
	eventually(t, patience, func() error {
		up, err := query("up")
		if err != nil || len(up) != 2 {
			return fmt.Errorf("up %v, %w", up, err)
		}
		return nil
	})
}

// toldApp makes its directory at random and counts what it is told to.
const toldApp = `
import os, sys, tempfile
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="random-", dir=sys.argv[1])
from prometheus_client import Counter
hits = Counter("hits", "Hits.")
for line in sys.stdin:
    hits.inc(int(line))
    print("counted", line, end="", flush=True)
`

// TestDiscoveredApplications has gunicorn and Celery, each in mount and pid namespaces of its own,
// and an application that makes its directory at random, killed and started again under one daemon
// that finds them. What each pool has counted is what its application was asked for, at any time,
// and Prometheus has each as a target of its own. With AGGREGATORD_SOAK it goes on for two minutes.
func TestDiscoveredApplications(t *testing.T) {
	t.Parallel()
	needRoot(t)
	prometheus := peer(t, "prometheus", "apt-get install prometheus")
	gunicorn := peer(t, "gunicorn", "apt-get install gunicorn")
	redis := peer(t, "redis-server", "apt-get install redis-server")
	interpreter := python(t, "flask", "celery", "redis", "prometheus_client")
	root := publicDir(t)
	for _, dir := range []string{"web", "jobs", "backing-web", "backing-jobs"} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := writeFile(t, filepath.Join(root, "aggregatord.yml"), "discovery: [{processes: {path: '"+root+"/*'}}]\n")
	d := serve(t, "--config.file", config)
	query := prometheusOf(t, prometheus, root, d)
	script := writeFile(t, filepath.Join(root, "told_app.py"), toldApp)
	// contained starts a command that has a directory which is elsewhere for everybody else.
	contained := func(t *testing.T, name string, env []string, command ...string) *process {
		t.Helper()
		args := append([]string{
			"--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c",
			`mount --bind "$0" "$1" && export PROMETHEUS_MULTIPROC_DIR="$1" && shift && exec "$@"`, filepath.Join(root, "backing-"+name),
			filepath.Join(root, name),
		}, command...)
		cmd := exec.Command(peer(t, "unshare", "apt-get install util-linux"), args...)
		cmd.Dir, cmd.Env = filepath.Dir(app(t, "tasks.py")), append(append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1"), env...)
		return start(t, cmd)
	}
	// sums are what the daemon serves of a family, by pool.
	sums := func(sample string) (map[string]float64, error) {
		body, err := get(d, "/metrics")
		sums := map[string]float64{}
		for line := range strings.Lines(body) {
			series, value, _ := strings.Cut(line, "} ")
			name, labels, _ := strings.Cut(series, "{")
			if name != sample {
				continue
			}
			_, pool, _ := strings.Cut(labels, `pool="`)
			pool, _, _ = strings.Cut(pool, `"`)
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				return nil, err
			}
			sums[pool] += v
		}
		return sums, err
	}
	// agree waits until a family's pools have exactly what is in the ledger, in any order.
	agree := func(t *testing.T, sample string, ledger ...float64) {
		t.Helper()
		slices.Sort(ledger)
		eventually(t, patience, func() error {
			got, err := sums(sample)
			if values := slices.Sorted(maps.Values(got)); err != nil || !slices.Equal(values, ledger) {
				return fmt.Errorf("%s: %v, want %v, %w", sample, got, ledger, err)
			}
			return nil
		})
	}
	const shopTotal, jobsTotal, hitsTotal = "shop_requests_total", "jobs_done_total", "hits_total"
	killedFor := min(soak(t, 15*time.Second), 2*time.Minute)
	var requests, tasks float64
	var hits []float64
	// rounds calls round for a while, with whether it is the last, at least twice.
	rounds := func(round func(last bool)) {
		deadline := time.Now().Add(killedFor)
		for i := 0; ; i++ {
			last := i > 0 && time.Now().After(deadline)
			if round(last); last {
				return
			}
		}
	}
	t.Run("applications", func(t *testing.T) {
		t.Run("gunicorn", func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(root, "web.sock")
			client := unixClient(t, socket)
			rounds(func(last bool) {
				server := contained(t, "web", nil, gunicorn, "--workers", "2", "--bind", "unix:"+socket, "shop:app")
				eventually(t, patience, func() error { return fetch(client, "/pid") })
				for range 50 {
					if err := fetch(client, "/order/1"); err != nil {
						t.Fatal(err)
					}
					requests++
				}
				agree(t, shopTotal, requests)
				if !last {
					client.CloseIdleConnections()
					server.kill()
				}
			})
		})
		t.Run("celery", func(t *testing.T) {
			t.Parallel()
			socket := filepath.Join(root, "redis.sock")
			broker := start(t, exec.Command(redis, "--port", "0", "--unixsocket", socket, "--dir", t.TempDir(), "--save", "",
				"--appendonly", "no"))
			broker.await("readiness", func(line string) bool { return strings.Contains(line, "eady to accept connections") })
			address := "BROKER_URL=redis+socket://" + socket
			rounds(func(last bool) {
				server := contained(t, "jobs", []string{address}, interpreter, "-m", "celery", "-A", "tasks", "worker", "--pool", "prefork",
					"--loglevel", "WARNING", "--concurrency", "2", "--without-gossip", "--without-mingle", "--without-heartbeat")
				send := exec.Command(interpreter, app(t, "tasks.py"), "send", "50")
				send.Env = appEnv(sourceDir(t), address)
				if err := start(t, send).wait(); err != nil {
					t.Fatal(err)
				}
				tasks += 50
				agree(t, jobsTotal, tasks)
				if !last {
					server.kill()
				}
			})
		})
		t.Run("random", func(t *testing.T) {
			t.Parallel()
			rounds(func(last bool) {
				cmd := exec.Command(interpreter, script, root)
				stdin, err := cmd.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				server := start(t, cmd)
				for i := 1; i <= 3; i++ {
					told := len(hits)*10 + i
					if _, err := fmt.Fprintln(stdin, told); err != nil {
						t.Fatal(err)
					}
					server.await("the count", func(line string) bool { return line == fmt.Sprint("counted ", told) })
				}
				hits = append(hits, float64(3*len(hits)*10+6))
				agree(t, hitsTotal, slices.Clone(hits)...)
				if !last {
					server.kill()
				}
			})
		})
	})
	if t.Failed() {
		return
	}
	t.Logf("%v requests, %v tasks, %d applications with a directory at random", requests, tasks, len(hits))
	// Nobody is alive now, and each is still a target until its retention ends.
	agree(t, shopTotal, requests)
	agree(t, jobsTotal, tasks)
	agree(t, hitsTotal, slices.Clone(hits)...)
	eventually(t, patience, func() error {
		up, err := query("up == 1")
		if err != nil || len(up) != 2+len(hits) {
			return fmt.Errorf("%d targets are up: %v, %w", len(up), up, err)
		}
		for _, sample := range []string{shopTotal, jobsTotal, hitsTotal} {
			want, err := sums(sample)
			if err != nil {
				return err
			}
			got := map[string]float64{}
			answer, err := query("sum by (pool) (" + sample + ")")
			for _, s := range answer {
				v, _ := strconv.ParseFloat(fmt.Sprint(s.Value[1]), 64)
				got[s.Metric["pool"]] = v
			}
			if err != nil || !maps.Equal(got, want) {
				return fmt.Errorf("Prometheus has %s %v, the daemon %v, %w", sample, got, want, err)
			}
		}
		return nil
	})
}

// TestDiscoveredSoon measures how long it takes until a pool is a target after its first source file,
// and until a hundred that are started at once are ready. On a quiet machine that is below two and three
// seconds; what is expected here leaves room for a busy one.
func TestDiscoveredSoon(t *testing.T) {
	const pools, slack = 100, 5
	root := sourceDir(t)
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	config := writeFile(t, filepath.Join(t.TempDir(), "aggregatord.yml"),
		fmt.Sprintf("discovery: [{kubelet: {root: %s/kubelet}}]\npools: [{glob: '%s/apps/*/metrics'}]\n", root, root))
	// The shell becomes the plain daemon in place of the one that it is given.
	d := startDaemonBy(t, []string{"/bin/sh", "-c", `shift; exec "$0" "$@"`, plain}, nil, "serve", "--config.file", config)
	begin := func(dirs ...string) {
		t.Helper()
		for _, dir := range dirs {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, dir := range dirs {
			writeFile(t, filepath.Join(dir, "counter_1.db"), string(sourceFile(1<<16, entry{`["hits", "hits_total", {}, "Hits."]`, 1})))
		}
	}
	// until returns how long it takes from now until status 200 comes with a text.
	until := func(path, text string) time.Duration {
		t.Helper()
		start := time.Now()
		eventually(t, patience, func() error {
			body, _, err := d.get(path, "")
			if err != nil || !strings.Contains(string(body), text) {
				return fmt.Errorf("%s: %.200q, %w", path, body, err)
			}
			return nil
		})
		return time.Since(start)
	}
	slowest := time.Duration(0)
	for i := range 4 {
		dir, name := filepath.Join(root, "apps", fmt.Sprint("one", i), "metrics"), fmt.Sprint("one", i)
		if i%2 == 1 {
			uid := fmt.Sprint("aaaaaaa", i)
			dir, name = filepath.Join(root, "kubelet", "pods", uid, "volumes", "kubernetes.io~empty-dir", "metrics"), "metrics_"+uid
		}
		begin(dir)
		slowest = max(slowest, until("/-/sd", "/pools/"+name+"/metrics"))
	}
	var dirs []string
	for i := range pools {
		dirs = append(dirs, filepath.Join(root, "apps", fmt.Sprint("many", i), "metrics"))
	}
	begin(dirs...)
	start := time.Now()
	for i := range pools {
		until(fmt.Sprint("/-/ready?pool=many", i), "")
	}
	all := time.Since(start)
	t.Logf("a pool was a target after %v, and %d pools that came at once were ready after %v", slowest, pools, all)
	if slowest > slack*2*time.Second || all > slack*3*time.Second {
		t.Error("that is too long")
	}
}
