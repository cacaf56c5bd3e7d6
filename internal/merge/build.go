package merge

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// defaultHelp stands where no worker could write a help text: what prometheus_client's own
// collector said before version 0.16 recorded them (multiprocess.py).
const defaultHelp = "Multiprocess metric"

// comparePoints puts buckets first, by bound, then quantiles, sum and count.
func comparePoints(a, b view.Point) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Bound, b.Bound))
}

// step computes one value of the output: the next point of the layout.
type step struct {
	cell uint32
	op   op
}

type op uint8

const (
	opTotal       op = iota // a sum
	opPlain                 // the cell as it is
	opNonZero               // the cell, or view.Absent where it is 0
	opRecent                // the cell, or view.Absent where no timestamp was seen
	opFirstBucket           // begins a histogram
	opNextBucket            // adds to the buckets below
	opBuckets               // all buckets together: the +Inf bucket where none is, and the count
)

// Conflict says that sources disagree on what a sample name is. The winner's samples are served,
// the loser's are left out until they agree.
type Conflict struct {
	// Sample is the name that both want, Family the loser's family.
	Sample, Family string
	// Winner and Loser are spelled as "gauge max", with the family where it is another one.
	Winner, Loser string
	// Series is the number of series left out.
	Series int
}

// Conflicts lists the disagreements in the layout of the last Snapshot, by family. The
// slice is never changed once returned.
func (x *Index) Conflicts() []Conflict { return x.conflicts }

// Layout returns the layout that a Snapshot would have now. Families in which nothing
// appeared or went keep their part of the earlier one.
func (x *Index) Layout() *view.Layout {
	x.decide()
	if x.layout != nil {
		return x.layout
	}
	names := slices.Sorted(maps.Keys(x.families))
	layout := &view.Layout{Families: make([]view.Family, 0, len(names))}
	x.conflicts, x.dropped, x.shown = nil, 0, make([]*group, 0, len(names))
	for _, name := range names {
		groups := x.families[name].groups
		if len(groups) > 1 {
			slices.SortFunc(groups, func(a, b *group) int { return cmp.Or(cmp.Compare(a.typ, b.typ), cmp.Compare(a.mode, b.mode)) })
		}
		for _, g := range groups {
			if g.loser != nil {
				x.conflicts = x.appendConflict(x.conflicts, g)
				continue
			}
			if g.dirty {
				x.build(g)
				g.dirty = false
			}
			x.dropped += g.dropped
			if g.built.Points == 0 {
				continue
			}
			g.built.First = layout.Points
			layout.Points += g.built.Points
			layout.Families = append(layout.Families, g.built)
			x.shown = append(x.shown, g)
		}
	}
	x.layout = layout
	x.compact()
	return layout
}

// compact gives back the room that lists have for more series, where it is much. A layout takes
// longer to make than these lists to grow again.
func (x *Index) compact() {
	if n := len(x.desc); cap(x.desc)-n > n/16 {
		x.desc = append(make([]cellDesc, 0, n), x.desc...)
		x.pins = append(make([]int32, 0, n), x.pins...)
		x.active = append(make([]int32, 0, n), x.active...)
	}
	for _, space := range x.spaces {
		space.cells.compact()
	}
}

func (x *Index) appendConflict(dst []Conflict, g *group) []Conflict {
	series := x.servedSeries(g)
	if series == 0 {
		return dst
	}
	return append(dst, Conflict{
		Sample: contestedName(g, g.loser), Family: g.family.name, Winner: g.loser.describe(g), Loser: g.describe(g.loser), Series: series,
	})
}

// build makes a group's part of the layout and the program that computes its values.
func (x *Index) build(g *group) {
	r := g.ruling
	defer func(metrics *kept[[]view.Metric], points []*kept[[]view.Point]) {
		// After what is made anew has found those that stay.
		x.share.metrics.put(metrics)
		for _, p := range points {
			x.share.points.put(p)
		}
	}(g.metrics, g.points)
	g.metrics, g.points = nil, nil
	g.program, g.expiry, g.dropped = g.program[:0], nil, 0
	g.built = view.Family{
		Name: g.family.name, Type: g.typ, Mode: g.mode, Unit: r.Unit,
		Rule: r.Rule, ModeByRule: r.Mode != metric.NoMode && g.typ == metric.Gauge,
	}
	if r.Drop {
		g.dropped = x.servedSeries(g)
		return
	}
	b := &g.built
	if g.typ == metric.Gauge {
		b.Shape = r.Shape
	}
	switch {
	case r.Help != "":
		b.Help = r.Help
	case g.hasHelp:
		b.Help = g.help
	default:
		b.Help = defaultHelp
	}
	nodes := make([]*node, 0, g.nodes.len())
	for n := range g.nodes.all() {
		if x.served(n) {
			nodes = append(nodes, n)
		}
	}
	if len(nodes) == 0 {
		return
	}
	b.Sparse = g.mode.Base() == metric.MostRecent || r.ExpireAfter > 0 || r.dropsZero(g.class)
	slices.SortFunc(nodes, func(a, b *node) int { return metric.CompareLabels(a.served.value, b.served.value) })
	metrics := make([]view.Metric, len(nodes))
	var scratch, shared []view.Point
	for i, n := range nodes {
		scratch = x.appendPoints(scratch[:0], g, n)
		if !slices.Equal(scratch, shared) || i == 0 {
			e := x.share.pointList(scratch)
			g.points = append(g.points, e)
			shared = e.value
		}
		metrics[i] = view.Metric{Labels: n.served.value, Points: shared}
	}
	if r.ExpireAfter > 0 {
		g.expiry = nodes
	}
	if n := len(g.program); cap(g.program)-n > n/16 {
		g.program = append(make([]step, 0, n), g.program...)
	}
	g.metrics = x.share.metricList(metrics)
	b.Metrics, b.Points = g.metrics.value, len(g.program)
}

