package archive

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

func TestCommitAndReopen(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	if !a.Attached() || !a.InPlace() || a.Path() != archivePath(dir) || a.Pending() || !a.Totals().Empty() || a.SizeBytes() == 0 {
		t.Errorf("a new archive: attached %v, in place %v, path %q, pending %v, %d bytes", a.Attached(), a.InPlace(), a.Path(), a.Pending(),
			a.SizeBytes())
	}
	for n := range 40 { // enough keys for several pages
		mustCommit(t, a, mixed(n))
		want := contentsOf(a)
		wantContents(t, reread(t, dir).Archive, want)
		if n%10 != 0 {
			continue
		}
		mustDetach(t, a)
		if a.Attached() || a.SizeBytes() != 0 || a.Pending() || a.InPlace() {
			t.Error("detached, it still has a file")
		}
		wantContents(t, a, want) // memory stays
		a = mustOpen(t, dir)
		wantContents(t, a, want)
	}
	table := a.Totals().Table(counters)
	if v := table.Values()[0]; v != 40 || table.Key(0) != `["hits", "hits_total", {}, ""]` || table.Len() != 41 {
		t.Errorf("%d keys, the first is %q = %v", table.Len(), table.Key(0), v)
	}
	if st := a.Stats(); st.Folds != 40 || st.Files != 200 || st.Bytes != 200*4096 || !st.LastFold.Equal(at(39)) ||
		time.Since(st.Created) > time.Minute {
		t.Errorf("%+v", st)
	}
	if list := a.Records(); len(list) != 80 || !slices.IsSorted(list) {
		t.Errorf("%d records", len(list))
	}
}

// TestChunks: values that fill several chunks, to the last place of one and beyond.
func TestChunks(t *testing.T) {
	for _, keys := range []int{1, chunkValues - 1, chunkValues, chunkValues + 1, 3*chunkValues + 7} {
		t.Run(fmt.Sprint(keys), func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			for round := range 3 {
				b := NewBatch(at(int64(round)))
				// Each round brings a few keys more and leaves others alone.
				for _, s := range []Space{counters, newest} {
					f := b.File(s, nil, 0)
					for i := 0; i < keys+round; i += 1 + round*100 {
						f.Add(fmt.Appendf(nil, "key %d", i), float64(i), float64(i+round), true)
					}
					f.Add(fmt.Appendf(nil, "more %d", round), 1, 1, true)
				}
				mustCommit(t, a, b)
				wantContents(t, reread(t, dir).Archive, contentsOf(a))
			}
		})
	}
}

// TestKeepFalse: an entry that is left out keeps its place in the record.
func TestKeepFalse(t *testing.T) {
	a := mustOpen(t, t.TempDir())
	b := NewBatch(at(0))
	f := b.File(counters, nil, 0)
	f.Add([]byte("a"), 1, 0, true)
	f.Add([]byte("bad"), 2, 0, false)
	f.Add([]byte("c"), 3, 0, true)
	f.Record("file")
	mustCommit(t, a, b)
	if v, _ := a.Baseline("file"); !slices.Equal(v, []float64{1, 2, 3}) {
		t.Errorf("record %v", v)
	}
	if table := a.Totals().Table(counters); table.Len() != 2 || table.Key(1) != "c" {
		t.Errorf("%s", contentsOf(a))
	}
}

// TestRefold: a file that was folded and has gained since counts with its gains.
func TestRefold(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	first := NewBatch(at(0))
	fold(first, counters, "file", nil, entry{"a", 5, 0}, entry{"b", 1, 0})
	mustCommit(t, a, first)
	baseline, ok := a.Baseline("file")
	if !ok || !slices.Equal(baseline, []float64{5, 1}) {
		t.Fatalf("%v, %v", baseline, ok)
	}
	second := NewBatch(at(1))
	fold(second, counters, "file", baseline, entry{"a", 7, 0}, entry{"b", 1, 0}, entry{"c", 4, 0})
	mustCommit(t, a, second)
	for _, a := range []*Archive{a, reread(t, dir).Archive} {
		if table := a.Totals().Table(counters); !slices.Equal(table.Values(), []float64{7, 1, 4}) {
			t.Errorf("%s", contentsOf(a))
		}
		if v, _ := a.Baseline("file"); !slices.Equal(v, []float64{7, 1, 4}) {
			t.Errorf("record %v", v)
		}
	}
}

