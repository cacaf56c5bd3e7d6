package main

import (
	"iter"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/buildinfo"
)

// commands yields every command there is, the root first.
func commands() iter.Seq[*cobra.Command] {
	return func(yield func(*cobra.Command) bool) {
		root := newRootCmd()
		adoptCobraCommands(root)
		var visit func(*cobra.Command) bool
		visit = func(c *cobra.Command) bool {
			if !yield(c) {
				return false
			}
			for _, sub := range c.Commands() {
				if !visit(sub) {
					return false
				}
			}
			return true
		}
		visit(root)
	}
}

// TestHelp asks every command for help, in both ways. It names each flag, and what it
// shows as an example is a call that is understood.
func TestHelp(t *testing.T) {
	seen := 0
	for cmd := range commands() {
		if cmd.Hidden {
			continue
		}
		seen++
		path := strings.Fields(cmd.CommandPath())[1:]
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			help := must(t, append(slices.Clone(path), "--help")...)
			contains(t, help, "Usage:", cmd.CommandPath())
			cmd.Flags().VisitAll(func(f *pflag.Flag) {
				if f.Hidden {
					return
				}
				contains(t, help, "--"+f.Name)
				if f.Usage == "" {
					t.Errorf("flag --%s says nothing about itself", f.Name)
				}
			})
			for _, sub := range cmd.Commands() {
				if !sub.Hidden {
					contains(t, help, sub.Name(), sub.Short)
				}
			}
			if cmd.Name() != "help" {
				if again := must(t, append([]string{"help"}, path...)...); again != help {
					t.Errorf("help %q says\n%s\nand --help\n%s", path, again, help)
				}
			}
			for line := range strings.Lines(help) {
				if len(line) > 140 {
					t.Errorf("a line too long to read: %q", line)
				}
			}
		})
	}
	if seen < 10 {
		t.Errorf("only %d commands", seen)
	}
}

// TestHelpExamples takes the examples from the help of our own commands.
func TestHelpExamples(t *testing.T) {
	for cmd := range commands() {
		if cmd.Hidden || cmd.Name() == "help" || strings.HasPrefix(cmd.CommandPath(), "aggregatord completion") {
			continue
		}
		if cmd.Example == "" && cmd.Name() != "version" {
			t.Errorf("%s has no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Example) {
			t.Run(strings.TrimSpace(line), func(t *testing.T) { checkCall(t, line) })
		}
	}
}

// checkCall checks that a command line names a command that exists, with flags and
// arguments that it takes. What stands behind several spaces is an explanation.
func checkCall(t *testing.T, line string) {
	t.Helper()
	line, _, _ = strings.Cut(strings.TrimSpace(line), "   ")
	words := strings.Fields(line)
	if len(words) < 2 || words[0] != "aggregatord" {
		t.Fatalf("not a call of aggregatord: %q", line)
	}
	root := newRootCmd()
	cmd, args, err := root.Find(words[1:])
	if err != nil || cmd == root {
		t.Fatalf("%q: %v, found %v", line, err, cmd.CommandPath())
	}
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
		t.Errorf("%q: %v", line, err)
	}
}

// TestRootHelp: without a command the program says what there is.
func TestRootHelp(t *testing.T) {
	help := must(t)
	if help != must(t, "--help") || help != must(t, "help") {
		t.Error("three ways to ask for help, and not the same answer")
	}
	if strings.Contains(help, "worker process of the demo") {
		t.Error("the hidden command shows")
	}
}

func TestVersion(t *testing.T) {
	got := must(t, "version")
	contains(t, got, "aggregatord "+buildinfo.Version+" ", runtime.Version(), runtime.GOOS+"/"+runtime.GOARCH, "revision ")
	if strings.Count(got, "\n") != 1 {
		t.Errorf("not one line: %q", got)
	}
}

// TestCompletion: shells understand the scripts, as far as they are here, and what the
// scripts ask for is answered.
func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		t.Run(shell, func(t *testing.T) {
			script := must(t, "completion", shell)
			contains(t, script, "aggregatord", "__complete")
			path, err := exec.LookPath(shell)
			if err != nil || shell == "powershell" {
				return
			}
			check := exec.Command(path, "-n")
			check.Stdin = strings.NewReader(script)
			if out, err := check.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	for words, want := range map[string]string{
		"du":         "dump\t",
		"inspect --": "--format\t",
		"serve --we": "--web.listen-address\t",
	} {
		c := call(t, append([]string{"__complete"}, strings.Fields(words)...)...)
		if c.code != 0 || !strings.Contains("\n"+c.stdout, "\n"+want) {
			t.Errorf("completing %q: exit code %d, %q", words, c.code, c.stdout)
		}
	}
}

// TestReadmeCommands: every call of aggregatord in the README's code blocks is one that
// is understood.
func TestReadmeCommands(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(readme), -1)
	n := 0
	for _, block := range blocks {
		for line := range strings.Lines(block[1]) {
			_, args, ok := strings.Cut(line, "bin/aggregatord ")
			if !ok {
				continue
			}
			n++
			args, _, _ = strings.Cut(args, " |")
			args, _, _ = strings.Cut(args, "#")
			args = strings.TrimSuffix(strings.TrimSpace(args), "&")
			t.Run(args, func(t *testing.T) { checkCall(t, "aggregatord "+args) })
		}
	}
	if n < 3 {
		t.Errorf("only %d calls in README.md", n)
	}
}
