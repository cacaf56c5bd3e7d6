package exposition

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"weak"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// typeLines returns the names and types of an exposition's families in order.
func typeLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			lines = append(lines, strings.TrimSuffix(rest, "\n"))
		}
	}
	return lines
}

func TestCollisions(t *testing.T) {
	gauge := func(name string) fam {
		return fam{name: name, typ: metric.Gauge, metrics: []met{value(1)}}
	}
	counter := func(name string) fam {
		return fam{name: name, typ: metric.Counter, metrics: []met{total(1)}}
	}
	oldCounter := func(name string) fam {
		return fam{name: name, typ: metric.Counter, metrics: []met{value(1)}}
	}
	histogram := func(name string) fam {
		return fam{name: name, typ: metric.Histogram, metrics: []met{buckets(1, 2, 3, 4)}}
	}
	summaryFam := func(name string) fam {
		return fam{name: name, typ: metric.Summary, metrics: []met{summary(1, 2)}}
	}
	text, om := Format{}, Format{Kind: OpenMetrics100}
	utf8 := Format{Text100, AllowUTF8}
	snaps := func(s ...*view.Snapshot) []*view.Snapshot { return s }
	tests := []struct {
		name   string
		format Format
		snaps  []*view.Snapshot
		want   []string // TYPE lines
		lost   []string // omissions
	}{
		{
			"gauge_named_like_a_counters_sample", text, snaps(snapshot(counter("x"), gauge("x_total"))),
			[]string{"x_total counter"},
			[]string{`"x_total": name_collision with "x"`},
		},
		{
			"counter_beside_gauge_of_its_family_name_text", text,
			snaps(snapshot(gauge("x_b"), counter("x"), gauge("w")), snapshot(gauge("x"))),
			[]string{"w gauge", "x_total counter", "x gauge", "x_b gauge"},
			nil,
		},
		{
			"counter_beside_gauge_of_its_family_name_openmetrics", om, snaps(snapshot(counter("x")), snapshot(gauge("x"))),
			[]string{"x_total unknown", "x gauge"},
			[]string{`the type of "x": name_collision with "x"`},
		},
		{
			"histogram_bucket", text, snaps(snapshot(histogram("x"), gauge("x_bucket"))),
			[]string{"x histogram"},
			[]string{`"x_bucket": name_collision with "x"`},
		},
		{
			"histogram_count_of_counter", text, snaps(snapshot(histogram("x"), counter("x_count"))),
			[]string{"x histogram", "x_count_total counter"},
			nil,
		},
		{
			"histogram_count_of_counter_openmetrics", om, snaps(snapshot(histogram("x"), counter("x_count"))),
			[]string{"x histogram", "x_count_total unknown"},
			[]string{`the type of "x_count": name_collision with "x"`},
		},
		{
			"histogram_sum_of_old_counter", text, snaps(snapshot(histogram("x"), oldCounter("x_sum"))),
			[]string{"x histogram"},
			[]string{`"x_sum": name_collision with "x"`},
		},
		{
			"summary_has_no_bucket", text, snaps(snapshot(summaryFam("x"), gauge("x_bucket"))),
			[]string{"x summary", "x_bucket gauge"},
			nil,
		},
		{
			"summary_count", text, snaps(snapshot(summaryFam("x"), gauge("x_count"))),
			[]string{"x summary"},
			[]string{`"x_count": name_collision with "x"`},
		},
		{
			"created_is_claimed_in_openmetrics", om, snaps(snapshot(counter("x"), gauge("x_created"))),
			[]string{"x_total unknown", "x_created gauge"},
			[]string{`the type of "x": name_collision with "x_created"`},
		},
		{
			"created_of_histograms_and_summaries_is_claimed_in_openmetrics", om,
			snaps(snapshot(histogram("x"), gauge("x_created"), summaryFam("y"), gauge("y_created"))),
			[]string{
				"x_bucket unknown", "x_sum unknown", "x_count unknown", "x_created gauge", "y_sum unknown", "y_count unknown",
				"y_created gauge",
			},
			[]string{`the type of "x": name_collision with "x_created"`, `the type of "y": name_collision with "y_created"`},
		},
		{
			"created_is_free_in_text", text, snaps(snapshot(counter("x"), gauge("x_created"))),
			[]string{"x_total counter", "x_created gauge"},
			nil,
		},
		{
			"own_metrics_win", text, snaps(snapshot(histogram("a"), gauge("b")), snapshot(gauge("a_sum"))),
			[]string{"a_sum gauge", "b gauge"},
			[]string{`"a": name_collision with "a_sum"`},
		},
		{
			"same_name_and_type_earlier_snapshot_wins", text, snaps(snapshot(gauge("a")), snapshot(gauge("a")), snapshot()),
			[]string{"a gauge"},
			[]string{`"a": name_collision with "a"`},
		},
		{
			"the_loser_claims_nothing", text, snaps(snapshot(histogram("a"), gauge("a_bucket")), snapshot(gauge("a_sum"))),
			[]string{"a_bucket gauge", "a_sum gauge"},
			[]string{`"a": name_collision with "a_sum"`},
		},
		{
			"after_escaping", text, snaps(snapshot(gauge("a.b"), gauge("a_b"), gauge("a:b"))),
			[]string{"U__a_2e_b gauge", "a:b gauge", "a_b gauge"},
			nil,
		},
		{
			"not_without_escaping", utf8, snaps(snapshot(gauge("a.b"), gauge("a_b"))),
			[]string{`"a.b" gauge`, "a_b gauge"},
			nil,
		},
		{
			"sample_names_after_escaping", text, snaps(snapshot(histogram("a.b"), gauge("a_b_count"))),
			[]string{"U__a_2e_b histogram", "a_b_count gauge"},
			nil,
		},
		{
			"gauge_beside_counter_text", text, snaps(snapshot(counter("jobs"), gauge("jobs"))),
			[]string{"jobs_total counter", "jobs gauge"},
			nil,
		},
		{
			"gauge_beside_counter_openmetrics", om, snaps(snapshot(counter("jobs"), gauge("jobs"))),
			[]string{"jobs_total unknown", "jobs gauge"},
			[]string{`the type of "jobs": name_collision with "jobs"`},
		},
		{
			"histogram_beside_counter_text", text, snaps(snapshot(counter("job"), histogram("job"))),
			[]string{"job_total counter", "job histogram"},
			nil,
		},
		{
			"histogram_beside_counter_openmetrics", om, snaps(snapshot(counter("job"), histogram("job"))),
			[]string{"job_total unknown", "job histogram"},
			[]string{`the type of "job": name_collision with "job"`},
		},
		{
			"histogram_beside_gauge_text", text, snaps(snapshot(gauge("a"), histogram("a"))),
			[]string{"a gauge", "a_bucket untyped", "a_sum untyped", "a_count untyped"},
			[]string{`the type of "a": name_collision with "a"`},
		},
		{
			"counters_with_and_without_total_openmetrics", om, snaps(snapshot(oldCounter("job"), counter("job_x"), counter("job"))),
			[]string{"job unknown", "job_total unknown", "job_x counter"},
			[]string{`the type of "job": no_total`, `the type of "job": name_collision with "job"`},
		},
		{
			"counter_created_total_openmetrics", om, snaps(snapshot(counter("orders"), counter("orders_created"))),
			[]string{"orders counter", "orders_created_total unknown"},
			[]string{`the type of "orders_created": name_collision with "orders"`},
		},
		{
			"both_escape_to_one", text, snaps(snapshot(gauge("a.b"), gauge("a-b"), gauge("a b c"))),
			[]string{"a_b_c gauge", "U__a_2d_b gauge", "U__a_2e_b gauge"},
			nil,
		},
		{
			"reserved_after_escaping", text, snaps(snapshot(gauge("国家"), counter("国家"), gauge("国"))),
			[]string{"_ gauge", "U___56fd__5bb6___total counter", "U___56fd__5bb6_ gauge"},
			nil,
		},
		{
			"reserved_with_its_suffix", text, snaps(snapshot(counter("国"), summaryFam("家"))),
			[]string{"U___56fd___total counter", "U___5bb6_ summary"},
			nil,
		},
		{
			// A summary has no sample of its family's name, but that name in its TYPE line.
			"taken_by_a_TYPE_line", text, snaps(snapshot(gauge("a.b"), summaryFam("a_b"), gauge("c_d"), summaryFam("c.d"))),
			[]string{"U__a_2e_b gauge", "a_b summary", "U__c_2e_d summary", "c_d gauge"},
			nil,
		},
		{
			"taken_by_a_family_of_protobuf",
			Format{Kind: Protobuf},
			snaps(snapshot(gauge("a.b"), summaryFam("a_b"))),
			nil,
			nil,
		},
		{
			"the_reversible_spelling_is_taken", text, snaps(snapshot(gauge("a.b"), gauge("a_b"), gauge("U__a_2e_b"))),
			[]string{"U__a_2e_b gauge", "a_b gauge"},
			[]string{`"a.b": name_collision with "U__a_2e_b"`},
		},
		{
			"protobuf_has_one_family_of_a_name",
			Format{Kind: JSON},
			snaps(snapshot(gauge("a"), summaryFam("a"))),
			nil,
			[]string{`"a": name_collision with "a"`},
		},
		{
			"negative_bounds_with_a_sum", om, snaps(snapshot(fam{name: "h", typ: metric.Histogram, metrics: []met{{nil, []pt{
				{view.Bucket, -1, 1}, {view.Bucket, math.Inf(1), 1}, {view.Sum, 0, 1}, {view.Count, 0, 1},
			}}}})),
			[]string{"h_bucket unknown", "h_sum unknown", "h_count unknown"},
			[]string{`the type of "h": bad_shape`},
		},
		{
			"no_name", text, snaps(snapshot(gauge(""), gauge("a"))),
			[]string{"a gauge"},
			[]string{`"": bad_name`},
		},
		{
			"points_of_another_type", text,
			snaps(snapshot(fam{name: "g", typ: metric.Gauge, metrics: []met{value(1, "a", "b"), total(2, "a", "c")}})),
			[]string{"g gauge"},
			[]string{`1 points of "g": bad_point`},
		},
		{"bound_that_is_no_number", text, snaps(snapshot(fam{name: "h", typ: metric.Histogram, metrics: []met{{nil, []pt{
			{view.Bucket, math.NaN(), 1}, {view.Bucket, math.Inf(1), 1}, {view.Sum, 0, 1}, {view.Count, 0, 1},
		}}}})), []string{"h histogram"}, []string{`1 points of "h": bad_point`}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, omissions := encode(test.format, test.snaps...)
			if got := typeLines(out); !slices.Equal(got, test.want) {
				t.Errorf("families %q, want %q", got, test.want)
			}
			var lost []string
			for _, o := range omissions {
				lost = append(lost, o.String())
			}
			if !slices.Equal(lost, test.lost) {
				t.Errorf("left out %q, want %q", lost, test.lost)
			}
		})
	}
}

