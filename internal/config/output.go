package config

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	httpconfig "github.com/prometheus/common/config"
	yaml2 "go.yaml.in/yaml/v2"
	"go.yaml.in/yaml/v4"

	"aggregatord/internal/output"
)

// An Output is a place to which the view is sent. Exactly one of the keys textfile,
// pushgateway, graphite, remote_write and otlp says what it is.
type Output struct {
	Name     string    `yaml:"name,omitempty"`
	Interval *Duration `yaml:"interval,omitempty"`
	Timeout  *Duration `yaml:"timeout,omitempty"`
	// Match are regular expressions for whole names of metrics.
	Match                []string          `yaml:"match,omitempty"`
	MetricRelabelConfigs []Relabel         `yaml:"metric_relabel_configs,omitempty"`
	ExternalLabels       map[string]string `yaml:"external_labels,omitempty"`
	Pools                []string          `yaml:"pools,omitempty"`
	ProcessMetrics       *bool             `yaml:"process_metrics,omitempty"`
	OwnMetrics           bool              `yaml:"own_metrics,omitempty"`
	OnExit               *bool             `yaml:"on_exit,omitempty"`
	HTTPConfig           *HTTPConfig       `yaml:"http_config,omitempty"`

	Textfile    *Textfile    `yaml:"textfile,omitempty"`
	Pushgateway *Pushgateway `yaml:"pushgateway,omitempty"`
	Graphite    *Graphite    `yaml:"graphite,omitempty"`
	RemoteWrite *RemoteWrite `yaml:"remote_write,omitempty"`
	OTLP        *OTLP        `yaml:"otlp,omitempty"`
}

// Textfile is a file for the textfile collector of node_exporter.
type Textfile struct {
	Path         string `yaml:"path,omitempty"`
	Format       string `yaml:"format,omitempty"`
	RemoveOnExit bool   `yaml:"remove_on_exit,omitempty"`
}

// Pushgateway is a group in a Pushgateway.
type Pushgateway struct {
	URL          URL               `yaml:"url,omitempty"`
	Job          string            `yaml:"job,omitempty"`
	GroupingKey  map[string]string `yaml:"grouping_key,omitempty"`
	InstanceIP   bool              `yaml:"instance_ip,omitempty"`
	Method       string            `yaml:"method,omitempty"`
	DeleteOnExit bool              `yaml:"delete_on_exit,omitempty"`
	DeleteAfter  *Duration         `yaml:"delete_after,omitempty"`
}

// Graphite is a receiver of the plaintext protocol.
type Graphite struct {
	Address string `yaml:"address,omitempty"`
	Prefix  string `yaml:"prefix,omitempty"`
	Tags    bool   `yaml:"tags,omitempty"`
}

// RemoteWrite is a receiver of Prometheus remote write.
type RemoteWrite struct {
	URL               URL               `yaml:"url,omitempty"`
	Protocol          string            `yaml:"protocol,omitempty"`
	Headers           map[string]Secret `yaml:"headers,omitempty"`
	MaxSamplesPerSend int               `yaml:"max_samples_per_send,omitempty"`
	StaleOnExit       *bool             `yaml:"stale_on_exit,omitempty"`
}

// OTLP is a receiver of OTLP over HTTP.
type OTLP struct {
	URL                URL               `yaml:"url,omitempty"`
	Headers            map[string]Secret `yaml:"headers,omitempty"`
	ResourceAttributes map[string]string `yaml:"resource_attributes,omitempty"`
	Names              string            `yaml:"names,omitempty"`
}

// Secret is a text that is not shown.
type Secret string

// MarshalText hides it.
func (Secret) MarshalText() ([]byte, error) { return []byte("<secret>"), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = Secret(text)
	return nil
}

// URL is an address whose password is not shown.
type URL string

