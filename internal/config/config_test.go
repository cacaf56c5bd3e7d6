package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/relabel"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/view"
)

// everything uses every key there is; TestEveryKey keeps it so.
const everything = `
presets: [django, flask]
metrics:
  - match: inprogress_requests
    gauge_mode: livesum
    help: Requests in progress.
  - match_re: '.*_seconds'
    unit: seconds
    drop_labels: [user_id]
    rename_label: {host: instance_name}
    retention: 7d
    expire_after: 1h30m
  - match: noise
    drop: true
  - match: chatty
    keep_labels: [path]
    drop_zero_all: true
  - match: door
    type: stateset
metric_relabel_configs:
  - source_labels: [__name__, path]
    separator: '@'
    regex: 'a@(.*)'
    target_label: short
    replacement: '$1'
    action: Replace
  - source_labels: [path]
    modulus: 8
    target_label: shard
    action: hashmod
pools:
  - {name: other, dir: /other, gunicorn_control: /c, uwsgi_stats: /s}
  - {glob: /run/apps/*/metrics, name: app-$1, recursive: true, depth: 2}
  - name: web
    dir: /dev/shm/web
    labels: {team: shop}
    metrics:
      - match: level
        gauge_mode: latest
    gunicorn_control: /run/web/gunicorn.ctl
  - name: jobs
    dir: /dev/shm/jobs
    uwsgi_stats: 127.0.0.1:1717
external_labels: {region: eu}
info:
  - name: shop_build_info
    help: Which build this is.
    labels: {version: 1.10}
process:
  - {namespace: x, pid_file: /p}
discovery:
  - processes: {path: "/tmp/*", user: www-data, unit: "*.service", command: gunicorn}
  - kubelet: {root: /var/lib/kubelet, logs: /var/log/pods, volume: metrics, settings: metrics.yml}
limits:
  pools: 7
  series_per_pool: 1000
  series_per_family: 100
  families_per_pool: 50
  bytes_per_pool: 32MiB
  labels_per_series: 10
  label_name_length: 64
  label_value_length: 256
  file_size: 64MiB
  key_length: 4096
archive:
  dir: /var/lib/aggregatord
  disable: true
  rest: 2s
  gauge_retention: 0
  gauge_workers: 5
  mirror: only
  mirror_wait: 30s
  mirror_files: 100
outputs:
  - name: node
    interval: 30s
    timeout: 5s
    match: ['http_.*']
    metric_relabel_configs:
      - {source_labels: [a, b], separator: '-', regex: '(.*)', target_label: c, replacement: $1, modulus: 3, action: hashmod}
    external_labels: {cluster: eu}
    pools: [web]
    process_metrics: false
    own_metrics: true
    on_exit: false
    textfile: {path: /tmp/a.prom, format: openmetrics, remove_on_exit: true}
  - name: gateway
    http_config:
      basic_auth: {username: u, password: hidden}
      tls_config: {ca_file: ca.pem}
    pushgateway:
      url: http://me:hidden@gateway:9091
      job: nightly
      grouping_key: {stage: prod}
      instance_ip: true
      method: POST
      delete_on_exit: true
      delete_after: 30s
  - name: carbon
    graphite: {address: 'carbon:2003', prefix: a.b, tags: true}
  - name: mimir
    remote_write:
      url: https://mimir/api/v1/push
      protocol: '1.0'
      headers: {X-Scope-OrgID: hidden}
      max_samples_per_send: 500
      stale_on_exit: false
  - name: collector
    otlp:
      url: http://collector:4318/v1/metrics
      headers: {X-Tenant: hidden}
      resource_attributes: {service.name: shop}
      names: otel
`

