package store

import (
	"fmt"
	"path/filepath"
	"testing"
)

// BenchmarkGuesses learns a file whose keys were met before, into a table as an index has
// it: by the table alone, and by the tags.
func BenchmarkGuesses(b *testing.B) {
	image := bigImage(Wide, 50)
	path := write(b, image.honest())
	table := map[string]uint32{}
	for _, how := range []string{"table", "guesses"} {
		b.Run(fmt.Sprintf("how=%s", how), func(b *testing.B) {
			name, _ := ParseName(filepath.Base(path))
			opts := LearnOptions{}
			if how == "guesses" {
				opts.Guesses = &Guesses{}
			}
			b.ReportAllocs()
			for b.Loop() {
				f, err := Open(path, name, Limits{})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f.LearnSome(opts, func(e Entry) {
					if e.Tag != nil && *e.Tag != 0 {
						return
					}
					cell, ok := table[string(e.Key)]
					if !ok {
						cell = uint32(len(table) + 1)
						table[string(e.Key)] = cell
					}
					if e.Tag != nil {
						*e.Tag = cell
					}
				}); err != nil {
					b.Fatal(err)
				}
				if err := f.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
