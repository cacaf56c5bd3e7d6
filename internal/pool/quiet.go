package pool

import "aggregatord/internal/watch"

// In most rounds of most pools nothing has happened. Such a round is quiet: it costs one stat of the
// directory, one question for each worker and, once in askAllEvery rounds, one for the room there is.
// A round that asks for all is never quiet. Nothing is missed:
//
//	a file that came, went or was replaced   changes the stamp of the directory, which ends the quiet
//	a worker that died                       its speaker tells; then the round is no quiet one
//	a file that one of several holders let   is asked for in the next round that asks for all. No total
//	go, its worker being alive               depends on that: it is read as before. The live gauges in
//	                                         it are asked for by every scrape
//	a file that was cut                      is looked at in that round, too; every scrape meets it as well
//	new entries and values                   are read by every scrape, quiet or not; so that none has to
//	                                         learn many, the rounds that ask for all learn them
//	another life of a dead file, room for    there is no quiet with a file that is dead, staged, removed
//	the dead, gains, files to fold           by others, closed or unreadable, or while room is short
//	whatever else changes a file's state     calls stirLocked, which ends the quiet
//	an archive that was removed              lies in the directory, or is looked for in the next round
//	                                         that asks for all; until then nothing is to be archived

// stirLocked says that something about the pool has changed: its metrics, and that the next round
// must look at everything.
func (p *Pool) stirLocked() { p.changed, p.stirred = true, true }

// quietRound makes a round of a pool in which nothing has happened, and reports whether that is true.
// list has it read the directory though it looks unchanged.
func (p *Pool) quietRound(list bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.quiet = p.quietLocked(list)
	if p.quiet {
		p.rounds++
		p.metrics.rounds.With(p.spec.Name).Inc()
	}
	return p.quiet
}

func (p *Pool) quietLocked(list bool) bool {
	if !p.calm || p.stirred || p.growing || p.closed || p.askAllLocked() || !p.folder.Idle() || !p.lister.Unchanged() {
		return false
	}
	if p.rounds%askAllEvery == 0 {
		if p.room = roomAt(p.spec.Path); p.room.short() {
			return false
		}
		p.showRoomLocked()
	}
	if list {
		p.metrics.rescans.With(p.spec.Name).Inc()
		if listing, err := p.lister.Scan(true); err != nil || !listing.Same {
			return false // the round that follows lists once more, and compares
		}
	}
	p.looks++
	for _, t := range p.speakers {
		if t.checkedLocked(); t.state != alive {
			return false
		}
	}
	return true
}

// checkedLocked is checkLocked for a file that may have been closed since it became a speaker.
func (t *file) checkedLocked() {
	if t.readable() {
		t.pool.checkLocked(t)
	}
}

// stillQuietLocked reports whether the last round was quiet, and nothing has happened since: then
// there is nothing to fold.
func (p *Pool) stillQuietLocked() bool { return p.quiet && !p.stirred && !p.growing }

// calmLocked finds out whether the next rounds may be quiet, and chooses the speakers: one file of
// each worker. Files of which nobody can tell whether their worker lives have none.
func (p *Pool) calmLocked() bool {
	p.speakers = p.speakers[:0]
	switch {
	case !p.ready.Load(), p.scanErr != nil, p.room.short(), !p.room.Known, p.deferred > 0, p.lost, len(p.staged) > 0, len(p.orphans) > 0:
		return false
	}
	clear(p.asked)
	for _, t := range p.files {
		switch {
		case t.nameErr != nil:
			continue // another listing tells if there is a better name
		case !t.readable(), t.state != alive, t.failure != "", t.asked == 0, t.more:
			return false
		case t.method == watch.MethodNone || p.asked[t.name.ID]:
			continue
		}
		p.asked[t.name.ID] = true
		p.speakers = append(p.speakers, t)
	}
	return true
}
