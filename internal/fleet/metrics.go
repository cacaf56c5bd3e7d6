package fleet

import "aggregatord/internal/telemetry"

// metrics are those of all pools together.
type metrics struct {
	series, conflicts, relabelDropped, relabelEqual telemetry.Gauge
	ruleDropped, ruleExpired                        telemetry.Gauge
}

func newMetrics(set *telemetry.Set) *metrics {
	return &metrics{
		series: set.Gauge("aggregatord_series", "Samples of worker metrics in the last view of all pools."),
		conflicts: set.Gauge("aggregatord_conflicts",
			"Disagreements on the type or gauge mode of a metric; the samples of the newest file are served."),
		ruleDropped: set.Gauge("aggregatord_rule_dropped_series", "Series left out because a rule drops them."),
		ruleExpired: set.Gauge("aggregatord_rule_expired_series",
			"Series left out because they have not changed for the time a rule sets."),
		relabelDropped: set.Gauge("aggregatord_relabel_dropped_series",
			"Series of the last view of all pools that metric_relabel_configs drop."),
		relabelEqual: set.Gauge("aggregatord_relabel_collisions",
			"Series of the last view of all pools left out because metric_relabel_configs make them equal to another one."),
	}
}
