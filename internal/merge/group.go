package merge

import (
	"cmp"
	"math"
	"slices"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// family is what the index knows of one family name.
type family struct {
	name string
	// groups are few: one for each class.
	groups []*group
	// rulings are what was answered when Options.Rules was asked, by type.
	rulings [metric.Summary + 1]*Ruling
	// series and keys are what the limits count: series, and the raw keys that lead to them.
	series, keys int
}

func (f *family) group(c class) *group {
	for _, g := range f.groups {
		if g.class == c {
			return g
		}
	}
	return nil
}

// group is a family as one class of sources sees it, and a family of the layout unless it
// loses. Groups that want the same sample name are rivals: of those the newest is served.
//
// A group that has lost its last series stays as long as it has rivals: it remembers that it
// was the newer one.
type group struct {
	family *family
	class
	ruling *Ruling
	nodes  nodeTable
	// seen has what an expiry has asked for.
	seen map[*node]*sighting
	// kinds has a bit for each kind of point that there was.
	kinds uint16

	rivals []*group
	// alive and dead are the greatest Created of the living and the dead sources that have an
	// entry here, below 0 if there is none; folded is when something was folded last, or a
	// source was removed. Unix nanoseconds.
	alive, dead, folded int64
	// last is the source that had an entry here last, if it is still there.
	last *Source
	// loser is the rival that is served in its place, and since when, in Unix seconds.
	loser *group
	since float64

	// newest is the greatest Created of all entries that there were.
	newest  int64
	help    string
	helpAt  int64
	hasHelp bool

	// dirty says that what follows is out of date.
	dirty   bool
	built   view.Family
	program []step
	// metrics and points are the entries of the Share that built is made of.
	metrics *kept[[]view.Metric]
	points  []*kept[[]view.Point]
	// expiry says of each metric of built how long it may stay as it is, if any may not for
	// ever; dropped is the number of series that a ruling leaves out.
	expiry  []*node
	dropped int
}

func newGroup(fam *family, c class, r *Ruling) *group {
	return &group{
		family: fam, class: c, ruling: r,
		alive: -1, dead: -1, helpAt: math.MinInt64,
	}
}

// node is the points of a group that share one set of labels.
type node struct {
	group *group
	// set are the labels that have a value, which tell one node from another; served are those
	// that are shown.
	set, served *kept[[]metric.Label]
	cells       []uint32 // in output order
}

// bytes is how much text the node's labels are. The labels of set are among those served.
func (n *node) bytes() int64 {
	if n.served == nil {
		return 0
	}
	return labelBytes(n.served.value)
}

func labelBytes(labels []metric.Label) (n int64) {
	for _, l := range labels {
		n += int64(len(l.Name) + len(l.Value))
	}
	return n
}

// withoutEmpty returns the labels that have a value: a label without is as good as none. That
// is Prometheus's data model, and of two such series in one scrape it keeps the first.
func withoutEmpty(labels []metric.Label) []metric.Label {
	empty := func(l metric.Label) bool { return l.Value == "" }
	if !slices.ContainsFunc(labels, empty) {
		return labels
	}
	return slices.DeleteFunc(slices.Clone(labels), empty)
}

// latest is the end of the times that rank can tell apart, in the year 2116.
const latest = 1<<62 - 1

// clampTime puts a time between 0 and latest.
func clampTime(t int64) int64 { return min(max(t, 0), latest) }

// nanoseconds is the present time.
func (x *Index) nanoseconds() int64 { return clampTime(int64(x.now * 1e9)) }

// rank is how new a group is: those with living sources by the newest of them, before those
// with dead ones, before those of which there is only what was folded.
func (g *group) rank() int64 {
	switch {
	case g.alive >= 0:
		return g.alive
	case g.dead >= 0:
		return g.dead - latest - 1
	}
	return g.folded - latest - latest - 2
}

// rankAll brings alive and dead of all groups up to date.
func (x *Index) rankAll() {
	for _, fam := range x.families {
		for _, g := range fam.groups {
			g.alive, g.dead = -1, -1
		}
	}
	for _, s := range x.Sources() {
		if s.folded || s.seat {
			continue
		}
		created := clampTime(s.spec.Created)
		for _, g := range s.groups {
			if s.alive {
				g.alive = max(g.alive, created)
			} else {
				g.dead = max(g.dead, created)
			}
		}
	}
}

// claims reports whether the group wants a name for itself: that of one of its samples, or that
// of its TYPE line in a text format, where a name has one type.
func (g *group) claims(name string) bool {
	suffix, ok := strings.CutPrefix(name, g.family.name)
	if !ok {
		return false
	}
	switch g.typ {
	case metric.Counter:
		return suffix == "_total" && g.kinds&(1<<view.Total) != 0 || suffix == "" && g.kinds&(1<<view.Value) != 0
	case metric.Histogram:
		return suffix == "" || suffix == "_bucket" || suffix == "_sum" || suffix == "_count"
	case metric.Summary:
		return suffix == "" || suffix == "_sum" || suffix == "_count"
	}
	return suffix == ""
}

// suffixes are the ends that sample names may have after a family's name.
var suffixes = []string{"", "_total", "_bucket", "_sum", "_count"}

// findRivals links a group with those that want one of its names.
func (x *Index) findRivals(g *group) {
	for _, suffix := range suffixes {
		name := g.family.name + suffix
		if !g.claims(name) {
			continue
		}
		for _, end := range suffixes {
			other, ok := strings.CutSuffix(name, end)
			if fam := x.families[other]; ok && fam != nil {
				for _, h := range fam.groups {
					if h != g && h.claims(name) && !slices.Contains(g.rivals, h) {
						x.oppose(g, h)
					}
				}
			}
		}
	}
}

func (x *Index) oppose(g, h *group) {
	for _, c := range []*group{g, h} {
		if len(c.rivals) == 0 {
			x.contested = append(x.contested, c)
		}
	}
	g.rivals, h.rivals = append(g.rivals, h), append(h.rivals, g)
	x.unranked = true
}

// contestedName is the first name that both groups want.
func contestedName(g, h *group) string {
	for _, suffix := range suffixes {
		if name := g.family.name + suffix; g.claims(name) && h.claims(name) {
			return name
		}
	}
	return g.family.name
}

// emptied forgets a group that has no series any more, unless a rival has, and rivals that were
// kept for it.
func (x *Index) emptied(g *group) {
	x.touch(g)
	if slices.ContainsFunc(g.rivals, func(r *group) bool { return r.nodes.len() > 0 }) {
		return
	}
	for _, gone := range append([]*group{g}, g.rivals...) {
		if slices.ContainsFunc(gone.rivals, func(r *group) bool { return r != g && r.nodes.len() > 0 }) {
			gone.rivals = slices.DeleteFunc(gone.rivals, func(r *group) bool { return r == g })
			continue
		}
		for _, r := range gone.rivals {
			r.rivals = slices.DeleteFunc(r.rivals, func(h *group) bool { return h == gone })
		}
		gone.rivals = nil
		x.discard(gone)
		fam := gone.family
		fam.groups = slices.DeleteFunc(fam.groups, func(h *group) bool { return h == gone })
		if len(fam.groups) == 0 {
			delete(x.families, fam.name)
		}
		x.layout = nil
	}
	x.contested = slices.DeleteFunc(x.contested, func(h *group) bool { return len(h.rivals) == 0 })
	x.unranked = true
}

// discard gives back what a group has in the Share for its part of the layout.
func (x *Index) discard(g *group) {
	x.share.metrics.put(g.metrics)
	for _, p := range g.points {
		x.share.points.put(p)
	}
	g.metrics, g.points = nil, g.points[:0]
}

// decide finds out which of the contested groups are served.
func (x *Index) decide() {
	if !x.unranked {
		return
	}
	x.unranked = false
	x.rankAll()
	// What is equally new is decided by name, so that it stays decided.
	slices.SortFunc(x.contested, func(a, b *group) int {
		return cmp.Or(cmp.Compare(b.rank(), a.rank()), cmp.Compare(a.typ, b.typ), cmp.Compare(a.mode, b.mode),
			strings.Compare(a.family.name, b.family.name))
	})
	winners := map[*group]bool{}
	for _, g := range x.contested {
		if g.ruling.Drop {
			continue
		}
		var to *group
		if i := slices.IndexFunc(g.rivals, func(r *group) bool { return winners[r] }); i >= 0 {
			to = g.rivals[i]
		} else {
			winners[g] = true
		}
		if (to == nil) != (g.loser == nil) {
			g.since = x.now
			x.touch(g)
		} else if to != g.loser {
			x.touch(g)
		}
		g.loser = to
	}
}

// A Loss is an entry of a folded source that is not served because a newer source wants its
// sample name for something else. See Losses.
type Loss struct {
	// Entry is the number of the entry in the source.
	Entry int
	// Family is its OpenMetrics name, Winner what is served in its place.
	Family, Winner string
	// Since is since when the index knows, in Unix seconds.
	Since float64
	// Settled says that all that wants the sample name for what has lost is folded, and a source
	// that is not wants it for the winner.
	Settled bool
}

// Losses calls yield for the entries of a source that lose against a newer one, by the layout
// of the last Snapshot. Those of a folded source come back when the winner goes, unless their
// owner drops them: it may after a time, of those that are Settled, as the winner will be the newer
// one for ever.
func (x *Index) Losses(s *Source, yield func(Loss)) {
	lost := func(entry int, c uint32) {
		if c == sink {
			return
		}
		if g := x.desc[c].node.group; g.loser != nil {
			settled := g.alive < 0 && g.dead < 0 && (g.loser.alive >= 0 || g.loser.dead >= 0)
			yield(Loss{entry, g.family.name, g.loser.describe(g), g.since, settled})
		}
	}
	if !slices.ContainsFunc(s.groups, func(g *group) bool { return g.loser != nil }) {
		return
	}
	x.rankAll()
	for i, c := range s.cells {
		lost(i, c)
	}
	for i := range s.parts {
		for k, c := range s.parts[i].cells {
			lost(int(s.parts[i].entries[k]), c)
		}
	}
}

// describe says what a group is; its name too, if that is not the other group's.
func (g *group) describe(other *group) string {
	text := g.typ.String()
	if g.typ == metric.Gauge {
		text += " " + g.mode.String()
	}
	if g.family.name != other.family.name {
		text += " " + g.family.name
	}
	return text
}
