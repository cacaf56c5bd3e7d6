package store

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/deltas"
)

func TestOpenRefuses(t *testing.T) {
	good := wide().add(k1, 1, now).honest()
	for _, test := range []struct {
		name   string
		make   func(path string) error
		reason Reason
		is     error
	}{
		{"missing", func(string) error { return nil }, Gone, os.ErrNotExist},
		{"directory", func(path string) error { return os.Mkdir(path, 0o777) }, NotRegular, ErrNotRegular},
		{"fifo", func(path string) error { return unix.Mkfifo(path, 0o666) }, NotRegular, ErrNotRegular},
		{"symlink", func(path string) error {
			return errors.Join(os.WriteFile(path+".target", good, 0o666), os.Symlink(path+".target", path))
		}, NotRegular, ErrNotRegular},
		{"symlink_dangling", func(path string) error { return os.Symlink("nowhere", path) }, NotRegular, ErrNotRegular},
		{"symlink_to_itself", func(path string) error { return os.Symlink(path, path) }, NotRegular, ErrNotRegular},
		{"symlink_to_device", func(path string) error { return os.Symlink("/dev/null", path) }, NotRegular, ErrNotRegular},
		{"socket", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err != nil {
				return err
			}
			l.SetUnlinkOnClose(false)
			return l.Close()
		}, NotRegular, ErrNotRegular},
		{"too_large", func(path string) error {
			return errors.Join(os.WriteFile(path, good, 0o666), os.Truncate(path, 1<<20+1))
		}, TooLarge, ErrTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			// A socket's path must be short, so not t.TempDir with the name of the test in it.
			dir, err := os.MkdirTemp("", "store")
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path := filepath.Join(dir, "counter_1.db")
			if err := test.make(path); err != nil {
				t.Fatal(err)
			}
			before := descriptors(t)
			f, err := Open(path, SourceName{}, Limits{FileBytes: 1 << 20})
			if f != nil || !errors.Is(err, test.is) || ReasonOf(err) != test.reason || !strings.Contains(err.Error(), path) {
				t.Errorf("Open: %v, want reason %s", err, test.reason)
			}
			if _, err := Inspect(path, Limits{FileBytes: 1 << 20}); !errors.Is(err, test.is) || ReasonOf(err) != test.reason {
				t.Errorf("Inspect: %v, want reason %s", err, test.reason)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d were", after, before)
			}
		})
	}
}

// descriptors counts this process's open files.
func descriptors(t *testing.T) int {
	t.Helper()
	for _, dir := range []string{"/proc/self/fd", "/dev/fd"} {
		if entries, err := os.ReadDir(dir); err == nil {
			return len(entries)
		}
	}
	return 0
}

