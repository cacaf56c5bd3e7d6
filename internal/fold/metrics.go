package fold

import "aggregatord/internal/telemetry"

// Vectors are the room's own metrics, by pool.
type Vectors struct {
	folds, files, bytes, errors, reopened, setAside, compactions, compactErrors, nans,
	mirrorFiles, mirrorWaits, mirrorForced, mirrorErrors, mirrorResyncs telemetry.CounterVec
	last    telemetry.GaugeVec
	seconds telemetry.Histogram
}

// NewVectors adds the room's metrics to set.
func NewVectors(set *telemetry.Set) *Vectors {
	return &Vectors{
		last: set.GaugeVec("aggregatord_archive_last_fold_timestamp_seconds", "When files were archived last, in Unix seconds.",
			"pool"),
		folds: set.CounterVec("aggregatord_archive_folds_total", "Batches of dead workers' files archived.", "pool"),
		files: set.CounterVec("aggregatord_archive_folded_files_total", "Dead workers' files archived.", "pool"),
		bytes: set.CounterVec("aggregatord_archive_folded_bytes_total", "Size of the dead workers' files archived.", "pool"),
		errors: set.CounterVec("aggregatord_archive_fold_errors_total",
			"Attempts to archive dead workers' files that failed; the log says why.", "pool"),
		reopened: set.CounterVec("aggregatord_archive_reopened_files_total",
			"Archived files that a worker opened at the last moment; what it added was counted too.", "pool"),
		setAside: set.CounterVec("aggregatord_archive_set_aside_total", "Damaged archives that were set aside.", "pool"),
		compactions: set.CounterVec("aggregatord_archive_compactions_total",
			"Archives written anew because most of the file was not in use.", "pool"),
		compactErrors: set.CounterVec("aggregatord_archive_compaction_errors_total", "Archive compactions that failed; the log says why.",
			"pool"),
		nans: set.CounterVec("aggregatord_archive_nan_values_total",
			"Values left out of archived sums because they are not a number.", "pool"),
		mirrorFiles: set.CounterVec("aggregatord_mirror_files_total", "Dead workers' files whose values were moved to the mirror.",
			"pool"),
		mirrorWaits: set.CounterVec("aggregatord_mirror_waits_total",
			"Times that dead workers' files were left for later because the directory was being read.", "pool"),
		mirrorForced: set.CounterVec("aggregatord_mirror_forced_files_total",
			"Dead workers' files moved to the mirror while the directory was being read, because they had waited for too long.", "pool"),
		mirrorResyncs: set.CounterVec("aggregatord_mirror_resyncs_total",
			"Times that counts of readers did not fit together, so that those who read nothing for a while were taken to have ended.",
			"pool"),
		mirrorErrors: set.CounterVec("aggregatord_mirror_errors_total", "Errors of the mirror; the log says which.", "pool"),
		seconds: set.Histogram("aggregatord_archive_fold_duration_seconds", "Time to archive a batch of dead workers' files.",
			[]float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5}),
	}
}

// Metrics are those of one pool.
type Metrics struct {
	folds, files, bytes, errors, reopened, setAside, compactions, compactErrors, nans,
	mirrorFiles, mirrorWaits, mirrorForced, mirrorErrors, mirrorResyncs telemetry.Counter
	seconds telemetry.Histogram
	last    telemetry.GaugeVec
	pool    string
}

// For returns the metrics of a pool. They are there before they count, so that the first event
// is an increase, too.
func (v *Vectors) For(pool string) *Metrics {
	return &Metrics{
		folds: v.folds.With(pool), files: v.files.With(pool), bytes: v.bytes.With(pool), errors: v.errors.With(pool),
		reopened: v.reopened.With(pool), setAside: v.setAside.With(pool),
		compactions: v.compactions.With(pool), compactErrors: v.compactErrors.With(pool), nans: v.nans.With(pool),
		mirrorFiles: v.mirrorFiles.With(pool), mirrorWaits: v.mirrorWaits.With(pool), mirrorForced: v.mirrorForced.With(pool),
		mirrorErrors:  v.mirrorErrors.With(pool),
		mirrorResyncs: v.mirrorResyncs.With(pool), last: v.last, pool: pool, seconds: v.seconds,
	}
}

// Errors is how many attempts have failed.
func (m *Metrics) Errors() uint64 { return uint64(m.errors.Value()) }

// Reopened is how many archived files a worker has opened since.
func (m *Metrics) Reopened() uint64 { return uint64(m.reopened.Value()) }
