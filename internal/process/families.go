package process

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/metric"
	"aggregatord/internal/status"
	"aggregatord/internal/view"
)

// A family is what is told about one.
type family struct {
	name string // without _total
	help string
	typ  metric.Type
}

// The names that the clients serve; a prefix comes before them.
var (
	famCPU = family{
		"cpu_seconds",
		"Total user and system CPU time spent in seconds, of the master and all workers of the pool, those that have ended included.",
		metric.Counter,
	}
	famMaxFDs = family{
		"max_fds", "Maximum number of open file descriptors; the least of the master's and the workers' of the pool.",
		metric.Gauge,
	}
	famOpenFDs  = family{"open_fds", "Number of open file descriptors, summed over the master and the workers of the pool.", metric.Gauge}
	famResident = family{
		"resident_memory_bytes",
		"Resident memory size in bytes, summed over the master and the workers of the pool; memory that they share counts once for each.",
		metric.Gauge,
	}
	famStart = family{
		"start_time_seconds",
		"Start time of the pool's master since unix epoch in seconds; of its oldest worker if there is no master.", metric.Gauge,
	}
	famVirtual = family{
		"virtual_memory_bytes", "Virtual memory size in bytes, summed over the master and the workers of the pool.",
		metric.Gauge,
	}
)

// The same of one process that is no pool, as the client has them.
var plainHelp = map[string]string{
	famCPU.name:      "Total user and system CPU time spent in seconds, by this process and those before it.",
	famMaxFDs.name:   "Maximum number of open file descriptors.",
	famOpenFDs.name:  "Number of open file descriptors.",
	famResident.name: "Resident memory size in bytes.",
	famStart.name:    "Start time of the process since unix epoch in seconds.",
	famVirtual.name:  "Virtual memory size in bytes.",
}

// The names that no client uses begin as those of the daemon's own metrics do, so that they
// meet no metric of an application.

func gauge(name, help string) family { return family{name, help, metric.Gauge} }

func counter(name, help string) family {
	return family{strings.TrimSuffix(name, "_total"), help, metric.Counter}
}

var (
	famWorkers = gauge("aggregatord_pool_workers", "Worker processes of the pool that are alive.")
	famStarts  = counter("aggregatord_pool_worker_starts_total",
		"Worker processes seen to start. One that starts and ends between two samples is not seen.")
	famExits = counter("aggregatord_pool_worker_exits_total",
		"Worker processes seen to end, by reason: ok (status 0), error (another status), a signal, or unknown.")
	famOldest   = gauge("aggregatord_pool_oldest_worker_age_seconds", "Age of the pool's oldest living worker.")
	famYoungest = gauge("aggregatord_pool_youngest_worker_age_seconds", "Age of the pool's youngest living worker.")
	famLargest  = gauge("aggregatord_pool_largest_worker_resident_memory_bytes", "Resident memory of the worker that has most.")
	famPSS      = gauge("aggregatord_pool_proportional_memory_bytes",
		"Proportional memory (PSS) of the master and the workers: what several processes share counts once. Large pools are read in turn.")
	famThreads = gauge("aggregatord_pool_threads", "Threads of the master and the workers.")
	famFaults  = counter("aggregatord_pool_major_page_faults_total",
		"Page faults that had to wait for storage, of the master and all workers, those that have ended included.")
	famRead = counter("aggregatord_pool_read_bytes_total",
		"Bytes read from storage, by the master and all workers, those that have ended included.")
	famWritten = counter("aggregatord_pool_written_bytes_total",
		"Bytes written to storage, by the master and all workers, those that have ended included.")
	famSwitches = counter("aggregatord_pool_context_switches_total",
		"Context switches of the master and all workers, by type; of those that have ended as they were read last.")
	famThrottled = counter("aggregatord_pool_cgroup_throttled_seconds_total",
		"Time for which a CPU limit kept the control groups of the pool's processes from running. Others may be in the same groups.")
	famOOMKills = counter("aggregatord_pool_cgroup_oom_kills_total",
		"Processes that were killed because the control groups of the pool's processes had reached their memory limit.")
	famBacklog     = gauge("aggregatord_pool_listen_backlog", "Connections that wait to be accepted by the pool, by listening socket.")
	famBacklogMost = gauge("aggregatord_pool_listen_backlog_limit",
		"Connections that may wait to be accepted by the pool; further ones are refused or dropped.")

	famPython = family{"python_info", "Python platform information", metric.Gauge}
	famRuby   = family{"ruby_info", "Ruby platform information", metric.Gauge}
)

