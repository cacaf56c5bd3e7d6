package archive

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"aggregatord/internal/metric"
)

// TestLargeRecords: a file of many entries has a record in parts, none of which is large, and it
// is whole again after all that happens to it.
func TestLargeRecords(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	value := func(i int) float64 { return float64(i%7) + float64(i%2)/2 }
	commit := func(n int) {
		b := NewBatch(at(int64(n)))
		baseline, _ := a.Baseline("large")
		f := b.File(counters, baseline, 0)
		for i := range n {
			f.Add(fmt.Append(nil, i%10), value(i), 0, true)
		}
		f.Record("large")
		f = b.File(counters, nil, 0)
		f.Add([]byte("k"), 1, 0, false)
		f.Record("large0") // its key follows those of the parts
		mustCommit(t, a, b)
	}
	check := func(n int) {
		t.Helper()
		got, ok := a.Baseline("large")
		if !ok || len(got) != n {
			t.Fatalf("%d values of %d", len(got), n)
		}
		for i, v := range got {
			if v != value(i) {
				t.Fatalf("value %d is %v", i, v)
			}
		}
		wantContents(t, reread(t, dir).Archive, contentsOf(a))
	}
	for _, n := range []int{0, 1, recordPart, recordPart + 1, 5*recordPart + 3, 2 * recordPart} {
		commit(n)
		check(n)
	}
	mustDo(t, a.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(bucketFolded).ForEach(func(k, v []byte) error {
			if len(v) > 10*recordPart {
				t.Errorf("%q has %d bytes", k, len(v))
			}
			return nil
		})
	}))
	mustDo(t, a.Compact())
	check(2 * recordPart)
	a.Forget("large")
	mustCommit(t, a, NewBatch(at(9)))
	wantContents(t, reread(t, dir).Archive, contentsOf(a))
	if got := a.Records(); !slices.Equal(got, []string{"large0"}) {
		t.Errorf("%q", got)
	}
}

// TestFoldedInParts: a file that is folded some entries at a time ends with the same totals.
func TestFoldedInParts(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	const n = 1000
	for done := 0; done < n; done += 300 {
		baseline, _ := a.Baseline("file")
		if len(baseline) != min(done, n) {
			t.Fatalf("%d values are recorded", len(baseline))
		}
		b := NewBatch(at(int64(done)))
		f := b.File(counters, baseline, 0)
		for i := range min(done+300, n) {
			f.Add(fmt.Append(nil, i%3), float64(i), 0, true)
		}
		f.Record("file")
		mustCommit(t, a, b)
	}
	sum := 0.0
	for _, v := range reread(t, dir).Totals().Table(counters).Values() {
		sum += v
	}
	if sum != n*(n-1)/2 {
		t.Errorf("%v", sum)
	}
}

// TestIdentities: a file that left its directory is known by what it is.
func TestIdentities(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	id := func(n int) Identity { return Identity{Dev: uint64(n), Ino: 1 << 40, Born: -int64(n)} }
	for n := range 4 {
		b := NewBatch(at(int64(n)))
		f := b.File(counters, nil, 0)
		for i := range 3 * recordPart * (n % 2) {
			f.Add([]byte("k"), float64(i), 0, false)
		}
		f.Add([]byte("k"), float64(n), 0, true)
		f.RecordIdentity(id(n))
		fold(b, counters, "name", nil, entry{"k", 1, 0})
		mustCommit(t, a, b)
	}
	check := func(a *Archive, want ...int) {
		t.Helper()
		var ids []Identity
		for _, n := range want {
			ids = append(ids, id(n))
			v, ok := a.BaselineOf(id(n))
			if !ok || v[len(v)-1] != float64(n) || len(v) != 1+3*recordPart*(n%2) {
				t.Errorf("file %d has %d values", n, len(v))
			}
		}
		if got := a.Identities(); !slices.Equal(got, ids) {
			t.Errorf("%v", got)
		}
		if got := a.Records(); !slices.Equal(got, []string{"name"}) {
			t.Errorf("%q", got)
		}
		if _, ok := a.BaselineOf(id(9)); ok {
			t.Error("one that was never folded")
		}
	}
	check(a, 3, 2, 1, 0)
	check(reread(t, dir).Archive, 3, 2, 1, 0)
	a.ForgetIdentity(id(2))
	if n := a.ExpireIdentities(at(0).Add(MaxIdentityAge + time.Second)); n != 1 {
		t.Errorf("%d expired", n)
	}
	check(a, 3, 1)
	mustCommit(t, a, NewBatch(at(10)))
	check(reread(t, dir).Archive, 3, 1)
	// A reset keeps them: what they had counted went with the old archive.
	mustDetach(t, a)
	_, err := Reset(dir, []string{"name"}, at(0))
	mustDo(t, err)
	check(mustOpen(t, dir), 3, 1)
}

