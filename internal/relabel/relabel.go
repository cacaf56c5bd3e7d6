// Package relabel applies metric_relabel_configs to a view: layout to layout, with where each
// value comes from. It knows no pool and no rule.
//
// Its invariant: what becomes of a sample is what Prometheus would have made of it after a
// scrape, and the result is a layout like any other: no two families want the same name.
package relabel

import (
	"cmp"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	prom "github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A Relabeler applies metric_relabel_configs to layouts. It belongs to one goroutine at a
// time, and remembers what became of the families of the last layout.
//
// Each sample is relabelled by itself, under its whole name (__name__) and with le or
// quantile, as Prometheus does it. Then metrics are put together again: one stays what it was
// if its samples still agree on a name and on labels, and a histogram if it has its last
// bucket, sum and count. What does not is served sample by sample, untyped. Of several series that
// become equal the first is served, in the order of the output; a histogram or summary whose
// labels become those of another one goes whole, because their buckets do not belong together.
type Relabeler struct {
	configs  []*prom.Config
	families map[familyID][]relabeledMetric
	in       *view.Layout
	out      *Relabeled
}

// Relabeled is what became of a layout. It never changes.
type Relabeled struct {
	Layout *view.Layout
	// From says which value of the layout that was relabelled is that of a point of this one.
	From []uint32
	// Dropped and Equal count the samples left out: by the rules, or because of another one
	// that has the same name and labels.
	Dropped, Equal int
	// Collisions names the families of which samples are among the Equal, sorted.
	Collisions []string
}

// familyID tells whether a family of a layout is the one that it was before.
type familyID struct {
	name  string
	first *view.Metric
	n     int
}

// relabeledMetric is what became of one metric.
type relabeledMetric struct {
	// family, labels, kinds and from are of what is left, if whole: points with the numbers of
	// the points that they were.
	whole         bool
	family        string
	labels, extra []metric.Label
	points        []view.Point
	from          []uint32
	// loose is what is left if not.
	loose []looseSample
	// dropped is how many points are not left.
	dropped int
}

// looseSample is a sample that is served by itself; from is which point of its metric it was.
type looseSample struct {
	name   string
	labels []metric.Label
	from   uint32
}

// New returns what applies some metric_relabel_configs, which have been validated; nil if there
// are none. Nobody may change them afterwards.
func New(configs []*prom.Config) *Relabeler {
	if len(configs) == 0 {
		return nil
	}
	return &Relabeler{configs: configs}
}

// Apply returns what becomes of a layout: of the same layout always the same.
func (r *Relabeler) Apply(in *view.Layout) *Relabeled {
	if in == r.in {
		return r.out
	}
	before := r.families
	r.families = make(map[familyID][]relabeledMetric, len(in.Families))
	b := labels.NewBuilder(labels.EmptyLabels())
	for i := range in.Families {
		f := &in.Families[i]
		id := familyID{f.Name, &f.Metrics[0], len(f.Metrics)}
		done, ok := before[id]
		if !ok {
			done = r.relabelFamily(b, f)
		}
		r.families[id] = done
	}
	r.in, r.out = in, r.arrange(in)
	return r.out
}

func (r *Relabeler) relabelFamily(b *labels.Builder, f *view.Family) []relabeledMetric {
	out := make([]relabeledMetric, len(f.Metrics))
	var sb labels.ScratchBuilder
	for i := range f.Metrics {
		out[i] = r.relabelMetric(b, &sb, f, &f.Metrics[i])
	}
	return out
}

func (r *Relabeler) relabelMetric(b *labels.Builder, sb *labels.ScratchBuilder, f *view.Family, m *view.Metric) relabeledMetric {
	out := relabeledMetric{whole: true}
	all := m.AllLabels()
	for i, p := range m.Points {
		setLabels(b, sb, f, all, p)
		s := looseSample{from: uint32(i)}
		if !prom.ProcessBuilder(b, r.configs...) {
			out.dropped++
			continue
		}
		b.Range(func(l labels.Label) {
			if l.Name == model.MetricNameLabel {
				s.name = l.Value
				return
			}
			s.labels = append(s.labels, metric.Label{Name: l.Name, Value: l.Value})
		})
		if s.name == "" {
			out.dropped++ // Prometheus would not take it
			continue
		}
		metric.SortLabels(s.labels)
		out.loose = append(out.loose, s)
	}
	out.whole = out.assemble(f, m)
	if out.whole {
		out.loose = nil
		if slices.Equal(out.labels, all) {
			out.labels, out.extra = m.Labels, m.Extra // which others share
		}
	}
	return out
}

// setLabels has b begin with the labels of a sample.
func setLabels(b *labels.Builder, sb *labels.ScratchBuilder, f *view.Family, all []metric.Label, p view.Point) {
	sb.Reset()
	sb.Add(model.MetricNameLabel, f.Name+p.Kind.Suffix())
	for _, l := range all {
		sb.Add(l.Name, l.Value)
	}
	if bound := p.BoundLabel(); bound != "" {
		sb.Add(bound, string(p.AppendBound(nil)))
	}
	sb.Sort()
	b.Reset(sb.Labels())
}

// assemble puts the samples that are left of a metric together again, and reports whether
// they are a metric of its type.
func (m *relabeledMetric) assemble(f *view.Family, was *view.Metric) bool {
	if len(m.loose) == 0 {
		return true
	}
	var sum, count, last bool
	for i, s := range m.loose {
		p := was.Points[s.from]
		family, ok := strings.CutSuffix(s.name, p.Kind.Suffix())
		own := s.labels
		switch p.Kind {
		case view.Bucket, view.Quantile:
			bound := p.BoundLabel()
			at := slices.IndexFunc(s.labels, func(l metric.Label) bool { return l.Name == bound })
			if at < 0 || s.labels[at].Value != string(p.AppendBound(nil)) {
				return false
			}
			own = slices.Delete(slices.Clone(s.labels), at, at+1)
			last = last || p.Kind == view.Bucket && p.Bound > maxBound
		case view.Sum:
			sum = true
		case view.Count:
			count = true
		case view.Total, view.Value:
			if f.Type == metric.Counter {
				// A counter may get or lose its _total.
				p.Kind, family, ok = view.Value, s.name, true
				if base := metric.FamilyName(s.name, metric.Counter); base != s.name {
					p.Kind, family = view.Total, base
				}
			}
		}
		if !ok || family == "" {
			return false
		}
		if i == 0 {
			m.family, m.labels = family, own
		} else if family != m.family || !slices.Equal(own, m.labels) {
			return false
		}
		m.points = append(m.points, p)
		m.from = append(m.from, s.from)
	}
	if f.Type != metric.Histogram {
		return true
	}
	had := func(k view.PointKind) bool {
		return slices.ContainsFunc(was.Points, func(p view.Point) bool { return p.Kind == k })
	}
	return last == had(view.Bucket) && sum == had(view.Sum) && count == had(view.Count)
}

const maxBound = 1.7976931348623157e308 // the greatest finite one

// claim is what a name of the output is: a family, or ("", Unknown) a sample by itself.
type claim struct {
	family string
	typ    metric.Type
}

// hasUnit reports whether a family of this name may have the unit.
func hasUnit(family, unit string) bool { return strings.HasSuffix(family, "_"+unit) }

// arranged is a family of the output that is being put together.
type arranged struct {
	view.Family
	order   int // of the first family that it has anything of
	metrics []arrangedMetric
}

type arrangedMetric struct {
	view.Metric
	from []uint32
	of   int // family of the input
}

// arrange makes a layout of what became of the families of in.
func (r *Relabeler) arrange(in *view.Layout) *Relabeled {
	out := &Relabeled{Layout: &view.Layout{}}
	loose := map[claim]bool{} // families of the output that are served sample by sample
	for settled := false; !settled; {
		settled = r.settle(in, loose)
	}
	families := map[claim]*arranged{}
	family := func(name string, i int, typ metric.Type) *arranged {
		f := families[claim{name, typ}]
		if f == nil {
			f = &arranged{Family: in.Families[i], order: i}
			f.Name, f.Type, f.Metrics, f.Sparse = name, typ, nil, false
			if typ != metric.Gauge {
				f.Mode = metric.NoMode
			}
			if f.Unit != "" && !hasUnit(name, f.Unit) {
				f.Unit = ""
			}
			families[claim{name, typ}] = f
		}
		f.Sparse = f.Sparse || in.Families[i].Sparse
		return f
	}
	value := []view.Point{{Kind: view.Value}}
	for i := range in.Families {
		f := &in.Families[i]
		first := uint32(f.First)
		single := func(name string, labels []metric.Label, from uint32) {
			to := family(name, i, metric.Unknown)
			to.metrics = append(to.metrics, arrangedMetric{view.Metric{Labels: labels, Points: value}, []uint32{from}, i})
		}
		for k, m := range r.families[familyID{f.Name, &f.Metrics[0], len(f.Metrics)}] {
			out.Dropped += m.dropped
			switch {
			case !m.whole:
				for _, s := range m.loose {
					single(s.name, s.labels, first+s.from)
				}
			case len(m.points) == 0:
			case loose[claim{m.family, f.Type}]:
				whole := view.Metric{Labels: m.labels, Extra: m.extra}
				for j, p := range m.points {
					labels := whole.AllLabels()
					if bound := p.BoundLabel(); bound != "" {
						labels = append(slices.Clone(labels), metric.Label{Name: bound, Value: string(p.AppendBound(nil))})
						metric.SortLabels(labels)
					}
					single(m.family+p.Kind.Suffix(), labels, first+m.from[j])
				}
			default:
				to := family(m.family, i, f.Type)
				from := make([]uint32, len(m.from))
				for j, p := range m.from {
					from[j] = first + p
				}
				to.metrics = append(to.metrics, arrangedMetric{view.Metric{Labels: m.labels, Extra: m.extra, Points: m.points}, from, i})
			}
			first += uint32(len(f.Metrics[k].Points))
		}
	}
	collisions := map[string]bool{}
	sorted := make([]*arranged, 0, len(families))
	for _, f := range families {
		sorted = append(sorted, f)
	}
	slices.SortFunc(sorted, func(a, b *arranged) int { return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type)) })
	for _, f := range sorted {
		// Equal ones stay in the order of the input.
		slices.SortStableFunc(f.metrics, func(a, b arrangedMetric) int {
			return cmp.Or(view.CompareMetrics(&a.Metric, &b.Metric), cmp.Compare(a.of, b.of))
		})
		f.First = len(out.From)
		var shared []view.Point
		for i, m := range f.metrics {
			if i > 0 && view.CompareMetrics(&f.metrics[i-1].Metric, &m.Metric) == 0 {
				out.Equal += len(m.Points)
				collisions[f.Name] = true
				continue
			}
			if !slices.Equal(shared, m.Points) {
				shared = m.Points
			}
			f.Metrics = append(f.Metrics, view.Metric{Labels: m.Labels, Extra: m.Extra, Points: shared})
			out.From = append(out.From, m.from...)
		}
		f.Points = len(out.From) - f.First
		out.Layout.Families = append(out.Layout.Families, f.Family)
	}
	out.Layout.Points = len(out.From)
	for name := range collisions {
		out.Collisions = append(out.Collisions, name)
	}
	slices.Sort(out.Collisions)
	return out
}

