package output

import (
	"math"
	"strings"

	"github.com/prometheus/otlptranslator"
	"google.golang.org/protobuf/encoding/protowire"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// The messages of opentelemetry/proto/metrics/v1, as far as they are written here:
//
//	Metric              name = 1, description = 2, unit = 3, gauge = 5, sum = 7, histogram = 9,
//	                    summary = 11
//	Gauge, Summary      data_points = 1
//	Sum, Histogram      data_points = 1, aggregation_temporality = 2 (2: cumulative);
//	                    Sum also is_monotonic = 3
//	NumberDataPoint     start_time_unix_nano = 2, time_unix_nano = 3, as_double = 4,
//	                    attributes = 7
//	HistogramDataPoint  start = 2, time = 3, count = 4, sum = 5, bucket_counts = 6,
//	                    explicit_bounds = 7, attributes = 9
//	SummaryDataPoint    start = 2, time = 3, count = 4, sum = 5, quantile_values = 6
//	                    (quantile = 1, value = 2), attributes = 7
//	KeyValue            key = 1, value = 2 (AnyValue, string_value = 1)
//
// Every field number is below 16, so every tag is one byte.
const (
	otlpStart    = 2<<3 | byte(protowire.Fixed64Type)
	otlpTime     = 3<<3 | byte(protowire.Fixed64Type)
	otlpDouble   = 4<<3 | byte(protowire.Fixed64Type)
	otlpCount    = 4<<3 | byte(protowire.Fixed64Type)
	otlpSum      = 5<<3 | byte(protowire.Fixed64Type)
	otlpBuckets  = 6<<3 | byte(protowire.BytesType)
	otlpBounds   = 7<<3 | byte(protowire.BytesType)
	otlpQuantile = 6<<3 | byte(protowire.BytesType)
	otlpPoint    = 1<<3 | byte(protowire.BytesType)
	otlpMetrics  = 2<<3 | byte(protowire.BytesType)
)

// otlpLayout is what is made of a layout: its metrics in OTLP.
type otlpLayout struct {
	layout  *view.Layout
	metrics []otlpMetric
}

func (l *otlpLayout) of() *view.Layout { return l.layout }

// otlpMetric is a family, or the metrics of a counter that have samples of one name.
type otlpMetric struct {
	// head is the encoded name, description and unit.
	head []byte
	typ  metric.Type
	// metrics are those of the family.
	metrics []otlpSeries
	// blob has their attributes.
	blob []byte
}

// otlpSeries is one data point: a metric of the view.
type otlpSeries struct {
	points     []view.Point
	first      int    // value of the layout
	begin, end uint32 // attributes in the blob
}

// appendAttribute appends a KeyValue as a field of some message.
func appendAttribute(dst []byte, num protowire.Number, name, value string) []byte {
	inner := 1 + protowire.SizeBytes(len(value)) // AnyValue
	size := 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeBytes(inner)
	dst = protowire.AppendTag(dst, num, protowire.BytesType)
	dst = protowire.AppendVarint(dst, uint64(size))
	dst = protowire.AppendString(append(dst, 1<<3|byte(protowire.BytesType)), name)
	dst = protowire.AppendVarint(append(dst, 2<<3|byte(protowire.BytesType)), uint64(inner))
	return protowire.AppendString(append(dst, 1<<3|byte(protowire.BytesType)), value)
}

func (t *otlp) render(l *view.Layout) *otlpLayout {
	out := &otlpLayout{layout: l}
	for i := range l.Families {
		f := &l.Families[i]
		kinds := []view.PointKind{view.Value}
		if f.Type == metric.Counter {
			kinds = []view.PointKind{view.Total, view.Value}
		}
		for _, kind := range kinds {
			m := otlpMetric{typ: f.Type}
			at := f.First
			number := protowire.Number(7)
			if f.Type == metric.Histogram {
				number = 9
			}
			for j := range f.Metrics {
				points := f.Metrics[j].Points
				s := otlpSeries{points: points, first: at, begin: uint32(len(m.blob))}
				at += len(points)
				if f.Type == metric.Counter && (len(points) == 0 || points[0].Kind != kind) {
					continue
				}
				for _, l := range f.Metrics[j].AllLabels() {
					if l.Value != "" {
						m.blob = appendAttribute(m.blob, number, clean(l.Name), clean(l.Value))
					}
				}
				s.end = uint32(len(m.blob))
				m.metrics = append(m.metrics, s)
			}
			if len(m.metrics) == 0 {
				continue
			}
			suffix := ""
			if f.Type == metric.Counter {
				suffix = kind.Suffix()
			}
			name, unit := otlpName(clean(f.Name+suffix), f.Type, t.spec.Names)
			m.head = protowire.AppendString(append(m.head, 1<<3|byte(protowire.BytesType)), name)
			if help := clean(f.Help); help != "" {
				m.head = protowire.AppendString(append(m.head, 2<<3|byte(protowire.BytesType)), help)
			}
			if unit != "" {
				m.head = protowire.AppendString(append(m.head, 3<<3|byte(protowire.BytesType)), unit)
			}
			out.metrics = append(out.metrics, m)
		}
	}
	return out
}

// append appends the metric with data points as a field of ScopeMetrics.
func (m *otlpMetric) append(dst, points []byte) []byte {
	field, tail := byte(5), []byte(nil) // gauge
	switch m.typ {
	case metric.Counter:
		field, tail = 7, []byte{2<<3 | byte(protowire.VarintType), 2, 3<<3 | byte(protowire.VarintType), 1}
	case metric.Histogram:
		field, tail = 9, []byte{2<<3 | byte(protowire.VarintType), 2}
	case metric.Summary:
		field = 11
	}
	inner := len(points) + len(tail)
	dst = append(dst, otlpMetrics)
	dst = protowire.AppendVarint(dst, uint64(len(m.head)+1+protowire.SizeBytes(inner)))
	dst = append(dst, m.head...)
	dst = protowire.AppendVarint(append(dst, field<<3|byte(protowire.BytesType)), uint64(inner))
	dst = append(dst, points...)
	return append(dst, tail...)
}

// appendPoints appends data points, from that of metric next on, until there are limit bytes,
// and at least one. It returns the metric that comes next, how many samples were written and
// how many OTLP has no way to say.
func (m *otlpMetric) appendPoints(dst []byte, next, limit int, at uint64, p *view.Snapshot) (out []byte, after, n, lost int) {
	for ; next < len(m.metrics); next++ {
		if n > 0 && len(dst) >= limit {
			break
		}
		s := &m.metrics[next]
		values := p.Values[s.first : s.first+len(s.points)]
		start := uint64(0)
		if m.typ.Counts() {
			start = startNano(p, s.first)
		}
		var written int
		switch m.typ {
		case metric.Histogram:
			dst, written = m.appendHistogram(dst, s, values, start, at)
		case metric.Summary:
			dst, written = m.appendSummary(dst, s, values, start, at)
		default:
			dst, written = m.appendNumber(dst, s, values, start, at)
		}
		n += written
		for _, v := range values {
			if !absent(v) {
				written--
			}
		}
		lost += max(-written, 0)
	}
	return dst, next, n, lost
}

func startSize(start uint64) int {
	if start == 0 {
		return 0
	}
	return 9
}

func appendTimes(dst []byte, start, at uint64) []byte {
	if start != 0 {
		dst = protowire.AppendFixed64(append(dst, otlpStart), start)
	}
	return protowire.AppendFixed64(append(dst, otlpTime), at)
}

func appendFloat(dst []byte, tag byte, f float64) []byte {
	return protowire.AppendFixed64(append(dst, tag), math.Float64bits(f))
}

func (m *otlpMetric) appendNumber(dst []byte, s *otlpSeries, values []float64, start, at uint64) ([]byte, int) {
	for i, p := range s.points {
		if p.Kind != view.Value && p.Kind != view.Total || absent(values[i]) {
			continue
		}
		attributes := m.blob[s.begin:s.end]
		dst = protowire.AppendVarint(append(dst, otlpPoint), uint64(len(attributes)+startSize(start)+9+9))
		dst = appendTimes(dst, start, at)
		dst = appendFloat(dst, otlpDouble, values[i])
		return append(dst, attributes...), 1
	}
	return dst, 0
}

// whole returns a count as the integer that OTLP wants. What is none, or too large to be told
// from its neighbours, cannot be said.
func whole(f float64) (uint64, bool) {
	if !(f >= 0 && f < 1<<64) {
		return 0, false
	}
	n := uint64(f)
	return n, float64(n) == f
}

func (m *otlpMetric) appendHistogram(dst []byte, s *otlpSeries, values []float64, start, at uint64) ([]byte, int) {
	buckets, hasSum, sum, count := 0, false, 0.0, uint64(0)
	before := uint64(0)
	for i, p := range s.points {
		switch p.Kind {
		case view.Bucket:
			n, ok := whole(values[i])
			if !ok || n < before || math.IsNaN(p.Bound) {
				return dst, 0
			}
			before, count = n, n
			buckets++
		case view.Sum:
			hasSum, sum = true, values[i]
		}
	}
	if buckets == 0 {
		return dst, 0
	}
	attributes := m.blob[s.begin:s.end]
	size := len(attributes) + startSize(start) + 9 + 9 + 1 + protowire.SizeBytes(8*buckets)
	if buckets > 1 {
		size += 1 + protowire.SizeBytes(8*(buckets-1))
	}
	if hasSum {
		size += 9
	}
	dst = protowire.AppendVarint(append(dst, otlpPoint), uint64(size))
	dst = appendTimes(dst, start, at)
	dst = protowire.AppendFixed64(append(dst, otlpCount), count)
	if hasSum {
		dst = appendFloat(dst, otlpSum, sum)
	}
	dst = protowire.AppendVarint(append(dst, otlpBuckets), uint64(8*buckets))
	before = 0
	for i, p := range s.points {
		if p.Kind == view.Bucket {
			n, _ := whole(values[i])
			dst = protowire.AppendFixed64(dst, n-before)
			before = n
		}
	}
	if buckets > 1 {
		dst = protowire.AppendVarint(append(dst, otlpBounds), uint64(8*(buckets-1)))
		for i, left := 0, buckets-1; left > 0; i++ { // the last bound is +Inf, and not written
			if s.points[i].Kind == view.Bucket {
				dst = protowire.AppendFixed64(dst, math.Float64bits(s.points[i].Bound))
				left--
			}
		}
	}
	return append(dst, attributes...), len(values)
}

func (m *otlpMetric) appendSummary(dst []byte, s *otlpSeries, values []float64, start, at uint64) ([]byte, int) {
	quantiles, sum, count, written := 0, 0.0, uint64(0), 0
	for i, p := range s.points {
		if absent(values[i]) {
			continue
		}
		written++
		switch p.Kind {
		case view.Quantile:
			quantiles++
		case view.Sum:
			sum = values[i]
		case view.Count:
			n, ok := whole(values[i])
			if !ok {
				return dst, 0
			}
			count = n
		}
	}
	if written == 0 {
		return dst, 0
	}
	attributes := m.blob[s.begin:s.end]
	size := len(attributes) + startSize(start) + 9 + 9 + 9 + quantiles*(2+18)
	dst = protowire.AppendVarint(append(dst, otlpPoint), uint64(size))
	dst = appendTimes(dst, start, at)
	dst = protowire.AppendFixed64(append(dst, otlpCount), count)
	dst = appendFloat(dst, otlpSum, sum)
	for i, p := range s.points {
		if p.Kind == view.Quantile && !absent(values[i]) {
			dst = append(dst, otlpQuantile, 18)
			dst = appendFloat(dst, 1<<3|byte(protowire.Fixed64Type), p.Bound)
			dst = appendFloat(dst, 2<<3|byte(protowire.Fixed64Type), values[i])
		}
	}
	return append(dst, attributes...), written
}

// units are the units that Prometheus' translation of OTLP knows, by the word that it makes of
// them; perUnits those of rates.
var (
	units = map[string]string{
		"days": "d", "hours": "h", "minutes": "min", "seconds": "s", "milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns",
		"bytes": "By", "kibibytes": "KiBy", "mebibytes": "MiBy", "gibibytes": "GiBy", "tibibytes": "TiBy",
		"kilobytes": "KBy", "megabytes": "MBy", "gigabytes": "GBy", "terabytes": "TBy",
		"meters": "m", "volts": "V", "amperes": "A", "joules": "J", "watts": "W", "grams": "g",
		"celsius": "Cel", "hertz": "Hz", "percent": "%",
	}
	perUnits = map[string]string{"second": "s", "minute": "m", "hour": "h", "day": "d", "week": "w", "month": "mo", "year": "y"}
)

var otlpTypes = [...]otlptranslator.MetricType{
	metric.Unknown: otlptranslator.MetricTypeGauge, metric.Counter: otlptranslator.MetricTypeMonotonicCounter,
	metric.Gauge: otlptranslator.MetricTypeGauge, metric.Histogram: otlptranslator.MetricTypeHistogram,
	metric.Summary: otlptranslator.MetricTypeSummary,
}

// namer is Prometheus' own translation, with its defaults.
var namer = otlptranslator.NewMetricNamer("", otlptranslator.UnderscoreEscapingWithSuffixes)

// otlpName returns the name and the unit of a metric that a scrape would call name. A unit is
// given, and with NamesOTel the name changed, only if Prometheus' translation of it is the
// name again.
func otlpName(name string, typ metric.Type, names Names) (string, string) {
	base := name
	if typ == metric.Counter {
		base = strings.TrimSuffix(name, "_total")
	}
	rest, unit := cutUnit(base, typ)
	back := func(try, unit string) bool {
		got, err := namer.Build(otlptranslator.Metric{Name: try, Unit: unit, Type: otlpTypes[typ]})
		return err == nil && got == name
	}
	if names == NamesOTel {
		if unit != "" && rest != "" && back(rest, unit) {
			return rest, unit
		}
		if base != "" && back(base, "") {
			return base, ""
		}
		return name, ""
	}
	if unit != "" && back(name, unit) {
		return name, unit
	}
	return name, ""
}

// cutUnit cuts the unit off a name.
func cutUnit(name string, typ metric.Type) (rest, unit string) {
	i := strings.LastIndexByte(name, '_')
	if i < 0 {
		return name, ""
	}
	rest, last := name[:i], name[i+1:]
	if u, ok := units[last]; ok {
		return rest, u
	}
	if last == "ratio" && typ == metric.Gauge {
		return rest, "1"
	}
	if per, ok := perUnits[last]; ok {
		if rest, ok := strings.CutSuffix(rest, "_per"); ok {
			rest, main := cutUnit(rest, metric.Unknown)
			if main != "" {
				return rest, main + "/" + per
			}
		}
	}
	return name, ""
}
