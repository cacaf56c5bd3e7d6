package main

import (
	"errors"
	"testing"

	"aggregatord/internal/exposition"
	"aggregatord/internal/pool"
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

// BenchmarkFold is what a daemon does that meets a directory of dead workers' files, for
// profiles: the first look, and the folding of everything, as its loop goes about it.
func BenchmarkFold(b *testing.B) {
	sh := named(b, "dead")
	base := roomyDir(b, int64(sh.entries())*400)
	b.Run("shape=dead", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			d := generated(b, base, sh, py16)
			b.StartTimer()
			c := pool.New(pool.Spec{Path: d.path}, pool.Options{Archive: &pool.ArchiveOptions{Rest: -1}})
			if err := c.Open(); err != nil {
				b.Fatal(err)
			}
			c.Tend(true)
			for c.Fold() {
				c.Tend(false)
			}
			b.StopTimer()
			if left, err := count(d.path); err != nil || left > 0 {
				b.Fatalf("%d files left, %v", left, err)
			}
			if err := errors.Join(c.Close(), d.remove()); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
		b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/float64(2*sh.workers), "µs/file")
	})
}
