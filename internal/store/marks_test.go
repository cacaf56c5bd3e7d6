package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"aggregatord/internal/deltas"
)

// twoWriters opens one file twice, each with its own idea of where it ends.
func twoWriters(t *testing.T, width int) (path string, a, b *Writer) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "counter_7.db")
	for _, w := range []**Writer{&a, &b} {
		var err error
		if *w, err = OpenWriter(path, WriterOptions{Width: width}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := (*w).Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return path, a, b
}

func count(t *testing.T, w *Writer, key string, n float64) {
	t.Helper()
	slot, err := w.Slot([]byte(key))
	if err != nil {
		t.Fatal(err)
	}
	w.Add(slot, n)
}

// TestTwoProcessesOneFile has two processes overwrite each other's entries in random order,
// with keys of random length. Whatever is loaded is what one of them has counted, and once
// the file is lost its values stay.
func TestTwoProcessesOneFile(t *testing.T) {
	for _, width := range []int{Narrow, Wide} {
		for _, settled := range []bool{false, true} {
			lost := map[Reason]int{}
			for seed := range uint64(100) {
				t.Run(fmt.Sprintf("width=%d/settled=%v/seed=%d", width, settled, seed), func(t *testing.T) {
					r := rand.New(rand.NewPCG(seed, 1))
					path, a, b := twoWriters(t, width)
					f := open(t, path)
					if err := f.SetSettled(settled); err != nil {
						t.Fatal(err)
					}
					slots := &deltas.List{}
					var values []float64
					for step := range 24 {
						w, key := a, fmt.Sprintf(`["http", "http", {"m": "%0*d"}, "Requests, seen in all."]`, 1+r.IntN(30), step)
						if r.IntN(2) == 0 {
							w, key = b, fmt.Sprintf(`["celery_tasks", "celery_tasks_total", {"name": "%0*d"}, "Tasks."]`, 1+r.IntN(30),
								step)
						}
						for range 1 + r.IntN(3) {
							count(t, w, key, 1)
						}
						if r.IntN(3) > 0 {
							continue
						}
						err := f.Learn(func(e Entry) { slots.Append(e.Slot) })
						if err == nil {
							values = append(values, make([]float64, slots.Len()-len(values))...)
							before := slices.Clone(values)
							if err = f.Load(slots, values); err != nil && !slices.Equal(values, before) {
								t.Fatalf("seed %d: a load that failed changed values", seed)
							}
						}
						for _, v := range values {
							if v != float64(int(v)) || v < 0 || v > 3 {
								t.Fatalf("seed %d, width %d, settled %v: %v was counted by nobody", seed, width, settled, v)
							}
						}
						if err != nil {
							lost[ReasonOf(err)]++
							break
						}
					}
				})
			}
			if lost[Overwritten] == 0 || lost[Overwritten]+lost[UsedShrunk] < 20 {
				t.Errorf("width %d: the test does not test what it should: %v", width, lost)
			}
		}
	}
}

// TestOverwritten shows which check finds which damage.
func TestOverwritten(t *testing.T) {
	same := func(c string) string { return `["f", "f_total", {"a": "` + c + `"}, "Help."]` }
	long := func() *image {
		m := wide()
		for i := range 3000 {
			m.add(same(fmt.Sprintf("%04d", i)), float64(i), now)
		}
		return m
	}
	size := len(wide().add(same("0000"), 0, 0).entries)
	for _, test := range []struct {
		name   string
		change func(image []byte) []byte
		// load says that the next load finds it, otherwise a later one does.
		load   bool
		reason Reason
	}{
		{"text_over_a_value", func(b []byte) []byte {
			copy(b[headerBytes+5*size+20:], `tasks.send_mail_to_customer", "state": "SUCCESS"}]`)
			return b
		}, true, Overwritten},
		{"in_the_last_block", func(b []byte) []byte {
			copy(b[headerBytes+2990*size+20:], `tasks.send_mail_to_customer", "state": "SUCCESS"}]`)
			return b
		}, true, Overwritten},
		{"another_key_of_the_same_length", func(b []byte) []byte {
			copy(b[headerBytes+1500*size:], wide().add(same("zzzz"), 77, now).entries)
			return b
		}, false, Overwritten},
		{"zeros", func(b []byte) []byte { clear(b[headerBytes+7*size:][:size]); return b }, true, Overwritten},
		{"cut_in_a_page", func(b []byte) []byte { return b[:headerBytes+7*size] }, true, Shrunk},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, verify := range []bool{false, true} {
				path := write(t, long().honest())
				f := open(t, path)
				records, err := learn(f)
				if err != nil {
					t.Fatal(err)
				}
				slots, values := slotsOf(records), make([]float64, len(records))
				if err := errors.Join(f.Load(slots, values), f.Verify()); err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				before := len(b)
				if b = test.change(b); len(b) < before {
					err = os.Truncate(path, int64(len(b)))
				} else {
					overwrite(t, path, b, 0)
				}
				if err != nil {
					t.Fatal(err)
				}
				if verify {
					wantLost(t, f, f.Verify(), test.reason)
					continue
				}
				loads := 0
				for err == nil {
					if loads++; loads > 2*sweepLoads {
						t.Fatal("nothing was found")
					}
					good := slices.Clone(values)
					if err = f.Load(slots, values); err != nil && !slices.Equal(values, good) {
						t.Error("values changed")
					}
				}
				if test.load != (loads == 1) {
					t.Errorf("found by load %d", loads)
				}
				wantLost(t, f, err, test.reason)
			}
		})
	}
}

