package pool

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"aggregatord/internal/archive"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// TestArchivedKeys: the keys of a table come in its order and with what they are parsed, on however many
// processors they are, and whoever does not want all may stop.
func TestArchivedKeys(t *testing.T) {
	for _, cores := range []int{1, 2, 4} {
		for _, n := range []int{0, 1, keyBatchLen, keyBatchLen + 1, 20*keyBatchLen + 7} {
			t.Run(fmt.Sprintf("cores=%d/keys=%d", cores, n), func(t *testing.T) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(cores))
				space := archive.Space{Type: metric.Counter}
				batch := archive.NewBatch(time.Now())
				file := batch.File(space, nil, 0)
				file.Add([]byte("no key"), 1, 0, true)
				for i := range n {
					file.Add(fmt.Appendf(nil, `["f%d", "f%d_total", {"i": "%d"}, "H."]`, i%3, i%3, i), 1, 0, true)
				}
				a := archive.New()
				a.Absorb(batch)
				table := a.Totals().Table(space)
				for _, from := range []int{0, 1, n / 2} {
					pos := from
					for key := range archivedKeys(table, from) {
						parsed, err := store.ParseKey(key.raw)
						if string(key.raw) != table.Key(pos) || (err == nil) != (key.err == nil) ||
							fmt.Sprint(parsed) != fmt.Sprint(key.parsed) {
							t.Fatalf("position %d is %q, %v, %v", pos, key.raw, key.parsed, key.err)
						}
						if pos++; pos == n/3 {
							break
						}
					}
					if pos != n+1 && pos != n/3 {
						t.Errorf("from %d to %d, and there are %d", from, pos, n+1)
					}
				}
			})
		}
	}
}
