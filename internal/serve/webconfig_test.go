package serve

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"golang.org/x/crypto/bcrypt"

	"aggregatord/internal/exposition"
	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// authority signs certificates for one test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	next int64
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t, pool: x509.NewCertPool(), next: 1}
	pair := a.issue("authority")
	a.cert, a.key = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
	a.pool.AddCert(a.cert)
	return a
}

// issue makes a certificate for localhost with the name, signed by the authority, or by
// itself while there is none.
func (a *authority) issue(name string) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost", name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		BasicConstraintsValid: true, IsCA: a.cert == nil,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	a.next++
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// write puts a certificate and its key into dir as NAME.crt and NAME.key.
func (a *authority) write(dir, name string, pair tls.Certificate) {
	a.t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		a.t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".crt": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]},
		name + ".key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
}

func writeFile(t *testing.T, path, content string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func hash(t *testing.T, password string) string {
	t.Helper()
	h, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(h)
}

// refusals counts what OnRefused is told.
type refusals struct {
	mu sync.Mutex
	n  map[Refusal]int
}

func (r *refusals) add(why Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == nil {
		r.n = map[Refusal]int{}
	}
	r.n[why]++
}

func (r *refusals) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprint(r.n)
}

// statusOf sends a request with another client and returns the status, or -1 where there
// is no answer.
func (s *site) statusOf(t *testing.T, transport *http.Transport, url, user, password string) int {
	t.Helper()
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

// TestTLS: one file turns on TLS, asks for a client certificate and a password, and is
// read again, certificates included, without a restart.
func TestTLS(t *testing.T) {
	ca, dir := newAuthority(t), t.TempDir()
	ca.write(dir, "server", ca.issue("first"))
	writeFile(t, filepath.Join(dir, "ca.crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})))
	const tlsPart = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n" +
		"  client_ca_file: ca.crt\n  client_auth_type: RequireAndVerifyClientCert\n"
	file := writeFile(t, filepath.Join(dir, "web.yml"), tlsPart+"basic_auth_users:\n  scraper: "+hash(t, "sesame")+"\n")
	if err := CheckWebConfig(file); err != nil {
		t.Fatal(err)
	}
	var refused refusals
	s := start(t, Options{Gatherer: static(pool()), WebConfigFile: file, OnRefused: refused.add})
	url := strings.Replace(s.url, "http://", "https://", 1) + "/metrics"
	// Every connection is new, so each one sees the certificate in force.
	client := func(certs ...tls.Certificate) *http.Transport {
		return &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.pool, Certificates: certs}, DisableKeepAlives: true}
	}
	known, stranger := ca.issue("prometheus"), newAuthority(t).issue("prometheus")
	for _, c := range []struct {
		name, url, user, password string
		certs                     []tls.Certificate
		want                      int
	}{
		{"all_right", url, "scraper", "sesame", []tls.Certificate{known}, 200},
		{"again", url, "scraper", "sesame", []tls.Certificate{known}, 200},
		{"wrong_password", url, "scraper", "simsim", []tls.Certificate{known}, 401},
		{"wrong_user", url, "nobody", "sesame", []tls.Certificate{known}, 401},
		{"no_password", url, "", "", []tls.Certificate{known}, 401},
		{"health_is_no_exception", strings.Replace(url, "/metrics", "/-/healthy", 1), "", "", []tls.Certificate{known}, 401},
		{"no_certificate", url, "scraper", "sesame", nil, -1},
		{"certificate_of_a_stranger", url, "scraper", "sesame", []tls.Certificate{stranger}, -1},
		{"no_tls", s.url + "/metrics", "scraper", "sesame", nil, 400},
	} {
		if got := s.statusOf(t, client(c.certs...), c.url, c.user, c.password); got != c.want {
			t.Errorf("%s: status %d, want %d", c.name, got, c.want)
		}
	}
	if got := refused.String(); got != "map[unauthorized:4]" {
		t.Errorf("refused %s, want 4 unauthorized", got)
	}

	// A new certificate and a new password are in force at once.
	ca.write(dir, "server", ca.issue("second"))
	writeFile(t, file, tlsPart+"basic_auth_users:\n  scraper: "+hash(t, "changed")+"\n")
	conn, err := tls.Dial("tcp", strings.TrimPrefix(s.url, "http://"),
		&tls.Config{RootCAs: ca.pool, Certificates: []tls.Certificate{known}})
	if err != nil {
		t.Fatal(err)
	}
	if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != "second" {
		t.Errorf("the certificate is that of %q", got)
	}
	conn.Close()
	if got := s.statusOf(t, client(known), url, "scraper", "sesame"); got != 401 {
		t.Errorf("the old password gets status %d", got)
	}
	if got := s.statusOf(t, client(known), url, "scraper", "changed"); got != 200 {
		t.Errorf("the new password gets status %d", got)
	}
	// HTTP/2 is served, too.
	h2 := client(known)
	h2.ForceAttemptHTTP2 = true
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.SetBasicAuth("scraper", "changed")
	resp, err := (&http.Client{Transport: h2}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if got := body(t, resp); got != plain(exposition.Format{}) || resp.ProtoMajor != 2 {
		t.Errorf("%s serves %q", resp.Proto, got)
	}
	resp.Body.Close()
	h2.CloseIdleConnections()
	if err := s.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestRateLimit: the limit holds for each listener by itself, and the log says that it is
// there. Two listeners on one server would otherwise share, and double, the toolkit's
// handler.
func TestRateLimit(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "web.yml"),
		"rate_limit: {burst: 2, interval: 1h}\nbasic_auth_users:\n  u: "+hash(t, "p")+"\n")
	core, logs := observer.New(zap.DebugLevel)
	var refused refusals
	var observed sync.Map
	s := New(Options{
		Gatherer: static(pool()), WebConfigFile: file, OnRefused: refused.add, Logger: zap.New(core),
		Observe: func(i ScrapeInfo) { observed.Store(i.Outcome, true) },
	})
	var listeners []net.Listener
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, l)
	}
	ctx, done := t.Context(), make(chan error, 1)
	go func() { done <- s.Run(ctx, listeners...) }()
	for _, l := range listeners {
		var got []int
		for range 4 {
			got = append(got, (&site{Server: s}).statusOf(t, &http.Transport{}, "http://"+l.Addr().String()+"/metrics", "u", "p"))
		}
		if want := []int{200, 200, 429, 429}; !slices.Equal(got, want) {
			t.Errorf("%v answers %v, want %v", l.Addr(), got, want)
		}
	}
	if got := refused.String(); got != "map[rate_limited:4]" {
		t.Errorf("refused %s, want 4 by rate", got)
	}
	if logs.FilterMessage("Rate Limiter is enabled.").Len() != 2 {
		t.Errorf("the log does not tell of the limit: %v", logs.All())
	}
	listeners[0].Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Run: %v", err)
	}
}