func TestTooManyIdentities(t *testing.T) {
	a := New()
	for n := range MaxIdentities + 10 {
		a.records[Identity{Ino: uint64(n)}.key()] = &record{folded: int64(n), parts: [][]byte{appendBaseline(nil, []float64{1})}, count: 1}
	}
	large := Identity{Ino: 1 << 20}
	a.records[large.key()] = &record{folded: 0, count: MaxIdentityValues}
	if n := a.ExpireIdentities(time.Unix(MaxIdentities, 0)); n != 11 || len(a.Identities()) != MaxIdentities {
		t.Errorf("%d expired, %d are left", n, len(a.Identities()))
	}
	if _, ok := a.records[large.key()]; ok {
		t.Error("the oldest is there")
	}
}

// TestGainNotNegative: what counts never gains less than nothing.
func TestGainNotNegative(t *testing.T) {
	sum := Space{Type: metric.Gauge, Mode: metric.Sum}
	inf := math.Inf(1)
	for name, tc := range map[string]struct {
		space               Space
		value, folded, want float64
	}{
		"counter":          {counters, 5, 3, 2},
		"counter_older":    {counters, 80, 100, 0},
		"counter_same":     {counters, 3, 3, 0},
		"counter_infinite": {counters, inf, inf, 0},
		"histogram_older":  {Space{Type: metric.Histogram}, 80, 100, 0},
		"summary_older":    {summaries, 80, 100, 0},
		"sum_below_zero":   {summaries, -5, -3, -2},
		"new_below_zero":   {summaries, -5, 0, -5},
		"gauge_sum":        {sum, 80, 100, -20},
		"max":              {peaks, 80, 100, 80},
		"all":              {worker("1"), 80, 100, 80},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Gain(tc.space, tc.value, tc.folded); got != tc.want {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}

// TestNaN: what is not a number never comes into a sum, nor does it come out of one.
func TestNaN(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	nan, inf := math.NaN(), math.Inf(1)
	b := NewBatch(at(0))
	fold(b, summaries, "file", nil, entry{"sum", nan, 0}, entry{"good", 1, 0}, entry{"inf", inf, 0})
	fold(b, newest, "", nil, entry{"gauge", nan, 5})
	for range 2 * mostNaNKeys {
		fold(b, counters, "", nil, entry{"c", nan, 0})
	}
	n, keys := b.NaNs()
	if n != 1+2*mostNaNKeys || len(keys) != mostNaNKeys || keys[0] != "sum" {
		t.Errorf("%d, %q", n, keys)
	}
	mustCommit(t, a, b)
	b = NewBatch(at(1))
	fold(b, summaries, "", nil, entry{"sum", 2.5, 0}, entry{"good", 1, 0}, entry{"inf", -inf, 0})
	mustCommit(t, a, b)
	for key, want := range map[string]float64{"sum": 2.5, "good": 2, "inf": inf} {
		table := reread(t, dir).Totals().Table(summaries)
		pos, ok := table.Find([]byte(key))
		if got, _ := table.Value(pos); !ok || got != want {
			t.Errorf("%s is %v, want %v", key, got, want)
		}
	}
	if v, _ := a.Totals().Table(newest).Value(0); v == v {
		t.Errorf("a gauge that is not a number became %v", v)
	}
	// One that an earlier version let become so begins anew.
	a.totals.tables[summaries].hi[0] = nan
	b = NewBatch(at(2))
	fold(b, summaries, "", nil, entry{"sum", 4, 0})
	mustCommit(t, a, b)
	if v, _ := a.Totals().Table(summaries).Value(0); v != 4 {
		t.Errorf("%v", v)
	}
}

// TestTooLarge: a batch that is too large is refused before anything is written, and takes no
// more memory than one that is not.
func TestTooLarge(t *testing.T) {
	for name, fill := range map[string]func(b *Batch){
		"entries": func(b *Batch) {
			f := b.File(counters, nil, 0)
			for range MaxBatchEntries + 1 {
				f.Add([]byte("k"), 0.1, 0, false)
			}
			f.Record("file")
		},
		"bytes": func(b *Batch) {
			b.size = MaxBatchBytes - 100 // as of many files
			for i := range 1000 {
				fold(b, worker(fmt.Sprint(i)), fmt.Sprint(i), nil, entry{"a key", 1, 0})
			}
		},
		"key": func(b *Batch) {
			fold(b, counters, "", nil, entry{string(make([]byte, MaxKeyBytes+1)), 1, 0})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			before := fingerprint(t, dir)
			b := NewBatch(at(0))
			if used := allocated(func() { fill(b) }); used > 3*16*MaxBatchEntries {
				t.Errorf("%d bytes of memory", used)
			}
			if err := a.Commit(b, nil); !errors.Is(err, ErrTooLarge) || !a.Attached() {
				t.Errorf("%v", err)
			}
			if after := fingerprint(t, dir); after != before {
				t.Error("something was written")
			}
			mustCommit(t, a, mixed(1))
		})
	}
	b := mixed(1)
	if b.Entries() != 8 || b.Bytes() < 300 || b.Bytes() > 1000 {
		t.Errorf("%d entries, %d bytes", b.Entries(), b.Bytes())
	}
}

// TestInDoubt: a commit whose last step fails may be on disk. The next one, which may be any
// other, writes over it without reading anything again.
func TestInDoubt(t *testing.T) {
	big := func(n, from, to int, record string) *Batch {
		b := NewBatch(at(int64(n)))
		f := b.File(counters, nil, 10)
		for i := from; i < to; i++ {
			f.Add(fmt.Append(nil, i), float64(n), 0, true)
		}
		f.Record(record)
		return b
	}
	var large []entry
	for i := range 3 * recordPart {
		large = append(large, entry{"x", float64(i), 0})
	}
	for name, tc := range map[string]struct {
		doubtful []*Batch
		between  func(a *Archive)
		next     *Batch
	}{
		"the_same_again": {[]*Batch{mixed(5)}, nil, mixed(5)},
		"nothing":        {[]*Batch{mixed(5)}, nil, NewBatch(at(6))},
		"fewer_keys":     {[]*Batch{big(1, 0, 3000, "f")}, nil, big(1, 0, 700, "f")},
		"other_keys":     {[]*Batch{big(1, 0, 3000, "f")}, nil, big(1, 5000, 5100, "g")},
		"a_new_table": {[]*Batch{func() *Batch {
			b := NewBatch(at(1))
			fold(b, worker("new"), "", nil, entry{"g", 1, 0})
			return b
		}()}, nil, mixed(6)},
		"twice":           {[]*Batch{big(1, 0, 3000, "f"), big(1, 2000, 6000, "g")}, nil, big(1, 0, 10, "h")},
		"a_dropped_table": {[]*Batch{mixed(1)}, func(a *Archive) { a.Drop(worker("1")) }, NewBatch(at(6))},
		"a_forgotten_one": {[]*Batch{mixed(5)}, func(a *Archive) { a.Forget("counter_1.db.run-1") }, NewBatch(at(6))},
		"an_absorbed_one": {[]*Batch{mixed(5)}, func(a *Archive) { b := big(2, 0, 100, ""); b.records = nil; a.Absorb(b) }, mixed(6)},
		"a_large_record": {
			[]*Batch{func() *Batch { b := NewBatch(at(1)); fold(b, counters, "l", nil, large...); return b }()},
			nil,
			NewBatch(at(6)),
		},
		"a_record_rewrote": {[]*Batch{func() *Batch { b := NewBatch(at(1)); fold(b, counters, "counter_1.db.run-1", nil, large...); return b }()}, nil, NewBatch(at(6))},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			mustCommit(t, a, mixed(0))
			mustCommit(t, a, mixed(1))
			before := contentsOf(a)
			for _, b := range tc.doubtful {
				// What Commit does when the last step fails after the meta page is there.
				w := &write{a: a, b: b, commit: newID()}
				a.attempt = w.commit
				mustDo(t, a.db.Update(func(tx *bolt.Tx) error {
					w.tx, w.txid = tx, tx.ID()
					return w.run()
				}))
				a.leave()
				a.doubt = w.and(a.doubt)
				if got := contentsOf(reread(t, dir).Archive); got == before {
					t.Fatal("that is no test: it is not on disk")
				}
			}
			wantContents(t, a, before)
			if !a.Pending() || a.Compact() == nil {
				t.Error("nothing is waiting to be written")
			}
			if tc.between != nil {
				tc.between(a)
			}
			mustCommit(t, a, tc.next)
			want := contentsOf(a)
			wantContents(t, reread(t, dir).Archive, want)
			mustCommit(t, a, mixed(8))
			wantContents(t, reread(t, dir).Archive, contentsOf(a))
			mustDo(t, a.Compact())
		})
	}
}

