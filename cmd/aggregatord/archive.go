package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/store"
	"aggregatord/internal/terminal"
)

// archiveTarget says which archive a command is about.
type archiveTarget struct {
	dirs    dirOptions
	config  configOptions
	archive archiveOptions
	flags   *pflag.FlagSet
}

func (o *archiveTarget) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.dirs.dirs, "dir", nil, "`[NAME=]DIR` whose archive it is (default: $PROMETHEUS_MULTIPROC_DIR)")
	o.config.addFlags(f)
	o.archive.addDirFlag(f)
	o.flags = f
}

// find returns the watched directory and that of its archive, which are where serve, called
// with the same flags, would have them.
func (o *archiveTarget) find() (spec pool.Spec, at archivePlace, err error) {
	if err := o.config.load(o.flags, &o.dirs, &o.archive); err != nil {
		return spec, at, err
	}
	specs, err := o.dirs.specs()
	if err == nil && o.archive.dir == "" {
		specs, err = o.dirs.existing()
	}
	if err != nil {
		return spec, at, err
	}
	if len(specs) > 1 {
		return spec, at, usagef("one archive at a time: give one --dir only")
	}
	spec, at = specs[0], archivePlace{dir: specs[0].Path, hidden: true}
	if o.archive.dir != "" {
		at = archivePlace{dir: filepath.Join(o.archive.dir, spec.Name)}
	}
	return spec, at, nil
}

// archivePlace is where an archive is: in a directory of its own, or in hidden files of the
// watched one.
type archivePlace struct {
	dir    string
	hidden bool
}

// open opens the place. The error wraps fs.ErrNotExist where there is none.
func (p archivePlace) open() (*archive.Place, error) {
	if p.hidden {
		return archive.OpenHiddenPlace(p.dir)
	}
	return archive.OpenPlace(p.dir)
}

// read reads the archive, by archive.Read or archive.Verify.
func (o *archiveTarget) read(read func(*archive.Place) (*archive.View, error)) (spec pool.Spec, at archivePlace, v *archive.View,
	err error,
) {
	if spec, at, err = o.find(); err != nil {
		return spec, at, nil, err
	}
	place, err := at.open()
	if errors.Is(err, fs.ErrNotExist) {
		return spec, at, nil, noArchive(at.dir)
	}
	if err != nil {
		return spec, at, nil, err
	}
	defer place.Close() //nolint:errcheck // it was only read
	v, err = read(place)
	switch {
	case errors.Is(err, archive.ErrDamaged):
		err = fmt.Errorf("%w; a daemon sets it aside when it starts, and so does aggregatord archive reset", err)
	case err == nil && !v.Exists():
		err = noArchive(at.dir)
	}
	return spec, at, v, err
}

func noArchive(dir string) error {
	return fmt.Errorf("there is no archive in %q: no daemon has archived anything there", dir)
}

func newArchiveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "archive",
		Short: "Look at, check, export, thin out or reset the archive of dead workers",
		Long: `The daemon keeps what dead workers counted in an archive: the hidden file
.aggregatord.archive in the directory that it watches, or archive.bolt in the directory
that --archive.dir names. These commands read it, also while a daemon runs. Only drop and
reset change anything.`,
		Example: `  aggregatord archive stat --dir /dev/shm/myapp
  aggregatord archive verify --dir /dev/shm/myapp`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownCommand(cmd, args[0])
			}
			return nil
		},
		// Only a command that can run has its arguments looked at.
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newArchiveStatCmd(), newArchiveListCmd(), newArchiveVerifyCmd(), newArchiveExportCmd(), newArchiveDropCmd(),
		newArchiveResetCmd())
	for _, sub := range cmd.Commands() {
		sub.Flags().SortFlags = false
	}
	return cmd
}

// keyOf parses a key of the archive. One that cannot be read is its own name.
func keyOf(raw string) metric.Key {
	key, err := store.ParseKey([]byte(raw))
	if err != nil {
		return metric.Key{Family: raw, Series: metric.Series{Sample: raw}}
	}
	return key
}

