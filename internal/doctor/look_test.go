package doctor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/status"
)

// TestNoAnswer: what is said of a daemon that does not tell what it is, is what it answers.
func TestNoAnswer(t *testing.T) {
	for name, tc := range map[string]struct {
		code, tls int
		body      string
		delay     time.Duration
		level     Level
		words     string
	}{
		"not_ready":     {code: 503, level: Problem, words: "is busy or not ready"},
		"password":      {code: 401, level: Warning, words: "asks for a password"},
		"somebody_else": {code: 404, level: Problem, words: "answers 404 Not Found: this is not aggregatord"},
		"other_json":    {code: 200, body: "{}", level: Problem, words: "this is not aggregatord"},
		"too_slow":      {code: 200, delay: time.Minute, level: Problem, words: "does not answer within"},
		"certificate":   {code: 200, tls: 1, level: Problem, words: "its certificate is not trusted"},
		"no_tls":        {code: 200, tls: 2, level: Problem, words: "serves no TLS"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				select {
				case <-time.After(tc.delay):
				case <-r.Context().Done():
				}
				w.WriteHeader(tc.code)
				w.Write([]byte(tc.body)) //nolint:errcheck // a test
			}))
			server.Config.ErrorLog = nil
			if tc.tls == 1 {
				server.StartTLS()
			} else {
				server.Start()
			}
			defer server.Close()
			address := server.URL
			if tc.tls == 2 {
				address = strings.Replace(address, "http:", "https:", 1)
			}
			u, err := url.Parse(address)
			if err != nil {
				t.Fatal(err)
			}
			e := &examination{opts: Options{
				Daemon:  &Daemon{URL: u, Name: address, Client: &http.Client{}},
				Timeout: 300 * time.Millisecond,
			}}
			if tc.delay == 0 {
				e.opts.Timeout = time.Minute
			}
			if e.ask(t.Context()) != nil || len(e.findings) != 1 || e.findings[0].Level != tc.level ||
				!strings.Contains(e.findings[0].Found, tc.words) {
				t.Errorf("found %v, want one %s that says %q", e.findings, tc.level, tc.words)
			}
		})
	}
}

// TestCompare: what the daemon says of itself is compared with what is examined.
func TestCompare(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "counter_1.db"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	sound := func(change func(*status.Pool)) status.Overview {
		p := status.Pool{
			Dir: dir, Up: true, Workers: status.Alive{Alive: 2}, Series: 7, Liveness: status.Liveness{Method: "lease", FileSystem: "tmpfs"},
			Archive: status.Archive{State: "open"},
		}
		change(&p)
		return status.Overview{Build: status.Build{Version: "v1"}, Ready: true, Pools: []status.Pool{p}}
	}
	for name, tc := range map[string]struct {
		change func(*status.Pool)
		ours   string
		level  Level
		check  string
		words  string
	}{
		"sound":             {func(*status.Pool) {}, "v1", OK, "endpoint", "7 series of 2 live workers"},
		"dir_of_the_daemon": {func(*status.Pool) {}, "v1", OK, "directory", dir + " is there"},
		"other_version":     {func(*status.Pool) {}, "v2", Warning, "version", "The daemon is version v1, and this command is v2"},
		"other_dir":         {func(p *status.Pool) { p.Dir = "/elsewhere" }, "v1", Problem, "endpoint", "serves /elsewhere, not " + dir},
		"may_not_list": {
			func(p *status.Pool) { p.Up, p.Error = false, "permission denied" }, "v1", Problem, "endpoint",
			"cannot read " + dir,
		},
		"cannot_archive": {
			func(p *status.Pool) { p.Archive.State, p.Archive.Error = "failing", "no space" }, "v1", Problem, "archive",
			"no space",
		},
		"mirror_closed": {func(p *status.Pool) { p.Archive.Mirror = &status.Mirror{} }, "v1", Warning, "mirror", "cannot keep the mirror"},
		"mirror_unread": {
			func(p *status.Pool) { p.Archive.Mirror = &status.Mirror{Open: true} }, "v1", OK, "mirror",
			"Nobody but the daemon",
		},
		"mirror_read": {
			func(p *status.Pool) { p.Archive.Mirror = &status.Mirror{Open: true, Reads: 3, LongestReadSeconds: .25} }, "v1",
			OK, "mirror", "3 times, the longest took 0.250 s",
		},
		"mirror_forced": {
			func(p *status.Pool) { p.Archive.Mirror = &status.Mirror{Open: true, Reads: 3, ForcedFiles: 2} }, "v1", Warning,
			"mirror", "2 files had to be archived",
		},
		"only_reads": {func(p *status.Pool) { p.Archive.State = "read-only" }, "v1", OK, "archive", "--archive.disable"},
		"no_liveness": {
			func(p *status.Pool) { p.Liveness = status.Liveness{Method: "none", Files: map[string]int{"none": 3}} },
			"v1", Problem, "liveness", "cannot tell whether the workers of 3 files are alive",
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/v1/status" {
					w.WriteHeader(404)
					return
				}
				json.NewEncoder(w).Encode(status.Response[status.Overview]{Status: "success", Data: sound(tc.change)}) //nolint:errcheck // a test
			}))
			defer server.Close()
			u, err := url.Parse(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			opts := Options{
				Dir: dir, Version: tc.ours, Daemon: &Daemon{URL: u, Name: server.URL, Client: server.Client()},
				procRoot: t.TempDir(),
			}
			if name == "dir_of_the_daemon" {
				opts.Dir = ""
			}
			found := Examine(t.Context(), opts)
			if !slices.ContainsFunc(found, func(f Finding) bool {
				return f.Level == tc.level && f.Check == tc.check && strings.Contains(f.Found, tc.words)
			}) {
				t.Errorf("no %s about %s that says %q among %v", tc.level, tc.check, tc.words, found)
			}
			for _, f := range found {
				if f.Level == Problem && (f.Advice == "" || tc.level != Problem) {
					t.Errorf("a problem without advice, or where none is: %v", f)
				}
			}
		})
	}
}

