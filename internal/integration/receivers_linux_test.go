package integration

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// misbehaviors are what receivers do that an output has to bear, and how its pushes end then.
var misbehaviors = map[string]string{
	"dead": "unavailable", "hangs": "timeout", "trickles": "timeout", "resets": "unavailable", "answers 500": "unavailable",
	"answers 429": "throttled", "answers 413": "rejected", "bad certificate": "certificate", "wrong password": "unauthorized",
}

// A badReceiver takes any push by HTTP, once it has become good.
type badReceiver struct {
	t       *testing.T
	how     string
	address string
	good    atomic.Bool
	// leave is closed in the end: who hangs gives up.
	leave chan struct{}
	pairs map[bool]*tls.Certificate // by whether it is good
	// taken counts the pushes since it is good.
	taken atomic.Int64

	server sync.WaitGroup
	http   *http.Server
}

// newBadReceiver starts a receiver. For a bad certificate dir has those of writeCertificates: good,
// and other/good of another authority.
func newBadReceiver(t *testing.T, how, dir string) *badReceiver {
	t.Helper()
	r := &badReceiver{t: t, how: how, leave: make(chan struct{}), pairs: map[bool]*tls.Certificate{}}
	for good, sub := range map[bool]string{true: "", false: "other"} {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, sub, "good.crt"), filepath.Join(dir, sub, "good.key"))
		if err != nil {
			t.Fatal(err)
		}
		r.pairs[good] = &pair
	}
	r.http = &http.Server{
		Handler: r, ErrorLog: log.New(io.Discard, "", 0),
		TLSConfig: &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return r.pairs[r.good.Load()], nil }},
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r.address = l.Addr().String()
	if how == "dead" {
		l.Close()
	} else {
		r.listen(l)
	}
	t.Cleanup(func() {
		close(r.leave)
		r.http.Close()
		r.server.Wait()
	})
	return r
}

func (r *badReceiver) listen(l net.Listener) {
	serve := r.http.Serve
	if r.how == "bad certificate" {
		serve = func(l net.Listener) error { return r.http.ServeTLS(l, "", "") }
	}
	r.server.Go(func() { _ = serve(l) }) // until the server is closed
}

// recover makes the receiver a good one.
func (r *badReceiver) recover() {
	r.t.Helper()
	r.good.Store(true)
	if r.how == "dead" {
		l, err := net.Listen("tcp", r.address)
		if err != nil {
			r.t.Fatal(err)
		}
		r.listen(l)
	}
}

// ServeHTTP implements http.Handler.
func (r *badReceiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !r.good.Load() {
		r.misbehave(w, req)
		return
	}
	if _, password, _ := req.BasicAuth(); r.how == "wrong password" && password != "right" {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if _, err := io.Copy(io.Discard, req.Body); err == nil {
		r.taken.Add(1)
	}
}

func (r *badReceiver) misbehave(w http.ResponseWriter, req *http.Request) {
	switch r.how {
	case "resets":
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			r.t.Error(err)
			return
		}
		conn.(*net.TCPConn).SetLinger(0) //nolint:errcheck // then it ends in another way
		conn.Close()
		return
	case "hangs":
		select {
		case <-req.Context().Done():
		case <-r.leave:
		}
		return
	}
	io.Copy(io.Discard, req.Body) //nolint:errcheck // it does not matter
	switch r.how {
	case "trickles":
		for {
			select {
			case <-req.Context().Done():
				return
			case <-r.leave:
				return
			case <-time.After(10 * time.Millisecond):
			}
			io.WriteString(w, "x") //nolint:errcheck // the client may have gone
			w.(http.Flusher).Flush()
		}
	case "answers 429":
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
	case "answers 413":
		w.WriteHeader(http.StatusRequestEntityTooLarge)
	case "wrong password":
		w.WriteHeader(http.StatusUnauthorized)
	default:
		w.WriteHeader(http.StatusInternalServerError)
	}
}

