package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// copyCase copies the source files of a corpus case. The recorded ones are never opened for
// writing.
func copyCase(t *testing.T, from string) string {
	t.Helper()
	dir := sourceDir(t)
	files, err := filepath.Glob(filepath.Join(from, "*.db"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no source files in %s: %v", from, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, filepath.Base(file)), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// hold opens every source file of dir for writing, as a live worker has it, until the test
// ends. To the daemon this test is another process like any worker.
func hold(t *testing.T, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
	}
}

// TestCorpus serves and dumps directories that the real clients wrote, and compares with
// what their own collectors made of them: with every process alive, with none, and with
// all of it archived.
func TestCorpus(t *testing.T) {
	t.Parallel()
	root := filepath.Join(moduleRoot, "testdata", "corpus")
	cases, err := filepath.Glob(filepath.Join(root, "*", "*", "expected.prom"))
	if err != nil || len(cases) == 0 {
		t.Fatalf("no corpus in %s: %v", root, err)
	}
	for _, file := range cases {
		from := filepath.Dir(file)
		name, err := filepath.Rel(root, from)
		if err != nil {
			t.Fatal(err)
		}
		for _, alive := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/alive=%v", filepath.ToSlash(name), alive), func(t *testing.T) {
				t.Parallel()
				dir := copyCase(t, from)
				expected := "expected.dead.prom"
				if alive {
					expected = "expected.prom"
					hold(t, dir)
				}
				body, err := os.ReadFile(filepath.Join(from, expected))
				if err != nil {
					t.Fatal(err)
				}
				want, err := parseText(body)
				if err != nil {
					t.Fatal(err)
				}
				d := serve(t, "--dir", dir)
				// In "numbers" there are sums that OpenMetrics has no place for.
				strict := !strings.HasSuffix(name, "numbers")
				compareCorpus(t, d, dir, want, strict)
				if !alive {
					awaitFolded(t, dir)
					compareCorpus(t, d, dir, want, strict)
				}
				d.stop()
			})
		}
	}
}

// compareCorpus compares what the daemon serves in each format, and what dump prints, with
// what a client's collector made of the directory.
func compareCorpus(t *testing.T, d *daemon, dir string, want view, strict bool) {
	t.Helper()
	got, err := d.text()
	if err == nil {
		err = differences(want, got)
	}
	if err != nil {
		t.Errorf("text: %v", err)
	}
	if got, err = d.protobuf(); err == nil {
		err = differences(want, got)
	}
	if err != nil {
		t.Errorf("protobuf: %v", err)
	}
	if strict {
		if got, err = d.openMetrics(); err == nil {
			err = differences(want, got.numericBounds())
		}
		if err != nil {
			t.Errorf("OpenMetrics: %v", err)
		}
	}
	if got, err = parseText(dump(t, "--dir", dir)); err == nil {
		err = differences(want, got)
	}
	if err != nil {
		t.Errorf("dump: %v", err)
	}
}
