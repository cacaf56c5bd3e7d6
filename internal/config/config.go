// Package config reads the configuration file: one YAML document that says what the
// operator wants of the merged view and cannot, or should not, be said by flags. No file
// is needed, and every key has a default.
//
// A file is read strictly. Whatever is not understood is a mistake, told with its line
// and column, its key, and what to write instead; all mistakes of a file are told at once.
// What Load returns has been checked as far as a file can be: the same file will be
// accepted by a daemon that reloads it.
package config

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"
	"go.yaml.in/yaml/v4"

	"aggregatord/internal/discover"
	"aggregatord/internal/metric"
	"aggregatord/internal/output"
	"aggregatord/internal/policy"
	"aggregatord/internal/view"
)

// A Config is what a file says. The zero value is what an empty file says. It is not
// changed once loaded.
type Config struct {
	// Presets are names of lists of rules that come with the program; see Presets. Their rules
	// come after those of Metrics, in this order.
	Presets []string `yaml:"presets,omitempty"`
	// Metrics are rules for metrics of all pools; the first that matches a metric decides.
	Metrics []Rule `yaml:"metrics,omitempty"`
	// MetricRelabelConfigs are applied to the merged samples, as Prometheus would to those
	// that it scrapes.
	MetricRelabelConfigs []Relabel `yaml:"metric_relabel_configs,omitempty"`
	// Pools are the directories. Directories given by flags win over them.
	Pools []Pool `yaml:"pools,omitempty"`
	// ExternalLabels are put on every series of workers that does not have them.
	ExternalLabels map[string]string `yaml:"external_labels,omitempty"`
	// Info are series that always have the value 1.
	Info []Info `yaml:"info,omitempty"`
	// Limits of what is believed of workers.
	Limits Limits `yaml:"limits,omitempty"`
	// Archive says how what dead workers left is kept.
	Archive Archive `yaml:"archive,omitempty"`
	// Outputs are other places to which the view is sent.
	Outputs []Output `yaml:"outputs,omitempty"`
	// Process are other processes whose metrics are served as those of pools are.
	Process []Process `yaml:"process,omitempty"`
	// Discovery finds pools that come and go.
	Discovery []Discovery `yaml:"discovery,omitempty"`

	file    string
	hash    string
	policy  *policy.Policy
	outputs []output.Spec
}

// A Rule says what is done with the metrics whose family it matches.
type Rule struct {
	// Match is the name of the metric; that of a counter with or without _total.
	Match string `yaml:"match,omitempty"`
	// MatchRE is a regular expression (RE2) that must match the whole name.
	MatchRE string `yaml:"match_re,omitempty"`
	// GaugeMode replaces the mode the application gave a gauge.
	GaugeMode *Mode `yaml:"gauge_mode,omitempty"`
	// Help replaces the help text.
	Help *string `yaml:"help,omitempty"`
	// Unit is the unit told to scrapers of OpenMetrics; the name must end in it.
	Unit *string `yaml:"unit,omitempty"`
	// Type makes a gauge an info or a stateset in OpenMetrics.
	Type *Shape `yaml:"type,omitempty"`
	// Drop leaves the metric out.
	Drop bool `yaml:"drop,omitempty"`
	// DropLabels takes these labels away; series that become equal are combined.
	DropLabels []string `yaml:"drop_labels,omitempty"`
	// KeepLabels takes all labels away but these.
	KeepLabels []string `yaml:"keep_labels,omitempty"`
	// RenameLabel gives labels new names: old name, new name.
	RenameLabel map[string]string `yaml:"rename_label,omitempty"`
	// Retention is how long gauges count that a dead worker left; see policy.Rule.
	Retention *Duration `yaml:"retention,omitempty"`
	// ExpireAfter is after how long without a change a series is no longer served, until it
	// changes again.
	ExpireAfter *Duration `yaml:"expire_after,omitempty"`
	// DropZeroAll leaves out the series of gauges in modes all and liveall that are 0.
	DropZeroAll bool `yaml:"drop_zero_all,omitempty"`
}

