package policy

import (
	"strings"
	"testing"
	"time"

	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
)

func TestCompileRefuses(t *testing.T) {
	re := func(s string) relabel.Regexp { return relabel.MustNewRegexp(s) }
	for name, c := range map[string]struct {
		spec Spec
		want []string
	}{
		"no match":            {Spec{Rules: []Rule{{Help: "x"}}}, []string{"metrics[0]: it matches nothing; write match"}},
		"two matches":         {Spec{Rules: []Rule{{Match: "a", MatchRE: "b"}}}, []string{"metrics[0]: it has match and match_re"}},
		"bad expression":      {Spec{Rules: []Rule{{Match: "a"}, {Name: "mine", MatchRE: "a(b"}}}, []string{"metrics[1] (mine): match_re: error parsing regexp: missing closing ): `a(b`"}},
		"same name":           {Spec{Rules: []Rule{{Name: "x", Match: "a"}, {Name: "x", Match: "b"}}}, []string{`metrics[1]: the name "x" is that of metrics[0] already`}},
		"drop and more":       {Spec{Rules: []Rule{{Match: "a", Drop: true, GaugeMode: metric.Sum}}}, []string{"drop: true leaves nothing"}},
		"no mode":             {Spec{Rules: []Rule{{Match: "a", GaugeMode: 77}}}, []string{"gauge_mode: use one of all, liveall, sum"}},
		"unit":                {Spec{Rules: []Rule{{Match: "a_total", Unit: "bytes"}}}, []string{"ends in _bytes"}},
		"drop and keep":       {Spec{Rules: []Rule{{Match: "a", DropLabels: []string{"x"}, KeepLabels: []string{"y"}}}}, []string{"drop_labels and keep_labels"}},
		"drop le":             {Spec{Rules: []Rule{{Match: "a", DropLabels: []string{"le"}}}}, []string{`drop_labels: label "le"`}},
		"rename to quantile":  {Spec{Rules: []Rule{{Match: "a", RenameLabels: map[string]string{"x": "quantile"}}}}, []string{`rename_label: label "quantile"`}},
		"two become one":      {Spec{Rules: []Rule{{Match: "a", RenameLabels: map[string]string{"x": "z", "y": "z"}}}}, []string{"x and y would both become z"}},
		"retention":           {Spec{Rules: []Rule{{Match: "a", Retention: -time.Second}}}, []string{"retention: -1s is below 0"}},
		"expiry":              {Spec{Rules: []Rule{{Match: "a", ExpireAfter: -time.Second}}}, []string{"expire_after: -1s is below 0"}},
		"pool's rule":         {Spec{Pools: map[string]PoolSpec{"web": {Rules: []Rule{{}}}}}, []string{"pools.web.metrics[0]: it matches nothing"}},
		"pool's label":        {Spec{Pools: map[string]PoolSpec{"web": {Labels: map[string]string{"pool": "x"}}}}, []string{"pools.web.labels"}},
		"reserved label":      {Spec{ExternalLabels: map[string]string{"__name__": "x"}}, []string{`external_labels: label "__name__"`}},
		"empty label":         {Spec{ExternalLabels: map[string]string{"a": ""}}, []string{"the value of a is empty"}},
		"info name":           {Spec{Info: []InfoSeries{{}}}, []string{`info[0]: name ""`}},
		"info of ours":        {Spec{Info: []InfoSeries{{Name: "aggregatord_x"}}}, []string{"the daemon's own"}},
		"info twice":          {Spec{Info: []InfoSeries{{Name: "a"}, {Name: "a"}}}, []string{"info[1]: a is there already"}},
		"limit":               {Spec{Limits: Limits{Labels: -1}}, []string{"limits.labels: -1 is below 0"}},
		"relabel":             {Spec{MetricRelabelConfigs: []*relabel.Config{{Action: relabel.Replace, Regex: re(".*")}}}, []string{"metric_relabel_configs[0]: relabel configuration for replace action requires 'target_label'"}},
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
		got := ""
		if r := p.find(c.pool, c.family, c.typ); r != nil {
			got = r.name
		}
		if got != c.want {
			t.Errorf("pool %q, %v %q: rule %q, want %q", c.pool, c.typ, c.family, got, c.want)
		}
	}
}
