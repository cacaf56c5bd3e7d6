package config

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/output"
)

func TestOutputs(t *testing.T) {
	c, err := Parse("/etc/agg/a.yml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	specs := c.OutputSpecs()
	if len(specs) != 5 {
		t.Fatalf("%d outputs", len(specs))
	}
	var kinds []string
	for _, s := range specs {
		kinds = append(kinds, s.Name+"="+s.Kind())
	}
	if got, want := strings.Join(kinds, " "),
		"node=textfile gateway=pushgateway carbon=graphite mimir=remote_write collector=otlp"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	node, gateway, mimir, collector := specs[0], specs[1], specs[3], specs[4]
	if node.Interval != 30*time.Second || node.Timeout != 5*time.Second || !node.SkipOnExit || node.Processes != output.ProcessesNone ||
		!node.OwnMetrics || !node.Textfile.RemoveOnExit || len(node.Relabel) != 1 {
		t.Errorf("node: %+v", node)
	}
	// Paths begin where the file is, as in Prometheus.
	if got := gateway.HTTP.TLSConfig.CAFile; got != "/etc/agg/ca.pem" {
		t.Errorf("ca_file: %q", got)
	}
	if !gateway.HTTP.FollowRedirects || string(gateway.HTTP.BasicAuth.Password) != "hidden" || gateway.SkipOnExit ||
		gateway.Processes != "" {
		t.Errorf("gateway: %+v", gateway.HTTP)
	}
	if g := gateway.Pushgateway; g.URL != "http://me:hidden@gateway:9091" || g.DeleteAfter != 30*time.Second || !g.DeleteOnExit ||
		!g.InstanceIP {
		t.Errorf("gateway: %+v", g)
	}
	if r := mimir.RemoteWrite; r.Headers["X-Scope-OrgID"] != "hidden" || r.Protocol != output.Protocol1 || !r.KeepOnExit ||
		r.SamplesPerSend != 500 {
		t.Errorf("mimir: %+v", r)
	}
	if o := collector.OTLP; o.Names != output.NamesOTel || o.Resource["service.name"] != "shop" {
		t.Errorf("collector: %+v", o)
	}
}

// TestSecretsAreNotShown: what the file says is shown on the page.
func TestSecretsAreNotShown(t *testing.T) {
	c, err := Parse("a.yml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	text := string(c.YAML())
	if strings.Contains(text, "hidden") {
		t.Errorf("a secret shows:\n%s", text)
	}
	for _, part := range []string{"<secret>", "gateway:9091", "ca_file: ca.pem", "username: u"} {
		if !strings.Contains(text, part) {
			t.Errorf("no %q in\n%s", part, text)
		}
	}
}

func TestOutputMistakes(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"no kind": {
			"outputs:\n  - name: a\n",
			"a.yml:2:5: outputs[0]: has 0 kinds; write exactly one of textfile, pushgateway, graphite, remote_write, otlp",
		},
		"two kinds": {
			"outputs:\n  - {name: a, graphite: {address: 'a:1'}, textfile: {path: /a}}\n",
			"a.yml:2:5: outputs[0]: has 2 kinds; write exactly one of",
		},
		"no name": {
			"outputs:\n  - textfile: {path: /a}\n",
			"a.yml:2:5: outputs[0]: name: is missing; give the output a name",
		},
		"same name": {
			"outputs:\n  - {name: a, textfile: {path: /a}}\n  - {name: a, textfile: {path: /b}}\n",
			`a.yml:3:6: outputs[1].name: "a" is the name of outputs[0]; give each its own`,
		},
		"unknown key": {
			"outputs:\n  - {name: a, textfil: {path: /a}}\n",
			"a.yml:2:15: outputs[0].textfil: is not a key; did you mean textfile?",
		},
		"interval too short": {
			"outputs:\n  - {name: a, interval: 10ms, textfile: {path: /a}}\n",
			"a.yml:2:15: outputs[0].interval: 10ms is below 1s; use a longer one",
		},
		"interval of zero": {
			"outputs:\n  - {name: a, interval: 0s, textfile: {path: /a}}\n",
			"a.yml:2:15: outputs[0].interval: is 0; use a time above 0, or leave the key out for the default",
		},
		"regular expression": {
			"outputs:\n  - {name: a, match: [b, '('], textfile: {path: /a}}\n",
			"a.yml:2:26: outputs[0].match[1]: error parsing regexp: missing closing )",
		},
		"http_config of a file": {
			"outputs:\n  - name: a\n    http_config: {}\n    textfile: {path: /a}\n",
			"a.yml:3:5: outputs[0].http_config: means nothing for textfile, which is not asked by HTTP; leave it out",
		},
		"unknown key of http_config": {
			"outputs:\n  - name: a\n    http_config: {basic_aut: {}}\n    pushgateway: {url: 'http://a', job: j}\n",
			"a.yml:3:18: outputs[0].http_config: basic_aut is not a key of Prometheus' http_config",
		},
		"contradiction in http_config": {
			"outputs:\n  - name: a\n    http_config: {basic_auth: {username: a, password: b, password_file: c}}\n    pushgateway: {url: 'http://a', job: j}\n",
			"outputs[0].http_config: at most one of basic_auth password, password_file & password_ref must be configured",
		},
		"no job": {
			"outputs:\n  - {name: a, pushgateway: {url: 'http://a'}}\n",
			"a.yml:2:5: outputs[0]: pushgateway.job: is missing; give the job a name",
		},
		"job in the grouping key": {
			"outputs:\n  - {name: a, pushgateway: {url: 'http://a', job: j, grouping_key: {job: b}}}\n",
			"outputs[0].pushgateway.grouping_key: job has a key of its own; write it there",
		},
		"not a URL": {
			"outputs:\n  - {name: a, otlp: {url: 'collector:4318'}}\n",
			`outputs[0].otlp.url: "collector:4318" is not an address of HTTP; write it as in http://HOST:4318/v1/metrics`,
		},
		"password in a bad URL": {
			"outputs:\n  - {name: a, otlp: {url: 'ftp://u:hidden@h/'}}\n",
			`outputs[0].otlp.url: "ftp://u:xxxxx@h/" is not an address of HTTP`,
		},
		"header of the protocol": {
			"outputs:\n  - {name: a, remote_write: {url: 'http://a', headers: {authorization: x}}}\n",
			"outputs[0].remote_write.headers: authorization is set by http_config.authorization or basic_auth; write it there",
		},
		"protocol": {
			"outputs:\n  - {name: a, remote_write: {url: 'http://a', protocol: '3'}}\n",
			`outputs[0].remote_write.protocol: "3" is unknown; use auto, 1.0 or 2.0`,
		},
		"names": {
			"outputs:\n  - {name: a, otlp: {url: 'http://a', names: x}}\n",
			`outputs[0].otlp.names: "x" is unknown; use as_is or otel`,
		},
		"format": {
			"outputs:\n  - {name: a, textfile: {path: /a, format: xml}}\n",
			`outputs[0].textfile.format: unknown format "xml", want one of text,`,
		},
		"address": {
			"outputs:\n  - {name: a, graphite: {address: carbon}}\n",
			`outputs[0].graphite.address: "carbon" is not host:port; write it as in carbon:2003`,
		},
		"prefix": {
			"outputs:\n  - {name: a, graphite: {address: 'a:1', prefix: 'a b'}}\n",
			`outputs[0].graphite.prefix: "a b": a prefix has no spaces`,
		},
		"label": {
			"outputs:\n  - {name: a, external_labels: {le: x}, textfile: {path: /a}}\n",
			`outputs[0]: external_labels: label "le": the samples of a histogram or summary have it to differ`,
		},
		"relabelling": {
			"outputs:\n  - {name: a, metric_relabel_configs: [{action: hashmod}], textfile: {path: /a}}\n",
			"outputs[0]: metric_relabel_configs[0]: relabel configuration for hashmod requires",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("a.yml", []byte(c.in))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "hidden") {
				t.Error("the error has a password")
			}
		})
	}
}

