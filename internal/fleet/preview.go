package fleet

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/relabel"
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
	// IdleRelabelling are the numbers of the metric_relabel_configs that match no sample.
	IdleRelabelling []int
}

// PreviewPolicy reads the directories once, as Read does, and tells what a policy would do to
// what is in them. It changes nothing in them. Limits of the policy hold for what is new
// alone, so they have no effect here.
func PreviewPolicy(ctx context.Context, opts Options, p *policy.Policy) (*Preview, error) {
	opts.Policy = nil
	var out *Preview
	err := Read(ctx, opts, func(f *Fleet, _ *view.Snapshot) (err error) {
		out, err = f.preview(ctx, p)
		return err
	})
	return out, err
}

type effectID struct {
	pool, family string
	typ          metric.Type
}

// preview compares the view without a policy with what there is by one.
func (f *Fleet) preview(ctx context.Context, p *policy.Policy) (*Preview, error) {
	effects := map[effectID]*Effect{}
	out := &Preview{}
	plain, err := f.eachMetric(ctx, func(pool string, fam *view.Family, points []int) {
		id := effectID{pool, fam.Name, fam.Type}
		e := effects[id]
		if e == nil {
			e = &Effect{Pool: pool, Family: fam.Name, Type: fam.Type, FileMode: fam.Mode, Mode: fam.Mode}
			effects[id] = e
		}
		e.Before += len(points)
	}, nil)
	if err != nil {
		return nil, err
	}
	out.Before = plain.Points
	if err := f.SetPolicy(p); err != nil {
		return nil, err
	}
	relabeler := relabel.New(p.MetricRelabelConfigs())
	var names []string // of the family each value is served in, "" if it is not
	_, err = f.eachMetric(ctx, func(pool string, fam *view.Family, points []int) {
		id := effectID{pool, fam.Name, fam.Type}
		e := effects[id]
		if e == nil {
			e = &Effect{Pool: pool, Family: fam.Name, Type: fam.Type}
			effects[id] = e
		}
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
	}, func(ruled *view.Layout) {
		names, out.After = make([]string, ruled.Points), ruled.Points
		if relabeler == nil {
			for i := range ruled.Families {
				fam := &ruled.Families[i]
				for k := range fam.Points {
					names[fam.First+k] = fam.Name
				}
			}
			return
		}
		relabeled := relabeler.Apply(ruled)
		for i := range relabeled.Layout.Families {
			fam := &relabeled.Layout.Families[i]
			for _, from := range relabeled.From[fam.First : fam.First+fam.Points] {
				names[from] = fam.Name
			}
		}
		out.IdleRelabelling = relabel.Idle(p.MetricRelabelConfigs(), ruled)
		out.After, out.Equal, out.Collisions = relabeled.Layout.Points, relabeled.Equal, relabeled.Collisions
	})
	if err != nil {
		return nil, err
	}
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
		return cmp.Or(strings.Compare(a.Family, b.Family), strings.Compare(a.Pool, b.Pool), cmp.Compare(a.Type, b.Type))
	})
	return out, nil
}

// eachMetric joins the values that were loaded last, and calls yield for each metric with the
// pool that it is from, "" for the configuration, and the indexes of its values. Before that it
// calls begin with the layout, unless that is nil.
func (f *Fleet) eachMetric(ctx context.Context, yield func(pool string, fam *view.Family, points []int),
	begin func(*view.Layout),
) (*view.Layout, error) {
	f.policyMu.RLock()
	defer f.policyMu.RUnlock()
	members := f.all()
	turns, err := f.gather(ctx, members, false, peek)
	if err != nil {
		return nil, err
	}
	parts := f.parts(Selection{}, turns)
	var joiner view.Joiner
	joined := joiner.Join(parts)
	defer joined.Release()
	if begin != nil {
		begin(joined.Layout)
	}
	i := 0
	for k := range joined.Layout.Families {
		fam := &joined.Layout.Families[k]
		for _, m := range fam.Metrics {
			part, _ := joiner.Origin(i)
			points := make([]int, len(m.Points))
			for j := range points {
				points[j] = i
				i++
			}
			name := parts[part].Name
			if name == configuration {
				name = ""
			}
			yield(name, fam, points)
		}
	}
	return joined.Layout, nil
}
