package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"aggregatord/internal/metric"
)

var update = flag.Bool("update", false, "write the table of presets into docs/configuration.md")

const (
	docsPath    = "../../docs/configuration.md"
	outputsPath = "../../docs/outputs.md"
	examplePath = "../../deploy/aggregatord.yml"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestDocumented: the pages have a row for each key, and for no other.
func TestDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_.\\[\\]]+)` \\|").FindAllStringSubmatch(read(t, docsPath)+read(t, outputsPath),
		-1) {
		documented[row[1]] = !strings.HasPrefix(row[1], "aggregatord_") // those are metrics
	}
	exist := map[string]bool{}
	keys(reflect.TypeFor[Config](), "", func(key string) {
		exist[key] = true
		// What has keys of its own has rows for these, and a pool's rules are rules like any.
		parent := false
		keys(reflect.TypeFor[Config](), "", func(other string) {
			parent = parent || strings.HasPrefix(other, key+".") || strings.HasPrefix(other, key+"[].")
		})
		if !parent && !documented[key] && !strings.HasPrefix(key, "pools[].metrics[].") {
			t.Errorf("docs/configuration.md and outputs.md have no row for %s", key)
		}
	})
	for key, isKey := range documented {
		if isKey && !exist[key] {
			t.Errorf("docs/configuration.md or outputs.md has %s, which is not a key", key)
		}
	}
}

// TestDocumentedExamples: every YAML example of the page loads.
func TestDocumentedExamples(t *testing.T) {
	for _, path := range []string{docsPath, outputsPath} {
		blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(read(t, path), -1)
		if len(blocks) == 0 {
			t.Errorf("no examples in %s", path)
		}
		for i, block := range blocks {
			if _, err := Parse(fmt.Sprintf("%s, example %d", path, i), []byte(block[1])); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestExample: the commented file loads as it is, and with each key uncommented, alone or
// with all the others; and it has every key.
func TestExample(t *testing.T) {
	example := read(t, examplePath)
	c, err := Parse("aggregatord.yml", []byte(example))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Presets) != len(presets) || len(c.Metrics) != 1 || len(c.Pools) != 0 || len(c.MetricRelabelConfigs) != 0 ||
		c.Limits != (Limits{}) {
		t.Errorf("as it is it says\n%s", c.YAML())
	}
	uncomment := regexp.MustCompile(`(?m)^#((?:  )*(?:- )?[a-z_]+:.*)$`)
	all := uncomment.ReplaceAllString(example, "$1")
	c, err = Parse("aggregatord.yml", []byte(all))
	if err != nil {
		t.Fatalf("uncommented: %v\n%s", err, all)
	}
	d := &decoder{pos: map[string]Pos{}}
	root, _ := d.parse([]byte(all))
	d.decode(root, "", reflect.ValueOf(new(Config)).Elem())
	used := map[string]bool{}
	for key := range d.pos {
		used[regexp.MustCompile(`\[\d+\]`).ReplaceAllString(key, "[]")] = true
	}
	keys(reflect.TypeFor[Config](), "", func(key string) {
		if !used[key] && !strings.HasPrefix(key, "pools[].metrics[].") {
			t.Errorf("deploy/aggregatord.yml has no %s", key)
		}
	})
	// Each section alone: from a key in the first column to the next.
	sections := regexp.MustCompile(`(?m)^[a-z_]+:`).FindAllStringIndex(all, -1)
	if len(sections) < 8 {
		t.Errorf("only %d sections", len(sections))
	}
	for i, s := range sections {
		end := len(all)
		if i+1 < len(sections) {
			end = sections[i+1][0]
		}
		if _, err := Parse("section", []byte(all[s[0]:end])); err != nil {
			t.Errorf("alone: %v", err)
		}
	}
	if len(c.Pools) != 3 || len(c.Metrics) < 5 || len(c.Presets) != len(presets) {
		t.Errorf("uncommented it says\n%s", c.YAML())
	}
}

// TestPresetsDocumented: the page says of each preset what it does and why.
func TestPresetsDocumented(t *testing.T) {
	var b strings.Builder
	for _, name := range PresetNames() {
		p := presets[name]
		fmt.Fprintf(&b, "\n### %s\n\nFor %s.\n\n| metrics (`match_re`) | rule | why |\n|---|---|---|\n", name, p.Library)
		for _, r := range p.Rules {
			rule := ""
			if r.GaugeMode != metric.NoMode {
				rule = fmt.Sprintf("`gauge_mode: %s`", r.GaugeMode)
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.ReplaceAll(r.MatchRE, "|", `\|`), rule, r.Why)
		}
	}
	docs := read(t, docsPath)
	begin, end := strings.Index(docs, "-update -->\n")+len("-update -->\n"), strings.Index(docs, "<!-- presets end -->")
	if want := b.String() + "\n"; docs[begin:end] != want {
		if !*update {
			t.Fatalf("docs/configuration.md is out of date; run go test ./internal/config -update. It should say\n%s", want)
		}
		if err := os.WriteFile(docsPath, []byte(docs[:begin]+want+docs[end:]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
