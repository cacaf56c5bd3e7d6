package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/terminal"
)

type inspectOptions struct {
	format string
	// json is an older spelling of --format json.
	json bool
}

func (o *inspectOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.format, "format", "text", "`FORMAT`: text, or json for one JSON object for each file")
	f.BoolVar(&o.json, "json", false, "the same as --format json")
	f.Lookup("json").Hidden = true
}

func newInspectCmd() *cobra.Command {
	var o inspectOptions
	cmd := &cobra.Command{
		Use:   "inspect FILE...",
		Short: "Print the entries of source files, damaged ones too",
		Long: `Print what source files hold, entry by entry, and where the damage is if there is any.
Nothing is changed. The exit code is 1 if a file is damaged or cannot be read.`,
		Example: "  aggregatord inspect /dev/shm/myapp/counter_*.db",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("name the source files to inspect, as in: aggregatord inspect DIR/counter_*.db")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.OutOrStdout(), args) },
	}
	o.addFlags(cmd.Flags())
	return cmd
}

func (o *inspectOptions) run(w io.Writer, paths []string) error {
	if o.format != "text" && o.format != "json" {
		return usagef("--format %q: use text or json", o.format)
	}
	var out bytes.Buffer
	var errs []error
	unread := 0
	for i, path := range paths {
		if client := store.UnreadClient(filepath.Base(path)); client != "" {
			if unread++; unread == 1 {
				errs = append(errs, fmt.Errorf("%q is a file of %s, which is not read yet", path, client))
			}
			continue
		}
		in, err := store.Inspect(path, store.Limits{})
		if info, statErr := os.Stat(path); err != nil && statErr == nil && info.IsDir() {
			err = fmt.Errorf("%w; it is a directory: give its files, %s", err, filepath.Join(path, "*.db"))
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, unreadableKeys(in), in.Damage)
		if o.json || o.format == "json" {
			errs = append(errs, json.NewEncoder(&out).Encode(describe(in)))
		} else {
			if i > 0 {
				out.WriteByte('\n')
			}
			printInspection(&out, in)
		}
		if _, err := out.WriteTo(w); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	if unread > 1 {
		errs = append(errs, fmt.Errorf("%s of that client", moreFiles(unread-1)))
	}
	return errors.Join(errs...)
}

func moreFiles(n int) string {
	if n == 1 {
		return "1 more file is"
	}
	return fmt.Sprintf("%d more files are", n)
}

// unreadableKeys is the error of a file with entries whose key cannot be read, and nil for
// any other: such an entry is left out of what is served, so the file is not whole.
func unreadableKeys(in store.Inspection) error {
	n := 0
	var first store.InspectedEntry
	for _, e := range in.Entries {
		if e.KeyErr == nil {
			continue
		}
		if n++; n == 1 {
			first = e
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("source file %q: %d of %d keys cannot be read, the first at byte %d: %w", in.Path, n, len(in.Entries), first.Offset,
		first.KeyErr)
}

// printInspection writes an inspection for people to read.
func printInspection(w *bytes.Buffer, in store.Inspection) {
	fmt.Fprintf(w, "%s\n", terminal.Printable(in.Path))
	name, err := store.ParseName(filepath.Base(in.Path))
	switch {
	case err != nil:
		fmt.Fprintf(w, "  name    %s\n", terminal.Printable(err.Error()))
	case name.Archive:
		fmt.Fprintf(w, "  name    archive of the postmates fork: %s\n", strings.TrimSpace(name.Type.String()+" "+name.Mode.String()))
	default:
		fmt.Fprintf(w, "  name    %s of worker %s\n", strings.TrimSpace(name.Type.String()+" "+name.Mode.String()),
			terminal.Printable(workerOf(name, in)))
	}
	fmt.Fprintf(w, "  size    %d bytes, %d used\n", in.Size, in.Used)
	fmt.Fprintf(w, "  layout  %s\n", layoutName(in.Width))
	if len(in.Entries) > 0 && store.RubyKey(in.Entries[0].RawKey) {
		fmt.Fprintf(w, "  client  prometheus-client-mmap, for Ruby: a bucket counts what is in those below it, too\n")
	}
	fmt.Fprintf(w, "  entries %d\n", len(in.Entries))
	for _, e := range in.Entries {
		fmt.Fprintf(w, "%8d  ", e.Offset)
		if e.KeyErr != nil {
			fmt.Fprintf(w, "%q  UNREADABLE KEY: %s", e.RawKey, terminal.Printable(e.KeyErr.Error()))
		} else {
			w.WriteString(terminal.Printable(seriesName(e.Key.Series)))
		}
		fmt.Fprintf(w, "  %s", metric.AppendValue(nil, e.Value))
		if e.Stamp != 0 {
			fmt.Fprintf(w, "  set %s", stampTime(e.Stamp).Format(time.RFC3339Nano))
		}
		w.WriteByte('\n')
	}
	if in.Damage != nil {
		fmt.Fprintf(w, "  DAMAGE  %s\n", terminal.Printable(in.Damage.Error()))
	}
}

// workerOf is the ID of the worker whose file it is.
func workerOf(name store.SourceName, in store.Inspection) string {
	if len(in.Entries) == 0 {
		return name.ID
	}
	return name.WorkerID(in.Entries[0].RawKey)
}

// layoutName names what follows a key.
func layoutName(width int) string {
	switch width {
	case store.Wide:
		return "wide (value and timestamp)"
	case store.Narrow:
		return "narrow (value)"
	}
	return "unknown (no entry)"
}

func stampTime(unixSeconds float64) time.Time {
	return time.UnixMilli(int64(unixSeconds * 1000)).UTC()
}

// seriesName spells a series as PromQL does.
func seriesName(s metric.Series) string {
	if len(s.Labels) == 0 {
		return s.Sample
	}
	var b strings.Builder
	b.WriteString(s.Sample)
	before := "{"
	for _, l := range s.Labels {
		fmt.Fprintf(&b, "%s%s=%q", before, l.Name, l.Value)
		before = ","
	}
	b.WriteByte('}')
	return b.String()
}

// jsonFile is the JSON of inspect. Floats are strings, because JSON has no NaN.
type jsonFile struct {
	Path      string      `json:"path"`
	Type      string      `json:"type,omitempty"`
	Mode      string      `json:"mode,omitempty"`
	Worker    string      `json:"worker,omitempty"`
	NameError string      `json:"name_error,omitempty"`
	SizeBytes int64       `json:"size_bytes"`
	UsedBytes int64       `json:"used_bytes"`
	Width     int         `json:"width_bytes"`
	Entries   []jsonEntry `json:"entries"`
	Damage    *jsonDamage `json:"damage,omitempty"`
}

type jsonEntry struct {
	Offset   int64             `json:"offset"`
	Family   string            `json:"family,omitempty"`
	Sample   string            `json:"sample,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Help     string            `json:"help,omitempty"`
	RawKey   string            `json:"raw_key"`
	KeyError string            `json:"key_error,omitempty"`
	Value    string            `json:"value"`
	Stamp    float64           `json:"timestamp_seconds,omitempty"`
}

type jsonDamage struct {
	Offset int64  `json:"offset"`
	Reason string `json:"reason"`
	Error  string `json:"error"`
}

// describe turns an inspection into its JSON.
func describe(in store.Inspection) jsonFile {
	j := jsonFile{Path: in.Path, SizeBytes: in.Size, UsedBytes: in.Used, Width: in.Width, Entries: []jsonEntry{}}
	if name, err := store.ParseName(filepath.Base(in.Path)); err != nil {
		j.NameError = err.Error()
	} else {
		j.Type, j.Mode, j.Worker = name.Type.String(), name.Mode.String(), workerOf(name, in)
	}
	for _, e := range in.Entries {
		je := jsonEntry{Offset: e.Offset, RawKey: string(e.RawKey), Value: string(metric.AppendValue(nil, e.Value)), Stamp: e.Stamp}
		if e.KeyErr != nil {
			je.KeyError = e.KeyErr.Error()
		} else {
			je.Family, je.Sample, je.Help = e.Key.Family, e.Key.Series.Sample, e.Key.Help
			je.Labels = map[string]string{}
			for _, l := range e.Key.Series.Labels {
				je.Labels[l.Name] = l.Value
			}
		}
		j.Entries = append(j.Entries, je)
	}
	if in.Damage != nil {
		j.Damage = &jsonDamage{Reason: string(store.ReasonOf(in.Damage)), Error: in.Damage.Error()}
		if c, ok := errors.AsType[*store.CorruptionError](in.Damage); ok {
			j.Damage.Offset = c.Offset
		}
	}
	return j
}
