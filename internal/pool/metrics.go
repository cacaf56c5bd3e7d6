package pool

import (
	"aggregatord/internal/telemetry"
)

// Metrics are the room's own metrics.
type Metrics struct {
	files       telemetry.GaugeVec // pool, state, dialect
	workers     telemetry.GaugeVec // pool, state
	entries     telemetry.GaugeVec // pool
	directoryUp telemetry.GaugeVec // pool
	liveness    telemetry.GaugeVec // pool, method
	series      telemetry.Gauge
	conflicts   telemetry.Gauge
	fileErrors  telemetry.CounterVec // pool, reason
	entryErrors telemetry.CounterVec // pool, reason
	rescans     telemetry.CounterVec // pool
	scanErrors  telemetry.CounterVec // pool
	passes      telemetry.Counter
	shared      telemetry.Counter
	entriesRead telemetry.Counter
	passSeconds telemetry.Histogram

	refused                                                telemetry.CounterVec // pool, family, reason
	ruleDropped, ruleExpired, relabelDropped, relabelEqual telemetry.Gauge

	directoryBytes, directoryInodes telemetry.GaugeVec // pool, what

	archiveUp, archiveSeries, archiveUnsaved, archiveBytes telemetry.GaugeVec   // pool
	awaiting, removing, lastFold                           telemetry.GaugeVec   // pool
	folds, foldedFiles, foldedBytes, foldErrors            telemetry.CounterVec // pool
	reopened, expired, archiveSetAside                     telemetry.CounterVec // pool
	compactions, compactErrors                             telemetry.CounterVec // pool
	foldSeconds                                            telemetry.Histogram
}