func TestLabelCollisions(t *testing.T) {
	gauge := func(metrics ...met) *view.Snapshot {
		return snapshot(fam{name: "g", typ: metric.Gauge, metrics: metrics})
	}
	text := Format{}
	tests := []struct {
		name    string
		format  Format
		snap    *view.Snapshot
		want    []string // sample lines
		omitted int
	}{
		{
			"within_a_metric", text, gauge(value(1, "a.b", "x", "a_b", "y"), value(2, "a.b", "z")),
			[]string{`g{U__a_2e_b="x",a_b="y"} 1`, `g{U__a_2e_b="z"} 2`},
			0,
		},
		{
			"between_metrics", text, gauge(value(1, "a.b", "x"), value(2, "a_b", "x"), value(3, "a_b", "y")),
			[]string{`g{U__a_2e_b="x"} 1`, `g{a_b="x"} 2`, `g{a_b="y"} 3`},
			0,
		},
		{
			"two_escape_to_one", text, gauge(value(1, "a.b", "x", "a-b", "y")),
			[]string{`g{U__a_2d_b="y",U__a_2e_b="x"} 1`},
			0,
		},
		{
			"alone_it_is_escaped", text, gauge(value(1, "a.b", "x", "日", "y")),
			[]string{`g{_="y",a_b="x"} 1`},
			0,
		},
		{
			"reserved_after_escaping", text, gauge(value(1, "国家", "DE"), value(2, "国家", "FR")),
			[]string{`g{U___56fd__5bb6_="DE"} 1`, `g{U___56fd__5bb6_="FR"} 2`},
			0,
		},
		{
			"one_letter_each", text, gauge(value(1, "国", "DE", "家", "x")),
			[]string{`g{U___56fd_="DE",U___5bb6_="x"} 1`},
			0,
		},
		{
			"the_reversible_spelling_is_taken", text, gauge(value(1, "a.b", "x", "a_b", "y", "U__a_2e_b", "z"), value(2, "a_b", "y")),
			[]string{`g{a_b="y"} 2`},
			1,
		},
		{
			"reserved_even_where_quotes_are_known",
			Format{Text100, AllowUTF8},
			gauge(value(1, "__name__", "x", "国家", "DE")),
			[]string{`g{U______name____="x","国家"="DE"} 1`},
			0,
		},
		{
			"labels_of_the_pool", text, extra(gauge(value(1, "a", "x", "z.z", "y"), value(2)), "pool", "p", "z_z", "w"),
			[]string{`g{pool="p",z_z="w"} 2`, `g{U__z_2e_z="y",a="x",pool="p",z_z="w"} 1`},
			0,
		},
		{
			"not_without_escaping",
			Format{Text100, AllowUTF8},
			gauge(value(1, "a.b", "x", "a_b", "y")),
			[]string{`g{"a.b"="x",a_b="y"} 1`},
			0,
		},
		{
			"values_that_are_not_utf8", text, gauge(value(1, "a", "\xff"), value(2, "a", "\xfe"), value(3, "a", "\xff\xff")),
			[]string{"g{a=\"\ufffd\"} 2", "g{a=\"\ufffd\ufffd\"} 3"},
			1,
		},
		{
			"metric_name_label", text, gauge(value(1, "__name__", "x"), value(2, "..name__", "y"), value(3, "a", "b")),
			[]string{`g{U___2e__2e_name____="y"} 2`, `g{U______name____="x"} 1`, `g{a="b"} 3`},
			0,
		},
		{"empty_label_name", text, gauge(value(1, "", "x"), value(2, "a", "b")), []string{`g{U__="x"} 1`, `g{a="b"} 2`}, 0},
		{"colon", text, gauge(value(1, "a:b", "x")), []string{`g{a_b="x"} 1`}, 0},
		{"colon_dots", Format{Text100, Dots}, gauge(value(1, "a:b.c", "x")), []string{`g{a__b_dot_c="x"} 1`}, 0},
		{
			"colon_values",
			Format{Text100, Values},
			gauge(value(1, "a:b_c", "x", "a:b.c", "y")),
			[]string{`g{U__a_3a_b_2e_c="y",U__a_3a_b__c="x"} 1`},
			0,
		},
		{"colon_quoted", Format{Text100, AllowUTF8}, gauge(value(1, "a:b", "x")), []string{`g{"a:b"="x"} 1`}, 0},
		{"le_of_a_histogram", text, snapshot(fam{name: "h", typ: metric.Histogram, metrics: []met{
			{labels("le", "7"), []pt{{view.Bucket, math.Inf(1), 1}, {view.Sum, 0, 1}, {view.Count, 0, 1}}},
		}}), []string{`h_bucket{U__le="7",le="+Inf"} 1`, `h_sum{U__le="7"} 1`, `h_count{U__le="7"} 1`}, 0},
		{"le_of_a_gauge", text, gauge(value(1, "le", "7")), []string{`g{le="7"} 1`}, 0},
		{"protobuf_and_json_too", Format{Kind: JSON}, gauge(value(1, "a", "\xff"), value(2, "a", "\xfe")), nil, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, omissions := encode(test.format, test.snap)
			var got []string
			for line := range strings.Lines(out) {
				if test.want != nil && line[0] != '#' {
					got = append(got, strings.TrimSuffix(line, "\n"))
				}
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("samples %q, want %q", got, test.want)
			}
			omitted := 0
			for _, o := range omissions {
				if o.Reason != LabelCollision {
					t.Errorf("unexpected omission %v", o)
				}
				omitted += o.Metrics
			}
			if omitted != test.omitted {
				t.Errorf("%d metrics left out, want %d", omitted, test.omitted)
			}
		})
	}
}

