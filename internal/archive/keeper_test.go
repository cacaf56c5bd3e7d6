package archive

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// testKeeper returns a Keeper that is closed at the end of the test.
func testKeeper(t *testing.T, opts KeeperOptions) *Keeper {
	t.Helper()
	k := NewKeeper(opts)
	t.Cleanup(func() { mustDo(t, k.Close()) })
	return k
}

func mustBeReady(t *testing.T, o Opened) {
	t.Helper()
	if o.Err != nil || o.State != Ready {
		t.Fatalf("%+v", o)
	}
}

func TestKeeper(t *testing.T) {
	for name, own := range map[string]bool{"hidden": false, "own_directory": true} {
		t.Run(name, func(t *testing.T) {
			opts := KeeperOptions{Watched: filepath.Join(t.TempDir(), "watched")}
			if own {
				opts.Dir = filepath.Join(t.TempDir(), "archives", "web")
			}
			k := testKeeper(t, opts)
			if o := k.Open(at(0), nil); o.State != Closed || o.Err != nil || k.CanWrite(at(0)) {
				t.Errorf("without a directory: %+v", o)
			}
			mustDo(t, os.Mkdir(opts.Watched, 0o700))
			o := k.Open(at(0), nil)
			mustBeReady(t, o)
			if !o.Opened || o.Again || o.Replaced || k.Path() != k.Archive().Path() || !k.CanWrite(at(0)) {
				t.Errorf("%+v, %q", o, k.Path())
			}
			if o := k.Open(at(0), nil); o.Opened || o.State != Ready {
				t.Errorf("again: %+v", o)
			}
			if c := k.Commit(at(0), mixed(1), nil); c != (Committed{}) {
				t.Errorf("%+v", c)
			}
			want := contentsOf(k.Archive())
			if d := k.Tidy(at(0), nil); !d.Ballast || d.Compacted || d.Err != nil {
				t.Errorf("%+v", d)
			}
			if room, err := k.Room(); err != nil || room.FreeBytes <= 0 || room.TotalBytes < room.FreeBytes {
				t.Errorf("%+v, %v", room, err)
			}

			// Somebody empties the directory: for a moment nothing is made there, then all is written anew.
			mustDo(t, os.RemoveAll(filepath.Dir(k.Path())))
			if o := k.Open(at(10), nil); !o.Wiped || o.State != Wiped || k.CanWrite(at(10)) {
				t.Errorf("%+v", o)
			}
			mustDo(t, os.MkdirAll(opts.Watched, 0o700))
			if n := k.Archive().Unsaved(); n != k.Archive().Totals().Series() {
				t.Errorf("%d series are said to be in memory alone", n)
			}
			if o := k.Open(at(10).Add(quietTime/2), nil); o.Opened || o.State != Wiped {
				t.Errorf("too early: %+v", o)
			}
			mustBeReady(t, k.Open(at(10).Add(2*quietTime), nil))
			wantContents(t, k.Archive(), want)
			if c := k.Commit(at(12), NewBatch(at(12)), nil); c.Err != nil {
				t.Errorf("%+v", c)
			}
			v, err := k.Place().Verify()
			mustDo(t, err)
			wantContents(t, v.Archive, want)
		})
	}
}

