package exposition

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// TestEncodeChooses the first format that a client accepts and that carries everything.
func TestEncodeChooses(t *testing.T) {
	om, proto, text, text1 := Format{OpenMetrics100, AllowUTF8}, Format{Protobuf, AllowUTF8}, Format{}, Format{Text100, AllowUTF8}
	prometheus, native := acceptPrometheus3, acceptProtobuf3
	onlyOM := "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8"
	gauge := fam{name: "jobs", typ: metric.Gauge, metrics: []met{value(1)}}
	counter := fam{name: "jobs", typ: metric.Counter, metrics: []met{total(2)}}
	for _, test := range []struct {
		name, accept string
		snap         *view.Snapshot
		want         Format
		// avoided and left are what is reported of the formats that come before, and of the
		// chosen one.
		avoided, left []string
		samples       []string
	}{
		{"all_is_well", prometheus, snapshot(counter), om, nil, nil, []string{"jobs_total 2"}},
		{
			"gauge_beside_counter", prometheus, snapshot(gauge, counter), text1,
			[]string{`openmetrics-1.0.0: the type of "jobs": name_collision with "jobs"`},
			nil,
			[]string{"jobs_total 2", "jobs 1"},
		},
		{
			"gauge_beside_counter_and_nothing_else_accepted", onlyOM, snapshot(gauge, counter), om,
			nil,
			[]string{`the type of "jobs": name_collision with "jobs"`},
			[]string{"jobs_total 2", "jobs 1"},
		},
		{"gauge_beside_counter_protobuf", native, snapshot(gauge, counter), proto, nil, nil, nil},
		{
			"counter_without_total", onlyOM + ",*/*;q=0.1", snapshot(fam{name: "logins", typ: metric.Counter, metrics: []met{value(7)}}),
			text,
			[]string{`openmetrics-1.0.0: the type of "logins": no_total`},
			nil,
			[]string{"logins 7"},
		},
		{
			"negative_counter", prometheus,
			snapshot(fam{name: "c", typ: metric.Counter, metrics: []met{total(-1, "a", "b"), total(1, "a", "c")}}), text1,
			[]string{`openmetrics-1.0.0: the type of "c": bad_value`},
			nil,
			[]string{`c_total{a="b"} -1`, `c_total{a="c"} 1`},
		},
		{
			"negative_counter_and_nothing_else_accepted", onlyOM,
			snapshot(fam{name: "c", typ: metric.Counter, metrics: []met{total(-1, "a", "b"), total(1, "a", "c")}}), om,
			nil,
			[]string{`the type of "c": bad_value`},
			[]string{`c_total{a="b"} -1`, `c_total{a="c"} 1`},
		},
		{
			// No format carries it, so the others do not matter.
			"negative_bucket", prometheus,
			snapshot(fam{name: "h", typ: metric.Histogram, metrics: []met{buckets(-1, 2, 3, 4, "a", "b"), buckets(0, 0, 0, 0, "a", "c")}}),
			om,
			nil,
			[]string{`1 metric of "h" such as {a="b"}: bad_value`},
			[]string{
				`h_bucket{a="c",le="1.0"} 0`, `h_bucket{a="c",le="2.5"} 0`, `h_bucket{a="c",le="+Inf"} 0`, `h_sum{a="c"} 0`,
				`h_count{a="c"} 0`,
			},
		},
		{
			"negative_bucket_and_a_name", prometheus,
			snapshot(gauge, counter, fam{name: "h", typ: metric.Histogram, metrics: []met{buckets(3, 2, 3, 4)}}), text1,
			[]string{`openmetrics-1.0.0: 1 metric of "h": bad_value`, `openmetrics-1.0.0: the type of "jobs": name_collision with "jobs"`},
			[]string{`1 metric of "h": bad_value`},
			[]string{"jobs_total 2", "jobs 1"},
		},
		{
			"count_that_protobuf_cannot_say", native, snapshot(fam{name: "s", typ: metric.Summary, metrics: []met{summary(1, 2.5)}}), text1,
			[]string{`protobuf: 1 metric of "s": bad_value`, `openmetrics-1.0.0: the type of "s": bad_value`},
			nil,
			[]string{"s_sum 1", "s_count 2.5"},
		},
		{
			"count_that_protobuf_cannot_say_openmetrics_next", strings.Join(strings.Split(native, ",")[:2], ","),
			snapshot(fam{name: "s", typ: metric.Summary, metrics: []met{summary(1, 2.5)}}), om,
			[]string{`protobuf: 1 metric of "s": bad_value`},
			[]string{`the type of "s": bad_value`},
			[]string{"s_sum 1", "s_count 2.5"},
		},
		{"nothing_there", prometheus, snapshot(), om, nil, nil, []string{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var avoided, left []string
			e := &Encoder{OnReport: func(r Report) {
				for _, o := range slices.Concat(r.Omissions, r.Untyped) {
					if r.Avoided() {
						avoided = append(avoided, fmt.Sprintf("%v: %v", r.Format, o))
						if r.Instead != test.want.canonical() {
							t.Errorf("reported instead is %v", r.Instead)
						}
					} else {
						left = append(left, o.String())
					}
				}
			}}
			out, got := e.Encode(nil, nil, ParseAccept(test.accept), Filter{}, test.snap)
			again, _ := e.Encode(nil, nil, ParseAccept(test.accept), Filter{}, test.snap)
			if got != test.want {
				t.Errorf("chose %+v, want %+v", got, test.want)
			}
			if string(out) != string(again) {
				t.Error("the same again is something else")
			}
			if !slices.Equal(avoided, test.avoided) || !slices.Equal(left, test.left) {
				t.Errorf("avoided %q and left out %q, want %q and %q", avoided, left, test.avoided, test.left)
			}
			samples := []string{}
			for line := range strings.Lines(string(out)) {
				if line[0] != '#' {
					samples = append(samples, strings.TrimSuffix(line, "\n"))
				}
			}
			if test.samples != nil && !slices.Equal(samples, test.samples) {
				t.Errorf("samples %q, want %q", samples, test.samples)
			}
		})
	}
}

