package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/config"
	"aggregatord/internal/fleet"
	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/terminal"
)

type checkConfigOptions struct {
	dirs    dirOptions
	archive archiveOptions
	log     logOptions
	format  string
}

func (o *checkConfigOptions) addFlags(f *pflag.FlagSet) {
	o.dirs.addFlags(f)
	f.Lookup("dir").Usage = "`[NAME=]DIR` with source files: show what the rules would do to them; repeat it, with\nthe names of pools, for several"
	o.archive.addDirFlag(f)
	f.StringVar(&o.format, "format", "table", "`FORMAT` of what is shown of directories: table or json")
	o.log.addFlags(f)
	o.log.level = "warn"
	f.Lookup("log.level").DefValue = o.log.level
}

func newCheckConfigCmd() *cobra.Command {
	var o checkConfigOptions
	cmd := &cobra.Command{
		Use:   "check-config FILE",
		Short: "Check a configuration file, and show what it would do to a directory",
		Long: `Check a configuration file as the daemon would. Each mistake is printed on a line of its
own, with its place and what to do; the exit code is 1 if there is any, and 0 if the
daemon would take the file.

With --dir, show for each metric in that directory which rule it is under, its gauge
mode, and how many samples it has without the file and with it. Nothing is changed.
Limits have no effect here: they hold for what is new.`,
		Example: `  aggregatord check-config /etc/aggregatord.yml
  aggregatord check-config /etc/aggregatord.yml --dir /dev/shm/myapp
  aggregatord check-config /etc/aggregatord.yml --dir web=/dev/shm/web --dir jobs=/dev/shm/jobs`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("give one configuration file, as in aggregatord check-config aggregatord.yml; got %d", len(args))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *checkConfigOptions) run(cmd *cobra.Command, file string) error {
	if o.format != "table" && o.format != "json" {
		return usagef("--format %q: use table or json", o.format)
	}
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.end()
	logger, err := o.log.logger(progress)
	if err != nil {
		return err
	}
	var dirs []pool.Spec
	if len(o.dirs.dirs) > 0 {
		if dirs, err = o.dirs.existing(); err != nil {
			return err
		}
	}
	c, err := config.Load(file)
	if mistakes, ok := errors.AsType[config.Errors](err); ok {
		for _, m := range mistakes {
			if _, err := fmt.Fprintln(cmd.OutOrStdout(), terminal.Printable(m.Error())); err != nil {
				return err
			}
		}
		return fmt.Errorf("%s is wrong: %s", file, plural(len(mistakes), "mistake"))
	} else if err != nil {
		return err
	}
	if len(dirs) == 0 {
		var b strings.Builder
		fmt.Fprintf(&b, "%s is right: %s\n", file, contents(c))
		for _, sentence := range c.Policy().Idle() {
			fmt.Fprintf(&b, "%s: %s\n", file, terminal.Printable(sentence))
		}
		_, err := io.WriteString(cmd.OutOrStdout(), b.String())
		return err
	}
	// The archive is where the file says, unless the flag does.
	if in := c.Archive.Dir; in != nil && !cmd.Flags().Changed("archive.dir") {
		o.archive.dir = *in
	}
	return o.preview(cmd.Context(), cmd.OutOrStdout(), c, fleet.Options{
		Pools: dirs, Logger: logger, Pool: pool.Options{ArchiveDir: o.archive.dir, OnProgress: progress.files},
	})
}

// contents says in a few words what there is in a file.
func contents(c *config.Config) string {
	rules := len(c.Metrics)
	for _, p := range c.Pools {
		rules += len(p.Metrics)
	}
	words := []string{plural(rules, "rule")}
	for _, part := range []struct {
		n    int
		what string
	}{
		{len(c.Presets), "preset"},
		{len(c.MetricRelabelConfigs), "relabelling step"},
		{len(c.Pools), "pool"},
		{len(c.ExternalLabels), "external label"},
		{len(c.Info), "info series"},
		{len(c.Outputs), "output"},
	} {
		if part.n > 0 {
			words = append(words, plural(part.n, part.what))
		}
	}
	return strings.Join(words, ", ")
}

func plural(n int, what string) string {
	if n == 1 || strings.HasSuffix(what, "series") {
		return fmt.Sprintf("%d %s", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// effect is one family of the table.
type effect struct {
	Pool   string `json:"pool,omitempty"`
	Family string `json:"family"`
	Type   string `json:"type"`
	// FileMode is the gauge mode by the names of the files, Mode the one in force.
	FileMode string   `json:"file_mode,omitempty"`
	Mode     string   `json:"mode,omitempty"`
	Rule     string   `json:"rule,omitempty"`
	Before   int      `json:"samples_before"`
	After    int      `json:"samples_after"`
	Dropped  bool     `json:"dropped"`
	ServedAs []string `json:"served_as"`
}

// preview shows what a file would do to directories.
func (o *checkConfigOptions) preview(ctx context.Context, w io.Writer, c *config.Config, opts fleet.Options) error {
	p, err := fleet.PreviewPolicy(ctx, opts, c.Policy())
	if err != nil {
		return err
	}
	unused := map[string]bool{}
	served := map[string]bool{}
	for _, d := range opts.Pools {
		served[d.Name] = true
	}
	var rules []string
	takesPID := map[string]bool{}
	add := func(prefix string, metrics []config.Rule) {
		for i, r := range metrics {
			name := fmt.Sprintf("%smetrics[%d]", prefix, i)
			rules, unused[name] = append(rules, name), true
			_, renamed := r.RenameLabel["pid"]
			takesPID[name] = renamed || slices.Contains(r.DropLabels, "pid")
		}
	}
	add("", c.Metrics)
	for _, pool := range c.Pools {
		if served[pool.Name] {
			add("pools."+pool.Name+".", pool.Metrics)
		}
	}
	effects := []effect{}
	keepsPID := []string{}
	for _, e := range p.Effects {
		delete(unused, e.Rule)
		if takesPID[e.Rule] && e.Mode.Base() == metric.All {
			keepsPID = append(keepsPID, e.Family)
		}
		effects = append(effects, effect{
			Pool: e.Pool, Family: e.Family, Type: e.Type.String(), FileMode: e.FileMode.String(), Mode: e.Mode.String(),
			Rule: e.Rule, Before: e.Before, After: e.After, Dropped: e.Dropped, ServedAs: append([]string{}, e.Names...),
		})
	}
	idle := []string{}
	for _, name := range rules {
		if unused[name] {
			idle = append(idle, name)
		}
	}
	for _, i := range p.IdleRelabelling {
		idle = append(idle, fmt.Sprintf("metric_relabel_configs[%d]", i))
	}
	if o.format == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(struct {
			Families []effect `json:"families"`
			Before   int      `json:"samples_before"`
			After    int      `json:"samples_after"`
			// Equal samples are left out: relabelling makes them equal to others.
			Equal      int      `json:"samples_left_out_as_equal"`
			Collisions []string `json:"families_with_equal_samples"`
			Idle       []string `json:"rules_that_match_nothing"`
			// KeepsPID are gauges whose rule takes away a label that their mode brings.
			KeepsPID []string `json:"families_that_keep_pid"`
		}{effects, p.Before, p.After, p.Equal, append([]string{}, p.Collisions...), idle, keepsPID})
	}
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "METRIC\tPOOL\tTYPE\tMODE\tRULE\tSAMPLES\tAFTER\tSERVED AS") //nolint:errcheck // to memory
	for _, e := range effects {
		mode := e.Mode
		if e.Mode != e.FileMode && e.FileMode != "" {
			mode = e.FileMode + " -> " + e.Mode
		}
		served := strings.Join(e.ServedAs, " ")
		switch {
		case e.Dropped:
			served = "(dropped)"
		case len(e.ServedAs) == 0:
			served = "(nothing)"
		}
		for i, cell := range []string{
			e.Family, e.Pool, e.Type, mode, e.Rule, strconv.Itoa(e.Before), strconv.Itoa(e.After), served,
		} {
			if i > 0 {
				table.Write([]byte{'\t'}) //nolint:errcheck // to memory
			}
			table.Write([]byte(cellText(cell))) //nolint:errcheck // to memory
		}
		table.Write([]byte{'\n'}) //nolint:errcheck // to memory
	}
	table.Flush() //nolint:errcheck // to memory
	fmt.Fprintf(&b, "\n%s before, %s after\n", plural(p.Before, "sample"), plural(p.After, "sample"))
	if p.Equal > 0 {
		fmt.Fprintf(&b, "%s left out: relabelling makes them equal to others, of %s\n", plural(p.Equal, "sample"),
			cellText(strings.Join(p.Collisions, " ")))
	}
	if len(keepsPID) > 0 {
		fmt.Fprintf(&b,
			"keeping the label pid, which a rule would take away and the gauge mode brings: %s; set another gauge_mode for them\n",
			cellText(strings.Join(keepsPID, " ")))
	}
	if len(idle) > 0 {
		fmt.Fprintf(&b, "matching nothing here: %s\n", strings.Join(idle, ", "))
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// cellText is a text for a cell of a table: workers' names may hold anything.
func cellText(s string) string {
	if s == "" {
		return "-"
	}
	if q := strconv.Quote(s); q != `"`+s+`"` {
		return q
	}
	return s
}
