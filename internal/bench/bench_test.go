package main

import (
	"testing"

	"aggregatord/internal/exposition"
)

// BenchmarkScrape is a scrape without its HTTP, for profiles: what the daemon does and,
// beside it, what the floor does on the same directory.
func BenchmarkScrape(b *testing.B) {
	for _, name := range []string{"small", "medium"} {
		sh := named(b, name)
		d := generated(b, roomyDir(b, int64(sh.entries())*400), sh, py16)
		perEntry := func(b *testing.B) {
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(sh.entries()), "ns/entry")
		}
		b.Run("shape="+name+"/of=daemon", func(b *testing.B) {
			g, err := newGatherer(d.path)
			if err != nil {
				b.Fatal(err)
			}
			defer func() {
				if err := g.close(); err != nil {
					b.Error(err)
				}
			}()
			var e exposition.Encoder
			var body []byte
			b.ReportAllocs()
			for b.Loop() {
				if body, err = g.encode(body[:0], &e); err != nil {
					b.Fatal(err)
				}
			}
			perEntry(b)
		})
		b.Run("shape="+name+"/of=floor", func(b *testing.B) {
			f := newFloor(d)
			b.ReportAllocs()
			for b.Loop() {
				f.load()
				f.format()
			}
			perEntry(b)
		})
	}
}
