package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestSameDirectoryTwice: under two names a directory would be served, and counted, twice.
func TestSameDirectoryTwice(t *testing.T) {
	dir := sourceDir(t)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(filepath.Dir(dir))
	for name, other := range map[string]string{
		"same": dir, "slash": dir + "/", "link": link, "relative": filepath.Base(dir),
	} {
		t.Run(name, func(t *testing.T) {
			c := call(t, "dump", "--dir", "a="+dir, "--dir", "b="+other)
			if c.code != 2 {
				t.Errorf("exit code %d, want 2", c.code)
			}
			contains(t, c.stderr, `pools "a" and "b" have the same directory, `+dir+"; name it once")
		})
	}
	must(t, "dump", "--dir", "a="+dir, "--dir", "b="+t.TempDir())
}
