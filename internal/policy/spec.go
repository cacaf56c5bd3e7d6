package policy

import (
	"time"

	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A Spec is all that an operator says about metrics. The zero value says nothing: then all
// is as the application wrote it.
type Spec struct {
	// Rules are for all pools, first match wins. A pool's own rules come before them.
	Rules []Rule
	// Pools are settings of single pools, by name. The pool of a directory that was given
	// without a name is "".
	Pools map[string]PoolSpec
	// ExternalLabels are added to every series that lacks a label of the name.
	ExternalLabels map[string]string
	// Info are constant series.
	Info []InfoSeries
	// Limits bound what the workers may make us keep.
	Limits Limits
	// MetricRelabelConfigs are applied to the merged samples, as Prometheus applies the same to
	// those of a scrape.
	MetricRelabelConfigs []*relabel.Config
}

// PoolSpec is what is said about one pool.
type PoolSpec struct {
	// Labels are added to each of its series. One that a worker has written itself becomes
	// exported_NAME, as with the labels of a Prometheus target.
	Labels map[string]string
	// Pattern says that these are the settings of all pools that a pattern matches. Each of them
	// has labels of its own; those here are only checked.
	Pattern bool
	// Rules come before those for all pools.
	Rules []Rule
}

// A Rule says what holds for the families it matches. Everything but the match is optional,
// and what is left empty stays as the application has it; a family is under one rule at most.
type Rule struct {
	// Name is for errors, logs and pages; empty: the place in the list, as metrics[2].
	Name string
	// Match is the exact name of a family, MatchRE a regular expression (RE2) for the whole
	// name. There is one of them. A counter is matched by its name with and without _total.
	Match, MatchRE string

	// GaugeMode is the mode in force for gauges, in place of the one in the file names. It has
	// no meaning for other types.
	GaugeMode metric.Mode
	// Help replaces the help text.
	Help string
	// Unit is the OpenMetrics unit. The family's name must end in _UNIT: one that a regular
	// expression matches and that does not is served without a unit.
	Unit string
	// Shape is what a family of gauges is in OpenMetrics. It has no meaning for other types.
	Shape view.Shape
	// Drop leaves the family out. Its totals are kept, and come back whole when the rule goes.
	Drop bool
	// DropLabels are labels to leave out, KeepLabels the only ones to keep; one of both.
	// Series that become equal are combined: counters, histograms and summaries are added,
	// gauges combined by their mode, and in mode all those of one process added.
	DropLabels, KeepLabels []string
	// RenameLabels are the new names of labels, by the old ones, after the labels are dropped.
	// A label that already has the new name gives way.
	RenameLabels map[string]string
	// Retention is how long gauges count that a dead worker left: those in mode all, in place
	// of the archive's own setting, and those in modes sum, max, min and mostrecent, which
	// otherwise count for ever. 0: as without a rule.
	Retention time.Duration
	// ExpireAfter is after which time without a change a series is no longer served. When it
	// changes it is back, with its whole value. 0: never.
	ExpireAfter time.Duration
	// DropZeroAll leaves out the series of gauges in modes all and liveall that are 0: what a
	// gauge that only one worker sets has of all others.
	DropZeroAll bool
}

// InfoSeries is a constant series of value 1.
type InfoSeries struct {
	// Name is the sample's name, by custom one that ends in _info.
	Name, Help string
	Labels     map[string]string
}

// Limits bound what is taken from workers; beyond, new series are refused and those known go
// on. Zero fields mean the defaults of the rooms that keep them.
type Limits struct {
	// SeriesPerPool and SeriesPerFamily bound the series as the workers write them, after
	// labels are dropped. Defaults: merge.DefaultMaxSeries, merge.DefaultMaxFamilySeries.
	SeriesPerPool, SeriesPerFamily int
	// FamiliesPerPool bounds the metrics. Default: merge.DefaultMaxFamilies.
	FamiliesPerPool int
	// BytesPerPool bounds the bytes of keys and labels. Default: merge.DefaultMaxBytes, or less
	// where the daemon may have little memory.
	BytesPerPool int64
	// Labels bounds the labels of a series. Default: merge.DefaultMaxLabels.
	Labels int
	// LabelNameLength and LabelValueLength are in bytes. Default: as long as a key may be.
	LabelNameLength, LabelValueLength int
	// FileSize and KeyLength are in bytes. Defaults: those of store.Limits.
	FileSize  int64
	KeyLength int
}
