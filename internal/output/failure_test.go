package output

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	httpconfig "github.com/prometheus/common/config"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
)

// quiet returns a server that does not log what its clients do.
func quiet(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func answer(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) //nolint:errcheck // a test
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		if code/100 != 2 {
			io.WriteString(w, "that is why") //nolint:errcheck // a test
		}
	}
}

// httpSpecs are a Spec of each kind that asks by HTTP.
func httpSpecs(url string) map[string]Spec {
	return map[string]Spec{
		"pushgateway":  {Name: "a", Pushgateway: &PushgatewaySpec{URL: url, Job: "j"}},
		"remote_write": {Name: "a", RemoteWrite: &RemoteWriteSpec{URL: url}},
		"otlp":         {Name: "a", OTLP: &OTLPSpec{URL: url}},
	}
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		// prepare starts the server, or does something else, and returns the address.
		prepare func(s *httptest.Server) string
		http    func(s *httptest.Server) *httpconfig.HTTPClientConfig
		timeout time.Duration
		result  Result
		retry   bool
		after   time.Duration
		text    string
	}{
		"dead": {prepare: func(s *httptest.Server) string {
			s.Start()
			s.Close()
			return s.URL
		}, result: Unavailable, retry: true, text: "nothing listens there; is the receiver running"},
		"hangs": {handler: func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body) //nolint:errcheck // a test
			<-r.Context().Done()
		}, timeout: 100 * time.Millisecond, result: TimedOut, retry: true, text: "longer than timeout"},
		"trickles": {handler: func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				io.WriteString(w, "x") //nolint:errcheck // a test
				w.(http.Flusher).Flush()
				time.Sleep(time.Millisecond)
			}
		}, timeout: 100 * time.Millisecond, result: TimedOut, retry: true, text: "longer than timeout"},
		"resets": {handler: func(w http.ResponseWriter, _ *http.Request) {
			conn, _, _ := w.(http.Hijacker).Hijack()
			conn.(*net.TCPConn).SetLinger(0) //nolint:errcheck // a test
			conn.Close()
		}, result: Unavailable, retry: true, text: ""},
		"500": {handler: answer(500), result: Unavailable, retry: true, text: `500 Internal Server Error: "that is why"`},
		"503": {handler: answer(503), result: Unavailable, retry: true, text: "503 Service Unavailable"},
		"503 with Retry-After": {
			handler: answer(503, "Retry-After", "9"), result: Throttled, retry: true, after: 9 * time.Second,
			text: "503 Service Unavailable",
		},
		"429": {handler: answer(429), result: Throttled, retry: true, text: "429 Too Many Requests"},
		"429 with Retry-After": {
			handler: answer(429, "Retry-After", "7"), result: Throttled, retry: true, after: 7 * time.Second,
			text: "429 Too Many Requests",
		},
		"429 for years": {
			handler: answer(429, "Retry-After", "100000000"), result: Throttled, retry: true, after: maxRetryAfter,
			text: "429",
		},
		"413": {handler: answer(413), result: Rejected, text: "413 Request Entity Too Large"},
		"400": {handler: answer(400), result: Rejected, text: `400 Bad Request: "that is why"`},
		"401": {
			handler: answer(401), result: Unauthorized,
			text: "it wants a password or token, or another one: see http_config.basic_auth",
		},
		"403": {handler: answer(403), result: Unauthorized, text: "may not write there"},
		"404": {handler: answer(404), result: Rejected, text: "is the path of the address right?"},
		"301": {handler: answer(301, "Location", "/other"), result: Rejected, text: "/other; write that address"},
		"certificate of nobody": {handler: answer(200), prepare: func(s *httptest.Server) string {
			s.StartTLS()
			return s.URL
		}, result: Certificate, text: "not signed by anyone known; set http_config.tls_config.ca_file"},
		"certificate for another name": {handler: answer(200), prepare: func(s *httptest.Server) string {
			s.StartTLS()
			return s.URL
		}, http: func(s *httptest.Server) *httpconfig.HTTPClientConfig {
			c := trusting(s)
			c.TLSConfig.ServerName = "gateway.example.net"
			return c
		}, result: Certificate, text: "for another name than gateway.example.net; set http_config.tls_config.server_name"},
		"wants our certificate": {handler: answer(200), prepare: func(s *httptest.Server) string {
			s.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
			s.StartTLS()
			return s.URL
		}, http: trusting, result: Certificate, text: "it may want a certificate, http_config.tls_config.cert_file"},
		"no TLS there": {handler: answer(200), prepare: func(s *httptest.Server) string {
			s.Start()
			return strings.Replace(s.URL, "http:", "https:", 1)
		}, result: Certificate, text: "does not speak TLS; write http://"},
		"TLS there": {handler: answer(200), prepare: func(s *httptest.Server) string {
			s.StartTLS()
			return strings.Replace(s.URL, "https:", "http:", 1)
		}, result: Certificate, text: "speaks TLS; write https://"},
		"no such host": {
			prepare: func(*httptest.Server) string { return "http://nowhere.invalid:1" }, result: Unavailable, retry: true,
			text: "nowhere.invalid",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := quiet(t, c.handler)
			url := ""
			if c.prepare != nil {
				url = c.prepare(s)
			} else {
				s.Start()
				url = s.URL
			}
			for kind, spec := range httpSpecs(url) {
				if c.http != nil {
					spec.HTTP = c.http(s)
				}
				timeout := c.timeout
				if timeout == 0 {
					timeout = 30 * time.Second
				}
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				_, err := Once(ctx, spec, outputtest.NewSource(outputtest.All()), Options{})
				cancel()
				e, ok := errors.AsType[*PushError](err)
				if !ok {
					t.Errorf("%s: %v", kind, err)
					continue
				}
				if e.Result != c.result || e.Retry != c.retry || e.After != c.after || !strings.Contains(e.Error(), c.text) {
					t.Errorf("%s: %s, retry %v, after %v: %v\nwant %s, %v, %v: … %s", kind, e.Result, e.Retry, e.After, e, c.result,
						c.retry, c.after, c.text)
				}
			}
		})
	}
}

