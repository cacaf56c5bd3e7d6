package integration

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// anonymousBytes is how much memory of its own a process has in use.
func anonymousBytes(pid int) (int, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("process %d has no RssAnon", pid)
}

// TestHostileClients has 500 connections of clients that do what they should not, beside one that
// scrapes: all its scrapes are right, and the memory is given back. How long they took is logged:
// on a busy machine it says more about that than about us. AGGREGATORD_SOAK is how long it goes on.
func TestHostileClients(t *testing.T) {
	const series = 3000
	entries := make([]entry, series)
	for i := range entries {
		entries[i] = entry{fmt.Sprintf(`["load", "load_total", {"path": "/order/%d"}, "Help."]`, i), 3}
	}
	dir := sourceDir(t)
	worker, err := os.Create(filepath.Join(dir, "counter_1.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer worker.Close() // until then it lives
	if _, err := worker.Write(sourceFile(1<<20, entries...)); err != nil {
		t.Fatal(err)
	}
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	// The shell becomes the plain daemon in place of the one that it is given.
	d := startDaemonBy(t, []string{"/bin/sh", "-c", `shift; exec "$0" "$@"`, plain}, nil, "serve", "--dir", dir, "--web.max-connections", "600")
	scrape := func() time.Duration {
		t.Helper()
		start := time.Now()
		body, _, err := d.get("/metrics", acceptText)
		if err != nil {
			t.Fatal(err)
		}
		took := time.Since(start)
		if n := strings.Count(string(body), "load_total{"); n != series || !strings.Contains(string(body), `load_total{path="/order/2999"} 3`) {
			t.Fatalf("%d series, want %d", n, series)
		}
		return took
	}
	p99 := func(scrapes []time.Duration) time.Duration {
		slices.Sort(scrapes)
		return scrapes[len(scrapes)*99/100]
	}
	var quiet, busy []time.Duration
	for range 100 {
		quiet = append(quiet, scrape())
	}
	before, err := anonymousBytes(d.cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}

	address := strings.TrimPrefix(d.URL, "http://")
	request := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n" }
	costly := request("/api/v1/series?match=" + url.QueryEscape(`{path=~"(a?){400}z"}`))
	done := make(chan struct{})
	var clients sync.WaitGroup
	// attack has n clients connect, send a text and hold the connection for a while, again and again.
	attack := func(n int, text string, hold time.Duration) {
		for range n {
			clients.Go(func() { // until done is closed
				for {
					if c, err := net.Dial("tcp", address); err == nil {
						c.Write([]byte(text)) //nolint:errcheck // it may be thrown out
						select {
						case <-done:
						case <-time.After(hold):
						}
						c.Close()
					}
					select {
					case <-done:
						return
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
	}
	attack(150, "", time.Hour)                                                   // idle
	attack(100, strings.Repeat(request("/metrics"), 50), time.Hour)              // asks, and never reads
	attack(100, request("/metrics"), 0)                                          // asks, and leaves at once
	attack(50, "GET /metrics HTTP/1.1\r\nHost: lo", time.Hour)                   // never ends its header
	attack(50, costly, time.Second)                                              // an expensive question
	attack(50, strings.Repeat("x\r\n", 1000), 10*time.Millisecond)               // nonsense
	for end := time.Now().Add(soak(t, 5*time.Second)); time.Now().Before(end); { // at least some
		busy = append(busy, scrape())
		time.Sleep(20 * time.Millisecond)
	}
	close(done)
	clients.Wait()
	if len(busy) < 3 {
		t.Errorf("only %d scrapes", len(busy))
	}
	most, _ := anonymousBytes(d.cmd.Process.Pid)
	eventually(t, 2*time.Minute, func() error {
		scrape()
		after, err := anonymousBytes(d.cmd.Process.Pid)
		if err == nil && after > before+before/10+4<<20 {
			err = fmt.Errorf("RssAnon is %d KiB, was %d", after>>10, before>>10)
		}
		return err
	})
	after, _ := anonymousBytes(d.cmd.Process.Pid)
	t.Logf("p99 of %d quiet scrapes %v, of %d beside hostile clients %v; RssAnon %d KiB, then %d, then %d",
		len(quiet), p99(quiet), len(busy), p99(busy), before>>10, most>>10, after>>10)
}
