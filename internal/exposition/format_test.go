package exposition

import (
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
)

// The headers that real scrapers send.
const (
	acceptPrometheus20 = "text/plain;version=0.0.4;q=1,*/*;q=0.1"
	acceptPrometheus25 = "application/openmetrics-text; version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	acceptPrometheus40 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	acceptNative42     = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	acceptPrometheus3  = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
	acceptProtobuf3    = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
	acceptText3        = "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
	acceptLegacyNames3 = "application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=underscores;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
	acceptFirefox      = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
)

func TestNegotiate(t *testing.T) {
	tests := []struct {
		name, accept string
		want         Format
		contentType  string
	}{
		{"none", "", Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"curl", "*/*", Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"browser", acceptFirefox, Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"plain", "text/plain", Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{"prometheus_2.0", acceptPrometheus20, Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
		{
			"prometheus_2.5", acceptPrometheus25,
			Format{Kind: OpenMetrics001},
			"application/openmetrics-text; version=0.0.1; charset=utf-8; escaping=underscores",
		},
		{
			"prometheus_2.40", acceptPrometheus40,
			Format{Kind: OpenMetrics100},
			"application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
		},
		{
			"prometheus_2.42_native", acceptNative42,
			Format{Kind: Protobuf},
			"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=underscores",
		},
		{
			"prometheus_3", acceptPrometheus3,
			Format{OpenMetrics100, AllowUTF8},
			"application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=allow-utf-8",
		},
		{
			"prometheus_3_protobuf", acceptProtobuf3,
			Format{Protobuf, AllowUTF8},
			"application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited; escaping=allow-utf-8",
		},
		{"prometheus_3_text", acceptText3, Format{Text100, AllowUTF8}, "text/plain; version=1.0.0; charset=utf-8; escaping=allow-utf-8"},
		{
			"prometheus_3_legacy_names", acceptLegacyNames3,
			Format{OpenMetrics100, Underscores},
			"application/openmetrics-text; version=1.0.0; charset=utf-8; escaping=underscores",
		},
		{
			"dots", "text/plain;version=1.0.0;escaping=dots",
			Format{Text100, Dots},
			"text/plain; version=1.0.0; charset=utf-8; escaping=dots",
		},
		{
			"values", "text/plain;version=0.0.4;escaping=values",
			Format{Text004, Values},
			"text/plain; version=0.0.4; charset=utf-8; escaping=values",
		},
		{
			"unknown_escaping", "text/plain;version=1.0.0;escaping=rot13",
			Format{Text100, Underscores},
			"text/plain; version=1.0.0; charset=utf-8; escaping=underscores",
		},
		{
			"no_quoted_names_in_0.0.4", "text/plain;version=0.0.4;escaping=allow-utf-8",
			Format{},
			"text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
		},
		{
			"weights", "application/openmetrics-text;version=1.0.0;q=0.2,text/plain;version=0.0.4;q=0.9",
			Format{},
			"text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
		},
		{
			"refused", "application/openmetrics-text;version=1.0.0;q=0,text/plain;version=1.0.0;q=0.1",
			Format{Kind: Text100},
			"text/plain; version=1.0.0; charset=utf-8; escaping=underscores",
		},
		{
			"only_refused", "application/openmetrics-text;version=1.0.0;q=0",
			Format{},
			"text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
		},
		{
			"refused_with_spaces", "application/openmetrics-text; version=1.0.0; q = 0.000 , text/html",
			Format{},
			"text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
		},
		{
			"openmetrics_without_version", "application/openmetrics-text",
			Format{Kind: OpenMetrics001},
			"application/openmetrics-text; version=0.0.1; charset=utf-8; escaping=underscores",
		},
		{
			"protobuf_text_is_not_served", "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text",
			Format{},
			"text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
		},
		{
			"unknown_version", "application/openmetrics-text;version=9.9.9,text/plain;version=7",
			Format{},
			"text/plain; version=0.0.4; charset=utf-8; escaping=underscores",
		},
		{"garbage", ";;,=/,q=0;q=0,", Format{}, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got := Negotiate(test.accept)
			if got != test.want {
				t.Errorf("Negotiate(%q) = %+v, want %+v", test.accept, got, test.want)
			}
			if ct := got.ContentType(); ct != test.contentType {
				t.Errorf("ContentType = %q, want %q", ct, test.contentType)
			}
			if ft := expfmt.Format(got.ContentType()).FormatType(); ft == expfmt.TypeUnknown && got.Kind != Text100 {
				t.Errorf("expfmt does not know %q", got.ContentType())
			}
		})
	}
}

func TestParseAccept(t *testing.T) {
	om, text, text1 := Format{Kind: OpenMetrics100}, Format{}, Format{Text100, AllowUTF8}
	for _, test := range []struct {
		name    string
		accept  []string
		formats []Format
	}{
		{"none", nil, []Format{text}},
		{"empty", []string{""}, []Format{text}},
		{"curl", []string{"*/*"}, []Format{text}},
		{"only_openmetrics", []string{"application/openmetrics-text;version=1.0.0"}, []Format{om}},
		{"openmetrics_or_anything", []string{"application/openmetrics-text;version=1.0.0,*/*;q=0.1"}, []Format{om, text}},
		{
			"several_lines",
			[]string{"application/openmetrics-text;version=1.0.0;q=0.5", "text/plain;version=0.0.4;q=0.3"},
			[]Format{om, text},
		},
		{
			"several_lines_by_weight",
			[]string{"text/plain;version=0.0.4;q=0.3", "application/openmetrics-text;version=1.0.0;q=0.5"},
			[]Format{om, text},
		},
		{"prometheus_2.40", []string{acceptPrometheus40}, []Format{om, text}},
		{"prometheus_2.42_native", []string{acceptNative42}, []Format{{Kind: Protobuf}, om, text}},
		{"prometheus_3", []string{acceptPrometheus3}, []Format{{OpenMetrics100, AllowUTF8}, text1}},
		{"prometheus_3_protobuf", []string{acceptProtobuf3}, []Format{{Protobuf, AllowUTF8}, {OpenMetrics100, AllowUTF8}, text1}},
		{"prometheus_3_legacy_names", []string{acceptLegacyNames3}, []Format{om, {Kind: Text100}}},
		{"refused_text", []string{"application/openmetrics-text;version=1.0.0,text/plain;q=0,*/*;q=0.1"}, []Format{om}},
		{"equal_weights_as_they_come", []string{"text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0"}, []Format{text}},
		{"a_wildcard_last", []string{"*/*,application/openmetrics-text;version=1.0.0"}, []Format{om, text}},
		{"case_and_spaces", []string{" Application/OpenMetrics-Text ; Version=1.0.0 ; Q=0.5 "}, []Format{om}},
		{"weight_that_is_none", []string{"application/openmetrics-text;version=1.0.0;q=x,text/plain;q=0.1"}, []Format{text}},
	} {
		if got := ParseAccept(test.accept...); !slices.Equal(got.Formats(), test.formats) {
			t.Errorf("%s: %v, want %v", test.name, got.Formats(), test.formats)
		}
	}
	if got := (Accept{}).Formats(); !slices.Equal(got, []Format{{}}) {
		t.Errorf("the zero value accepts %v", got)
	}
}

func TestParseFormat(t *testing.T) {
	want := map[string]Format{
		"text":        {},
		"text-1.0.0":  {Text100, AllowUTF8},
		"openmetrics": {OpenMetrics100, Underscores},
		"protobuf":    {Protobuf, AllowUTF8},
		"json":        {JSON, AllowUTF8},
	}
	if len(FormatNames()) != len(want) {
		t.Errorf("FormatNames() = %q, want %d names", FormatNames(), len(want))
	}
	for name, format := range want {
		if !slices.Contains(FormatNames(), name) {
			t.Errorf("FormatNames() lacks %q", name)
		}
		if got, err := ParseFormat(name); err != nil || got != format {
			t.Errorf("ParseFormat(%q) = %+v, %v, want %+v", name, got, err, format)
		}
		if format.ContentType() == "" || format.String() == "unknown" {
			t.Errorf("format %q has no content type or no name", name)
		}
	}
	_, err := ParseFormat("xml")
	if err == nil || !strings.Contains(err.Error(), `"xml"`) || !strings.Contains(err.Error(), "text-1.0.0") {
		t.Errorf("ParseFormat(xml): error %v should name the format and the choices", err)
	}
}

func TestCanonicalFormatsHaveEqualBytes(t *testing.T) {
	s := everything()
	for kind := Text004; kind <= JSON; kind++ {
		for escaping := Underscores; escaping <= AllowUTF8; escaping++ {
			f := Format{kind, escaping}
			got, _ := encode(f, s)
			want, _ := encode(f.canonical(), s)
			if got != want {
				t.Errorf("%+v and %+v differ", f, f.canonical())
			}
			if f.canonical() != f.canonical().canonical() {
				t.Errorf("canonical form of %+v is not canonical", f)
			}
		}
	}
}
