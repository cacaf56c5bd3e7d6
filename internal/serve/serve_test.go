package serve

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/exposition"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// gatherFunc is a Gatherer from a function.
type gatherFunc func(ctx context.Context) ([]*view.Snapshot, error)

func (f gatherFunc) Gather(ctx context.Context, _ Request) ([]*view.Snapshot, error) { return f(ctx) }

// pool is a snapshot of a small pool of workers.
func pool() *view.Snapshot {
	points := []view.Point{{Kind: view.Total}}
	jobs := view.Family{Name: "jobs", Type: metric.Counter, Help: "Jobs.", Points: 50}
	for i := range jobs.Points {
		jobs.Metrics = append(jobs.Metrics, view.Metric{
			Labels: []metric.Label{{Name: "queue", Value: fmt.Sprintf("q%02d", i)}},
			Points: points,
		})
	}
	load := view.Family{
		Name: "my.load", Type: metric.Gauge, Help: "Load.", First: 50, Points: 1,
		Metrics: []view.Metric{{Points: []view.Point{{Kind: view.Value}}}},
	}
	return &view.Snapshot{
		Layout: &view.Layout{Families: []view.Family{jobs, load}, Points: 51},
		Values: slices.Repeat([]float64{7}, 51),
	}
}

func static(snaps ...*view.Snapshot) Gatherer {
	return gatherFunc(func(context.Context) ([]*view.Snapshot, error) { return snaps, nil })
}

// plain is the exposition of the pool in a format.
func plain(f exposition.Format, names ...string) string {
	return string(new(exposition.Encoder).Append(nil, f, exposition.NewFilter(names), pool()))
}

