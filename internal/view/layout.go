package view

import (
	"math"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

	"aggregatord/internal/metric"
)

// A Layout is the shape of the merged view: which families, metrics and points there
// are, in output order. It never changes once built, so any number of goroutines may
// read it for as long as they like; a reader may use its address as a version and
// cache what it renders from it.
//
// Families are sorted by name, then by type: a gauge jobs and a counter jobs, whose sample is
// jobs_total, share no sample and may both be there. No two families of a layout want the same
// name in a text format (see Family.Claims), and no two of one name have the same type.
//
// The metrics of a family are sorted by labels. Every point has one
// value in the Values of a Snapshot, in the same order: the points of the first metric
// of the first family, then those of its second metric, and so on.
type Layout struct {
	Families []Family
	// Points is the number of points, and so of values.
	Points int
}

// A Family is one metric family. Its names and labels may be any UTF-8 text: what a
// format cannot spell is escaped by the encoder.
type Family struct {
	// Name is the OpenMetrics family name: that of a counter has no _total.
	Name string
	Type metric.Type
	// Mode is the gauge mode in force, NoMode for the other types. Pools that disagree
	// show the mode of the first of them.
	Mode metric.Mode
	// Help is empty if the application gave an empty one.
	Help string
	// Shape says what a family of gauges is where a format has a word for more than gauges.
	Shape Shape
	// Unit is the OpenMetrics unit, empty for none. The name ends in it, after a _.
	Unit string
	// Rule is the name of the rule that is in force, empty if the workers alone decide, and
	// ModeByRule says that it sets the mode. Where pools have different rules, the first.
	Rule       string
	ModeByRule bool
	// Sparse says that some values of this family may be Absent. In all other families
	// every point has a value.
	Sparse  bool
	Metrics []Metric
	// First is the index of the family's first value in a Snapshot's Values, and Points
	// how many it has.
	First, Points int
}

// Shape says what a family of gauges is in OpenMetrics. In every other format it is a gauge,
// and in OpenMetrics too as long as its names or values are not what the shape asks for.
type Shape uint8

// The shapes.
const (
	// Plain is a gauge, and the shape of all families that are no gauges.
	Plain Shape = iota
	// Info is a family whose name ends in _info and whose values are 1.
	Info
	// StateSet is a family of states, as the clients' Enum writes it: each metric has a label
	// named like the family, and the value is 1 in the state that is on and 0 in the others.
	StateSet
)

var shapeNames = [...]string{Plain: "", Info: "info", StateSet: "stateset"}

// String returns the OpenMetrics name of the shape, "" for Plain.
func (s Shape) String() string {
	if int(s) < len(shapeNames) {
		return shapeNames[s]
	}
	return ""
}

// ParseShape returns the shape whose String is s, "" for Plain.
func ParseShape(s string) (Shape, bool) {
	i := slices.Index(shapeNames[:], s)
	return Shape(max(i, 0)), i >= 0
}

// A Metric is the points that share one set of labels (without le and quantile).
type Metric struct {
	// Labels are sorted by name; no name occurs twice.
	Labels []metric.Label
	// Extra are labels beside those, such as the name of the pool; sorted by name, and none
	// has a name that is in Labels. Metrics usually share one slice, so that what many pools
	// have in common is kept once. Read both through AllLabels or AppendLabels.
	Extra []metric.Label
	// Points holds buckets in rising order (+Inf last, and always there), then sum, then
	// count; quantiles, then sum and count; or one Total or Value. Metrics of a family
	// usually share one slice.
	Points []Point
}

// AllLabels returns Labels and Extra in one list, sorted by name. The caller must not change
// it: without Extra it is Labels itself.
func (m *Metric) AllLabels() []metric.Label {
	if len(m.Extra) == 0 {
		return m.Labels
	}
	return m.AppendLabels(make([]metric.Label, 0, len(m.Labels)+len(m.Extra)))
}

// AppendLabels appends Labels and Extra to dst, sorted by name.
func (m *Metric) AppendLabels(dst []metric.Label) []metric.Label {
	own := m.Labels
	for _, l := range m.Extra {
		for len(own) > 0 && own[0].Name < l.Name {
			dst, own = append(dst, own[0]), own[1:]
		}
		dst = append(dst, l)
	}
	return append(dst, own...)
}

// PointKind tells what a point is, and with that the end of its sample name.
type PointKind uint8

// The kinds of points.
const (
	// Value is the point of a gauge, or of a counter whose sample is named like its
	// family, without _total.
	Value PointKind = iota
	Total
	Bucket
	Quantile
	Sum
	Count
)

// Suffix is what the sample name has after the family name.
func (k PointKind) Suffix() string {
	return [...]string{Value: "", Total: "_total", Bucket: "_bucket", Quantile: "", Sum: "_sum", Count: "_count"}[k]
}

