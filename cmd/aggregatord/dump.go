package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"aggregatord/internal/api"
	"aggregatord/internal/exposition"
	"aggregatord/internal/fleet"
	"aggregatord/internal/nearest"
	"aggregatord/internal/pool"
	"aggregatord/internal/terminal"
	"aggregatord/internal/view"
)

type dumpOptions struct {
	dirs     dirOptions
	discover discoverOptions
	config   configOptions
	archive  archiveOptions
	log      logOptions
	format   string
	output   string
	names    []string
}

func (o *dumpOptions) addFlags(f *pflag.FlagSet) {
	o.dirs.addFlags(f)
	o.discover.addFlag(f, "read")
	o.config.addFlags(f)
	o.archive.addDirFlag(f)
	f.StringVar(&o.format, "format", exposition.FormatNames()[0], "`FORMAT`: "+strings.Join(exposition.FormatNames(), ", "))
	f.StringVarP(&o.output, "output", "o", "-", "`FILE` to write, replaced in one step; - is standard output")
	f.StringArrayVar(&o.names, "name", nil, "only the metric or sample of this `NAME`; repeat it for several")
	o.log.addFlags(f)
	o.log.level = "warn"
	f.Lookup("log.level").DefValue = o.log.level
}

func newDumpCmd() *cobra.Command {
	var o dumpOptions
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Print the merged view of a directory once",
		Long: `Read a directory of source files once, with the archive of dead workers if there is one,
and print what a daemon would serve for it. It changes nothing in the directory, so it
is safe beside a running pool and a running daemon. Files that cannot be read are named
on standard error; the rest is printed. The exit code is 1 if no metric has a --name.`,
		Example: `  aggregatord dump --dir /dev/shm/myapp
  aggregatord dump --dir /dev/shm/myapp --format json --name http_requests_total
  aggregatord dump --discover --format json
  aggregatord dump --dir /dev/shm/myapp --output /var/lib/node_exporter/textfile/myapp.prom`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	cmd.Flags().SortFlags = false
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *dumpOptions) run(cmd *cobra.Command) (err error) {
	format, err := exposition.ParseFormat(o.format)
	if err != nil {
		return usageError{fmt.Errorf("--format: %w", err)}
	}
	progress := newProgress(cmd.ErrOrStderr())
	defer progress.end()
	logger, err := o.log.logger(progress)
	if err != nil {
		return err
	}
	if err := o.config.load(cmd.Flags(), &o.dirs, &o.archive); err != nil {
		return err
	}
	// Whoever names a directory wants that one, whatever the file has the daemon look for.
	if o.dirs.discovers = o.discover.on(o.config.loaded) && (o.discover.processes || len(o.dirs.dirs) == 0); o.dirs.discovers {
		o.dirs.sources = o.discover.sources()
	}
	dirs, closeAll,
		err := o.dirs.found(func(problem string) { logger.Warn("discovery cannot use something", zap.String("problem", problem)) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	opts := fleet.Options{
		Pools: dirs, Policy: o.config.loaded.Policy(), Logger: logger,
		Pool: pool.Options{ArchiveDir: o.archive.dir, OnProgress: progress.files},
	}
	out, err := render(cmd.Context(), opts, format, o.names)
	if err != nil {
		return err
	}
	if o.output == "-" {
		_, err = shown(cmd.OutOrStdout()).Write(out)
		return err
	}
	return writeFile(o.output, out)
}

// shown is where to write what workers have written as it is: to anything but a terminal.
// That gets it printable, as a label value may hold what a terminal acts upon.
func shown(w io.Writer) io.Writer {
	if f, ok := w.(*os.File); ok && terminal.Is(f) {
		return terminal.Lines(w)
	}
	return w
}

// render reads the directories once and returns their merged view, or the part of it with
// these names. A name that there is not is an error.
func render(ctx context.Context, opts fleet.Options, format exposition.Format, only []string) (out []byte, err error) {
	filter := exposition.NewFilter(only)
	err = fleet.Read(ctx, opts, func(_ *fleet.Fleet, snap *view.Snapshot) error {
		if err := unknownNames(only, snap); err != nil {
			return err
		}
		enc := exposition.Encoder{OnReport: logOmissions(opts.Logger)}
		out = enc.Append(nil, format, filter, snap)
		return nil
	})
	return out, err
}

// unknownNames says which names no metric and no sample of a view has.
func unknownNames(names []string, snap *view.Snapshot) error {
	known := api.SampleNames([]*view.Snapshot{snap})
	for i := range snap.Layout.Families {
		known = append(known, snap.Layout.Families[i].Name)
	}
	var errs []error
	for _, name := range names {
		switch meant := nearest.Name(name, known); {
		case name == "" || slices.Contains(known, name):
		case selects(name, snap): // as a format spells it
		case meant != "":
			errs = append(errs, fmt.Errorf("no metric named %s; did you mean %s?", name, meant))
		default:
			errs = append(errs, fmt.Errorf("no metric named %s; without --name all are printed", name))
		}
	}
	return errors.Join(errs...)
}

// selects reports whether a name selects something in the format that has all names.
func selects(name string, snap *view.Snapshot) bool {
	format, err := exposition.ParseFormat(exposition.FormatNames()[0])
	return err == nil && len(new(exposition.Encoder).Append(nil, format, exposition.NewFilter([]string{name}), snap)) > 0
}

// logOmissions names what an encoder had to leave out.
func logOmissions(logger *zap.Logger) func(exposition.Report) {
	return func(r exposition.Report) {
		for _, o := range r.Omissions {
			logger.Warn("left out of the output, which would be invalid with it", zap.Stringer("what", o))
		}
		for _, o := range r.Untyped {
			logger.Info("written without its type, which the format cannot say beside the rest", zap.Stringer("what", o))
		}
	}
}

// writeFile replaces a file in one step: whoever reads it sees the old or the new content
// whole. It does not promise that the new one survives a crash of the machine. What is no
// regular file, as /dev/null or a FIFO, is written into and stays what it is.
func writeFile(path string, data []byte) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		_, err = f.Write(data)
		return errors.Join(err, f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("write %q: %w", path, err), os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644) // CreateTemp's files are for the owner alone
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
