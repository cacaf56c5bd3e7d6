package relabel

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	prom "github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// layout makes a layout of families that it is told as "TYPE NAME", and lines of labels.
func layout(families ...[]string) *view.Layout {
	out := &view.Layout{}
	for _, lines := range families {
		typ, name, _ := strings.Cut(lines[0], " ")
		f := view.Family{Name: name, Help: "H", First: out.Points}
		f.Type, _ = metric.ParseType(typ)
		if f.Type == metric.Gauge {
			f.Mode = metric.Max
		}
		points := map[metric.Type][]view.Point{
			metric.Counter: {{Kind: view.Total}}, metric.Gauge: {{}},
			metric.Histogram: {
				{Kind: view.Bucket, Bound: 1},
				{Kind: view.Bucket, Bound: 2.5},
				{Kind: view.Bucket, Bound: math.Inf(1)},
				{Kind: view.Sum},
				{Kind: view.Count},
			},
			metric.Summary: {{Kind: view.Quantile, Bound: 0.5}, {Kind: view.Sum}, {Kind: view.Count}},
		}[f.Type]
		for _, line := range lines[1:] {
			m := view.Metric{Points: points}
			for l := range strings.FieldsSeq(line) {
				k, v, _ := strings.Cut(l, "=")
				m.Labels = append(m.Labels, metric.Label{Name: k, Value: v})
			}
			metric.SortLabels(m.Labels)
			f.Metrics = append(f.Metrics, m)
			f.Points += len(points)
		}
		slices.SortFunc(f.Metrics, func(a, b view.Metric) int { return metric.CompareLabels(a.Labels, b.Labels) })
		out.Points += f.Points
		out.Families = append(out.Families, f)
	}
	return out
}

// show writes a layout, and of each point which one it was.
func show(t *testing.T, l *view.Layout, from []uint32) string {
	t.Helper()
	var b strings.Builder
	i := 0
	for k, f := range l.Families {
		if f.First != i || k > 0 && cmp.Or(strings.Compare(l.Families[k-1].Name, f.Name), cmp.Compare(l.Families[k-1].Type, f.Type)) >= 0 {
			t.Errorf("family %q begins at %d, want %d, or is out of order", f.Name, f.First, i)
		}
		fmt.Fprintf(&b, "# %s %s\n", f.Type, f.Name)
		for n, m := range f.Metrics {
			if n > 0 && metric.CompareLabels(f.Metrics[n-1].Labels, m.Labels) >= 0 {
				t.Errorf("metrics of %q are out of order, or equal", f.Name)
			}
			for _, p := range m.Points {
				b.WriteString(f.Name + p.Kind.Suffix() + "{")
				for _, l := range m.Labels {
					b.WriteString(l.Name + "=" + l.Value + " ")
				}
				if bound := p.BoundLabel(); bound != "" {
					b.WriteString(bound + "=" + string(p.AppendBound(nil)) + " ")
				}
				fmt.Fprintf(&b, "} %d\n", from[i])
				i++
			}
		}
	}
	if i != l.Points || i != len(from) {
		t.Errorf("%d points, %d in the layout, %d from", i, l.Points, len(from))
	}
	return b.String()
}

func config(action prom.Action, regex string, set ...func(*prom.Config)) *prom.Config {
	c := prom.DefaultRelabelConfig
	c.Action = action
	if regex != "" {
		c.Regex = prom.MustNewRegexp(regex)
	}
	for _, f := range set {
		f(&c)
	}
	return &c
}

func source(names ...string) func(*prom.Config) {
	return func(c *prom.Config) {
		for _, n := range names {
			c.SourceLabels = append(c.SourceLabels, model.LabelName(n))
		}
	}
}

func target(name string) func(*prom.Config) {
	return func(c *prom.Config) { c.TargetLabel = name }
}

func replacement(s string) func(*prom.Config) {
	return func(c *prom.Config) { c.Replacement = s }
}

func relabeler(t testing.TB, configs ...*prom.Config) *Relabeler {
	t.Helper()
	for _, c := range configs {
		if err := c.Validate(model.UTF8Validation); err != nil {
			t.Fatal(err)
		}
	}
	return New(configs)
}