// served reports whether any source that is served has a point of the node.
func (x *Index) served(n *node) bool {
	return slices.ContainsFunc(n.cells, func(c uint32) bool { return x.active[c] > 0 })
}

// servedSeries is the number of series of a group that some source has.
func (x *Index) servedSeries(g *group) (series int) {
	for n := range g.nodes.all() {
		for _, c := range n.cells {
			if x.active[c] > 0 {
				series++
			}
		}
	}
	return series
}

// appendPoints appends the points of a node that are served, and their steps to the
// group's program. A histogram without a +Inf bucket gets one, and every histogram a
// count: a worker's files have neither where they are cut short, and an exposition
// without them is invalid.
func (x *Index) appendPoints(dst []view.Point, g *group, n *node) []view.Point {
	buckets, infinite := 0, false
	add := func(p view.Point, s step) {
		dst = append(dst, p)
		g.program = append(g.program, s)
	}
	closeBuckets := func() {
		if buckets > 0 && !infinite {
			infinite = true
			add(view.Point{Kind: view.Bucket, Bound: math.Inf(1)}, step{op: opBuckets})
		}
	}
	for _, c := range n.cells {
		if x.active[c] == 0 {
			continue
		}
		p := x.desc[c].point
		s := step{cell: c, op: opTotal}
		if g.typ == metric.Histogram {
			switch p.Kind {
			case view.Bucket:
				s.op = opNextBucket
				if buckets == 0 {
					s.op = opFirstBucket
				}
				buckets++
				infinite = math.IsInf(p.Bound, 1)
			case view.Sum:
				closeBuckets()
			case view.Count:
				closeBuckets()
				if buckets > 0 {
					continue // recomputed below
				}
			}
		} else if g.typ == metric.Gauge {
			switch g.mode.Base() {
			case metric.Sum:
			case metric.MostRecent:
				s.op = opRecent
			default:
				s.op = opPlain
				if g.ruling.dropsZero(g.class) {
					s.op = opNonZero
				}
			}
		}
		add(p, s)
	}
	if buckets > 0 {
		closeBuckets()
		add(view.Point{Kind: view.Count}, step{op: opBuckets})
	}
	return dst
}

// gather computes the values of the present layout from the cells, and reports whether a sum
// is NaN or has one left out.
func (x *Index) gather(snap *view.Snapshot) (nan bool) {
	dst, i := snap.Values, 0
	x.expired, x.zeros = 0, 0
	for _, g := range x.shown {
		snap.Newest = append(snap.Newest, g.rank())
		acc := 0.0
		for _, s := range g.program {
			v := 0.0
			switch s.op {
			case opTotal:
				v = total(x.hi[s.cell], x.lo[s.cell])
				nan = nan || v != v
			case opPlain:
				v = x.hi[s.cell]
			case opNonZero:
				if v = x.hi[s.cell]; v == 0 {
					v = view.Absent
					x.zeros++
				}
			case opRecent:
				v = view.Absent
				if x.lo[s.cell] > 0 {
					v = x.hi[s.cell]
				}
			case opFirstBucket:
				acc = total(x.hi[s.cell], x.lo[s.cell])
				v = acc
			case opNextBucket:
				acc += total(x.hi[s.cell], x.lo[s.cell])
				v = acc
			case opBuckets:
				v = acc
			}
			dst[i] = v
			i++
		}
		nan = nan || acc != acc
		if g.expiry != nil {
			x.expire(g, dst[i-len(g.program):i])
		}
	}
	return nan || x.nanCount > 0
}

// Zeros is the number of series of the last Snapshot that were left out because they are 0 and a
// ruling says so.
func (x *Index) Zeros() int { return x.zeros }
