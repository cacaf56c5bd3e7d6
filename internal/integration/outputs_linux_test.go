package integration

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
)

// freeAddress is a loopback address that nobody had a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listening waits until something listens on an address.
func listening(t *testing.T, p *process, address string) {
	t.Helper()
	eventually(t, patience, func() error {
		select {
		case <-p.exited:
			t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.out.tail())
		default:
		}
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// startPushgateway starts Debian's Pushgateway behind nginx, which has a certificate of its own
// and wants the user batch with the password secret. It returns the address of nginx, the file
// of the certificate and the address of the Pushgateway itself.
func startPushgateway(t *testing.T) (front, ca, back string) {
	t.Helper()
	gateway := peer(t, "prometheus-pushgateway", "apt-get install prometheus-pushgateway")
	nginx := "/usr/sbin/nginx"
	if _, err := os.Stat(nginx); err != nil {
		missing(t, "nginx", "apt-get install nginx-light")
	}
	back, front = freeAddress(t), freeAddress(t)
	listening(t, start(t, exec.Command(gateway, "--web.listen-address", back)), back)
	dir := t.TempDir()
	ca = filepath.Join(dir, "cert.pem")
	selfSigned(t, ca, filepath.Join(dir, "key.pem"))
	config := fmt.Sprintf(`
daemon off; master_process off; pid %[1]s/pid; error_log stderr;
events {}
http {
  access_log off;
  client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server {
    listen %[2]s ssl;
    ssl_certificate %[1]s/cert.pem; ssl_certificate_key %[1]s/key.pem;
    auth_basic "push"; auth_basic_user_file %[1]s/users;
    location / { proxy_pass http://%[3]s; }
  }
}
`, dir, front, back)
	for name, text := range map[string]string{"nginx.conf": config, "users": "batch:{PLAIN}secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	listening(t, start(t, exec.Command(nginx, "-c", filepath.Join(dir, "nginx.conf"), "-p", dir)), front)
	return front, ca, back
}

// selfSigned writes a certificate for 127.0.0.1 and its key.
func selfSigned(t *testing.T, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "push"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		certFile: {Type: "CERTIFICATE", Bytes: cert},
		keyFile:  {Type: "PRIVATE KEY", Bytes: der},
	} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startCarbon starts Debian's carbon and returns its address and where its files are.
func startCarbon(t *testing.T) (address, storage string) {
	t.Helper()
	carbon := peer(t, "carbon-cache", "apt-get install graphite-carbon python3-whisper")
	dir := t.TempDir()
	storage = filepath.Join(dir, "whisper")
	address, pickle, query := freeAddress(t), freeAddress(t), freeAddress(t)
	port := func(address string) string {
		_, port, _ := net.SplitHostPort(address)
		return port
	}
	config := fmt.Sprintf(`[cache]
STORAGE_DIR = %[1]s/
LOCAL_DATA_DIR = %[1]s/whisper/
CONF_DIR = %[1]s/
LOG_DIR = %[1]s/
PID_DIR = %[1]s/
ENABLE_TAGS = False
MAX_CREATES_PER_MINUTE = inf
MAX_UPDATES_PER_SECOND = inf
LINE_RECEIVER_INTERFACE = 127.0.0.1
LINE_RECEIVER_PORT = %[2]s
PICKLE_RECEIVER_INTERFACE = 127.0.0.1
PICKLE_RECEIVER_PORT = %[3]s
CACHE_QUERY_INTERFACE = 127.0.0.1
CACHE_QUERY_PORT = %[4]s
`, dir, port(address), port(pickle), port(query))
	for name, text := range map[string]string{"carbon.conf": config, "storage-schemas.conf": "[all]\npattern = .*\nretentions = 1s:1h\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	listening(t, start(t, exec.Command(carbon, "--config", filepath.Join(dir, "carbon.conf"), "--nodaemon", "start")), address)
	return address, storage
}

// whisperLast prints the last value of each file below a directory, by its path.
const whisperLast = `
import json, os, sys, time, whisper
out = {}
for base, _, names in os.walk(sys.argv[1]):
    for name in names:
        path = os.path.join(base, name)
        values = [v for v in whisper.fetch(path, time.time() - 3000)[1] if v is not None]
        if values:
            out[os.path.relpath(path, sys.argv[1])[:-len(".wsp")].replace("/", ".")] = repr(values[-1])
print(json.dumps(out))
`

// startNodeExporter starts Debian's node_exporter with nothing but the textfile collector.
func startNodeExporter(t *testing.T, dir string) (address string) {
	t.Helper()
	exporter := peer(t, "prometheus-node-exporter", "apt-get install prometheus-node-exporter")
	address = freeAddress(t)
	listening(t, start(t, exec.Command(exporter, "--collector.disable-defaults", "--collector.textfile",
		"--collector.textfile.directory", dir, "--web.listen-address", address)), address)
	return address
}

// startReceiver builds and starts the receiver of package output/receivertest. stop ends it and
// returns what it has stored.
var receiverBuilt = sync.OnceValues(func() (string, error) {
	path := filepath.Join(scratch, "receiver")
	dir := filepath.Join(moduleRoot, "internal", "output", "receivertest")
	// With a copy of its go.mod, which may have to follow ours.
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(scratch, "receiver."+name[3:]), text, 0o644)
		}
		if err != nil {
			return "", err
		}
	}
	cmd := exec.Command("go", "build", "-mod=mod", "-modfile="+filepath.Join(scratch, "receiver.mod"), "-o", path, "./receiver")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return path, nil
})

func startReceiver(t *testing.T) (address string, stop func() map[string][][2]string) {
	t.Helper()
	path, err := receiverBuilt()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = in
	p := start(t, cmd)
	in.Close()
	t.Cleanup(func() { out.Close() })
	address = p.await("its address", func(string) bool { return true })
	return address, func() map[string][][2]string {
		out.Close()
		if err := p.wait(); err != nil {
			t.Fatal(err)
		}
		var all map[string][][2]string
		_, text, _ := strings.Cut(p.out.String(), "\n")
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
}

// flat lists the series of families with their values; labels are those to leave out.
func flat(families map[string]*dto.MetricFamily, without ...string) map[string]float64 {
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []metric.Label
			for _, l := range m.GetLabel() {
				if !slices.Contains(without, l.GetName()) {
					labels = append(labels, metric.Label{Name: l.GetName(), Value: l.GetValue()})
				}
			}
			add := func(suffix string, v float64, more ...metric.Label) {
				out[outputtest.Series(f.GetName()+suffix, append(slices.Clone(labels), more...))] = v
			}
			switch {
			case m.Histogram != nil:
				for _, b := range m.Histogram.GetBucket() {
					add("_bucket", float64(b.GetCumulativeCount()),
						metric.Label{Name: "le", Value: string(metric.AppendBound(nil, b.GetUpperBound()))})
				}
				add("_sum", m.Histogram.GetSampleSum())
				add("_count", float64(m.Histogram.GetSampleCount()))
			case m.Summary != nil:
				add("_sum", m.Summary.GetSampleSum())
				add("_count", float64(m.Summary.GetSampleCount()))
			default:
				add("", m.GetCounter().GetValue()+m.GetGauge().GetValue()+m.GetUntyped().GetValue())
			}
		}
	}
	return out
}

