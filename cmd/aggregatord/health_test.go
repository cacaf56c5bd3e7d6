package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestHealth: one line, and an exit code that a probe understands, whatever stands between.
func TestHealth(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ready := true
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "probe" || password != "sesame" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		switch {
		case r.URL.Path == "/-/healthy", r.URL.Path == "/-/ready" && ready:
			w.Write([]byte("aggregatord is well\n")) //nolint:errcheck // a test would see it
		case r.URL.Path == "/-/ready":
			http.Error(w, "not ready: stopping\nor so", http.StatusServiceUnavailable)
		default:
			http.NotFound(w, r)
		}
	})
	plain := httptest.NewServer(h)
	defer plain.Close()
	tls := httptest.NewTLSServer(h)
	defer tls.Close()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	unix := &httptest.Server{Listener: l, Config: &http.Server{Handler: h}}
	unix.Start()
	defer unix.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	password := "basic_auth: {username: probe, password: sesame}\n"
	auth := file("auth.yml", password)
	secure := file("tls.yml", password+"tls_config: {insecure_skip_verify: true}\n")
	for _, c := range []struct {
		name  string
		args  []string
		ready bool
		code  int
		words string
	}{
		{"healthy", []string{"--url", plain.URL, "--http.config.file", auth}, true, 0, "aggregatord is well\n"},
		{"whole_address", []string{"--url", plain.URL + "/-/healthy", "--http.config.file", auth}, true, 0, "aggregatord is well\n"},
		{"below_a_path", []string{"--url", plain.URL + "/elsewhere/", "--http.config.file", auth}, true, 1, "404 Not Found"},
		{"ready", []string{"--ready", "--url", plain.URL, "--http.config.file", auth}, true, 0, "aggregatord is well\n"},
		{
			"not_ready",
			[]string{"--ready", "--url", plain.URL, "--http.config.file", auth},
			false, 1,
			"503 Service Unavailable: not ready: stopping\n",
		},
		{"not_ready_but_healthy", []string{"--url", plain.URL, "--http.config.file", auth}, false, 0, "well"},
		{"no_password", []string{"--url", plain.URL}, true, 1, "401 Unauthorized"},
		{"tls", []string{"--url", tls.URL, "--http.config.file", secure}, true, 0, "aggregatord is well\n"},
		{"unknown_authority", []string{"--url", tls.URL, "--http.config.file", auth}, true, 1, "certificate"},
		{"unix", []string{"--url", "unix:" + socket, "--http.config.file", auth}, true, 0, "aggregatord is well\n"},
		{"nobody", []string{"--url", "unix:" + socket + "x"}, true, 1, "no such file"},
		{"no_answer", []string{"--url", "http://" + silent.Addr().String(), "--timeout", "50ms"}, true, 1, "does not answer within 50ms"},
		{"bad_url", []string{"--url", "ftp://x"}, true, exitUsage, "--url"},
		{"bad_timeout", []string{"--timeout", (-time.Second).String()}, true, exitUsage, "--timeout"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ready = c.ready
			got := call(t, append([]string{"health"}, c.args...)...)
			if c.code == 0 {
				if got.code != 0 || got.stderr != "" || got.stdout != c.words && c.words != "well" {
					t.Errorf("%+v", got)
				}
				return
			}
			got.oneLine(t, c.code, c.words)
		})
	}
}
