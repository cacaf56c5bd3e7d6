package policy

import (
	"maps"
	"slices"
	"time"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// A Ruling is what holds for a family in a pool. It never changes.
type Ruling struct {
	merge.Ruling
	// Retention is how long gauges count that a dead worker left; 0: nothing was said.
	Retention time.Duration
}

// For returns what holds for a family, given by its OpenMetrics name. It is never nil.
func (p *Policy) For(pool, family string, typ metric.Type) *Ruling {
	if p == nil {
		return nothing
	}
	own := p.pools[pool]
	if own == nil {
		own = p.other
	}
	for _, r := range own.rules {
		if r.matches(family, typ) {
			if r.Unit != "" && !hasUnit(family, r.Unit) {
				return r.unitless
			}
			return r.ruling
		}
	}
	return own.ruling
}

var nothing = &Ruling{}

// Says reports whether anything is said about the metrics of a pool, so that it is worth the
// while to ask for each.
func (p *Policy) Says(pool string) bool {
	if p == nil {
		return false
	}
	own := p.pools[pool]
	if own == nil {
		own = p.other
	}
	return len(own.rules) > 0
}

// Labels returns what is added to each series of a pool, given by its name and by the one that
// its settings have: the labels of a target, which a series' own of the name give way to, the
// pool's name among them; and the external ones, which give way to a series' own. Nobody may
// change them.
func (p *Policy) Labels(pool, settings string) (target, external []metric.Label) {
	if pool != "" {
		target = []metric.Label{{Name: "pool", Value: pool}}
	}
	if p == nil {
		return target, nil
	}
	if own := p.pools[settings]; own != nil && len(own.labels) > 0 {
		target = slices.Concat(target, own.labels)
		metric.SortLabels(target)
	}
	return target, p.external
}

// poolOf puts together what holds for a pool.
func poolOf(labels []metric.Label, rules []rule) *poolPolicy {
	out := &poolPolicy{labels: labels, rules: slices.Clone(rules), ruling: nothing}
	for i := range out.rules {
		r := &out.rules[i]
		var m merge.Ruling
		m.Rule, m.Mode, m.Drop, m.Help, m.Unit = r.name, r.GaugeMode, r.Drop, r.Help, r.Unit
		m.Shape = r.Shape
		m.ExpireAfter, m.DropZero = r.ExpireAfter.Seconds(), r.DropZeroAll
		if r.labels != nil {
			m.Labels = r.labels.apply
			if r.labels.listed != nil {
				m.Key = r.labels.key
			}
		}
		r.ruling = &Ruling{Ruling: m, Retention: r.Retention}
		m.Unit = ""
		r.unitless = &Ruling{Ruling: m, Retention: r.Retention}
	}
	return out
}

// key returns the key under which an entry is kept: without the labels that are left out, so
// that what has a million of them, and is therefore under a rule, does not fill the archive
// with what nobody sees. Labels that are renamed keep their names, so that the rule can go.
func (l *labelRule) key(dst []byte, k metric.Key) []byte {
	var room [16]metric.Label
	kept := room[:0]
	for _, has := range k.Series.Labels {
		if has.Name == "le" || has.Name == "quantile" || !l.leavesOut(has.Name) {
			kept = append(kept, has)
		}
	}
	k.Series.Labels = kept
	return store.AppendKey(dst, k)
}

// Pools lists the names of the pools of which something is said.
func (p *Policy) Pools() []string {
	if p == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(p.spec.Pools))
}
