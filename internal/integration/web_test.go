package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// writeCertificates puts ca.crt and, signed by it, NAME.crt and NAME.key for each name into
// dir. Each is good for a server on this machine and for a client.
func writeCertificates(t *testing.T, dir string, names ...string) {
	t.Helper()
	write := func(file, kind string, der []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	for i, name := range append([]string{"ca"}, names...) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			BasicConstraintsValid: true, IsCA: ca == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if ca == nil {
			ca, caKey = cert, key
		}
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, &key.PublicKey, caKey)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".crt", "CERTIFICATE", der)
		private, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		write(name+".key", "PRIVATE KEY", private)
	}
}

// serveOn starts aggregatord with the flags, which say where to listen, and waits until it
// is ready, by its log. It returns its addresses.
func serveOn(t *testing.T, flags ...string) (*daemon, []string) {
	t.Helper()
	return startServing(t, exec.Command(builtDaemon(t),
		append([]string{"serve", "--log.format", "json", "--web.self-metrics", "full"}, flags...)...))
}

func startServing(t *testing.T, cmd *exec.Cmd) (*daemon, []string) {
	t.Helper()
	cmd.Env = append(os.Environ(), quickExit)
	d := &daemon{process: start(t, cmd), client: &http.Client{Transport: &http.Transport{}}}
	d.await("readiness", func(line string) bool {
		entry, ok := parseLog(line)
		return ok && entry["msg"] == "ready"
	})
	t.Cleanup(d.stop)
	var addresses []string
	for _, entry := range d.logs() {
		if entry["msg"] == "listening" {
			addresses = append(addresses, fmt.Sprint(entry["address"]))
		}
	}
	return d, addresses
}

// curl asks for a URL and returns the status that curl saw, or its exit code below zero,
// and the body.
func curl(t *testing.T, args ...string) (int, string) {
	t.Helper()
	path := peer(t, "curl", "apt-get install curl")
	out, err := exec.Command(path, append([]string{"--silent", "--max-time", "20", "--write-out", "\n%{http_code}"}, args...)...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return -exit.ExitCode(), ""
	} else if err != nil {
		t.Fatal(err)
	}
	at := strings.LastIndexByte(string(out), '\n')
	status, err := strconv.Atoi(string(out[at+1:]))
	if err != nil {
		t.Fatal(err)
	}
	return status, string(out[:at])
}

