package pool

import (
	"errors"
	"path/filepath"
	"slices"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// What follows is how the fold sees a pool.

var _ fold.Pool = (*Pool)(nil)

// Offer implements fold.Pool.
func (p *Pool) Offer(limit fold.Limit, name func(base string) string) (files []*fold.File, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.now()
	if limit.Files > 0 {
		p.expireLocked(now)
	}
	p.index.SetTime(unixSeconds(now))
	var bytes int64
	chosen := 0
	offer := func(t *file) {
		if !p.offerableLocked(t) {
			return
		}
		files = append(files, p.offerLocked(t))
	}
	for _, t := range p.orphans {
		if p.orphanWaitsLocked(t, limit) {
			offer(t)
		}
	}
	if !now.Before(p.partsDue) {
		p.partsDue, p.partsFrom = now.Add(p.partsEvery), time.Now()
	}
	within := func(t *file) bool {
		if chosen >= limit.Files || chosen > 0 && bytes >= limit.Bytes {
			more = limit.Files > 0
			return false
		}
		n := len(files)
		if offer(t); len(files) > n {
			chosen++
			bytes += t.file.UsedBytes()
		}
		return true
	}
	for _, t := range p.staged {
		if t.place == staged && t.state == dead && t.muted == nil && !within(t) {
			return files, more
		}
	}
	if p.rivalLocked() {
		return files, false // it looks for the same files, and breaks if they are gone
	}
	rest := p.restLocked()
	kept := p.keptGaugesLocked(now)
	// Files in which nothing is come first: all that they do is to hold descriptors.
	for _, empty := range []bool{true, false} {
		for _, t := range p.files {
			if t.state != dead || t.muted != nil || now.Sub(t.since) < rest || t.file.Empty() != empty || kept[t] == gaugesStay {
				continue
			}
			if !within(t) {
				return files, more
			}
			if t.state == folding {
				if kept[t] == gaugesExpire {
					t.offered.Expire()
				}
				t.record = name(t.name.Base)
				p.staged[t.record] = t
				t.offered.Record = t.record
			}
		}
	}
	return files, more
}

// stay is what becomes of a dead worker's gauges in mode all beside a mirror.
type stay int

const (
	gaugesFold stay = iota
	gaugesStay
	gaugesExpire
)

// keptGaugesLocked says of files of gauges in mode all what becomes of them where others read the
// directory, too: they see each dead worker's own values, so its file stays until they expire. Where
// room is short it is archived as any other.
func (p *Pool) keptGaugesLocked(now time.Time) map[*file]stay {
	if !p.folder.Mirrors() || p.room.short() || p.deferred > 0 {
		return nil
	}
	var those []*file
	for _, t := range p.files {
		if t.name.Mode == metric.All && t.state == dead && t.entries > 0 {
			those = append(those, t)
		}
	}
	slices.SortFunc(those, func(a, b *file) int { return b.since.Compare(a.since) })
	kept := make(map[*file]stay, len(those))
	for i, t := range those {
		old := p.archiving.GaugeRetention > 0 && now.Sub(t.since) > p.archiving.GaugeRetention
		if kept[t] = gaugesStay; old || p.archiving.GaugeWorkers > 0 && i >= p.archiving.GaugeWorkers {
			if kept[t] = gaugesExpire; p.policy.Says(p.spec.RuledBy()) {
				kept[t] = gaugesFold // a rule may have given them another mode
			}
		}
	}
	return kept
}

// restLocked is how long a file must be dead before it may be folded.
func (p *Pool) restLocked() time.Duration {
	if p.room.short() || p.deferred > 0 {
		return 0
	}
	return p.archiving.Rest
}

// orphanWaitsLocked reports whether there is something to archive of an orphan.
func (p *Pool) orphanWaitsLocked(t *file, limit fold.Limit) bool {
	if t.links() > 0 {
		// It may come back. Only where its time of birth is known can it be recognised then.
		if limit.Files == 0 || !t.file.Born() {
			return false
		}
	}
	if t.state == dead {
		return true
	}
	// For a daemon that is started later there is no such file: what it counted is archived while
	// a process goes on writing to it.
	return t.state == alive && t.name.Type != metric.Gauge && !p.now().Before(p.partsDue) && p.folder.Archive().Attached() &&
		p.gainedLocked(t)
}

// gainedLocked reports whether a file counts anything now.
func (p *Pool) gainedLocked(t *file) bool {
	if p.learnLocked(t, roundBytes); t.more {
		return false
	}
	if err := errors.Join(t.learnErr, t.load()); err != nil {
		p.noteLocked(t, err)
		return false
	}
	return slices.ContainsFunc(t.source.Values(), func(v float64) bool { return v != 0 })
}

// offerableLocked brings what is known of a file up to date, and reports whether it can be
// folded.
func (p *Pool) offerableLocked(t *file) bool {
	if !t.readable() || t.failure != "" {
		return false
	}
	if t.state == dead {
		if t.method != watch.MethodLease {
			return false
		}
		if granted, err := watch.AskLease(int(t.file.Fd())); err != nil || !granted {
			return false // it lives again, or nobody can tell: the next probe will say
		}
	}
	// Not learnNewLocked: another process of the same ID may have added entries since the last load,
	// and died.
	if p.learnLocked(t, sliceBytes); t.more {
		return false // the next rounds learn the rest
	}
	err := t.learnErr
	if err == nil && !t.loaded {
		err = t.load()
	}
	if err != nil {
		p.noteLocked(t, err) // it stays, with what was read of it
		return false
	}
	p.index.Observe(t.source)
	return true
}

// offerLocked hands a file to the fold.
func (p *Pool) offerLocked(t *file) *fold.File {
	f := &fold.File{
		Name: t.name, Path: t.path, Source: t.file, Record: t.record, Staged: t.place == staged, Orphan: t.place == orphan,
		Ruby: t.ruby, Alive: t.isAlive(), Baseline: t.baseline, Entries: t.entries, Slots: t.source.Slots().Numbers(), Owner: t,
	}
	// Who finds the file by another name must not count it again.
	own := 1
	if f.Staged && p.folder.Linked(t.record) {
		own = 2
	}
	if links := t.links(); f.Orphan && links > 0 || !f.Orphan && links > own {
		f.Identity = fold.IdentityOf(t.file)
	}
	f.LongKeys = t.seen[store.KeyTooLong]
	if t.limited {
		// What is beyond a limit goes with the file; what cannot be read today is kept.
		f.Keep = func(e store.Entry) bool {
			_, err := store.ParseKey(e.Key)
			return err != nil
		}
	}
	if p.policy.Says(p.spec.RuledBy()) {
		// The fold asks without the lock: what may change under it is copied.
		offered := unixSeconds(p.now())
		stamps := make([]float64, len(f.Slots))
		for k := range stamps {
			stamps[k] = t.source.Stamp(k)
		}
		f.Route = func(k int, e store.Entry) fold.Route {
			key, space, keep := p.spaceOf(t, e.Key)
			r := fold.Route{Key: key, Space: space, Stamp: e.Stamp, Keep: keep}
			switch {
			case space.Mode != metric.MostRecent:
			case k >= 0:
				r.Stamp = stamps[k]
			case r.Stamp == 0:
				r.Stamp = offered
			}
			return r
		}
	}
	t.state, t.offered = folding, f
	return f
}

// Staged implements fold.Pool.
func (p *Pool) Staged(files []*fold.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range files {
		t := f.Owner.(*file)
		if p.files[t.name.Base] == t {
			delete(p.files, t.name.Base)
		}
		t.place, t.path = staged, p.folder.Path(t.record)
		f.Path = t.path
		if !f.Linked {
			t.opened = filepath.Base(t.path)
		}
	}
}

// Return implements fold.Pool.
func (p *Pool) Return(files []*fold.File, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range files {
		t := f.Owner.(*file)
		t.offered = nil
		t.state = dead
		switch {
		case f.Alive:
			t.state = alive
		case err != nil:
			t.state = stuck
			p.noteLocked(t, err)
		}
		if t.place == named {
			delete(p.staged, t.record)
			t.record = ""
			if p.files[t.name.Base] != t { // its name was taken by another file meanwhile
				t.place = orphan
				p.orphans = append(p.orphans, t)
			}
		}
	}
}

// Swap implements fold.Pool.
func (p *Pool) Swap(files []*fold.File, change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	for _, f := range files {
		t := f.Owner.(*file)
		t.offered = nil
		if f.Identity != nil {
			p.identities = true
		}
		if f.Alive {
			t.state = alive
			t.rebase(f)
			continue
		}
		switch t.place {
		case named:
			delete(p.files, t.name.Base)
		case staged:
			delete(p.staged, t.record)
			if id := fold.IdentityOf(t.file); p.identities && f.Identity == nil && id != nil {
				p.folder.Archive().ForgetIdentity(*id) // it came back, and goes for good now
			}
		case orphan:
			p.orphans = slices.Delete(p.orphans, slices.Index(p.orphans, t), slices.Index(p.orphans, t)+1)
			p.logger.Info("file was removed by somebody else; its last values still count", zap.String("path", t.path),
				zap.Int("entries", t.source.Entries()))
		}
		p.dropLocked(t)
	}
	p.showChangedLocked()
	p.stirLocked()
	if len(p.orphans) > 0 && p.partsEvery > 0 {
		// To archive what removed files gain while their workers live takes a small part of the time.
		p.partsDue = later(p.partsDue, p.now().Add(partsPart*time.Since(p.partsFrom)))
	}
}

// partsPart is how much longer than archiving them it takes until the gains of removed files are
// archived again.
const partsPart = 20

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Change implements fold.Pool.
func (p *Pool) Change(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	p.showChangedLocked()
	p.stirLocked()
}

// Found implements fold.Pool.
func (p *Pool) Found(record string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.staged[record] == nil {
		p.takeLocked(record, p.folder.Path(record))
	}
}

// absorbForRoomLocked lets a pool that looks once read more files than may be open: it takes
// what they hold into memory, as the archive would, and closes them. Gauges of the living are
// left open. It reports whether there is any room now.
func (p *Pool) absorbForRoomLocked() (room bool) {
	for _, t := range p.files {
		if t.file == nil || t.failure != "" || t.isAlive() && t.name.Type == metric.Gauge {
			continue
		}
		before := t.state
		f := p.offerLocked(t)
		b := archive.NewBatch(p.now())
		f.Alive, f.Record, f.Identity = false, "", nil
		if err := f.Collect(b); err != nil {
			t.state, t.offered = before, nil
			continue // it changes under our eyes: it stays open
		}
		p.folder.Archive().Absorb(b)
		p.dropLocked(t)
		t.state, t.offered = absorbed, nil
		room = true
	}
	p.showAllLocked()
	return room
}
