package nearest

import (
	"strings"
	"testing"
)

func TestWord(t *testing.T) {
	commands := []string{"serve", "run", "dump", "explain"}
	for word, want := range map[string]string{
		"sevre": "serve", "SERVE": "serve", "dum": "dump", "explian": "explain", "xyzzy": "",
		"": "",
	} {
		if got := Word(word, commands); got != want {
			t.Errorf("%q is near %q, want %q", word, got, want)
		}
	}
}

func TestName(t *testing.T) {
	names := []string{"http_requests_total", "http_request_duration_seconds", "http_request_duration_seconds_bucket", "inprogress"}
	for name, want := range map[string]string{
		"http_requests": "http_requests_total", "requests": "http_requests_total", "htpp_requests_total": "http_requests_total",
		"duration_seconds": "http_request_duration_seconds", "cpu_seconds_total": "", "in": "",
	} {
		if got := Name(name, names); got != want {
			t.Errorf("%q is near %q, want %q", name, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	long := strings.Repeat("a", 100)
	for _, tc := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"ab", "ba", 1}, {"dri", "dir", 1}, {"kitten", "sitting", 3}, {long, long, 0}, {long, "a", 100}} {
		if got := Distance(tc.a, tc.b); got != tc.want {
			t.Errorf("from %q to %q: %d, want %d", tc.a, tc.b, got, tc.want)
		}
	}
}
