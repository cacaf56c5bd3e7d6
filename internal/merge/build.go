package merge

import (
	"cmp"
	"maps"
	"math"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// defaultHelp stands where no worker wrote a help text: what prometheus_client's own
// collector said before version 0.16 recorded them.
const defaultHelp = "Multiprocess metric"

// family is what the index knows of one family name.
type family struct {
	name   string
	groups map[class]*group
	// dirty says that built and program are out of date.
	dirty     bool
	built     view.Family
	program   []step
	conflicts []Conflict
	// expiry says of each metric of built how long it may stay as it is, if any may not for
	// ever; dropped is the number of series that a ruling leaves out.
	expiry  []expiry
	dropped int
	// rulings are what was answered when Options.Rules was asked.
	rulings map[rulingKey]*Ruling
	// held is what the limits count, by pool.
	held map[string]held
}

// held counts the series of a family and the raw keys that lead to them.
type held struct{ series, keys int }

// expiry is the node that a metric is made of and how many seconds it may stay as it is,
// if above 0.
type expiry struct {
	node  *node
	after float64
}

// group is a family as one class of sources sees it. Sources of other classes disagree
// with it; the newest is served.
type group struct {
	family *family
	class
	ruling *Ruling
	nodes  map[string]*node // by appendLabelsKey
	// newest is the greatest Created of the sources that had an entry in the group.
	newest int64
	help   string
	helpAt int64
}

// node is the points of a group that share one set of labels.
type node struct {
	labels []metric.Label
	points []cellPoint // in output order
	// hash is what the values were when they were last looked at, and changed when they
	// became so, in Unix seconds; 0 if they were never looked at.
	hash    uint64
	changed float64
}

type cellPoint struct {
	view.Point
	cell uint32
}

// comparePoints puts buckets first, by bound, then quantiles, sum and count.
func comparePoints(a, b cellPoint) int {
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
	opRecent                // the cell, or view.Absent where no timestamp was seen
	opFirstBucket           // begins a histogram
	opNextBucket            // adds to the buckets below
	opBuckets               // all buckets together: the +Inf bucket where none is, and the count
)

// Conflict says that files disagree on what a family is. The winner's samples are served,
// the loser's are left out until they agree.
type Conflict struct {
	Family        string
	Pool          string
	Winner, Loser string // as "gauge max"; Configured is that of the configuration
	// Series is the number of series left out.
	Series int
}

// Configured describes series that no file has, which win over those of files.
const Configured = "info"

func (c class) describe() string {
	switch {
	case c.fixed:
		return Configured
	case c.typ == metric.Gauge:
		return c.typ.String() + " " + c.mode.String()
	}
	return c.typ.String()
}

// Conflicts lists the disagreements in the layout of the last Snapshot, by family. The
// slice is never changed once returned.
func (x *Index) Conflicts() []Conflict { return x.conflicts }

// Layout returns the layout that a Snapshot would have now. Families in which nothing
// appeared or went keep their part of the earlier one.
func (x *Index) Layout() *view.Layout {
	if x.layout != nil {
		return x.layout
	}
	names := slices.Sorted(maps.Keys(x.families))
	layout := &view.Layout{Families: make([]view.Family, 0, len(names))}
	x.conflicts, x.dropped = nil, 0
	for _, name := range names {
		fam := x.families[name]
		if fam.dirty {
			x.build(fam)
			fam.dirty = false
		}
		x.conflicts = append(x.conflicts, fam.conflicts...)
		x.dropped += fam.dropped
		if fam.built.Points == 0 {
			continue
		}
		fam.built.First = layout.Points
		layout.Points += fam.built.Points
		layout.Families = append(layout.Families, fam.built)
	}
	x.layout = layout
	return layout
}

// build makes a family's part of the layout and the program that computes its values.
func (x *Index) build(fam *family) {
	groups, conflicts := x.choose(fam)
	fam.conflicts = conflicts
	fam.program, fam.expiry = fam.program[:0], nil
	fam.built = view.Family{Name: fam.name, Help: defaultHelp}
	if len(groups) == 0 {
		return
	}
	b := &fam.built
	b.Type, b.Mode = groups[0].typ, groups[0].mode
	helpAt := int64(math.MinInt64)
	var nodes []*node
	after := map[*node]float64{}
	for _, g := range groups {
		r := g.ruling
		b.Rule = cmp.Or(b.Rule, r.Rule)
		b.ModeByRule = b.ModeByRule || r.Mode != metric.NoMode && g.typ == metric.Gauge
		b.Unit = cmp.Or(b.Unit, r.Unit)
		if r.Help != "" && helpAt < math.MaxInt64 {
			b.Help, helpAt = r.Help, math.MaxInt64
		}
		if g.help != "" && (b.Help == defaultHelp || g.helpAt > helpAt) {
			b.Help, helpAt = g.help, g.helpAt
		}
		b.Sparse = b.Sparse || g.mode.Base() == metric.MostRecent
		for _, n := range g.nodes {
			if x.served(n) {
				nodes = append(nodes, n)
				if r.ExpireAfter > 0 {
					after[n] = r.ExpireAfter
				}
			}
		}
	}
	if len(after) > 0 {
		b.Sparse = true
	}
	slices.SortFunc(nodes, func(a, b *node) int { return metric.CompareLabels(a.labels, b.labels) })
	b.Metrics = make([]view.Metric, len(nodes))
	var scratch, shared []view.Point
	for i, n := range nodes {
		scratch = x.appendPoints(scratch[:0], fam, n)
		if !slices.Equal(scratch, shared) {
			shared = slices.Clone(scratch)
		}
		b.Metrics[i] = view.Metric{Labels: n.labels, Points: shared}
		if len(after) > 0 {
			fam.expiry = append(fam.expiry, expiry{n, after[n]})
		}
	}
	b.Points = len(fam.program)
}

// served reports whether any source that is served has a point of the node.
func (x *Index) served(n *node) bool {
	return slices.ContainsFunc(n.points, func(p cellPoint) bool { return x.active[p.cell] > 0 })
}

// choose picks the groups of a family to serve: one type for the family, one mode for
// each pool, by the newest file. Groups are returned by pool.
func (x *Index) choose(fam *family) (chosen []*group, conflicts []Conflict) {
	var candidates []*group
	fam.dropped = 0
	for _, g := range fam.groups {
		if g.ruling.Drop {
			fam.dropped += x.servedSeries(g)
			continue
		}
		for _, n := range g.nodes {
			if x.served(n) {
				candidates = append(candidates, g)
				break
			}
		}
	}
	if len(candidates) == 0 {
		return nil, nil
	}
	// The newest first; what remains equal is decided by name, so that it stays decided.
	slices.SortFunc(candidates, func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.newest, a.newest), cmp.Compare(a.typ, b.typ), cmp.Compare(a.mode, b.mode), cmp.Compare(a.pool, b.pool))
	})
	winners := map[string]*group{}
	for _, g := range candidates {
		winner := candidates[0]
		if g.typ == winner.typ {
			if winners[g.pool] == nil {
				winners[g.pool] = g
				chosen = append(chosen, g)
				continue
			}
			winner = winners[g.pool]
		}
		conflicts = append(conflicts, Conflict{
			Family: fam.name, Pool: g.pool, Winner: winner.describe(), Loser: g.describe(), Series: x.servedSeries(g),
		})
	}
	slices.SortFunc(chosen, func(a, b *group) int { return cmp.Compare(a.pool, b.pool) })
	return chosen, conflicts
}

