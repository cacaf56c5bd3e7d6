package main

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKindOf(t *testing.T) {
	for text, want := range map[string]string{
		"http://gateway:9091":                       "pushgateway",
		"https://gateway/push/gateway/":             "pushgateway",
		"http://prometheus:9090/api/v1/write":       "remote_write",
		"https://mimir/api/v1/push":                 "remote_write",
		"http://collector:4318/v1/metrics":          "otlp",
		"http://prom:9090/api/v1/otlp/v1/metrics":   "otlp",
		"graphite://carbon:2003":                    "graphite",
		"file:///var/lib/a.prom":                    "textfile",
		"/var/lib/a.prom":                           "textfile",
		"a.prom":                                    "textfile",
		"http://user:password@gateway:9091/?x=/v1/": "pushgateway",
	} {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := kindOf(u); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestPushMistakes(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"nowhere": {nil, "where to? Give --to URL, or --output NAME"},
		"both":    {[]string{"--to", "a.prom", "--output", "a"}, "where to?"},
		"no job": {
			[]string{"--to", "http://u:secret@gateway"},
			"--to http://u:xxxxx@gateway is taken for a Pushgateway: give the job a name, by --job",
		},
		"no such output": {[]string{"--output", "a"}, "--output a: the configuration file has no output of this name, but none at all"},
		"protocol":       {[]string{"--to", "a.prom", "--as", "smtp"}, "--as smtp: use one of auto, textfile, pushgateway"},
		"match":          {[]string{"--to", "a.prom", "--match", "("}, "missing closing )"},
		"graphite":       {[]string{"--to", "carbon", "--as", "graphite"}, `"carbon" is not host:port`},
	} {
		t.Run(name, func(t *testing.T) {
			got := call(t, append([]string{"push", "--dir", dir}, c.args...)...)
			if got.code != exitUsage || !strings.Contains(got.stderr, c.want) || strings.Contains(got.stderr, "secret") {
				t.Errorf("exit code %d: %s", got.code, got.stderr)
			}
		})
	}
	got := call(t, "run", "--push.job", "j", "--", "true")
	if got.code != exitUsage || !strings.Contains(got.stderr, "where to? Give --push.pushgateway URL") {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
}

// TestPush: once, to an output of the file and to what a flag says; and a receiver that refuses
// makes the exit code 1.
func TestPush(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			http.Error(w, "full", http.StatusInsufficientStorage)
		}
	}))
	defer s.Close()
	dir := t.TempDir()
	file := filepath.Join(t.TempDir(), "a.prom")
	config := filepath.Join(t.TempDir(), "a.yml")
	if err := os.WriteFile(config, []byte("outputs:\n  - {name: node, textfile: {path: "+file+"}}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	got := call(t, "push", "--dir", dir, "--config.file", config, "--output", "node")
	if got.code != 0 || got.stdout != file+": 0 samples\n" {
		t.Errorf("exit code %d: %s%s", got.code, got.stdout, got.stderr)
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
	if got = call(t, "push", "--dir", dir, "--to", s.URL, "--job", "j"); got.code != 0 {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
	got = call(t, "push", "--dir", dir, "--to", s.URL, "--job", "j", "--method", "post")
	if got.code != exitFailure || !strings.Contains(got.stderr, `507 Insufficient Storage: "full"`) {
		t.Errorf("exit code %d: %s", got.code, got.stderr)
	}
}