// A row is one sample of what a group shows.
type row struct {
	family family
	labels []metric.Label // sorted by name
	value  float64
}

// publish makes the rows of the last sample.
func (g *group) publish(now time.Time, why occasion) {
	g.rows = g.rows[:0]
	if g.pool != nil {
		g.o.opts.Metrics.visible.With(g.name).Set(float64(g.here()))
		if why == regular {
			g.say()
		}
		g.o.opts.Metrics.omitted.With(g.name).Set(float64(g.omitted))
		if g.omitted > 0 {
			g.logger.Debug("processes left out", zap.Int("processes", g.omitted))
		}
		g.omitted = 0
	}
	if g.seen || (g.daemon != nil && len(g.procs) > 0) {
		g.standard()
	}
	if g.pool != nil && g.seen {
		g.additional(now)
	}
	g.save(now, why == final)
}

func (g *group) add1(f family, v float64, labels ...metric.Label) {
	g.rows = append(g.rows, row{f, labels, v})
}

// own is a family with the prefix of the group.
func (g *group) own(f family) family {
	if g.daemon != nil {
		f.help = plainHelp[f.name]
	}
	f.name = g.prefix + f.name
	return f
}

// standard adds what clients serve of one process.
func (g *group) standard() {
	cpu := float64(g.served.Waited[cpuTicks]) / g.o.ticks
	if g.pool == nil || !g.o.opts.ByWorker {
		g.add1(g.own(famCPU), cpu)
		g.gauges(g.living())
		return
	}
	// By slot: what the workers in it have used as far as it was seen; master has the rest, so
	// that the sum is right.
	ticks := make(map[int]uint64)
	for slot, t := range g.slots {
		ticks[slot] = t
	}
	bySlot := map[int][]*proc{}
	var rest []*proc
	for _, p := range g.living() {
		if p.worker {
			ticks[p.slot] += p.Own[cpuTicks]
			bySlot[p.slot] = append(bySlot[p.slot], p)
		} else {
			rest = append(rest, p)
		}
	}
	var sum uint64
	for slot, t := range ticks {
		g.add1(g.own(famCPU), float64(t)/g.o.ticks, metric.Label{Name: workerLabel, Value: g.slotName(slot)})
		sum += t
	}
	if total := g.served.Waited[cpuTicks]; total > sum {
		g.rest = max(g.rest, total-sum)
	}
	g.add1(g.own(famCPU), float64(g.rest)/g.o.ticks, metric.Label{Name: workerLabel, Value: "master"})
	for slot, procs := range bySlot {
		g.gauges(procs, metric.Label{Name: workerLabel, Value: g.slotName(slot)})
	}
	g.gauges(rest, metric.Label{Name: workerLabel, Value: "master"})
}

// workerLabel is the label of what is served by worker.
const workerLabel = "worker"

func (g *group) slotName(slot int) string {
	if slot >= g.o.opts.Slots {
		return "other"
	}
	return strconv.Itoa(slot)
}

func (g *group) living() []*proc {
	return slices.DeleteFunc(g.sorted(), func(p *proc) bool { return p.ended || p.outside })
}

