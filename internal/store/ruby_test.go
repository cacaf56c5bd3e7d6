package store

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"aggregatord/internal/deltas"
)

// rubyHistogram writes a histogram as prometheus-client-mmap's histogram.rb does.
type rubyHistogram struct {
	w      *Writer
	sum    uint32
	count  uint32
	inf    uint32
	bounds []float64
	slots  []uint32
	// observed is how many observations each bucket alone has; the last is +Inf.
	observed []float64
	at       map[uint32]float64
	killed   bool
}

func newRubyHistogram(t *testing.T, w *Writer, name, path string, bounds ...float64) *rubyHistogram {
	t.Helper()
	slot := func(sample, labels, values string) uint32 {
		s, err := w.Slot(fmt.Appendf(nil, `["%s","%s",[%s],[%s]]`, name, sample, labels, values))
		if err != nil {
			t.Fatal(err)
		}
		return uint32(s)
	}
	h := &rubyHistogram{w: w, bounds: bounds, observed: make([]float64, len(bounds)+1), at: map[uint32]float64{}}
	h.sum = slot(name+"_sum", `"path"`, strconv.Quote(path))
	h.count = slot(name+"_count", `"path"`, strconv.Quote(path))
	h.inf = slot(name+"_bucket", `"le","path"`, `"+Inf",`+strconv.Quote(path))
	for _, b := range bounds {
		h.slots = append(h.slots, slot(name+"_bucket", `"le","path"`, fmt.Sprintf(`"%v",%q`, b, path)))
	}
	return h
}

func (h *rubyHistogram) add(slot uint32, v float64) {
	h.at[slot] += v
	h.w.Set(int(slot), h.at[slot], 0)
}

// observe stops after so many stores, as a process that is killed; below 0: it does not.
func (h *rubyHistogram) observe(v float64, stores int) {
	order := []uint32{h.sum, h.count, h.inf}
	for i, b := range h.bounds {
		if v <= b {
			order = append(order, h.slots[i])
		}
	}
	if stores >= 0 {
		order = order[:min(stores, len(order))]
	}
	for _, slot := range order {
		if slot == h.sum {
			h.add(slot, v)
		} else {
			h.add(slot, 1)
		}
	}
	i, _ := slices.BinarySearch(h.bounds, v)
	h.observed[i]++
	h.killed = stores >= 0
}

// want is what Python's client would have in the entries that are yielded. Of a process that
// was killed it is what there is, in rising order.
func (h *rubyHistogram) want(values map[uint32]float64) {
	values[h.sum] = h.at[h.sum]
	below := 0.0
	for i, slot := range append(slices.Clone(h.slots), h.inf) {
		values[slot] = h.observed[i]
		if h.killed {
			values[slot] = max(0, h.at[slot]-below)
			below = max(below, h.at[slot])
		}
	}
}

