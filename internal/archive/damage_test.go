package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// testArchive returns the bytes of an archive after some commits, and its contents. Small:
// all buckets lie in one page. Otherwise they have pages of several levels, some are free,
// and some values take more than one.
func testArchive(t testing.TB, small bool) (data []byte, contents string) {
	t.Helper()
	dir := t.TempDir()
	a := mustOpen(t, dir)
	if small {
		for n := range 2 {
			b := NewBatch(at(int64(n)))
			fold(b, counters, fmt.Sprintf("counter_%d.db.r-1", n), nil, entry{"a", 1, 0}, entry{fmt.Sprint(n), 2, 0})
			fold(b, worker(fmt.Sprint(n)), "", nil, entry{"g", 0.5, 0})
			mustCommit(t, a, b)
		}
	} else {
		b := NewBatch(at(0))
		f := b.File(newest, nil, 0)
		for i := range 700 {
			keep := i < 120
			f.Add(fmt.Appendf(nil, `["rate", "rate", {"route": "/some/long/route/%d"}, "Help."]`, i), 0.5*float64(i), float64(i), keep)
		}
		f.Record("gauge_mostrecent_1.db.r-1")
		mustCommit(t, a, b)
		for n := range 3 {
			mustCommit(t, a, mixed(n))
			a.Forget(fmt.Sprintf("counter_%d.db.run-%d", n-1, n-1))
		}
		a.Drop(worker("1"))
		mustCommit(t, a, NewBatch(at(9)))
	}
	contents = contentsOf(a)
	mustDetach(t, a)
	data, err := os.ReadFile(archivePath(dir))
	mustDo(t, err)
	last, err := lastMeta(openBytes(data))
	mustDo(t, err)
	return data[:last.high*pageBytes], contents
}

// openBytes is a file in memory.
type openBytes []byte

func (b openBytes) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	if off < int64(len(b)) {
		n = copy(p, b[off:])
	}
	if n < len(p) {
		return n, errors.New("end of file")
	}
	return n, nil
}

// tryDamaged opens an archive with these bytes: what it says is either exactly right, and
// then it can be written on, or it is ErrDamaged. It reports which.
func tryDamaged(t *testing.T, dir string, data []byte, contents, what string) (right bool) {
	t.Helper()
	mustDo(t, os.WriteFile(archivePath(dir), data, 0o600))
	a, err := Open(dir)
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			t.Fatalf("%s: %v", what, err)
		}
		if a.Attached() {
			t.Fatalf("%s: it has stayed open: %v", what, err)
		}
		return false
	}
	if got := contentsOf(a); got != contents {
		t.Fatalf("%s: contents are\n%s\nwant\n%s", what, got, contents)
	}
	mustDetach(t, a)
	return true
}

// memoryDir is a directory where a file is quick to write.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "archive-test-*")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestFlippedBytes changes each byte of a small archive in turn, and of a bigger one those
// that tell where others are, and a sample of the rest.
func TestFlippedBytes(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	for name, small := range map[string]bool{"small": true, "pages": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(seed, seed))
			data, contents := testArchive(t, small)
			dir := memoryDir(t)
			if !tryDamaged(t, dir, data, contents, "whole") {
				t.Fatal("the archive is damaged before anything was done to it")
			}
			rights, wrongs := 0, 0
			for i := range data {
				inPage := i % pageBytes
				header := inPage < 16*3 // of the page and of its first elements
				if !small && !header && r.IntN(300) > 0 {
					continue
				}
				if small && inPage > 1000 && r.IntN(40) > 0 { // nothing is that far behind
					continue
				}
				bad := slices.Clone(data)
				bad[i] ^= byte(1 + r.IntN(255))
				if tryDamaged(t, dir, bad, contents, fmt.Sprintf("byte %d from %#x to %#x", i, data[i], bad[i])) {
					rights++ // in what is not used
				} else {
					wrongs++
				}
			}
			t.Logf("%d bytes: %d times nothing was lost, %d times it was seen to be damaged", len(data), rights, wrongs)
			if rights == 0 || wrongs == 0 {
				t.Error("that cannot be")
			}
		})
	}
}

