package output

import (
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/snappy"
	writev2 "github.com/prometheus/client_golang/exp/api/remote/genproto/v2"
	"google.golang.org/protobuf/proto"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
	"aggregatord/internal/view"
)

// rwServer keeps what it is sent by remote write 2.0: series and values, "stale" for a marker.
type rwServer struct {
	*httptest.Server
	got [][]string // by request
	// refuse, if set, says how to answer a request with these samples; 0 takes them.
	refuse func(samples []string) int
	types  []string
}

func newRWServer(t *testing.T) *rwServer {
	t.Helper()
	s := &rwServer{}
	s.Server = quiet(t, func(w http.ResponseWriter, r *http.Request) {
		s.types = append(s.types, r.Header.Get("Content-Type"))
		body, err := io.ReadAll(r.Body)
		if err == nil {
			body, err = snappy.Decode(nil, body)
		}
		var req writev2.Request
		if err == nil && strings.Contains(r.Header.Get("Content-Type"), "v2") {
			err = proto.Unmarshal(body, &req)
		}
		if err != nil {
			t.Error(err)
		}
		var samples []string
		for _, ts := range req.Timeseries {
			name := ""
			var labels []metric.Label
			for i := 0; i < len(ts.LabelsRefs); i += 2 {
				l := metric.Label{Name: req.Symbols[ts.LabelsRefs[i]], Value: req.Symbols[ts.LabelsRefs[i+1]]}
				if l.Name == "__name__" {
					name = l.Value
				} else {
					labels = append(labels, l)
				}
			}
			v := fmt.Sprint(ts.Samples[0].Value)
			if math.Float64bits(ts.Samples[0].Value) == math.Float64bits(staleNaN) {
				v = "stale"
			}
			samples = append(samples, outputtest.Series(name, labels)+"="+v)
		}
		if s.refuse != nil {
			if code := s.refuse(samples); code != 0 {
				answer(code)(w, r)
				return
			}
		}
		s.got = append(s.got, samples)
		answer(204, "X-Prometheus-Remote-Write-Samples-Written", fmt.Sprint(len(samples)))(w, r)
	})
	s.Start()
	return s
}

// pushed pushes a view and returns what was sent, a request in brackets.
func (s *rwServer) pushed(t *testing.T, p *pusher, source *outputtest.Source, snap *view.Snapshot) string {
	t.Helper()
	source.Set(snap, nil)
	s.got = nil
	if err := p.push(t.Context()); err != nil {
		t.Error(err)
	}
	return fmt.Sprint(s.got)
}

func newTestPusher(t *testing.T, s Spec) (*pusher, *outputtest.Source) {
	t.Helper()
	source := outputtest.NewSource(nil)
	s.Name = "a"
	p := newPusher(New(Options{Source: source}), s)
	t.Cleanup(p.sender.close)
	return p, source
}

// TestStaleness: a marker comes once for each series that goes, by whatever way.
func TestStaleness(t *testing.T) {
	s := newRWServer(t)
	p, source := newTestPusher(t, Spec{RemoteWrite: &RemoteWriteSpec{URL: s.URL}})
	both := jobs("a", 1, "b", 2)
	for i, step := range []struct {
		snap *view.Snapshot
		want string
	}{
		{both, `[[jobs_total{q="a"}=1 jobs_total{q="b"}=2]]`},
		{outputtest.With(both, 1, view.Absent), `[[jobs_total{q="a"}=1] [jobs_total{q="b"}=stale]]`},
		{outputtest.With(both, 1, view.Absent), `[[jobs_total{q="a"}=1]]`},
		{both, `[[jobs_total{q="a"}=1 jobs_total{q="b"}=2]]`},
		{jobs("b", 3, "c", 4), `[[jobs_total{q="b"}=3 jobs_total{q="c"}=4] [jobs_total{q="a"}=stale]]`},
		{jobs("b", 3, "c", 4), `[[jobs_total{q="b"}=3 jobs_total{q="c"}=4]]`},
		{jobs(), `[[jobs_total{q="b"}=stale jobs_total{q="c"}=stale]]`},
		{jobs("b", 5), `[[jobs_total{q="b"}=5]]`},
	} {
		got := s.pushed(t, p, source, step.snap)
		if got = strings.Replace(got, `jobs_total{q="c"}=stale jobs_total{q="b"}=stale`, `jobs_total{q="b"}=stale jobs_total{q="c"}=stale`,
			1); got != step.want {
			t.Errorf("step %d: %s, want %s", i, got, step.want)
		}
	}
	s.got = nil
	if err := p.sender.leave(t.Context(), true); err != nil {
		t.Error(err)
	}
	if got, want := fmt.Sprint(s.got), `[[jobs_total{q="b"}=stale]]`; got != want {
		t.Errorf("in the end %s, want %s", got, want)
	}
}

// TestStalenessWaits: a marker that the receiver did not take comes later, unless the series
// is back by then.
func TestStalenessWaits(t *testing.T) {
	s := newRWServer(t)
	p, source := newTestPusher(t, Spec{RemoteWrite: &RemoteWriteSpec{URL: s.URL}})
	s.pushed(t, p, source, jobs("a", 1, "b", 2, "c", 3))
	s.refuse = func([]string) int { return 503 }
	source.Set(jobs("c", 3), nil)
	if err := p.push(t.Context()); err == nil {
		t.Error("no error")
	}
	s.refuse = nil
	if got, want := s.pushed(t, p, source, jobs("b", 4, "c", 3)),
		`[[jobs_total{q="b"}=4 jobs_total{q="c"}=3] [jobs_total{q="a"}=stale]]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestPartlyRefused: requests that are all right arrive although another one is refused.
func TestPartlyRefused(t *testing.T) {
	s := newRWServer(t)
	s.refuse = func(samples []string) int {
		if strings.Contains(fmt.Sprint(samples), `"b"`) && s.got != nil {
			return 400
		}
		return 0
	}
	p, source := newTestPusher(t, Spec{RemoteWrite: &RemoteWriteSpec{URL: s.URL, SamplesPerSend: 1}})
	source.Set(jobs("a", 1, "b", 2, "c", 3), nil)
	err := p.push(t.Context())
	if err == nil || !strings.Contains(err.Error(), "400 Bad Request") {
		t.Error(err)
	}
	if got, want := fmt.Sprint(s.got), `[[jobs_total{q="a"}=1] [jobs_total{q="c"}=3]]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if st := p.status(); st.Samples != 2 || st.LeftOut != 1 || st.Results["rejected"] != 1 {
		t.Errorf("%+v", st)
	}
}