func TestParse(t *testing.T) {
	c, err := Parse("a.yml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Spec{
		Rules: []policy.Rule{
			{Match: "inprogress_requests", GaugeMode: metric.LiveSum, Help: "Requests in progress."},
			{
				MatchRE: ".*_seconds", Unit: "seconds", DropLabels: []string{"user_id"},
				RenameLabels: map[string]string{"host": "instance_name"},
				Retention:    7 * 24 * time.Hour, ExpireAfter: 90 * time.Minute,
			},
			{Match: "noise", Drop: true},
			{Match: "chatty", KeepLabels: []string{"path"}, DropZeroAll: true},
			{Match: "door", Shape: view.StateSet},
		},
		Pools: map[string]policy.PoolSpec{
			"other":               {},
			"/run/apps/*/metrics": {Pattern: true},
			"web": {
				Labels: map[string]string{"team": "shop"},
				Rules:  []policy.Rule{{Match: "level", GaugeMode: metric.MostRecent}},
			},
			"jobs": {},
		},
		ExternalLabels: map[string]string{"region": "eu"},
		Info: []policy.InfoSeries{{
			Name: "shop_build_info", Help: "Which build this is.",
			Labels: map[string]string{"version": "1.10"},
		}},
		Limits: policy.Limits{
			SeriesPerPool: 1000, SeriesPerFamily: 100, FamiliesPerPool: 50, BytesPerPool: 32 << 20, Labels: 10, LabelNameLength: 64,
			LabelValueLength: 256,
			FileSize:         64 << 20, KeyLength: 4096,
		},
		MetricRelabelConfigs: []*relabel.Config{
			{
				SourceLabels: model.LabelNames{"__name__", "path"}, Separator: "@", Regex: relabel.MustNewRegexp("a@(.*)"),
				TargetLabel: "short", Replacement: "$1", Action: relabel.Replace,
			},
			{
				SourceLabels: model.LabelNames{"path"}, Separator: ";", Regex: relabel.DefaultRelabelConfig.Regex, Modulus: 8,
				TargetLabel: "shard", Replacement: "$1", Action: relabel.HashMod,
			},
		},
	}
	for _, name := range []string{"django", "flask"} {
		want.Rules = append(want.Rules, presets[name].policyRules(name)...)
	}
	got := c.spec(&decoder{pos: map[string]Pos{}})
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}
	a := c.Archive
	if *a.Dir != "/var/lib/aggregatord" || !*a.Disable || *a.GaugeRetention != 0 || *a.GaugeWorkers != 5 || *a.Mirror != "only" ||
		time.Duration(*a.MirrorWait) != 30*time.Second || *a.MirrorFiles != 100 {
		t.Errorf("archive %+v", a)
	}
	if c.Policy() == nil || c.File() != "a.yml" || len(c.Hash()) != 64 {
		t.Errorf("policy %v of %q, hash %q", c.Policy(), c.File(), c.Hash())
	}
	if other, err := Parse("a.yml", []byte(everything+"\n")); err != nil || other.Hash() == c.Hash() {
		t.Errorf("another content has the same hash: %v", err)
	}
	// What is shown says the same.
	again, err := Parse("shown.yml", c.YAML())
	if err != nil {
		t.Fatalf("%v in\n%s", err, c.YAML())
	}
	if got := again.spec(&decoder{pos: map[string]Pos{}}); !reflect.DeepEqual(got, want) {
		t.Errorf("after writing\n%+v\nwant\n%+v", got, want)
	}
}

// TestNothing: an empty file, and one of comments only, say nothing, and so do lists
// whose items are all comments.
func TestNothing(t *testing.T) {
	for _, content := range []string{
		"", "\n\n", "# nothing\n", "---\n", "{}\n",
		"metrics:\npools:\n  # - dir: /x\nlimits:\nexternal_labels:\n",
	} {
		c, err := Parse("a.yml", []byte(content))
		if err != nil {
			t.Errorf("%q: %v", content, err)
			continue
		}
		spec := c.spec(&decoder{pos: map[string]Pos{}})
		if len(spec.Rules) != 0 || len(spec.Pools) != 0 || len(spec.ExternalLabels) != 0 || spec.Limits != (policy.Limits{}) ||
			c.Archive != (Archive{}) {
			t.Errorf("%q: %+v", content, spec)
		}
	}
}

