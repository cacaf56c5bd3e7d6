package serve

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/exposition"
	"aggregatord/internal/view"
)

// TestNobodyIsTakenAlong: a response that all who waited for it have left is not joined by
// who comes then.
func TestNobodyIsTakenAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leave := make(chan struct{})
		s := New(Options{Gatherer: gatherFunc(func(ctx context.Context) ([]*view.Snapshot, error) {
			select {
			case <-leave:
				return []*view.Snapshot{pool()}, ctx.Err()
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})})
		codes := make(chan int, 2)
		ask := func(ctx context.Context) {
			go func() {
				w := httptest.NewRecorder()
				s.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil).WithContext(ctx))
				codes <- w.Code
			}()
			synctest.Wait()
		}
		ask(t.Context()) // is made, and takes its time
		gone, cancel := context.WithCancel(t.Context())
		ask(gone) // is next
		cancel()
		synctest.Wait()
		<-codes
		ask(t.Context())
		close(leave)
		if a, b := <-codes, <-codes; a != 200 || b != 200 {
			t.Errorf("status %d and %d", a, b)
		}
		if s.selections != 0 {
			t.Errorf("%d selections", s.selections)
		}
	})
}

// selecting is a Gatherer that keeps what it was asked.
type selecting struct {
	mu  sync.Mutex
	got []Request
}

func (g *selecting) Gather(_ context.Context, r Request) ([]*view.Snapshot, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.got = append(g.got, r)
	for _, name := range r.Pools {
		if name != "web" && name != "jobs" {
			return nil, fmt.Errorf("%w: %q", ErrNoPool, name)
		}
	}
	return []*view.Snapshot{pool()}, nil
}

// TestPaths: which metrics are where.
func TestPaths(t *testing.T) {
	for _, tc := range []struct {
		name, target string
		opts         Options
		code         int
		want         string // the Request
		words        string
	}{
		{"all", "/metrics", Options{}, 200, "{[] false false}", ""},
		{"slash", "/metrics/", Options{}, 200, "{[] false false}", ""},
		{"pools", "/metrics?pool=web&pool=jobs&pool=web", Options{}, 200, "{[jobs web] false false}", ""},
		{"root", "/?pool=web", Options{}, 200, "{[web] false false}", ""},
		{"one_pool", "/pools/web/metrics", Options{}, 200, "{[web] true false}", ""},
		{"one_pool_slash", "/pools/web/metrics/", Options{}, 200, "{[web] true false}", ""},
		{"no_pool", "/pools/nope/metrics", Options{}, 404, "", `no such pool: "nope"`},
		{"no_pool_by_parameter", "/metrics?pool=nope", Options{}, 404, "", `no such pool: "nope"`},
		{"self", "/-/metrics", Options{}, 200, "{[] false true}", ""},
		{"self_off", "/-/metrics", Options{NoSelfMetrics: true}, 404, "", "not found"},
		{"other", "/probe", Options{}, 404, "", "not found"},
		{"any_path", "/probe/x", Options{AnyPath: true}, 200, "{[] false false}", ""},
		{"any_path_but_ours", "/-/nope", Options{AnyPath: true}, 404, "", "not found"},
		{"any_path_but_assets", "/assets/nope", Options{AnyPath: true}, 404, "", "not found"},
		{"any_path_but_api", "/api/nope", Options{AnyPath: true}, 404, "", "API"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := &selecting{}
			tc.opts.Gatherer = g
			resp := do(New(tc.opts), "GET", tc.target)
			text := body(t, resp)
			if resp.StatusCode != tc.code || !strings.Contains(text, tc.words) {
				t.Errorf("status %d, %q", resp.StatusCode, text)
			}
			if tc.want != "" && (len(g.got) != 1 ||
				fmt.Sprintf("{%v %v %v}", g.got[0].Pools, g.got[0].BarePools, g.got[0].SelfOnly) != tc.want) {
				t.Errorf("gathered %v, want %s", g.got, tc.want)
			}
		})
	}
}