// heads lists type and help of the families whose names begin with a prefix.
func heads(families map[string]*dto.MetricFamily, prefix string) map[string]string {
	out := map[string]string{}
	for name, f := range families {
		if strings.HasPrefix(name, prefix) {
			out[name] = f.GetType().String() + " " + f.GetHelp()
		}
	}
	return out
}

func families(t *testing.T, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	out, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func getURL(url string) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		err = errors.Join(err, errors.New(resp.Status))
	}
	return body, err
}

// onlyBatch are the series of testdata/apps/batch.py.
func onlyBatch(all map[string]float64) map[string]float64 {
	out := map[string]float64{}
	for series, v := range all {
		if strings.HasPrefix(series, "batch_") {
			out[series] = v
		}
	}
	return out
}

// TestOutputsOfBatch: a batch of 100 items with 4 workers that ends at once is whole in each
// receiver there is, values, types, help and labels as a scrape would have shown them.
func TestOutputsOfBatch(t *testing.T) {
	t.Parallel()
	interpreter := python(t, "prometheus_client")
	front, ca, back := startPushgateway(t)
	carbon, whisper := startCarbon(t)
	textDir := t.TempDir()
	node := startNodeExporter(t, textDir)
	prometheus := startPrometheusWith(t, "", "--web.enable-remote-write-receiver")
	receiver, received := startReceiver(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(ca), "password"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(filepath.Dir(ca), "aggregatord.yml")
	yaml := fmt.Sprintf(`
outputs:
  - name: gateway
    http_config:
      basic_auth: {username: batch, password_file: password}
      tls_config: {ca_file: cert.pem}
    pushgateway: {url: 'https://%s', job: a batch, grouping_key: {path: /srv/é}, instance_ip: true}
  - name: carbon
    graphite: {address: '%s', prefix: jobs.nightly}
  - name: node
    textfile: {path: %s/batch.prom}
  - name: prometheus
    external_labels: {job: batch}
    remote_write: {url: 'http://%s/api/v1/write'}
  - name: newer
    remote_write: {url: 'http://%[5]s/api/v1/write'}
  - name: collector
    otlp: {url: 'http://%[5]s/api/v1/otlp/v1/metrics', resource_attributes: {service.name: batch, service.instance.id: '1'}}
`, front, carbon, textDir, strings.TrimPrefix(prometheus.url, "http://"), receiver)
	if err := os.WriteFile(config, []byte(yaml), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := sourceDir(t)
	run := start(t, exec.Command(builtDaemon(t), runArgs([]string{"--config.file", config, "--dir", dir}, interpreter, app(t, "batch.py"),
		"3")...))
	if code := exitCode(run.wait()); code != 3 {
		t.Fatalf("exit code %d, want that of the command, 3", code)
	}
	if strings.Contains(run.out.String(), "DATA RACE") {
		t.Error(run.out.String())
	}
	dump, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	view := families(t, dump)
	want := flat(view)
	if want[`batch_items_total{kind="a/b é"}`] != 100 || want["batch_item_seconds_count"] != 100 ||
		want["batch_item_bytes_sum"] != 10_000 || len(want) < 13 {
		t.Fatalf("%v", want)
	}
	check := func(where string, got map[string]float64, gotHeads map[string]string) {
		t.Helper()
		if diff := outputtest.Diff(want, got); diff != "" {
			t.Errorf("%s:\n%s", where, diff)
		}
		if gotHeads != nil && !maps.Equal(gotHeads, heads(view, "")) {
			t.Errorf("%s: %v, want %v", where, gotHeads, heads(view, ""))
		}
	}

	body, err := getURL("http://" + back + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	pushed := families(t, body)
	check("Pushgateway", onlyBatch(flat(pushed, "job", "instance", "path")), heads(pushed, "batch_"))
	group := ""
	for _, l := range pushed["batch_last_item"].GetMetric()[0].GetLabel() {
		group += l.GetName() + "=" + l.GetValue() + " "
	}
	if group != "instance=127.0.0.1 job=a batch path=/srv/é " {
		t.Errorf("group: %s", group)
	}

	if body, err = getURL("http://" + node + "/metrics"); err != nil {
		t.Fatal(err)
	}
	collected := families(t, body)
	check("node_exporter", onlyBatch(flat(collected)), heads(collected, "batch_"))

	// Nothing is left out of what carbon stores but NaN, which it has no use for.
	eventually(t, patience, func() error {
		text, err := output(t.Context(), []byte(whisperLast), "/usr/bin/python3", "-", whisper)
		if err != nil {
			return err
		}
		var got map[string]string
		if err := json.Unmarshal(text, &got); err != nil {
			return err
		}
		for path, want := range map[string]string{
			"jobs.nightly.batch_items_total.kind.a_b__":      "100.0",
			"jobs.nightly.batch_item_seconds_bucket.le.2_5":  "80.0",
			"jobs.nightly.batch_item_seconds_bucket.le._Inf": "100.0",
			"jobs.nightly.batch_item_seconds_count":          "100.0",
			"jobs.nightly.batch_item_bytes_sum":              "10000.0",
			"jobs.nightly.batch_last_item":                   "99.0",
			"jobs.nightly.batch_odd.value.5e-324":            "5e-324",
			"jobs.nightly.batch_odd.value.inf":               "inf",
			"jobs.nightly.batch_odd.value.-inf":              "-inf",
			"jobs.nightly.batch_odd.value.0_1":               "0.1",
		} {
			if got[path] != want {
				return fmt.Errorf("%s: %q, want %s; there are %v", path, got[path], want, got)
			}
		}
		return nil
	})

	stored, err := prometheus.query(`last_over_time({job="batch"}[1h])`)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for series, text := range stored {
		v, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		got[unspelled(t, series, "job")] = v
	}
	check("Prometheus 2, remote write 1.0", onlyBatch(got), nil)
	if now, err := prometheus.query(`{job="batch"}`); err != nil || len(now) > 0 {
		t.Errorf("in the end the series have not ended: %v, %v", now, err)
	}

	all := received()
	byWrite, byOTLP := map[string]float64{}, map[string]float64{}
	for series, samples := range all {
		if !strings.HasPrefix(series, "batch_") { // target_info, and processes if they were seen
			continue
		}
		last := samples[len(samples)-1]
		name, _, _ := strings.Cut(series, "{")
		counts := strings.HasSuffix(name, "_total") || strings.HasPrefix(name, "batch_item_")
		otlp := strings.Contains(series, `job="batch"`)
		if !otlp {
			if last[1] != "stale" {
				t.Errorf("%s has not ended: %v", series, samples)
			}
			last = samples[len(samples)-2]
		}
		if counts && samples[0][1] != "0" {
			t.Errorf("%s does not start at 0: %v", series, samples)
		}
		v, err := strconv.ParseFloat(last[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		if otlp {
			byOTLP[strings.NewReplacer(`{instance="1",job="batch"}`, "", `instance="1",job="batch",`, "", `,instance="1",job="batch"`, "",
				`="1"`, `="1.0"`).Replace(series)] = v
		} else {
			byWrite[series] = v
		}
	}
	check("Prometheus 3, remote write 2.0", byWrite, nil)
	check("Prometheus 3, OTLP", byOTLP, nil)
}

// unspelled is a series as outputtest spells it, of one as seriesOf does, without some labels.
func unspelled(t *testing.T, series string, without ...string) string {
	t.Helper()
	f := families(t, []byte("x"+strings.Replace(series, "{__name__=", "{metric_name=", 1)+" 1\n"))
	name := ""
	var labels []metric.Label
	for _, l := range f["x"].GetMetric()[0].GetLabel() {
		switch {
		case l.GetName() == "metric_name":
			name = l.GetValue()
		case !slices.Contains(without, l.GetName()):
			labels = append(labels, metric.Label{Name: l.GetName(), Value: l.GetValue()})
		}
	}
	return outputtest.Series(name, labels)
}

// TestOutputPassword: a wrong password is named, changes the exit code only if asked, and costs
// the command nothing; push says the same once, and with the right one the group is there.
func TestOutputPassword(t *testing.T) {
	t.Parallel()
	interpreter := python(t, "prometheus_client")
	front, ca, back := startPushgateway(t)
	for name, tc := range map[string]struct {
		flags []string
		code  string
		want  int
	}{
		"not asked":         {nil, "0", 0},
		"asked":             {[]string{"--push.exit-code", "9"}, "0", 9},
		"the command's own": {[]string{"--push.exit-code", "9"}, "4", 4},
	} {
		t.Run(name, func(t *testing.T) {
			flags := append([]string{"--push.pushgateway", "http://batch:wrong@" + back, "--push.job", "j", "--push.exit-timeout", "2s"},
				tc.flags...)
			// The certificate is nobody's that this system knows.
			flags[1] = "https://batch:wrong@" + front
			cmd := exec.Command(builtDaemon(t), runArgs(flags, interpreter, app(t, "batch.py"), tc.code)...)
			cmd.Env = withoutDir()
			run := start(t, cmd)
			if code := exitCode(run.wait()); code != tc.want {
				t.Errorf("exit code %d, want %d", code, tc.want)
			}
			said := run.out.String()
			if !strings.Contains(said, "set http_config.tls_config.ca_file") || strings.Contains(said, "wrong") {
				t.Error(said)
			}
		})
	}
	dir := sourceDir(t)
	startWorkers(t, dir, readable)
	httpConfig := filepath.Join(filepath.Dir(ca), "http.yml")
	push := func(password string) error {
		text := fmt.Sprintf("basic_auth: {username: batch, password: %s}\ntls_config: {ca_file: cert.pem}\n", password)
		if err := os.WriteFile(httpConfig, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := output(t.Context(), nil, builtDaemon(t), "push", "--dir", dir, "--to", "https://"+front, "--job", "once",
			"--http.config.file", httpConfig)
		return err
	}
	if err := push("wrong"); err == nil ||
		!strings.Contains(err.Error(), "401 Unauthorized; it wants a password or token, or another one: see http_config.basic_auth") {
		t.Error(err)
	}
	if err := push("secret"); err != nil {
		t.Error(err)
	}
	dump, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	want := flat(families(t, dump))
	body, err := getURL("http://" + back + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	got := flat(families(t, body), "job", "instance")
	for series := range got {
		if _, ok := want[series]; !ok {
			delete(got, series)
		}
	}
	if diff := outputtest.Diff(want, got); diff != "" || len(want) == 0 {
		t.Error(diff)
	}
}

// TestOutputsOfServe: an output works while the daemon runs, a reload changes it, receivers that
// hang do not slow scrapes down, SIGKILL leaves the next start all it needs, and on SIGTERM the
// daemon waits for workers if asked, and pushes their last values.
func TestOutputsOfServe(t *testing.T) {
	t.Parallel()
	hang, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hang.Close() })
	out := t.TempDir()
	dir := sourceDir(t)
	config := filepath.Join(t.TempDir(), "aggregatord.yml")
	write := func(file string) {
		yaml := fmt.Sprintf(`
outputs:
  - {name: file, interval: 1s, process_metrics: true, textfile: {path: %s/%s, remove_on_exit: false}}
  - {name: hangs, interval: 1s, on_exit: false, timeout: 1h, remote_write: {url: 'http://%s/'}}
`, out, file, hang.Addr())
		if err := os.WriteFile(config, []byte(yaml), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a.prom")
	ws := startWorkers(t, dir, program{
		Metrics: []declared{{Name: "jobs_total", Type: "counter", Help: "Jobs.", Labels: []string{}}},
		Workers: []worker{
			{Steps: []step{{Metric: "jobs_total", Op: "inc", Value: "1"}}},
			{Busy: true, Steps: []step{{Metric: "jobs_total", Op: "inc", Value: "1"}}},
		},
	})
	d := serve(t, "--dir", dir, "--config.file", config, "--shutdown.wait-workers", "1m")
	value := func(file string) (float64, error) {
		text, err := os.ReadFile(filepath.Join(out, file))
		if err != nil {
			return 0, err
		}
		return flat(families(t, text))["jobs_total"], nil
	}
	rises := func(file string) {
		t.Helper()
		last := 0.0
		rose := 0
		eventually(t, patience, func() error {
			v, err := value(file)
			if v < last {
				t.Fatalf("fell from %v to %v", last, v)
			}
			if v > last {
				last, rose = v, rose+1
			}
			return cmp.Or(err, map[bool]error{true: nil, false: fmt.Errorf("rose %d times to %v", rose, last)}[rose >= 3])
		})
	}
	rises("a.prom")
	write("b.prom")
	rises("b.prom")
	// The file has what a scrape has, the workers as processes among it.
	eventually(t, patience, func() error {
		text, err := os.ReadFile(filepath.Join(out, "b.prom"))
		if err != nil {
			return err
		}
		scraped, err := d.text()
		if err != nil {
			return err
		}
		sent := families(t, text)
		if v := flat(sent)["aggregatord_pool_workers"]; v != 2 || flat(sent)["process_cpu_seconds_total"] <= 0 {
			return fmt.Errorf("%v workers are sent, want 2", v)
		}
		for name, f := range scraped {
			if got := sent[name+map[string]string{"counter": "_total"}[f.Type]]; !strings.HasPrefix(name, "aggregatord_") &&
				(got == nil || got.GetHelp() != f.Help) {
				return fmt.Errorf("%s is served, and %v sent", name, got)
			}
		}
		return nil
	})
	var answer struct {
		Data []struct {
			Name    string
			Results map[string]int
		}
	}
	body, err := getURL(d.URL + "/api/v1/outputs")
	if err != nil || json.Unmarshal(body, &answer) != nil || len(answer.Data) != 2 || answer.Data[0].Name != "file" ||
		answer.Data[0].Results["ok"] == 0 || len(answer.Data[1].Results) != 0 {
		t.Errorf("%s, %v", body, err)
	}

	d.stopped = true
	d.kill()
	d = serve(t, "--dir", dir, "--config.file", config, "--shutdown.wait-workers", "1m", "--push.exit-timeout", "5s")
	rises("b.prom")

	// The busy worker counts on until it is killed, after the daemon is told to end.
	d.stopped = true
	d.signal(syscall.SIGTERM)
	d.await("the wait for workers", func(line string) bool { return strings.Contains(line, "waiting for workers to end") })
	ws.finish(0)
	ws.processes[1].kill()
	if err := d.wait(); err != nil {
		t.Error(err)
	}
	if strings.Contains(d.out.String(), "DATA RACE") {
		t.Error(d.out.String())
	}
	dump, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir)
	if err != nil {
		t.Fatal(err)
	}
	want := flat(families(t, dump))["jobs_total"]
	if got, err := value("b.prom"); err != nil || got != want || math.IsNaN(want) || want == 0 {
		t.Errorf("the last push has %v, the directory %v, %v", got, want, err)
	}
}

// TestRunHurry: a signal that comes when the command has ended ends a last push that would take
// long; the exit code is the command's.
func TestRunHurry(t *testing.T) {
	t.Parallel()
	hang, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and never answers
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { hang.Close() })
	cmd := exec.Command(builtDaemon(t), runArgs([]string{
		"--push.pushgateway", "http://" + hang.Addr().String(), "--push.job", "j", "--push.timeout", "10m", "--push.exit-timeout", "10m",
	}, "sh", "-c", "exit 5")...)
	cmd.Env = withoutDir()
	run := start(t, cmd)
	run.await("the end of the command", func(line string) bool { return strings.Contains(line, "stopped serving") })
	run.signal(syscall.SIGTERM)
	if code := exitCode(run.wait()); code != 5 {
		t.Errorf("exit code %d, want 5", code)
	}
	if said := run.out.String(); !strings.Contains(said, "the last push failed") || strings.Contains(said, "DATA RACE") {
		t.Error(said)
	}
}
