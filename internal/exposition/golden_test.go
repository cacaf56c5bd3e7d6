package exposition

import (
	"math"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// everything is a snapshot with each type, with plain names and values that every parser
// finds sane.
func everything() *view.Snapshot {
	quantiles := met{labels("path", "/"), []pt{
		{view.Quantile, 0.5, 0.25}, {view.Quantile, 1, 2}, {view.Sum, 0, 10.5}, {view.Count, 0, 7},
	}}
	return snapshot(
		fam{name: "jobs", typ: metric.Counter, help: `A "job", done\failed` + "\nor not.", metrics: []met{
			total(3, "queue", "low", "host", "a"), total(1e6, "queue", "hi\"gh\\\n", "host", "a"),
		}},
		fam{name: "old_jobs", typ: metric.Counter, metrics: []met{value(5)}},
		fam{name: "temperature", typ: metric.Gauge, metrics: []met{
			value(-0.5, "room", "ä"), value(math.Inf(1), "room", "b"), value(math.NaN(), "room", "c"),
			value(math.Copysign(0, -1), "room", "d"), value(1e300, "room", "e"),
		}},
		fam{name: "latency_seconds", typ: metric.Histogram, metrics: []met{
			buckets(1, 2, 4, 7.5, "path", "/"), buckets(0, 0, 0, 0, "path", "/x"),
		}},
		fam{name: "size_bytes", typ: metric.Summary, metrics: []met{quantiles, summary(0, 0, "path", "/x")}},
		fam{name: "whatever", typ: metric.Unknown, metrics: []met{value(42)}},
	)
}

func TestGolden(t *testing.T) {
	dotted := func() *view.Snapshot {
		return snapshot(
			fam{
				name: "my.jobs", typ: metric.Counter, help: "h",
				metrics: []met{total(1, "queue.name", "a_b"), total(2, "queue.name", "z")},
			},
			fam{name: "my.latency", typ: metric.Histogram, help: "h", metrics: []met{{nil, []pt{
				{view.Bucket, math.Inf(1), 3}, {view.Sum, 0, 1}, {view.Count, 0, 3},
			}}}},
			fam{name: "my.load", typ: metric.Gauge, help: "h", metrics: []met{value(1)}},
		)
	}
	sparse := func() *view.Snapshot {
		return snapshot(
			fam{
				name: "all_unset", typ: metric.Gauge, sparse: true,
				metrics: []met{value(view.Absent, "a", "1"), value(view.Absent, "a", "2")},
			},
			fam{name: "some_unset", typ: metric.Gauge, help: "h", sparse: true, metrics: []met{
				value(view.Absent, "a", "1"), value(math.NaN(), "a", "2"), value(3, "a", "3"), value(view.Absent, "a", "4"),
			}},
		)
	}
	tests := []struct {
		name   string
		format Format
		snap   *view.Snapshot
		want   string
	}{
		{"text", Format{}, everything(), `# HELP jobs_total A "job", done\\failed\nor not.
# TYPE jobs_total counter
jobs_total{host="a",queue="hi\"gh\\\n"} 1000000
jobs_total{host="a",queue="low"} 3
# HELP latency_seconds Help of latency_seconds.
# TYPE latency_seconds histogram
latency_seconds_bucket{path="/",le="1.0"} 1
latency_seconds_bucket{path="/",le="2.5"} 2
latency_seconds_bucket{path="/",le="+Inf"} 4
latency_seconds_sum{path="/"} 7.5
latency_seconds_count{path="/"} 4
latency_seconds_bucket{path="/x",le="1.0"} 0
latency_seconds_bucket{path="/x",le="2.5"} 0
latency_seconds_bucket{path="/x",le="+Inf"} 0
latency_seconds_sum{path="/x"} 0
latency_seconds_count{path="/x"} 0
# HELP old_jobs Help of old_jobs.
# TYPE old_jobs counter
old_jobs 5
# HELP size_bytes Help of size_bytes.
# TYPE size_bytes summary
size_bytes{path="/",quantile="0.5"} 0.25
size_bytes{path="/",quantile="1.0"} 2
size_bytes_sum{path="/"} 10.5
size_bytes_count{path="/"} 7
size_bytes_sum{path="/x"} 0
size_bytes_count{path="/x"} 0
# HELP temperature Help of temperature.
# TYPE temperature gauge
temperature{room="b"} +Inf
temperature{room="c"} NaN
temperature{room="d"} -0
temperature{room="e"} 1e+300
temperature{room="ä"} -0.5
# HELP whatever Help of whatever.
# TYPE whatever untyped
whatever 42
`},
		{"openmetrics", Format{Kind: OpenMetrics100}, everything(), `# HELP jobs A \"job\", done\\failed\nor not.
# TYPE jobs counter
jobs_total{host="a",queue="hi\"gh\\\n"} 1000000
jobs_total{host="a",queue="low"} 3
# HELP latency_seconds Help of latency_seconds.
# TYPE latency_seconds histogram
latency_seconds_bucket{path="/",le="1.0"} 1
latency_seconds_bucket{path="/",le="2.5"} 2
latency_seconds_bucket{path="/",le="+Inf"} 4
latency_seconds_sum{path="/"} 7.5
latency_seconds_count{path="/"} 4
latency_seconds_bucket{path="/x",le="1.0"} 0
latency_seconds_bucket{path="/x",le="2.5"} 0
latency_seconds_bucket{path="/x",le="+Inf"} 0
latency_seconds_sum{path="/x"} 0
latency_seconds_count{path="/x"} 0
# HELP old_jobs Help of old_jobs.
# TYPE old_jobs unknown
old_jobs 5
# HELP size_bytes Help of size_bytes.
# TYPE size_bytes summary
size_bytes{path="/",quantile="0.5"} 0.25
size_bytes{path="/",quantile="1.0"} 2
size_bytes_sum{path="/"} 10.5
size_bytes_count{path="/"} 7
size_bytes_sum{path="/x"} 0
size_bytes_count{path="/x"} 0
# HELP temperature Help of temperature.
# TYPE temperature gauge
temperature{room="b"} +Inf
temperature{room="c"} NaN
temperature{room="d"} -0
temperature{room="e"} 1e+300
temperature{room="ä"} -0.5
# HELP whatever Help of whatever.
# TYPE whatever unknown
whatever 42
# EOF
`},
		{"json", Format{Kind: JSON}, everything(), `[{"name":"jobs_total","help":"A \"job\", done\\failed\nor not.","type":"COUNTER","metrics":[{"labels":{"host":"a","queue":"hi\"gh\\\n"},"value":"1000000"},{"labels":{"host":"a","queue":"low"},"value":"3"}]},
{"name":"latency_seconds","help":"Help of latency_seconds.","type":"HISTOGRAM","metrics":[{"labels":{"path":"/"},"buckets":{"1.0":"1","2.5":"2","+Inf":"4"},"sum":"7.5","count":"4"},{"labels":{"path":"/x"},"buckets":{"1.0":"0","2.5":"0","+Inf":"0"},"sum":"0","count":"0"}]},
{"name":"old_jobs","help":"Help of old_jobs.","type":"COUNTER","metrics":[{"value":"5"}]},
{"name":"size_bytes","help":"Help of size_bytes.","type":"SUMMARY","metrics":[{"labels":{"path":"/"},"quantiles":{"0.5":"0.25","1.0":"2"},"sum":"10.5","count":"7"},{"labels":{"path":"/x"},"sum":"0","count":"0"}]},
{"name":"temperature","help":"Help of temperature.","type":"GAUGE","metrics":[{"labels":{"room":"b"},"value":"+Inf"},{"labels":{"room":"c"},"value":"NaN"},{"labels":{"room":"d"},"value":"-0"},{"labels":{"room":"e"},"value":"1e+300"},{"labels":{"room":"ä"},"value":"-0.5"}]},
{"name":"whatever","help":"Help of whatever.","type":"UNTYPED","metrics":[{"value":"42"}]}]
`},
		{"quoted_names", Format{Text100, AllowUTF8}, dotted(), `# HELP "my.jobs_total" h
# TYPE "my.jobs_total" counter
{"my.jobs_total","queue.name"="a_b"} 1
{"my.jobs_total","queue.name"="z"} 2
# HELP "my.latency" h
# TYPE "my.latency" histogram
{"my.latency_bucket",le="+Inf"} 3
{"my.latency_sum"} 1
{"my.latency_count"} 3
# HELP "my.load" h
# TYPE "my.load" gauge
{"my.load"} 1
`},
		{"quoted_names_openmetrics", Format{OpenMetrics100, AllowUTF8}, dotted(), `# HELP "my.jobs" h
# TYPE "my.jobs" counter
{"my.jobs_total","queue.name"="a_b"} 1
{"my.jobs_total","queue.name"="z"} 2
# HELP "my.latency" h
# TYPE "my.latency" histogram
{"my.latency_bucket",le="+Inf"} 3
{"my.latency_sum"} 1
{"my.latency_count"} 3
# HELP "my.load" h
# TYPE "my.load" gauge
{"my.load"} 1
# EOF
`},
		{"underscores", Format{Text100, Underscores}, dotted(), `# HELP my_jobs_total h
# TYPE my_jobs_total counter
my_jobs_total{queue_name="a_b"} 1
my_jobs_total{queue_name="z"} 2
# HELP my_latency h
# TYPE my_latency histogram
my_latency_bucket{le="+Inf"} 3
my_latency_sum 1
my_latency_count 3
# HELP my_load h
# TYPE my_load gauge
my_load 1
`},
		{"dots", Format{Text100, Dots}, dotted(), `# HELP my_dot_jobs__total h
# TYPE my_dot_jobs__total counter
my_dot_jobs__total{queue_dot_name="a_b"} 1
my_dot_jobs__total{queue_dot_name="z"} 2
# HELP my_dot_latency h
# TYPE my_dot_latency histogram
my_dot_latency_bucket{le="+Inf"} 3
my_dot_latency_sum 1
my_dot_latency_count 3
# HELP my_dot_load h
# TYPE my_dot_load gauge
my_dot_load 1
`},
		{"values_openmetrics", Format{OpenMetrics100, Values}, dotted(), `# HELP U__my_2e_jobs_ h
# TYPE U__my_2e_jobs_ counter
U__my_2e_jobs__total{U__queue_2e_name="a_b"} 1
U__my_2e_jobs__total{U__queue_2e_name="z"} 2
# HELP U__my_2e_latency h
# TYPE U__my_2e_latency histogram
U__my_2e_latency_bucket{le="+Inf"} 3
U__my_2e_latency_sum 1
U__my_2e_latency_count 3
# HELP U__my_2e_load h
# TYPE U__my_2e_load gauge
U__my_2e_load 1
# EOF
`},
		{"absent_values", Format{}, sparse(), `# HELP some_unset h
# TYPE some_unset gauge
some_unset{a="2"} NaN
some_unset{a="3"} 3
`},
		{"absent_values_json", Format{Kind: JSON}, sparse(), `[{"name":"some_unset","help":"h","type":"GAUGE","metrics":[{"labels":{"a":"2"},"value":"NaN"},{"labels":{"a":"3"},"value":"3"}]}]
`},
		{"counter_of_old_and_new_clients", Format{}, snapshot(fam{name: "jobs", typ: metric.Counter, help: "h", metrics: []met{
			total(1, "q", "a"), value(2, "q", "b"),
		}}), `# HELP jobs_total h
# TYPE jobs_total counter
jobs_total{q="a"} 1
# HELP jobs h
# TYPE jobs counter
jobs{q="b"} 2
`},
		{
			"counter_of_old_and_new_clients_openmetrics",
			Format{Kind: OpenMetrics100},
			snapshot(fam{name: "jobs", typ: metric.Counter, help: "h", metrics: []met{
				total(1, "q", "a"), value(2, "q", "b"),
			}}), `# HELP jobs_total h
# TYPE jobs_total unknown
jobs_total{q="a"} 1
# HELP jobs h
# TYPE jobs unknown
jobs{q="b"} 2
# EOF
`,
		},
		{"not_utf8", Format{}, snapshot(fam{name: "g", typ: metric.Gauge, help: "a\xffb\x00", metrics: []met{
			value(1, "l", "x\xff\xfey"), value(2, "l", "nul\x00"),
		}}), "# HELP g a\ufffdb\x00\n# TYPE g gauge\ng{l=\"nul\x00\"} 2\ng{l=\"x\ufffd\ufffdy\"} 1\n"},
		{"empty_text", Format{}, snapshot(), ""},
		{"empty_openmetrics", Format{Kind: OpenMetrics001}, snapshot(), "# EOF\n"},
		{"empty_protobuf", Format{Kind: Protobuf}, snapshot(), ""},
		{"empty_json", Format{Kind: JSON}, snapshot(), "[]\n"},
		{"no_snapshot", Format{Kind: OpenMetrics100}, nil, "# EOF\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var snaps []*view.Snapshot
			if test.snap != nil {
				snaps = append(snaps, test.snap)
			}
			got, _ := encode(test.format, snaps...)
			if got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}