// TestSettledFileChanges writes to a small settled file, all of which is read at once, after it was
// learned and after it was loaded.
func TestSettledFileChanges(t *testing.T) {
	key := func(c string) string { return `["f", "f_total", {"a": "` + c + `"}, "Help."]` }
	const n, changed = 9, 5
	size := len(wide().add(key("0"), 0, 0).entries)
	for _, test := range []struct {
		name   string
		change func(entry []byte)
		// loaded says that only a load after another one can find it.
		loaded bool
		reason Reason // empty: the load must find the values that are there
	}{
		{"value", func(e []byte) { copy(e, wide().add(key("5"), 50, now).entries) }, false, ""},
		{"length_over_the_value", func(e []byte) { copy(e[len(e)-16:], "\x40\x00\x00\x00[\"ht") }, false, Overwritten},
		{"text_over_the_key", func(e []byte) { copy(e[16:], `tasks.send_mail_to_customer", "s`) }, true, Overwritten},
	} {
		for _, loads := range []int{0, 1, 2} {
			t.Run(fmt.Sprintf("%s/loads=%d", test.name, loads), func(t *testing.T) {
				m := wide()
				for i := range n {
					m.add(key(fmt.Sprint(i)), float64(i), now)
				}
				b := m.honest()
				path := write(t, b)
				f := open(t, path)
				if err := f.SetSettled(true); err != nil {
					t.Fatal(err)
				}
				records, err := learn(f)
				if err != nil || len(records) != n {
					t.Fatalf("%d entries, %v", len(records), err)
				}
				slots, values, stamps := slotsOf(records), make([]float64, n), make([]float64, n)
				for range loads {
					if err := errors.Join(f.Load(slots, values), f.LoadStamped(slots, values, stamps)); err != nil {
						t.Fatal(err)
					}
				}
				test.change(b[headerBytes+changed*size:][:size])
				if err := os.WriteFile(path, b, 0o600); err != nil {
					t.Fatal(err)
				}
				before := slices.Clone(values)
				err = f.LoadStamped(slots, values, stamps)
				switch {
				case test.loaded && loads == 0:
				case test.reason != "":
					if ReasonOf(err) != test.reason || !slices.Equal(values, before) {
						t.Errorf("%v, values %v", err, values)
					}
				case err != nil || values[changed] != 50 || stamps[changed] != now || values[n-1] != n-1:
					t.Errorf("%v, values %v, timestamps %v", err, values, stamps)
				}
			})
		}
	}
}

// TestVerifyAfterLearn checks that damage between Learn and the first load is found, and by
// Learn itself, where it meets damage.
func TestVerifyAfterLearn(t *testing.T) {
	m := wide().add(k1, 1, now).add(k2, 2, now)
	bad := wide().add(k1, 1, now).add(`["f", "f_total", {"a": "X"}, "Help."]`, 3, now)
	t.Run("load", func(t *testing.T) {
		path := write(t, m.honest())
		f := open(t, path)
		records, err := learn(f)
		if err != nil {
			t.Fatal(err)
		}
		overwrite(t, path, bad.honest(), 0)
		values := []float64{-1, -1}
		wantLost(t, f, f.Load(slotsOf(records), values), Overwritten)
		if !slices.Equal(values, []float64{-1, -1}) {
			t.Errorf("values %v", values)
		}
	})
	t.Run("learn", func(t *testing.T) {
		path := write(t, m.honest())
		f := open(t, path)
		if _, err := learn(f); err != nil {
			t.Fatal(err)
		}
		overwrite(t, path, bad.raw(make([]byte, 24)...).honest(), 0)
		_, err := learn(f)
		wantLost(t, f, err, Overwritten)
	})
}