// TestAccept: all lines of Accept are read, and / gives HTML only to who wants it more.
func TestAccept(t *testing.T) {
	h := New(Options{Gatherer: static(pool())})
	for _, tc := range []struct {
		name   string
		accept []string
		want   string
	}{
		{"two_lines", []string{"text/plain;q=0.1", "application/openmetrics-text;version=1.0.0"}, "application/openmetrics-text"},
		{"browser", []string{"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}, "text/html"},
		{"metrics_rather", []string{"text/plain, text/html;q=0.1"}, "text/plain"},
		{"html_rather", []string{"text/plain;q=0.5, text/html"}, "text/html"},
		{"equal_html_first", []string{"text/html, text/plain"}, "text/html"},
		{"equal_metrics_first", []string{"text/plain, text/html"}, "text/plain"},
		{"metrics_rather_on_another_line", []string{"text/html;q=0.5", "text/plain"}, "text/plain"},
		{"refused", []string{"text/html;q=0, */*"}, "text/plain"},
		{"openmetrics_rather", []string{"text/html;q=0.9,application/openmetrics-text;version=1.0.0"}, "application/openmetrics-text"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var headers []string
			for _, line := range tc.accept {
				headers = append(headers, "Accept", line)
			}
			if got := do(h, "GET", "/", headers...).Header.Get("Content-Type"); !strings.HasPrefix(got, tc.want) {
				t.Errorf("it is %q", got)
			}
		})
	}
}

// TestNotPrometheus: who takes us for a Prometheus server is told in its own form.
func TestNotPrometheus(t *testing.T) {
	s := New(Options{API: apiFunc(echo)})
	for _, request := range []string{
		"POST /api/v1/query", "GET /api/v1/query?query=up", "POST /api/v1/query_range", "GET /api/v1/labels",
		"GET /api/v1/label/job/values",
		"GET /api/v1/status/buildinfo", "POST /api/v1/write", "POST /api/v1/otlp/v1/metrics", "POST /api/v1/series",
		"GET /api/v1/series?match[]=up",
	} {
		method, target, _ := strings.Cut(request, " ")
		resp := do(s, method, target)
		if text := body(t, resp); resp.StatusCode != 404 || resp.Header.Get("Content-Type") != "application/json; charset=utf-8" ||
			text != `{"status":"error","errorType":"not_found","error":"this is not a Prometheus server; point a Prometheus at /metrics"}`+
				"\n" {
			t.Errorf("%s: %d %s", request, resp.StatusCode, text)
		}
	}
	for _, target := range []string{"/api/v1/status", "/api/v1/series?match=up"} {
		if resp := do(s, "GET", target); resp.StatusCode != 200 {
			t.Errorf("%s: %d", target, resp.StatusCode)
		}
	}
}

// TestAllowedHosts: a browser that was led here by somebody else's name gets nothing.
func TestAllowedHosts(t *testing.T) {
	s := New(Options{API: apiFunc(echo), AllowedHosts: []string{"Shop.example", "web1:9500"}, Reload: func() error { return nil }})
	anyHost := New(Options{API: apiFunc(echo), AllowedHosts: []string{"*"}})
	for host, code := range map[string]int{
		"localhost": 200, "localhost:9500": 200, "LOCALHOST.": 200, "a.localhost": 200, "127.0.0.1:9500": 200, "[::1]:9500": 200,
		"[fe80::1]": 200, "10.0.0.1": 200,
		"shop.example": 200, "shop.example:80": 200, "web1": 200, "": 200,
		"evil.example": 403, "evil.example:9500": 403, "shop.example.evil": 403, "127.0.0.1.evil.example": 403, "notlocalhost": 403,
	} {
		for path, method := range map[string]string{"/api/v1/things": "GET", "/-/reload": "POST"} {
			r := httptest.NewRequest(method, path, nil)
			r.Host = host
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			if w.Code != code || code == 403 && !strings.Contains(w.Body.String(), "--web.allowed-hosts") {
				t.Errorf("%s%s: %d %s", host, path, w.Code, w.Body)
			}
		}
		r := httptest.NewRequest("GET", "/api/v1/things", nil)
		r.Host = host
		w := httptest.NewRecorder()
		anyHost.ServeHTTP(w, r)
		if w.Code != 200 {
			t.Errorf("anyHost host, %s: %d", host, w.Code)
		}
	}
	unix := httptest.NewRequest("GET", "/api/v1/things", nil)
	unix.Host = "evil.example"
	w := httptest.NewRecorder()
	s.ServeHTTP(w, unix.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, &net.UnixAddr{Net: "unix"})))
	if w.Code != 200 {
		t.Errorf("over a unix socket: %d", w.Code)
	}
}

