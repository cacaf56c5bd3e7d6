package store

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"testing"
)

var corpusWidths = map[string]int{"client_python": Wide, "client_python_0.16": Narrow, "postmates": Wide}

// TestCorpus reads what the real clients wrote: every file to its end, by Learn and by
// Inspect alike.
func TestCorpus(t *testing.T) {
	dialects := map[string]int{}
	for file := range corpusFiles(t) {
		dialects[file.Dialect]++
		t.Run(file.Dialect+"/"+file.Case+"/"+file.Base, func(t *testing.T) {
			name, err := ParseName(file.Base)
			if err != nil {
				t.Fatal(err)
			}
			f := open(t, file.Path)
			records, err := learn(f)
			if err != nil {
				t.Fatal(err)
			}
			if len(records) == 0 {
				t.Fatal("no entries")
			}
			if want := corpusWidths[file.Dialect]; f.Width() != want {
				t.Errorf("width %d, want %d", f.Width(), want)
			}
			if f.cur.next != f.UsedBytes() {
				t.Errorf("read to byte %d of %d", f.cur.next, f.UsedBytes())
			}
			values, stamps := make([]float64, len(records)), make([]float64, len(records))
			if err := f.LoadStamped(slotsOf(records), values, stamps); err != nil {
				t.Fatal(err)
			}
			for i, r := range records {
				if !same(values[i], r.Value) || stamps[i] != r.Stamp {
					t.Errorf("entry %d: %v at %v, but %v at %v when learned", i, values[i], stamps[i], r.Value, r.Stamp)
				}
				if set := stamps[i] != 0; set && name.Type.String() != "gauge" && file.Dialect != "postmates" {
					t.Errorf("entry %d has a timestamp: %v", i, stamps[i])
				}
				k, err := ParseKey([]byte(r.Key))
				if err != nil {
					t.Errorf("entry %d: %v", i, err)
					continue
				}
				want := string(AppendKey(nil, k))
				if noHelp := file.Dialect == "postmates"; k.NoHelp != noHelp {
					t.Errorf("entry %d: NoHelp is %v", i, k.NoHelp)
				}
				if want != r.Key {
					t.Errorf("entry %d: the key\n%s was written again as\n%s", i, r.Key, want)
				}
			}

			in := inspect(t, file.Path)
			if in.Damage != nil || in.Used != f.UsedBytes() || in.Size != f.Size() || in.Width != f.Width() ||
				len(in.Entries) != len(records) {
				t.Fatalf("inspected: %d entries, %d of %d bytes used, width %d, %v", len(in.Entries), in.Used, in.Size, in.Width, in.Damage)
			}
			for i, e := range in.Entries {
				r := records[i]
				if string(e.RawKey) != r.Key || !same(e.Value, r.Value) || e.Stamp != r.Stamp || e.ValueOffset != int64(r.Slot)*8 ||
					e.KeyErr != nil {
					t.Errorf("inspected entry %d: %+v, want %+v", i, e, r)
				}
			}
		})
	}
	for dialect := range corpusWidths {
		if dialects[dialect] == 0 {
			t.Errorf("no files of %s", dialect)
		}
	}
}

// TestCorpusWrittenAgain writes what it reads: byte for byte the client's own file, with
// every store in the client's order.
func TestCorpusWrittenAgain(t *testing.T) {
	dir := t.TempDir()
	for file := range corpusFiles(t) {
		want, err := os.ReadFile(file.Path)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "counter_1.db")
		opt := WriterOptions{Width: corpusWidths[file.Dialect]}
		w, err := OpenWriter(path, opt)
		if err != nil {
			t.Fatal(err)
		}
		entries := inspect(t, file.Path).Entries
		for i, e := range entries {
			if i == len(entries)/2 {
				// A worker that goes on with the file it finds.
				if err := w.Close(); err != nil {
					t.Fatal(err)
				}
				if w, err = OpenWriter(path, opt); err != nil {
					t.Fatal(err)
				}
			}
			slot, err := w.Slot(e.RawKey)
			if err != nil {
				t.Fatal(err)
			}
			stamp := 0.0
			if opt.Width == Wide {
				stamp = float64At(want[e.ValueOffset+valueBytes:]) // as it is, +Inf too
			}
			w.Set(slot, e.Value, stamp)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%s: written again, it differs", file.Path)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// same is equality that holds for NaN and tells the zeros apart.
func same(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }
