package main

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCheckConfig: what is right is said in a line, what is wrong in a line each, with an
// exit code for pipelines.
func TestCheckConfig(t *testing.T) {
	right := configFile(t,
		"presets: [django]\nmetrics: [{match: a, drop: true}]\npools: [{dir: /x, metrics: [{match: b, gauge_mode: sum}]}]\ninfo: [{name: x_info}, {name: y_info}]\n")
	if got, want := must(t, "check-config", right), right+" is right: 2 rules, 1 preset, 1 pool, 2 info series\n"; got != want {
		t.Errorf("it prints %q, want %q", got, want)
	}
	idle := configFile(t, "metric_relabel_configs: [{source_labels: [__name__], regex: 'aggregatord_.*', action: drop}]\n")
	if got, want := must(t, "check-config", idle),
		idle+" is right: 0 rules, 1 relabelling step\n"+idle+
			": metric_relabel_configs[0] matches nothing: the daemon's own metrics are not relabelled; choose what is served of them with --web.self-metrics\n"; got != want {
		t.Errorf("it prints %q, want %q", got, want)
	}
	wrong := configFile(t, "limit: {}\nmetrics: [{match: a, gauge_mode: b}]\n")
	c := call(t, "check-config", wrong)
	if c.code != exitFailure || strings.Count(c.stdout, "\n") != 2 || c.stderr != "aggregatord: "+wrong+" is wrong: 2 mistakes\n" {
		t.Errorf("exit code %d, it prints\n%s\nand %q", c.code, c.stdout, c.stderr)
	}
	contains(t, c.stdout, wrong+":1:1: limit: is not a key; did you mean limits?\n", wrong+":2:34: metrics[0].gauge_mode: ")

	call(t, "check-config", filepath.Join(t.TempDir(), "none.yml")).oneLine(t, exitFailure, "none.yml", "no such file")
	call(t, "check-config").oneLine(t, exitUsage, "check-config aggregatord.yml")
	call(t, "check-config", right, right).oneLine(t, exitUsage, "got 2")
	call(t, "check-config", right, "--format", "xml").oneLine(t, exitUsage, "--format", "table or json")
	call(t, "check-config", right, "--dir", "/no/such/dir").oneLine(t, exitUsage, "/no/such/dir")
}

// rows returns a table's cells by the first one of each row.
func rows(table string) map[string][]string {
	cells := map[string][]string{}
	for line := range strings.Lines(table) {
		if fields := regexp.MustCompile(`  +`).Split(strings.TrimRight(line, "\n"), -1); len(fields) > 1 {
			cells[fields[0]] = fields[1:]
		}
	}
	return cells
}

const shopConfig = `
presets: [celery]
metrics:
  - match: requests
    drop_labels: [path]
  - match: memory_bytes
    gauge_mode: sum
  - match: peak
    drop: true
  - match: nobody_writes_this
    drop: true
metric_relabel_configs:
  - {source_labels: [__name__], regex: 'latency_seconds_bucket', action: drop}
  - {source_labels: [__name__, le], regex: 'latency_seconds_bucket;1.0', action: drop}
external_labels: {region: eu}
`