// TestRubyHistograms: the buckets of random observations are what Python would have written,
// by every way of reading them, of a process that lives, has been killed in the middle, and
// goes on; and for those who know only some of the entries.
func TestRubyHistograms(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for round := range 50 {
		path := strings.Replace(write(t, nil), "counter_1", "histogram_1-0", 1)
		w, err := OpenWriter(path, WriterOptions{Width: Narrow})
		if err != nil {
			t.Fatal(err)
		}
		f := open(t, path)
		var all []*rubyHistogram
		var slots deltas.List
		some := map[uint32]bool{}
		for step := range 4 {
			for i := range 1 + rng.IntN(4) {
				var bounds []float64
				for range rng.IntN(6) {
					bounds = append(bounds, float64(rng.IntN(40)-8)/2)
				}
				slices.Sort(bounds)
				all = append(all, newRubyHistogram(t, w, fmt.Sprintf("h%d", rng.IntN(2)), fmt.Sprintf("/%d \"%d,", step, i),
					slices.Compact(bounds)...))
			}
			for range 200 {
				all[rng.IntN(len(all))].observe(float64(rng.IntN(60)-12)/2, -1)
			}
			if step == 3 {
				for _, h := range all {
					h.observe(float64(rng.IntN(60)-12)/2, rng.IntN(8))
				}
			}
			want := map[uint32]float64{}
			for _, h := range all {
				h.want(want)
			}
			if err := f.Learn(func(e Entry) {
				if _, ok := want[e.Slot]; !ok {
					t.Errorf("entry at %d: %s", e.Offset, e.Key)
				}
				if some[e.Slot] = rng.IntN(3) > 0; some[e.Slot] {
					slots.Append(e.Slot)
				}
			}); err != nil {
				t.Fatal(err)
			}
			if len(some) != len(want) {
				t.Fatalf("round %d: %d entries, want %d", round, len(some), len(want))
			}
			var every deltas.List
			for _, slot := range slices.Sorted(func(yield func(uint32) bool) {
				for slot := range want {
					if !yield(slot) {
						return
					}
				}
			}) {
				every.Append(slot)
			}
			for name, list := range map[string]*deltas.List{"all": &every, "some": &slots} {
				for _, settled := range []bool{false, true} {
					if err := f.SetSettled(settled); err != nil {
						t.Fatal(err)
					}
					values, stamps := make([]float64, list.Len()), slices.Repeat([]float64{7}, list.Len())
					if err := f.LoadStamped(list, values, stamps); err != nil {
						t.Fatal(err)
					}
					for i, slot := range list.All() {
						if values[i] != want[slot] || stamps[i] != 0 {
							t.Errorf("round %d, %s, settled %v: slot %d is %v at %v, want %v", round, name, settled, slot, values[i],
								stamps[i], want[slot])
						}
					}
				}
			}
			n := 0
			if err := f.Walk(func(e Entry) {
				n++
				if v, ok := want[e.Slot]; !ok || v != e.Value {
					t.Errorf("round %d: walked to %s %v, want %v", round, e.Key, e.Value, v)
				}
			}); err != nil || n != len(want) {
				t.Errorf("round %d: walked to %d entries, want %d: %v", round, n, len(want), err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRubyHistogramOdd: entries that are no bucket, sum or count of a histogram are yielded as
// they are, for who learns them to refuse, and so are those that are spelled as Python does.
func TestRubyHistogramOdd(t *testing.T) {
	m := narrow()
	for i, key := range []string{
		`["p", "p_bucket", {"le": "1.0"}, "H."]`,
		`["h","h_bucket",["le"],["+Inf"]]`,
		`["h","h_bucket",["le"],["1"]]`,
		`["h","h_bucket",["le"],["many"]]`,
		`["h","h_bucket",[],[]]`,
		`["h","other",[],[]]`,
		`["h",5,[],[]]`,
		`["h","h_count",[],[]]`,
		`["q", "q_bucket", {"le": "1.0"}, "H."]`,
		`["q", "q_bucket", {"le": "2.0"}, "H."]`,
		`["q", "q_count", {}, "H."]`,
	} {
		m.add(key, float64(10+i), 0)
	}
	path := strings.Replace(write(t, nil), "counter_1", "histogram_1-0", 1)
	if err := os.WriteFile(path, m.honest(), 0o600); err != nil {
		t.Fatal(err)
	}
	f := open(t, path)
	records, err := learn(f)
	if err != nil {
		t.Fatal(err)
	}
	want := []float64{10, 0, 12, 13, 14, 15, 16, 18, 19, 20}
	got := make([]float64, len(records))
	if err := f.Load(slotsOf(records), got); err != nil || !slices.Equal(got, want) {
		t.Errorf("loaded %v, %v, want %v", got, err, want)
	}
	got = nil
	if err := f.Walk(func(e Entry) { got = append(got, e.Value) }); err != nil || !slices.Equal(got, want) {
		t.Errorf("walked to %v, %v, want %v", got, err, want)
	}
}

// TestRubyHistogramNumbers: what a process may have written that counts nothing makes no
// bucket fall.
func TestRubyHistogramNumbers(t *testing.T) {
	for _, wrong := range []float64{-5, math.NaN(), math.Inf(1), math.Inf(-1)} {
		c := newCumulative()
		values := []float64{3, wrong, 2}
		for i, le := range []string{"+Inf", "1", "2"} {
			c.add(Entry{Key: []byte(`["h","h_bucket",["le"],["` + le + `"]]`), Slot: uint32(10 * (i + 1))})
		}
		c.separate(values)
		if total := values[0] + values[1] + values[2]; values[0] < 0 || values[2] < 0 || !math.IsInf(wrong, 1) && !math.IsNaN(wrong) &&
			total != 3 {
			t.Errorf("%v becomes %v", wrong, values)
		}
	}
}

func TestWorkerID(t *testing.T) {
	const ruby, python = `["a","a",[],[]]`, `["a", "a", {}, ""]`
	for _, tc := range []struct{ id, key, want string }{
		{"123-0", ruby, "123"},
		{"123-45", ruby, "123"},
		{"worker_id_1-0", ruby, "worker_id_1"},
		{"puma-3-0", ruby, "puma-3"},
		{"123-0", python, "123-0"},
		{"web-0", python, "web-0"},
		{"123", ruby, "123"},
		{"123-", ruby, "123-"},
		{"-0", ruby, "-0"},
		{"a-b", ruby, "a-b"},
		{"", ruby, ""},
	} {
		if got := (SourceName{ID: tc.id}).WorkerID([]byte(tc.key)); got != tc.want {
			t.Errorf("%q with %s: %q, want %q", tc.id, tc.key, got, tc.want)
		}
	}
}

// FuzzHistogram checks that a histogram file of any bytes has the same entries and values
// by Walk as by Learn and Load.
func FuzzHistogram(f *testing.F) {
	ruby := narrow()
	for i, key := range []string{
		`["h","h_sum",["a"],["/"]]`, `["h","h_count",["a"],["/"]]`, `["h","h_bucket",["a","le"],["/","+Inf"]]`,
		`["h","h_bucket",["a","le"],["/","1"]]`, `["h","h_bucket",["a","le"],["/","1"]]`, `["h","h_bucket",["a","le"],["/","NaN"]]`,
		`["h","h_bucket",["a"],["/"]]`, `["h", "h_bucket", {"le": "1"}]`,
	} {
		ruby.add(key, float64(10-i), 0)
	}
	f.Add(ruby.honest()[:ruby.used()])
	for path := range corpusFiles(f) {
		if strings.HasPrefix(path.Base, "histogram") && path.Case != "grown" {
			b, err := os.ReadFile(path.Path)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
		}
	}
	// In memory: a disk makes every input wait for the one before to be written.
	dir, err := os.MkdirTemp("/dev/shm", "store-fuzz-")
	if err != nil {
		dir = f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "histogram_1-0.db")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		name, _ := ParseName(filepath.Base(path))
		file, err := Open(path, name, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		records, learnErr := learn(file)
		values := make([]float64, len(records))
		if err := file.Load(slotsOf(records), values); err != nil {
			t.Fatal(err)
		}
		i := 0
		walkErr := file.Walk(func(e Entry) {
			if i >= len(records) || records[i].Key != string(e.Key) || records[i].Slot != e.Slot || !same(values[i], e.Value) {
				t.Fatalf("entry %d: walked to %s at %d, %v; learned %d entries", i, e.Key, e.Slot, e.Value, len(records))
			}
			i++
		})
		if i != len(records) || ReasonOf(walkErr) != ReasonOf(learnErr) {
			t.Fatalf("walked to %d of %d entries: %v, want %v", i, len(records), walkErr, learnErr)
		}
	})
}

// TestRubyHistogramLost: when not all of a file can be read, the values stay as they were:
// none of them becomes a cumulative one.
func TestRubyHistogramLost(t *testing.T) {
	c := newCumulative()
	for i, le := range []string{"+Inf", "1", "2"} {
		c.add(Entry{Key: []byte(`["h","h_bucket",["le"],["` + le + `"]]`), Slot: uint32(10 * (i + 1))})
	}
	lost := errors.New("lost")
	for _, slots := range []*deltas.List{deltas.Of(10, 20, 30), deltas.Of(10, 30)} {
		for fails := range 2 {
			values := slices.Repeat([]float64{7}, slots.Len())
			calls := 0
			err := c.load(slots, values, func(slots *deltas.List, values []float64) error {
				for i := range slots.Len() / 2 {
					values[i] = 100
				}
				if calls++; calls > fails {
					return lost
				}
				return nil
			})
			if fails == 1 && slots.Len() == 3 {
				continue // it is read once
			}
			if !errors.Is(err, lost) || slices.ContainsFunc(values, func(v float64) bool { return v != 7 }) {
				t.Errorf("%d slots, call %d fails: %v, %v", slots.Len(), fails, values, err)
			}
		}
	}
}
