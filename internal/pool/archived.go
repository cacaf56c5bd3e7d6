package pool

import (
	"iter"
	"math"
	"runtime"
	"slices"
	"sync"
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
	for key := range archivedKeys(table, f.learned) {
		pos := f.learned
		f.learned++
		if s.Worker != "" {
			keep := p.retentionLocked(s, key.raw)
			if keep > 0 && p.now().Sub(table.LastFold()) > keep {
				f.gone = true
				continue
			}
			f.keepFor(keep)
		}
		if len(key.raw) > p.limits.InForce().KeyBytes {
			p.metrics.entryErrors.With(p.spec.Name, string(store.KeyTooLong)).Inc()
			continue
		}
		err := key.err
		if err == nil {
			err = p.index.LearnParsed(f.source, key.raw, key.parsed, uint32(pos))
		}
		if err != nil {
			reason := reasonOf(err)
			p.metrics.entryErrors.With(p.spec.Name, string(reason)).Inc()
			if limit := asLimit(err); limit != nil {
				p.limitReachedLocked(p.folder.Archive().Path(), limit)
				continue
			}
			p.logger.Debug("archived entry left out", zap.ByteString("key", key.raw), zap.Error(err))
		}
	}
	values, stamps := f.source.Values(), f.source.Stamps()
	for i, pos := range f.source.Slots().All() {
		values[i], stamps[i] = table.Values()[pos], table.Stamps()[pos]
	}
}

// archivedKey is a key of an archive, and what it is parsed.
type archivedKey struct {
	raw    []byte
	parsed metric.Key
	err    error
}

// A keyBatch is some keys that follow one another in a table. It is filled again and again.
type keyBatch struct {
	text []byte
	ends []int
	keys []archivedKey
}

// keyBatchLen is how many keys a batch has.
const keyBatchLen = 256

// fill reads and parses the keys of a table from a position on.
func (b *keyBatch) fill(table *archive.Table, from int) {
	b.text, b.ends, b.keys = b.text[:0], b.ends[:0], b.keys[:0]
	for pos := from; pos < min(from+keyBatchLen, table.Len()); pos++ {
		b.text = table.AppendKey(b.text, pos)
		b.ends = append(b.ends, len(b.text))
	}
	start := 0
	for _, end := range b.ends {
		key := archivedKey{raw: b.text[start:end:end]}
		key.parsed, key.err = store.ParseKey(key.raw)
		b.keys = append(b.keys, key)
		start = end
	}
}

// yield calls yield for the keys, until it returns false.
func (b *keyBatch) yield(yield func(archivedKey) bool) bool {
	for _, key := range b.keys {
		if !yield(key) {
			return false
		}
	}
	return true
}

// archivedKeys yields the keys of a table from a position on. raw is valid until the next one. Where
// they are many, other goroutines parse them ahead; they end before it returns. The table must not
// change meanwhile.
func archivedKeys(table *archive.Table, from int) iter.Seq[archivedKey] {
	return func(yield func(archivedKey) bool) {
		batches := (table.Len() - from + keyBatchLen - 1) / keyBatchLen
		parsers := min(runtime.GOMAXPROCS(0)-1, batches-1)
		if parsers <= 0 {
			var b keyBatch
			for ; from < table.Len(); from += keyBatchLen {
				if b.fill(table, from); !b.yield(yield) {
					return
				}
			}
			return
		}
		// Each goroutine has every so many-th batch, with two on their way.
		type lane struct{ full, empty chan *keyBatch }
		lanes := make([]lane, parsers)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		defer wg.Wait()
		defer close(stop)
		for i := range lanes {
			l := lane{make(chan *keyBatch, 2), make(chan *keyBatch, 2)}
			l.empty <- &keyBatch{}
			l.empty <- &keyBatch{}
			lanes[i] = l
			wg.Go(func() { // ends when it has parsed its batches, or with stop
				for n := i; n < batches; n += parsers {
					select {
					case b := <-l.empty:
						b.fill(table, from+n*keyBatchLen)
						l.full <- b
					case <-stop:
						return
					}
				}
			})
		}
		for n := range batches {
			l := &lanes[n%parsers]
			b := <-l.full
			if !b.yield(yield) {
				return
			}
			l.empty <- b
		}
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
