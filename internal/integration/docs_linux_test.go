package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

// block is what a page shows to be typed into a shell.
type block struct {
	page string
	line int
	text string
	// name is what other blocks call it; beside is the name of the block that must be running.
	name, beside string
	// shows is a metric that must be served when the block has started its servers and the
	// application was asked once.
	shows string
	// notRun is why it cannot be run here.
	notRun string
}

// server reports whether the block ends with a daemon that serves until it is stopped.
func (b block) server() bool {
	lines := strings.Split(strings.TrimSpace(b.text), "\n")
	return regexp.MustCompile(`^(bin/)?aggregatord (serve|run|demo)\b`).MatchString(lines[len(lines)-1])
}

// blocks takes the blocks of shell out of a page. Comments directly above one say how it is
// to be tested: not run, name, beside, shows.
func blocks(t *testing.T, page string) []block {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(moduleRoot, page))
	if err != nil {
		t.Fatal(err)
	}
	var found []block
	said := map[string]string{}
	comment := regexp.MustCompile(`^<!-- (not run|name|beside|shows): (.*) -->$`)
	var in *block
	for i, line := range strings.Split(string(data), "\n") {
		switch {
		case in != nil && line == "```":
			found = append(found, *in)
			in = nil
		case in != nil:
			in.text += line + "\n"
		case line == "```sh" || line == "```shell" || line == "```bash":
			in = &block{page: page, line: i + 1, notRun: said["not run"], name: said["name"], beside: said["beside"], shows: said["shows"]}
			said = map[string]string{}
		default:
			if m := comment.FindStringSubmatch(line); m != nil {
				said[m[1]] = m[2]
			} else if strings.TrimSpace(line) != "" {
				said = map[string]string{}
			}
		}
	}
	return found
}

// docsScript runs one block in namespaces of its own: nothing it starts outlives it, its ports are
// its own, and its /dev/shm, /run and /tmp are new. $1 is the block beside which it runs, or
// nothing; $2 the block, $3 whether it serves and $4 the metric that must show.
const docsScript = `
set -e
ip link set lo up
for d in /dev/shm /run; do mount -t tmpfs tmpfs $d; done
mkdir -p /dev/shm/shop /dev/shm/jobs /dev/shm/myapp
cd "$WORK"
if grep -q "redis\|celery" "$1" "$2"; then
	redis-server --port 6379 --bind 127.0.0.1 --save "" --daemonize yes --dir "$WORK" >/dev/null
fi
ready() {
	for i in $(seq 300); do
		if [ "$(curl -s -o /dev/null -w '%{http_code}' http://localhost:9500/-/ready)" = 200 ]; then return 0; fi
		sleep 0.1
	done
	echo "nobody is ready on port 9500"; return 1
}
application() { # $1: block. Waits until its application answers, if it has one.
	grep -q "gunicorn\|uwsgi\|uvicorn\|puma" "$1" || return 0
	for i in $(seq 300); do
		if curl -s -o /dev/null http://127.0.0.1:8000/; then return 0; fi
		sleep 0.1
	done
	echo "nobody answers on port 8000"; return 1
}
if [ -n "$1" ]; then
	bash -e "$1" & 
	ready; application "$1"
fi
if [ "$3" = server ]; then
	bash -e "$2" &
	ready; application "$2"
	kill -0 $!
	if [ -n "$4" ]; then
		for i in $(seq 300); do
			if curl -s "http://localhost:9500/metrics" | grep -q "^$4[ {]"; then exit 0; fi
			sleep 0.1
		done
		echo "no $4 is served"; exit 1
	fi
else
	bash -e -o pipefail "$2"
fi
`

// TestDocs runs every block of shell that README.md and the pages show, but for those that
// say why they are not run.
func TestDocs(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, program := range []struct{ name, hint string }{
		{"ip", "apt-get install iproute2"},
		{"curl", "apt-get install curl"},
		{"gunicorn", "apt-get install gunicorn"},
		{"uwsgi", "apt-get install uwsgi-core uwsgi-plugin-python3"},
		{"puma", "apt-get install puma ruby-prometheus-client-mmap"},
		{"redis-server", "apt-get install redis-server"},
		{"unshare", "apt-get install util-linux"},
	} {
		peer(t, program.name, program.hint)
	}
	pages, err := filepath.Glob(filepath.Join(moduleRoot, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	work, err := os.MkdirTemp(scratch, "docs-")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs(moduleRoot)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(work, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, link := range [][2]string{
		{builtDaemon(t), "bin/aggregatord"}, {root + "/testdata", "testdata"}, {root + "/deploy", "deploy"},
	} {
		if err := os.Symlink(link[0], filepath.Join(work, link[1])); err != nil {
			t.Fatal(err)
		}
	}
	// The distribution's Python has the modules; another one may stand before it.
	if err := os.Symlink(python(t, "flask", "celery", "redis", "fastapi", "uvicorn", "django", "django_prometheus", "prometheus_client"),
		filepath.Join(work, "bin", "python3")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove("/tmp/shop.prom") }) // what the README's dump writes
	run, skipped := 0, 0
	for _, page := range append([]string{"README.md"}, pages...) {
		page = strings.TrimPrefix(page, moduleRoot+"/")
		named := map[string]block{}
		for _, b := range blocks(t, page) {
			if b.name != "" {
				named[b.name] = b
			}
			beside, ok := named[b.beside]
			if b.beside != "" && !ok {
				t.Errorf("%s:%d: no block has the name %q", b.page, b.line, b.beside)
			}
			if b.notRun != "" {
				skipped++
				continue
			}
			run++
			t.Run(fmt.Sprintf("%s:%d", b.page, b.line), func(t *testing.T) {
				t.Parallel()
				b.run(t, work, beside)
			})
		}
	}
	if run < 10 || skipped > run {
		t.Errorf("%d blocks run, %d not", run, skipped)
	}
}

// run runs the block in docsScript.
func (b block) run(t *testing.T, work string, beside block) {
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	args := []string{
		"--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", file("docs", docsScript), "",
		file("block", b.text), "", b.shows,
	}
	if b.beside != "" {
		args[8] = file("beside", beside.text)
	}
	if b.server() {
		args[10] = "server"
	}
	ctx, stop := context.WithTimeout(t.Context(), 2*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Dir = dir
	cmd.Env = withoutDir("WORK="+work, "PATH="+work+"/bin:"+os.Getenv("PATH"), "XDG_RUNTIME_DIR=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\nprints\n%s", err, b.text, out)
	}
}
