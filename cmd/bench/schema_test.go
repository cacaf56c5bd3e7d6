package main

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"aggregatord/internal/store"
)

// TestSchema checks that what is generated has the properties that decide how fast it is.
func TestSchema(t *testing.T) {
	for _, sh := range shapes {
		if sh.pools > 0 || sh.deaths > 0 || sh.archived {
			continue // their keys are not made by a schema
		}
		t.Run(sh.name, func(t *testing.T) {
			s := newSchema(sh)
			if len(s.keys) != sh.series {
				t.Fatalf("%d series, want %d", len(s.keys), sh.series)
			}
			seen := map[string]bool{}
			whole, inHistograms := 0, s.firstCell[histogram+1]-s.firstCell[histogram]
			var lengths []int
			for i, k := range s.keys {
				if _, err := store.ParseKey(k); err != nil || seen[string(k)] {
					t.Fatalf("key %q: error %v, seen before %v", k, err, seen[string(k)])
				}
				seen[string(k)] = true
				whole += b2i(s.integral[i])
				lengths = append(lengths, len(k))
			}
			slices.Sort(lengths)
			t.Logf("%d families, %.0f %% whole numbers, %.0f %% in histograms, keys of %d, %d, %d bytes", len(s.families),
				100*float64(whole)/float64(sh.series), 100*float64(inHistograms)/float64(sh.series), lengths[0], lengths[len(lengths)/2],
				lengths[len(lengths)-1])
			if share := float64(whole) / float64(sh.series); share < .84 || share > .96 {
				t.Errorf("%.2f of the values are whole numbers", share)
			}
			if m := lengths[len(lengths)/2]; m < 100 || m > 200 {
				t.Errorf("the median key has %d bytes", m)
			}
			if len(s.families) < 4 {
				t.Errorf("%d families", len(s.families))
			}
		})
	}
}

// TestOrder checks how well the order of one worker foretells that of the next.
func TestOrder(t *testing.T) {
	s := newSchema(named(t, "medium"))
	cells := func(seed uint64) (out []int) {
		for k := range kinds {
			for _, c := range s.order(k, rand.New(rand.NewPCG(seed, 3))) {
				for i := range c.size {
					out = append(out, c.first+i)
				}
			}
		}
		return out
	}
	after := map[int]int{}
	a, b := cells(1), cells(2)
	for i := range len(a) - 1 {
		after[a[i]] = a[i+1]
	}
	right := 0
	for i := range len(b) - 1 {
		right += b2i(after[b[i]] == b[i+1])
	}
	share := float64(right) / float64(len(b))
	t.Logf("%.2f of the entries follow the same one in the next worker", share)
	if share < .55 || share > .75 {
		t.Errorf("%.2f of the entries follow the same one in the next worker", share)
	}
}

// TestGenerate reads what was generated with the reader of the daemon, in both layouts.
func TestGenerate(t *testing.T) {
	for _, lay := range []layout{py16, py8} {
		t.Run(lay.name, func(t *testing.T) {
			d := generated(t, t.TempDir(), named(t, "tiny"), lay)
			d.touch(1)
			paths, err := filepath.Glob(filepath.Join(d.path, "*.db"))
			if err != nil || len(paths) != d.files {
				t.Fatalf("%d files, want %d; %v", len(paths), d.files, err)
			}
			entries := 0
			for _, p := range paths {
				in, err := store.Inspect(p, store.Limits{})
				if err != nil {
					t.Fatalf("%s: %v", p, err)
				}
				if in.Width != lay.width {
					t.Errorf("%s: width %d", p, in.Width)
				}
				entries += len(in.Entries)
			}
			if entries != d.shape.entries() {
				t.Errorf("%d entries, want %d", entries, d.shape.entries())
			}
		})
	}
}
