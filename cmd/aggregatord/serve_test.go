package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/daemon"
	"aggregatord/internal/serve"
)

// served is aggregatord serve, running in this process.
type served struct {
	t      *testing.T
	stop   context.CancelFunc
	stderr lockedBuffer
	code   chan int
	// urls are where it listens, without a path, in the order of the log.
	urls []string
}

// startServe runs serve with the flags and returns when it is ready.
func startServe(t *testing.T, flags ...string) *served {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	s := &served{t: t, stop: stop, code: make(chan int, 1)}
	t.Cleanup(stop)
	args := append([]string{"serve", "--log.format", "json"}, flags...)
	// Ends when stop is called, at the latest with the test.
	go func() { s.code <- run(ctx, args, io.Discard, &s.stderr) }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		ready := false
		s.urls = nil
		for _, line := range s.logs() {
			if line["msg"] == "listening" {
				s.urls = append(s.urls, fmt.Sprintf("http://%v", line["address"]))
			}
			ready = ready || line["msg"] == "ready"
		}
		if ready {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("not ready:\n%s", s.stderr.String())
		}
	}
}

// logs returns what was logged so far.
func (s *served) logs() []map[string]any {
	s.t.Helper()
	var logs []map[string]any
	for line := range strings.Lines(s.stderr.String()) {
		if !strings.HasSuffix(line, "\n") {
			break // it is just being written
		}
		var l map[string]any
		if err := json.Unmarshal([]byte(line), &l); err != nil {
			s.t.Errorf("not a line of JSON: %q", line)
		}
		logs = append(logs, l)
	}
	return logs
}

// get fetches a path from the first address.
func (s *served) get(path string) (status int, body string) {
	s.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(s.urls[0] + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// end asks for a stop and returns the exit code.
func (s *served) end() int {
	s.t.Helper()
	s.stop()
	select {
	case code := <-s.code:
		return code
	case <-time.After(20 * time.Second):
		s.t.Fatalf("it does not stop:\n%s", s.stderr.String())
		return -1
	}
}

// TestServe: what is served is what dump prints, and a tidy stop is a success.
func TestServe(t *testing.T) {
	dir := sourceDir(t)
	want := shop(t, dir)
	s := startServe(t, "--dir", dir, "--web.listen-address", "127.0.0.1:0", "--web.telemetry-path", "/m")
	status, body := s.get("/m")
	if status != http.StatusOK {
		t.Fatalf("status %d: %s", status, body)
	}
	got := parseText(t, body)
	for sample, value := range want {
		if got[sample] != value {
			t.Errorf("%s is %v, want %v", sample, got[sample], value)
		}
	}
	for sample := range got {
		if _, ok := want[sample]; !ok && !strings.HasPrefix(sample, "aggregatord_") {
			t.Errorf("nobody wrote %s", sample)
		}
	}
	if status, body := s.get("/metrics"); status != http.StatusNotFound || !strings.Contains(body, "/m") {
		t.Errorf("at the default path: status %d, %q", status, body)
	}
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, s.stderr.String())
	}
	if logs := s.logs(); logs[0]["msg"] != "aggregatord starts" || logs[0]["version"] == nil || logs[len(logs)-1]["msg"] != "stopped" {
		t.Errorf("the log begins and ends with %v and %v", logs[0], logs[len(logs)-1])
	}
}