// A Point is one sample of a metric.
type Point struct {
	Kind PointKind
	// Style is how the writer spells Bound.
	Style metric.BoundStyle
	// Bound is the value of the label le of a Bucket, or quantile of a Quantile.
	Bound float64
}

// AppendBound appends Bound as the label le or quantile has it.
func (p Point) AppendBound(dst []byte) []byte { return p.Style.Append(dst, p.Bound) }

// BoundLabel is the name of the label that has Bound, empty if the point has none.
func (p Point) BoundLabel() string {
	switch p.Kind {
	case Bucket:
		return "le"
	case Quantile:
		return "quantile"
	}
	return ""
}

// A Snapshot is a layout and the values of one moment. Buckets are cumulative. It never
// changes until its last holder calls Release, after which nobody may touch its Values.
type Snapshot struct {
	Layout *Layout
	Values []float64
	// Newest says of each family of the layout, the greater the newer, how new what it is made
	// of is; empty: it is not known. It decides between families that want the same name: see
	// Joiner.
	Newest []int64
	// Starts says of each value since when it counts, in Unix milliseconds: 0 where that is not
	// known, or where the value does not count; empty: nobody has asked.
	Starts []int64

	holders atomic.Int32 // besides the first
	release func(*Snapshot)
}

// Retain adds a holder, who must call Release too. Only a holder may call it.
func (s *Snapshot) Retain() { s.holders.Add(1) }

// Release ends one holder's use; the last one's gives the memory back for a later
// snapshot. Forgetting it costs garbage, nothing else.
func (s *Snapshot) Release() {
	if s.holders.Add(-1) < 0 && s.release != nil {
		s.holders.Store(0)
		s.release(s)
	}
}

// absentBits is a NaN that no arithmetic makes and no client writes.
const absentBits = 0x7ff8_a66e_6a70_0001

// Absent is the value of a point that is not to be served: a gauge that keeps the most
// recent value and was never set, or one that has expired. It is a NaN; only IsAbsent tells it from another.
var Absent = math.Float64frombits(absentBits)

// IsAbsent reports whether v is Absent.
func IsAbsent(v float64) bool { return math.Float64bits(v) == absentBits }

// A Recycler makes snapshots out of the memory of released ones, of which it keeps a few. The zero
// value is ready for use, by any number of goroutines.
type Recycler struct {
	mu   sync.Mutex // guards free
	free []*Snapshot
}

// recycled is how many released snapshots a Recycler keeps at most.
const recycled = 3

func (r *Recycler) get() *Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.free)
	if n == 0 {
		return nil
	}
	s := r.free[n-1]
	r.free[n-1], r.free = nil, r.free[:n-1]
	return s
}

func (r *Recycler) put(s *Snapshot) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// One of a much larger layout than the last is not kept: there may be no such layout any more.
	if points := s.Layout.Points; len(r.free) < recycled && cap(s.Values) <= 4*points+1024 {
		r.free = append(r.free, s)
	}
	s.Layout = nil
}

// Take returns a snapshot of a layout with room for its values, which the caller fills
// before anybody else sees them. The caller is its first holder.
func (r *Recycler) Take(layout *Layout) *Snapshot {
	s := r.get()
	if s == nil {
		s = &Snapshot{release: r.put}
	}
	s.Layout, s.Newest, s.Starts = layout, s.Newest[:0], s.Starts[:0]
	s.Values = slices.Grow(s.Values[:0], layout.Points)[:layout.Points]
	return s
}

// mapped are snapshots that Map has made and nobody holds any more.
var mapped Recycler

// Map returns a snapshot of another layout, whose values are those of this one that from
// names, in its order; and releases this one.
func (s *Snapshot) Map(layout *Layout, from []uint32) *Snapshot {
	out := mapped.Take(layout)
	for i, at := range from {
		out.Values[i] = s.Values[at]
	}
	if len(s.Starts) > 0 {
		for _, at := range from {
			out.Starts = append(out.Starts, s.Starts[at])
		}
	}
	s.Release()
	return out
}

// A PointRef names one point of a layout: which family, which of its metrics and which of
// that metric's points.
type PointRef struct{ Family, Metric, Point int }

// RefAt returns the point that the value with an index is of.
func (l *Layout) RefAt(value int) PointRef {
	f := sort.Search(len(l.Families), func(i int) bool { return l.Families[i].First > value }) - 1
	at := l.Families[f].First
	for m := range l.Families[f].Metrics {
		n := len(l.Families[f].Metrics[m].Points)
		if value < at+n {
			return PointRef{f, m, value - at}
		}
		at += n
	}
	panic("BUG: value of no point")
}
