package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
	"aggregatord/internal/serve"
	"aggregatord/internal/store"
	"aggregatord/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that takes milliseconds on an idle machine.
const patience = 20 * time.Second

// A gate stops whoever logs a certain message until it is opened, which holds the daemon
// at a known place.
type gate struct {
	message string
	// reached is closed when somebody waits, and opened to let it go on.
	reached, opened chan struct{}
	first, last     sync.Once
}

func newGate(message string) *gate {
	return &gate{message: message, reached: make(chan struct{}), opened: make(chan struct{})}
}

// open lets everybody through, now and later.
func (g *gate) open() { g.last.Do(func() { close(g.opened) }) }

// await waits until somebody is there.
func (g *gate) await(t *testing.T) {
	t.Helper()
	select {
	case <-g.reached:
	case <-time.After(patience):
		t.Fatalf("nobody logs %q", g.message)
	}
}

// hook is for zap.Hooks.
func (g *gate) hook(e zapcore.Entry) error {
	if e.Message == g.message {
		g.first.Do(func() {
			close(g.reached)
			<-g.opened
		})
	}
	return nil
}

// daemon is a Run in this process.
type daemon struct {
	t    *testing.T
	logs *observer.ObservedLogs
	stop context.CancelFunc
	// done is closed when Run has returned err.
	done chan struct{}
	err  error
}

// start runs the daemon with the options, on loopback ports that the kernel picks unless
// the options say otherwise. It looks at its directories at each scrape and at each event;
// by the clock only if the options say so.
func start(t *testing.T, opts Options, gates ...*gate) *daemon {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	var hooks []func(zapcore.Entry) error
	for _, g := range gates {
		hooks = append(hooks, g.hook)
	}
	opts.Logger = zap.New(core, zap.Hooks(hooks...))
	if len(opts.ListenAddresses) == 0 {
		opts.ListenAddresses = []string{"127.0.0.1:0"}
	}
	if opts.Fleet.TendInterval == 0 {
		opts.Fleet.TendInterval = time.Hour
	}
	if opts.SelfMetrics == SelfWith {
		opts.SelfMetrics = SelfFull // tests look at all of them
	}
	if opts.Fleet.RescanInterval == 0 {
		opts.Fleet.RescanInterval = time.Hour
	}
	ctx, stop := context.WithCancel(t.Context())
	d := &daemon{t: t, logs: logs, stop: stop, done: make(chan struct{})}
	// Ends when stop is called, at the latest by the cleanup.
	go func() {
		defer close(d.done)
		d.err = Run(ctx, opts)
	}()
	t.Cleanup(func() {
		stop()
		for _, g := range gates {
			g.open() // a test that failed has not
		}
		<-d.done
	})
	return d
}

// startReady is start, and waits until the daemon is ready.
func startReady(t *testing.T, opts Options, gates ...*gate) *daemon {
	t.Helper()
	d := start(t, opts, gates...)
	d.await("ready")
	return d
}

// await returns the first log entry with the message.
func (d *daemon) await(message string) observer.LoggedEntry {
	d.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if found := d.logs.FilterMessage(message).All(); len(found) > 0 {
			return found[0]
		}
		select {
		case <-d.done:
			d.t.Fatalf("it ended before it logged %q: %v", message, d.err)
		default:
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("it does not log %q; it logged %v", message, d.messages())
		}
	}
}

func (d *daemon) messages() []string {
	var messages []string
	for _, e := range d.logs.All() {
		messages = append(messages, e.Message)
	}
	return messages
}

// addresses returns where it listens.
func (d *daemon) addresses() []string {
	d.t.Helper()
	d.await("listening")
	var addrs []string
	for _, e := range d.logs.FilterMessage("listening").All() {
		addrs = append(addrs, e.ContextMap()["address"].(string))
	}
	return addrs
}

// end stops the daemon and returns what Run returned.
func (d *daemon) end() error {
	d.t.Helper()
	d.stop()
	return d.wait()
}

