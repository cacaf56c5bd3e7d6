// Package expositiontest makes a directory that has everything at once that readers have
// stumbled over: clients of two languages and several versions, metrics whose names differ in a
// suffix only, names and labels outside the classic set, values that are hardly numbers. And it
// says what every reader must find in it.
package expositiontest

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// A Dialect is a client that writes files.
type Dialect struct {
	options store.WriterOptions
}

// The clients.
var (
	// Python is client_python 0.18 and later.
	Python = Dialect{}
	// OldPython is client_python 0.16.
	OldPython = Dialect{store.WriterOptions{Width: store.Narrow}}
	// Fork is the postmates fork.
	Fork = Dialect{store.WriterOptions{FirstBytes: 1 << 20, NoStamp: math.Inf(1)}}
	// Ruby is prometheus-client-mmap.
	Ruby = Dialect{store.WriterOptions{Width: store.Narrow, FirstBytes: 4096}}
)

// A File is a source file: its name, who writes it, and what is in it.
type File struct {
	Base    string
	Dialect Dialect
	Entries []Entry
}

// An Entry is a key, as bytes, and what is stored with it.
type Entry struct {
	Key          string
	Value, Stamp float64
}

// A Sample is one that readers must find.
type Sample struct {
	Name   string
	Labels []metric.Label // sorted by name
	Value  float64
}

// String is an unambiguous spelling of the sample. Any NaN is like any other, and zero has a sign.
func (s Sample) String() string {
	var b strings.Builder
	b.WriteString(strconv.Quote(s.Name))
	for _, l := range s.Labels {
		fmt.Fprintf(&b, " %q=%q", l.Name, l.Value)
	}
	fmt.Fprintf(&b, " %v", s.Value)
	return b.String()
}