func TestSeveralSnapshotsAreSortedTogether(t *testing.T) {
	gauge := func(name string, v float64) fam {
		return fam{name: name, typ: metric.Gauge, help: "h", metrics: []met{value(v)}}
	}
	got, _ := encode(Format{Kind: OpenMetrics100},
		snapshot(gauge("a", 1), gauge("d", 4)), snapshot(gauge("b", 2), gauge("e", 5)), snapshot(gauge("c", 3)))
	want := ""
	for i, name := range []string{"a", "b", "c", "d", "e"} {
		want += fmt.Sprintf("# HELP %s h\n# TYPE %[1]s gauge\n%[1]s %d\n", name, i+1)
	}
	if want += "# EOF\n"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestFilter(t *testing.T) {
	snap := snapshot(
		fam{name: "jobs", typ: metric.Counter, metrics: []met{total(1)}},
		fam{name: "lat", typ: metric.Histogram, metrics: []met{buckets(1, 2, 3, 4)}},
		fam{name: "my.load", typ: metric.Gauge, metrics: []met{value(1)}},
		fam{name: "size", typ: metric.Summary, metrics: []met{summary(1, 2)}},
	)
	text, om := Format{}, Format{Kind: OpenMetrics100}
	lat := []string{"lat_bucket", "lat_bucket", "lat_bucket", "lat_sum", "lat_count"}
	tests := []struct {
		name   string
		format Format
		names  []string
		want   []string // sample names
	}{
		{"nothing_selected", text, []string{"nope"}, nil},
		{"family", text, []string{"lat"}, lat},
		{"counter_by_openmetrics_name", text, []string{"jobs"}, []string{"jobs_total"}},
		{"counter_by_text_name", text, []string{"jobs_total"}, []string{"jobs_total"}},
		{"sample", text, []string{"lat_sum"}, []string{"lat_sum"}},
		{"samples", text, []string{"lat_sum", "lat_count"}, []string{"lat_sum", "lat_count"}},
		{"buckets", text, []string{"lat_bucket"}, lat[:3]},
		{"two_families", text, []string{"size", "lat_count"}, []string{"lat_count", "size_sum", "size_count"}},
		{"sample_openmetrics", om, []string{"lat_sum"}, lat},
		{"counter_openmetrics", om, []string{"jobs_total"}, []string{"jobs_total"}},
		{"by_the_workers_name", text, []string{"my.load"}, []string{"my_load"}},
		{"by_the_escaped_name", text, []string{"my_load"}, []string{"my_load"}},
		{"empty_values_are_none", text, []string{"", ""}, nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			filter := NewFilter(test.names)
			got := string(new(Encoder).Append(nil, test.format, filter, snap))
			if filter.All() {
				if want, _ := encode(test.format, snap); got != want {
					t.Errorf("got %q, want everything", got)
				}
				return
			}
			var names []string
			for line := range strings.Lines(got) {
				if line[0] != '#' {
					names = append(names, line[:strings.IndexAny(line, " {")])
				}
			}
			if !slices.Equal(names, test.want) {
				t.Errorf("samples %q, want %q", names, test.want)
			}
			if test.format.openMetrics() && !strings.HasSuffix(got, "# EOF\n") {
				t.Error("no # EOF")
			}
			if heads := strings.Count(got, "# TYPE"); (heads == 0) != (len(test.want) == 0) {
				t.Errorf("%d TYPE lines for %d samples", heads, len(test.want))
			}
		})
	}
}