// A Relabel is one relabel_config of Prometheus.
type Relabel struct {
	SourceLabels []string `yaml:"source_labels,omitempty"`
	Separator    *string  `yaml:"separator,omitempty"`
	Regex        *string  `yaml:"regex,omitempty"`
	Modulus      *int     `yaml:"modulus,omitempty"`
	TargetLabel  string   `yaml:"target_label,omitempty"`
	Replacement  *string  `yaml:"replacement,omitempty"`
	Action       *Action  `yaml:"action,omitempty"`
}

// A Pool is one directory of source files.
type Pool struct {
	// Name is the value of the label pool.
	Name string `yaml:"name,omitempty"`
	// Dir is the directory. A relative one starts at the working directory of the daemon.
	Dir string `yaml:"dir,omitempty"`
	// Glob is a path with stars, in place of Dir: each directory that it leads to is a pool. Name
	// and the values of Labels may have $1, which is what the first * stands for, and so on.
	Glob string `yaml:"glob,omitempty"`
	// Recursive makes pools of the directories with source files below those of Glob, too, down
	// to Depth.
	Recursive bool `yaml:"recursive,omitempty"`
	Depth     *int `yaml:"depth,omitempty"`
	// Labels are put on every series of the pool.
	Labels map[string]string `yaml:"labels,omitempty"`
	// Metrics are rules for this pool, before those for all.
	Metrics []Rule `yaml:"metrics,omitempty"`
	// GunicornControl is the path of the control socket of the pool's gunicorn, and UWSGIStats
	// the address of the stats socket of its uWSGI: a path, or host:port.
	GunicornControl string `yaml:"gunicorn_control,omitempty"`
	UWSGIStats      string `yaml:"uwsgi_stats,omitempty"`
}

// settings is the name under which the policy knows the pool, or those that the pattern matches.
func (p *Pool) settings() string { return cmp.Or(p.Glob, p.Name) }

// Pattern returns what finds the pools of an entry with Glob.
func (p *Pool) Pattern() discover.Pattern {
	return discover.Pattern{Glob: p.Glob, Name: p.Name, Labels: p.Labels, Recursive: p.Recursive, Depth: orZero(p.Depth)}
}

// A Discovery is one way to find pools. It has one of its keys.
type Discovery struct {
	// Processes finds the directories that running processes write to.
	Processes *Processes `yaml:"processes,omitempty"`
	// Kubelet finds the volumes of the node's pods.
	Kubelet *Kubelet `yaml:"kubelet,omitempty"`
}

// Processes says which processes are looked at: those that match all that is given. Each value
// is a pattern with * for any text.
type Processes struct {
	Path    string `yaml:"path,omitempty"`
	User    string `yaml:"user,omitempty"`
	Unit    string `yaml:"unit,omitempty"`
	Command string `yaml:"command,omitempty"`
}

// Kubelet says where the pods of a node are.
type Kubelet struct {
	// Root is the kubelet's directory, and Logs that of the pods' logs, whose names tell the
	// namespaces and names of pods.
	Root string `yaml:"root,omitempty"`
	Logs string `yaml:"logs,omitempty"`
	// Volume is the name of the volumes; without it those with source files.
	Volume string `yaml:"volume,omitempty"`
	// Settings is the name of a file in each volume in which the application may say something of
	// its pool; see PoolSettings. Without it no such file is read.
	Settings string `yaml:"settings,omitempty"`
}

// A Process is a process that is no worker.
type Process struct {
	// Namespace comes before the names of its metrics, with a _.
	Namespace string `yaml:"namespace,omitempty"`
	// PidFile holds its pid.
	PidFile string `yaml:"pid_file,omitempty"`
}

// Info is a series that always has the value 1. In OpenMetrics it is of type info if its name
// ends in _info, elsewhere a gauge.
type Info struct {
	// Name is the whole name, such as myapp_build_info.
	Name   string            `yaml:"name,omitempty"`
	Help   string            `yaml:"help,omitempty"`
	Labels map[string]string `yaml:"labels,omitempty"`
}