// TestWebConfigBreaks: a file that becomes unreadable closes the doors, and says so.
func TestWebConfigBreaks(t *testing.T) {
	file := writeFile(t, filepath.Join(t.TempDir(), "web.yml"), "basic_auth_users:\n  u: "+hash(t, "p")+"\n")
	core, logs := observer.New(zap.ErrorLevel)
	var refused refusals
	s := start(t, Options{Gatherer: static(pool()), WebConfigFile: file, OnRefused: refused.add, Logger: zap.New(core)})
	if got := s.statusOf(t, &http.Transport{}, s.url+"/metrics", "u", "p"); got != 200 {
		t.Fatalf("status %d", got)
	}
	writeFile(t, file, "basic_auth_users: 7\n")
	if got := s.statusOf(t, &http.Transport{}, s.url+"/metrics", "u", "p"); got != 500 {
		t.Errorf("status %d with a file that cannot be read", got)
	}
	if got := refused.String(); got != "map[bad_web_config:1]" {
		t.Errorf("refused %s", got)
	}
	if logs.Len() != 1 || !strings.Contains(fmt.Sprint(logs.All()[0].ContextMap()), "cannot unmarshal") {
		t.Errorf("logged %v", logs.All())
	}
}

// TestCheckWebConfig: what the toolkit would only notice when it serves is told before.
func TestCheckWebConfig(t *testing.T) {
	for name, c := range map[string]struct{ content, says string }{
		"unknown_key":  {"tls_config: {}\n", "tls_config"},
		"no_key":       {"tls_server_config: {cert_file: a.crt}\n", "key_file"},
		"no_such_file": {"tls_server_config: {cert_file: a.crt, key_file: a.key}\n", "a.crt"},
		"plain_text":   {"basic_auth_users: {u: sesame}\n", "hashedSecret too short"},
	} {
		t.Run(name, func(t *testing.T) {
			file := writeFile(t, filepath.Join(t.TempDir(), "web.yml"), c.content)
			err := CheckWebConfig(file)
			if err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), file) {
				t.Errorf("it says %v", err)
			}
		})
	}
	if err := CheckWebConfig(filepath.Join(t.TempDir(), "none.yml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
}

// TestSlowReader: who does not read the response loses the connection, and with it the
// place among the scrapes in flight.
func TestSlowReader(t *testing.T) {
	// More than the buffers of two sockets hold.
	big := &view.Snapshot{
		Layout: &view.Layout{Points: 1, Families: []view.Family{{
			Name: "a", Type: metric.Gauge, Help: strings.Repeat("x", 32<<20), Points: 1,
			Metrics: []view.Metric{{Points: []view.Point{{Kind: view.Value}}}},
		}}},
		Values: []float64{1},
	}
	outcomes := make(chan ScrapeInfo, 2)
	s := start(t, Options{Gatherer: static(big), WriteTimeout: 200 * time.Millisecond, Observe: func(i ScrapeInfo) { outcomes <- i }})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	select {
	case info := <-outcomes:
		if info.Outcome != Gone || info.Duration < 100*time.Millisecond {
			t.Errorf("it ended with %+v", info)
		}
	case <-time.After(time.Minute):
		t.Fatal("a client that does not read is waited for")
	}
	if len(s.outgoing.byKey) != 0 || s.outgoing.bytes != 0 {
		t.Errorf("%d bytes are still on their way", s.outgoing.bytes)
	}
	// What was sent cannot be mistaken for the whole.
	if got, err := io.ReadAll(conn); err == nil && bytes.Contains(got, []byte("\na 1\n")) {
		t.Error("the response arrived whole")
	}
}

// TestIdleConnections: a connection is kept for the next request for as long as the options
// say, whatever a request may take.
func TestIdleConnections(t *testing.T) {
	for name, c := range map[string]struct {
		idle time.Duration
		kept bool
	}{
		"no_limit": {-1, true},
		"longer":   {time.Minute, true},
		"shorter":  {30 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, Options{
				Gatherer: static(pool()), ReadTimeout: 100 * time.Millisecond, ReadHeaderTimeout: 50 * time.Millisecond,
				IdleTimeout: c.idle,
			})
			conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			ask := func() error {
				if _, err := io.WriteString(conn, "GET /-/healthy HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
					return err
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				_, err = io.Copy(io.Discard, resp.Body)
				return err
			}
			if err := ask(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond)
			if err := ask(); (err == nil) != c.kept {
				t.Errorf("the second request: %v", err)
			}
		})
	}
	// Who begins a request and does not end it is cut off.
	s := start(t, Options{ReadTimeout: 50 * time.Millisecond})
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET /-/healthy HT"); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // it fails below, then
	if _, err := io.ReadAll(conn); err != nil {
		t.Errorf("a request that does not end: %v", err)
	}
}

