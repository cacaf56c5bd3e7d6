package fleet

import (
	"context"
	"fmt"

	"aggregatord/internal/pool"
	"aggregatord/internal/relabel"
	"aggregatord/internal/view"
)

// Explained says what made one value of a view.
type Explained struct {
	// Value is its index in the view's values.
	Value int
	// Pool is the name of the pool that it is from. Configured says that it is from the
	// configuration; then there is no account.
	Pool       string
	Configured bool
	pool.Account
	// Before names the point in Joined, the view before metric_relabel_configs.
	Before view.PointRef
}

// An Explanation is a view, and what made some of its values.
type Explanation struct {
	// View is to be released by the caller. Joined is its layout before metric_relabel_configs.
	View   *view.Snapshot
	Joined *view.Layout
	Items  []Explained
}

// explainTries is how often Explain looks again at a pool that changed meanwhile.
const explainTries = 10

// Explain joins the values that were loaded last, without reading any file, calls choose with
// the view, and accounts for the values whose indexes choose returns. The time it takes grows
// with all entries of the pools that those are from.
func (f *Fleet) Explain(ctx context.Context, choose func(*view.Snapshot) []int) (*Explanation, error) {
	f.policyMu.RLock()
	defer f.policyMu.RUnlock()
	for range explainTries {
		e, err := f.explainOnce(ctx, choose)
		if e != nil || err != nil {
			return e, err
		}
	}
	return nil, fmt.Errorf("explain: the series changed %d times meanwhile; try again", explainTries)
}

// explainOnce returns nil if the layout of a pool has changed meanwhile.
func (f *Fleet) explainOnce(ctx context.Context, choose func(*view.Snapshot) []int) (*Explanation, error) {
	members := f.all()
	turns, err := f.gather(ctx, members, false, peek)
	if err != nil {
		return nil, err
	}
	j := &joint{relabeler: relabel.New(f.policy.MetricRelabelConfigs())}
	parts := f.parts(Selection{}, turns)
	for _, p := range parts {
		p.Snapshot.Retain()
		defer p.Snapshot.Release()
	}
	joined := j.joiner.Join(parts)
	out := &Explanation{Joined: joined.Layout}
	from := func(value int) int { return value }
	if j.relabeler != nil {
		relabeled := j.relabeler.Apply(joined.Layout)
		from = func(value int) int { return int(relabeled.From[value]) }
		joined = joined.Map(relabeled.Layout, relabeled.From)
	}
	out.View = joined
	type wanted struct{ item, value int }
	byPart := map[int][]wanted{}
	for _, value := range choose(joined) {
		part, index := j.joiner.Origin(from(value))
		byPart[part] = append(byPart[part], wanted{len(out.Items), index})
		out.Items = append(out.Items, Explained{
			Value: value, Pool: parts[part].Name, Configured: parts[part].Name == configuration, Before: out.Joined.RefAt(from(value)),
		})
	}
	for part, values := range byPart {
		p := f.Pool(parts[part].Name)
		if parts[part].Name == configuration || p == nil {
			continue
		}
		changed := false
		accounts, err := p.Explain(func(now *view.Snapshot) (refs []view.PointRef) {
			if changed = now.Layout != parts[part].Snapshot.Layout; changed {
				return nil
			}
			for _, w := range values {
				refs = append(refs, now.Layout.RefAt(w.value))
				// So that the contributions add up to it: a scrape may have read the files meanwhile.
				joined.Values[out.Items[w.item].Value] = now.Values[w.value]
			}
			return refs
		})
		if err != nil || changed {
			joined.Release()
			return nil, err
		}
		for i, w := range values {
			out.Items[w.item].Account = accounts[i]
		}
	}
	return out, nil
}