// TestFlippedBits takes each bit of the numbers that the structure hangs on.
func TestFlippedBits(t *testing.T) {
	data, contents := testArchive(t, true)
	dir := memoryDir(t)
	for page := range len(data) / pageBytes {
		for i := page * pageBytes; i < page*pageBytes+pageHeader+metaSummed+8; i++ {
			for bit := range 8 {
				bad := slices.Clone(data)
				bad[i] ^= 1 << bit
				tryDamaged(t, dir, bad, contents, fmt.Sprintf("byte %d, bit %d", i, bit))
			}
		}
	}
}

// TestLostPages overwrites each page with zeros, with noise and with each other one.
func TestLostPages(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for name, small := range map[string]bool{"small": true, "pages": false} {
		t.Run(name, func(t *testing.T) {
			data, contents := testArchive(t, small)
			dir := memoryDir(t)
			pages := len(data) / pageBytes
			damaged := 0
			for page := range pages {
				put := func(what string, with []byte) {
					bad := slices.Clone(data)
					copy(bad[page*pageBytes:], with)
					if !tryDamaged(t, dir, bad, contents, fmt.Sprintf("page %d with %s", page, what)) {
						damaged++
					}
				}
				put("zeros", make([]byte, pageBytes))
				noise := make([]byte, pageBytes)
				for i := range noise {
					noise[i] = byte(r.Uint32())
				}
				put("noise", noise)
				for other := range pages {
					if small || r.IntN(8) == 0 {
						put(fmt.Sprintf("page %d", other), data[other*pageBytes:(other+1)*pageBytes])
					}
				}
			}
			if damaged < 2*4 {
				t.Errorf("%d of %d pages matter", damaged, pages)
			}
		})
	}
}

// TestCutShort cuts the file at each 512 bytes, and has it set aside where that shows.
func TestCutShort(t *testing.T) {
	for name, small := range map[string]bool{"small": true, "pages": false} {
		t.Run(name, func(t *testing.T) {
			data, contents := testArchive(t, small)
			// As it is on disk, with room behind what is used.
			data = append(data, make([]byte, 8*pageBytes)...)
			dir := memoryDir(t)
			kept := 0
			for n := 0; n <= len(data); n += 512 {
				if tryDamaged(t, dir, data[:n], contents, fmt.Sprintf("cut to %d bytes", n)) {
					if n < len(data)-8*pageBytes {
						t.Fatalf("cut to %d of %d bytes, it has all", n, len(data)-8*pageBytes)
					}
					continue
				}
				name, err := SetAside(dir, at(0))
				mustDo(t, err)
				kept++
				a, err := Open(dir)
				mustDo(t, err)
				mustCommit(t, a, mixed(1))
				mustDetach(t, a)
				if info, err := os.Stat(name); err != nil || info.Size() != int64(n) {
					t.Fatalf("%v, %v", info, err)
				}
			}
			if list, err := SetAsides(dir); err != nil || len(list) != kept || kept < len(data)/512-70 {
				t.Errorf("%d are kept, %d were set aside, %v", len(list), kept, err)
			}
		})
	}
}

// TestWrittenOnAfterDamage: what was damaged where nothing was does no harm later either.
func TestWrittenOnAfterDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	data, contents := testArchive(t, false)
	dir := memoryDir(t)
	for range 60 {
		bad := slices.Clone(data)
		i := r.IntN(len(bad))
		bad[i] ^= byte(1 + r.IntN(255))
		if !tryDamaged(t, dir, bad, contents, fmt.Sprintf("byte %d", i)) {
			continue
		}
		a, err := Open(dir)
		mustDo(t, err)
		for n := range 3 {
			mustCommit(t, a, mixed(10+n))
		}
		want := contentsOf(a)
		mustDetach(t, a)
		wantContents(t, reread(t, dir).Archive, want)
	}
}