// NewMetrics adds the room's metrics to set.
func NewMetrics(set *telemetry.Set) *Metrics {
	return &Metrics{
		files:       set.GaugeVec("aggregatord_files", "Files in the directory: alive or dead (its process can no longer write), removed (by somebody else, its process alive), failed, or foreign.", "pool", "state", "dialect"),
		workers:     set.GaugeVec("aggregatord_workers", "Worker IDs with a source file; alive if any of the files is.", "pool", "state"),
		entries:     set.GaugeVec("aggregatord_entries", "Entries of the source files that are merged at a scrape.", "pool"),
		directoryUp: set.GaugeVec("aggregatord_directory_up", "1 if the directory could be listed the last time.", "pool"),
		liveness:    set.GaugeVec("aggregatord_liveness_files", "Source files by how it is known whether their process lives: lease, proc, or none (taken as alive).", "pool", "method"),
		series:      set.Gauge("aggregatord_series", "Samples of worker metrics in the last merged view."),
		conflicts:   set.Gauge("aggregatord_conflicts", "Groups of series left out of the last merged view because a newer file has another type or gauge mode for the family."),
		fileErrors:  set.CounterVec("aggregatord_file_errors_total", "Times a source file became unreadable, by reason; the log names the file.", "pool", "reason"),
		entryErrors: set.CounterVec("aggregatord_entry_errors_total", "Entries of source files left out, by reason; the log names the first of each file.", "pool", "reason"),
		rescans:     set.CounterVec("aggregatord_rescans_total", "Times the directory was listed.", "pool"),
		scanErrors:  set.CounterVec("aggregatord_scan_errors_total", "Times the directory could not be listed.", "pool"),
		passes:      set.Counter("aggregatord_merge_passes_total", "Times all source files were read and merged."),
		shared:      set.Counter("aggregatord_merge_shared_total", "Scrapes that shared the pass of another one."),
		entriesRead: set.Counter("aggregatord_entries_read_total", "Values loaded from source files."),
		passSeconds: set.Histogram("aggregatord_merge_duration_seconds", "Time to read and merge all source files for one scrape.",
			[]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}),

		refused:        set.CounterVec("aggregatord_refused_entries_total", "Entries of source files left out because of a limit, by family; the first hundred families by name.", "pool", "family", "reason"),
		ruleDropped:    set.Gauge("aggregatord_rule_dropped_series", "Series left out of the last merged view because a rule drops them."),
		ruleExpired:    set.Gauge("aggregatord_rule_expired_series", "Series left out of the last merged view because they have not changed for the time a rule sets."),
		relabelDropped: set.Gauge("aggregatord_relabel_dropped_series", "Series of the last merged view that metric_relabel_configs drop."),
		relabelEqual:   set.Gauge("aggregatord_relabel_collisions", "Series of the last merged view left out because metric_relabel_configs make them equal to another one."),

		directoryBytes:  set.GaugeVec("aggregatord_directory_bytes", "Bytes of the directory's file system; when a tmpfs has none free, the next value a worker stores kills it.", "pool", "kind"),
		directoryInodes: set.GaugeVec("aggregatord_directory_inodes", "Inodes of the directory's file system.", "pool", "kind"),

		archiveUp:       set.GaugeVec("aggregatord_archive_up", "1 if the archive is open and could be written the last time; 0: no file is removed.", "pool"),
		archiveSeries:   set.GaugeVec("aggregatord_archive_series", "Keys in the archive.", "pool"),
		archiveUnsaved:  set.GaugeVec("aggregatord_archive_unsaved_series", "Keys whose archived values are in memory only, because the archive could not be written yet.", "pool"),
		archiveBytes:    set.GaugeVec("aggregatord_archive_bytes", "Size of the archive file.", "pool"),
		awaiting:        set.GaugeVec("aggregatord_archive_awaiting_files", "Dead workers' files that are not archived yet.", "pool"),
		removing:        set.GaugeVec("aggregatord_archive_removing_files", "Archived files that are about to be removed.", "pool"),
		lastFold:        set.GaugeVec("aggregatord_archive_last_fold_timestamp_seconds", "When files were archived last, in Unix seconds.", "pool"),
		folds:           set.CounterVec("aggregatord_archive_folds_total", "Batches of dead workers' files archived.", "pool"),
		foldedFiles:     set.CounterVec("aggregatord_archive_folded_files_total", "Dead workers' files archived.", "pool"),
		foldedBytes:     set.CounterVec("aggregatord_archive_folded_bytes_total", "Size of the dead workers' files archived.", "pool"),
		foldErrors:      set.CounterVec("aggregatord_archive_fold_errors_total", "Times dead workers' files could not be archived; the log says why.", "pool"),
		reopened:        set.CounterVec("aggregatord_archive_reopened_files_total", "Archived files that a worker opened at the last moment; what it added was counted too.", "pool"),
		expired:         set.CounterVec("aggregatord_archive_expired_workers_total", "Dead workers whose gauges in mode all were dropped by retention.", "pool"),
		archiveSetAside: set.CounterVec("aggregatord_archive_set_aside_total", "Times a damaged archive was set aside.", "pool"),
		compactions:     set.CounterVec("aggregatord_archive_compactions_total", "Times the archive was written anew because most of its file was not in use.", "pool"),
		compactErrors:   set.CounterVec("aggregatord_archive_compaction_errors_total", "Times that failed; the log says why.", "pool"),
		foldSeconds: set.Histogram("aggregatord_archive_fold_duration_seconds", "Time to archive a batch of dead workers' files.",
			[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}),
	}
}

// prepare makes a pool's counters, so that they are there before they count and the first
// event is an increase, too.
func (m *Metrics) prepare(pool string) {
	for _, v := range []telemetry.CounterVec{
		m.rescans, m.scanErrors, m.folds, m.foldedFiles, m.foldedBytes, m.foldErrors, m.reopened, m.expired, m.archiveSetAside,
		m.compactions, m.compactErrors,
	} {
		v.With(pool)
	}
	for _, reason := range fileReasons() {
		m.fileErrors.With(pool, string(reason))
	}
	for _, reason := range entryReasons() {
		m.entryErrors.With(pool, string(reason))
	}
}
