package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"aggregatord/internal/exposition/expositiontest"
	"aggregatord/internal/metric"
)

// readable is a program for the tests of readers: every type, each series worth a query.
var readable = program{
	Metrics: []declared{
		{Name: "app_requests_total", Type: "counter", Help: "Requests.", Labels: []string{"path"}},
		{Name: "app_latency_seconds", Type: "histogram", Help: "Time to answer.", Buckets: []string{"0.25", "1", "10", "1e6"}},
		{Name: "app_size_bytes", Type: "summary", Help: "Sizes."},
		{Name: "app_level", Type: "gauge", Help: "Level.", Mode: "all"},
		{Name: "app_in_progress", Type: "gauge", Help: "Requests in progress.", Mode: "livesum"},
	},
	Workers: []worker{
		{Steps: []step{
			{Metric: "app_requests_total", Labels: []string{"/"}, Op: "inc", Value: "3"},
			{Metric: "app_requests_total", Labels: []string{"/a\"b\\c\nd"}, Op: "inc", Value: "4"},
			{Metric: "app_latency_seconds", Op: "observe", Value: "0.5"},
			{Metric: "app_latency_seconds", Op: "observe", Value: "20"},
			{Metric: "app_size_bytes", Op: "observe", Value: "512"},
			{Metric: "app_level", Op: "set", Value: "-1.5"},
			{Metric: "app_in_progress", Op: "inc", Value: "1"},
		}},
		{Steps: []step{
			{Metric: "app_requests_total", Labels: []string{"/"}, Op: "inc", Value: "35"},
			{Metric: "app_latency_seconds", Op: "observe", Value: "0.125"},
			{Metric: "app_level", Op: "set", Value: "2"},
			{Metric: "app_in_progress", Op: "inc", Value: "2"},
		}},
	},
}

// requestsTotal is what the workers of readable add to app_requests_total.
const requestsTotal = 42

// TestPromtool has promtool judge the text format. It exits with 3 when it only finds
// names it would not have chosen; those are lines about the worker's metrics, which the
// daemon must serve under the names the workers gave them.
func TestPromtool(t *testing.T) {
	t.Parallel()
	promtool := peer(t, "promtool", "apt-get install prometheus")
	dir := sourceDir(t)
	p := readable
	p.Metrics = append(slices.Clone(p.Metrics),
		declared{Name: "app_time_milliseconds", Type: "gauge", Help: "Not a base unit.", Mode: "max"},
		declared{Name: "app_camelCase", Type: "gauge", Help: "Camel case.", Mode: "max"},
		declared{Name: "app_queue_count", Type: "gauge", Help: "Ends in a reserved word.", Mode: "max"})
	startWorkers(t, dir, p)
	d := serve(t, "--dir", dir)
	body, _, err := d.get("/metrics", acceptText)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(promtool, "check", "metrics")
	cmd.Stdin = bytes.NewReader(body)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 3) {
		t.Fatalf("promtool refuses what is served: %v\n%s", err, out)
	}
	// The lints this program has earned, and no other: none about the daemon's own metrics.
	workersFault := regexp.MustCompile(`^(app_time_milliseconds|app_camelCase|app_queue_count) `)
	faults := 0
	for line := range strings.Lines(string(out)) {
		if workersFault.MatchString(line) {
			faults++
		} else {
			t.Errorf("promtool says: %s", line)
		}
	}
	if faults == 0 {
		t.Errorf("promtool finds nothing wrong with names that are: did it read them?\n%s", out)
	}
}

// TestFormats checks each format's content type and that all say the same.
func TestFormats(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	w := startWorkers(t, dir, readable)
	d := serve(t, "--dir", dir)
	if err := d.agree(dir, append([]string{"--alive"}, w.alive()...)...); err != nil {
		t.Error(err)
	}
	for accept, want := range map[string]string{
		"":                "text/plain; version=0.0.4",
		"*/*":             "text/plain; version=0.0.4",
		acceptText:        "text/plain; version=0.0.4",
		acceptOpenMetrics: "application/openmetrics-text; version=1.0.0",
		acceptProtobuf:    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited",
		"text/plain;version=1.0.0;escaping=allow-utf-8": "text/plain; version=1.0.0",
	} {
		_, got, err := d.get("/metrics", accept)
		if err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("Accept %q: content type %q, want %q: %v", accept, got, want, err)
		}
	}
	// dump shows what serve shows.
	want := d.mustText()
	for format, parse := range map[string]func([]byte) (view, error){
		"text": parseText, "protobuf": parseProtobuf,
		"openmetrics": func(body []byte) (view, error) { return parseStrict(t, body) },
	} {
		out, err := output(t.Context(), nil, builtDaemon(t), "dump", "--dir", dir, "--format", format)
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := parse(out)
		if err == nil {
			err = differences(want.workers(), got.numericBounds())
		}
		if err != nil {
			t.Errorf("dump --format %s: %v", format, err)
		}
	}
}