// TestReportsOfTwoClients: a format that one client gets and another avoids is told as two,
// once each, and taken back when it carries everything.
func TestReportsOfTwoClients(t *testing.T) {
	var told []string
	e := &Encoder{OnReport: func(r Report) {
		told = append(told, fmt.Sprintf("%v for %v: %d, %d", r.Instead, r.Format, len(r.Omissions), len(r.Untyped)))
	}}
	old := fam{name: "logins", typ: metric.Counter, metrics: []met{value(7)}}
	scrape := func(fams ...fam) {
		for range 2 {
			for _, accept := range []string{
				"application/openmetrics-text;version=1.0.0,*/*;q=0.1",
				"application/openmetrics-text;version=1.0.0",
			} {
				e.Encode(nil, nil, ParseAccept(accept), Filter{}, snapshot(fams...))
			}
		}
	}
	for i, step := range []struct {
		fams []fam
		want []string
	}{
		{[]fam{old}, []string{"text-0.0.4 for openmetrics-1.0.0: 0, 1", "openmetrics-1.0.0 for openmetrics-1.0.0: 0, 1"}},
		{[]fam{old, {name: "x", typ: metric.Gauge, metrics: []met{value(7)}}}, nil},
		{nil, []string{"openmetrics-1.0.0 for openmetrics-1.0.0: 0, 0", "text-0.0.4 for openmetrics-1.0.0: 0, 0"}},
	} {
		told = nil
		if scrape(step.fams...); !slices.Equal(told, step.want) {
			t.Errorf("step %d: %q, want %q", i, told, step.want)
		}
	}
}