func TestRelabel(t *testing.T) {
	histogram := []string{"histogram h", "a=1"}
	whole := "# histogram h\nh_bucket{a=1 le=1.0 } 0\nh_bucket{a=1 le=2.5 } 1\nh_bucket{a=1 le=+Inf } 2\nh_sum{a=1 } 3\nh_count{a=1 } 4\n"
	for name, c := range map[string]struct {
		in             *view.Layout
		configs        []*prom.Config
		want           string
		dropped, equal int
	}{
		"nothing matches": {layout(histogram), []*prom.Config{config(prom.Drop, "x", source("a"))}, whole, 0, 0},
		"replace": {
			layout([]string{"gauge g", "a=x-1"}),
			[]*prom.Config{config(prom.Replace, "(.*)-(.*)", source("a"), target("b"), replacement("$2"))},
			"# gauge g\ng{a=x-1 b=1 } 0\n", 0, 0,
		},
		"replace by nothing removes": {
			layout([]string{"gauge g", "a=1 b=2"}),
			[]*prom.Config{config(prom.Replace, "", source("b"), target("a"), replacement(""))},
			"# gauge g\ng{b=2 } 0\n", 0, 0,
		},
		"several sources": {
			layout([]string{"gauge g", "a=1 b=2"}),
			[]*prom.Config{config(prom.Replace, "", source("a", "b", "none"), target("c"))},
			"# gauge g\ng{a=1 b=2 c=1;2; } 0\n", 0, 0,
		},
		"one after the other": {
			layout([]string{"gauge g", "a=1"}),
			[]*prom.Config{config(prom.Replace, "", source("a"), target("b")), config(prom.Drop, "1", source("b"))},
			"", 1, 0,
		},
		"keep": {
			layout([]string{"counter c", "a=1", "a=2"}),
			[]*prom.Config{config(prom.Keep, "2", source("a"))},
			"# counter c\nc_total{a=2 } 1\n", 1, 0,
		},
		"drop by sample name": {
			layout([]string{"counter c", "a=1"}, []string{"gauge d", ""}),
			[]*prom.Config{config(prom.Drop, "c_total", source("__name__"))},
			"# gauge d\nd{} 1\n", 1, 0,
		},
		"dropequal": {
			layout([]string{"gauge g", "a=1 b=1", "a=1 b=2"}),
			[]*prom.Config{config(prom.DropEqual, "", source("a"), target("b"))},
			"# gauge g\ng{a=1 b=2 } 1\n", 1, 0,
		},
		"keepequal": {
			layout([]string{"gauge g", "a=1 b=1", "a=1 b=2"}),
			[]*prom.Config{config(prom.KeepEqual, "", source("a"), target("b"))},
			"# gauge g\ng{a=1 b=1 } 0\n", 1, 0,
		},
		"labelmap": {
			layout([]string{"gauge g", "x_a=1 b=2"}),
			[]*prom.Config{config(prom.LabelMap, "x_(.*)")},
			"# gauge g\ng{a=1 b=2 x_a=1 } 0\n", 0, 0,
		},
		"labelkeep": {
			layout([]string{"gauge g", "a=1 b=2"}),
			[]*prom.Config{config(prom.LabelKeep, "__name__|b")},
			"# gauge g\ng{b=2 } 0\n", 0, 0,
		},
		"lowercase": {
			layout([]string{"gauge g", "a=Ab"}),
			[]*prom.Config{config(prom.Lowercase, "", source("a"), target("a"))},
			"# gauge g\ng{a=ab } 0\n", 0, 0,
		},
		"uppercase": {
			layout([]string{"gauge g", "a=Ab"}),
			[]*prom.Config{config(prom.Uppercase, "", source("a"), target("b"))},
			"# gauge g\ng{a=Ab b=AB } 0\n", 0, 0,
		},
		"hashmod": {
			layout([]string{"gauge g", "a=baz"}),
			[]*prom.Config{config(prom.HashMod, "", source("a"), target("d"), func(c *prom.Config) { c.Modulus = 1000 })},
			"# gauge g\ng{a=baz d=976 } 0\n", 0, 0,
		},
		"renamed family": {
			layout(histogram),
			[]*prom.Config{config(prom.Replace, "h(_.*)", source("__name__"), target("__name__"), replacement("new$1"))},
			strings.NewReplacer("h_", "new_", "m h", "m new").Replace(whole), 0, 0,
		},
		"without a name": {
			layout([]string{"gauge g", "a=1"}), []*prom.Config{config(prom.LabelDrop, "__name__")}, "", 1, 0,
		},
		"equal series": {
			layout([]string{"counter c", "a=1", "a=2", "a=3 b=1"}),
			[]*prom.Config{config(prom.LabelDrop, "a")},
			"# counter c\nc_total{} 0\nc_total{b=1 } 2\n", 0, 1,
		},
		"equal histograms": {
			layout([]string{"histogram h", "a=1", "a=2"}),
			[]*prom.Config{config(prom.LabelDrop, "a")},
			strings.ReplaceAll(whole, "a=1 ", ""), 0, 5,
		},
		"some buckets": {
			layout(histogram),
			[]*prom.Config{config(prom.Drop, `h_bucket;2\.5`, source("__name__", "le"))},
			strings.Replace(whole, "h_bucket{a=1 le=2.5 } 1\n", "", 1), 1, 0,
		},
		"without the last bucket": {
			layout(histogram),
			[]*prom.Config{config(prom.Drop, `\+Inf`, source("le"))},
			"# unknown h_bucket\nh_bucket{a=1 le=1.0 } 0\nh_bucket{a=1 le=2.5 } 1\n# unknown h_count\nh_count{a=1 } 4\n# unknown h_sum\nh_sum{a=1 } 3\n", 1, 0,
		},
		"without buckets": {
			layout(histogram),
			[]*prom.Config{config(prom.Drop, `h_bucket`, source("__name__"))},
			"# unknown h_count\nh_count{a=1 } 4\n# unknown h_sum\nh_sum{a=1 } 3\n", 3, 0,
		},
		"of one of two histograms": {
			// The other cannot keep its type, or the sum would be there twice.
			layout([]string{"histogram h", "a=1", "a=2"}),
			[]*prom.Config{config(prom.Drop, `h_(bucket|count);1`, source("__name__", "a"))},
			"# unknown h_bucket\nh_bucket{a=2 le=+Inf } 7\nh_bucket{a=2 le=1.0 } 5\nh_bucket{a=2 le=2.5 } 6\n# unknown h_count\nh_count{a=2 } 9\n# unknown h_sum\nh_sum{a=1 } 3\nh_sum{a=2 } 8\n", 4, 0,
		},
		"other bounds": {
			layout(histogram),
			[]*prom.Config{config(prom.Replace, `(\d)\.0`, source("le"), target("le"))},
			"# unknown h_bucket\nh_bucket{a=1 le=+Inf } 2\nh_bucket{a=1 le=1 } 0\nh_bucket{a=1 le=2.5 } 1\n# unknown h_count\nh_count{a=1 } 4\n# unknown h_sum\nh_sum{a=1 } 3\n", 0, 0,
		},
		"one sample renamed": {
			layout(histogram),
			[]*prom.Config{config(prom.Replace, "h_sum", source("__name__"), target("__name__"), replacement("seconds"))},
			"# unknown h_bucket\nh_bucket{a=1 le=+Inf } 2\nh_bucket{a=1 le=1.0 } 0\nh_bucket{a=1 le=2.5 } 1\n# unknown h_count\nh_count{a=1 } 4\n# unknown seconds\nseconds{a=1 } 3\n", 0, 0,
		},
		"quantiles": {
			layout([]string{"summary s", "a=1"}),
			[]*prom.Config{config(prom.Drop, `0\.5`, source("quantile"))},
			"# summary s\ns_sum{a=1 } 1\ns_count{a=1 } 2\n", 1, 0,
		},
		"counter without _total": {
			layout([]string{"counter c", "a=1"}),
			[]*prom.Config{config(prom.Replace, "c_total", source("__name__"), target("__name__"), replacement("n"))},
			"# counter n\nn{a=1 } 0\n", 0, 0,
		},
		"two become one family": {
			layout([]string{"gauge a", "l=2"}, []string{"gauge b", "l=1", "l=2"}),
			[]*prom.Config{config(prom.Replace, "b", source("__name__"), target("__name__"), replacement("a"))},
			"# gauge a\na{l=1 } 1\na{l=2 } 0\n", 0, 1,
		},
		"of two types": {
			layout([]string{"counter a", "l=2"}, []string{"gauge b", "l=1"}),
			[]*prom.Config{config(prom.Replace, "b", source("__name__"), target("__name__"), replacement("a_total"))},
			"# unknown a_total\na_total{l=1 } 1\na_total{l=2 } 0\n", 0, 0,
		},
	} {
		t.Run(name, func(t *testing.T) {
			out := relabeler(t, c.configs...).Apply(c.in)
			if got := show(t, out.Layout, out.From); got != c.want {
				t.Errorf("got:\n%swant:\n%s", got, c.want)
			}
			if out.Dropped != c.dropped || out.Equal != c.equal || (out.Equal > 0) != (len(out.Collisions) > 0) {
				t.Errorf("%d dropped and %d equal (%v), want %d and %d", out.Dropped, out.Equal, out.Collisions, c.dropped, c.equal)
			}
		})
	}
}

