package integration

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// TestNormalCourseIsQuiet: workers that come and go, one with each task, hooks that remove what
// they left, and probes that connect and leave are the normal course of things. The log has a line
// of each at debug at most, and sums up at info.
func TestNormalCourseIsQuiet(t *testing.T) {
	t.Parallel()
	secrets, dir := t.TempDir(), sourceDir(t)
	writeCertificates(t, secrets, "server")
	webConfig := filepath.Join(secrets, "web.yml")
	if err := os.WriteFile(webConfig, []byte("tls_server_config: {cert_file: server.crt, key_file: server.key}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d, addresses := serveOn(t, "--dir", dir, "--web.config.file", webConfig, "--web.listen-address", "127.0.0.1:0")
	https := &http.Client{Timeout: patience, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(https.CloseIdleConnections)
	get := func(path string) error {
		resp, err := https.Get("https://" + addresses[0] + path)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", path, resp.Status)
		}
		return nil
	}
	eventually(t, patience, func() error { return get("/-/ready") })
	before := len(d.logs())

	const tasks = 150
	for i := range tasks {
		// A task has a process of its own.
		var writers []*store.Writer
		for _, kind := range []string{"counter", "gauge_livesum", "gauge_all"} {
			w, err := store.OpenWriter(filepath.Join(dir, fmt.Sprintf("%s_%d.db", kind, 1000+i)), store.WriterOptions{FirstBytes: 4096})
			if err != nil {
				t.Fatal(err)
			}
			sample := map[string]string{"counter": "tasks_total", "gauge_livesum": "running", "gauge_all": "took"}[kind]
			slot, err := w.Slot(store.AppendKey(nil,
				metric.Key{Family: strings.TrimSuffix(sample, "_total"), Series: metric.Series{Sample: sample}}))
			if err != nil {
				t.Fatal(err)
			}
			w.Set(slot, 1, 0)
			writers = append(writers, w)
		}
		if i%10 == 0 {
			if err := get("/metrics"); err != nil {
				t.Fatal(err)
			}
		}
		for _, w := range writers {
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if i%2 == 0 {
			// As mark_process_dead does it, in a hook of gunicorn.
			if err := os.Remove(filepath.Join(dir, fmt.Sprintf("gauge_livesum_%d.db", 1000+i))); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
		// A probe of the port: it connects and leaves, politely or not.
		conn, err := net.Dial("tcp", addresses[0])
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
				t.Error(err)
			}
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, patience, func() error {
		left, err := filepath.Glob(filepath.Join(dir, "*.db"))
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d files are not archived yet", len(left))
		}
		return err
	})
	loud := map[string]int{}
	for _, entry := range d.logs()[before:] {
		if level := fmt.Sprint(entry["level"]); !strings.EqualFold(level, "debug") {
			loud[fmt.Sprintf("%v %v", level, entry["msg"])]++
		}
	}
	for line, n := range loud {
		if n > 3 {
			t.Errorf("%d tasks, and %d lines: %s", tasks, n, line)
		}
	}
	if len(loud) > 5 {
		t.Errorf("%d kinds of lines: %v", len(loud), loud)
	}
	if !slices.ContainsFunc(d.logs()[before:],
		func(entry map[string]any) bool { return fmt.Sprint(entry["msg"]) == "workers started and ended" }) {
		t.Error("no line says how many workers came and went")
	}
	t.Logf("lines: %v", loud)
}