// wide is a snapshot of many series: half counters, half histograms.
func wide(series int) *view.Snapshot {
	var fams []fam
	const perFamily = 100
	for f := 0; f*perFamily < series; f++ {
		counter := fam{name: fmt.Sprintf("http_requests_of_kind_%d", f), typ: metric.Counter}
		histogram := fam{name: fmt.Sprintf("http_request_duration_%d_seconds", f), typ: metric.Histogram}
		for m := range perFamily / 2 {
			pairs := []string{"method", "GET", "path", "/api/v1/items/" + strconv.Itoa(m), "status", "200"}
			counter.metrics = append(counter.metrics, total(float64(m*f), pairs...))
			if m%5 == 0 {
				histogram.metrics = append(histogram.metrics, buckets(float64(m), float64(2*m), float64(3*m), float64(m)/7, pairs...))
			}
		}
		fams = append(fams, counter, histogram)
	}
	return snapshot(fams...)
}

func TestAppendDoesNotAllocate(t *testing.T) {
	snap, own := wide(2000), everything()
	for _, f := range []Format{{}, {Text100, AllowUTF8}, {Kind: OpenMetrics100}, {Kind: Protobuf}, {Kind: JSON}} {
		e := &Encoder{OnReport: func(Report) {}}
		buf := e.Append(nil, f, Filter{}, snap, own)
		size := len(buf)
		if allocs := testing.AllocsPerRun(20, func() { buf = e.Append(buf[:0], f, Filter{}, snap, own) }); allocs != 0 {
			t.Errorf("%v: %v allocations for each call, want 0", f, allocs)
		}
		if len(buf) != size {
			t.Errorf("%v: %d bytes, then %d", f, size, len(buf))
		}
	}
}

