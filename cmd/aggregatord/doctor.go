package main

import (
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/prometheus/common/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
	f.StringVar(&o.dir, "dir", "", "`DIR` with the source files (default: $PROMETHEUS_MULTIPROC_DIR, else what --pid has)")
	f.IntVar(&o.pid, "pid", 0, "`PID` of a process that should write there, such as the server's master")
	o.client.addFlags(f)
	f.Lookup(urlFlag).Usage += ";\nempty: do not ask it"
	f.StringVar(&o.format, "format", "text", "print as `FORMAT`: text or json")
}

func newDoctorCmd() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Find out why there is nothing to see",
		Long: `Look at the directory, at the processes that should write there, at what they wrote and at
the daemon, and say what is wrong and what to do. Nothing is changed. Run it as root, or as
the user of the workers, where they run: in the same container, for instance. The exit code
is 1 if there is a problem.`,
		Example: `  aggregatord doctor --dir /dev/shm/myapp
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
	opts := doctor.Options{Dir: o.dir, PID: o.pid}
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
	for _, f := range findings {
		line := fmt.Sprintf("%-8s %-12s %s\n", f.Level, f.Check, terminal.Printable(f.Found))
		if f.Advice != "" {
			line += fmt.Sprintf("%-8s %-12s → %s\n", "", "", terminal.Printable(f.Advice))
		}
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}