func TestForget(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	b := NewBatch(at(0))
	fold(b, counters, "one", nil, entry{"a", 1, 0})
	fold(b, counters, "two", nil, entry{"a", 2, 0})
	mustCommit(t, a, b)

	a.Forget("unknown")
	if a.Pending() {
		t.Error("to forget what was never there is pending")
	}
	a.Forget("one")
	if _, ok := a.Baseline("one"); ok || !a.Pending() {
		t.Error("it is not forgotten")
	}
	if !slices.Equal(reread(t, dir).Records(), []string{"one", "two"}) {
		t.Error("it took effect on disk at once")
	}
	// Memory is right when the file is attached again before the commit.
	mustDetach(t, a)
	mustDo(t, a.Attach(dir))
	if !slices.Equal(a.Records(), []string{"two"}) || !a.Pending() {
		t.Errorf("%q, pending %v", a.Records(), a.Pending())
	}
	mustCommit(t, a, NewBatch(at(1)))
	if got := reread(t, dir).Records(); !slices.Equal(got, []string{"two"}) || a.Pending() {
		t.Errorf("%q, pending %v", got, a.Pending())
	}
}

// TestAbsorb: what must not wait for a file to be written survives anything that happens
// to the file until it is.
func TestAbsorb(t *testing.T) {
	dir := t.TempDir()
	left := func(n int) *Batch {
		b := NewBatch(at(int64(n)))
		fold(b, counters, "", nil, entry{"a", 1, 0}, entry{fmt.Sprint(n), 1, 0})
		return b
	}
	a := New()
	if err := a.Commit(NewBatch(at(0)), nil); !errors.Is(err, ErrDetached) {
		t.Errorf("commit without a file: %v", err)
	}
	a.Absorb(left(0)) // before there is a file
	if !a.Pending() || a.Unsaved() != 2 || a.Attached() {
		t.Errorf("pending %v, %d unsaved", a.Pending(), a.Unsaved())
	}
	mustDo(t, a.Attach(dir))
	t.Cleanup(func() { mustDetach(t, a) })
	mustCommit(t, a, mixed(1))
	if a.Pending() || a.Unsaved() != 0 {
		t.Errorf("pending %v, %d unsaved", a.Pending(), a.Unsaved())
	}
	a.Absorb(left(2)) // between commits
	mustDetach(t, a)
	a.Absorb(left(3)) // while there is none
	a.Absorb(left(4))
	want := contentsOf(a)
	for range 3 { // again and again, it counts once
		mustDo(t, a.Attach(dir))
		wantContents(t, a, want)
		if a.Unsaved() != 4 {
			t.Errorf("%d unsaved", a.Unsaved())
		}
		mustDetach(t, a)
	}
	mustDo(t, a.Attach(dir))
	mustCommit(t, a, NewBatch(at(5)))
	wantContents(t, a, want)
	wantContents(t, reread(t, dir).Archive, want)
	if v := a.Totals().Table(counters).Values()[0]; v != 4 {
		t.Errorf("a is %v", v)
	}
	if st := a.Stats(); st.Folds != 5 || st.Files != 4+5 {
		t.Errorf("%+v", st)
	}
}

func TestAbsorbRefusesRecords(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("it did not panic")
		}
	}()
	New().Absorb(mixed(1))
}