// TestRelabelSamples relabels random layouts by random rules. Whatever becomes of the types, the
// samples are those that Prometheus makes of each one by itself, the first of equal ones.
func TestRelabelSamples(t *testing.T) {
	for range 300 {
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 5))
		var families [][]string
		for i, typ := range []string{"counter", "gauge", "histogram", "histogram", "summary"} {
			f := []string{typ + " " + string(rune('a'+i)) + "x"}
			for n := range r.IntN(3) + 1 {
				f = append(f, fmt.Sprintf("k=%d l=%d", n, r.IntN(2)))
			}
			families = append(families, f)
		}
		in := layout(families...)
		actions := []*prom.Config{
			config(prom.Drop, "[bc]x.*|dx_bucket", source("__name__")),
			config(prom.Drop, `2\.5|0\.5`, source("le")),
			config(prom.Drop, `\+Inf`, source("le")),
			config(prom.Keep, "0", source("l")),
			config(prom.LabelDrop, "l"),
			config(prom.LabelDrop, "k"),
			config(prom.LabelDrop, "le"),
			config(prom.Replace, "(.)x(.*)", source("__name__"), target("__name__"), replacement("m$2")),
			config(prom.Replace, "c(.*);0", source("__name__", "k"), target("__name__"), replacement("d$1")),
			config(prom.Replace, "(.*)_sum", source("__name__"), target("__name__"), replacement("$1")),
			config(prom.Replace, "", source("k"), target("quantile")),
			config(prom.LabelMap, "k", replacement("le")),
		}
		var configs []*prom.Config
		for range r.IntN(3) + 1 {
			configs = append(configs, actions[r.IntN(len(actions))])
		}
		out := relabeler(t, configs...).Apply(in)
		got := samples(out.Layout)
		want := map[string]bool{}
		dropped := 0
		for _, s := range samples(in) {
			b := labels.NewBuilder(s)
			if !prom.ProcessBuilder(b, validated(configs)...) || b.Get("__name__") == "" {
				dropped++
				continue
			}
			want[b.Labels().String()] = true
		}
		seen := map[string]bool{}
		for _, s := range got {
			id := s.String()
			if seen[id] {
				t.Errorf("seed %d: %s twice", seed, id)
			}
			seen[id] = true
			if !want[id] {
				t.Errorf("seed %d: %s is not what Prometheus makes", seed, id)
			}
		}
		if len(seen)+out.Equal+out.Dropped != in.Points || dropped != out.Dropped {
			t.Errorf("seed %d: %d served, %d equal, %d dropped (want %d) of %d", seed, len(seen), out.Equal, out.Dropped, dropped,
				in.Points)
		}
		if len(seen) != len(want) {
			t.Errorf("seed %d: %d series, want %d:\n%s", seed, len(seen), len(want), show(t, out.Layout, out.From))
		}
		show(t, out.Layout, out.From)
		if t.Failed() {
			t.FailNow()
		}
	}
}

