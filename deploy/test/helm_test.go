package deploy

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
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
		all, err := chartutil.ToRenderValues(loaded, values, chartutil.ReleaseOptions{Name: "agg", Namespace: "default"},
			chartutil.DefaultCapabilities)
		if err != nil {
			t.Fatal(err)
		}
		out, err := engine.Render(loaded, all)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	enabled := map[string]any{"enabled": true}
	for name, tc := range map[string]struct {
		values map[string]any
		args   string
	}{
		"defaults": {nil, "serve --dir=web=/pools/web"},
		"kubelet": {
			map[string]any{"kubelet": enabled, "podMonitor": enabled},
			"serve --discover.retention=45s --config.file=/etc/aggregatord/aggregatord.yml",
		},
		"config": {
			map[string]any{"config": map[string]any{"presets": []any{"django"}}, "podMonitor": enabled},
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
			if err := yaml.UnmarshalStrict([]byte(text), &config); err != nil ||
				(config.Data["aggregatord.yml"] != "") != (tc.values != nil) {
				t.Errorf("%v: %s", err, text)
			}
			if monitored := strings.Contains(out["aggregatord/templates/podmonitor.yaml"],
				"kind: PodMonitor"); monitored != (tc.values != nil) {
				t.Errorf("a monitor: %v", monitored)
			}
			if tc.values["kubelet"] != nil {
				checkAsManifest(t, set.Spec.Template.Spec, config.Data["aggregatord.yml"])
				if !strings.Contains(out["aggregatord/templates/podmonitor.yaml"], "honorLabels: true") {
					t.Error("the monitor hides the applications' namespace and pod")
				}
			}
		})
	}
	t.Run("kubelet_with_config", func(t *testing.T) {
		out := render(map[string]any{
			"kubelet": map[string]any{"enabled": true, "root": "/k", "logs": "/l", "volume": "v", "settings": "s.yml"},
			"config": map[string]any{
				"presets":   []any{"django"},
				"discovery": []any{map[string]any{"kubelet": map[string]any{"root": "/other"}}},
			},
		})
		var config core.ConfigMap
		if err := yaml.UnmarshalStrict([]byte(out["aggregatord/templates/configmap.yaml"]), &config); err != nil {
			t.Fatal(err)
		}
		const want = `discovery:
- kubelet:
    root: /other
- kubelet:
    logs: /l
    root: /k
    settings: s.yml
    volume: v
presets:
- django
`
		if got := config.Data["aggregatord.yml"]; strings.TrimSpace(got) != strings.TrimSpace(want) {
			t.Errorf("the configuration:\n%s", got)
		}
	})
}

// checkAsManifest: what the chart makes for all pods of a node has the rights, the volumes and the
// configuration of the manifest, of which a test shows that they suffice and that each is needed.
func checkAsManifest(t *testing.T, got core.PodSpec, config string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(manifests, "daemonset", "daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	parts := bytes.Split(data, []byte("\n---\n"))
	var set apps.DaemonSet
	if err := yaml.UnmarshalStrict(parts[len(parts)-1], &set); err != nil {
		t.Fatal(err)
	}
	want := set.Spec.Template.Spec
	if *got.SecurityContext.RunAsUser != *want.SecurityContext.RunAsUser || got.SecurityContext.RunAsNonRoot != nil ||
		*got.AutomountServiceAccountToken {
		t.Errorf("the pod runs as %+v", got.SecurityContext)
	}
	if g, w := got.Containers[0].SecurityContext, want.Containers[0].SecurityContext; !reflect.DeepEqual(g, w) {
		t.Errorf("the security context: %+v, want %+v", g, w)
	}
	host := func(spec core.PodSpec) map[string]core.VolumeMount {
		mounts := map[string]core.VolumeMount{}
		for _, v := range spec.Volumes {
			for _, m := range spec.Containers[0].VolumeMounts {
				if m.Name == v.Name && v.HostPath != nil {
					mounts[v.HostPath.Path] = m
				}
			}
		}
		return mounts
	}
	if g, w := host(got), host(want); !reflect.DeepEqual(g, w) {
		t.Errorf("the mounts: %+v, want %+v", g, w)
	}
	var read struct {
		Discovery []struct{ Kubelet struct{ Root, Logs string } }
	}
	if err := yaml.UnmarshalStrict([]byte(config), &read); err != nil || len(read.Discovery) != 1 ||
		read.Discovery[0].Kubelet.Root != "/var/lib/kubelet" || read.Discovery[0].Kubelet.Logs != "/var/log/pods" {
		t.Errorf("the configuration: %q, %v", config, err)
	}
}
