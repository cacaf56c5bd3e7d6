package main

import (
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

	"aggregatord/internal/archive"
	"aggregatord/internal/exposition"
	"aggregatord/internal/fold"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/view"
)

type archiveExportOptions struct {
	archiveTarget
	log    logOptions
	format string
	output string
	names  []string
	to     string
	// dialect is the name of one.
	dialect string
}

func (o *archiveExportOptions) addFlags(f *pflag.FlagSet) {
	o.archiveTarget.addFlags(f)
	f.StringVar(&o.format, "format", exposition.FormatNames()[0], "`FORMAT`: "+strings.Join(exposition.FormatNames(), ", "))
	f.StringVarP(&o.output, "output", "o", "-", "`FILE` to write, replaced in one step; - is standard output")
	f.StringArrayVar(&o.names, "name", nil, "only the metric or sample of this `NAME`; repeat it for several")
	f.StringVar(&o.to, "to", "", "instead, write source files to `DIR`, which must be new or empty")
	f.StringVar(&o.dialect, dialectFlag, archive.Python.Name,
		"`CLIENT` that reads these files: python for prometheus_client 0.18 and later,\npython-old for 0.16 and 0.17, postmates for the fork of Postmates")
	o.log.addFlags(f)
	o.log.level = "warn"
	f.Lookup("log.level").DefValue = o.log.level
}

