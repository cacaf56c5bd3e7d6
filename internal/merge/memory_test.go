package merge

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// pools makes indexes of equal pools: four workers with twelve files each, a counter file, one of
// histograms and so on, with real keys. It returns how many series and entries they have.
func pools(tb testing.TB, n int, share func() *Share) (all []*Index, series, entries int) {
	tb.Helper()
	type kind struct {
		typ  metric.Type
		mode metric.Mode
		keys [][]byte
	}
	var kinds []kind
	key := func(family, sample, help string, labels ...metric.Label) []byte {
		return store.AppendKey(nil, metric.Key{Family: family, Help: help, Series: metric.Series{Sample: sample, Labels: labels}})
	}
	label := func(name string, i int) metric.Label {
		return metric.Label{Name: name, Value: fmt.Sprintf("/api/v1/things/%d", i)}
	}
	counters, histograms := kind{typ: metric.Counter}, kind{typ: metric.Histogram}
	for i := range 120 {
		f := fmt.Sprintf("requests_%d", i/12)
		counters.keys = append(counters.keys,
			key(f, f+"_total", "How many there were.", label("handler", i), metric.Label{Name: "method", Value: "GET"}))
	}
	for i := range 24 {
		f := fmt.Sprintf("request_seconds_%d", i/8)
		at := label("handler", i)
		histograms.keys = append(histograms.keys, key(f, f+"_sum", "How long they took.", at))
		for _, le := range []string{"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1.0", "2.5", "5.0", "+Inf"} {
			histograms.keys = append(histograms.keys, key(f, f+"_bucket", "How long they took.", at, metric.Label{Name: "le", Value: le}))
		}
	}
	kinds = append(kinds, counters, histograms,
		kind{typ: metric.Summary, keys: [][]byte{key("s", "s_sum", "S."), key("s", "s_count", "S.")}})
	for mode := metric.Sum; mode <= metric.LiveMostRecent; mode++ {
		f := "level_" + mode.String()
		g := kind{typ: metric.Gauge, mode: mode}
		for i := range 12 {
			g.keys = append(g.keys, key(f, f, "How much there is.", label("queue", i)))
		}
		kinds = append(kinds, g)
	}
	f := "level_all"
	kinds = append(kinds, kind{metric.Gauge, metric.All, [][]byte{key(f, f, "How much there is.")}})
	for p := range n {
		x := NewIndex(Options{Share: share()})
		for worker := range 4 {
			id := fmt.Sprint(p*4 + worker)
			for _, k := range kinds {
				s := x.Add(SourceSpec{
					Name: fmt.Sprintf("%v_%v_%s.db", k.typ, k.mode, id), Type: k.typ, Mode: k.mode, ID: id,
					Created: int64(worker), ParseKey: store.ParseKey,
				})
				for i, raw := range k.keys {
					if err := x.Learn(s, raw, uint32(i)*16); err != nil {
						tb.Fatal(err)
					}
				}
				s.Compact()
				entries += s.Entries()
			}
		}
		x.Layout()
		series += x.Series()
		all = append(all, x)
	}
	return all, series, entries
}

// heap is how much memory is in use.
func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMemoryOfManyPools: what equal pools have in common is there once. An index without others
// needs about three times as much for a series.
func TestMemoryOfManyPools(t *testing.T) {
	const bound = 300 // bytes; 4 entries of 13 are in it
	pools(t, 2, NewShare)
	share := NewShare()
	before := heap()
	all, series, entries := pools(t, 50, func() *Share { return share })
	shared := heap() - before
	before = heap()
	alone, _, _ := pools(t, 10, NewShare)
	each := heap() - before
	t.Logf("%d series, %d entries: %d bytes a series, %d alone", series, entries, shared/uint64(series), each/uint64(series/5))
	if shared/uint64(series) > bound {
		t.Errorf("%d bytes a series, want at most %d", shared/uint64(series), bound)
	}
	runtime.KeepAlive(all)
	runtime.KeepAlive(alone)
}

