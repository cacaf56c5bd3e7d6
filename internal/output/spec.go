package output

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	httpconfig "github.com/prometheus/common/config"
	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/exposition"
	"aggregatord/internal/policy"
)

// Defaults of a Spec.
const (
	DefaultInterval = 15 * time.Second
	DefaultTimeout  = 10 * time.Second
	// DefaultSamplesPerSend is Prometheus' own for max_samples_per_send.
	DefaultSamplesPerSend = 2000
	// minInterval keeps a slip of the pen from making a storm.
	minInterval = time.Second
)

// A Spec says where to send what. Exactly one of its kinds is set.
type Spec struct {
	// Name tells outputs apart, in the log and in metrics.
	Name string
	// Interval is how often to send. Default: DefaultInterval.
	Interval time.Duration
	// Timeout bounds one push, with all its requests. Default: DefaultTimeout.
	Timeout time.Duration
	// Match are regular expressions, of which one must match the whole name of a family (that
	// of a counter with or without _total). Default: everything.
	Match []string
	// Relabel is applied to what Match has let through, with external labels.
	Relabel []*relabel.Config
	// ExternalLabels are put on every series that does not have them.
	ExternalLabels map[string]string
	// Pools are the values of the label pool to send. Default: all, and those without.
	Pools []string
	// Processes says what to send of the metrics of workers as processes (Options.Beside). Default:
	// what the receiver does not have of itself, see ProcessesApart.
	Processes Processes
	// OwnMetrics sends the daemon's own metrics, too.
	OwnMetrics bool
	// SkipOnExit leaves out the push at the end.
	SkipOnExit bool
	// HTTP says how to ask a receiver: passwords, certificates, proxies. Not for files and
	// Graphite. Default: Prometheus' defaults.
	HTTP *httpconfig.HTTPClientConfig

	Textfile    *TextfileSpec
	Pushgateway *PushgatewaySpec
	Graphite    *GraphiteSpec
	RemoteWrite *RemoteWriteSpec
	OTLP        *OTLPSpec
}

// Processes says what to send of the metrics of workers as processes.
type Processes string

// What to send of them.
const (
	ProcessesAll  Processes = "all"
	ProcessesNone Processes = "none"
	// ProcessesApart sends no process_… to a node_exporter and a Pushgateway: they serve metrics of
	// these names, with other help texts, of themselves. It is the same as ProcessesAll for others.
	ProcessesApart Processes = ""
)

// TextfileSpec is a file, for the textfile collector of node_exporter.
type TextfileSpec struct {
	Path string
	// Format is a name of exposition.ParseFormat. Default: text.
	Format string
	// RemoveOnExit removes the file at the end, in place of a last push.
	RemoveOnExit bool
}

// PushgatewaySpec is a group in a Pushgateway.
type PushgatewaySpec struct {
	// URL is that of the Pushgateway, without /metrics.
	URL string
	Job string
	// Grouping is the rest of the grouping key.
	Grouping map[string]string
	// InstanceIP adds instance to the grouping key: the address of this host that the
	// Pushgateway sees.
	InstanceIP bool
	// Method is PUT, which replaces the group, or POST, which replaces families of the same
	// name in it. Default: PUT.
	Method string
	// DeleteOnExit deletes the group at the end; DeleteAfter is how long to wait before it
	// after a last push. Without a wait there is no last push.
	DeleteOnExit bool
	DeleteAfter  time.Duration
}

// GraphiteSpec is a receiver of Graphite's plaintext protocol.
type GraphiteSpec struct {
	// Address is host:port.
	Address string
	// Prefix comes before each path, with a dot between.
	Prefix string
	// Tags writes labels as tags (name;label=value), not as parts of the path.
	Tags bool
}

// Protocol of remote write.
type Protocol string

// The protocols. Auto asks for 2.0 first.
const (
	ProtocolAuto Protocol = "auto"
	Protocol1    Protocol = "1.0"
	Protocol2    Protocol = "2.0"
)

// RemoteWriteSpec is a receiver of Prometheus remote write.
type RemoteWriteSpec struct {
	URL string
	// Protocol is which version to speak. Default: ProtocolAuto.
	Protocol Protocol
	// Headers are sent with each request, such as the tenant.
	Headers map[string]string
	// SamplesPerSend bounds one request. Default: DefaultSamplesPerSend.
	SamplesPerSend int
	// KeepOnExit leaves out the staleness markers at the end.
	KeepOnExit bool
}