// TestTLS scrapes over TLS with a client certificate and a password: by curl, over TCP and
// a unix socket, by a real Prometheus, and by our own commands.
func TestTLS(t *testing.T) {
	t.Parallel()
	peer(t, "curl", "apt-get install curl")
	peer(t, "prometheus", "apt-get install prometheus")
	secrets, strangers, dir := t.TempDir(), t.TempDir(), sourceDir(t)
	writeCertificates(t, secrets, "server", "scraper")
	writeCertificates(t, strangers, "scraper")
	hash, err := bcrypt.GenerateFromPassword([]byte("sesame"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	webConfig := filepath.Join(secrets, "web.yml")
	if err := os.WriteFile(webConfig, fmt.Appendf(nil, `tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_ca_file: ca.crt
  client_auth_type: RequireAndVerifyClientCert
basic_auth_users:
  prometheus: %s
`, hash), 0o600); err != nil {
		t.Fatal(err)
	}
	startWorkers(t, dir, readable)
	socket := filepath.Join(t.TempDir(), "s")
	_, addresses := serveOn(t, "--dir", dir, "--web.config.file", webConfig,
		"--web.listen-address", "127.0.0.1:0", "--web.listen-address", "unix:"+socket)
	if len(addresses) != 2 || addresses[1] != "unix:"+socket {
		t.Fatalf("it listens on %v", addresses)
	}
	target := addresses[0]
	in := func(dir string) []string {
		return []string{
			"--cacert", filepath.Join(secrets, "ca.crt"), "--cert", filepath.Join(dir, "scraper.crt"), "--key",
			filepath.Join(dir, "scraper.key"),
		}
	}
	for _, c := range []struct {
		name string
		args []string
		want []int
	}{
		{"all_right", append(in(secrets), "--user", "prometheus:sesame", "https://"+target+"/metrics"), []int{200}},
		{
			"unix_socket", append(in(secrets), "--user", "prometheus:sesame", "--unix-socket", socket, "https://localhost/metrics"),
			[]int{200},
		},
		{"http2", append(in(secrets), "--http2", "--user", "prometheus:sesame", "https://"+target+"/metrics"), []int{200}},
		{"wrong_password", append(in(secrets), "--user", "prometheus:simsim", "https://"+target+"/metrics"), []int{401}},
		{"no_password", append(in(secrets), "https://"+target+"/-/healthy"), []int{401}},
		// TLS 1.3 tells the client only after the handshake: an alert while it reads, or a reset.
		{"no_certificate", []string{
			"--cacert", filepath.Join(secrets, "ca.crt"), "--user", "prometheus:sesame",
			"https://" + target + "/metrics",
		}, []int{-35, -55, -56}},
		{
			"certificate_of_a_stranger", append(in(strangers), "--user", "prometheus:sesame", "https://"+target+"/metrics"),
			[]int{-35, -55, -56},
		},
		{"server_unknown", []string{"https://" + target + "/metrics"}, []int{-60}},
		{"plain_http", []string{"--user", "prometheus:sesame", "http://" + target + "/metrics"}, []int{400}},
		{"old_tls", append(in(secrets), "--tls-max", "1.1", "--user", "prometheus:sesame", "https://"+target+"/metrics"), []int{-35}},
	} {
		status, body := curl(t, c.args...)
		ok := false
		for _, want := range c.want {
			ok = ok || status == want
		}
		if !ok {
			t.Errorf("%s: %d, want %v", c.name, status, c.want)
		}
		if served := strings.Contains(body, "app_requests_total"); served != (status == 200) {
			t.Errorf("%s: status %d, and the metrics are served: %t", c.name, status, served)
		}
	}

	job := `  - job_name: %s
    scheme: https
    tls_config: {ca_file: %s/ca.crt, cert_file: %s/scraper.crt, key_file: %[3]s/scraper.key}
    basic_auth: {username: prometheus, password: %s}
    static_configs: [{targets: [%q]}]
`
	p := startPrometheusWith(t, fmt.Sprintf(job, "good", secrets, secrets, "sesame", target)+
		fmt.Sprintf(job, "wrong_password", secrets, secrets, "simsim", target)+
		fmt.Sprintf(job, "stranger", secrets, strangers, "sesame", target))
	for expr, want := range map[string]string{
		`sum(app_requests_total{job="good"})`: strconv.Itoa(requestsTotal),
		`up{job="good"}`:                      "1",
		`up{job="wrong_password"}`:            "0",
		`up{job="stranger"}`:                  "0",
		`sum(aggregatord_requests_refused_total{job="good",reason="unauthorized"}) > bool 2`: "1",
	} {
		eventually(t, patience, func() error {
			got, err := p.query(expr)
			if err != nil {
				return err
			}
			for _, value := range got {
				if len(got) == 1 && value == want {
					return nil
				}
			}
			return fmt.Errorf("%s answers %v, want %s", expr, got, want)
		})
	}

	// What the commands need is in one file, whose paths begin where it lies.
	config := func(dir, password string) string {
		path := filepath.Join(dir, "client-"+password+".yml")
		if err := os.WriteFile(path, fmt.Appendf(nil, `tls_config: {ca_file: %s, cert_file: scraper.crt, key_file: scraper.key}
basic_auth: {username: prometheus, password: %s}
`, filepath.Join(secrets, "ca.crt"), password), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, wrong, stranger := config(secrets, "sesame"), config(secrets, "simsim"), config(strangers, "sesame")
	for _, c := range []struct {
		name, url, file string
		args            []string
		exit            int
		want            string
	}{
		{"explain", "https://" + target, good, []string{"explain", "app_requests_total"}, 0, "+  "},
		{"explain_unix", "unix:" + socket, good, []string{"explain", "app_requests_total"}, 0, "+  "},
		{"top", "https://" + target, good, []string{"top", "--iterations", "1", "--interval", "500ms"}, 0, "app_requests"},
		{"top_unix", "unix:" + socket, good, []string{"top", "--iterations", "1", "--interval", "500ms"}, 0, "app_requests"},
		{"doctor", "https://" + target, good, []string{"doctor", "--dir", dir}, 0, "https://" + target + " is ready"},
		{"doctor_unix", "unix:" + socket, good, []string{"doctor", "--dir", dir}, 0, "unix:" + socket + " is ready"},
		{"explain_wrong_password", "https://" + target, wrong, []string{"explain", "app_requests_total"}, 1, "wants a user and a password"},
		{"doctor_wrong_password", "https://" + target, wrong, []string{"doctor", "--dir", dir}, 0, "asks for a password"},
		{
			"explain_stranger", "https://" + target, stranger,
			[]string{"explain", "app_requests_total"},
			1,
			"ask the daemon at https://" + target,
		},
		{
			"explain_plain_http", "http://" + target, good,
			[]string{"explain", "app_requests_total"},
			1,
			"if it serves TLS, use https:// in --url",
		},
	} {
		out, err := exec.Command(builtDaemon(t), append(c.args, "--url", c.url, "--http.config.file", c.file)...).CombinedOutput()
		exit := 0
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			exit = e.ExitCode()
		} else if err != nil {
			t.Fatal(err)
		}
		if exit != c.exit || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: exit code %d, want %d and %q in:\n%s", c.name, exit, c.exit, c.want, out)
		}
	}
}

// TestSystemdSocket hands the daemon a listening socket as systemd does: as descriptor 3,
// named by variables (sd_listen_fds(3)).
func TestSystemdSocket(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	startWorkers(t, dir, readable)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	// Who connects before the daemon is there waits in the socket.
	early := make(chan error, 1)
	go func() {
		client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Get("http://" + l.Addr().String() + "/-/healthy")
		if err == nil {
			resp.Body.Close()
		}
		early <- err
	}()
	// The shell becomes the daemon, so that LISTEN_PID is the daemon's.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`, builtDaemon(t),
		"serve", "--log.format", "json", "--dir", dir, "--web.systemd-socket")
	cmd.ExtraFiles = []*os.File{file}
	d, addresses := startServing(t, cmd)
	if len(addresses) != 1 || addresses[0] != l.Addr().String() {
		t.Errorf("it listens on %v, the socket is %v", addresses, l.Addr())
	}
	d.URL = "http://" + addresses[0]
	if got := d.mustText().total("app_requests", "app_requests_total"); got != requestsTotal {
		t.Errorf("it serves %v requests, want %d", got, requestsTotal)
	}
	if err := <-early; err != nil {
		t.Errorf("who came early: %v", err)
	}
}

// TestConfigReload runs the built daemon with a configuration as Kubernetes mounts it,
// beside workers that count on, and swaps it: gauges follow the rules of the file in force,
// and no counter falls.
func TestConfigReload(t *testing.T) {
	t.Parallel()
	dir, mount := sourceDir(t), t.TempDir()
	startWorkers(t, dir, readable)
	publish := func(n int, content string) {
		t.Helper()
		data := fmt.Sprintf("..2026_11_21_%d", n)
		err := errors.Join(
			os.Mkdir(filepath.Join(mount, data), 0o755),
			os.WriteFile(filepath.Join(mount, data, "aggregatord.yml"), []byte(content), 0o644),
			os.Symlink(data, filepath.Join(mount, "..data_tmp")),
			os.Rename(filepath.Join(mount, "..data_tmp"), filepath.Join(mount, "..data")),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	publish(0, "{}\n")
	file := filepath.Join(mount, "aggregatord.yml")
	if err := os.Symlink("..data/aggregatord.yml", file); err != nil {
		t.Fatal(err)
	}
	d := serve(t, "--dir", dir, "--config.file", file)
	for i, c := range []struct {
		content string
		// samples and total are those of app_level.
		samples int
		total   float64
	}{
		{"metrics: [{match: app_level, gauge_mode: max}]\n", 1, 2},
		{"metrics: [{match: app_level, gauge_mode: livesum}]\n", 1, 0.5},
		{"metrics: [{match: app_level, gauge_mode: wrong}]\n", 1, 0.5},
		{"metrics: [{match: app_level, drop: true}]\n", 0, 0},
		{"{}\n", 2, 0.5},
	} {
		publish(i+1, c.content)
		eventually(t, patience, func() error {
			v, err := d.text()
			if err != nil {
				return err
			}
			if got := v.total("app_requests", "app_requests_total"); got != requestsTotal {
				t.Fatalf("%s: %v requests, want %d", c.content, got, requestsTotal)
			}
			const successful = "aggregatord_config_last_reload_successful"
			if got, wrong := v.value(successful, successful), strings.Contains(c.content, "wrong"); (got == 0) != wrong {
				return fmt.Errorf("%s: the last reload was successful: %v", c.content, got)
			}
			samples := 0
			if f := v["app_level"]; f != nil {
				samples = len(f.Samples)
			}
			if got := v.total("app_level", "app_level"); samples != c.samples || got != c.total {
				return fmt.Errorf("%s: app_level has %d samples, in all %v", c.content, samples, got)
			}
			return nil
		})
	}
	if !d.logNames(file + ":1:") {
		t.Error("the log does not name the place of the mistake")
	}
}
