package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// family is one metric family as some parser or collector saw it.
type family struct {
	Type, Help string
	// Mode is the gauge mode, where the origin of the view knows it.
	Mode string
	// Samples maps a sample as seriesOf spells it to its value.
	Samples map[string]float64
}

// view is a merged view by family name; a counter's is without _total, as OpenMetrics has it.
type view map[string]*family

// seriesOf spells a sample name with its labels, sorted, so that it can be compared.
func seriesOf(name string, labels map[string]string) string {
	var b strings.Builder
	b.WriteString(name)
	for i, label := range slices.Sorted(maps.Keys(labels)) {
		if i == 0 {
			b.WriteByte('{')
		} else {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s=%q", label, labels[label])
	}
	if len(labels) > 0 {
		b.WriteByte('}')
	}
	return b.String()
}

// add puts one sample into the view; a second one of the same series is an error.
func (v view) add(name, typ, help, mode, series string, value float64) error {
	f := v[name]
	if f == nil {
		f = &family{Type: typ, Help: help, Mode: mode, Samples: map[string]float64{}}
		v[name] = f
	}
	if _, twice := f.Samples[series]; twice {
		return fmt.Errorf("%s is served twice", series)
	}
	f.Samples[series] = value
	return nil
}

// value returns the value of a series, or NaN when the view does not have it.
func (v view) value(name, series string) float64 {
	if f := v[name]; f != nil {
		if x, ok := f.Samples[series]; ok {
			return x
		}
	}
	return math.NaN()
}

// total adds up the samples of a family whose sample name is the one given.
func (v view) total(name, sample string) float64 {
	sum := 0.0
	if f := v[name]; f != nil {
		for series, x := range f.Samples {
			if got, _, _ := strings.Cut(series, "{"); got == sample {
				sum += x
			}
		}
	}
	return sum
}

// workers returns the view without the metrics that are the daemon's own or about processes.
func (v view) workers() view {
	own := maps.Clone(v)
	maps.DeleteFunc(own, func(name string, _ *family) bool {
		return strings.HasPrefix(name, "aggregatord_") || strings.HasPrefix(name, "process_") || name == "python_info" ||
			name == "ruby_info"
	})
	return own
}

// numericBounds returns the view with the bounds of buckets spelled in one way, for
// comparisons with a view that went through a parser that makes numbers of them.
func (v view) numericBounds() view {
	return v.mapBounds(func(spelled string) string {
		bound, err := strconv.ParseFloat(spelled, 64)
		if err != nil {
			return spelled
		}
		return strconv.FormatFloat(bound, 'g', -1, 64)
	})
}

var boundLabel = regexp.MustCompile(`([{,]le=")([^"\\]*)"`)

// mapBounds returns the view with every le replaced.
func (v view) mapBounds(respell func(string) string) view {
	out := make(view, len(v))
	for name, f := range v {
		g := *f
		if f.Type == "histogram" {
			g.Samples = make(map[string]float64, len(f.Samples))
			for series, x := range f.Samples {
				if sample, _, _ := strings.Cut(series, "{"); sample == name+"_bucket" {
					// No label value can look like this: its quotes are escaped.
					if at := boundLabel.FindStringSubmatchIndex(series); at != nil {
						series = series[:at[4]] + respell(series[at[4]:at[5]]) + series[at[5]:]
					}
				}
				g.Samples[series] = x
			}
		}
		out[name] = &g
	}
	return out
}

// parseText reads Prometheus text with the parser of prometheus/common.
func parseText(body []byte) (view, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("prometheus/common refuses the text: %w", err)
	}
	helps, err := readHelps(body)
	if err != nil {
		return nil, err
	}
	v := view{}
	for name, mf := range families {
		if mf.Help != nil {
			mf.Help = new(helps[name])
		}
		if err := v.addProto(mf); err != nil {
			return nil, err
		}
	}
	return v, nil
}

// readHelps reads the HELP lines of the text format. The parser of prometheus/common takes
// an escaped quote for a quote; the format escapes only backslashes and line feeds there, and
// the Python client's parser keeps the backslash.
func readHelps(body []byte) (map[string]string, error) {
	helps := map[string]string{}
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "# HELP ")
		if !ok {
			continue
		}
		name, escaped, _ := strings.Cut(rest, " ")
		var help strings.Builder
		for i := 0; i < len(escaped); i++ {
			if escaped[i] != '\\' {
				help.WriteByte(escaped[i])
				continue
			}
			switch i++; {
			case i < len(escaped) && escaped[i] == '\\':
				help.WriteByte('\\')
			case i < len(escaped) && escaped[i] == 'n':
				help.WriteByte('\n')
			default:
				return nil, fmt.Errorf("not an escape sequence of the text format at byte %d of %q", i, line)
			}
		}
		helps[name] = help.String()
	}
	return helps, nil
}