// outputsTo is the configuration of an output of each kind to a receiver.
func outputsTo(r *badReceiver) string {
	scheme, extra, timeout := "http", "", "10s"
	switch r.how {
	case "bad certificate":
		scheme, extra = "https", ", http_config: {tls_config: {ca_file: ca.crt}}"
	case "wrong password":
		extra = ", http_config: {basic_auth: {username: u, password_file: password}}"
	case "hangs", "trickles":
		timeout = "1s"
	}
	url := scheme + "://" + r.address
	out := ""
	for kind, to := range map[string]string{
		"remote_write": "{url: '" + url + "/write', protocol: '1.0'}", "otlp": "{url: '" + url + "/otlp'}",
		"pushgateway": "{url: '" + url + "', job: j}",
	} {
		out += fmt.Sprintf("  - {name: '%s %s', interval: 1s, timeout: %s%s, %s: %s}\n", r.how, kind, timeout, extra, kind, to)
	}
	return out
}

// kindsTo is how many outputs outputsTo has.
const kindsTo = 3

// TestBadReceivers: beside receivers that are dead, hang, trickle, reset, refuse or have a wrong
// certificate or password, scrapes take as long as those of a daemon without outputs, and memory and
// descriptors stay the same. The outputs say what is wrong, and work by themselves as soon as the
// receivers do. All misbehave at once for some seconds, or each alone and then all, each for a
// tenth of AGGREGATORD_SOAK. Only then are there many series, and is it a failure if scrapes take
// longer: beside other tests, a daemon with more to do gets less of the processor.
func TestBadReceivers(t *testing.T) {
	t.Parallel()
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	all := make([]string, 0, len(misbehaviors))
	for how := range misbehaviors {
		all = append(all, how)
	}
	slices.Sort(all)
	rounds := map[string][]string{"all": all}
	lasts := soak(t, 4*time.Second)
	if os.Getenv("AGGREGATORD_SOAK") != "" {
		lasts /= time.Duration(len(all) + 1)
		for _, how := range all {
			rounds[how] = []string{how}
		}
	}
	for name, hows := range rounds {
		t.Run(name, func(t *testing.T) { runBadReceivers(t, plain, hows, lasts, os.Getenv("AGGREGATORD_SOAK") != "") })
	}
}

