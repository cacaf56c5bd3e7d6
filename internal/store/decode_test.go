package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"aggregatord/internal/deltas"
)

const (
	k1 = `["f", "f_total", {"a": "1"}, "Help."]`
	k2 = `["f", "f_total", {"a": "2"}, "Help."]`
	k3 = `["g", "g_total", {}, "Other."]`
)

// now is a timestamp as time.time() makes them: its low half is not zero.
const now = 1714554000.1234567

func length(n int32) []byte { return binary.LittleEndian.AppendUint32(nil, uint32(n)) }

// damagedFiles are files with named damage. Entries is how many are in front of it, for
// Learn, which trusts no entry of a file whose header is wrong.
var damagedFiles = []struct {
	name    string
	file    []byte
	entries int
	reason  Reason
	offset  int64
}{
	{"1_byte", []byte{8}, 0, ShortHeader, 0},
	{"4_bytes", []byte{8, 0, 0, 0}, 0, ShortHeader, 0},
	{"7_bytes", make([]byte, 7), 0, ShortHeader, 0},
	{"used_negative", wide().add(k1, 1, 0).file(-8, 4096), 0, UsedNegative, 0},
	{"used_least", wide().add(k1, 1, 0).file(math.MinInt32, 4096), 0, UsedNegative, 0},
	{"used_huge", wide().add(k1, 1, 0).file(math.MaxInt32&^7, 4096), 0, UsedPastEnd, 0},
	{"used_past_end", wide().add(k1, 1, 0).file(4104, 4096), 0, UsedPastEnd, 0},
	{"used_4", wide().add(k1, 1, 0).file(4, 4096), 0, UsedMisaligned, 0},
	{"used_odd", wide().add(k1, 1, 0).file(int32(wide().add(k1, 1, 0).used())+1, 4096), 0, UsedMisaligned, 0},
	{"truncated_in_entry", wide().add(k1, 1, now).add(k2, 2, now).honest()[:120], 0, UsedPastEnd, 0},
	{"header_only_claims_more", wide().file(16, 8), 0, UsedPastEnd, 0},
	{"key_length_0", wide().add(k1, 1, now).add(k2, 2, now).raw(make([]byte, 24)...).honest(), 2, BadKeyLength, 136},
	{"key_length_0_first", wide().raw(make([]byte, 24)...).honest(), 0, BadKeyLength, 8},
	{"key_length_negative", wide().add(k1, 1, now).add(k2, 2, now).raw(length(-1)...).raw(make([]byte, 28)...).honest(), 2, BadKeyLength, 136},
	{"key_length_huge", wide().add(k1, 1, now).add(k2, 2, now).raw(length(math.MaxInt32)...).raw(make([]byte, 28)...).honest(), 2, BadKeyLength, 136},
	{"key_length_over_limit", wide().add(k1, 1, now).add(k2, 2, now).add(testKey(64<<10+1), 3, now).honest(), 2, BadKeyLength, 136},
	{"key_length_past_used", wide().add(k1, 1, now).add(k2, 2, now).raw(length(100)...).raw(make([]byte, 28)...).honest(), 2, TornEntry, 136},
	{"torn_last_entry_wide", wide().add(k1, 1, now).add(k2, 2, now).add(k3, 3, now).file(int32(wide().add(k1, 1, now).add(k2, 2, now).add(k3, 3, now).used())-16, 4096), 2, TornEntry, 136},
	{"torn_last_entry_narrow", narrow().add(k1, 1, 0).add(k2, 2, 0).add(k3, 3, 0).file(int32(narrow().add(k1, 1, 0).add(k2, 2, 0).add(k3, 3, 0).used())-8, 4096), 2, TornEntry, 120},
	{"used_beyond_entries", wide().add(k1, 1, now).add(k2, 2, now).file(1000, 4096), 2, BadKeyLength, 136},
	{"bad_padding", wide().add(k1, 1, now).add(k2, 2, now).raw(length(int32(len(k3)))...).raw([]byte(k3)...).raw(make([]byte, padding(len(k3))+16)...).honest(), 2, BadPadding, 136},
	{"key_no_array", wide().add(k1, 1, now).add(k2, 2, now).add(`{"f": "f_total"}`, 3, now).honest(), 2, BadKey, 136},
	{"key_unfinished", wide().add(k1, 1, now).add(k2, 2, now).add(`["f", "f_total", {}`, 3, now).honest(), 2, BadKey, 136},
	{"key_with_nul", wide().add(k1, 1, now).add(k2, 2, now).add("[\"f\", \"f\x00\", {}]", 3, now).honest(), 2, BadKey, 136},
	{"second_key_bad_narrow", narrow().add(k1, 1, 0).add(`not a key`, 2, 0).honest(), 1, BadKey, 64},
	{"random", append([]byte{200, 0, 0, 0, 0, 0, 0, 0}, bytes.Repeat([]byte{0x9e, 0x37, 0x79, 0xb9}, 200)...), 0, BadKeyLength, 8},
	{"text", bytes.Repeat([]byte("hello, world\n"), 100), 0, UsedPastEnd, 0},
	{"sqlite", append([]byte("SQLite format 3\x00"), make([]byte, 4080)...), 0, UsedMisaligned, 0},
}

