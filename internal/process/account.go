package process

// How the counts of ended processes are kept.
//
// The kernel adds what a process has used to its parent's "waited for" counts when the
// parent waits for it (fields cutime, cstime and cmajflt of proc_pid_stat(5)), in one step
// with its end. So the master knows exactly what dead workers have used, also of those that
// lived and died between two samples or while the daemon was down. That does not hold if the
// parent ignores SIGCHLD, or if the parent is no process of the pool: then the value that was
// seen last is all there is.
//
// So each process p has a total of its own and of what ended below it:
//
//	total(p) = own(p) + max(waited(p), waited when first seen + totals of its children that are gone)
//
// and a process that is gone adds its total to the gone of its parent, or to the base of the
// pool if the parent is none of ours. The pool's count is its base and the totals of the
// processes that are there. It is exact where parents wait, what was last seen where they do
// not, and counts nothing twice: both sides of max are the same ended processes.
//
// A worker may end before its parent is known to be ours. Its total is in the base then, and
// perhaps in what the parent has waited for when it is seen first. So such totals are kept by
// parent, too, and become the parent's gone when it comes: First is without them.
//
// A worker that ends while a sample reads would be counted in both places, or in neither. A
// sample is therefore read again if a parent has waited for somebody meanwhile; and what is
// served is never less than what was.

// The counts that the kernel hands to the parent.
const (
	cpuTicks = iota
	majorFaults
	waitedKinds
)

// The counts that it does not hand on, or, as those of input and output, mixes with the
// parent's own.
const (
	readBytes = iota
	writtenBytes
	voluntarySwitches
	involuntarySwitches
	ownKinds
)

// account is what is counted of one process. It is part of the state that is kept.
type account struct {
	// Own and Waited are what was read last; First is Waited when it was read first.
	Own    [waitedKinds]uint64 `json:"own"`
	Waited [waitedKinds]uint64 `json:"waited"`
	First  [waitedKinds]uint64 `json:"first"`
	// Gone are the totals of children that have ended since then.
	Gone [waitedKinds]uint64 `json:"gone"`
	// Plain are the counts of ownKinds.
	Plain [ownKinds]uint64 `json:"plain"`
}

func (a *account) total(kind int) uint64 {
	return a.Own[kind] + max(a.Waited[kind], a.First[kind]+a.Gone[kind])
}

// reaps reports whether the process waits for its children, as far as is known: what they
// used has reached it.
func (a *account) reaps() bool {
	return a.Gone[cpuTicks] == 0 || a.Waited[cpuTicks] > a.First[cpuTicks]
}

// read takes over what a sample has read. Values that fall are of a kernel that adds up
// inexactly; the greater one stays.
func (a *account) read(s *stat) {
	own := [waitedKinds]uint64{cpuTicks: s.utime + s.stime, majorFaults: s.majflt}
	waited := [waitedKinds]uint64{cpuTicks: s.cutime + s.cstime, majorFaults: s.cmajflt}
	for k := range waitedKinds {
		a.Own[k] = max(a.Own[k], own[k])
		a.Waited[k] = max(a.Waited[k], waited[k])
	}
}

// base is what processes have counted that are gone, and whose parents are not ours.
type base struct {
	Waited [waitedKinds]uint64 `json:"waited"`
	Plain  [ownKinds]uint64    `json:"plain"`
}

// maxOrphans bounds how many parents there are of which children are known that ended before them.
const maxOrphans = 64

// orphans are the totals of processes that are gone and whose parent was none of ours, by the pid of
// that parent. They are part of the base, and of the state that is kept.
type orphans map[int]orphaned

type orphaned struct {
	Totals [waitedKinds]uint64 `json:"totals"`
	// Start is when the last of them started, in clock ticks after boot: its parent is no younger.
	Start uint64 `json:"start"`
}

// add takes note of a process that is gone. Of too many parents, that of the oldest children is
// forgotten.
func (o orphans) add(parent int, start uint64, a *account) {
	gone := o[parent]
	for k := range waitedKinds {
		gone.Totals[k] += a.total(k)
	}
	gone.Start = max(gone.Start, start)
	o[parent] = gone
	if len(o) <= maxOrphans {
		return
	}
	oldest := parent
	for pid, other := range o {
		if other.Start < o[oldest].Start {
			oldest = pid
		}
	}
	delete(o, oldest)
}

// join moves the totals of a process's children from the base to the process, which is seen first.
func (o orphans) join(b *base, pid int, start uint64, a *account) {
	gone, ok := o[pid]
	delete(o, pid)
	if !ok || gone.Start < start {
		return // those were children of an earlier process with that pid
	}
	for k, n := range gone.Totals {
		n = min(n, b.Waited[k]) // more is only in a state that somebody has written
		b.Waited[k] -= n
		a.Gone[k] += n
		a.First[k] -= min(a.First[k], n)
	}
}

// retire takes the counts of a process that is gone: parent is the account of its parent, or
// nil if that is none of ours.
func (b *base) retire(a, parent *account) {
	for k := range waitedKinds {
		if parent != nil {
			parent.Gone[k] += a.total(k)
		} else {
			b.Waited[k] += a.total(k)
		}
	}
	for k := range ownKinds {
		// The kernel adds input and output to the parent's own at wait(2), which it does not
		// do with context switches.
		if parent != nil && (k == readBytes || k == writtenBytes) && parent.reaps() {
			continue
		}
		b.Plain[k] += a.Plain[k]
	}
}