// sample makes a sample; pairs are names and values of labels in turn.
func sample(name string, value float64, pairs ...string) Sample {
	s := Sample{Name: name, Value: value}
	for i := 0; i < len(pairs); i += 2 {
		s.Labels = append(s.Labels, metric.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	metric.SortLabels(s.Labels)
	return s
}

// Write makes the files in a directory, in order. Their writers are alive until close is called.
func Write(dir string, files []File) (end func() error, err error) {
	var writers []*store.Writer
	end = func() error {
		var errs []error
		for _, w := range writers {
			errs = append(errs, w.Close())
		}
		return errors.Join(errs...)
	}
	for _, f := range files {
		w, err := store.OpenWriter(filepath.Join(dir, f.Base), f.Dialect.options)
		if err != nil {
			return nil, errors.Join(err, end())
		}
		writers = append(writers, w)
		for _, e := range f.Entries {
			slot, err := w.Slot([]byte(e.Key))
			if err != nil {
				return nil, errors.Join(err, end())
			}
			w.Set(slot, e.Value, e.Stamp)
		}
	}
	return end, nil
}

var (
	negativeZero = math.Copysign(0, -1)
	third        = math.Nextafter(0.3, 1)
)

// Files is the directory that has everything at once.
var Files = []File{
	{"counter_11.db", Python, []Entry{
		// A counter, a gauge of its name, and what its name could be taken to claim.
		{`["jobs", "jobs_total", {"queue": "low"}, "Jobs done."]`, 3, 0},
		{`["jobs", "jobs_total", {"queue": "hi\"gh\\\n\r\tä\u2028"}, "Jobs done."]`, 4, 0},
		{`["orders", "orders_total", {}, "A \"help\", with\\all\nof it."]`, 5, 0},
		{`["orders_created", "orders_created_total", {}, "Not when orders was created."]`, 6, 0},
		{`["hits", "hits_total", {}, ""]`, 7, 0},
		{`["checkout_seconds_count", "checkout_seconds_count_total", {}, "Beside a histogram."]`, 8, 0},
		{`["size_bytes_sum", "size_bytes_sum_total", {}, "Beside a summary."]`, 9, 0},
		// Outside the classic set: alone, beside the name it becomes, becoming one name with
		// another, and becoming a reserved one.
		{`["http.server.requests", "http.server.requests_total", {"http.route": "/"}, "UTF-8."]`, 10, 0},
		{`["http_server_requests", "http_server_requests_total", {"http_route": "/"}, "Classic."]`, 11, 0},
		{`["cache.hits", "cache.hits_total", {}, "UTF-8."]`, 12, 0},
		{`["заказы", "заказы_total", {"国家": "DE"}, "UTF-8."]`, 13, 0},
		{`["заказы", "заказы_total", {"国家": "FR"}, "UTF-8."]`, 14, 0},
		{`["visits", "visits_total", {"国家": "DE", "user-id": "1", "user_id": "2", "a:b": "3"}, "Labels."]`, 15, 0},
		{`["clash", "clash_total", {"a-b": "1", "a.b": "2"}, "Labels that become one."]`, 16, 0},
		// Labels that a format has a use for, in types that have none.
		{`["steps", "steps_total", {"le": "1", "quantile": "x", "pid": "4"}, "Own labels."]`, 17, 0},
		{`["huge", "huge_total", {}, "More than whole numbers go."]`, 1e300, 0},
		{`["endless", "endless_total", {}, "Infinite."]`, math.Inf(1), 0},
		{`["unlabelled", "unlabelled_total", {"empty": ""}, "A label without a value is none."]`, 18, 0},
		{`["build_info", "build_info_total", {}, "A counter that looks like an info."]`, 19, 0},
		{`["fallen", "fallen_total", {}, "Somebody took away from it."]`, -20, 0},
	}},
	{"counter_12.db", Python, []Entry{
		{`["jobs", "jobs_total", {"queue": "low"}, "Jobs done."]`, 0.5, 0},
		{`["orders", "orders_total", {}, "A \"help\", with\\all\nof it."]`, 1e15, 0},
	}},
	{"gauge_max_11.db", Python, []Entry{
		{`["jobs", "jobs", {}, "Jobs now."]`, 21, 0},
		{`["orders_created", "orders_created", {}, "A gauge."]`, 22, 0},
		{`["checkout_seconds_created", "checkout_seconds_created", {}, "A gauge."]`, 23, 0},
		{`["checkout_seconds_max", "checkout_seconds_max", {}, "A gauge."]`, 24, 0},
		{`["checkout_seconds_total", "checkout_seconds_total", {}, "A gauge."]`, 25, 0},
		{`["size_bytes_bucket", "size_bytes_bucket", {}, "A gauge."]`, 26, 0},
		{`["lonely_bucket", "lonely_bucket", {"le": "5"}, "A gauge."]`, 27, 0},
		{`["lonely_count", "lonely_count", {}, "A gauge."]`, 28, 0},
		{`["app_info", "app_info", {"version": "1"}, "Like an info."]`, 1, 0},
		{`["app", "app", {}, "Beside it."]`, 29, 0},
		{`["target_info", "target_info", {"service.name": "shop"}, "An info of OpenTelemetry."]`, 1, 0},
		{`["queue.depth", "queue.depth", {}, "UTF-8."]`, 30, 0},
		{`["queue-depth", "queue-depth", {}, "UTF-8 that becomes the same."]`, 31, 0},
		{`["cache_hits", "cache_hits", {}, "What cache.hits becomes without its suffix."]`, 32, 0},
		{`["a:b:c", "a:b:c", {"quantile": "0.5"}, "A recording rule's name."]`, 33, 0},
		{`["owned", "owned", {"pid": "101"}, "Its own label pid."]`, 34, 0},
		{`["owned", "owned", {"pid": "102"}, "Its own label pid."]`, 35, 0},
		{`["special", "special", {"is": "nan"}, "Floats."]`, math.NaN(), 0},
		{`["special", "special", {"is": "inf"}, "Floats."]`, math.Inf(1), 0},
		{`["special", "special", {"is": "-inf"}, "Floats."]`, math.Inf(-1), 0},
		{`["special", "special", {"is": "-0"}, "Floats."]`, negativeZero, 0},
		{`["special", "special", {"is": "least"}, "Floats."]`, math.SmallestNonzeroFloat64, 0},
		{`["special", "special", {"is": "most"}, "Floats."]`, math.MaxFloat64, 0},
		{`["special", "special", {"is": "third"}, "Floats."]`, third, 0},
		{`["special", "special", {"is": "2^53+2"}, "Floats."]`, 1<<53 + 2, 0},
	}},
	{"gauge_all_11.db", Python, []Entry{
		{`["rss_bytes", "rss_bytes", {"pid": "101"}, "Of a child."]`, 36, 0},
		{`["rss_bytes", "rss_bytes", {"pid": "102"}, "Of a child."]`, 37, 0},
		{`["plain", "plain", {}, ""]`, 38, 0},
	}},
	{"gauge_all_12.db", Python, []Entry{
		{`["rss_bytes", "rss_bytes", {"pid": "101", "exported_pid": "x"}, "Of a child."]`, 39, 0},
		{`["plain", "plain", {}, ""]`, 40, 0},
	}},
	{"gauge_mostrecent_11.db", Python, []Entry{
		{`["seen", "seen", {}, "Newer."]`, 41, 1700000002},
		{`["never", "never", {}, "Never set, and so not served."]`, 0, 0},
	}},
	{"gauge_mostrecent_12.db", Python, []Entry{{`["seen", "seen", {}, "Newer."]`, 42, 1700000001}}},
	{"histogram_11.db", Python, []Entry{
		{`["checkout_seconds", "checkout_seconds_sum", {}, "Time."]`, 7.5, 0},
		{`["checkout_seconds", "checkout_seconds_bucket", {"le": "0.25"}, "Time."]`, 1, 0},
		{`["checkout_seconds", "checkout_seconds_bucket", {"le": "1.0"}, "Time."]`, 2, 0},
		{`["checkout_seconds", "checkout_seconds_bucket", {"le": "+Inf"}, "Time."]`, 3, 0},
		// Another spelling of 1e10 in clients up to 0.25, and a bound of today's.
		{`["sent_bytes", "sent_bytes_sum", {"pid": "5"}, ""]`, 2e10, 0},
		{`["sent_bytes", "sent_bytes_bucket", {"pid": "5", "le": "1e+06"}, ""]`, 0, 0},
		{`["sent_bytes", "sent_bytes_bucket", {"pid": "5", "le": "1e+010"}, ""]`, 1, 0},
		{`["sent_bytes", "sent_bytes_bucket", {"pid": "5", "le": "+Inf"}, ""]`, 1, 0},
		{`["kept_bytes", "kept_bytes_sum", {}, ""]`, 2e10, 0},
		{`["kept_bytes", "kept_bytes_bucket", {"le": "1e+10"}, ""]`, 1, 0},
		{`["kept_bytes", "kept_bytes_bucket", {"le": "+Inf"}, ""]`, 1, 0},
		// What OpenMetrics has no histogram for: bounds and sums below zero.
		{`["drift", "drift_sum", {}, "Below zero."]`, -1.5, 0},
		{`["drift", "drift_bucket", {"le": "-1.0"}, "Below zero."]`, 1, 0},
		{`["drift", "drift_bucket", {"le": "0.0"}, "Below zero."]`, 0, 0},
		{`["drift", "drift_bucket", {"le": "+Inf"}, "Below zero."]`, 1, 0},
		{`["rpc.duration", "rpc.duration_sum", {"rpc.method": "x"}, "UTF-8."]`, 0.5, 0},
		{`["rpc.duration", "rpc.duration_bucket", {"rpc.method": "x", "le": "+Inf"}, "UTF-8."]`, 2, 0},
	}},
	{"histogram_13.db", OldPython, []Entry{
		{`["checkout_seconds", "checkout_seconds_sum", {}, "Time."]`, 0.5, 0},
		{`["checkout_seconds", "checkout_seconds_bucket", {"le": "0.5"}, "Time."]`, 1, 0},
		{`["checkout_seconds", "checkout_seconds_bucket", {"le": "+Inf"}, "Time."]`, 0, 0},
	}},
	{"summary_11.db", Python, []Entry{
		{`["size_bytes", "size_bytes_count", {"kind": "a"}, "Sizes."]`, 2, 0},
		{`["size_bytes", "size_bytes_sum", {"kind": "a"}, "Sizes."]`, 512, 0},
		{`["change", "change_count", {}, "Below zero."]`, 1, 0},
		{`["change", "change_sum", {}, "Below zero."]`, -3, 0},
	}},
	{"summary_13.db", OldPython, []Entry{
		{`["size_bytes", "size_bytes_count", {"kind": "a"}, "Sizes."]`, 1, 0},
		{`["size_bytes", "size_bytes_sum", {"kind": "a"}, "Sizes."]`, 0.5, 0},
	}},
	{"gauge_latest_14.db", Fork, []Entry{{`["forked", "forked", {"by": "postmates"}]`, 43, 1700000000}}},
	{"counter_7-0.db", Ruby, []Entry{
		// In the Ruby client a counter is called what it is given: with _total, without, or both.
		{`["logins","logins",["kind"],["web"]]`, 44, 0},
		{`["job","job",[],[]]`, 45, 0},
		{`["job_total","job_total",[],[]]`, 46, 0},
		{`["jobs_total","jobs_total",["queue"],["low"]]`, 1, 0},
		{`["connections_total","connections_total",[],[]]`, 47, 0},
		{`["lag_seconds_sum_total","lag_seconds_sum_total",[],[]]`, 48, 0},
	}},
	{"gauge_livesum_7-0.db", Ruby, []Entry{
		{`["connections","connections",[],[]]`, 49, 0},
		{`["ratio_total","ratio_total",[],[]]`, 0.5, 0},
	}},
	{"gauge_all_7-0.db", Ruby, []Entry{{`["threads","threads",["pid"],["9"]]`, 50, 0}}},
	{"histogram_7-0.db", Ruby, []Entry{
		// Its buckets are cumulative.
		{`["lag_seconds","lag_seconds_sum",["q"],["x"]]`, 12, 0},
		{`["lag_seconds","lag_seconds_count",["q"],["x"]]`, 4, 0},
		{`["lag_seconds","lag_seconds_bucket",["q","le"],["x","1"]]`, 1, 0},
		{`["lag_seconds","lag_seconds_bucket",["q","le"],["x","10000000000"]]`, 3, 0},
		{`["lag_seconds","lag_seconds_bucket",["q","le"],["x","+Inf"]]`, 4, 0},
	}},
}

// Samples is what every reader must find, under the names that the workers gave.
var Samples = []Sample{
	sample("jobs_total", 4.5, "queue", "low"),
	sample("jobs_total", 4, "queue", "hi\"gh\\\n\r\tä\u2028"),
	sample("orders_total", 1e15+5),
	sample("orders_created_total", 6),
	sample("hits_total", 7),
	sample("checkout_seconds_count_total", 8),
	sample("size_bytes_sum_total", 9),
	sample("http.server.requests_total", 10, "http.route", "/"),
	sample("http_server_requests_total", 11, "http_route", "/"),
	sample("cache.hits_total", 12),
	sample("заказы_total", 13, "国家", "DE"),
	sample("заказы_total", 14, "国家", "FR"),
	sample("visits_total", 15, "国家", "DE", "user-id", "1", "user_id", "2", "a:b", "3"),
	sample("clash_total", 16, "a-b", "1", "a.b", "2"),
	sample("steps_total", 17, "le", "1", "quantile", "x", "pid", "4"),
	sample("huge_total", 1e300),
	sample("endless_total", math.Inf(1)),
	sample("unlabelled_total", 18, "empty", ""),
	sample("build_info_total", 19),
	sample("fallen_total", -20),

	sample("jobs", 21),
	sample("orders_created", 22),
	sample("checkout_seconds_created", 23),
	sample("checkout_seconds_max", 24),
	sample("checkout_seconds_total", 25),
	sample("size_bytes_bucket", 26),
	sample("lonely_bucket", 27, "le", "5"),
	sample("lonely_count", 28),
	sample("app_info", 1, "version", "1"),
	sample("app", 29),
	sample("target_info", 1, "service.name", "shop"),
	sample("queue.depth", 30),
	sample("queue-depth", 31),
	sample("cache_hits", 32),
	sample("a:b:c", 33, "quantile", "0.5"),
	sample("owned", 34, "pid", "101"),
	sample("owned", 35, "pid", "102"),
	sample("special", math.NaN(), "is", "nan"),
	sample("special", math.Inf(1), "is", "inf"),
	sample("special", math.Inf(-1), "is", "-inf"),
	sample("special", negativeZero, "is", "-0"),
	sample("special", math.SmallestNonzeroFloat64, "is", "least"),
	sample("special", math.MaxFloat64, "is", "most"),
	sample("special", third, "is", "third"),
	sample("special", 1<<53+2, "is", "2^53+2"),

	sample("rss_bytes", 36, "exported_pid", "101", "pid", "11"),
	sample("rss_bytes", 37, "exported_pid", "102", "pid", "11"),
	sample("rss_bytes", 39, "exported_exported_pid", "101", "exported_pid", "x", "pid", "12"),
	sample("plain", 38, "pid", "11"),
	sample("plain", 40, "pid", "12"),
	sample("seen", 41),
	sample("forked", 43, "by", "postmates"),

	sample("checkout_seconds_bucket", 1, "le", "0.25"),
	sample("checkout_seconds_bucket", 2, "le", "0.5"),
	sample("checkout_seconds_bucket", 4, "le", "1.0"),
	sample("checkout_seconds_bucket", 7, "le", "+Inf"),
	sample("checkout_seconds_sum", 8),
	sample("checkout_seconds_count", 7),
	sample("sent_bytes_bucket", 0, "pid", "5", "le", "1e+06"),
	sample("sent_bytes_bucket", 1, "pid", "5", "le", "1e+010"),
	sample("sent_bytes_bucket", 2, "pid", "5", "le", "+Inf"),
	sample("sent_bytes_sum", 2e10, "pid", "5"),
	sample("sent_bytes_count", 2, "pid", "5"),
	sample("kept_bytes_bucket", 1, "le", "1e+10"),
	sample("kept_bytes_bucket", 2, "le", "+Inf"),
	sample("kept_bytes_sum", 2e10),
	sample("kept_bytes_count", 2),
	sample("drift_bucket", 1, "le", "-1.0"),
	sample("drift_bucket", 1, "le", "0.0"),
	sample("drift_bucket", 2, "le", "+Inf"),
	sample("drift_sum", -1.5),
	sample("drift_count", 2),
	sample("rpc.duration_bucket", 2, "rpc.method", "x", "le", "+Inf"),
	sample("rpc.duration_sum", 0.5, "rpc.method", "x"),
	sample("rpc.duration_count", 2, "rpc.method", "x"),
	sample("size_bytes_sum", 512.5, "kind", "a"),
	sample("size_bytes_count", 3, "kind", "a"),
	sample("change_sum", -3),
	sample("change_count", 1),

	sample("logins", 44, "kind", "web"),
	sample("job", 45),
	sample("job_total", 46),
	sample("connections_total", 47),
	sample("lag_seconds_sum_total", 48),
	sample("connections", 49),
	sample("ratio_total", 0.5),
	sample("threads", 50, "exported_pid", "9", "pid", "7"),
	sample("lag_seconds_bucket", 1, "q", "x", "le", "1.0"),
	sample("lag_seconds_bucket", 3, "q", "x", "le", "1e+10"),
	sample("lag_seconds_bucket", 4, "q", "x", "le", "+Inf"),
	sample("lag_seconds_sum", 12, "q", "x"),
	sample("lag_seconds_count", 4, "q", "x"),
}

// spellings are the names outside the classic set, as each escaping scheme spells them in this
// company. A name that would become another's, or a reserved one, has the spelling of scheme
// values.
var spellings = map[string]struct{ underscores, dots, values string }{
	"http.server.requests_total": {
		"U__http_2e_server_2e_requests__total", "http_dot_server_dot_requests__total",
		"U__http_2e_server_2e_requests__total",
	},
	"cache.hits_total": {"cache_hits_total", "cache_dot_hits__total", "U__cache_2e_hits__total"},
	"заказы_total": {
		"U___437__430__43a__430__437__44b___total", "U___437__430__43a__430__437__44b___total",
		"U___437__430__43a__430__437__44b___total",
	},
	"queue.depth":         {"U__queue_2e_depth", "queue_dot_depth", "U__queue_2e_depth"},
	"queue-depth":         {"U__queue_2d_depth", "queue__depth", "U__queue_2d_depth"},
	"rpc.duration_bucket": {"rpc_duration_bucket", "rpc_dot_duration_bucket", "U__rpc_2e_duration_bucket"},
	"rpc.duration_sum":    {"rpc_duration_sum", "rpc_dot_duration_sum", "U__rpc_2e_duration_sum"},
	"rpc.duration_count":  {"rpc_duration_count", "rpc_dot_duration_count", "U__rpc_2e_duration_count"},

	"http.route":   {"http_route", "http_dot_route", "U__http_2e_route"},
	"service.name": {"service_name", "service_dot_name", "U__service_2e_name"},
	"rpc.method":   {"rpc_method", "rpc_dot_method", "U__rpc_2e_method"},
	"国家":           {"U___56fd__5bb6_", "U___56fd__5bb6_", "U___56fd__5bb6_"},
	"user-id":      {"U__user_2d_id", "user__id", "U__user_2d_id"},
	"a:b":          {"a_b", "a__b", "U__a_3a_b"},
	"a-b":          {"U__a_2d_b", "a__b", "U__a_2d_b"},
	"a.b":          {"U__a_2e_b", "a_dot_b", "U__a_2e_b"},
}

// Spelled returns Samples as an escaping scheme spells them: underscores, dots, values or
// allow-utf-8.
func Spelled(scheme string) []Sample {
	spell := func(name string) string {
		s, ok := spellings[name]
		switch {
		case !ok:
		case scheme == "underscores":
			return s.underscores
		case scheme == "dots":
			return s.dots
		case scheme == "values":
			return s.values
		}
		return name
	}
	out := slices.Clone(Samples)
	for i := range out {
		s := &out[i]
		s.Name = spell(s.Name)
		s.Labels = slices.Clone(s.Labels)
		for k := range s.Labels {
			s.Labels[k].Name = spell(s.Labels[k].Name)
		}
		metric.SortLabels(s.Labels)
	}
	return out
}

// Differences lists what one list of samples has more often than the other, a line each.
func Differences(got, want []Sample) (lines []string) {
	count := map[string]int{}
	for _, s := range want {
		count[s.String()]--
	}
	for _, s := range got {
		count[s.String()]++
	}
	for _, line := range slices.Sorted(maps.Keys(count)) {
		switch n := count[line]; {
		case n < 0:
			lines = append(lines, "missing: "+line)
		case n > 0:
			lines = append(lines, "not expected: "+line)
		}
	}
	return lines
}
