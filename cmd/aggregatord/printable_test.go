package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
)

// TestPrintable: what workers write, names of files and labels alike, comes out of no command
// as anything that a terminal acts upon. Those commands are left out whose output is for
// programs, byte for byte, unless a terminal gets it.
func TestPrintable(t *testing.T) {
	const evil = "evil\x1b]0;owned\a\x1b[2J\u009b31m\r\nfaked line\u202e"
	dir := sourceDir(t)
	labels := map[string]string{"label": evil, evil: "x"}
	name := "counter_1" + evil + ".db"
	write(t, dir, name, entry{family: "hits", sample: "hits_total", labels: map[string]string{"label": evil}, value: 3})
	write(t, dir, "counter_2"+evil+".db", entry{family: evil, sample: evil, labels: labels, value: 3})
	write(t, dir, "gauge_all_3"+evil+".db", entry{family: "busy", sample: "busy", value: 3})
	bury(t, dir, "gauge_all_4"+evil+".db", entry{family: "busy", sample: "busy", value: 3})
	bury(t, dir, "counter_5.db", entry{family: "hits", sample: "hits_total", labels: map[string]string{"label": evil}, value: 3})
	if err := os.WriteFile(filepath.Join(dir, "counter_6"+evil+".db"), []byte("\xff\xff\xff\x7fgarbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(config, []byte("metrics:\n  - match: busy\n    gauge_mode: sum\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wrong := filepath.Join(t.TempDir(), "wrong.yml")
	if err := os.WriteFile(wrong, []byte(`"k\e[2Jey": 1`+"\nexternal_labels: {\"\\e[2J\": a}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := startServe(t, "--dir", dir, "--web.listen-address", "127.0.0.1:0")
	for !strings.Contains(call(t, "archive", "list", "--dir", dir).stdout, "of worker 4") {
		if t.Context().Err() != nil {
			t.Fatal("the dead worker's files are not archived")
		}
	}
	for what, tc := range map[string]struct {
		args []string
		says string // what shows that the hostile text is in it at all
	}{
		"archive_list": {[]string{"archive", "list", "--dir", dir}, "owned"},
		"archive_stat": {[]string{"archive", "stat", "--dir", dir}, "folded"},
		"inspect": {[]string{
			"inspect", filepath.Join(dir, name), filepath.Join(dir, "counter_2"+evil+".db"),
			filepath.Join(dir, "counter_6"+evil+".db"),
		}, "owned"},
		"explain_dir":        {[]string{"explain", "--dir", dir, "hits_total"}, "owned"},
		"explain_busy":       {[]string{"explain", "--dir", dir, "busy"}, "owned"},
		"explain_url":        {[]string{"explain", "--url", s.urls[0], "hits_total"}, "owned"},
		"explain_config":     {[]string{"explain", "--dir", dir, "--config.file", config, "busy"}, "owned"},
		"check_config":       {[]string{"check-config", config, "--dir", dir}, "hits"},
		"check_config_wrong": {[]string{"check-config", wrong}, "2J"},
		"doctor":             {[]string{"doctor", "--dir", dir, "--url", s.urls[0]}, dir},
		"top":                {[]string{"top", "--url", s.urls[0], "--interval", "500ms"}, "owned"},
		"dump_errors": {
			[]string{"dump", "--dir", dir, "--log.level", "debug", "--output", filepath.Join(t.TempDir(), "out")},
			"owned",
		},
		"error_of_a_selector":  {[]string{"explain", "--dir", dir, evil}, "owned"},
		"error_of_a_directory": {[]string{"dump", "--dir", dir + evil}, "owned"},
		"error_of_a_file":      {[]string{"inspect", dir + evil}, "owned"},
	} {
		t.Run(what, func(t *testing.T) {
			c := call(t, tc.args...)
			out := c.stdout + c.stderr
			if !strings.Contains(out, tc.says) {
				t.Errorf("%q is not there:\n%s", tc.says, out)
			}
			for line := range strings.Lines(out) {
				if i := strings.IndexFunc(line, func(r rune) bool { return !unicode.IsGraphic(r) && r != '\n' && r != '\t' }); i >= 0 {
					t.Errorf("a terminal would act upon %q", line)
				}
				if strings.HasPrefix(line, "faked line") {
					t.Errorf("a worker can make a line: %q", line)
				}
			}
		})
	}
	s.end()
}
