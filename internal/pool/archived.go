package pool

import (
	"math"
	"slices"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// shown is a source of the index that shows one table of the archive.
type shown struct {
	source  *merge.Source
	learned int // positions of the table
	// What one worker left goes after a time: soonest and last are after how long the first
	// and the last of what is shown does; 0 is never.
	soonest, last time.Duration
	// asOf is when the worker was folded last; gone says that something of it went already.
	asOf time.Time
	gone bool
}

// never is longer than anything lasts.
const never = time.Duration(math.MaxInt64)

// keepFor takes note that something is shown that goes after a time, 0 for never.
func (f *shown) keepFor(t time.Duration) {
	if t == 0 {
		t = never
	}
	f.last = max(f.last, t)
	if f.soonest == 0 {
		f.soonest = t
	}
	f.soonest = min(f.soonest, t)
}

// showChangedLocked is showAllLocked for an archive of which some tables may have changed since.
func (p *Pool) showChangedLocked() {
	a := p.folder.Archive()
	if p.generation != a.Generation() || p.archive != a {
		p.showAllLocked()
		return
	}
	for s := range a.Totals().Changed() {
		p.showLocked(s)
	}
}

// showAllLocked makes the index show the archive as it is.
func (p *Pool) showAllLocked() {
	a := p.folder.Archive()
	if p.generation != a.Generation() || p.archive != a {
		for s := range p.shown {
			p.hideLocked(s)
		}
		p.generation, p.archive, p.forget = a.Generation(), a, true
		p.retakeLocked()
	}
	for s := range a.Totals().Spaces() {
		p.showLocked(s)
	}
	for range a.Totals().Changed() {
	}
}

// retakeLocked opens staged files anew whose record is another one now that the archive was
// read: a commit that failed may have reached the disk.
func (p *Pool) retakeLocked() {
	p.identities = len(p.archive.Identities()) > 0
	for _, t := range p.staged {
		if t.file == nil || t.state == folding || t.place != staged {
			continue
		}
		if baseline, _ := p.archive.Baseline(t.record); !slices.Equal(baseline, t.baseline) {
			p.dropLocked(t)
			t.baseline = nil
			p.noteLocked(t, p.openLocked(t))
		}
	}
}

// showLocked brings the index up to date with one table of the archive.
func (p *Pool) showLocked(s archive.Space) {
	table := p.folder.Archive().Totals().Table(s)
	f := p.shown[s]
	if f != nil && f.gone && !f.asOf.Equal(table.LastFold()) {
		p.hideLocked(s) // another worker of the same ID may have left it anew
		f = nil
	}
	if f == nil {
		f = &shown{asOf: table.LastFold(), source: p.index.AddFolded(merge.SourceSpec{
			Created: table.LastFold().UnixNano(), Type: s.Type, Mode: s.Mode, ID: s.Worker, ParseKey: store.ParseKey,
			RawKey: func(slot uint32) string { return table.Key(int(slot)) },
		})}
		p.shown[s] = f
	}
	p.index.Expect(f.source, table.Len()-f.learned)
	var key []byte
	for ; f.learned < table.Len(); f.learned++ {
		key = table.AppendKey(key[:0], f.learned)
		if s.Worker != "" {
			keep := p.retentionLocked(s, key)
			if keep > 0 && p.now().Sub(table.LastFold()) > keep {
				f.gone = true
				continue
			}
			f.keepFor(keep)
		}
		if len(key) > p.limits.InForce().KeyBytes {
			p.metrics.entryErrors.With(p.spec.Name, string(store.KeyTooLong)).Inc()
			continue
		}
		if err := p.index.Learn(f.source, key, uint32(f.learned)); err != nil {
			reason := reasonOf(err)
			p.metrics.entryErrors.With(p.spec.Name, string(reason)).Inc()
			if limit := asLimit(err); limit != nil {
				p.limitReachedLocked(p.folder.Archive().Path(), limit)
				continue
			}
			p.logger.Debug("archived entry left out", zap.ByteString("key", key), zap.Error(err))
		}
	}
	values, stamps := f.source.Values(), f.source.Stamps()
	for i, pos := range f.source.Slots().All() {
		values[i], stamps[i] = table.Values()[pos], table.Stamps()[pos]
	}
}

func (p *Pool) hideLocked(s archive.Space) {
	if f := p.shown[s]; f != nil {
		p.index.Remove(f.source)
		delete(p.shown, s)
	}
}

// expireLocked drops the gauges of workers that are dead for too long, or are too many.
func (p *Pool) expireLocked(now time.Time) {
	type departed struct {
		space archive.Space
		since time.Time
	}
	a := p.folder.Archive()
	all := map[metric.Mode][]departed{}
	for s, t := range a.Totals().Spaces() {
		if s.Worker != "" {
			all[s.Mode] = append(all[s.Mode], departed{s, t.LastFold()})
		}
	}
	gone := map[string]bool{}
	for _, workers := range all {
		slices.SortStableFunc(workers, func(a, b departed) int { return b.since.Compare(a.since) })
		for i, w := range workers {
			f := p.shown[w.space]
			if f == nil {
				continue
			}
			switch age := now.Sub(w.since); {
			case age > f.last, p.archiving.GaugeWorkers > 0 && i >= p.archiving.GaugeWorkers:
				p.hideLocked(w.space)
				a.Drop(w.space)
				gone[w.space.Worker] = true
			case age > f.soonest:
				p.hideLocked(w.space)
				p.showLocked(w.space)
			}
		}
	}
	p.metrics.expired.With(p.spec.Name).Add(float64(len(gone)))
}
