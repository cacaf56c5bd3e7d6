// Package deploy checks the manifests for Kubernetes against Kubernetes' own types. It is a
// module of its own, as these types are large and the daemon has no use for them.
package deploy

import (
	"os"
	"path/filepath"
	"testing"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../kubernetes"

// decode reads a manifest strictly: an unknown or repeated field is an error.
func decode(t *testing.T, name string, into any) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(manifests, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.UnmarshalStrict(data, into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}

// checkSidecar checks what makes the pod work: the daemon is a native sidecar that both write and
// read one volume in memory with, as one user that is not root.
func checkSidecar(t *testing.T, pod core.PodSpec) {
	t.Helper()
	if len(pod.InitContainers) != 1 || len(pod.Containers) != 1 || len(pod.Volumes) != 1 {
		t.Fatalf("%d init containers, %d containers, %d volumes", len(pod.InitContainers), len(pod.Containers), len(pod.Volumes))
	}
	sidecar, app := pod.InitContainers[0], pod.Containers[0]
	if sidecar.RestartPolicy == nil || *sidecar.RestartPolicy != core.ContainerRestartPolicyAlways {
		t.Error("the init container is no native sidecar: the application would wait for its end for ever")
	}
	volume := pod.Volumes[0]
	if volume.EmptyDir == nil || volume.EmptyDir.Medium != core.StorageMediumMemory || volume.EmptyDir.SizeLimit.IsZero() {
		t.Errorf("the volume: %+v", volume)
	}
	var set string
	for _, e := range app.Env {
		if e.Name == "PROMETHEUS_MULTIPROC_DIR" {
			set = e.Value
		}
	}
	for _, c := range []core.Container{sidecar, app} {
		if len(c.VolumeMounts) != 1 || c.VolumeMounts[0].Name != volume.Name || c.VolumeMounts[0].MountPath != set {
			t.Errorf("container %s mounts %+v; the variable says %q", c.Name, c.VolumeMounts, set)
		}
		if c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil {
			t.Errorf("container %s has a user of its own", c.Name)
		}
	}
	if want := "--dir=" + set; len(sidecar.Args) != 2 || sidecar.Args[1] != want {
		t.Errorf("the sidecar's arguments: %q, want %q among them", sidecar.Args, want)
	}
	if s := pod.SecurityContext; s == nil || s.RunAsUser == nil || *s.RunAsUser == 0 || s.FSGroup == nil {
		t.Errorf("the pod's user: %+v", s)
	}
	if len(sidecar.Ports) != 1 || sidecar.Ports[0].Name != "metrics" || sidecar.Ports[0].ContainerPort != 9500 {
		t.Errorf("the sidecar's ports: %+v", sidecar.Ports)
	}
	if p := sidecar.StartupProbe; p == nil || p.HTTPGet == nil || p.HTTPGet.Path != "/-/ready" {
		t.Errorf("the sidecar's startup probe: %+v", p)
	}
}

func TestDeployment(t *testing.T) {
	var d apps.Deployment
	decode(t, "deployment.yaml", &d)
	checkSidecar(t, d.Spec.Template.Spec)
	for k, v := range d.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[k] != v {
			t.Errorf("the selector does not match the pods: %s=%s", k, v)
		}
	}
}

func TestJob(t *testing.T) {
	var j batch.Job
	decode(t, "job.yaml", &j)
	checkSidecar(t, j.Spec.Template.Spec)
}

// TestMonitor: what the operator scrapes is a port that the pods have, of the pods that are there.
func TestMonitor(t *testing.T) {
	var m monitoring.PodMonitor
	decode(t, "podmonitor.yaml", &m)
	var d apps.Deployment
	decode(t, "deployment.yaml", &d)
	for k, v := range m.Spec.Selector.MatchLabels {
		if d.Spec.Template.Labels[k] != v {
			t.Errorf("the selector does not match the pods: %s=%s", k, v)
		}
	}
	if e := m.Spec.PodMetricsEndpoints; len(e) != 1 || e[0].Port == nil ||
		*e[0].Port != d.Spec.Template.Spec.InitContainers[0].Ports[0].Name {
		t.Errorf("the endpoints: %+v", e)
	}
	var r monitoring.PrometheusRule
	decode(t, "prometheusrule.yaml", &r)
	if len(r.Spec.Groups) != 1 || len(r.Spec.Groups[0].Rules) == 0 {
		t.Errorf("the rules: %+v", r.Spec)
	}
}

// TestComponent lets Kustomize build the example, and looks at what comes out.
func TestComponent(t *testing.T) {
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(manifests, "example"))
	if err != nil {
		t.Fatal(err)
	}
	if built.Size() != 1 {
		t.Fatalf("%d manifests", built.Size())
	}
	data, err := built.AsYaml()
	if err != nil {
		t.Fatal(err)
	}
	var d apps.Deployment
	if err := yaml.UnmarshalStrict(data, &d); err != nil {
		t.Fatal(err)
	}
	if d.Name != "shop" {
		t.Errorf("the name became %q", d.Name)
	}
	checkSidecar(t, d.Spec.Template.Spec)
}