func TestDrop(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	for n := range 3 {
		mustCommit(t, a, mixed(n))
	}
	a.Drop(worker("nobody"))
	if a.Pending() {
		t.Error("dropping nothing is pending")
	}
	a.Drop(worker("1"))
	if a.Totals().Table(worker("1")) != nil || !a.Pending() {
		t.Error("it is there still")
	}
	if reread(t, dir).Totals().Table(worker("1")) == nil {
		t.Error("it took effect on disk at once")
	}
	// Before the commit another process of that ID has died, and the file was attached again.
	b := NewBatch(at(9))
	fold(b, worker("1"), "", nil, entry{`["other", "other", {}, ""]`, 3, 0})
	a.Absorb(b)
	want := contentsOf(a)
	mustDetach(t, a)
	mustDo(t, a.Attach(dir))
	wantContents(t, a, want)
	mustCommit(t, a, NewBatch(at(10)))
	wantContents(t, reread(t, dir).Archive, want)
	if table := a.Totals().Table(worker("1")); table.Len() != 1 || table.Values()[0] != 3 {
		t.Error(contentsOf(a))
	}
	// What is dropped before it was ever written leaves no trace.
	b = NewBatch(at(11))
	fold(b, worker("9"), "", nil, entry{"x", 1, 0})
	a.Absorb(b)
	a.Drop(worker("9"))
	if a.Pending() {
		t.Error("there is something to write")
	}
	// Numbers of tables may be used again; what was in them is not.
	for n := range 20 {
		for s := range a.Totals().Spaces() {
			if s.Worker != "" && n%3 != 0 {
				a.Drop(s)
			}
		}
		mustCommit(t, a, mixed(100+n))
		wantContents(t, reread(t, dir).Archive, contentsOf(a))
	}
}

// TestGeneration changes exactly when tables are other ones than before.
func TestGeneration(t *testing.T) {
	dir := t.TempDir()
	a := New()
	last := a.Generation()
	changed := func() bool {
		was := last
		last = a.Generation()
		return last != was
	}
	mustDo(t, a.Attach(dir))
	if !changed() {
		t.Error("not by Attach")
	}
	mustCommit(t, a, mixed(0))
	a.Absorb(NewBatch(at(0)))
	a.Drop(worker("0"))
	mustDetach(t, a)
	if changed() {
		t.Error("by something else")
	}
	mustDo(t, a.Attach(dir))
	mustDetach(t, a)
	if !changed() {
		t.Error("not by Attach again")
	}
	mustDo(t, os.WriteFile(archivePath(dir), []byte("garbage"), 0o600))
	if err := a.Attach(dir); !errors.Is(err, ErrDamaged) || changed() {
		t.Errorf("by an Attach that failed: %v", err)
	}
}

// TestCommitBesideReaders: while a commit writes, others read the totals; the change comes
// under their lock. It is for the race detector.
func TestCommitBesideReaders(t *testing.T) {
	a := mustOpen(t, t.TempDir())
	var mu sync.RWMutex
	stop := make(chan struct{})
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			mu.RLock()
			contentsOf(a)
			if _, ok := a.Baseline("counter_3.db.run-3"); ok && len(a.Records()) < 8 {
				t.Error("half a commit is seen")
			}
			mu.RUnlock()
		}
	})
	for n := range 20 {
		err := a.Commit(mixed(n), func(change func()) {
			mu.Lock()
			defer mu.Unlock()
			change()
		})
		if err != nil {
			t.Error(err)
		}
	}
	close(stop)
	reader.Wait()
}

// TestGoneFile: the directory is removed, and with it the archive; memory goes to a new one.
func TestGoneFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	mustDo(t, os.Mkdir(dir, 0o700))
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(0))
	mustDo(t, os.Rename(dir, dir+".away"))
	if a.InPlace() {
		t.Error("in place, without a directory")
	}
	mustCommit(t, a, mixed(1)) // goes to the file that is away
	mustDo(t, os.Mkdir(dir, 0o700))
	if a.InPlace() {
		t.Error("in place, where there is none")
	}
	mustDetach(t, a)
	a.Forget("counter_0.db.run-0")
	want := contentsOf(a)
	mustDo(t, a.Attach(dir))
	wantContents(t, a, want)
	if !a.InPlace() || !a.Pending() {
		t.Errorf("in place %v, pending %v", a.InPlace(), a.Pending())
	}
	mustCommit(t, a, NewBatch(at(2)))
	wantContents(t, reread(t, dir).Archive, want)

	// The old directory comes back: what it holds is in memory already.
	for _, committed := range []bool{true, false} {
		mustDetach(t, a)
		mustDo(t, os.RemoveAll(dir))
		if !committed {
			mustDo(t, os.Mkdir(dir, 0o700))
			mustDo(t, a.Attach(dir))
			mustDetach(t, a)
			mustDo(t, os.RemoveAll(dir))
		}
		mustDo(t, os.CopyFS(dir, os.DirFS(dir+".away")))
		if err := a.Attach(dir); !errors.Is(err, ErrForeign) {
			t.Errorf("committed %v: %v", committed, err)
		}
		wantContents(t, a, want)
		mustDo(t, os.RemoveAll(dir))
		mustDo(t, os.Mkdir(dir, 0o700))
		mustDo(t, a.Attach(dir))
		mustCommit(t, a, NewBatch(at(3)))
		wantContents(t, reread(t, dir).Archive, want)
	}
}

