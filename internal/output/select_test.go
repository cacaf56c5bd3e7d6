package output

import (
	"strings"
	"testing"

	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
)

func TestSelection(t *testing.T) {
	in := func() []outputtest.Family {
		return []outputtest.Family{
			{Name: "aggregatord_fake", Type: metric.Gauge, Metrics: []outputtest.Metric{{Values: []float64{9}}}},
			{Name: "depth", Type: metric.Gauge, Metrics: []outputtest.Metric{
				{Labels: []string{"a", "1"}, Extra: []string{"pool", "web"}, Values: []float64{1}},
				{Labels: []string{"z", "1"}, Extra: []string{"pool", "jobs"}, Values: []float64{2}},
				{Labels: []string{"z", "2"}, Values: []float64{3}},
			}},
			{Name: "jobs", Type: metric.Counter, Metrics: []outputtest.Metric{{Extra: []string{"pool", "web"}, Values: []float64{4}}}},
		}
	}
	drop := relabel.DefaultRelabelConfig
	drop.Action, drop.SourceLabels, drop.Regex = relabel.LabelDrop, nil, relabel.MustNewRegexp("z")
	dropMore := drop
	dropMore.Regex = relabel.MustNewRegexp("pool|a")
	for name, c := range map[string]struct {
		spec    Spec
		want    string
		leftOut int
	}{
		"all": {
			Spec{},
			`aggregatord_fake=9 depth{a="1",pool="web"}=1 depth{pool="jobs",z="1"}=2 depth{z="2"}=3 jobs_total{pool="web"}=4`, 0,
		},
		"match":     {Spec{Match: []string{"dep", "jobs"}}, `jobs_total{pool="web"}=4`, 0},
		"by _total": {Spec{Match: []string{"jobs_total"}}, `jobs_total{pool="web"}=4`, 0},
		"pools":     {Spec{Pools: []string{"web"}}, `depth{a="1",pool="web"}=1 jobs_total{pool="web"}=4`, 0},
		"external": {
			Spec{ExternalLabels: map[string]string{"m": "x", "z": "y"}, Match: []string{"depth"}},
			`depth{a="1",m="x",pool="web",z="y"}=1 depth{m="x",pool="jobs",z="1"}=2 depth{m="x",z="2"}=3`, 0,
		},
		"own": {Spec{OwnMetrics: true, Match: []string{".*_fake", "jobs"}}, `jobs_total{pool="web"}=4`, 0},
		"relabel": {
			Spec{Relabel: []*relabel.Config{&drop}, Match: []string{"depth"}},
			`depth=3 depth{a="1",pool="web"}=1 depth{pool="jobs"}=2`, 0,
		},
		"collision": {Spec{Relabel: []*relabel.Config{&drop, &dropMore}, Match: []string{"depth"}}, `depth=1`, 2},
		"nothing":   {Spec{Match: []string{"none"}}, ``, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSelection(&c.spec, ofWorkers)
			src := outputtest.Snapshot(in()...)
			for _, v := range src.Values {
				src.Starts = append(src.Starts, int64(v)*1000)
			}
			for range 2 { // the second time from what is kept
				snap := s.apply(src)
				samples := outputtest.Samples(snap)
				for part := range strings.FieldsSeq(c.want) {
					i := strings.LastIndexByte(part, '=')
					if v, ok := samples[part[:i]]; !ok || string(metric.AppendValue(nil, v)) != part[i+1:] {
						t.Errorf("%s: %v", part, v)
					}
					delete(samples, part[:i])
				}
				if len(samples) > 0 {
					t.Errorf("too much: %v", samples)
				}
				if s.leftOut != c.leftOut {
					t.Errorf("%d left out, want %d", s.leftOut, c.leftOut)
				}
				if len(snap.Starts) != len(snap.Values) {
					t.Errorf("%d starts for %d values", len(snap.Starts), len(snap.Values))
				}
				for i, start := range snap.Starts {
					if start != int64(snap.Values[i])*1000 {
						t.Errorf("the value %v has the start %d of another one", snap.Values[i], start)
					}
				}
			}
		})
	}
}
