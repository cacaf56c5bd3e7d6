package integration

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// hurriedAlerts writes the alerts of deploy/ to a file, with seconds in place of minutes, and
// returns their names.
func hurriedAlerts(t *testing.T, file string) []string {
	t.Helper()
	text := deployed(t, "prometheus/alerts.yml")
	var names []string
	for _, m := range regexp.MustCompile(`(?m)- alert: (\w+)`).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	text = regexp.MustCompile(`(?m)^( *for: )\d+m$`).ReplaceAllString(text, "${1}1s")
	// A rate needs two scrapes within its time, also on a busy machine.
	text = regexp.MustCompile(`\b1[05]m\b`).ReplaceAllString(text, "20s")
	hurried := strings.Replace(text, "  - name: aggregatord\n", "  - name: aggregatord\n    interval: 1s\n", 1)
	if hurried == text {
		t.Fatal("the group of alerts has another name")
	}
	if err := os.WriteFile(file, []byte(hurried), 0o644); err != nil {
		t.Fatal(err)
	}
	return names
}

// TestAlerts makes the cause of every alert of deploy/ with a real daemon, and waits until a real
// Prometheus fires it: there, and nowhere else.
func TestAlerts(t *testing.T) {
	t.Parallel()
	needRoot(t)
	peer(t, "prometheus", "apt-get install prometheus")
	hit := sample{"hits", "hits_total", nil, 40}
	worker := func(dir string) {
		t.Helper()
		w := newWriter(t, dir, "counter_1.db")
		w.set(hit, "Requests.")
	}
	// A daemon of many pools: some have a cause each.
	pools := map[string]string{
		"missing": filepath.Join(t.TempDir(), "missing"), "idle": sourceDir(t), "sound": sourceDir(t),
		"damaged": sourceDir(t),
	}
	pools["full"] = mountTmpfs(t, "size=2m")
	pools["crowded"] = mountTmpfs(t, "size=4m,nr_inodes=40")
	var flags []string
	for name, dir := range pools {
		flags = append(flags, "--dir", name+"="+dir)
		if name != "missing" && name != "idle" {
			worker(dir)
		}
	}
	if err := os.WriteFile(filepath.Join(pools["damaged"], "counter_2.db"), []byte("\xff\xff\xff\xff no file of a worker"),
		0o600); err != nil {
		t.Fatal(err)
	}
	// A daemon whose user owns no file.
	foreign := sourceDir(t)
	worker(foreign)
	if err := os.Chmod(filepath.Join(foreign, "counter_1.db"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A daemon whose archive cannot be made while workers die.
	herded := sourceDir(t)
	worker(herded)
	dead := sourceFile(4096, entry{counterKey("hits"), 1})
	for i := range 1100 {
		if err := os.WriteFile(filepath.Join(herded, fmt.Sprintf("counter_%d.db", 1000+i)), dead, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	noDirectory := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(noDirectory, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// A daemon with a limit, an output that nobody receives, files that disagree, and a configuration
	// that becomes wrong.
	limited, config := sourceDir(t), filepath.Join(t.TempDir(), "aggregatord.yml")
	worker(limited)
	if err := os.WriteFile(config,
		[]byte("limits: {series_per_family: 3}\noutputs: [{name: nobody, interval: 1s, graphite: {address: '127.0.0.1:1'}}]\n"),
		0o600); err != nil {
		t.Fatal(err)
	}
	for i, base := range []string{"gauge_max_2.db", "gauge_min_3.db"} {
		w := newWriter(t, limited, base)
		w.set(sample{"level", "level", nil, float64(i)}, "Level.")
	}
	users := newWriter(t, limited, "counter_4.db")
	// A daemon whose responses are longer than what the kernel holds for a connection (4 MiB), and
	// a client that reads them late.
	long := sourceDir(t)
	w := newWriter(t, long, "counter_1.db")
	for i := range 15000 {
		w.set(sample{"long", "long_total", []string{"path", fmt.Sprintf("/%0400d", i)}, 1}, "Long.")
	}

	daemons := map[string]*daemon{
		"pools":   serve(t, flags...),
		"foreign": serveAs(t, pageNobody, "--dir", foreign),
		"herded":  serve(t, "--dir", herded, "--archive.dir", filepath.Join(noDirectory, "archive")),
		"limited": serve(t, "--dir", limited, "--config.file", config),
		"slow":    serve(t, "--dir", long),
		"gone":    serve(t, "--dir", pools["sound"], "--archive.disable"),
	}
	rules := filepath.Join(t.TempDir(), "alerts.yml")
	names := hurriedAlerts(t, rules)
	var jobs strings.Builder
	for job, d := range daemons {
		path := "/metrics"
		if job == "slow" {
			path = "/-/metrics" // the responses with the metrics of the workers are long on purpose
		}
		fmt.Fprintf(&jobs, "  - job_name: %s\n    scrape_interval: 2s\n    metrics_path: %s\n    static_configs: [{targets: [%q]}]\n", job,
			path, strings.TrimPrefix(d.URL, "http://"))
	}
	fmt.Fprintf(&jobs, "rule_files: [%q]\n", rules)
	prometheus := startPrometheusWith(t, jobs.String())
	eventually(t, patience, func() error {
		up, err := prometheus.query(`aggregatord_start_time_seconds and on (job) up == 1`)
		if err == nil && len(up) != len(daemons) {
			err = fmt.Errorf("%d of %d daemons are scraped: %v", len(up), len(daemons), up)
		}
		return err
	})
	firing := func() ([]string, error) {
		found, err := prometheus.query(`count by (job, pool, alertname) (ALERTS{alertstate="firing"})`)
		var keys []string
		for series := range found {
			var job, pool, name string
			for _, m := range regexp.MustCompile(`(\w+)="([^"]*)"`).FindAllStringSubmatch(series, -1) {
				switch m[1] {
				case "job":
					job = m[2]
				case "pool":
					pool = m[2]
				case "alertname":
					name = m[2]
				}
			}
			keys = append(keys, strings.TrimSuffix(job+"/"+pool, "/")+": "+name)
		}
		slices.Sort(keys)
		return keys, err
	}

	// What goes wrong while the daemons run.
	daemons["gone"].stop()
	fill(t, pools["full"], 20)
	for i := 0; ; i++ {
		f, err := os.Create(filepath.Join(pools["crowded"], fmt.Sprintf("crowd-%d", i)))
		if errors.Is(err, unix.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if err := os.WriteFile(config, []byte("limits: {series_per_family: many}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := daemons["limited"].cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for i := range 9 {
		users.set(sample{"users", "users_total", []string{"user", fmt.Sprint(i)}, 1}, "By user.")
	}
	slow := readLate(t, daemons["slow"])

	want := []string{
		"foreign: AggregatordArchiveDown",
		"foreign: AggregatordLivenessUnknown",
		"gone: AggregatordDown",
		"herded: AggregatordArchiveDown",
		"herded: AggregatordFilesPileUp",
		"limited: AggregatordConfigReloadFailed",
		"limited: AggregatordConflicts",
		"limited: AggregatordEntriesRefused",
		"limited: AggregatordOutputFails",
		"pools/crowded: AggregatordInodesLow",
		"pools/damaged: AggregatordFileErrors",
		"pools/full: AggregatordSpaceLow",
		"pools/idle: AggregatordNoWorkers",
		"pools/missing: AggregatordDirectoryUnreadable",
		"slow: AggregatordScrapesSlow",
	}
	for _, name := range names {
		if !slices.ContainsFunc(want, func(key string) bool { return strings.HasSuffix(key, ": "+name) }) {
			t.Errorf("nothing makes the cause of %s", name)
		}
	}
	// The alert on refused series ends by itself, so each has to have fired once.
	seen := map[string]bool{}
	eventually(t, 2*patience, func() error {
		select {
		case err := <-slow:
			t.Fatalf("the client that reads late: %v", err)
		default:
		}
		keys, err := firing()
		if err != nil {
			return err
		}
		for _, key := range keys {
			seen[key] = true
		}
		var missing []string
		for _, key := range want {
			if !seen[key] {
				missing = append(missing, key)
			}
		}
		if len(missing) > 0 {
			return fmt.Errorf("not firing: %s\nfiring: %s", strings.Join(missing, ", "), strings.Join(keys, ", "))
		}
		return nil
	})
	for key := range seen {
		// A busy machine makes these two causes itself: scrapes that are slow or too slow.
		busy := strings.HasSuffix(key, ": AggregatordDown") || strings.HasSuffix(key, ": AggregatordScrapesSlow")
		if !slices.Contains(want, key) && !busy {
			t.Errorf("%s fires without a cause", key)
		}
	}
}

// readLate asks for the metrics again and again, each time with a small window, and reads the
// response two seconds later. An error ends it, and is sent.
func readLate(t *testing.T, d *daemon) <-chan error {
	t.Helper()
	failed := make(chan error, 1)
	stopped := make(chan struct{})
	t.Cleanup(func() { close(stopped) })
	once := func() error {
		conn, err := (&net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
			return c.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10) // a larger one is only read faster
			})
		}}).Dial("tcp", strings.TrimPrefix(d.URL, "http://"))
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n"); err != nil {
			return err
		}
		select {
		case <-time.After(2 * time.Second):
		case <-stopped:
			return nil
		}
		_, err = io.Copy(io.Discard, conn)
		return err
	}
	// It ends with the test, or with the first error.
	go func() {
		for {
			select {
			case <-stopped:
				return
			default:
			}
			if err := once(); err != nil {
				failed <- err
				return
			}
		}
	}()
	return failed
}