func validated(configs []*prom.Config) []*prom.Config {
	var out []*prom.Config
	for _, c := range configs {
		own := *c
		if err := own.Validate(model.UTF8Validation); err != nil {
			panic(err)
		}
		out = append(out, &own)
	}
	return out
}

func samples(l *view.Layout) []labels.Labels {
	var out []labels.Labels
	for _, f := range l.Families {
		for _, m := range f.Metrics {
			for _, p := range m.Points {
				var sb labels.ScratchBuilder
				sb.Add("__name__", f.Name+p.Kind.Suffix())
				for _, l := range m.Labels {
					sb.Add(l.Name, l.Value)
				}
				if bound := p.BoundLabel(); bound != "" {
					sb.Add(bound, string(p.AppendBound(nil)))
				}
				sb.Sort()
				out = append(out, sb.Labels())
			}
		}
	}
	return out
}

func TestRelabelRemembers(t *testing.T) {
	r := relabeler(t, config(prom.Replace, "", target("new"), replacement("x")))
	in := layout([]string{"counter c", "a=1"}, []string{"gauge g", "a=1"})
	first := r.Apply(in)
	if r.Apply(in) != first {
		t.Error("the same layout is relabelled again")
	}
	// A family appears, another stays.
	next := layout([]string{"counter b", ""}, []string{"counter c", "a=1"})
	next.Families[1].Metrics = in.Families[0].Metrics
	second := r.Apply(next)
	if got, want := show(t, second.Layout, second.From),
		"# counter b\nb_total{new=x } 0\n# counter c\nc_total{a=1 new=x } 1\n"; got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
	if &first.Layout.Families[0].Metrics[0].Labels[0] != &second.Layout.Families[1].Metrics[0].Labels[0] {
		t.Error("a family that stayed was relabelled again")
	}
	if first.Layout == second.Layout {
		t.Error("two layouts are one")
	}
}

