package process

import (
	"bytes"
	"cmp"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"
)

// A group is the processes whose metrics are shown together: those of a pool, or one other.
type group struct {
	o      *Observer
	name   string // of the pool
	prefix string // of the names of the standard metrics
	logger *zap.Logger

	pool   Pool    // nil for another process
	daemon *Daemon // nil for a pool
	files  []FileID

	procs map[int]*proc // by pid; those that have ended and were not waited for are among them
	// changed says that there are members since masters were looked for.
	changed bool
	seen    bool   // that there ever was a member
	since   uint64 // clock ticks after boot: a worker that has started later is seen to start
	told    told
	absent  int // samples without a process, although there are files
	omitted int

	base    base
	orphans orphans
	starts  uint64
	exits   map[string]uint64 // by reason
	slots   []uint64          // clock ticks of ended workers, by slot
	// served are the counts that were served last.
	served    base
	rest      uint64 // what slots did not have of the clock ticks served
	cgroupSum cgroupCounts

	// dirty says that the state has something that cannot be seen again; saved is when it was
	// kept last.
	dirty bool
	saved time.Time
	// failing says that keeping it has failed, and that was said.
	failing bool

	queues []listener
	// tables are the listening sockets of other network namespaces, by the inode of each.
	tables map[uint64]map[uint64]listener

	rows []row
}

// A proc is one process of a group.
type proc struct {
	pid   int
	start uint64 // clock ticks after boot: with the pid, what tells a process from all others
	account
	pidfd int // -1 if there is none
	// statFD is /proc/PID/stat, kept open; 0: it is not.
	statFD int

	stat
	fds    int // open; -1: not known
	ended  bool
	worker bool // else a master, unless it is outside
	// outside says that it holds no source file any more: it counts, since its parent will
	// have what it has used, but is none of the pool's.
	outside bool
	ids     map[string]bool
	slot    int // of a worker

	cheapAt, dearAt time.Time // when they were read last
	maxFDs          float64   // -1: not known
	pss             float64   // bytes; -1: not known
	io              bool      // that input and output could be read
	sockets         []uint64
	network         uint64 // inode of its network namespace; 0: not known
	cgroup          cgroup
	program         [2]uint64
	runtime         runtime
	confirmed       bool
}

func newGroup(o *Observer, name, namespace string, pool Pool, daemon *Daemon) *group {
	g := &group{
		o: o, name: name, prefix: "process_", pool: pool, daemon: daemon, logger: o.logger,
		procs: map[int]*proc{}, since: o.since, tables: map[uint64]map[uint64]listener{}, exits: map[string]uint64{},
		orphans: orphans{},
	}
	if namespace != "" {
		g.prefix = namespace + "_process_"
	}
	if name != "" {
		g.logger = g.logger.With(zap.String("pool", name))
	}
	return g
}

// adopt makes a process a member.
func (g *group) adopt(pid int, s stat, ids map[string]bool) {
	if len(g.procs) >= g.o.opts.MaxProcesses {
		g.omitted++
		return
	}
	p := g.add(pid, s)
	if p == nil {
		return
	}
	p.ids = ids
	if !p.worker {
		p.worker, p.outside = true, false
		g.changed = true
	}
	g.seen = true
}

// add has a process read from now on. It returns nil if that has ended.
func (g *group) add(pid int, s stat) *proc {
	if p := g.procs[pid]; p != nil && p.start == s.start {
		return p
	}
	if old := g.procs[pid]; old != nil {
		g.lose([]*proc{old})
	}
	p := &proc{
		pid: pid, start: s.start, stat: s, pidfd: g.o.kernel.hold(pid), fds: -1, maxFDs: -1, pss: -1, slot: -1,
	}
	// The descriptor is of this process if it lives now: a pid is not used twice meanwhile.
	if data, err := g.o.readStat(pid); err != nil {
		g.o.kernel.release(p.pidfd)
		return nil
	} else if again, err := parseStat(data); err != nil || again.start != s.start {
		g.o.kernel.release(p.pidfd)
		return nil
	}
	// Of children that have ended meanwhile it must be known whether the parent has waited for them.
	for g.loseChildren(pid) {
		if data, err := g.o.readStat(pid); err == nil {
			if again, err := parseStat(data); err == nil && again.start == s.start {
				s = again
			}
		}
	}
	p.stat = s
	p.read(&s)
	p.First = p.Waited
	g.orphans.join(&g.base, pid, s.start, &p.account)
	dev, ino, _ := identity(g.o.path(pid, "exe"))
	p.program = [2]uint64{dev, ino}
	g.procs[pid] = p
	return p
}

