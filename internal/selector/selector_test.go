package selector

import (
	"strings"
	"testing"

	"aggregatord/internal/metric"
)

func TestMatches(t *testing.T) {
	labels := []metric.Label{{Name: "method", Value: "GET"}, {Name: "path", Value: `/a"b\c` + "\nd"}}
	for _, tc := range []struct {
		text string
		want bool
	}{
		{`requests_total`, true},
		{` requests_total `, true},
		{`requests`, false},
		{`{}`, true},
		{`requests_total{}`, true},
		{`requests_total{method="GET"}`, true},
		{`requests_total{ method = "GET" , }`, true},
		{`requests_total{method='GET'}`, true},
		{"requests_total{method=`GET`}", true},
		{`requests_total{method="POST"}`, false},
		{`requests_total{method!="POST"}`, true},
		{`requests_total{method=~"G.."}`, true},
		{`requests_total{method=~"G."}`, false},
		{`requests_total{method!~"P.*"}`, true},
		{`requests_total{method!~"G.*"}`, false},
		{`requests_total{absent=""}`, true},
		{`requests_total{absent!=""}`, false},
		{`requests_total{path="/a\"b\\c\nd"}`, true},
		{`requests_total{path=~"/a.*d"}`, true},
		{`{__name__="requests_total"}`, true},
		{`{__name__=~"requests_.*",method="GET"}`, true},
		{`{__name__!="requests_total"}`, false},
		{`{"requests_total","method"="GET"}`, true},
		{`{"requests_total"}`, true},
		{`{"other"}`, false},
	} {
		s, err := Parse(tc.text)
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		if got := s.Matches("requests_total", labels, "", ""); got != tc.want {
			t.Errorf("%s: %v", tc.text, got)
		}
	}
}

// TestBounds: a bucket is found however its bound is spelled.
func TestBounds(t *testing.T) {
	for text, want := range map[string]bool{
		`b{le="1.0"}`: true, `b{le="1"}`: true, `b{le="1e0"}`: true, `b{le="2"}`: false,
		`b{le!="1"}`: false, `b{le=~"1.*"}`: true, `b{le!="2"}`: true,
	} {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Matches("b", nil, "le", "1.0"); got != want {
			t.Errorf("%s: %v", text, got)
		}
	}
}

func TestErrors(t *testing.T) {
	for text, says := range map[string]string{
		``:               "empty",
		`{`:              "name of a label",
		`a{b}`:           "expected =",
		`a{b=c}`:         "in quotes",
		`a{b="c}`:        "no end",
		`a{b="c"`:        "expected , or }",
		`a{b="c"} x`:     "nothing may follow",
		`a{b=~"("}`:      "regular expression",
		`a{b="\q"}`:      "escape",
		`a b`:            "expected {",
		`a{"b"}`:         "two names",
		`rate(a[5m])`:    "expected {",
		`a{b="c" d="e"}`: "expected , or }",
		`a{,}`:           "name of a label",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want something about %q", text, err, says)
		}
	}
}

// FuzzParse: what Format spells, Parse reads as this very series and no other.
func FuzzParse(f *testing.F) {
	f.Add("requests_total", "path", "/")
	f.Add("http.requests", "a b", "\"\\\n'`{}\x00\xff☃")
	f.Fuzz(func(t *testing.T, name, label, value string) {
		Parse(value) //nolint:errcheck // that it returns is all
		if name == "" || label == "" || label == nameLabel || len(name)+len(label)+len(value) > 1000 {
			t.Skip()
		}
		labels := []metric.Label{{Name: label, Value: value}}
		text := Format(name, labels, "", "")
		s, err := Parse(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if !s.Matches(name, labels, "", "") {
			t.Errorf("%s does not mean itself", text)
		}
		if s.Matches(name, []metric.Label{{Name: label, Value: value + "x"}}, "", "") || s.Matches(name+"x", labels, "", "") {
			t.Errorf("%s means others, too", text)
		}
	})
}
