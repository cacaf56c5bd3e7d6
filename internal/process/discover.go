package process

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strconv"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// A stranger is a process that was looked into and holds no file of a pool. It may come to
// hold one later; see discoverLocked for when it is looked into again.
type stranger struct {
	ppid   int
	looked time.Time
	// denied says that it could not be looked into.
	denied bool
	listed uint64 // the last listing that has it
}

const (
	// lookAllFirst is how soon all strangers are looked into again while the process of a
	// living worker is not found; the time doubles up to lookAllLast.
	lookAllFirst, lookAllLast = 5 * time.Second, 2 * time.Minute
	// lookAllShare bounds what that costs: one part in so many of a core.
	lookAllShare = 300
	// lookAllEvery is how often all are looked into although nobody is missed: a second process
	// may have opened the files of a worker that is known.
	lookAllEvery = 10 * time.Minute
	// maxMaps is how much of a process's maps is read, in bytes: some 160,000 mappings, more
	// than vm.max_map_count allows by default.
	maxMaps = 16 << 20
	// maxFDs is how many descriptors of a process are looked at. They are listed in rising
	// order, and what is opened early and kept (source files, listening sockets) comes first.
	maxFDs = 4096
)

// held is one source file in the index of all of them, by inode.
type held struct {
	group *group
	file  *FileID
}

// index finds source files by their inodes.
type index map[uint64][]held

// match calls f for each source file that is meant. Without a name the device decides.
func (x index) match(dev, ino uint64, name []byte, f func(held)) {
	for _, h := range x[ino] {
		// On some file systems (btrfs, overlayfs) maps and stat disagree on the device.
		if h.file.Dev == dev || (len(name) > 0 && string(name) == h.file.Name) {
			f(h)
		}
	}
}

// discoverLocked finds the processes of pools. Every new process is looked into once: what
// it has inherited shows. Others are looked into when a living worker is missed, the likely
// ones first: the process that the worker ID names, then children of a pool's processes,
// then all, ever more rarely.
func (o *Observer) discoverLocked(now time.Time) {
	pids, err := o.listLocked()
	if err != nil {
		o.opts.Metrics.errors.With("list").Inc()
		return
	}
	files := index{}
	members := map[int]bool{}
	for _, g := range o.groups {
		for i := range g.files {
			f := &g.files[i]
			files[f.Ino] = append(files[f.Ino], held{g, f})
		}
		if g.pool != nil {
			for pid, p := range g.procs {
				// Of one that an earlier daemon knew, it must be found out again what it holds.
				members[pid] = !p.worker || len(p.ids) > 0
			}
		}
	}
	listing := o.generation + 1
	var unknown []int
	for _, pid := range pids {
		if s := o.strangers[pid]; s != nil {
			s.listed = listing
		} else if pid != os.Getpid() && !members[pid] {
			unknown = append(unknown, pid)
		}
	}
	for pid, s := range o.strangers {
		if s.listed != listing {
			delete(o.strangers, pid)
		}
	}
	if len(files) == 0 {
		// Nothing to look for. Whoever is new now may be a worker of a pool that is still
		// being read, and is looked into then.
		return
	}
	for _, pid := range unknown {
		o.lookLocked(files, pid, now, listing)
	}
	if missed := o.missedLocked(); len(missed) > 0 {
		for id := range missed {
			if pid, err := strconv.Atoi(id); err == nil && o.strangers[pid] != nil && !members[pid] {
				o.lookLocked(files, pid, now, listing)
			}
		}
		if missed = o.missedLocked(); len(missed) > 0 {
			for pid, s := range o.strangers {
				if members[s.ppid] {
					o.lookLocked(files, pid, now, listing)
				}
			}
			missed = o.missedLocked()
		}
		if len(missed) > 0 && o.lookAllDueLocked(now, missed) {
			o.lookAllLocked(files, now, listing)
		}
	} else if now.Sub(o.lookedAll.at) > lookAllEvery {
		o.lookAllLocked(files, now, listing)
	}
	o.lookedAll.began = true
	o.countUnreadableLocked()
	o.findMastersLocked()
}