// BenchmarkRelabel has one family of 400 change, of 100,000 samples in all.
func BenchmarkRelabel(b *testing.B) {
	var families [][]string
	for i := range 400 {
		f := []string{fmt.Sprintf("histogram h%03d", i)}
		for k := range 50 {
			f = append(f, fmt.Sprintf("handler=/api/%d method=GET", k))
		}
		families = append(families, f)
	}
	in := layout(families...)
	r := relabeler(b,
		config(prom.Replace, "/api/(.*)", source("handler"), target("resource")), config(prom.Drop, "x", source("handler")))
	r.Apply(in)
	b.ReportAllocs()
	for b.Loop() {
		next := *in
		next.Families = slices.Clone(in.Families)
		next.Families[0].Metrics = slices.Clone(next.Families[0].Metrics)
		r.Apply(&next)
	}
}

// TestFamiliesOfOneName: a gauge beside a counter of its name is not touched.
func TestFamiliesOfOneName(t *testing.T) {
	in := layout([]string{"counter jobs", "a=1", "a=2"}, []string{"gauge jobs", "a=1"}, []string{"counter up", "a=3"})
	out := relabeler(t, config(prom.Drop, "2", source("a"))).Apply(in)
	want := "# counter jobs\njobs_total{a=1 } 0\n# gauge jobs\njobs{a=1 } 2\n# counter up\nup_total{a=3 } 3\n"
	if got := show(t, out.Layout, out.From); got != want {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

// TestExtra: labels that metrics share are seen by the rules, and stay shared where they are not
// changed.
func TestExtra(t *testing.T) {
	in := layout([]string{"counter c", "a=1", "z=2"})
	extra := []metric.Label{{Name: "pool", Value: "web"}}
	for i := range in.Families[0].Metrics {
		in.Families[0].Metrics[i].Extra = extra
	}
	out := relabeler(t, config(prom.Keep, "web", source("pool")),
		config(prom.Replace, "2", source("z"), target("pool"), replacement("x"))).Apply(in)
	ms := out.Layout.Families[0].Metrics
	if len(ms) != 2 || &ms[0].Extra[0] != &extra[0] || &ms[0].Labels[0] != &in.Families[0].Metrics[0].Labels[0] {
		t.Errorf("what is as before is not the same: %+v", ms)
	}
	if got, want := ms[1].AllLabels(), []metric.Label{{Name: "pool", Value: "x"}, {Name: "z", Value: "2"}}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// TestIdle: a step is idle if no sample that comes to it matches.
func TestIdle(t *testing.T) {
	in := layout([]string{"histogram h", "a=1"}, []string{"gauge g", "b=2"})
	configs := []*prom.Config{
		config(prom.Drop, "h_bucket;1.0", source("__name__", "le")),
		config(prom.Drop, "h", source("__name__")),
		config(prom.Replace, "(.+)", source("b"), target("c")),
		config(prom.Keep, "2", source("c")),
		config(prom.Drop, "h_.*", source("__name__")), // none is left
		config(prom.LabelDrop, "c"),
		config(prom.LabelDrop, "c"), // it is gone
		config(prom.Lowercase, "(.*)", source("b"), target("b")),
	}
	for _, c := range configs {
		if err := c.Validate(model.UTF8Validation); err != nil {
			t.Fatal(err)
		}
	}
	if got := Idle(configs, in); !slices.Equal(got, []int{1, 4, 6}) {
		t.Errorf("idle are %v", got)
	}
}
