package pool

import (
	"time"

	"aggregatord/internal/store"
)

// To learn what is in a file takes time in proportion to its bytes, and somebody may have made it
// large on purpose. So it is done in slices, between which scrapes get their turn, and a scrape
// itself learns no more than a part: the rest follows with the next rounds.
const (
	// sliceBytes is how much is learned without letting anybody else in between.
	sliceBytes = 256 << 10
	// firstBytes takes the place of sliceBytes as long as nobody is served: most files are learned
	// at one go, while what files of their kind hold is at hand.
	firstBytes = 16 << 20
	// scrapeBytes is how much one scrape learns at most, of all files together.
	scrapeBytes = 4 << 20
	// refusedBytes is what an entry that is left out is worth beside its own bytes: it takes the
	// time of some that are known, and somebody may fill a file with the shortest of the kind.
	refusedBytes = 128
	// roundBytes is how much one round learns at least of one file, if it has as much, once the pool is
	// ready. As long as the round has taken less than roundTime it learns more. Before, a round learns
	// all: nobody is served until then.
	roundBytes = 8 << 20
	roundTime  = 500 * time.Millisecond
)

const (
	// retryAfter is how long a file of which nothing could be read stays closed.
	retryAfter = 5 * time.Second
	// youth is how long a file of which nothing can be read is held open all the same: its writer may
	// be about to make it, and somebody may remove it then, before it would be opened again.
	youth = 5 * time.Second
)

// learnLocked tells the index of entries that appeared since the last time: of about limit bytes
// at most, or of all if limit is 0. It returns how many bytes it were.
func (p *Pool) learnLocked(t *file, limit int64) (walked int64) {
	before := t.learned
	p.toll = 0
	t.more, t.learnErr = t.file.LearnSome(store.LearnOptions{MaxBytes: limit, Toll: &p.toll, Guesses: p.guessesLocked(t)},
		func(e store.Entry) {
			entry := t.entries
			if entry == 0 {
				p.identifyLocked(t, e.Key)
			}
			t.entries++
			t.learned = max(t.learned, int64(e.Slot)*8)
			if e.Err != nil {
				p.toll = refusedBytes
				p.refusedLocked(t, e, e.Err)
				return
			}
			tag := e.Tag
			if p.index.Freed() != p.guessed {
				tag = nil // the cells that tags tell of may be others' now
			}
			if err := p.index.LearnTagged(t.source, e.Key, e.Slot, tag); err != nil {
				p.toll = refusedBytes
				p.refusedLocked(t, e, err)
				return
			}
			t.loaded = false
			if t.baseline != nil {
				t.base = append(t.base, p.baselineAtLocked(t, e.Key, entry))
			}
		})
	if t.learned != before {
		p.opened.live = nil // a new entry may be of a live mode
	}
	if !t.more {
		t.source.Compact()
		return t.learned - before
	}
	return max(t.learned-before, limit)
}

// learnNewLocked is learnLocked but for files of the dead of which the next load tells whether there is
// anything to learn.
func (p *Pool) learnNewLocked(t *file, limit int64) (walked int64) {
	if !t.file.Settled() || t.unlearned() {
		return p.learnLocked(t, limit)
	}
	return 0
}

// unlearned reports whether there may be something to learn of which the next load would not tell.
// Where nothing is to be loaded, it tells nothing.
func (t *file) unlearned() bool {
	return t.learnErr != nil || t.more || !t.file.Complete() || t.source.Entries() == 0
}

// learnAllLocked learns what is new in all files, in slices, and lets go of the lock between them.
// Then it closes the files that yield nothing.
func (p *Pool) learnAllLocked() {
	files := p.opened.files // what is opened meanwhile was learned then, or comes next
	all := !p.ready.Load() || p.folder.ReadOnly()
	p.growing = false
	// Not by the pool's clock: it is the time of others that is taken.
	for start, i := time.Now(), 0; i < len(files); i++ {
		t := files[i]
		if t == nil {
			continue
		}
		before := t.entries
		for left := int64(roundBytes); t.readable() && (all || left > 0 || time.Since(start) < p.learnFor); {
			left -= p.learnNewLocked(t, sliceBytes)
			if !t.more {
				break
			}
			p.mu.Unlock()
			p.mu.Lock()
			if p.closed {
				return
			}
		}
		p.growing = p.growing || t.more || t.entries != before
	}
	short := p.shortOfDescriptorsLocked()
	for _, t := range files {
		if t != nil {
			p.closeBarrenLocked(t, short)
		}
	}
	if p.deferred > 0 {
		p.openDeferredLocked()
	}
}

// barren reports whether the file was closed because it yields nothing.
func (t *file) barren() bool { return !t.retry.IsZero() }

// shortOfDescriptorsLocked reports whether no more files may be open.
func (p *Pool) shortOfDescriptorsLocked() bool { return p.deferred > 0 || p.descriptors.Full() }

// closeBarrenLocked closes a file of which nothing could be read, unless it is young: it only holds
// a descriptor. It is looked at again after a while, or when the listing has another file of its
// name. Where descriptors are short, this goes for the young, too, and for files in which nothing is
// yet, if others wait for theirs; those of the dead are folded soon.
func (p *Pool) closeBarrenLocked(t *file, short bool) {
	if t.place != named || !t.readable() || t.entries > 0 || t.file.Entries() > 0 || p.files[t.name.Base] != t {
		return
	}
	switch {
	case t.learnErr != nil:
		if !short && p.now().Sub(t.file.Created()) < youth {
			return
		}
	case p.deferred == 0 || t.state == dead && !p.folder.ReadOnly():
		return
	}
	if t.learnErr != nil {
		p.noteLocked(t, t.learnErr)
	}
	t.retry = p.now().Add(retryAfter)
	p.dropLocked(t)
}

// openDeferredLocked opens the files that had to wait for a descriptor, as far as there are some.
func (p *Pool) openDeferredLocked() {
	deferred := 0
	for _, t := range p.files {
		if t.file != nil || t.failure != reasonTooMany {
			continue
		}
		if p.descriptors.Full() {
			deferred++
			continue
		}
		before := p.deferred
		p.enterLocked(t)
		deferred += p.deferred - before
	}
	if deferred == 0 {
		p.logger.Info("all source files are open")
	}
	p.deferred = deferred
}

// enterLocked opens a file and looks whether anything can be read of it; if not, it is closed.
func (p *Pool) enterLocked(t *file) {
	was := t.retry
	if err := p.openLocked(t); err != nil {
		if !was.IsZero() {
			t.retry = p.now().Add(retryAfter)
		}
		p.noteLocked(t, err)
		return
	}
	t.retry = time.Time{}
	p.learnLocked(t, sliceBytes)
	if p.closeBarrenLocked(t, p.shortOfDescriptorsLocked()); t.file == nil {
		return
	}
	if p.descriptors.Used() > p.descriptors.Max() {
		// It was looked at beyond the budget, and has to wait like any other.
		p.dropLocked(t)
		if t.entries > 0 {
			p.deferred++
			p.noteLocked(t, errTooManyAt(t.path))
			return
		}
		t.retry = p.now().Add(retryAfter)
		return
	}
	p.noteLocked(t, t.learnErr)
}

// retryLocked looks again at files of which nothing could be read a while ago.
func (p *Pool) retryLocked() {
	now := p.now()
	for _, t := range p.files {
		if t.file == nil && t.barren() && !now.Before(t.retry) {
			p.enterLocked(t)
		}
	}
}
