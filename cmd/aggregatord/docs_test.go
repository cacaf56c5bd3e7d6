package main

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/exposition"
)

var update = flag.Bool("update", false, "write the pages of docs/ that are made from the code")

// page compares a page of docs/ with what it should be, or writes it.
func page(t *testing.T, name, want string) {
	t.Helper()
	path := filepath.Join("../../docs", name)
	if *update {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("docs/%s is out of date (%v); run make docs", name, err)
	}
}

// cell is a text in a table of Markdown.
func cell(text string) string {
	return strings.ReplaceAll(strings.ReplaceAll(strings.TrimSpace(text), "\n", " "), "|", `\|`)
}

// ownMetric is one of the daemon's own metrics, as the code makes it.
type ownMetric struct{ name, kind, help, labels string }

// ownMetrics finds in the code where metrics are made: calls as in set.GaugeVec(name, help,
// labels…) with the prefix of ours.
func ownMetrics(t *testing.T) []ownMetric {
	t.Helper()
	kinds := map[string]string{
		"Counter": "counter", "CounterVec": "counter", "Gauge": "gauge", "GaugeVec": "gauge", "Histogram": "histogram",
		"HistogramVec": "histogram",
	}
	paths, err := filepath.Glob("../../internal/*/*.go")
	if err != nil {
		t.Fatal(err)
	}
	var all []ownMetric
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			fun, ok := call.Fun.(*ast.SelectorExpr)
			name, isText := text(call.Args[0])
			if !ok || !isText || kinds[fun.Sel.Name] == "" || !strings.HasPrefix(name, "aggregatord_") {
				return true
			}
			m := ownMetric{name: name, kind: kinds[fun.Sel.Name]}
			m.help, _ = text(call.Args[1])
			var labels []string
			for _, arg := range call.Args[2:] {
				if l, ok := text(arg); ok {
					labels = append(labels, l)
				}
			}
			m.labels = strings.Join(labels, ", ")
			all = append(all, m)
			return true
		})
	}
	slices.SortFunc(all, func(a, b ownMetric) int { return strings.Compare(a.name, b.name) })
	return all
}

// text is the value of a string in the code, which may be added up of several.
func text(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.BinaryExpr:
		a, okA := text(e.X)
		b, okB := text(e.Y)
		return a + b, okA && okB
	}
	return "", false
}

const generated = "<!-- Made from the code by make docs. -->\n"

// TestDocumentedMetrics: docs/metrics.md has every metric of the daemon itself.
func TestDocumentedMetrics(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Metrics of the daemon itself\n\n" + generated + `
Those that an alert, the dashboard or ` + "`top`" + ` uses are served with the metrics of the workers; all are at ` + "`/-/metrics`" + `, and
` + "`--web.self-metrics`" + ` changes that. The label ` + "`pool`" + ` is there if the directory has a name. Alerts on them are in [deploy/prometheus](../deploy/prometheus), a dashboard in
[deploy/grafana](../deploy/grafana).

| metric | type | meaning |
|---|---|---|
`)
	all := ownMetrics(t)
	for _, m := range all {
		name := m.name
		if m.labels != "" {
			name += "{" + m.labels + "}"
		}
		if m.help == "" {
			t.Errorf("%s has no help text", m.name)
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, m.kind, cell(m.help))
	}
	if len(all) < 30 {
		t.Errorf("only %d metrics were found in the code", len(all))
	}
	page(t, "metrics.md", b.String())
}

// TestDocumentedFlags: docs/flags.md has every flag of every command.
func TestDocumentedFlags(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Commands and flags\n\n" + generated + `
Flags win over the configuration file, and that over the environment. A time is written as in ` + "`30s`, `5m`, `1h30m` or `7d`" + `. The
exit code is 0 after SIGTERM or SIGINT, 1 if something failed and 2 if the call was wrong; ` + "`run`" + ` has that of its command.
` + "`aggregatord completion SHELL`" + ` prints a script that completes commands and flags.
`)
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		if c.HasParent() {
			fmt.Fprintf(&b, "\n## %s\n\n%s.\n", c.UseLine(), c.Short)
			rows := 0
			c.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Hidden || f.Name == "help" {
					return
				}
				if rows++; rows == 1 {
					b.WriteString("\n| flag | default | meaning |\n|---|---|---|\n")
				}
				value, usage := pflag.UnquoteUsage(f)
				name := "--" + f.Name
				if value != "" {
					name += " " + value
				}
				otherwise := ""
				if f.DefValue != "" && f.DefValue != "[]" && f.DefValue != "false" {
					otherwise = "`" + strings.Trim(f.DefValue, "[]") + "`"
				}
				fmt.Fprintf(&b, "| `%s` | %s | %s |\n", name, otherwise, cell(usage))
			})
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(newRootCmd())
	page(t, "flags.md", b.String())
}

// TestDocumentedFormats: docs/formats.md names every format.
func TestDocumentedFormats(t *testing.T) {
	data, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range exposition.FormatNames() {
		if !strings.Contains(string(data), "`"+name+"`") {
			t.Errorf("docs/formats.md does not name %s", name)
		}
	}
}

// TestLinks follows the links of all pages to files and headings of this project.
func TestLinks(t *testing.T) {
	const root = "../.."
	pages, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"} {
		pages = append(pages, filepath.Join(root, name))
	}
	text := map[string]string{}
	read := func(path string) string {
		if _, ok := text[path]; !ok {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text[path] = string(data)
		}
		return text[path]
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	unsafe := regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	for _, page := range pages {
		for _, m := range link.FindAllStringSubmatch(read(page), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, heading, _ := strings.Cut(m[1], "#")
			target := page
			if file != "" {
				target = filepath.Join(filepath.Dir(page), file)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %v", page, m[1], err)
				continue
			}
			found := heading == ""
			if !found {
				for line := range strings.Lines(read(target)) {
					title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " ")
					if ok && strings.HasPrefix(line, "#") &&
						strings.ReplaceAll(unsafe.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-") == heading {
						found = true
					}
				}
			}
			if !found {
				t.Errorf("%s: the link %s leads to no heading", page, m[1])
			}
		}
	}
}
