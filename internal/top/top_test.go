package top

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func total(v float64) *count { c := count(v); return &c }

// TestRates: the fastest comes first, a total that fell began anew, and what is the daemon's own
// or counts nothing is left out.
func TestRates(t *testing.T) {
	at := time.Unix(1000, 0)
	old := &Look{At: at, Families: page[family]{Items: []family{
		{Name: "steady", Total: total(100)}, {Name: "fast", Total: total(100)}, {Name: "restarted", Total: total(500)}, {Name: "own", Own: true, Total: total(0)},
	}}}
	now := &Look{At: at.Add(2 * time.Second), Families: page[family]{Items: []family{
		{Name: "fast", Total: total(300)}, {Name: "gauge"}, {Name: "new", Total: total(8)}, {Name: "own", Own: true, Total: total(900)},
		{Name: "restarted", Total: total(6)}, {Name: "steady", Total: total(100)},
	}}}
	var got []string
	for _, r := range rates(old, now) {
		got = append(got, r.Name)
	}
	if strings.Join(got, " ") != "fast new restarted steady" {
		t.Errorf("got %v", got)
	}
	for i, want := range []float64{100, 4, 3, 0} {
		if r := rates(old, now)[i]; r.perSecond != want {
			t.Errorf("%s: %v per second, want %v", r.Name, r.perSecond, want)
		}
	}
}

// TestFrame: a frame fits, and nothing that a worker wrote reaches the terminal as a command.
func TestFrame(t *testing.T) {
	evil := "\x1b]0;title\x07\x1b[2J\u009b31m\r\nfaked line\u202e\xff"
	now := &Look{At: time.Unix(1000, 0)}
	for range 50 {
		now.Families.Items = append(now.Families.Items, family{Name: evil, Type: evil, Total: total(1)})
		now.Workers.Items = append(now.Workers.Items, worker{ID: evil, Pool: evil, Alive: true, Changed: 990})
	}
	for _, height := range []int{0, 1, 3, 10, 24, 60} {
		for _, width := range []int{0, 1, 20, 80} {
			lines := Frame("http://a", nil, now, width, height)
			if height > 0 && len(lines) > height {
				t.Errorf("%d lines in a height of %d", len(lines), height)
			}
			for _, line := range lines {
				if width > 0 && utf8.RuneCountInString(line) > width {
					t.Errorf("%q in a width of %d", line, width)
				}
				if strings.ContainsAny(line, "\x1b\x07\r\n\u009b\u202e") || !utf8.ValidString(line) {
					t.Errorf("%q", line)
				}
			}
		}
	}
	if all := strings.Join(Frame("http://a", nil, now, 0, 24), "\n"); strings.Count(all, "faked line") < 10 || !strings.Contains(all, "10s ago") {
		t.Errorf("too little is shown:\n%s", all)
	}
}

// TestLookErrors: whoever answers something else is not taken for the daemon, and what the daemon
// refuses is told in its words.
func TestLookErrors(t *testing.T) {
	for name, tc := range map[string]struct{ body, says string }{
		"page":    {"<html>hello</html>", "that is not its API"},
		"empty":   {"{}", "that is not its API"},
		"refusal": {`{"status":"error","errorType":"unavailable","error":"not ready yet"}`, "not ready yet"},
		"shape":   {`{"status":"success","data":[]}`, "read the answer about status"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(tc.body)) }))
			defer server.Close()
			_, err := (&Client{URL: server.URL, HTTP: server.Client()}).Look(t.Context())
			if err == nil || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("got %v, want %q", err, tc.says)
			}
		})
	}
}
