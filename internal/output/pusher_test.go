package output

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// fake is a sender that answers as it is told.
type fake struct {
	// answer is called for each push.
	answer func(ctx context.Context, n int) error
	skip   bool

	// mu guards what follows.
	mu       sync.Mutex
	times    []time.Duration // since begin
	begin    time.Time
	values   []float64 // the first of each view that was taken
	left     []bool
	inFlight int
	most     int
	closed   int
}

func (f *fake) wantsStarts() bool { return true }
func (f *fake) skipsLast() bool   { return f.skip }

func (f *fake) push(ctx context.Context, fr *frame) (sent, error) {
	f.mu.Lock()
	f.times = append(f.times, time.Since(f.begin))
	n := len(f.times)
	f.inFlight++
	f.most = max(f.most, f.inFlight)
	f.mu.Unlock()
	err := f.answer(ctx, n)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.inFlight--
	if err == nil {
		f.values = append(f.values, fr.parts[0].Values[0])
	}
	return sent{samples: 1, bytes: 10}, err
}

func (f *fake) pushes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.times)
}

func (f *fake) leave(_ context.Context, pushed bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left = append(f.left, pushed)
	return nil
}

func (f *fake) close() { f.closed++ }

// faked returns outputs of one Spec, whose sender is f.
func faked(t *testing.T, source Source, f *fake, o Options, s Spec) *Outputs {
	t.Helper()
	o.Source = source
	out := New(o)
	s.Name, s.Textfile = "a", &TextfileSpec{Path: "/nowhere/a.prom"}
	if err := out.Apply([]Spec{s}); err != nil {
		t.Fatal(err)
	}
	out.list[0].sender = f
	f.begin = time.Now()
	return out
}

// running runs outputs until the returned function is called.
func running(o *Outputs) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

func TestIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: func(context.Context, int) error { return nil }}
		o := faked(t, outputtest.NewSource(jobs("a", 1)), f, Options{}, Spec{Interval: time.Minute})
		stop := running(o)
		time.Sleep(5*time.Second + 9*time.Minute)
		stop()
		if len(f.times) != 10 {
			t.Fatalf("%d pushes: %v", len(f.times), f.times)
		}
		if f.times[0] > 5*time.Second {
			t.Errorf("first push after %v", f.times[0])
		}
		for i := range f.times[1:] {
			if d := f.times[i+1] - f.times[i]; d != time.Minute {
				t.Errorf("push %d is %v after the one before", i+1, d)
			}
		}
	})
}

// TestSlowReceiver: pushes do not pile up, and the next one has the newest view.
func TestSlowReceiver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := outputtest.NewSource(jobs("a", 1))
		f := &fake{answer: func(ctx context.Context, n int) error {
			if n > 1 {
				return nil
			}
			<-ctx.Done() // hangs
			return ctx.Err()
		}}
		o := faked(t, source, f, Options{}, Spec{Interval: time.Second, Timeout: 30 * time.Second})
		stop := running(o)
		for range 20 {
			time.Sleep(time.Second)
			source.Set(jobs("a", time.Since(f.begin).Seconds()), nil)
			o.Status() // nobody waits for the push
		}
		if n := source.Gathers(); n != 2 { // one of them to prime
			t.Errorf("%d views were taken while one was being sent", n)
		}
		time.Sleep(15 * time.Second)
		stop()
		if f.most != 1 {
			t.Errorf("%d pushes at once", f.most)
		}
		if len(f.values) == 0 || f.values[0] != 20 {
			t.Errorf("values taken: %v", f.values)
		}
	})
}

func TestBackoffAndRecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.DebugLevel)
		set := telemetry.NewSet()
		f := &fake{answer: func(_ context.Context, n int) error {
			switch {
			case n <= 6:
				return &PushError{Result: Unavailable, Retry: true, Err: errors.New("down")}
			case n == 7:
				return &PushError{Result: Throttled, Retry: true, After: 5 * time.Minute, Err: errors.New("slowly")}
			}
			return nil
		}}
		o := faked(t, outputtest.NewSource(jobs("a", 1)), f, Options{Logger: zap.New(core), Metrics: NewMetrics(set)},
			Spec{Interval: 15 * time.Second})
		stop := running(o)
		time.Sleep(15 * time.Minute)
		stop()
		for i, most := range []time.Duration{1, 2, 4, 8, 16, 32} {
			if d := f.times[i+1] - f.times[i]; d > most*time.Second || d < most*time.Second/2 {
				t.Errorf("attempt %d came %v after the one before, want %v to %v", i+2, d, most*time.Second/2, most*time.Second)
			}
		}
		if d := f.times[7] - f.times[6]; d < 5*time.Minute {
			t.Errorf("asked to wait 5 minutes, waited %v", d)
		}
		if d := f.times[9] - f.times[8]; d != 15*time.Second {
			t.Errorf("after it all, pushes come every %v", d)
		}
		s := o.Status()[0]
		if s.Results["unavailable"] != 6 || s.Results["throttled"] != 1 || s.Failures != 0 || s.Error != "" || s.LastSuccess == 0 {
			t.Errorf("%+v", s)
		}
		for text, want := range map[string]int{"a push failed": 2, "a push failed again": 5, "output works again": 1} {
			if n := logs.FilterMessage(text).Len(); n != want {
				t.Errorf("%d lines of %q, want %d", n, text, want)
			}
		}
		samples := outputtest.Samples(set.Snapshot())
		for series, want := range map[string]float64{
			`aggregatord_output_pushes_total{output="a",result="unavailable",type="textfile"}`: 6,
			`aggregatord_output_up{output="a",type="textfile"}`:                                1,
			`aggregatord_output_samples{output="a",type="textfile"}`:                           1,
		} {
			if samples[series] != want {
				t.Errorf("%s: %v, want %v", series, samples[series], want)
			}
		}
	})
}

// TestRefusedForGood: what will not be taken is not sent again before its time.
func TestRefusedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: func(context.Context, int) error {
			return &PushError{Result: Rejected, Err: errors.New("never")}
		}}
		o := faked(t, outputtest.NewSource(jobs("a", 1)), f, Options{}, Spec{Interval: 10 * time.Minute})
		stop := running(o)
		time.Sleep(25 * time.Minute)
		stop()
		if len(f.times) != 3 {
			t.Errorf("%d pushes: %v", len(f.times), f.times)
		}
	})
}

func TestNotReady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{answer: func(context.Context, int) error { return nil }}
		var ready, primed atomic.Bool
		o := faked(t, outputtest.NewSource(jobs("a", 1)), f, Options{Ready: ready.Load, OnPrimed: func() { primed.Store(true) }},
			Spec{Interval: time.Second})
		stop := running(o)
		time.Sleep(30 * time.Second)
		if f.pushes() > 0 || primed.Load() {
			t.Error("pushed before the source was ready")
		}
		ready.Store(true)
		time.Sleep(10 * time.Second)
		stop()
		if f.pushes() == 0 || !primed.Load() {
			t.Error("not pushed when it was")
		}
	})
}

func TestLast(t *testing.T) {
	down := &PushError{Result: Unavailable, Retry: true, Err: errors.New("down")}
	for name, c := range map[string]struct {
		answer func(ctx context.Context, n int) error
		spec   Spec
		skip   bool
		source error
		pushes int
		err    string
		most   time.Duration
		left   string
	}{
		"works": {answer: func(context.Context, int) error { return nil }, pushes: 1, left: "true"},
		"third time": {
			answer: func(_ context.Context, n int) error { return []error{down, down, nil}[n-1] }, pushes: 3,
			most: 2 * time.Second, left: "true",
		},
		"down": {
			answer: func(context.Context, int) error { return down }, pushes: -1, err: "output a: the last push: down",
			most: 10 * time.Second,
		},
		"refused": {
			answer: func(context.Context, int) error { return &PushError{Result: Rejected, Err: errors.New("never")} }, pushes: 1,
			err: "never",
		},
		"hangs": {
			answer: func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() }, pushes: 1, err: "longer than timeout",
			most: 10 * time.Second,
		},
		"wait longer": {answer: func(context.Context, int) error {
			return &PushError{Result: Throttled, Retry: true, After: time.Hour, Err: errors.New("slowly")}
		}, pushes: 1, err: "slowly"},
		"not asked": {answer: func(context.Context, int) error { return down }, spec: Spec{SkipOnExit: true}, pushes: 0, left: "false"},
		"undone":    {answer: func(context.Context, int) error { return down }, skip: true, pushes: 0, left: "false"},
		"no view":   {source: errors.New("no view"), pushes: 0, err: "take the view: no view", most: 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := &fake{answer: c.answer, skip: c.skip}
				source := outputtest.NewSource(jobs("a", 1))
				source.Set(jobs("a", 1), c.source)
				c.spec.Interval = time.Hour
				o := faked(t, source, f, Options{}, c.spec)
				begin := time.Now()
				err := o.Last(context.Background())
				if took := time.Since(begin); took > c.most {
					t.Errorf("took %v, want at most %v", took, c.most)
				}
				if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
					t.Errorf("%v, want %q", err, c.err)
				}
				if c.pushes >= 0 && len(f.times) != c.pushes || c.pushes < 0 && len(f.times) < 4 {
					t.Errorf("%d pushes, want %d", len(f.times), c.pushes)
				}
				left := ""
				for _, pushed := range f.left {
					left = map[bool]string{true: "true", false: "false"}[pushed]
				}
				if left != c.left {
					t.Errorf("left %q, want %q", left, c.left)
				}
			})
		})
	}
}

