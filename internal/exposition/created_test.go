package exposition

import (
	"math"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// begun gives each value of a snapshot that counts a start, but for those of the first metric of a
// family that has several.
func begun(s *view.Snapshot) *view.Snapshot {
	s.Starts = make([]int64, len(s.Values))
	for i := range s.Layout.Families {
		f := &s.Layout.Families[i]
		at := f.First
		for j := range f.Metrics {
			for k := range f.Metrics[j].Points {
				if f.Type.Counts() && (j > 0 || len(f.Metrics) == 1) {
					s.Starts[at+k] = 1_764_253_000_000 + int64(j)*250
				}
			}
			at += len(f.Metrics[j].Points)
		}
	}
	return s
}

// createdView has everything that has a start, and what has none.
func createdView() *view.Snapshot {
	return begun(snapshot(
		fam{name: "jobs", typ: metric.Counter, help: "h", metrics: []met{total(1, "q", "a"), total(2, "q", "b")}},
		fam{name: "lat", typ: metric.Histogram, help: "h", metrics: []met{buckets(1, 2, 3, 4.5)}},
		fam{name: "load", typ: metric.Gauge, help: "h", metrics: []met{value(1)}},
		fam{name: "my.jobs", typ: metric.Counter, help: "h", metrics: []met{total(5), total(6, "q", "a")}},
		fam{name: "old", typ: metric.Counter, help: "h", metrics: []met{value(5)}},
		fam{name: "size", typ: metric.Summary, help: "h", metrics: []met{
			{labels("q", "x"), []pt{{view.Sum, 0, 1}, {view.Count, 0, 2}}},
			{labels("q", "y"), []pt{{view.Quantile, 0.5, 0.25}, {view.Sum, 0, 10.5}, {view.Count, 0, 7}}},
		}},
		// A sample of another family has the name that the created sample would have.
		fam{name: "taken", typ: metric.Counter, help: "h", metrics: []met{total(8)}},
		fam{name: "taken_created", typ: metric.Gauge, help: "h", metrics: []met{value(9)}},
		fam{
			name: "unset", typ: metric.Counter, help: "h", sparse: true,
			metrics: []met{total(0), total(view.Absent, "q", "a"), total(3, "q", "b")},
		},
	))
}

func TestCreated(t *testing.T) {
	const text = `# HELP jobs h
# TYPE jobs counter
jobs_total{q="a"} 1
jobs_total{q="b"} 2
jobs_created{q="b"} 1764253000.25
# HELP lat h
# TYPE lat histogram
lat_bucket{le="1.0"} 1
lat_bucket{le="2.5"} 2
lat_bucket{le="+Inf"} 3
lat_sum 4.5
lat_count 3
lat_created 1764253000
# HELP load h
# TYPE load gauge
load 1
# HELP "my.jobs" h
# TYPE "my.jobs" counter
{"my.jobs_total"} 5
{"my.jobs_total",q="a"} 6
{"my.jobs_created",q="a"} 1764253000.25
# HELP old h
# TYPE old unknown
old 5
# HELP size h
# TYPE size summary
size_sum{q="x"} 1
size_count{q="x"} 2
size{q="y",quantile="0.5"} 0.25
size_sum{q="y"} 10.5
size_count{q="y"} 7
size_created{q="y"} 1764253000.25
# HELP taken_total h
# TYPE taken_total unknown
taken_total 8
# HELP taken_created h
# TYPE taken_created gauge
taken_created 9
# HELP unset h
# TYPE unset counter
unset_total 0
unset_total{q="b"} 3
unset_created{q="b"} 1764253000.5
# EOF
`
	utf8 := Format{OpenMetrics100, AllowUTF8}
	e := &Encoder{CreatedSamples: true}
	snap := createdView()
	got := string(e.Append(nil, utf8, Filter{}, snap))
	if got != text {
		t.Errorf("got\n%s\nwant\n%s", got, text)
	}
	without := ""
	for line := range strings.Lines(text) {
		if !strings.Contains(line, "_created") || strings.Contains(line, "taken") {
			without += line
		}
	}
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"not asked for": {new(Encoder).Append(nil, utf8, Filter{}, snap), without},
		"no starts":     {e.Append(nil, utf8, Filter{}, &view.Snapshot{Layout: snap.Layout, Values: snap.Values}), without},
		"text":          {e.Append(nil, Format{}, Filter{}, snap), string(new(Encoder).Append(nil, Format{}, Filter{}, snap))},
		"a name": {
			e.Append(nil, utf8, NewFilter([]string{"jobs_total"}), snap),
			text[:strings.Index(text, "# HELP lat")] + "# EOF\n",
		},
		"part of it": {
			e.Append(nil, utf8, NewFilter([]string{"lat_sum"}), snap),
			text[strings.Index(text, "# HELP lat"):strings.Index(text, "# HELP load")] + "# EOF\n",
		},
	} {
		if string(c.got) != c.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, c.got, c.want)
		}
	}
	// The prefix is of another length where names are escaped.
	got = string(e.Append(nil, Format{OpenMetrics100, Values}, Filter{}, snap))
	if want := "U__my_2e_jobs__total{q=\"a\"} 6\nU__my_2e_jobs__created{q=\"a\"} 1764253000.25\n"; !strings.Contains(got, want) {
		t.Errorf("escaped: want %s in\n%s", want, got)
	}
	// Histograms whose values do not fit are split, and have no type that has a start.
	odd := begun(snapshot(fam{name: "lat", typ: metric.Histogram, metrics: []met{buckets(1, 2, math.NaN(), 4.5)}}))
	if got := string(e.Append(nil, utf8, Filter{}, odd)); strings.Contains(got, "_created") {
		t.Errorf("of a split histogram:\n%s", got)
	}
}

