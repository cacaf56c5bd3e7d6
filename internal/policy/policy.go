package policy

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// A Policy is a compiled Spec. It never changes; any number of goroutines may use it. A nil
// Policy says nothing.
type Policy struct {
	spec     Spec
	pools    map[string]*poolPolicy
	other    *poolPolicy // of all pools that are not named
	external []metric.Label
	info     []Info
	relabel  []*relabel.Config
}

// poolPolicy is what holds for one pool.
type poolPolicy struct {
	labels []metric.Label
	rules  []rule // its own, then the global ones
	// ruling is for families that no rule matches.
	ruling *Ruling
}

// rule is a Rule that is ready to be asked.
type rule struct {
	Rule
	name   string
	re     *regexp.Regexp // nil: exact
	labels *labelRule     // nil: as they are
	// ruling is what it says in one pool, unitless the same for a family whose name does not
	// end in the unit.
	ruling, unitless *Ruling
}

// Info is a constant series.
type Info struct {
	Name, Help string
	// Labels are sorted by name, the external ones included.
	Labels []metric.Label
}

// Compile checks a Spec and makes a Policy of it. The error joins an *Error for every place that
// is wrong, which says what to do.
func Compile(spec Spec) (*Policy, error) {
	p := &Policy{spec: spec, pools: map[string]*poolPolicy{}}
	var errs []error
	top := place{all: &errs}
	global := compileRules(top.at("metrics"), spec.Rules)
	p.external = compileLabels(top.at("external_labels"), "", spec.ExternalLabels)
	p.other = poolOf(nil, global)
	for _, name := range slices.Sorted(maps.Keys(spec.Pools)) {
		in, at := spec.Pools[name], top
		at.InPool, at.Pool = true, name
		labels := compileLabels(at, "labels", in.Labels)
		if i := slices.IndexFunc(labels, func(l metric.Label) bool { return l.Name == "pool" }); i >= 0 && name != "" {
			at.wrong("labels", "the label %q has the pool's name already; choose another", "pool")
		}
		if in.Pattern {
			labels = nil
		}
		p.pools[name] = poolOf(labels, slices.Concat(compileRules(at.at("metrics"), in.Rules), global))
	}
	seen := map[string]bool{}
	for i, in := range spec.Info {
		at := top.at(fmt.Sprintf("info[%d]", i))
		if !model.UTF8Validation.IsValidMetricName(in.Name) {
			at.wrong("name", "%q: write the name of the series, as in build_info", in.Name)
		}
		if strings.HasPrefix(in.Name, "aggregatord_") {
			at.wrong("name", "%q: names that begin with aggregatord_ are the daemon's own; choose another", in.Name)
		}
		out := Info{Name: in.Name, Help: in.Help, Labels: compileLabels(at, "labels", in.Labels)}
		out.Labels = appendMissing(out.Labels, p.external)
		id := in.Name + "\xff" + labelsText(out.Labels)
		if seen[id] {
			at.wrong("", "%s is there already with the same labels; remove one", in.Name)
		}
		seen[id] = true
		p.info = append(p.info, out)
	}
	for _, l := range []struct {
		key   string
		value int64
	}{
		{"series_per_pool", int64(spec.Limits.SeriesPerPool)},
		{"series_per_family", int64(spec.Limits.SeriesPerFamily)},
		{"families_per_pool", int64(spec.Limits.FamiliesPerPool)},
		{"bytes_per_pool", spec.Limits.BytesPerPool},
		{"labels_per_series", int64(spec.Limits.Labels)},
		{"label_name_length", int64(spec.Limits.LabelNameLength)},
		{"label_value_length", int64(spec.Limits.LabelValueLength)},
		{"file_size", spec.Limits.FileSize},
		{"key_length", int64(spec.Limits.KeyLength)},
	} {
		if l.value < 0 {
			top.at("limits").wrong(l.key, "%d is below 0; leave it out for the default", l.value)
		}
	}
	p.relabel = compileRelabel(top, spec.MetricRelabelConfigs)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return p, nil
}

