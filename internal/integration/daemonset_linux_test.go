package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"aggregatord/internal/status"
)

// secretApp counts in a directory, or in one that it makes there, so that nobody else may read it.
const secretApp = `
import os, sys, tempfile, time
os.umask(0o077)
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(dir=sys.argv[2]) if sys.argv[1] == "random" else sys.argv[2]
from prometheus_client import Counter
Counter("hits", "Hits.").inc(7)
print("counted", flush=True)
time.sleep(600)
`

// kubeletTree makes what a kubelet has of a pod, and returns its volume.
func kubeletTree(t *testing.T, root, logs, pod, uid string) string {
	t.Helper()
	volume := filepath.Join(root, "pods", uid, "volumes", "kubernetes.io~empty-dir", "metrics")
	for _, dir := range []string{volume, filepath.Join(logs, "prod_"+pod+"_"+uid)} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(volume, 0o777); err != nil {
		t.Fatal(err)
	}
	return volume
}

// inContainer starts an application as a container does: in namespaces of its own, as another user,
// with a directory at a place of its own. It returns when the application has counted.
func inContainer(t *testing.T, script, how, dir string, by ...string) *process {
	t.Helper()
	command := `mount --bind "$2" /mnt && exec setpriv --pdeathsig KILL --reuid 1000 --regid 1000 --clear-groups "$0" "$1" ` + how + ` /mnt`
	args := append(slices.Clone(by), peer(t, "unshare", "apt-get install util-linux"), "--mount", "--pid", "--fork", "--mount-proc",
		"--kill-child",
		"sh", "-c", command, python(t, "prometheus_client"), script, dir)
	p := start(t, exec.Command(args[0], args[1:]...))
	p.await("the first count", func(line string) bool { return line == "counted" })
	return p
}

// publicDir is a directory into which everybody may look.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "aggregatord-test-")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeFile(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDaemonSetCapabilities runs the daemon with the capabilities that the manifests list, for
// applications of another user in other namespaces, and then without each of them.
func TestDaemonSetCapabilities(t *testing.T) {
	t.Parallel()
	needRoot(t)
	setpriv := peer(t, "setpriv", "apt-get install util-linux")
	for _, manifest := range []string{"daemonset", "processes"} {
		_, added, _ := strings.Cut(deployed(t, "kubernetes/daemonset/"+manifest+".yaml"), "add:\n")
		var all []string
		for _, m := range regexp.MustCompile(`(?m)^ +- ([A-Z_]+)$`).FindAllStringSubmatch(added, -1) {
			all = append(all, strings.ToLower(m[1]))
		}
		if len(all) < 2 {
			t.Fatalf("%s: capabilities %q", manifest, all)
		}
		for _, without := range append([]string{"none"}, all...) {
			t.Run(manifest+"/without_"+without, func(t *testing.T) {
				t.Parallel()
				root := publicDir(t)
				script := "secret_" + manifest + "_" + without + "_app.py" // no other test has one of that name
				path := writeFile(t, filepath.Join(root, script), secretApp)
				logs, how, config := filepath.Join(root, "logs"), "fixed",
					fmt.Sprintf("discovery: [{kubelet: {root: %s, logs: %s/logs}}]\n", root, root)
				dir := kubeletTree(t, root, logs, "web-0", "11111111-aaaa")
				if manifest == "processes" {
					how, config = "random", "discovery: [{processes: {command: "+script+"}}]\n"
				}
				app := inContainer(t, path, how, dir)
				file := writeFile(t, filepath.Join(root, "aggregatord.yml"), config)
				caps := "-all"
				for _, c := range all {
					if c != without {
						caps += ",+" + c
					}
				}
				d := startDaemonBy(t, []string{setpriv, "--bounding-set=" + caps, "--inh-caps=-all"}, nil, "serve", "--config.file", file)
				hits := func() float64 { return d.mustText().total("hits", "hits_total") }
				pools := pools(t, d)
				if without == "none" || without == "lease" {
					if hits() != 7 {
						t.Fatalf("%v hits of pools %+v", hits(), pools)
					}
				} else {
					if hits() != 0 {
						t.Errorf("%s is not needed: %+v", without, pools)
					}
					return
				}
				if without == "lease" {
					if len(pools) != 1 || pools[0].Liveness.Method != "none" {
						t.Errorf("lease is not needed: %+v", pools)
					}
					return
				}
				app.kill()
				eventually(t, patience, func() error {
					left, _ := filepath.Glob(filepath.Join(dir, "*.db"))
					deeper, _ := filepath.Glob(filepath.Join(dir, "*", "*.db"))
					if n := len(left) + len(deeper); n > 0 || hits() != 7 {
						return fmt.Errorf("%d files of the dead are left, %v hits", n, hits())
					}
					return nil
				})
			})
		}
	}
}

// pools asks a daemon for its pools.
func pools(t *testing.T, d *daemon) []status.Pool {
	t.Helper()
	body, err := get(d, "/api/v1/status")
	var answer status.Response[status.Overview]
	if err == nil {
		err = json.Unmarshal([]byte(body), &answer)
	}
	if err != nil {
		t.Fatal(err)
	}
	return answer.Data.Pools
}