// loseChildren takes the children of a process out that have ended, and reports whether there were any.
func (g *group) loseChildren(pid int) bool {
	var lost []*proc
	for _, p := range g.procs {
		if p.ppid != pid {
			continue
		}
		if s, err := g.stat(p); err != nil || s.start != p.start {
			lost = append(lost, p)
		}
	}
	g.lose(lost)
	return len(lost) > 0
}

// masters returns the pids of the processes that have started the members. A parent is one
// if it runs the same program. A member with two children that are members is one, too.
func (g *group) masters() []int {
	children := map[int]int{}
	for _, p := range g.procs {
		if p.ids != nil && !p.ended && !p.outside {
			children[p.ppid]++
		}
	}
	var found []int
	for _, p := range g.procs {
		if p.ids == nil || p.ended || p.outside {
			continue
		}
		if children[p.pid] >= 2 {
			found = append(found, p.pid)
			continue
		}
		if up := g.procs[p.ppid]; up != nil && up.ids != nil {
			if children[up.pid] == 1 && g.procs[up.ppid] == nil && !g.sameProgram(up, up.ppid) {
				found = append(found, up.pid)
			}
			continue
		}
		if p.ppid > 0 && p.ppid != os.Getpid() && g.sameProgram(p, p.ppid) {
			found = append(found, p.ppid)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// sameProgram reports whether the process with a pid runs the same program as p.
func (g *group) sameProgram(p *proc, pid int) bool {
	if up := g.procs[pid]; up != nil {
		return up.program == p.program
	}
	dev, ino, ok := identity(g.o.path(pid, "exe"))
	return ok && p.program == [2]uint64{dev, ino}
}

// setMasters says which processes are masters. Who was one and has no more members below
// stays: it may start some again.
func (g *group) setMasters(pids []int) {
	for _, pid := range pids {
		p := g.procs[pid]
		if p == nil {
			data, err := g.o.readStat(pid)
			if err != nil {
				continue
			}
			s, err := parseStat(data)
			if err != nil {
				continue
			}
			if p = g.add(pid, s); p == nil {
				continue
			}
			delete(g.o.strangers, pid)
		}
		p.worker = false
	}
}

// master returns the oldest master, or the only process of the group, or nil.
func (g *group) master() *proc {
	var oldest *proc
	for _, p := range g.procs {
		if !p.ended && !p.worker && !p.outside && (oldest == nil || p.start < oldest.start) {
			oldest = p
		}
	}
	if oldest != nil {
		return oldest
	}
	for _, p := range g.procs { // without a master the oldest worker is the pool's beginning
		if !p.ended && !p.outside && (oldest == nil || p.start < oldest.start) {
			oldest = p
		}
	}
	return oldest
}

// here counts the processes that live.
func (g *group) here() int {
	n := 0
	for _, p := range g.procs {
		if !p.ended && !p.outside {
			n++
		}
	}
	return n
}

// workers returns the living workers, the oldest first.
func (g *group) workers() []*proc {
	var list []*proc
	for _, p := range g.procs {
		if p.worker && !p.ended {
			list = append(list, p)
		}
	}
	slices.SortFunc(list, func(a, b *proc) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.pid, b.pid)) })
	return list
}

// sorted returns all processes in the order of their pids.
func (g *group) sorted() []*proc {
	return slices.SortedFunc(maps.Values(g.procs), func(a, b *proc) int { return cmp.Compare(a.pid, b.pid) })
}

// readAttempts is how often a sample is read again because a parent has waited for a child
// meanwhile.
const readAttempts = 4

