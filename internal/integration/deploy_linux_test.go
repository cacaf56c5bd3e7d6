package integration

import (
	"debug/elf"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"go.yaml.in/yaml/v4"
)

// deployed reads a file of deploy/.
func deployed(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(moduleRoot, "deploy", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestDeployRules: the rules are right, and do what their tests say.
func TestDeployRules(t *testing.T) {
	t.Parallel()
	promtool := peer(t, "promtool", "apt-get install prometheus")
	for _, args := range [][]string{
		{"check", "rules", "alerts.yml", "workers.yml", "rules.yml"},
		{"test", "rules", "alerts_test.yml", "workers_test.yml"},
		{"check", "config", "--syntax-only", "../compose/prometheus.yml"},
	} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = filepath.Join(moduleRoot, "deploy", "prometheus")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	for _, file := range []string{"alerts", "workers"} {
		alerts := deployed(t, "prometheus/"+file+".yml")
		for _, alert := range regexp.MustCompile(`(?m)- alert: (\w+)`).FindAllStringSubmatch(alerts, -1) {
			if !strings.Contains(deployed(t, "prometheus/"+file+"_test.yml"), "alertname: "+alert[1]+"\n        exp_alerts:\n") {
				t.Errorf("no test lets %s fire", alert[1])
			}
		}
		knownMetrics(t, alerts)
	}
}

// knownMetrics checks that the daemon's own metrics in a text are ones that it has: docs/metrics.md
// lists them all but those about processes, which docs/processes.md does; other tests see to that.
func knownMetrics(t *testing.T, text string) {
	t.Helper()
	metrics, err := os.ReadFile(filepath.Join(moduleRoot, "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	processes, err := os.ReadFile(filepath.Join(moduleRoot, "docs", "processes.md"))
	if err != nil {
		t.Fatal(err)
	}
	metrics = append(metrics, processes...)
	names := regexp.MustCompile(`aggregatord_[a-z_]+`).FindAllString(text, -1)
	if len(names) == 0 && !strings.Contains(text, "process_") {
		t.Error("none of our metrics")
	}
	for _, name := range names {
		name = strings.TrimSuffix(name, "_bucket")
		if !regexp.MustCompile("(?m)^\\| `" + name + "[`{]").Match(metrics) {
			t.Errorf("%s is no metric of ours", name)
		}
	}
}

// TestDeployDashboard: the dashboard asks for metrics that there are, in expressions that
// Prometheus understands.
func TestDeployDashboard(t *testing.T) {
	t.Parallel()
	promtool := peer(t, "promtool", "apt-get install prometheus")
	text := deployed(t, "grafana/aggregatord.json")
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal([]byte(text), &board); err != nil {
		t.Fatal(err)
	}
	exprs := 0
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboard\n  rules:\n")
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			exprs++
			expr := strings.NewReplacer("$__rate_interval", "5m", "$job", ".*", "$instance", ".*", "$pool", ".*").Replace(target.Expr)
			fmt.Fprintf(&rules, "  - {record: 'panel:%d', expr: '%s'}\n", exprs, expr)
			knownMetrics(t, expr)
		}
	}
	if exprs < 10 {
		t.Errorf("%d expressions", exprs)
	}
	file := filepath.Join(t.TempDir(), "rules.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(promtool, "check", "rules", file).CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestDeployUnits: systemd understands the units, and the daemon the command line in them.
func TestDeployUnits(t *testing.T) {
	t.Parallel()
	analyze := peer(t, "systemd-analyze", "apt-get install systemd")
	dir := t.TempDir()
	service := deployed(t, "systemd/aggregatord.service")
	changed := strings.ReplaceAll(service, "/usr/bin/aggregatord", builtDaemon(t))
	if changed == service {
		t.Fatal("the unit does not start /usr/bin/aggregatord")
	}
	units := []string{filepath.Join(dir, "aggregatord.service"), filepath.Join(dir, "aggregatord.socket")}
	for i, text := range []string{changed, deployed(t, "systemd/aggregatord.socket")} {
		if err := os.WriteFile(units[i], []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command(analyze, append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || strings.Contains(string(out), "aggregatord.") {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
	for _, line := range regexp.MustCompile(`(?m)^#?ExecStart=\S+ (.*)$`).FindAllStringSubmatch(service, -1) {
		help := append(strings.Fields(line[1]), "--help")
		if out, err := exec.Command(builtDaemon(t), help...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", line[1], err, out)
		}
	}
}

// TestDeployCompose: every file that the compose file and its Dockerfile name is there.
func TestDeployCompose(t *testing.T) {
	t.Parallel()
	var compose struct {
		Services map[string]struct {
			Build   struct{ Context, Dockerfile string }
			User    string
			Volumes []string
		}
		Volumes map[string]any
	}
	if err := yaml.Unmarshal([]byte(deployed(t, "compose/compose.yml")), &compose); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(moduleRoot, "deploy", "compose")
	there := func(path string) {
		t.Helper()
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	for name, s := range compose.Services {
		if s.Build.Context != "" {
			there(filepath.Join(base, s.Build.Context, s.Build.Dockerfile))
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(from, ".") {
				there(filepath.Join(base, from))
			} else if _, ok := compose.Volumes[from]; !ok {
				t.Errorf("%s: no volume %s", name, from)
			}
		}
	}
	if app, daemon := compose.Services["app"], compose.Services["aggregatord"]; app.User == "" || app.User != daemon.User {
		t.Errorf("the application is user %q and the daemon %q", app.User, daemon.User)
	}
	there(filepath.Join(moduleRoot, regexp.MustCompile(`(?m)^COPY (\S+)`).FindStringSubmatch(deployed(t, "compose/app.Dockerfile"))[1]))
}

// TestDeployImage does what the Dockerfile does without a registry: it builds by the same
// command, and runs what comes out as the image does, with nothing else in its root and as the
// same user, which is not root.
func TestDeployImage(t *testing.T) {
	t.Parallel()
	needRoot(t)
	text := deployed(t, "docker/Dockerfile")
	ignored := deployed(t, "docker/Dockerfile.dockerignore")
	for _, c := range regexp.MustCompile(`(?m)^COPY (cmd|internal|go.mod)`).FindAllStringSubmatch(text, -1) {
		if !strings.Contains(ignored, "!"+c[1]+"\n") {
			t.Errorf("%s is not sent to the builder", c[1])
		}
	}
	run := regexp.MustCompile(`(?m)^RUN (CGO_ENABLED=0 go build .*)$`).FindStringSubmatch(text)
	user := regexp.MustCompile(`(?m)^USER (\d+):(\d+)$`).FindStringSubmatch(text)
	entry := regexp.MustCompile(`(?m)^ENTRYPOINT \["(.*)"\]$`).FindStringSubmatch(text)
	command := regexp.MustCompile(`(?m)^CMD \["(.*)"\]$`).FindStringSubmatch(text)
	if run == nil || user == nil || entry == nil || command == nil {
		t.Fatal("the Dockerfile does not build, or says not how to start")
	}
	root, err := os.MkdirTemp(scratch, "image-")
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(root, entry[1])
	build := exec.Command("sh", "-c", strings.Replace(run[1], "-o "+entry[1], "-o "+binary, 1))
	build.Dir = moduleRoot
	build.Env = append(os.Environ(), "VERSION=test")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	file, err := elf.Open(binary)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the binary is not static")
		}
	}
	volume := filepath.Join(root, "multiproc")
	if err := os.Mkdir(volume, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	var uid, gid uint32
	if _, err := fmt.Sscan(user[1], &uid); err != nil || uid == 0 {
		t.Fatalf("user %s: %v", user[1], err)
	}
	if _, err := fmt.Sscan(user[2], &gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(volume, int(uid), int(gid)); err != nil {
		t.Fatal(err)
	}
	// The port is the one flag that the image does not have.
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	cmd := exec.Command(entry[1], append(strings.Split(command[1], `", "`), "--web.listen-address", address)...)
	cmd.Dir = "/"
	cmd.Env = []string{regexp.MustCompile(`(?m)^ENV (\S+)$`).FindStringSubmatch(text)[1]}
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	p := start(t, cmd)
	client := &http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}
	eventually(t, patience, func() error {
		resp, err := client.Get("http://" + address + "/-/ready")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("status %s", resp.Status)
		}
		return nil
	})
	if err := p.terminate(); err != nil {
		t.Error(err)
	}
}

// TestDeployExtras makes the man pages and the completions, and looks whether every file that
// the package takes is there.
func TestDeployExtras(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if out, err := exec.Command(builtDaemon(t), "man", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, page := range []string{"aggregatord.1", "aggregatord-serve.1", "aggregatord-run.1", "aggregatord-doctor.1"} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !strings.Contains(string(text), "\n.SH SYNOPSIS\n") {
			t.Errorf("%s: %v\n%.200s", page, err, text)
		}
	}
	if hidden, _ := filepath.Glob(filepath.Join(dir, "*worker*")); len(hidden) > 0 {
		t.Errorf("pages of hidden commands: %v", hidden)
	}
	makefile, err := os.ReadFile(filepath.Join(moduleRoot, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, src := range regexp.MustCompile(`(?m)- src: (\S+)`).FindAllStringSubmatch(deployed(t, "packaging/nfpm.yaml"), -1) {
		if built, ok := strings.CutPrefix(src[1], "bin/"); ok {
			if !strings.Contains(string(makefile), "$(BIN)/"+strings.TrimSuffix(built, "/")) {
				t.Errorf("nothing makes %s", src[1])
			}
		} else if _, err := os.Stat(filepath.Join(moduleRoot, src[1])); err != nil {
			t.Error(err)
		}
	}
}