// TestKubeletUnmounts: pods come and go, one with the name of another, and the kubelet can unmount
// the memory volume of a pod that has ended once the retention is over. The daemon is in a mount
// namespace that gets the mounts of the kubelet's, as a container with HostToContainer is.
func TestKubeletUnmounts(t *testing.T) {
	t.Parallel()
	needRoot(t)
	root := publicDir(t)
	script := writeFile(t, filepath.Join(root, "secret_app.py"), secretApp)
	logs := filepath.Join(root, "logs")
	first := kubeletTree(t, root, logs, "web-0", "11111111-aaaa")
	second := kubeletTree(t, root, logs, "web-0", "22222222-bbbb")
	// The kubelet's namespace.
	kubelet := start(t, exec.Command(peer(t, "unshare", "apt-get install util-linux"), "--mount", "--propagation", "private",
		"sh", "-c",
		`mount --bind "$0" "$0" && mount --make-shared "$0" && mount -t tmpfs -o mode=777 none "$1" && mount -t tmpfs -o mode=777 none "$2" && echo mounted && sleep 600`,
		root, first, second))
	kubelet.await("the mounts", func(line string) bool { return line == "mounted" })
	inside := []string{peer(t, "nsenter", "apt-get install util-linux"), "--target", strconv.Itoa(kubelet.pid()), "--mount"}
	one := inContainer(t, script, "fixed", first, inside...)
	config := writeFile(t, filepath.Join(root, "aggregatord.yml"),
		fmt.Sprintf("discovery: [{kubelet: {root: %s, logs: %s}}]\n", root, logs))
	d := startDaemonBy(t, append(slices.Clone(inside), peer(t, "unshare", ""), "--mount", "--propagation", "slave"), nil,
		"serve", "--config.file", config, "--discover.retention", "2s")
	served := func(uid string, want string) {
		t.Helper()
		eventually(t, patience, func() error {
			body, err := get(d, "/pools/prod_web-0_metrics_"+uid+"/metrics")
			if !strings.Contains(body+fmt.Sprint(err), want) {
				return fmt.Errorf("%s: %.500q, %w; want %q", uid, body, err, want)
			}
			return nil
		})
	}
	served("11111111", "hits_total 7")
	// The container restarts.
	one.kill()
	one = inContainer(t, script, "fixed", first, inside...)
	served("11111111", "hits_total 14")
	// Its successor has the same name.
	inContainer(t, script, "fixed", second, inside...)
	served("22222222", "hits_total 7")
	if umount := exec.Command(inside[0], append(inside[1:], "umount", first)...); umount.Run() == nil {
		t.Error("the volume can be unmounted while its pod runs: this test shows nothing")
	}
	one.kill()
	served("11111111", "hits_total 14")
	eventually(t, patience, func() error {
		out, err := exec.Command(inside[0], append(inside[1:], "umount", first)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("the volume cannot be unmounted: %s", out)
		}
		return nil
	})
	served("11111111", "was removed")
	served("22222222", "hits_total 7")
}

// TestPodSettings: a pod says which labels and rules its pool has, and says something else later; what
// another one says wrongly costs neither.
func TestPodSettings(t *testing.T) {
	t.Parallel()
	root := sourceDir(t)
	logs := filepath.Join(root, "logs")
	first := kubeletTree(t, root, logs, "web-0", "11111111-aaaa")
	second := kubeletTree(t, root, logs, "web-1", "22222222-bbbb")
	for _, dir := range []string{first, second} {
		worker, err := os.Create(filepath.Join(dir, "counter_1.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer worker.Close() // until then it lives
		if _, err := worker.Write(sourceFile(1<<16, entry{`["hits", "hits_total", {}, "Hits."]`, 7})); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(first, "metrics.yml"), "labels: {app_team: shop}\nmetrics: [{match: hits, help: What was hit.}]\n")
	writeFile(t, filepath.Join(second, "metrics.yml"), "labels: {pod: web-0}\n")
	config := writeFile(t, filepath.Join(t.TempDir(), "aggregatord.yml"),
		fmt.Sprintf("discovery: [{kubelet: {root: %s, logs: %s, settings: metrics.yml}}]\n", root, logs))
	d := serve(t, "--config.file", config)
	served := func(want ...string) {
		t.Helper()
		eventually(t, patience, func() error {
			body, err := get(d, "/metrics")
			_, hits, _ := strings.Cut(body, "# HELP hits_total") // the last
			for _, line := range want {
				if err != nil || !strings.Contains("# HELP hits_total"+hits, line+"\n") {
					return fmt.Errorf("%q, %w; want %q", hits, err, line)
				}
			}
			return nil
		})
	}
	const other = `hits_total{namespace="prod",pod="web-1",pool="prod_web-1_metrics_22222222",uid="22222222-bbbb",volume="metrics"} 7`
	served("# HELP hits_total What was hit.",
		`hits_total{app_team="shop",namespace="prod",pod="web-0",pool="prod_web-0_metrics_11111111",uid="11111111-aaaa",volume="metrics"} 7`, other)
	if !d.logNames(second + "/metrics.yml:1:10: labels.pod: does not begin with app_") {
		t.Error("the log does not tell what is wrong in the other file")
	}
	writeFile(t, filepath.Join(first, "metrics.yml"), "labels: {app_team: orders}\n")
	eventually(t, patience, func() error { // meanwhile each scrape has the pool
		body, err := get(d, "/metrics")
		if err != nil || !strings.Contains(body, `uid="11111111-aaaa",volume="metrics"} 7`) {
			t.Fatalf("it is not served while its settings change: %v", err)
		}
		if !strings.Contains(body, `app_team="orders"`) {
			return errors.New("the new label is not there")
		}
		return nil
	})
	served("# HELP hits_total Hits.",
		`hits_total{app_team="orders",namespace="prod",pod="web-0",pool="prod_web-0_metrics_11111111",uid="11111111-aaaa",volume="metrics"} 7`, other)
}