// lookedAll is about looking into all strangers.
type lookedAll struct {
	at    time.Time
	took  time.Duration
	every time.Duration
	// missed are the worker IDs that were missed then.
	missed map[string]bool
	began  bool
}

// lookAllDueLocked reports whether it is time to look into all strangers for workers that
// are missed.
func (o *Observer) lookAllDueLocked(now time.Time, missed map[string]bool) bool {
	l := &o.lookedAll
	for id := range missed {
		if !l.missed[id] {
			l.every = lookAllFirst
		}
	}
	l.missed = missed
	return now.Sub(l.at) >= max(l.every, lookAllShare*l.took)
}

func (o *Observer) lookAllLocked(files index, now time.Time, listing uint64) {
	start := time.Now()
	for pid := range o.strangers {
		o.lookLocked(files, pid, now, listing)
	}
	l := &o.lookedAll
	l.at, l.took, l.every = now, time.Since(start), min(max(2*l.every, lookAllFirst), lookAllLast)
}

// missedLocked returns the IDs of living workers of which no process is known.
func (o *Observer) missedLocked() map[string]bool {
	var missed map[string]bool
	for _, g := range o.groups {
		if len(g.files) == 0 {
			continue
		}
		have := map[string]bool{}
		for _, p := range g.procs {
			for id := range p.ids {
				have[id] = true
			}
		}
		for i := range g.files {
			if f := &g.files[i]; !have[f.Worker] {
				if missed == nil {
					missed = map[string]bool{}
				}
				missed[f.Worker] = true
			}
		}
	}
	return missed
}

// lookLocked looks into a process, and makes it a member of the pools whose files it holds.
func (o *Observer) lookLocked(files index, pid int, now time.Time, listing uint64) {
	data, err := o.readStat(pid)
	if err != nil {
		return // it has ended
	}
	s, err := parseStat(data)
	if err != nil {
		o.failed("stat", err)
		return
	}
	st := o.strangers[pid]
	if st == nil {
		st = &stranger{}
		o.strangers[pid] = st
	}
	st.ppid, st.looked, st.listed, st.denied = s.ppid, now, listing, false
	if s.vsize == 0 {
		return // a thread of the kernel, or a process that has ended
	}
	found := map[*group]map[string]bool{}
	add := func(h held) {
		if found[h.group] == nil {
			found[h.group] = map[string]bool{}
		}
		found[h.group][h.file.Worker] = true
	}
	err1 := o.kernel.descriptors(o.path(pid, "fd"), maxFDs, func(d descriptor) {
		if d.writable && d.ino != 0 {
			files.match(d.dev, d.ino, nil, add)
		}
	})
	err2 := o.mapped(pid, files, add)
	if err := errors.Join(err1, err2); err != nil && len(found) == 0 {
		st.denied = errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EPERM)
		if !st.denied {
			o.failed("maps", err)
		}
		return
	}
	for g, ids := range found {
		delete(o.strangers, pid)
		g.adopt(pid, s, ids)
	}
}

// mapped calls add for each source file that a process has mapped for writing.
func (o *Observer) mapped(pid int, files index, add func(held)) error {
	maps, err := o.readFile(o.path(pid, "maps"), maxMaps)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(maps) {
		// Of 10,000 lines few are of shared mappings.
		if i := bytes.IndexByte(line, ' '); i < 0 || len(line) < i+5 || line[i+4] != 's' {
			continue
		}
		if m, ok := parseMapping(line); ok && m.writable() && m.ino != 0 {
			files.match(m.dev, m.ino, baseOf(m.path), add)
		}
	}
	return nil
}

