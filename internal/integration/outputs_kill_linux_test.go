package integration

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"aggregatord/internal/output/outputtest"
)

// A cutter stands before a receiver. It passes everything on until it is armed: then what the next
// client sends, up to a number of bytes, after which it says so on reached and holds the connection
// until it is let go, when it closes it.
type cutter struct {
	address string
	armed   atomic.Int64 // bytes; 0: it is not
	reached chan struct{}
	letGo   chan struct{}
}

func newCutter(t *testing.T, backend string) *cutter {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{address: l.Addr().String(), reached: make(chan struct{}), letGo: make(chan struct{})}
	var conns sync.WaitGroup
	done := make(chan struct{})
	conns.Go(func() { // until the listener is closed
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", backend)
			if err != nil {
				client.Close()
				continue
			}
			conns.Go(func() { // until one side has closed, which the test sees to
				io.Copy(client, server) //nolint:errcheck // either side may be gone
				client.Close()
			})
			conns.Go(func() {
				defer server.Close()
				defer client.Close()
				c.pass(server, client, done)
			})
		}
	})
	t.Cleanup(func() {
		close(done)
		l.Close()
		conns.Wait()
	})
	return c
}

// pass copies what a client sends, as long as it may.
func (c *cutter) pass(server io.Writer, client net.Conn, done chan struct{}) {
	buf := make([]byte, 4096)
	left := int64(0) // bytes until the cut; 0: there is none
	for {
		n, err := client.Read(buf)
		if left == 0 && n > 0 {
			left = c.armed.Swap(0)
		}
		cut := left > 0 && int64(n) >= left
		if cut {
			n = int(left)
		} else if left > 0 {
			left -= int64(n)
		}
		if _, failed := server.Write(buf[:n]); !cut && (err != nil || failed != nil) {
			if left > 0 {
				c.armed.Store(left) // the next connection it is
			}
			return
		}
		if cut {
			select {
			case c.reached <- struct{}{}:
				select {
				case <-c.letGo:
				case <-done:
				}
			case <-done:
			}
			return
		}
	}
}

// TestKilledWhilePushing: a daemon that is killed in the middle of a push leaves nothing wrong in any
// receiver: a file and a group are whole, no total falls, and what the next daemon sends last is what
// the directory holds. It is killed three times, or thirty where AGGREGATORD_SOAK is set.
func TestKilledWhilePushing(t *testing.T) {
	t.Parallel()
	const series = 3000
	dir := loadDir(t, series)
	inc := []step{{Metric: "jobs_total", Op: "inc", Value: "1"}}
	ws := startWorkers(t, dir, program{
		Metrics: []declared{{Name: "jobs_total", Type: "counter", Help: "Jobs.", Labels: []string{}}},
		Workers: []worker{{Busy: true, Steps: inc}},
	})

	gateway := peer(t, "prometheus-pushgateway", "apt-get install prometheus-pushgateway")
	back := freeAddress(t)
	listening(t, start(t, exec.Command(gateway, "--web.listen-address", back)), back)
	receiver, received := startReceiver(t)
	push, write, otlp := newCutter(t, back), newCutter(t, receiver), newCutter(t, receiver)
	out, config := t.TempDir(), filepath.Join(t.TempDir(), "aggregatord.yml")
	yaml := fmt.Sprintf(`
outputs:
  - {name: file, interval: 1s, textfile: {path: %s/a.prom}}
  - {name: gateway, interval: 1s, pushgateway: {url: 'http://%s', job: j}}
  - {name: write, interval: 1s, external_labels: {by: write}, remote_write: {url: 'http://%s/api/v1/write'}}
  - {name: otlp, interval: 1s, external_labels: {by: otlp}, otlp: {url: 'http://%s/api/v1/otlp/v1/metrics'}}
`, out, push.address, write.address, otlp.address)
	if err := os.WriteFile(config, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}

	// The file and the group are whole whenever somebody looks, and what they count never falls.
	var last sync.Map
	whole := func(where string, text []byte) error {
		all := flat(families(t, text))
		loads := 0
		for name := range all {
			if strings.HasPrefix(name, "load_total{") {
				loads++
			}
		}
		jobs := 0.0
		for name, v := range all {
			if strings.HasPrefix(name, "jobs_total") {
				jobs = v
			}
		}
		if loads != series {
			return fmt.Errorf("%s has %d series, want %d", where, loads, series)
		}
		if before, ok := last.Swap(where, jobs); ok && jobs < before.(float64) {
			return fmt.Errorf("%s fell from %v to %v", where, before, jobs)
		}
		return nil
	}
	file := func() error {
		text, err := os.ReadFile(filepath.Join(out, "a.prom"))
		if err != nil {
			return err
		}
		return whole("the file", text)
	}
	group := func() error {
		text, err := getURL("http://" + back + "/metrics")
		if err != nil {
			return err
		}
		return whole("the group", text)
	}

	flags := []string{"--dir", dir, "--config.file", config, "--push.exit-timeout", "20s"}
	d := serve(t, flags...)
	eventually(t, patience, file)
	eventually(t, patience, group)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	rounds := []*cutter{push, write, otlp}
	if os.Getenv("AGGREGATORD_SOAK") != "" {
		rounds = slices.Repeat(rounds, 10)
	}
	for round, c := range rounds {
		// A push of remote write or OTLP has some 10 kB.
		most := map[*cutter]int64{push: 100_000}[c]
		c.armed.Store(1 + random.Int64N(max(most, 5000)))
		<-c.reached
		d.stopped = true
		d.kill()
		c.letGo <- struct{}{}
		if err := file(); err != nil {
			t.Errorf("after kill %d: %v", round, err)
		}
		if err := group(); err != nil {
			t.Errorf("after kill %d: %v", round, err)
		}
		d = serve(t, flags...)
	}
	ws.processes[0].kill()
	d.stopped = true
	d.signal(syscall.SIGTERM)
	if err := d.wait(); err != nil {
		t.Error(err)
	}
	names, err := os.ReadDir(out)
	if err != nil || len(names) != 1 {
		t.Errorf("beside the file there is %v, %v", names, err)
	}
	dump, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	want := flat(families(t, dump))
	check := func(where string, got map[string]float64) {
		t.Helper()
		for name := range got {
			if !strings.HasPrefix(name, "load_") && !strings.HasPrefix(name, "jobs_") {
				delete(got, name) // of the workers as processes, and of the receiver itself
			}
		}
		if diff := outputtest.Diff(want, got); diff != "" {
			t.Errorf("%s: %.2000s", where, diff)
		}
	}
	text, err := os.ReadFile(filepath.Join(out, "a.prom"))
	if err != nil {
		t.Fatal(err)
	}
	check("the file", flat(families(t, text)))
	if text, err = getURL("http://" + back + "/metrics"); err != nil {
		t.Fatal(err)
	}
	check("the group", flat(families(t, text), "job", "instance"))

	ends := map[string]map[string]float64{"write": {}, "otlp": {}}
	for name, samples := range received() {
		by := ""
		for _, b := range []string{"write", "otlp"} {
			if label := fmt.Sprintf("by=%q", b); strings.Contains(name, label) {
				by = b
				name = strings.NewReplacer("{"+label+"}", "", label+",", "", ","+label, "").Replace(name)
			}
		}
		if by == "otlp" {
			name = strings.Split(name, "{")[0] + pathOf(name)
		}
		if !strings.HasPrefix(name, "load_") && !strings.HasPrefix(name, "jobs_") {
			continue
		}
		before := 0.0
		for _, s := range samples {
			if s[1] == "stale" {
				continue
			}
			v, err := strconv.ParseFloat(s[1], 64)
			if err != nil {
				t.Fatal(err)
			}
			if v < before {
				t.Errorf("%s by %s fell from %v to %v", name, by, before, v)
			}
			before = v
		}
		ends[by][name] = before
	}
	check("remote write", ends["write"])
	check("OTLP", ends["otlp"])
}

