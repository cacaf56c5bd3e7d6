package merge

import (
	"fmt"
	"slices"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// TestParsedOnce: what several indexes of a Share have in common is parsed by two of them, and means
// the same in all.
func TestParsedOnce(t *testing.T) {
	share := NewShare()
	parsed := 0
	spec := SourceSpec{Name: "histogram_1.db", Type: metric.Histogram, ID: "1", ParseKey: func(raw []byte) (metric.Key, error) {
		parsed++
		return store.ParseKey(raw)
	}}
	const n = 100
	var first []string
	var all []*Index
	for i := range 5 {
		x := NewIndex(Options{Share: share})
		all = append(all, x)
		s := x.Add(spec)
		parsed = 0
		for k := range n {
			key := metric.Key{Family: "f", Help: "Help.", Series: metric.Series{Sample: "f_bucket", Labels: []metric.Label{
				{Name: "a", Value: fmt.Sprint(k / 4)}, {Name: "le", Value: fmt.Sprint(k%4, ".0")}, {Name: "z", Value: "z"},
			}}}
			if err := x.Learn(s, store.AppendKey(nil, key), uint32(k)); err != nil {
				t.Fatal(err)
			}
		}
		// Keys that take the place of each other are parsed again, and join parses one for its help text.
		if i < 2 && parsed < n || i >= 2 && parsed > n/2 {
			t.Errorf("index %d parsed %d of %d keys", i, parsed, n)
		}
		var series []string
		snap := x.Snapshot()
		for _, m := range snap.Layout.Families[0].Metrics {
			series = append(series, fmt.Sprint(m.Labels, m.Points))
		}
		snap.Release()
		if i == 0 {
			first = series
		}
		if len(series) != n/4 || !slices.Equal(series, first) {
			t.Fatalf("index %d has %q, the first one %q", i, series, first)
		}
	}
	for _, x := range all {
		x.Close()
	}
	if n := share.Len(); n != 0 {
		t.Errorf("%d things are left", n)
	}
}
