package integration

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestCreatedSamples: a real Prometheus takes the samples that say since when series count, the
// strict parser of the Python client does, and the next daemon says the same after a kill.
func TestCreatedSamples(t *testing.T) {
	t.Parallel()
	peer(t, "prometheus", "apt-get install prometheus")
	dir := sourceDir(t)
	flags := []string{"--dir", dir, "--web.created-samples"}
	d := serve(t, flags...)
	before := time.Now()
	if _, err := d.openMetrics(); err != nil { // an empty view: what comes later is new
		t.Fatal(err)
	}
	startWorkers(t, dir, readable)
	line := regexp.MustCompile(`(?m)^app_[a-z_]*_created(\{.*\})? [0-9.]+$`)
	created := func(d *daemon) map[string]bool {
		t.Helper()
		if _, err := d.openMetrics(); err != nil {
			t.Fatal(err)
		}
		body, _, err := d.get("/metrics", acceptOpenMetrics)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]bool{}
		for _, l := range line.FindAllString(string(body), -1) {
			found[l] = true
		}
		return found
	}
	first := created(d)
	for _, family := range []string{"app_requests_created{", "app_latency_seconds_created", "app_size_bytes_created"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(first)), func(l string) bool { return strings.HasPrefix(l, family) }) {
			t.Errorf("no %s in %v", family, first)
		}
	}
	p := startPrometheus(t, map[string]string{"app": strings.TrimPrefix(d.URL, "http://")})
	eventually(t, patience, func() error {
		up, err := p.query(`up{job="app"}`)
		if err != nil {
			return err
		}
		times, err := p.query(fmt.Sprintf(`count({__name__=~"app_.*_created"} > %d and {__name__=~"app_.*_created"} < time())`,
			before.Unix()-1))
		if err != nil {
			return err
		}
		if !maps.Equal(times, map[string]string{"": fmt.Sprint(len(first))}) || len(up) != 1 {
			return fmt.Errorf("up %v, %v series with a start, want %d", up, times, len(first))
		}
		return nil
	})
	// Saved at most some seconds after they were learned.
	eventually(t, patience, func() error {
		_, err := os.Stat(filepath.Join(dir, ".aggregatord.starts"))
		return err
	})
	d.stopped = true
	d.kill()
	if again := created(serve(t, flags...)); !maps.Equal(again, first) {
		t.Errorf("the next daemon has\n%v\nnot\n%v", again, first)
	}
}