// gauges adds the standard gauges, and the proportional memory and the threads, of some
// processes together. What is not known of one of them is left out.
func (g *group) gauges(procs []*proc, labels ...metric.Label) {
	if len(procs) == 0 {
		return
	}
	var rss, vsize, pss, fds, threads float64
	maxFDs, start := -1.0, g.master()
	pssKnown, fdsKnown := true, true
	for _, p := range procs {
		rss += float64(p.rss) * g.o.pageSize
		vsize += float64(p.vsize)
		threads += float64(p.threads)
		if p.fds >= 0 {
			fds += float64(p.fds)
		} else {
			fdsKnown = false
		}
		if p.pss >= 0 {
			pss += p.pss
		} else {
			pssKnown = false
		}
		if p.maxFDs >= 0 && (maxFDs < 0 || p.maxFDs < maxFDs) {
			maxFDs = p.maxFDs
		}
		if len(labels) > 0 && (p == procs[0] || p.start < start.start) {
			start = p
		}
	}
	g.add1(g.own(famResident), rss, labels...)
	g.add1(g.own(famVirtual), vsize, labels...)
	g.add1(g.own(famStart), g.o.bootTime+float64(start.start)/g.o.ticks, labels...)
	if fdsKnown {
		g.add1(g.own(famOpenFDs), fds, labels...)
	}
	if maxFDs >= 0 {
		g.add1(g.own(famMaxFDs), maxFDs, labels...)
	}
	if g.daemon != nil {
		return
	}
	if pssKnown {
		g.add1(famPSS, pss, labels...)
	}
	g.add1(famThreads, threads, labels...)
}

// additional adds what is not of one process.
func (g *group) additional(now time.Time) {
	workers := g.workers()
	g.add1(famWorkers, float64(len(workers)))
	g.add1(famStarts, float64(g.starts))
	g.add1(famExits, float64(g.exits["ok"]), metric.Label{Name: "reason", Value: "ok"})
	for reason, n := range g.exits {
		if reason != "ok" {
			g.add1(famExits, float64(n), metric.Label{Name: "reason", Value: reason})
		}
	}
	if len(workers) > 0 {
		unix := float64(now.UnixNano()) / 1e9
		g.add1(famOldest, max(0, unix-g.startOf(workers[0])))
		g.add1(famYoungest, max(0, unix-g.startOf(workers[len(workers)-1])))
		largest := slices.MaxFunc(workers, func(a, b *proc) int { return cmp.Compare(a.rss, b.rss) })
		g.add1(famLargest, float64(largest.rss)*g.o.pageSize)
	}
	g.add1(famFaults, float64(g.served.Waited[majorFaults]))
	if slices.ContainsFunc(g.living(), func(p *proc) bool { return p.io }) || g.served.Plain[readBytes]+g.served.Plain[writtenBytes] > 0 {
		g.add1(famRead, float64(g.served.Plain[readBytes]))
		g.add1(famWritten, float64(g.served.Plain[writtenBytes]))
	}
	g.add1(famSwitches, float64(g.served.Plain[involuntarySwitches]), metric.Label{Name: "type", Value: "involuntary"})
	g.add1(famSwitches, float64(g.served.Plain[voluntarySwitches]), metric.Label{Name: "type", Value: "voluntary"})
	if g.cgroupSum.CPU {
		g.add1(famThrottled, float64(g.cgroupSum.ThrottledNanos)/1e9)
	}
	if g.cgroupSum.Memory {
		g.add1(famOOMKills, float64(g.cgroupSum.OOMKills))
	}
	for _, l := range g.queues {
		label := metric.Label{Name: "socket", Value: l.address}
		g.add1(famBacklog, float64(l.waiting), label)
		if l.limit > 0 {
			g.add1(famBacklogMost, float64(l.limit), label)
		}
	}
	told := map[string]bool{}
	for _, p := range g.living() {
		if r := p.runtime; r.kind != "" && !told[r.key()] {
			told[r.key()] = true
			g.add1(r.family(), 1, r.labels()...)
		}
	}
	for _, s := range g.o.sources {
		if s.Pool == g.name {
			g.rows = append(g.rows, s.told()...)
		}
	}
}

func (g *group) startOf(p *proc) float64 { return g.o.bootTime + float64(p.start)/g.o.ticks }

// snapshots makes snapshots of rows, and uses a layout again as long as its shape is the
// same.
type snapshots struct {
	layout *view.Layout
	shape  string
}

