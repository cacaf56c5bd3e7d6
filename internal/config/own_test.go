package config

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/discover"
	"aggregatord/internal/metric"
)

// TestReadPoolSettings: an application may say of its pool what costs and concerns nobody else.
func TestReadPoolSettings(t *testing.T) {
	const good = `labels: {app_team: shop, app_tier: web}
metrics:
  - {match: queue, gauge_mode: max}
  - {match: cache_hits_total, drop: true}
limits: {series_per_pool: 100, bytes_per_pool: 1MiB}
`
	in, err := ReadPoolSettings("metrics.yml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(in.Labels); got != "[{app_team shop} {app_tier web}]" {
		t.Errorf("labels %s", got)
	}
	if r := in.Own.For("any", "queue", metric.Gauge); r.Mode != metric.Max || r.Rule != "metrics[0] of the application" {
		t.Errorf("rule %+v", r)
	}
	if l := in.Own.Limits(); l.SeriesPerPool != 100 || l.BytesPerPool != 1<<20 {
		t.Errorf("limits %+v", l)
	}
	if in, err := ReadPoolSettings("metrics.yml", nil); err != nil || len(in.Labels) > 0 {
		t.Errorf("an empty file: %+v, %v", in, err)
	}
	many := "labels:\n"
	for i := range maxOwnLabels + 1 {
		many += fmt.Sprintf("  app_%d: x\n", i)
	}
	for name, tc := range map[string]struct{ text, want string }{
		"label_of_the_node": {"labels: {namespace: prod}\n", ":1:10: labels.namespace: does not begin with app_"},
		"long_value":        {"labels: {app_x: " + strings.Repeat("x", 129) + "}\n", "labels.app_x: has more than 128 bytes"},
		"many_labels":       {many, "labels: are 11; write at most 10"},
		"empty_value":       {"labels: {app_x: ''}\n", "is empty"},
		"many_rules":        {"metrics:\n" + strings.Repeat("  - {match: a, drop: true}\n", maxOwnRules+1), "metrics: are 101 rules"},
		"regular_expression": {
			"metrics: [{match_re: '(a?){1000}', drop: true}]\n",
			"metrics[0].match_re: is not for the file of an application",
		},
		"pools":       {"limits: {pools: 1}\n", "limits.pools: is not for the file of an application"},
		"nothing_in":  {"limits: {series_per_pool: 0}\n", "limits.series_per_pool: 0 would let nothing in"},
		"relabelling": {"metric_relabel_configs: []\n", ":1:1: metric_relabel_configs: is not a key"},
		"other_pools": {"pools: []\n", ":1:1: pools: is not a key"},
		"outputs":     {"outputs: [{file: {path: /etc/passwd}}]\n", "outputs: is not a key"},
		"two_matches": {"metrics: [{match: a, drop_labels: [x], keep_labels: [y]}]\n", "drop_labels and keep_labels"},
		"no_yaml":     {"{", "is not YAML"},
		"aliases": {
			"metrics: &a [&b {match: x}, " + strings.Repeat("*b, ", 3000) + "*b]\n", "metrics",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ReadPoolSettings("metrics.yml", []byte(tc.text))
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.HasPrefix(err.Error(), "metrics.yml:") {
				t.Errorf("it says %v, want %q", err, tc.want)
			}
		})
	}
}

// FuzzPoolSettings: whatever an application writes into its file of settings, to read it takes a bounded
// time and memory for each byte, and what is taken of it concerns nobody else. What is wrong is told with its place.
func FuzzPoolSettings(f *testing.F) {
	for _, text := range []string{
		"labels: {app_team: shop}\nmetrics:\n  - {match: queue, gauge_mode: max, help: x, type: info}\n  - {match: a, drop_labels: [b]}\nlimits: {series_per_pool: 9, bytes_per_pool: 1MiB}\n",
		"labels: {namespace: prod}\nmetrics: [{match_re: '(a?){1000}', drop: true}]\nlimits: {pools: 1}\noutputs: []\n",
		"metrics: &a [&b {match: x}, " + strings.Repeat("*b, ", 3000) + "*b]\n",
		"a: &a [b,b,b,b,b,b,b,b,b]\nc: &c [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\nmetrics: [*d,*d,*d]\n",
		"labels: &l {<<: *l}\n",
		"? {[a]: b}\n: !!binary x\n---\n",
		"metrics: [{match_re: '(" + strings.Repeat("a?", 1500) + "){1000}', drop: true}]\n",
		strings.Repeat("[", 8000),
		strings.Repeat("- ", 8000),
		"metrics:\n" + strings.Repeat("- {match: a, keep: [x]}\n", 600),
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > discover.MaxSettingsBytes {
			return // of a larger file nothing is read
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		begin := time.Now()
		in, err := ReadPoolSettings("metrics.yml", data)
		took := time.Since(begin)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20+4<<10*uint64(len(data)) {
			t.Fatalf("%d bytes took %d of memory", len(data), n)
		}
		if took > time.Second+time.Duration(len(data))*100*time.Microsecond {
			t.Fatalf("%d bytes took %v", len(data), took)
		}
		if err != nil {
			var all Errors
			if !errors.As(err, &all) || len(all) == 0 {
				t.Fatalf("not Errors: %v", err)
			}
			for _, e := range all {
				if e.Problem == "" || e.Pos.Line < 0 {
					t.Errorf("%#v", e)
				}
			}
			return
		}
		if len(in.Labels) > maxOwnLabels {
			t.Errorf("%d labels", len(in.Labels))
		}
		for _, l := range in.Labels {
			if !strings.HasPrefix(l.Name, ownLabelPrefix) || l.Value == "" || len(l.Name) > maxOwnLabel || len(l.Value) > maxOwnLabel {
				t.Errorf("label %q=%q", l.Name, l.Value)
			}
		}
		if in.Own == nil || len(in.Own.Info()) > 0 || len(in.Own.MetricRelabelConfigs()) > 0 {
			t.Errorf("it says more than it may: %+v", in.Own)
		}
	})
}
