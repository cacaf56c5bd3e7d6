package archive

import (
	"fmt"
	"slices"
	"testing"

	"aggregatord/internal/metric"
)

func TestParseMatch(t *testing.T) {
	histograms := Space{Type: metric.Histogram}
	bucket := `["lat", "lat_bucket", {"le": "1.0", "path": "/"}, ""]`
	for name, tc := range map[string]struct {
		name, labels string
		space        Space
		raw          string
		want         bool
	}{
		"metric":          {"lat", "", histograms, bucket, true},
		"sample":          {"lat_bucket", "", histograms, bucket, true},
		"other_sample":    {"lat_sum", "", histograms, bucket, false},
		"label":           {"lat", `{path="/"}`, histograms, bucket, true},
		"other_label":     {"lat", `{path!="/"}`, histograms, bucket, false},
		"expression":      {"lat", `{path=~"/.*"}`, histograms, bucket, true},
		"bound":           {"lat", `{le="1"}`, histograms, bucket, true},
		"pid":             {"temp", `{pid="7"}`, worker("7"), `["temp", "temp", {}, ""]`, true},
		"other_pid":       {"temp", `{pid="8"}`, worker("7"), `["temp", "temp", {}, ""]`, false},
		"unreadable":      {"not a key", "", counters, "not a key", true},
		"unreadable_else": {"not a key", "", counters, "not a key either", false},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := ParseMatch(tc.name, tc.labels)
			mustDo(t, err)
			if got := m.Matches(tc.space, tc.raw); got != tc.want {
				t.Errorf("%v", got)
			}
		})
	}
	for name, args := range map[string][2]string{"no_name": {"", "{}"}, "not_a_selector": {"a", "{"}, "two_names": {"a", `b{c="d"}`}} {
		if _, err := ParseMatch(args[0], args[1]); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestDropSeries: what is dropped is gone on disk, too; all else is as it was, and grows on.
func TestDropSeries(t *testing.T) {
	for name, tc := range map[string]struct {
		match    string
		again    bool // attach once more before the commit
		dropped  int
		unsaved  bool // nothing of it was on disk
		wantKeys int
	}{
		"some":                {"k", false, 1000, false, 3},
		"all_of_a_table":      {"a", false, 1, false, 1002},
		"none":                {"none", false, 0, false, 1003},
		"attached_in_between": {"k", true, 1000, false, 3},
		"unsaved":             {"k", false, 1000, true, 3},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			a := mustOpen(t, dir)
			b := NewBatch(at(0))
			f := b.File(counters, nil, 0)
			f.Add([]byte(`["first", "first", {}, ""]`), 0.1, 0, true)
			for i := range 1000 {
				f.Add(fmt.Appendf(nil, `["k", "k", {"i": "%d"}, ""]`, i), 1, 0, true)
			}
			f.Add([]byte(`["last", "last", {}, ""]`), 7, 0, true)
			fold(b, peaks, "file", nil, entry{`["a", "a", {}, ""]`, 3, 0})
			if tc.unsaved {
				b.records = nil
				a.Absorb(b)
			} else {
				mustCommit(t, a, b)
			}
			generation := a.Generation()
			m, err := ParseMatch(tc.match, "")
			mustDo(t, err)
			applied := 0
			if n := a.DropSeries(m.Matches, func(change func()) { applied++; change() }); n != tc.dropped || applied != min(n, 1) {
				t.Fatalf("%d dropped, applied %d times", n, applied)
			}
			if (a.Generation() != generation) != (tc.dropped > 0) || a.Pending() != (tc.dropped > 0 || tc.unsaved) {
				t.Errorf("generation %d, pending %v", a.Generation(), a.Pending())
			}
			want := contentsOf(a)
			if tc.again {
				mustDetach(t, a)
				mustDo(t, a.Attach(dir))
				wantContents(t, a, want)
			}
			mustCommit(t, a, NewBatch(at(1)))
			v := reread(t, dir)
			wantContents(t, v.Archive, want)
			if v.Totals().Series() != tc.wantKeys {
				t.Errorf("%d keys", v.Totals().Series())
			}
			// What comes later is counted anew.
			b = NewBatch(at(2))
			fold(b, counters, "", nil, entry{`["k", "k", {"i": "5"}, ""]`, 2, 0}, entry{`["last", "last", {}, ""]`, 1, 0})
			mustCommit(t, a, b)
			wantContents(t, reread(t, dir).Archive, contentsOf(a))
			table := a.Totals().Table(counters)
			pos, _ := table.Find([]byte(`["k", "k", {"i": "5"}, ""]`))
			wantK := 2.0
			if tc.match != "k" {
				wantK = 3
			}
			last := slices.Index(table.Values(), 8)
			if table.Values()[pos] != wantK || last < 0 || table.Key(last) != `["last", "last", {}, ""]` {
				t.Error("what came later was not added")
			}
		})
	}
}
