package metric

import (
	"math"
	"strconv"
	"testing"
)

func TestModes(t *testing.T) {
	for _, name := range ModeNames() {
		m, ok := ParseMode(name)
		if !ok || m == NoMode {
			t.Errorf("ParseMode(%q) = %v, %v", name, m, ok)
		}
		if m.String() != name && name != "latest" && name != "livelatest" {
			t.Errorf("%q reads back as %q", name, m)
		}
		base := m.Base()
		if m.Live() != (m.String() == "live"+base.String()) || base.Live() {
			t.Errorf("%q: live %v, base %q", name, m.Live(), base)
		}
	}
	for _, name := range []string{"", "live", "ALL", "all ", "avg"} {
		if m, ok := ParseMode(name); ok {
			t.Errorf("ParseMode(%q) = %v", name, m)
		}
	}
}

func TestTypes(t *testing.T) {
	for typ := Counter; typ <= Summary; typ++ {
		if got, ok := ParseType(typ.String()); !ok || got != typ {
			t.Errorf("%v reads back as %v", typ, got)
		}
	}
	if _, ok := ParseType("unknown"); ok {
		t.Error("no client writes the type unknown")
	}
}

// TestAppendBound holds spellings that prometheus_client 0.16's floatToGoString gave.
func TestAppendBound(t *testing.T) {
	for _, tc := range []struct {
		in   float64
		want string
	}{
		{0, "0.0"},
		{math.Copysign(0, -1), "-0.0"},
		{1, "1.0"},
		{0.5, "0.5"},
		{-5, "-5.0"},
		{0.005, "0.005"},
		{0.0001, "0.0001"},
		{0.00001, "1e-05"},
		{123456.5, "123456.5"},
		{999999, "999999.0"},
		{1e6, "1e+06"},
		{2.5e7, "2.5e+07"},
		{1234567.25, "1.23456725e+06"},
		{-1e6, "-1000000.0"},
		{-123456789, "-123456789.0"},
		{-1e16, "-1e+16"},
		{1e16, "1e+16"},
		{1e21, "1e+21"},
		{5e-324, "5e-324"},
		{math.MaxFloat64, "1.7976931348623157e+308"},
		{math.Inf(1), "+Inf"},
		{math.Inf(-1), "-Inf"},
		{math.NaN(), "NaN"},
	} {
		if got := string(AppendBound(nil, tc.in)); got != tc.want {
			t.Errorf("AppendBound(%v) = %q, want %q", tc.in, got, tc.want)
		}
	}
}

// TestBoundStyle holds spellings of floatToGoString in prometheus_client 0.25 and before, and
// after.
func TestBoundStyle(t *testing.T) {
	for _, tc := range []struct {
		in        float64
		old, late string
	}{
		{5, "5.0", "5.0"},
		{1e6, "1e+06", "1e+06"},
		{9999999999, "9.999999999e+09", "9.999999999e+09"},
		{1e10, "1e+010", "1e+10"},
		{12345678901, "1.2345678901e+010", "1.2345678901e+10"},
		{2.5e15, "2.5e+015", "2.5e+15"},
		{1e16, "1e+16", "1e+16"},
		{math.Inf(1), "+Inf", "+Inf"},
	} {
		if got := string(ThreeDigits.Append([]byte("le="), tc.in)); got != "le="+tc.old {
			t.Errorf("%v in three digits: %q, want %q", tc.in, got, tc.old)
		}
		if got := string(TwoDigits.Append(nil, tc.in)); got != tc.late {
			t.Errorf("%v in two digits: %q, want %q", tc.in, got, tc.late)
		}
		if differ := tc.old != tc.late; HasStyle(tc.in) != differ || StyleOf(tc.late) != TwoDigits ||
			differ && StyleOf(tc.old) != ThreeDigits {
			t.Errorf("%v: HasStyle %v, %q is %v, %q is %v", tc.in, HasStyle(tc.in), tc.old, StyleOf(tc.old), tc.late, StyleOf(tc.late))
		}
	}
}

func TestParseBound(t *testing.T) {
	for in, want := range map[string]float64{
		"1": 1, "1.0": 1, "1e+06": 1e6, "+Inf": math.Inf(1), "inf": math.Inf(1), "Infinity": math.Inf(1), "-Inf": math.Inf(-1),
		"1e999": math.Inf(1),
	} {
		if got, ok := ParseBound(in); !ok || got != want {
			t.Errorf("ParseBound(%q) = %v, %v, want %v", in, got, ok, want)
		}
	}
	for _, in := range []string{"", "wide", "1,5", "1 "} {
		if got, ok := ParseBound(in); ok {
			t.Errorf("ParseBound(%q) = %v, want no number", in, got)
		}
	}
}

func TestAppendValue(t *testing.T) {
	for _, tc := range []struct {
		in   float64
		want string
	}{
		{0, "0"},
		{math.Copysign(0, -1), "-0"},
		{1, "1"},
		{-1, "-1"},
		{1e15 - 1, "999999999999999"},
		{1e15, "1e+15"},
		{9007199254740993, "9.007199254740992e+15"},
		{math.MinInt64, "-9.223372036854775808e+18"},
		{0.1, "0.1"},
		{1e21, "1e+21"},
		{5e-324, "5e-324"},
		{math.Inf(1), "+Inf"},
		{math.Inf(-1), "-Inf"},
		{math.NaN(), "NaN"},
	} {
		got := string(AppendValue(nil, tc.in))
		back, err := strconv.ParseFloat(got, 64)
		if err != nil || (math.Float64bits(back) != math.Float64bits(tc.in) && tc.in == tc.in) {
			t.Errorf("%q reads back as %v, %v", got, back, err)
		}
		if tc.in != math.MinInt64 && got != tc.want {
			t.Errorf("AppendValue(%v) = %q, want %q", tc.in, got, tc.want)
		}
	}
	for i := -10; i < 10010; i++ {
		if got, want := string(AppendValue([]byte("x "), float64(i))), "x "+strconv.Itoa(i); got != want {
			t.Errorf("AppendValue(%d) = %q, want %q", i, got, want)
		}
	}
	buf := make([]byte, 0, 64)
	if n := testing.AllocsPerRun(100, func() { buf = AppendBound(AppendValue(buf[:0], 0.25), 17) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestCompareLabels(t *testing.T) {
	sorted := [][]Label{nil, {{"a", ""}}, {{"a", ""}, {"b", "1"}}, {{"a", "1"}}, {{"b", ""}}}
	for i := range sorted {
		for j := range sorted {
			if got := CompareLabels(sorted[i], sorted[j]); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%v against %v: %d", sorted[i], sorted[j], got)
			}
		}
	}
}
