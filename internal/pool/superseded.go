package pool

import (
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
	"aggregatord/internal/merge"
)

// A deployment may give a metric another type or mode. What workers before it have left in the
// archive is not served beside what those after it count, and would come back when nothing newer
// is there: weeks later, or for a daemon that starts while no worker is alive. So it goes.
const (
	// supersededFor is how long archived series that have lost to newer ones are kept: who rolls a
	// deployment back within that time has them again.
	supersededFor = time.Hour
	// supersededEvery is how often they are looked for.
	supersededEvery = time.Minute
)

// dropSuperseded drops archived series whose sample names a newer file has wanted for something
// else for long enough, if no file wants them for what they are. It needs the turn.
func (p *Pool) dropSuperseded() {
	lost, families := p.superseded()
	if len(lost) == 0 {
		return
	}
	dropped, err := p.folder.Drop(func(s archive.Space, raw string) bool { return lost[s][raw] })
	if dropped > 0 {
		p.metrics.superseded.With(p.spec.Name).Add(float64(dropped))
		p.logger.Info("archived series were dropped, because newer workers give these metrics another type or mode",
			zap.Strings("families", families), zap.Int("series", dropped), zap.Duration("after", supersededFor))
	}
	if err != nil {
		p.logger.Debug("what was dropped is not written yet", zap.Error(err)) // the fold has told why
	}
}

// superseded returns the keys to drop, and some of the families that they are of.
func (p *Pool) superseded() (lost map[archive.Space]map[string]bool, families []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if p.closed || p.folder.ReadOnly() || now.Before(p.supersededDue) || len(p.index.Conflicts()) == 0 || !p.folder.Archive().Attached() {
		return nil, nil
	}
	p.supersededDue = now.Add(supersededEvery)
	before := unixSeconds(now.Add(-supersededFor))
	lost, named := map[archive.Space]map[string]bool{}, map[string]bool{}
	for s, f := range p.shown {
		table := p.folder.Archive().Totals().Table(s)
		slots := f.source.Slots().Numbers()
		p.index.Losses(f.source, func(l merge.Loss) {
			if !l.Settled || l.Since > before {
				return
			}
			if lost[s] == nil {
				lost[s] = map[string]bool{}
			}
			lost[s][table.Key(int(slots[l.Entry]))] = true
			if len(named) < maxRefusedFamilies {
				named[l.Family] = true
			}
		})
	}
	return lost, slices.Sorted(maps.Keys(named))
}
