package fold

import (
	"strings"
	"testing"
)

// FuzzNames: whatever a file is called, its staged name leads back to it, is no source file's and
// stays in the directory; and what looks like a staged file leads to a name, or to none.
func FuzzNames(f *testing.F) {
	for _, name := range []string{
		"counter_1.db", "gauge_all_a.b.db", ".", "..", "", Prefix, Prefix + "counter_1.db.7", "a\x00b",
		strings.Repeat("x", 300), "\xff.db",
	} {
		f.Add(name)
	}
	p := NewPlace("/nowhere")
	f.Fuzz(func(t *testing.T, name string) {
		if record, ok := RecordOf(name); ok {
			if FileName(record) != name {
				t.Fatalf("%q has the record %q, which is in %q", name, record, FileName(record))
			}
			if base, ok := BaseOf(record); ok && (base == "" || !strings.HasPrefix(record, base+".")) {
				t.Fatalf("%q was %q", record, base)
			}
		}
		if name == "" {
			return
		}
		record := p.NewName(name)
		staged := FileName(record)
		if again, ok := RecordOf(staged); !ok || again != record {
			t.Fatalf("%q is staged as %q, which has the record %q", name, staged, again)
		}
		if base, ok := BaseOf(record); !ok || base != name {
			t.Fatalf("%q is staged as %q, which was %q", name, staged, base)
		}
		if strings.HasSuffix(staged, ".db") || !strings.HasPrefix(staged, ".") {
			t.Fatalf("%q is staged as %q, which a client would read", name, staged)
		}
	})
}