// With returns a policy that says of a pool, given by the name of its settings, what own says of all
// pools, and then what p says. Everything else is as p has it, the limits as well.
func (p *Policy) With(pool string, own *Policy) *Policy {
	if own == nil || len(own.other.rules) == 0 {
		return p
	}
	out := &Policy{other: poolOf(nil, nil)}
	if p != nil {
		*out = *p
	}
	base := out.pools[pool]
	if base == nil {
		base = out.other
	}
	out.pools = map[string]*poolPolicy{}
	if p != nil {
		maps.Copy(out.pools, p.pools)
	}
	out.pools[pool] = poolOf(base.labels, slices.Concat(own.other.rules, base.rules))
	return out
}

// compileRelabel checks what Prometheus checks when it loads the same.
func compileRelabel(at place, in []*relabel.Config) []*relabel.Config {
	var out []*relabel.Config
	for i, c := range in {
		if c == nil {
			at.at(fmt.Sprintf("metric_relabel_configs[%d]", i)).wrong("", "is empty; remove it")
			continue
		}
		own := *c
		if err := own.Validate(model.UTF8Validation); err != nil {
			at.at(fmt.Sprintf("metric_relabel_configs[%d]", i)).wrong("", "%w", err)
		}
		out = append(out, &own)
	}
	return out
}

func compileRules(rules place, in []Rule) []rule {
	var out []rule
	names := map[string]int{}
	for i, r := range in {
		at := rules
		at.Path = fmt.Sprintf("%s[%d]", rules.Path, i)
		c := rule{Rule: r, name: cmp.Or(r.Name, (&at.Error).place())}
		if r.Name != "" {
			if j, ok := names[r.Name]; ok {
				at.wrong("", "the name %q is that of %s[%d] already; choose another", r.Name, rules.Path, j)
			}
			names[r.Name] = i
			at.Name = r.Name
		}
		switch {
		case r.Match == "" && r.MatchRE == "":
			at.wrong("", "it matches nothing; write match, the name of a metric, or match_re, a regular expression for names")
		case r.Match != "" && r.MatchRE != "":
			at.wrong("", "it has match and match_re; write one of them")
		case r.MatchRE != "":
			re, err := regexp.Compile("^(?:" + r.MatchRE + ")$")
			if err != nil {
				// The error of the expression itself, without what was put around it.
				if _, plain := regexp.Compile(r.MatchRE); plain != nil {
					err = plain
				}
				at.wrong("match_re", "%w", err)
			}
			c.re = re
		}
		if int(r.GaugeMode) > int(metric.LiveMostRecent) {
			at.wrong("gauge_mode", "use one of %s", strings.Join(metric.ModeNames(), ", "))
		}
		if r.Drop && !r.onlyDrops() {
			at.wrong("drop", "true leaves nothing for the other settings to change; remove them, or drop")
		}
		if r.Shape == view.Info && r.Match != "" && !strings.HasSuffix(r.Match, "_info") {
			at.wrong("type", "OpenMetrics wants an info to have a name that ends in _info")
		}
		if r.Shape != view.Plain && r.Unit != "" {
			at.wrong("type", "an info or a stateset has no unit; remove one of the two")
		}
		if r.Unit != "" && !model.LegacyValidation.IsValidMetricName("x_"+r.Unit) {
			at.wrong("unit", "%q has other signs than letters, digits and _", r.Unit)
		}
		if r.Unit != "" && r.Match != "" && !hasUnit(strings.TrimSuffix(r.Match, "_total"), r.Unit) {
			at.wrong("unit", "OpenMetrics wants a metric of unit %q to have a name that ends in _%s", r.Unit, r.Unit)
		}
		if len(r.DropLabels) > 0 && len(r.KeepLabels) > 0 {
			at.wrong("", "it has drop_labels and keep_labels; write one of them")
		}
		if r.Retention < 0 {
			at.wrong("retention", "%v is below 0; leave it out to keep what is the default", r.Retention)
		}
		if r.ExpireAfter < 0 {
			at.wrong("expire_after", "%v is below 0; leave it out to serve series for ever", r.ExpireAfter)
		}
		c.labels = compileLabelRule(at, &r)
		if r.Help != "" && !utf8.ValidString(r.Help) {
			at.wrong("help", "it is not UTF-8 text")
		}
		out = append(out, c)
	}
	return out
}