func TestOpen(t *testing.T) {
	before := descriptors(t)
	start := time.Now()
	path := write(t, wide().add(k1, 1, now).honest())
	name, err := ParseName("counter_1.db")
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(path, name, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if want := (Identity{uint64(st.Dev), st.Ino}); f.Identity() != want { //nolint:unconvert // Dev is an int32 on macOS
		t.Errorf("identity %v, want %v", f.Identity(), want)
	}
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != f.Identity().Ino {
		t.Errorf("the descriptor is not the file's: %v", err)
	}
	// Time stamps of files are as coarse as the kernel's tick.
	if c := f.Created(); c.Before(start.Add(-time.Second)) || c.After(time.Now().Add(time.Second)) {
		t.Errorf("created %v, now it is %v", c, time.Now())
	}
	if f.Name() != name || f.Path() != path || f.Size() != 4096 || f.UsedBytes() != 0 || f.Mapped() || f.Width() != 0 {
		t.Errorf("%+v", f)
	}
	records, err := learn(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Load(slotsOf(records), make([]float64, 1)); err != nil {
		t.Fatal(err)
	}
	if f.UsedBytes() != 72 || !f.Mapped() {
		t.Errorf("%d used bytes, mapped: %v", f.UsedBytes(), f.Mapped())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"Close": f.Close(),
		"Learn": f.Learn(func(Entry) { t.Error("yielded after Close") }),
		"Load":  f.Load(slotsOf(records), make([]float64, 1)),
	} {
		if !errors.Is(err, os.ErrClosed) {
			t.Errorf("%s after Close: %v", what, err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

// bigImage has n entries of values 0, 1, 2, …, and timestamps 1000 above them.
func bigImage(width, n int) *image {
	m := &image{width: width}
	for i := range n {
		m.add(fmt.Sprintf(`["http_request_duration_seconds", "http_request_duration_seconds_bucket", {"handler": "/api/%d", "le": "0.25", "method": "GET"}, "Seconds."]`, i), float64(i), 1000+float64(i))
	}
	return m
}

// TestLoad reads the values of a file of many windows in every way there is.
func TestLoad(t *testing.T) {
	const n = 3000
	for _, width := range []int{Narrow, Wide} {
		for _, how := range []string{"mapped", "settled", "refused", "settled_later"} {
			t.Run(fmt.Sprintf("width=%d/%s", width, how), func(t *testing.T) {
				f := open(t, write(t, bigImage(width, n).honest()))
				switch how {
				case "settled":
					if err := f.SetSettled(true); err != nil {
						t.Fatal(err)
					}
				case "refused":
					f.mapping.refused = 1000 // as after ENOMEM
				}
				records, err := learn(f)
				if err != nil || len(records) != n {
					t.Fatalf("%d entries, %v", len(records), err)
				}
				slots := slotsOf(records)
				values, stamps := make([]float64, n+1), make([]float64, n+1)
				check := func(step int) {
					t.Helper()
					for i := range slots.Len() {
						stamp := 0.0
						if width == Wide {
							stamp = 1000 + float64(i*step)
						}
						if values[i] != float64(i*step) || stamps[i] != stamp {
							t.Fatalf("entry %d: %v at %v", i, values[i], stamps[i])
						}
					}
				}
				fill := func() {
					for i := range values {
						values[i], stamps[i] = -1, -1
					}
				}
				fill()
				if err := f.LoadStamped(slots, values, stamps); err != nil {
					t.Fatal(err)
				}
				check(1)
				if values[n] != -1 || stamps[n] != -1 {
					t.Error("written past the slots")
				}
				if how == "settled_later" {
					if err := f.SetSettled(true); err != nil {
						t.Fatal(err)
					}
				}
				fill()
				if err := f.Load(slots, values); err != nil {
					t.Fatal(err)
				}
				for i := range slots.Len() {
					if values[i] != float64(i) {
						t.Fatalf("entry %d: %v", i, values[i])
					}
				}
				some := deltas.Of(records[1].Slot, records[n-1].Slot)
				if err := f.Load(some, values); err != nil || values[0] != 1 || values[1] != n-1 {
					t.Errorf("some: %v, %v, %v", values[0], values[1], err)
				}
				if err := f.Load(deltas.Of(), nil); err != nil {
					t.Errorf("no slots: %v", err)
				}
				if want := how == "mapped"; f.Mapped() != want {
					t.Errorf("mapped: %v, want %v", f.Mapped(), want)
				}
			})
		}
	}
}

// TestLoadMapsAgain checks that a file which could not be mapped is tried again later.
func TestLoadMapsAgain(t *testing.T) {
	f := open(t, write(t, wide().add(k1, 1, now).honest()))
	records, err := learn(f)
	if err != nil {
		t.Fatal(err)
	}
	f.mapping.refused = 2
	for i, want := range []bool{false, false, true} {
		values := make([]float64, 1)
		if err := f.Load(slotsOf(records), values); err != nil || values[0] != 1 || f.Mapped() != want {
			t.Errorf("load %d: %v, %v, mapped %v", i, values, err, f.Mapped())
		}
	}
}

// TestGrowth follows a file that doubles several times while it is open.
func TestGrowth(t *testing.T) {
	for _, width := range []int{Narrow, Wide} {
		path := filepath.Join(t.TempDir(), "counter_1.db")
		w, err := OpenWriter(path, WriterOptions{Width: width, FirstBytes: 64})
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, path)
		slots := &deltas.List{}
		values := make([]float64, 1000)
		for i := range 1000 {
			slot, err := w.Slot(fmt.Appendf(nil, `["f", "f_total", {"a": "%d"}, ""]`, i))
			if err != nil {
				t.Fatal(err)
			}
			w.Add(slot, float64(i))
			if i%7 != 0 {
				continue
			}
			records, err := learn(f)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range records {
				slots.Append(r.Slot)
			}
			if slots.Len() != i+1 {
				t.Fatalf("%d entries known after %d", slots.Len(), i+1)
			}
			if err := f.Load(slots, values); err != nil {
				t.Fatal(err)
			}
			for j := range slots.Len() {
				if values[j] != float64(j) {
					t.Fatalf("after %d entries, entry %d is %v", i+1, j, values[j])
				}
			}
		}
		if !f.Mapped() || f.Size() < f.UsedBytes() {
			t.Errorf("mapped: %v, size %d, used %d", f.Mapped(), f.Size(), f.UsedBytes())
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// loaded opens a file of 3000 entries, learns and maps it.
func loaded(t *testing.T) (f *File, path string, slots *deltas.List, values []float64) {
	t.Helper()
	path = write(t, bigImage(Wide, 3000).honest())
	f = open(t, path)
	records, err := learn(f)
	if err != nil {
		t.Fatal(err)
	}
	slots, values = slotsOf(records), make([]float64, len(records))
	if err := f.Load(slots, values); err != nil {
		t.Fatal(err)
	}
	if !f.Mapped() {
		t.Fatal("not mapped")
	}
	return f, path, slots, values
}

// wantLost checks the error of a File that has lost its place, and that it is its last word.
func wantLost(t *testing.T, f *File, err error, reason Reason) {
	t.Helper()
	if ReasonOf(err) != reason || !strings.Contains(err.Error(), f.Path()) {
		t.Fatalf("got %v, want reason %s", err, reason)
	}
	if again := f.Learn(func(Entry) { t.Error("yielded an entry") }); !errors.Is(again, err) {
		t.Errorf("then Learn says %v", again)
	}
	if again := f.Load(deltas.Of(7), make([]float64, 1)); !errors.Is(again, err) {
		t.Errorf("then Load says %v", again)
	}
}

func TestTruncatedBetweenCalls(t *testing.T) {
	for _, size := range []int64{0, 4, 8, 4096, 400_000} {
		t.Run(fmt.Sprintf("load/size=%d", size), func(t *testing.T) {
			f, path, slots, values := loaded(t)
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
			before := slices.Clone(values)
			wantLost(t, f, f.Load(slots, values), Shrunk)
			if !slices.Equal(values, before) {
				t.Error("values changed")
			}
		})
	}
	t.Run("settled", func(t *testing.T) {
		f, path, slots, values := loaded(t)
		if err := errors.Join(f.SetSettled(true), os.Truncate(path, 4096)); err != nil {
			t.Fatal(err)
		}
		wantLost(t, f, f.Load(slots, values), Shrunk)
	})
	for _, size := range []int64{0, 4} {
		t.Run(fmt.Sprintf("learn_by_read/size=%d", size), func(t *testing.T) {
			f, path, _, _ := loaded(t)
			if err := errors.Join(f.SetSettled(true), os.Truncate(path, size)); err != nil {
				t.Fatal(err)
			}
			wantLost(t, f, f.Learn(func(Entry) {}), Shrunk)
		})
	}
}

// TestTruncatedWhileMapped takes real SIGBUS signals.
func TestTruncatedWhileMapped(t *testing.T) {
	t.Run("learn", func(t *testing.T) {
		f, path, _, _ := loaded(t)
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		err := f.Learn(func(Entry) { t.Error("yielded an entry") })
		if _, ok := errors.AsType[runtime.Error](err); !ok {
			t.Errorf("no fault: %v", err)
		}
		wantLost(t, f, err, Shrunk)
	})
	const kept = 64 << 10 // a page boundary on every machine
	for _, stamped := range []bool{false, true} {
		t.Run(fmt.Sprint("load/stamped=", stamped), func(t *testing.T) {
			f, path, slots, values := loaded(t)
			if err := os.Truncate(path, kept); err != nil {
				t.Fatal(err)
			}
			before := slices.Clone(values)
			var err error
			if stamped {
				err = f.LoadStamped(slots, values, make([]float64, len(values)))
			} else {
				err = f.Load(slots, values)
			}
			var damaged *CorruptionError
			if _, ok := errors.AsType[runtime.Error](err); !ok || !errors.As(err, &damaged) || damaged.Offset < kept ||
				damaged.Offset > kept+300 {
				t.Fatalf("no fault: %v", err)
			}
			wantLost(t, f, err, Shrunk)
			if !slices.Equal(values, before) {
				t.Error("values changed")
			}
			if debug.SetPanicOnFault(false) {
				t.Error("SetPanicOnFault was left on")
			}
		})
	}
	t.Run("race", func(t *testing.T) {
		for i := range 20 {
			f, path, slots, values := loaded(t)
			done := make(chan error)
			go func() {
				time.Sleep(time.Duration(i) * 20 * time.Microsecond)
				done <- os.Truncate(path, 4096)
			}()
			var err error
			for err == nil {
				err = f.Load(slots, values)
				for i := range values {
					if values[i] != float64(i) {
						t.Fatalf("entry %d is %v", i, values[i])
					}
				}
			}
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			wantLost(t, f, err, Shrunk)
		}
	})
}

// TestOtherPanicsGoOn checks that only a fault in the mapping is caught.
func TestOtherPanicsGoOn(t *testing.T) {
	for _, before := range []bool{false, true} {
		for _, settled := range []bool{false, true} {
			f, _, _, values := loaded(t)
			if err := f.SetSettled(settled); err != nil {
				t.Fatal(err)
			}
			func() {
				defer debug.SetPanicOnFault(debug.SetPanicOnFault(before))
				defer func() {
					if recover() == nil {
						t.Error("a slot past the end was loaded")
					}
					if debug.SetPanicOnFault(before) != before {
						t.Error("SetPanicOnFault was not restored")
					}
				}()
				err := f.Load(deltas.Of(1<<28), values)
				t.Error(err)
			}()
		}
	}
}

func TestUsedShrank(t *testing.T) {
	image := wide().add(k1, 1, now).add(k2, 2, now)
	for _, used := range []int32{0, 8, 72} {
		for _, mapped := range []bool{false, true} {
			path := write(t, image.honest())
			f := open(t, path)
			records, err := learn(f)
			if err != nil {
				t.Fatal(err)
			}
			values := make([]float64, 2)
			if mapped {
				if err := f.Load(slotsOf(records), values); err != nil {
					t.Fatal(err)
				}
			}
			overwrite(t, path, length(used), 0)
			wantLost(t, f, f.Learn(func(Entry) { t.Error("yielded an entry") }), UsedShrunk)
		}
	}
}

// overwrite writes into a file in place.
func overwrite(t *testing.T, path string, b []byte, off int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = file.WriteAt(b, off)
	if err := errors.Join(err, file.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestHeaderDamagedLater checks that a header gone bad takes nothing back, and that the
// file is read on when it is good again.
func TestHeaderDamagedLater(t *testing.T) {
	for _, used := range []int32{-1, 75, 1 << 20} {
		path := write(t, wide().add(k1, 1, now).honest())
		f := open(t, path)
		records, err := learn(f)
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, path, length(used), 0)
		if err := f.Learn(func(Entry) { t.Error("yielded an entry") }); err == nil {
			t.Errorf("used bytes %d: %v", used, err)
		}
		values := make([]float64, 1)
		if err := f.Load(slotsOf(records), values); err != nil || values[0] != 1 {
			t.Errorf("used bytes %d: %v, %v", used, values, err)
		}
		overwrite(t, path, wide().add(k1, 1, now).add(k2, 2, now).honest(), 0)
		if more, err := learn(f); err != nil || len(more) != 1 || more[0].Key != k2 {
			t.Errorf("used bytes %d: %v, %v", used, more, err)
		}
	}
}

func TestGrownPastLimit(t *testing.T) {
	path := write(t, wide().add(k1, 1, now).honest())
	f, err := Open(path, SourceName{}, Limits{FileBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	records, err := learn(f)
	if err != nil {
		t.Fatal(err)
	}
	overwrite(t, path, wide().add(k1, 5, now).add(k2, 2, now).file(136, 8192), 0)
	if err := f.Learn(func(Entry) { t.Error("yielded an entry") }); !errors.Is(err, ErrTooLarge) || ReasonOf(err) != TooLarge {
		t.Errorf("Learn: %v", err)
	}
	values := make([]float64, 1)
	if err := f.Load(slotsOf(records), values); err != nil || values[0] != 5 {
		t.Errorf("Load: %v, %v", values, err)
	}
}

// TestFreshFile follows a file through the moments of its creation.
func TestFreshFile(t *testing.T) {
	path := write(t, nil)
	f := open(t, path)
	image := wide().add(k1, 1, now).honest()
	for _, step := range []func() error{
		func() error { return nil },
		func() error { return os.Truncate(path, 64<<10) },
		func() error { overwrite(t, path, length(8), 0); return nil },
		func() error { overwrite(t, path, image[8:72], 8); return nil },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		if got, err := learn(f); len(got) > 0 || err != nil {
			t.Fatalf("%v, %v", got, err)
		}
	}
	overwrite(t, path, length(72), 0)
	if got, err := learn(f); len(got) != 1 || err != nil {
		t.Fatalf("%v, %v", got, err)
	}
}

// TestHolesStay checks that no byte past the used ones is touched: on tmpfs, reading a
// hole through a mapping allocates memory.
func TestHolesStay(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "store")
	if err != nil {
		t.Skip("no tmpfs at /dev/shm:", err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "counter_1.db")
	image := bigImage(Wide, 3)
	if err := errors.Join(os.WriteFile(path, image.honest()[:image.used()], 0o666), os.Truncate(path, 1<<20)); err != nil {
		t.Fatal(err)
	}
	blocks := func() int64 {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks
	}
	before := blocks()
	f := open(t, path)
	records, err := learn(f)
	if err != nil {
		t.Fatal(err)
	}
	values, stamps := make([]float64, 3), make([]float64, 3)
	if err := errors.Join(f.Load(slotsOf(records), values), f.LoadStamped(slotsOf(records), values, stamps),
		f.Learn(func(Entry) {})); err != nil {
		t.Fatal(err)
	}
	inspect(t, path)
	if !f.Mapped() {
		t.Fatal("not mapped")
	}
	if after := blocks(); after != before {
		t.Errorf("%d blocks, %d before it was read", after, before)
	}
	// What it would look like.
	if f.mapping.mem[1<<19] != 0 || blocks() == before {
		t.Log("this kernel allocates nothing for a hole that is read")
	}
}

func TestHotPathAllocatesNothing(t *testing.T) {
	f, _, slots, values := loaded(t)
	stamps := make([]float64, slots.Len())
	yield := func(Entry) { t.Error("yielded an entry") }
	for name, fn := range map[string]func() error{
		"Load":        func() error { return f.Load(slots, values) },
		"LoadStamped": func() error { return f.LoadStamped(slots, values, stamps) },
		"Learn":       func() error { return f.Learn(yield) },
	} {
		n := testing.AllocsPerRun(50, func() {
			if err := fn(); err != nil {
				t.Fatal(err)
			}
		})
		if n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

// TestLearnAllocations checks that memory does not grow with the number of entries.
func TestLearnAllocations(t *testing.T) {
	path := write(t, bigImage(Wide, 3000).honest())
	entries := 0
	n := testing.AllocsPerRun(10, func() {
		f, err := Open(path, SourceName{}, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Learn(func(Entry) { entries++ }), f.Close()); err != nil {
			t.Fatal(err)
		}
	})
	if entries != 11*3000 || n > 20 {
		t.Errorf("%v allocations for %d entries", n, entries/11)
	}
}

// TestReadWhileWritten has a writer at work all the time. The race detector does not see
// memory shared through mappings, so the values themselves tell: counters never fall, a
// value that alternates between two patterns of bits is one of them, and a timestamp is
// that of its value or the one before.
func TestReadWhileWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "gauge_mostrecent_1.db")
	w, err := OpenWriter(path, WriterOptions{FirstBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	const entries = 2000
	ones := math.Float64frombits(0x7fef_ffff_ffff_ffff)
	stop, done := make(chan struct{}), make(chan error, 1)
	// The writer ends when the reader has seen enough.
	go func() {
		done <- func() error {
			pattern, err := w.Slot([]byte(`["pattern", "pattern", {}, ""]`))
			if err != nil {
				return err
			}
			pair, err := w.Slot([]byte(`["pair", "pair", {}, ""]`))
			if err != nil {
				return err
			}
			for i := 0; ; i++ {
				select {
				case <-stop:
					return nil
				default:
				}
				slot, err := w.Slot(fmt.Appendf(nil, `["f", "f_total", {"a": "%d"}, ""]`, i%entries))
				if err != nil {
					return err
				}
				w.Add(slot, 1)
				w.Set(pattern, []float64{0, ones}[i%2], 0)
				w.Set(pair, float64(i), float64(i))
			}
		}()
	}()
	f := open(t, path)
	slots := &deltas.List{}
	values, stamps, last := make([]float64, entries+2), make([]float64, entries+2), make([]float64, entries+2)
	deadline := time.Now().Add(10 * time.Second)
	for rounds := 0; slots.Len() < entries+2 || rounds < 200; rounds++ {
		if time.Now().After(deadline) {
			t.Errorf("%d entries seen in time", slots.Len())
			break
		}
		records, err := learn(f)
		if err != nil {
			t.Error(err)
			break
		}
		for _, r := range records {
			want := fmt.Sprintf(`["f", "f_total", {"a": "%d"}, ""]`, slots.Len()-2)
			if slots.Len() >= 2 && r.Key != want {
				t.Fatalf("entry %d is %s", slots.Len(), r.Key)
			}
			slots.Append(r.Slot)
		}
		if err := f.LoadStamped(slots, values, stamps); err != nil {
			t.Error(err)
			break
		}
		for i := range slots.Len() {
			switch {
			case i == 0 && values[0] != 0 && values[0] != ones:
				t.Errorf("a torn value: %#x", math.Float64bits(values[0]))
			case i == 1 && stamps[1] != values[1] && stamps[1] != values[1]-1:
				t.Errorf("value %v with timestamp %v", values[1], stamps[1])
			case i > 0 && values[i] < last[i]:
				t.Errorf("entry %d fell from %v to %v", i, last[i], values[i])
			}
		}
		copy(last, values)
	}
	close(stop)
	if err := errors.Join(<-done, w.Close()); err != nil {
		t.Error(err)
	}
}

func TestReasonOf(t *testing.T) {
	for want, err := range map[Reason]error{
		"":          nil,
		IO:          errors.New("anything"),
		Gone:        fmt.Errorf("x: %w", unix.ENOENT),
		Permission:  fmt.Errorf("x: %w", unix.EACCES),
		NotRegular:  fmt.Errorf("x: %w: %w", ErrNotRegular, unix.ELOOP),
		TooLarge:    fmt.Errorf("x: %w", ErrTooLarge),
		UnknownMode: fmt.Errorf("x: %w", ErrUnknownMode),
		Foreign:     ErrForeign,
		BadKey:      &KeyError{},
		TornEntry:   fmt.Errorf("x: %w", &CorruptionError{Reason: TornEntry, Err: os.ErrNotExist}),
	} {
		if got := ReasonOf(err); got != want {
			t.Errorf("ReasonOf(%v) = %q, want %q", err, got, want)
		}
		if want != "" && !slices.Contains(Reasons(), want) {
			t.Errorf("%s is not in the list of reasons", want)
		}
	}
	for _, test := range damagedFiles {
		if !slices.Contains(Reasons(), test.reason) {
			t.Errorf("%s is not in the list of reasons", test.reason)
		}
	}
}

// failingReader fails as a disk does.
type failingReader struct {
	r   *bytes.Reader
	bad int64
}

var errDisk = errors.New("disk on fire")

func (r failingReader) ReadAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > r.bad {
		return 0, errDisk
	}
	return r.r.ReadAt(b, off)
}

func TestDiskError(t *testing.T) {
	b := bigImage(Wide, 3000).honest()
	for _, bad := range []int64{0, 4096, 200_000} {
		in, err := inspectBytes("x", failingReader{bytes.NewReader(b), bad}, int64(len(b)), Limits{}.withDefaults())
		if !errors.Is(err, errDisk) || ReasonOf(err) != IO || in.Damage != nil {
			t.Errorf("bad from %d on: %v, damage %v", bad, err, in.Damage)
		}
		for i, e := range in.Entries {
			if e.Value != float64(i) {
				t.Fatalf("entry %d is %v", i, e.Value)
			}
		}
	}
}

// BenchmarkLearn opens, reads and closes: what a file costs at a start. 50 entries are
// those of a dead worker in a real directory.
func BenchmarkLearn(b *testing.B) {
	for _, n := range []int{50, 20000} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			image := bigImage(Wide, n)
			path := write(b, image.honest())
			b.ReportAllocs()
			b.SetBytes(int64(image.used()))
			for b.Loop() {
				f, err := Open(path, SourceName{}, Limits{})
				if err != nil {
					b.Fatal(err)
				}
				entries := 0
				err = f.Learn(func(Entry) { entries++ })
				if err := errors.Join(err, f.Close()); err != nil || entries != n {
					b.Fatal(entries, err)
				}
			}
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, n := range []int{50, 1000, 20000} {
		for _, how := range []string{"mapped", "stamped", "settled"} {
			b.Run(fmt.Sprintf("entries=%d/how=%s", n, how), func(b *testing.B) {
				f := open(b, write(b, bigImage(Wide, n).honest()))
				records, err := learn(f)
				if err != nil {
					b.Fatal(err)
				}
				if err := f.SetSettled(how == "settled"); err != nil {
					b.Fatal(err)
				}
				slots, values, stamps := slotsOf(records), make([]float64, n), make([]float64, n)
				b.ReportAllocs()
				for b.Loop() {
					if how == "stamped" {
						err = f.LoadStamped(slots, values, stamps)
					} else {
						err = f.Load(slots, values)
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// TestPrefetch: what was read ahead is as good as what Learn reads itself, whatever has
// become of the file in between.
func TestPrefetch(t *testing.T) {
	long := wide()
	for i := range 400 {
		long.add(testKey(30+i%40), float64(i), now)
	}
	for _, test := range []struct {
		name   string
		image  *image
		change func(path string)
		reason Reason
	}{
		{"unchanged", wide().add(k1, 1, now).add(k2, 2, now), nil, ""},
		{"longer_than_was_read", long, nil, ""},
		{"empty", nil, nil, ""},
		{"more_entries", wide().add(k1, 1, now), func(path string) {
			overwrite(t, path, wide().add(k1, 1, now).add(k2, 2, now).honest(), 0)
		}, ""},
		{"grown", wide().add(testKey(30), 0, now), func(path string) {
			overwrite(t, path, long.file(int32(long.used()), 1<<17), 0)
		}, ""},
		{"cut", long, func(path string) {
			if err := os.Truncate(path, 64); err != nil {
				t.Fatal(err)
			}
		}, UsedPastEnd},
		{"cut_behind_what_was_read", long, func(path string) {
			if err := os.Truncate(path, firstBytes+8); err != nil {
				t.Fatal(err)
			}
		}, UsedPastEnd},
	} {
		t.Run(test.name, func(t *testing.T) {
			var bytes []byte
			if test.image != nil {
				bytes = test.image.honest()
			}
			path := write(t, bytes)
			f := open(t, path)
			want, err := learn(open(t, path))
			if err != nil {
				t.Fatal(err)
			}
			f.Prefetch()
			f.Prefetch() // once is enough
			if test.change != nil {
				test.change(path)
			}
			got, err := learn(f)
			if test.reason != "" {
				if ReasonOf(err) != test.reason {
					t.Errorf("%d entries and %v, want %v", len(got), err, test.reason)
				}
				return
			}
			if err != nil || !slices.Equal(got, want) {
				t.Fatalf("%d entries and %v, want %d", len(got), err, len(want))
			}
			// Nothing that came meanwhile is missed.
			more, err := learn(f)
			all, allErr := learn(open(t, path))
			if err != nil || allErr != nil || len(got)+len(more) != len(all) {
				t.Errorf("then %d entries of %d, %v, %v", len(got)+len(more), len(all), err, allErr)
			}
		})
	}
}

// TestComplete: a file that nobody writes to is asked for new entries by the read of its
// values.
func TestComplete(t *testing.T) {
	path := write(t, wide().add(k1, 1, now).add(k2, 2, now).honest())
	f := open(t, path)
	if f.Complete() {
		t.Error("complete while somebody may write")
	}
	if err := f.SetSettled(true); err != nil {
		t.Fatal(err)
	}
	records, err := learn(f)
	if err != nil || !f.Complete() {
		t.Fatalf("%v, complete is %v", err, f.Complete())
	}
	slots, values := deltas.Of(records[0].Slot, records[1].Slot), make([]float64, 2)
	if err := f.Load(slots, values); err != nil || !f.Complete() {
		t.Fatalf("%v, complete is %v", err, f.Complete())
	}
	overwrite(t, path, wide().add(k1, 5, now).add(k2, 6, now).add(k3, 7, now).honest(), 0)
	if err := f.Load(slots, values); err != nil || f.Complete() || values[1] != 6 {
		t.Fatalf("%v, complete is %v, values %v", err, f.Complete(), values)
	}
	if records, err = learn(f); err != nil || len(records) != 1 || !f.Complete() {
		t.Errorf("%v, %v, complete is %v", records, err, f.Complete())
	}
	overwrite(t, path, wide().add(k1, 5, now).honest(), 0)
	if err := f.Load(slots, values); ReasonOf(err) != UsedShrunk {
		t.Errorf("fewer used bytes: %v", err)
	}
}