// TestDamagedWhileOpen: the file goes bad under an archive that has it open. Nothing hangs,
// and memory goes to a new file.
func TestDamagedWhileOpen(t *testing.T) {
	for name, damage := range map[string]func(f *os.File) error{
		"emptied":    func(f *os.File) error { return f.Truncate(0) },
		"cut":        func(f *os.File) error { return f.Truncate(2 * pageBytes) },
		"zeroed":     func(f *os.File) error { _, err := f.WriteAt(make([]byte, 20*pageBytes), 2*pageBytes); return err },
		"metas_gone": func(f *os.File) error { _, err := f.WriteAt(make([]byte, 2*pageBytes), 0); return err },
		"noise": func(f *os.File) error {
			noise := make([]byte, 20*pageBytes)
			for i := range noise {
				noise[i] = byte(i * i >> 3)
			}
			_, err := f.WriteAt(noise, 2*pageBytes)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			for n := range 3 {
				mustCommit(t, a, mixed(n))
			}
			f, err := os.OpenFile(archivePath(dir), os.O_RDWR, 0)
			mustDo(t, err)
			mustDo(t, damage(f))
			mustDo(t, f.Close())
			before := contentsOf(a)
			if err := a.Commit(mixed(3), nil); !errors.Is(err, ErrDamaged) || a.Attached() {
				t.Fatalf("commit: %v, attached %v", err, a.Attached())
			}
			wantContents(t, a, before)
			if err := a.Attach(dir); !errors.Is(err, ErrDamaged) {
				t.Fatalf("attach: %v", err)
			}
			_, err = SetAside(dir, at(0))
			mustDo(t, err)
			mustDo(t, a.Attach(dir))
			wantContents(t, a, before)
			mustCommit(t, a, mixed(3))
			wantContents(t, reread(t, dir).Archive, contentsOf(a))
		})
	}
}

// TestChangedWhileOpen: what somebody else has done to the file is found before bbolt believes
// it. A page that says it has billions more would keep it busy for hours, unless it meets
// one that is free.
func TestChangedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	for n := range 3 {
		mustCommit(t, a, mixed(n))
		mustDo(t, a.checkLeft())
	}
	mustDo(t, a.Compact())
	mustDo(t, a.checkLeft())
	mustCommit(t, a, mixed(3))
	want := contentsOf(a)
	f, err := os.OpenFile(archivePath(dir), os.O_RDWR, 0)
	mustDo(t, err)
	defer f.Close()
	last, err := lastMeta(f)
	mustDo(t, err)
	time.Sleep(20 * time.Millisecond) // the clock of file systems ticks that slowly
	_, err = f.WriteAt([]byte{0xff}, int64(last.root)*pageBytes+15)
	mustDo(t, err)
	if err := a.checkLeft(); !errors.Is(err, ErrDamaged) {
		t.Errorf("a page with many more: %v", err)
	}
	if err := a.Commit(mixed(4), nil); !errors.Is(err, ErrDamaged) || a.Attached() {
		t.Errorf("commit: %v, attached %v", err, a.Attached())
	}
	wantContents(t, a, want)
}

// TestOverflowWhileOpen: a page that says it has many more is found before bbolt counts them.
func TestOverflowWhileOpen(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	want := contentsOf(a)
	last, err := lastMeta(a.handle)
	mustDo(t, err)
	time.Sleep(20 * time.Millisecond) // the clock of file systems ticks that slowly
	f, err := os.OpenFile(archivePath(dir), os.O_RDWR, 0)
	mustDo(t, err)
	defer f.Close()
	_, err = f.WriteAt([]byte{0xff, 0xff, 0xff, 0xff}, int64(last.root)*pageBytes+12)
	mustDo(t, err)
	if err := a.Commit(mixed(2), nil); !errors.Is(err, ErrDamaged) {
		t.Errorf("got %v", err)
	}
	wantContents(t, a, want)
	if a.Attached() {
		t.Error("it goes on with a damaged file")
	}
}