// TestForeign: two archives change places while they are not open.
func TestForeign(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	a, b := mustOpen(t, one), mustOpen(t, two)
	mustCommit(t, a, mixed(1))
	mustCommit(t, b, mixed(2))
	wantA, wantB := contentsOf(a), contentsOf(b)
	mustDetach(t, a)
	mustDetach(t, b)
	swap := func() {
		mustDo(t, os.Rename(archivePath(one), archivePath(one)+".tmp"))
		mustDo(t, os.Rename(archivePath(two), archivePath(one)))
		mustDo(t, os.Rename(archivePath(one)+".tmp", archivePath(two)))
	}
	swap()
	for dir, a := range map[string]*Archive{one: a, two: b} {
		if err := a.Attach(dir); !errors.Is(err, ErrForeign) || a.Attached() {
			t.Errorf("%v, attached %v", err, a.Attached())
		}
	}
	wantContents(t, a, wantA)
	wantContents(t, b, wantB)
	swap()
	mustDo(t, a.Attach(one))
	mustDo(t, b.Attach(two))
	wantContents(t, a, wantA)
	wantContents(t, b, wantB)
	mustDetach(t, a)
	mustDetach(t, b)
	swap()
	wantContents(t, mustOpen(t, one), wantB) // another process finds what is there
}

// TestOlderCopy: what was committed after the copy was made is in memory, and must not give
// way to the copy.
func TestOlderCopy(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	older, err := os.ReadFile(archivePath(dir))
	mustDo(t, err)
	mustCommit(t, a, mixed(2))
	want := contentsOf(a)
	mustDetach(t, a)
	newer, err := os.ReadFile(archivePath(dir))
	mustDo(t, err)
	mustDo(t, os.WriteFile(archivePath(dir), older, 0o600))
	if err := a.Attach(dir); !errors.Is(err, ErrForeign) || a.Attached() {
		t.Errorf("%v, attached %v", err, a.Attached())
	}
	wantContents(t, a, want)
	mustDo(t, os.WriteFile(archivePath(dir), newer, 0o600))
	mustDo(t, a.Attach(dir))
	wantContents(t, a, want)
	mustCommit(t, a, mixed(3))
	wantContents(t, reread(t, dir).Archive, contentsOf(a))
}

// TestForeignToNobody: an archive that has nothing yet takes what it finds.
func TestForeignToNobody(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	a, b := mustOpen(t, one), mustOpen(t, two)
	mustCommit(t, b, mixed(2))
	b.Drop(worker("2"))
	want := contentsOf(b)
	mustCommit(t, b, NewBatch(at(3)))
	mustDetach(t, a)
	mustDetach(t, b)
	mustDo(t, os.Rename(archivePath(two), archivePath(one)))
	mustDo(t, a.Attach(one))
	wantContents(t, a, want)
	mustCommit(t, a, mixed(3))
	wantContents(t, reread(t, one).Archive, contentsOf(a))
}