// read reads all processes of the group.
func (g *group) read(now time.Time) {
	if g.daemon != nil {
		g.follow()
	}
	consistent := false
	for range readAttempts {
		if consistent = g.readStats(); consistent {
			break
		}
	}
	g.assignSlots()
	g.readMore(now)
	g.count(consistent)
}

// follow finds the process that a pid file names.
func (g *group) follow() {
	text, err := os.ReadFile(g.daemon.PidFile)
	pid := 0
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(text[:min(len(text), 32)])))
	}
	switch {
	case err != nil || pid <= 0:
		if g.told != toldAbsent {
			g.logger.Warn("the pid file does not name a process; its metrics are absent until it does",
				zap.String("pid_file", g.daemon.PidFile), zap.String("namespace", g.daemon.Namespace), zap.Error(err))
		}
		g.told = toldAbsent
		return
	case g.procs[pid] != nil:
		return
	}
	data, err := g.o.readStat(pid)
	if err == nil {
		var s stat
		if s, err = parseStat(data); err == nil {
			var others []*proc
			for _, p := range g.procs {
				others = append(others, p)
			}
			g.lose(others)
			g.add(pid, s)
		}
	}
	if err != nil {
		if g.told != toldAbsent {
			g.logger.Warn("the process that the pid file names is not seen; its metrics are absent",
				zap.String("pid_file", g.daemon.PidFile), zap.String("namespace", g.daemon.Namespace), zap.Int("pid", pid))
		}
		g.told = toldAbsent
		return
	}
	g.told = toldSeen
}

// readStats reads what is read of every process each time. It reports whether no parent has
// waited for a child meanwhile, so that all counts are of one moment.
func (g *group) readStats() (consistent bool) {
	var lost []*proc
	parents := map[*proc]uint64{}
	for _, p := range g.procs {
		if up := g.procs[p.ppid]; up != nil {
			parents[up] = 0
		}
	}
	for p := range parents {
		if s, err := g.stat(p); err == nil {
			parents[p] = s.cutime + s.cstime
		}
	}
	for _, p := range g.procs {
		s, err := g.stat(p)
		if err != nil || s.start != p.start {
			lost = append(lost, p)
			continue
		}
		p.read(&s)
		p.stat = s
		p.ended = s.state == 'Z' || s.state == 'X' || s.state == 'x'
		if p.ended {
			continue
		}
		n, err := countDescriptors(g.o.path(p.pid, "fd"))
		if err != nil {
			g.o.failed("fd", err)
			n = -1
		}
		p.fds = n
	}
	consistent = true
	for p, before := range parents {
		if s, err := g.stat(p); err == nil && s.start == p.start && s.cutime+s.cstime != before {
			consistent = false
		}
	}
	g.lose(lost)
	return consistent
}

func (g *group) stat(p *proc) (stat, error) {
	if p.statFD == 0 && g.o.keptStats < maxKeptStats {
		// Opening it takes a third as long as reading it.
		if fd, err := g.o.kernel.open(g.o.path(p.pid, "stat")); err == nil {
			p.statFD = fd
			g.o.keptStats++
		}
	}
	var data []byte
	var err error
	if p.statFD != 0 {
		data, err = g.o.kernel.readOpenStat(&g.o.buf, p.statFD)
	} else {
		data, err = g.o.readStat(p.pid)
	}
	if err != nil {
		return stat{}, err
	}
	s, err := parseStat(data)
	if err != nil {
		g.o.failed("stat", err)
	}
	return s, err
}

// maxKeptStats bounds the descriptors of /proc/PID/stat that are kept, in all pools together.
const maxKeptStats = 128

// release gives up the descriptors of a process.
func (o *Observer) release(p *proc) {
	o.kernel.release(p.pidfd)
	p.pidfd = -1
	if p.statFD != 0 {
		o.kernel.release(p.statFD)
		p.statFD = 0
		o.keptStats--
	}
}