// TestLanded: a commit whose very last step fails, to make the meta page durable, is on
// disk for all who read it. Attach sees that, and counts nothing twice.
func TestLanded(t *testing.T) {
	for _, landed := range []bool{true, false} {
		t.Run(fmt.Sprint("landed=", landed), func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			mustCommit(t, a, mixed(0))
			mustCommit(t, a, mixed(1))
			left := NewBatch(at(5))
			fold(left, counters, "", nil, entry{"left", 1, 0}, entry{`["hits", "hits_total", {}, ""]`, 1, 0})
			a.Absorb(left)
			a.Forget("counter_0.db.run-0")
			a.Drop(worker("0"))
			before := contentsOf(a)

			// What Commit does, up to where it learns of the error.
			b := mixed(2)
			a.attempt = newID()
			failure := errors.New("input/output error")
			w := &write{a: a, b: b, commit: a.attempt}
			err := a.db.Update(func(tx *bolt.Tx) error {
				w.tx, w.txid = tx, tx.ID()
				if err := w.run(); err != nil || landed {
					return err
				}
				return failure
			})
			undone, undoneErr := a.undone(w.txid)
			if landed != (err == nil) || undone == landed || undoneErr != nil {
				t.Fatalf("%v, undone %v, %v", err, undone, undoneErr)
			}
			wantContents(t, a, before)
			mustDetach(t, a)
			mustDo(t, a.Attach(dir))
			if _, ok := a.Baseline("counter_2.db.run-2"); ok != landed || a.Pending() == landed {
				t.Errorf("recorded %v, pending %v", ok, a.Pending())
			}
			if !landed {
				wantContents(t, a, before)
				mustCommit(t, a, b)
			}
			hits := a.Totals().Table(counters).Values()
			if hits[0] != 4 || a.Totals().Table(worker("0")) != nil || a.Stats().Folds != 4 {
				t.Error(contentsOf(a))
			}
			want := contentsOf(a)
			mustCommit(t, a, NewBatch(at(6)))
			wantContents(t, a, want)
			wantContents(t, reread(t, dir).Archive, want)
		})
	}
}

// FuzzFile edits an archive where its pages are in use, makes its meta pages good again and
// reads it, as one that somebody made by hand. Whatever it says, it must be refused or be
// taken for a whole archive that can be written on.
func FuzzFile(f *testing.F) {
	data, _ := testArchive(f, true)
	f.Add([]byte{})
	f.Add([]byte{3, 0, 1, 3, 9, 9, 1, 30, 0xff})
	f.Add([]byte{2, 16, 0xff, 2, 10, 2})
	f.Fuzz(func(t *testing.T, edits []byte) {
		bad := slices.Clone(data)
		for ; len(edits) >= 3; edits = edits[3:] { // a page, a place in units of 4, what changes
			bad[(int(edits[0])*pageBytes+int(edits[1])*4+int(edits[2]&3))%len(bad)] ^= edits[2]
		}
		for i := range 2 {
			meta := bad[i*pageBytes+pageHeader:]
			h := fnv.New64a()
			h.Write(meta[:metaSummed])
			binary.LittleEndian.PutUint64(meta[metaSummed:], h.Sum64())
		}
		if _, err := load(openBytes(bad), int64(len(bad))); errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
			return // most of them, and no file was needed for it
		}
		file, err := os.Create(archivePath(memoryDir(t)))
		mustDo(t, err)
		_, err = file.Write(bad)
		mustDo(t, err)
		a := New()
		c, err := load(file, int64(len(bad)))
		mustDo(t, err)
		mustDo(t, a.adopt(c))
		db, err := openBolt(file, false)
		mustDo(t, err)
		defer db.Close()
		a.db, a.handle, a.place = db, file, &Place{}
		a.leave()
		mustCommit(t, a, mixed(1))
		info, err := file.Stat()
		mustDo(t, err)
		again := New()
		c, err = load(file, info.Size())
		mustDo(t, err)
		mustDo(t, again.adopt(c))
		mustDo(t, db.View(check))
		wantContents(t, again, contentsOf(a))
	})
}
