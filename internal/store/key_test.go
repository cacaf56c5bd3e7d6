package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"aggregatord/internal/metric"
)

// key builds a metric.Key, whose labels are given as name, value, name, value.
func key(family, sample, help string, labels ...string) metric.Key {
	k := metric.Key{Family: family, Help: help, Series: metric.Series{Sample: sample}}
	for i := 0; i < len(labels); i += 2 {
		k.Series.Labels = append(k.Series.Labels, metric.Label{Name: labels[i], Value: labels[i+1]})
	}
	return k
}

func TestParseKey(t *testing.T) {
	for _, test := range []struct {
		name, raw string
		want      metric.Key
	}{
		{"with_help", `["f", "f_total", {"a": "1"}, "Help."]`, key("f", "f_total", "Help.", "a", "1")},
		{"without_help", `["f", "f_total", {"a": "1"}]`, key("f", "f_total", "", "a", "1")},
		{"no_labels", `["f", "f_total", {}, "Help."]`, key("f", "f_total", "Help.")},
		{"lists", `["f","f_total",["a","b"],["1","2"]]`, key("f", "f_total", "", "a", "1", "b", "2")},
		{"lists_empty", `["f","f_total",[],[]]`, key("f", "f_total", "")},
		{"lists_with_help", `["f","f_total",["a"],["1"],"Help."]`, key("f", "f_total", "Help.", "a", "1")},
		{"lists_unsorted", `["f","f_total",["b","a"],["2","1"]]`, key("f", "f_total", "", "a", "1", "b", "2")},
		{"lists_twice", `["f","f_total",["a","b","a"],["1","2","3"]]`, key("f", "f_total", "", "a", "3", "b", "2")},
		{"lists_scalars", `["f","f",["a","b"],[1,null]]`, key("f", "f", "", "a", "1", "b", "")},
		{"help_null", `["f", "f", {}, null]`, key("f", "f", "")},
		{"help_empty", `["f", "f", {}, ""]`, key("f", "f", "")},
		{"unsorted", `["f","f",{"z":"26","a":"1","m":"13"}]`, key("f", "f", "", "a", "1", "m", "13", "z", "26")},
		{"label_twice", `["f","f",{"a":"1","a":"2"}]`, key("f", "f", "", "a", "2")},
		{"label_thrice_apart", `["f","f",{"b":"x","a":"1","b":"y","c":"","b":"z"}]`, key("f", "f", "", "a", "1", "b", "z", "c", "")},
		{"label_empty", `["f","f",{"a":""}]`, key("f", "f", "", "a", "")},
		{
			"scalars", `["f","f",{"a":1,"b":-0.50e+1,"c":true,"d":false,"e":null,"f":0,"g":1E9}]`,
			key("f", "f", "", "a", "1", "b", "-0.50e+1", "c", "true", "d", "false", "e", "", "f", "0", "g", "1E9"),
		},
		{"big_number", `["f","f",{"a":123456789012345678901234567890}]`, key("f", "f", "", "a", "123456789012345678901234567890")},
		{"white_space", " [\t\"f\"\n,\r\"f\" , { \"a\" : 1 , \"b\" : \"2\" } , \"h\" ] \n", key("f", "f", "h", "a", "1", "b", "2")},
		{"white_space_lists", ` [ "f" , "f" , [ "a" ] , [ "1" ] , null ] `, key("f", "f", "", "a", "1")},
		{"escapes", `["f","f",{"a":"\"\\\/\b\f\n\r\t"}]`, key("f", "f", "", "a", "\"\\/\b\f\n\r\t")},
		{"unicode_escapes", `["f","f",{"a":"\u007a\u00F3\u0142\u0107"}]`, key("f", "f", "", "a", "zółć")},
		{"nul", `["f","f",{"a":"\u0000"}]`, key("f", "f", "", "a", "\x00")},
		{"surrogate_pair", `["f","f",{"a":"\ud83d\uDE00"}]`, key("f", "f", "", "a", "😀")},
		{"high_surrogate_alone", `["f","f",{"a":"x\ud83dy"}]`, key("f", "f", "", "a", "x\ufffdy")},
		{"low_surrogate_alone", `["f","f",{"a":"\ude00"}]`, key("f", "f", "", "a", "\ufffd")},
		{"high_surrogate_last", `["f","f",{"a":"\ud83d"}]`, key("f", "f", "", "a", "\ufffd")},
		{"two_high_surrogates", `["f","f",{"a":"\ud83d\ud83d\ude00"}]`, key("f", "f", "", "a", "\ufffd😀")},
		{"surrogate_and_letter", `["f","f",{"a":"\ud83d\u0041"}]`, key("f", "f", "", "a", "\ufffdA")},
		{"raw_utf8", `["f","f",{"ł":"日本語 😀"}, "Pomoc ąę"]`, key("f", "f", "Pomoc ąę", "ł", "日本語 😀")},
		{"names_are_any_text", `["a b","a.b/c",{"x-y":"1"}]`, key("a b", "a.b/c", "", "x-y", "1")},
		{"name_by_escape", `["\u0066","f\n",{"\u0061":"1"}]`, key("f", "f\n", "", "a", "1")},
		{"many_labels", manyLabels(40), key("f", "f", "", manyPairs(40)...)},
		{"long", `["f","f",{"a":"` + strings.Repeat("x", 5000) + `"}]`, key("f", "f", "", "a", strings.Repeat("x", 5000))},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.want.NoHelp = test.want.Help == "" && !strings.HasSuffix(test.raw, `""]`)
			raw := []byte(test.raw)
			got, err := ParseKey(raw)
			if err != nil {
				t.Fatal(err)
			}
			clear(raw) // the result owns its strings
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got  %+v\nwant %+v", got, test.want)
			}
		})
	}
}

