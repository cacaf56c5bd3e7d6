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
