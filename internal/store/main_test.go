package store

import (
	"encoding/binary"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"aggregatord/internal/deltas"
)

func TestMain(m *testing.M) {
	if run, ok := children[os.Getenv(childVariable)]; ok {
		run()
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// childVariable names the entry of children that a copy of the test program is to run.
const childVariable = "AGGREGATORD_STORE_TEST_CHILD"

// children are programs that tests start, because they use up what only a process has.
var children = map[string]func(){}

// A corpusFile is one source file of testdata/corpus.
type corpusFile struct{ Dialect, Case, Base, Path string }

func corpusFiles(t testing.TB) iter.Seq[corpusFile] {
	paths, err := filepath.Glob("../../testdata/corpus/*/*/*.db")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no corpus: %v", err)
	}
	return func(yield func(corpusFile) bool) {
		for _, path := range paths {
			parts := strings.Split(filepath.ToSlash(path), "/")
			parts = parts[len(parts)-3:]
			if !yield(corpusFile{parts[0], parts[1], parts[2], path}) {
				return
			}
		}
	}
}

func inspect(t testing.TB, path string) Inspection {
	t.Helper()
	in, err := Inspect(path, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// An image is the bytes of a source file, built from readable values.
type image struct {
	width   int
	entries []byte
}

func narrow() *image { return &image{width: Narrow} }
func wide() *image   { return &image{width: Wide} }

// add appends an entry. The stamp is left out of narrow files.
func (m *image) add(key string, value, stamp float64) *image {
	m.entries = appendEntry(m.entries, []byte(key), value, stamp, m.width)
	return m
}

// raw appends bytes as they are.
func (m *image) raw(b ...byte) *image {
	m.entries = append(m.entries, b...)
	return m
}

// used is what an honest header says.
func (m *image) used() int { return headerBytes + len(m.entries) }

// file returns a file of size bytes, the used ones at least, whose header says used.
func (m *image) file(used int32, size int) []byte {
	b := make([]byte, max(size, m.used()))
	binary.LittleEndian.PutUint32(b, uint32(used))
	copy(b[headerBytes:], m.entries)
	return b
}

// honest returns a file as a client would write it.
func (m *image) honest() []byte { return m.file(int32(m.used()), 4096) }

// testKey is a key of exactly n bytes, at least 20.
func testKey(n int) string {
	return `["f", "f", {"a": "` + strings.Repeat("x", n-21) + `"}]`
}

func write(t testing.TB, b []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "counter_1.db")
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func open(t testing.TB, path string) *File {
	t.Helper()
	name, _ := ParseName(filepath.Base(path))
	f, err := Open(path, name, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if f.fd >= 0 {
			if err := f.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	return f
}

// record is an Entry that owns its key.
type record struct {
	Key          string
	Slot         uint32
	Value, Stamp float64
}

// learn returns what Learn yields.
func learn(f *File) (records []record, err error) {
	err = f.Learn(func(e Entry) {
		records = append(records, record{string(e.Key), e.Slot, e.Value, e.Stamp})
	})
	return records, err
}

func slotsOf(records []record) *deltas.List {
	slots := &deltas.List{}
	for _, r := range records {
		slots.Append(r.Slot)
	}
	return slots
}