// TestOutputsAgain: the same file asks for the same, so a reload leaves outputs as they are.
func TestOutputsAgain(t *testing.T) {
	var specs [2][]output.Spec
	for i := range specs {
		c, err := Parse("a.yml", []byte(everything))
		if err != nil {
			t.Fatal(err)
		}
		specs[i] = c.OutputSpecs()
	}
	if !reflect.DeepEqual(specs[0], specs[1]) {
		t.Error("read twice, a file asks for two things")
	}
}

// TestHTTPConfigAliases: aliases work in what Prometheus' library reads, too, and what they
// make of a file is bounded.
func TestHTTPConfigAliases(t *testing.T) {
	c, err := Parse("a.yml", []byte(`
outputs:
  - name: a
    http_config: &http {basic_auth: &auth {username: u, password: p}}
    otlp: {url: 'http://a'}
  - name: b
    http_config: {basic_auth: *auth, follow_redirects: false}
    otlp: {url: 'http://a'}
  - name: c
    http_config: *http
    otlp: {url: 'http://a'}
`))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.OutputSpecs() {
		if s.HTTP.BasicAuth == nil || s.HTTP.BasicAuth.Username != "u" || s.HTTP.FollowRedirects == (s.Name == "b") {
			t.Errorf("%s: %+v", s.Name, s.HTTP)
		}
	}
	bomb := "outputs:\n  - name: a\n    otlp: {url: 'http://a'}\n    http_config:\n      a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := range 8 {
		bomb += fmt.Sprintf("      a%d: &a%d [%s]\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 10))
	}
	if _, err := Parse("a.yml", []byte(bomb)); err == nil ||
		!strings.Contains(err.Error(), "outputs[0].http_config: aliases make it too large") {
		t.Errorf("%.300v", err)
	}
}
