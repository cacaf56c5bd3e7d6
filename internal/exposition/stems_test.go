package exposition

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// poolsOf joins as many snapshots with equal families, each with labels of its own, and returns what
// is joined, and the same with all labels of each metric in one list, which no two metrics share.
func poolsOf(r *rand.Rand, pools int) (joined, flat *view.Snapshot) {
	names := []string{"app", "cluster", "le_", "pool", "zone"}
	values := []string{"", "a", `q"uote`, "back\\slash", "ä", "two\nlines", "comma,"}
	pick := func(from []string) string { return from[r.IntN(len(from))] }
	var fams []fam
	for i, typ := range []metric.Type{
		metric.Counter, metric.Gauge, metric.Histogram, metric.Summary, metric.Gauge, metric.Counter,
		metric.Histogram,
	} {
		f := fam{name: fmt.Sprintf("f%d", i), typ: typ, sparse: i == 2 || i == 4}
		if i > 4 {
			f.name = fmt.Sprintf("not.legal %d", i)
		}
		for k := range 1 + r.IntN(4) {
			own := []string{"k", fmt.Sprint(k)}
			if r.IntN(2) == 0 {
				own = append(own, "zone", pick(values))
			}
			if r.IntN(3) == 0 {
				own = append(own, "b", pick(values))
			}
			m := value(1, own...)
			switch typ {
			case metric.Counter:
				m = total(1, own...)
			case metric.Histogram:
				m = buckets(1, 2, 3, 4, own...)
			case metric.Summary:
				m = summary(1, 2, own...)
			}
			f.metrics = append(f.metrics, m)
		}
		fams = append(fams, f)
	}
	one := snapshot(fams...)
	var parts []view.Part
	for p := range pools {
		s := &view.Snapshot{Layout: one.Layout, Values: make([]float64, len(one.Values)), Starts: make([]int64, len(one.Values))}
		for i := range s.Values {
			s.Values[i] = float64(p*1000 + i)
			if r.IntN(3) == 0 {
				s.Starts[i] = 1_764_253_000_000 + int64(i)
			}
		}
		for _, f := range s.Layout.Families {
			for i := range f.Points {
				if f.Sparse && r.IntN(2) == 0 {
					s.Values[f.First+i] = view.Absent
				}
			}
		}
		target := labels("pool", fmt.Sprintf("p%d", p))
		if r.IntN(2) == 0 {
			target = labels("app", pick(values), "pool", fmt.Sprintf("p%d", p))
		}
		parts = append(parts, view.Part{
			Snapshot: s, Name: fmt.Sprint(p), Target: target,
			External: labels(pick(names[1:3]), pick(values), "zone", pick(values)),
		})
	}
	var j view.Joiner
	joined = j.Join(parts)
	flat = &view.Snapshot{Layout: &view.Layout{Points: joined.Layout.Points}, Values: joined.Values, Starts: joined.Starts}
	for _, f := range joined.Layout.Families {
		metrics := make([]view.Metric, len(f.Metrics))
		for i := range f.Metrics {
			metrics[i] = view.Metric{Labels: f.Metrics[i].AppendLabels(nil), Points: f.Metrics[i].Points}
		}
		f.Metrics = metrics
		flat.Layout.Families = append(flat.Layout.Families, f)
	}
	return joined, flat
}

// TestStems: metrics of many pools, most of whose labels are kept once, look like any others, in
// every format, in part and with the starts of their values.
func TestStems(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	stems := 0
	for range 15 {
		joined, flat := poolsOf(r, 1+r.IntN(30))
		for _, f := range allFormats {
			for _, created := range []bool{false, true} {
				for _, sel := range []Filter{{}, NewFilter([]string{"f0_total", "f2_bucket", "f3", "not.legal 6_count"})} {
					a, b := Encoder{CreatedSamples: created}, Encoder{CreatedSamples: created}
					got, want := string(a.Append(nil, f, sel, joined)), string(b.Append(nil, f, sel, flat))
					if got != want {
						t.Fatalf("%v, created %t:\n%s\nwant\n%s", f, created, got, want)
					}
					for _, v := range b.views {
						for i := range v.sections {
							if v.sections[i].stems != nil {
								t.Fatal("metrics that share nothing have stems")
							}
						}
					}
					for _, v := range a.views {
						for i := range v.sections {
							if v.sections[i].stems != nil {
								stems++
							}
						}
					}
				}
			}
		}
	}
	if stems == 0 {
		t.Error("no section had stems")
	}
}