func TestLearnDamaged(t *testing.T) {
	for _, test := range damagedFiles {
		t.Run(test.name, func(t *testing.T) {
			path := write(t, test.file)
			f := open(t, path)
			records, err := learn(f)
			var damaged *CorruptionError
			if !errors.As(err, &damaged) {
				t.Fatalf("got %v, want a CorruptionError", err)
			}
			if damaged.Path != path || damaged.Reason != test.reason || damaged.Offset != test.offset {
				t.Errorf("got %v, want %s at byte %d", err, test.reason, test.offset)
			}
			if ReasonOf(fmt.Errorf("wrapped: %w", err)) != test.reason {
				t.Errorf("ReasonOf says %q", ReasonOf(err))
			}
			if s := err.Error(); !strings.Contains(s, path) || strings.Contains(s, "%!") || damaged.Unwrap() == nil {
				t.Errorf("the error does not say what is wrong: %s", s)
			}
			if len(records) != test.entries {
				t.Errorf("%d entries in front of the damage, want %d", len(records), test.entries)
			}
			// What was in front of it can be loaded, and the damage is still there.
			values := make([]float64, len(records))
			if err := f.Load(slotsOf(records), values); err != nil {
				t.Error(err)
			}
			for i, r := range records {
				if values[i] != float64(i+1) || r.Value != values[i] {
					t.Errorf("entry %d has value %v, %v when learned", i, values[i], r.Value)
				}
			}
			more, again := learn(f)
			if len(more) > 0 || again == nil || again.Error() != err.Error() {
				t.Errorf("then %d more entries and %v", len(more), again)
			}
		})
	}
}

// TestInspectDamaged checks that Inspect names the same damage as Learn, and shows at
// least the entries in front of it.
func TestInspectDamaged(t *testing.T) {
	for _, test := range damagedFiles {
		t.Run(test.name, func(t *testing.T) {
			in := inspect(t, write(t, test.file))
			var damaged *CorruptionError
			if !errors.As(in.Damage, &damaged) || damaged.Reason != test.reason || damaged.Offset != test.offset {
				t.Errorf("got %v, want %s at byte %d", in.Damage, test.reason, test.offset)
			}
			want := test.entries
			switch test.name {
			case "used_negative", "used_least", "used_huge", "used_past_end", "used_odd", "truncated_in_entry":
				want = 1 // though the header is wrong
			}
			if len(in.Entries) != want || in.Size != int64(len(test.file)) {
				t.Errorf("%d entries, want %d, in %d bytes", len(in.Entries), want, in.Size)
			}
		})
	}
}

