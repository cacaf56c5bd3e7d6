package exposition

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// TestEvolvingLayouts: what is copied from the view of an earlier layout is what would be
// rendered. Families come, go and change; those that stay are copied.
func TestEvolvingLayouts(t *testing.T) {
	const seed = 6
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	label := []string{"a", "ż", "with space", "__reserved__"}
	family := func(name string) view.Family {
		f := view.Family{Name: name, Type: metric.Gauge, Help: fmt.Sprint("Help ", r.IntN(2)), Sparse: r.IntN(3) == 0}
		points := []view.Point{{Kind: view.Value}}
		switch r.IntN(3) {
		case 0:
			f.Type, points = metric.Histogram, []view.Point{{Kind: view.Bucket, Bound: 1}, {Kind: view.Sum}, {Kind: view.Count}}
		case 1:
			f.Type, points = metric.Counter, []view.Point{{Kind: view.Total}}
		}
		for i := range 1 + r.IntN(4) {
			f.Metrics = append(f.Metrics, view.Metric{
				Labels: []metric.Label{{Name: label[r.IntN(len(label))], Value: fmt.Sprint(i)}},
				Points: points,
			})
			f.Points += len(points)
		}
		return f
	}
	layoutOf := func(families map[string]view.Family) *view.Snapshot {
		layout := &view.Layout{}
		for _, name := range slices.Sorted(maps.Keys(families)) {
			f := families[name]
			f.First = layout.Points
			layout.Points += f.Points
			layout.Families = append(layout.Families, f)
		}
		values := make([]float64, layout.Points)
		for i := range values {
			values[i] = float64(r.IntN(100))
		}
		return &view.Snapshot{Layout: layout, Values: values}
	}
	formats := []Format{{}, {Kind: OpenMetrics100}, {Kind: Protobuf}, {Kind: JSON}, {Kind: Text004, Escaping: Values}}
	families := map[string]view.Family{"": family(""), "a:b": family("a:b"), "a b": family("a b")}
	own := layoutOf(map[string]view.Family{"own": family("own")})
	e := new(Encoder)
	for round := range 300 {
		name := fmt.Sprintf("family%d", r.IntN(12))
		if _, ok := families[name]; ok && r.IntN(2) == 0 {
			delete(families, name)
		} else {
			families[name] = family(name)
		}
		snaps := []*view.Snapshot{layoutOf(families), own}
		for _, f := range formats {
			if r.IntN(4) == 0 {
				continue // not every scraper comes each time
			}
			got, want := e.Append(nil, f, Filter{}, snaps...), new(Encoder).Append(nil, f, Filter{}, snaps...)
			if !bytes.Equal(got, want) {
				t.Fatalf("round %d, %v: got\n%s\nwant\n%s", round, f, got, want)
			}
		}
	}
}

// TestUnchangedFamiliesAreCopied: a family that appears costs its own rendering, not that of
// all others.
func TestUnchangedFamiliesAreCopied(t *testing.T) {
	old := wide(20000).Layout
	changed := &view.Layout{
		Families: append(slices.Clone(old.Families),
			view.Family{Name: "zz", Type: metric.Gauge, Metrics: []view.Metric{{Points: []view.Point{{}}}}, First: old.Points, Points: 1}),
		Points: old.Points + 1,
	}
	render := func(layout *view.Layout, earlier *rendered) *rendered {
		p := newPlan(Format{}, []*view.Snapshot{{Layout: layout}})
		return newRendered(layout, Format{}, p.headings[0], earlier)
	}
	earlier := render(old, nil)
	allocated := func(earlier *rendered) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		render(changed, earlier)
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	if copied, anew := allocated(earlier), allocated(nil); copied > anew/3 {
		t.Errorf("copying allocates %d bytes, rendering %d", copied, anew)
	}
}