// TestMemoryOfEntries: what entries take is bounded with the keys, in whatever mode and by whatever
// rule, and given back with their source. The keys leave them a part of it in any case.
func TestMemoryOfEntries(t *testing.T) {
	const limit, known = 200_000, 100
	ruled := func(string, metric.Type) *Ruling { return &Ruling{Rule: "r", Mode: metric.MostRecent} }
	for name, tc := range map[string]struct {
		typ   metric.Type
		mode  metric.Mode
		rules func(string, metric.Type) *Ruling
	}{
		"counter": {metric.Counter, metric.NoMode, nil}, "recent": {metric.Gauge, metric.MostRecent, nil},
		"part": {metric.Gauge, metric.Sum, ruled},
	} {
		t.Run(name, func(t *testing.T) {
			x := NewIndex(Options{MaxBytes: limit, Rules: tc.rules})
			add := func(i int) *Source {
				return x.Add(SourceSpec{Name: fmt.Sprint(i), Type: tc.typ, Mode: tc.mode, ID: fmt.Sprint(i), ParseKey: store.ParseKey})
			}
			key := func(i int) []byte {
				return store.AppendKey(nil,
					metric.Key{Family: "f", Series: metric.Series{Sample: "f", Labels: []metric.Label{{Name: "n", Value: fmt.Sprint(i)}}}})
			}
			// fill learns entries of known series in one source after the other until there is no room.
			fill := func(from int) (sources []*Source, entries int) {
				for i := from; ; i++ {
					s := add(i)
					sources = append(sources, s)
					for k := range known {
						err := x.LearnTagged(s, key(k), uint32(k), nil)
						if errors.Is(err, ErrBytesLimit) && entries > known {
							return sources, entries
						}
						if err != nil {
							t.Fatal(err)
						}
						entries++
					}
					s.Compact()
				}
			}
			before := heap()
			sources, entries := fill(0)
			used := int64(heap() - before)
			t.Logf("%d entries of %d series, %d bytes of keys: %d bytes of memory, of %d", entries, x.Series(), x.Bytes(), used,
				madeOfAll*limit)
			if least := madeOfAll * limit / 2 / (entryBytes + stampBytes + partBytes + recentPartBytes); entries < least ||
				used > madeOfAll*limit*5/4 {
				t.Errorf("%d entries take %d bytes; want at least %d, and at most %d bytes", entries, used, least, madeOfAll*limit)
			}
			if !x.Refused() {
				t.Error("it does not say that entries were refused")
			}
			for _, s := range sources[1:] {
				x.Remove(s)
			}
			// New series to the brim, and known ones have room still.
			s := add(1_000_000)
			for k := known; ; k++ {
				if err := x.LearnTagged(s, key(k), uint32(k), nil); errors.Is(err, ErrBytesLimit) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
			if _, again := fill(2_000_000); again < limit/2/(entryBytes+stampBytes+partBytes+recentPartBytes) {
				t.Errorf("beside %d bytes of keys there is room for %d entries of known series", x.Bytes(), again)
			}
			for _, s := range slices.Clone(x.Sources()) {
				x.Remove(s)
			}
			if x.entryBytes != 0 {
				t.Errorf("%d bytes of no entries", x.entryBytes)
			}
		})
	}
}

func BenchmarkManyPools(b *testing.B) {
	for b.Loop() {
		share := NewShare()
		before := heap()
		all, series, entries := pools(b, 350, func() *Share { return share })
		used := heap() - before
		b.ReportMetric(float64(used)/float64(series), "B/series")
		b.ReportMetric(float64(used)/1e6, "MB")
		b.ReportMetric(float64(series), "series")
		b.ReportMetric(float64(entries), "entries")
		runtime.KeepAlive(all)
	}
}

// TestArchivedKeys: of what an archive holds, the index keeps no raw keys, and with as many series as
// were expected no list of the index grows.
func TestArchivedKeys(t *testing.T) {
	const n = 3000
	var raws []string
	for i := range n {
		raws = append(raws, string(store.AppendKey(nil, metric.Key{Family: "f", Help: "Help.", Series: metric.Series{
			Sample: "f_total", Labels: []metric.Label{{Name: "i", Value: fmt.Sprint(i)}},
		}})))
	}
	x := NewIndex(Options{})
	spec := SourceSpec{Type: metric.Counter, ParseKey: store.ParseKey, RawKey: func(slot uint32) string { return raws[slot-1] }}
	folded := func() *Source {
		t.Helper()
		s := x.AddFolded(spec)
		x.Expect(s, n)
		for i, raw := range raws {
			if err := x.Learn(s, []byte(raw), uint32(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		return s
	}
	each := func(x *Index, s *Source) (got []string) {
		x.Each(s, func(raw string, _, _ float64) { got = append(got, raw) })
		return got
	}
	s := x.AddFolded(spec)
	x.Expect(s, n)
	room := func() [5]int {
		return [5]int{cap(x.desc), cap(x.pins), cap(x.owed), cap(s.values), len(s.space.cells.slots)}
	}
	before := room()
	for i, raw := range raws {
		if err := x.Learn(s, []byte(raw), uint32(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if after := room(); after != before {
		t.Errorf("room for %v, and before %v", after, before)
	}
	if x.keys != 0 || x.share.keys.len() != 0 || !slices.Equal(each(x, s), raws) {
		t.Errorf("%d keys are kept, and %d in the Share; or others than were learned", x.keys, x.share.keys.len())
	}
	// Each series counts for its raw key, once, whether a file has it, too, or not.
	bytes := x.Bytes()
	live := x.Add(SourceSpec{Name: "live", Type: metric.Counter, ParseKey: store.ParseKey})
	for i, raw := range raws {
		if err := x.Learn(live, []byte(raw), uint32(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if x.Series() != n || x.keys != n || x.Bytes() != bytes || !slices.Equal(each(x, live), raws) {
		t.Errorf("%d series with %d keys, %d bytes and before %d; or other keys", x.Series(), x.keys, x.Bytes(), bytes)
	}
	if !slices.Equal(live.Cells(), s.Cells()) {
		t.Error("the file's entries are not of the series of the archive")
	}
	// Another index whose limits are lower has all that there is, also of files that come later.
	y := NewIndex(Options{MaxSeries: 1, MaxFamilySeries: 1, MaxBytes: 1})
	if seat := y.Seat(x, s); seat.Entries() != n || y.keys != 0 {
		t.Errorf("seats for %d entries, and %d keys", seat.Entries(), y.keys)
	}
	later := y.Add(SourceSpec{Name: "later", Type: metric.Counter, ParseKey: store.ParseKey})
	for i, raw := range raws {
		if err := y.Learn(later, []byte(raw), uint32(i+1)); err != nil {
			t.Fatal(err)
		}
	}
	// With the file its keys go, as the cells do that were made for them; those of the archive stay.
	x.Remove(live)
	x.sweep()
	if x.Series() != n {
		t.Errorf("%d series without the file", x.Series())
	}
	x.Remove(s)
	x.sweep()
	if x.Series() != 0 || x.keys != 0 || x.Bytes() != 0 || x.unpinned != 0 {
		t.Errorf("%d series, %d keys, %d bytes and %d free cells are left", x.Series(), x.keys, x.Bytes(), x.unpinned)
	}
	// Others that expect as many take the place of those that went.
	s = folded()
	x.Remove(s)
	if x.Series() != 0 || x.Bytes() != 0 || x.unpinned != 0 {
		t.Errorf("%d series, %d bytes and %d free cells are left of the archive", x.Series(), x.Bytes(), x.unpinned)
	}
	folded()
	if got := cap(x.desc); got != before[0] {
		t.Errorf("room for %d series, and before for %d", got, before[0])
	}
}
