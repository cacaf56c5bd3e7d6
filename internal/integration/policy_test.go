package integration

import (
	"errors"
	"fmt"
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
