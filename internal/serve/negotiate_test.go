package serve

import (
	"fmt"
	"strings"
	"testing"

	"aggregatord/internal/exposition"
	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// TestFallbackFormat: what OpenMetrics cannot carry is served in another format to those who
// accept one, with and without compression, and the response says which one it is.
func TestFallbackFormat(t *testing.T) {
	value := []view.Metric{{Points: []view.Point{{Kind: view.Value}}}}
	snap := &view.Snapshot{
		Layout: &view.Layout{Points: 2, Families: []view.Family{
			{
				Name: "job", Type: metric.Counter, Help: "Jobs.", Points: 1,
				Metrics: []view.Metric{{Points: []view.Point{{Kind: view.Total}}}},
			},
			{Name: "job", Type: metric.Gauge, Help: "Jobs.", First: 1, Points: 1, Metrics: value},
		}},
		Values: []float64{1, 2},
	}
	var seen []exposition.Format
	h := New(Options{Gatherer: static(snap), Observe: func(i ScrapeInfo) { seen = append(seen, i.Format) }})
	const openMetrics = "application/openmetrics-text;version=1.0.0;q=0.5"
	for _, test := range []struct {
		name        string
		accept      []string
		contentType string
		typed       bool
	}{
		{"text_too", []string{openMetrics + ",text/plain;version=0.0.4;q=0.3"}, "text/plain; version=0.0.4", true},
		{"text_too_on_another_line", []string{openMetrics, "text/plain;version=0.0.4;q=0.3"}, "text/plain; version=0.0.4", true},
		{"nothing_else", []string{openMetrics}, "application/openmetrics-text; version=1.0.0", false},
	} {
		for _, encoding := range []string{"identity", "gzip"} {
			headers := []string{"Accept-Encoding", encoding}
			for _, a := range test.accept {
				headers = append(headers, "Accept", a)
			}
			resp := do(h, "GET", "/metrics", headers...)
			got := body(t, resp)
			if encoding == "gzip" {
				got = gunzip(t, got)
			}
			if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, test.contentType) {
				t.Errorf("%s, %s: type %q, want %q", test.name, encoding, ct, test.contentType)
			}
			if !strings.Contains(got, "\njob_total 1\n") || !strings.Contains(got, "\njob 2\n") ||
				strings.Contains(got, "job_total counter") != test.typed {
				t.Errorf("%s, %s: got\n%s", test.name, encoding, got)
			}
			if f := seen[len(seen)-1]; !strings.HasPrefix(f.ContentType(), test.contentType) {
				t.Errorf("%s, %s: observed %v", test.name, encoding, f)
			}
		}
	}
}

// TestLanesAreBounded: there are hundreds of ways to name the formats, and a client that uses
// them all must not make the server keep something for each.
func TestLanesAreBounded(t *testing.T) {
	h := New(Options{Gatherer: static(pool())})
	for _, om := range []string{"", "dots", "values", "underscores", "allow-utf-8"} {
		for _, text := range []string{"dots", "values", "underscores", "allow-utf-8"} {
			for _, proto := range []string{"", "dots", "values"} {
				accept := fmt.Sprintf("application/openmetrics-text;version=1.0.0;escaping=%s;q=0.9,"+
					"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=%s;q=0.8,text/plain;version=1.0.0;escaping=%s;q=0.7", om, proto, text)
				if resp := do(h, "GET", "/metrics", "Accept", accept); resp.StatusCode != 200 {
					t.Fatalf("status %d", resp.StatusCode)
				}
			}
		}
	}
	if len(h.lanes) > keptLanes {
		t.Errorf("%d lanes are kept", len(h.lanes))
	}
}