// do sends a request to a handler. Headers are given as name, value, name, value, ...
func do(h http.Handler, method, target string, headers ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	r.Host = "localhost:9500"
	for i := 0; i < len(headers); i += 2 {
		r.Header.Add(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func gunzip(t *testing.T, s string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(s))
	if err != nil {
		t.Error(err)
		return ""
	}
	b, err := io.ReadAll(r)
	if err != nil {
		t.Error(err)
	}
	return string(b)
}

func TestContentTypes(t *testing.T) {
	const (
		prometheus2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
		native2     = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
		prometheus3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
		text3       = "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	)
	h := New(Options{Gatherer: static(pool())})
	tests := []struct {
		name, accept string
		want         exposition.Format
		contentType  string
	}{
		{"none", "", exposition.Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"curl", "*/*", exposition.Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{
			"prometheus_2", prometheus2,
			exposition.Format{Kind: exposition.OpenMetrics100},
			"application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
		},
		{
			"prometheus_2_native", native2,
			exposition.Format{Kind: exposition.Protobuf},
			"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores",
		},
		{
			"prometheus_3", prometheus3,
			exposition.Format{Kind: exposition.OpenMetrics100, Escaping: exposition.AllowUTF8},
			"application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
		},
		{
			"prometheus_3_text", text3,
			exposition.Format{Kind: exposition.Text100, Escaping: exposition.AllowUTF8},
			"text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
		},
	}
	for _, test := range tests {
		for _, path := range []string{"/metrics", "/"} {
			t.Run(test.name+path, func(t *testing.T) {
				resp := do(h, "GET", path, "Accept", test.accept)
				got := body(t, resp)
				if resp.StatusCode != 200 || got != plain(test.want) {
					t.Errorf("status %d, body:\n%s\nwant:\n%s", resp.StatusCode, got, plain(test.want))
				}
				if ct := resp.Header.Get("Content-Type"); ct != test.contentType {
					t.Errorf("Content-Type %q, want %q", ct, test.contentType)
				}
				if vary := resp.Header.Get("Vary"); vary != "Accept, Accept-Encoding" {
					t.Errorf("Vary %q", vary)
				}
				if n := resp.Header.Get("Content-Length"); n != strconv.Itoa(len(got)) {
					t.Errorf("Content-Length %q, body has %d bytes", n, len(got))
				}
			})
		}
	}
}

func TestNegotiateEncoding(t *testing.T) {
	tests := []struct {
		name   string
		values []string
		want   string // "" if nothing is acceptable
	}{
		{"no_header", nil, identity},
		{"empty", []string{""}, identity},
		{"prometheus", []string{"gzip"}, gzipped},
		{"browser", []string{"gzip, deflate, br, zstd"}, gzipped},
		{"case", []string{"GZip"}, gzipped},
		{"x_gzip", []string{"x-gzip"}, gzipped},
		{"two_lines", []string{"br", "gzip;q=0.5"}, gzipped},
		{"unknown_only", []string{"br"}, identity},
		{"gzip_refused", []string{"gzip;q=0"}, identity},
		{"any", []string{"*"}, gzipped},
		{"any_but_gzip", []string{"gzip;q=0, *"}, identity},
		{"identity_preferred", []string{"gzip;q=0.5, identity;q=0.9"}, identity},
		{"gzip_preferred", []string{"gzip;q=0.9, identity;q=0.5"}, gzipped},
		{"equal", []string{"identity, gzip"}, gzipped},
		{"low_weight", []string{"gzip;q=0.001"}, gzipped},
		{"identity_refused", []string{"gzip, identity;q=0"}, gzipped},
		{"identity_alone_refused", []string{"identity;q=0"}, ""},
		{"all_refused", []string{"*;q=0"}, ""},
		{"all_but_gzip_refused", []string{"gzip;q=0.1, *;q=0"}, gzipped},
		{"all_but_identity_refused", []string{"identity, *;q=0"}, identity},
		{"unreadable_weight", []string{"gzip;q=many"}, identity},
		{"weight_out_of_range", []string{"gzip;q=7"}, identity},
		{"spaces", []string{" gzip ; q = 0.3 , identity ; q=0.2"}, gzipped},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, ok := negotiateEncoding(test.values)
			if got != test.want || ok != (test.want != "") {
				t.Errorf("negotiateEncoding(%q) = %q, %v, want %q", test.values, got, ok, test.want)
			}
		})
	}
}

func TestGzip(t *testing.T) {
	h := New(Options{Gatherer: static(pool())})
	var first string
	for range 3 { // pooled writers must start afresh
		resp := do(h, "GET", "/metrics", "Accept-Encoding", "gzip")
		compressed := body(t, resp)
		if got := gunzip(t, compressed); got != plain(exposition.Format{}) {
			t.Fatalf("body is:\n%s", got)
		}
		if resp.Header.Get("Content-Encoding") != "gzip" || resp.Header.Get("Content-Length") != strconv.Itoa(len(compressed)) {
			t.Errorf("headers %v for %d bytes", resp.Header, len(compressed))
		}
		if first == "" {
			first = compressed
		}
		if compressed != first {
			t.Error("the same scrape gives other bytes")
		}
	}
	if resp := do(h, "GET", "/metrics", "Accept-Encoding", "gzip;q=0"); resp.Header.Get("Content-Encoding") != "" {
		t.Error("compressed although gzip is refused")
	}
	if resp := do(h, "GET", "/metrics", "Accept-Encoding", "identity;q=0"); resp.StatusCode != http.StatusNotAcceptable {
		t.Errorf("status %d, want 406", resp.StatusCode)
	}
}

func TestFilter(t *testing.T) {
	h := New(Options{Gatherer: static(pool())})
	for _, path := range []string{"/metrics", "/"} {
		got := body(t, do(h, "GET", path+"?name[]=my_load&name%5B%5D=nope"))
		if want := plain(exposition.Format{}, "my_load"); got != want || strings.Contains(got, "jobs") {
			t.Errorf("%s: got:\n%s\nwant:\n%s", path, got, want)
		}
	}
}

func TestEndpoints(t *testing.T) {
	var ready atomic.Bool
	ready.Store(true)
	h := New(Options{Gatherer: static(pool()), Ready: ready.Load, TelemetryPath: "/m<x>"})
	tests := []struct {
		name, method, target string
		headers              []string
		unready              bool
		code                 int
		contains             string
		check                map[string]string
	}{
		{"metrics", "GET", "/m<x>", nil, false, 200, "jobs_total", nil},
		{"metrics_elsewhere", "GET", "/metrics", nil, false, 404, "/m<x>", nil},
		{"root_for_curl", "GET", "/", []string{"Accept", "*/*"}, false, 200, "jobs_total", nil},
		{
			"root_for_a_browser", "GET", "/",
			[]string{"Accept", "text/html,application/xhtml+xml,*/*;q=0.8"},
			false, 200,
			`href="./m&lt;x&gt;"`,
			map[string]string{"Content-Type": "text/html; charset=utf-8", "Vary": "Accept, Accept-Encoding"},
		},
		{"root_html_refused", "GET", "/", []string{"Accept", "text/html;q=0,*/*"}, false, 200, "jobs_total", nil},
		{"metrics_for_a_browser", "GET", "/m<x>", []string{"Accept", "text/html"}, false, 200, "jobs_total", nil},
		{
			"browser_posts", "POST", "/",
			[]string{"Accept", "text/html"},
			false, 405, "method not allowed",
			map[string]string{"Allow": "GET, HEAD"},
		},
		{"healthy", "GET", "/-/healthy", nil, false, 200, "healthy", map[string]string{"Content-Type": "text/plain; charset=utf-8"}},
		{"healthy_post", "POST", "/-/healthy", nil, false, 405, "method not allowed", map[string]string{"Allow": "GET, HEAD"}},
		{"ready", "GET", "/-/ready", nil, false, 200, "ready", nil},
		{"ready_post", "DELETE", "/-/ready", nil, false, 405, "method not allowed", nil},
		{"unknown", "GET", "/nope", nil, false, 404, "not found", map[string]string{"X-Content-Type-Options": "nosniff"}},
		{
			"post", "POST", "/m<x>", nil, false, 405, "method not allowed",
			map[string]string{"Allow": "GET, HEAD", "Vary": "Accept, Accept-Encoding"},
		},
		{"put_root", "PUT", "/", nil, false, 405, "method not allowed", nil},
		{"unready", "GET", "/-/ready", nil, true, 503, "not ready: not all sources", nil},
		{"unready_but_healthy", "GET", "/-/healthy", nil, true, 200, "healthy", nil},
		{
			"unready_metrics", "GET", "/m<x>", nil, true, 503, "not ready",
			map[string]string{"Retry-After": "1", "Vary": "Accept, Accept-Encoding"},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			ready.Store(!test.unready)
			resp := do(h, test.method, strings.NewReplacer("<", "%3C", ">", "%3E").Replace(test.target), test.headers...)
			got := body(t, resp)
			if resp.StatusCode != test.code || !strings.Contains(got, test.contains) {
				t.Errorf("status %d, body %q, want %d with %q", resp.StatusCode, got, test.code, test.contains)
			}
			for name, want := range test.check {
				if resp.Header.Get(name) != want {
					t.Errorf("%s: %q, want %q", name, resp.Header.Get(name), want)
				}
			}
			if test.code >= 400 && strings.Count(got, "\n") != 1 {
				t.Errorf("an error is one line, this is %q", got)
			}
			if resp.Header.Get("Content-Length") != strconv.Itoa(len(got)) {
				t.Errorf("Content-Length %q for %d bytes", resp.Header.Get("Content-Length"), len(got))
			}
		})
	}
}

func TestTelemetryPath(t *testing.T) {
	for path, at := range map[string]string{"": "/metrics", "stats": "/stats", "/": "/"} {
		h := New(Options{Gatherer: static(pool()), TelemetryPath: path})
		if got := body(t, do(h, "GET", at, "Accept", "text/html")); !strings.Contains(got, "jobs_total") {
			t.Errorf("TelemetryPath %q: %s serves %q", path, at, got)
		}
	}
}

func TestScrapeTimeout(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"10": 9500 * time.Millisecond, "1": 900 * time.Millisecond, "0.5": 450 * time.Millisecond, "15.5": 15 * time.Second,
		"": 0, "0": 0, "-1": 0, "NaN": 0, "+Inf": 0, "1e300": 0, "soon": 0, "1e-12": 1,
	} {
		if got := scrapeTimeout(value); got != want {
			t.Errorf("scrapeTimeout(%q) = %v, want %v", value, got, want)
		}
	}
}

