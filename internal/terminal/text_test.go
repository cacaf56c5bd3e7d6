package terminal

import (
	"bytes"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

func TestPrintable(t *testing.T) {
	for name, tc := range map[string]struct{ in, want string }{
		"empty":          {"", ""},
		"plain":          {`http_requests_total{path="/"}`, `http_requests_total{path="/"}`},
		"other_scripts":  {"größe 温度 e\u0301", "größe 温度 e\u0301"},
		"backslash":      {`a\nb`, `a\nb`},
		"escape":         {"\x1b[2Jgone", `\x1b[2Jgone`},
		"newline_tab":    {"a\nb\tc\rd", `a\nb\tc\rd`},
		"c1_csi":         {"\u009b31mred", `\u009b31mred`},
		"c1_as_a_byte":   {"\x9b31mred", `\x9b31mred`},
		"delete":         {"a\x7f", `a\x7f`},
		"direction":      {"\u202etxt.exe", `\u202etxt.exe`},
		"line_separator": {"a\u2028b", `a\u2028b`},
		"torn_rune":      {"ab\xe6\xb8", `ab\xe6\xb8`},
		"real_fffd":      {"\ufffd", "\ufffd"},
		"quotes":         {"\"'\x00", `"'\x00`},
	} {
		t.Run(name, func(t *testing.T) {
			got := Printable(tc.in)
			if got != tc.want {
				t.Errorf("%q becomes %q, want %q", tc.in, got, tc.want)
			}
			if again := Printable(got); again != got {
				t.Errorf("%q is not printable: it becomes %q", got, again)
			}
		})
	}
}

// TestPrintableAll: no character and no byte gets through that a terminal acts upon.
func TestPrintableAll(t *testing.T) {
	check := func(in string) {
		out := Printable(in)
		if !utf8.ValidString(out) || strings.ContainsFunc(out, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsControl(r) }) {
			t.Fatalf("%q becomes %q", in, out)
		}
	}
	for r := rune(0); r <= unicode.MaxRune; r++ {
		check(string(r))
	}
	for b := range 256 {
		check("a" + string([]byte{byte(b)}) + "b")
	}
}

func TestCut(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		most int
		want string
	}{
		"fits":       {"abc", 3, "abc"},
		"longer":     {"abcd", 3, "ab…"},
		"one":        {"abcd", 1, "…"},
		"none":       {"abcd", 0, ""},
		"negative":   {"abcd", -1, ""},
		"wide":       {"温度計", 6, "温度計"},
		"wide_cut":   {"温度計", 5, "温度…"},
		"wide_half":  {"温度計", 4, "温…"},
		"combining":  {"e\u0301e\u0301", 2, "e\u0301e\u0301"},
		"bytes_many": {"äöü", 3, "äöü"},
	} {
		t.Run(name, func(t *testing.T) {
			got := Cut(tc.in, tc.most)
			if got != tc.want || Columns(got) > max(tc.most, 0) {
				t.Errorf("%q of %d columns, want %q", got, Columns(got), tc.want)
			}
		})
	}
}

func TestWrap(t *testing.T) {
	for name, tc := range map[string]struct {
		in      string
		columns int
		want    string
	}{
		"fits":      {"a b", 3, "a b"},
		"any_width": {"a b c d", 0, "a b c d"},
		"words":     {"one two three", 7, "one two|three"},
		"long_word": {"a /very/long/path b", 6, "a|/very/long/path|b"},
		"wide":      {"温度 計", 4, "温度|計"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Wrap(tc.in, tc.columns), "|"); got != tc.want {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	in := "a\tb\x1b[1m\nc\u009bd\n"
	n, err := Lines(&out).Write([]byte(in))
	if n != len(in) || err != nil || out.String() != "a\tb\\x1b[1m\nc\\u009bd\n" {
		t.Errorf("%d bytes, %v: %q", n, err, out.String())
	}
}