// holds reports whether a process still holds a file of the group.
func (o *Observer) holds(g *group, pid int) bool {
	if len(g.files) == 0 {
		return true
	}
	files := index{}
	for i := range g.files {
		f := &g.files[i]
		files[f.Ino] = append(files[f.Ino], held{g, f})
	}
	found := false
	add := func(held) { found = true }
	err1 := o.kernel.descriptors(o.path(pid, "fd"), maxFDs, func(d descriptor) {
		if d.writable && d.ino != 0 {
			files.match(d.dev, d.ino, nil, add)
		}
	})
	if found {
		return true
	}
	err2 := o.mapped(pid, files, add)
	return found || err1 != nil || err2 != nil // in doubt it does
}

// countUnreadableLocked counts strangers that may be workers and cannot be looked into.
func (o *Observer) countUnreadableLocked() {
	o.unreadable = 0
	for _, s := range o.strangers {
		if s.denied {
			o.unreadable++
		}
	}
}

// findMastersLocked makes the parents of members masters, where they run the same program:
// a shell, systemd or a supervisor is no part of the pool.
func (o *Observer) findMastersLocked() {
	claims := map[int]int{}
	candidates := make([][]int, len(o.groups))
	for i, g := range o.groups {
		if g.pool == nil || !g.changed {
			continue
		}
		candidates[i] = g.masters()
		for _, pid := range candidates[i] {
			claims[pid]++
		}
	}
	for i, g := range o.groups {
		if g.pool == nil || !g.changed {
			continue
		}
		g.changed = false
		keep := slices.DeleteFunc(candidates[i], func(pid int) bool {
			if g.procs[pid] != nil {
				return false
			}
			if claims[pid] > 1 { // it has started several pools, so its counts are of none
				return true
			}
			return slices.ContainsFunc(o.groups,
				func(other *group) bool { return other != g && other.pool != nil && other.procs[pid] != nil })
		})
		g.setMasters(keep)
	}
}

// say logs once for a pool whether its processes are seen.
func (g *group) say() {
	seen := g.here() > 0
	if g.absent++; seen || len(g.files) == 0 {
		g.absent = 0
	}
	if seen {
		if g.told == toldAbsent {
			g.logger.Info("processes of the pool are seen; process metrics are served")
		}
		g.told = toldSeen
		return
	}
	// A pool that has just ended may have files that seem to be written to.
	if g.absent < 2 || g.told != toldNothing || !g.o.lookedAll.began {
		return
	}
	g.told = toldAbsent
	if g.o.unreadable > 0 {
		g.logger.Warn("no process of the pool is seen, so it has no process metrics; some processes may not be looked into: run the daemon as the workers' user, or grant it CAP_SYS_PTRACE; "+
			"if they are in another pid namespace, share it",
			zap.Int("hidden", g.o.unreadable))
		return
	}
	g.logger.Warn("no process of the pool is seen, so it has no process metrics; share the pid namespace with the pool " +
		"(Kubernetes: shareProcessNamespace: true in the pod; Docker: --pid=container:NAME), or turn them off with --process.disable")
}

type told int

const (
	toldNothing told = iota
	toldAbsent
	toldSeen
)

// listLocked lists all processes, or returns the last list if no process was made since.
// Then some of it may have ended, which does no harm.
func (o *Observer) listLocked() ([]int, error) {
	newest := ""
	// Its last word is the pid that was given last (proc_loadavg(5)).
	if data, err := o.readFile(o.opts.Proc+"/loadavg", 4096); err == nil {
		newest = string(data[bytes.LastIndexByte(data, ' ')+1:])
	}
	if newest != "" && newest == o.newest {
		return o.listed, nil
	}
	pids, err := listPids(o.opts.Proc)
	if err == nil {
		o.newest, o.listed = newest, pids
	}
	return pids, err
}

// listPids lists the processes in a procfs.
func listPids(root string) ([]int, error) {
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close() //nolint:errcheck // nothing was written
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// gone reports whether an error says that a process has ended.
func gone(err error) bool { return errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) }
