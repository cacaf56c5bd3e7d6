package daemon

import (
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
)

// postForm posts to the first address.
func (d *daemon) postForm(path string, form url.Values) (code int, body string) {
	d.t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.PostForm("http://"+d.addresses()[0]+path, form)
	if err != nil {
		d.t.Fatal(err)
	}
	defer r.Body.Close()
	data, err := io.ReadAll(r.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return r.StatusCode, string(data)
}

// TestDropArchived: a request removes archived series for good, also for the next daemon, and
// only where that is enabled.
func TestDropArchived(t *testing.T) {
	const path = "/api/v1/archive/drop"
	dir := sourceDir(t)
	opts := Options{EnableLifecycle: true, Fleet: fleet.Options{
		Pools: only(dir).Pools, TendInterval: 10 * time.Millisecond, Pool: pool.Options{Archive: &pool.ArchiveOptions{Rest: -1}},
	}}
	d := startReady(t, opts)
	first := d
	for base, series := range map[string]string{"counter_1.db": "wrong_total", "counter_2.db": "right_total"} {
		if err := write(t, dir, base, series, 7).Close(); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		f := d.scrape()
		if v, _ := f.value("aggregatord_archive_series"); v == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is archived")
		}
	}
	for _, tc := range []struct {
		name string
		form url.Values
		code int
		want string
	}{
		{"no_name", url.Values{}, http.StatusBadRequest, "name a metric"},
		{"selector", url.Values{"name": {"wrong_total"}, "selector": {"{"}}, http.StatusBadRequest, "selector"},
		{"parameter", url.Values{"name": {"wrong_total"}, "all": {"1"}}, http.StatusBadRequest, "all"},
		{"pool", url.Values{"name": {"wrong_total"}, "pool": {"none"}}, http.StatusNotFound, "no such pool"},
		{"nothing", url.Values{"name": {"none"}}, http.StatusOK, `"dropped":0`},
		{"dropped", url.Values{"name": {"wrong_total"}}, http.StatusOK, `"dropped":1`},
		{"again", url.Values{"name": {"wrong_total"}}, http.StatusOK, `"dropped":0`},
	} {
		if code, body := d.postForm(path, tc.form); code != tc.code || !strings.Contains(body, tc.want) {
			t.Errorf("%s: %d %s", tc.name, code, body)
		}
	}
	if r := d.get(path + "?name=right_total"); r.status != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", r.status)
	}
	check := func(d *daemon) {
		t.Helper()
		f := d.scrape()
		f.expect(t, 7, "right_total")
		// After a restart the folded file may still be there, which shows what it has gained: 0.
		if v, ok := f.value("wrong_total"); v != 0 || ok && d == first {
			t.Errorf("wrong_total is %v", v)
		}
	}
	check(d)
	if err := d.end(); err != nil {
		t.Fatal(err)
	}
	opts.EnableLifecycle = false
	d = startReady(t, opts)
	check(d)
	if code, body := d.postForm(path, url.Values{"name": {"right_total"}}); code != http.StatusForbidden ||
		!strings.Contains(body, "--web.enable-lifecycle") {
		t.Errorf("not enabled: %d %s", code, body)
	}
	check(d)
}
