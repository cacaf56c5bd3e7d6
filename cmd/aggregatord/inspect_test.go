package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"aggregatord/internal/store"
)

// sourceFile returns the bytes of a good source file of three entries, and where the
// second and the last of them begin.
func sourceFile(t *testing.T) (content []byte, second, last int) {
	t.Helper()
	dir := sourceDir(t)
	w := write(t, dir, "counter_7.db", entry{family: "c", sample: "c_total", labels: labels("path", "/"), value: 1})
	second = int(w.UsedBytes())
	for _, e := range []entry{
		{family: "c", sample: "c_total", labels: labels("path", oddLabel), value: 2.5},
		{family: "c", sample: "c_total", labels: labels("path", "last"), value: 3},
	} {
		last = int(w.UsedBytes())
		slot, err := w.Slot(e.key(t))
		if err != nil {
			t.Fatal(err)
		}
		w.Add(slot, e.value)
	}
	used := w.UsedBytes()
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(dir, "counter_7.db"))
	if err != nil {
		t.Fatal(err)
	}
	return content[:used+64], second, last
}

// inspectJSON reads what inspect --json printed.
func inspectJSON(t *testing.T, out string) []jsonFile {
	t.Helper()
	var files []jsonFile
	d := json.NewDecoder(strings.NewReader(out))
	d.DisallowUnknownFields()
	for d.More() {
		var f jsonFile
		if err := d.Decode(&f); err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		files = append(files, f)
	}
	return files
}

// contains checks that a text has every one of the parts.
func contains(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
}

