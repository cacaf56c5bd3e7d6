package deploy

import (
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/lint"
	"helm.sh/helm/v3/pkg/lint/support"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

const chartDir = "../helm/aggregatord"

// TestChartLint: helm lint finds nothing worse than a missing icon.
func TestChartLint(t *testing.T) {
	for _, m := range lint.All(chartDir, nil, "default", true).Messages {
		if m.Severity >= support.WarningSev {
			t.Error(m)
		}
	}
}

// TestChart renders the chart as helm template does, without and with what is optional, and
// decodes strictly what comes out.
func TestChart(t *testing.T) {
	loaded, err := loader.Load(chartDir)
	if err != nil {
		t.Fatal(err)
	}
	render := func(values map[string]any) map[string]string {
		t.Helper()
		all, err := chartutil.ToRenderValues(loaded, values, chartutil.ReleaseOptions{Name: "agg", Namespace: "default"}, chartutil.DefaultCapabilities)
		if err != nil {
			t.Fatal(err)
		}
		out, err := engine.Render(loaded, all)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for name, tc := range map[string]struct {
		values map[string]any
		args   string
	}{
		"defaults": {nil, "serve --dir=web=/pools/web"},
		"config": {
			map[string]any{"config": map[string]any{"presets": []any{"django"}}, "podMonitor": map[string]any{"enabled": true}},
			"serve --dir=web=/pools/web --config.file=/etc/aggregatord/aggregatord.yml",
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := render(tc.values)
			var set apps.DaemonSet
			if err := yaml.UnmarshalStrict([]byte(out["aggregatord/templates/daemonset.yaml"]), &set); err != nil {
				t.Fatal(err)
			}
			c := set.Spec.Template.Spec.Containers[0]
			if got := strings.Join(c.Args, " "); got != tc.args {
				t.Errorf("the arguments: %s", got)
			}
			if len(c.VolumeMounts) != len(set.Spec.Template.Spec.Volumes) {
				t.Errorf("mounts %v of volumes %v", c.VolumeMounts, set.Spec.Template.Spec.Volumes)
			}
			var config core.ConfigMap
			text := out["aggregatord/templates/configmap.yaml"]
			if err := yaml.UnmarshalStrict([]byte(text), &config); err != nil || (config.Data["aggregatord.yml"] != "") != (tc.values != nil) {
				t.Errorf("%v: %s", err, text)
			}
			if monitored := strings.Contains(out["aggregatord/templates/podmonitor.yaml"], "kind: PodMonitor"); monitored != (tc.values != nil) {
				t.Errorf("a monitor: %v", monitored)
			}
		})
	}
}
