package telemetry

import (
	"slices"
	"sync"
	"testing"

	"aggregatord/internal/metric"
)

func TestSnapshot(t *testing.T) {
	set := NewSet()
	h := set.Histogram("aggregatord_z_seconds", "Z.", []float64{0.1, 1})
	files := set.GaugeVec("aggregatord_files", "Files.", "pool", "state")
	errs := set.CounterVec("aggregatord_errors_total", "Errors.", "reason")
	set.Counter("aggregatord_a_total", "A.").Add(2)
	set.OnSnapshot(func() { files.With("", "alive").Set(4) })
	files.With("web", "dead").Set(3)
	h.Observe(0.1)
	h.Observe(0.5)
	h.Observe(7)

	snap := set.Snapshot()
	var names []string
	for _, f := range snap.Layout.Families {
		names = append(names, f.Name)
	}
	if want := []string{"aggregatord_a", "aggregatord_files", "aggregatord_z_seconds"}; !slices.Equal(names, want) {
		t.Errorf("families %v, want %v (none without a series)", names, want)
	}
	if want := []float64{2, 3, 4, 1, 2, 3, 7.6, 3}; !slices.Equal(snap.Values, want) || snap.Layout.Points != len(want) {
		t.Errorf("values %v, want %v", snap.Values, want)
	}
	if labels := snap.Layout.Families[1].Metrics[1].Labels; !slices.Equal(labels, []metric.Label{{Name: "state", Value: "alive"}}) {
		t.Errorf("an empty label value must not be served: %v", labels)
	}
	if set.Snapshot().Layout != snap.Layout {
		t.Error("the layout changed without need")
	}
	errs.With("torn").Inc()
	errs.With("torn").Inc()
	files.Remove("web", "dead")
	snap = set.Snapshot()
	if want := []float64{2, 2, 4, 1, 2, 3, 7.6, 3}; !slices.Equal(snap.Values, want) {
		t.Errorf("values %v, want %v", snap.Values, want)
	}
}

func TestConcurrent(t *testing.T) {
	set := NewSet()
	vec := set.CounterVec("aggregatord_x_total", "X.", "l")
	h := set.Histogram("aggregatord_h", "H.", []float64{1})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for range 1000 {
				vec.With(string(rune('a' + i%2))).Inc()
				h.Observe(0.5)
				set.Snapshot()
			}
		})
	}
	wg.Wait()
	if got, want := set.Snapshot().Values, []float64{4000, 4000, 2000, 4000, 2000, 2000}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestNames(t *testing.T) {
	for name, make := range map[string]func(*Set){
		"foreign prefix":        func(s *Set) { s.Gauge("go_threads", "") },
		"counter without total": func(s *Set) { s.Counter("aggregatord_x", "") },
		"gauge with total":      func(s *Set) { s.Gauge("aggregatord_x_total", "") },
		"twice":                 func(s *Set) { s.Gauge("aggregatord_x", ""); s.Gauge("aggregatord_x", "") },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("accepted")
				}
			}()
			make(NewSet())
		})
	}
	if got := NewSet().Snapshot().Values; len(got) != 0 {
		t.Errorf("an empty set has values: %v", got)
	}
}
