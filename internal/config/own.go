package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"aggregatord/internal/discover"
	"aggregatord/internal/policy"
)

// Bounds on what an application may say of its pool; discover.MaxSettingsBytes bounds the file.
const (
	ownLabelPrefix = "app_"
	maxOwnLabels   = 10
	maxOwnLabel    = 128 // bytes of a name, and of a value
	maxOwnRules    = 100
)

// A PoolSettings is what an application says of its pool in a file of its volume. Nobody vouches for
// it, so it has no key that could concern others, and none that costs more than its length.
type PoolSettings struct {
	// Labels are put on every series of the pool. Their names begin with app_.
	Labels map[string]string `yaml:"labels,omitempty"`
	// Metrics are rules, before those of the configuration. They name each metric: match_re is not
	// among their keys.
	Metrics []Rule `yaml:"metrics,omitempty"`
	// Limits hold where they are lower than those of the configuration; pools is not among them.
	Limits Limits `yaml:"limits,omitempty"`
}

// ReadPoolSettings reads what an application says of its pool in a file. An error that is Errors tells
// what is wrong in it.
func ReadPoolSettings(file string, data []byte) (discover.Settings, error) {
	d := &decoder{file: file, pos: map[string]Pos{}}
	var in PoolSettings
	root, ok := d.parse(data)
	if root != nil {
		d.decode(root, "", reflect.ValueOf(&in).Elem())
	}
	if ok {
		for _, e := range d.errs {
			d.unread = append(d.unread, e.Key)
		}
	}
	var out discover.Settings
	if ok && in.check(d) {
		whole := Config{Metrics: in.Metrics, Limits: in.Limits}
		whole.check(d)
		out = in.compile(d, whole.spec(d))
	}
	if err := d.result(); err != nil {
		return discover.Settings{}, err
	}
	return out, nil
}

// check finds what the configuration may say, and an application may not. It reports whether the rules
// cost no more than their length: a regular expression of some bytes may compile to megabytes.
func (in *PoolSettings) check(d *decoder) (cheap bool) {
	cheap = len(in.Metrics) <= maxOwnRules
	fail := func(key, format string, args ...any) { d.fail(d.pos[key], key, format, args...) }
	if len(in.Labels) > maxOwnLabels {
		fail("labels", "are %d; write at most %d", len(in.Labels), maxOwnLabels)
	}
	for name, value := range in.Labels {
		switch key := "labels." + name; {
		case !strings.HasPrefix(name, ownLabelPrefix):
			fail(key, "does not begin with %s; labels of an application do, so that none can be taken for one of the node", ownLabelPrefix)
		case len(name) > maxOwnLabel || len(value) > maxOwnLabel:
			fail(key, "has more than %d bytes in its name or value; write a shorter one", maxOwnLabel)
		}
	}
	if len(in.Metrics) > maxOwnRules {
		fail("metrics", "are %d rules; write at most %d", len(in.Metrics), maxOwnRules)
	}
	for i, r := range in.Metrics {
		if r.MatchRE != "" {
			cheap = false
			fail(fmt.Sprintf("metrics[%d].match_re", i), "is not for the file of an application; name each metric by match")
		}
	}
	if in.Limits.Pools != nil {
		fail("limits.pools", "is not for the file of an application; remove it")
	}
	return cheap
}

// compile makes a policy of the rules and limits, whose complaints are given their places.
func (in *PoolSettings) compile(d *decoder, spec policy.Spec) (out discover.Settings) {
	for i := range spec.Rules {
		spec.Rules[i].Name = fmt.Sprintf("metrics[%d] of the application", i)
	}
	// The labels are checked as those of a pool without a name.
	spec.Pools = map[string]policy.PoolSpec{"": {Labels: in.Labels}}
	own, err := policy.Compile(spec)
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, complaint := range joined.Unwrap() {
			if e, ok := errors.AsType[*policy.Error](complaint); ok {
				e.InPool = false
			}
			d.place(complaint, nil)
		}
		return out
	}
	out.Labels, _ = own.Labels("", "")
	out.Own = own
	return out
}
