package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/prometheus/common/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/buildinfo"
	"aggregatord/internal/doctor"
	"aggregatord/internal/terminal"
)

type doctorOptions struct {
	dir    string
	pid    int
	client clientOptions
	format string
}

func (o *doctorOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "dir", "",
		"`DIR` with the source files (default: $PROMETHEUS_MULTIPROC_DIR, else\nthat of --pid, else that of the daemon if it has one)")
	f.IntVar(&o.pid, "pid", 0, "`PID` of a process that should write there, such as the server's master")
	o.client.addFlags(f)
	f.Lookup(urlFlag).Usage += ";\nwith an empty one no daemon is asked"
	f.StringVar(&o.format, "format", "text", "print as `FORMAT`: text or json")
}

func newDoctorCmd() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out what is wrong: with the directory, the workers or the daemon",
		Long: `Look at the directory, at the processes that should write there, at what they wrote and at
the daemon, and say what is wrong and what to do. The worst comes first. It changes nothing.
Run it where the workers run, in the same container for instance, as root or as their user.
The exit code is 1 if there is a problem.`,
		Example: `  aggregatord doctor
  aggregatord doctor --dir /dev/shm/myapp
  aggregatord doctor --pid 4711 --url http://localhost:9500`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *doctorOptions) run(cmd *cobra.Command) error {
	if o.format != "text" && o.format != "json" {
		return usagef("--format %q: use text or json", o.format)
	}
	if o.pid < 0 {
		return usagef("--pid %d: use the number of a process", o.pid)
	}
	opts := doctor.Options{Dir: o.dir, PID: o.pid, Version: buildinfo.Version}
	if o.client.url != "" {
		c, err := o.client.client(config.WithKeepAlivesDisabled())
		if err != nil {
			return err
		}
		opts.Daemon = &doctor.Daemon{URL: c.base, Name: c.name, Client: c.http, Given: cmd.Flags().Changed(urlFlag)}
	}
	if opts.Dir == "" && opts.PID == 0 {
		opts.Dir, _ = dirOfEnvironment()
	}
	if opts.Dir != "" {
		var err error
		if opts.Dir, err = filepath.Abs(opts.Dir); err != nil {
			return err
		}
	}
	findings := doctor.Examine(cmd.Context(), opts)
	// The worst is what one looks for.
	order := []doctor.Level{doctor.Problem, doctor.Warning, doctor.OK}
	slices.SortStableFunc(findings, func(a, b doctor.Finding) int {
		return cmp.Compare(slices.Index(order, a.Level), slices.Index(order, b.Level))
	})
	if err := o.print(cmd.OutOrStdout(), findings); err != nil {
		return err
	}
	if slices.ContainsFunc(findings, func(f doctor.Finding) bool { return f.Level == doctor.Problem }) {
		return exitError(exitFailure)
	}
	return nil
}

func (o *doctorOptions) print(w io.Writer, findings []doctor.Finding) error {
	if o.format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(findings)
	}
	width, colours := 0, false
	if f, ok := w.(*os.File); ok && terminal.Is(f) {
		width, colours = terminal.Width(f), terminal.Colours(f)
	}
	var out bytes.Buffer
	for _, f := range findings {
		printFinding(&out, f, width, colours)
	}
	fmt.Fprintf(&out, "\n%s\n", summary(findings))
	_, err := out.WriteTo(w)
	return err
}

// levelStyles are how the levels look at a terminal.
var levelStyles = map[doctor.Level]terminal.Style{
	doctor.Problem: terminal.Alarm, doctor.Warning: terminal.Warning,
	doctor.OK: terminal.Good,
}

// printFinding prints a finding, in lines of at most so many columns unless that is 0.
func printFinding(out *bytes.Buffer, f doctor.Finding, width int, colours bool) {
	const indent = 9 + 14
	level := fmt.Sprintf("%-8s", f.Level)
	if colours {
		level = levelStyles[f.Level].Paint(level)
	}
	head := fmt.Sprintf("%s %-13s ", level, f.Check)
	columns := 0
	if width > 0 {
		columns = max(width-indent-2, 20)
	}
	for i, line := range terminal.Wrap(terminal.Printable(f.Found), columns) {
		if i > 0 {
			head = strings.Repeat(" ", indent)
		}
		fmt.Fprintf(out, "%s%s\n", head, line)
	}
	if f.Advice == "" {
		return
	}
	arrow := "→ "
	for _, line := range terminal.Wrap(terminal.Printable(f.Advice), columns) {
		fmt.Fprintf(out, "%*s%s%s\n", indent, "", arrow, line)
		arrow = "  "
	}
}

// summary counts what was found.
func summary(findings []doctor.Finding) string {
	n := map[doctor.Level]int{}
	for _, f := range findings {
		n[f.Level]++
	}
	switch {
	case n[doctor.Problem] > 0:
		return fmt.Sprintf("%s, %s, %d ok", plural(n[doctor.Problem], "problem"), plural(n[doctor.Warning], "warning"), n[doctor.OK])
	case n[doctor.Warning] > 0:
		return fmt.Sprintf("No problem, %s, %d ok", plural(n[doctor.Warning], "warning"), n[doctor.OK])
	}
	return "Everything looks right."
}
