package output

import (
	"maps"
	"testing"

	"github.com/prometheus/otlptranslator"

	"aggregatord/internal/metric"
)

func TestOTLPName(t *testing.T) {
	for _, c := range []struct {
		name                         string
		typ                          metric.Type
		asIsUnit, otelName, otelUnit string
	}{
		{"http_requests_total", metric.Counter, "", "http_requests", ""},
		{"http_sent_bytes_total", metric.Counter, "By", "http_sent", "By"},
		{"request_duration_seconds", metric.Histogram, "s", "request_duration", "s"},
		{"temperature_celsius", metric.Gauge, "Cel", "temperature", "Cel"},
		{"cache_hit_ratio", metric.Gauge, "1", "cache_hit", "1"},
		{"cache_hit_ratio", metric.Summary, "", "cache_hit_ratio", ""},
		{"rate_bytes_per_second", metric.Gauge, "", "rate", "By/s"},
		{"seconds", metric.Gauge, "", "seconds", ""},
		{"seconds_total", metric.Counter, "", "seconds", ""},
		// The translation would make other names of these, whatever is done.
		{"requests", metric.Counter, "", "requests", ""},
		{"a__b_seconds", metric.Gauge, "", "a__b_seconds", ""},
		{"seconds_waited_seconds", metric.Gauge, "s", "seconds_waited_seconds", ""},
		{"total_jobs_total", metric.Counter, "", "total_jobs_total", ""},
		{"inprogress", metric.Gauge, "", "inprogress", ""},
	} {
		name, unit := otlpName(c.name, c.typ, NamesAsIs)
		if name != c.name || unit != c.asIsUnit {
			t.Errorf("%s %s as_is: %s %q, want unit %q", c.typ, c.name, name, unit, c.asIsUnit)
		}
		name, unit = otlpName(c.name, c.typ, NamesOTel)
		if name != c.otelName || unit != c.otelUnit {
			t.Errorf("%s %s otel: %s %q, want %s %q", c.typ, c.name, name, unit, c.otelName, c.otelUnit)
		}
	}
}

// TestUnits: the words are those of Prometheus' translation.
func TestUnits(t *testing.T) {
	n := otlptranslator.UnitNamer{}
	for word, unit := range units {
		if got := n.Build(unit); got != word {
			t.Errorf("%s: %s, want %s", unit, got, word)
		}
	}
	for word, unit := range perUnits {
		if got := n.Build("By/" + unit); got != "bytes_per_"+word {
			t.Errorf("per %s: %s, want %s", unit, got, word)
		}
	}
}

func TestGroupPath(t *testing.T) {
	for _, c := range []struct {
		job      string
		grouping map[string]string
		want     string
	}{
		{"nightly", nil, "/metrics/job/nightly"},
		{"a b", map[string]string{"z": "1", "a": "2"}, "/metrics/job/a%20b/a/2/z/1"},
		{"a/b", map[string]string{"path": "/x"}, "/metrics/job@base64/YS9i/path@base64/L3g"},
		{
			"j",
			map[string]string{"empty": "", "dot": "..", "bytes": "\xff", "é": "ü?#%"},
			"/metrics/job/j/bytes@base64/_w/dot@base64/Li4/empty@base64/=/%C3%A9/%C3%BC%3F%23%25",
		},
	} {
		if got := groupPath(c.job, maps.Clone(c.grouping)); got != c.want {
			t.Errorf("%s %v: %s, want %s", c.job, c.grouping, got, c.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	got := environment([]string{"OTEL_RESOURCE_ATTRIBUTES=a=1, b=x%2Cy ,c,=d", "OTEL_SERVICE_NAME=shop", "OTHER=a=2"})
	if want := map[string]string{"a": "1", "b": "x,y", "service.name": "shop"}; !maps.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if got := environment([]string{"OTEL_RESOURCE_ATTRIBUTES=service.name=web"}); got["service.name"] != "web" {
		t.Error(got)
	}
}
