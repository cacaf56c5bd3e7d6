package integration

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// randomApp makes its directory at random, as many applications do, and counts.
const randomApp = `
import os, sys, tempfile, time
os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="aggregatord-app-", dir=sys.argv[2])
from prometheus_client import Counter
Counter("hits", "Hits.").inc(int(sys.argv[1]))
time.sleep(600)
`

// TestDiscovered finds processes that make their directories at random, one of them in
// namespaces of its own, and pools by pattern; Prometheus scrapes each as a target.
func TestDiscovered(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("to look at processes in namespaces takes root")
	}
	prometheus := peer(t, "prometheus", "apt-get install prometheus")
	unshare := peer(t, "unshare", "apt-get install util-linux")
	interpreter := python(t, "prometheus_client")
	root := t.TempDir()
	script := filepath.Join(root, "random_app.py")
	if err := os.WriteFile(script, []byte(randomApp), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, exec.Command(interpreter, script, "7", root))
	inside := start(t, exec.Command(unshare, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child",
		"sh", "-c", `mount -t tmpfs none /mnt && exec "$0" "$1" 9 /mnt`, interpreter, script))
	// Other tests may have applications at the same time.
	config := filepath.Join(root, "aggregatord.yml")
	text := "discovery: [{processes: {command: random_app.py}}]\npools: [{glob: '" + root + "/apps/*/metrics', name: 'jobs-$1', labels: {app: '$1'}}]\n"
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := serve(t, "--config.file", config, "--discover.retention", "2s")
	if err := os.MkdirAll(filepath.Join(root, "apps", "blog", "metrics"), 0o755); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	prom := filepath.Join(root, "prometheus.yml")
	text = fmt.Sprintf("global: {scrape_interval: 500ms, scrape_timeout: 500ms}\nscrape_configs: [{job_name: pools, http_sd_configs: [{url: '%s/-/sd', refresh_interval: 500ms}]}]\n", d.URL)
	if err := os.WriteFile(prom, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	start(t, exec.Command(prometheus, "--config.file", prom, "--storage.tsdb.path", filepath.Join(root, "tsdb"), "--web.listen-address", address))
	type sample struct {
		Metric map[string]string
		Value  [2]any
	}
	query := func(q string) (out []sample, err error) {
		resp, err := http.Get("http://" + address + "/api/v1/query?query=" + q)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		var body struct{ Data struct{ Result []sample } }
		err = json.NewDecoder(resp.Body).Decode(&body)
		return body.Data.Result, err
	}
	var gone string
	eventually(t, patience, func() error {
		up, err := query("up==1")
		if err != nil {
			return err
		}
		hits, err := query("hits_total")
		if err != nil || len(up) != 3 || len(hits) != 2 {
			return fmt.Errorf("up %v, hits %v, %w", up, hits, err)
		}
		sum := ""
		for _, h := range hits {
			sum += fmt.Sprint(h.Value[1])
			if h.Value[1] == "9" {
				gone = h.Metric["pool"]
			}
			if h.Metric["command"] != "random_app.py" {
				t.Fatalf("labels %v", h.Metric)
			}
		}
		if sum != "79" && sum != "97" {
			return fmt.Errorf("hits %v", hits)
		}
		return nil
	})
	if err := inside.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if body, err := get(d, "/pools/"+gone+"/metrics"); !strings.Contains(body+fmt.Sprint(err), "was removed") {
			return fmt.Errorf("%s: %q, %w", gone, body, err)
		}
		return nil
	})
	eventually(t, patience, func() error {
		up, err := query("up")
		if err != nil || len(up) != 2 {
			return fmt.Errorf("up %v, %w", up, err)
		}
		return nil
	})
}