// OTLPSpec is a receiver of OTLP over HTTP.
type OTLPSpec struct {
	// URL is the whole one, which mostly ends in /v1/metrics.
	URL     string
	Headers map[string]string
	// Resource are the resource attributes; those of Environment are added where they are
	// missing.
	Resource map[string]string
	// Names says how families are called. Default: NamesAsIs.
	Names Names
}

// Names says what becomes of the names of families in OTLP.
type Names string

const (
	// NamesAsIs leaves a name as a scrape has it, without the _total of a counter only if that
	// is no part of it.
	NamesAsIs Names = "as_is"
	// NamesOTel takes away what Prometheus' translation of OTLP adds: _total and the unit, where
	// that translation makes the same name of it again.
	NamesOTel Names = "otel"
)

// Kind is the word for what the Spec sends to.
func (s *Spec) Kind() string {
	switch {
	case s.Textfile != nil:
		return "textfile"
	case s.Pushgateway != nil:
		return "pushgateway"
	case s.Graphite != nil:
		return "graphite"
	case s.RemoteWrite != nil:
		return "remote_write"
	case s.OTLP != nil:
		return "otlp"
	}
	return ""
}

// Target is where the Spec sends to, without passwords.
func (s *Spec) Target() string {
	switch {
	case s.Textfile != nil:
		return s.Textfile.Path
	case s.Pushgateway != nil:
		return redacted(s.Pushgateway.URL)
	case s.Graphite != nil:
		return s.Graphite.Address
	case s.RemoteWrite != nil:
		return redacted(s.RemoteWrite.URL)
	case s.OTLP != nil:
		return redacted(s.OTLP.URL)
	}
	return ""
}

func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "a URL that cannot be read"
	}
	return u.Redacted()
}

// Kinds lists the words of Kind.
func Kinds() []string { return []string{"textfile", "pushgateway", "graphite", "remote_write", "otlp"} }

// equal reports whether two Specs ask for the same.
func (s *Spec) equal(other *Spec) bool { return reflect.DeepEqual(s, other) }

// withDefaults returns the Spec with what it leaves out.
func (s Spec) withDefaults() Spec {
	if s.Interval == 0 {
		s.Interval = DefaultInterval
	}
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	return s
}

// A SpecError is a mistake in a Spec. Key is the path to it, as in the configuration file.
type SpecError struct {
	Key     string
	Problem string
}

// Error implements error.
func (e *SpecError) Error() string {
	if e.Key == "" {
		return e.Problem
	}
	return e.Key + ": " + e.Problem
}

// Check returns the mistakes in a Spec: errors.Join of *SpecError.
func (s *Spec) Check() error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, &SpecError{Key: key, Problem: fmt.Sprintf(format, args...)})
	}
	if s.Name == "" {
		fail("name", "is missing; give the output a name, for the log and for metrics")
	}
	if s.Interval != 0 && s.Interval < minInterval {
		fail("interval", "%v is below %v; use a longer one", s.Interval, minInterval)
	}
	if s.Timeout < 0 {
		fail("timeout", "%v is negative; use a time above 0", s.Timeout)
	}
	for i, m := range s.Match {
		if _, err := regexp.Compile(m); err != nil {
			fail(fmt.Sprintf("match[%d]", i), "%v", err)
		}
	}
	if _, err := policy.Compile(s.policySpec()); err != nil {
		for _, e := range unjoin(err) {
			fail("", "%v", e)
		}
	}
	kinds := 0
	for _, set := range []bool{s.Textfile != nil, s.Pushgateway != nil, s.Graphite != nil, s.RemoteWrite != nil, s.OTLP != nil} {
		if set {
			kinds++
		}
	}
	if kinds != 1 {
		fail("", "has %d kinds; write exactly one of %s", kinds, strings.Join(Kinds(), ", "))
		return errors.Join(errs...)
	}
	if s.HTTP != nil {
		if s.Textfile != nil || s.Graphite != nil {
			fail("http_config", "means nothing for %s, which is not asked by HTTP; leave it out", s.Kind())
		} else if err := s.HTTP.Validate(); err != nil {
			fail("http_config", "%v", err)
		}
	}
	switch {
	case s.Textfile != nil:
		s.Textfile.check(fail)
	case s.Pushgateway != nil:
		s.Pushgateway.check(fail)
	case s.Graphite != nil:
		s.Graphite.check(fail)
	case s.RemoteWrite != nil:
		checkURL(fail, "remote_write.url", s.RemoteWrite.URL, "http://HOST:9090/api/v1/write")
		checkHeaders(fail, "remote_write.headers", s.RemoteWrite.Headers)
		switch s.RemoteWrite.Protocol {
		case "", ProtocolAuto, Protocol1, Protocol2:
		default:
			fail("remote_write.protocol", "%q is unknown; use auto, 1.0 or 2.0", s.RemoteWrite.Protocol)
		}
		if s.RemoteWrite.SamplesPerSend < 0 {
			fail("remote_write.max_samples_per_send", "%d is negative; use a number above 0", s.RemoteWrite.SamplesPerSend)
		}
	case s.OTLP != nil:
		checkURL(fail, "otlp.url", s.OTLP.URL, "http://HOST:4318/v1/metrics")
		checkHeaders(fail, "otlp.headers", s.OTLP.Headers)
		switch s.OTLP.Names {
		case "", NamesAsIs, NamesOTel:
		default:
			fail("otlp.names", "%q is unknown; use %s or %s", s.OTLP.Names, NamesAsIs, NamesOTel)
		}
	}
	return errors.Join(errs...)
}

