package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
)

func TestArchiveDrop(t *testing.T) {
	dir, _ := archivedDir(t)
	args := func(more ...string) []string { return append([]string{"archive", "drop", "--dir", dir}, more...) }
	before := states(t, dir)
	for name, tc := range map[string]struct {
		args []string
		exit int
		want []string
	}{
		"no_name":        {args("--yes"), exitUsage, []string{"name a metric"}},
		"three":          {args("a", "{}", "c"), exitUsage, []string{"name a metric"}},
		"not_a_selector": {args("hits", "{", "--yes"), exitUsage, []string{"selector"}},
		"nothing_meant":  {args("none", "--yes"), exitFailure, []string{`"none"`, "archive list"}},
		"no_daemon":      {args("hits", "--url", "http://127.0.0.1:1", "--yes"), exitFailure, []string{"127.0.0.1:1", "start it"}},
		"daemon_not_yes": {args("hits", "--url", "http://127.0.0.1:1"), exitUsage, []string{"--yes"}},
	} {
		t.Run(name, func(t *testing.T) { call(t, tc.args...).oneLine(t, tc.exit, tc.want...) })
	}
	if c := call(t, args("hits")...); c.code != exitUsage || !strings.Contains(c.stderr, "hits_total") ||
		!strings.Contains(c.stderr, "--yes") {
		t.Errorf("%+v", c)
	}
	unchanged(t, dir, before)
	a := hiddenHolder(t, dir)
	call(t, args("hits", "--yes")...).oneLine(t, exitFailure, "archive is in use", fmt.Sprint("pid ", os.Getpid()), "--url")
	detach(t, a)

	all := must(t, "archive", "list", "--dir", dir)
	if out := must(t, args("hits", `{path="/"}`, "--yes")...); out != "1 series removed from the archive\n" {
		t.Errorf("%q", out)
	}
	left := must(t, "archive", "list", "--dir", dir)
	if strings.Count(all, "\n") != strings.Count(left, "\n")+1 || strings.Contains(left, `hits_total{path="/"} `) {
		t.Errorf("it left\n%s of\n%s", left, all)
	}
	contains(t, must(t, "archive", "verify", "--dir", dir), "is whole")
}

// TestArchiveDropByDaemon: a daemon is asked as its API wants it.
func TestArchiveDropByDaemon(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost || r.URL.Path != "/api/v1/archive/drop" || r.FormValue("pool") != "web" ||
			r.FormValue("selector") != `{a="b"}` {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Form)
		}
		switch r.FormValue("name") {
		case "hits":
			_, _ = io.WriteString(w, `{"status":"success","data":{"dropped":3}}`)
		case "none":
			_, _ = io.WriteString(w, `{"status":"success","data":{"dropped":0}}`)
		default:
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"status":"error","errorType":"forbidden","error":"start the daemon with --web.enable-lifecycle"}`)
		}
	}))
	defer server.Close()
	args := func(name string) []string {
		return []string{"archive", "drop", name, `{a="b"}`, "--pool", "web", "--url", server.URL, "--yes"}
	}
	if out := must(t, args("hits")...); out != "3 series removed from the archive\n" {
		t.Errorf("%q", out)
	}
	call(t, args("none")...).oneLine(t, exitFailure, "no series")
	call(t, args("forbidden")...).oneLine(t, exitFailure, "--web.enable-lifecycle")
}
