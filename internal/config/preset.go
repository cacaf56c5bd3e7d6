package config

import (
	"fmt"
	"maps"
	"slices"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
)

// A Preset is a list of rules for what one library writes, which its users cannot change.
type Preset struct {
	// Library is what it is for, with the version that it was checked against.
	Library string
	Rules   []PresetRule
}

// A PresetRule is a rule and why it is there.
type PresetRule struct {
	policy.Rule
	Why string
}

// presets are all the presets by name. Each is documented in docs/configuration.md, and
// tested on files that the library itself has written.
var presets = map[string]Preset{
	"celery": {
		Library: "gauges that applications set in Celery's signals; Celery itself writes none",
		Rules: []PresetRule{{
			policy.Rule{MatchRE: `(.+_)?celery_(tasks?|workers?)_(in_?progress|active|running)`, GaugeMode: metric.LiveSum},
			"Tasks that run now, counted up and down by each process of the pool. A process that was killed runs none.",
		}, {
			policy.Rule{MatchRE: `(.+_)?celery_(task_)?queue_(length|depth|size)`, GaugeMode: metric.LiveMax},
			"Each process that asked the broker has seen the same queue, at its own time.",
		}, {
			policy.Rule{MatchRE: `(.+_)?celery_(worker_(up|online)|.+_info)`, GaugeMode: metric.LiveMax},
			"1 in every process.",
		}},
	},
	"django": {
		Library: "django-prometheus 2.2",
		Rules: []PresetRule{{
			policy.Rule{MatchRE: `(.+_)?django_migrations_(un)?applied_total`, GaugeMode: metric.LiveMax},
			"Every worker counts the same migrations when it starts. The library's mode is all: one series for each worker there ever was, those from before a deployment with its old numbers.",
		}},
	},
	"fastapi": {
		Library: "prometheus-fastapi-instrumentator 8.0, starlette_exporter, and middlewares with the names of common examples",
		Rules: []PresetRule{{
			policy.Rule{MatchRE: `(.+_)?(requests_)?in_?progress(_requests)?`, GaugeMode: metric.LiveSum},
			"Requests that are being answered now. The libraries have mode livesum already; the middlewares that applications copy have mode all.",
		}, {
			policy.Rule{MatchRE: `(.+_)?app_info`, GaugeMode: metric.LiveMax},
			"1 in every worker. Mode all is one series for each worker, and that of an earlier deployment stays.",
		}},
	},
	"flask": {
		Library: "prometheus_flask_exporter 0.23",
		Rules: []PresetRule{{
			policy.Rule{MatchRE: `(.+_)?(exporter|app)_info`, GaugeMode: metric.LiveMax},
			"PrometheusMetrics.info has mode max, and before 0.18.4 mode all: the version of an earlier deployment is served beside the present one for as long as the archive is.",
		}, {
			policy.Rule{MatchRE: `(.+_)?in_?progress(_requests)?`, GaugeMode: metric.LiveSum},
			"PrometheusMetrics.gauge counts calls in progress, and its mode is all: the calls of a killed worker stay in progress.",
		}},
	},
}

// PresetNames lists the names of all presets.
func PresetNames() []string { return slices.Sorted(maps.Keys(presets)) }

// policyRules are the rules with names that tell where they come from.
func (p Preset) policyRules(name string) []policy.Rule {
	var rules []policy.Rule
	for i, r := range p.Rules {
		r.Name = fmt.Sprintf("preset %s[%d]", name, i)
		rules = append(rules, r.Rule)
	}
	return rules
}