// unjoin returns the errors that errors.Join put together.
func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// policySpec is the part of the Spec that policy understands.
func (s *Spec) policySpec() policy.Spec {
	return policy.Spec{MetricRelabelConfigs: s.Relabel, ExternalLabels: s.ExternalLabels}
}

func checkURL(fail func(key, format string, args ...any), key, text, example string) {
	u, err := url.Parse(text)
	switch {
	case text == "":
		fail(key, "is missing; write the receiver's address, as in %s", example)
	case err != nil:
		// The error has the text, which may have a password.
		fail(key, "is not a URL; write it as in %s", example)
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		fail(key, "%q is not an address of HTTP; write it as in %s", u.Redacted(), example)
	case u.Fragment != "":
		fail(key, "%q: a receiver never sees what follows #; leave it out", u.Redacted())
	}
}

func checkHeaders(fail func(key, format string, args ...any), key string, headers map[string]string) {
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		switch strings.ToLower(name) {
		case "content-encoding", "content-type", "content-length", "host", "x-prometheus-remote-write-version", "user-agent":
			fail(key, "%s is set by the protocol; choose another header", name)
		case "authorization":
			fail(key, "%s is set by http_config.authorization or basic_auth; write it there", name)
		case "":
			fail(key, "a header has no name; write one")
		default:
			if strings.ContainsAny(name, " :\r\n\t") || strings.ContainsAny(headers[name], "\r\n") {
				fail(key, "%q or its value has signs that no header may have; remove them", name)
			}
		}
	}
}

func (s *TextfileSpec) check(fail func(key, format string, args ...any)) {
	switch {
	case s.Path == "":
		fail("textfile.path", "is missing; name a file, as in /var/lib/prometheus/node-exporter/shop.prom")
	case strings.HasSuffix(s.Path, "/") || filepath.Base(s.Path) == "." || filepath.Base(s.Path) == "..":
		fail("textfile.path", "%q is not the name of a file; write one, as in /var/lib/prometheus/node-exporter/shop.prom", s.Path)
	}
	if s.Format != "" {
		if _, err := exposition.ParseFormat(s.Format); err != nil {
			fail("textfile.format", "%v", err)
		}
	}
}

func (s *GraphiteSpec) check(fail func(key, format string, args ...any)) {
	host, port, ok := cutPort(s.Address)
	if !ok || host == "" || port == "" {
		fail("graphite.address", "%q is not host:port; write it as in carbon:2003", s.Address)
	}
	if strings.ContainsAny(s.Prefix, " \t\r\n;") || strings.HasSuffix(s.Prefix, ".") {
		fail("graphite.prefix", "%q: a prefix has no spaces, no ; and no dot at its end; write it as in servers.web1", s.Prefix)
	}
}

func cutPort(address string) (host, port string, ok bool) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 {
		return "", "", false
	}
	return address[:i], address[i+1:], !strings.ContainsAny(address, " /\n")
}