// trusting is the configuration of a client that knows the server's certificate.
func trusting(s *httptest.Server) *httpconfig.HTTPClientConfig {
	c := httpconfig.DefaultHTTPClientConfig
	c.TLSConfig.CA = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
	return &c
}

// TestPassword: with it the push is taken, and nobody sees it in an error.
func TestPassword(t *testing.T) {
	s := quiet(t, func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "u" || password != "right" {
			answer(401)(w, r)
			return
		}
		if r.Header.Get("User-Agent") != "aggregatord/1.2" {
			t.Errorf("User-Agent: %q", r.Header.Get("User-Agent"))
		}
		answer(200, "X-Prometheus-Remote-Write-Samples-Written", "25")(w, r)
	})
	s.Start()
	for kind, spec := range httpSpecs(s.URL) {
		for password, want := range map[string]Result{"right": OK, "wrong-secret": Unauthorized} {
			c := httpconfig.DefaultHTTPClientConfig
			c.BasicAuth = &httpconfig.BasicAuth{Username: "u", Password: httpconfig.Secret(password)}
			spec.HTTP = &c
			status, err := Once(t.Context(), spec, outputtest.NewSource(outputtest.All()), Options{Version: "1.2"})
			if status.Results[string(want)] != 1 {
				t.Errorf("%s with %s: %v, %v", kind, password, status.Results, err)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error has the password: %v", err)
			}
		}
	}
}