func TestAppendKeepsWhatIsThere(t *testing.T) {
	snap := everything()
	for kind := Text004; kind <= JSON; kind++ {
		e := new(Encoder)
		alone := string(e.Append(nil, Format{Kind: kind}, Filter{}, snap))
		if got := string(e.Append([]byte("before"), Format{Kind: kind}, Filter{}, snap)); got != "before"+alone {
			t.Errorf("%v: appending after other bytes changes the output", Format{Kind: kind})
		}
	}
}

func TestOldLayoutsAreCollectable(t *testing.T) {
	e := new(Encoder)
	layouts := make([]weak.Pointer[view.Layout], 10)
	own := everything()
	for i := range layouts {
		snap := wide(100)
		layouts[i] = weak.Make(snap.Layout)
		for kind := Text004; kind <= JSON; kind++ {
			for escaping := Underscores; escaping <= AllowUTF8; escaping++ {
				e.Append(nil, Format{kind, escaping}, Filter{}, snap, own)
			}
		}
	}
	kept := 0
	for deadline := time.Now().Add(5 * time.Second); ; {
		runtime.GC()
		kept = 0
		for _, l := range layouts {
			if l.Value() != nil {
				kept++
			}
		}
		if kept <= 1 || time.Now().After(deadline) {
			break
		}
	}
	if kept > 1 {
		t.Errorf("%d layouts are kept after ten were served, want at most the last", kept)
	}
	if len(e.views) > 2*maxRendered {
		t.Errorf("%d views are kept, want at most %d", len(e.views), 2*maxRendered)
	}
	runtime.KeepAlive(e)
}

