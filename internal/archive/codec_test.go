package archive

import (
	"bytes"
	"math"
	"slices"
	"testing"
	"time"

	"aggregatord/internal/metric"
)

// odd are values that are hard to keep.
var odd = []float64{
	0, math.Copysign(0, -1), 1, -1, 0.1, 127, 128, 1<<53 - 1, 1 << 53, 1<<53 + 2, 1 << 63, 1 << 64, -1 << 63,
	math.MaxFloat64, -math.MaxFloat64, math.SmallestNonzeroFloat64, math.Inf(1), math.Inf(-1), math.NaN(),
	math.Float64frombits(0x7ff0_0000_0000_0001), // a signalling NaN
}

// sameBits compares floats as they are stored.
func sameBits(a, b []float64) bool {
	return slices.EqualFunc(a, b, func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) })
}

func TestBaselineRoundTrip(t *testing.T) {
	for n := range len(odd) + 1 {
		data := appendBaseline([]byte("before"), odd[:n])
		got, err := readBaseline(t, data[len("before"):])
		if err != nil || !sameBits(got, odd[:n]) {
			t.Errorf("%v, %v, want %v", got, err, odd[:n])
		}
	}
	// A worker's counts take one or two bytes each.
	if n := len(appendBaseline(nil, []float64{0, 1, 2, 100, 126, 0, 0})); n != 8 {
		t.Errorf("%d bytes", n)
	}
}

func TestReadBaselineErrors(t *testing.T) {
	for name, data := range map[string][]byte{
		"empty":          {},
		"endless_count":  bytes.Repeat([]byte{0x80}, 11),
		"huge_count":     {0xff, 0xff, 0xff, 0xff, 0x7f, 1},
		"too_few_values": {2, 1},
		"half_a_float":   {1, 0, 1, 2, 3},
		"endless_value":  append([]byte{1}, bytes.Repeat([]byte{0xff}, 11)...),
		"more_than_said": {1, 1, 1},
	} {
		if v, err := readBaseline(t, data); err == nil {
			t.Errorf("%s: %v", name, v)
		}
	}
}

func TestChunkRoundTrip(t *testing.T) {
	zeros := make([]float64, len(odd))
	for name, second := range map[string][]float64{"sums": zeros, "stamps": odd} {
		data := appendChunk(nil, odd, second)
		if want := 1 + 8*len(odd)*map[string]int{"sums": 1, "stamps": 2}[name]; len(data) != want {
			t.Errorf("%s: %d bytes, want %d", name, len(data), want)
		}
		hi, got := make([]float64, len(odd)), slices.Repeat([]float64{9}, len(odd))
		if err := readChunk(data, hi, got); err != nil || !sameBits(hi, odd) || !sameBits(got, second) {
			t.Errorf("%s: %v, %v, %v", name, hi, got, err)
		}
	}
}

func TestReadChunkErrors(t *testing.T) {
	good := appendChunk(nil, odd[:2], odd[:2])
	for name, data := range map[string][]byte{
		"empty":     {},
		"cut":       good[:len(good)-1],
		"longer":    append(slices.Clone(good), 0),
		"no_halves": append([]byte{0}, good[1:]...),
		"3_halves":  append([]byte{3}, good[1:]...),
		"one_half":  append([]byte{1}, good[1:]...),
	} {
		if err := readChunk(data, make([]float64, 2), make([]float64, 2)); err == nil {
			t.Error(name)
		}
	}
}

func TestSpaceRoundTrip(t *testing.T) {
	for _, s := range []Space{counters, summaries, newest, peaks, worker("1"), worker(""), worker("pod_żółć-0"), {Type: metric.Histogram}} {
		for _, when := range []time.Time{{}, at(0), time.Unix(-5, 0)} {
			got, folded, err := readSpace(appendSpace(nil, s, when))
			if err != nil || got != s || !folded.Equal(when) {
				t.Errorf("%+v, %v, %v; want %+v, %v", got, folded, err, s, when)
			}
		}
	}
}

func TestReadSpaceErrors(t *testing.T) {
	space := func(typ metric.Type, mode metric.Mode, id string) []byte {
		return appendSpace(nil, Space{typ, mode, id}, at(0))
	}
	for name, data := range map[string][]byte{
		"empty":               {},
		"cut":                 space(metric.Counter, 0, "")[:9],
		"unknown_type":        space(metric.Unknown, 0, ""),
		"type_of_the_future":  space(metric.Summary+1, 0, ""),
		"counter_with_mode":   space(metric.Counter, metric.Sum, ""),
		"gauge_without_mode":  space(metric.Gauge, 0, ""),
		"mode_of_the_future":  space(metric.Gauge, metric.LiveMostRecent+1, ""),
		"live":                space(metric.Gauge, metric.LiveSum, ""),
		"worker_of_a_counter": space(metric.Counter, 0, "7"),
		"worker_is_a_path":    space(metric.Gauge, metric.All, "../x"),
		"worker_not_utf8":     space(metric.Gauge, metric.All, "\xff"),
	} {
		if s, _, err := readSpace(data); err == nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestSeal: the checksum belongs to the key as much as to the data.
func TestSeal(t *testing.T) {
	sealed := seal([]byte("key"), []byte("data"))
	if data, err := unseal([]byte("key"), sealed); err != nil || string(data) != "data" {
		t.Errorf("%q, %v", data, err)
	}
	for name, tc := range map[string]struct{ key, sealed []byte }{
		"other_key": {[]byte("kez"), sealed},
		"no_key":    {nil, sealed},
		"cut":       {[]byte("key"), sealed[:len(sealed)-1]},
		"short":     {[]byte("key"), sealed[:3]},
		"missing":   {[]byte("key"), nil},
		"longer":    {[]byte("key"), append(slices.Clone(sealed), 0)},
	} {
		if data, err := unseal(tc.key, tc.sealed); err == nil {
			t.Errorf("%s: %q", name, data)
		}
	}
	for i := range sealed {
		for bit := range 8 {
			bad := slices.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := unseal([]byte("key"), bad); err == nil {
				t.Errorf("byte %d, bit %d", i, bit)
			}
		}
	}
}

// readBaseline unpacks a baseline as a record does: what countValues lets in, appendValues must
// unpack, into the room that the count tells of.
func readBaseline(t *testing.T, data []byte) ([]float64, error) {
	t.Helper()
	n, err := countValues(data)
	values, errAppend := appendValues(make([]float64, 0, n), data)
	if (err == nil) != (errAppend == nil) || err == nil && len(values) != n {
		t.Fatalf("% x: counted %d, %v; unpacked %d, %v", data, n, err, len(values), errAppend)
	}
	return values, err
}

func FuzzBaseline(f *testing.F) {
	f.Add(appendBaseline(nil, odd))
	f.Add([]byte{2, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f})
	f.Add([]byte{1, 0x80, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		values, err := readBaseline(t, data)
		if err != nil {
			return
		}
		// Each value takes a byte or more.
		if cap(values) > len(data) {
			t.Errorf("room for %d values from %d bytes", cap(values), len(data))
		}
		again, err := readBaseline(t, appendBaseline(nil, values))
		if err != nil || !sameBits(again, values) {
			t.Errorf("%v became %v, %v", values, again, err)
		}
	})
}

func FuzzChunk(f *testing.F) {
	f.Add(appendChunk(nil, odd, odd), uint16(len(odd)))
	f.Add(appendChunk(nil, odd, make([]float64, len(odd))), uint16(len(odd)))
	f.Add([]byte{2}, uint16(0))
	f.Fuzz(func(t *testing.T, data []byte, n uint16) {
		n %= chunkValues + 1
		hi, second := make([]float64, n), make([]float64, n)
		if readChunk(data, hi, second) != nil {
			return
		}
		hiAgain, secondAgain := make([]float64, n), make([]float64, n)
		if err := readChunk(appendChunk(nil, hi, second), hiAgain, secondAgain); err != nil || !sameBits(hi, hiAgain) ||
			!sameBits(second, secondAgain) {
			t.Errorf("%v, %v became %v, %v, %v", hi, second, hiAgain, secondAgain, err)
		}
	})
}

func FuzzSpace(f *testing.F) {
	f.Add(appendSpace(nil, worker("7"), at(0)))
	f.Add(appendSpace(nil, counters, time.Time{}))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, folded, err := readSpace(data)
		if err != nil {
			return
		}
		if again := appendSpace(nil, s, folded); !bytes.Equal(again, data) {
			t.Errorf("%x became %x", data, again)
		}
		kept, ok := SpaceOf(s.Type, s.Mode, s.Worker)
		if s.Mode != metric.All {
			kept.Worker = s.Worker // kept apart for a while by a rule
		}
		if !ok || kept != s {
			t.Errorf("%+v is the space of no file", s)
		}
	})
}
