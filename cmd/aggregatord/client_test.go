package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestHTTPConfigFile: what is wrong with the file is said in one line that names it, and
// no daemon is asked.
func TestHTTPConfigFile(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	commands := [][]string{{"explain", "a"}, {"top"}, {"doctor", "--dir", dir}}
	for _, c := range []struct {
		file  string
		words string
	}{
		{filepath.Join(dir, "absent.yml"), "no such file or directory"},
		{file("key.yml", "basic_aut: {username: a}\n"), "basic_aut"},
		{file("both.yml", "basic_auth: {username: a, password: b, password_file: c}\n"), "password_file"},
		{file("ca.yml", "tls_config: {ca_file: gone.crt}\n"), filepath.Join(dir, "gone.crt")},
		{file("text.yml", "tls_config: {ca_file: text.yml}\n"), "CA"},
	} {
		for _, command := range commands {
			call(t, append(command, "--http.config.file", c.file)...).oneLine(t, exitUsage, "--http.config.file", c.file, c.words)
		}
	}
}

// TestDialLocalhost: localhost is both loopback addresses, whatever the resolver says.
func TestDialLocalhost(t *testing.T) {
	for _, loopback := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", loopback)
		if err != nil {
			t.Logf("no listener on %s: %v", loopback, err)
			continue
		}
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := dialLoopback(t.Context(), "tcp", net.JoinHostPort("localhost", port))
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != l.Addr().String() {
			t.Errorf("connected to %s, want %s", got, l.Addr())
		}
		conn.Close()
		l.Close()
		if _, err := dialLoopback(t.Context(), "tcp", net.JoinHostPort("localhost", port)); err == nil {
			t.Error("connected to nobody")
		}
	}
}

// TestURL: what people paste is the address of the daemon.
func TestURL(t *testing.T) {
	for given, want := range map[string]string{
		"http://localhost:9500": "http://localhost:9500", "localhost:9500": "http://localhost:9500", "127.0.0.1:1": "http://127.0.0.1:1",
		"[::1]:2":                "http://[::1]:2",
		"http://localhost:9500/": "http://localhost:9500/", "http://localhost:9500/metrics": "http://localhost:9500",
		"localhost:9500/metrics?name[]=x":    "http://localhost:9500",
		"https://proxy.example/shop/metrics": "https://proxy.example/shop", "http://a:1/#metric/hits": "http://a:1/",
		"http://a:1/api/v1/status": "http://a:1", "http://a:1/-/ready": "http://a:1",
	} {
		c, err := (&clientOptions{url: given}).client()
		if err != nil {
			t.Errorf("%s: %v", given, err)
		} else if got := c.base.String(); got != want {
			t.Errorf("%s is the daemon %s, want %s", given, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for given, want := range map[string]string{
		"7d": "1w", "1h30m": "1h30m", "90s": "1m30s", "0": "0", "0s": "0", "1.5s": "1s500ms",
		"500us": "500µs", "-1s": "-1s",
	} {
		var d duration
		if err := d.Set(given); err != nil || d.String() != want {
			t.Errorf("%s is %s, %v; want %s", given, d.String(), err, want)
		}
	}
}
