package pool

import (
	"fmt"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// benchPool writes source files of many workers with realistic keys, and returns the
// directory and what lets go of the files.
func benchPool(b *testing.B, files, series int) (dir string, release func()) {
	b.Helper()
	dir = tmpfs(b)
	var writers []*store.Writer
	keys := make([][]byte, series)
	for i := range keys {
		family := fmt.Sprintf("http_requests_kind_%d", i/200)
		keys[i] = store.AppendKey(nil, metric.Key{
			Family: family, Help: "Requests by what they were for.",
			Series: metric.Series{Sample: family + "_total", Labels: []metric.Label{
				{Name: "handler", Value: fmt.Sprintf("/api/v1/resource/%d", i%200)},
				{Name: "method", Value: "GET"},
				{Name: "status", Value: "200"},
			}},
		})
	}
	for id := range files {
		w, err := store.OpenWriter(filepath.Join(dir, fmt.Sprintf("counter_%d.db", id)), store.WriterOptions{})
		if err != nil {
			b.Fatal(err)
		}
		for i, k := range keys {
			slot, err := w.Slot(k)
			if err != nil {
				b.Fatal(err)
			}
			w.Set(slot, float64(i), 0)
		}
		writers = append(writers, w)
	}
	return dir, func() {
		for _, w := range writers {
			if err := w.Close(); err != nil {
				b.Error(err)
			}
		}
	}
}

// BenchmarkGather is a scrape without its encoding: look for changes, ask for signs of
// life, load and merge.
func BenchmarkGather(b *testing.B) {
	for _, shape := range []struct{ files, series int }{{16, 5000}, {64, 20000}} {
		b.Run(fmt.Sprintf("files=%d/series=%d", shape.files, shape.series), func(b *testing.B) {
			dir, release := benchPool(b, shape.files, shape.series)
			defer release()
			c := New(Spec{Path: dir}, Options{Archive: &ArchiveOptions{Rest: -1}})
			defer c.Close()
			c.Tend(true)
			b.ReportAllocs()
			for b.Loop() {
				snap, err := c.Gather()
				if err != nil {
					b.Fatal(err)
				}
				snap.Release()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(shape.files*shape.series), "ns/entry")
		})
	}
}

// BenchmarkFirstGather is a cold start: open, decode, learn and merge.
func BenchmarkFirstGather(b *testing.B) {
	dir, release := benchPool(b, 64, 5000)
	defer release()
	b.ReportAllocs()
	for b.Loop() {
		c := New(Spec{Path: dir}, Options{})
		c.Tend(true)
		snap, err := c.Gather()
		if err != nil {
			b.Fatal(err)
		}
		snap.Release()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkFold archives the files of dead workers.
func BenchmarkFold(b *testing.B) {
	const files = 64
	for b.Loop() {
		b.StopTimer()
		dir, release := benchPool(b, files, 500)
		release()
		c := New(Spec{Path: dir}, Options{Archive: &ArchiveOptions{Rest: -1}})
		c.Tend(true)
		b.StartTimer()
		for c.Fold() {
		}
		b.StopTimer()
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/files, "µs/file")
}

// TestGatherAllocations checks that a scrape makes a few objects, however many files and
// entries there are.
func TestGatherAllocations(t *testing.T) {
	allocs := func(files, series int) float64 {
		dir := tmpfs(t)
		for id := range files {
			w := write(t, dir, fmt.Sprintf("counter_%d.db", id))
			for i := range series {
				w.set("hits_total", 1, "i", fmt.Sprint(i))
			}
			defer w.die()
		}
		c := New(Spec{Path: dir}, Options{})
		defer c.Close()
		time.Sleep(30 * time.Millisecond) // until the directory's last change is surely past
		c.Tend(true)
		return testing.AllocsPerRun(50, func() {
			snap, err := c.Gather()
			if err != nil {
				t.Fatal(err)
			}
			snap.Release()
		})
	}
	few, many := allocs(2, 10), allocs(60, 800)
	// Loading side by side takes a goroutine for each core.
	limit := few + 4*float64(runtime.GOMAXPROCS(0))
	if raceEnabled {
		limit += 60 // a sync.Pool then throws a quarter away; a load takes from it once for each file
	}
	if few > 20 || many > limit {
		t.Errorf("%v allocations for 20 entries, %v for 48,000, want at most 20 and %v", few, many, limit)
	}
}