// TestBuffersAreGivenBack: those beyond twice the need are, after two minutes at most.
func TestBuffersAreGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l buffers
		use := func(n int) {
			b := l.get()
			b.b = append(b.b, bytes.Repeat([]byte{1}, n)...)
			l.put(b)
		}
		kept := func() (n int) {
			for _, b := range l.free {
				n += cap(b.b)
			}
			return n
		}
		use(64 << 20)
		if kept() < 64<<20 {
			t.Fatal("it is not kept for the next response")
		}
		// Its pages are, for one second.
		if l.trim(); !l.large() || !slices.Contains(l.free[0].b, 1) {
			t.Fatal("its pages were given back at once")
		}
		time.Sleep(largeFor)
		if dropped, more := l.trim(); dropped > 0 || !more || l.large() {
			t.Errorf("%d bytes were given back, and not pages alone", dropped)
		}
		if left := bytes.Count(l.free[0].b, []byte{1}); runtime.GOOS == "linux" && left >= 2*os.Getpagesize() {
			t.Errorf("%d bytes are left of what was in its pages", left)
		}
		for range 9 {
			time.Sleep(15 * time.Second)
			use(3 << 20)
		}
		if n := kept(); n > 6<<20+needSlack || n < 3<<20 {
			t.Errorf("%d bytes are kept for responses of 3 MiB", n)
		}
		if dropped, _ := l.trim(); dropped < 64<<20 {
			t.Errorf("%d bytes were given back", dropped)
		}
		time.Sleep(2 * needFor)
		if _, more := l.trim(); kept() > 0 || more {
			t.Errorf("%d bytes are kept for nobody", kept())
		}
	})
}

// TestOutgoing: when too much is on its way, those who receive the oldest lose the connection.
func TestOutgoing(t *testing.T) {
	o := outgoing{most: 100}
	rc := func() *sender { return &sender{rc: http.NewResponseController(httptest.NewRecorder())} }
	a, b, c := rc(), rc(), rc()
	if n := o.begin("one", 300, a) + o.begin("one", 300, b); n != 0 || o.bytes != 300 {
		t.Errorf("%d cut, %d bytes", n, o.bytes)
	}
	if n := o.begin("two", 50, c); n != 2 || !a.over || !b.over || c.over || o.bytes != 50 {
		t.Errorf("%d cut, %d bytes", n, o.bytes)
	}
	o.end("one", a)
	o.end("one", b)
	o.end("two", c)
	if o.bytes != 0 || len(o.byKey) != 0 || o.parcels.Len() != 0 {
		t.Errorf("%d bytes are left", o.bytes)
	}
	if n := o.begin("huge", 1000, a); n != 0 {
		t.Errorf("a response that is larger than the bound cuts %d", n)
	}
}

type fakeConn struct {
	net.Conn
	address string
	closed  atomic.Bool
}

func (c *fakeConn) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", c.address)
	if err != nil {
		panic(err)
	}
	return a
}

func (c *fakeConn) Close() error { c.closed.Store(true); return nil }