// parseProtobuf reads delimited protobuf with the decoder of prometheus/common.
func parseProtobuf(body []byte) (view, error) {
	dec := expfmt.NewDecoder(bytes.NewReader(body), expfmt.NewFormat(expfmt.TypeProtoDelim))
	v := view{}
	for {
		mf := new(dto.MetricFamily)
		if err := dec.Decode(mf); errors.Is(err, io.EOF) {
			return v, nil
		} else if err != nil {
			return nil, fmt.Errorf("prometheus/common refuses the protobuf: %w", err)
		}
		if _, twice := v[strings.TrimSuffix(mf.GetName(), "_total")]; twice {
			return nil, fmt.Errorf("family %s is served twice", mf.GetName())
		}
		if err := v.addProto(mf); err != nil {
			return nil, err
		}
	}
}

// addProto adds one family as prometheus/common represents it. Its bounds are numbers,
// spelled here as numericBounds does.
func (v view) addProto(mf *dto.MetricFamily) error {
	name, sample := mf.GetName(), mf.GetName()
	typ := map[dto.MetricType]string{
		dto.MetricType_COUNTER: "counter", dto.MetricType_GAUGE: "gauge", dto.MetricType_HISTOGRAM: "histogram",
		dto.MetricType_SUMMARY: "summary", dto.MetricType_UNTYPED: "unknown",
	}[mf.GetType()]
	if typ == "counter" {
		name = strings.TrimSuffix(name, "_total")
	}
	var errs []error
	for _, m := range mf.GetMetric() {
		if m.TimestampMs != nil && !strings.HasSuffix(name, "_latest") {
			errs = append(errs, fmt.Errorf("%s has a timestamp", name))
		}
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			if _, twice := labels[l.GetName()]; twice {
				errs = append(errs, fmt.Errorf("%s has label %s twice", name, l.GetName()))
			}
			labels[l.GetName()] = l.GetValue()
		}
		add := func(suffix, bound string, at float64, x float64) {
			all := labels
			if bound != "" {
				all = maps.Clone(labels)
				all[bound] = strconv.FormatFloat(at, 'g', -1, 64)
			}
			errs = append(errs, v.add(name, typ, mf.GetHelp(), "", seriesOf(sample+suffix, all), x))
		}
		switch {
		case m.Counter != nil:
			add("", "", 0, m.Counter.GetValue())
		case m.Gauge != nil:
			add("", "", 0, m.Gauge.GetValue())
		case m.Untyped != nil:
			add("", "", 0, m.Untyped.GetValue())
		case m.Summary != nil:
			for _, q := range m.Summary.GetQuantile() {
				add("", "quantile", q.GetQuantile(), q.GetValue())
			}
			add("_sum", "", 0, m.Summary.GetSampleSum())
			add("_count", "", 0, float64(m.Summary.GetSampleCount()))
		case m.Histogram != nil:
			infinite := false
			for _, b := range m.Histogram.GetBucket() {
				add("_bucket", "le", b.GetUpperBound(), float64(b.GetCumulativeCount()))
				infinite = infinite || math.IsInf(b.GetUpperBound(), 1)
			}
			if !infinite {
				// Optional in protobuf: it always equals the count.
				add("_bucket", "le", math.Inf(1), float64(m.Histogram.GetSampleCount()))
			}
			add("_sum", "", 0, m.Histogram.GetSampleSum())
			add("_count", "", 0, float64(m.Histogram.GetSampleCount()))
		}
	}
	return errors.Join(errs...)
}