// lose takes processes out that have ended.
func (g *group) lose(lost []*proc) {
	if len(lost) == 0 {
		return
	}
	g.dirty, g.changed = true, true
	left := map[*proc]bool{}
	for _, p := range lost {
		left[p] = true
	}
	var settle func(p *proc)
	settle = func(p *proc) {
		delete(left, p)
		for other := range left { // children before their parents
			if other.ppid == p.pid {
				settle(other)
			}
		}
		var parent *account
		if up := g.procs[p.ppid]; up != nil && up != p && g.daemon == nil {
			parent = &up.account
		}
		g.base.retire(&p.account, parent)
		if parent == nil && g.daemon == nil && p.ppid > 0 {
			g.orphans.add(p.ppid, p.start, &p.account)
		}
		if p.worker && p.slot >= 0 {
			g.addSlot(p.slot, p.Own[cpuTicks])
		}
		if p.worker {
			reason := "unknown"
			if status, ok := g.o.kernel.ended(p.pidfd); ok {
				reason = reasonOf(status)
			} else if p.ended && p.exitCode != 0 {
				reason = reasonOf(p.exitCode)
			}
			g.exits[reason]++
		}
		g.o.release(p)
	}
	for len(left) > 0 {
		for p := range left {
			settle(p)
			break
		}
	}
	for _, p := range lost {
		if g.procs[p.pid] == p {
			delete(g.procs, p.pid)
		}
	}
}

func (g *group) addSlot(slot int, ticks uint64) {
	for len(g.slots) <= slot {
		g.slots = append(g.slots, 0)
	}
	g.slots[slot] += ticks
}

// assignSlots gives each new worker the lowest slot that is free. Workers beyond the last
// share one more.
func (g *group) assignSlots() {
	used := map[int]bool{}
	for _, p := range g.procs {
		if p.worker && p.slot >= 0 {
			used[p.slot] = true
		}
	}
	next := 0
	for _, p := range g.workers() {
		if p.slot >= 0 {
			continue
		}
		if p.start >= g.since {
			g.starts++
			g.dirty = true
		}
		for next < g.o.opts.Slots && used[next] {
			next++
		}
		p.slot = next
		used[next] = true
	}
}

// readMore reads what costs more: of new processes at once, of the others in turn.
func (g *group) readMore(now time.Time) {
	order := g.sorted()
	slices.SortStableFunc(order, func(a, b *proc) int { return a.cheapAt.Compare(b.cheapAt) })
	for _, p := range order {
		if p.ended {
			continue
		}
		if p.cheapAt.IsZero() {
			g.readCheap(p, now)
		} else if !spend(&g.o.credit.cheap, func() { g.readCheap(p, now) }) {
			break
		}
	}
	slices.SortStableFunc(order, func(a, b *proc) int { return a.dearAt.Compare(b.dearAt) })
	for _, p := range order {
		if p.ended {
			continue
		}
		if p.dearAt.IsZero() {
			g.readDear(p, now)
		} else if !spend(&g.o.credit.dear, func() { g.readDear(p, now) }) {
			break
		}
	}
}

// maxThreads is of how many threads of a process context switches are counted.
const maxThreads = 64

// readCheap reads input, output and context switches.
func (g *group) readCheap(p *proc, now time.Time) {
	p.cheapAt = now
	if g.daemon != nil {
		return
	}
	proc, err := g.o.fs.Proc(p.pid)
	if err != nil {
		return
	}
	if io, err := proc.IO(); err == nil {
		p.Plain[readBytes] = max(p.Plain[readBytes], io.ReadBytes)
		p.Plain[writtenBytes] = max(p.Plain[writtenBytes], io.WriteBytes)
		p.io = true
	} else {
		g.o.failed("io", err)
	}
	// The status of a process is that of its first thread.
	tids := []int{p.pid}
	if p.threads > 1 {
		if all, err := listPids(g.o.path(p.pid, "task")); err == nil {
			tids = all[:min(len(all), maxThreads)]
		}
	}
	var voluntary, involuntary uint64
	for _, tid := range tids {
		data, err := g.o.readFile(g.o.path(p.pid, "task/"+strconv.Itoa(tid)+"/status"), 16<<10)
		if err != nil {
			g.o.failed("status", err)
			continue
		}
		// The name of the process is in the first line and has no line feed: the kernel
		// escapes it.
		v, _ := keyValue(data, "voluntary_ctxt_switches:")
		n, _ := keyValue(data, "nonvoluntary_ctxt_switches:")
		voluntary, involuntary = voluntary+v, involuntary+n
	}
	p.Plain[voluntarySwitches] = max(p.Plain[voluntarySwitches], voluntary)
	p.Plain[involuntarySwitches] = max(p.Plain[involuntarySwitches], involuntary)
}