// TestKeySet compares with a map.
func TestKeySet(t *testing.T) {
	var k keySet
	model := map[string]uint32{}
	var kept []string
	for i := range 20_000 {
		key := fmt.Sprintf("%0*d", 1+i%50, i%7000)
		if i%2 > 0 {
			// Equal texts in other places, and places that a key lacks.
			part := func(n int) string { return []string{"", "{", "}", "[", "{}", "[a", `"f"`}[n%7] }
			key = part(i) + part(i/7) + part(i/49) + part(i/343) + part(i/2401)
		}
		if i%1000 == 0 {
			key = string(make([]byte, 2*blockBytes+i))
		}
		pos, ok := k.find([]byte(key))
		want, known := model[key]
		if ok != known || ok && pos != want {
			t.Fatalf("%.20q: %d %v, want %d %v", key, pos, ok, want, known)
		}
		if !ok {
			model[key] = k.append([]byte(key))
			kept = append(kept, key)
		}
	}
	for pos, key := range kept {
		if k.get(pos) != key || string(k.appendKey(nil, pos)) != key || model[key] != uint32(pos) {
			t.Fatalf("position %d is %.20q", pos, key)
		}
	}
	if _, ok := k.find([]byte("none")); ok {
		t.Error("one that is not there was found")
	}
	var twice keySet
	for _, key := range []string{"a", "b", "a"} {
		twice.appendUnindexed([]byte(key))
	}
	if pos, unique := twice.indexAll(3); unique || pos != 2 {
		t.Errorf("%d, %v", pos, unique)
	}
}