// A scrape whose time is over is told so.
func TestTimeout(t *testing.T) {
	var infos []ScrapeInfo
	var slow atomic.Bool
	slow.Store(true)
	h := New(Options{
		Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
			if slow.Load() {
				<-ctx.Done()
				return nil, fmt.Errorf("wait for the merge: %w", ctx.Err())
			}
			return []*view.Snapshot{pool()}, nil
		}),
		Observe: func(i ScrapeInfo) { infos = append(infos, i) },
	})
	resp := do(h, "GET", "/metrics", timeoutHeader, "0.02")
	got := body(t, resp)
	if resp.StatusCode != 503 || got != "scrape took longer than the 18ms it had\n" || resp.Header.Get("Retry-After") != "1" {
		t.Errorf("status %d, %v, %q", resp.StatusCode, resp.Header, got)
	}
	slow.Store(false)
	if resp := do(h, "GET", "/metrics"); resp.StatusCode != 200 {
		t.Errorf("without the header: status %d", resp.StatusCode)
	}
	if len(infos) != 2 || infos[0].Outcome != TimedOut || infos[0].Code != 503 || infos[0].Duration < 18*time.Millisecond ||
		infos[1].Outcome != OK {
		t.Errorf("observed %+v", infos)
	}
}

// A Gatherer that pays no heed to its context, and is too late, changes nothing.
func TestTimeoutThatTheGathererOverlooks(t *testing.T) {
	h := New(Options{Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
		<-ctx.Done()
		return []*view.Snapshot{pool()}, nil
	})})
	if resp := do(h, "GET", "/metrics", timeoutHeader, "0.01"); resp.StatusCode != 503 {
		t.Errorf("status %d, want 503", resp.StatusCode)
	}
}

