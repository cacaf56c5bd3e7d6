package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
)

// ownPrefix is what the names of the daemon's own metrics begin with.
const ownPrefix = "aggregatord_"

// Idle says of metric_relabel_configs that can match no sample of the workers why that is so, a
// sentence each. They are allowed, because Prometheus allows them.
func (p *Policy) Idle() (sentences []string) {
	written := map[string]bool{model.MetricNameLabel: true}
	for i, c := range p.MetricRelabelConfigs() {
		if why := idle(c, written); why != "" {
			what := "matches nothing"
			if c.Action == relabel.Keep {
				what = "matches nothing, and so keeps nothing"
			}
			sentences = append(sentences, fmt.Sprintf("metric_relabel_configs[%d] %s: %s", i, what, why))
		}
		written[c.TargetLabel] = true
		if c.Action == relabel.LabelMap {
			return sentences // labels of any name may be there from now on
		}
	}
	return sentences
}

// idle says why a config can match nothing, given the labels that there may be although workers
// have none of the name.
func idle(c *relabel.Config, written map[string]bool) string {
	if len(c.SourceLabels) == 0 || c.Regex.Regexp == nil {
		return ""
	}
	switch c.Action {
	case relabel.Replace, relabel.Keep, relabel.Drop:
	default:
		return ""
	}
	if c.SourceLabels[0] == model.MetricNameLabel && strings.HasPrefix(beginning(c.Regex), ownPrefix) {
		return "the daemon's own metrics are not relabelled; choose what is served of them with --web.self-metrics"
	}
	absent := func(name model.LabelName) bool {
		return strings.HasPrefix(string(name), "__") && !written[string(name)]
	}
	if !slices.ContainsFunc(c.SourceLabels, func(name model.LabelName) bool { return !absent(name) }) &&
		!c.Regex.MatchString(strings.Repeat(c.Separator, len(c.SourceLabels)-1)) {
		return fmt.Sprintf("samples have no label %s, which is Prometheus's own; write the step into its configuration", c.SourceLabels[0])
	}
	return ""
}

// beginning is what every text that an expression matches begins with.
func beginning(re relabel.Regexp) string {
	free, err := regexp.Compile("(?s:" + re.String() + ")") // without anchors, which hide it
	if err != nil {
		return ""
	}
	prefix, _ := free.LiteralPrefix()
	return prefix
}
