package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/doctor"
	"aggregatord/internal/terminal"
)

type doctorOptions struct {
	dir    string
	pid    int
	url    string
	format string
}

const defaultURL = "http://localhost:9500"

func (o *doctorOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.dir, "dir", "", "`DIR` with the source files (default: $PROMETHEUS_MULTIPROC_DIR, else what --pid has)")
	f.IntVar(&o.pid, "pid", 0, "`PID` of a process that should write there, such as the server's master")
	f.StringVar(&o.url, "url", defaultURL, "`URL` of the daemon, without a path; empty: do not ask it")
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
	if u, err := url.Parse(o.url); o.url != "" && (err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https")) {
		return usagef("--url %q: use a URL such as %s", o.url, defaultURL)
	}
	opts := doctor.Options{Dir: o.dir, PID: o.pid, URL: o.url, URLGiven: cmd.Flags().Changed("url")}
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