func manyPairs(n int) []string {
	var pairs []string
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("l%03d", i), fmt.Sprint(i))
	}
	return pairs
}

// manyLabels is a key with n labels in falling order.
func manyLabels(n int) string {
	s := `["f","f",{`
	for i := n - 1; i >= 0; i-- {
		s += fmt.Sprintf(`"l%03d":"%d"`, i, i)
		if i > 0 {
			s += ","
		}
	}
	return s + `}]`
}

var badKeys = []struct{ name, raw, what string }{
	{"empty", ``, "not an array"},
	{"spaces", `   `, "not an array"},
	{"object", `{"f":"f"}`, "not an array"},
	{"empty_array", `[]`, "family name is not a string"},
	{"one_element", `["f"]`, "ends too early"},
	{"two_elements", `["f","f"]`, "ends too early"},
	{"family_empty", `["","f",{}]`, "family name is empty"},
	{"family_number", `[1,"f",{}]`, "family name is not a string"},
	{"sample_empty", `["f","",{}]`, "sample name is empty"},
	{"sample_null", `["f",null,{}]`, "sample name is not a string"},
	{"labels_string", `["f","f","a"]`, "neither an object nor a list"},
	{"labels_null", `["f","f",null]`, "neither an object nor a list"},
	{"labels_missing", `["f","f",`, "neither an object nor a list"},
	{"label_name_empty", `["f","f",{"":"1"}]`, "label name is empty"},
	{"label_name_number", `["f","f",{1:"1"}]`, "label name is not a string"},
	{"label_name_reserved", `["f","f",{"__name__":"g"}]`, "named __name__"},
	{"label_name_reserved_escaped", `["f","f",{"__name_\u005f":"g"}]`, "named __name__"},
	{"label_name_reserved_list", `["f","f",["__name__"],["g"]]`, "named __name__"},
	{"label_value_object", `["f","f",{"a":{}}]`, "not a scalar"},
	{"label_value_list", `["f","f",{"a":[]}]`, "not a scalar"},
	{"label_value_missing", `["f","f",{"a":}]`, "not a scalar"},
	{"label_value_nan", `["f","f",{"a":NaN}]`, "not a scalar"},
	{"label_value_word", `["f","f",{"a":nul}]`, "not a JSON value"},
	{"label_value_leading_zero", `["f","f",{"a":01}]`, "do not end"},
	{"label_value_no_digits", `["f","f",{"a":-}]`, "not a JSON number"},
	{"label_value_no_fraction", `["f","f",{"a":1.}]`, "not a JSON number"},
	{"label_value_no_exponent", `["f","f",{"a":1e+}]`, "not a JSON number"},
	{"label_value_plus", `["f","f",{"a":+1}]`, "not a scalar"},
	{"no_colon", `["f","f",{"a" "1"}]`, "no colon"},
	{"comma_before_brace", `["f","f",{"a":"1",}]`, "label name is not a string"},
	{"object_unfinished", `["f","f",{"a":"1"`, "do not end"},
	{"lists_shorter_values", `["f","f",["a","b"],["1"]]`, "fewer label values"},
	{"lists_longer_values", `["f","f",["a"],["1","2"]]`, "more label values"},
	{"lists_no_values", `["f","f",["a"],[]]`, "fewer label values"},
	{"lists_no_names", `["f","f",[],["1"]]`, "more label values"},
	{"lists_only_names", `["f","f",["a"]]`, "ends too early"},
	{"lists_then_help", `["f","f",["a"],"Help."]`, "values are not a list"},
	{"lists_comma_at_end", `["f","f",["a",],["1"]]`, "label name is not a string"},
	{"lists_name_number", `["f","f",[1],["1"]]`, "label name is not a string"},
	{"lists_unfinished", `["f","f",["a"`, "list does not end"},
	{"help_number", `["f","f",{},1]`, "help is not a string"},
	{"help_object", `["f","f",{},{}]`, "help is not a string"},
	{"help_missing", `["f","f",{},]`, "help is not a string"},
	{"help_word", `["f","f",{},nope]`, "not a JSON value"},
	{"five_elements", `["f","f",{},"h","i"]`, "does not end where"},
	{"six_elements", `["f","f",[],[],"h","i"]`, "does not end where"},
	{"unfinished", `["f","f",{}`, "does not end where"},
	{"trailing_bytes", `["f","f",{}] x`, "after the end"},
	{"trailing_nul", "[\"f\",\"f\",{}]\x00", "after the end"},
	{"two_arrays", `["f","f",{}]["f","f",{}]`, "after the end"},
	{"string_unfinished", `["f","f",{"a":"1`, "string does not end"},
	{"escape_unfinished", `["f","f",{"a":"\`, "string does not end"},
	{"escape_unknown", `["f","f",{"a":"\x41"}]`, "unknown escape"},
	{"escape_short", `["f","f",{"a":"\u12"}]`, "hexadecimal"},
	{"escape_no_hex", `["f","f",{"a":"\u12g4"}]`, "hexadecimal"},
	{"escape_after_surrogate_bad", `["f","f",{"a":"\ud83d\u12g4"}]`, "hexadecimal"},
	{"control_character", "[\"f\",\"f\",{\"a\":\"\n\"}]", "control character"},
	{"nul_in_string", "[\"f\",\"f\",{\"a\":\"\x00\"}]", "control character"},
	{"utf8_invalid", "[\"f\",\"f\",{\"a\":\"\xff\"}]", "invalid UTF-8"},
	{"utf8_cut", "[\"f\",\"f\",{\"a\":\"\xc5\"}]", "invalid UTF-8"},
	{"utf8_cut_by_escape", "[\"f\",\"f\",{\"a\":\"\xc5\\n\x82\"}]", "invalid UTF-8"},
	{"utf8_surrogate", "[\"f\",\"f\",{\"a\":\"\xed\xa0\xbd\"}]", "invalid UTF-8"},
	{"utf8_bom", "\ufeff[\"f\",\"f\",{}]", "not an array"},
	{"utf8_in_help", "[\"f\",\"f\",{},\"\x80\"]", "invalid UTF-8"},
	{"no_break_space", "[\"f\",\u00a0\"f\",{}]", "sample name is not a string"},
}

func TestParseKeyRefuses(t *testing.T) {
	for _, test := range badKeys {
		t.Run(test.name, func(t *testing.T) {
			k, err := ParseKey([]byte(test.raw))
			var bad *KeyError
			if !errors.As(err, &bad) {
				t.Fatalf("got %+v, %v, want a KeyError", k, err)
			}
			if bad.Offset < 0 || bad.Offset > len(test.raw) {
				t.Errorf("offset %d is outside the key", bad.Offset)
			}
			if !strings.Contains(err.Error(), test.what) {
				t.Errorf("the error is %q, want it to say %q", err, test.what)
			}
			if ReasonOf(err) != BadKey {
				t.Errorf("ReasonOf(%v) = %q", err, ReasonOf(err))
			}
			if !reflect.DeepEqual(k, metric.Key{}) {
				t.Errorf("%+v beside an error", k)
			}
		})
	}
}

func TestParseKeyAllocations(t *testing.T) {
	raw := []byte(`["http_requests", "http_requests_total", {"method": "GET", "path": "/\u0142", "status": "200"}, "Requests."]`)
	n := testing.AllocsPerRun(100, func() {
		if _, err := ParseKey(raw); err != nil {
			t.Fatal(err)
		}
	})
	// Family, series, help, labels.
	if n > 4 {
		t.Errorf("%v allocations, want at most 4", n)
	}
}

// TestAppendKey holds what Python 3.11 writes:
//
//	json.dumps([family, sample, labels, help], sort_keys=True)
func TestAppendKey(t *testing.T) {
	for _, test := range []struct {
		name string
		key  metric.Key
		want string
	}{
		{"plain", key("f", "f_total", "Help.", "a", "1", "b", "2"), `["f", "f_total", {"a": "1", "b": "2"}, "Help."]`},
		{"no_labels", key("f", "f", ""), `["f", "f", {}, ""]`},
		{"no_help", metric.Key{Family: "f", Series: metric.Series{Sample: "f"}, NoHelp: true}, `["f", "f", {}]`},
		{"escapes", key("f", "f", "", "a", "\"\\/\b\f\n\r\t\x00\x1f\x7f"), `["f", "f", {"a": "\"\\/\b\f\n\r\t\u0000\u001f\u007f"}, ""]`},
		{"non_ascii", key("f", "f", "zażółć", "a", "日本語"), `["f", "f", {"a": "\u65e5\u672c\u8a9e"}, "za\u017c\u00f3\u0142\u0107"]`},
		{"astral", key("f", "f", "", "a", "x😀y"), `["f", "f", {"a": "x\ud83d\ude00y"}, ""]`},
		{"replacement", key("f", "f", "", "a", "\ufffd"), `["f", "f", {"a": "\ufffd"}, ""]`},
		{"not_utf8", key("f", "f", "", "a", "x\xffy"), `["f", "f", {"a": "x\ufffdy"}, ""]`},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := AppendKey([]byte("> "), test.key)
			if string(got) != "> "+test.want {
				t.Errorf("got  %s\nwant > %s", got, test.want)
			}
		})
	}
}

// modelKey is ParseKey by encoding/json: slow and obvious.
func modelKey(raw []byte) (k metric.Key, ok bool) {
	if !utf8.Valid(raw) || !json.Valid(raw) {
		return k, false
	}
	var elements []json.RawMessage
	if json.Unmarshal(raw, &elements) != nil || len(elements) < 3 {
		return k, false
	}
	text := func(raw json.RawMessage, s *string) bool { return raw[0] == '"' && json.Unmarshal(raw, s) == nil }
	scalar := func(raw json.RawMessage) (s string, ok bool) {
		switch raw[0] {
		case '"':
			return s, text(raw, &s)
		case '{', '[':
			return "", false
		case 'n':
			return "", true
		}
		return string(raw), true
	}
	if !text(elements[0], &k.Family) || !text(elements[1], &k.Series.Sample) || k.Family == "" || k.Series.Sample == "" {
		return k, false
	}
	labels := map[string]string{}
	rest := elements[3:]
	if elements[2][0] == '{' {
		// A map keeps the last of equal names, like ours.
		var object map[string]json.RawMessage
		if json.Unmarshal(elements[2], &object) != nil {
			return k, false
		}
		for name, raw := range object {
			value, ok := scalar(raw)
			if !ok {
				return k, false
			}
			labels[name] = value
		}
		// Unmarshal drops the earlier of equal names unseen; they must be scalars as well.
		d := json.NewDecoder(bytes.NewReader(elements[2]))
		for depth := 0; d.More() || depth == 0; {
			tok, err := d.Token()
			if err != nil {
				return k, false
			}
			if delim, is := tok.(json.Delim); is {
				if depth++; depth > 1 || delim != '{' {
					return k, false
				}
			}
		}
	} else if len(rest) > 0 {
		var names, values []json.RawMessage
		if elements[2][0] != '[' || rest[0][0] != '[' || json.Unmarshal(elements[2], &names) != nil ||
			json.Unmarshal(rest[0], &values) != nil || len(names) != len(values) {
			return k, false
		}
		for i := range names {
			var name string
			value, ok := scalar(values[i])
			if !ok || !text(names[i], &name) {
				return k, false
			}
			labels[name] = value
		}
		rest = rest[1:]
	} else {
		return k, false
	}
	for name, value := range labels {
		if name == "" || name == "__name__" {
			return k, false
		}
		k.Series.Labels = append(k.Series.Labels, metric.Label{Name: name, Value: value})
	}
	metric.SortLabels(k.Series.Labels)
	k.NoHelp = len(rest) == 0 || string(rest[0]) == "null"
	switch {
	case len(rest) == 0:
	case len(rest) > 1:
		return k, false
	case string(rest[0]) != "null" && !text(rest[0], &k.Help):
		return k, false
	}
	return k, true
}

// FuzzParseKey compares ParseKey with encoding/json, and checks that what it accepts
// comes back the same when written and read again.
func FuzzParseKey(f *testing.F) {
	seen := map[string]bool{}
	for path := range corpusFiles(f) {
		if path.Case == "grown" {
			continue // thousands of keys alike
		}
		for _, e := range inspect(f, path.Path).Entries {
			if !seen[string(e.RawKey)] {
				seen[string(e.RawKey)] = true
				f.Add(e.RawKey)
			}
		}
	}
	for _, bad := range badKeys {
		f.Add([]byte(bad.raw))
	}
	f.Add([]byte(`["f","f",["a","b","a"],["1","\ud83d\ud83d\ude00",-1.5e3],null]`))
	f.Add([]byte(`["f","f",{"a":{},"a":"1"}]`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		want, ok := modelKey(raw)
		got, err := ParseKey(raw)
		if (err == nil) != ok {
			t.Fatalf("ParseKey(%q): error %v, but encoding/json accepts it: %v", raw, err, ok)
		}
		if err != nil {
			return
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("ParseKey(%q)\n   = %+v\nwant %+v", raw, got, want)
		}
		written := AppendKey(nil, got)
		again, err := ParseKey(written)
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("%q was written as %q and read as %+v, %v", raw, written, again, err)
		}
	})
}

func BenchmarkParseKey(b *testing.B) {
	raw := []byte(`["http_request_duration_seconds", "http_request_duration_seconds_bucket", {"handler": "/api/v1/orders", "le": "0.25", "method": "POST", "status": "200"}, "Time from the first byte read to the last byte written."]`)
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if _, err := ParseKey(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func TestRubyKey(t *testing.T) {
	for raw, want := range map[string]bool{
		`["h","h_bucket",["path","le"],["/","1"]]`:      true,
		`["h","h_sum",[],[]]`:                           true,
		`["h", "h_bucket", ["path", "le"], ["/", "1"]]`: false, // Python before labels were an object
		`["h", "h_bucket", {"a": "\",[", "b": "],["}]`:  false,
		`["h","h_bucket",{"le":"1"},"Help."]`:           false,
		``:                                              false,
	} {
		if got := RubyKey([]byte(raw)); got != want {
			t.Errorf("RubyKey(%s) is %v", raw, got)
		}
	}
}
