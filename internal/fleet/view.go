package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/pool"
	"aggregatord/internal/relabel"
	"aggregatord/internal/view"
)

// A Selection says which pools a view is of. The zero value is all of them.
type Selection struct {
	// Pools are names; nil for all.
	Pools []string
	// Bare leaves out the labels that tell pools apart, as if the one pool were a target of its
	// own.
	Bare bool
	// Starts asks for the starts of the values. They cost a look at each, and are known for what
	// has appeared since they were asked for first.
	Starts bool
}

func (s Selection) key() string {
	if s.Pools == nil {
		return ""
	}
	key := strings.Join(s.Pools, "\xff") + "\xff"
	if s.Bare {
		key += "\xff"
	}
	return key
}

// maxJoints is how many selections are remembered. Beyond, a view costs the making of its
// layout.
const maxJoints = 1024

// joint makes the views of one selection.
type joint struct {
	mu         sync.Mutex // guards what follows
	joiner     view.Joiner
	relabeler  *relabel.Relabeler
	collisions []string
	conflicts  map[view.Conflict]bool // that were told
}

// jointOf returns what makes the views of a selection.
func (f *Fleet) jointOf(sel Selection) *joint {
	f.mu.Lock()
	defer f.mu.Unlock()
	key := sel.key()
	j := f.joints[key]
	if j == nil {
		j = &joint{relabeler: relabel.New(f.policy.MetricRelabelConfigs())}
		if len(f.joints) < maxJoints {
			f.joints[key] = j
		}
	}
	return j
}

// selected returns the pools of a selection.
func (f *Fleet) selected(sel Selection) ([]*member, error) {
	all := f.all()
	if sel.Pools == nil {
		if !slices.ContainsFunc(all, (*member).isComing) {
			return all, nil
		}
		return slices.DeleteFunc(slices.Clone(all), (*member).isComing), nil
	}
	var some []*member
	for _, name := range sel.Pools {
		i, ok := slices.BinarySearchFunc(all, name, compareMember)
		if !ok {
			return nil, fmt.Errorf("%w: %q", ErrNoPool, name)
		}
		if all[i].isComing() {
			return nil, fmt.Errorf("%w: %q", ErrComing, name)
		}
		if !slices.Contains(some, all[i]) {
			some = append(some, all[i])
		}
	}
	return some, nil
}

// View reads what the files of the selected pools hold now, and returns it joined. Pools are
// read side by side, and a view of one pool costs that pool alone. The caller must Release the
// snapshot. A pool that does not answer is left out of the view of all pools, unless that is all there is.
// The error wraps ErrNoPool, ErrComing or pool.ErrSilent, is ErrClosed, or that
// of ctx.
func (f *Fleet) View(ctx context.Context, sel Selection) (*view.Snapshot, error) {
	f.policyMu.RLock()
	defer f.policyMu.RUnlock()
	if f.isClosed() {
		return nil, ErrClosed
	}
	members, err := f.selected(sel)
	if err != nil {
		return nil, err
	}
	turns, err := f.gather(ctx, members, sel.Pools != nil, func(m *member, wanted func() bool) (*view.Snapshot, pool.Spec, error) {
		return f.take(m, wanted, sel.Starts)
	})
	if err != nil {
		return nil, err
	}
	j := f.jointOf(sel)
	j.mu.Lock()
	defer j.mu.Unlock()
	joined := j.joiner.Join(f.parts(sel, turns))
	if sel.Pools == nil {
		f.count(members, j, joined)
	}
	return f.relabel(j, sel.Pools == nil, joined), nil
}

// count brings the metrics about the view of all pools up to date.
func (f *Fleet) count(members []*member, j *joint, joined *view.Snapshot) {
	conflicts, dropped, expired := len(j.joiner.Conflicts()), 0, 0
	for _, m := range members {
		c, d, e := m.LeftOut()
		conflicts, dropped, expired = conflicts+c, dropped+d, expired+e
	}
	f.metrics.conflicts.Set(float64(conflicts))
	f.metrics.ruleDropped.Set(float64(dropped))
	f.metrics.ruleExpired.Set(float64(expired))
	f.metrics.series.Set(float64(joined.Layout.Points - expired))
	f.tellConflicts(j)
}

// peek is for gather.
func peek(m *member, _ func() bool) (*view.Snapshot, pool.Spec, error) {
	snap, err := m.Peek()
	return snap, m.Spec(), err
}

// parts puts snapshots together with what tells them apart.
func (f *Fleet) parts(sel Selection, turns []turn) []view.Part {
	parts := make([]view.Part, 0, len(turns)+1)
	if f.info != nil {
		f.info.Retain()
		parts = append(parts, view.Part{Snapshot: f.info, Name: configuration, Sole: true})
	}
	for _, t := range turns {
		if t.snap == nil {
			continue
		}
		part := view.Part{Snapshot: t.snap, Name: t.spec.Name}
		part.Target, part.External = f.labels(t.spec)
		if sel.Bare {
			part.Target = nil
		}
		parts = append(parts, part)
	}
	return parts
}