func TestNewer(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(0))
	mustDetach(t, a)
	edit(t, dir, func(tx *bolt.Tx) error {
		return put(tx.Bucket(bucketMeta), metaFormat, binary.BigEndian.AppendUint32(nil, Format+1))
	})
	before, err := os.ReadFile(archivePath(dir))
	mustDo(t, err)
	if _, err := Open(dir); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) ||
		!strings.Contains(err.Error(), fmt.Sprintf("format is %d, this program knows %d", Format+1, Format)) {
		t.Errorf("open: %v", err)
	}
	if _, err := Read(dir); !errors.Is(err, ErrNewer) {
		t.Errorf("read: %v", err)
	}
	if after, err := os.ReadFile(archivePath(dir)); err != nil || string(after) != string(before) {
		t.Errorf("it was changed, %v", err)
	}
	// One that has all sorts of things that this version does not know is newer, too.
	edit(t, dir, func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte("tables"))
		if err != nil {
			return err
		}
		for i := range 1000 {
			inner, err := b.CreateBucket(binary.BigEndian.AppendUint32(nil, uint32(i)))
			if err != nil {
				return err
			}
			if err := inner.Put([]byte("key"), make([]byte, 10*i)); err != nil {
				return err
			}
		}
		return tx.DeleteBucket(bucketValues)
	})
	if _, err := Open(dir); !errors.Is(err, ErrNewer) {
		t.Errorf("open: %v", err)
	}
}

// edit changes an archive by hand.
func edit(t testing.TB, dir string, change func(tx *bolt.Tx) error) {
	t.Helper()
	db, err := bolt.Open(archivePath(dir), 0o600, nil)
	mustDo(t, err)
	mustDo(t, db.Update(change))
	mustDo(t, db.Close())
}

// TestEdited: contents that hang together as a bbolt file, but not as an archive.
func TestEdited(t *testing.T) {
	id1 := binary.BigEndian.AppendUint32(nil, 1)
	for name, change := range map[string]func(tx *bolt.Tx) error{
		"no_meta":        func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketMeta) },
		"no_keys":        func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketKeys) },
		"no_folded":      func(tx *bolt.Tx) error { return tx.DeleteBucket(bucketFolded) },
		"no_format":      func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Delete(metaFormat) },
		"short_format":   func(tx *bolt.Tx) error { return put(tx.Bucket(bucketMeta), metaFormat, []byte{1}) },
		"no_id":          func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Delete(metaID) },
		"no_counters":    func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Delete(metaStats) },
		"no_commit":      func(tx *bolt.Tx) error { return tx.Bucket(bucketMeta).Delete(metaCommit) },
		"odd_counters":   func(tx *bolt.Tx) error { return put(tx.Bucket(bucketMeta), metaStats, []byte("{")) },
		"space_is_short": func(tx *bolt.Tx) error { return put(tx.Bucket(bucketSpaces), []byte("x"), nil) },
		"space_twice": func(tx *bolt.Tx) error {
			return put(tx.Bucket(bucketSpaces), binary.BigEndian.AppendUint32(nil, 99), appendSpace(nil, counters, at(0)))
		},
		"space_0": func(tx *bolt.Tx) error {
			return put(tx.Bucket(bucketSpaces), make([]byte, 4), appendSpace(nil, worker("x"), at(0)))
		},
		"space_unreadable": func(tx *bolt.Tx) error { return put(tx.Bucket(bucketSpaces), id1, []byte{1, 2, 3}) },
		"space_unsealed":   func(tx *bolt.Tx) error { return tx.Bucket(bucketSpaces).Put(id1, appendSpace(nil, counters, at(0))) },
		"key_of_nowhere":   func(tx *bolt.Tx) error { return put(tx.Bucket(bucketKeys), key2(99, 0), []byte("a")) },
		"key_is_short":     func(tx *bolt.Tx) error { return put(tx.Bucket(bucketKeys), []byte("x"), nil) },
		"key_missing":      func(tx *bolt.Tx) error { return tx.Bucket(bucketKeys).Delete(key2(1, 0)) },
		"last_key_missing": func(tx *bolt.Tx) error { return tx.Bucket(bucketKeys).Delete(key2(1, 1)) },
		"key_twice":        func(tx *bolt.Tx) error { return put(tx.Bucket(bucketKeys), key2(1, 1), []byte("a")) },
		"key_unsealed":     func(tx *bolt.Tx) error { return tx.Bucket(bucketKeys).Put(key2(1, 1), []byte("abcdef")) },
		"values_missing":   func(tx *bolt.Tx) error { return tx.Bucket(bucketValues).Delete(key2(1, 0)) },
		"values_too_many": func(tx *bolt.Tx) error {
			return put(tx.Bucket(bucketValues), key2(1, 1), appendChunk(nil, []float64{1}, []float64{0}))
		},
		"values_of_other_key": func(tx *bolt.Tx) error {
			v := slices.Clone(tx.Bucket(bucketValues).Get(key2(1, 0)))
			return tx.Bucket(bucketValues).Put(key2(2, 0), v)
		},
		"values_unreadable": func(tx *bolt.Tx) error { return put(tx.Bucket(bucketValues), key2(1, 0), []byte{7}) },
		"record_unreadable": func(tx *bolt.Tx) error { return put(tx.Bucket(bucketFolded), []byte("file"), []byte{3}) },
		"record_renamed": func(tx *bolt.Tx) error {
			b := tx.Bucket(bucketFolded)
			return errors.Join(b.Put([]byte("filf"), slices.Clone(b.Get([]byte("file")))), b.Delete([]byte("file")))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			b := NewBatch(at(0))
			fold(b, counters, "file", nil, entry{"a", 1, 0}, entry{"b", 2, 0})
			fold(b, summaries, "", nil, entry{"c", 1, 0}, entry{"d", 2, 0})
			mustCommit(t, a, b)
			mustDetach(t, a)
			edit(t, dir, change)
			if _, err := Open(dir); !errors.Is(err, ErrDamaged) {
				t.Errorf("open: %v", err)
			}
			if v, err := Read(dir); !errors.Is(err, ErrDamaged) || v == nil || !v.Totals().Empty() {
				t.Errorf("read: %v", err)
			}
		})
	}
}

