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
	scanErrors  telemetry.CounterVec // pool
	passes      telemetry.Counter
	entriesRead telemetry.Counter
	passSeconds telemetry.Histogram

	refused telemetry.CounterVec // pool, family, reason

	directoryBytes, directoryInodes telemetry.GaugeVec // pool, what

	archiveUp, archiveSeries, archiveUnsaved, archiveBytes telemetry.GaugeVec // pool
	awaiting, removing                                     telemetry.GaugeVec // pool
	expired, merged                                        telemetry.CounterVec
	folds                                                  *fold.Vectors
	set                                                    *telemetry.Set
}

// NewMetrics adds the room's metrics to set.
func NewMetrics(set *telemetry.Set) *Metrics {
	return &Metrics{
		files:       set.GaugeVec("aggregatord_files", "Files in the directory: alive or dead (its process can no longer write), removed (by somebody else, its process alive), failed, or foreign.", "pool", "state", "dialect"),
		workers:     set.GaugeVec("aggregatord_workers", "Worker IDs with a source file; alive if any of the files is.", "pool", "state"),
		entries:     set.GaugeVec("aggregatord_entries", "Entries of the source files that are merged at a scrape.", "pool"),
		directoryUp: set.GaugeVec("aggregatord_directory_up", "1 if the directory could be listed the last time.", "pool"),
		liveness:    set.GaugeVec("aggregatord_liveness_files", "Source files by how it is known whether their process lives: lease, proc, or none (taken as alive).", "pool", "method"),
		fileErrors:  set.CounterVec("aggregatord_file_errors_total", "Times a source file became unreadable, by reason; the log names the file.", "pool", "reason"),
		entryErrors: set.CounterVec("aggregatord_entry_errors_total", "Entries of source files left out, by reason; the log names the first of each file.", "pool", "reason"),
		rescans:     set.CounterVec("aggregatord_rescans_total", "Times the directory was listed.", "pool"),
		scanErrors:  set.CounterVec("aggregatord_scan_errors_total", "Times the directory could not be listed.", "pool"),
		passes:      set.Counter("aggregatord_merge_passes_total", "Times all source files were read and merged."),
		entriesRead: set.Counter("aggregatord_entries_read_total", "Values loaded from source files."),
		passSeconds: set.Histogram("aggregatord_merge_duration_seconds", "Time to read and merge all source files for one scrape.",
			[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}),

		refused: set.CounterVec("aggregatord_refused_entries_total", "Entries of source files left out because of a limit, by family; the first hundred families by name.", "pool", "family", "reason"),

		directoryBytes:  set.GaugeVec("aggregatord_directory_bytes", "Bytes of the directory's file system; when a tmpfs has none free, the next value a worker stores kills it.", "pool", "kind"),
		directoryInodes: set.GaugeVec("aggregatord_directory_inodes", "Inodes of the directory's file system.", "pool", "kind"),

		archiveUp:      set.GaugeVec("aggregatord_archive_up", "1 if the archive is open and could be written the last time; 0: no file is removed. Absent with --archive.disable.", "pool"),
		archiveSeries:  set.GaugeVec("aggregatord_archive_series", "Keys in the archive.", "pool"),
		archiveUnsaved: set.GaugeVec("aggregatord_archive_unsaved_series", "Keys whose archived values are in memory only, because the archive could not be written yet.", "pool"),
		archiveBytes:   set.GaugeVec("aggregatord_archive_bytes", "Size of the archive file.", "pool"),
		awaiting:       set.GaugeVec("aggregatord_archive_awaiting_files", "Dead workers' files that are not archived yet.", "pool"),
		removing:       set.GaugeVec("aggregatord_archive_removing_files", "Archived files that are about to be removed.", "pool"),
		expired:        set.CounterVec("aggregatord_archive_expired_workers_total", "Dead workers whose gauges in mode all were dropped by retention.", "pool"),
		merged:         set.CounterVec("aggregatord_merged_elsewhere_files_total", "Dead workers' files that another archiver merged into a file of its own and removed.", "pool"),
		folds:          fold.NewVectors(set), set: set,
	}
}

// prepare makes a pool's counters, so that they are there before they count and the first
// event is an increase, too.
func (m *Metrics) prepare(pool string) {
	for _, v := range []telemetry.CounterVec{m.rescans, m.scanErrors, m.expired, m.merged} {
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
// since Tend did so.
func (p *Pool) UpdateMetrics() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed && !p.closed {
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
			methods[t.method]++
			if !t.isAlive() {
				awaiting++
			}
		}
	}
	for g, n := range files {
		m.files.With(pool, g.state, g.dialect).Set(float64(n))
		p.gauges[g] = true
	}
	for method := range watch.Method(watch.Methods) {
		m.liveness.With(pool, method.String()).Set(float64(methods[method]))
	}
	alive := p.aliveLocked()
	m.workers.With(pool, "alive").Set(float64(alive))
	m.workers.With(pool, "dead").Set(float64(len(p.workers) - alive))
	m.entries.With(pool).Set(float64(entries))
	m.directoryUp.With(pool).Set(boolean(p.scanErr == nil && p.listed))
	if p.room.known {
		m.directoryBytes.With(pool, "free").Set(float64(p.room.freeBytes))
		m.directoryBytes.With(pool, "total").Set(float64(p.room.totalBytes))
		m.directoryInodes.With(pool, "free").Set(float64(p.room.freeNodes))
		m.directoryInodes.With(pool, "total").Set(float64(p.room.totalNodes))
	}
	a, at := p.folder.Archive(), p.folder.State()
	m.archiveSeries.With(pool).Set(float64(a.Totals().Series()))
	m.archiveUnsaved.With(pool).Set(float64(a.Unsaved()))
	m.archiveBytes.With(pool).Set(float64(at.Bytes))
	if !p.folder.ReadOnly() {
		m.archiveUp.With(pool).Set(boolean(at.Open && at.Err == nil))
	}
	m.awaiting.With(pool).Set(float64(awaiting))
	m.removing.With(pool).Set(float64(p.folder.RemovingFiles()))
}

func boolean(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