// TestKeeperWaitsForQuiet: nothing is made in a directory that was emptied and goes on changing, for
// a while.
func TestKeeperWaitsForQuiet(t *testing.T) {
	for _, c := range []struct {
		name string
		// change is what happens each second.
		change func(t *testing.T, dir string)
		opens  time.Duration
	}{
		{"quiet", func(*testing.T, string) {}, quietTime},
		{"changing", func(t *testing.T, dir string) {
			mustDo(t, os.WriteFile(filepath.Join(dir, "counter_1.db"), nil, 0o600))
		}, quietTime + time.Second},
		{"always_changing", func(t *testing.T, dir string) {
			f, err := os.CreateTemp(dir, "counter_*.db")
			mustDo(t, err)
			mustDo(t, f.Close())
		}, wipeMost},
		{"replaced_again_and_again", func(t *testing.T, dir string) {
			mustDo(t, os.Rename(dir, fmt.Sprint(dir, time.Now().UnixNano())))
			mustDo(t, os.Mkdir(dir, 0o700))
		}, 0},
		{"away", func(t *testing.T, dir string) { mustDo(t, os.RemoveAll(dir)) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "watched")
			mustDo(t, os.Mkdir(dir, 0o700))
			k := testKeeper(t, KeeperOptions{Watched: dir})
			mustBeReady(t, k.Open(at(0), nil))
			mustDo(t, os.Remove(k.Path()))
			if o := k.Open(at(0), nil); !o.Wiped {
				t.Fatalf("%+v", o)
			}
			opened := time.Duration(0)
			for s := range 15 {
				time.Sleep(20 * time.Millisecond) // so that the kernel's clock has ticked
				c.change(t, dir)
				now := at(int64(s) + 1)
				o := k.Open(now, nil)
				if _, err := os.Lstat(k.Path()); !o.Opened && err == nil {
					t.Errorf("after %v there is an archive", now.Sub(at(0)))
				}
				if o.Opened {
					opened = now.Sub(at(0))
					break
				}
			}
			if opened != c.opens {
				t.Errorf("it was opened after %v, want %v", opened, c.opens)
			}
			if hurry := k.Hurry(); hurry != (opened == 0) {
				t.Errorf("hurry: %v", hurry)
			}
			if c.name == "replaced_again_and_again" {
				mustBeReady(t, k.Open(at(20), nil)) // who is about to end does not wait
			}
		})
	}
}

// TestKeeperTries: an archive that cannot be opened is tried again, ever more seldom, and what it
// holds is shown meanwhile where it can be read.
func TestKeeperTries(t *testing.T) {
	dir := t.TempDir()
	first := testKeeper(t, KeeperOptions{Watched: dir})
	mustBeReady(t, first.Open(at(0), nil))
	if c := first.Commit(at(0), mixed(1), nil); c.Err != nil {
		t.Fatal(c.Err)
	}
	want := contentsOf(first.Archive())
	path := first.Path()

	k := testKeeper(t, KeeperOptions{Watched: dir})
	o := k.Open(at(0), nil)
	if !Fatal(o.Err) || !errors.Is(o.Err, ErrLocked) || o.State != Waiting || !o.New || !k.Archive().Totals().Empty() || k.Err() == nil {
		t.Errorf("locked: %+v", o)
	}
	mustDo(t, first.Close())

	// With another name of the file it is not safe to write to, but it can be read.
	mustDo(t, os.Link(path, path+".backup"))
	now := at(0)
	var waits []time.Duration
	generation := k.Archive().Generation()
	for range 6 {
		now = k.Due()
		if o := k.Open(now.Add(-1), nil); o.New || o.Err == nil {
			t.Errorf("too early: %+v", o)
		}
		o := k.Open(now, nil)
		if !errors.Is(o.Err, ErrUnsafe) || o.State != ReadOnly || o.ReadErr != nil || o.New != (len(waits) == 0) || o.Replaced != o.New {
			t.Errorf("%d: %+v", len(waits), o)
		}
		wantContents(t, k.Archive(), want)
		waits = append(waits, k.Due().Sub(now))
	}
	if want := []time.Duration{10, 20, 40, 60, 60, 60}; !slices.EqualFunc(waits, want,
		func(a, b time.Duration) bool { return a == b*time.Second }) {
		t.Errorf("it waited %v", waits)
	}
	if k.Archive().Generation() == generation || k.CanWrite(now) {
		t.Error("it does not say that it shows something else")
	}
	mustDo(t, os.Remove(path+".backup"))
	generation = k.Archive().Generation()
	o = k.Open(k.Due(), nil)
	mustBeReady(t, o)
	if !o.Opened || !o.Again || !o.Replaced || k.Archive().Generation() == generation || k.Err() != nil || !k.Due().IsZero() {
		t.Errorf("%+v", o)
	}
	wantContents(t, k.Archive(), want)
}