// TestOddFiles: what else may lie where the archive should.
func TestOddFiles(t *testing.T) {
	for name, tc := range map[string]struct {
		make    func(path string) error
		damaged bool // and may be set aside; the others are for somebody to look at
	}{
		"empty":       {func(path string) error { return os.WriteFile(path, nil, 0o600) }, true},
		"text":        {func(path string) error { return os.WriteFile(path, []byte("hello\n"), 0o600) }, true},
		"zeros":       {func(path string) error { return os.WriteFile(path, make([]byte, 1<<15), 0o600) }, true},
		"hole":        {func(path string) error { return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40)) }, true},
		"directory":   {func(path string) error { return os.Mkdir(path, 0o700) }, false},
		"pipe":        {func(path string) error { return unix.Mkfifo(path, 0o600) }, false},
		"link":        {func(path string) error { return os.Symlink("/etc/hostname", path) }, false},
		"link_to_new": {func(path string) error { return os.Symlink(path+".target", path) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			mustDo(t, tc.make(archivePath(dir)))
			if _, err := Open(dir); err == nil || errors.Is(err, ErrDamaged) != tc.damaged {
				t.Errorf("open: %v", err)
			}
			if _, err := Read(dir); err == nil || errors.Is(err, ErrDamaged) != tc.damaged {
				t.Errorf("read: %v", err)
			}
			if got := names(t, dir); !slices.Equal(got, []string{FileName}) {
				t.Errorf("it left %q", got)
			}
		})
	}
}

