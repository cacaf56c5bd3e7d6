package starts

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// snapshot is a view of one family. Each metric is the value of its label q and its values.
func snapshot(name string, typ metric.Type, points []view.Point, metrics ...any) *view.Snapshot {
	snap := &view.Snapshot{Layout: &view.Layout{}}
	f := view.Family{Name: name, Type: typ, Sparse: true}
	for i := 0; i < len(metrics); i += 2 {
		f.Metrics = append(f.Metrics, view.Metric{Labels: []metric.Label{{Name: "q", Value: metrics[i].(string)}}, Points: points})
		snap.Values = append(snap.Values, metrics[i+1].([]float64)...)
	}
	if f.Points = len(snap.Values); f.Points > 0 {
		snap.Layout.Families, snap.Layout.Points = []view.Family{f}, f.Points
	}
	return snap
}

// jobs is a view of a counter with a series for each pair of a name and a value.
func jobs(series ...any) *view.Snapshot {
	for i := 1; i < len(series); i += 2 {
		v, ok := series[i].(float64)
		if !ok {
			v = float64(series[i].(int))
		}
		series[i] = []float64{v}
	}
	return snapshot("jobs", metric.Counter, []view.Point{{Kind: view.Total}}, series...)
}

// with is a view of the same layout with another value.
func with(snap *view.Snapshot, value float64) *view.Snapshot {
	return &view.Snapshot{Layout: snap.Layout, Values: []float64{value}}
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
		"there before": {{at: 10, snap: jobs("a", 5), want: []int64{0}}, {at: 20, snap: jobs("a", 6), want: []int64{0}}},
		"appears": {
			{at: 10, snap: jobs(), want: nil},
			{at: 20, snap: jobs("a", 5), want: []int64{10_000}},
			{at: 30, snap: jobs("a", 6), want: []int64{10_000}},
		},
		"appears beside": {
			{at: 10, snap: jobs("b", 1), want: []int64{0}},
			{at: 20, snap: jobs("a", 5, "b", 1), want: []int64{10_000, 0}},
		},
		"falls": {
			{at: 10, snap: same, want: []int64{0}},
			{at: 20, snap: with(same, 4), want: []int64{10_000}},
			{at: 30, snap: with(same, 9), want: []int64{10_000}},
		},
		"comes back": {
			{at: 10, snap: jobs(), want: nil},
			{at: 20, snap: jobs("a", 5), want: []int64{10_000}},
			{at: 30, snap: jobs("b", 1), want: []int64{20_000}},
			{at: 40, snap: jobs("a", 5, "b", 1), want: []int64{10_000, 20_000}},
		},
		"comes back lower": {
			{at: 10, snap: jobs(), want: nil},
			{at: 20, snap: jobs("a", 5), want: []int64{10_000}},
			{at: 30, snap: jobs(), want: nil},
			{at: 40, snap: jobs("a", 2), want: []int64{30_000}},
		},
		"absent meanwhile": {
			{at: 10, snap: same, want: []int64{0}},
			{at: 20, snap: with(same, view.Absent), want: []int64{0}},
			{at: 30, snap: with(same, 6), want: []int64{0}},
		},
		"an older view": {
			{at: 10, snap: jobs(), want: nil},
			{at: 20, snap: jobs("a", 5), want: []int64{10_000}},
			{at: 15, snap: jobs("a", 1, "c", 2), want: []int64{10_000, 0}},
			{at: 30, snap: jobs("a", 6), want: []int64{10_000}},
		},
		"the same moment": {{at: 10, snap: jobs(), want: nil}, {at: 10, snap: jobs("a", 5), want: []int64{9_999}}},
		"a rule changes": {
			{at: 10, snap: jobs("a", 1), want: []int64{0}},
			{at: 20, snap: jobs("b", 900), want: []int64{0}, unsure: true},
			{at: 30, snap: jobs("b", 901, "c", 2), want: []int64{0, 20_000}},
		},
		"a rule has just changed": {
			{at: 10, snap: jobs("a", 1), want: []int64{0}},
			{at: 20, snap: jobs("b", 900), want: []int64{10_000}},
			{at: 30, snap: jobs("b", 901), want: []int64{0}, unsure: true},
		},
		"a rule changes nothing": {
			{at: 10, snap: same, want: []int64{0}},
			{at: 20, snap: same, want: []int64{0}, unsure: true},
			{at: 30, snap: jobs("a", 5, "b", 1), want: []int64{0, 20_000}},
		},
		"rules at the start": {{at: 10, snap: jobs(), want: nil, unsure: true}, {at: 10, snap: jobs("a", 5), want: []int64{9_999}}},
		"the clock is set back": {
			{at: 1000, snap: jobs(), want: nil},
			{at: 1010, snap: jobs("a", 5), want: []int64{1_000_000}},
			{at: 20, snap: jobs("a", 6, "b", 1), want: []int64{19_999, 19_999}},
			{at: 30, snap: jobs("a", 7, "b", 1, "c", 1), want: []int64{19_999, 19_999, 20_000}},
		},
		"only gauges": {
			{at: 10, snap: jobs(), want: nil},
			{at: 20, snap: snapshot("g", metric.Gauge, []view.Point{{}}, "a", []float64{1}), want: []int64{0}},
		},
		"a whole histogram": {
			{at: 10, snap: jobs(), want: nil},
			{at: 20, snap: snapshot("h", metric.Histogram, []view.Point{
				{Kind: view.Bucket},
				{Kind: view.Bucket},
				{Kind: view.Sum},
				{Kind: view.Count},
			}, "a", []float64{1, 2, 3, 2}), want: []int64{10_000, 10_000, 10_000, 10_000}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := New()
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

// TestStartsForget: series that come and go do not fill the memory.
func TestStartsForget(t *testing.T) {
	s := New()
	for round := range 30 {
		var series []any
		for i := range 1000 {
			series = append(series, fmt.Sprintf("%d/%03d", round, i), 1)
		}
		s.Append(nil, jobs(series...), time.Unix(int64(round), 0))
	}
	if most := 2*1000 + remembered; len(s.series) > most || len(s.series) < 1000 {
		t.Errorf("%d series are remembered, want at most %d", len(s.series), most)
	}
}

func TestStartsAllocations(t *testing.T) {
	s, snap := New(), jobs("a", 1, "b", 2)
	dst := s.Append(nil, snap, time.Unix(1, 0))
	if n := testing.AllocsPerRun(10, func() { dst = s.Append(dst[:0], snap, time.Unix(2, 0)) }); n > 0 {
		t.Errorf("%v allocations for a view of the same layout", n)
	}
}

// TestState: the next daemon knows what this one has learned, and takes nothing for new that it
// merely has not seen before.
func TestState(t *testing.T) {
	s := New()
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	s.Append(nil, jobs("a", 5), at(10))
	if !s.Changed() {
		t.Error("a series that is new changes nothing")
	}
	s.Append(nil, jobs("a", 5, "b", 1), at(20))
	state := s.State()
	s.Append(nil, jobs("a", 6, "b", 2), at(30))
	if s.Changed() {
		t.Error("values alone change the state")
	}

	next := New()
	if err := next.Restore(state); err != nil {
		t.Fatal(err)
	}
	if again := next.State(); len(again) != len(state) {
		t.Errorf("what was restored makes a state of %d bytes, not of %d", len(again), len(state))
	}
	for _, look := range []struct {
		at   int64
		snap *view.Snapshot
		want []int64
	}{
		{100, jobs("a", 7, "c", 9), []int64{0, 0}},                          // c may have come meanwhile, or with a rule
		{110, jobs("a", 7, "b", 1, "c", 9), []int64{0, 10_000, 0}},          // b comes back
		{120, jobs("a", 3, "b", 0.5, "c", 9), []int64{110_000, 110_000, 0}}, // resets
		{130, jobs("a", 3, "d", 1), []int64{110_000, 120_000}},
	} {
		if got := next.Append(nil, look.snap, at(look.at)); !slices.Equal(got, look.want) {
			t.Errorf("at %d s: %v, want %v", look.at, got, look.want)
		}
	}
}

func TestStateDamaged(t *testing.T) {
	s := New()
	s.Append(nil, jobs("a", 5, "b", 1), time.Unix(10, 0))
	good := s.State()
	flipped, longer, other := slices.Clone(good), slices.Concat(good, good[:entryBytes]), slices.Clone(good)
	flipped[len(magic)+3] ^= 1
	other[len(magic)-1]++
	for name, state := range map[string][]byte{
		"torn": good[:len(good)-1], "an entry less": good[:len(good)-entryBytes], "flipped": flipped, "longer": longer,
		"another version": other, "short": good[:5],
	} {
		next := New()
		if err := next.Restore(state); !errors.Is(err, ErrState) || len(next.series) != 0 {
			t.Errorf("%s: error %v, %d series", name, err, len(next.series))
		}
	}
	if err := New().Restore(nil); err != nil {
		t.Error("nothing: ", err)
	}
}

// FuzzRestore: what is restored is what State returns then, and memory is bounded by the input.
func FuzzRestore(f *testing.F) {
	s := New()
	s.Append(nil, jobs("a", 5), time.Unix(10, 0))
	s.Append(nil, jobs("a", 5, "b", 1), time.Unix(20, 0))
	f.Add(s.State())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		next := New()
		if next.Restore(data) != nil || len(data) == 0 {
			return
		}
		if len(next.series) > len(data)/entryBytes {
			t.Fatalf("%d series of %d bytes", len(next.series), len(data))
		}
		again := New()
		if err := again.Restore(next.State()); err != nil {
			t.Fatal(err)
		}
		for id, known := range next.series {
			if other := again.series[id]; other == nil || other.start != known.start {
				t.Fatalf("%x: %v, then %v", id, known, other)
			}
		}
	})
}
