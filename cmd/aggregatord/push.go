package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	httpconfig "github.com/prometheus/common/config"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/buildinfo"
	"aggregatord/internal/fleet"
	"aggregatord/internal/output"
	"aggregatord/internal/pool"
	"aggregatord/internal/view"
)

type pushOnceOptions struct {
	dirs     dirOptions
	config   configOptions
	archive  archiveOptions
	log      logOptions
	to       secretURL
	as       string
	outputs  []string
	job      string
	grouping map[string]string
	method   string
	prefix   string
	tags     bool
	resource map[string]string
	match    []string
	http     string
	timeout  time.Duration
}

func (o *pushOnceOptions) addFlags(f *pflag.FlagSet) {
	o.dirs.addFlags(f)
	o.config.addFlags(f)
	o.archive.addDirFlag(f)
	f.Var(&o.to, "to",
		"`URL` to push to: that of a Pushgateway, …/api/v1/write for remote write,\n…/v1/metrics for OTLP, graphite://HOST:2003, or file:///PATH")
	f.StringVar(&o.as, "as", "auto", "`PROTOCOL` to speak there:\n"+strings.Join(pushKinds(), ", "))
	f.StringArrayVar(&o.outputs, "output", nil, "`NAME` of an output of the configuration file to push to; repeat it for several")
	f.StringVar(&o.job, "job", "", "`NAME` of the job in a Pushgateway")
	f.StringToStringVar(&o.grouping, "grouping-key", nil,
		"`NAME=VALUE` of the grouping key in a Pushgateway beside the job;\nrepeat it for several")
	f.StringVar(&o.method, "method", "PUT",
		"`METHOD`: PUT replaces what the group has in a Pushgateway,\nPOST only metrics of the same name")
	f.StringVar(&o.prefix, "graphite.prefix", "", "`PREFIX` of paths in Graphite")
	f.BoolVar(&o.tags, "graphite.tags", false, "write labels as tags, not as parts of the path")
	f.StringToStringVar(&o.resource, "otlp.resource-attribute", nil, "`NAME=VALUE` of the resource in OTLP; repeat it for several")
	f.Lookup("grouping-key").DefValue, f.Lookup("otlp.resource-attribute").DefValue = "", "" // not []
	f.StringArrayVar(&o.match, "match", nil, "only metrics whose whole name matches this `REGEX`; repeat it for several")
	f.StringVar(&o.http, httpConfigFlag, "",
		"`FILE` with the password, certificates and the like that the receiver\nasks for, in Prometheus' format for HTTP clients")
	f.DurationVar(&o.timeout, "timeout", output.DefaultTimeout, "how long the push may take")
	o.log.addFlags(f)
	o.log.level = "warn"
	f.Lookup("log.level").DefValue = o.log.level
}