func TestSetAside(t *testing.T) {
	dir := t.TempDir()
	if _, err := SetAside(dir, at(0)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	var kept []string
	for i := range 3 {
		mustDo(t, os.WriteFile(archivePath(dir), fmt.Append(nil, i), 0o600))
		name, err := SetAside(dir, at(0)) // all in one second
		mustDo(t, err)
		kept = append(kept, filepath.Base(name))
	}
	want := []string{
		FileName + ".damaged-20231114T221320Z", FileName + ".damaged-20231114T221320Z-1",
		FileName + ".damaged-20231114T221320Z-2",
	}
	if !slices.Equal(kept, want) || !slices.Equal(names(t, dir), want) {
		t.Errorf("%q, %q", kept, names(t, dir))
	}
	for i, name := range kept {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(data) != fmt.Sprint(i) {
			t.Errorf("%s is %q, %v", name, data, err)
		}
	}
	if list, err := SetAsides(dir); err != nil || !slices.Equal(list, want) {
		t.Errorf("%q, %v", list, err)
	}
	if list, err := SetAsides(filepath.Join(dir, "none")); err != nil || list != nil {
		t.Errorf("%q, %v", list, err)
	}
}

func TestReset(t *testing.T) {
	dir := t.TempDir()
	if _, err := Reset(dir, nil, at(0)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing: %v", err)
	}
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	mustCommit(t, a, mixed(2))
	want := contentsOf(a)
	if _, err := Reset(dir, nil, at(0)); !errors.Is(err, ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	mustDetach(t, a)
	kept, err := Reset(dir, []string{"counter_2.db.run-2", "counter_9.db.run-1"}, at(0))
	mustDo(t, err)
	if filepath.Base(kept) != FileName+".reset-20231114T221320Z" {
		t.Errorf("kept as %q", kept)
	}
	// The new one has nothing but that a file still there was folded.
	fresh := mustOpen(t, dir)
	baseline, ok := fresh.Baseline("counter_2.db.run-2")
	if !ok || !slices.Equal(baseline, []float64{1, 0.2}) || len(fresh.Records()) != 1 || !fresh.Totals().Empty() ||
		fresh.Stats().Folds != 0 {
		t.Error(contentsOf(fresh))
	}
	// The old one is whole.
	old := t.TempDir()
	mustDo(t, os.Rename(kept, archivePath(old)))
	wantContents(t, reread(t, old).Archive, want)
	// The one that was open before is another one.
	mustDetach(t, fresh)
	if err := a.Attach(dir); !errors.Is(err, ErrForeign) {
		t.Errorf("%v", err)
	}

	mustDo(t, os.WriteFile(archivePath(dir), []byte("garbage"), 0o600))
	kept, err = Reset(dir, []string{"counter_2.db.run-2"}, at(0))
	mustDo(t, err)
	if data, err := os.ReadFile(kept); err != nil || string(data) != "garbage" {
		t.Errorf("%q, %v", data, err)
	}
	if fresh := mustOpen(t, dir); len(fresh.Records()) != 0 || !fresh.Totals().Empty() {
		t.Error(contentsOf(fresh))
	}
	if list, err := SetAsides(dir); err != nil || len(list) != 1 {
		t.Errorf("%q, %v", list, err)
	}
}

// TestMovedWhileWaiting: who waits for the lock of a file that gets another name meanwhile
// must not take that for the archive.
func TestMovedWhileWaiting(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	mustDetach(t, a)
	for _, replaced := range []bool{true, false} {
		held, err := mustPlace(t, dir).lock()
		mustDo(t, err)
		type result struct {
			a   *Archive
			err error
		}
		opened := make(chan result)
		go func() {
			a, err := Open(dir)
			opened <- result{a, err}
		}()
		time.Sleep(2 * lockRetry) // it waits; were it slower, the test would only show less
		kept, err := SetAside(dir, at(0))
		mustDo(t, err)
		if replaced {
			if err := mustPlace(t, dir).createArchive(); err != nil && !errors.Is(err, fs.ErrExist) { // it was there first
				t.Fatal(err)
			}
		}
		mustDo(t, held.Close())
		r := <-opened
		mustDo(t, r.err)
		if !r.a.InPlace() || !r.a.Totals().Empty() {
			t.Errorf("in place %v, %s", r.a.InPlace(), contentsOf(r.a))
		}
		f, err := os.Open(kept)
		mustDo(t, err)
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("it has locked the one set aside: %v", err)
		}
		f.Close()
		mustDetach(t, r.a)
	}
}

// TestCreate: making an archive replaces nothing and leaves nothing behind.
func TestCreate(t *testing.T) {
	dir := t.TempDir()
	for name, age := range map[string]time.Duration{"old": time.Hour, "young": time.Second} {
		path := archivePath(dir) + ".new-" + name
		mustDo(t, os.WriteFile(path, []byte("of a crash"), 0o600))
		mustDo(t, os.Chtimes(path, time.Time{}, time.Now().Add(-age)))
	}
	mustDo(t, mustPlace(t, dir).createArchive())
	if got := names(t, dir); !slices.Equal(got, []string{FileName, FileName + ".new-young"}) {
		t.Errorf("%q", got)
	}
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	if err := mustPlace(t, dir).createArchive(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("%v", err)
	}
	wantContents(t, reread(t, dir).Archive, contentsOf(a))
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	info, err := os.Stat(archivePath(dir))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestOpenTogether: of many that start at once on an empty directory, each in turn gets
// the same archive.
func TestOpenTogether(t *testing.T) {
	dir := t.TempDir()
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for {
				a, err := Open(dir)
				if errors.Is(err, ErrLocked) {
					continue
				}
				if err == nil {
					err = errors.Join(a.Commit(mixed(n), nil), a.Detach())
				}
				if err != nil {
					t.Error(err)
				}
				return
			}
		})
	}
	all.Wait()
	v := reread(t, dir)
	if hits := v.Totals().Table(counters).Values()[0]; hits != 8 || v.Stats().Folds != 8 {
		t.Error(contentsOf(v.Archive))
	}
}

