package exposition

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// Kind is an exposition format without its escaping.
type Kind uint8

// The kinds of formats. Text004 is what every scraper reads.
const (
	Text004 Kind = iota
	Text100
	// OpenMetrics001 has the same bytes as OpenMetrics100 with escaped names; old
	// scrapers want to read its version in the Content-Type.
	OpenMetrics001
	OpenMetrics100
	// Protobuf is a sequence of io.prometheus.client.MetricFamily messages, each behind
	// its length.
	Protobuf
	// JSON has the shape of prom2json's output. No scraper asks for it.
	JSON
)

// Escaping says how a name is spelled that has characters outside the classic set
// [a-zA-Z0-9_:]. The schemes are Prometheus' own.
type Escaping uint8

// The escaping schemes, see model.EscapeName.
const (
	Underscores Escaping = iota
	Dots
	Values
	// AllowUTF8 leaves names as they are and quotes them where they need it.
	AllowUTF8
)

// schemes holds Prometheus' word for each scheme, in headers and in code.
var schemes = [...]struct {
	name  string
	model model.EscapingScheme
}{
	Underscores: {model.EscapeUnderscores, model.UnderscoreEscaping},
	Dots:        {model.EscapeDots, model.DotsEscaping},
	Values:      {model.EscapeValues, model.ValueEncodingEscaping},
	AllowUTF8:   {model.AllowUTF8, model.NoEscaping},
}

// String returns the scheme as Accept and Content-Type headers spell it.
func (e Escaping) String() string { return schemes[e].name }

// A Format is a kind and its escaping: all that decides how a snapshot is spelled. The
// zero value is text 0.0.4 with underscores, which every scraper reads. Formats can be
// compared and used as map keys.
type Format struct {
	Kind     Kind
	Escaping Escaping
}

// served lists what Negotiate may choose, best first. Within one clause of an Accept
// header at most one of them matches, so the order only matters for the fallback: the
// first that expfmt calls plain text, 0.0.4.
var served = []struct {
	header expfmt.Format
	kind   Kind
}{
	{expfmt.FmtOpenMetrics_1_0_0, OpenMetrics100},
	{expfmt.FmtOpenMetrics_0_0_1, OpenMetrics001},
	{expfmt.FmtProtoDelim, Protobuf},
	{"text/plain; version=1.0.0; charset=utf-8", Text100},
	{expfmt.FmtText, Text004},
}

// Negotiate returns the best format for the Accept header of a scrape, as
// expfmt.NegotiateAccept chooses it among the formats served here. A header that asks
// for none of them, or no header, gets text 0.0.4.
func Negotiate(accept string) Format {
	accepted := make([]expfmt.Format, len(served))
	for i, s := range served {
		accepted[i] = s.header
	}
	chosen := expfmt.NegotiateAccept(http.Header{"Accept": {withoutRefusals(accept)}}, accepted...)
	var f Format
	for _, s := range served {
		if strings.HasPrefix(string(chosen), string(s.header)) {
			f.Kind = s.kind
		}
	}
	scheme := chosen.ToEscapingScheme()
	for e, s := range schemes {
		if s.model == scheme {
			f.Escaping = Escaping(e)
		}
	}
	return f.normal()
}

// withoutRefusals drops the clauses with a weight of zero: "not acceptable" in RFC 9110,
// section 12.4.2, but only "last choice" for expfmt.
func withoutRefusals(accept string) string {
	if !strings.Contains(accept, "=0") && !strings.Contains(accept, "= 0") {
		return accept
	}
	clauses := strings.Split(accept, ",")
	clauses = slices.DeleteFunc(clauses, func(clause string) bool {
		for param := range strings.SplitSeq(clause, ";") {
			name, value, _ := strings.Cut(param, "=")
			if strings.EqualFold(strings.TrimSpace(name), "q") {
				q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
				return err == nil && q <= 0
			}
		}
		return false
	})
	return strings.Join(clauses, ",")
}

// normal returns the format that is really written: the formats from before quoted names
// never carry them, and JSON needs no escaping.
func (f Format) normal() Format {
	switch f.Kind {
	case Text004, OpenMetrics001:
		if f.Escaping == AllowUTF8 {
			f.Escaping = Underscores
		}
	case JSON:
		f.Escaping = AllowUTF8
	}
	return f
}

// canonical returns the format whose bytes are the same as f's, so that what was
// rendered for one serves the other.
func (f Format) canonical() Format {
	f = f.normal()
	switch {
	case f.Kind == OpenMetrics001:
		f.Kind = OpenMetrics100
	case f.Kind == Text100 && f.Escaping != AllowUTF8:
		f.Kind = Text004
	}
	return f
}

// ContentType returns the value of the Content-Type header, spelled as client_golang
// spells it.
func (f Format) ContentType() string {
	f = f.normal()
	if f.Kind == JSON {
		return "application/json"
	}
	for _, s := range served {
		if s.kind == f.Kind {
			return string(s.header) + "; escaping=" + f.Escaping.String()
		}
	}
	panic(fmt.Sprintf("BUG: unknown format kind %d", f.Kind))
}

// String names the format for logs and metric labels, without its escaping.
func (f Format) String() string {
	switch f.Kind {
	case Text004:
		return "text-0.0.4"
	case Text100:
		return "text-1.0.0"
	case OpenMetrics001:
		return "openmetrics-0.0.1"
	case OpenMetrics100:
		return "openmetrics-1.0.0"
	case Protobuf:
		return "protobuf"
	case JSON:
		return "json"
	}
	return "unknown"
}

// named are the formats a command line can ask for. A file carries no Content-Type, so
// the formats that have a classic spelling of every name use it, and text-1.0.0, which
// is asked for because of its quoted names, has them.
var named = []struct {
	name   string
	format Format
}{
	{"text", Format{Text004, Underscores}},
	{"text-1.0.0", Format{Text100, AllowUTF8}},
	{"openmetrics", Format{OpenMetrics100, Underscores}},
	{"protobuf", Format{Protobuf, AllowUTF8}},
	{"json", Format{JSON, AllowUTF8}},
}

// FormatNames lists the names that ParseFormat accepts, for help and error texts.
func FormatNames() []string {
	names := make([]string, len(named))
	for i, n := range named {
		names[i] = n.name
	}
	return names
}

// ParseFormat returns the format of that name. The error names the ones there are.
func ParseFormat(name string) (Format, error) {
	for _, n := range named {
		if n.name == name {
			return n.format, nil
		}
	}
	return Format{}, fmt.Errorf("unknown format %q, want one of %s", name, strings.Join(FormatNames(), ", "))
}