// TestLastIsLast: a push that hangs when the end comes is ended, and nothing comes after the
// last one.
func TestLastIsLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source := outputtest.NewSource(jobs("a", 1))
		f := &fake{answer: func(ctx context.Context, n int) error {
			if n == 1 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}}
		o := faked(t, source, f, Options{}, Spec{Interval: time.Second, Timeout: time.Hour})
		stop := running(o)
		time.Sleep(10 * time.Second)
		source.Set(jobs("a", 7), nil)
		begin := time.Now()
		if err := o.Last(context.Background()); err != nil {
			t.Error(err)
		}
		if took := time.Since(begin); took != inFlight {
			t.Errorf("took %v", took)
		}
		time.Sleep(time.Minute)
		stop()
		if len(f.times) != 2 || len(f.values) != 1 || f.values[0] != 7 {
			t.Errorf("pushes: %v, values %v", f.times, f.values)
		}
		o.Close()
		if f.closed == 0 {
			t.Error("not closed")
		}
	})
}

// TestApply: an output that stays the same goes on, one that is gone takes its leave.
func TestApply(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, remove bool) Spec {
		return Spec{Name: name, Interval: time.Hour, Textfile: &TextfileSpec{Path: filepath.Join(dir, name), RemoveOnExit: remove}}
	}
	synctest.Test(t, func(t *testing.T) {
		o := New(Options{Source: outputtest.NewSource(jobs("a", 1))})
		if err := o.Apply([]Spec{file("stays", false), file("goes", true), file("changes", true)}); err != nil {
			t.Fatal(err)
		}
		stop := running(o)
		time.Sleep(10 * time.Second)
		stays := o.list[0]
		if err := o.Apply([]Spec{file("changes", false), file("stays", false), file("comes", false)}); err != nil {
			t.Fatal(err)
		}
		if err := o.Apply([]Spec{{Name: "wrong"}}); err == nil || !strings.Contains(err.Error(), `output "wrong": has 0 kinds`) {
			t.Errorf("%v", err)
		}
		time.Sleep(10 * time.Second)
		if o.list[1] != stays || stays.status().Results["ok"] != 1 {
			t.Error("what stays began anew")
		}
		for name, want := range map[string]bool{"stays": true, "goes": false, "changes": true, "comes": true} {
			if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
				t.Errorf("%s: %v", name, err)
			}
		}
		var names []string
		for _, s := range o.Status() {
			names = append(names, s.Name)
		}
		if got := strings.Join(names, " "); got != "changes stays comes" {
			t.Error(got)
		}
		if err := o.Last(context.Background()); err != nil {
			t.Error(err)
		}
		stop()
		o.Close()
	})
}