// readDear reads what takes long or seldom changes.
func (g *group) readDear(p *proc, now time.Time) {
	first := p.dearAt.IsZero()
	p.dearAt = now
	proc, err := g.o.fs.Proc(p.pid)
	if err != nil {
		return
	}
	if limits, err := proc.Limits(); err == nil {
		p.maxFDs = float64(limits.OpenFiles)
	} else {
		g.o.failed("limits", err)
	}
	if g.daemon != nil {
		return
	}
	dev, ino, ok := identity(g.o.path(p.pid, "exe"))
	if !first && p.worker && (!p.confirmed || (ok && p.program != [2]uint64{dev, ino})) {
		// It may have been caught between fork and exec, when it held what its parent holds.
		p.program = [2]uint64{dev, ino}
		p.confirmed = true
		if !g.o.holds(g, p.pid) && g.lives(p) {
			p.outside, p.worker, g.changed = true, false, true
			return
		}
	}
	if rollup, err := proc.ProcSMapsRollup(); err == nil {
		p.pss = float64(rollup.Pss)
	} else {
		g.o.failed("smaps_rollup", err)
	}
	_, p.network, _ = identity(g.o.path(p.pid, "ns/net"))
	p.sockets = p.sockets[:0]
	if err := g.o.kernel.descriptors(g.o.path(p.pid, "fd"), maxFDs, func(d descriptor) {
		if d.socket != 0 {
			p.sockets = append(p.sockets, d.socket)
		}
	}); err != nil {
		g.o.failed("fd", err)
	}
	if of, err := proc.Cgroups(); err == nil {
		p.cgroup = g.o.cgroups.of(g.o.path(p.pid, "root"), of)
	}
	if first || p.runtime.kind == "" {
		p.runtime = g.o.runtimeOf(p)
	}
}

// lives reports whether a process has its memory. One that is ending has given it up, and with it the
// files that it had mapped, some time before /proc tells that it has ended.
func (g *group) lives(p *proc) bool {
	s, err := g.stat(p)
	return err == nil && s.start == p.start && s.vsize > 0 && s.state != 'Z' && s.state != 'X' && s.state != 'x'
}

// count brings what is served of counters up to date.
func (g *group) count(consistent bool) {
	if consistent {
		sum := g.base
		for _, p := range g.procs {
			for k := range waitedKinds {
				if g.daemon != nil {
					sum.Waited[k] += p.Own[k]
				} else {
					sum.Waited[k] += p.total(k)
				}
			}
			for k := range ownKinds {
				sum.Plain[k] += p.Plain[k]
			}
		}
		for k := range waitedKinds {
			g.served.Waited[k] = max(g.served.Waited[k], sum.Waited[k])
		}
		for k := range ownKinds {
			g.served.Plain[k] = max(g.served.Plain[k], sum.Plain[k])
		}
	}
	if g.pool != nil {
		g.countCgroups()
	}
}

// command is what a process calls itself: its command line up to the first option, since
// those may hold secrets, or its name where it has none.
func commandOf(cmdline []byte, comm string) string {
	var words []string
	size := 0
	args := bytes.Split(bytes.TrimRight(cmdline, "\x00"), []byte{0})
	for i, arg := range args {
		if i > 0 && bytes.HasPrefix(arg, []byte("-")) {
			if string(arg) == "-m" && i+1 < len(args) { // python -m celery
				words = append(words, "-m", string(args[i+1]))
			}
			break
		}
		words = append(words, string(arg))
		if size += len(arg); size > maxCommand {
			break
		}
	}
	text := strings.TrimSpace(strings.Join(words, " "))
	if text == "" {
		text = comm
	}
	return strings.ToValidUTF8(text[:min(len(text), maxCommand)], "\uFFFD")
}

// maxCommand is how much of a command line is shown, in bytes.
const maxCommand = 256
