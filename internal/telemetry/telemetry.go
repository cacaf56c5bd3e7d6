// Package telemetry keeps the daemon's own metrics and shows them as one more snapshot,
// so that they pass through the same encoders as those of the workers. Counters, gauges
// and histograms are safe for any number of goroutines and cost one atomic operation; a
// Set is built once, at start, and may gain labelled children later.
package telemetry

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// Prefix begins the name of every family of a Set.
const Prefix = "aggregatord_"

// A Set is a collection of families.
type Set struct {
	collect []func()

	// mu guards everything below, and the children of every family.
	mu       sync.Mutex
	families []*family
	// essential names the families of Essential; all where it is nil.
	essential map[string]bool
	// shapes are the layouts of Snapshot and Essential, nil when a family or child was added
	// since.
	shapes [2]*shape
}

// shape is a layout and the families that it shows.
type shape struct {
	layout *view.Layout
	// children are those of each family of the layout, in the order of its metrics.
	children [][]*child
}

// Which shape.
const (
	whole = iota
	part
)

type family struct {
	view.Family
	sample   string // its name as it was given
	labels   []string
	buckets  []float64
	children map[string]*child
	last     atomic.Uint64 // observation of a histogram, float bits
}

// child is the values of one set of labels, in the order of its points.
type child struct {
	labels []metric.Label
	values []atomic.Uint64 // float bits
}

// NewSet returns an empty set.
func NewSet() *Set { return &Set{} }

// OnSnapshot has f called before every Snapshot, to bring gauges up to date. Call it
// before the first Snapshot only.
func (s *Set) OnSnapshot(f func()) { s.collect = append(s.collect, f) }

// MarkEssential says which families Essential shows, by the names they were made with. A
// family that is made later may be named, too.
func (s *Set) MarkEssential(names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.essential == nil {
		s.essential = map[string]bool{}
	}
	for _, name := range names {
		s.essential[name] = true
	}
	s.changedLocked()
}

func (s *Set) changedLocked() { s.shapes = [2]*shape{} }

// Alias makes a gauge whose name does not begin with Prefix: what another program called the
// same thing.
func (s *Set) Alias(name, help string) Gauge {
	f := s.addFamily(&family{
		Family: view.Family{Name: name, Help: help, Type: metric.Gauge}, sample: name, children: map[string]*child{},
	})
	return Gauge{&s.child(f, nil).values[0]}
}

func (s *Set) newFamily(name, help string, typ metric.Type, buckets []float64, labels []string) *family {
	if !strings.HasPrefix(name, Prefix) {
		panic("BUG: own metric " + name + " must begin with " + Prefix)
	}
	base, ok := strings.CutSuffix(name, "_total")
	if ok != (typ == metric.Counter) {
		panic("BUG: own metric " + name + ": counters, and only they, end in _total")
	}
	return s.addFamily(&family{
		Family: view.Family{Name: base, Help: help, Type: typ}, sample: name, labels: labels, buckets: buckets,
		children: map[string]*child{},
	})
}

func (s *Set) addFamily(f *family) *family {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := f.Name
	i, found := slices.BinarySearchFunc(s.families, name, func(f *family, name string) int { return strings.Compare(f.Name, name) })
	if found {
		panic("BUG: own metric " + name + " made twice")
	}
	s.families = slices.Insert(s.families, i, f)
	s.changedLocked()
	return f
}

// points is the shape of every metric of the family.
func (f *family) points() []view.Point {
	switch f.Type {
	case metric.Counter:
		return []view.Point{{Kind: view.Total}}
	case metric.Histogram:
		var p []view.Point
		for _, b := range f.buckets {
			p = append(p, view.Point{Kind: view.Bucket, Bound: b})
		}
		return append(p, view.Point{Kind: view.Bucket, Bound: math.Inf(1)}, view.Point{Kind: view.Sum}, view.Point{Kind: view.Count})
	default:
		return []view.Point{{Kind: view.Value}}
	}
}

// child returns the child with these label values, which it makes where there is none.
func (s *Set) child(f *family, values []string) *child {
	if len(values) != len(f.labels) {
		panic(fmt.Sprintf("BUG: own metric %s has labels %v, given %v", f.Name, f.labels, values))
	}
	id := strings.Join(values, "\xff")
	s.mu.Lock()
	defer s.mu.Unlock()
	c := f.children[id]
	if c == nil {
		c = &child{values: make([]atomic.Uint64, len(f.points()))}
		for i, name := range f.labels {
			// A label without a value is the same as none.
			if values[i] != "" {
				c.labels = append(c.labels, metric.Label{Name: name, Value: values[i]})
			}
		}
		metric.SortLabels(c.labels)
		f.children[id] = c
		s.changedLocked()
	}
	return c
}

// remove forgets a child.
func (s *Set) remove(f *family, values []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(f.children, strings.Join(values, "\xff"))
	s.changedLocked()
}

// Forget stops serving everything that has a label of this value.
func (s *Set) Forget(label, value string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.families {
		for id, c := range f.children {
			if slices.Contains(c.labels, metric.Label{Name: label, Value: value}) {
				delete(f.children, id)
				s.changedLocked()
			}
		}
	}
}

func add(v *atomic.Uint64, by float64) {
	for {
		old := v.Load()
		if v.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+by)) {
			return
		}
	}
}

// Counter counts. The zero value is of no use; get one from Set.Counter.
type Counter struct{ v *atomic.Uint64 }