func TestMarks(t *testing.T) {
	for _, n := range []int{1, 2, 40, 3000} {
		for _, begin := range []func() *image{narrow, wide} {
			m := begin()
			for i := range n {
				m.add(testKey(21+i*7%5000), float64(i), now)
			}
			f := open(t, write(t, m.honest()))
			if _, err := learn(f); err != nil {
				t.Fatal(err)
			}
			if err := f.Verify(); err != nil {
				t.Fatal(err)
			}
			end := int64(headerBytes)
			for i := range f.marks.len() {
				from, to, _ := f.marks.mark(i)
				if from != end || f.marks.at(from) != i || f.marks.at(to-1) != i {
					t.Fatalf("mark %d is %d to %d, want it from %d on", i, from, to, end)
				}
				end = to
			}
			if end != f.UsedBytes() || f.marks.len() > int(f.UsedBytes()/markBytes)+1 {
				t.Errorf("%d marks up to %d of %d", f.marks.len(), end, f.UsedBytes())
			}
		}
	}
}

func TestLook(t *testing.T) {
	f, path, slots, values := loaded(t)
	if err := errors.Join(f.Look(), os.Link(path, path+".2"), f.Look()); err != nil || f.Links() != 2 {
		t.Errorf("%v, %d links", err, f.Links())
	}
	// In the middle of the last value: nothing but the size tells.
	if err := os.Truncate(path, f.UsedBytes()-Wide); err != nil {
		t.Fatal(err)
	}
	wantLost(t, f, f.Look(), Shrunk)
	if err := f.Load(slots, values); ReasonOf(err) != Shrunk {
		t.Error(err)
	}
}

func TestTruncatedAndGrownAgain(t *testing.T) {
	for _, size := range []int64{0, 4096, 100_000} {
		f, path, slots, values := loaded(t)
		if err := errors.Join(os.Truncate(path, size), os.Truncate(path, 1<<20)); err != nil {
			t.Fatal(err)
		}
		before := slices.Clone(values)
		err := f.Load(slots, values)
		if reason := ReasonOf(err); reason != UsedShrunk && reason != Overwritten {
			t.Errorf("size %d: %v", size, err)
		}
		if !slices.Equal(values, before) {
			t.Error("values changed")
		}
	}
}

