package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
	{
		"key_length_negative", wide().add(k1, 1, now).add(k2, 2, now).raw(length(-1)...).raw(make([]byte, 28)...).honest(), 2, BadKeyLength,
		136,
	},
	{
		"key_length_huge", wide().add(k1, 1, now).add(k2, 2, now).raw(length(math.MaxInt32)...).raw(make([]byte, 28)...).honest(), 2,
		BadKeyLength, 136,
	},
	{
		"key_length_past_used", wide().add(k1, 1, now).add(k2, 2, now).raw(length(100)...).raw(make([]byte, 28)...).honest(), 2, TornEntry,
		136,
	},
	{"torn_last_entry_wide", wide().add(k1, 1, now).add(k2, 2, now).add(k3, 3,
		now).file(int32(wide().add(k1, 1, now).add(k2, 2, now).add(k3, 3, now).used())-16, 4096), 2, TornEntry, 136},
	{"torn_last_entry_narrow", narrow().add(k1, 1, 0).add(k2, 2, 0).add(k3, 3,
		0).file(int32(narrow().add(k1, 1, 0).add(k2, 2, 0).add(k3, 3, 0).used())-8, 4096), 2, TornEntry, 120},
	{"used_beyond_entries", wide().add(k1, 1, now).add(k2, 2, now).file(1000, 4096), 2, BadKeyLength, 136},
	{"bad_padding", wide().add(k1, 1, now).add(k2, 2,
		now).raw(length(int32(len(k3)))...).raw([]byte(k3)...).raw(make([]byte, padding(len(k3))+16)...).honest(), 2, BadPadding, 136},
	{"key_with_nul", wide().add(k1, 1, now).add(k2, 2, now).add("[\"f\", \"f\x00\", {}]", 3, now).honest(), 2, BadKey, 136},
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
		{
			"wide", wide().add(k1, 1, now).add(k2, 2, 0).add(k3, 3, now).honest(), Wide,
			[]record{{k1, 7, 1, now}, {k2, 15, 2, 0}, {k3, 22, 3, now}},
		},
		{"wide_no_stamps", wide().add(k1, 1, 0).add(k2, 2, 0).honest(), Wide, []record{{k1, 7, 1, 0}, {k2, 15, 2, 0}}},
		{"wide_postmates", wide().add(k1, 1, inf).add(k2, 2, now).honest(), Wide, []record{{k1, 7, 1, 0}, {k2, 15, 2, now}}},
		{"wide_stamp_nan", wide().add(k1, 1, math.NaN()).add(k2, 2, now).honest(), Wide, []record{{k1, 7, 1, 0}, {k2, 15, 2, now}}},
		{
			"narrow", narrow().add(k1, 1, 0).add(k2, 2, 0).add(k3, 3, 0).honest(), Narrow,
			[]record{{k1, 7, 1, 0}, {k2, 14, 2, 0}, {k3, 20, 3, 0}},
		},
		{
			"narrow_values_like_lengths", narrow().add(k1, math.Float64frombits(20), 0).add(k2, math.Float64frombits(20), 0).honest(),
			Narrow,
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
					if got, err := learn(f); len(got) > 0 || ReasonOf(err) == "" {
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

// TestUnreadableKeys: a key that ParseKey does not understand is an entry as any other, for
// whoever keeps it, and nothing behind it is lost.
func TestUnreadableKeys(t *testing.T) {
	for name, key := range map[string]string{
		"five_elements":  `["f", "f_total", {"a": "1"}, "Help.", {"unit": "s"}]`,
		"object":         `{"f": "f_total"}`,
		"unfinished":     `["f", "f_total", {}`,
		"not_json":       "not a key",
		"one_byte":       "x",
		"query_string":   "a=1&b=2",
		"not_utf8":       "[\"f\", \"f\xff\", {}]",
		"high_bytes":     "\xff\xfe\xfd\xfc",
		"control":        "[\"f\x01\", \"f\", {}]",
		"spaces":         strings.Repeat(" ", 40),
		"number":         "17",
		"nested":         strings.Repeat("[", 500),
		"over_a_window":  strings.Repeat("z", 65000),
		"ends_in_spaces": k1 + "   ",
	} {
		for width, begin := range map[int]func() *image{Narrow: narrow, Wide: wide} {
			for place, m := range map[string]*image{
				"only":   begin().add(key, 7, now),
				"first":  begin().add(key, 7, now).add(k1, 1, now).add(k2, 2, now),
				"middle": begin().add(k1, 1, now).add(key, 7, now).add(k2, 2, now),
				"last":   begin().add(k1, 1, now).add(k2, 2, now).add(key, 7, now),
				"all":    begin().add(key, 7, now).add(key+"!", 7, now).add(key+"!!", 7, now),
			} {
				t.Run(fmt.Sprintf("%s/%s/width=%d", name, place, width), func(t *testing.T) {
					if place == "only" && width == Wide && len(key) < 8 {
						t.Skip("one entry is no proof of a width")
					}
					want := map[string]int{"only": 1}[place]
					if want == 0 {
						want = 3
					}
					f := open(t, write(t, m.honest()))
					learned, err := learn(f)
					if err != nil || len(learned) != want || f.Width() != width {
						t.Fatalf("%d entries, width %d, %v", len(learned), f.Width(), err)
					}
					var walked []record
					if err := f.Walk(func(e Entry) {
						walked = append(walked,
							record{string(e.Key), e.Slot, e.Value, e.Stamp})
					}); err != nil || !slices.Equal(walked, learned) {
						t.Fatalf("Walk: %v, %v", walked, err)
					}
					values := make([]float64, want)
					if err := errors.Join(f.Load(slotsOf(learned), values), f.Verify()); err != nil {
						t.Fatal(err)
					}
					found := false
					for i, r := range learned {
						if values[i] != r.Value {
							t.Errorf("entry %d is %v, was %v", i, values[i], r.Value)
						}
						found = found || r.Key == key && r.Value == 7
						if _, err := ParseKey([]byte(r.Key)); (err == nil) != (r.Key == k1 || r.Key == k2 || r.Key == k1+"   ") {
							t.Errorf("ParseKey(%q): %v", r.Key, err)
						}
					}
					if !found {
						t.Error("the key is not there with its value")
					}
				})
			}
		}
	}
}

// TestZeroBytesInAKey: while somebody may write, a key with zero bytes is one that is not all
// here; afterwards it is what it is.
func TestZeroBytesInAKey(t *testing.T) {
	key := "[\"f\", \"f\x00\", {}]"
	f := open(t, write(t, wide().add(k1, 1, now).add(k3, 1, now).add(key, 2, now).add(k2, 3, now).honest()))
	for range looksAtDamage + 2 {
		if _, err := learn(f); ReasonOf(err) != BadKey {
			t.Fatal(err)
		}
	}
	if err := f.SetSettled(true); err != nil {
		t.Fatal(err)
	}
	if got, err := learn(f); err != nil || len(got) != 2 || got[0].Key != key || got[1].Key != k2 {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestKeyTooLong(t *testing.T) {
	for width, begin := range map[int]func() *image{Narrow: narrow, Wide: wide} {
		for _, long := range []int{101, 108, 5000, 70_000, 1 << 20} {
			t.Run(fmt.Sprintf("width=%d/key=%d", width, long), func(t *testing.T) {
				m := begin().add(testKey(100), 1, now).add(testKey(long), 2, now).add(k1, 3, now).add(testKey(long+1), 4, now).add(k2, 5,
					now)
				f, err := Open(write(t, m.honest()), SourceName{}, Limits{KeyBytes: 100})
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				var got []Entry
				if err := f.Learn(func(e Entry) { e.Key = slices.Clone(e.Key); got = append(got, e) }); err != nil || len(got) != 5 ||
					f.Width() != width {
					t.Fatalf("%v, %v, width %d", got, err, f.Width())
				}
				for i, e := range got {
					if (e.Err != nil) != (i == 1 || i == 3) || e.Value != float64(i+1) || (e.Key == nil) != (e.Err != nil) {
						t.Errorf("entry %d: %+v", i, e)
					}
				}
				if e := got[1].Err; e.Offset != got[1].Offset || e.KeyBytes != long || e.Limit != 100 ||
					!strings.Contains(e.Error(), "limits.key_length") || ReasonOf(e) != KeyTooLong {
					t.Errorf("%v", e)
				}
				slots, values := deltas.Of(got[0].Slot, got[2].Slot, got[4].Slot), make([]float64, 3)
				if err := errors.Join(f.Load(slots, values), f.Verify()); err != nil || !slices.Equal(values, []float64{1, 3, 5}) {
					t.Fatalf("%v, %v", values, err)
				}
				// A limit that is still too low changes nothing, one that is not does.
				if f.SetLimits(Limits{KeyBytes: long - 1}) || !f.SetLimits(Limits{KeyBytes: long}) {
					t.Fatal("SetLimits says what is not so")
				}
				n, left := 0, 0
				if err := f.Learn(func(e Entry) {
					n++
					if e.Err != nil {
						left++
					}
				}); err != nil || n != 5 || left != 1 {
					t.Fatalf("%d entries, %d too long, %v", n, left, err)
				}
				if err := errors.Join(f.Load(slots, values), f.Verify()); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

// TestTextInTheLastValue: a well-formed entry in front of damage may have a part of another
// entry where its value should be.
func TestTextInTheLastValue(t *testing.T) {
	text := func(s string) float64 { return float64At([]byte(s)) }
	for _, test := range []struct {
		name    string
		value   float64
		entries int
	}{
		{"characters", text("_total\", "), 1},
		{"begin_of_an_entry", text("\x60\x00\x00\x00[\"ht"), 1},
		{"number", 17.25, 2},
		{"zero", 0, 2},
	} {
		for width, begin := range map[int]func() *image{Narrow: narrow, Wide: wide} {
			t.Run(fmt.Sprintf("%s/width=%d", test.name, width), func(t *testing.T) {
				good := begin().add(k1, 1, now).add(k2, test.value, now)
				f := open(t, write(t, good.honest()))
				certain := test.name == "begin_of_an_entry"
				if got, err := learn(f); certain != (ReasonOf(err) == Overwritten) || certain != (len(got) == 1) {
					t.Fatalf("with nothing behind it: %v, %v", got, err)
				}
				bad := good.raw([]byte(`p_requests_total", {"method": "GET"}, "Requests."]      `)...)
				f = open(t, write(t, bad.honest()))
				got, err := learn(f)
				if err == nil || len(got) != test.entries || (ReasonOf(err) == Overwritten) != (test.entries == 1) {
					t.Fatalf("%v, %v", got, err)
				}
			})
		}
	}
}

// countingReader counts what is read.
type countingReader struct {
	src  io.ReaderAt
	read int64
}

func (r *countingReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := r.src.ReadAt(b, off)
	r.read += int64(n)
	return n, err
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
		src := &countingReader{src: bytes.NewReader(b)}
		in, err := inspectBytes("x", src, int64(len(b)), Limits{KeyBytes: 4096}.withDefaults())
		if err != nil {
			t.Fatal(err)
		}
		// Time is what is read: to guess the width, to walk, to look behind what looks like text;
		// a window each time a key that is too long is passed over.
		if limit := 16*int64(len(b)) + 8*windowBytes; src.read > limit {
			t.Fatalf("%d bytes were read of %d", src.read, len(b))
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
			if _, ok := errors.AsType[*KeyTooLongError](e.KeyErr); ok {
				out = append(out, b[e.Offset:e.ValueOffset+int64(in.Width)]...)
				continue
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