func TestObserve(t *testing.T) {
	var infos []ScrapeInfo
	gatherErr := error(nil)
	h := New(Options{
		Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) { return []*view.Snapshot{pool()}, gatherErr }),
		Observe:  func(i ScrapeInfo) { i.Duration = 0; infos = append(infos, i) },
	})
	size := len(plain(exposition.Format{}))
	om := exposition.Format{Kind: exposition.OpenMetrics100}
	compressed := len(body(t, do(h, "GET", "/metrics", "Accept-Encoding", "gzip", "Accept", "application/openmetrics-text;version=1.0.0")))
	do(h, "GET", "/")
	do(h, "HEAD", "/metrics")
	do(h, "GET", "/metrics?name[]=jobs")
	do(h, "POST", "/metrics")
	gatherErr = errors.Join(errors.New("no directory"), errors.New("no hope"))
	resp := do(h, "GET", "/metrics")
	if got := body(t, resp); resp.StatusCode != 500 || got != "gathering failed: no directory; no hope\n" {
		t.Errorf("status %d, %q", resp.StatusCode, got)
	}
	do(h, "GET", "/-/healthy") // is no scrape
	filtered := len(plain(exposition.Format{}, "jobs"))
	want := []ScrapeInfo{
		{Outcome: OK, Code: 200, Format: om, Encoding: gzipped, PlainBytes: len(plain(om)), WireBytes: compressed},
		{Outcome: OK, Code: 200, Encoding: identity, PlainBytes: size, WireBytes: size},
		{Outcome: OK, Code: 200, Encoding: identity, PlainBytes: size},
		{Outcome: OK, Code: 200, Encoding: identity, PlainBytes: filtered, WireBytes: filtered, Filtered: true},
		{Outcome: Refused, Code: 405},
		{Outcome: Failed, Code: 500},
	}
	if !slices.Equal(infos, want) {
		t.Errorf("observed\n%+v\nwant\n%+v", infos, want)
	}
	for _, i := range infos {
		if !slices.Contains(Outcomes(), i.Outcome) {
			t.Errorf("Outcomes() lacks %q", i.Outcome)
		}
	}
}

// Snapshots go back to where they came from, also when the scrape fails.
func TestSnapshotsAreReleased(t *testing.T) {
	var taken []*view.Snapshot
	index := merge.NewIndex(merge.Options{})
	fail := false
	h := New(Options{Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) {
		taken = []*view.Snapshot{index.Snapshot()}
		if fail {
			return taken, errors.New("too late")
		}
		return taken, nil
	})})
	for _, fail = range []bool{false, true} {
		do(h, "GET", "/metrics")
		// An index takes the layout out of a snapshot that comes back to it.
		if len(taken) != 1 || taken[0].Layout != nil {
			t.Errorf("fail=%v: the snapshot was not released", fail)
		}
	}
}