// TestServeDirectories: serve looks where dump looks.
func TestServeDirectories(t *testing.T) {
	a, b := sourceDir(t), sourceDir(t)
	bury(t, a, "counter_1.db", entry{family: "c", sample: "c_total", value: 1})
	bury(t, b, "counter_1.db", entry{family: "c", sample: "c_total", value: 2})
	for name, tc := range map[string]struct {
		new, old string
		flags    []string
		want     []string
	}{
		"new_spelling": {new: a, want: []string{"\nc_total 1\n"}},
		"old_spelling": {old: b, want: []string{"\nc_total 2\n"}},
		"flag_wins":    {new: a, old: a, flags: []string{"--dir", b}, want: []string{"\nc_total 2\n"}},
		"two_pools": {
			flags: []string{"--dir", "web=" + a, "--dir", "jobs=" + b},
			want:  []string{"\nc_total{pool=\"jobs\"} 2\n", "\nc_total{pool=\"web\"} 1\n"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PROMETHEUS_MULTIPROC_DIR", tc.new)
			t.Setenv("prometheus_multiproc_dir", tc.old)
			s := startServe(t, append([]string{"--web.listen-address", "127.0.0.1:0"}, tc.flags...)...)
			_, body := s.get("/metrics")
			contains(t, body, tc.want...)
			if code := s.end(); code != 0 {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// TestServeWaits: a directory that does not exist yet is no mistake.
func TestServeWaits(t *testing.T) {
	dir := filepath.Join(sourceDir(t), "later")
	s := startServe(t, "--dir", dir, "--web.listen-address", "127.0.0.1:0")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	bury(t, dir, "counter_1.db", entry{family: "c", sample: "c_total", value: 5})
	_, body := s.get("/metrics")
	contains(t, body, "\nc_total 5\n")
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestServeAddressInUse: the last line tells which address it is, and the exit code that
// something failed.
func TestServeAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	address := taken.Addr().String()
	for name, flags := range map[string][]string{
		"only":   {"--web.listen-address", address},
		"second": {"--web.listen-address", "127.0.0.1:0", "--web.listen-address", address},
	} {
		t.Run(name, func(t *testing.T) {
			c := call(t, append([]string{"serve", "--dir", sourceDir(t), "--log.level", "error"}, flags...)...)
			c.oneLine(t, exitFailure, fmt.Sprintf("port %d is in use by ", taken.Addr().(*net.TCPAddr).Port),
				fmt.Sprintf("(%d)", os.Getpid()), "--web.listen-address")
		})
	}
}

// TestServeLog: the log has the format and the level that were asked for.
func TestServeLog(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	ctx, stop := context.WithCancel(t.Context())
	stop() // it starts, and is told to stop at once
	for name, tc := range map[string]struct {
		flags        []string
		begins, none string
	}{
		"console": {[]string{"--log.format", "console"}, "  INFO  aggregatord starts  {", "DEBUG"},
		"json":    {[]string{"--log.format", "json"}, `{"level":"info",`, `"debug"`},
		"debug":   {[]string{"--log.level", "debug"}, "  INFO  aggregatord starts  {", "ERROR"},
		"warn":    {[]string{"--log.level", "warn"}, "", "INFO"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr lockedBuffer
			code := run(ctx, append([]string{"serve", "--dir", dir, "--web.listen-address", "127.0.0.1:0"}, tc.flags...), &stdout, &stderr)
			if code != 0 || stdout.String() != "" {
				t.Errorf("exit code %d, it prints %q", code, stdout.String())
			}
			first, _, _ := strings.Cut(stderr.String(), "\n")
			if !strings.Contains(first, tc.begins) || strings.Contains(stderr.String(), tc.none) {
				t.Errorf("it logs\n%s", stderr.String())
			}
		})
	}
}

// TestWebOptions: what the flags say arrives in the options, 0 as no limit.
func TestWebOptions(t *testing.T) {
	defaults := serve.Options{MaxScrapesInFlight: 40, ReadTimeout: time.Minute, WriteTimeout: time.Minute, IdleTimeout: 5 * time.Minute}
	for name, tc := range map[string]struct {
		flags []string
		want  func(*daemon.Options)
	}{
		"default": {nil, func(*daemon.Options) {}},
		"no_limits": {
			[]string{"--web.max-requests", "0", "--web.read-timeout", "0", "--web.write-timeout", "0", "--web.idle-timeout", "0"},
			func(o *daemon.Options) {
				o.Web.MaxScrapesInFlight, o.Web.ReadTimeout, o.Web.WriteTimeout, o.Web.IdleTimeout = -1, -1, -1, -1
			},
		},
		"limits": {
			[]string{"--web.max-requests", "3", "--web.read-timeout", "1s", "--web.write-timeout", "2s", "--web.idle-timeout", "3s"},
			func(o *daemon.Options) {
				o.Web.MaxScrapesInFlight, o.Web.ReadTimeout, o.Web.WriteTimeout, o.Web.IdleTimeout = 3, time.Second, 2*time.Second,
					3*time.Second
			},
		},
		"connections": {[]string{"--web.max-connections", "7"}, func(o *daemon.Options) { o.Web.MaxConnections = 7 }},
		"hosts": {
			[]string{"--web.allowed-hosts", "a.example,b.example"},
			func(o *daemon.Options) { o.Web.AllowedHosts = []string{"a.example", "b.example"} },
		},
		"any_path": {[]string{"--web.any-path"}, func(o *daemon.Options) { o.Web.AnyPath = true }},
		"created":  {[]string{"--web.created-samples"}, func(o *daemon.Options) { o.CreatedSamples = true }},
		"self": {
			[]string{"--web.self-metrics", "separate", "--web.fork-metrics"},
			func(o *daemon.Options) { o.SelfMetrics, o.ForkMetrics = daemon.SelfSeparate, true },
		},
		"socket": {
			[]string{"--web.listen-address", "unix:/x", "--web.socket-mode", "600"},
			func(o *daemon.Options) { o.ListenAddresses, o.SocketMode = []string{"unix:/x"}, 0o600 },
		},
		"systemd":   {[]string{"--web.systemd-socket"}, func(o *daemon.Options) { o.SystemdSocket = true }},
		"lifecycle": {[]string{"--web.enable-lifecycle"}, func(o *daemon.Options) { o.EnableLifecycle = true }},
		"path": {
			[]string{"--web.telemetry-path", "/m", "--web.shutdown-timeout", "1s"},
			func(o *daemon.Options) { o.TelemetryPath, o.ShutdownTimeout = "/m", time.Second },
		},
	} {
		t.Run(name, func(t *testing.T) {
			var o webOptions
			flags := pflag.NewFlagSet("serve", pflag.ContinueOnError)
			o.addFlags(flags)
			if err := flags.Parse(tc.flags); err != nil {
				t.Fatal(err)
			}
			if err := o.validate(); err != nil {
				t.Fatal(err)
			}
			want := daemon.Options{
				ListenAddresses: []string{":9500"}, SocketMode: 0o660, TelemetryPath: "/metrics", ShutdownTimeout: 10 * time.Second,
				Web: defaults,
			}
			tc.want(&want)
			var got daemon.Options
			o.apply(&got)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, want)
			}
		})
	}
}
