package pool

import (
	"aggregatord/internal/fold"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/watch"
)

// Metrics are the room's own metrics.
type Metrics struct {
	files       telemetry.GaugeVec   // pool, state, dialect
	workers     telemetry.GaugeVec   // pool, state
	entries     telemetry.GaugeVec   // pool
	directoryUp telemetry.GaugeVec   // pool
	liveness    telemetry.GaugeVec   // pool, method
	fileErrors  telemetry.CounterVec // pool, reason
	entryErrors telemetry.CounterVec // pool, reason
	rescans     telemetry.CounterVec // pool
	rounds      telemetry.CounterVec // pool
	scanErrors  telemetry.CounterVec // pool
	passes      telemetry.Counter
	entriesRead telemetry.Counter
	passSeconds telemetry.Histogram

	refused telemetry.CounterVec // pool, family, reason

	directoryBytes, directoryInodes telemetry.GaugeVec // pool, what

	archiveUp, archiveSeries, archiveUnsaved, archiveBytes telemetry.GaugeVec // pool
	awaiting, removing                                     telemetry.GaugeVec // pool
	expired, merged, superseded                            telemetry.CounterVec
	folds                                                  *fold.Vectors
	set                                                    *telemetry.Set
}

// NewMetrics adds the room's metrics to set.
func NewMetrics(set *telemetry.Set) *Metrics {
	return &Metrics{
		files: set.GaugeVec("aggregatord_files",
			"Files in the directory: alive or dead (its process can no longer write), removed (by somebody else, its process alive), failed, or foreign.", "pool", "state", "dialect"),
		workers: set.GaugeVec("aggregatord_workers", "Worker IDs with a source file; alive if any of the files is.", "pool", "state"),
		entries: set.GaugeVec("aggregatord_entries", "Entries of the source files that are merged at a scrape.", "pool"),
		directoryUp: set.GaugeVec("aggregatord_directory_up",
			"1 if the directory could be listed the last time; 0 as well while it does not answer: then the pool is left out of the view of all pools.", "pool"),
		liveness: set.GaugeVec("aggregatord_liveness_files",
			"Source files by how it is known whether their process lives: lease, proc, or none (taken as alive).", "pool", "method"),
		fileErrors: set.CounterVec("aggregatord_file_errors_total",
			"Times a source file became unreadable, by reason; the log names the file.", "pool", "reason"),
		entryErrors: set.CounterVec("aggregatord_entry_errors_total",
			"Entries of source files left out, by reason; the log names the first of each file.", "pool", "reason"),
		rescans: set.CounterVec("aggregatord_rescans_total", "Times the directory was listed.", "pool"),
		rounds: set.CounterVec("aggregatord_rounds_total",
			"Times the pool's files and their processes were looked after; if it stands still, the directory does not answer.", "pool"),
		scanErrors:  set.CounterVec("aggregatord_scan_errors_total", "Times the directory could not be listed.", "pool"),
		passes:      set.Counter("aggregatord_merge_passes_total", "Times all source files were read and merged."),
		entriesRead: set.Counter("aggregatord_entries_read_total", "Values loaded from source files."),
		passSeconds: set.Histogram("aggregatord_merge_duration_seconds", "Time to read and merge all source files for one scrape.",
			[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}),

		refused: set.CounterVec("aggregatord_refused_entries_total",
			"Entries of source files left out because of a limit, by family; the first hundred families by name.", "pool", "family",
			"reason"),

		directoryBytes: set.GaugeVec("aggregatord_directory_bytes",
			"Bytes of the directory's file system; when a tmpfs has none free, the next value a worker stores kills it.", "pool", "kind"),
		directoryInodes: set.GaugeVec("aggregatord_directory_inodes", "Inodes of the directory's file system.", "pool", "kind"),

		archiveUp: set.GaugeVec("aggregatord_archive_up",
			"1 if the archive is open and could be written the last time; 0: no file is removed. Absent with --archive.disable.", "pool"),
		archiveSeries: set.GaugeVec("aggregatord_archive_series", "Keys in the archive.", "pool"),
		archiveUnsaved: set.GaugeVec("aggregatord_archive_unsaved_series",
			"Keys whose archived values are in memory only, because the archive could not be written yet.", "pool"),
		archiveBytes: set.GaugeVec("aggregatord_archive_bytes", "Size of the archive file.", "pool"),
		awaiting:     set.GaugeVec("aggregatord_archive_awaiting_files", "Dead workers' files that are not archived yet.", "pool"),
		removing:     set.GaugeVec("aggregatord_archive_removing_files", "Archived files that are about to be removed.", "pool"),
		expired: set.CounterVec("aggregatord_archive_expired_workers_total",
			"Dead workers whose gauges in mode all were dropped by retention.", "pool"),
		superseded: set.CounterVec("aggregatord_archive_superseded_series_total",
			"Archived series dropped an hour after newer workers gave their metric another type or mode.", "pool"),
		merged: set.CounterVec("aggregatord_merged_elsewhere_files_total",
			"Dead workers' files that another archiver merged into a file of its own and removed.", "pool"),
		folds: fold.NewVectors(set), set: set,
	}
}

// prepare makes a pool's counters, so that they are there before they count and the first
// event is an increase, too.
func (m *Metrics) prepare(pool string) {
	for _, v := range []telemetry.CounterVec{m.rescans, m.rounds, m.scanErrors, m.expired, m.merged, m.superseded} {
		v.With(pool)
	}
	for _, reason := range fileReasons() {
		m.fileErrors.With(pool, string(reason))
	}
	for _, reason := range entryReasons() {
		m.entryErrors.With(pool, string(reason))
	}
}