// labels returns the labels of a pool's series: those that tell it apart, and the external ones.
func (f *Fleet) labels(spec pool.Spec) (target, external []metric.Label) {
	target, external = f.policy.Labels(spec.Name, spec.RuledBy())
	if len(spec.Labels) > 0 {
		target = slices.Clone(target)
		for _, l := range spec.Labels {
			if !slices.ContainsFunc(target, func(has metric.Label) bool { return has.Name == l.Name }) {
				target = append(target, l)
			}
		}
		metric.SortLabels(target)
	}
	return target, external
}

// TargetLabels returns the labels that tell a pool apart, its name among them.
func (f *Fleet) TargetLabels(spec pool.Spec) []metric.Label {
	f.policyMu.RLock()
	defer f.policyMu.RUnlock()
	target, _ := f.labels(spec)
	return target
}

// configuration is the name of the part with the series of the configuration. No pool's name
// has a NUL.
const configuration = "\x00configuration"

// relabel returns the snapshot as it is to be served. What is worth telling of the view of all
// pools is told when it changes.
func (f *Fleet) relabel(j *joint, tell bool, snap *view.Snapshot) *view.Snapshot {
	if j.relabeler == nil {
		if tell {
			f.metrics.relabelDropped.Set(0)
			f.metrics.relabelEqual.Set(0)
		}
		return snap
	}
	out := j.relabeler.Apply(snap.Layout)
	if tell {
		f.metrics.relabelDropped.Set(float64(out.Dropped))
		f.metrics.relabelEqual.Set(float64(out.Equal))
		if !slices.Equal(out.Collisions, j.collisions) {
			j.collisions = out.Collisions
			if len(out.Collisions) > 0 {
				f.logger.Warn("metric_relabel_configs make series equal; of each the first is served",
					zap.Strings("families", out.Collisions[:min(len(out.Collisions), 20)]), zap.Int("series_left_out", out.Equal))
			} else {
				f.logger.Info("metric_relabel_configs make no series equal any more")
			}
		}
	}
	return snap.Map(out.Layout, out.From)
}

// tellConflicts logs each disagreement between pools once, when it begins and when it ends.
func (f *Fleet) tellConflicts(j *joint) {
	now := j.joiner.Conflicts()
	if len(now) == 0 && len(j.conflicts) == 0 {
		return
	}
	current := make(map[view.Conflict]bool, len(now))
	for _, c := range now {
		id := c
		id.Series = 0
		current[id] = true
		if j.conflicts[id] {
			continue
		}
		msg := "pools disagree on a metric; the newest pool's samples are served, the others' left out"
		if c.Winner.Part == configuration {
			msg = "info of the configuration has the name of a metric in files, whose samples are left out; choose another name"
		}
		f.logger.Warn(msg, zap.String("sample", c.Sample), zap.Stringer("served", c.Winner), zap.String("served_pool", c.Winner.Part),
			zap.Stringer("left_out", c.Loser), zap.String("left_out_pool", c.Loser.Part), zap.Int("series", c.Series))
	}
	for id := range j.conflicts {
		if !current[id] {
			f.logger.Info("pools agree on a metric again", zap.String("sample", id.Sample))
		}
	}
	j.conflicts = current
}

// Conflicts lists what pools disagreed on in the last view of all of them.
func (f *Fleet) Conflicts() []view.Conflict {
	f.mu.Lock()
	j := f.joints[""]
	f.mu.Unlock()
	if j == nil {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.joiner.Conflicts()
}

// infoView makes a view of the constant series of a policy, nil if there are none.
func infoView(p *policy.Policy) *view.Snapshot {
	layout := &view.Layout{}
	point := []view.Point{{Kind: view.Value}}
	infos := slices.Clone(p.Info())
	slices.SortStableFunc(infos, func(a, b policy.Info) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return metric.CompareLabels(a.Labels, b.Labels)
	})
	for _, in := range infos {
		n := len(layout.Families)
		if n == 0 || layout.Families[n-1].Name != in.Name {
			help := in.Help
			if help == "" {
				help = "From the configuration."
			}
			layout.Families = append(layout.Families,
				view.Family{Name: in.Name, Type: metric.Gauge, Shape: view.Info, Help: help, First: layout.Points})
			n++
		}
		fam := &layout.Families[n-1]
		fam.Metrics = append(fam.Metrics, view.Metric{Labels: in.Labels, Points: point})
		fam.Points++
		layout.Points++
	}
	if layout.Points == 0 {
		return nil
	}
	snap := &view.Snapshot{Layout: layout, Values: make([]float64, layout.Points)}
	for i := range snap.Values {
		snap.Values[i] = 1
	}
	return snap
}