// asking is a reverse proxy in front of the daemon that notes which formats came back.
// Given an accept, it asks for that one format, whatever its own client asked for:
// Prometheus 2.42 has no setting for it.
type asking struct {
	accept string
	// mu guards types.
	mu sync.Mutex
	// types holds the media types of the responses.
	types map[string]bool
}

func (a *asking) start(t *testing.T, d *daemon) string {
	t.Helper()
	target, err := url.Parse(d.URL)
	if err != nil {
		t.Fatal(err)
	}
	a.types = map[string]bool{}
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			if a.accept != "" {
				r.Out.Header.Set("Accept", a.accept)
			}
		},
		ModifyResponse: func(r *http.Response) error {
			media, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";")
			a.mu.Lock()
			defer a.mu.Unlock()
			a.types[media] = true
			return nil
		},
	})
	t.Cleanup(proxy.Close)
	return strings.TrimPrefix(proxy.URL, "http://")
}

// seen returns the media types of all the responses.
func (a *asking) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for media := range a.types {
		all = append(all, media)
	}
	slices.Sort(all)
	return all
}

// prometheusServer is a running Prometheus.
type prometheusServer struct {
	t   *testing.T
	url string
}

// startPrometheus starts Prometheus on a loopback port with one job for each target, by name.
func startPrometheus(t *testing.T, targets map[string]string, flags ...string) *prometheusServer {
	t.Helper()
	var jobs strings.Builder
	for job, target := range targets {
		fmt.Fprintf(&jobs, "  - job_name: %s\n    static_configs: [{targets: [%q]}]\n", job, target)
	}
	return startPrometheusWith(t, jobs.String(), flags...)
}

// startPrometheusWith is startPrometheus for jobs as a configuration file has them.
func startPrometheusWith(t *testing.T, jobs string, flags ...string) *prometheusServer {
	t.Helper()
	path := peer(t, "prometheus", "apt-get install prometheus")
	dir := t.TempDir()
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte("global:\n  scrape_interval: 1s\nscrape_configs:\n"+jobs), 0o644); err != nil {
		t.Fatal(err)
	}
	// Prometheus cannot pick a port itself; one that was free a moment ago may be taken.
	for attempt := range 3 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		l.Close()
		server := start(t, exec.Command(path, append([]string{
			"--config.file", file, "--storage.tsdb.path", filepath.Join(dir, "data"+strconv.Itoa(attempt)),
			"--web.listen-address", address,
		}, flags...)...))
		p := &prometheusServer{t: t, url: "http://" + address}
		ready := false
		eventually(t, patience, func() error {
			select {
			case <-server.exited:
				return nil
			default:
			}
			resp, err := http.Get(p.url + "/-/ready")
			if err != nil {
				return err
			}
			resp.Body.Close()
			if ready = resp.StatusCode == http.StatusOK; !ready {
				return errors.New(resp.Status)
			}
			return nil
		})
		if ready {
			t.Cleanup(func() {
				if err := server.terminate(); err != nil {
					t.Errorf("prometheus: %v", err)
				}
			})
			return p
		}
	}
	t.Fatal("prometheus does not start")
	return nil
}

// query evaluates an instant query and returns the value by the labels of each result.
func (p *prometheusServer) query(expr string) (map[string]string, error) {
	result, err := p.vector(expr)
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for _, r := range result {
		values[seriesOf("", r.Metric)] = fmt.Sprint(r.Value[1])
	}
	return values, nil
}

// element is one result of an instant query.
type element struct {
	Metric map[string]string
	Value  [2]any
}

// vector evaluates an instant query.
func (p *prometheusServer) vector(expr string) ([]element, error) {
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Status, Error string
		Data          struct {
			Result []element
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("query %s: %s", expr, answer.Error)
	}
	return answer.Data.Result, nil
}

// samples returns what Prometheus has stored of a job's last scrape, without the labels of the
// target and without the series that it makes of each scrape.
func (p *prometheusServer) samples(job string) (samples []expositiontest.Sample, err error) {
	result, err := p.vector(fmt.Sprintf("{job=%q,__name__!~%q}", job, "up|scrape_.*"))
	if err != nil {
		return nil, err
	}
	for _, r := range result {
		s := expositiontest.Sample{Name: r.Metric["__name__"]}
		for name, value := range r.Metric {
			if name != "__name__" && name != "job" && name != "instance" {
				s.Labels = append(s.Labels, metric.Label{Name: name, Value: value})
			}
		}
		metric.SortLabels(s.Labels)
		if s.Value, err = strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64); err != nil {
			return nil, err
		}
		samples = append(samples, s)
	}
	return samples, nil
}

