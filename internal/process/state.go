package process

import (
	"encoding/json"
	"fmt"
	"time"

	"go.uber.org/zap"
)

// state is what must be kept of a group so that its counters do not fall with the next
// daemon. It says nothing that the living processes show.
type state struct {
	Version int `json:"version"`
	// Boot tells this run of the machine, and this pid namespace, from others: processes of
	// another one are gone.
	Boot string `json:"boot"`
	Base base   `json:"base"`
	// Orphans are those totals in Base that a parent may come for.
	Orphans orphans `json:"orphans,omitempty"`
	Starts  uint64  `json:"starts"`
	// At is when the state was made, in clock ticks after boot: who started later is new.
	At        uint64            `json:"at"`
	Exits     map[string]uint64 `json:"exits,omitempty"`
	Slots     []uint64          `json:"slots,omitempty"`
	Processes []keptProcess     `json:"processes,omitempty"`
}

// stateVersion is the version of the form of state.
const stateVersion = 1

// A keptProcess is one that lived when the state was made.
type keptProcess struct {
	Pid     int     `json:"pid"`
	Start   uint64  `json:"start"`
	Parent  int     `json:"parent"`
	Worker  bool    `json:"worker,omitempty"`
	Slot    int     `json:"slot"`
	Account account `json:"account"`
}

// maxState bounds what is believed of a state, in bytes; 4096 processes need 1 MB or so.
const maxState = 16 << 20

// maxExits is how many ways to end a process has: signals, statuses, and not known.
const maxExits = 512

// saveEvery is how often the state is kept although nothing is in it that cannot be seen.
const saveEvery = time.Minute

func (g *group) state() []byte {
	s := state{
		Version: stateVersion, Boot: g.o.bootID, Base: g.base, Orphans: g.orphans, Starts: g.starts, At: uptime(), Exits: g.exits,
		Slots: g.slots,
	}
	for _, p := range g.sorted() {
		s.Processes = append(s.Processes, keptProcess{p.pid, p.start, p.ppid, p.worker, p.slot, p.account})
	}
	data, err := json.Marshal(s)
	if err != nil {
		panic(fmt.Sprintf("BUG: state of processes has no JSON: %v", err))
	}
	return data
}

// restore takes over what state has returned, before the first Sample of the pool. An error
// says that the state is damaged or of a newer program; nothing is taken over then.
func (g *group) restore(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	if len(data) > maxState {
		return fmt.Errorf("state of processes has %d bytes", len(data))
	}
	var s state
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("state of processes: %w", err)
	}
	if s.Version != stateVersion {
		return fmt.Errorf("state of processes has version %d, this program reads %d", s.Version, stateVersion)
	}
	if len(s.Orphans) > maxOrphans {
		return fmt.Errorf("state of processes has children of %d parents that are none of the pool", len(s.Orphans))
	}
	if len(s.Exits) > maxExits {
		return fmt.Errorf("state of processes has %d ways to end", len(s.Exits))
	}
	g.base, g.starts = s.Base, s.Starts
	if s.Exits != nil {
		g.exits = s.Exits
	}
	g.slots = s.Slots[:min(len(s.Slots), g.o.opts.Slots+1)]
	if g.since = s.At; s.Boot != g.o.bootID {
		g.since = 0
	}
	for i := range s.Processes {
		k := &s.Processes[i]
		if k.Slot < 0 || k.Slot > g.o.opts.Slots {
			k.Slot = -1
		}
		p := &proc{pid: k.Pid, start: k.Start, account: k.Account, worker: k.Worker, slot: k.Slot, pidfd: -1, fds: -1, maxFDs: -1, pss: -1}
		p.ppid = k.Parent
		if s.Boot != g.o.bootID {
			p.pid = -1 - i // no process has it, so it is gone
			p.ppid = 0
		}
		g.procs[p.pid] = p
	}
	if s.Boot != g.o.bootID {
		g.lose(g.sorted())
		return nil
	}
	if len(s.Orphans) > 0 {
		g.orphans = s.Orphans
	}
	// Those that still live are what they were; the first sample finds out who does.
	for _, p := range g.procs {
		if p.worker {
			p.ids = map[string]bool{}
			g.seen = true
		}
		if _, err := g.stat(p); err == nil {
			p.pidfd = g.o.kernel.hold(p.pid)
		}
		dev, ino, _ := identity(g.o.path(p.pid, "exe"))
		p.program = [2]uint64{dev, ino}
	}
	g.changed = true
	return nil
}

// load has a new group go on where an earlier daemon has stopped.
func (g *group) load() {
	if g.o.opts.Store == nil {
		return
	}
	data, err := g.o.opts.Store.Load(g.name)
	if err == nil {
		err = g.restore(data)
	}
	if err != nil {
		g.o.opts.Metrics.stateErrs.Inc()
		g.logger.Warn("what was counted of the pool's processes is not known; their counters begin anew", zap.Error(err))
	}
}

// save keeps the state if it should be.
func (g *group) save(now time.Time, last bool) {
	if g.o.opts.Store == nil || g.pool == nil || !g.seen {
		return
	}
	if !g.dirty && !last && now.Sub(g.saved) < saveEvery {
		return
	}
	g.saved = now
	err := g.o.opts.Store.Save(g.name, g.state())
	if err == nil {
		g.dirty, g.failing = false, false
		return
	}
	g.o.opts.Metrics.stateErrs.Inc()
	if !g.failing {
		g.logger.Warn("the state of the process counters could not be saved; they may fall after a restart", zap.Error(err))
	}
	g.failing = true
}

// Save keeps what the last sample has of a pool that is about to go: as soon as it is gone, its
// Store has no place for it.
func (o *Observer) Save(pool string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, g := range o.groups {
		if g.pool != nil && g.name == pool {
			g.save(time.Now(), true)
		}
	}
}

// drop ends a group whose pool is no more.
func (g *group) drop() {
	g.save(time.Time{}, true)
	for _, p := range g.procs {
		g.o.release(p)
	}
	g.o.opts.Metrics.visible.Remove(g.name)
	g.o.opts.Metrics.omitted.Remove(g.name)
}
