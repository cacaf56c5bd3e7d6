package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// configFile writes a configuration file.
func configFile(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "aggregatord.yml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestConfigPrecedence: flags win over the file, and that over the environment.
func TestConfigPrecedence(t *testing.T) {
	flag, file, env := sourceDir(t), sourceDir(t), sourceDir(t)
	for name, dir := range map[string]string{"flag": flag, "file": file, "env": env} {
		bury(t, dir, "counter_1.db", entry{family: "from", sample: "from_total", labels: map[string]string{"dir": name}, value: 1})
	}
	t.Setenv("PROMETHEUS_MULTIPROC_DIR", env)
	rules := "metrics: [{match: from, rename_label: {dir: source}}]\n"
	pools := "pools:\n  - name: web\n    dir: " + file + "\n    labels: {team: shop}\n"
	for name, tc := range map[string]struct {
		content string
		flags   []string
		want    string
	}{
		"environment":           {rules, nil, `from_total{source="env"} 1`},
		"file":                  {pools + rules, nil, `from_total{pool="web",source="file",team="shop"} 1`},
		"flag":                  {pools + rules, []string{"--dir", flag}, `from_total{source="flag"} 1`},
		"flag_of_the_same_pool": {pools, []string{"--dir", "web=" + flag}, `from_total{dir="flag",pool="web",team="shop"} 1`},
	} {
		t.Run(name, func(t *testing.T) {
			out := must(t, append([]string{"dump", "--config.file", configFile(t, tc.content)}, tc.flags...)...)
			contains(t, out, "\n"+tc.want+"\n")
			if strings.Count(out, "\nfrom_total{") != 1 {
				t.Errorf("it prints\n%s", out)
			}
		})
	}
}

// TestConfigArchive: the file's settings of the archive hold where no flag is given.
func TestConfigArchive(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		flags   []string
		archive string // where one must be; "" means none at all
	}{
		"file":          {"archive: {dir: ELSE/file}\n", nil, "ELSE/file/archive.bolt"},
		"flag":          {"archive: {dir: ELSE/file}\n", []string{"--archive.dir", "ELSE/flag"}, "ELSE/flag/archive.bolt"},
		"file_disables": {"archive: {disable: true}\n", nil, ""},
		"flag_enables": {
			"archive: {disable: true, gauge_workers: 7, gauge_retention: 5m}\n",
			[]string{"--archive.disable=false"},
			"DIR/.aggregatord.archive",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, elsewhere := sourceDir(t), t.TempDir()
			expand := strings.NewReplacer("DIR", dir, "ELSE", elsewhere).Replace
			args := []string{"--dir", dir, "--config.file", configFile(t, expand(tc.content)), "--web.listen-address", "127.0.0.1:0"}
			for _, flag := range tc.flags {
				args = append(args, expand(flag))
			}
			s := startServe(t, args...)
			for _, place := range []string{"DIR/.aggregatord.archive", "ELSE/file/archive.bolt", "ELSE/flag/archive.bolt"} {
				_, err := os.Stat(expand(place))
				if want := place == tc.archive; want != (err == nil) {
					t.Errorf("an archive at %s: %v", place, err)
				}
			}
			if code := s.end(); code != 0 {
				t.Errorf("exit code %d:\n%s", code, s.stderr.String())
			}
		})
	}
}

// TestServeConfig: a wrong file ends the start with all that is wrong in one line; a right
// one is reloaded by SIGHUP and, if that is enabled, by a request.
func TestServeConfig(t *testing.T) {
	wrong := configFile(t, "limit: {}\nmetrics: [{match: a, gauge_mode: b}]\n")
	call(t, "serve", "--dir", sourceDir(t), "--config.file", wrong, "--web.listen-address", "127.0.0.1:0").
		oneLine(t, exitUsage, wrong+":1:1: limit: is not a key; did you mean limits?", wrong+":2:34: metrics[0].gauge_mode")
	call(t, "dump", "--dir", sourceDir(t), "--config.file", wrong).oneLine(t, exitUsage, wrong+":1:1")
	call(t, "serve", "--config.file", "/no/such/file").oneLine(t, exitUsage, "/no/such/file", "no such file")

	dir := sourceDir(t)
	bury(t, dir, "counter_1.db", entry{family: "c", sample: "c_total", value: 1})
	file := configFile(t, "external_labels: {n: '1'}\n")
	s := startServe(t, "--dir", dir, "--config.file", file, "--web.listen-address", "127.0.0.1:0", "--web.enable-lifecycle")
	if _, body := s.get("/metrics"); !strings.Contains(body, "\nc_total{n=\"1\"} 1\n") {
		t.Errorf("served\n%s", body)
	}
	if err := os.WriteFile(file, []byte("external_labels: {n: '2'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(s.urls[0]+"/-/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %s", resp.Status)
	}
	// When the request is answered, the new file is in force.
	if _, body := s.get("/metrics"); !strings.Contains(body, "\nc_total{n=\"2\"} 1\n") {
		t.Errorf("served\n%s", body)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if strings.Contains(s.stderr.String(), `"trigger":"signal"`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("SIGHUP reloads nothing:\n%s", s.stderr.String())
		}
	}
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

// TestServeNoLifecycle: without the flag nobody reloads by a request.
func TestServeNoLifecycle(t *testing.T) {
	s := startServe(t, "--dir", sourceDir(t), "--web.listen-address", "127.0.0.1:0")
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post(s.urls[0]+"/-/reload", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("status %s", resp.Status)
	}
}

// TestArchiveConfig: the commands for archives look where the file has them.
func TestArchiveConfig(t *testing.T) {
	dir, elsewhere := sourceDir(t), t.TempDir()
	bury(t, dir, "counter_1.db", entry{family: "c", sample: "c_total", value: 5})
	file := configFile(t, "archive: {dir: "+elsewhere+"}\npools: [{name: web, dir: "+dir+"}]\n")
	s := startServe(t, "--config.file", file, "--web.listen-address", "127.0.0.1:0")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, body := s.get("/metrics"); strings.Contains(body, "\naggregatord_archive_folded_files_total{pool=\"web\"} 1\n") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is archived")
		}
	}
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	contains(t, must(t, "archive", "stat", "--config.file", file), filepath.Join(elsewhere, "web"), "1 series")
	contains(t, must(t, "dump", "--config.file", file), "\nc_total{pool=\"web\"} 5\n")
	both := configFile(t, "pools:\n  - {name: web, dir: "+dir+"}\n  - {name: jobs, dir: "+t.TempDir()+"}\n")
	call(t, "archive", "stat", "--config.file", both).oneLine(t, exitUsage, "one --dir")
}
