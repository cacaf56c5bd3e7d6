package doctor

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestEndpoint: what is said of a daemon is what it answers, not a guess.
func TestEndpoint(t *testing.T) {
	for name, tc := range map[string]struct {
		ready, metrics int
		delay          time.Duration
		level          Level
		words          string
	}{
		"not_ready":     {ready: 503, level: Problem, words: "is not ready"},
		"password":      {ready: 401, level: Warning, words: "asks for a password"},
		"somebody_else": {ready: 404, level: Problem, words: "answers 404 Not Found: that is not aggregatord"},
		"other_path":    {ready: 200, metrics: 404, level: Warning, words: "at another path than /metrics"},
		"too_many":      {ready: 200, metrics: 503, level: Warning, words: "answers 503 Service Unavailable when asked for metrics"},
		"too_slow":      {ready: 200, metrics: 200, delay: time.Minute, level: Warning, words: "gives no metrics: Get "},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/-/ready" {
					w.WriteHeader(tc.ready)
					return
				}
				select {
				case <-time.After(tc.delay):
				case <-r.Context().Done():
				}
				w.WriteHeader(tc.metrics)
			}))
			defer server.Close()
			u, err := url.Parse(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			e := &examination{opts: Options{Daemon: &Daemon{URL: u, Name: server.URL, Client: server.Client()}, Timeout: 300 * time.Millisecond}}
			if tc.delay == 0 {
				e.opts.Timeout = time.Minute
			}
			e.daemon(t.Context())
			if len(e.findings) != 1 || e.findings[0].Level != tc.level || !strings.Contains(e.findings[0].Found, tc.words) {
				t.Errorf("found %v, want one %s that says %q", e.findings, tc.level, tc.words)
			}
		})
	}
}