// TestInspectRuby prints a file of the Ruby client: what is in it, and whose it is.
func TestInspectRuby(t *testing.T) {
	path := filepath.Join(sourceDir(t), "histogram_7-0.db")
	w, err := store.OpenWriter(path, store.WriterOptions{Width: store.Narrow})
	if err != nil {
		t.Fatal(err)
	}
	for i, le := range []string{"+Inf", "1"} {
		slot, err := w.Slot([]byte(`["h","h_bucket",["le"],["` + le + `"]]`))
		if err != nil {
			t.Fatal(err)
		}
		w.Set(slot, float64(5-i), 0)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	contains(t, must(t, "inspect", path), "histogram of worker 7\n", "for Ruby", `h_bucket{le="+Inf"}  5`+"\n", `h_bucket{le="1"}  4`+"\n")
	if files := inspectJSON(t, must(t, "inspect", "--json", path)); files[0].Worker != "7" || len(files[0].Entries) != 2 {
		t.Errorf("%+v", files)
	}
}

// TestInspect prints good files.
func TestInspect(t *testing.T) {
	dir := sourceDir(t)
	bury(t, dir, "counter_7.db",
		entry{family: "c", sample: "c_total", labels: labels("path", oddLabel, "code", "200"), value: 2.5},
		entry{family: "d", sample: "d_total", value: 1e300},
	)
	write(t, dir, "gauge_livemostrecent_puma_0.db", entry{family: "last", sample: "last", value: 3, stamp: 1_700_000_000.25})
	bury(t, dir, "histogram_8.db")
	counter, gauge, empty := filepath.Join(dir, "counter_7.db"), filepath.Join(dir, "gauge_livemostrecent_puma_0.db"),
		filepath.Join(dir, "histogram_8.db")

	text := must(t, "inspect", counter, gauge, empty)
	contains(t, text,
		counter+"\n", "counter of worker 7\n", "entries 2\n", "wide (value and timestamp)",
		`c_total{code="200",path="a \"quoted\" \\ path\nof two lines, crème"}  2.5`+"\n", "d_total  1e+300\n",
		gauge+"\n", "gauge livemostrecent of worker puma_0\n", "last  3  set 2023-11-14T22:13:20.25Z\n",
		empty+"\n", "histogram of worker 8\n", "entries 0\n", "unknown (no entry)",
	)
	if strings.Contains(text, "DAMAGE") {
		t.Errorf("damage in good files:\n%s", text)
	}

	files := inspectJSON(t, must(t, "inspect", "--json", counter, gauge, empty))
	if len(files) != 3 {
		t.Fatalf("%d objects for 3 files", len(files))
	}
	c, g, e := files[0], files[1], files[2]
	if c.Path != counter || c.Type != "counter" || c.Worker != "7" || c.Mode != "" || c.NameError != "" || c.SizeBytes != 65536 ||
		c.Width != 16 || c.Damage != nil || len(c.Entries) != 2 {
		t.Errorf("%+v", c)
	}
	first := c.Entries[0]
	if first.Family != "c" || first.Sample != "c_total" || first.Labels["path"] != oddLabel || first.Labels["code"] != "200" ||
		first.Help != "Help of c." || first.Value != "2.5" || first.Offset != 8 || first.Stamp != 0 {
		t.Errorf("%+v", first)
	}
	if c.Entries[1].Offset <= first.Offset || c.UsedBytes <= c.Entries[1].Offset {
		t.Errorf("offsets %d, %d, used %d", first.Offset, c.Entries[1].Offset, c.UsedBytes)
	}
	if g.Type != "gauge" || g.Mode != "livemostrecent" || g.Worker != "puma_0" || len(g.Entries) != 1 ||
		g.Entries[0].Stamp != 1_700_000_000.25 {
		t.Errorf("%+v", g)
	}
	if e.Entries == nil || len(e.Entries) != 0 || e.UsedBytes != 8 {
		t.Errorf("%+v", e)
	}
}

// TestInspectUnreadableKey: a key that cannot be read is shown with its value, and the exit code and
// the error say where it is; the file is not damaged.
func TestInspectUnreadableKey(t *testing.T) {
	good, _, last := sourceFile(t)
	copy(good[last+4:], "no key")
	path := filepath.Join(t.TempDir(), "counter_7.db")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	c := call(t, "inspect", path)
	text := c.stdout
	c.stdout = ""
	c.oneLine(t, exitFailure, path, "1 of 3 keys cannot be read", fmt.Sprint("at byte ", last))
	contains(t, text, "UNREADABLE KEY", `"no key`, "c_total{path=")
	if strings.Contains(text, "DAMAGE") {
		t.Errorf("it is called damaged:\n%s", text)
	}
}

// TestInspectDamaged: the exit code, the error and both outputs say where the damage is,
// and what comes before it is shown.
func TestInspectDamaged(t *testing.T) {
	good, _, last := sourceFile(t)
	put32 := func(at int, v int32) func([]byte) []byte {
		return func(b []byte) []byte {
			binary.LittleEndian.PutUint32(b[at:], uint32(v))
			return b
		}
	}
	used := int(binary.LittleEndian.Uint32(good))
	for name, tc := range map[string]struct {
		damage func([]byte) []byte
		reason string
		offset int
		before int // entries that can still be shown
	}{
		"cut_short":       {func(b []byte) []byte { return b[:last+8] }, "used_past_end", 0, 2},
		"short_header":    {func(b []byte) []byte { return b[:5] }, "short_header", 0, 0},
		"used_negative":   {put32(0, -8), "used_negative", 0, 3},
		"used_huge":       {put32(0, 1<<30), "used_past_end", 0, 3},
		"used_misaligned": {put32(0, int32(used-3)), "used_misaligned", 0, 2},
		"torn_last_entry": {put32(0, int32(used-8)), "torn_entry", -1, 2},
		"bad_key_length":  {put32(last, -1), "bad_key_length", last, 2},
		"zero_key_length": {put32(last, 0), "bad_key_length", last, 2},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "counter_7.db")
			if err := os.WriteFile(path, tc.damage(slices.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			c := call(t, "inspect", path)
			text := c.stdout
			c.stdout = ""
			c.oneLine(t, exitFailure, path, "at byte", tc.reason)
			contains(t, text, "DAMAGE", tc.reason, "at byte")
			if n := strings.Count(text, "  c_total{"); n < tc.before {
				t.Errorf("%d entries shown, want %d:\n%s", n, tc.before, text)
			}

			c = call(t, "inspect", "--json", path)
			if c.code != exitFailure {
				t.Errorf("exit code %d with --json", c.code)
			}
			f := inspectJSON(t, c.stdout)[0]
			if f.Damage == nil || f.Damage.Reason != tc.reason || f.Damage.Error == "" {
				t.Fatalf("%+v", f.Damage)
			}
			if tc.offset >= 0 && f.Damage.Offset != int64(tc.offset) {
				t.Errorf("damage at byte %d, want %d", f.Damage.Offset, tc.offset)
			}
			if len(f.Entries) < tc.before {
				t.Errorf("%d entries, want %d", len(f.Entries), tc.before)
			}
		})
	}
}

