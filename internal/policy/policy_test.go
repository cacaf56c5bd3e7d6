package policy

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

func TestCompileRefuses(t *testing.T) {
	re := func(s string) relabel.Regexp { return relabel.MustNewRegexp(s) }
	for name, c := range map[string]struct {
		spec Spec
		want []string
	}{
		"no match":    {Spec{Rules: []Rule{{Help: "x"}}}, []string{"metrics[0]: it matches nothing; write match"}},
		"two matches": {Spec{Rules: []Rule{{Match: "a", MatchRE: "b"}}}, []string{"metrics[0]: it has match and match_re"}},
		"bad expression": {
			Spec{Rules: []Rule{{Match: "a"}, {Name: "mine", MatchRE: "a(b"}}},
			[]string{"metrics[1].match_re (mine): error parsing regexp: missing closing ): `a(b`"},
		},
		"same name": {
			Spec{Rules: []Rule{{Name: "x", Match: "a"}, {Name: "x", Match: "b"}}},
			[]string{`metrics[1]: the name "x" is that of metrics[0] already`},
		},
		"drop and more": {
			Spec{Rules: []Rule{{Match: "a", Drop: true, GaugeMode: metric.Sum}}},
			[]string{"drop: true leaves nothing"},
		},
		"no mode":            {Spec{Rules: []Rule{{Match: "a", GaugeMode: 77}}}, []string{"gauge_mode: use one of all, liveall, sum"}},
		"unit":               {Spec{Rules: []Rule{{Match: "a_total", Unit: "bytes"}}}, []string{"ends in _bytes"}},
		"info without _info": {Spec{Rules: []Rule{{Match: "a", Shape: view.Info}}}, []string{"ends in _info"}},
		"shape with a unit":  {Spec{Rules: []Rule{{Match: "a_s", Shape: view.StateSet, Unit: "s"}}}, []string{"has no unit"}},
		"unit of words":      {Spec{Rules: []Rule{{MatchRE: "a", Unit: "k b\n"}}}, []string{"has other signs"}},
		"drop and keep": {
			Spec{Rules: []Rule{{Match: "a", DropLabels: []string{"x"}, KeepLabels: []string{"y"}}}},
			[]string{"drop_labels and keep_labels"},
		},
		"drop le": {Spec{Rules: []Rule{{Match: "a", DropLabels: []string{"le"}}}}, []string{`drop_labels: label "le"`}},
		"rename to quantile": {
			Spec{Rules: []Rule{{Match: "a", RenameLabels: map[string]string{"x": "quantile"}}}},
			[]string{`rename_label: label "quantile"`},
		},
		"two become one": {
			Spec{Rules: []Rule{{Match: "a", RenameLabels: map[string]string{"x": "z", "y": "z"}}}},
			[]string{"x and y would both become z"},
		},
		"retention": {Spec{Rules: []Rule{{Match: "a", Retention: -time.Second}}}, []string{"retention: -1s is below 0"}},
		"expiry":    {Spec{Rules: []Rule{{Match: "a", ExpireAfter: -time.Second}}}, []string{"expire_after: -1s is below 0"}},
		"pool's rule": {
			Spec{Pools: map[string]PoolSpec{"web": {Rules: []Rule{{}}}}},
			[]string{"pools.web.metrics[0]: it matches nothing"},
		},
		"pool's label": {
			Spec{Pools: map[string]PoolSpec{"web": {Labels: map[string]string{"pool": "x"}}}},
			[]string{"pools.web.labels"},
		},
		"reserved label": {Spec{ExternalLabels: map[string]string{"__name__": "x"}}, []string{`external_labels: label "__name__"`}},
		"empty label":    {Spec{ExternalLabels: map[string]string{"a": ""}}, []string{"the value of a is empty"}},
		"info name":      {Spec{Info: []InfoSeries{{}}}, []string{`info[0].name: ""`}},
		"info of ours":   {Spec{Info: []InfoSeries{{Name: "aggregatord_x"}}}, []string{"the daemon's own"}},
		"info twice":     {Spec{Info: []InfoSeries{{Name: "a"}, {Name: "a"}}}, []string{"info[1]: a is there already"}},
		"limit":          {Spec{Limits: Limits{Labels: -1}}, []string{"limits.labels_per_series: -1 is below 0"}},
		"relabel": {
			Spec{MetricRelabelConfigs: []*relabel.Config{{Action: relabel.Replace, Regex: re(".*")}}},
			[]string{"metric_relabel_configs[0]: relabel configuration for replace action requires 'target_label'"},
		},
		"relabel null":        {Spec{MetricRelabelConfigs: []*relabel.Config{nil}}, []string{"metric_relabel_configs[0]: is empty"}},
		"all that is wrong":   {Spec{Rules: []Rule{{}, {Match: "a", Retention: -1}}}, []string{"metrics[0]", "metrics[1]"}},
		"both of one rule":    {Spec{Rules: []Rule{{Match: "a", Retention: -1, ExpireAfter: -1}}}, []string{"retention", "expire_after"}},
		"help in other bytes": {Spec{Rules: []Rule{{Match: "a", Help: "\xff"}}}, []string{"help: it is not UTF-8"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := Compile(c.spec)
			if err == nil || p != nil {
				t.Fatalf("compiled to %v", p)
			}
			for _, one := range err.(interface{ Unwrap() []error }).Unwrap() {
				if e, ok := errors.AsType[*Error](one); !ok || e.Path == "" && e.Key == "" {
					t.Errorf("%v has no place", one)
				}
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
		})
	}
}

func TestFirstMatchWins(t *testing.T) {
	p, err := Compile(Spec{
		Rules: []Rule{
			{Name: "exact", Match: "http_requests"},
			{Name: "sample", Match: "jobs_total"},
			{Name: "any", MatchRE: "http_.*|(?i)GAUGE|.*_end_total"},
			{MatchRE: "x"},
		},
		Pools: map[string]PoolSpec{"web": {Rules: []Rule{{Name: "own", MatchRE: "http_req.*"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pool, family string
		typ          metric.Type
		want         string
	}{
		{"", "http_requests", metric.Counter, "exact"},
		{"web", "http_requests", metric.Counter, "own"},
		{"jobs", "http_requests", metric.Counter, "exact"},
		{"web", "http_other", metric.Counter, "any"},
		{"", "jobs", metric.Counter, "sample"},
		{"", "jobs", metric.Gauge, ""},
		{"", "jobs_total", metric.Gauge, "sample"},
		{"", "gauge", metric.Gauge, "any"},
		{"", "at_end", metric.Counter, "any"},
		{"", "at_end", metric.Histogram, ""},
		{"", "ahttp_x", metric.Counter, ""},
		{"", "x", metric.Gauge, "metrics[3]"},
		{"", "xx", metric.Gauge, ""},
	} {
		if got := p.For(c.pool, c.family, c.typ).Rule; got != c.want {
			t.Errorf("pool %q, %v %q: rule %q, want %q", c.pool, c.typ, c.family, got, c.want)
		}
	}
}

func TestLabels(t *testing.T) {
	for name, c := range map[string]struct {
		rule      Rule
		want, key string // empty: the key as it is
	}{
		"drop":        {Rule{DropLabels: []string{"b", "x"}}, "a=1 c=3", `["f", "f", {"a": "1", "c": "3", "le": "1.0"}, "H"]`},
		"keep":        {Rule{KeepLabels: []string{"b", "x"}}, "b=2", `["f", "f", {"b": "2", "le": "1.0"}, "H"]`},
		"rename":      {Rule{RenameLabels: map[string]string{"a": "z", "x": "y"}}, "b=2 c=3 z=1", ""},
		"rename over": {Rule{RenameLabels: map[string]string{"a": "b"}}, "b=1 c=3", ""},
		"swap":        {Rule{RenameLabels: map[string]string{"a": "b", "b": "a"}}, "a=2 b=1 c=3", ""},
		"shift":       {Rule{RenameLabels: map[string]string{"a": "b", "b": "c", "c": "d"}}, "b=1 c=2 d=3", ""},
		"drop, then rename": {
			Rule{DropLabels: []string{"b"}, RenameLabels: map[string]string{"a": "b"}},
			"b=1 c=3",
			`["f", "f", {"a": "1", "c": "3", "le": "1.0"}, "H"]`,
		},
		"absent": {Rule{RenameLabels: map[string]string{"x": "a"}}, "a=1 b=2 c=3", ""},
	} {
		t.Run(name, func(t *testing.T) {
			c.rule.Match = "f"
			p, err := Compile(Spec{Rules: []Rule{c.rule}})
			if err != nil {
				t.Fatal(err)
			}
			r := p.For("", "f", metric.Histogram)
			labels := []metric.Label{{Name: "a", Value: "1"}, {Name: "b", Value: "2"}, {Name: "c", Value: "3"}}
			key := metric.Key{
				Family: "f",
				Series: metric.Series{Sample: "f", Labels: append(slices.Clone(labels), metric.Label{Name: "le", Value: "1.0"})}, Help: "H",
			}
			if r.Key == nil {
				if c.key != "" {
					t.Error("the key stays")
				}
			} else if got := string(r.Key(nil, key)); got != c.key {
				t.Errorf("key %s, want %s", got, c.key)
			}
			var got []string
			for _, l := range r.Labels(labels) {
				got = append(got, l.Name+"="+l.Value)
			}
			if got := strings.Join(got, " "); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestRuling(t *testing.T) {
	p, err := Compile(Spec{
		Rules: []Rule{
			{
				MatchRE: ".*size.*", Unit: "bytes", Help: "Size.", GaugeMode: metric.Max, Retention: time.Minute,
				ExpireAfter: 90 * time.Second,
			},
		},
		Pools:          map[string]PoolSpec{"web": {Labels: map[string]string{"env": "prod"}}},
		ExternalLabels: map[string]string{"b": "2", "a": "1"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := p.For("web", "size_bytes", metric.Gauge)
	if r.Unit != "bytes" || r.Help != "Size." || r.Mode != metric.Max || r.Retention != time.Minute || r.ExpireAfter != 90 ||
		r.Rule != "metrics[0]" {
		t.Errorf("ruling %+v", r)
	}
	env, pool := metric.Label{Name: "env", Value: "prod"}, metric.Label{Name: "pool", Value: "web"}
	if target, external := p.Labels("web", "web"); !slices.Equal(target, []metric.Label{env, pool}) || len(external) != 2 ||
		external[0].Name != "a" {
		t.Errorf("labels %v, %v", target, external)
	}
	if target, external := p.Labels("", ""); target != nil || len(external) != 2 {
		t.Errorf("labels of a pool without a name: %v, %v", target, external)
	}
	if r := p.For("web", "sizes", metric.Gauge); r.Unit != "" || r.Help != "Size." {
		t.Errorf("without the unit in its name: %+v", r)
	}
	if r := p.For("jobs", "other", metric.Gauge); r.Rule != "" {
		t.Errorf("without a rule: %+v", r)
	}
	if p.For("x", "size", metric.Gauge) != p.For("y", "size", metric.Gauge) {
		t.Error("pools of which nothing is said have rulings of their own")
	}
	var none *Policy
	if r := none.For("x", "y", metric.Gauge); r == nil || r.Rule != "" || none.Says("x") || none.Info() != nil {
		t.Errorf("no policy says %+v", r)
	}
}