// TestOutputs: each output that fails is told, with why; the others in one line.
func TestOutputs(t *testing.T) {
	e := &examination{}
	e.outputs([]status.Output{
		{Name: "a", LastSuccess: 1},
		{Name: "b", LastSuccess: 1},
		{Name: "new", Target: "here"},
		{Name: "bad", Target: "there", Failures: 3, Error: "connect: refused; is it running?", LastSuccess: 1},
	})
	var got []string
	for _, f := range e.findings {
		got = append(got, fmt.Sprint(f.Level, ": ", f.Found))
	}
	want := []string{
		fmt.Sprint(OK, ": The output new has not sent anything to here yet."),
		fmt.Sprint(Warning, ": The last 3 pushes of the output bad to there failed: connect: refused; is it running?"),
		fmt.Sprint(OK, ": 2 outputs: the receiver has taken the last push."),
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestYoungDaemon: a daemon that has just started has no problem; one that is still not ready
// after minutes has.
func TestYoungDaemon(t *testing.T) {
	for name, tc := range map[string]struct {
		age   time.Duration
		pool  status.Pool
		level Level
		words string
	}{
		"not_looked_yet": {0, status.Pool{}, Warning, "is not ready: it started"},
		"reading":        {2 * time.Second, status.Pool{Up: true}, Warning, "is not ready: it started 2s ago"},
		"stuck":          {5 * time.Minute, status.Pool{Up: true}, Problem, "is not ready: it started 5m0s ago"},
		"no_permission":  {0, status.Pool{Error: "permission denied"}, Problem, "cannot read"},
	} {
		t.Run(name, func(t *testing.T) {
			e := &examination{opts: Options{Dir: "/dev/shm/shop", Daemon: &Daemon{Name: "it"}}}
			started := float64(time.Now().Add(-tc.age).UnixMilli()) / 1000
			e.compare(&answered{Overview: status.Overview{Started: started}, pool: &tc.pool})
			if len(e.findings) != 1 || e.findings[0].Level != tc.level || !strings.Contains(e.findings[0].Found, tc.words) {
				t.Errorf("found %v, want one %s that says %q", e.findings, tc.level, tc.words)
			}
		})
	}
}

// TestOwnProcesses: a daemon that has the directory from its environment is no worker that
// writes nothing.
func TestOwnProcesses(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	for pid, command := range map[string]string{
		"1000010": "python3\x00/usr/bin/gunicorn\x00",
		"1000011": "/usr/bin/aggregatord\x00serve\x00",
	} {
		at := filepath.Join(root, pid)
		if err := os.Mkdir(at, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"cmdline": command, "status": "PPid:\t1\n",
			"environ": "PROMETHEUS_MULTIPROC_DIR=" + dir + "\x00",
		} {
			if err := os.WriteFile(filepath.Join(at, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	const want = "1 process has this directory in the environment, and nothing is written: python3 gunicorn (1000010)."
	found := Examine(t.Context(), Options{Dir: dir, procRoot: root})
	if !slices.ContainsFunc(found, func(f Finding) bool { return f.Found == want }) {
		t.Errorf("not found: %s\nfound %v", want, found)
	}
}

// TestUnreadClient: a directory of a client that is not read says so, once, and not that a
// variable of another client is missing.
func TestUnreadClient(t *testing.T) {
	dir := t.TempDir()
	for _, base := range []string{"metric_a___1.bin", "metric_b___1.bin"} {
		if err := os.WriteFile(filepath.Join(dir, base), make([]byte, 64), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	e := &examination{opts: Options{Dir: dir}}
	if !e.unreadOnly() {
		t.Error("the directory is not known as one of a client that is not read")
	}
	e.files()
	if len(e.findings) != 1 || !strings.Contains(e.findings[0].Found,
		"2 files were written by client_ruby (DirectFileStore), which is not read yet") {
		t.Errorf("findings %+v", e.findings)
	}
	if err := os.WriteFile(filepath.Join(dir, "counter_1.db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if e.unreadOnly() {
		t.Error("there is a source file")
	}
}

// TestDiscovery: what a daemon could not use of what it found, and what it did not find, is told, and
// where it looks for pools, no directory need be given.
func TestDiscovery(t *testing.T) {
	for name, tc := range map[string]struct {
		search status.Discovery
		level  Level
		check  string
		words  string
	}{
		"sound":    {status.Discovery{}, OK, "discovery", "serves every pool that it finds"},
		"too_many": {status.Discovery{LeftOut: 3, Limit: 2}, Problem, "discovery", "found 3 pools more than it may serve (2)"},
		"refused": {
			status.Discovery{Problems: []string{`"/x/thief" is a link that leads out of "/x"`}},
			Warning, "discovery",
			"leads out of",
		},
		"nothing": {status.Discovery{Hints: []string{"The pattern /x/* leads to no directory now."}}, Warning, "discovery", "/x/*"},
		"pools":   {status.Discovery{}, OK, "pools", "serves 2 pools, of which 1 have problems and 1 wait"},
		"problem": {status.Discovery{}, Problem, "pool", "web: It is full."},
	} {
		t.Run(name, func(t *testing.T) {
			answer := status.Overview{
				Build: status.Build{Version: "v1"}, Ready: true, Discovery: &tc.search,
				Pools: []status.Pool{
					{Name: "jobs", Dir: "/x/jobs", Up: true, Vanished: 1},
					{Name: "web", Dir: "/x/web", Up: true, Problems: 1, Trouble: "error"},
				},
				Problems: []status.Problem{{Pool: "web", Severity: "error", Text: "It is full.", Action: "Make room."}},
			}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path != "/api/v1/status" {
					w.WriteHeader(404)
					return
				}
				json.NewEncoder(w).Encode(status.Response[status.Overview]{Status: "success", Data: answer}) //nolint:errcheck // a test
			}))
			defer server.Close()
			u, err := url.Parse(server.URL)
			if err != nil {
				t.Fatal(err)
			}
			found := Examine(t.Context(),
				Options{Daemon: &Daemon{URL: u, Name: server.URL, Client: server.Client()}, procRoot: t.TempDir()})
			if !slices.ContainsFunc(found, func(f Finding) bool {
				return f.Level == tc.level && f.Check == tc.check && strings.Contains(f.Found, tc.words)
			}) {
				t.Errorf("no %s about %s that says %q among %v", tc.level, tc.check, tc.words, found)
			}
			if slices.ContainsFunc(found, func(f Finding) bool { return f.Check == "directory" }) {
				t.Errorf("a directory is missed: %v", found)
			}
		})
	}
}