// of returns a snapshot of the rows, which it sorts.
func (s *snapshots) of(rows []row) *view.Snapshot {
	slices.SortStableFunc(rows, func(a, b row) int {
		return cmp.Or(strings.Compare(a.family.name, b.family.name), metric.CompareLabels(a.labels, b.labels))
	})
	// Equal ones are of sources that tell the same twice; the first stands.
	rows = slices.CompactFunc(rows, func(a, b row) bool {
		return a.family.name == b.family.name && metric.CompareLabels(a.labels, b.labels) == 0
	})
	var shape strings.Builder
	values := make([]float64, len(rows))
	for i, r := range rows {
		values[i] = r.value
		fmt.Fprintf(&shape, "%q%q", r.family.name, r.family.help)
		for _, l := range r.labels {
			fmt.Fprintf(&shape, "%q%q", l.Name, l.Value)
		}
	}
	if s.layout == nil || s.shape != shape.String() {
		s.layout, s.shape = layoutOf(rows), shape.String()
	}
	return &view.Snapshot{Layout: s.layout, Values: values}
}

var (
	valuePoints = []view.Point{{Kind: view.Value}}
	totalPoints = []view.Point{{Kind: view.Total}}
)

func layoutOf(rows []row) *view.Layout {
	l := &view.Layout{Points: len(rows)}
	for i, r := range rows {
		n := len(l.Families)
		if n == 0 || l.Families[n-1].Name != r.family.name {
			l.Families = append(l.Families, view.Family{Name: r.family.name, Type: r.family.typ, Help: r.family.help, First: i})
			n++
		}
		f := &l.Families[n-1]
		points := valuePoints
		if f.Type == metric.Counter {
			points = totalPoints
		}
		f.Metrics = append(f.Metrics, view.Metric{Labels: r.labels, Points: points})
		f.Points++
	}
	return l
}

// poolLabel is the label that tells pools apart where there are several.
const poolLabel = "pool"

// sampled is what one sample has found. Whoever serves it does not wait for the next one, which may
// read the memory maps of thousands of processes.
type sampled struct {
	groups []sampledGroup
	all    *view.Snapshot // nil until somebody asks for it; Observer.allMu guards it
}

type sampledGroup struct {
	name   string
	isPool bool
	rows   []row
}

// publishLocked gives what the groups have found to those who serve it.
func (o *Observer) publishLocked() {
	s := &sampled{groups: make([]sampledGroup, len(o.groups))}
	for i, g := range o.groups {
		s.groups[i] = sampledGroup{g.name, g.pool != nil, slices.Clone(g.rows)}
	}
	o.sampled.Store(s)
}

// All returns the process metrics of everything that is watched, as of the last sample: of each
// pool that has a name with the label pool, and of the other processes. Its layout is the same one
// as long as its shape is.
func (o *Observer) All() *view.Snapshot {
	o.allMu.Lock()
	defer o.allMu.Unlock()
	s := o.sampled.Load()
	if s.all == nil {
		var rows []row
		for i := range s.groups {
			rows = s.groups[i].labeled(rows)
		}
		s.all = o.shape.of(rows)
	}
	return s.all
}

// aside remembers what of a layout stands aside for another, as both seldom change.
type aside struct {
	ours, theirs *view.Layout
	layout       *view.Layout
	from         []uint32
	told         map[string]bool
}

// Some returns the process metrics of the named pools as of the last sample; bare: without the
// label pool.
func (o *Observer) Some(pools []string, bare bool) *view.Snapshot {
	var rows []row
	for _, g := range o.sampled.Load().groups {
		switch {
		case !g.isPool || !slices.Contains(pools, g.name):
		case bare:
			rows = append(rows, g.rows...)
		default:
			rows = g.labeled(rows)
		}
	}
	return new(snapshots).of(rows)
}

// labeled appends the group's rows with the label pool, if the pool has a name.
func (g *sampledGroup) labeled(rows []row) []row {
	for _, r := range g.rows {
		if g.name != "" {
			r.labels = append(slices.Clone(r.labels), metric.Label{Name: poolLabel, Value: g.name})
			metric.SortLabels(r.labels)
		}
		rows = append(rows, r)
	}
	return rows
}