func TestTextfile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "shop.prom")
	// What a kill has left, and what somebody has put there, is not followed.
	other := filepath.Join(dir, "other")
	if err := os.WriteFile(other, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(other, filepath.Join(dir, ".shop.prom.aggregatord")); err != nil {
		t.Fatal(err)
	}
	spec := Spec{Name: "a", Textfile: &TextfileSpec{Path: path}}
	status, err := Once(t.Context(), spec, outputtest.NewSource(jobs("x", 3)), Options{})
	if err != nil || status.Samples != 1 {
		t.Fatal(status, err)
	}
	text, err := os.ReadFile(path)
	if want := "# HELP jobs_total Jobs.\n# TYPE jobs_total counter\njobs_total{q=\"x\"} 3\n"; err != nil || string(text) != want {
		t.Errorf("%s, %v", text, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != 0o644 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if text, err := os.ReadFile(other); err != nil || string(text) != "precious" {
		t.Errorf("%s, %v", text, err)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("%v", entries)
	}
	spec.Textfile.Path = filepath.Join(dir, "missing", "a.prom")
	if _, err := Once(t.Context(), spec, outputtest.NewSource(jobs("x", 3)), Options{}); err == nil ||
		!strings.Contains(err.Error(), "make the directory") {
		t.Error(err)
	}
}

// TestPushgatewayGroup: what is asked of it, and that the group is deleted after a while.
func TestPushgatewayGroup(t *testing.T) {
	var asked []string
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		first, _, _ := strings.Cut(string(body), "\n")
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/vnd.google.protobuf;") {
			var f dto.MetricFamily
			if err := expfmt.NewDecoder(bytes.NewReader(body), expfmt.NewFormat(expfmt.TypeProtoDelim)).Decode(&f); err != nil {
				t.Error(err)
			}
			first = f.GetName()
		}
		asked = append(asked, strings.TrimSpace(r.Method+" "+r.URL.EscapedPath()+" "+strings.Split(r.Header.Get("Content-Type"), ";")[0]+
			" "+first))
	}))
	defer s.Close()
	for name, c := range map[string]struct {
		spec PushgatewaySpec
		want []string
	}{
		"put": {PushgatewaySpec{Job: "j"}, []string{"PUT /metrics/job/j application/vnd.google.protobuf jobs_total"}},
		"post": {
			PushgatewaySpec{Job: "j", Method: "POST", InstanceIP: true},
			[]string{"POST /metrics/job/j/instance/127.0.0.1 application/vnd.google.protobuf jobs_total"},
		},
		"delete": {PushgatewaySpec{Job: "j", DeleteOnExit: true}, []string{"DELETE /metrics/job/j"}},
		"later": {
			PushgatewaySpec{Job: "j", DeleteOnExit: true, DeleteAfter: time.Millisecond},
			[]string{"PUT /metrics/job/j application/vnd.google.protobuf jobs_total", "DELETE /metrics/job/j"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			asked = nil
			c.spec.URL = s.URL + "/"
			o := New(Options{Source: outputtest.NewSource(jobs("a", 1))})
			if err := o.Apply([]Spec{{Name: "a", Pushgateway: &c.spec}}); err != nil {
				t.Fatal(err)
			}
			if err := o.Last(t.Context()); err != nil {
				t.Error(err)
			}
			o.Close()
			if got, want := strings.Join(asked, "\n"), strings.Join(c.want, "\n"); got != want {
				t.Errorf("asked\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestPushgatewayText: who refuses protobuf gets text, and from then on nothing else; who refuses both
// is asked in protobuf the next time.
func TestPushgatewayText(t *testing.T) {
	for name, c := range map[string]struct {
		refuses map[string]int
		want    string
	}{
		"both":     {nil, "protobuf protobuf"},
		"text":     {map[string]int{"protobuf": 415}, "protobuf text text"},
		"neither":  {map[string]int{"protobuf": 400, "text": 400}, "protobuf text protobuf text"},
		"overload": {map[string]int{"protobuf": 503}, "protobuf protobuf"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				kind := "text"
				if strings.HasPrefix(r.Header.Get("Content-Type"), "application/vnd.google.protobuf;") {
					kind = "protobuf"
				}
				asked = append(asked, kind)
				if code := c.refuses[kind]; code != 0 {
					w.WriteHeader(code)
				}
			}))
			defer s.Close()
			p := newPusher(New(Options{Source: outputtest.NewSource(jobs("a", 1))}),
				Spec{Name: "a", Pushgateway: &PushgatewaySpec{URL: s.URL, Job: "j"}})
			defer p.sender.close()
			for range 2 {
				if err := p.push(t.Context()); (err == nil) != (c.refuses["text"]+c.refuses["protobuf"] == 0 || name == "text") {
					t.Error(err)
				}
			}
			if got := strings.Join(asked, " "); got != c.want {
				t.Errorf("asked with %s, want %s", got, c.want)
			}
		})
	}
}

// TestProcesses: what a scrape has beside the workers' own metrics is sent, unless it is not wanted.
func TestProcesses(t *testing.T) {
	workers := outputtest.Snapshot(
		outputtest.Family{Name: "aggregatord_mine", Type: metric.Gauge, Metrics: []outputtest.Metric{{Values: []float64{99}}}},
		outputtest.Family{
			Name: "jobs", Type: metric.Counter,
			Metrics: []outputtest.Metric{{Labels: []string{"pool", "web"}, Values: []float64{4}}},
		},
	)
	processes := outputtest.Snapshot(
		outputtest.Family{Name: "aggregatord_pool_threads", Type: metric.Gauge, Metrics: []outputtest.Metric{
			{Labels: []string{"pool", "mail"}, Values: []float64{6}}, {Labels: []string{"pool", "web"}, Values: []float64{5}},
		}},
		outputtest.Family{
			Name: "process_cpu_seconds", Type: metric.Counter,
			Metrics: []outputtest.Metric{{Labels: []string{"pool", "web"}, Values: []float64{9}}},
		},
	)
	set := telemetry.NewSet()
	set.Gauge("aggregatord_up", "Ours.").Set(1)
	for name, c := range map[string]struct {
		spec Spec
		want map[string]float64
	}{
		"all": {
			Spec{Processes: ProcessesAll, Match: []string{".*_threads", "process_.*"}},
			map[string]float64{
				`aggregatord_pool_threads{pool="mail"}`: 6, `aggregatord_pool_threads{pool="web"}`: 5,
				`process_cpu_seconds_total{pool="web"}`: 9,
			},
		},
		"default, to one that has no process_ of itself": {
			Spec{Match: []string{"process_.*"}, Graphite: &GraphiteSpec{Address: "127.0.0.1:1"}},
			map[string]float64{`process_cpu_seconds_total{pool="web"}`: 9},
		},
		"default": {Spec{}, map[string]float64{
			"aggregatord_mine": 99, `jobs_total{pool="web"}`: 4,
			`aggregatord_pool_threads{pool="mail"}`: 6, `aggregatord_pool_threads{pool="web"}`: 5,
		}},
		"of one pool, with a label": {
			Spec{Pools: []string{"web"}, ExternalLabels: map[string]string{"dc": "eu"}},
			map[string]float64{`jobs_total{dc="eu",pool="web"}`: 4, `aggregatord_pool_threads{dc="eu",pool="web"}`: 5},
		},
		"not wanted": {Spec{Processes: ProcessesNone}, map[string]float64{"aggregatord_mine": 99, `jobs_total{pool="web"}`: 4}},
		"with the daemon's own": {
			Spec{OwnMetrics: true, Match: []string{"agg.*"}},
			map[string]float64{"aggregatord_up": 1, `aggregatord_pool_threads{pool="mail"}`: 6, `aggregatord_pool_threads{pool="web"}`: 5},
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := New(Options{
				Source: outputtest.NewSource(workers), Own: func(bool) *view.Snapshot { return set.Snapshot() },
				Beside: func(of *view.Layout) *view.Snapshot {
					if of != workers.Layout {
						t.Error("asked for what is beside another layout than the source's")
					}
					return processes
				},
			})
			c.spec.Name = "a"
			if c.spec.Graphite == nil {
				c.spec.Textfile = &TextfileSpec{Path: filepath.Join(t.TempDir(), "a")}
			}
			p := newPusher(o, c.spec)
			f, err := o.gather(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			defer f.release()
			if diff := outputtest.Diff(c.want, outputtest.Samples(f.parts...)); diff != "" {
				t.Error(diff)
			}
			if c.spec.Graphite != nil {
				return // nobody listens there
			}
			if out, err := p.sender.push(t.Context(), f); err != nil || out.samples != len(c.want) {
				t.Errorf("%d samples, %v", out.samples, err)
			}
		})
	}
}

// TestOwnMetrics: they are sent if asked for, and then nobody else's of their names.
func TestOwnMetrics(t *testing.T) {
	set := telemetry.NewSet()
	set.Gauge("aggregatord_up", "Ours.").Set(1)
	workers := outputtest.Snapshot(
		outputtest.Family{Name: "aggregatord_up", Type: metric.Gauge, Metrics: []outputtest.Metric{{Values: []float64{99}}}},
		outputtest.Family{Name: "jobs", Type: metric.Counter, Metrics: []outputtest.Metric{{Values: []float64{4}}}},
	)
	for own, want := range map[bool]map[string]float64{
		false: {"aggregatord_up": 99, "jobs_total": 4},
		true:  {"aggregatord_up": 1, "jobs_total": 4},
	} {
		var got map[string]float64
		o := New(Options{Source: outputtest.NewSource(workers), Own: func(bool) *view.Snapshot { return set.Snapshot() }})
		p := newPusher(o, Spec{Name: "a", OwnMetrics: own, Textfile: &TextfileSpec{Path: "/nowhere/a"}})
		f, err := o.gather(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		got = outputtest.Samples(f.parts...)
		if diff := outputtest.Diff(want, got); diff != "" {
			t.Errorf("own %v:\n%s", own, diff)
		}
		f.release()
	}
}