// TestPushgatewayBreaksOff: wherever a push breaks off, the Pushgateway keeps the group as it was.
func TestPushgatewayBreaksOff(t *testing.T) {
	t.Parallel()
	gateway := peer(t, "prometheus-pushgateway", "apt-get install prometheus-pushgateway")
	back := freeAddress(t)
	listening(t, start(t, exec.Command(gateway, "--web.listen-address", back)), back)
	dir := sourceDir(t)
	startWorkers(t, dir, readable)
	push := func(address string) error {
		_, err := output(t.Context(), nil, builtDaemon(t), "push", "--dir", dir, "--to", "http://"+address, "--as", "pushgateway", "--job",
			"j")
		return err
	}
	group := func() (out []string) {
		t.Helper()
		text, err := getURL("http://" + back + "/metrics")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `job="j"`) && !strings.HasPrefix(line, "push_") {
				out = append(out, line)
			}
		}
		return out
	}
	if err := push(back); err != nil {
		t.Fatal(err)
	}
	want := group()
	if len(want) < 10 {
		t.Fatalf("the group has %q", want)
	}

	// The same push, taken down.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := make(chan []byte, 1)
	go func() { // until it has one request
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		var down bytes.Buffer
		req, err := http.ReadRequest(bufio.NewReader(io.TeeReader(conn, &down)))
		if err == nil {
			_, err = io.Copy(io.Discard, req.Body)
		}
		if err != nil {
			t.Error(err)
		}
		io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") //nolint:errcheck // then push fails
		taken <- down.Bytes()
	}()
	if err := push(l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	request := <-taken
	head := bytes.Index(request, []byte("\r\n\r\n")) + 4
	// At the beginning of the body, at each end of a line and at some other places.
	cuts := []int{head}
	for i := head; i < len(request)-1; i++ {
		if request[i] == '\n' || i%97 == 0 {
			cuts = append(cuts, i+1)
		}
	}
	for _, n := range cuts {
		conn, err := net.Dial("tcp", back)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(request[:n]); err != nil {
			t.Fatal(err)
		}
		if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		answer, _ := io.ReadAll(conn) // it has been dealt with
		conn.Close()
		if got := group(); !slices.Equal(got, want) {
			t.Fatalf("of %d bytes %d arrive: the group has %d lines, had %d; the answer: %q", len(request)-head, n-head, len(got),
				len(want), answer)
		}
	}
	t.Logf("broken off at %d places of %d bytes", len(cuts), len(request)-head)
}

// pathOf is the label path of a series with others.
func pathOf(series string) string {
	_, rest, ok := strings.Cut(series, `path="`)
	if !ok {
		return ""
	}
	value, _, _ := strings.Cut(rest, `"`)
	return fmt.Sprintf("{path=%q}", value)
}