func (d *daemon) wait() error {
	d.t.Helper()
	select {
	case <-d.done:
		return d.err
	case <-time.After(patience):
		d.t.Fatalf("it does not stop; it logged %v", d.messages())
		return nil
	}
}

// response is what came back for a request.
type response struct {
	status int
	header http.Header
	body   string
}

// get fetches a path over a connection of its own.
func get(address, path string, header ...string) (response, error) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DisableCompression: true}, Timeout: patience}
	req, err := http.NewRequest(http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return response{}, err
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		return response{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return response{resp.StatusCode, resp.Header, string(body)}, err
}

// get fetches a path from the first address.
func (d *daemon) get(path string, header ...string) response {
	d.t.Helper()
	r, err := get(d.addresses()[0], path, header...)
	if err != nil {
		d.t.Fatal(err)
	}
	return r
}

// scrape gets the metrics.
func (d *daemon) scrape() families {
	d.t.Helper()
	r := d.get("/metrics")
	if r.status != http.StatusOK {
		d.t.Fatalf("status %d: %s", r.status, r.body)
	}
	return parse(d.t, r.body)
}

// families are what a parser of Prometheus made of a scrape.
type families map[string]*dto.MetricFamily

func parse(t *testing.T, body string) families {
	t.Helper()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	f, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v in\n%s", err, body)
	}
	return f
}

// value returns the value of the counter or gauge with these labels, given as name and
// value in turn, and whether there is one.
func (f families) value(name string, labels ...string) (float64, bool) {
	for _, m := range f[name].GetMetric() {
		if len(m.GetLabel()) != len(labels)/2 {
			continue
		}
		matches := true
		for _, l := range m.GetLabel() {
			i := slices.Index(labels, l.GetName())
			matches = matches && i >= 0 && labels[i+1] == l.GetValue()
		}
		if matches {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue(), true
		}
	}
	return 0, false
}

// expect checks one value.
func (f families) expect(t *testing.T, want float64, name string, labels ...string) {
	t.Helper()
	if got, ok := f.value(name, labels...); !ok || got != want {
		t.Errorf("%s%q is %v (there: %t), want %v", name, labels, got, ok, want)
	}
}

