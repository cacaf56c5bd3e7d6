package integration

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// clientModes are the gauge modes of prometheus_client 0.16.
var clientModes = []string{"all", "liveall", "sum", "livesum", "max", "livemax", "min", "livemin"}

// TestModesOfRules has the client write a gauge in every mode that it knows, and beside it
// one in every other mode that a rule turns into that one: both must always have the same
// series and values, with the workers alive, dead and archived, and after the daemon is
// killed and started again. Labels that a rule drops and a rule that comes with a reload
// are tried on the way.
func TestModesOfRules(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	p := program{Metrics: []declared{{Name: "hits", Type: "counter", Help: "H.", Labels: []string{"user", "path"}}}}
	var rules strings.Builder
	rules.WriteString("metrics:\n- match: hits\n  drop_labels: [user]\n")
	for _, force := range clientModes {
		p.Metrics = append(p.Metrics, declared{Name: "native_" + force, Type: "gauge", Help: "H.", Mode: force})
		for _, file := range clientModes {
			p.Metrics = append(p.Metrics, declared{Name: "from_" + file + "_to_" + force, Type: "gauge", Help: "H.", Mode: file})
		}
		fmt.Fprintf(&rules, "- match_re: from_.*_to_%s\n  gauge_mode: %s\n", force, force)
	}
	for i, value := range []string{"5", "-2.5", "7"} {
		w := worker{ID: fmt.Sprint("w", i)}
		for _, m := range p.Metrics[1:] {
			w.Steps = append(w.Steps, step{Metric: m.Name, Op: "set", Value: value})
		}
		for user := range 4 {
			w.Steps = append(w.Steps, step{Metric: "hits", Op: "inc", Value: "1", Labels: []string{fmt.Sprint(user), "/"}})
		}
		p.Workers = append(p.Workers, w)
	}
	file := filepath.Join(t.TempDir(), "aggregatord.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	workers := startWorkers(t, dir, p)
	d := serve(t, "--dir", dir, "--config.file", file)
	check := func(hits float64) error {
		v, err := d.text()
		if err != nil {
			return err
		}
		if got := v.value("hits", `hits_total{path="/"}`); got != hits {
			return fmt.Errorf("hits are %v, want %v", got, hits)
		}
		var errs []error
		for _, force := range clientModes {
			native := v["native_"+force]
			if native == nil {
				native = &family{} // live, and nobody is
			}
			for _, from := range clientModes {
				name := "from_" + from + "_to_" + force
				ruled := v[name]
				if ruled == nil {
					ruled = &family{}
				}
				if len(ruled.Samples) != len(native.Samples) {
					errs = append(errs, fmt.Errorf("%s is %v, the same in its own mode %v", name, ruled.Samples, native.Samples))
				}
				for series, value := range ruled.Samples {
					if want := native.Samples["native_"+force+strings.TrimPrefix(series, name)]; want != value {
						errs = append(errs, fmt.Errorf("%s is %v, in its own mode %v", series, value, want))
					}
				}
			}
		}
		return errors.Join(errs...)
	}
	must := func(when string, hits float64) {
		t.Helper()
		eventually(t, patience, func() error {
			if err := check(hits); err != nil {
				return fmt.Errorf("%s: %w", when, err)
			}
			return nil
		})
	}
	must("all alive", 12)
	workers.finish(0)
	eventually(t, patience, func() error {
		if n := countFiles(t, dir, "*_w0.db"); n > 0 {
			return fmt.Errorf("%d files of the dead worker are not archived", n)
		}
		return nil
	})
	must("one archived", 12)
	d.stopped = true
	d.kill()
	d = serve(t, "--dir", dir, "--config.file", file)
	must("after a kill", 12)
	workers.finish(1)
	workers.finish(2)
	awaitFolded(t, dir)
	must("all archived", 12)

	// Without rules the gauges that were archived in mode sum are no process's.
	if err := os.WriteFile(file, []byte("external_labels: {region: eu}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		v, err := d.text()
		if err != nil {
			return err
		}
		if got := v.value("hits", `hits_total{path="/",region="eu"}`); got != 12 {
			return fmt.Errorf("hits are %v after the reload", got)
		}
		return nil
	})
}

// relabelling is metric_relabel_configs for what readable writes. A dot matches the end of a
// line since Prometheus 3, so there is none where a label has one.
const relabelling = `[
  {source_labels: [__name__, le], regex: 'app_latency_seconds_bucket;(0\.25|10\.0)', action: drop},
  {source_labels: [__name__, path], regex: 'app_requests_total;/(a)[^~]+', target_label: first, replacement: 'x_$1'},
  {source_labels: [path], target_label: shard, modulus: 3, action: hashmod},
  {source_labels: [path], target_label: upper, action: uppercase},
  {source_labels: [upper], target_label: lower, action: lowercase},
  {target_label: kind, replacement: z},
  {source_labels: [path], regex: /, target_label: kind, replacement: /},
  {source_labels: [path], target_label: kind, action: dropequal},
  {source_labels: [__name__], regex: 'app_size_bytes(.*)', target_label: __name__, replacement: 'app_payload_bytes$1'},
  {source_labels: [__name__], regex: 'app_latency_seconds_sum', target_label: __name__, replacement: 'app_spent_seconds'},
  {regex: 'sh(.*)', action: labelmap, replacement: 'x_$1'},
  {regex: 'shard|lower|kind', action: labeldrop},
]`

// TestRelabelsAsPrometheus gives the same rules to a real Prometheus that scrapes a daemon
// without rules, and to a daemon: what Prometheus stores must be the same.
func TestRelabelsAsPrometheus(t *testing.T) {
	t.Parallel()
	peer(t, "prometheus", "apt-get install prometheus")
	dir := sourceDir(t)
	startWorkers(t, dir, readable)
	file := filepath.Join(t.TempDir(), "aggregatord.yml")
	if err := os.WriteFile(file, []byte("metric_relabel_configs: "+relabelling+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	plain := serve(t, "--dir", dir, "--archive.disable")
	ruled := serve(t, "--dir", dir, "--archive.disable", "--config.file", file)
	job := func(name string, d *daemon, more string) string {
		return fmt.Sprintf("  - job_name: %s\n    static_configs: [{targets: [%q], labels: {instance: same}}]\n%s", name,
			strings.TrimPrefix(d.URL, "http://"), more)
	}
	indented := strings.ReplaceAll(relabelling, "\n", "\n      ")
	p := startPrometheusWith(t, job("theirs", plain, "    metric_relabel_configs: "+indented+"\n")+job("ours", ruled, ""))
	query := func(job string) (map[string]string, error) {
		return p.query(fmt.Sprintf(`label_replace({job=%q,__name__=~"app_.*"}, "job", "", "", "")`, job))
	}
	eventually(t, patience, func() error {
		theirs, err := query("theirs")
		if err != nil {
			return err
		}
		ours, err := query("ours")
		if err != nil {
			return err
		}
		if len(theirs) < 8 || !maps.Equal(theirs, ours) {
			return fmt.Errorf("Prometheus makes of it\n%v\nand we\n%v", theirs, ours)
		}
		return nil
	})
}
