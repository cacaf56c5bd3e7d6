package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/config"
	"aggregatord/internal/policy"
	"aggregatord/internal/serve"
	"aggregatord/internal/telemetry"
)

// loadConfig replaces a configuration file in one step and loads it.
func loadConfig(t *testing.T, path, content string) *config.Config {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// ownMetric scrapes one of the daemon's own metrics.
func (d *daemon) ownMetric(series string) string {
	d.t.Helper()
	resp, err := get(d.addresses()[0], "/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(series) + ` (.*)$`).FindStringSubmatch(resp.body)
	if m == nil {
		return "none"
	}
	return m[1]
}

// awaitEntry returns the n-th log entry with the message.
func (d *daemon) awaitEntry(message string, n int) observer.LoggedEntry {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if found := d.logs.FilterMessage(message).All(); len(found) >= n {
			return found[n-1]
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("it does not log %q %d times; it logged %v", message, n, d.messages())
		}
	}
}

const (
	reloaded    = "configuration reloaded"
	notReloaded = "the configuration was not reloaded; the earlier one stays in force"
)

// TestReload: a signal, a request and a change of the file each load it. One that cannot be
// loaded changes nothing, and says so.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yml")
	sourceDir := sourceDir(t)
	opts := Options{Fleet: only(sourceDir), ReloadSignals: make(chan os.Signal, 1), EnableLifecycle: true}
	hangup := make(chan os.Signal, 1)
	opts.ReloadSignals = hangup
	opts.Config = loadConfig(t, path, "external_labels: {region: a}\n")
	d := startReady(t, opts)
	if got := d.ownMetric("aggregatord_config_last_reload_successful"); got != "1" {
		t.Errorf("at the start it is %s", got)
	}
	began := d.ownMetric("aggregatord_config_last_reload_success_timestamp_seconds")
	hash := d.ownMetric("aggregatord_config_hash")

	hangup <- syscall.SIGHUP
	if e := d.await(reloaded); e.ContextMap()["trigger"] != "signal" {
		t.Errorf("logged %v", e.ContextMap())
	}
	post := func() (int, string) {
		t.Helper()
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Post("http://"+d.addresses()[0]+"/-/reload", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b strings.Builder
		fmt.Fprint(&b, resp.Body)
		return resp.StatusCode, b.String()
	}
	if status, _ := post(); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	if e := d.awaitEntry(reloaded, 2); e.ContextMap()["trigger"] != "request" {
		t.Errorf("logged %v", e.ContextMap())
	}
	if got := d.ownMetric("aggregatord_config_hash"); got != hash {
		t.Errorf("the same file has another hash, %s after %s", got, hash)
	}

	// In place, as an editor may write it.
	if err := os.WriteFile(path, []byte("external_labels: {region: b}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if e := d.awaitEntry(reloaded, 3); e.ContextMap()["trigger"] != "file changed" {
		t.Errorf("logged %v", e.ContextMap())
	}
	if got := d.ownMetric("aggregatord_config_hash"); got == hash {
		t.Errorf("another file has the same hash, %s", got)
	}
	if got := d.ownMetric("aggregatord_config_last_reload_success_timestamp_seconds"); got <= began {
		t.Errorf("loaded at %s, started at %s", got, began)
	}

	// A mistake, by a rename, as other editors write.
	draft := filepath.Join(dir, "draft")
	if err := os.WriteFile(draft, []byte("external_label: {region: c}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(draft, path); err != nil {
		t.Fatal(err)
	}
	e := d.await(notReloaded)
	if got := fmt.Sprint(e.ContextMap()["error"]); !strings.Contains(got,
		path+":1:1: external_label: is not a key; did you mean external_labels?") {
		t.Errorf("logged %s", got)
	}
	if got := d.ownMetric("aggregatord_config_last_reload_successful"); got != "0" {
		t.Errorf("after a mistake it is %s", got)
	}
	if status, _ := post(); status != http.StatusInternalServerError {
		t.Errorf("a request for what is wrong gets status %d", status)
	}
	d.awaitEntry(notReloaded, 2)

	// Gone, and back.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if e := d.awaitEntry(notReloaded, 3); !strings.Contains(fmt.Sprint(e.ContextMap()["error"]), "no such file") {
		t.Errorf("logged %v", e.ContextMap())
	}
	if err := os.WriteFile(path, []byte("external_labels: {region: b}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.awaitEntry(reloaded, 4)
	if got := d.ownMetric("aggregatord_config_last_reload_successful"); got != "1" {
		t.Errorf("in the end it is %s", got)
	}
	if ok, failed := d.ownMetric(`aggregatord_config_reloads_total{outcome="success"}`),
		d.ownMetric(`aggregatord_config_reloads_total{outcome="failure"}`); ok != "4" || failed != "3" {
		t.Errorf("%s times loaded, %s times not", ok, failed)
	}
	if err := d.end(); err != nil {
		t.Error(err)
	}
}

// TestReloadConfigMap swaps the file as the kubelet does: it is a symbolic link through
// ..data, a link to a directory that is replaced in one step.
func TestReloadConfigMap(t *testing.T) {
	mount := t.TempDir()
	publish := func(n int, content string) {
		t.Helper()
		data := fmt.Sprintf("..2026_11_21_%d", n)
		if err := os.Mkdir(filepath.Join(mount, data), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(mount, data, "aggregatord.yml"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(data, filepath.Join(mount, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")); err != nil {
			t.Fatal(err)
		}
		if n > 1 {
			if err := os.RemoveAll(filepath.Join(mount, fmt.Sprintf("..2026_11_21_%d", n-1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	publish(1, "external_labels: {n: '1'}\n")
	path := filepath.Join(mount, "aggregatord.yml")
	if err := os.Symlink(filepath.Join("..data", "aggregatord.yml"), path); err != nil {
		t.Fatal(err)
	}
	c, err := config.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	d := startReady(t, Options{Fleet: only(sourceDir(t)), Config: c})
	for n := 2; n <= 4; n++ {
		publish(n, fmt.Sprintf("external_labels: {n: '%d'}\n", n))
		d.awaitEntry(reloaded, n-1)
		if got := d.ownMetric("aggregatord_config_hash"); got == "0" {
			t.Errorf("no hash")
		}
	}
	if n := d.logs.FilterMessage(notReloaded).Len(); n != 0 {
		t.Errorf("it failed %d times", n)
	}
}

// TestReloadWithoutFile: there is nothing to do, and that is no failure.
func TestReloadWithoutFile(t *testing.T) {
	hangup := make(chan os.Signal, 1)
	d := startReady(t, Options{Fleet: only(sourceDir(t)), ReloadSignals: hangup})
	hangup <- syscall.SIGHUP
	d.await("no configuration file to reload; start with --config.file")
	for series, want := range map[string]string{
		"aggregatord_config_last_reload_successful": "1", "aggregatord_config_hash": "0",
		`aggregatord_config_reloads_total{outcome="failure"}`: "0",
	} {
		if got := d.ownMetric(series); got != want {
			t.Errorf("%s is %s, want %s", series, got, want)
		}
	}
}

// TestReloadHalfWritten: a file that is emptied before it is filled is believed when it is
// whole.
func TestReloadHalfWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yml")
	core, logs := observer.New(zapcore.DebugLevel)
	opts := Options{Config: loadConfig(t, path, "external_labels: {region: us}\n"), Logger: zap.New(core)}
	opts.fill()
	r := newReloader(opts, telemetry.NewSet(), func(*policy.Policy) error { return nil })
	r.settle = time.Second // each part below is well within it, on a slow machine, too
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { r.run(ctx) })
	defer running.Wait()
	defer stop()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, part := range []string{"external_labels:\n", "  region: 'e", "u'\n", "limits: {file", "_size: 1MiB}\n"} {
		if _, err := f.WriteString(part); err != nil {
			t.Fatal(err)
		}
		time.Sleep(40 * time.Millisecond)
	}
	for deadline := time.Now().Add(patience); logs.FilterMessage(reloaded).Len() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not loaded")
		}
	}
	if got := r.status().YAML; got != "external_labels:\n  region: eu\nlimits:\n  file_size: 1MiB\n" {
		t.Errorf("in force is\n%s", got)
	}
	if loaded, not := logs.FilterMessage(reloaded).Len(), logs.FilterMessage(notReloaded).Len(); loaded != 1 || not != 0 {
		t.Errorf("%d times loaded, %d times something unfinished was tried", loaded, not)
	}
}

// TestReloadFromFIFO: what would never end in the file's place is refused, and the next file
// is loaded.
func TestReloadFromFIFO(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yml")
	opts := Options{Fleet: only(sourceDir(t))}
	opts.Config = loadConfig(t, path, "external_labels: {region: a}\n")
	d := startReady(t, opts)
	fifo, next := filepath.Join(dir, "fifo"), filepath.Join(dir, "next")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fifo, path); err != nil {
		t.Fatal(err)
	}
	if e := d.await(notReloaded); !strings.Contains(fmt.Sprint(e.ContextMap()["error"]), "not a regular file") {
		t.Errorf("logged %v", e.ContextMap())
	}
	if err := os.WriteFile(next, []byte("external_labels: {region: b}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	d.await(reloaded)
}

// TestReloadNeedsRestart: what only a start reads is named, as long as it differs.
func TestReloadNeedsRestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yml")
	dir := sourceDir(t)
	base := "pools:\n  - {name: web, dir: " + dir + "}\n"
	opts := Options{Config: loadConfig(t, path, base), ByFlag: []string{"archive.dir"}}
	opts.Fleet = only(dir)
	opts.Fleet.Pools[0].Name = "web"
	d := startReady(t, opts)
	for i, c := range []struct {
		content string
		keys    []string
	}{
		{base + "archive: {gauge_workers: 3, dir: /x}\n", []string{"archive.gauge_workers"}},
		{base + "  - {name: jobs, dir: /y}\n", []string{"pools.jobs"}},
		{strings.Replace(base, dir, "/elsewhere", 1), []string{"pools.web"}},
		{base + "external_labels: {a: b}\n", nil},
	} {
		loadConfig(t, path, c.content)
		d.awaitEntry(reloaded, i+1)
		if got := d.ownMetric("aggregatord_config_restart_pending_keys"); got != fmt.Sprint(len(c.keys)) {
			t.Errorf("%d: %s keys are pending, want %v", i, got, c.keys)
		}
		if c.keys != nil {
			e := d.awaitEntry("part of the new configuration needs a restart, and is not in force until then", i+1)
			if got := fmt.Sprint(e.ContextMap()["keys"]); got != fmt.Sprint(c.keys) {
				t.Errorf("%d: keys %s, want %v", i, got, c.keys)
			}
		}
	}
	if !slices.Contains(d.messages(), "the configuration has rules for a pool that is not served") {
		t.Error("it does not tell of pool jobs")
	}
}

// TestStepWithoutEffect: a step that can match nothing is taken, and told of.
func TestStepWithoutEffect(t *testing.T) {
	opts := Options{Fleet: only(sourceDir(t))}
	opts.Config = loadConfig(t, filepath.Join(t.TempDir(), "a.yml"),
		"metric_relabel_configs: [{source_labels: [__name__], regex: 'aggregatord_.*', action: drop}]\n")
	d := startReady(t, opts)
	e := d.awaitEntry("a step of metric_relabel_configs can match nothing", 1)
	if got := fmt.Sprint(e.ContextMap()["step"]); !strings.HasPrefix(got,
		"metric_relabel_configs[0] matches nothing: the daemon's own metrics") {
		t.Errorf("it says %q", got)
	}
}

// TestReloadUnderScrapes: while files with different rules take turns, each response is
// wholly by one of them, and no total is lost.
func TestReloadUnderScrapes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yml")
	dir := sourceDir(t)
	const workers, families = 4, 30
	for w := range workers {
		for f := range families {
			write(t, dir, fmt.Sprintf("counter_%d.db", w), fmt.Sprintf("jobs_%d_total", f), 1)
		}
		write(t, dir, fmt.Sprintf("gauge_all_%d.db", w), "level", float64(w))
		write(t, dir, fmt.Sprintf("gauge_all_%d.db", w), "noise", 1)
	}
	// What is seen of a response is one of these.
	contents := []string{
		"external_labels: {n: '0'}\n",
		"external_labels: {n: '1'}\nmetrics:\n  - {match: level, gauge_mode: max}\n  - {match: noise, drop: true}\n",
		"external_labels: {n: '2'}\nmetrics:\n  - {match: level, gauge_mode: livesum}\ninfo: [{name: build_info}]\n",
	}
	wants := []string{"level=0+1+2+3 noise=4 info=0", "level=3 noise=0 info=0", "level=6 noise=4 info=1"}
	hangup := make(chan os.Signal)
	d := startReady(t, Options{Fleet: only(dir), Config: loadConfig(t, path, contents[0]), ReloadSignals: hangup})
	address := d.addresses()[0]
	seen := regexp.MustCompile(`(?m)^(jobs_\d+_total|level|noise|build_info)(?:\{(.*?)\})? (.*)$`)
	label := regexp.MustCompile(`n="(.)"`)

	stop := make(chan struct{})
	var scrapers sync.WaitGroup
	var byFile [3]atomic.Int64
	for range 3 {
		// Ends when stop is closed.
		scrapers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				resp, err := get(address, "/metrics")
				if err != nil || resp.status != http.StatusOK {
					t.Errorf("%v: status %d", err, resp.status)
					return
				}
				jobs, by, values := 0, map[string]bool{}, map[string][]string{}
				for _, m := range seen.FindAllStringSubmatch(resp.body, -1) {
					by[label.FindStringSubmatch(m[2] + `n="?"`)[1]] = true
					if strings.HasPrefix(m[1], "jobs") {
						jobs++
						if m[3] != strconv.Itoa(workers) {
							t.Errorf("%s is %s", m[1], m[3])
						}
						continue
					}
					values[m[1]] = append(values[m[1]], m[3])
				}
				got := fmt.Sprintf("level=%s noise=%d info=%d", strings.Join(values["level"], "+"), len(values["noise"]),
					len(values["build_info"]))
				if len(by) != 1 || jobs != families {
					t.Errorf("%d families, by %v: %s", jobs, by, got)
					continue
				}
				for n := range by {
					i, err := strconv.Atoi(n)
					if err != nil || got != wants[i] {
						t.Errorf("by file %s: %s", n, got)
						continue
					}
					byFile[i].Add(1)
				}
			}
		})
	}
	for i := 1; i <= 40; i++ {
		loadConfig(t, path, contents[i%3])
		hangup <- syscall.SIGHUP
		time.Sleep(5 * time.Millisecond)
	}
	close(stop)
	scrapers.Wait()
	for i := range byFile {
		if byFile[i].Load() == 0 {
			t.Errorf("no response by file %d", i)
		}
	}
	if n := d.logs.FilterMessage(notReloaded).Len(); n != 0 {
		t.Errorf("it failed %d times", n)
	}
}

// TestConfigStatus follows a configuration through a change, a mistake and its mending.
func TestConfigStatus(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yml")
	opts := Options{Config: loadConfig(t, path, "external_labels: {region: eu} # one\n")}
	opts.fill()
	var applied []*policy.Policy
	r := newReloader(opts, telemetry.NewSet(), func(p *policy.Policy) error {
		applied = append(applied, p)
		return nil
	})
	first := r.status()
	if first.File != path || first.YAML != "external_labels:\n  region: eu\n" || first.Error != "" {
		t.Errorf("at first %+v", first)
	}
	loadConfig(t, path, "archive: {gauge_workers: 1}\n")
	if err := r.reload("test"); err != nil {
		t.Fatal(err)
	}
	second := r.status()
	if second.YAML == first.YAML || second.Loaded < first.Loaded || !slices.Equal(second.RestartKeys, []string{"archive.gauge_workers"}) {
		t.Errorf("then %+v", second)
	}
	if err := os.WriteFile(path, []byte("archive: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.reload("test"); err == nil {
		t.Error("a mistake is loaded")
	}
	third := r.status()
	if third.Error == "" || third.YAML != second.YAML || len(applied) != 1 {
		t.Errorf("after a mistake %+v, applied %d times", third, len(applied))
	}
	loadConfig(t, path, "{}\n")
	if err := r.reload("test"); err != nil || r.status().Error != "" || len(r.status().RestartKeys) != 0 {
		t.Errorf("mended: %v, %+v", err, r.status())
	}
	// What the collector does not take is no more in force than what cannot be read.
	r.apply = func(*policy.Policy) error { return errors.New("no") }
	loadConfig(t, path, "external_labels: {n: '2'}\n")
	if err := r.reload("test"); err == nil || r.status().Error != "no" || r.status().YAML != "{}\n" {
		t.Errorf("not applied: %v, %+v", err, r.status())
	}
}

// TestWebConfigBreaks: what is wrong with a web configuration that has changed is told with line and
// key, as at a start.
func TestWebConfigBreaks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "web.yml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("rate_limit: {burst: 1000, interval: 1ms}\n")
	d := startReady(t, Options{Fleet: only(sourceDir(t)), Web: serve.Options{WebConfigFile: file}})
	d.scrape() // the server has begun with the file as it is; one that cannot be used then ends the daemon
	write("rate_limit: {burst: 1000, interval: 1ms}\nbasic_auth_users:\n  prometheus: secret\n")
	if got := d.get("/metrics").status; got != http.StatusInternalServerError {
		t.Errorf("status %d", got)
	}
	said := fmt.Sprint(d.await("the web configuration cannot be used; requests get status 500 until it can").ContextMap()["error"])
	if want := file + ":3:15: basic_auth_users.prometheus: is not a bcrypt hash"; !strings.HasPrefix(said, want) {
		t.Errorf("it says %q, want %q", said, want)
	}
}