func newArchiveStatCmd() *cobra.Command {
	var o archiveTarget
	var format string
	cmd := &cobra.Command{
		Use:   "stat",
		Short: "Print how much is in the archive, and since when",
		Long: `Print how much is in the archive, and since when. A series is one key that workers wrote,
so a histogram has one for each bucket. Staged files are those that a daemon is about to
fold or to remove, or was when it was killed.`,
		Example: `  aggregatord archive stat --dir /dev/shm/myapp
  aggregatord archive stat --dir /dev/shm/myapp --format json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "text" && format != "json" {
				return usagef("--format %q: use text or json", format)
			}
			spec, at, v, err := o.read((*archive.Place).Read)
			if err != nil {
				return err
			}
			st, err := statArchive(spec, at, v)
			if err != nil {
				return err
			}
			var out bytes.Buffer
			if format == "json" {
				err = json.NewEncoder(&out).Encode(st)
			} else {
				st.print(&out)
			}
			if err != nil {
				return err
			}
			_, err = out.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().StringVar(&format, "format", "text", "`FORMAT`: text or json")
	return cmd
}

// archiveStat is what stat prints, and its JSON.
type archiveStat struct {
	Path      string             `json:"path"`
	SizeBytes int64              `json:"size_bytes"`
	Format    int                `json:"format"`
	Created   time.Time          `json:"created"`
	Folds     uint64             `json:"folds"`
	LastFold  *time.Time         `json:"last_fold"` // null if never
	Files     uint64             `json:"folded_files"`
	FileBytes uint64             `json:"folded_bytes"`
	Families  int                `json:"families"`
	Series    int                `json:"series"`
	Kinds     []archiveKind      `json:"kinds"`
	Records   int                `json:"records"`
	Staged    []archiveStagedRow `json:"staged"`
	SetAside  []string           `json:"set_aside"`
}

// archiveKind is one type and gauge mode.
type archiveKind struct {
	Type     string `json:"type"`
	Mode     string `json:"mode,omitempty"`
	Workers  int    `json:"workers,omitempty"` // in mode all
	Families int    `json:"families"`
	Series   int    `json:"series"`
}

func (k archiveKind) String() string { return strings.TrimSpace(k.Type + " " + k.Mode) }

type archiveStagedRow struct {
	Name   string `json:"name"`
	Folded bool   `json:"folded"`
}

func statArchive(spec pool.Spec, at archivePlace, v *archive.View) (archiveStat, error) {
	s := v.Stats()
	st := archiveStat{
		Path: v.Path(), SizeBytes: v.SizeBytes(), Format: archive.Format, Created: s.Created, Folds: s.Folds, Files: s.Files,
		FileBytes: s.Bytes,
		Series:    v.Totals().Series(), Kinds: []archiveKind{}, Records: len(v.Records()), Staged: []archiveStagedRow{},
		SetAside: []string{},
	}
	if !s.LastFold.IsZero() {
		st.LastFold = &s.LastFold
	}
	families := map[string]bool{}
	var ofKind map[string]bool
	for space, table := range v.Totals().Spaces() { // in the order of types and modes
		kind := archiveKind{Type: space.Type.String(), Mode: space.Mode.String()}
		if n := len(st.Kinds); n == 0 || st.Kinds[n-1].String() != kind.String() {
			st.Kinds = append(st.Kinds, kind)
			ofKind = map[string]bool{}
		}
		k := &st.Kinds[len(st.Kinds)-1]
		k.Series += table.Len()
		if space.Worker != "" {
			k.Workers++
		}
		for i := range table.Len() {
			family := keyOf(table.Key(i)).Family
			families[family], ofKind[family] = true, true
		}
		k.Families = len(ofKind)
	}
	st.Families = len(families)
	staged, err := fold.Staged(spec.Path)
	if err != nil {
		return st, err
	}
	for _, name := range staged {
		_, folded := v.Baseline(name)
		st.Staged = append(st.Staged, archiveStagedRow{name, folded})
	}
	place, err := at.open()
	if err != nil {
		return st, err
	}
	defer place.Close() //nolint:errcheck // it was only read
	aside, err := place.SetAsides()
	st.SetAside = append(st.SetAside, aside...)
	return st, err
}

func (st archiveStat) print(w *bytes.Buffer) {
	fmt.Fprintf(w, "%s\n", st.Path)
	fmt.Fprintf(w, "  size       %d bytes, format %d\n", st.SizeBytes, st.Format)
	fmt.Fprintf(w, "  created    %s\n", st.Created.Format(time.RFC3339))
	last := "never"
	if st.LastFold != nil {
		last = st.LastFold.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "  last fold  %s\n", last)
	fmt.Fprintf(w, "  folded     %d files of %d bytes, in %d folds\n", st.Files, st.FileBytes, st.Folds)
	fmt.Fprintf(w, "  contents   %d families, %d series\n", st.Families, st.Series)
	for _, k := range st.Kinds {
		fmt.Fprintf(w, "             %-16s  %d families, %d series", k, k.Families, k.Series)
		if k.Workers > 0 {
			fmt.Fprintf(w, " of %d workers", k.Workers)
		}
		w.WriteByte('\n')
	}
	folded := 0
	for _, f := range st.Staged {
		if f.Folded {
			folded++
		}
	}
	fmt.Fprintf(w, "  staged     %d files to be folded, %d folded and to be removed\n", len(st.Staged)-folded, folded)
	fmt.Fprintf(w, "  records    %d of folded files\n", st.Records)
	for _, name := range st.SetAside {
		fmt.Fprintf(w, "  set aside  %s\n", terminal.Printable(name))
	}
}

func newArchiveListCmd() *cobra.Command {
	var o archiveTarget
	cmd := &cobra.Command{
		Use:   "list [NAME...]",
		Short: "Print every series of the archive and its value",
		Long: `Print every series of the archive, by family, and its value as it is stored: buckets are
not cumulative. With names, only metrics or samples of these names; * stands for any
part of a name.`,
		Example: `  aggregatord archive list --dir /dev/shm/myapp
  aggregatord archive list --dir /dev/shm/myapp http_requests_total job_*`,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, pattern := range args {
				if _, err := path.Match(pattern, ""); err != nil {
					return usagef("%q is not a name or a pattern of names: %w", pattern, err)
				}
			}
			_, _, v, err := o.read((*archive.Place).Read)
			if err != nil {
				return err
			}
			var out bytes.Buffer
			listArchive(&out, v.Totals(), args)
			_, err = out.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// archivedFamily is the series of one family and one kind of file.
type archivedFamily struct {
	name   string
	space  archive.Space
	series []string // a line each
}

// listArchive prints the families that match one of the patterns, or all.
func listArchive(w *bytes.Buffer, totals *archive.Totals, patterns []string) {
	wanted := func(key metric.Key) bool {
		return len(patterns) == 0 || slices.ContainsFunc(patterns, func(pattern string) bool {
			family, _ := path.Match(pattern, key.Family) // the patterns were looked at before
			sample, _ := path.Match(pattern, key.Series.Sample)
			return family || sample
		})
	}
	var families []*archivedFamily
	for space, table := range totals.Spaces() {
		byName := map[string]*archivedFamily{}
		for i := range table.Len() {
			key := keyOf(table.Key(i))
			if !wanted(key) {
				continue
			}
			f := byName[key.Family]
			if f == nil {
				f = &archivedFamily{name: key.Family, space: space}
				byName[key.Family] = f
				families = append(families, f)
			}
			f.series = append(f.series, archivedLine(table, i, key))
		}
	}
	// Those of one name stay in the order of the spaces.
	slices.SortStableFunc(families, func(a, b *archivedFamily) int { return strings.Compare(a.name, b.name) })
	for _, f := range families {
		what := strings.TrimSpace(f.space.Type.String() + " " + f.space.Mode.String())
		if f.space.Worker != "" {
			what += " of worker " + f.space.Worker
		}
		fmt.Fprintf(w, "%s (%s)\n", terminal.Printable(f.name), terminal.Printable(what))
		for _, line := range f.series {
			fmt.Fprintf(w, "  %s\n", terminal.Printable(line))
		}
	}
}

// archivedLine spells a series and its value.
func archivedLine(table *archive.Table, pos int, key metric.Key) string {
	value, stamp := table.Value(pos)
	line := seriesName(key.Series) + "  "
	if table.Space().Mode == metric.MostRecent && stamp == 0 {
		return line + "never set"
	}
	line += string(metric.AppendValue(nil, value))
	if stamp != 0 {
		line += "  set " + stampTime(stamp).Format(time.RFC3339Nano)
	}
	return line
}

func newArchiveVerifyCmd() *cobra.Command {
	var o archiveTarget
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Check that the archive is whole",
		Long: `Read the whole archive and check its structure (each page of the file is used exactly
once) and the checksum of each value. The exit code is 1 if anything is wrong, or if
there is no archive.`,
		Example: "  aggregatord archive verify --dir /dev/shm/myapp",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			end := newProgress(cmd.ErrOrStderr()).during("checking the archive")
			_, _, v, err := o.read((*archive.Place).Verify)
			end()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is whole: %d bytes, %d series, %d records of folded files\n",
				v.Path(), v.SizeBytes(), v.Totals().Series(), len(v.Records()))
			return err
		},
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func newArchiveResetCmd() *cobra.Command {
	var o archiveTarget
	var yes bool
	cmd := &cobra.Command{
		Use:   "reset --yes",
		Short: "Begin a new archive, and keep the old one under another name",
		Long: `Replace the archive, which may be damaged, by an empty one: the totals start again from
what the living workers have counted. The old archive is kept under a name with the time.
Files of dead workers that are not in the archive yet still count. Stop the daemon of the
directory first.`,
		Example: "  aggregatord archive reset --dir /dev/shm/myapp --yes",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, at, err := o.find()
			if err != nil {
				return err
			}
			if !yes {
				return usagef("this removes everything that dead workers counted from the totals; confirm with --yes")
			}
			// A daemon that cannot write its archive has let go of it, but not of the directory.
			place := fold.NewPlace(spec.Path)
			defer place.Close() //nolint:errcheck // nothing was written through it
			if err = place.Take(); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
			var staged []string
			if err == nil {
				staged, err = fold.Staged(spec.Path)
			}
			var kept string
			if err == nil {
				kept, err = resetArchive(at, staged)
			}
			if err == nil {
				err = place.RemoveMirror()
			}
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return noArchive(at.dir)
			case errors.Is(err, archive.ErrLocked):
				return fmt.Errorf("%w; stop it first", err)
			case err != nil:
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the archive is empty; the old one is kept as %s\n", kept)
			return err
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&yes, "yes", false, "confirm")
	return cmd
}

func resetArchive(at archivePlace, staged []string) (kept string, err error) {
	place, err := at.open()
	if err != nil {
		return "", err
	}
	defer place.Close()                                   //nolint:errcheck // what was written is durable
	if _, err := place.TakeOver(time.Now()); err != nil { // an archive of an earlier version
		return "", err
	}
	return place.Reset(staged, time.Now())
}