// Limits bound what one worker's mistake can cost. One that is nil has its default; see
// policy.Limits.
type Limits struct {
	Pools            *int  `yaml:"pools,omitempty"`
	SeriesPerPool    *int  `yaml:"series_per_pool,omitempty"`
	SeriesPerFamily  *int  `yaml:"series_per_family,omitempty"`
	FamiliesPerPool  *int  `yaml:"families_per_pool,omitempty"`
	BytesPerPool     *Size `yaml:"bytes_per_pool,omitempty"`
	LabelsPerSeries  *int  `yaml:"labels_per_series,omitempty"`
	LabelNameLength  *int  `yaml:"label_name_length,omitempty"`
	LabelValueLength *int  `yaml:"label_value_length,omitempty"`
	FileSize         *Size `yaml:"file_size,omitempty"`
	KeyLength        *Size `yaml:"key_length,omitempty"`
}

// Archive says how what dead workers left is kept. Each key has a flag, which wins.
type Archive struct {
	Dir            *string   `yaml:"dir,omitempty"`
	Disable        *bool     `yaml:"disable,omitempty"`
	Rest           *Duration `yaml:"rest,omitempty"`
	GaugeRetention *Duration `yaml:"gauge_retention,omitempty"`
	GaugeWorkers   *int      `yaml:"gauge_workers,omitempty"`
	Mirror         *string   `yaml:"mirror,omitempty"`
	MirrorWait     *Duration `yaml:"mirror_wait,omitempty"`
	MirrorFiles    *int      `yaml:"mirror_files,omitempty"`
}

