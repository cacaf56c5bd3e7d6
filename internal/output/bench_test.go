package output

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"aggregatord/internal/exposition"
	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
	"aggregatord/internal/starts"
	"aggregatord/internal/view"
)

// benchView has 26,000 series, as a pool of a large application has: half of them of
// histograms.
func benchView() *view.Snapshot {
	var families []outputtest.Family
	for f := range 50 {
		c := outputtest.Family{Name: fmt.Sprintf("a%02d_requests", f), Help: "Requests by path and status.", Type: metric.Counter}
		for m := range 260 {
			c.Metrics = append(c.Metrics, outputtest.Metric{
				Labels: []string{"method", "GET", "path", fmt.Sprintf("/api/v1/resource/%04d", m), "status", "200"},
				Values: []float64{float64(f*m) * 17},
			})
		}
		families = append(families, c)
	}
	for f := range 20 {
		h := outputtest.Family{
			Name: fmt.Sprintf("b%02d_duration_seconds", f), Help: "Time by path.", Type: metric.Histogram,
			Bounds: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}
		for m := range 50 {
			v := make([]float64, 13)
			for i := range 11 {
				v[i] = float64(i * m * f)
			}
			v[11], v[12] = float64(m)*0.137, v[10]
			h.Metrics = append(h.Metrics, outputtest.Metric{Labels: []string{"path", fmt.Sprintf("/api/v1/resource/%04d", m)}, Values: v})
		}
		families = append(families, h)
	}
	return outputtest.Snapshot(families...)
}

// moving is a source whose values all change from one view to the next.
type moving struct {
	outputtest.Source
	snap *view.Snapshot
	r    view.Recycler
	n    float64
	// known are the starts of its series.
	known *starts.Starts
}

func (m *moving) Gather(_ context.Context, withStarts bool) (*view.Snapshot, error) {
	out := m.r.Take(m.snap.Layout)
	m.n++
	for i, v := range m.snap.Values {
		out.Values[i] = v + m.n
	}
	if withStarts {
		out.Starts = m.known.Append(out.Starts[:0], out, time.Now())
	}
	return out, nil
}

// scraper returns what a push is compared with, a scrape of the view: as text over HTTP, with gzip
// as Prometheus asks for it, or plain.
func scraper(b *testing.B, plain bool) (scrape func()) {
	b.Helper()
	source := &moving{known: starts.New(), snap: benchView()}
	var enc exposition.Encoder
	var buf []byte
	z, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		b.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		snap, _ := source.Gather(r.Context(), false)
		buf = enc.Append(buf[:0], exposition.Format{}, exposition.Filter{}, snap)
		snap.Release()
		if plain {
			w.Write(buf) //nolint:errcheck // a benchmark
			return
		}
		w.Header().Set("Content-Encoding", "gzip")
		z.Reset(w)
		z.Write(buf) //nolint:errcheck // a benchmark
		z.Close()
	}))
	transport := &http.Transport{DisableCompression: true}
	b.Cleanup(func() {
		transport.CloseIdleConnections()
		s.Close()
	})
	return func() {
		resp, err := transport.RoundTrip(newRequest(b, s.URL))
		if err != nil {
			b.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body) //nolint:errcheck // a benchmark
		resp.Body.Close()
	}
}

// BenchmarkScrape is a scrape by itself.
func BenchmarkScrape(b *testing.B) {
	for _, plain := range []bool{false, true} {
		b.Run(fmt.Sprintf("plain=%v", plain), func(b *testing.B) {
			scrape := scraper(b, plain)
			b.ReportAllocs()
			for b.Loop() {
				scrape()
			}
		})
	}
}

// BenchmarkPush pushes the same view, to receivers that read everything and keep nothing. Pushes
// and scrapes take turns, so that what else the machine does meets both; x-scrape and x-plain are the
// ratios of their medians, with gzip and plain.
func BenchmarkPush(b *testing.B) {
	s := httptest.NewServer(answer(204, "X-Prometheus-Remote-Write-Samples-Written", "2000"))
	defer s.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, conn) //nolint:errcheck // a benchmark
			conn.Close()
		}
	}()
	specs := httpSpecs(s.URL)
	specs["remote_write_1.0"] = Spec{Name: "a", RemoteWrite: &RemoteWriteSpec{URL: s.URL, Protocol: Protocol1}}
	specs["graphite"] = Spec{Name: "a", Graphite: &GraphiteSpec{Address: l.Addr().String()}}
	specs["textfile"] = Spec{Name: "a", Textfile: &TextfileSpec{Path: filepath.Join(b.TempDir(), "a.prom")}}
	for kind, spec := range specs {
		b.Run(kind, func(b *testing.B) {
			p := newPusher(New(Options{Source: &moving{known: starts.New(), snap: benchView()}}), spec)
			defer p.sender.close()
			scrape, plain := scraper(b, false), scraper(b, true)
			var scrapes, plains, pushes []time.Duration
			timed := func(to *[]time.Duration, f func()) {
				begin := time.Now()
				f()
				*to = append(*to, time.Since(begin))
			}
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				timed(&scrapes, scrape)
				timed(&plains, plain)
				b.StartTimer()
				timed(&pushes, func() {
					if err := p.push(b.Context()); err != nil {
						b.Fatal(err)
					}
				})
			}
			median := func(list []time.Duration) float64 {
				slices.Sort(list)
				return float64(list[len(list)/2])
			}
			b.ReportMetric(median(pushes)/median(scrapes), "x-scrape")
			b.ReportMetric(median(pushes)/median(plains), "x-plain")
		})
	}
}

func newRequest(b *testing.B, url string) *http.Request {
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		b.Fatal(err)
	}
	return req
}
