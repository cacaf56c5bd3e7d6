package exposition

import (
	"math"

	"google.golang.org/protobuf/encoding/protowire"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// The messages of io/prometheus/client/metrics.proto (prometheus/client_model), as far
// as they are written here:
//
//	MetricFamily  name = 1, help = 2, type = 3, metric = 4, unit = 5
//	Metric        label = 1, gauge = 2, counter = 3, summary = 4, untyped = 5, histogram = 7
//	LabelPair     name = 1, value = 2
//	Gauge, Untyped   value = 1
//	Counter       value = 1, created_timestamp = 3
//	Summary       sample_count = 1, sample_sum = 2, quantile = 3, created_timestamp = 4
//	Quantile      quantile = 1, value = 2
//	Histogram     sample_count = 1, sample_sum = 2, bucket = 3, sample_count_float = 4,
//	              created_timestamp = 15
//	Bucket        cumulative_count = 1, upper_bound = 2, cumulative_count_float = 4
//	Timestamp     seconds = 1, nanos = 2 (google/protobuf/timestamp.proto)
//
// Every field number is below 16, so every tag is one byte.
const (
	tagName       = 1<<3 | byte(protowire.BytesType)
	tagHelp       = 2<<3 | byte(protowire.BytesType)
	tagType       = 3<<3 | byte(protowire.VarintType)
	tagUnit       = 5<<3 | byte(protowire.BytesType)
	tagMetric     = 4<<3 | byte(protowire.BytesType)
	tagLabel      = 1<<3 | byte(protowire.BytesType)
	tagLabelName  = 1<<3 | byte(protowire.BytesType)
	tagLabelValue = 2<<3 | byte(protowire.BytesType)
	tagValue      = 1<<3 | byte(protowire.Fixed64Type)

	tagCount      = 1<<3 | byte(protowire.VarintType)
	tagSum        = 2<<3 | byte(protowire.Fixed64Type)
	tagEach       = 3<<3 | byte(protowire.BytesType) // a bucket or a quantile
	tagCountFloat = 4<<3 | byte(protowire.Fixed64Type)
	tagUpperBound = 2<<3 | byte(protowire.Fixed64Type)
	tagQuantile   = 1<<3 | byte(protowire.Fixed64Type)
	tagQuantileIs = 2<<3 | byte(protowire.Fixed64Type)

	tagSeconds = 1<<3 | byte(protowire.VarintType)
	tagNanos   = 2<<3 | byte(protowire.VarintType)

	// doubleSize is a tag and a double.
	doubleSize = 1 + 8
)

// kindOf holds, for each metric type, its value in the enum MetricType, the field of Metric that
// holds its points, and the field in there that says since when it counts, if there is one.
var kindOf = [...]struct {
	enum, field, created byte
}{
	metric.Counter:   {0, 3, 3},
	metric.Gauge:     {1, 2, 0},
	metric.Summary:   {2, 4, 4},
	metric.Unknown:   {3, 5, 0},
	metric.Histogram: {4, 7, 15},
}

func appendProtobufHeader(dst []byte, s *section, fam *view.Family) []byte {
	dst = append(dst, tagName)
	dst = protowire.AppendString(dst, s.head)
	dst = append(dst, tagHelp)
	dst = protowire.AppendString(dst, clean(fam.Help))
	// A counter has its unit before the _total that its name ends in here.
	if unitFits(s.base, fam.Unit) {
		dst = append(dst, tagUnit)
		dst = protowire.AppendString(dst, fam.Unit)
	}
	return append(dst, tagType, kindOf[s.typ].enum)
}

// appendProtobufLabels appends the part of a Metric that holds its labels, and before it
// the tag that begins a Metric in its family: a prefix must not be empty.
func appendProtobufLabels(dst []byte, labels []metric.Label) []byte {
	dst = append(dst, tagMetric)
	for _, l := range labels {
		dst = append(dst, tagLabel)
		dst = protowire.AppendVarint(dst, uint64(2+protowire.SizeBytes(len(l.Name))+protowire.SizeBytes(len(l.Value))))
		dst = append(dst, tagLabelName)
		dst = protowire.AppendString(dst, l.Name)
		dst = append(dst, tagLabelValue)
		dst = protowire.AppendString(dst, l.Value)
	}
	return dst
}

// appendProtobuf appends a section as one delimited MetricFamily. Lengths come before
// what they measure, so it looks at the values twice: once to add up the size, once to
// append. Neither allocates. starts may be empty.
func (v *rendered) appendProtobuf(dst []byte, s *section, values []float64, starts []int64) []byte {
	fam := &v.layout.Families[s.family]
	headerSize := s.first
	size := headerSize
	start, at := uint32(0), 0
	for i := range fam.Metrics {
		points := fam.Metrics[i].Points
		if m := measure(s, points, values[at:], startAt(starts, at)); start != s.ends[i] && m.shown {
			size += 1 + protowire.SizeBytes(int(s.ends[i]-start)-1+m.fieldSize())
		}
		start = s.ends[i]
		at += len(points)
	}
	if size == headerSize {
		return dst
	}
	dst = protowire.AppendVarint(dst, uint64(size))
	dst = append(dst, s.blob[:s.first]...)
	prefixes := s.blob[s.first:]
	start, at = 0, 0
	for i := range fam.Metrics {
		points := fam.Metrics[i].Points
		if m := measure(s, points, values[at:], startAt(starts, at)); start != s.ends[i] && m.shown {
			labels := prefixes[start+1 : s.ends[i]]
			dst = append(dst, tagMetric)
			dst = protowire.AppendVarint(dst, uint64(len(labels)+m.fieldSize()))
			dst = append(dst, labels...)
			dst = m.append(dst, s, points, values[at:])
		}
		start = s.ends[i]
		at += len(points)
	}
	return dst
}

// A measured is what must be known of a metric's points before they are appended.
type measured struct {
	// shown says that there is a value to serve.
	shown bool
	// floats says that some count is no uint64, so that the histogram's are all written
	// as floats.
	floats bool
	// start is since when the points count, in Unix milliseconds; 0: that is not said.
	start int64
	// size is the size of the message that holds the points, without its tag and length.
	size int
}

// fieldSize is the size of that message as a field.
func (m measured) fieldSize() int { return 1 + protowire.SizeBytes(m.size) }

// measure looks at the points of a metric that a section shows. Absent values are left
// out, as are +Inf buckets: the sample count says the same, and client_golang writes none.
func measure(s *section, points []view.Point, values []float64, start int64) measured {
	var m measured
	if start > 0 && kindOf[s.typ].created != 0 {
		m.start = start
		m.size = 1 + protowire.SizeBytes(timestampSize(start))
	}
	if s.typ == metric.Histogram {
		for i, p := range points {
			if (p.Kind == view.Bucket || p.Kind == view.Count) && !view.IsAbsent(values[i]) {
				if _, ok := integral(values[i]); !ok {
					m.floats = true
				}
			}
		}
	}
	for i, p := range points {
		if !showable(p, s.kinds) || view.IsAbsent(values[i]) {
			continue
		}
		switch p.Kind {
		case view.Value, view.Total, view.Sum:
			m.size += doubleSize
		case view.Count:
			m.size += m.countSize(values[i])
		case view.Bucket:
			if !math.IsInf(p.Bound, 1) {
				m.size += 1 + protowire.SizeBytes(m.countSize(values[i])+doubleSize)
			}
		case view.Quantile:
			m.size += 1 + protowire.SizeBytes(2*doubleSize)
		}
		m.shown = true
	}
	return m
}

// append appends the message that holds a metric's points, as a field of Metric.
func (m measured) append(dst []byte, s *section, points []view.Point, values []float64) []byte {
	dst = append(dst, kindOf[s.typ].field<<3|byte(protowire.BytesType))
	dst = protowire.AppendVarint(dst, uint64(m.size))
	for i, p := range points {
		value := values[i]
		if !showable(p, s.kinds) || view.IsAbsent(value) {
			continue
		}
		switch p.Kind {
		case view.Value, view.Total:
			dst = appendDouble(dst, tagValue, value)
		case view.Sum:
			dst = appendDouble(dst, tagSum, value)
		case view.Count:
			dst = m.appendCount(dst, value)
		case view.Bucket:
			if !math.IsInf(p.Bound, 1) {
				dst = append(dst, tagEach)
				dst = protowire.AppendVarint(dst, uint64(m.countSize(value)+doubleSize))
				dst = m.appendCount(dst, value)
				dst = appendDouble(dst, tagUpperBound, p.Bound)
			}
		case view.Quantile:
			dst = append(dst, tagEach, 2*doubleSize)
			dst = appendDouble(dst, tagQuantile, p.Bound)
			dst = appendDouble(dst, tagQuantileIs, value)
		}
	}
	if m.start > 0 {
		dst = append(dst, kindOf[s.typ].created<<3|byte(protowire.BytesType))
		dst = protowire.AppendVarint(dst, uint64(timestampSize(m.start)))
		dst = protowire.AppendVarint(append(dst, tagSeconds), uint64(m.start/1000))
		if nanos := m.start % 1000 * 1e6; nanos != 0 {
			dst = protowire.AppendVarint(append(dst, tagNanos), uint64(nanos))
		}
	}
	return dst
}

// startAt returns the start of a value, 0 if there is none.
func startAt(starts []int64, at int) int64 {
	if at < len(starts) {
		return starts[at]
	}
	return 0
}

// timestampSize is the size of a Timestamp of so many milliseconds.
func timestampSize(milliseconds int64) int {
	n := 1 + protowire.SizeVarint(uint64(milliseconds/1000))
	if nanos := milliseconds % 1000 * 1e6; nanos != 0 {
		n += 1 + protowire.SizeVarint(uint64(nanos))
	}
	return n
}

// integral returns a count as the integer that it usually is. For what is none it
// returns the nearest below, for summaries, which have no other field.
func integral(f float64) (n uint64, ok bool) {
	switch {
	case !(f >= 0): // negative or NaN
		return 0, false
	case f >= 1<<64:
		return math.MaxUint64, false
	}
	n = uint64(f)
	return n, float64(n) == f
}

func (m measured) countSize(f float64) int {
	if m.floats {
		return doubleSize
	}
	n, _ := integral(f)
	return 1 + protowire.SizeVarint(n)
}

func (m measured) appendCount(dst []byte, f float64) []byte {
	if m.floats {
		return appendDouble(dst, tagCountFloat, f)
	}
	n, _ := integral(f)
	return protowire.AppendVarint(append(dst, tagCount), n)
}

func appendDouble(dst []byte, tag byte, f float64) []byte {
	return protowire.AppendFixed64(append(dst, tag), math.Float64bits(f))
}