// forget stops serving what is about a pool.
func (m *Metrics) forget(pool string) { m.set.Forget("pool", pool) }

// fileGauge is the labels of a series of aggregatord_files.
type fileGauge struct{ state, dialect string }

// UpdateMetrics brings the gauges that describe the pool up to date, if anything has changed
// since Tend did so. Those of a pool that does not answer stay, but for that its directory is not up.
func (p *Pool) UpdateMetrics() {
	if !p.mu.lockWithin(p.patience) {
		if !p.shownSilent.Swap(true) {
			p.metrics.directoryUp.With(p.spec.Name).Set(0)
		}
		return
	}
	defer p.mu.Unlock()
	if (p.shownSilent.Swap(false) || p.changed) && !p.closed {
		p.updateMetricsLocked()
	}
}

// updateMetricsLocked brings the gauges that describe the pool up to date.
func (p *Pool) updateMetricsLocked() {
	p.changed = false
	m, pool := p.metrics, p.spec.Name
	files := make(map[fileGauge]int, len(p.gauges))
	for g := range p.gauges {
		files[g] = 0
	}
	files[fileGauge{"failed", ""}] = 0
	files[fileGauge{"foreign", ""}] = p.foreign
	methods := map[watch.Method]int{}
	entries, awaiting := 0, 0
	for t := range p.allLocked() {
		g := fileGauge{string(t.describe()), ""}
		if FileState(g.state) != FileFailed {
			g.dialect = t.dialect()
		}
		files[g]++
		if t.file != nil {
			entries += t.source.Entries()
			if t.answered() {
				methods[t.method]++
			}
			if !t.isAlive() {
				awaiting++
			}
		}
	}
	for g, n := range files {
		gauge, ok := p.gauges[g]
		if !ok {
			gauge = m.files.With(pool, g.state, g.dialect)
			p.gauges[g] = gauge
		}
		gauge.Set(float64(n))
	}
	if p.own == nil {
		p.own = m.gaugesOf(pool, !p.folder.ReadOnly())
	}
	own := p.own
	for method := range watch.Method(watch.Methods) {
		own.liveness[method].Set(float64(methods[method]))
	}
	own.alive.Set(float64(p.census.alive))
	own.dead.Set(float64(len(p.census.workers) - p.census.alive))
	own.entries.Set(float64(entries))
	own.directoryUp.Set(boolean(p.scanErr == nil && p.listed))
	p.showRoomLocked()
	a, at := p.folder.Archive(), p.folder.State()
	own.archiveSeries.Set(float64(a.Totals().Series()))
	own.archiveUnsaved.Set(float64(a.Unsaved()))
	own.archiveBytes.Set(float64(at.Bytes))
	if !p.folder.ReadOnly() {
		own.archiveUp.Set(boolean(at.Open && at.Err == nil))
	}
	own.awaiting.Set(float64(awaiting))
	own.removing.Set(float64(p.folder.RemovingFiles()))
}

// showRoomLocked brings the gauges of the file system's room up to date.
func (p *Pool) showRoomLocked() {
	if !p.room.Known {
		return
	}
	if p.ownRoom == nil {
		p.ownRoom = p.metrics.roomOf(p.spec.Name)
	}
	p.ownRoom.freeBytes.Set(float64(p.room.FreeBytes))
	p.ownRoom.totalBytes.Set(float64(p.room.TotalBytes))
	p.ownRoom.freeNodes.Set(float64(p.room.FreeInodes))
	p.ownRoom.totalNodes.Set(float64(p.room.TotalInodes))
}

// ownGauges are a pool's children of the gauges: to look them up takes longer than to set them.
type ownGauges struct {
	liveness                                               [watch.Methods]telemetry.Gauge
	alive, dead, entries, directoryUp                      telemetry.Gauge
	archiveSeries, archiveUnsaved, archiveBytes, archiveUp telemetry.Gauge
	awaiting, removing                                     telemetry.Gauge
}

func (m *Metrics) gaugesOf(pool string, archives bool) *ownGauges {
	own := &ownGauges{
		alive: m.workers.With(pool, "alive"), dead: m.workers.With(pool, "dead"), entries: m.entries.With(pool),
		directoryUp:   m.directoryUp.With(pool),
		archiveSeries: m.archiveSeries.With(pool), archiveUnsaved: m.archiveUnsaved.With(pool),
		archiveBytes: m.archiveBytes.With(pool),
		awaiting:     m.awaiting.With(pool), removing: m.removing.With(pool),
	}
	if archives {
		own.archiveUp = m.archiveUp.With(pool)
	}
	for method := range watch.Method(watch.Methods) {
		own.liveness[method] = m.liveness.With(pool, method.String())
	}
	return own
}

// ownRoom is ownGauges for what is not known of every file system.
type ownRoom struct{ freeBytes, totalBytes, freeNodes, totalNodes telemetry.Gauge }

func (m *Metrics) roomOf(pool string) *ownRoom {
	return &ownRoom{
		m.directoryBytes.With(pool, "free"), m.directoryBytes.With(pool, "total"),
		m.directoryInodes.With(pool, "free"), m.directoryInodes.With(pool, "total"),
	}
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
