package pool

import (
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// askAllEvery is after how many rounds every file is asked for. In the rounds between, one
// file stands for its worker as long as it is alive. Where file system events would tell of a file that
// somebody cuts, and of one that grows, askSeldomEvery takes its place in rounds that may be quiet.
const (
	askAllEvery    = 5
	askSeldomEvery = 15
)

// askAllLocked reports whether this round asks for every file. The rounds of several pools in which
// that is so are not the same.
func (p *Pool) askAllLocked() bool {
	n := p.rounds + p.phase
	return n%askAllEvery == 0 && (p.disturbed || !p.calm || n%askSeldomEvery == 0)
}

// SetWatched says whether file system events of the directory arrive, and are told by Disturb.
func (p *Pool) SetWatched(watched bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched = watched
	p.disturbed = p.disturbed || !watched
}

// Undisturbed reports whether the last round was quiet, and events would tell of what is done to files.
func (p *Pool) Undisturbed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.watched && !p.disturbed && p.stillQuietLocked()
}

// Disturb says that something was done to the directory, or to a file in it.
func (p *Pool) Disturb() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disturbed = true
}

// probeLiveLocked asks for the processes that live gauges depend on: a ghost must not be
// served for a second.
func (p *Pool) probeLiveLocked() {
	for _, t := range p.opened.ofLiveModes() {
		if t.readable() && t.asked != p.looks {
			p.checkLocked(t)
		}
	}
}

// probeLocked finds out which processes are alive.
func (p *Pool) probeLocked() {
	all := p.askAllLocked()
	clear(p.asked)
	p.awaits = false
	for t := range p.allLocked() {
		switch {
		case !t.readable():
		case t.asked == p.looks:
			// A moment ago, when it was opened.
		case t.state == alive && !all && t.asked > 0 && p.asked[t.name.ID]:
			// Another file of the worker is held open, so the worker is alive.
		case t.state == dead && !all && !t.source.Live():
			// Nothing that is served depends on it, and what it holds is read all the same. Each
			// question takes a lease for a moment, and whoever opens the file in it waits for us.
		default:
			p.checkLocked(t)
			if all && t.state == alive {
				t.file.Look() //nolint:errcheck // the next load tells of it
			}
			if t.state == alive && t.method != watch.MethodNone {
				p.asked[t.name.ID] = true
			}
		}
		p.awaits = p.awaits || t.state == dead
	}
	for t := range p.allLocked() {
		// Where one file tells that a worker is dead, its others are asked now.
		if t.readable() && t.state == alive && t.asked != p.looks && !p.asked[t.name.ID] {
			p.checkLocked(t)
		}
	}
	p.rounds++
}

// checkLocked asks whether anybody can still write to one file. That of a dead process is
// read on: between two checks another one with the same ID may have counted in it and died.
func (p *Pool) checkLocked(t *file) {
	answer, method := p.ask(t, t.file)
	t.method, t.asked = method, p.looks
	p.setAliveLocked(t, answer.MayWrite())
}

// ask is for several goroutines.
func (p *Pool) ask(t *file, f *store.File) (watch.State, watch.Method) {
	id := f.Identity()
	return p.prober.Check(watch.FileRef{Fd: f.Fd(), Dev: id.Dev, Ino: id.Ino, ID: t.name.ID})
}

func (p *Pool) setAliveLocked(t *file, lives bool) {
	switch {
	case lives:
		t.state = alive
	case t.state == alive || t.state == unasked:
		t.state, t.since = dead, p.now()
		p.stirLocked()
	}
	if t.isAlive() != lives {
		p.stirLocked()
	}
	p.index.SetAlive(t.source, lives)
	if t.file.Settled() == lives {
		if err := t.file.SetSettled(!lives); err != nil {
			p.noteLocked(t, err)
		}
	}
}
