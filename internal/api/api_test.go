package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
	"go.uber.org/goleak"

	"aggregatord/internal/fleet"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/store"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

var update = flag.Bool("update", false, "rewrite the expected answers")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tmpfs returns a directory like those that pools use: there it is certain who is dead.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "aggregatord-api-")
	if err != nil {
		t.Skipf("no /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// entry is one entry of a source file: a sample name, labels as name, value, and a value.
type entry struct {
	family, sample string
	labels         []string
	value, stamp   float64
}

// write puts entries into a source file. Its worker lives until the writer is closed.
func write(t testing.TB, dir, base string, entries ...entry) *store.Writer {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	for _, e := range entries {
		k := metric.Key{Family: e.family, Help: "Help of " + e.family + ".", Series: metric.Series{Sample: e.sample}}
		for i := 0; i < len(e.labels); i += 2 {
			k.Series.Labels = append(k.Series.Labels, metric.Label{Name: e.labels[i], Value: e.labels[i+1]})
		}
		slot, err := w.Slot(store.AppendKey(nil, k))
		if err != nil {
			t.Fatal(err)
		}
		w.Set(slot, e.value, e.stamp)
	}
	return w
}

func requests(path string, value float64) entry {
	return entry{"requests", "requests_total", []string{"path", path}, value, 0}
}

// shop fills a directory with what two living workers and a dead one have written.
func shop(t testing.TB, dir string) {
	t.Helper()
	write(t, dir, "counter_1.db", requests("/", 3), requests("/buy", 1))
	write(t, dir, "counter_2.db", requests("/", 4))
	write(t, dir, "counter_3.db", requests("/", 5), requests("/<b>", 7)).Close()
	write(t, dir, "gauge_max_1.db", entry{"peak", "peak", nil, 2, 0})
	write(t, dir, "gauge_max_3.db", entry{"peak", "peak", nil, 9, 0}).Close()
	write(t, dir, "gauge_all_1.db", entry{"temperature", "temperature", nil, math.NaN(), 0})
	write(t, dir, "gauge_livesum_1.db", entry{"busy", "busy", nil, 1, 0})
	write(t, dir, "gauge_livesum_3.db", entry{"busy", "busy", nil, 1, 0}).Close()
	write(t, dir, "gauge_mostrecent_1.db", entry{"version", "version", nil, 10, 100})
	write(t, dir, "gauge_mostrecent_2.db", entry{"version", "version", nil, 11, 200})
	write(t, dir, "histogram_1.db",
		entry{"seconds", "seconds_bucket", []string{"le", "0.5"}, 1, 0},
		entry{"seconds", "seconds_bucket", []string{"le", "+Inf"}, 2, 0},
		entry{"seconds", "seconds_sum", nil, 3.5, 0})
	write(t, dir, "histogram_2.db",
		entry{"seconds", "seconds_bucket", []string{"le", "0.5"}, 4, 0},
		entry{"seconds", "seconds_sum", nil, 0.25, 0})
	if err := os.WriteFile(filepath.Join(dir, "counter_9.db"), []byte("\xff\xff\xff\xffgarbage"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// tend looks at all directories.
func tend(f *fleet.Fleet) {
	for _, p := range f.Pools() {
		p.Tend(true)
	}
}

// harness is an API on a collector of one directory.
type harness struct {
	*API
	t         testing.TB
	collector *fleet.Fleet
	dir       string
}

func newHarness(t testing.TB, archived bool) *harness {
	t.Helper()
	h := &harness{t: t, dir: tmpfs(t)}
	shop(t, h.dir)
	set := telemetry.NewSet() // stands for the daemon's own
	set.Counter("aggregatord_test_total", "A counter.").Inc()
	opts := fleet.Options{Pools: []pool.Spec{{Path: h.dir}}}
	if archived {
		opts.Pool.Archive = &pool.ArchiveOptions{Rest: -1}
	}
	c, err := fleet.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	tend(c)
	h.collector = c
	h.API = New(Options{
		Fleet: c, Build: status.Build{Version: "test", Revision: "r", GoVersion: "go"}, Started: time.Unix(1000, 0),
		Config: func() status.Config {
			return status.Config{Settings: []status.Setting{{Name: "--dir", Value: h.dir}}}
		},
		Gather: func(ctx context.Context) ([]*view.Snapshot, error) {
			snap, err := c.View(ctx, fleet.Selection{})
			if err != nil {
				return nil, err
			}
			return []*view.Snapshot{snap, set.Snapshot()}, nil
		},
	})
	t.Cleanup(func() {
		h.forget()
		if h.drop != nil {
			h.drop.Stop()
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// ask returns the answer to a question such as "workers?limit=1".
func (h *harness) ask(question string) (int, []byte) {
	h.t.Helper()
	path, raw, _ := strings.Cut(question, "?")
	query, err := url.ParseQuery(raw)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.Answer(h.t.Context(), path, query)
}

// get is ask for a question with a good answer of a known shape.
func get[T any](h *harness, question string) T {
	h.t.Helper()
	code, body := h.ask(question)
	var r status.Response[T]
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		h.t.Fatalf("%s: %v in %s", question, err, body)
	}
	if code != 200 || r.Status != "success" {
		h.t.Fatalf("%s: %d %s", question, code, body)
	}
	return r.Data
}

// moments are what differs from one run to the next.
var moments = regexp.MustCompile(`"(created|changed|time|last|last_seconds|total_bytes|free_bytes|total_inodes|free_inodes|last_fold|open_files)": [0-9.e+-]+`)

// TestGolden compares whole answers with testdata, where they can be read.
func TestGolden(t *testing.T) {
	h := newHarness(t, false)
	for _, tc := range []struct{ name, question string }{
		{"status", "status"},
		{"workers", "workers?sort=-id"},
		{"files", "files?worker=1"},
		{"values", "values?worker=1&sort=series"},
		{"error_worker", "values"},
		{"errors", "errors"},
		{"config", "config"},
		{"families", "families?search=Help of"},
		{"series", "series?family=requests"},
		{"series_page", "series?match=requests_total&limit=1&offset=1"},
		{"series_histogram", `series?match={__name__=~"seconds_.*"}`},
		{"explain_counter", `explain?series=requests_total{path="/"}`},
		{"explain_bucket", `explain?series=seconds_bucket{le="%2BInf"}`},
		{"explain_max", "explain?series=peak"},
		{"explain_all", "explain?series=temperature"},
		{"explain_livesum", "explain?series=busy"},
		{"explain_mostrecent", "explain?series=version"},
		{"error_unknown", "nothing"},
		{"error_parameter", "workers?order=id"},
		{"error_sort", "workers?sort=beauty"},
		{"error_selector", "explain?series=a{"},
		{"error_none", "explain?series=requests"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.t = t
			code, body := h.ask(tc.question)
			var out bytes.Buffer
			fmt.Fprintf(&out, "%d\n", code)
			if err := json.Indent(&out, body, "", "  "); err != nil {
				t.Fatalf("%v in %s", err, body)
			}
			got := strings.ReplaceAll(out.String(), h.dir, "DIR")
			got = moments.ReplaceAllString(got, `"$1": 1`)
			path := filepath.Join("testdata", tc.name+".json")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s: got\n%s\nwant\n%s", tc.question, got, want)
			}
		})
	}
}

// TestExplainAddsUp explains every series there is, before and after the dead are archived:
// what counts adds up to the number, which is the one that is served.
func TestExplainAddsUp(t *testing.T) {
	h := newHarness(t, true)
	check := func() (kinds map[string]int) {
		t.Helper()
		kinds = map[string]int{}
		served := map[string]status.Number{}
		for _, s := range get[status.Samples](h, `series?match={__name__!~"aggregatord_.*"}`).Items {
			served[s.Series] = s.Value
		}
		all := get[status.Explanations](h, "explain?series={}&limit=100")
		if all.Matching != len(served) || len(all.Items) != len(served) || len(served) < 10 {
			t.Errorf("%d explained, %d said, %d served", len(all.Items), all.Matching, len(served))
		}
		for _, e := range all.Items {
			sum := 0.0
			for _, c := range e.Contributions {
				kinds[c.Kind]++
				if c.Counts {
					sum += float64(c.Value)
				}
			}
			value, ok := served[e.Series]
			if !ok || !equal(sum, float64(e.Value)) || !equal(sum, float64(value)) {
				t.Errorf("%s: %v adds up to %v, explained is %v, served %v %v", e.Series, e.Contributions, sum, e.Value, value, ok)
			}
			// A selector as it is given out means this very series.
			one := get[status.Explanations](h, "explain?series="+url.QueryEscape(e.Series))
			if one.Matching != 1 || one.Items[0].Series != e.Series {
				t.Errorf("%s means %d series", e.Series, one.Matching)
			}
		}
		return kinds
	}
	if kinds := check(); kinds["file"] == 0 || kinds["archive"] > 0 {
		t.Errorf("before the fold: %v", kinds)
	}
	for h.collector.Pool("").Fold() {
	}
	time.Sleep(maxAge + 10*time.Millisecond) // the values held are too old now
	if kinds := check(); kinds["file"] == 0 || kinds["archive"] == 0 {
		t.Errorf("after the fold: %v", kinds)
	}
}

func equal(a, b float64) bool { return a == b || math.IsNaN(a) && math.IsNaN(b) }

// TestPages walks through a list page by page and meets everything once.
func TestPages(t *testing.T) {
	h := newHarness(t, false)
	whole := get[status.Page[status.File]](h, "files?sort=path")
	var walked []status.File
	for len(walked) < whole.Total {
		page := get[status.Page[status.File]](h, fmt.Sprintf("files?sort=path&limit=4&offset=%d", len(walked)))
		if page.Matching != whole.Total || len(page.Items) == 0 {
			t.Fatalf("%+v", page)
		}
		walked = append(walked, page.Items...)
	}
	for i := range walked {
		if walked[i].Path != whole.Items[i].Path {
			t.Errorf("item %d is %s, want %s", i, walked[i].Path, whole.Items[i].Path)
		}
	}
	if beyond := get[status.Page[status.File]](h, "files?offset=1000"); len(beyond.Items) != 0 {
		t.Errorf("%d items beyond the end", len(beyond.Items))
	}
}

// TestChanged: a worker that stores a value is seen to have changed, and no other.
func TestChanged(t *testing.T) {
	h := newHarness(t, false)
	old := time.Now().Add(-time.Hour)
	files, _ := filepath.Glob(filepath.Join(h.dir, "*.db"))
	for _, f := range files {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	changed := func() map[string]float64 {
		all := map[string]float64{}
		for _, w := range get[status.Page[status.Worker]](h, "workers").Items {
			all[w.ID] = w.Changed
		}
		return all
	}
	before := changed()
	w, err := store.OpenWriter(filepath.Join(h.dir, "counter_2.db"), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	k := metric.Key{
		Family: "requests", Help: "Help of requests.",
		Series: metric.Series{Sample: "requests_total", Labels: []metric.Label{{Name: "path", Value: "/"}}},
	}
	slot, err := w.Slot(store.AppendKey(nil, k))
	if err != nil {
		t.Fatal(err)
	}
	w.Set(slot, 100, 0)
	time.Sleep(maxAge + 10*time.Millisecond)
	after := changed()
	if after["2"] <= before["2"] || float64(time.Now().Unix())-after["2"] > 60 {
		t.Errorf("worker 2 changed at %v, before that at %v", after["2"], before["2"])
	}
	if after["1"] != before["1"] {
		t.Errorf("worker 1 changed at %v, before that at %v", after["1"], before["1"])
	}
}

// TestShared: however many ask at once, values are read once.
func TestShared(t *testing.T) {
	h := newHarness(t, false)
	var reads int
	inner := h.opts.Gather
	h.opts.Gather = func(ctx context.Context) ([]*view.Snapshot, error) {
		reads++ // under gathering
		return inner(ctx)
	}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for _, q := range []string{
				"families", "series?family=requests", "explain?series=requests_total", "status", "workers", "files",
				"errors",
			} {
				if code, body := h.ask(q); code != 200 {
					t.Errorf("%s: %d %s", q, code, body)
				}
			}
		})
	}
	wg.Wait()
	if reads == 0 || reads > 10 {
		t.Errorf("%d reads for 140 questions", reads)
	}
	h.forget()
	if h.held != nil {
		t.Error("values are held that nobody asks for")
	}
}

// TestProblems: each problem has one sentence and one action, and one cause makes one problem.
func TestProblems(t *testing.T) {
	for name, tc := range map[string]struct {
		pool         status.Pool
		says, action string
	}{
		"sound":          {pool: status.Pool{Up: true}},
		"not_looked_yet": {pool: status.Pool{}},
		"missing": {
			status.Pool{Error: "stat directory /x: no such file or directory"},
			"The directory /x does not exist.", "Make it before the application starts, or give the right one by --dir.",
		},
		"may_not_list": {
			status.Pool{
				Error:   "list directory /x: permission denied",
				Archive: status.Archive{State: "closed", Error: "open /x: permission denied"},
			},
			"The daemon may not list the directory /x.", "Run the daemon as the workers' user.",
		},
		"cannot_archive": {
			status.Pool{Up: true, Archive: status.Archive{State: "closed", Error: "open /x/a: permission denied"}},
			"Files of dead workers are not archived: open /x/a: permission denied.", "Run the daemon as the workers' user.",
		},
		"full": {
			status.Pool{Up: true, Archive: status.Archive{State: "failing", Error: "write /x/a: no space left on device"}},
			"Files of dead workers are not archived: write /x/a: no space left on device.", "Make room on its file system.",
		},
		"not_the_owner": {
			status.Pool{Up: true, Liveness: status.Liveness{Reason: "needs CAP_LEASE", Files: map[string]int{"none": 2}}},
			"Cannot tell whether the workers of 2 files are alive (needs CAP_LEASE). They count as alive.",
			"Run the daemon as the workers' user, or grant it CAP_LEASE.",
		},
		"overlayfs": {
			status.Pool{Up: true, Liveness: status.Liveness{Reason: "leases of overlay prove nothing", Files: map[string]int{"none": 1}}},
			"Cannot tell whether the workers of 1 file are alive (leases of overlay prove nothing). They count as alive.",
			"Use a tmpfs or a local volume for the directory.",
		},
	} {
		t.Run(name, func(t *testing.T) {
			tc.pool.Dir = "/x"
			got := problems(&tc.pool)
			if tc.says == "" && len(got) == 0 {
				return
			}
			if len(got) != 1 || got[0].Text != tc.says || got[0].Action != tc.action {
				t.Errorf("problems %+v, want %q and %q", got, tc.says, tc.action)
			}
		})
	}
}

// TestUnavailable: before the first look is done there is a status, and no values.
// TestOutputsAndProcesses: a worker tells of the process that holds its files, and an output that
// fails again is a problem.
func TestOutputsAndProcesses(t *testing.T) {
	h := newHarness(t, false)
	outputs := []status.Output{
		{Name: "fine", LastSuccess: 100},
		{Name: "once", Failures: 1, Error: "no"},
		{Name: "never", Failures: 2, Error: "connect: refused; is it running?"},
		{Name: "lost", Failures: 7, Error: "status 500", LastSuccess: 86400},
	}
	h.opts.Outputs = func() []status.Output { return outputs }
	h.opts.Processes = func() []status.Process {
		return []status.Process{
			{Pool: "other", Pid: 7, Workers: []string{"1"}},
			{Pid: 10, Role: "master"},
			{Pid: 11, Workers: []string{"1", "3"}, CPUSeconds: 1},
			{Pid: 12, Workers: []string{"2"}, CPUSeconds: 2},
		}
	}
	pids := map[string]int{}
	var order []string
	for _, w := range get[status.Page[status.Worker]](h, "workers?sort=-cpu_seconds").Items {
		order = append(order, w.ID)
		if w.Process != nil {
			pids[w.ID] = w.Process.Pid
		}
	}
	if pids["1"] != 11 || pids["2"] != 12 || pids["9"] != 0 || order[0] != "2" {
		t.Errorf("pids %v, in the order %v", pids, order)
	}
	if got := get[[]status.Output](h, "outputs"); len(got) != len(outputs) {
		t.Errorf("outputs %+v", got)
	}
	var said []string
	for _, p := range get[status.Overview](h, "status").Problems {
		if strings.Contains(p.Text, "output") {
			said = append(said, p.Text+" "+p.Action)
		}
	}
	want := []string{
		"The last 2 pushes of the output never failed: connect: refused; is it running? Its receiver has taken nothing yet.",
		"The last 7 pushes of the output lost failed: status 500. What it has is from 1970-01-02 00:00:00 UTC.",
	}
	if !slices.Equal(said, want) {
		t.Errorf("problems %q, want %q", said, want)
	}
}

func TestUnavailable(t *testing.T) {
	c, err := fleet.New(fleet.Options{Pools: []pool.Spec{{Path: tmpfs(t)}}})
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, API: New(Options{Fleet: c}), collector: c}
	if o := get[status.Overview](h, "status"); o.Ready || len(o.Problems) == 0 {
		t.Errorf("%+v", o)
	}
	if code, body := h.ask("families"); code != 503 || !strings.Contains(string(body), "not ready") {
		t.Errorf("%d %s", code, body)
	}
	tend(c)
	h.opts.Gather = func(context.Context) ([]*view.Snapshot, error) { return nil, errors.New("disk on fire") }
	if code, body := h.ask("families"); code != 500 || !strings.Contains(string(body), "disk on fire") {
		t.Errorf("%d %s", code, body)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	h.opts.Gather = func(ctx context.Context) ([]*view.Snapshot, error) {
		_, err := c.View(ctx, fleet.Selection{})
		return nil, err
	}
	if code, body := h.ask("families"); code != 503 {
		t.Errorf("%d %s", code, body)
	}
}

// TestNumbers: values that JSON has no number for go there and back.
func TestNumbers(t *testing.T) {
	for _, v := range []float64{0, 1, -1.5, 1e300, math.Inf(1), math.Inf(-1), math.NaN()} {
		text, err := json.Marshal(status.Number(v))
		if err != nil {
			t.Fatal(err)
		}
		var back status.Number
		if err := json.Unmarshal(text, &back); err != nil || !equal(float64(back), v) {
			t.Errorf("%v became %s became %v, %v", v, text, back, err)
		}
	}
}

// BenchmarkLarge asks about 64 workers with 20,000 entries each.
func BenchmarkLarge(b *testing.B) {
	dir := tmpfs(b)
	entries := make([]entry, 20_000)
	for i := range entries {
		family := fmt.Sprintf("family_%03d", i/100)
		entries[i] = entry{family, family + "_total", []string{"item", fmt.Sprint(i % 100)}, float64(i), 0}
	}
	for w := range 64 {
		write(b, dir, fmt.Sprintf("counter_%d.db", w+1), entries...)
	}
	c, err := fleet.New(fleet.Options{Pools: []pool.Spec{{Path: dir}}})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	tend(c)
	for _, q := range []string{
		"status", "workers", "families", "series?family=family_001", "series?match={item=\"7\"}",
		`explain?series=family_001_total{item="7"}`,
	} {
		b.Run("workers=64/entries=20000/"+strings.NewReplacer("?", ",", "/", "_").Replace(q), func(b *testing.B) {
			h := &harness{t: b, API: New(Options{Fleet: c}), collector: c}
			defer func() { h.forget(); h.drop.Stop() }()
			b.ReportAllocs()
			for b.Loop() {
				if code, body := h.ask(q); code != 200 {
					b.Fatalf("%d %s", code, body)
				}
			}
		})
	}
}

// TestExplainRelabeled: series are found by the names they are served under, and explained by
// what they were before.
func TestExplainRelabeled(t *testing.T) {
	h := newHarness(t, false)
	p, err := policy.Compile(policy.Spec{MetricRelabelConfigs: []*relabel.Config{
		{
			SourceLabels: model.LabelNames{"__name__"}, Separator: ";", Regex: relabel.MustNewRegexp("requests_total"),
			TargetLabel: "__name__",
			Replacement: "hits_total", Action: relabel.Replace, NameValidationScheme: model.UTF8Validation,
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.collector.SetPolicy(p); err != nil {
		t.Fatal(err)
	}
	e := get[status.Explanations](h, `explain?series=hits_total{path="/"}`).Items[0]
	if e.Value != 12 || e.RelabeledFrom != `requests_total{path="/"}` || len(e.Contributions) != 3 {
		t.Errorf("%+v", e)
	}
	if code, _ := h.ask("explain?series=requests_total"); code != 404 {
		t.Errorf("a name that is not served is found: %d", code)
	}
	if s := get[status.Explanations](h, "explain?series=busy").Items[0]; s.Value != 1 || s.RelabeledFrom != "" {
		t.Errorf("%+v", s)
	}
}

// TestPools: what is said of several directories tells them apart.
func TestPools(t *testing.T) {
	web, jobs := tmpfs(t), tmpfs(t)
	write(t, web, "counter_1.db", requests("/", 3))
	write(t, jobs, "counter_1.db", requests("/", 4))
	write(t, jobs, "counter_2.db", requests("/", 5))
	c, err := fleet.New(fleet.Options{Pools: []pool.Spec{{Name: "web", Path: web}, {Name: "jobs", Path: jobs}}})
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, API: New(Options{Fleet: c}), collector: c}
	t.Cleanup(func() {
		h.forget()
		h.drop.Stop()
		c.Close()
	})
	tend(c)
	if o := get[status.Overview](h, "status"); len(o.Pools) != 2 || o.Pools[1].Name != "web" || o.Pools[0].Series != 1 ||
		o.Merge.Entries != 3 {
		t.Errorf("%+v", o)
	}
	if w := get[status.Page[status.Worker]](h, "workers?pool=jobs"); w.Total != 3 || w.Matching != 2 || w.Items[0].Pool != "jobs" {
		t.Errorf("%+v", w)
	}
	if f := get[status.Page[status.File]](h, "files?pool=web&worker=1"); f.Matching != 1 ||
		f.Items[0].Path != filepath.Join(web, "counter_1.db") {
		t.Errorf("%+v", f)
	}
	e := get[status.Explanations](h, `explain?series=requests_total{pool="jobs"}`)
	if e.Matching != 1 || e.Items[0].Value != 9 || len(e.Items[0].Contributions) != 2 || e.Items[0].Contributions[0].Pool != "jobs" {
		t.Errorf("%+v", e)
	}
}

// TestExplainCorpus explains every series of files that real clients have written.
func TestExplainCorpus(t *testing.T) {
	files, err := filepath.Glob("../../testdata/corpus/*/*.db")
	if err != nil {
		t.Fatal(err)
	}
	deeper, err := filepath.Glob("../../testdata/corpus/*/*/*.db")
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]bool{}
	for _, f := range append(files, deeper...) {
		dirs[filepath.Dir(f)] = true
	}
	everything, err := selector.Parse("{}")
	if err != nil {
		t.Fatal(err)
	}
	explained := 0
	for dir := range dirs {
		err := fleet.Read(t.Context(), fleet.Options{Pools: []pool.Spec{{Path: dir}}}, func(f *fleet.Fleet, v *view.Snapshot) error {
			all, err := Explain(t.Context(), f, everything, math.MaxInt)
			if err != nil {
				return err
			}
			if all.Matching != v.Layout.Points {
				t.Errorf("%s: %d series explained of %d", dir, all.Matching, v.Layout.Points)
			}
			for _, e := range all.Items {
				sum := 0.0
				for _, c := range e.Contributions {
					if c.Counts {
						sum += float64(c.Value)
					}
				}
				if e.Absent == "" && !equal(sum, float64(e.Value)) && math.Abs(sum-float64(e.Value)) > 1e-9*math.Abs(sum) {
					t.Errorf("%s: %s is %v, and adds up to %v", dir, e.Series, e.Value, sum)
				}
				explained++
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if explained < 100 {
		t.Errorf("only %d series in %d directories", explained, len(dirs))
	}
	t.Logf("%d series of %d directories", explained, len(dirs))
}

// TestDiscovered: pools tell where they came from and when they will go, those with problems come
// first, and a directory is told by the path that people know.
func TestDiscovered(t *testing.T) {
	web, jobs := tmpfs(t), tmpfs(t)
	write(t, web, "counter_1.db", requests("/", 3))
	c, err := fleet.New(fleet.Options{Pools: []pool.Spec{
		{Name: "jobs", Path: jobs, Labels: []metric.Label{{Name: "team", Value: "blue"}}},
		{Name: "lost", Path: filepath.Join(jobs, "none")},
		{Name: "web", Path: web, Origin: "/app/metrics"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	h := &harness{t: t, collector: c, API: New(Options{Fleet: c, Discovery: func() (status.Discovery, map[string]Origin) {
		return status.Discovery{LeftOut: 2, Limit: 3, Problems: []string{"a link leads out"}},
			map[string]Origin{"web": {"processes", time.Unix(100, 0), time.Unix(160, 0)}}
	}})}
	t.Cleanup(func() {
		h.forget()
		h.drop.Stop()
		c.Close()
	})
	tend(c)
	all := get[status.Page[status.Pool]](h, "pools")
	if all.Total != 3 || all.Items[0].Name != "lost" || all.Items[0].Trouble != "error" || all.Items[0].Problems != 1 {
		t.Errorf("%+v", all)
	}
	found := get[status.Page[status.Pool]](h, "pools?source=processes")
	if found.Matching != 1 {
		t.Fatalf("%+v", found)
	}
	if p := found.Items[0]; p.Name != "web" || p.Dir != "/app/metrics" || p.Vanished != 100 || p.Until != 160 {
		t.Errorf("%+v", p)
	}
	if p := get[status.Page[status.Pool]](h, "pools?search=BLUE"); p.Matching != 1 || p.Items[0].Name != "jobs" ||
		p.Items[0].Source != "configuration" {
		t.Errorf("%+v", p)
	}
	if p := get[status.Page[status.Pool]](h, "pools?sort=-name&limit=1"); p.Matching != 3 || p.Items[0].Name != "web" {
		t.Errorf("%+v", p)
	}
	o := get[status.Overview](h, "status")
	var said []string
	for _, p := range o.Problems {
		said = append(said, p.Text)
	}
	if text := strings.Join(said, "\n"); !strings.Contains(text, "2 pools were found and not served, because there may be 3.") ||
		!strings.Contains(text, "Discovery: a link leads out.") {
		t.Errorf("problems %q", said)
	}
	if f := get[status.Page[status.File]](h, "files?pool=web"); f.Matching != 1 || f.Items[0].Path != "/app/metrics/counter_1.db" {
		t.Errorf("%+v", f)
	}
	e := get[status.Explanations](h, "explain?series=requests_total")
	if e.Matching != 1 || e.Items[0].Contributions[0].Path != "/app/metrics/counter_1.db" {
		t.Errorf("%+v", e)
	}
}