// panicWriter takes the header and panics at the body.
type panicWriter struct{ *httptest.ResponseRecorder }

func (panicWriter) Write([]byte) (int, error) { panic("oops") }

func TestPanics(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	var infos []ScrapeInfo
	h := New(Options{
		Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) { panic("oops") }),
		Ready:    func() bool { return true },
		Logger:   zap.New(core),
		Observe:  func(i ScrapeInfo) { infos = append(infos, i) },
	})
	for range 50 { // more than the cap: the place of a scrape that panicked is free again
		resp := do(h, "GET", "/metrics", "Accept-Encoding", "gzip")
		if got := body(t, resp); resp.StatusCode != 500 || got != "internal error\n" || resp.Header.Get("Content-Encoding") != "" {
			t.Fatalf("status %d, %v, %q", resp.StatusCode, resp.Header, got)
		}
	}
	if len(infos) != 50 || infos[0].Outcome != Panicked || infos[0].Code != 500 {
		t.Errorf("observed %d, the first %+v", len(infos), infos[0])
	}
	if e := logs.FilterMessage("panic while serving").All(); len(e) != maxChanges || e[0].ContextMap()["panic"] != "oops" ||
		!strings.Contains(e[0].ContextMap()["stack"].(string), "TestPanics") {
		t.Errorf("logged %v", logs.All())
	}
	// Once part of a response is sent, the connection must be cut.
	func() {
		defer func() {
			if v := recover(); v != http.ErrAbortHandler { //nolint:errorlint // the very value is what net/http looks for
				t.Errorf("panic %v, want ErrAbortHandler", v)
			}
		}()
		h.ServeHTTP(panicWriter{httptest.NewRecorder()}, httptest.NewRequest("GET", "/-/healthy", nil))
	}()
	// What makes a response ends a moment after it is there.
	for deadline := time.Now().Add(10 * time.Second); h.handlers.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d requests are still counted", h.handlers.Load())
		}
	}
}

func TestFailuresAreLoggedOnceForEachChange(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	var err error
	h := New(Options{
		Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) { return nil, err }),
		Logger:   zap.New(core),
	})
	for _, err = range []error{nil, nil, errors.New("a"), errors.New("b"), nil, nil, errors.New("c")} {
		do(h, "GET", "/metrics")
		do(h, "POST", "/metrics")
	}
	var got []string
	for _, e := range logs.All() {
		got = append(got, fmt.Sprint(e.Message, " ", e.ContextMap()["error"]))
	}
	if want := []string{"scrapes fail a", "scrapes succeed again <nil>", "scrapes fail c"}; !slices.Equal(got, want) {
		t.Errorf("logged %q, want %q", got, want)
	}
}

// A site is a running server on a loopback port.
type site struct {
	*Server
	url    string
	client *http.Client
	stop   func() error // waits for the end of Run
}

func start(t *testing.T, opts Options) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &site{Server: New(opts), url: "http://" + l.Addr().String()}
	transport := &http.Transport{DisableCompression: true}
	s.client = &http.Client{Transport: transport}
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		transport.CloseIdleConnections()
		return err
	})
	t.Cleanup(func() { s.stop() }) //nolint:errcheck // tests that care call it themselves
	return s
}

func (s *site) get(t *testing.T, path string) (*http.Response, string) {
	t.Helper()
	resp, err := s.client.Get(s.url + path)
	if err != nil {
		t.Error(err)
		return new(http.Response), ""
	}
	defer resp.Body.Close()
	return resp, body(t, resp)
}