func TestLearnGood(t *testing.T) {
	inf := math.Inf(1)
	for _, test := range []struct {
		name  string
		file  []byte
		width int
		want  []record
	}{
		{"0_bytes", nil, 0, nil},
		{"8_bytes", make([]byte, 8), 0, nil},
		{"used_0", make([]byte, 4096), 0, nil},
		{"used_8", wide().honest(), 0, nil},
		{"one_wide", wide().add(k1, 1, now).honest(), Wide, []record{{k1, 7, 1, now}}},
		{"one_narrow", narrow().add(k1, 1, 0).honest(), Narrow, []record{{k1, 7, 1, 0}}},
		{"wide", wide().add(k1, 1, now).add(k2, 2, 0).add(k3, 3, now).honest(), Wide, []record{{k1, 7, 1, now}, {k2, 15, 2, 0}, {k3, 22, 3, now}}},
		{"wide_no_stamps", wide().add(k1, 1, 0).add(k2, 2, 0).honest(), Wide, []record{{k1, 7, 1, 0}, {k2, 15, 2, 0}}},
		{"wide_postmates", wide().add(k1, 1, inf).add(k2, 2, now).honest(), Wide, []record{{k1, 7, 1, 0}, {k2, 15, 2, now}}},
		{"wide_stamp_nan", wide().add(k1, 1, math.NaN()).add(k2, 2, now).honest(), Wide, []record{{k1, 7, 1, 0}, {k2, 15, 2, now}}},
		{"narrow", narrow().add(k1, 1, 0).add(k2, 2, 0).add(k3, 3, 0).honest(), Narrow, []record{{k1, 7, 1, 0}, {k2, 14, 2, 0}, {k3, 20, 3, 0}}},
		{
			"narrow_values_like_lengths", narrow().add(k1, math.Float64frombits(20), 0).add(k2, math.Float64frombits(20), 0).honest(), Narrow,
			[]record{{k1, 7, math.Float64frombits(20), 0}, {k2, 14, math.Float64frombits(20), 0}},
		},
		{
			"wide_stamps_like_lengths", wide().add(k1, 1, math.Float64frombits(20)).add(k2, 2, math.Float64frombits(20)).honest(), Wide,
			[]record{{k1, 7, 1, math.Float64frombits(20)}, {k2, 15, 2, math.Float64frombits(20)}},
		},
		{"exactly_full", wide().add(k1, 1, now).honest()[:wide().add(k1, 1, now).used()], Wide, []record{{k1, 7, 1, now}}},
		{"not_json_inside", narrow().add(`[nonsense]`, 1, 0).honest(), Narrow, []record{{`[nonsense]`, 3, 1, 0}}},
		{
			"longest_key", wide().add(testKey(64<<10), 1, now).add(k2, 2, now).honest(), Wide,
			[]record{{testKey(64 << 10), 8194, 1, now}, {k2, 8202, 2, now}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := open(t, write(t, test.file))
			got, err := learn(f)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %v\nwant %v", got, test.want)
			}
			if f.Width() != test.width || f.Entries() != len(test.want) {
				t.Errorf("width %d, %d entries, want %d, %d", f.Width(), f.Entries(), test.width, len(test.want))
			}
			if got, err := learn(f); len(got) > 0 || err != nil {
				t.Errorf("learned again %v, %v", got, err)
			}
		})
	}
}

// TestLearnBothWidths reads files made up so that entries are found with both widths.
func TestLearnBothWidths(t *testing.T) {
	// Read as narrow, the first timestamp is the head of an entry with the key "[]", whose
	// value is the head of the next wide entry, whose value is again such a head.
	head := math.Float64frombits(binary.LittleEndian.Uint64([]byte("\x02\x00\x00\x00[]  ")))
	image := wide().add(k1, 1, head).add("[]", head, 3)
	asWide := []record{{k1, 7, 1, head}, {"[]", 10, head, 3}}
	asNarrow := []record{{k1, 7, 1, 0}, {"[]", 9, head, 0}, {"[]", 11, 3, 0}}
	for _, test := range []struct {
		name string
		file []byte
		want []record
	}{
		{"both_end_exactly", image.honest(), asWide},
		{"narrow_gets_further", image.raw(make([]byte, 8)...).honest(), asNarrow},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := learn(open(t, write(t, test.file)))
			if !slices.Equal(got, test.want) {
				t.Errorf("got  %v, %v\nwant %v", got, err, test.want)
			}
		})
	}
}

// TestLearnResumes checks that each call decodes only what is new, and that a file whose
// end was not yet there is read on once it is.
func TestLearnResumes(t *testing.T) {
	for _, width := range []int{Narrow, Wide} {
		t.Run(fmt.Sprint("width=", width), func(t *testing.T) {
			full := &image{width: width}
			var ends []int // where each entry ends
			for i := range 40 {
				full.add(fmt.Sprintf(`["f", "f_total", {"a": "%0*d"}]`, i+1, i), float64(i), now)
				ends = append(ends, full.used())
			}
			path := write(t, full.file(0, 1<<16))
			f := open(t, path)
			set := func(b []byte, off int) { overwrite(t, path, b, int64(off)) }
			image := full.file(0, 1<<16)
			start := headerBytes
			for i, end := range ends {
				// The used bytes first, the entry's bytes unseen as yet, then a part of them,
				// then all: as a machine may show them that reorders stores.
				entry := image[start:end]
				set(make([]byte, len(entry)), start)
				set(length(int32(end)), 0)
				for _, n := range []int{0, 8, 24, len(entry) - width - 8} {
					set(entry[:n], start)
					if got, err := learn(f); len(got) > 0 || ReasonOf(err) == "" || Reopenable(err) {
						t.Fatalf("entry %d, %d of %d bytes: %v, %v", i, n, len(entry), got, err)
					}
				}
				set(entry, start)
				got, err := learn(f)
				if err != nil {
					t.Fatalf("entry %d: %v", i, err)
				}
				if len(got) != 1 || got[0].Value != float64(i) || int(got[0].Slot)*8 != end-width {
					t.Fatalf("entry %d: %v", i, got)
				}
				if f.UsedBytes() != int64(end) {
					t.Fatalf("used bytes %d, want %d", f.UsedBytes(), end)
				}
				start = end
				if i%3 == 0 {
					// From here on the header is read through the mapping.
					if err := f.Load(deltas.Of(got[0].Slot), make([]float64, 1)); err != nil {
						t.Fatal(err)
					}
				}
			}
			if f.Width() != width {
				t.Errorf("width %d", f.Width())
			}
		})
	}
}