// TestErrors: each mistake is told with its place, its key and what to do.
func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		want    []string
	}{
		"unknown_key": {"metrik: []\n", []string{"a.yml:1:1: metrik: is not a key; did you mean metrics?"}},
		"unknown_key_far": {
			"zzzzzzzz: 1\n",
			[]string{"a.yml:1:1: zzzzzzzz: is not a key; use one of presets, metrics, metric_relabel_configs, pools, external_labels, info, limits, archive"},
		},
		"unknown_key_deep": {
			"metrics:\n  - match: a\n    gauge_mod: sum\n",
			[]string{"a.yml:3:5: metrics[0].gauge_mod: is not a key; did you mean gauge_mode?"},
		},
		"unknown_key_in_pool": {
			"pools:\n  - dir: /x\n    metrics:\n      - match: a\n        drop_label: [b]\n",
			[]string{"a.yml:5:9: pools[0].metrics[0].drop_label: is not a key; did you mean drop_labels?"},
		},
		"key_twice": {
			"limits: {file_size: 1MiB}\nlimits: {}\n",
			[]string{"a.yml:2:1: limits: is given twice, first in line 1; leave one of them out"},
		},
		"label_twice": {
			"external_labels:\n  a: b\n  a: c\n",
			[]string{"a.yml:3:3: external_labels.a: is given twice, first in line 2; leave one of them out"},
		},
		"merge_key": {"limits:\n  <<: {}\n", []string{"a.yml:2:3: limits.<<: merge keys are not known here; write the keys out"}},
		"list_for_keys": {
			"limits: [1]\n",
			[]string{"a.yml:1:9: limits: wants keys with values (pools, series_per_pool, series_per_family, families_per_pool, bytes_per_pool, labels_per_series, label_name_length, label_value_length, file_size, key_length), not a list"},
		},
		"keys_for_list": {"metrics: {match: a}\n", []string{"a.yml:1:10: metrics: wants a list, not keys with values"}},
		"text_for_list": {
			"metrics:\n  - match: a\n    drop_labels: user\n",
			[]string{`a.yml:3:18: metrics[0].drop_labels: wants a list, not "user"`},
		},
		"text_for_labels":  {"external_labels: eu\n", []string{`a.yml:1:18: external_labels: wants names with values, not "eu"`}},
		"list_for_text":    {"metrics:\n  - match: [a]\n", []string{"a.yml:2:12: metrics[0].match: wants text, not a list"}},
		"nothing_for_text": {"metrics:\n  - match:\n", []string{"metrics[0].match: wants text, not nothing"}},
		"text_for_bool": {
			"metrics:\n  - {match: a, drop: maybe}\n",
			[]string{`a.yml:2:22: metrics[0].drop: "maybe" is neither true nor false`},
		},
		"yes_for_bool": {"archive: {disable: yes}\n", []string{`archive.disable: "yes" is neither true nor false`}},
		"text_for_int": {
			"limits:\n  series_per_pool: many\n",
			[]string{`a.yml:2:20: limits.series_per_pool: "many" is not a whole number`},
		},
		"half_an_int": {"limits: {series_per_pool: 1.5}\n", []string{`limits.series_per_pool: "1.5" is not a whole number`}},
		"large_int":   {"limits: {series_per_pool: 99999999999999999999}\n", []string{"is not a whole number"}},
		"negative_limit": {
			"limits: {labels_per_series: -1}\n",
			[]string{"a.yml:1:10: limits.labels_per_series: -1 would let nothing in; use a number above 0, or leave the key out for the default"},
		},
		"zero_limit": {"limits: {file_size: 0}\n", []string{"limits.file_size: 0 would let nothing in"}},
		"bad_size": {
			"limits: {file_size: 10MB}\n",
			[]string{`a.yml:1:21: limits.file_size: "10MB" is not a size; write bytes as in 65536, 64KiB or 1GiB`},
		},
		"huge_size": {"limits: {file_size: 99999999999GiB}\n", []string{"is not a size"}},
		"bad_duration": {
			"metrics:\n  - {match: a, expire_after: soon}\n",
			[]string{`a.yml:2:30: metrics[0].expire_after: "soon" is not a duration; write it as in 30s, 5m, 1h30m or 7d`},
		},
		"no_unit": {
			"metrics:\n  - {match: a, retention: 30}\n",
			[]string{`metrics[0].retention: "30" has no unit; write 30s for seconds, 30m for minutes, …`},
		},
		"negative_duration": {
			"metrics:\n  - {match: a, retention: -5m}\n",
			[]string{`metrics[0].retention: "-5m" is negative; use 0 or more`},
		},
		"zero_duration": {
			"metrics:\n  - {match: a, retention: 0}\n",
			[]string{"metrics[0].retention: says nothing; write a value, or leave the key out"},
		},
		"empty_drop_labels": {"metrics:\n  - {match: a, drop_labels: []}\n", []string{"a.yml:2:16: metrics[0].drop_labels: says nothing"}},
		"empty_keep_labels": {"metrics:\n  - {match: a, keep_labels: }\n", []string{"a.yml:2:16: metrics[0].keep_labels: says nothing"}},
		"empty_rename_label": {
			"metrics:\n  - {match: a, rename_label: {}}\n",
			[]string{"a.yml:2:16: metrics[0].rename_label: says nothing"},
		},
		"empty_help": {"metrics:\n  - {match: a, help: ''}\n", []string{"metrics[0].help: says nothing"}},
		"bad_mode": {
			"metrics:\n  - match: a\n    gauge_mode: lifesum\n",
			[]string{`a.yml:3:17: metrics[0].gauge_mode: "lifesum" is not a gauge mode; did you mean livesum?`},
		},
		"bad_type": {
			"metrics:\n  - match: a\n    type: statset\n",
			[]string{`a.yml:3:11: metrics[0].type: "statset" is not a type that a rule can give a gauge; did you mean stateset?`},
		},
		"bad_regex": {
			"metrics:\n  - match_re: 'a('\n",
			[]string{"a.yml:2:5: metrics[0].match_re: error parsing regexp: missing closing ): `a(`"},
		},
		"no_match": {"metrics:\n  - gauge_mode: sum\n", []string{"a.yml:2:5: metrics[0]: it matches nothing; write match"}},
		"two_matches": {
			"metrics:\n  - {match: a, match_re: b}\n",
			[]string{"a.yml:2:5: metrics[0]: it has match and match_re; write one of them"},
		},
		"drop_and_more": {
			"metrics:\n  - {match: a, drop: true, help: b}\n",
			[]string{"a.yml:2:16: metrics[0].drop: true leaves nothing for the other settings to change"},
		},
		"pool_rule": {
			"pools:\n  - {name: a.b, dir: /x}\n  - name: c\n    dir: /y\n    metrics:\n      - {gauge_mode: sum}\n",
			[]string{"a.yml:6:9: pools[1].metrics[0]: it matches nothing"},
		},
		"pool_with_dot": {
			"pools:\n  - name: a.b\n    dir: /x\n    metrics: [{match: q, match_re: w}]\n",
			[]string{"a.yml:4:15: pools[0].metrics[0]: it has match and match_re"},
		},
		"pool_without_dir": {
			"pools:\n  - name: a\n",
			[]string{"a.yml:2:5: pools[0]: has no dir; name the directory with the source files"},
		},
		"pool_without_name": {
			"pools:\n  - dir: /a\n  - {name: b, dir: /b}\n",
			[]string{"a.yml:2:5: pools[0]: has no name; with several pools each needs one"},
		},
		"pool_twice": {
			"pools:\n  - {name: b, dir: /a}\n  - {name: b, dir: /b}\n",
			[]string{`a.yml:3:6: pools[1].name: "b" is the name of an earlier pool; give each its own`},
		},
		"pool_with_slash":   {"pools:\n  - {name: a/b, dir: /a}\n", []string{`pools[0].name: "a/b" cannot be the name of a directory`}},
		"bad_label":         {"external_labels: {__a: b}\n", []string{"a.yml:1:1: external_labels", "__"}},
		"empty_label":       {"pools:\n  - dir: /a\n    labels: {a: ''}\n", []string{"a.yml:3:5: pools[0].labels", "empty"}},
		"info_without_name": {"info:\n  - help: a\n", []string{"a.yml:2:5: info[0]"}},
		"own_name": {
			"info:\n  - name: aggregatord_x\n",
			[]string{`a.yml:2:5: info[0].name: "aggregatord_x": names that begin with aggregatord_`},
		},
		"bad_preset": {
			"presets: [flask, djagno]\n",
			[]string{`a.yml:1:18: presets[1]: "djagno" is not a preset; did you mean django?`},
		},
		"preset_twice": {"presets: [flask, flask]\n", []string{`a.yml:1:18: presets[1]: "flask" is given twice; leave one out`}},
		"bad_action": {
			"metric_relabel_configs:\n  - action: repalce\n",
			[]string{`a.yml:2:13: metric_relabel_configs[0].action: "repalce" is not a relabel action; did you mean replace?`},
		},
		"relabel_regex": {
			"metric_relabel_configs:\n  - {regex: '(', action: drop}\n",
			[]string{"a.yml:2:6: metric_relabel_configs[0].regex: error parsing regexp: missing closing ): `(`"},
		},
		"relabel_modulus": {
			"metric_relabel_configs:\n  - {modulus: 0, action: hashmod, target_label: a}\n",
			[]string{"metric_relabel_configs[0].modulus: 0 is not above 0"},
		},
		"relabel_no_target": {
			"metric_relabel_configs:\n  - {source_labels: [a]}\n",
			[]string{"a.yml:2:5: metric_relabel_configs[0]: relabel configuration for replace action requires 'target_label' value"},
		},
		"relabel_empty": {
			"metric_relabel_configs:\n  -\n",
			[]string{"metric_relabel_configs[0]: relabel configuration for replace action requires"},
		},
		"archive_dir": {
			"archive: {dir: ''}\n",
			[]string{"a.yml:1:11: archive.dir: is empty; name a directory, or leave the key out"},
		},
		"process_namespace": {
			"process: [{namespace: 1x, pid_file: /p}]\n",
			[]string{`process[0].namespace: "1x" cannot begin the name of a metric`},
		},
		"process_twice": {
			"process: [{namespace: x, pid_file: /p}, {namespace: x, pid_file: /q}]\n",
			[]string{`process[1].namespace: "x" is that of an earlier process`},
		},
		"process_no_file": {"process: [{namespace: x}]\n", []string{"process[0]: has no pid_file"}},
		"archive_mirror":  {"archive: {mirror: on}\n", []string{`a.yml:1:11: archive.mirror: "on" is none of auto, off and only`}},
		"archive_mirrored": {
			"archive: {mirror: off, mirror_files: -1}\n",
			[]string{"a.yml:1:24: archive.mirror_files: -1 is negative; use 0 for any number"},
		},
		"archive_workers": {
			"archive: {gauge_workers: -1}\n",
			[]string{"a.yml:1:11: archive.gauge_workers: -1 is negative; use 0 for any number"},
		},

		"not_yaml":      {"metrics: [\nlimits: {}\n", []string{"a.yml:3:1: is not YAML: while parsing a flow sequence"}},
		"tab":           {"limits:\n\tfile_size: 1\n", []string{"a.yml:2:", "has a tab"}},
		"control_bytes": {"a: \x01\n", []string{"a.yml", "is not YAML"}},
		"long_scalar":   {strings.Repeat("é ", 500) + "\n", []string{`not "` + strings.Repeat("é ", 20) + `"…`}},
		"UTF-16":        {"\xff\xfea\x00:\x00", []string{"a.yml:1:1: is not UTF-8", "save the file as UTF-8"}},
		"Latin-1":       {"info:\n  - name: x\n    help: ä\xe4\n", []string{"a.yml:3:12: is not UTF-8"}},
		"scalar":        {"hello\n", []string{`a.yml:1:1: wants keys with values`, `not "hello"`}},
		"two_documents": {"limits: {}\n---\nlimits: {}\n", []string{"a.yml:2:1: a second document begins here; write all keys into one"}},
		"unknown_tag":   {"limits: !env {}\n", []string{"limits: has the tag !env, which means nothing here; leave it out"}},
		"binary":        {"info:\n  - name: !!binary aGk=\n", []string{"info[0].name: wants text, not binary data"}},
		"unknown_alias": {"limits: *l\n", []string{"is not YAML", "'l'"}},
		"cyclic_alias":  {"presets: &p [*p]\n", []string{"presets[0]: wants text, not a list"}},
		"key_is_a_list": {"? [a]\n: b\n", []string{"has a key that is a list; write a name"}},
		"too_large":     {strings.Repeat("#", maxFileBytes+1), []string{"a.yml: is larger than 1048576 bytes"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("a.yml", []byte(c.content))
			var all Errors
			if !errors.As(err, &all) {
				t.Fatalf("it says %v", err)
			}
			if len(all) != 1 {
				t.Errorf("%d complaints:\n%v", len(all), err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("it says\n  %v\nwant\n  %s", err, want)
				}
			}
		})
	}
}

// TestSeveralErrors: all mistakes are told at once, in the order of the file, and not
// without end.
func TestSeveralErrors(t *testing.T) {
	_, err := Parse("a.yml", []byte("limits: {file_size: x}\nmetrics:\n  - {match: a, gauge_mode: x}\n  - {match: b, drop: x}\nfoo: 1\n"))
	var places []string
	for line := range strings.Lines(err.Error()) {
		places = append(places, strings.Join(strings.Split(line, ":")[:4], ":"))
	}
	want := []string{"a.yml:1:21: limits.file_size", "a.yml:3:28: metrics[0].gauge_mode", "a.yml:4:22: metrics[1].drop", "a.yml:5:1: foo"}
	if !slices.Equal(places, want) {
		t.Errorf("%q, want %q", places, want)
	}
	_, err = Parse("a.yml", []byte("metrics:\n"+strings.Repeat("  - {drop: x}\n", 1000)))
	if n := strings.Count(err.Error(), "\n") + 1; n != maxErrors+1 || !strings.HasSuffix(err.Error(), "and 980 more mistakes") {
		t.Errorf("%d lines, the last of\n%v", n, err)
	}
}

// TestAliases: an anchor may be used again, but not to make much of little.
func TestAliases(t *testing.T) {
	c, err := Parse("a.yml", []byte("pools:\n  - {name: a, dir: /a, labels: &l {team: x}}\n  - {name: b, dir: /b, labels: *l}\n"))
	if err != nil || c.Pools[1].Labels["team"] != "x" {
		t.Errorf("%v: %+v", err, c)
	}
	var b strings.Builder
	b.WriteString("metrics:\n  - {match: a, drop_labels: &a [" + strings.Repeat("a,", 999) + "a]}\n")
	b.WriteString(strings.Repeat("  - {match: a, drop_labels: *a}\n", 1000))
	start := time.Now()
	if _, err := Parse("a.yml", []byte(b.String())); err == nil || !strings.Contains(err.Error(), "aliases make the file too large") {
		t.Errorf("a million labels: %.300v", err)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.yml")
	if err := os.WriteFile(path, []byte("limits: {file_size: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(path); err != nil || c.File() != path || *c.Limits.FileSize != 1 {
		t.Errorf("%+v: %v", c, err)
	}
	if _, err := Load(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "none") {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}

// keys yields all keys a file may have, as metrics[].gauge_mode.
func keys(t reflect.Type, prefix string, yield func(string)) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Slice:
		keys(t.Elem(), prefix+"[]", yield)
	case reflect.Struct:
		for field := range t.Fields() {
			if name, _, _ := strings.Cut(field.Tag.Get("yaml"), ","); name != "" {
				yield(join(prefix, name))
				keys(field.Type, join(prefix, name), yield)
			}
		}
	}
}

// TestEveryKey: the file that uses every key does, so each key is tried by TestParse.
func TestEveryKey(t *testing.T) {
	d := &decoder{file: "a.yml", pos: map[string]Pos{}}
	var c Config
	root, _ := d.parse([]byte(everything))
	d.decode(root, "", reflect.ValueOf(&c).Elem())
	used := map[string]bool{}
	for key := range d.pos {
		used[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(key, "[]")] = true
	}
	n := 0
	keys(reflect.TypeFor[Config](), "", func(key string) {
		n++
		// A pool's rules are rules like any.
		if !used[key] && !strings.HasPrefix(key, "pools[].metrics[].") {
			t.Errorf("%s is not tried", key)
		}
	})
	if n < 40 {
		t.Errorf("only %d keys", n)
	}
}

func TestDurations(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "30s": 30 * time.Second, "1h30m": 90 * time.Minute, "7d": 7 * 24 * time.Hour, "1w": 7 * 24 * time.Hour,
		"500ms": 500 * time.Millisecond, "1.5s": 1500 * time.Millisecond, "1y": 365 * 24 * time.Hour,
	} {
		var d Duration
		if err := d.UnmarshalText([]byte(in)); err != nil || time.Duration(d) != want {
			t.Errorf("%s is %v: %v", in, d, err)
		}
		var again Duration
		if err := again.UnmarshalText([]byte(d.String())); err != nil || again != d {
			t.Errorf("%s is written %s, which is %v: %v", in, d, again, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for in, want := range map[string]struct {
		bytes Size
		text  string
	}{
		"0": {0, "0"}, "1": {1, "1"}, "1024": {1024, "1KiB"}, "64KiB": {64 << 10, "64KiB"}, "64 KiB": {64 << 10, "64KiB"},
		"1GiB": {1 << 30, "1GiB"}, "1536MiB": {1536 << 20, "1536MiB"}, "7B": {7, "7"},
	} {
		var s Size
		if err := s.UnmarshalText([]byte(in)); err != nil || s != want.bytes || s.String() != want.text {
			t.Errorf("%s is %d, written %s: %v", in, int64(s), s, err)
		}
	}
}

// TestAllAtOnce: what was written wrongly does not keep the rest from being looked at, and no
// complaint is about what another one has said.
func TestAllAtOnce(t *testing.T) {
	_, err := Parse("a.yml", []byte(`
metrics:
  - match: a
    gauge_mode: livsum
  - match_re: "("
    drop: true
  - match: b
    gauge_mod: sum
metric_relabel_configs:
  - regex: "["
    target_label: x
  - action: replce
presets: [djngo]
limits:
  series_per_pool: 0
external_labels:
  team: “shop”
`))
	var said []string
	for line := range strings.Lines(err.Error() + "\n") {
		said = append(said, line)
	}
	for i, want := range []string{
		"metrics[0].gauge_mode: \"livsum\" is not a gauge mode; did you mean livesum?",
		"metrics[1].match_re: ",
		"metrics[2].gauge_mod: is not a key; did you mean gauge_mode?",
		"metric_relabel_configs[0].regex: ", "metric_relabel_configs[1].action: ",
		"presets[0]: \"djngo\" is not a preset; did you mean django?", "limits.series_per_pool: 0 would",
		"external_labels.team: is in typographic quotes",
	} {
		if i >= len(said) || !strings.Contains(said[i], want) {
			t.Errorf("complaint %d is not about %q", i, want)
		}
	}
	if t.Failed() || len(said) != 8 {
		t.Errorf("%d complaints: %s", len(said), err)
	}
}

func TestTab(t *testing.T) {
	for _, text := range []string{"metrics:\n\t- match: a\n", "limits:\n  series_per_pool:\t1\n\tfile_size: 1\n"} {
		_, err := Parse("a.yml", []byte(text))
		if err == nil || !strings.Contains(err.Error(), "has a tab; indent with spaces") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestDidYouMean(t *testing.T) {
	for word, want := range map[string]string{
		"gague_mode": "; did you mean gauge_mode?", "Match": "; did you mean match?", "matchre": "; did you mean match_re?",
		"x": "; use one of match, match_re, gauge_mode",
	} {
		if got := didYouMean(word, []string{"match", "match_re", "gauge_mode"}); got != want {
			t.Errorf("%s%s", word, got)
		}
	}
}

// FuzzLoad: nothing makes the loader panic; what it takes it takes again in its own
// spelling, which says the same; and each complaint has a text and a place in the file.
func FuzzLoad(f *testing.F) {
	f.Add(everything)
	f.Add("presets: &p [*p]\n")
	f.Add("pools:\n  - {name: a, dir: /a, labels: &l {team: x}}\n  - {name: b, dir: /b, labels: *l}\n")
	f.Add("? [a]\n: b\n")
	f.Add("a: !!binary x\n---\n")
	f.Add("info: [{name: \"\\u2028\\x85\", help: |\n  a\n  }]\n")
	f.Fuzz(func(t *testing.T, content string) {
		c, err := Parse("a.yml", []byte(content))
		if err != nil {
			var all Errors
			if !errors.As(err, &all) || len(all) == 0 {
				t.Fatalf("not Errors: %v", err)
			}
			lines := strings.Count(strings.NewReplacer("\r\n", "\n", "\r", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029",
				"\n").Replace(content), "\n") + 1
			for _, e := range all {
				if e.Problem == "" || e.Pos.Line < 0 || e.Pos.Line > lines+1 {
					t.Errorf("of %d lines: %#v", lines, e)
				}
			}
			return
		}
		written := c.YAML()
		again, err := Parse("a.yml", written)
		if err != nil {
			t.Fatalf("its own spelling is refused: %v in\n%s", err, written)
		}
		if got := again.YAML(); string(got) != string(written) {
			t.Errorf("written\n%s\nand then\n%s", written, got)
		}
		a, b := c.spec(&decoder{pos: map[string]Pos{}}), again.spec(&decoder{pos: map[string]Pos{}})
		if fmt.Sprintf("%+v", a.Limits) != fmt.Sprintf("%+v", b.Limits) || len(a.Rules) != len(b.Rules) {
			t.Errorf("%+v became %+v", a, b)
		}
	})
}