func TestOwner(t *testing.T) {
	dir := t.TempDir()
	p, err := OpenPlace(dir)
	mustDo(t, err)
	if s := p.Owner(); !strings.Contains(s, "another aggregatord has") {
		t.Errorf("%q", s)
	}
	mustDo(t, p.Close())
	// Never through a link.
	target := filepath.Join(t.TempDir(), "target")
	mustDo(t, os.WriteFile(target, []byte("precious"), 0o600))
	mustDo(t, os.Symlink(target, filepath.Join(dir, ownerName)))
	mustDo(t, os.Symlink(target, filepath.Join(dir, ownerName+".new")))
	mustOpen(t, dir)
	if data, err := os.ReadFile(target); err != nil || string(data) != "precious" {
		t.Errorf("%q, %v", data, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, ownerName))
	mustDo(t, err)
	var o owner
	if err := json.Unmarshal(data, &o); err != nil || o.PID != os.Getpid() || time.Since(o.Since) > time.Minute {
		t.Errorf("%q, %v", data, err)
	}
	if got := names(t, dir); !slices.Equal(got, []string{FileName, ownerName}) {
		t.Errorf("%q", got)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "hold", dir)
	if got := c.line(t); got != "open" {
		t.Fatal(got)
	}
	start := time.Now()
	_, err := Open(dir)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("aggregatord with pid %d on host", c.Process.Pid)) {
		t.Errorf("%v", err)
	}
	if d := time.Since(start); d < lockTimeout || d > 10*lockTimeout {
		t.Errorf("it waited %v", d)
	}
	reread(t, dir) // needs no lock
	c.kill()       // the lock dies with its holder
	mustOpen(t, dir)
}

func init() {
	children["hold"] = func(args []string) error {
		if _, err := Open(args[0]); err != nil {
			return err
		}
		fmt.Println("open")
		time.Sleep(time.Minute)
		return nil
	}
}

// TestReplaced: a daemon that starts while the last one is about to end waits for it.
func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	want := contentsOf(a)
	time.AfterFunc(lockTimeout/3, func() {
		if err := a.Detach(); err != nil {
			t.Error(err)
		}
	})
	wantContents(t, mustOpen(t, dir), want)
}

// TestCreated: an archive in which nobody has written yet is as old as its file.
func TestCreated(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		made := time.Now()
		for range 3 {
			a, err := Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			v, err := Read(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, created := range []time.Time{a.Stats().Created, v.Stats().Created} {
				if !created.Equal(made) {
					t.Errorf("created %v after it was made", created.Sub(made))
				}
			}
			if err := a.Detach(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Hour)
		}
	})
}