// servedSeries is the number of series of a group that some source has.
func (x *Index) servedSeries(g *group) (series int) {
	for _, n := range g.nodes {
		for _, p := range n.points {
			if x.active[p.cell] > 0 {
				series++
			}
		}
	}
	return series
}

// appendPoints appends the points of a node that are served, and their steps to the
// family's program. A histogram without a +Inf bucket gets one, and every histogram a
// count: a worker's files have neither where they are cut short, and an exposition
// without them is invalid.
func (x *Index) appendPoints(dst []view.Point, fam *family, n *node) []view.Point {
	buckets, infinite := 0, false
	add := func(p view.Point, s step) {
		dst = append(dst, p)
		fam.program = append(fam.program, s)
	}
	closeBuckets := func() {
		if buckets > 0 && !infinite {
			infinite = true
			add(view.Point{Kind: view.Bucket, Bound: math.Inf(1)}, step{op: opBuckets})
		}
	}
	for _, p := range n.points {
		if x.active[p.cell] == 0 {
			continue
		}
		s := step{cell: p.cell, op: opTotal}
		if fam.built.Type == metric.Histogram {
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
		} else if fam.built.Type == metric.Gauge {
			switch x.desc[p.cell].group.mode.Base() {
			case metric.Sum:
			case metric.MostRecent:
				s.op = opRecent
			default:
				s.op = opPlain
			}
		}
		add(p.Point, s)
	}
	if buckets > 0 {
		closeBuckets()
		add(view.Point{Kind: view.Count}, step{op: opBuckets})
	}
	return dst
}

// gather computes the values of the present layout from the cells.
func (x *Index) gather(dst []float64) {
	i := 0
	x.expired = 0
	for f := range x.layout.Families {
		acc := 0.0
		fam := x.families[x.layout.Families[f].Name]
		for _, s := range fam.program {
			v := 0.0
			switch s.op {
			case opTotal:
				v = total(x.hi[s.cell], x.lo[s.cell])
			case opPlain:
				v = x.hi[s.cell]
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
		if fam.expiry != nil {
			x.expire(fam, dst[i-len(fam.program):i])
		}
	}
}
