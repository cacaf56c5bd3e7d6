package pool

import (
	"slices"

	"go.uber.org/zap"

	"aggregatord/internal/policy"
	"aggregatord/internal/relabel"
	"aggregatord/internal/view"
)

// relabeling is what becomes of merged samples, and what was told of it.
type relabeling struct {
	*relabel.Relabeler
	collisions []string
}

// newRelabeling returns nil if the policy relabels nothing.
func newRelabeling(p *policy.Policy) *relabeling {
	if r := relabel.New(p.MetricRelabelConfigs()); r != nil {
		return &relabeling{Relabeler: r}
	}
	return nil
}

// relabelLocked returns the snapshot as it is to be served. Collisions are logged when they
// change.
func (c *Collector) relabelLocked(snap *view.Snapshot) *view.Snapshot {
	if c.relabel == nil {
		c.metrics.relabelDropped.Set(0)
		c.metrics.relabelEqual.Set(0)
		return snap
	}
	out := c.relabel.Apply(snap.Layout)
	c.metrics.relabelDropped.Set(float64(out.Dropped))
	c.metrics.relabelEqual.Set(float64(out.Equal))
	if !slices.Equal(out.Collisions, c.relabel.collisions) {
		c.relabel.collisions = out.Collisions
		if len(out.Collisions) > 0 {
			c.logger.Warn("metric_relabel_configs make series equal; of each the first is served",
				zap.Strings("families", out.Collisions[:min(len(out.Collisions), 20)]), zap.Int("series_left_out", out.Equal))
		} else {
			c.logger.Info("metric_relabel_configs make no series equal any more")
		}
	}
	return snap.Map(out.Layout, out.From)
}