// parsePython reads what collect.py and parse.py print.
func parsePython(out []byte) (view, error) {
	var families []struct {
		Name, Type, Help, Mode string
		Samples                [][3]json.RawMessage
	}
	if err := json.Unmarshal(out, &families); err != nil {
		return nil, fmt.Errorf("read the Python side's JSON: %w", err)
	}
	v := view{}
	for _, f := range families {
		for _, s := range f.Samples {
			var name, spelled string
			var labels map[string]string
			if err := errors.Join(json.Unmarshal(s[0], &name), json.Unmarshal(s[1], &labels), json.Unmarshal(s[2], &spelled)); err != nil {
				return nil, err
			}
			x, err := strconv.ParseFloat(spelled, 64)
			if err != nil {
				return nil, err
			}
			if err := v.add(f.Name, f.Type, f.Help, f.Mode, seriesOf(name, labels), x); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

// parseStrict reads OpenMetrics with the strict parser of the Python client.
func parseStrict(t *testing.T, body []byte) (view, error) {
	t.Helper()
	out, err := output(t.Context(), body, python(t, "prometheus_client"), app(t, "parse.py"), "openmetrics")
	if err != nil {
		return nil, err
	}
	return parsePython(out)
}

// collect runs the client's own collector on the directory; see collect.py for the flags.
func collect(t *testing.T, dir string, flags ...string) (view, error) {
	t.Helper()
	out, err := output(t.Context(), nil, python(t, "prometheus_client"), append([]string{app(t, "collect.py"), dir}, flags...)...)
	if err != nil {
		return nil, err
	}
	return parsePython(out)
}

// near says whether two values of a sum agree: float addition depends on the order.
func near(a, b float64) bool {
	return same(a, b) || math.Abs(a-b) <= 1e-12*max(math.Abs(a), math.Abs(b))
}

// same says whether two values are equal, where NaN equals NaN.
func same(a, b float64) bool { return a == b || (math.IsNaN(a) && math.IsNaN(b)) }

// differences lists in what got is not want, the daemon's own metrics left aside. What
// was added up may differ in the last bits, and where the client's sum is not a number, ours is
// that of the numbers: one NaN must not spoil a total for ever. Everything else must be equal.
func differences(want, got view) error {
	var diffs []string
	diff := func(format string, args ...any) { diffs = append(diffs, fmt.Sprintf(format, args...)) }
	got = got.workers()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		w, g := want[name], got[name]
		if g == nil {
			diff("family %s is missing", name)
			continue
		}
		if w.Type != g.Type {
			diff("family %s: type %s, want %s", name, g.Type, w.Type)
		}
		if w.Help != g.Help {
			diff("family %s: help %q, want %q", name, g.Help, w.Help)
		}
		added := w.Type != "gauge" || strings.HasSuffix(w.Mode, "sum") || strings.HasSuffix(name, "sum")
		for _, series := range slices.Sorted(maps.Keys(w.Samples)) {
			x := w.Samples[series]
			sample, _, _ := strings.Cut(series, "{")
			y, ok := g.Samples[series]
			counts := w.Type != "counter" && (sample == name+"_bucket" || sample == name+"_count")
			switch {
			case !ok:
				diff("%s is missing, want %v", series, x)
			case added && !counts && math.IsNaN(x):
			case added && !counts && !near(x, y), (!added || counts) && !same(x, y):
				diff("%s is %v, want %v", series, y, x)
			}
		}
		for _, series := range slices.Sorted(maps.Keys(g.Samples)) {
			if _, ok := w.Samples[series]; !ok {
				diff("%s is served (%v), but should not be", series, g.Samples[series])
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if want[name] == nil {
			diff("family %s is served, but should not be", name)
		}
	}
	if len(diffs) == 0 {
		return nil
	}
	more := ""
	if len(diffs) > 15 {
		more = fmt.Sprintf("\nand %d more", len(diffs)-15)
		diffs = diffs[:15]
	}
	return errors.New(strings.Join(diffs, "\n") + more)
}

// agree compares all that the daemon serves, in three formats, with the client's own
// collector; the flags are collect.py's.
func (d *daemon) agree(dir string, flags ...string) error {
	return d.agreeAs(dir, true, flags...)
}

// agreeAs is agree. When strict is false, OpenMetrics is left out: it has no place for a
// counter that is not a number, nor for a negative sum.
func (d *daemon) agreeAs(dir string, strict bool, flags ...string) error {
	want, err := collect(d.t, dir, flags...)
	if err != nil {
		return err
	}
	if len(want) == 0 {
		return errors.New("the client's collector finds nothing: the comparison would prove nothing")
	}
	for _, format := range []struct {
		name   string
		strict bool
		scrape func() (view, error)
		want   view
	}{
		{"text", false, d.text, want.numericBounds()},
		{"protobuf", false, d.protobuf, want.numericBounds()},
		{"OpenMetrics", true, d.openMetrics, want},
	} {
		if format.strict && !strict {
			continue
		}
		got, err := format.scrape()
		if err == nil {
			err = differences(format.want, got)
		}
		if err != nil {
			return fmt.Errorf("%s and the client's collector: %w", format.name, err)
		}
	}
	return nil
}