// TestOpenAt opens by the directory's descriptor, wherever its path leads to meanwhile.
func TestOpenAt(t *testing.T) {
	path := write(t, wide().add(k1, 1, now).honest())
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := os.Rename(filepath.Dir(path), filepath.Dir(path)+".moved"); err != nil {
		t.Fatal(err)
	}
	base := filepath.Base(path)
	if err := os.Symlink(base, filepath.Join(filepath.Dir(path)+".moved", "link.db")); err != nil {
		t.Fatal(err)
	}
	f, err := OpenAt(int(dir.Fd()), base, path, SourceName{}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := learn(f); len(got) != 1 || err != nil || f.Links() != 1 || f.Path() != path {
		t.Errorf("%v, %v, %d links, path %s", got, err, f.Links(), f.Path())
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	for _, base := range []string{"", ".", "..", "../" + filepath.Base(dir.Name()) + ".moved/" + base, "a\x00b", "link.db"} {
		if f, err := OpenAt(int(dir.Fd()), base, path, SourceName{}, Limits{}); ReasonOf(err) != NotRegular {
			t.Errorf("%q: %v, %v", base, f, err)
		}
	}
	if _, err := OpenAt(int(dir.Fd()), "none.db", path, SourceName{}, Limits{}); ReasonOf(err) != Gone {
		t.Error(err)
	}
}

func TestEmpty(t *testing.T) {
	for _, test := range []struct {
		name  string
		file  []byte
		empty bool
	}{
		{"0_bytes", nil, true},
		{"header_0", make([]byte, 4096), true},
		{"header_8", wide().file(8, 4096), true},
		{"one_entry", wide().add(k1, 0, 0).honest(), false},
		{"3_bytes", []byte{1, 2, 3}, false},
		{"damaged", wide().raw(make([]byte, 24)...).honest(), false},
	} {
		f := open(t, write(t, test.file))
		_, _ = learn(f)
		if f.Empty() != test.empty {
			t.Errorf("%s: empty is %v", test.name, f.Empty())
		}
	}
}

// TestLearnToll: an entry may be worth more than its bytes.
func TestLearnToll(t *testing.T) {
	f := open(t, write(t, bigImage(Wide, 3000).honest()))
	const slice, toll = 10_000, 4000
	n, more := 0, true
	for more {
		before, at := n, int64(0)
		var err error
		if more, err = f.LearnSome(LearnOptions{MaxBytes: slice, Toll: &at}, func(Entry) {
			if at != 0 {
				t.Errorf("the toll is %d before an entry", at)
			}
			n++
			at = toll
		}); err != nil {
			t.Fatal(err)
		}
		if n == before || n-before > slice/toll+1 {
			t.Fatalf("%d entries in one call", n-before)
		}
	}
	if n != 3000 {
		t.Errorf("%d entries", n)
	}
}

// TestLearnSome walks over a large file in slices.
func TestLearnSome(t *testing.T) {
	m := bigImage(Wide, 3000)
	f := open(t, write(t, m.honest()))
	const slice = 10_000
	n, calls, more := 0, 0, true
	for more {
		before := n
		var err error
		if more, err = f.LearnSome(LearnOptions{MaxBytes: slice}, func(Entry) { n++ }); err != nil {
			t.Fatal(err)
		}
		if bytes := (n - before) * m.used() / 3000; bytes > slice+500 {
			t.Fatalf("%d bytes in one call", bytes)
		}
		calls++
	}
	if n != 3000 || calls < m.used()/slice {
		t.Errorf("%d entries in %d calls", n, calls)
	}
	if err := f.Verify(); err != nil {
		t.Error(err)
	}
}

// TestDamageIsLookedAtSeldom checks that damage which stays costs next to nothing.
func TestDamageIsLookedAtSeldom(t *testing.T) {
	m := wide().add(k1, 1, now).add(k2, 2, now).raw(make([]byte, 64<<10)...)
	path := write(t, m.honest())
	f := open(t, path)
	records, err := learn(f)
	if err == nil {
		t.Fatal("no damage")
	}
	if err := f.Load(slotsOf(records), make([]float64, 2)); err != nil {
		t.Fatal(err)
	}
	for range looksAtDamage {
		_, err = learn(f)
	}
	overwrite(t, path, wide().add(k1, 1, now).add(k2, 2, now).add(k3, 3, now).entries, headerBytes)
	if _, again := learn(f); !errors.Is(again, err) {
		t.Errorf("it was looked at: %v", again)
	}
	if n := testing.AllocsPerRun(10, func() { _, _ = f.LearnSome(LearnOptions{}, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if err := f.Look(); err != nil {
		t.Fatal(err)
	}
	if got, _ := learn(f); len(got) != 1 {
		t.Errorf("after Look: %v", got)
	}
}

func TestGuesses(t *testing.T) {
	key := func(i int) string { return fmt.Sprintf(`["f", "f_total", {"a": "%d"}, "Help."]`, i) }
	guesses := &Guesses{}
	tags := map[string]uint32{}
	r := rand.New(rand.NewPCG(1, 2))
	hits, all := 0, 0
	for file := range 50 {
		m := []func() *image{narrow, wide}[file%2]()
		for i := range 100 {
			if r.IntN(20) > 0 { // the others are missing, or another one is there
				m.add(key(i), float64(i), now)
			} else if r.IntN(2) == 0 {
				m.add(key(1000+r.IntN(10)), 1, now)
			}
		}
		m.add("not a key", 1, now)
		path := write(t, m.honest())
		want, err := learn(open(t, path))
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, path)
		var got []record
		if _, err := f.LearnSome(LearnOptions{Guesses: guesses}, func(e Entry) {
			got = append(got, record{string(e.Key), e.Slot, e.Value, e.Stamp})
			all++
			if *e.Tag != 0 {
				hits++
			} else {
				*e.Tag = uint32(len(tags) + 1)
			}
			if known, ok := tags[string(e.Key)]; ok && known != *e.Tag {
				t.Fatalf("%s has tag %d, had %d", e.Key, *e.Tag, known)
			}
			tags[string(e.Key)] = *e.Tag
		}); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%d entries, want %d, %v", len(got), len(want), err)
		}
		if err := f.Verify(); err != nil {
			t.Fatal(err)
		}
	}
	if all-hits != len(tags) {
		t.Errorf("%d of %d entries were known, but there are %d keys", hits, all, len(tags))
	}
}