// TestInspectBadKey: an entry whose key is well formed on the outside only is shown as it
// is, and those behind it too.
func TestInspectBadKey(t *testing.T) {
	good, second, _ := sourceFile(t)
	key := good[second+4:]
	copy(key, strings.Replace(string(key[:40]), `["c",`, `["c";`, 1))
	path := filepath.Join(t.TempDir(), "counter_7.db")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	c := call(t, "inspect", path)
	contains(t, c.stdout, "UNREADABLE KEY", `path="last"`)
	c.stdout = ""
	c.oneLine(t, exitFailure, path, "1 of 3 keys", "byte")

	c = call(t, "inspect", "--json", path)
	f := inspectJSON(t, c.stdout)[0]
	if c.code != exitFailure || len(f.Entries) != 3 || f.Entries[1].KeyError == "" || f.Entries[1].Offset != int64(second) ||
		f.Entries[2].KeyError != "" || f.Damage != nil {
		t.Errorf("exit code %d, %+v", c.code, f)
	}
}

// TestInspectOthers is about files that are not what inspect is for.
func TestInspectOthers(t *testing.T) {
	good, _, _ := sourceFile(t)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Run("foreign_name", func(t *testing.T) {
		// A copy that somebody made to send around.
		path := file("copy-of-counter.bin", good)
		contains(t, must(t, "inspect", path), "not the name of a source file", "entries 3", `path="last"`)
		f := inspectJSON(t, must(t, "inspect", "--json", path))[0]
		if f.NameError == "" || f.Type != "" || len(f.Entries) != 3 {
			t.Errorf("%+v", f)
		}
	})
	t.Run("foreign_content", func(t *testing.T) {
		path := file("counter_9.db", []byte("#!/bin/sh\necho nothing of the kind\n"))
		c := call(t, "inspect", path)
		c.stdout = ""
		c.oneLine(t, exitFailure, path, "damaged at byte 0")
	})
	t.Run("client_that_is_not_read", func(t *testing.T) {
		c := call(t, "inspect", file("metric_a___1.bin", good), file("metric_b___1.bin", good))
		contains(t, c.stderr, "metric_a___1.bin", "client_ruby (DirectFileStore), which is not read yet", "1 more file")
		if c.stdout != "" || strings.Contains(c.stderr, "damaged") {
			t.Errorf("prints %q and %q", c.stdout, c.stderr)
		}
	})
	t.Run("no_bytes", func(t *testing.T) {
		path := file("counter_10.db", nil)
		contains(t, must(t, "inspect", path), "size    0 bytes, 0 used", "entries 0")
	})
	t.Run("archive_of_the_postmates_fork", func(t *testing.T) {
		contains(t, must(t, "inspect", file("gauge_max.db", good)), "archive of the postmates fork: gauge max")
	})
	t.Run("missing", func(t *testing.T) {
		path := filepath.Join(dir, "missing")
		call(t, "inspect", path).oneLine(t, exitFailure, path, "no such file or directory")
	})
	t.Run("directory", func(t *testing.T) {
		call(t, "inspect", dir).oneLine(t, exitFailure, dir, "not a regular file",
			"it is a directory: give its files, "+filepath.Join(dir, "*.db"))
	})
	t.Run("fifo", func(t *testing.T) {
		path := filepath.Join(dir, "counter_11.db")
		if err := syscall.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		call(t, "inspect", path).oneLine(t, exitFailure, path, "not a regular file")
	})
	t.Run("one_of_three_missing", func(t *testing.T) {
		a, b := file("counter_1.db", good), file("counter_2.db", good)
		missing := filepath.Join(dir, "missing")
		c := call(t, "inspect", "--json", a, missing, b)
		files := inspectJSON(t, c.stdout)
		if len(files) != 2 || files[0].Path != a || files[1].Path != b {
			t.Errorf("%+v", files)
		}
		c.stdout = ""
		c.oneLine(t, exitFailure, missing)
	})
}
