package main

import (
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