// Inc adds one.
func (c Counter) Inc() { add(c.v, 1) }

// Add adds by, which must not be negative.
func (c Counter) Add(by float64) { add(c.v, by) }

// Set overwrites the count with one that is kept elsewhere. It must not fall.
func (c Counter) Set(to float64) { c.v.Store(math.Float64bits(to)) }

// Value returns the count.
func (c Counter) Value() float64 { return math.Float64frombits(c.v.Load()) }

// Gauge is a value that goes up and down.
type Gauge struct{ v *atomic.Uint64 }

// Set sets it.
func (g Gauge) Set(to float64) { g.v.Store(math.Float64bits(to)) }

// Value returns it.
func (g Gauge) Value() float64 { return math.Float64frombits(g.v.Load()) }

// Add adds by.
func (g Gauge) Add(by float64) { add(g.v, by) }

// Histogram counts observations by size.
type Histogram struct {
	buckets []float64
	values  []atomic.Uint64
	last    *atomic.Uint64
}

// Observe counts v. A snapshot taken meanwhile may lack part of it.
func (h Histogram) Observe(v float64) {
	i, _ := slices.BinarySearch(h.buckets, v)
	add(&h.values[i], 1)
	add(&h.values[len(h.buckets)+1], v)
	h.last.Store(math.Float64bits(v))
}

// Counter makes a counter without labels. Its name ends in _total.
func (s *Set) Counter(name, help string) Counter { return s.CounterVec(name, help).With() }

// Gauge makes a gauge without labels.
func (s *Set) Gauge(name, help string) Gauge { return s.GaugeVec(name, help).With() }

// Histogram makes a histogram; buckets are the upper bounds, rising, without +Inf.
func (s *Set) Histogram(name, help string, buckets []float64) Histogram {
	f := s.newFamily(name, help, metric.Histogram, buckets, nil)
	return Histogram{buckets, s.child(f, nil).values, &f.last}
}

// Last returns what was last observed by the histogram of that name: 0 if nothing was, or if
// there is no such histogram.
func (s *Set) Last(histogram string) float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.families {
		if f.sample == histogram {
			return math.Float64frombits(f.last.Load())
		}
	}
	return 0
}

// CounterVec is counters that differ in labels.
type CounterVec struct {
	set *Set
	f   *family
}

// CounterVec makes a family of counters.
func (s *Set) CounterVec(name, help string, labels ...string) CounterVec {
	return CounterVec{s, s.newFamily(name, help, metric.Counter, nil, labels)}
}

// With returns the counter with these label values; it is served from now on.
func (v CounterVec) With(values ...string) Counter {
	return Counter{&v.set.child(v.f, values).values[0]}
}

// GaugeVec is gauges that differ in labels.
type GaugeVec struct {
	set *Set
	f   *family
}

// GaugeVec makes a family of gauges.
func (s *Set) GaugeVec(name, help string, labels ...string) GaugeVec {
	return GaugeVec{s, s.newFamily(name, help, metric.Gauge, nil, labels)}
}

// With returns the gauge with these label values; it is served from now on.
func (v GaugeVec) With(values ...string) Gauge { return Gauge{&v.set.child(v.f, values).values[0]} }

// Remove stops serving the gauge with these label values.
func (v GaugeVec) Remove(values ...string) { v.set.remove(v.f, values) }

// Snapshot shows the set as it is now. The layout is the same one until a family or child
// is added or removed.
func (s *Set) Snapshot() *view.Snapshot { return s.snapshot(whole) }

// Essential shows the part of the set that MarkEssential names, as Snapshot does.
func (s *Set) Essential() *view.Snapshot { return s.snapshot(part) }

func (s *Set) snapshot(which int) *view.Snapshot {
	for _, f := range s.collect {
		f()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shapes[which] == nil {
		s.shapes[which] = s.buildLocked(which)
	}
	sh := s.shapes[which]
	snap := &view.Snapshot{Layout: sh.layout, Values: make([]float64, 0, sh.layout.Points)}
	for i := range sh.layout.Families {
		for _, c := range sh.children[i] {
			snap.Values = c.append(snap.Values, sh.layout.Families[i].Type)
		}
	}
	return snap
}

func (c *child) append(dst []float64, typ metric.Type) []float64 {
	if typ != metric.Histogram {
		return append(dst, math.Float64frombits(c.values[0].Load()))
	}
	acc := 0.0
	for i := range c.values[:len(c.values)-2] {
		acc += math.Float64frombits(c.values[i].Load())
		dst = append(dst, acc)
	}
	return append(dst, math.Float64frombits(c.values[len(c.values)-2].Load()), acc)
}

func (s *Set) buildLocked(which int) *shape {
	sh := &shape{layout: &view.Layout{}}
	for _, f := range s.families {
		if len(f.children) == 0 || which == part && s.essential != nil && !s.essential[f.sample] {
			continue
		}
		b := f.Family
		points := f.points()
		children := slices.SortedFunc(maps.Values(f.children), func(x, y *child) int { return metric.CompareLabels(x.labels, y.labels) })
		for _, c := range children {
			b.Metrics = append(b.Metrics, view.Metric{Labels: c.labels, Points: points})
		}
		b.First, b.Points = sh.layout.Points, len(points)*len(b.Metrics)
		sh.layout.Points += b.Points
		sh.layout.Families = append(sh.layout.Families, b)
		sh.children = append(sh.children, children)
	}
	return sh
}