// TestAnswerBeforeTheEnd: a receiver that answers and hangs up before it has read the request is
// heard. A connection that it has closed meanwhile is told as such, so that the request can go by
// another one.
func TestAnswerBeforeTheEnd(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := dialPatient(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("a request")); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Read(make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(server, "too large"); err != nil {
		t.Fatal(err)
	}
	server.Close() // with a reset, as not all was read
	raw := conn.(*patient).Conn
	for { // until the kernel knows
		if _, err := raw.Write([]byte("x")); err != nil {
			break
		}
	}
	if n, err := conn.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil {
		t.Errorf("written %d, %v", n, err)
	}
	answer, err := io.ReadAll(conn)
	if string(answer) != "too large" {
		t.Errorf("read %q, %v", answer, err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("a write to a connection that is closed, and was idle, succeeds")
	}
}

// TestSmallerRequests: what is too large at once is sent in parts, and all of it arrives.
func TestSmallerRequests(t *testing.T) {
	var f outputtest.Family
	f.Name, f.Type = "jobs", metric.Counter
	for i := range 2000 {
		f.Metrics = append(f.Metrics, outputtest.Metric{Labels: []string{"n", fmt.Sprintf("%08d", i*7919)}, Values: []float64{float64(i)}})
	}
	for kind, limit := range map[string]int{"remote_write": 10_000, "otlp": 30_000} {
		t.Run(kind, func(t *testing.T) {
			taken, refused := 0, 0
			s := quiet(t, func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err == nil && kind == "otlp" {
					var z io.Reader
					if z, err = gzip.NewReader(bytes.NewReader(body)); err == nil {
						body, err = io.ReadAll(z)
					}
				} else if err == nil {
					body, err = snappy.Decode(nil, body)
				}
				if err != nil {
					t.Error(err)
				}
				if len(body) > limit {
					refused++
					answer(413)(w, r)
					return
				}
				taken++
				answer(204, "X-Prometheus-Remote-Write-Samples-Written", "100000")(w, r)
			})
			s.Start()
			status, err := Once(t.Context(), httpSpecs(s.URL)[kind], outputtest.NewSource(outputtest.Snapshot(f)), Options{})
			if err != nil || status.Samples != 2000 || status.LeftOut != 0 {
				t.Errorf("%d samples, %d left out, %v", status.Samples, status.LeftOut, err)
			}
			if taken < 3 || refused == 0 {
				t.Errorf("%d requests taken, %d refused", taken, refused)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, "-5": 0, "soon": 0, "9999999": time.Hour,
		"Fri, 02 Jan 2026 03:04:35 GMT": 30 * time.Second, "Fri, 02 Jan 2026 03:00:00 GMT": 0,
	} {
		if got, _ := retryAfter(text, now); got != want {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestFileComesLater: an output whose certificate is missing costs itself only, says which file
// it wants, and works when that is there.
func TestFileComesLater(t *testing.T) {
	s := quiet(t, answer(200))
	s.StartTLS()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	c := httpconfig.DefaultHTTPClientConfig
	c.TLSConfig.CAFile = ca
	o := New(Options{Source: outputtest.NewSource(outputtest.All())})
	if err := o.Apply([]Spec{{Name: "a", HTTP: &c, Pushgateway: &PushgatewaySpec{URL: s.URL, Job: "j"}}}); err != nil {
		t.Fatal(err)
	}
	defer o.Close()
	err := o.list[0].push(t.Context())
	if e, ok := errors.AsType[*PushError](err); !ok || e.Result != Misconfigured || !strings.Contains(e.Error(), ca) {
		t.Error(err)
	}
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := o.list[0].push(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestToken: that no token can be had is told as a matter of the password.
func TestToken(t *testing.T) {
	s := quiet(t, answer(401))
	s.Start()
	c := httpconfig.DefaultHTTPClientConfig
	c.OAuth2 = &httpconfig.OAuth2{ClientID: "a", ClientSecret: "hidden", TokenURL: s.URL + "/token"}
	_, err := Once(t.Context(), Spec{Name: "a", HTTP: &c, OTLP: &OTLPSpec{URL: s.URL}}, outputtest.NewSource(outputtest.All()), Options{})
	if e, ok := errors.AsType[*PushError](err); !ok || e.Result != Unauthorized || !strings.Contains(e.Error(), "see http_config.oauth2") ||
		strings.Contains(e.Error(), "hidden") {
		t.Error(err)
	}
}
