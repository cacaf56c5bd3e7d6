package store

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestWriter writes and reads each dialect back.
func TestWriter(t *testing.T) {
	for _, test := range []struct {
		name  string
		opt   WriterOptions
		width int
		first int64
	}{
		{"client_python", WriterOptions{}, Wide, 64 << 10},
		{"client_python_0.16", WriterOptions{Width: Narrow}, Narrow, 64 << 10},
		{"postmates", WriterOptions{FirstBytes: 1 << 20, NoStamp: math.Inf(1)}, Wide, 1 << 20},
		{"tiny", WriterOptions{FirstBytes: 8}, Wide, 8},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "counter_1.db")
			w, err := OpenWriter(path, test.opt)
			if err != nil {
				t.Fatal(err)
			}
			if in := inspect(t, path); in.Size != test.first || in.Used != 8 || in.Damage != nil || len(in.Entries) != 0 {
				t.Errorf("a new file: %+v", in)
			}
			a, err := w.Slot([]byte(k1))
			if err != nil {
				t.Fatal(err)
			}
			b, err := w.Slot([]byte(k2))
			if err != nil {
				t.Fatal(err)
			}
			if again, err := w.Slot([]byte(k1)); again != a || err != nil {
				t.Errorf("the slot of %s is %d, then %d, %v", k1, a, again, err)
			}
			if v := w.Value(b); v != 0 {
				t.Errorf("a new entry has the value %v", v)
			}
			w.Add(a, 1)
			w.Add(a, 1.5)
			w.Set(b, -7, now)
			if w.Value(a) != 2.5 || w.Value(b) != -7 {
				t.Errorf("values %v and %v", w.Value(a), w.Value(b))
			}
			stamp := 0.0
			if test.width == Wide {
				stamp = now
			}
			f := open(t, path)
			want := []record{{k1, uint32(a), 2.5, 0}, {k2, uint32(b), -7, stamp}}
			got, err := learn(f)
			if err != nil || !slices.Equal(got, want) || f.Width() != test.width {
				t.Errorf("got  %v, %v, width %d\nwant %v", got, err, f.Width(), want)
			}
			if used := w.UsedBytes(); used != f.UsedBytes() {
				t.Errorf("%d used bytes written, %d read", used, f.UsedBytes())
			}
			w.Add(b, 1) // takes the timestamp away
			values, stamps := make([]float64, 2), make([]float64, 2)
			if err := f.LoadStamped(slotsOf(got), values, stamps); err != nil || values[1] != -6 || stamps[1] != 0 {
				t.Errorf("%v at %v, %v", values, stamps, err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("closed again: %v", err)
			}

			// The next worker finds it and goes on.
			w, err = OpenWriter(path, test.opt)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := w.Slot([]byte(k2)); again != b || err != nil || w.Value(again) != -6 {
				t.Errorf("adopted: slot %d, want %d, %v", again, b, err)
			}
			c, err := w.Slot([]byte(k3))
			if err != nil {
				t.Fatal(err)
			}
			w.Add(c, 3)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if more, err := learn(f); err != nil || len(more) != 1 || more[0].Key != k3 || more[0].Value != 3 {
				t.Errorf("%v, %v", more, err)
			}
		})
	}
}

func TestWriterRefuses(t *testing.T) {
	good := wide().add(k1, 1, now).add(k2, 2, now).honest()
	for _, test := range []struct {
		name   string
		file   []byte
		opt    WriterOptions
		reason Reason
	}{
		{"other_width", good, WriterOptions{Width: Narrow}, IO},
		{"damaged", wide().add(k1, 1, now).file(-8, 4096), WriterOptions{}, UsedNegative},
		{"torn", wide().add(k1, 1, now).add(k2, 2, now).raw(make([]byte, 8)...).honest(), WriterOptions{}, BadKeyLength},
		{"short", []byte{8}, WriterOptions{}, ShortHeader},
		{"width_impossible", good, WriterOptions{Width: 12}, IO},
		{"first_size_impossible", good, WriterOptions{FirstBytes: 12}, IO},
	} {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, test.file)
			before := descriptors(t)
			w, err := OpenWriter(path, test.opt)
			if w != nil || err == nil || ReasonOf(err) != test.reason {
				t.Errorf("got %v, want reason %s", err, test.reason)
			}
			if after, err := os.ReadFile(path); err != nil || !slices.Equal(after, test.file) {
				t.Errorf("the file was changed (%v)", err)
			}
			if after := descriptors(t); after != before {
				t.Errorf("%d descriptors are open, %d were", after, before)
			}
		})
	}
	if _, err := OpenWriter(filepath.Join(t.TempDir(), "nowhere", "counter_1.db"), WriterOptions{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	w, err := OpenWriter(filepath.Join(t.TempDir(), "counter_1.db"), WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Slot(nil); err == nil {
		t.Error("an empty key was written")
	}
}

// TestWriterFault truncates the file under the writer, which has the effect of a full
// tmpfs: a store raises SIGBUS.
func TestWriterFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counter_1.db")
	w, err := OpenWriter(path, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.Slot([]byte(k1)); err != nil {
		t.Fatal(err)
	}
	used := w.UsedBytes()
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Slot([]byte(k2)); err == nil || w.UsedBytes() != used {
		t.Errorf("%v, %d used bytes, want an error and %d", err, w.UsedBytes(), used)
	}
	if err := os.Truncate(path, 64<<10); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Slot([]byte(k2)); err != nil {
		t.Errorf("when there is room again: %v", err)
	}
}

// TestRoundTrip writes random entries and reads the same.
func TestRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	letters := []rune("abc xyz_\"\\/\n\t\x00\x7f{}[],:ąż日😀\ufffd")
	text := func(least int) string {
		r := make([]rune, least+rnd.IntN(30))
		for i := range r {
			r[i] = letters[rnd.IntN(len(letters))]
		}
		return string(r)
	}
	for range 20 {
		width := []int{Narrow, Wide}[rnd.IntN(2)]
		path := filepath.Join(t.TempDir(), "gauge_mostrecent_1.db")
		w, err := OpenWriter(path, WriterOptions{Width: width, FirstBytes: 64})
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]record{}
		for range rnd.IntN(200) {
			var labels []string
			for j := range rnd.IntN(5) {
				labels = append(labels, fmt.Sprint(j, text(0)), text(0))
			}
			k := key(text(1), text(1), text(0), labels...)
			raw := string(AppendKey(nil, k))
			slot, err := w.Slot([]byte(raw))
			if err != nil {
				t.Fatal(err)
			}
			// Also values that look like the head of an entry.
			value, stamp := math.Float64frombits(rnd.Uint64()>>rnd.IntN(64)), rnd.Float64()*2e9
			w.Set(slot, value, stamp)
			if width == Narrow {
				stamp = 0
			}
			want[raw] = record{raw, uint32(slot), value, stamp}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := learn(open(t, path))
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d entries, want %d", len(got), len(want))
		}
		for _, r := range got {
			if w := want[r.Key]; w.Slot != r.Slot || !same(w.Value, r.Value) || w.Stamp != r.Stamp {
				t.Fatalf("%+v, want %+v", r, w)
			}
			k, err := ParseKey([]byte(r.Key))
			if err != nil || string(AppendKey(nil, k)) != r.Key {
				t.Fatalf("%s: %+v, %v", r.Key, k, err)
			}
		}
	}
}
