package output

import (
	"hash/maphash"
	"math"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protowire"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// The messages of remote write, as far as they are written here. Those of 1.0 are
// prometheus.WriteRequest, those of 2.0 io.prometheus.write.v2.Request:
//
//	1.0  WriteRequest     timeseries = 1, metadata = 3
//	     TimeSeries       labels = 1 (name = 1, value = 2), samples = 2
//	     Sample           value = 1, timestamp = 2
//	     MetricMetadata   type = 1, metric_family_name = 2, help = 4, unit = 5
//	2.0  Request          symbols = 4, timeseries = 5
//	     TimeSeries       labels_refs = 1, samples = 2, metadata = 5, created_timestamp = 6
//	     Sample           value = 1, timestamp = 2, start_timestamp = 3
//	     Metadata         type = 1, help_ref = 3, unit_ref = 4
//
// The start of a series was created_timestamp first, and is start_timestamp in the
// specification as it is now. Receivers pass over what they do not know, so both are written.
const (
	rw1Series   = 1<<3 | byte(protowire.BytesType)
	rw1Label    = 1<<3 | byte(protowire.BytesType)
	rw1Metadata = 3<<3 | byte(protowire.BytesType)
	rw2Symbol   = 4<<3 | byte(protowire.BytesType)
	rw2Series   = 5<<3 | byte(protowire.BytesType)
	rw2Refs     = 1<<3 | byte(protowire.BytesType)
	rw2Metadata = 5<<3 | byte(protowire.BytesType)
	rw2Created  = 6<<3 | byte(protowire.VarintType)
	rwSamples   = 2<<3 | byte(protowire.BytesType)
	rwValue     = 1<<3 | byte(protowire.Fixed64Type)
	rwTimestamp = 2<<3 | byte(protowire.VarintType)
	rw2Start    = 3<<3 | byte(protowire.VarintType)
)

// rwType is the type of a family in the metadata of both versions.
var rwType = [...]byte{metric.Unknown: 0, metric.Counter: 1, metric.Gauge: 2, metric.Histogram: 3, metric.Summary: 5}

// rwLayout is what is made of a layout: for each value, the beginning of its time series.
type rwLayout struct {
	layout *view.Layout
	chunks []rwChunk
	// hashes tell the series of values apart; 0 is one that cannot be sent.
	hashes []uint64
	// sent says which series the receiver has, and has no marker of the end for.
	sent []bool
	// gaps says that values may be absent.
	gaps bool
	// leftOut is how many series cannot be sent.
	leftOut int
}

// rwChunk is the values of a layout from first to last, which go into one request.
type rwChunk struct {
	first, last int
	// head is what comes once: symbols, or metadata.
	head []byte
	// blob has what stays the same of each time series; ends say where each ends. An empty one
	// is not sent.
	blob []byte
	ends []uint32
}

// render makes the chunks of a layout.
func (r *remoteWrite) render(l *view.Layout) *rwLayout {
	out := &rwLayout{
		layout: l, hashes: make([]uint64, 0, l.Points), sent: make([]bool, l.Points),
		gaps: slices.ContainsFunc(l.Families, func(f view.Family) bool { return f.Sparse }),
	}
	var b rwBuilder
	var h maphash.Hash
	h.SetSeed(r.seed)
	seen := make(map[uint64]struct{}, l.Points)
	first, v := 0, 0
	var spelled []metric.Label
	eachSample(l, func(family int, name string, labels []metric.Label) {
		var ok bool
		spelled, ok = spellSeries(spelled[:0], name, labels, r.v2)
		hash := uint64(0)
		if ok {
			hash = hashLabels(&h, spelled)
			_, ok = seen[hash]
			ok = !ok
		}
		if ok {
			seen[hash] = struct{}{}
			b.add(spelled, &l.Families[family], r.v2)
		} else {
			hash = 0
			out.leftOut++
			b.skip()
		}
		out.hashes = append(out.hashes, hash)
		v++
		if v-first == r.perSend {
			out.chunks = append(out.chunks, b.finish(first, v, r.v2))
			first, b = v, rwBuilder{}
		}
	})
	if v > first {
		out.chunks = append(out.chunks, b.finish(first, v, r.v2))
	}
	return out
}

func hashLabels(h *maphash.Hash, labels []metric.Label) uint64 {
	h.Reset()
	for _, l := range labels {
		h.WriteString(l.Name)
		h.WriteByte(0xff)
		h.WriteString(l.Value)
		h.WriteByte(0xff)
	}
	return max(h.Sum64(), 1)
}

// spellSeries appends the labels of a series as they are sent, the name among them, sorted by
// name. They are not ok if two get the same name, or one has none. Receivers of 1.0 know the
// classic names only; others are escaped as in text for scrapers that know no others.
func spellSeries(dst []metric.Label, name string, labels []metric.Label, utf8Names bool) (spelled []metric.Label, ok bool) {
	name = clean(name)
	if !utf8Names && !model.LegacyValidation.IsValidMetricName(name) {
		name = model.EscapeName(name, model.UnderscoreEscaping)
	}
	if name == "" {
		return dst, false
	}
	dst = append(dst, metric.Label{Name: model.MetricNameLabel, Value: name})
	for _, l := range labels {
		if l.Value == "" {
			continue // the same as no label
		}
		l = metric.Label{Name: clean(l.Name), Value: clean(l.Value)}
		if !utf8Names && !model.LegacyValidation.IsValidLabelName(l.Name) {
			l.Name = strings.ReplaceAll(model.EscapeName(l.Name, model.UnderscoreEscaping), ":", "_")
		}
		if l.Name == "" {
			return dst, false
		}
		dst = append(dst, l)
	}
	byName := func(a, b metric.Label) int { return strings.Compare(a.Name, b.Name) }
	if !slices.IsSortedFunc(dst, byName) {
		slices.SortFunc(dst, byName)
	}
	for i := 1; i < len(dst); i++ {
		if dst[i].Name == dst[i-1].Name {
			return dst, false
		}
	}
	return dst, true
}

// rwBuilder makes one chunk.
type rwBuilder struct {
	head, blob []byte
	ends       []uint32
	// symbols are the numbers of the texts of a message of 2.0.
	symbols map[string]uint32
	refs    []byte
	// family is the one that was added last.
	family *view.Family
	meta   []byte
}

func (b *rwBuilder) skip() { b.ends = append(b.ends, uint32(len(b.blob))) }

// add adds a time series. family is nil for one of which only the labels are known.
func (b *rwBuilder) add(labels []metric.Label, family *view.Family, v2 bool) {
	if v2 {
		b.add2(labels, family)
		return
	}
	if family != nil && family != b.family {
		b.family = family
		b.head = appendMetadata1(b.head, family)
	}
	for _, l := range labels {
		b.blob = append(b.blob, rw1Label)
		b.blob = protowire.AppendVarint(b.blob, uint64(2+protowire.SizeBytes(len(l.Name))+protowire.SizeBytes(len(l.Value))))
		b.blob = protowire.AppendString(append(b.blob, 1<<3|byte(protowire.BytesType)), l.Name)
		b.blob = protowire.AppendString(append(b.blob, 2<<3|byte(protowire.BytesType)), l.Value)
	}
	b.skip()
}

// headName is the name of a family in a TYPE line.
func headName(f *view.Family) string {
	if f.Type == metric.Counter && len(f.Metrics) > 0 && len(f.Metrics[0].Points) > 0 {
		return clean(f.Name + f.Metrics[0].Points[0].Kind.Suffix())
	}
	return clean(f.Name)
}

func appendMetadata1(dst []byte, f *view.Family) []byte {
	name, help := headName(f), clean(f.Help)
	if !model.LegacyValidation.IsValidMetricName(name) {
		name = model.EscapeName(name, model.UnderscoreEscaping)
	}
	size := 2 + 1 + protowire.SizeBytes(len(name)) + 1 + protowire.SizeBytes(len(help)) + 1 + protowire.SizeBytes(len(f.Unit))
	dst = append(dst, rw1Metadata)
	dst = protowire.AppendVarint(dst, uint64(size))
	dst = append(dst, 1<<3|byte(protowire.VarintType), rwType[f.Type])
	dst = protowire.AppendString(append(dst, 2<<3|byte(protowire.BytesType)), name)
	dst = protowire.AppendString(append(dst, 4<<3|byte(protowire.BytesType)), help)
	return protowire.AppendString(append(dst, 5<<3|byte(protowire.BytesType)), f.Unit)
}

func (b *rwBuilder) symbol(text string) uint32 {
	if b.symbols == nil {
		b.symbols = map[string]uint32{"": 0}
		b.head = protowire.AppendString(append(b.head, rw2Symbol), "") // the first is the empty one
	}
	ref, ok := b.symbols[text]
	if !ok {
		ref = uint32(len(b.symbols))
		b.symbols[text] = ref
		b.head = protowire.AppendString(append(b.head, rw2Symbol), text)
	}
	return ref
}

func (b *rwBuilder) add2(labels []metric.Label, family *view.Family) {
	b.refs = b.refs[:0]
	for _, l := range labels {
		b.refs = protowire.AppendVarint(b.refs, uint64(b.symbol(l.Name)))
		b.refs = protowire.AppendVarint(b.refs, uint64(b.symbol(l.Value)))
	}
	b.blob = protowire.AppendBytes(append(b.blob, rw2Refs), b.refs)
	if family != nil {
		if family != b.family {
			b.family = family
			b.meta = append(b.meta[:0], 1<<3|byte(protowire.VarintType), rwType[family.Type])
			b.meta = protowire.AppendVarint(append(b.meta, 3<<3|byte(protowire.VarintType)), uint64(b.symbol(clean(family.Help))))
			b.meta = protowire.AppendVarint(append(b.meta, 4<<3|byte(protowire.VarintType)), uint64(b.symbol(clean(family.Unit))))
		}
		b.blob = protowire.AppendBytes(append(b.blob, rw2Metadata), b.meta)
	}
	b.skip()
}

func (b *rwBuilder) finish(first, last int, v2 bool) rwChunk {
	if v2 {
		b.symbol("")
	}
	return rwChunk{first: first, last: last, head: b.head, blob: b.blob, ends: b.ends}
}

// append appends a request with the values of the chunk, of those of the layout, and returns
// how many it has. The loop must not allocate.
func (c *rwChunk) append(dst []byte, v2 bool, at int64, values []float64, starts []int64) ([]byte, int) {
	dst = append(dst, c.head...)
	series := rw1Series
	if v2 {
		series = rw2Series
	}
	sampleSize := 1 + 8 + 1 + protowire.SizeVarint(uint64(at))
	n, begin := 0, uint32(0)
	for i, end := range c.ends {
		v := c.first + i
		value := values[v]
		same := c.blob[begin:end]
		begin = end
		if len(same) == 0 || view.IsAbsent(value) {
			continue
		}
		n++
		start, startSize := int64(0), 0
		if v2 && len(starts) > 0 && starts[v] > 0 {
			start = starts[v]
			startSize = 1 + protowire.SizeVarint(uint64(start))
		}
		dst = append(dst, series)
		dst = protowire.AppendVarint(dst, uint64(len(same)+1+1+sampleSize+startSize+startSize))
		dst = append(dst, same...)
		dst = append(dst, rwSamples, byte(sampleSize+startSize), rwValue)
		dst = protowire.AppendFixed64(dst, math.Float64bits(value))
		dst = protowire.AppendVarint(append(dst, rwTimestamp), uint64(at))
		if startSize > 0 {
			dst = protowire.AppendVarint(append(dst, rw2Start), uint64(start))
			dst = protowire.AppendVarint(append(dst, rw2Created), uint64(start))
		}
	}
	return dst, n
}
