package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/archive"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
	"aggregatord/internal/store"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// write stores values in a source file as a worker does, who is dead at once. Each sample is its
// name, and labels as name=value.
func write(t testing.TB, dir, base string, samples map[string]float64) {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for sample, value := range samples {
		name, labels, _ := strings.Cut(sample, " ")
		k := metric.Key{Family: strings.TrimSuffix(name, "_total"), Help: "Help.", Series: metric.Series{Sample: name}}
		for l := range strings.FieldsSeq(labels) {
			n, v, _ := strings.Cut(l, "=")
			k.Series.Labels = append(k.Series.Labels, metric.Label{Name: n, Value: v})
		}
		slot, err := w.Slot(store.AppendKey(nil, k))
		if err != nil {
			t.Fatal(err)
		}
		w.Set(slot, value, 0)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// tmpfs returns a directory like those that pools use.
func tmpfs(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "aggregatord-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func text(snap *view.Snapshot) string {
	var b strings.Builder
	i := 0
	for _, f := range snap.Layout.Families {
		for _, m := range f.Metrics {
			for _, p := range m.Points {
				b.WriteString(f.Name + p.Kind.Suffix())
				for _, l := range m.AllLabels() {
					b.WriteString(" " + l.Name + "=" + l.Value)
				}
				fmt.Fprintf(&b, " %v\n", snap.Values[i])
				i++
			}
		}
	}
	return b.String()
}

// harness is a fleet with its logs and metrics.
type harness struct {
	*Fleet
	t    *testing.T
	logs *observer.ObservedLogs
	set  *telemetry.Set
}

func start(t *testing.T, specs ...pool.Spec) *harness {
	t.Helper()
	core, logs := observer.New(zapcore.DebugLevel)
	set := telemetry.NewSet()
	f, err := New(Options{Pools: specs, Logger: zap.New(core), Set: set, Pool: pool.Options{Archive: &pool.ArchiveOptions{Rest: -1}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, p := range f.Pools() {
		p.Tend(true)
	}
	return &harness{f, t, logs, set}
}

func (h *harness) want(lines ...string) {
	h.t.Helper()
	h.wantOf(Selection{}, lines...)
}

func (h *harness) wantOf(sel Selection, lines ...string) {
	h.t.Helper()
	snap, err := h.View(h.t.Context(), sel)
	if err != nil {
		h.t.Fatal(err)
	}
	defer snap.Release()
	if got, want := text(snap), strings.Join(append(lines, ""), "\n"); got != want {
		h.t.Fatalf("got:\n%swant:\n%s", got, want)
	}
}

func (h *harness) own(name string) float64 {
	h.t.Helper()
	for l := range strings.SplitSeq(text(h.set.Snapshot()), "\n") {
		var v float64
		if rest, ok := strings.CutPrefix(l, name+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err == nil {
				return v
			}
		}
	}
	return 0
}

func (h *harness) logged(msg string) (n int) {
	for _, e := range h.logs.All() {
		if strings.Contains(e.Message, msg) {
			n++
		}
	}
	return n
}

func compile(t testing.TB, spec policy.Spec) *policy.Policy {
	t.Helper()
	p, err := policy.Compile(spec)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (h *harness) force(p *policy.Policy) {
	h.t.Helper()
	if err := h.SetPolicy(p); err != nil {
		h.t.Fatal(err)
	}
}

func TestParseSpec(t *testing.T) {
	for in, want := range map[string]pool.Spec{
		"/a": {Path: "/a"}, "web=/a": {Name: "web", Path: "/a"}, "web=a=b": {Name: "web", Path: "a=b"}, "/a=b": {Path: "/a=b"},
		"./x=y": {Path: "./x=y"},
	} {
		if got, err := ParseSpec(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "=a", "web="} {
		if got, err := ParseSpec(in); err == nil {
			t.Errorf("%q: accepted as %v", in, got)
		}
	}
}

func TestSeveralPools(t *testing.T) {
	web, jobs, later := tmpfs(t), tmpfs(t), tmpfs(t)
	write(t, web, "counter_1.db", map[string]float64{"hits_total": 1})
	write(t, jobs, "counter_1.db", map[string]float64{"hits_total": 2})
	write(t, later, "counter_1.db", map[string]float64{"hits_total": 4})
	h := start(t, pool.Spec{Name: "web", Path: web}, pool.Spec{Name: "jobs", Path: jobs})
	h.want("hits_total pool=jobs 2", "hits_total pool=web 1")
	h.wantOf(Selection{Pools: []string{"web", "web"}}, "hits_total pool=web 1")
	if _, err := h.View(t.Context(), Selection{Pools: []string{"web", "nobody"}}); !errors.Is(err, ErrNoPool) {
		t.Errorf("a pool that is not there: %v", err)
	}
	if err := h.Add(pool.Spec{Name: "later", Path: later}); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total pool=jobs 2", "hits_total pool=later 4", "hits_total pool=web 1")
	for _, spec := range []pool.Spec{{Path: later}, {Name: "web", Path: later}} {
		if err := h.Add(spec); !errors.Is(err, ErrName) {
			t.Errorf("added %v: %v", spec, err)
		}
	}
	if err := h.Add(pool.Spec{Name: "again", Path: later}); !errors.Is(err, archive.ErrLocked) {
		t.Errorf("a directory is there twice: %v", err)
	}
	if err := h.Remove("web"); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove("web"); !errors.Is(err, ErrNoPool) {
		t.Errorf("removed twice: %v", err)
	}
	h.want("hits_total pool=jobs 2", "hits_total pool=later 4")
	for name, specs := range map[string][]pool.Spec{
		"unnamed": {{Path: web}, {Name: "jobs", Path: jobs}}, "equal": {{Name: "a", Path: web}, {Name: "a", Path: jobs}}, "none": nil,
	} {
		if _, err := New(Options{Pools: specs}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestInfoAndLabels(t *testing.T) {
	web, jobs := tmpfs(t), tmpfs(t)
	write(t, web, "counter_1.db", map[string]float64{"hits_total region=own env=mine": 1})
	write(t, jobs, "counter_1.db", map[string]float64{"hits_total": 2})
	h := start(t, pool.Spec{Name: "jobs", Path: jobs}, pool.Spec{Name: "web", Path: web})
	h.force(compile(t, policy.Spec{
		ExternalLabels: map[string]string{"region": "eu"},
		Pools: map[string]policy.PoolSpec{"web": {
			Labels: map[string]string{"env": "prod"},
			Rules:  []policy.Rule{{Match: "hits", Help: "Web."}},
		}},
		Info: []policy.InfoSeries{{Name: "build_info", Help: "Build.", Labels: map[string]string{"version": "7"}}},
	}))
	h.want("build_info region=eu version=7 1", "hits_total env=prod exported_env=mine pool=web region=own 1",
		"hits_total pool=jobs region=eu 2")
}

// TestInfoNamedAsMetric: it is not the files that disagree.
func TestInfoNamedAsMetric(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "gauge_max_1.db", map[string]float64{"build_info version=6": 1})
	h := start(t, pool.Spec{Path: dir})
	h.force(compile(t, policy.Spec{Info: []policy.InfoSeries{{Name: "build_info", Labels: map[string]string{"version": "7"}}}}))
	h.want("build_info version=7 1")
	h.want("build_info version=7 1")
	if told, blamed := h.logged("choose another name"), h.logged("files disagree"); told != 1 || blamed != 0 {
		t.Errorf("%d lines tell, %d blame files", told, blamed)
	}
}

func TestRelabel(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db", map[string]float64{"hits_total l=a": 3, "hits_total l=b": 4, "go_total": 1})
	h := start(t, pool.Spec{Path: dir})
	h.force(compile(t, policy.Spec{MetricRelabelConfigs: []*relabel.Config{
		{Action: relabel.LabelDrop, Regex: relabel.MustNewRegexp("l"), Separator: ";", Replacement: "$1"},
		{Action: relabel.Drop, SourceLabels: model.LabelNames{"__name__"}, Separator: ";", Regex: relabel.MustNewRegexp("go_.*")},
	}}))
	h.want("hits_total 3")
	h.want("hits_total 3")
	if dropped, equal := h.own("aggregatord_relabel_dropped_series"), h.own("aggregatord_relabel_collisions"); dropped != 1 || equal != 1 {
		t.Errorf("%v dropped and %v equal, want 1 and 1", dropped, equal)
	}
	if got := h.logged("make series equal"); got != 1 {
		t.Errorf("logged %d times", got)
	}
	h.force(nil)
	h.want("go_total 1", "hits_total l=a 3", "hits_total l=b 4")
	if dropped := h.own("aggregatord_relabel_dropped_series"); dropped != 0 {
		t.Errorf("%v dropped", dropped)
	}
}

func TestPreview(t *testing.T) {
	web, jobs := tmpfs(t), tmpfs(t)
	for _, id := range []string{"1", "2"} {
		write(t, web, "counter_"+id+".db", map[string]float64{"hits_total user=" + id + " path=/": 1, "noise_total": 1, "plain_total": 1})
		write(t, web, "gauge_all_"+id+".db", map[string]float64{"level": 1})
		write(t, jobs, "gauge_max_"+id+".db", map[string]float64{"level": 1, "go_info version=" + id: 1})
	}
	p := compile(t, policy.Spec{
		Rules: []policy.Rule{{Match: "hits_total", DropLabels: []string{"user"}}, {Name: "noisy", Match: "noise", Drop: true}},
		Pools: map[string]policy.PoolSpec{"web": {Rules: []policy.Rule{{Match: "level", GaugeMode: metric.Sum}}}},
		Info:  []policy.InfoSeries{{Name: "build_info"}},
		MetricRelabelConfigs: []*relabel.Config{
			{
				Action: relabel.Replace, SourceLabels: model.LabelNames{"__name__"}, Separator: ";",
				Regex: relabel.MustNewRegexp("plain_total"), TargetLabel: "__name__", Replacement: "renamed_total",
			},
			{Action: relabel.LabelDrop, Separator: ";", Replacement: "$1", Regex: relabel.MustNewRegexp("version")},
		},
	})
	got, err := PreviewPolicy(t.Context(), Options{Pools: []pool.Spec{{Name: "web", Path: web}, {Name: "jobs", Path: jobs}}}, p)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range got.Effects {
		fmt.Fprintf(&b, "%s %q %v %v>%v %q %v %d>%d>%d %v %v\n", e.Family, e.Pool, e.Type, e.FileMode, e.Mode, e.Rule, e.ModeByRule,
			e.Before, e.Ruled, e.After, e.Dropped, e.Names)
	}
	want := `build_info "" gauge > "" false 0>1>1 false [build_info]
go_info "jobs" gauge max>max "" false 2>2>1 false [go_info]
hits "web" counter > "metrics[0]" false 2>1>1 false [hits]
level "jobs" gauge max>max "" false 1>1>1 false [level]
level "web" gauge max>sum "pools.web.metrics[0]" true 2>1>1 false [level]
noise "web" counter > "noisy" false 1>0>0 true []
plain "web" counter > "" false 1>1>1 false [renamed]
`
	if b.String() != want {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
	if got.Before != 9 || got.After != 6 || got.Equal != 1 || len(got.Collisions) != 1 {
		t.Errorf("in all %d before, %d after, %d equal, collisions %v", got.Before, got.After, got.Equal, got.Collisions)
	}
}

// TestExplain accounts for every value of several pools, also after relabelling.
func TestExplain(t *testing.T) {
	web, jobs := tmpfs(t), tmpfs(t)
	write(t, web, "counter_1.db", map[string]float64{"hits_total l=a": 1, "hits_total l=b": 2})
	write(t, web, "counter_2.db", map[string]float64{"hits_total l=a": 10})
	write(t, jobs, "counter_1.db", map[string]float64{"hits_total l=a": 100})
	h := start(t, pool.Spec{Name: "web", Path: web}, pool.Spec{Name: "jobs", Path: jobs})
	h.force(compile(t, policy.Spec{
		Info: []policy.InfoSeries{{Name: "build_info"}},
		MetricRelabelConfigs: []*relabel.Config{{
			Action: relabel.Replace, TargetLabel: "new", Separator: ";", Replacement: "x",
			Regex: relabel.MustNewRegexp("(.*)"),
		}},
	}))
	h.want("build_info new=x 1", "hits_total l=a new=x pool=jobs 100", "hits_total l=a new=x pool=web 11",
		"hits_total l=b new=x pool=web 2")
	e, err := h.Explain(t.Context(), func(snap *view.Snapshot) (all []int) {
		for i := range snap.Values {
			all = append(all, i)
		}
		return all
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.View.Release()
	var got []string
	for _, item := range e.Items {
		sum := 0.0
		for _, c := range item.Contributions {
			sum += c.Value
		}
		got = append(got, fmt.Sprintf("%v %v %s %d %v", e.View.Values[item.Value], sum, item.Pool, len(item.Contributions),
			item.Configured))
	}
	want := "1 0 " + configuration + " 0 true\n100 100 jobs 1 false\n11 11 web 2 false\n2 2 web 1 false"
	if strings.Join(got, "\n") != want {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), want)
	}
}

// descriptors and mappings count what the process has of both.
func resources(t *testing.T) (descriptors, mappings int) {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("needs /proc")
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return len(fds), strings.Count(string(maps), ".db")
}

// TestComeAndGo adds and removes a thousand pools while scrapes go on, and finds everything
// given back.
func TestComeAndGo(t *testing.T) {
	root := tmpfs(t)
	home := filepath.Join(root, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, home, "counter_1.db", map[string]float64{"hits_total": 1})
	h := start(t, pool.Spec{Name: "home", Path: home})
	ctx, stop := context.WithCancel(t.Context())
	var running, scraping sync.WaitGroup
	running.Go(func() { h.Run(ctx) })
	h.want("hits_total pool=home 1")
	held, err := store.OpenWriter(filepath.Join(home, "counter_2.db"), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	var scrapes atomic.Int64
	done := make(chan struct{})
	scraping.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			snap, err := h.View(ctx, Selection{})
			if err != nil {
				t.Error(err)
				return
			}
			if got := text(snap); !strings.Contains(got, "hits_total pool=home 1\n") {
				t.Errorf("the pool that stays is missing: %q", got)
			}
			snap.Release()
			scrapes.Add(1)
		}
	})
	settle := func() (fds, maps, goroutines int, heap uint64) {
		h.logs.TakeAll() // they are kept for the test alone
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fds, maps = resources(t)
		return fds, maps, runtime.NumGoroutine(), m.HeapAlloc
	}
	const pools, together = 1000, 50
	dirs := make([]string, together)
	for i := range dirs {
		dirs[i] = filepath.Join(root, fmt.Sprint("p", i))
		if err := os.Mkdir(dirs[i], 0o755); err != nil {
			t.Fatal(err)
		}
		write(t, dirs[i], "counter_1.db", map[string]float64{"hits_total": 1, "more_total": 2})
	}
	var fds, maps, goroutines int
	var heap uint64
	for n := 0; n < pools; n += together {
		for i, dir := range dirs {
			if err := h.Add(pool.Spec{Name: fmt.Sprint("pool", i), Path: dir}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range dirs {
			if err := h.Remove(fmt.Sprint("pool", i)); err != nil {
				t.Fatal(err)
			}
		}
		if n == 0 {
			fds, maps, goroutines, heap = settle()
		}
	}
	for seen := scrapes.Load(); scrapes.Load() < seen+3; {
		runtime.Gosched()
	}
	// What ends with a pool may be about to end.
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		f, m, g, b := settle()
		// The scraper is anywhere in its loop.
		if f <= fds+4 && m <= maps+2 && g <= goroutines+4 && b < heap+2<<20 {
			break
		}
		if time.Now().After(deadline) {
			t.Errorf("after %d pools %d descriptors, %d mappings, %d goroutines, %d bytes; before %d, %d, %d, %d", pools, f, m, g, b, fds,
				maps, goroutines, heap)
			break
		}
	}
	close(done)
	scraping.Wait()
	stop()
	running.Wait()
	if s := text(h.set.Snapshot()); strings.Contains(s, "pool=pool1 ") {
		t.Error("there are still metrics about a pool that was removed")
	}
}

// TestSetSettings: what an application says of its pool comes into force while the pool is served: every view has
// its totals, by the old or the new.
func TestSetSettings(t *testing.T) {
	a, b := tmpfs(t), tmpfs(t)
	write(t, a, "counter_1.db", map[string]float64{"hits_total path=/": 1, "secrets_total": 5})
	write(t, b, "counter_1.db", map[string]float64{"hits_total path=/": 2})
	team := func(name string) []metric.Label { return []metric.Label{{Name: "app_team", Value: name}} }
	h := start(t, pool.Spec{Name: "a", Path: a, Labels: team("old")}, pool.Spec{Name: "b", Path: b})
	const other = "hits_total path=/ pool=b 2"
	old := "hits_total app_team=old path=/ pool=a 1\n" + other + "\nsecrets_total app_team=old pool=a 5\n"
	now := "hits_total app_team=new path=/ pool=a 1\n" + other + "\n"
	h.want(strings.Split(strings.TrimSuffix(old, "\n"), "\n")...)
	seen := map[string]int{}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			snap, err := h.View(t.Context(), Selection{})
			if err != nil {
				t.Error(err)
				return
			}
			seen[text(snap)]++
			snap.Release()
			select {
			case <-stop:
				return
			default:
			}
		}
	}()
	own := compile(t, policy.Spec{Rules: []policy.Rule{{Match: "secrets_total", Drop: true}}})
	for range 50 {
		if err := h.SetSettings("a", team("new"), own); err != nil {
			t.Fatal(err)
		}
		if err := h.SetSettings("a", team("old"), nil); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	<-stopped
	if err := h.SetSettings("a", team("new"), own); err != nil {
		t.Fatal(err)
	}
	h.want(strings.Split(strings.TrimSuffix(now, "\n"), "\n")...)
	if got := h.TargetLabels(h.Pool("a").Spec()); fmt.Sprint(got) != "[{app_team new} {pool a}]" {
		t.Errorf("labels of the target: %v", got)
	}
	for view, n := range seen {
		if view != old && view != now {
			t.Errorf("%d views have\n%s", n, view)
		}
	}
	h.force(compile(t, policy.Spec{})) // what the application says stays in force
	h.want(strings.Split(strings.TrimSuffix(now, "\n"), "\n")...)
	if err := h.SetSettings("c", nil, nil); !errors.Is(err, ErrNoPool) {
		t.Errorf("settings of no pool: %v", err)
	}
}