// TestCreatedTimestamps: protobuf has the starts as fields, as client_golang has them.
func TestCreatedTimestamps(t *testing.T) {
	snap := createdView()
	out := string(new(Encoder).Append(nil, Format{Kind: Protobuf}, Filter{}, snap))
	var got []string
	for _, mf := range decodeProtobuf(t, Format{Kind: Protobuf}, out) {
		for _, m := range mf.Metric {
			start := m.GetCounter().GetCreatedTimestamp()
			if h := m.Histogram; h != nil {
				start = h.CreatedTimestamp
			}
			if s := m.Summary; s != nil {
				start = s.CreatedTimestamp
			}
			if start != nil {
				got = append(got, mf.GetName()+" "+start.AsTime().Format("15:04:05.000"))
			}
		}
	}
	want := "jobs_total 14:16:40.250 lat 14:16:40.000 my_jobs_total 14:16:40.250 old 14:16:40.000 size 14:16:40.250 taken_total 14:16:40.000 unset_total 14:16:40.500"
	if got := strings.Join(got, " "); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	snap.Starts = nil
	plain := string(new(Encoder).Append(nil, Format{Kind: Protobuf}, Filter{}, snap))
	if len(plain) >= len(out) {
		t.Errorf("%d bytes without starts, %d with them", len(plain), len(out))
	}
	compare(t, "without starts", parse(t, Format{Kind: Protobuf}, plain), parse(t, Format{Kind: Protobuf}, out))
}

// TestPythonClientReadsCreated: its strict parser takes the samples for what they are.
func TestPythonClientReadsCreated(t *testing.T) {
	e := &Encoder{CreatedSamples: true}
	snap := begun(everything())
	var documents []pythonDocument
	for _, f := range []Format{{Kind: OpenMetrics001}, {Kind: OpenMetrics100}} {
		want := expected(t, f, snap)
		want.add(t, "jobs_created", labels("queue", "low", "host", "a"), 1764253000.25)
		want.add(t, "latency_seconds_created", labels("path", "/x"), 1764253000.25)
		want.add(t, "size_bytes_created", labels("path", "/x"), 1764253000.25)
		documents = append(documents, pythonDocument{"openmetrics", string(e.Append(nil, f, Filter{}, snap)), want})
	}
	checkPython(t, documents)
}

func TestCreatedDoesNotAllocate(t *testing.T) {
	e := &Encoder{CreatedSamples: true}
	snap := createdView()
	for _, f := range []Format{{Kind: OpenMetrics100}, {Kind: Protobuf}} {
		dst := e.Append(nil, f, Filter{}, snap)
		if n := testing.AllocsPerRun(100, func() { dst = e.Append(dst[:0], f, Filter{}, snap) }); n > 0 {
			t.Errorf("%v: %v allocations", f, n)
		}
	}
}

func TestWantsStarts(t *testing.T) {
	const prometheus = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5"
	const protobuf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.9," + prometheus
	for _, c := range []struct {
		accept        string
		created, want bool
	}{
		{"", true, false}, {"text/plain", true, false}, {prometheus, false, false}, {prometheus, true, true}, {protobuf, false, true},
	} {
		e := &Encoder{CreatedSamples: c.created}
		if got := e.WantsStarts(ParseAccept(c.accept)); got != c.want {
			t.Errorf("%q with created samples %v: %v", c.accept, c.created, got)
		}
	}
}