// sourceDir returns a new directory, on a tmpfs where there is one.
func sourceDir(t *testing.T) string {
	t.Helper()
	base := "/dev/shm"
	if _, err := os.Stat(base); err != nil {
		base = ""
	}
	dir, err := os.MkdirTemp(base, "aggregatord-daemon-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func only(dir string) fleet.Options { return fleet.Options{Pools: []pool.Spec{{Path: dir}}} }

// write adds to series without labels in a source file, as a worker does that lives until
// the writer is closed.
func write(t *testing.T, dir, base, series string, by float64) *store.Writer {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	key, err := json.Marshal([]any{strings.TrimSuffix(series, "_total"), series, map[string]string{}, "Help."})
	if err != nil {
		t.Fatal(err)
	}
	slot, err := w.Slot(key)
	if err != nil {
		t.Fatal(err)
	}
	w.Add(slot, by)
	return w
}

// disagree makes two files disagree on the mode of a gauge, which the next scrape, and
// nothing else, finds and logs.
func disagree(t *testing.T, dir string) {
	t.Helper()
	write(t, dir, "gauge_min_8.db", "odd", 1)
	write(t, dir, "gauge_max_9.db", "odd", 1)
}

const disagreement = "files disagree on a metric; the newest file's samples are served, the others' left out"

// leaks checks that all goroutines that began since it was called have ended.
func leaks(t *testing.T) func() {
	t.Helper()
	before := goleak.IgnoreCurrent()
	return func() {
		t.Helper()
		if err := goleak.Find(before); err != nil {
			t.Error(err)
		}
	}
}

// TestReady: until the first scan is done, nobody gets metrics, as those of a part of the
// files would look like counters that fell.
func TestReady(t *testing.T) {
	dir := sourceDir(t)
	write(t, dir, "counter_1.db", "c_total", 7)
	g := newGate("first scan done")
	d := start(t, Options{Fleet: only(dir)}, g)
	g.await(t)
	for path, want := range map[string]int{
		"/-/healthy": http.StatusOK,
		"/-/ready":   http.StatusServiceUnavailable,
		"/metrics":   http.StatusServiceUnavailable,
		"/":          http.StatusServiceUnavailable,
	} {
		if r := d.get(path); r.status != want || strings.Contains(r.body, "c_total") {
			t.Errorf("%s before the first scan: status %d, want %d: %s", path, r.status, want, r.body)
		}
	}
	g.open()
	d.await("ready")
	if r := d.get("/-/ready"); r.status != http.StatusOK {
		t.Errorf("status %d when ready: %s", r.status, r.body)
	}
	d.scrape().expect(t, 7, "c_total")
	if err := d.end(); err != nil {
		t.Error(err)
	}
}

// TestStop: a scrape in flight gets all of its answer, nobody new is let in, and no
// goroutine is left.
func TestStop(t *testing.T) {
	done := leaks(t)
	dir := sourceDir(t)
	w := write(t, dir, "counter_1.db", "c_total", 7)
	g := newGate(disagreement)
	d := startReady(t, Options{Fleet: only(dir)}, g)
	disagree(t, dir)
	address := d.addresses()[0]
	type result struct {
		response
		err error
	}
	inFlight := make(chan result, 1)
	// Ends with the scrape.
	go func() {
		r, err := get(address, "/metrics", "Accept-Encoding", "identity")
		inFlight <- result{r, err}
	}()
	g.await(t)
	d.stop()
	// The listener is closed before anything else is waited for.
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
		if err == nil {
			c.Close()
		}
		if time.Now().After(deadline) {
			t.Fatalf("connections are still accepted: %v", err)
		}
	}
	select {
	case <-d.done:
		t.Fatalf("it stopped with a scrape in flight: %v", d.err)
	case r := <-inFlight:
		t.Fatalf("the scrape was not in flight: %+v", r)
	default:
	}
	g.open()
	r := <-inFlight
	if r.err != nil || r.status != http.StatusOK {
		t.Fatalf("the scrape in flight: status %d, %v", r.status, r.err)
	}
	if r.header.Get("Content-Length") != strconv.Itoa(len(r.body)) {
		t.Errorf("%d bytes, of %s", len(r.body), r.header.Get("Content-Length"))
	}
	parse(t, r.body).expect(t, 7, "c_total")
	if err := d.wait(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if m := d.messages(); !slices.Equal(m[len(m)-2:], []string{"stopped serving", "stopped"}) {
		t.Errorf("the last words are %q", m)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	done()
}

// TestStopAtOnce: told to stop before it has begun, or while it begins, it stops.
func TestStopAtOnce(t *testing.T) {
	done := leaks(t)
	dir := sourceDir(t)
	write(t, dir, "counter_1.db", "c_total", 7)
	for range 20 {
		d := start(t, Options{Fleet: only(dir)})
		if err := d.end(); err != nil {
			t.Fatal(err)
		}
	}
	done()
}

// TestTwoAddresses serves the same on both.
func TestTwoAddresses(t *testing.T) {
	done := leaks(t)
	dir := sourceDir(t)
	write(t, dir, "counter_1.db", "c_total", 7)
	d := startReady(t, Options{Fleet: only(dir), ListenAddresses: []string{"127.0.0.1:0", "localhost:0"}, TelemetryPath: "/m"})
	addrs := d.addresses()
	if len(addrs) != 2 || addrs[0] == addrs[1] {
		t.Fatalf("it listens on %q", addrs)
	}
	for _, addr := range addrs {
		r, err := get(addr, "/m")
		if err != nil || r.status != http.StatusOK {
			t.Fatalf("%s: status %d, %v", addr, r.status, err)
		}
		parse(t, r.body).expect(t, 7, "c_total")
		if r, err := get(addr, "/metrics"); err != nil || r.status != http.StatusNotFound {
			t.Errorf("%s: status %d at another path, %v", addr, r.status, err)
		}
	}
	if err := d.end(); err != nil {
		t.Error(err)
	}
	for _, addr := range addrs {
		if _, err := get(addr, "/m"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s after the end: %v", addr, err)
		}
	}
	done()
}

// TestDirectoryAppearsLater: the daemon waits for it, and finds it without being asked.
func TestDirectoryAppearsLater(t *testing.T) {
	for name, opts := range map[string]Options{
		"by_events":   {},
		"by_the_tick": {Fleet: fleet.Options{TendInterval: 10 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			done := leaks(t)
			dir := filepath.Join(sourceDir(t), "a", "b")
			opts.Fleet = only(dir)
			d := startReady(t, opts)
			before := d.scrape()
			before.expect(t, 0, "aggregatord_directory_up")
			for name := range before {
				if !strings.HasPrefix(name, telemetry.Prefix) {
					t.Errorf("there is %s, and no directory", name)
				}
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			write(t, dir, "counter_1.db", "c_total", 7)
			d.await("watching directory") // no scrape was made
			after := d.scrape()
			after.expect(t, 1, "aggregatord_directory_up")
			after.expect(t, 7, "c_total")
			if n := d.logs.FilterMessage("directory does not exist; waiting for it").Len(); n != 1 {
				t.Errorf("its absence is logged %d times", n)
			}
			if err := d.end(); err != nil {
				t.Error(err)
			}
			done()
		})
	}
}

// TestDeathIsNoticed: at the scrape after a worker's death its live gauges are gone and
// its counts are not, and without a scrape the log tells of it.
func TestDeathIsNoticed(t *testing.T) {
	dir := sourceDir(t)
	d := startReady(t, Options{Fleet: fleet.Options{Pools: only(dir).Pools, TendInterval: 10 * time.Millisecond}})
	counter, gauge := write(t, dir, "counter_1.db", "c_total", 7), write(t, dir, "gauge_livesum_1.db", "busy", 2)
	d.await("worker found")
	f := d.scrape()
	f.expect(t, 7, "c_total")
	f.expect(t, 2, "busy")
	f.expect(t, 1, "aggregatord_workers", "state", "alive")
	if n, _ := f.value("aggregatord_liveness_files", "method", "none"); n > 0 {
		t.Skipf("there is no proof of death in %s", dir)
	}
	if err := errors.Join(counter.Close(), gauge.Close()); err != nil {
		t.Fatal(err)
	}
	f = d.scrape()
	f.expect(t, 7, "c_total")
	if v, ok := f.value("busy"); ok {
		t.Errorf("the live gauge of a dead worker is %v", v)
	}
	e := d.await("worker is dead; what it counted stays in the totals")
	if e.Level != zapcore.DebugLevel || e.ContextMap()["worker"] != "1" {
		t.Errorf("it logs %v", e)
	}
}

// metricName is what Prometheus takes for one in its oldest format.
var metricName = regexp.MustCompile(`^aggregatord_[a-z_]+$`)

// TestOwnMetrics: every one is valid, has a help text and a name of ours, and the main
// ones tell the truth.
func TestOwnMetrics(t *testing.T) {
	web, jobs := sourceDir(t), sourceDir(t)
	write(t, web, "counter_1.db", "c_total", 7)
	write(t, web, "counter_2.db", "c_total", 1)
	write(t, jobs, "gauge_max_a.db", "g", 1)
	for name, content := range map[string]string{"counter_3.db": "short", "notes.txt": "foreign"} {
		if err := os.WriteFile(filepath.Join(jobs, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d := startReady(t, Options{Fleet: fleet.Options{Pools: []pool.Spec{{Name: "web", Path: web}, {Name: "jobs", Path: jobs}}}})
	first := d.get("/metrics")
	second := d.get("/metrics", "Accept-Encoding", "gzip")
	if second.header.Get("Content-Encoding") != "gzip" {
		t.Fatalf("no gzip: %v", second.header)
	}
	d.get("/metrics?name[]=c_total") // the size of a part says nothing about the whole
	f := d.scrape()

	own := 0
	for name, family := range f {
		if name == "c_total" || name == "g" {
			continue
		}
		own++
		if !metricName.MatchString(name) {
			t.Errorf("%s: not a name of ours", name)
		}
		if family.GetHelp() == "" || !strings.HasSuffix(family.GetHelp(), ".") {
			t.Errorf("%s: no sentence for help: %q", name, family.GetHelp())
		}
		if typ := family.GetType(); (typ == dto.MetricType_COUNTER) != strings.HasSuffix(name, "_total") || typ == dto.MetricType_UNTYPED {
			t.Errorf("%s is a %v", name, typ)
		}
	}
	if own < 20 {
		t.Errorf("only %d own metrics", own)
	}

	if len(f["aggregatord_build_info"].GetMetric()) != 1 {
		t.Errorf("build info: %v", f["aggregatord_build_info"])
	}
	f.expect(t, 2, "aggregatord_workers", "pool", "web", "state", "alive")
	f.expect(t, 2, "aggregatord_files", "pool", "web", "state", "alive", "dialect", "wide")
	f.expect(t, 1, "aggregatord_files", "pool", "jobs", "state", "alive", "dialect", "wide")
	f.expect(t, 1, "aggregatord_files", "pool", "jobs", "state", "failed")
	f.expect(t, 1, "aggregatord_files", "pool", "jobs", "state", "foreign")
	f.expect(t, 1, "aggregatord_file_errors_total", "pool", "jobs", "reason", "short_header")
	f.expect(t, 2, "aggregatord_entries", "pool", "web")
	f.expect(t, 1, "aggregatord_directory_up", "pool", "jobs")
	f.expect(t, 2, "aggregatord_series")
	f.expect(t, 0, "aggregatord_conflicts")
	f.expect(t, 3, "aggregatord_scrapes_total", "outcome", "ok")
	f.expect(t, 2, "aggregatord_scrape_formats_total", "format", "text-0.0.4", "encoding", "identity")
	f.expect(t, 1, "aggregatord_scrape_formats_total", "format", "text-0.0.4", "encoding", "gzip")
	f.expect(t, float64(len(second.body)), "aggregatord_scrape_size_bytes", "encoding", "gzip")
	f.expect(t, float64(len(first.body)), "aggregatord_scrape_size_bytes", "encoding", "identity")
	for _, o := range serve.Outcomes() {
		if _, ok := f.value("aggregatord_scrapes_total", "outcome", string(o)); !ok {
			t.Errorf("no counter for scrapes that end with %s", o)
		}
	}
	for _, name := range []string{"aggregatord_cpu_seconds_total", "aggregatord_goroutines", "aggregatord_start_time_seconds"} {
		if v, ok := f.value(name); !ok || v <= 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
	if h := f["aggregatord_scrape_duration_seconds"].GetMetric()[0].GetHistogram(); h.GetSampleCount() != 3 || h.GetSampleSum() <= 0 {
		t.Errorf("scrape durations: %v", h)
	}
	if err := d.end(); err != nil {
		t.Error(err)
	}
}

// TestDocumentedMetrics: the table of docs/metrics.md has every own metric, and no other. Some are served
// only when there is something to count, so the names are taken from the code, too.
func TestDocumentedMetrics(t *testing.T) {
	names := func(pattern, text string) map[string]bool {
		found := map[string]bool{}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
			found[m[1]] = true
		}
		return found
	}
	var pages strings.Builder
	for _, page := range []string{"docs/metrics.md", "docs/processes.md"} {
		text, err := os.ReadFile("../../" + page)
		if err != nil {
			t.Fatal(err)
		}
		pages.Write(text)
	}
	told := names("(?m)^\\| `(aggregatord_[a-z_]+)", pages.String())
	sources, err := filepath.Glob("../*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, path := range sources {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(b)
	}
	made := names(`"(aggregatord_[a-z_]+)"`, code.String())
	for name := range made {
		// Who reads the samples of a histogram, as top does, makes none.
		for _, suffix := range []string{"_sum", "_count", "_bucket"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && made[base] {
				delete(made, name)
			}
		}
	}
	for name := range startReady(t, Options{Fleet: only(sourceDir(t))}).scrape() {
		if !made[name] {
			t.Fatalf("%s is served, and not found in the code", name)
		}
	}
	for name := range made {
		if !told[name] {
			t.Errorf("no page has a row for %s", name)
		}
	}
	for name := range told {
		if !made[name] {
			t.Errorf("a page has a row for %s, which there is not", name)
		}
	}
}

// TestQuiet: a scrape leaves no line in the log, whatever it asks for and gets.
func TestQuiet(t *testing.T) {
	dir := sourceDir(t)
	write(t, dir, "counter_1.db", "c_total", 7)
	disagree(t, dir)
	d := startReady(t, Options{Fleet: only(dir)})
	headers := [][]string{
		nil,
		{"Accept-Encoding", "gzip"},
		{"Accept", "application/openmetrics-text;version=1.0.0"},
		{"Accept", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"},
		{"Accept", "text/plain;version=1.0.0;escaping=allow-utf-8"},
		{"Accept", "text/html"},
		{"Accept-Encoding", "identity;q=0, gzip;q=0"}, // refused
	}
	scrape := func(i int) {
		d.get([]string{"/metrics", "/", "/metrics?name[]=c_total"}[i%3], headers[i%len(headers)]...)
	}
	// The first of each kind may have something to tell, such as the disagreement.
	for i := range 3 * len(headers) {
		scrape(i)
	}
	d.await(disagreement)
	// Events of the files written above may still be under way.
	d.settle()
	before := d.messages()
	passes, _ := d.scrape().value("aggregatord_merge_passes_total")
	for i := range 50 {
		scrape(i)
	}
	if after := d.messages(); len(after) != len(before) {
		t.Errorf("50 scrapes logged %q", after[len(before):])
	}
	if n, _ := d.scrape().value("aggregatord_merge_passes_total"); n < passes+30 {
		t.Errorf("only %v scrapes were answered", n-passes)
	}
}

// settle waits until the log has not grown for a while.
func (d *daemon) settle() {
	for n, quiet := -1, 0; quiet < 20; time.Sleep(5 * time.Millisecond) {
		quiet++
		if now := d.logs.Len(); now != n {
			n, quiet = now, 0
		}
	}
}

// TestAddressInUse: it says which address it is, and gives up what it had taken.
func TestAddressInUse(t *testing.T) {
	done := leaks(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d := start(t, Options{Fleet: only(sourceDir(t)), ListenAddresses: []string{"127.0.0.1:0", taken.Addr().String()}})
	if err := d.wait(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), fmt.Sprintf("listen on %q", taken.Addr())) {
		t.Errorf("Run: %v", err)
	}
	// The first address is free again.
	first := d.logs.FilterMessage("listening").All()
	if len(first) != 1 {
		t.Fatalf("it logged %v", d.messages())
	}
	l, err := net.Listen("tcp", first[0].ContextMap()["address"].(string))
	if err != nil {
		t.Errorf("the address it could have: %v", err)
	} else {
		l.Close()
	}
	done()
}

// TestOptions: what cannot work is refused before anything is begun.
func TestOptions(t *testing.T) {
	done := leaks(t)
	for name, tc := range map[string]struct {
		dirs []pool.Spec
		want string
	}{
		"no_directory":    {nil, "no directory"},
		"unnamed":         {[]pool.Spec{{Name: "web", Path: "/a"}, {Path: "/b"}}, `"/b" has no name`},
		"duplicate_names": {[]pool.Spec{{Name: "web", Path: "/a"}, {Name: "web", Path: "/b"}}, `"web"`},
	} {
		t.Run(name, func(t *testing.T) {
			d := start(t, Options{Fleet: fleet.Options{Pools: tc.dirs}})
			if err := d.wait(); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Run: %v", err)
			}
			if d.logs.Len() > 0 {
				t.Errorf("it logged %v", d.messages())
			}
		})
	}
	done()
}