// settle adds to loose the families whose names mean something else elsewhere, too: as
// another type, or as a sample by itself. It reports whether there were none.
func (r *Relabeler) settle(in *view.Layout, loose map[claim]bool) bool {
	claims := map[string]claim{}
	settled := true
	take := func(name string, c claim) {
		has, taken := claims[name]
		switch {
		case !taken:
			claims[name] = c
		case has != c:
			for _, whole := range []claim{has, c} {
				if whole.family != "" && !loose[whole] {
					loose[whole] = true
					settled = false
				}
			}
		}
	}
	for i := range in.Families {
		f := &in.Families[i]
		last, kinds := "", 0 // what was claimed last, which most metrics of a family share
		for _, m := range r.families[familyID{f.Name, &f.Metrics[0], len(f.Metrics)}] {
			for _, s := range m.loose {
				take(s.name, claim{})
			}
			if len(m.points) == 0 {
				continue
			}
			c := claim{m.family, f.Type}
			if loose[c] {
				c = claim{}
			}
			if m.family != last {
				last, kinds = m.family, 0
				// The TYPE line of a counter has the name of its sample.
				if c.family != "" && f.Type != metric.Counter {
					take(m.family, c)
				}
			}
			for _, p := range m.points {
				if kinds&(1<<p.Kind) == 0 {
					kinds |= 1 << p.Kind
					take(m.family+p.Kind.Suffix(), c)
				}
			}
		}
	}
	return settled
}
