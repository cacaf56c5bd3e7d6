package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The Accept headers that ask for one format and nothing else.
const (
	acceptText        = "text/plain;version=0.0.4"
	acceptOpenMetrics = "application/openmetrics-text;version=1.0.0"
	acceptProtobuf    = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited"
)

// daemon is a running aggregatord.
type daemon struct {
	*process
	// URL is where it listens, without a path.
	URL     string
	client  *http.Client
	stopped bool
}

// serve starts aggregatord with the flags, on a loopback port that the kernel picks, and
// returns when it is ready. It is stopped, and its end judged, when the test ends.
func serve(t *testing.T, flags ...string) *daemon {
	t.Helper()
	return serveAs(t, nil, flags...)
}

// mirrored has every daemon keep a mirror that is not told otherwise, with AGGREGATORD_MIRROR=auto.
var mirrored = os.Getenv("AGGREGATORD_MIRROR") == "auto"

// serveAs is serve with other attributes of the process.
func serveAs(t *testing.T, attr *syscall.SysProcAttr, flags ...string) *daemon {
	t.Helper()
	return startDaemon(t, attr, "serve", flags...)
}

// startDaemon is serveAs for any subcommand that serves.
func startDaemon(t *testing.T, attr *syscall.SysProcAttr, subcommand string, flags ...string) *daemon {
	t.Helper()
	return startDaemonBy(t, nil, attr, subcommand, flags...)
}

// startDaemonBy is startDaemon by a command that becomes the daemon, such as setpriv.
func startDaemonBy(t *testing.T, by []string, attr *syscall.SysProcAttr, subcommand string, flags ...string) *daemon {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells which processes are dead, and most of what is expected here depends on it")
	}
	args := []string{subcommand, "--web.listen-address", "127.0.0.1:0", "--log.format", "json", "--log.level", "debug"}
	if subcommand != "demo" {
		args = append(args, "--web.self-metrics", "full")
	}
	args = append(args, flags...) // behind them, run has a command
	if mirrored && subcommand == "serve" && !slices.Contains(flags, "--archive.mirror") && !slices.Contains(flags, "--archive.disable") {
		args = append(args, "--archive.mirror", "auto")
	}
	if subcommand == "serve" && !slices.Contains(flags, "--archive.rest") {
		args = append(args, "--archive.rest", "300ms") // so that tests need not wait for the default
	}
	args = append(append(slices.Clone(by), builtDaemon(t)), args...)
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), quickExit)
	d := &daemon{process: start(t, cmd), client: &http.Client{Timeout: patience, Transport: &http.Transport{}}}
	t.Cleanup(d.client.CloseIdleConnections)
	line := d.await("the listening address", func(line string) bool {
		entry, ok := parseLog(line)
		return ok && entry["msg"] == "listening" && entry["address"] != nil
	})
	entry, _ := parseLog(line)
	d.URL = fmt.Sprintf("http://%v", entry["address"])
	eventually(t, patience, func() error {
		select {
		case <-d.exited:
			t.Fatalf("the daemon ended while starting: %v\n%s", d.err, d.out.tail())
		default:
		}
		resp, err := d.client.Get(d.URL + "/-/ready")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK || err != nil {
			return fmt.Errorf("not ready: %s: %s", resp.Status, body)
		}
		return nil
	})
	t.Cleanup(d.stop)
	return d
}

// stop ends the daemon as a service manager would and judges how it ends: quickly, with
// exit status 0, without a data race and without a panic.
func (d *daemon) stop() {
	d.t.Helper()
	if d.stopped {
		return
	}
	d.stopped = true
	d.client.CloseIdleConnections()
	select {
	case <-d.exited:
		d.t.Errorf("the daemon ended before it was told to: %v", d.err)
	default:
		begin := time.Now()
		if err := d.terminate(); err != nil {
			d.t.Errorf("the daemon's end: %v", err)
		}
		if took := time.Since(begin); took > 15*time.Second {
			d.t.Errorf("the daemon took %v to stop", took)
		}
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:"} {
		if said := d.out.String(); strings.Contains(said, bad) {
			at := strings.Index(said, bad)
			d.t.Errorf("the daemon said %q:\n%s", bad, said[at:min(len(said), at+8192)])
		}
	}
}

// parseLog reads one line of the daemon's JSON log.
func parseLog(line string) (map[string]any, bool) {
	var entry map[string]any
	if json.Unmarshal([]byte(line), &entry) != nil {
		return nil, false
	}
	return entry, true
}

// logs returns all the entries logged so far.
func (d *daemon) logs() []map[string]any {
	lines, _ := d.out.lines()
	var entries []map[string]any
	for _, line := range lines {
		if entry, ok := parseLog(line); ok {
			entries = append(entries, entry)
		}
	}
	return entries
}

// logNames reports whether some entry above level debug has the name in one of its fields.
func (d *daemon) logNames(name string) bool {
	for _, entry := range d.logs() {
		if entry["level"] == "debug" {
			continue
		}
		for key, value := range entry {
			if s, ok := value.(string); ok && key != "msg" && strings.Contains(s, name) {
				return true
			}
		}
	}
	return false
}

// get fetches a path and returns the body and its content type.
func (d *daemon) get(path, accept string) ([]byte, string, error) {
	req, err := http.NewRequestWithContext(d.t.Context(), http.MethodGet, d.URL+path, nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("Accept", accept)
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, "", err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, "", fmt.Errorf("GET %s: %s: %s", path, resp.Status, body)
	}
	return body, resp.Header.Get("Content-Type"), nil
}

// text scrapes the text format and parses it with the parser of prometheus/common.
func (d *daemon) text() (view, error) {
	body, _, err := d.get("/metrics", acceptText)
	if err != nil {
		return nil, err
	}
	return parseText(body)
}

// mustText is text for a scrape that has to succeed.
func (d *daemon) mustText() view {
	d.t.Helper()
	v, err := d.text()
	if err != nil {
		d.t.Fatal(err)
	}
	return v
}

// protobuf scrapes the delimited protobuf format and parses it with prometheus/common.
func (d *daemon) protobuf() (view, error) {
	body, contentType, err := d.get("/metrics", acceptProtobuf)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(contentType, "application/vnd.google.protobuf") {
		return nil, fmt.Errorf("asked for protobuf, got %q", contentType)
	}
	return parseProtobuf(body)
}

// openMetrics scrapes OpenMetrics and parses it with the Python client's strict parser.
func (d *daemon) openMetrics() (view, error) {
	body, contentType, err := d.get("/metrics", acceptOpenMetrics)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(contentType, "application/openmetrics-text") {
		return nil, fmt.Errorf("asked for OpenMetrics, got %q", contentType)
	}
	return parseStrict(d.t, body)
}