// TestDoubtfulRefusal: a receiver of 2.0 that refuses the first values for what they are is not
// taken for one of 1.0.
func TestDoubtfulRefusal(t *testing.T) {
	s := newRWServer(t)
	s.refuse = func([]string) int { return 400 }
	p, source := newTestPusher(t, Spec{RemoteWrite: &RemoteWriteSpec{URL: s.URL}})
	source.Set(jobs("a", 1), nil)
	if err := p.push(t.Context()); err == nil {
		t.Error("no error")
	}
	s.refuse = nil
	if got, want := s.pushed(t, p, source, jobs("a", 2)), `[[jobs_total{q="a"}=2]]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if n := len(s.types); n != 3 || !strings.Contains(s.types[0], "v2") || strings.Contains(s.types[1], "v2") ||
		!strings.Contains(s.types[2], "v2") {
		t.Errorf("%v", s.types)
	}
}

// TestOddNames: what is no classic name is sent as it is by 2.0, escaped by 1.0; series that
// cannot be sent, or become equal, are counted.
func TestOddNames(t *testing.T) {
	snap := outputtest.Snapshot(
		outputtest.Family{
			Name: "a.b", Type: metric.Gauge,
			Metrics: []outputtest.Metric{
				{Labels: []string{"x.y", "\xff"}, Values: []float64{1}},
				{Labels: []string{"x_y", "�"}, Values: []float64{2}},
			},
		},
		outputtest.Family{Name: "c", Type: metric.Gauge, Metrics: []outputtest.Metric{
			{Labels: []string{"", "v"}, Values: []float64{3}},
			{Labels: []string{"__name__", "v"}, Values: []float64{4}},
		}},
	)
	s := newRWServer(t)
	p, source := newTestPusher(t, Spec{RemoteWrite: &RemoteWriteSpec{URL: s.URL}})
	if got, want := s.pushed(t, p, source, snap), `[[a.b{x.y="�"}=1 a.b{x_y="�"}=2]]`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if st := p.status(); st.LeftOut != 2 || st.Samples != 2 {
		t.Errorf("%+v", st)
	}
	p, source = newTestPusher(t, Spec{RemoteWrite: &RemoteWriteSpec{URL: s.URL, Protocol: Protocol1}})
	source.Set(snap, nil)
	if err := p.push(t.Context()); err != nil {
		t.Error(err)
	}
	if st := p.status(); st.LeftOut != 3 || st.Samples != 1 {
		t.Errorf("1.0: %+v", st)
	}
}

// TestOTLPLeavesOut: what OTLP has no way to say costs its own data point only.
func TestOTLPLeavesOut(t *testing.T) {
	s := quiet(t, answer(200))
	s.Start()
	snap := outputtest.Snapshot(outputtest.Family{Name: "h", Type: metric.Histogram, Bounds: []float64{1}, Metrics: []outputtest.Metric{
		{Labels: []string{"v", "a"}, Values: []float64{1, 2, 3, 2}},
		{Labels: []string{"v", "b"}, Values: []float64{0.5, 2, 3, 2}},
		{Labels: []string{"v", "c"}, Values: []float64{3, 2, 3, 2}},
		{Labels: []string{"v", "d"}, Values: []float64{math.NaN(), math.NaN(), 3, 2}},
		{Labels: []string{"v", "e"}, Values: []float64{-1, 2, math.NaN(), 2}},
	}})
	status, err := Once(t.Context(), Spec{Name: "a", OTLP: &OTLPSpec{URL: s.URL}}, outputtest.NewSource(snap), Options{})
	if err != nil || status.Samples != 4 || status.LeftOut != 16 {
		t.Errorf("%d samples, %d left out, %v", status.Samples, status.LeftOut, err)
	}
}

// TestEncodeAllocations: a push of the same series encodes without allocating.
func TestEncodeAllocations(t *testing.T) {
	snap := outputtest.All()
	r := &remoteWrite{v2: true, perSend: 7, seed: maphash.MakeSeed()}
	l := r.render(snap.Layout)
	starts := make([]int64, snap.Layout.Points)
	buf := make([]byte, 0, 1<<20)
	at := time.Now().UnixMilli()
	if n := testing.AllocsPerRun(10, func() {
		for i := range l.chunks {
			buf, _ = l.chunks[i].append(buf[:0], true, at, snap.Values, starts)
		}
	}); n > 0 {
		t.Errorf("remote write: %v allocations", n)
	}
	o := &otlp{limit: 1 << 20}
	ol := o.render(snap.Layout)
	if n := testing.AllocsPerRun(10, func() {
		for i := range ol.metrics {
			buf, _, _, _ = ol.metrics[i].appendPoints(buf[:0], 0, 1<<20, 1,
				&view.Snapshot{Layout: snap.Layout, Values: snap.Values, Starts: starts})
		}
	}); n > 0 {
		t.Errorf("otlp: %v allocations", n)
	}
}