func newArchiveExportCmd() *cobra.Command {
	var o archiveExportOptions
	cmd := &cobra.Command{
		Use:   "export",
		Short: "Print the archive's part of the metrics, or write it as source files",
		Long: `Print what the archive holds, alone, in one of the formats of dump. Nothing is changed.

With --to it is written as source files instead, which the Python client's own collector
reads, so that nothing is lost when you leave aggregatord: stop the daemon, export, and
copy the files to the directory of the application. Their names are no live worker's:
counter_archive.db, gauge_max_archive.db and the like, and gauge_all_ID.db for each dead
worker's gauges; for the fork of Postmates the names of its own archive, counter.db and
the like. Say by --dialect which client the application has: one does not read the files
of the other. Those of python-old have no room for the time that gauges in mode
mostrecent need, so these are left out there. If stat shows staged files that are to be
folded, let a daemon run for a moment before.`,
		Example: `  aggregatord archive export --dir /dev/shm/myapp --format openmetrics
  aggregatord archive export --dir /dev/shm/myapp --to /tmp/myapp-archive`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	o.addFlags(cmd.Flags())
	return cmd
}

const dialectFlag = "dialect"

// parseDialect finds a dialect by its name.
func parseDialect(name string) (archive.Dialect, error) {
	var names []string
	for _, d := range archive.Dialects() {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return archive.Dialect{}, usagef("--%s %q: use one of %s", dialectFlag, name, strings.Join(names, ", "))
}

func (o *archiveExportOptions) run(cmd *cobra.Command) error {
	format, err := exposition.ParseFormat(o.format)
	if err != nil {
		return usageError{fmt.Errorf("--format: %w", err)}
	}
	dialect, err := parseDialect(o.dialect)
	if err != nil {
		return err
	}
	changed := func(names ...string) string {
		i := slices.IndexFunc(names, cmd.Flags().Changed)
		if i < 0 {
			return ""
		}
		return names[i]
	}
	if name := changed("format", "output", "name"); o.to != "" && name != "" {
		return usagef("--%s is for printing metrics; leave it out with --to", name)
	}
	if o.to == "" && changed(dialectFlag) != "" {
		return usagef("--%s is for source files; say --to DIR", dialectFlag)
	}
	progress := newProgress(cmd.ErrOrStderr())
	logger, err := o.log.logger(progress)
	if err != nil {
		return err
	}
	end := progress.during("reading the archive")
	spec, _, v, err := o.read((*archive.Place).Read)
	end()
	if err != nil {
		return err
	}
	if o.to != "" {
		if err := warnOfStaged(spec.Path, v, logger); err != nil {
			return err
		}
		end := progress.during("writing source files")
		files, err := exportFiles(o.to, v.Totals(), dialect, logger)
		end()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d source files written to %s\n", files, o.to)
		return err
	}
	snap := archiveSnapshot(spec.Name, v.Totals(), logger)
	defer snap.Release()
	enc := exposition.Encoder{OnReport: logOmissions(logger)}
	out := enc.Append(nil, format, exposition.NewFilter(o.names), snap)
	if o.output == "-" {
		_, err = shown(cmd.OutOrStdout()).Write(out)
		return err
	}
	return writeFile(o.output, out)
}

// warnOfStaged names the files that are neither in the archive nor where a client looks.
func warnOfStaged(watched string, v *archive.View, logger *zap.Logger) error {
	names, err := fold.Staged(watched)
	for _, name := range names {
		if _, folded := v.Baseline(name); !folded {
			logger.Warn("file of a dead worker is not in the archive yet; let a daemon run for a moment",
				zap.String("path", filepath.Join(watched, fold.FileName(name))))
		}
	}
	return err
}

// archiveSnapshot merges the archive alone.
func archiveSnapshot(poolName string, totals *archive.Totals, logger *zap.Logger) *view.Snapshot {
	index := merge.NewIndex(merge.Options{})
	for space, table := range totals.Spaces() {
		source := index.AddFolded(merge.SourceSpec{
			Type: space.Type, Mode: space.Mode, ID: space.Worker, ParseKey: store.ParseKey,
		})
		for i := range table.Len() {
			if err := index.Learn(source, []byte(table.Key(i)), uint32(i)); err != nil {
				logger.Warn("archived series left out", zap.String("key", table.Key(i)), zap.Error(err))
			}
		}
		values, seconds := source.Values(), source.Stamps()
		for i, pos := range source.Slots().All() {
			values[i], seconds[i] = table.Values()[pos], table.Stamps()[pos]
		}
	}
	var target []metric.Label
	if poolName != "" {
		target = []metric.Label{{Name: "pool", Value: poolName}}
	}
	var j view.Joiner
	return j.Join([]view.Part{{Snapshot: index.Snapshot(), Name: poolName, Target: target}})
}

// exportFiles writes the archive as source files to a directory, which is made if it is not
// there, and durably so. On error none of them is left.
func exportFiles(dir string, totals *archive.Totals, dialect archive.Dialect, logger *zap.Logger) (written int, err error) {
	made, err := emptyDir(dir)
	if err != nil {
		return 0, err
	}
	files, timeless := totals.SourceFiles(dialect)
	var paths []string
	defer func() {
		if err == nil {
			return
		}
		for _, path := range paths {
			if e := os.Remove(path); !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
		if made {
			err = errors.Join(err, os.Remove(dir))
		}
	}()
	for _, f := range files {
		path := filepath.Join(dir, f.Name)
		paths = append(paths, path)
		if err := f.Write(dir); err != nil {
			return 0, err
		}
		if f.Unreadable {
			logger.Warn("keys that aggregatord cannot read are exported as they are; remove the file if the client cannot read them either",
				zap.String("path", path), zap.Int("keys", f.Entries()), zap.Strings("first", f.Keys(mostKeysNamed)))
		}
	}
	if timeless > 0 {
		logger.Warn("gauges in mode mostrecent are left out: the files of this client have no room for their time",
			zap.Int("series", timeless))
	}
	return len(paths), archive.SyncDir(dir)
}

// mostKeysNamed is how many unreadable keys of a file are named.
const mostKeysNamed = 10

// emptyDir makes a directory, or checks that there is nothing in it.
func emptyDir(dir string) (made bool, err error) {
	if err := os.Mkdir(dir, 0o777); err == nil {
		return true, nil
	} else if !errors.Is(err, os.ErrExist) {
		return false, usagef("--to %s: %w", dir, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return false, usagef("--to %s: %w", dir, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	switch _, err := f.Readdirnames(1); {
	case errors.Is(err, io.EOF):
		return false, nil
	case err != nil:
		return false, usagef("--to %s: %w", dir, err)
	}
	return false, usagef("--to %s: there are files in it; name a new or an empty directory", dir)
}