// TestConnections: one more than may be connected takes the place of one of the address that
// has most: of an idle one first.
func TestConnections(t *testing.T) {
	closed := map[Closed]int{}
	s := New(Options{MaxConnections: 4, OnConnectionClosed: func(why Closed) { closed[why]++ }})
	connect := func(address string, state http.ConnState) *fakeConn {
		c := &fakeConn{address: address}
		s.connState(c, http.StateNew)
		if state != http.StateNew {
			s.connState(c, state)
		}
		return c
	}
	good := connect("10.0.0.1:1", http.StateIdle)
	busy1 := connect("10.0.0.2:1", http.StateActive)
	idle := connect("10.0.0.2:2", http.StateIdle)
	busy2 := connect("10.0.0.2:3", http.StateActive)
	connect("10.0.0.2:4", http.StateActive)
	if !idle.closed.Load() || good.closed.Load() || busy1.closed.Load() {
		t.Error("the idle connection of the many goes first")
	}
	other := connect("10.0.0.3:1", http.StateActive)
	if !busy1.closed.Load() || busy2.closed.Load() || good.closed.Load() || other.closed.Load() {
		t.Error("then the oldest of the many")
	}
	s.connState(busy1, http.StateClosed)
	if closed[ClosedIdle] != 1 || closed[ClosedBusy] != 1 || s.Connections() != 4 {
		t.Errorf("%v, %d connections", closed, s.Connections())
	}
	s.closeIdle(10)
	if !good.closed.Load() || s.Connections() != 3 {
		t.Error("without descriptors idle connections go")
	}
}

// TestHTTPErrorsAreSampled: one line for each kind and client a minute, and none for a client
// that only asks whether the port is open.
func TestHTTPErrorsAreSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, logs := observer.New(zap.InfoLevel)
		s := New(Options{Logger: zap.New(core)})
		say := func(text string) { errorLog{s}.Write([]byte(text + "\n")) } //nolint:errcheck // it has none
		for i := range 1000 {
			say(fmt.Sprintf("http: TLS handshake error from 10.0.0.1:%d: EOF", i+1))
			say(fmt.Sprintf("http: TLS handshake error from 10.0.0.1:%d: read tcp 10.0.0.9:9500->10.0.0.1:%d: read: connection reset by peer", i+1, i+1))
			say(fmt.Sprintf("http: TLS handshake error from 10.0.0.1:%d: tls: first record does not look like a TLS handshake", i+1))
		}
		say("http: TLS handshake error from 10.0.0.2:7: remote error: tls: bad certificate")
		say("http: Accept error: accept tcp [::]:9500: accept4: too many open files; retrying in 5ms")
		if n := logs.Len(); n != 3 {
			t.Errorf("%d lines: %v", n, logs.All())
		}
		time.Sleep(time.Minute)
		say("http: TLS handshake error from 10.0.0.1:7: tls: first record does not look like a TLS handshake")
		if last := logs.All()[logs.Len()-1].ContextMap(); last["left_out"] != int64(999) || last["client"] != "10.0.0.1" {
			t.Errorf("%v", last)
		}
		for i := range 10_000 {
			say(fmt.Sprintf("http: TLS handshake error from 10.%d.%d.1:7: tls: no", i/250, i%250))
		}
		if n := logs.Len(); n > 2*maxSampled || len(s.samples.seen) > 2*maxSampled {
			t.Errorf("%d lines, %d kinds for many addresses", n, len(s.samples.seen))
		}
	})
}

