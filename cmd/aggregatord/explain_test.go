package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aggregatord/internal/status"
)

// explained is the JSON of explain.
func explained(t *testing.T, args ...string) status.Explanations {
	t.Helper()
	var all status.Explanations
	if err := json.Unmarshal([]byte(must(t, append([]string{"explain", "--format", "json"}, args...)...)), &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// TestExplain: a daemon and a look at the directory explain alike, and what counts adds up
// to what is served.
func TestExplain(t *testing.T) {
	dir := sourceDir(t)
	path := map[string]string{"path": "/"}
	write(t, dir, "counter_1.db", entry{family: "hits", sample: "hits_total", labels: path, value: 3})
	write(t, dir, "counter_2.db", entry{family: "hits", sample: "hits_total", labels: path, value: 4},
		entry{family: "hits", sample: "hits_total", labels: map[string]string{"path": "/b"}, value: 9})
	bury(t, dir, "counter_3.db", entry{family: "hits", sample: "hits_total", labels: path, value: 5})
	write(t, dir, "gauge_max_1.db", entry{family: "peak", sample: "peak", value: 2})
	write(t, dir, "gauge_max_2.db", entry{family: "peak", sample: "peak", value: 7})
	const series = `hits_total{path="/"}`

	got := must(t, "explain", "--dir", dir, series)
	contains(t, got, series+"  12\n", "counter: the sum of all", "+  3  alive file of worker 1", "+  4  alive file of worker 2",
		"+  5  dead file of worker 3", filepath.Join(dir, "counter_3.db"))
	contains(t, must(t, "explain", "--dir", dir, "peak"), "peak  7\n", "gauge in mode max (by file name): the greatest",
		"=  7  alive file of worker 2", "   2  alive file of worker 1", "another one is greater")
	contains(t, must(t, "explain", "--dir", dir, "--limit", "1", "hits_total"), "\n1 more series match")

	s := startServe(t, "--dir", dir, "--web.listen-address", "127.0.0.1:0")
	eventuallyArchived := func() status.Explanations {
		for {
			all := explained(t, "--url", s.urls[0], series)
			for _, c := range all.Items[0].Contributions {
				if c.Kind == "archive" {
					return all
				}
			}
			if t.Context().Err() != nil {
				t.Fatal("the dead worker's file is not archived")
			}
		}
	}
	live := eventuallyArchived()
	for name, all := range map[string]status.Explanations{"daemon": live, "directory": explained(t, "--dir", dir, series)} {
		if all.Matching != 1 || len(all.Items) != 1 || all.Items[0].Value != 12 || len(all.Items[0].Contributions) < 3 {
			t.Errorf("%s: %+v", name, all)
			continue
		}
		sum := status.Number(0)
		for _, c := range all.Items[0].Contributions {
			if c.Counts {
				sum += c.Value
			}
		}
		if sum != 12 {
			t.Errorf("%s: the contributions add up to %v", name, sum)
		}
	}
	contains(t, must(t, "explain", "--url", s.urls[0], series), "+  5  archive ")
	call(t, "explain", "--url", s.urls[0], "hits").oneLine(t, exitFailure, "No series named hits", "did you mean hits_total?")
	call(t, "explain", "--url", s.urls[0], "aggregatord_files").oneLine(t, exitFailure, "a metric of the daemon itself")
	s.end()
	call(t, "explain", "--url", s.urls[0], series).oneLine(t, exitFailure, "start it, or give its address by --url")
}

// TestExplainRules: what a configuration file says is in the explanation.
func TestExplainRules(t *testing.T) {
	dir := sourceDir(t)
	for _, id := range []string{"1", "2"} {
		write(t, dir, "gauge_all_"+id+".db", entry{family: "busy", sample: "busy", value: 2})
	}
	file := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(file, []byte("metrics:\n  - match: busy\n    gauge_mode: sum\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	contains(t, must(t, "explain", "--dir", dir, "--config.file", file, "busy"), "busy  4\n", `gauge in mode sum (by rule "metrics[0]")`)
	contains(t, must(t, "explain", "--dir", dir, `busy{pid="2"}`), "  2\n", "one for each process")
}

func TestExplainMistakes(t *testing.T) {
	foreign := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/locked") {
			w.WriteHeader(http.StatusUnauthorized)
		}
		io.WriteString(w, "hello") //nolint:errcheck // the client reads it or fails
	}))
	defer foreign.Close()
	for _, tc := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{}, exitUsage, "name the series"},
		{[]string{"a{"}, exitUsage, "selector"},
		{[]string{"--limit", "0", "a"}, exitUsage, "--limit"},
		{[]string{"--format", "xml", "a"}, exitUsage, "--format"},
		{[]string{"--url", "nowhere", "a"}, exitUsage, "--url"},
		{[]string{"--url", "http://x", "--dir", "/", "a"}, exitUsage, "one of them"},
		{[]string{"--url", foreign.URL, "a"}, exitFailure, "does not answer as an aggregatord does"},
		{[]string{"--url", foreign.URL + "/locked", "a"}, exitFailure, "password"},
		{[]string{"--url", "unix:/nonexistent.sock", "a"}, exitFailure, "start it, or give its address by --url"},
		{[]string{"--dir", "/nonexistent", "a"}, exitUsage, "/nonexistent"},
	} {
		t.Run(strings.Join(tc.args, " "), func(t *testing.T) {
			call(t, append([]string{"explain"}, tc.args...)...).oneLine(t, tc.code, tc.says)
		})
	}
}