// Mode is a gauge mode by name.
type Mode metric.Mode

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Mode) UnmarshalText(text []byte) error {
	mode, ok := metric.ParseMode(string(text))
	if !ok {
		return fmt.Errorf("%q is not a gauge mode%s", text, didYouMean(string(text), metric.ModeNames()))
	}
	*m = Mode(mode)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (m Mode) MarshalText() ([]byte, error) { return []byte(metric.Mode(m).String()), nil }

// Shape is what a gauge is in OpenMetrics, by name.
type Shape view.Shape

// UnmarshalText reads a name that view.ParseShape knows.
func (s *Shape) UnmarshalText(text []byte) error {
	shape, ok := view.ParseShape(string(text))
	if !ok || shape == view.Plain {
		names := []string{view.Info.String(), view.StateSet.String()}
		return fmt.Errorf("%q is not a type that a rule can give a gauge%s", text, didYouMean(string(text), names))
	}
	*s = Shape(shape)
	return nil
}

// MarshalText returns the name.
func (s Shape) MarshalText() ([]byte, error) { return []byte(view.Shape(s).String()), nil }

// Action is the action of a Relabel, in small letters.
type Action relabel.Action

// actions are all that Prometheus knows.
var actions = []string{
	string(relabel.Replace), string(relabel.Keep), string(relabel.Drop), string(relabel.KeepEqual), string(relabel.DropEqual),
	string(relabel.HashMod), string(relabel.LabelMap), string(relabel.LabelDrop), string(relabel.LabelKeep),
	string(relabel.Lowercase), string(relabel.Uppercase),
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (a *Action) UnmarshalText(text []byte) error {
	name := strings.ToLower(string(text))
	if !slices.Contains(actions, name) {
		return fmt.Errorf("%q is not a relabel action%s", text, didYouMean(name, actions))
	}
	*a = Action(name)
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (a Action) MarshalText() ([]byte, error) { return []byte(a), nil }

// Load reads a file. An error that is Errors tells what is wrong in it.
func Load(path string) (*Config, error) {
	data, err := Read(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// Read returns the content of a configuration file, which must be a regular one, or a link to
// one: a FIFO would keep us waiting.
func Read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("configuration file %q is not a regular file; give the YAML file", path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return data, nil
}

// Parse is Load for a file's content; name is for error texts.
func Parse(name string, data []byte) (*Config, error) {
	sum := sha256.Sum256(data)
	c := &Config{file: name, hash: hex.EncodeToString(sum[:])}
	d := &decoder{file: name, pos: map[string]Pos{}}
	root, ok := d.parse(data)
	if root != nil {
		d.decode(root, "", reflect.ValueOf(c).Elem())
	}
	if ok {
		for _, e := range d.errs {
			d.unread = append(d.unread, e.Key)
		}
		c.check(d)
		c.compile(d)
		c.compileOutputs(d)
	}
	if err := d.result(); err != nil {
		return nil, err
	}
	return c, nil
}

// File is the name that the file was loaded by; empty for the zero Config.
func (c *Config) File() string { return c.file }

// Hash tells one content of the file from another; empty for the zero Config.
func (c *Config) Hash() string { return c.hash }

// YAML is what the file says, without its comments, for showing.
func (c *Config) YAML() []byte {
	out, err := yaml.Dump(c)
	if err != nil {
		panic(fmt.Sprintf("BUG: a configuration that cannot be written: %v", err))
	}
	return out
}

// Policy is what the file says about metrics; nil for the zero Config, which is a policy
// that says nothing.
func (c *Config) Policy() *policy.Policy { return c.policy }

// check finds the mistakes that are not those of one value alone, and not policy's to find.
func (c *Config) check(d *decoder) {
	fail := func(key, format string, args ...any) { d.fail(d.pos[key], key, format, args...) }
	given := map[string]bool{}
	for i, name := range c.Presets {
		key := fmt.Sprintf("presets[%d]", i)
		if _, ok := presets[name]; !ok {
			fail(key, "%q is not a preset%s", name, didYouMean(name, PresetNames()))
		} else if given[name] {
			fail(key, "%q is given twice; leave one out", name)
		}
		given[name] = true
	}
	checkRules(d, "metrics", c.Metrics)
	names := map[string]bool{}
	for i, p := range c.Pools {
		key := fmt.Sprintf("pools[%d]", i)
		if p.Glob != "" {
			pattern := p.Pattern()
			switch err := pattern.Check(); {
			case p.Dir != "":
				fail(key, "has dir and glob; write one of them")
			case names[p.Glob]:
				fail(key+".glob", "%q is that of an earlier entry; write each once", p.Glob)
			case p.GunicornControl != "" || p.UWSGIStats != "":
				fail(key, "has a glob, and one socket cannot be that of several pools; remove gunicorn_control and uwsgi_stats")
			case err != nil:
				fail(key+".glob", "%v", err)
			}
			names[p.Glob] = true
			checkRules(d, key+".metrics", p.Metrics)
			continue
		}
		switch {
		case p.Recursive || p.Depth != nil:
			fail(key, "has recursive or depth without glob; write glob in place of dir")
		case p.Dir == "":
			fail(key, "has no dir; name the directory with the source files")
		case p.Name == "" && (len(c.Pools) > 1 || len(c.Discovery) > 0):
			fail(key, "has no name; with several pools each needs one")
		case names[p.Name]:
			fail(key+".name", "%q is the name of an earlier pool; give each its own", p.Name)
		case strings.ContainsAny(p.Name, "/=\x00") || p.Name == "." || p.Name == "..":
			fail(key+".name", "%q cannot be the name of a directory, which it becomes in archive.dir; use letters and digits", p.Name)
		}
		names[p.Name] = true
		checkRules(d, key+".metrics", p.Metrics)
	}
	for i, in := range c.Discovery {
		key := fmt.Sprintf("discovery[%d]", i)
		switch {
		case (in.Processes == nil) == (in.Kubelet == nil):
			fail(key, "write one of processes and kubelet")
		case in.Kubelet != nil && in.Kubelet.Root == "":
			fail(key+".kubelet", "has no root; name the kubelet's directory, such as /var/lib/kubelet")
		case in.Kubelet != nil && in.Kubelet.Settings != "" && !discover.IsSettingsName(in.Kubelet.Settings):
			fail(key+".kubelet.settings", "%q cannot be the name of a file of settings; use one like metrics.yml, without a path",
				in.Kubelet.Settings)
		}
	}
	namespaces := map[string]bool{}
	for i, p := range c.Process {
		key := fmt.Sprintf("process[%d]", i)
		switch {
		case !model.LegacyValidation.IsValidMetricName(p.Namespace):
			fail(key+".namespace", "%q cannot begin the name of a metric; use letters, digits and _", p.Namespace)
		case namespaces[p.Namespace]:
			fail(key+".namespace", "%q is that of an earlier process; give each its own", p.Namespace)
		case p.PidFile == "":
			fail(key, "has no pid_file; name the file that holds the pid")
		}
		namespaces[p.Namespace] = true
	}
	if w := c.Archive.GaugeWorkers; w != nil && *w < 0 {
		fail("archive.gauge_workers", "%d is negative; use 0 for any number", *w)
	}
	if m := c.Archive.Mirror; m != nil && *m != "auto" && *m != "off" && *m != "only" {
		fail("archive.mirror", "%q is none of auto, off and only", *m)
	}
	if n := c.Archive.MirrorFiles; n != nil && *n < 0 {
		fail("archive.mirror_files", "%d is negative; use 0 for any number", *n)
	}
	if dir := c.Archive.Dir; dir != nil && *dir == "" {
		fail("archive.dir", "is empty; name a directory, or leave the key out")
	}
	for key, limit := range map[string]int64{
		"pools": orOne(c.Limits.Pools), "series_per_pool": orOne(c.Limits.SeriesPerPool),
		"series_per_family": orOne(c.Limits.SeriesPerFamily),
		"families_per_pool": orOne(c.Limits.FamiliesPerPool), "bytes_per_pool": orOne(c.Limits.BytesPerPool),
		"labels_per_series": orOne(c.Limits.LabelsPerSeries), "label_name_length": orOne(c.Limits.LabelNameLength),
		"label_value_length": orOne(c.Limits.LabelValueLength), "file_size": orOne(c.Limits.FileSize),
		"key_length": orOne(c.Limits.KeyLength),
	} {
		if limit <= 0 {
			fail("limits."+key, "%d would let nothing in; use a number above 0, or leave the key out for the default", limit)
		}
	}
}

// orOne is the number that p points to, or 1.
func orOne[T ~int | ~int64](p *T) int64 {
	if p == nil {
		return 1
	}
	return int64(*p)
}

// checkRules finds what policy cannot see: keys that are there and say nothing.
func checkRules(d *decoder, key string, rules []Rule) {
	for i := range rules {
		r, at := &rules[i], fmt.Sprintf("%s[%d]", key, i)
		for name, nothing := range map[string]bool{
			"help": r.Help != nil && *r.Help == "", "unit": r.Unit != nil && *r.Unit == "",
			"drop_labels": d.has(at+".drop_labels") && len(r.DropLabels) == 0, "keep_labels": d.has(at+".keep_labels") &&
				len(r.KeepLabels) == 0,
			"rename_label": d.has(at+".rename_label") && len(r.RenameLabel) == 0,
			"retention":    r.Retention != nil && *r.Retention == 0, "expire_after": r.ExpireAfter != nil && *r.ExpireAfter == 0,
		} {
			if nothing {
				d.fail(d.pos[at+"."+name], at+"."+name, "says nothing; write a value, or leave the key out")
			}
		}
	}
}

// compile makes the policy, whose complaints are given their places.
func (c *Config) compile(d *decoder) {
	spec := c.spec(d)
	p, err := policy.Compile(spec)
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			d.place(e, c.Pools)
		}
	}
	c.policy = p
}

// place records a complaint of policy where the file says what it is about. One about what
// check has complained of is the same once more.
func (d *decoder) place(complaint error, pools []Pool) {
	e, ok := errors.AsType[*policy.Error](complaint)
	if !ok {
		d.fail(Pos{}, "", "%v", complaint)
		return
	}
	key, problem := e.Path, e.Err.Error()
	below := func(key, name string) string { return strings.Trim(key+"."+name, ".") }
	if e.InPool {
		for i, p := range pools {
			if p.settings() == e.Pool {
				key = below(fmt.Sprintf("pools[%d]", i), e.Path)
			}
		}
	}
	if e.Key != "" {
		if whole := below(key, e.Key); d.has(whole) {
			key = whole
		} else {
			problem = e.Key + ": " + problem
		}
	}
	if slices.ContainsFunc(d.errs, func(e *Error) bool { return e.Key == key || strings.HasPrefix(e.Key, key+".") }) {
		return
	}
	d.fail(d.pos[key], key, "%s", problem)
}

// spec is what the file says about metrics, in policy's words.
func (c *Config) spec(d *decoder) policy.Spec {
	spec := policy.Spec{
		Rules:          rulesOf(c.Metrics),
		Pools:          map[string]policy.PoolSpec{},
		ExternalLabels: c.ExternalLabels,
		Limits: policy.Limits{
			SeriesPerPool: orZero(c.Limits.SeriesPerPool), SeriesPerFamily: orZero(c.Limits.SeriesPerFamily),
			FamiliesPerPool: orZero(c.Limits.FamiliesPerPool), BytesPerPool: int64(orZero(c.Limits.BytesPerPool)),
			Labels: orZero(c.Limits.LabelsPerSeries), LabelNameLength: orZero(c.Limits.LabelNameLength),
			LabelValueLength: orZero(c.Limits.LabelValueLength), FileSize: int64(orZero(c.Limits.FileSize)),
			KeyLength: int(orZero(c.Limits.KeyLength)),
		},
	}
	for i, name := range c.Presets {
		if slices.Contains(c.Presets[:i], name) {
			continue // check has complained
		}
		spec.Rules = append(spec.Rules, presets[name].policyRules(name)...)
	}
	for _, p := range c.Pools {
		spec.Pools[p.settings()] = policy.PoolSpec{Labels: p.Labels, Pattern: p.Glob != "", Rules: rulesOf(p.Metrics)}
	}
	for _, i := range c.Info {
		spec.Info = append(spec.Info, policy.InfoSeries{Name: i.Name, Help: i.Help, Labels: i.Labels})
	}
	for i := range c.MetricRelabelConfigs {
		spec.MetricRelabelConfigs = append(spec.MetricRelabelConfigs,
			c.MetricRelabelConfigs[i].config(d, fmt.Sprintf("metric_relabel_configs[%d]", i)))
	}
	return spec
}

func orZero[T any](p *T) (zero T) {
	if p == nil {
		return zero
	}
	return *p
}

func rulesOf(in []Rule) []policy.Rule {
	var out []policy.Rule
	for i := range in {
		r := &in[i]
		out = append(out, policy.Rule{
			Match: r.Match, MatchRE: r.MatchRE, GaugeMode: metric.Mode(orZero(r.GaugeMode)), Help: orZero(r.Help), Unit: orZero(r.Unit),
			Shape: view.Shape(orZero(r.Type)),
			Drop:  r.Drop, DropLabels: r.DropLabels, KeepLabels: r.KeepLabels, RenameLabels: r.RenameLabel,
			Retention: time.Duration(orZero(r.Retention)), ExpireAfter: time.Duration(orZero(r.ExpireAfter)),
			DropZeroAll: r.DropZeroAll,
		})
	}
	return out
}

// config is the same in Prometheus' own words, with its defaults.
func (r *Relabel) config(d *decoder, key string) *relabel.Config {
	c := relabel.DefaultRelabelConfig
	for _, name := range r.SourceLabels {
		c.SourceLabels = append(c.SourceLabels, model.LabelName(name))
	}
	if r.Separator != nil {
		c.Separator = *r.Separator
	}
	if r.Regex != nil {
		re, err := relabel.NewRegexp(*r.Regex)
		if err != nil {
			_, plain := regexp.Compile(*r.Regex) // without the anchors
			d.fail(d.pos[key+".regex"], key+".regex", "%v", cmp.Or(plain, err))
			return &relabel.DefaultRelabelConfig
		}
		c.Regex = re
	}
	if r.Modulus != nil {
		if *r.Modulus <= 0 {
			d.fail(d.pos[key+".modulus"], key+".modulus", "%d is not above 0", *r.Modulus)
			return &relabel.DefaultRelabelConfig
		}
		c.Modulus = uint64(*r.Modulus)
	}
	c.TargetLabel = r.TargetLabel
	if r.Replacement != nil {
		c.Replacement = *r.Replacement
	}
	if r.Action != nil {
		c.Action = relabel.Action(*r.Action)
	}
	return &c
}