// TestPasswords: a good password costs nothing once it is known, however many guess.
func TestPasswords(t *testing.T) {
	v := newVerifier()
	sesame := hash(t, "sesame")
	if v.check(t.Context(), "10.0.0.1", "prometheus", sesame, "sesame") != right {
		t.Fatal("the right password is wrong")
	}
	// Both lines are taken from now on, so whatever is looked up there waits for ever.
	v.calm <- struct{}{}
	v.suspect <- struct{}{}
	short, cancel := context.WithCancel(t.Context())
	cancel()
	if got := v.check(short, "10.0.0.1", "prometheus", sesame, "sesame"); got != right {
		t.Errorf("a known password is checked again: %v", got)
	}
	if got := v.check(short, "10.0.0.1", "prometheus", hash(t, "other"), "sesame"); got != busy {
		t.Errorf("the password has changed: %v", got)
	}
	ctx, stop := context.WithCancel(t.Context())
	var guessing sync.WaitGroup
	var refused atomic.Int64
	for i := range 200 {
		guessing.Go(func() {
			if v.check(ctx, "10.0.0.2", "prometheus", sesame, fmt.Sprint("guess", i)) == busy && ctx.Err() == nil {
				refused.Add(1)
			}
		})
	}
	for refused.Load() < 200-maxWaitingEach {
		time.Sleep(time.Millisecond)
	}
	stop()
	guessing.Wait()
	<-v.calm
	<-v.suspect
	// Who was wrong waits in the other line, and is not checked twice for the same.
	if v.check(t.Context(), "10.0.0.2", "prometheus", sesame, "guess") != wrong || v.clients["10.0.0.2"].failed.IsZero() {
		t.Error("a guess is not noted")
	}
	if got := v.check(short, "10.0.0.2", "prometheus", sesame, "guess"); got != wrong {
		t.Errorf("the same guess again: %v", got)
	}
	for i := range 3 * maxGuessers {
		v.check(short, fmt.Sprint("client", i), "prometheus", sesame, "x")
	}
	if len(v.clients) > maxGuessers+1 {
		t.Errorf("%d clients are remembered", len(v.clients))
	}
}

// TestWebConfigIsLoggedOnce: one line a change, however many requests there are.
func TestWebConfigIsLoggedOnce(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	path := writeFile(t, filepath.Join(t.TempDir(), "web.yml"), "basic_auth_users: {a: "+hash(t, "b")+"}\n")
	f := &webFile{path: path, explain: func(_ string, cause error) error { return cause }, log: zap.New(core)}
	ask := func(good bool) {
		t.Helper()
		for range 100 {
			if (f.current() != nil) != good {
				t.Errorf("it is usable: %v", !good)
			}
		}
	}
	ask(true)
	writeFile(t, path, "basic_auth_users: [\n")
	ask(false)
	f.path += ".gone"
	ask(false)
	f.path = path
	writeFile(t, path, "{}\n")
	ask(true)
	if n := logs.Len(); n != 3 {
		t.Errorf("%d lines: %v", n, logs.All())
	}
}

// FuzzNegotiation: whatever a client sends as Accept and Accept-Encoding, it gets a response
// that is whole, in a coding that it takes.
func FuzzNegotiation(f *testing.F) {
	f.Add("", "")
	f.Add("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1", "gzip;q=0.5, identity;q=0")
	f.Add("text/html;q=0.9,*/*;q=0.8", "*;q=0")
	f.Add("application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=values", "br, gzip;q=1.0")
	f.Add(";;q==,,\x00", "\xff;q=nan, *;q=1e-9")
	h := New(Options{Gatherer: static(pool())})
	standard, want := (exposition.Format{}).ContentType(), plain(exposition.Format{})
	f.Fuzz(func(t *testing.T, accept, encoding string) {
		for _, path := range []string{"/metrics", "/"} {
			r := httptest.NewRequest("GET", path, nil)
			r.Header["Accept"], r.Header["Accept-Encoding"] = []string{accept}, []string{encoding}
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code == 406 {
				if e, ok := negotiateEncoding([]string{encoding}); ok {
					t.Fatalf("%q is refused although %s is taken", encoding, e)
				}
				continue
			}
			text := w.Body.String()
			if w.Header().Get("Content-Encoding") == gzipped {
				text = gunzip(t, text)
			}
			if w.Code != 200 || text == "" {
				t.Fatalf("status %d, %d bytes", w.Code, len(text))
			}
			if w.Header().Get("Content-Type") == standard && text != want {
				t.Fatalf("another exposition: %q", text)
			}
		}
	})
}

// TestHalfAResponse: a client that is cut off does not take part of a response for all of it.
func TestHalfAResponse(t *testing.T) {
	s := New(Options{Gatherer: static(pool())})
	w := failingWriter{httptest.NewRecorder()}
	s.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if s.outgoing.bytes != 0 {
		t.Errorf("%d bytes are on their way", s.outgoing.bytes)
	}
}

type failingWriter struct{ *httptest.ResponseRecorder }

func (failingWriter) Write([]byte) (int, error) { return 0, errors.Join(io.ErrClosedPipe) }
