package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/common/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/api"
	"aggregatord/internal/fleet"
	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/selector"
	"aggregatord/internal/status"
	"aggregatord/internal/terminal"
	"aggregatord/internal/view"
)

type explainOptions struct {
	client  clientOptions
	dirs    dirOptions
	config  configOptions
	archive archiveOptions
	log     logOptions
	format  string
	limit   int
}

func (o *explainOptions) addFlags(f *pflag.FlagSet) {
	o.client.addFlags(f)
	o.dirs.addFlags(f)
	f.Lookup("dir").Usage = "`[NAME=]DIR` with the source files, to read it instead of asking a daemon; repeat it, with names"
	o.config.addFlags(f)
	o.archive.addDirFlag(f)
	f.StringVar(&o.format, "format", "text", "`FORMAT`: text or json")
	f.IntVar(&o.limit, "limit", 10, "how many `SERIES` to explain at most, 1 to 100")
	o.log.addFlags(f)
	o.log.level = "warn"
	f.Lookup("log.level").DefValue = o.log.level
}

func newExplainCmd() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain SELECTOR",
		Short: "Show what made a number: the rule, and the part of each worker",
		Long: `Show what made the values of the series that match a selector: the rule that was
applied, and what each file and the archive contribute. The parts that count add up to
the number. Write the selector as in PromQL, with =, !=, =~ and !~. The name is that of
the sample: counters end in _total, histograms in _bucket, _sum and _count.

It asks a running daemon. With --dir it reads a directory itself, as dump does.`,
		Example: `  aggregatord explain 'http_requests_total{path="/"}'
  aggregatord explain --format json 'http_request_duration_seconds_bucket{le="0.5"}'
  aggregatord explain --dir /dev/shm/myapp inprogress_requests`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("name the series to explain, in quotes, as in: aggregatord explain 'http_requests_total{path=\"/\"}'")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd, args[0]) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *explainOptions) run(cmd *cobra.Command, text string) error {
	if o.format != "text" && o.format != "json" {
		return usagef("--format %q: use text or json", o.format)
	}
	if o.limit < 1 || o.limit > 100 {
		return usagef("--limit %d: use a number from 1 to 100", o.limit)
	}
	sel, err := selector.Parse(text)
	if err != nil {
		return usageError{err}
	}
	offline := cmd.Flags().Changed("dir") || cmd.Flags().Changed("config.file")
	if offline && cmd.Flags().Changed(urlFlag) {
		return usagef("--%s asks a daemon, and --dir or --config.file reads a directory; give one of them", urlFlag)
	}
	var all status.Explanations
	if offline {
		all, err = o.read(cmd, text, sel)
	} else {
		all, err = o.ask(cmd.Context(), text)
	}
	if err != nil {
		return err
	}
	var out bytes.Buffer
	if o.format == "json" {
		enc := json.NewEncoder(&out)
		enc.SetIndent("", "  ")
		if err := enc.Encode(all); err != nil {
			return err
		}
	} else {
		printExplanations(&out, all, time.Now())
		if !offline {
			o.printLink(&out, all)
		}
	}
	_, err = out.WriteTo(cmd.OutOrStdout())
	return err
}

// printLink tells where the page of a daemon shows the same.
func (o *explainOptions) printLink(out *bytes.Buffer, all status.Explanations) {
	base, err := url.Parse(withScheme(o.client.url))
	if err != nil || base.Host == "" || len(all.Items) == 0 {
		return // of a unix socket there is no page
	}
	base = trimmed(base)
	base.User = nil
	e := &all.Items[0]
	fmt.Fprintf(out, "\n%s/#metric/%s?series=%s\n", strings.TrimSuffix(base.String(), "/"), url.PathEscape(e.Family),
		url.QueryEscape(e.Series))
}

// ask has a running daemon explain.
func (o *explainOptions) ask(ctx context.Context, text string) (all status.Explanations, err error) {
	c, err := o.client.client(config.WithKeepAlivesDisabled())
	if err != nil {
		return all, err
	}
	return askFor[status.Explanations](ctx, c, "explain", url.Values{"series": {text}, "limit": {strconv.Itoa(o.limit)}})
}