func newPushCmd() *cobra.Command {
	var o pushOnceOptions
	cmd := &cobra.Command{
		Use:   "push",
		Short: "Send the merged view of a directory somewhere, once",
		Long: `Read a directory of source files once, as dump does, and send what would be served for
it: to a Pushgateway, to Graphite, by remote write, by OTLP, or into a file. Nothing in the
directory is changed. The exit code is 1 if the receiver has not taken all of it.

A daemon does this again and again, and once more at its end, with outputs in its
configuration file; run does it for a command, with --push.pushgateway.`,
		Example: `  aggregatord push --dir /dev/shm/myjob --to http://gateway:9091 --job nightly
  aggregatord push --dir /dev/shm/myapp --to http://prometheus:9090/api/v1/write
  aggregatord push --dir /dev/shm/myapp --to http://collector:4318/v1/metrics
  aggregatord push --config.file /etc/aggregatord.yml --output archive`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *pushOnceOptions) run(cmd *cobra.Command) error {
	if err := o.config.load(cmd.Flags(), &o.dirs, &o.archive); err != nil {
		return err
	}
	specs, err := o.specs()
	if err != nil {
		return err
	}
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.end()
	logger, err := o.log.logger(progress)
	if err != nil {
		return err
	}
	dirs, err := o.dirs.existing()
	if err != nil {
		return err
	}
	opts := fleet.Options{
		Pools: dirs, Policy: o.config.loaded.Policy(), Logger: logger,
		Pool: pool.Options{ArchiveDir: o.archive.dir, OnProgress: progress.files},
	}
	return fleet.Read(cmd.Context(), opts, func(_ *fleet.Fleet, snap *view.Snapshot) error {
		var errs []error
		for _, s := range specs {
			ctx, cancel := context.WithTimeout(cmd.Context(), o.timeoutOf(&s))
			sent, err := output.Once(ctx, s, once{snap}, output.Options{Version: buildinfo.Get().Version, Logger: logger})
			cancel()
			if err != nil {
				errs = append(errs, fmt.Errorf("push to %s: %w", s.Target(), err))
				continue
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %d samples\n", s.Target(), sent.Samples); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	})
}

func (o *pushOnceOptions) timeoutOf(s *output.Spec) time.Duration {
	if s.Timeout > 0 {
		return s.Timeout
	}
	return o.timeout
}

// once is a source of one view.
type once struct{ snap *view.Snapshot }

// Gather implements output.Source.
func (o once) Gather(context.Context, bool) (*view.Snapshot, error) {
	o.snap.Retain()
	return o.snap, nil
}

// specs are the outputs to push to.
func (o *pushOnceOptions) specs() ([]output.Spec, error) {
	if o.timeout <= 0 {
		return nil, usagef("--timeout %v: use a time above 0", o.timeout)
	}
	if (o.to == "") == (len(o.outputs) == 0) {
		return nil, usagef("where to? Give --to URL, or --output NAME with a configuration file")
	}
	if o.to != "" {
		s, err := o.spec()
		if err != nil {
			return nil, err
		}
		return []output.Spec{s}, nil
	}
	var specs []output.Spec
	all := o.config.loaded.OutputSpecs()
	for _, name := range o.outputs {
		i := slices.IndexFunc(all, func(s output.Spec) bool { return s.Name == name })
		if i < 0 {
			names := make([]string, len(all))
			for i := range all {
				names[i] = all[i].Name
			}
			return nil, usagef("--output %s: the configuration file has no output of this name, but %s", name,
				listOr(names, "none at all; give it by --config.file"))
		}
		specs = append(specs, all[i])
	}
	return specs, nil
}

func listOr(names []string, otherwise string) string {
	if len(names) == 0 {
		return otherwise
	}
	return strings.Join(names, ", ")
}

// spec is the output that --to and its flags ask for.
func (o *pushOnceOptions) spec() (output.Spec, error) {
	s := output.Spec{Name: "push", Timeout: o.timeout, Match: o.match}
	text := string(o.to)
	u, err := url.Parse(text)
	if err != nil {
		return s, usagef("--to is not a URL; write it as in http://gateway:9091")
	}
	if !slices.Contains(pushKinds(), o.as) {
		return s, usagef("--as %s: use one of %s", o.as, strings.Join(pushKinds(), ", "))
	}
	kind := o.as
	if kind == "auto" {
		kind = kindOf(u)
	}
	if o.http != "" {
		if s.HTTP, _, err = httpconfig.LoadHTTPConfigFile(o.http); err != nil {
			return s, usagef("--%s: %v", httpConfigFlag, err)
		}
	}
	switch kind {
	case "textfile":
		path := text
		if u.Scheme == "file" {
			path = u.Path
		}
		s.Textfile = &output.TextfileSpec{Path: path}
	case "graphite":
		address := u.Host
		if u.Scheme == "" || address == "" {
			address = text
		}
		s.Graphite = &output.GraphiteSpec{Address: address, Prefix: o.prefix, Tags: o.tags}
	case "remote_write":
		// After the end nothing comes to wait for.
		s.RemoteWrite = &output.RemoteWriteSpec{URL: text, KeepOnExit: true}
	case "otlp":
		s.OTLP = &output.OTLPSpec{URL: text, Resource: o.resource}
	default:
		if o.job == "" {
			return s, usagef("--to %s is taken for a Pushgateway: give the job a name, by --job; if it is something else, say so by --as",
				u.Redacted())
		}
		s.Pushgateway = &output.PushgatewaySpec{URL: text, Job: o.job, Grouping: o.grouping, Method: strings.ToUpper(o.method)}
	}
	if err := s.Check(); err != nil {
		return s, usagef("--to: %w", err)
	}
	return s, nil
}

// kindOf guesses what a URL is the address of.
func kindOf(u *url.URL) string {
	switch {
	case u.Scheme == "graphite":
		return "graphite"
	case u.Scheme == "file" || u.Scheme == "" && strings.ContainsAny(u.Path, "./"):
		return "textfile"
	case strings.HasSuffix(u.Path, "/write") || strings.HasSuffix(u.Path, "/push"):
		return "remote_write"
	case strings.HasSuffix(u.Path, "/v1/metrics"):
		return "otlp"
	}
	return "pushgateway"
}
