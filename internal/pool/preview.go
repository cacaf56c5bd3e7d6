package pool

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/view"
)

// An Effect is what a policy does to one family of one pool.
type Effect struct {
	Pool string
	// Family is the OpenMetrics name that the workers gave it. An info series of the policy
	// is in the pool "", of type gauge, and has nothing before.
	Family string
	Type   metric.Type
	// FileMode is a gauge's mode by the file names, Mode the one in force.
	FileMode, Mode metric.Mode
	// Rule is the name of the rule for the family, empty if there is none, and ModeByRule
	// says that it sets the mode.
	Rule       string
	ModeByRule bool
	// Before, Ruled and After are numbers of samples: without the policy, by its rules, and
	// what metric_relabel_configs leave of that.
	Before, Ruled, After int
	// Dropped says that the rule drops the family.
	Dropped bool
	// Names are the families that its samples are served in, sorted; empty if there are none.
	Names []string
}

// A Preview is what a policy would do.
type Preview struct {
	// Effects are sorted by family, then pool.
	Effects []Effect
	// Before and After are the numbers of samples of all of them.
	Before, After int
	// Equal is the number of samples left out because relabelling makes them equal to others,
	// which Collisions names the families of.
	Equal      int
	Collisions []string
}

// PreviewPolicy reads the directories once, as Read does, and tells what a policy would do to
// what is in them. It changes nothing in them. Limits of the policy hold for what is new
// alone, so they have no effect here.
func PreviewPolicy(ctx context.Context, opts Options, p *policy.Policy) (*Preview, error) {
	opts.Policy = nil
	var out *Preview
	err := Read(ctx, opts, func(v View) error {
		before := v.Layout
		if err := v.Collector.SetPolicy(p); err != nil {
			return err
		}
		after, err := v.Collector.Gather(ctx)
		if err != nil {
			return err
		}
		defer after.Release()
		out = v.Collector.preview(p, before, after)
		return nil
	})
	return out, err
}

type effectID struct {
	pool, family string
	typ          metric.Type
}

// preview compares a layout without a policy with what there is by one.
func (c *Collector) preview(p *policy.Policy, before *view.Layout, after *view.Snapshot) *Preview {
	c.mu.Lock()
	defer c.mu.Unlock()
	effects := map[effectID]*Effect{}
	each := func(layout *view.Layout, f func(e *Effect, fam *view.Family, points []int)) {
		i := 0
		for k := range layout.Families {
			fam := &layout.Families[k]
			for _, m := range fam.Metrics {
				id := effectID{c.poolOf(m), fam.Name, fam.Type}
				e := effects[id]
				if e == nil {
					e = &Effect{Pool: id.pool, Family: id.family, Type: fam.Type}
					effects[id] = e
				}
				points := make([]int, len(m.Points))
				for j := range points {
					points[j] = i
					i++
				}
				f(e, fam, points)
			}
		}
	}
	each(before, func(e *Effect, fam *view.Family, points []int) {
		e.FileMode, e.Mode = fam.Mode, fam.Mode
		e.Before += len(points)
	})
	merged := c.joinLocked()
	ruled := merged.Layout
	merged.Release()
	names := make([]string, ruled.Points) // of the family each is served in, "" if it is not
	if c.relabel == nil {
		for _, fam := range ruled.Families {
			for i := range fam.Points {
				names[fam.First+i] = fam.Name
			}
		}
	} else {
		out := c.relabel.Apply(ruled)
		for _, fam := range out.Layout.Families {
			for _, from := range out.From[fam.First : fam.First+fam.Points] {
				names[from] = fam.Name
			}
		}
	}
	each(ruled, func(e *Effect, fam *view.Family, points []int) {
		e.Mode = fam.Mode
		e.Ruled += len(points)
		for _, i := range points {
			if names[i] == "" {
				continue
			}
			e.After++
			if !slices.Contains(e.Names, names[i]) {
				e.Names = append(e.Names, names[i])
			}
		}
	})
	out := &Preview{Before: before.Points, After: after.Layout.Points}
	for _, e := range effects {
		if e.Before > 0 {
			r := p.For(e.Pool, e.Family, e.Type)
			e.Rule, e.Dropped = r.Rule, r.Drop
			e.ModeByRule = r.Mode != metric.NoMode && e.Type == metric.Gauge
			if e.ModeByRule {
				e.Mode = r.Mode
			}
		}
		slices.Sort(e.Names)
		out.Effects = append(out.Effects, *e)
	}
	slices.SortFunc(out.Effects, func(a, b Effect) int {
		return cmp.Or(strings.Compare(a.Family, b.Family), strings.Compare(a.Pool, b.Pool))
	})
	if c.relabel != nil {
		r := c.relabel.Apply(ruled)
		out.Equal, out.Collisions = r.Equal, r.Collisions
	}
	return out
}

// poolOf tells which pool a metric is of, by the label that it has been given.
func (c *Collector) poolOf(m view.Metric) string {
	for _, l := range m.AllLabels() {
		if l.Name == "pool" && slices.ContainsFunc(c.dirs, func(d *dir) bool { return d.spec.Pool == l.Value }) {
			return l.Value
		}
	}
	return ""
}