func TestShapes(t *testing.T) {
	withShape := func(s view.Shape, typ metric.Type, name string, metrics ...met) *view.Snapshot {
		snap := snapshot(fam{name: name, typ: typ, help: "h", metrics: metrics},
			fam{name: "z", typ: metric.Gauge, metrics: []met{value(1)}})
		snap.Layout.Families[0].Shape = s
		snap.Layout.Families[0].Unit = "info"
		return snap
	}
	om := Format{Kind: OpenMetrics100}
	var documents []pythonDocument
	for _, test := range []struct {
		name   string
		format Format
		snap   *view.Snapshot
		want   string // the first TYPE line
	}{
		{"info", om, withShape(view.Info, metric.Gauge, "build_info", value(1, "v", "2")), "build info"},
		{"info_in_text", Format{}, withShape(view.Info, metric.Gauge, "build_info", value(1, "v", "2")), "build_info gauge"},
		{"info_of_2", om, withShape(view.Info, metric.Gauge, "build_info", value(2, "v", "2")), "build_info gauge"},
		{"info_without_its_end", om, withShape(view.Info, metric.Gauge, "build", value(1, "v", "2")), "build gauge"},
		{"info_that_is_no_gauge", om, withShape(view.Info, metric.Unknown, "build_info", value(1, "v", "2")), "build_info unknown"},
		{
			"stateset", om, withShape(view.StateSet, metric.Gauge, "state", value(1, "state", "on"), value(0, "state", "off")),
			"state stateset",
		},
		{"stateset_of_workers", om, withShape(view.StateSet, metric.Gauge, "state", value(1, "state", "on", "pid", "1"),
			value(0, "state", "off", "pid", "1")), "state stateset"},
		{
			"stateset_in_text",
			Format{},
			withShape(view.StateSet, metric.Gauge, "state", value(1, "state", "on"), value(0, "state", "off")),
			"state gauge",
		},
		{
			"stateset_without_the_label", om,
			withShape(view.StateSet, metric.Gauge, "state", value(1, "state", "on"), value(0, "stat", "off")), "state gauge",
		},
		{
			"stateset_of_2", om, withShape(view.StateSet, metric.Gauge, "state", value(2, "state", "on"), value(0, "state", "off")),
			"state gauge",
		},
		{"stateset_of_nan", om, withShape(view.StateSet, metric.Gauge, "state", value(math.NaN(), "state", "on")), "state gauge"},
		{
			"stateset_of_pools", om, extra(withShape(view.StateSet, metric.Gauge, "state", value(1, "a", "on")), "state", "x"),
			"state stateset",
		},
	} {
		out, left := encode(test.format, test.snap)
		if got := typeLines(out)[0]; got != test.want || len(left) > 0 {
			t.Errorf("%s: type %q, left out %v, want %q", test.name, got, left, test.want)
		}
		if test.name == "stateset_of_pools" {
			continue // the other family has the label too
		}
		if strings.Contains(out, "UNIT") && strings.HasSuffix(test.want, " info") {
			t.Errorf("%s has a unit", test.name)
		}
		documents = append(documents, pythonDocument{pythonParser(test.format), out, expected(t, test.format, test.snap)})
	}
	checkPython(t, documents)

	// An info beside what it would claim.
	snap := withShape(view.Info, metric.Gauge, "build_info", value(1))
	snap.Layout.Families[1].Name = "build"
	if out, left := encode(om, snap); !slices.Equal(typeLines(out), []string{"build_info gauge", "build gauge"}) || len(left) > 0 {
		t.Errorf("%q, left out %v", typeLines(out), left)
	}
}

// TestEmptyHelp is served as the client serves it.
func TestEmptyHelp(t *testing.T) {
	snap := snapshot(fam{name: "a", typ: metric.Gauge, metrics: []met{value(1)}})
	snap.Layout.Families[0].Help = ""
	for f, want := range map[Format]string{
		{}:                     "# HELP a \n# TYPE a gauge\na 1\n",
		{Kind: OpenMetrics100}: "# HELP a \n# TYPE a gauge\na 1\n# EOF\n",
	} {
		if out, _ := encode(f, snap); out != want {
			t.Errorf("%v: %q, want %q", f, out, want)
		}
	}
	out, _ := encode(Format{Kind: Protobuf}, snap)
	if mf := decodeProtobuf(t, Format{Kind: Protobuf}, out)[0]; mf.Help == nil || mf.GetHelp() != "" {
		t.Errorf("protobuf has help %v", mf.Help)
	}
}

// TestFallbackDoesNotAllocate: a format that is avoided for good costs no memory a scrape.
func TestFallbackDoesNotAllocate(t *testing.T) {
	snap := snapshot(fam{name: "logins", typ: metric.Counter, metrics: []met{value(7)}},
		fam{name: "x", typ: metric.Gauge, metrics: []met{value(7)}})
	e := &Encoder{OnReport: func(Report) {}}
	accept := ParseAccept(acceptPrometheus3)
	buf, f := e.Encode(nil, nil, accept, Filter{}, snap)
	if f != (Format{Text100, AllowUTF8}) {
		t.Fatalf("format %v", f)
	}
	if n := testing.AllocsPerRun(20, func() { buf, _ = e.Encode(buf[:0], nil, accept, Filter{}, snap) }); n != 0 {
		t.Errorf("%v allocations a scrape", n)
	}
	if len(e.views) != 1 {
		t.Errorf("%d views are kept; what is avoided need not be rendered", len(e.views))
	}
}