// TestReload: the request is answered as Prometheus answers it.
func TestReload(t *testing.T) {
	calls := 0
	var reloadErr error
	enabled := New(Options{Reload: func() error { calls++; return reloadErr }})
	for _, c := range []struct {
		name   string
		h      http.Handler
		method string
		header []string
		err    error
		want   int
		calls  int
	}{
		{"not_enabled", New(Options{}), "POST", nil, nil, 403, 0},
		{"get", enabled, "GET", nil, nil, 405, 0},
		{"post", enabled, "POST", nil, nil, 200, 1},
		{"put", enabled, "PUT", nil, nil, 200, 1},
		{"by_another_site", enabled, "POST", []string{"Sec-Fetch-Site", "cross-site"}, nil, 403, 0},
		{"failing", enabled, "POST", nil, errors.New("a.yml:1:1: metrics: no"), 500, 1},
	} {
		calls, reloadErr = 0, c.err
		resp := do(c.h, c.method, "/-/reload", c.header...)
		text := body(t, resp)
		if resp.StatusCode != c.want || calls != c.calls {
			t.Errorf("%s: status %d, %d calls, %q", c.name, resp.StatusCode, calls, text)
		}
		if c.err != nil && !strings.Contains(text, c.err.Error()) {
			t.Errorf("%s: %q", c.name, text)
		}
	}
}

// TestDocumentedWebConfig: the example of docs/web.md is one that is understood.
func TestDocumentedWebConfig(t *testing.T) {
	docs, err := os.ReadFile("../../docs/web.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(docs), "```yaml\n")
	example, _, ok := strings.Cut(rest, "```")
	if !ok {
		t.Fatal("no example")
	}
	ca, dir := newAuthority(t), t.TempDir()
	ca.write(dir, "server", ca.issue("server"))
	ca.write(dir, "clients", ca.issue("clients"))
	example = strings.Replace(example, "$2y$10$…", hash(t, "sesame"), 1)
	if err := CheckWebConfig(writeFile(t, filepath.Join(dir, "web.yml"), example)); err != nil {
		t.Errorf("%v in\n%s", err, example)
	}
}