func runBadReceivers(t *testing.T, plain string, hows []string, lasts time.Duration, whole bool) {
	series := 500
	if whole {
		series = 5000
	}
	launch := func(flags ...string) *daemon {
		dir := loadDir(t, series)
		// The shell becomes the plain daemon in place of the one that it is given.
		by := []string{"/bin/sh", "-c", `shift; exec "$0" "$@"`, plain}
		return startDaemonBy(t, by, nil, "serve", append([]string{"--dir", dir, "--push.exit-timeout", "1s"}, flags...)...)
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "other"), 0o700); err != nil {
		t.Fatal(err)
	}
	writeCertificates(t, dir, "good")
	writeCertificates(t, filepath.Join(dir, "other"), "good")
	password := func(text string) {
		if err := os.WriteFile(filepath.Join(dir, "password"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	password("wrong")
	yaml := "outputs:\n"
	receivers := make([]*badReceiver, 0, len(hows))
	for _, how := range hows {
		r := newBadReceiver(t, how, dir)
		receivers = append(receivers, r)
		yaml += outputsTo(r)
	}
	config := filepath.Join(dir, "aggregatord.yml")
	if err := os.WriteFile(config, []byte(yaml), 0o600); err != nil {
		t.Fatal(err)
	}
	without, with := launch(), launch("--config.file", config)

	value := func(v view, name string, more string) float64 {
		x, n := 0.0, 0
		for series, is := range v[strings.TrimSuffix(name, "_total")].samples() {
			if strings.HasPrefix(series, name+"{") && strings.Contains(series, more) {
				x, n = x+is, n+1
			}
		}
		if n == 0 {
			return 0
		}
		return x
	}
	// Each output has failed twice, and for the right reason.
	eventually(t, patience, func() error {
		v, err := with.text()
		if err != nil {
			return err
		}
		for _, how := range hows {
			for _, kind := range []string{"remote_write", "otlp", "pushgateway"} {
				labels := fmt.Sprintf(`output="%s %s",result="%s"`, how, kind, misbehaviors[how])
				if n := value(v, "aggregatord_output_pushes_total", labels); n < 2 {
					return fmt.Errorf("%v pushes with %s", n, labels)
				}
			}
		}
		return nil
	})
	held := func() (memory, files int) {
		t.Helper()
		memory, err := anonymousBytes(with.pid())
		if err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", with.pid()))
		if err != nil {
			t.Fatal(err)
		}
		return memory, len(entries)
	}
	scrape := func(d *daemon) time.Duration {
		t.Helper()
		begin := time.Now()
		body, _, err := d.get("/metrics", acceptText)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		if n := strings.Count(string(body), "load_total{"); n != series {
			t.Fatalf("%d series, want %d", n, series)
		}
		return took
	}
	for range 20 {
		scrape(with)
		scrape(without)
	}
	memoryBefore, filesBefore := held()

	// In turns, so that what else the machine does meets both; and each is first as often.
	var quiet, busy []time.Duration
	for end := time.Now().Add(lasts); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		quiet, busy = append(quiet, scrape(without)), append(busy, scrape(with))
		busy, quiet = append(busy, scrape(with)), append(quiet, scrape(without))
	}
	memoryAfter, filesAfter := held()
	at := func(scrapes []time.Duration, percent int) time.Duration {
		slices.Sort(scrapes)
		return scrapes[len(scrapes)*percent/100]
	}
	ratio := func(percent int) float64 { return float64(at(busy, percent)) / float64(at(quiet, percent)) }
	t.Logf("%d scrapes beside %d outputs to %s: median %v, without outputs %v (%.2f ×), p90 %v and %v (%.2f ×); RssAnon %d KiB, then %d; %d descriptors, then %d",
		len(busy), kindsTo*len(hows), strings.Join(hows, ", "), at(busy, 50), at(quiet, 50), ratio(50), at(busy, 90), at(quiet, 90),
		ratio(90),
		memoryBefore>>10, memoryAfter>>10, filesBefore, filesAfter)
	// 27 outputs have some hundred series of their own, and use a core now and then.
	if r := min(ratio(50), ratio(25)); whole && r > 2 || len(hows) == 1 && r > 1.5 {
		t.Errorf("scrapes take %.2f times as long as without outputs", r)
	}
	if memoryAfter > memoryBefore+memoryBefore/4+8<<20 {
		t.Errorf("RssAnon is %d KiB, was %d", memoryAfter>>10, memoryBefore>>10)
	}
	if filesAfter > filesBefore+kindsTo*len(hows)+8 { // each output may be having a connection or not
		t.Errorf("%d descriptors are open, were %d", filesAfter, filesBefore)
	}

	password("right")
	for _, r := range receivers {
		r.recover()
	}
	begin := time.Now()
	eventually(t, 3*time.Minute, func() error {
		v, err := with.text()
		if err != nil {
			return err
		}
		if n := value(v, "aggregatord_output_up", ""); n != float64(kindsTo*len(hows)) {
			return fmt.Errorf("%v of %d outputs work", n, kindsTo*len(hows))
		}
		return nil
	})
	t.Logf("all outputs work %v after the receivers do", time.Since(begin).Round(100*time.Millisecond))
	for _, r := range receivers {
		if r.taken.Load() == 0 {
			t.Errorf("the receiver that %s has got nothing", r.how)
		}
	}
	// What goes on failing in the same way is told once.
	failed := map[string]int{}
	for _, entry := range with.logs() {
		if entry["msg"] == "a push failed" {
			failed[fmt.Sprint(entry["output"])]++
		}
	}
	for name, n := range failed {
		if n > 2 {
			t.Errorf("%d lines say that %s fails", n, name)
		}
	}
}

// samples are those of a family that may be missing.
func (f *family) samples() map[string]float64 {
	if f == nil {
		return nil
	}
	return f.Samples
}