// MarshalText hides the password.
func (u URL) MarshalText() ([]byte, error) {
	parsed, err := url.Parse(string(u))
	if err != nil {
		return []byte("<not a URL>"), nil
	}
	return []byte(parsed.Redacted()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (u *URL) UnmarshalText(text []byte) error {
	*u = URL(text)
	return nil
}

// HTTPConfig is Prometheus' own http_config, read by its own library.
type HTTPConfig struct{ httpconfig.HTTPClientConfig }

var (
	// yamlLine is how the library says where something is, in lines that it counts from the
	// key on.
	yamlLine    = regexp.MustCompile(`^line \d+: `)
	unknownHTTP = regexp.MustCompile(`^field (\S+) not found in type .*$`)
)

// decodeNode has the library read the node. Paths in it begin, as in Prometheus, in the
// directory of the file.
func (h *HTTPConfig) decodeNode(d *decoder, n *yaml.Node, key string) {
	if isNull(n) {
		return
	}
	budget := maxHTTPNodes
	resolved := resolve(n, &budget)
	if budget < 0 {
		d.fail(posOf(n), key, "aliases make it too large; write out what is meant")
		return
	}
	text, err := yaml.Dump(resolved)
	if err == nil {
		err = yaml2.UnmarshalStrict(text, &h.HTTPClientConfig)
	}
	if err == nil {
		h.SetDirectory(filepath.Dir(d.file))
		return
	}
	for problem := range strings.SplitSeq(strings.TrimPrefix(err.Error(), "yaml: unmarshal errors:\n"), "\n") {
		problem = yamlLine.ReplaceAllString(strings.TrimSpace(strings.TrimPrefix(problem, "yaml: ")), "")
		if m := unknownHTTP.FindStringSubmatch(problem); m != nil {
			problem = m[1] + " is not a key of Prometheus' http_config"
		}
		d.fail(posOf(n), key, "%s", problem)
	}
}

// maxHTTPNodes bounds an http_config, which has some dozens of keys.
const maxHTTPNodes = 2000

// resolve returns a copy of a node with the nodes that aliases stand for in their place. Each
// takes one of the budget; below 0 the copy is not whole.
func resolve(n *yaml.Node, budget *int) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	*budget--
	out := *n
	out.Anchor, out.Content = "", nil
	for _, child := range n.Content {
		if *budget >= 0 {
			out.Content = append(out.Content, resolve(child, budget))
		}
	}
	return &out
}

// MarshalYAML shows it without its secrets, as the library does.
func (h HTTPConfig) MarshalYAML() (any, error) {
	text, err := yaml2.Marshal(h.HTTPClientConfig)
	if err != nil {
		return nil, err
	}
	var out map[string]any
	return out, yaml.Unmarshal(text, &out)
}

// OutputSpecs are the outputs of the file, checked. Callers must not change them.
func (c *Config) OutputSpecs() []output.Spec { return c.outputs }

// compileOutputs makes the Specs of the outputs, whose mistakes are given their places.
func (c *Config) compileOutputs(d *decoder) {
	names := map[string]int{}
	for i := range c.Outputs {
		key := fmt.Sprintf("outputs[%d]", i)
		before := len(d.errs)
		spec := c.Outputs[i].spec(d, key)
		if j, ok := names[spec.Name]; ok && spec.Name != "" {
			d.fail(d.pos[key+".name"], key+".name", "%q is the name of outputs[%d]; give each its own", spec.Name, j)
		}
		names[spec.Name] = i
		if len(d.errs) > before {
			continue
		}
		if err := spec.Check(); err != nil {
			for _, e := range unjoin(err) {
				at, problem := key, e.Error()
				if s, ok := errors.AsType[*output.SpecError](e); ok && s.Key != "" {
					problem = s.Problem
					if _, ok := d.pos[key+"."+s.Key]; ok {
						at = key + "." + s.Key
					} else {
						problem = s.Error()
					}
				}
				d.fail(d.pos[at], at, "%s", problem)
			}
		}
		c.outputs = append(c.outputs, spec)
	}
}

// unjoin returns the errors that errors.Join put together.
func unjoin(err error) []error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()
	}
	return []error{err}
}

// spec is the same in the words of the outputs.
func (o *Output) spec(d *decoder, key string) output.Spec {
	s := output.Spec{
		Name: o.Name, Interval: time.Duration(orZero(o.Interval)), Timeout: time.Duration(orZero(o.Timeout)),
		Match: o.Match, ExternalLabels: o.ExternalLabels, Pools: o.Pools, OwnMetrics: o.OwnMetrics,
		SkipOnExit: o.OnExit != nil && !*o.OnExit,
	}
	if o.ProcessMetrics != nil {
		s.Processes = map[bool]output.Processes{true: output.ProcessesAll, false: output.ProcessesNone}[*o.ProcessMetrics]
	}
	for name, v := range map[string]*Duration{"interval": o.Interval, "timeout": o.Timeout} {
		if v != nil && *v == 0 {
			d.fail(d.pos[key+"."+name], key+"."+name, "is 0; use a time above 0, or leave the key out for the default")
		}
	}
	for i := range o.MetricRelabelConfigs {
		s.Relabel = append(s.Relabel, o.MetricRelabelConfigs[i].config(d, fmt.Sprintf("%s.metric_relabel_configs[%d]", key, i)))
	}
	if o.HTTPConfig != nil {
		s.HTTP = &o.HTTPConfig.HTTPClientConfig
	}
	if t := o.Textfile; t != nil {
		s.Textfile = &output.TextfileSpec{Path: t.Path, Format: t.Format, RemoveOnExit: t.RemoveOnExit}
	}
	if p := o.Pushgateway; p != nil {
		s.Pushgateway = &output.PushgatewaySpec{
			URL: string(p.URL), Job: p.Job, Grouping: p.GroupingKey, InstanceIP: p.InstanceIP, Method: p.Method,
			// A delay is only of use for deleting.
			DeleteOnExit: p.DeleteOnExit || p.DeleteAfter != nil, DeleteAfter: time.Duration(orZero(p.DeleteAfter)),
		}
	}
	if g := o.Graphite; g != nil {
		s.Graphite = &output.GraphiteSpec{Address: g.Address, Prefix: g.Prefix, Tags: g.Tags}
	}
	if r := o.RemoteWrite; r != nil {
		s.RemoteWrite = &output.RemoteWriteSpec{
			URL: string(r.URL), Protocol: output.Protocol(r.Protocol), Headers: revealed(r.Headers),
			SamplesPerSend: r.MaxSamplesPerSend, KeepOnExit: r.StaleOnExit != nil && !*r.StaleOnExit,
		}
	}
	if t := o.OTLP; t != nil {
		s.OTLP = &output.OTLPSpec{
			URL: string(t.URL), Headers: revealed(t.Headers), Resource: t.ResourceAttributes,
			Names: output.Names(t.Names),
		}
	}
	return s
}

// revealed returns secrets as texts.
func revealed(secrets map[string]Secret) map[string]string {
	if secrets == nil {
		return nil
	}
	out := make(map[string]string, len(secrets))
	for name, s := range secrets {
		out[name] = string(s)
	}
	return out
}