func TestViewsOfUnchangedLayoutsAreKept(t *testing.T) {
	e := new(Encoder)
	workers := wide(100)
	e.Append(nil, Format{}, Filter{}, workers, everything())
	before := e.views[0]
	e.Append(nil, Format{}, Filter{}, workers, everything()) // own metrics have a new layout
	if !slices.Contains(e.views, before) || before.layout != workers.Layout {
		t.Error("the workers' layout was rendered again although only the other one changed")
	}
	if len(e.views) != 2 {
		t.Errorf("%d views are kept, want 2", len(e.views))
	}
}

func TestOnReportTellsChangesOnce(t *testing.T) {
	var reports []Report
	e := &Encoder{OnReport: func(r Report) { reports = append(reports, r) }}
	gauge := func(name string) fam { return fam{name: name, typ: metric.Gauge, metrics: []met{value(1)}} }
	counts := func() (ns []int) {
		for _, r := range reports {
			ns = append(ns, len(r.Omissions))
		}
		return ns
	}
	taken := func(name string) fam { return fam{name: name, typ: metric.Counter, metrics: []met{value(1)}} }
	steps := []struct {
		snap *view.Snapshot
		want []int // families left out by each report so far
	}{
		{snapshot(gauge("a")), nil},
		{snapshot(gauge("a"), taken("a")), []int{1}},
		{snapshot(gauge("a"), taken("a"), gauge("c")), []int{1}},
		{snapshot(gauge("a"), taken("a"), gauge("b"), taken("b")), []int{1, 2}},
		{snapshot(gauge("a")), []int{1, 2, 0}},
		{snapshot(gauge("b")), []int{1, 2, 0}},
	}
	for i, step := range steps {
		e.Append(nil, Format{}, Filter{}, step.snap)
		e.Append(nil, Format{}, Filter{}, step.snap)
		if got := counts(); !slices.Equal(got, step.want) {
			t.Fatalf("step %d: reports %v, want %v", i, got, step.want)
		}
	}
}

