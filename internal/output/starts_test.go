package output

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/output/outputtest"
	"aggregatord/internal/view"
)

// jobs is a view of a counter with a series for each pair of a name and a value.
func jobs(series ...any) *view.Snapshot {
	f := outputtest.Family{Name: "jobs", Help: "Jobs.", Type: metric.Counter, Sparse: true}
	for i := 0; i < len(series); i += 2 {
		v, ok := series[i+1].(float64)
		if !ok {
			v = float64(series[i+1].(int))
		}
		f.Metrics = append(f.Metrics, outputtest.Metric{Labels: []string{"q", series[i].(string)}, Values: []float64{v}})
	}
	if f.Metrics == nil {
		return outputtest.Snapshot()
	}
	return outputtest.Snapshot(f)
}

func TestStarts(t *testing.T) {
	type look struct {
		at     int64 // seconds
		snap   *view.Snapshot
		want   []int64 // milliseconds
		unsure bool
	}
	same := jobs("a", 5)
	for name, looks := range map[string][]look{
		"there before":            {{at: 10, snap: jobs("a", 5), want: []int64{0}}, {at: 20, snap: jobs("a", 6), want: []int64{0}}},
		"appears":                 {{at: 10, snap: jobs(), want: nil}, {at: 20, snap: jobs("a", 5), want: []int64{10_000}}, {at: 30, snap: jobs("a", 6), want: []int64{10_000}}},
		"appears beside":          {{at: 10, snap: jobs("b", 1), want: []int64{0}}, {at: 20, snap: jobs("a", 5, "b", 1), want: []int64{10_000, 0}}},
		"falls":                   {{at: 10, snap: same, want: []int64{0}}, {at: 20, snap: outputtest.With(same, 4), want: []int64{10_000}}, {at: 30, snap: outputtest.With(same, 9), want: []int64{10_000}}},
		"comes back":              {{at: 10, snap: jobs(), want: nil}, {at: 20, snap: jobs("a", 5), want: []int64{10_000}}, {at: 30, snap: jobs("b", 1), want: []int64{20_000}}, {at: 40, snap: jobs("a", 5, "b", 1), want: []int64{10_000, 20_000}}},
		"comes back lower":        {{at: 10, snap: jobs(), want: nil}, {at: 20, snap: jobs("a", 5), want: []int64{10_000}}, {at: 30, snap: jobs(), want: nil}, {at: 40, snap: jobs("a", 2), want: []int64{30_000}}},
		"absent meanwhile":        {{at: 10, snap: same, want: []int64{0}}, {at: 20, snap: outputtest.With(same, view.Absent), want: []int64{0}}, {at: 30, snap: outputtest.With(same, 6), want: []int64{0}}},
		"an older view":           {{at: 10, snap: jobs(), want: nil}, {at: 20, snap: jobs("a", 5), want: []int64{10_000}}, {at: 15, snap: jobs("a", 1, "c", 2), want: []int64{10_000, 0}}, {at: 30, snap: jobs("a", 6), want: []int64{10_000}}},
		"the same moment":         {{at: 10, snap: jobs(), want: nil}, {at: 10, snap: jobs("a", 5), want: []int64{9_999}}},
		"a rule changes":          {{at: 10, snap: jobs("a", 1), want: []int64{0}}, {at: 20, snap: jobs("b", 900), want: []int64{0}, unsure: true}, {at: 30, snap: jobs("b", 901, "c", 2), want: []int64{0, 20_000}}},
		"a rule has just changed": {{at: 10, snap: jobs("a", 1), want: []int64{0}}, {at: 20, snap: jobs("b", 900), want: []int64{10_000}}, {at: 30, snap: jobs("b", 901), want: []int64{0}, unsure: true}},
		"a rule changes nothing":  {{at: 10, snap: same, want: []int64{0}}, {at: 20, snap: same, want: []int64{0}, unsure: true}, {at: 30, snap: jobs("a", 5, "b", 1), want: []int64{0, 20_000}}},
		"rules at the start":      {{at: 10, snap: jobs(), want: nil, unsure: true}, {at: 10, snap: jobs("a", 5), want: []int64{9_999}}},
		"only gauges":             {{at: 10, snap: jobs(), want: nil}, {at: 20, snap: outputtest.Snapshot(outputtest.Family{Name: "g", Type: metric.Gauge, Metrics: []outputtest.Metric{{Values: []float64{1}}}}), want: []int64{0}}},
		"a whole histogram": {{at: 10, snap: jobs(), want: nil}, {at: 20, snap: outputtest.Snapshot(outputtest.Family{
			Name: "h", Type: metric.Histogram, Bounds: []float64{1}, Metrics: []outputtest.Metric{{Values: []float64{1, 2, 3, 2}}},
		}), want: []int64{10_000, 10_000, 10_000, 10_000}}},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewStarts()
			for i, l := range looks {
				if l.unsure {
					s.Unsure(time.Unix(l.at, 0).Add(-time.Duration(i) * time.Second))
				}
				if got := s.Append(nil, l.snap, time.Unix(l.at, 0)); !slices.Equal(got, l.want) {
					t.Errorf("look %d: %v, want %v", i, got, l.want)
				}
			}
		})
	}
}

func TestStartsEarlier(t *testing.T) {
	s := NewStarts()
	asked := 0
	s.Earlier = func(_ string, labels []metric.Label) (time.Time, bool) {
		asked++
		switch labels[0].Value {
		case "a":
			return time.Unix(3, 0), true
		case "b":
			return time.Time{}, true
		}
		return time.Time{}, false
	}
	s.Append(nil, jobs(), time.Unix(10, 0))
	for range 2 {
		if got, want := s.Append(nil, jobs("a", 1, "b", 1, "c", 1), time.Unix(20, 0)), []int64{3000, 0, 10_000}; !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	if asked != 3 {
		t.Errorf("asked %d times about 3 series", asked)
	}
}

// TestStartsForget: series that come and go do not fill the memory.
func TestStartsForget(t *testing.T) {
	s := NewStarts()
	f := outputtest.Family{Name: "jobs", Type: metric.Counter}
	for round := range 30 {
		f.Metrics = nil
		for i := range 1000 {
			f.Metrics = append(f.Metrics, outputtest.Metric{Labels: []string{"q", fmt.Sprintf("%d/%03d", round, i)}, Values: []float64{1}})
		}
		s.Append(nil, outputtest.Snapshot(f), time.Unix(int64(round), 0))
	}
	if most := 2*1000 + remembered; len(s.series) > most || len(s.series) < 1000 {
		t.Errorf("%d series are remembered, want at most %d", len(s.series), most)
	}
}

func TestStartsAllocations(t *testing.T) {
	s, snap := NewStarts(), outputtest.All()
	dst := s.Append(nil, snap, time.Unix(1, 0))
	if n := testing.AllocsPerRun(10, func() { dst = s.Append(dst[:0], snap, time.Unix(2, 0)) }); n > 0 {
		t.Errorf("%v allocations for a view of the same layout", n)
	}
}
