package exposition

import (
	"cmp"
	"fmt"
	"math"
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

// served lists the formats that a scraper can ask for, as headers name them.
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

// maxAccepted bounds the formats of an Accept: OpenMetrics, protobuf and a text.
const maxAccepted = 3

// Accept is the formats that a client accepts, best first, as far as it can matter: of
// OpenMetrics, protobuf and the texts the best of each, and nothing after a text, which
// carries whatever another format carries. The zero value accepts text 0.0.4. It can be
// compared and used as a map key.
type Accept struct {
	formats [maxAccepted]Format
	n       int
}

// AcceptOnly accepts one format.
func AcceptOnly(f Format) Accept { return Accept{formats: [maxAccepted]Format{f}, n: 1} }

// Best returns the format that the client likes best.
func (a Accept) Best() Format { return a.formats[0] }

// Formats returns all formats, best first.
func (a Accept) Formats() []Format { return slices.Clone(a.formats[:max(a.n, 1)]) }

func (a *Accept) add(f Format) {
	for _, has := range a.formats[:a.n] {
		if has.text() || (has.openMetrics() && f.openMetrics()) || has.Kind == f.Kind {
			return
		}
	}
	a.formats[a.n] = f
	a.n++
}

// Negotiate returns the best format for the Accept header of a scrape, as if it could carry
// everything. A header that asks for none of those served here, or no header, gets text 0.0.4.
func Negotiate(accept string) Format { return ParseAccept(accept).Best() }

// ParseAccept reads the values of the Accept header of a scrape: the formats served here that
// they name, by weight and then as they come. Wildcards stand for text 0.0.4, which every
// scraper reads. What has a weight of zero is not acceptable (RFC 9110, section 12.4.2). A
// header that accepts nothing that is served here, or no header, gets text 0.0.4.
func ParseAccept(headers ...string) Accept {
	var clauses []clause
	refused := map[Kind]bool{}
	for _, header := range headers {
		for text := range strings.SplitSeq(header, ",") {
			c, ok := parseClause(text)
			switch {
			case !ok:
			case c.weight <= 0:
				refused[c.format.Kind] = refused[c.format.Kind] || !c.wild
			default:
				clauses = append(clauses, c)
			}
		}
	}
	slices.SortStableFunc(clauses, func(a, b clause) int {
		return cmp.Or(cmp.Compare(b.weight, a.weight), cmp.Compare(b2i(a.wild), b2i(b.wild)))
	})
	var a Accept
	for _, c := range clauses {
		if !c.wild || !refused[Text004] {
			a.add(c.format)
		}
	}
	if a.n == 0 {
		a.add(Format{})
	}
	return a
}

// A clause is one that names a format which is served here.
type clause struct {
	format Format
	weight float64
	wild   bool
}

func parseClause(text string) (c clause, ok bool) {
	c.weight = 1
	mediaType, rest, _ := strings.Cut(text, ";")
	mediaType = strings.ToLower(strings.TrimSpace(mediaType))
	params := map[string]string{}
	for param := range strings.SplitSeq(rest, ";") {
		name, value, _ := strings.Cut(param, "=")
		name, value = strings.ToLower(strings.TrimSpace(name)), strings.Trim(strings.TrimSpace(value), `"`)
		if name == "q" {
			q, err := strconv.ParseFloat(value, 64)
			if err != nil || math.IsNaN(q) {
				q = math.SmallestNonzeroFloat64 // nothing that can be read: the last choice
			}
			c.weight = q
		} else if name != "" {
			params[name] = value
		}
	}
	switch version := params["version"]; mediaType {
	case "*", "*/*", "text/*":
		c.wild = true
	case "text/plain":
		switch version {
		case "", expfmt.TextVersion:
		case "1.0.0":
			c.format.Kind = Text100
		default:
			return c, false
		}
	case expfmt.OpenMetricsType:
		switch version {
		case "", expfmt.OpenMetricsVersion_0_0_1:
			c.format.Kind = OpenMetrics001
		case expfmt.OpenMetricsVersion_1_0_0:
			c.format.Kind = OpenMetrics100
		default:
			return c, false
		}
	case expfmt.ProtoType:
		if params["proto"] != expfmt.ProtoProtocol || params["encoding"] != "delimited" {
			return c, false
		}
		c.format.Kind = Protobuf
	default:
		return c, false
	}
	for e, s := range schemes {
		if params[model.EscapingKey] == s.name {
			c.format.Escaping = Escaping(e)
		}
	}
	c.format = c.format.normal()
	return c, true
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