func TestHeadHasTheHeadersOfGet(t *testing.T) {
	s := start(t, Options{Gatherer: static(pool())})
	for _, path := range []string{"/metrics", "/", "/-/healthy", "/-/ready", "/nope", "/metrics?name[]=jobs"} {
		for _, encoding := range []string{"identity", "gzip"} {
			var headers [2]http.Header
			var status [2]int
			for i, method := range []string{"GET", "HEAD"} {
				r, err := http.NewRequest(method, s.url+path, nil)
				if err != nil {
					t.Fatal(err)
				}
				r.Header.Set("Accept-Encoding", encoding)
				resp, err := s.client.Do(r)
				if err != nil {
					t.Fatal(err)
				}
				got := body(t, resp)
				resp.Body.Close()
				if method == "HEAD" && got != "" {
					t.Errorf("HEAD %s has a body", path)
				}
				resp.Header.Del("Date")
				headers[i], status[i] = resp.Header, resp.StatusCode
			}
			if fmt.Sprint(headers[0]) != fmt.Sprint(headers[1]) || status[0] != status[1] {
				t.Errorf("%s: GET gives %d %v, HEAD gives %d %v", path, status[0], headers[0], status[1], headers[1])
			}
			if headers[0].Get("Content-Length") == "" {
				t.Errorf("%s: no Content-Length", path)
			}
		}
	}
	if err := s.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestScrapesInFlight(t *testing.T) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex
	outcomes := map[Outcome]int{}
	s := start(t, Options{
		MaxScrapesInFlight: 2,
		Gatherer: gatherFunc(func(context.Context) ([]*view.Snapshot, error) {
			arrived <- struct{}{}
			<-leave
			return []*view.Snapshot{pool()}, nil
		}),
		Observe: func(i ScrapeInfo) {
			mu.Lock()
			defer mu.Unlock()
			outcomes[i.Outcome]++
		},
	})
	var slow sync.WaitGroup
	for _, path := range []string{"/metrics?name[]=my.load", "/metrics?name[]=jobs"} { // which share nothing
		slow.Go(func() {
			if resp, _ := s.get(t, path); resp.StatusCode != 200 {
				t.Errorf("a scrape within the bound gets status %d", resp.StatusCode)
			}
		})
		<-arrived
	}
	for _, path := range []string{"/metrics?name[]=x", "/?pool=x"} {
		resp, got := s.get(t, path)
		if resp.StatusCode != 503 || resp.Header.Get("Retry-After") != "1" ||
			got != "too many scrapes: 2 that select a part are in the making already\n" {
			t.Errorf("%s: status %d, %v, %q", path, resp.StatusCode, resp.Header, got)
		}
	}
	if resp, _ := s.get(t, "/-/healthy"); resp.StatusCode != 200 {
		t.Errorf("health check while busy: status %d", resp.StatusCode)
	}
	// To join one costs nothing, and what everybody asks for is never refused.
	slow.Go(func() {
		if resp, _ := s.get(t, "/metrics"); resp.StatusCode != 200 {
			t.Errorf("a scrape of everything while busy: status %d", resp.StatusCode)
		}
	})
	<-arrived
	close(leave)
	slow.Wait()
	go func() { <-arrived }()
	if resp, _ := s.get(t, "/metrics?name[]=x"); resp.StatusCode != 200 {
		t.Errorf("afterwards: status %d", resp.StatusCode)
	}
	s.stop() //nolint:errcheck // waits for the observations
	if outcomes[TooMany] != 2 || outcomes[OK] != 4 {
		t.Errorf("observed %v", outcomes)
	}
}

// Stopping waits for a scrape in flight, is not ready meanwhile, and accepts nobody new.
func TestStopFinishesScrapes(t *testing.T) {
	arrived, leave := make(chan struct{}), make(chan struct{})
	s := start(t, Options{Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
		close(arrived)
		<-leave
		return []*view.Snapshot{pool()}, ctx.Err()
	})})
	unused, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer unused.Close()
	var scrape sync.WaitGroup
	scrape.Go(func() {
		if resp, got := s.get(t, "/metrics"); resp.StatusCode != 200 || got != plain(exposition.Format{}) {
			t.Errorf("the scrape in flight got status %d, %q", resp.StatusCode, got)
		}
	})
	<-arrived
	stopped := make(chan error, 1)
	began := time.Now()
	go func() { stopped <- s.stop() }()
	for s.notReady() == "" {
		time.Sleep(time.Millisecond)
	}
	if got := body(t, do(s.Server, "GET", "/-/ready")); got != "not ready: stopping\n" {
		t.Errorf("/-/ready says %q", got)
	}
	for { // the listener closes a moment later
		c, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
		if err != nil {
			break
		}
		c.Close()
		time.Sleep(time.Millisecond)
	}
	select {
	case err := <-stopped:
		t.Errorf("stopped with a scrape in flight: %v", err)
	default:
	}
	close(leave)
	scrape.Wait()
	if err := <-stopped; err != nil {
		t.Errorf("Run: %v", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("stopping took %v: it waited for a connection that nobody used", took)
	}
}

