package merge

import (
	"fmt"
	"testing"
	"unsafe"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// TestEqualCellLists: sources with equal keys in equal order have one list of cells, also those of
// different indexes, until one of them learns more.
func TestEqualCellLists(t *testing.T) {
	share := NewShare()
	learn := func(x *Index, s *Source, from, to int) {
		t.Helper()
		for i := from; i < to; i++ {
			key := metric.Key{
				Family: "f", Help: "Help.",
				Series: metric.Series{Sample: "f_total", Labels: []metric.Label{{Name: "i", Value: fmt.Sprint(i)}}},
			}
			if err := x.Learn(s, store.AppendKey(nil, key), uint32(i)); err != nil {
				t.Fatal(err)
			}
			s.Values()[s.Entries()-1] = float64(i + 1)
		}
	}
	var all []*Index
	var sources []*Source
	for range 2 {
		x := NewIndex(Options{Share: share})
		all = append(all, x)
		for id := range 3 {
			s := x.Add(SourceSpec{Name: fmt.Sprint(id), Type: metric.Counter, ID: fmt.Sprint(id), ParseKey: store.ParseKey})
			learn(x, s, 0, 20)
			s.Compact()
			sources = append(sources, s)
		}
	}
	for i, s := range sources {
		if unsafe.SliceData(s.Cells()) != unsafe.SliceData(sources[0].Cells()) {
			t.Errorf("source %d has a list of its own", i)
		}
	}
	learn(all[0], sources[1], 20, 25)
	sources[1].Compact()
	learn(all[0], sources[2], 30, 32)
	for x, want := range [][]float64{{3, 60, 21, 22, 23, 31}, {3, 60}} {
		snap := all[x].Snapshot()
		sum := map[string]float64{}
		for i, m := range snap.Layout.Families[0].Metrics {
			sum[m.Labels[0].Value] = snap.Values[i]
		}
		snap.Release()
		for k, i := range []int{0, 19, 20, 21, 22, 30}[:len(want)] {
			if got := sum[fmt.Sprint(i)]; got != want[k] {
				t.Errorf("index %d: series %d is %v, want %v", x, i, got, want[k])
			}
		}
		if entries := all[x].Entries(); entries != []int{67, 60}[x] {
			t.Errorf("index %d has %d entries", x, entries)
		}
	}
}
