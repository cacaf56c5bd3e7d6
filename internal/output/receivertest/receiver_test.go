package receivertest

import (
	"context"
	"fmt"
	"maps"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/exp/api/remote"
	"github.com/prometheus/prometheus/model/metadata"

	"aggregatord/internal/metric"
	"aggregatord/internal/output"
	"aggregatord/internal/output/outputtest"
)

// A receiver is a Receiver that listens.
type receiver struct {
	*Receiver
	t      *testing.T
	server *httptest.Server
}

func newReceiver(t *testing.T, versions ...remote.WriteMessageType) *receiver {
	t.Helper()
	r, err := Open(t.TempDir(), versions...)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(r)
	t.Cleanup(func() {
		server.Close()
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return &receiver{r, t, server}
}

func (r *receiver) all() map[string][]Sample {
	r.t.Helper()
	all, err := r.All()
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

// last returns the last value of each series that has not ended.
func (r *receiver) last() map[string]float64 {
	out := map[string]float64{}
	for series, list := range r.all() {
		if s := list[len(list)-1]; !s.Stale() {
			out[series] = s.V
		}
	}
	return out
}

// run starts outputs of one Spec and returns them when they have looked at the source once. They
// end with the test.
func run(t *testing.T, source output.Source, s output.Spec) *output.Outputs {
	t.Helper()
	primed := make(chan struct{})
	o := output.New(output.Options{
		Source: source, OnPrimed: func() { close(primed) }, Version: "test",
		Environ: []string{"OTEL_RESOURCE_ATTRIBUTES=service.instance.id=i%201", "OTEL_SERVICE_NAME=shop"},
	})
	if err := o.Apply([]output.Spec{s}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var ends sync.WaitGroup
	ends.Go(func() { o.Run(ctx) })
	<-primed
	t.Cleanup(func() { cancel(); ends.Wait(); o.Close() })
	return o
}

// until waits for a push after those that were there.
func until(t *testing.T, o *output.Outputs, pushes int) {
	t.Helper()
	for o.Status()[0].Results["ok"] < uint64(pushes) {
		if e := o.Status()[0].Error; e != "" {
			t.Fatal(e)
		}
		select {
		case <-t.Context().Done():
			t.Fatal("no push")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func once(t *testing.T, source output.Source, s output.Spec) output.Status {
	t.Helper()
	s.Name = "a"
	status, err := output.Once(t.Context(), s, source,
		output.Options{Version: "test", Environ: []string{"OTEL_RESOURCE_ATTRIBUTES=service.instance.id=i%201", "OTEL_SERVICE_NAME=shop"}})
	if err != nil {
		t.Fatal(err)
	}
	return status
}

func TestRemoteWrite(t *testing.T) {
	v1, v2 := "application/x-protobuf", "application/x-protobuf;proto=io.prometheus.write.v2.Request"
	for name, c := range map[string]struct {
		speaks   []remote.WriteMessageType
		protocol output.Protocol
		want     map[string]int
		meta     bool
	}{
		"both":         {nil, output.ProtocolAuto, map[string]int{v2: 4}, true},
		"2.0 only":     {[]remote.WriteMessageType{remote.WriteV2MessageType}, output.ProtocolAuto, map[string]int{v2: 4}, true},
		"1.0 only":     {[]remote.WriteMessageType{remote.WriteV1MessageType}, output.ProtocolAuto, map[string]int{v2: 1, v1: 4}, false},
		"1.0 asked":    {nil, output.Protocol1, map[string]int{v1: 4}, false},
		"2.0 asked":    {nil, output.Protocol2, map[string]int{v2: 4}, true},
		"auto not set": {nil, "", map[string]int{v2: 4}, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t, c.speaks...)
			snap := outputtest.All()
			status := once(t, outputtest.NewSource(snap),
				output.Spec{RemoteWrite: &output.RemoteWriteSpec{
					URL: r.server.URL + "/api/v1/write", Protocol: c.protocol,
					SamplesPerSend: 7,
				}})
			want := outputtest.Samples(snap)
			if diff := outputtest.Diff(want, r.last()); diff != "" {
				t.Error(diff)
			}
			if status.Samples != len(want) || status.LeftOut != 0 {
				t.Errorf("%d samples, %d left out; want %d", status.Samples, status.LeftOut, len(want))
			}
			if !maps.Equal(r.Versions(), c.want) {
				t.Errorf("requests: %v, want %v", r.Versions(), c.want)
			}
			if !c.meta {
				return
			}
			for series, m := range map[string]metadata.Metadata{
				`jobs_total{queue="high"}`: {
					Type: "counter",
					Help: "Jobs \"done\",\nby queue \\ kind.",
				},
				`job_duration_seconds_bucket{le="0.1",pool="web",queue="high"}`: {Type: "histogram", Help: "Time a job takes."},
				`payload_bytes_sum{dir="in"}`:                                   {Type: "summary", Help: "Sizes."},
				`odd{v="nan"}`:                                                  {Type: "gauge", Help: "Special values."},
				"depth":                                                         {Type: "gauge"},
				"untyped":                                                       {Type: "unknown"},
			} {
				if got := r.Meta(series); got != m {
					t.Errorf("%s: %+v, want %+v", series, got, m)
				}
			}
		})
	}
}

// TestStartsAndEnds: what appears later starts at zero, what goes ends, and in the end all does.
func TestStartsAndEnds(t *testing.T) {
	counter := func(metrics ...outputtest.Metric) outputtest.Family {
		return outputtest.Family{Name: "jobs", Help: "Jobs.", Type: metric.Counter, Metrics: metrics}
	}
	r := newReceiver(t)
	source := outputtest.NewSource(outputtest.Snapshot(counter(outputtest.Metric{Labels: []string{"q", "a"}, Values: []float64{1000}})))
	o := run(t, source, output.Spec{
		Name: "a", Interval: time.Second,
		RemoteWrite: &output.RemoteWriteSpec{URL: r.server.URL + "/api/v1/write"},
	})
	until(t, o, 1)
	source.Set(outputtest.Snapshot(counter(outputtest.Metric{Labels: []string{"q", "b"}, Values: []float64{5}})), nil)
	until(t, o, 3)
	if err := o.Last(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := r.all()
	a, b := got[`jobs_total{q="a"}`], got[`jobs_total{q="b"}`]
	// What was there before anybody looked has no start: a zero there would be an increase of
	// 1000.
	if len(a) < 2 || a[0].V != 1000 || !a[len(a)-1].Stale() {
		t.Errorf("a: %v", a)
	}
	if len(b) < 4 || b[0].V != 0 || b[1].V != 5 || b[len(b)-2].V != 5 || !b[len(b)-1].Stale() {
		t.Errorf("b: %v", b)
	}
	if len(b) > 1 && b[0].T >= b[1].T {
		t.Errorf("b starts at %d, after %d", b[0].T, b[1].T)
	}
	if a[len(a)-1].T > b[len(b)-2].T {
		t.Errorf("a ends only in the end")
	}
}

func TestOTLP(t *testing.T) {
	for _, names := range []output.Names{output.NamesAsIs, output.NamesOTel, ""} {
		t.Run("names="+string(names), func(t *testing.T) {
			r := newReceiver(t)
			snap := outputtest.All()
			status := once(t, outputtest.NewSource(snap),
				output.Spec{OTLP: &output.OTLPSpec{URL: r.server.URL + "/api/v1/otlp/v1/metrics", Names: names}})
			want := outputtest.Samples(snap)
			got := map[string]float64{}
			for series, v := range r.last() {
				if strings.HasPrefix(series, "target_info") {
					continue
				}
				if !strings.Contains(series, `job="shop"`) || !strings.Contains(series, `instance="i 1"`) {
					t.Errorf("%s has not the resource's job and instance", series)
				}
				for _, l := range []string{`instance="i 1"`, `job="shop"`} {
					series = strings.Replace(strings.Replace(series, ","+l, "", 1), l+",", "", 1)
					series = strings.Replace(series, "{"+l+"}", "", 1)
				}
				got[series] = v
			}
			if diff := outputtest.Diff(bounds(want), bounds(got)); diff != "" {
				t.Error(diff)
			}
			if status.Samples != len(want) || status.LeftOut != 0 {
				t.Errorf("%d samples, %d left out; want %d", status.Samples, status.LeftOut, len(want))
			}
			resource := `,instance="i 1",job="shop"`
			for series, m := range map[string]metadata.Metadata{
				`jobs_total{instance="i 1",job="shop",queue="high"}`: {
					Type: "counter",
					Help: "Jobs \"done\",\nby queue \\ kind.",
				},
				`job_duration_seconds_sum{instance="i 1",job="shop",pool="web",queue="high"}`: {
					Type: "histogram",
					Help: "Time a job takes.", Unit: "s",
				},
				`payload_bytes_count{dir="in"` + resource + `}`: {Type: "summary", Help: "Sizes.", Unit: "By"},
				"untyped{" + resource[1:] + "}":                 {Type: "gauge"},
			} {
				got := r.Meta(series)
				got.Unit = strings.NewReplacer("seconds", "s", "bytes", "By").Replace(got.Unit)
				if got != m {
					t.Errorf("%s: %+v, want %+v", series, got, m)
				}
			}
		})
	}
}

// bounds spells le as Prometheus does that makes it of a number.
func bounds(in map[string]float64) map[string]float64 {
	out := map[string]float64{}
	for series, v := range in {
		out[strings.Replace(series, `.0"`, `"`, 1)] = v
	}
	return out
}

// TestOTLPStarts: sums and histograms that appear later start at zero.
func TestOTLPStarts(t *testing.T) {
	r := newReceiver(t)
	source := outputtest.NewSource(outputtest.Snapshot())
	o := run(t, source, output.Spec{
		Name: "a", Interval: time.Second,
		OTLP: &output.OTLPSpec{URL: r.server.URL + "/api/v1/otlp/v1/metrics"},
	})
	source.Set(outputtest.All(), nil)
	if err := o.Last(t.Context()); err != nil {
		t.Fatal(err)
	}
	for series, list := range r.all() {
		name, _, _ := strings.Cut(series, "{")
		counts := strings.HasSuffix(name, "_total") || strings.Contains(name, "_seconds_") || strings.Contains(name, "_bytes_")
		if name == "target_info" {
			continue
		}
		switch {
		case counts && (len(list) != 2 || list[0].V != 0 || list[0].T >= list[1].T):
			t.Errorf("%s: %v, want a zero and then a value", series, list)
		case !counts && len(list) != 1:
			t.Errorf("%s: %v, want one value", series, list)
		}
	}
}

// TestManySeries: a push of many series comes in several requests, and whole.
func TestManySeries(t *testing.T) {
	var f outputtest.Family
	f.Name, f.Type, f.Help = "jobs", metric.Counter, "Jobs."
	for i := range 30_000 {
		f.Metrics = append(f.Metrics, outputtest.Metric{
			Labels: []string{"path", fmt.Sprintf("/%06d", i), "text", strings.Repeat("x", 100)},
			Values: []float64{float64(i)},
		})
	}
	snap := outputtest.Snapshot(f)
	for name, s := range map[string]func(url string) output.Spec{
		"remote_write": func(url string) output.Spec {
			return output.Spec{RemoteWrite: &output.RemoteWriteSpec{URL: url + "/api/v1/write"}}
		},
		"otlp": func(url string) output.Spec {
			return output.Spec{OTLP: &output.OTLPSpec{URL: url + "/api/v1/otlp/v1/metrics"}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReceiver(t)
			spec := s(r.server.URL)
			spec.Timeout = time.Minute
			if status := once(t, outputtest.NewSource(snap), spec); status.Samples != 30_000 {
				t.Errorf("%d samples", status.Samples)
			}
			sum := 0.0
			for series, v := range r.last() {
				if strings.HasPrefix(series, "jobs_total") {
					sum += v
				}
			}
			if want := 30_000.0 * 29_999 / 2; sum != want {
				t.Errorf("sum %v, want %v", sum, want)
			}
		})
	}
}