// Aside returns ours without the families of which theirs, what workers have written, has a
// sample name: an application's own metrics win. It says so once for each name. Of one pair of
// layouts the answer is remembered, so whoever asks again and again asks of the same two; for
// others there is AsideOnce.
func (o *Observer) Aside(ours *view.Snapshot, theirs *view.Layout) *view.Snapshot {
	o.asideMu.Lock()
	defer o.asideMu.Unlock()
	a := &o.aside
	if a.ours != ours.Layout || a.theirs != theirs {
		if a.told == nil {
			a.told = map[string]bool{}
		}
		var left []string
		a.ours, a.theirs = ours.Layout, theirs
		a.layout, a.from, left = standAside(ours.Layout, theirs)
		for _, name := range left {
			if !a.told[name] {
				a.told[name] = true
				o.logger.Info("workers write a metric of this name themselves; theirs is served, and the daemon's own is not",
					zap.String("family", name))
			}
		}
		o.opts.Metrics.aside.Set(float64(len(left)))
	}
	return mapAside(ours, a.layout, a.from)
}

// AsideOnce is Aside that remembers and says nothing.
func AsideOnce(ours *view.Snapshot, theirs *view.Layout) *view.Snapshot {
	layout, from, _ := standAside(ours.Layout, theirs)
	return mapAside(ours, layout, from)
}

func mapAside(ours *view.Snapshot, layout *view.Layout, from []uint32) *view.Snapshot {
	if layout == ours.Layout {
		return ours
	}
	return ours.Map(layout, from)
}

// standAside returns the layout of what is left of ours, the points of ours it is made of, and
// the names of those that stood aside. If none did, it is our layout itself.
func standAside(ours, theirs *view.Layout) (layout *view.Layout, from []uint32, left []string) {
	names := map[string]bool{}
	for i := range theirs.Families {
		f := &theirs.Families[i]
		names[f.Name] = true
		if len(f.Metrics) > 0 {
			for _, p := range f.Metrics[0].Points {
				names[f.Name+p.Kind.Suffix()] = true
			}
		}
	}
	layout = &view.Layout{}
	for _, f := range ours.Families {
		sample := f.Name
		if f.Type == metric.Counter {
			sample += "_total"
		}
		if names[f.Name] || names[sample] {
			left = append(left, sample)
			continue
		}
		for i := range f.Points {
			from = append(from, uint32(f.First+i))
		}
		f.First = layout.Points
		layout.Points += f.Points
		layout.Families = append(layout.Families, f)
	}
	if len(left) == 0 {
		return ours, nil, nil
	}
	return layout, from, left
}

// Processes lists all processes that are watched, for whoever asks.
func (o *Observer) Processes() []status.Process {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := []status.Process{}
	for _, g := range o.groups {
		for _, p := range g.living() {
			s := status.Process{
				Pool: g.name, Pid: p.pid, Role: "master", Parent: p.ppid,
				Started:       g.startOf(p),
				CPUSeconds:    float64(p.Own[cpuTicks]) / o.ticks,
				ResidentBytes: int64(p.rss) * int64(o.pageSize), VirtualBytes: int64(p.vsize),
				Threads: int(p.threads), OpenFDs: p.fds,
			}
			if p.worker {
				s.Role = "worker"
				s.Slot = &p.slot
			}
			if g.daemon != nil {
				s.Role, s.Namespace = "other", g.daemon.Namespace
			}
			if p.pss >= 0 {
				pss := int64(p.pss)
				s.ProportionalBytes = &pss
			}
			for id := range p.ids {
				s.Workers = append(s.Workers, id)
			}
			slices.Sort(s.Workers)
			for i := range g.files {
				if p.ids[g.files[i].Worker] {
					s.Files++
				}
			}
			cmdline, err := o.readFile(o.path(p.pid, "cmdline"), 4096)
			if err != nil {
				cmdline = nil
			}
			s.Command = commandOf(cmdline, p.comm)
			list = append(list, s)
		}
	}
	return list
}