// A scrape that takes longer than the server may is cut off, and told so by its context.
func TestStopCutsOffWhatTakesTooLong(t *testing.T) {
	arrived := make(chan struct{})
	left := false
	s := start(t, Options{
		ShutdownTimeout: 20 * time.Millisecond,
		Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
			close(arrived)
			<-ctx.Done()
			left = true
			return nil, ctx.Err()
		}),
	})
	failed := make(chan error, 1)
	go func() {
		resp, err := s.client.Get(s.url + "/metrics")
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	<-arrived
	err := s.stop()
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "cut off after 20ms") {
		t.Errorf("Run: %v", err)
	}
	if !left {
		t.Error("Run returned before the scrape had ended")
	}
	if err := <-failed; err == nil {
		t.Error("the client got a response")
	}
}

func TestClientThatGoesAway(t *testing.T) {
	arrived := make(chan struct{})
	observed := make(chan ScrapeInfo, 1)
	s := start(t, Options{
		Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
			close(arrived)
			<-ctx.Done()
			return nil, ctx.Err()
		}),
		Observe: func(i ScrapeInfo) { observed <- i },
	})
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-arrived
		cancel()
	}()
	r, err := http.NewRequestWithContext(ctx, "GET", s.url+"/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := s.client.Do(r); err == nil {
		resp.Body.Close()
		t.Error("a response after all")
	}
	if i := <-observed; i.Outcome != Gone || i.Code != 0 {
		t.Errorf("observed %+v", i)
	}
}

func TestSeveralListeners(t *testing.T) {
	var urls []string
	var listeners []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, urls = append(listeners, l), append(urls, "http://"+l.Addr().String()+"/metrics")
	}
	s := New(Options{Gatherer: static(pool())})
	done := make(chan error, 1)
	go func() { done <- s.Run(context.Background(), listeners...) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for _, url := range urls {
		resp, err := client.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		if got := body(t, resp); got != plain(exposition.Format{}) {
			t.Errorf("%s: %q", url, got)
		}
		resp.Body.Close()
	}
	// One that fails ends them all, with its error.
	listeners[0].Close()
	err := <-done
	if !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v, want the listener's error", err)
	}
	if _, err := client.Get(urls[1]); err == nil {
		t.Error("the other listener still accepts")
	}
	if err := s.Run(context.Background()); err == nil {
		t.Error("Run without listeners succeeds")
	}
}

func TestHeaderTooLarge(t *testing.T) {
	s := start(t, Options{Gatherer: static(pool()), MaxHeaderBytes: 1024})
	resp, _ := s.get(t, "/metrics?name[]="+strings.Repeat("x", 64<<10))
	if resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("status %d, want 431", resp.StatusCode)
	}
}

// Responses come from pooled memory; scrapes at the same time must not share it.
func TestConcurrentScrapes(t *testing.T) {
	s := start(t, Options{Gatherer: static(pool())})
	formats := []string{"", "application/openmetrics-text;version=1.0.0", "text/plain;version=1.0.0;escaping=allow-utf-8"}
	var wg sync.WaitGroup
	for g := range 6 {
		wg.Go(func() {
			for i := range 20 {
				accept := formats[(g+i)%len(formats)]
				r, err := http.NewRequest("GET", s.url+"/metrics", nil)
				if err != nil {
					t.Error(err)
					return
				}
				r.Header.Set("Accept", accept)
				r.Header.Set("Accept-Encoding", []string{"gzip", "identity"}[i%2])
				resp, err := s.client.Do(r)
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil {
					t.Error(err)
					return
				}
				text := string(got)
				if resp.Header.Get("Content-Encoding") == gzipped {
					text = gunzip(t, text)
				}
				if text != plain(exposition.Negotiate(accept)) {
					t.Errorf("wrong body for %q", accept)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkScrape(b *testing.B) {
	for _, encoding := range []string{identity, gzipped} {
		b.Run("encoding="+encoding, func(b *testing.B) {
			h := New(Options{Gatherer: static(pool())})
			b.ReportAllocs()
			for b.Loop() {
				do(h, "GET", "/metrics", "Accept-Encoding", encoding)
			}
		})
	}
}
