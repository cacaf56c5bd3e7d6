package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"aggregatord/internal/demo"
)

// The demo executes its own program again for each worker, which here is the test binary.
// That is settled before any test could run, or every worker would run them all.
func init() {
	if slices.Equal(os.Args[1:], demo.WorkerArgs()) {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
	}
}

// lockedBuffer is what a command prints, read while it runs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// demoMetrics gets the metrics from where the demo says they are, "" if they are not there yet.
func demoMetrics(stdout string) string {
	url := regexp.MustCompile(`http://\S+/metrics`).FindString(stdout)
	if url == "" {
		return ""
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return ""
	}
	return string(body)
}

// TestDemo starts the demo as a user does, looks where it says, and ends it.
func TestDemo(t *testing.T) {
	// The race detector waits a second at the end of each process unless told otherwise.
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var stdout, stderr lockedBuffer
	code := make(chan int, 1)
	args := []string{
		"demo", "--web.listen-address", "localhost:0", "--workers", "2", "--requests-per-second", "400", "--max-requests",
		"50", "--kill-every", "300ms",
	}
	go func() { code <- run(ctx, args, &stdout, &stderr) }()

	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		metrics := demoMetrics(stdout.String())
		if strings.Contains(metrics, `http_requests_total{method="GET",path="/",status="200"}`) &&
			strings.Count(metrics, "\nworker_memory_bytes{") > 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no metrics of several generations of workers.\nstdout:\n%s\nstderr:\n%s\nmetrics:\n%s", stdout.String(),
				stderr.String(), metrics)
		}
	}
	dir := regexp.MustCompile(`\S+aggregatord-demo-\S+`).FindString(stdout.String())
	// Two work at a time, but for the moments in which one has ended or has just begun.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		files, err := filepath.Glob(filepath.Join(dir, "gauge_livesum_*.db"))
		if err == nil && len(files) >= 2 {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Errorf("in %q: %q, %v", dir, files, err)
			break
		}
	}
	stop()
	select {
	case c := <-code:
		if c != 0 {
			t.Errorf("exit code %d", c)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the demo does not end")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory %q is still there: %v", dir, err)
	}
}

// TestDemoDuration ends by itself, and leaves a directory that the user named.
func TestDemoDuration(t *testing.T) {
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	dir := filepath.Join(t.TempDir(), "shop")
	var stdout, stderr lockedBuffer
	if code := run(context.Background(), []string{"demo", "--duration", "300ms", "--dir", dir, "--web.listen-address", "localhost:0"},
		&stdout, &stderr); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
	// The workers may have died early enough for their files to be archived.
	files, err := os.ReadDir(dir)
	if err != nil || len(files) == 0 {
		t.Errorf("%q, %v", files, err)
	}
}

func TestDemoErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"address_taken": {
			[]string{"--web.listen-address", taken.Addr().String()},
			exitFailure,
			"choose another address by --web.listen-address",
		},
		"second_taken": {
			[]string{"--web.listen-address", "localhost:0", "--web.listen-address", taken.Addr().String()},
			exitFailure,
			fmt.Sprintf("port %d is in use by ", taken.Addr().(*net.TCPAddr).Port),
		},
		"no_address":     {[]string{"--web.listen-address", "9500"}, exitUsage, "host:port"},
		"no_workers":     {[]string{"--workers", "0"}, exitUsage, "--workers"},
		"no_requests":    {[]string{"--requests-per-second", "0"}, exitUsage, "--requests-per-second"},
		"not_a_rate":     {[]string{"--requests-per-second", "NaN"}, exitUsage, "--requests-per-second"},
		"negative_limit": {[]string{"--max-requests", "-1"}, exitUsage, "--max-requests"},
		"negative_kills": {[]string{"--kill-every", "-1s"}, exitUsage, "--kill-every"},
		"negative_time":  {[]string{"--duration", "-1s"}, exitUsage, "--duration"},
		"argument":       {[]string{"now"}, exitUsage, "takes no arguments"},
		"unknown_flag":   {[]string{"--forks", "3"}, exitUsage, "--forks"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr lockedBuffer
			dir := filepath.Join(t.TempDir(), "d")
			code := run(context.Background(), append([]string{"demo", "--dir", dir, "--duration", "1ms"}, tc.args...), &stdout, &stderr)
			said := stderr.String()
			if code != tc.code || strings.Count(said, "\n") != 1 || !strings.Contains(said, tc.says) {
				t.Errorf("exit code %d, want %d; it says %q", code, tc.code, said)
			}
			if _, err := os.Stat(dir); err == nil || stdout.String() != "" {
				t.Errorf("it began nevertheless: %v, %q", err, stdout.String())
			}
		})
	}
}

func TestReachable(t *testing.T) {
	for listen, want := range map[string]string{
		":9500": "localhost:9500", "0.0.0.0:9500": "localhost:9500", "[::]:80": "localhost:80",
		"127.0.0.1:1": "127.0.0.1:1", "[::1]:2": "[::1]:2", "example.org:3": "example.org:3",
	} {
		if got := reachable(listen); got != want {
			t.Errorf("reachable(%q) = %q, want %q", listen, got, want)
		}
	}
}

func TestFreeAddresses(t *testing.T) {
	addrs, err := freeAddresses([]string{"localhost:0", "127.0.0.1:0"})
	if err != nil || len(addrs) != 2 || addrs[0] == addrs[1] {
		t.Fatalf("%q, %v", addrs, err)
	}
	// They are free to take, and named as they were.
	for i, host := range []string{"localhost:", "127.0.0.1:"} {
		l, err := net.Listen("tcp", addrs[i])
		if err != nil || !strings.HasPrefix(addrs[i], host) || addrs[i] == host+"0" {
			t.Fatalf("%q, %v", addrs, err)
		}
		l.Close()
	}
}
