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
// what their own collectors made of them: with every process alive, and with none.
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
				// In "numbers" there are sums that OpenMetrics has no place for.
				if !strings.HasSuffix(name, "numbers") {
					if got, err = d.openMetrics(); err == nil {
						err = differences(want, got.numericBounds())
					}
					if err != nil {
						t.Errorf("OpenMetrics: %v", err)
					}
				}
				out, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir, "--format", "text")
				if err == nil {
					if got, err = parseText(out); err == nil {
						err = differences(want, got)
					}
				}
				if err != nil {
					t.Errorf("dump: %v", err)
				}
				d.stop()
			})
		}
	}
}
