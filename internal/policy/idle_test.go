package policy

import (
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
)

// TestIdle: what can match nothing is said to be so, and nothing else.
func TestIdle(t *testing.T) {
	step := func(action relabel.Action, expression string, sources ...model.LabelName) *relabel.Config {
		c := relabel.DefaultRelabelConfig
		c.Action, c.Regex, c.SourceLabels = action, relabel.MustNewRegexp(expression), sources
		if action == relabel.Replace {
			c.TargetLabel = "t"
		}
		return &c
	}
	to := func(c *relabel.Config, target string) *relabel.Config {
		c.TargetLabel = target
		return c
	}
	for name, c := range map[string]struct {
		steps []*relabel.Config
		want  []string // beginnings
	}{
		"own metrics": {
			[]*relabel.Config{step(relabel.Drop, "aggregatord_.*", "__name__")},
			[]string{"metric_relabel_configs[0] matches nothing: the daemon's own"},
		},
		"two of them": {
			[]*relabel.Config{step(relabel.Keep, "aggregatord_up|aggregatord_files", "__name__")},
			[]string{"metric_relabel_configs[0] matches nothing, and so keeps nothing: the daemon's own"},
		},
		"with a label": {
			[]*relabel.Config{step(relabel.Replace, "aggregatord_up;.+", "__name__", "pool")},
			[]string{"metric_relabel_configs[0] matches nothing: the daemon's own"},
		},
		"own metrics and another": {[]*relabel.Config{step(relabel.Drop, "aggregatord_.*|jobs", "__name__")}, nil},
		"any letters":             {[]*relabel.Config{step(relabel.Drop, ".*_total", "__name__")}, nil},
		"another label":           {[]*relabel.Config{step(relabel.Drop, "aggregatord_.*", "daemon")}, nil},
		"label of a target": {
			[]*relabel.Config{step(relabel.Drop, ".+", "__address__")},
			[]string{"metric_relabel_configs[0] matches nothing: samples have no label __address__"},
		},
		"second step": {
			[]*relabel.Config{step(relabel.Drop, "x", "a"), step(relabel.Keep, "a;b", "__meta_a", "__meta_b")},
			[]string{"metric_relabel_configs[1] matches nothing, and so keeps nothing: samples have no label __meta_a"},
		},
		"nothing is matched too": {[]*relabel.Config{step(relabel.Replace, "(.*)", "__address__")}, nil},
		"beside a label":         {[]*relabel.Config{step(relabel.Drop, ".*x", "__address__", "job")}, nil},
		"written before": {
			[]*relabel.Config{to(step(relabel.Replace, "(.*)", "a"), "__tmp"), step(relabel.Drop, "x", "__tmp")},
			nil,
		},
		"written later": {
			[]*relabel.Config{step(relabel.Drop, "x", "__tmp"), to(step(relabel.Replace, "(.*)", "a"), "__tmp")},
			[]string{"metric_relabel_configs[0] matches nothing: samples have no label __tmp"},
		},
		"mapped before":   {[]*relabel.Config{step(relabel.LabelMap, "a(.*)"), step(relabel.Drop, "x", "__tmp")}, nil},
		"no expression":   {[]*relabel.Config{to(step(relabel.HashMod, "(.*)", "__address__"), "t")}, nil},
		"names of labels": {[]*relabel.Config{step(relabel.LabelDrop, "aggregatord_.*")}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range c.steps {
				if s.Action == relabel.HashMod {
					s.Modulus = 2
				}
			}
			p, err := Compile(Spec{MetricRelabelConfigs: c.steps})
			if err != nil {
				t.Fatal(err)
			}
			got := p.Idle()
			if len(got) != len(c.want) {
				t.Fatalf("%q, want %q", got, c.want)
			}
			for i, want := range c.want {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("%q, want %q", got[i], want)
				}
			}
		})
	}
	if got := (*Policy)(nil).Idle(); got != nil {
		t.Errorf("of no policy: %q", got)
	}
}