// onlyDrops reports whether Drop is all that the rule does.
func (r *Rule) onlyDrops() bool {
	return r.GaugeMode == metric.NoMode && r.Help == "" && r.Unit == "" && r.Shape == view.Plain && len(r.DropLabels) == 0 &&
		len(r.KeepLabels) == 0 &&
		len(r.RenameLabels) == 0 && r.ExpireAfter == 0 && !r.DropZeroAll
}

// hasUnit reports whether a family of this name may have the unit.
func hasUnit(family, unit string) bool { return strings.HasSuffix(family, "_"+unit) }

func compileLabels(at place, key string, in map[string]string) []metric.Label {
	var out []metric.Label
	for _, name := range slices.Sorted(maps.Keys(in)) {
		if err := checkLabelName(name); err != nil {
			at.wrong(key, "%w", err)
		}
		if !utf8.ValidString(in[name]) {
			at.wrong(key, "the value of %s is not UTF-8 text", name)
		}
		if in[name] == "" {
			at.wrong(key, "the value of %s is empty, which is the same as no label; remove it", name)
		}
		out = append(out, metric.Label{Name: name, Value: in[name]})
	}
	return out
}

// checkLabelName refuses what cannot be the name of a label that is set by hand.
func checkLabelName(name string) error {
	switch {
	case name == "" || !model.UTF8Validation.IsValidLabelName(name):
		return fmt.Errorf("label %q: write a name", name)
	case strings.HasPrefix(name, "__"):
		return fmt.Errorf("label %q: names that begin with __ are Prometheus' own; choose another", name)
	case name == "le" || name == "quantile":
		return fmt.Errorf("label %q: the samples of a histogram or summary have it to differ; choose another", name)
	}
	return nil
}

// appendMissing adds the labels whose names are not there yet. Both lists are sorted, and so
// is the result, which shares memory with neither.
func appendMissing(labels, more []metric.Label) []metric.Label {
	out := slices.Clone(labels)
	for _, l := range more {
		if !slices.ContainsFunc(labels, func(has metric.Label) bool { return has.Name == l.Name }) {
			out = append(out, l)
		}
	}
	metric.SortLabels(out)
	return out
}

func labelsText(labels []metric.Label) string {
	var b strings.Builder
	for _, l := range labels {
		b.WriteString(l.Name)
		b.WriteByte(0xff)
		b.WriteString(l.Value)
		b.WriteByte(0xff)
	}
	return b.String()
}

// Limits returns the limits of the Spec.
func (p *Policy) Limits() Limits {
	if p == nil {
		return Limits{}
	}
	return p.spec.Limits
}

// MetricRelabelConfigs returns those of the Spec, checked. Nobody may change them.
func (p *Policy) MetricRelabelConfigs() []*relabel.Config {
	if p == nil {
		return nil
	}
	return p.relabel
}

// Info returns the constant series, which nobody may change.
func (p *Policy) Info() []Info {
	if p == nil {
		return nil
	}
	return p.info
}

// matches reports whether the rule is for a family, given by its OpenMetrics name.
func (r *rule) matches(family string, typ metric.Type) bool {
	one := func(name string) bool {
		if r.re != nil {
			return r.re.MatchString(name)
		}
		return r.Match == name
	}
	return one(family) || typ == metric.Counter && one(family+"_total")
}
