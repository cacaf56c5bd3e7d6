package fleet

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/store"
)

// manyPools makes directories of living workers, each with files of twelve kinds, and returns
// their fleet. All pools have the same series.
func manyPools(b *testing.B, pools, workers int) (f *Fleet, entries int) {
	b.Helper()
	root := tmpfs(b)
	kinds := []string{
		"counter", "histogram", "summary", "gauge_all", "gauge_liveall", "gauge_sum", "gauge_livesum",
		"gauge_max", "gauge_livemax", "gauge_min", "gauge_mostrecent", "gauge_livemostrecent",
	}
	var specs []pool.Spec
	for p := range pools {
		dir := filepath.Join(root, fmt.Sprintf("pool%d", p))
		if err := os.Mkdir(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		specs = append(specs, pool.Spec{Name: fmt.Sprintf("pool%d", p), Path: dir})
		for id := range workers {
			for k, kind := range kinds {
				w, err := store.OpenWriter(filepath.Join(dir, fmt.Sprintf("%s_%d.db", kind, 1000+id)), store.WriterOptions{})
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { w.Close() })
				n := 3
				if k < 3 {
					n = 160
				}
				for i := range n {
					name := "kind_" + strings.ReplaceAll(kind, "gauge_", "g_")
					key := metric.Key{Family: name, Help: "Help text of some length, as they are.", Series: metric.Series{Sample: name}}
					path := metric.Label{Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i/8)}
					switch kind {
					case "counter":
						key.Series.Sample += "_total"
						key.Series.Labels = []metric.Label{
							{Name: "method", Value: "GET"},
							{Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i)},
						}
					case "histogram":
						key.Series.Sample += "_bucket"
						key.Series.Labels = []metric.Label{{Name: "le", Value: fmt.Sprintf("%d.0", i%8+1)}, path}
					case "summary":
						key.Series.Sample += []string{"_sum", "_count"}[i%2]
						key.Series.Labels = []metric.Label{{Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i/2)}}
					default:
						key.Series.Labels = []metric.Label{path, {Name: "queue", Value: fmt.Sprint(i)}}
					}
					slot, err := w.Slot(store.AppendKey(nil, key))
					if err != nil {
						b.Fatal(err)
					}
					w.Set(slot, float64(i+id), float64(i+1))
					entries++
				}
			}
		}
	}
	f, err := New(Options{Pools: specs, Pool: pool.Options{Archive: &pool.ArchiveOptions{}}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	for _, p := range f.Pools() {
		p.Tend(true)
	}
	return f, entries
}

// BenchmarkManyPools is a view of many pools, of one of them, and what they cost when nobody asks.
func BenchmarkManyPools(b *testing.B) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f, entries := manyPools(b, 350, 4)
	series := 0
	look := func(b *testing.B, sel Selection) {
		b.ReportAllocs()
		for b.Loop() {
			snap, err := f.View(context.Background(), sel)
			if err != nil {
				b.Fatal(err)
			}
			series = len(snap.Values)
			snap.Release()
		}
	}
	b.Run("all", func(b *testing.B) { look(b, Selection{}) })
	runtime.GC()
	runtime.ReadMemStats(&after)
	b.Run("one", func(b *testing.B) { look(b, Selection{Pools: []string{"pool7"}, Bare: true}) })
	b.Run("tend", func(b *testing.B) {
		b.ReportAllocs()
		pools := f.Pools()
		for b.Loop() {
			for _, p := range pools {
				p.Tend(false)
			}
		}
	})
	b.Logf("%d entries, %d series in the last view, %d bytes of heap", entries, series, after.HeapAlloc-before.HeapAlloc)
}