// TestPrometheusFindsEverything has a real Prometheus scrape a directory that has everything at
// once, in each format and as it asks by itself: it stores every series that the workers wrote.
func TestPrometheusFindsEverything(t *testing.T) {
	t.Parallel()
	peer(t, "prometheus", "apt-get install prometheus")
	dir := sourceDir(t)
	end, err := expositiontest.Write(dir, expositiontest.Files)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Error(err)
		}
	})
	d := serve(t, "--dir", dir, "--web.self-metrics", "off", "--process.disable")
	plain, text, openMetrics := &asking{}, &asking{accept: acceptText}, &asking{accept: acceptOpenMetrics}
	native, protobuf := &asking{}, &asking{accept: acceptProtobuf}
	textual := startPrometheus(t, map[string]string{
		"plain": plain.start(t, d), "text": text.start(t, d), "openmetrics": openMetrics.start(t, d),
	})
	// The feature flag has it ask for protobuf before anything else, and read it.
	binary := startPrometheus(t, map[string]string{"native": native.start(t, d), "protobuf": protobuf.start(t, d)},
		"--enable-feature=native-histograms")
	for _, c := range []struct {
		job, media string
		server     *prometheusServer
		proxy      *asking
		// numbers says that the format has bounds as numbers, which Prometheus spells.
		numbers bool
	}{
		{"plain", "text/plain", textual, plain, false}, // as OpenMetrics has no types for all
		{"text", "text/plain", textual, text, false},
		{"openmetrics", "application/openmetrics-text", textual, openMetrics, false},
		{"native", "application/vnd.google.protobuf", binary, native, true},
		{"protobuf", "application/vnd.google.protobuf", binary, protobuf, true},
	} {
		want := expositiontest.Spelled("underscores")
		for i := range want {
			// A label without a value is none.
			want[i].Labels = slices.DeleteFunc(want[i].Labels, func(l metric.Label) bool { return l.Value == "" })
			for k, l := range want[i].Labels {
				if c.numbers && l.Name == "le" && l.Value == "1e+010" {
					want[i].Labels[k].Value = "1e+10"
				}
			}
		}
		eventually(t, patience, func() error {
			got, err := c.server.samples(c.job)
			if err != nil {
				return err
			}
			if diff := expositiontest.Differences(got, want); len(diff) > 0 {
				return fmt.Errorf("job %s: %d differences:\n%s", c.job, len(diff), strings.Join(diff, "\n"))
			}
			return nil
		})
		if got := c.proxy.seen(); !slices.Equal(got, []string{c.media}) {
			t.Errorf("job %s was served %v, want %s", c.job, got, c.media)
		}
	}
}

// TestPrometheus has a real Prometheus scrape each format that it speaks and answer
// queries. The bounds of buckets must be spelled alike in all, or every histogram would
// become another one on the day a user switches.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	peer(t, "prometheus", "apt-get install prometheus")
	dir := sourceDir(t)
	startWorkers(t, dir, readable)
	d := serve(t, "--dir", dir)
	text, openMetrics, protobuf := &asking{accept: acceptText}, &asking{}, &asking{}
	plain := startPrometheus(t, map[string]string{"text": text.start(t, d), "openmetrics": openMetrics.start(t, d)})
	// The feature flag makes it ask for protobuf before anything else.
	native := startPrometheus(t, map[string]string{"protobuf": protobuf.start(t, d)}, "--enable-feature=native-histograms")
	bounds := map[string][]string{}
	for _, c := range []struct {
		job, media string
		server     *prometheusServer
		proxy      *asking
	}{
		{"text", "text/plain", plain, text},
		{"openmetrics", "application/openmetrics-text", plain, openMetrics},
		{"protobuf", "application/vnd.google.protobuf", native, protobuf},
	} {
		for expr, want := range map[string]string{
			`sum(app_requests_total{job="%s"})`:                             strconv.Itoa(requestsTotal),
			`app_requests_total{job="%s",path="/a\"b\\c\nd"}`:               "4",
			`sum(app_level{job="%s"})`:                                      "0.5",
			`app_in_progress{job="%s"}`:                                     "3",
			`app_size_bytes_sum{job="%s"}`:                                  "512",
			`app_latency_seconds_count{job="%s"}`:                           "3",
			`app_latency_seconds_bucket{job="%s",le="1.0"}`:                 "2",
			`histogram_quantile(0.5, app_latency_seconds_bucket{job="%s"})`: "0.625",
			`up{job="%s"}`: "1",
		} {
			expr = fmt.Sprintf(expr, c.job)
			eventually(t, patience, func() error {
				got, err := c.server.query(expr)
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
		got, err := c.server.query(fmt.Sprintf(`count by (le) (app_latency_seconds_bucket{job="%s"})`, c.job))
		if err != nil {
			t.Fatal(err)
		}
		for le := range got {
			bounds[c.job] = append(bounds[c.job], le)
		}
		slices.Sort(bounds[c.job])
		if !slices.Equal(bounds[c.job], bounds["text"]) {
			t.Errorf("bounds by %s are %v, by text %v", c.job, bounds[c.job], bounds["text"])
		}
		if got := c.proxy.seen(); !slices.Equal(got, []string{c.media}) {
			t.Errorf("job %s was served %v, want %s", c.job, got, c.media)
		}
	}
	if want := []string{`{le="+Inf"}`, `{le="0.25"}`, `{le="1.0"}`, `{le="10.0"}`, `{le="1e+06"}`}; !slices.Equal(bounds["text"], want) {
		t.Errorf("bounds are %v, want %v", bounds["text"], want)
	}
}