// Snapshots of changing layouts in changing formats, by several goroutines on one
// encoder, must come out as from an encoder of their own.
func TestConcurrentUse(t *testing.T) {
	snaps := []*view.Snapshot{wide(100), wide(200), everything()}
	var formats []Format
	for kind := Text004; kind <= JSON; kind++ {
		formats = append(formats, Format{Kind: kind})
	}
	want := make(map[string]string)
	key := func(s, f int) string { return fmt.Sprint(s, f) }
	for s := range snaps {
		for f := range formats {
			want[key(s, f)], _ = encode(formats[f], snaps[s])
		}
	}
	e := &Encoder{OnReport: func(Report) {}}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			var buf []byte
			for i := range 60 {
				s, f := (g+i)%len(snaps), (g*3+i)%len(formats)
				buf = e.Append(buf[:0], formats[f], Filter{}, snaps[s])
				if string(buf) != want[key(s, f)] {
					t.Errorf("snapshot %d in %v differs", s, formats[f])
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAppend(b *testing.B) {
	for _, format := range []struct {
		name string
		f    Format
	}{{"text", Format{}}, {"openmetrics", Format{Kind: OpenMetrics100}}, {"protobuf", Format{Kind: Protobuf}}} {
		for _, series := range []int{5000, 20000} {
			b.Run(fmt.Sprintf("format=%s/series=%d", format.name, series), func(b *testing.B) {
				snap := wide(series)
				e := new(Encoder)
				buf := e.Append(nil, format.f, Filter{}, snap)
				b.SetBytes(int64(len(buf)))
				b.ReportAllocs()
				for b.Loop() {
					buf = e.Append(buf[:0], format.f, Filter{}, snap)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(snap.Layout.Points), "ns/sample")
			})
		}
	}
}

// BenchmarkRender measures the first scrape of a layout.
func BenchmarkRender(b *testing.B) {
	snap := wide(20000)
	for _, format := range []struct {
		name string
		f    Format
	}{{"text", Format{}}, {"protobuf", Format{Kind: Protobuf}}} {
		b.Run("format="+format.name+"/series=20000", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				p := newPlan(format.f, []*view.Snapshot{snap})
				newRendered(snap.Layout, format.f, p.headings[0], nil)
			}
		})
	}
}

func BenchmarkAppendFiltered(b *testing.B) {
	snap := wide(20000)
	e := new(Encoder)
	filter := NewFilter([]string{"http_requests_of_kind_7"})
	buf := e.Append(nil, Format{}, filter, snap)
	b.ReportAllocs()
	for b.Loop() {
		buf = e.Append(buf[:0], Format{}, filter, snap)
	}
}
