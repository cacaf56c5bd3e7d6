package deploy

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TestDaemonSet: the manifests of the DaemonSet decode strictly, ask for no account and no
// privilege but capabilities, and fit together.
func TestDaemonSet(t *testing.T) {
	monitor := new(monitoring.PodMonitor)
	decode(t, "daemonset/podmonitor.yaml", monitor)
	selector, err := meta.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil {
		t.Fatal(err)
	}
	if e := monitor.Spec.PodMetricsEndpoints; len(e) != 1 || e[0].Port == nil || *e[0].Port != "metrics" || !e[0].HonorLabels {
		t.Errorf("the endpoints: %+v", e)
	}
	for _, name := range []string{"daemonset.yaml", "processes.yaml"} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile(filepath.Join(manifests, "daemonset", name))
			if err != nil {
				t.Fatal(err)
			}
			var set apps.DaemonSet
			var config core.ConfigMap
			parts := bytes.Split(data, []byte("\n---\n"))
			if err := yaml.UnmarshalStrict(parts[len(parts)-1], &set); err != nil {
				t.Fatal(err)
			}
			if len(parts) == 2 {
				if err := yaml.UnmarshalStrict(parts[0], &config); err != nil {
					t.Fatal(err)
				}
			}
			pod := set.Spec.Template.Spec
			labels := set.Spec.Template.Labels
			if len(set.Spec.Selector.MatchLabels) == 0 ||
				set.Spec.Selector.MatchLabels["app.kubernetes.io/name"] != labels["app.kubernetes.io/name"] {
				t.Errorf("the selector %v does not match the pods, %v", set.Spec.Selector.MatchLabels, labels)
			}
			if !selector.Matches(labelSet(labels)) {
				t.Error("the monitor does not select the pods")
			}
			if pod.AutomountServiceAccountToken == nil || *pod.AutomountServiceAccountToken || pod.ServiceAccountName != "" ||
				pod.HostNetwork || pod.HostIPC {
				t.Error("the pod has an account, or a namespace of the host that it does not need")
			}
			c := pod.Containers[0]
			s := c.SecurityContext
			if (s.Privileged != nil && *s.Privileged) || s.AllowPrivilegeEscalation == nil || *s.AllowPrivilegeEscalation ||
				!slices.Equal(s.Capabilities.Drop, []core.Capability{"ALL"}) {
				t.Errorf("the security context: %+v", s)
			}
			mounts := map[string]core.VolumeMount{}
			for _, m := range c.VolumeMounts {
				mounts[m.Name] = m
			}
			for _, v := range pod.Volumes {
				m, ok := mounts[v.Name]
				switch {
				case !ok:
					t.Errorf("volume %s is not mounted", v.Name)
				case v.ConfigMap != nil:
					if v.ConfigMap.Name != config.Name || !slices.Contains(c.Args, "--config.file="+m.MountPath+"/aggregatord.yml") ||
						config.Data["aggregatord.yml"] == "" {
						t.Errorf("the configuration %q is not used: %q", config.Name, c.Args)
					}
				case v.HostPath.Path != m.MountPath:
					t.Errorf("%s of the node is %s in the container", v.HostPath.Path, m.MountPath)
				case strings.HasSuffix(m.MountPath, "/kubelet/pods"):
					if m.ReadOnly || m.MountPropagation == nil || *m.MountPropagation != core.MountPropagationHostToContainer {
						t.Errorf("volumes of later pods do not arrive: %+v", m)
					}
				}
			}
			for _, path := range []string{"root: /var/lib/kubelet\n", "logs: /var/log/pods\n"} {
				if name == "daemonset.yaml" && !strings.Contains(config.Data["aggregatord.yml"], path) {
					t.Errorf("the configuration has no %q", path)
				}
			}
		})
	}
}

// labelSet implements labels.Labels.
type labelSet map[string]string

func (s labelSet) Has(name string) bool              { _, ok := s[name]; return ok }
func (s labelSet) Get(name string) string            { return s[name] }
func (s labelSet) Lookup(name string) (string, bool) { v, ok := s[name]; return v, ok }