// TestKeeperSetsAside: what is damaged is kept under another name, also when that is found while
// it is open; then memory has it all.
func TestKeeperSetsAside(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, ".aggregatord.archive")
	writeFile(t, path, "garbage")
	k := testKeeper(t, KeeperOptions{Watched: dir})
	o := k.Open(at(0), nil)
	mustBeReady(t, o)
	if !errors.Is(o.Damage, ErrDamaged) || o.SetAside != path+".damaged-20231114T221320Z" {
		t.Errorf("%+v", o)
	}
	if c := k.Commit(at(0), mixed(1), nil); c.Err != nil {
		t.Fatal(c.Err)
	}
	want := contentsOf(k.Archive())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	mustDo(t, err)
	_, err = f.WriteAt(make([]byte, 10*pageBytes), 2*pageBytes)
	mustDo(t, errors.Join(err, f.Close()))
	c := k.Commit(at(1), mixed(2), nil)
	if !errors.Is(c.Err, ErrDamaged) || !c.New || c.Full || k.CanWrite(at(1)) {
		t.Errorf("%+v", c)
	}
	o = k.Open(at(1), nil)
	mustBeReady(t, o)
	if !errors.Is(o.Damage, ErrDamaged) || o.SetAside == "" {
		t.Errorf("%+v", o)
	}
	wantContents(t, k.Archive(), want)
	if c := k.Commit(at(2), mixed(2), nil); c.Err != nil {
		t.Errorf("%+v", c)
	}
}

// TestKeeperTakesOver: what an earlier version left is taken over at the first opening.
func TestKeeperTakesOver(t *testing.T) {
	dir, want := formerDir(t)
	k := testKeeper(t, KeeperOptions{Watched: dir})
	o := k.Open(at(0), nil)
	mustBeReady(t, o)
	if !o.TakenOver.Archive || !o.TakenOver.Left {
		t.Errorf("%+v", o)
	}
	wantContents(t, k.Archive(), want)
}

// TestKeeperCompacts: a file that is much larger than what it holds is written anew.
func TestKeeperCompacts(t *testing.T) {
	dir := t.TempDir()
	k := testKeeper(t, KeeperOptions{Watched: dir, SpareBytes: 1 << 16})
	mustBeReady(t, k.Open(at(0), nil))
	b := NewBatch(at(0))
	for i := range 3000 {
		fold(b, counters, fmt.Sprint("file-", i), nil, entry{"k", 1, 0}, entry{"l", 0.3, 0})
	}
	if c := k.Commit(at(0), b, nil); c.Err != nil {
		t.Fatal(c.Err)
	}
	for _, name := range k.Archive().Records() {
		k.Archive().Forget(name)
	}
	if d := k.Tidy(at(1), nil); d.Compacted || d.Err != nil {
		t.Errorf("something is pending: %+v", d)
	}
	if c := k.Commit(at(1), NewBatch(at(1)), nil); c.Err != nil {
		t.Fatal(c.Err)
	}
	v, err := k.Place().Hold()
	mustDo(t, err)
	if d := k.Tidy(at(1), nil); d.Compacted {
		t.Errorf("somebody reads: %+v", d)
	}
	v.Release()
	d := k.Tidy(at(1), nil)
	if !d.Compacted || d.After >= d.Before || d.Err != nil {
		t.Errorf("%+v", d)
	}
	if d := k.Tidy(at(2), nil); d.Compacted {
		t.Errorf("again: %+v", d)
	}
}

// TestKeeperHolds: nothing is written while a reader asks for that.
func TestKeeperHolds(t *testing.T) {
	k := testKeeper(t, KeeperOptions{Watched: t.TempDir()})
	mustBeReady(t, k.Open(at(0), nil))
	v, err := k.Place().Hold()
	mustDo(t, err)
	if k.CanWrite(at(0)) || !k.CanWrite(at(0).Add(MaxHold)) {
		t.Error("a reader is not heard, or for ever")
	}
	v.Release()
	if !k.CanWrite(at(0)) {
		t.Error("there is no reader any more")
	}
}