// TestLearnWidthByLaterEntry checks that a first entry which is no proof does no harm.
func TestLearnWidthByLaterEntry(t *testing.T) {
	image := wide().add(k1, 1, now).add(k2, 2, now).add(k3, 3, now)
	b := image.honest()
	broken := slices.Clone(b)
	clear(broken[72:]) // from the second entry on
	path := write(t, broken)
	f := open(t, path)
	got, err := learn(f)
	if len(got) != 1 || ReasonOf(err) != BadKeyLength {
		t.Fatalf("%v, %v", got, err)
	}
	if err := os.WriteFile(path, b, 0o666); err != nil { // same inode, same size in the end
		t.Fatal(err)
	}
	more, err := learn(f)
	if err != nil || len(more) != 2 || more[0].Key != k2 || more[1].Key != k3 || f.Width() != Wide {
		t.Fatalf("%v, %v, width %d", more, err, f.Width())
	}
	values, stamps := make([]float64, 3), make([]float64, 3)
	if err := f.LoadStamped(slotsOf(append(got, more...)), values, stamps); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(values, []float64{1, 2, 3}) || !slices.Equal(stamps, []float64{now, now, now}) {
		t.Errorf("values %v, stamps %v", values, stamps)
	}
}

func TestKeyLimit(t *testing.T) {
	path := write(t, wide().add(testKey(100), 1, now).add(testKey(101), 2, now).honest())
	f, err := Open(path, SourceName{}, Limits{KeyBytes: 100})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got, err := learn(f); len(got) != 1 || ReasonOf(err) != BadKeyLength {
		t.Errorf("%d entries, %v", len(got), err)
	}
}

// FuzzDecode checks that what decodes re-encodes to the bytes it was decoded from, and
// that memory is bounded by the input.
func FuzzDecode(f *testing.F) {
	for path := range corpusFiles(f) {
		if path.Case == "grown" {
			continue
		}
		b, err := os.ReadFile(path.Path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:min(len(b), int(binary.LittleEndian.Uint32(b)))])
	}
	for _, test := range damagedFiles {
		if len(test.file) < 10000 {
			f.Add(test.file)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in, err := inspectBytes("x", bytes.NewReader(b), int64(len(b)), Limits{}.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		if in.Damage != nil && ReasonOf(in.Damage) == IO {
			t.Fatal(in.Damage)
		}
		if len(in.Entries) > len(b)/24+1 {
			t.Fatalf("%d entries in %d bytes", len(in.Entries), len(b))
		}
		var out []byte
		keys := 0
		for _, e := range in.Entries {
			if int64(headerBytes+len(out)) != e.Offset {
				t.Fatalf("the entry at %d was expected at %d", e.Offset, headerBytes+len(out))
			}
			// The stamp is told apart only as far as it matters, so its bytes are the input's.
			raw := appendEntry(nil, e.RawKey, e.Value, 0, in.Width)
			if in.Width == Wide {
				stamp := b[e.ValueOffset+valueBytes:][:valueBytes]
				if s := stampOf(float64At(stamp)); s != e.Stamp {
					t.Fatalf("stamp %v, want %v", e.Stamp, s)
				}
				copy(raw[len(raw)-valueBytes:], stamp)
			} else if e.Stamp != 0 {
				t.Fatalf("stamp %v in a narrow file", e.Stamp)
			}
			out = append(out, raw...)
			keys += len(e.RawKey)
		}
		if keys > len(b) {
			t.Fatalf("%d bytes of keys from %d", keys, len(b))
		}
		if len(out) > 0 && !bytes.Equal(out, b[headerBytes:headerBytes+len(out)]) {
			t.Fatalf("decoded and encoded again:\n%q\nwas\n%q", out, b[headerBytes:headerBytes+len(out)])
		}
		if in.Damage == nil && len(b) > 0 && in.Used > headerBytes && int64(headerBytes+len(out)) != in.Used {
			t.Fatalf("%d of %d used bytes decoded, and no damage", headerBytes+len(out), in.Used)
		}
	})
}
