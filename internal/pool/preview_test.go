package pool

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
)

func TestPreview(t *testing.T) {
	web, jobs := tmpfs(t), tmpfs(t)
	for _, id := range []string{"1", "2"} {
		write(t, web, "counter_"+id+".db").set("hits_total", 1, "user", id, "path", "/").set("noise_total", 1).set("plain_total", 1)
		write(t, web, "gauge_all_"+id+".db").set("level", 1)
		write(t, jobs, "gauge_max_"+id+".db").set("level", 1).set("go_info", 1, "version", id)
	}
	before := tree(t, web)
	p := compile(t, policy.Spec{
		Rules: []policy.Rule{{Match: "hits_total", DropLabels: []string{"user"}}, {Name: "noisy", Match: "noise", Drop: true}},
		Pools: map[string]policy.PoolSpec{"web": {Rules: []policy.Rule{{Match: "level", GaugeMode: metric.Sum}}}},
		Info:  []policy.InfoSeries{{Name: "build_info"}},
		MetricRelabelConfigs: []*relabel.Config{
			{Action: relabel.Replace, SourceLabels: model.LabelNames{"__name__"}, Separator: ";", Regex: relabel.MustNewRegexp("plain_total"), TargetLabel: "__name__", Replacement: "renamed_total"},
			{Action: relabel.LabelDrop, Separator: ";", Replacement: "$1", Regex: relabel.MustNewRegexp("version")},
		},
	})
	got, err := PreviewPolicy(context.Background(), Options{Dirs: []DirSpec{{Pool: "web", Path: web}, {Pool: "jobs", Path: jobs}}}, p)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range got.Effects {
		fmt.Fprintf(&b, "%s %q %v %v>%v %q %v %d>%d>%d %v %v\n", e.Family, e.Pool, e.Type, e.FileMode, e.Mode, e.Rule, e.ModeByRule, e.Before, e.Ruled, e.After, e.Dropped, e.Names)
	}
	want := `build_info "" gauge >max "" false 0>1>1 false [build_info]
go_info "jobs" gauge max>max "" false 2>2>1 false [go_info]
hits "web" counter > "metrics[0]" false 2>1>1 false [hits]
level "jobs" gauge max>max "" false 1>1>1 false [level]
level "web" gauge max>sum "pools.web.metrics[0]" true 2>1>1 false [level]
noise "web" counter > "noisy" false 1>0>0 true []
plain "web" counter > "" false 1>1>1 false [renamed]
`
	if b.String() != want {
		t.Errorf("got:\n%swant:\n%s", b.String(), want)
	}
	if got.Before != 9 || got.After != 6 || got.Equal != 1 || len(got.Collisions) != 1 {
		t.Errorf("in all %d before, %d after, %d equal, collisions %v", got.Before, got.After, got.Equal, got.Collisions)
	}
	if now := tree(t, web); now != before {
		t.Errorf("the directory was changed")
	}
}
