package merge

import (
	"fmt"
	"math"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// An Account says what made the value of a point.
type Account struct {
	// Operation is how the contributions were combined: Sum, Max, Min, MostRecent or All.
	Operation metric.Mode
	// Mode is the gauge mode in force, Rule the name of the ruling, and
	// ModeByRule says that it sets the mode.
	Mode       metric.Mode
	Rule       string
	ModeByRule bool
	// Cumulative says that the point is made of several of the source files' entries: a bucket
	// with those below it, or the count of all buckets. Each contribution then is as well.
	Cumulative bool
	// Contributions are in the order of addition. Those that count add up to the value; where
	// the operation picks one, that one alone counts.
	Contributions []Contribution
}

// A Contribution is what one source has for a point.
type Contribution struct {
	Source *Source
	Value  float64
	// Stamp is when the value was set, in Unix seconds, where the operation depends on it.
	Stamp  float64
	Counts bool
	// Why says why it does not count.
	Why string
}

// hit is an entry of a source that belongs to a cell of an explained point.
type hit struct {
	source       *Source
	cell         uint32
	value, stamp float64
	// adds says that equal entries of one source are added also where the mode picks one.
	adds bool
}

// Explain accounts for points of the layout of the last Snapshot, which must have been taken
// from the same values under the same hold of the lock. It takes time in proportion to all
// entries, once for all points. A point that the snapshot has as Absent is accounted for as
// if it were not.
func (x *Index) Explain(refs []view.PointRef) []Account {
	type target struct {
		class  class
		ruling *Ruling
		cells  []uint32
		// losers are the same series in groups that are not served.
		losers     map[uint32]string
		cumulative bool
	}
	targets := make([]target, len(refs))
	marked := make([]bool, len(x.desc))
	for i, ref := range refs {
		t := &targets[i]
		g := x.shown[ref.Family]
		m := &g.built.Metrics[ref.Metric]
		point := m.Points[ref.Point]
		sample := g.family.name + point.Kind.Suffix()
		set := x.share.findLabels(withoutEmpty(m.Labels))
		t.class, t.ruling, t.losers = g.class, g.ruling, map[uint32]string{}
		if n := g.nodes.get(set); n != nil {
			t.cells, t.cumulative = x.cellsOf(n, g.typ, point)
		}
		for _, c := range t.cells {
			marked[c] = true
		}
		for _, other := range g.rivals {
			if other.loser == nil || other.nodes.get(set) == nil {
				continue
			}
			for _, c := range other.nodes.get(set).cells {
				if p := x.desc[c].point; other.family.name+p.Kind.Suffix() == sample && p.Bound == point.Bound {
					t.losers[c] = fmt.Sprintf("it is a %s, and a newer one is a %s", other.describe(g), g.describe(other))
					marked[c] = true
				}
			}
		}
	}
	hits := x.hits(marked)
	accounts := make([]Account, len(refs))
	for i, t := range targets {
		a := &accounts[i]
		a.Operation, a.Cumulative = rule(t.class), t.cumulative
		a.Mode, a.Rule = t.class.mode, t.ruling.Rule
		a.ModeByRule = t.class.typ == metric.Gauge && t.ruling.Mode != metric.NoMode
		for _, h := range hits {
			why, loser := t.losers[h.cell]
			if !loser && !slices.Contains(t.cells, h.cell) {
				continue
			}
			if !loser && !h.source.serves(t.class.mode) {
				why = "the worker is dead, and the mode counts the living only"
			}
			a.take(h, why)
		}
		a.decide()
	}
	return accounts
}

// cellsOf returns the cells that a point's value is made of.
func (x *Index) cellsOf(n *node, typ metric.Type, point view.Point) (cells []uint32, cumulative bool) {
	served := func(c uint32) bool { return x.desc[c].point.Kind == view.Bucket && x.active[c] > 0 }
	cumulative = typ == metric.Histogram && slices.ContainsFunc(n.cells, served) && (point.Kind == view.Bucket || point.Kind == view.Count)
	for _, c := range n.cells {
		p := x.desc[c].point
		switch {
		case cumulative && p.Kind == view.Bucket && (point.Kind == view.Count || p.Bound <= point.Bound):
			cells = append(cells, c)
		case !cumulative && p.Kind == point.Kind && p.Bound == point.Bound:
			cells = append(cells, c)
		}
	}
	return cells, cumulative
}

// hits collects the entries of the marked cells, in the order of addition.
func (x *Index) hits(marked []bool) []hit {
	var hits []hit
	for _, s := range x.Sources() {
		stamped := rule(s.space.id.class) == metric.MostRecent
		for i, c := range s.cells {
			if marked[c] && c != sink {
				h := hit{source: s, cell: c, value: s.value(uint32(i))}
				if stamped {
					h.stamp = s.second[i]
					if h.stamp > x.now {
						h.stamp = x.clamp(s, uint32(i), h.stamp)
					}
				}
				hits = append(hits, h)
			}
		}
		for i := range s.parts {
			p := &s.parts[i]
			for k, c := range p.cells {
				if marked[c] {
					h := hit{source: s, cell: c, value: s.value(p.entries[k]), adds: p.space.id.collapses}
					if p.recent() {
						h.stamp = p.stamps[k]
					}
					hits = append(hits, h)
				}
			}
		}
	}
	return hits
}

// take adds an entry to the contributions. Entries of one source are one contribution where
// they are added anyway.
func (a *Account) take(h hit, why string) {
	if n := len(a.Contributions); n > 0 && (a.Operation == metric.Sum || h.adds) {
		if last := &a.Contributions[n-1]; last.Source == h.source && last.Why == why {
			last.Value += h.value
			return
		}
	}
	a.Contributions = append(a.Contributions, Contribution{Source: h.source, Value: h.value, Stamp: h.stamp, Why: why})
}

// decide finds out which contributions count: those that change what is known when they are
// added.
func (a *Account) decide() {
	op := &operations[a.Operation]
	best, hi, second := -1, op.zero, 0.0
	for i := range a.Contributions {
		c := &a.Contributions[i]
		switch {
		case c.Why != "":
			continue
		case a.Operation == metric.Sum:
			if c.Counts = c.Value == c.Value; !c.Counts {
				c.Why = "it is not a number, which is not added"
			}
			continue
		case a.Operation == metric.MostRecent && c.Stamp <= 0:
			c.Why = "it was never set"
			continue
		}
		h, s := op.step(hi, second, c.Value, c.Stamp)
		changed := math.Float64bits(h) != math.Float64bits(hi) || s != second
		if best < 0 || changed || a.Operation == metric.All {
			best = i
		}
		hi, second = h, s
	}
	for i := range a.Contributions {
		if c := &a.Contributions[i]; i == best {
			c.Counts = true
		} else if c.Why == "" && !c.Counts {
			c.Why = op.lost
		}
	}
}

// Folded reports whether the source was made by AddFolded.
func (s *Source) Folded() bool { return s.folded }

// Series returns how many series the index holds, as its limits count them.
func (x *Index) Series() int { return x.series }

// Limits returns the options in force, defaults filled in.
func (x *Index) Limits() Options { return x.opts }

// Bytes is what counts against Options.MaxBytes.
func (x *Index) Bytes() int64 { return x.bytes }