// read explains what is in directories now.
func (o *explainOptions) read(cmd *cobra.Command, text string, sel selector.Selector) (all status.Explanations, err error) {
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.end()
	logger, err := o.log.logger(progress)
	if err != nil {
		return all, err
	}
	if err := o.config.load(cmd.Flags(), &o.dirs, &o.archive); err != nil {
		return all, err
	}
	dirs, err := o.dirs.existing()
	if err != nil {
		return all, err
	}
	opts := fleet.Options{
		Pools: dirs, Policy: o.config.loaded.Policy(), Logger: logger,
		Pool: pool.Options{ArchiveDir: o.archive.dir, OnProgress: progress.files},
	}
	err = fleet.Read(cmd.Context(), opts, func(f *fleet.Fleet, snap *view.Snapshot) error {
		all, err = api.Explain(cmd.Context(), f, sel, o.limit)
		if err == nil && all.Matching == 0 {
			err = errors.New(api.NoSeries(text, sel, []*view.Snapshot{snap}))
		}
		return err
	})
	return all, err
}

func printExplanations(out *bytes.Buffer, all status.Explanations, now time.Time) {
	for i := range all.Items {
		if i > 0 {
			out.WriteByte('\n')
		}
		printExplanation(out, &all.Items[i], now)
	}
	if more := all.Matching - len(all.Items); more > 0 {
		fmt.Fprintf(out, "\n%d more series match; name labels, or raise --limit\n", more)
	}
}

func printExplanation(out *bytes.Buffer, e *status.Explanation, now time.Time) {
	if e.Absent != "" {
		fmt.Fprintf(out, "%s  is not served: %s\n", terminal.Printable(e.Series), terminal.Printable(e.Absent))
	} else {
		fmt.Fprintf(out, "%s  %s\n", terminal.Printable(e.Series), number(e.Value))
	}
	fmt.Fprintf(out, "  %s\n", terminal.Printable(describeRule(e)))
	if e.RelabeledFrom != "" {
		fmt.Fprintf(out, "  metric_relabel_configs made it of %s\n", terminal.Printable(e.RelabeledFrom))
	}
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, c := range e.Contributions {
		sign := "+"
		switch {
		case !c.Counts:
			sign = " "
		case e.Operation != "sum":
			sign = "="
		}
		fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", sign, number(c.Value), terminal.Printable(place(&c)), terminal.Printable(remark(&c, now))) //nolint:errcheck // a buffer
	}
	table.Flush() //nolint:errcheck // a buffer
}

func number(n status.Number) string { return string(metric.AppendValue(nil, float64(n))) }

// describeRule says in words how the value is made.
func describeRule(e *status.Explanation) string {
	how := map[string]string{
		"sum": "the sum of all", "max": "the greatest", "min": "the least", "mostrecent": "the one set last", "all": "one for each process",
	}[e.Operation]
	what := e.Type
	if e.Mode != "" {
		what += " in mode " + e.Mode
		if e.ModeSource != "" {
			what += " (by " + e.ModeSource
			if e.ModeSource == "rule" && e.Rule != "" {
				what += " " + strconv.Quote(e.Rule)
			}
			what += ")"
		}
	}
	if e.Rule != "" && e.ModeSource != "rule" {
		what += ", under rule " + strconv.Quote(e.Rule)
	}
	if e.Cumulative {
		how += ", with all buckets below"
	}
	return what + ": " + how
}

func place(c *status.Contribution) string {
	var b strings.Builder
	switch c.Kind {
	case "archive":
		b.WriteString("archive")
	case "configuration":
		b.WriteString("configuration file")
	default:
		fmt.Fprintf(&b, "%s file", c.State)
	}
	if c.Worker != "" {
		fmt.Fprintf(&b, " of worker %s", c.Worker)
	}
	if c.Pool != "" {
		fmt.Fprintf(&b, " in %s", c.Pool)
	}
	return b.String()
}

func remark(c *status.Contribution, now time.Time) string {
	var parts []string
	if c.Path != "" {
		parts = append(parts, c.Path)
	}
	if c.Gains {
		parts = append(parts, "(what was added after it was archived)")
	}
	if c.Set > 1 {
		parts = append(parts, fmt.Sprintf("(set %s ago)", now.Sub(time.UnixMilli(int64(c.Set*1000))).Round(time.Second)))
	}
	if c.Why != "" {
		parts = append(parts, "does not count: "+c.Why)
	}
	return strings.Join(parts, "  ")
}