// TestCheckConfigDir: it shows what the daemon would do, and does nothing.
func TestCheckConfigDir(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	bury(t, dir, "gauge_all_9.db", entry{family: "ta\tb", sample: "ta\tb", value: 1})
	before := states(t, dir)
	file := configFile(t, shopConfig)
	out := must(t, "check-config", file, "--dir", dir)
	got := rows(out)
	for name, want := range map[string]string{
		"requests":        "- counter - metrics[0] 2 1 requests",
		"memory_bytes":    "- gauge all -> sum metrics[1] 1 1 memory_bytes",
		"peak":            "- gauge max metrics[2] 1 0 (dropped)",
		"busy":            "- gauge livesum - 1 1 busy",
		"latency_seconds": "- histogram - - 5 2",
		`"ta\tb"`:         `- gauge all - 1 1 "ta\tb"`,
	} {
		if row := strings.Join(got[name], " "); !strings.HasPrefix(row, want) {
			t.Errorf("%s: %s, want %s", name, row, want)
		}
	}
	contains(t, out, "\nmatching nothing here: metrics[3], metric_relabel_configs[1]\n")

	// The numbers are those of dump, without the file and with it.
	count := func(args ...string) (n int) {
		for line := range strings.Lines(must(t, append([]string{"dump", "--dir", dir}, args...)...)) {
			if !strings.HasPrefix(line, "#") {
				n++
			}
		}
		return n
	}
	contains(t, out, fmt.Sprintf("\n%d samples before, %d samples after\n", count(), count("--config.file", file)))

	var report struct {
		Families []struct {
			Family, Rule, Mode string
			FileMode           string `json:"file_mode"`
			Before             int    `json:"samples_before"`
			After              int    `json:"samples_after"`
			Dropped            bool
			ServedAs           []string `json:"served_as"`
		}
		Before int      `json:"samples_before"`
		After  int      `json:"samples_after"`
		Idle   []string `json:"rules_that_match_nothing"`
	}
	if err := json.Unmarshal([]byte(must(t, "check-config", file, "--dir", dir, "--format", "json")), &report); err != nil {
		t.Fatal(err)
	}
	if report.Before != count() || report.After != count("--config.file", file) || len(report.Idle) != 2 ||
		len(report.Families) != len(got)-1 {
		t.Errorf("%+v, and %d rows in the table", report, len(got)-1)
	}
	for _, f := range report.Families {
		if f.Family == "peak" && (!f.Dropped || f.Rule != "metrics[2]" || f.Before != 1 || f.After != 0 || f.ServedAs == nil) {
			t.Errorf("%+v", f)
		}
		if f.Family == "memory_bytes" && (f.FileMode != "all" || f.Mode != "sum") {
			t.Errorf("%+v", f)
		}
	}
	unchanged(t, dir, before)
}

// TestCheckConfigPID: a rule cannot take away the label that a gauge's mode brings, and that
// is said; of a counter it can.
func TestCheckConfigPID(t *testing.T) {
	dir := sourceDir(t)
	for name, family := range map[string]string{
		"gauge_all_1.db": "a", "gauge_liveall_1.db": "b", "gauge_sum_1.db": "c",
		"counter_1.db": "d",
	} {
		write(t, dir, name, entry{family: family, sample: family, labels: map[string]string{"pid": "7"}, value: 1})
	}
	const keep = "\nkeeping the label pid, which a rule would take away and the gauge mode brings: a b; set another gauge_mode for them\n"
	for _, rule := range []string{"drop_labels: [pid]", "rename_label: {pid: worker}"} {
		contains(t, must(t, "check-config", configFile(t, "metrics: [{match_re: .*, "+rule+"}]\n"), "--dir", dir), keep)
	}
	out := must(t, "check-config", configFile(t, "metrics: [{match_re: .*, gauge_mode: sum, drop_labels: [pid]}]\n"), "--dir", dir)
	if strings.Contains(out, "pid") {
		t.Errorf("with another mode:\n%s", out)
	}
}

// TestCheckConfigPools: rules of a pool are those of the directory of its name.
func TestCheckConfigPools(t *testing.T) {
	web, jobs := sourceDir(t), sourceDir(t)
	for _, dir := range []string{web, jobs} {
		bury(t, dir, "gauge_max_1.db", entry{family: "level", sample: "level", value: 1})
	}
	file := configFile(t,
		"pools:\n  - {name: web, dir: /x, metrics: [{match: level, drop: true}]}\n  - {name: jobs, dir: /y, metrics: [{match: other, drop: true}]}\n")
	out := must(t, "check-config", file, "--dir", "web="+web, "--dir", "jobs="+jobs)
	if !regexp.MustCompile(`(?m)^level +web +gauge +max +pools\.web\.metrics\[0\] +1 +0 +\(dropped\)$`).MatchString(out) ||
		!regexp.MustCompile(`(?m)^level +jobs +gauge +max +- +1 +1 +level$`).MatchString(out) {
		t.Errorf("it prints\n%s", out)
	}
	contains(t, out, "\nmatching nothing here: pools.jobs.metrics[0]\n")
	out = must(t, "check-config", file, "--dir", "web="+web)
	if strings.Contains(out, "matching nothing") {
		t.Errorf("a pool that is not looked at:\n%s", out)
	}
}
