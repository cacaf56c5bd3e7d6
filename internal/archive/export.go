package archive

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// A Dialect is how a client names and spells the source files that it reads.
type Dialect struct {
	// Name is the word for it in flags.
	Name string
	// Writer has the width, the first size and the timestamp for none.
	Writer store.WriterOptions
	// NoHelp says that keys have three elements: the client fails on one with a help text.
	NoHelp bool
	// OwnNames says that the client keeps an archive itself, under names without an ID.
	OwnNames bool
}

// The dialects, by the client that reads them.
var (
	// Python is client_python 0.18 and later.
	Python = Dialect{Name: "python", Writer: store.WriterOptions{Width: store.Wide}}
	// PythonOld is client_python 0.16 and 0.17. Its files have no room for a time.
	PythonOld = Dialect{Name: "python-old", Writer: store.WriterOptions{Width: store.Narrow}}
	// Postmates is the fork of client_python by Postmates (_get_archive_paths and mmap_key in its
	// multiprocess.py and mmap_dict.py).
	Postmates = Dialect{
		Name: "postmates", NoHelp: true, OwnNames: true,
		Writer: store.WriterOptions{Width: store.Wide, FirstBytes: 1 << 20, NoStamp: math.Inf(1)},
	}
)

// Dialects lists the dialects.
func Dialects() []Dialect { return []Dialect{Python, PythonOld, Postmates} }

// exportedID is the worker ID in the names of files that are of no single worker: no live worker
// has it.
const exportedID = "archive"

// unreadableID is exportedID for keys that we cannot read.
const unreadableID = "archive-unreadable"

// A SourceFile is a table of the archive as a file that a client reads: all values are absolute,
// and series that differ only in how old clients spelled their keys are one entry.
type SourceFile struct {
	// Name is the name of the file.
	Name string
	// Unreadable says that the keys are none that we can read. They are kept byte for byte.
	Unreadable bool

	table   *Table
	dialect Dialect
}

// Entries is the number of entries of the file.
func (f *SourceFile) Entries() int { return f.table.Len() }

// Keys returns some of the keys, at most n.
func (f *SourceFile) Keys(n int) []string {
	var keys []string
	for i := range min(n, f.table.Len()) {
		keys = append(keys, f.table.Key(i))
	}
	return keys
}

// SourceFiles returns what the totals are as source files of a dialect, in a fixed order, and how
// many series are in none of them, because narrow files have no room for the time that they need.
// The totals must not change until the files are written.
func (t *Totals) SourceFiles(d Dialect) (files []SourceFile, timeless int) {
	taken := map[string]bool{}
	add := func(space Space, id string, table *Table, unreadable bool) {
		if table == nil {
			return
		}
		name := d.fileName(space, id)
		for i := 2; taken[name]; i++ { // a worker may have the ID that is ours
			name = d.fileName(space, id+"-"+strconv.Itoa(i))
		}
		taken[name] = true
		files = append(files, SourceFile{name, unreadable, table, d})
	}
	for space, table := range t.Spaces() {
		if space.Mode == metric.MostRecent && d.Writer.Width == store.Narrow {
			timeless += table.Len()
			continue
		}
		readable, unreadable := respelled(table, d)
		id := exportedID
		if space.Worker != "" {
			id = space.Worker
		} else if d.OwnNames {
			// It has such names for some types and modes only.
			if n, err := store.ParseName(d.fileName(space, "")); err == nil && n.Archive {
				id = ""
			}
		}
		add(space, id, readable, false)
		add(space, unreadableID, unreadable, true)
	}
	return files, timeless
}

// fileName names a file for a space.
func (d Dialect) fileName(s Space, id string) string {
	name := s.Type.String()
	if s.Type == metric.Gauge {
		mode := s.Mode.String()
		if d.OwnNames && s.Mode == metric.MostRecent {
			mode = "latest"
		}
		name += "_" + mode
	}
	if id != "" {
		name += "_" + strings.Map(func(r rune) rune {
			if r == '/' || r == 0 { // an archive made by hand: a name must not lead elsewhere
				return '-'
			}
			return r
		}, id)
	}
	return name + store.Extension
}

// respelled returns a table's series with keys as the dialect has them, and apart from them the
// keys that cannot be read; nil for none.
func respelled(table *Table, d Dialect) (readable, unreadable *Table) {
	space := table.Space()
	// A help text is no part of what a series is. The last one that is not empty is the newest.
	helps := map[string]string{}
	spell := func(key metric.Key) (plain string) {
		key.Help, key.NoHelp = "", true
		return string(store.AppendKey(nil, key))
	}
	if !d.NoHelp {
		for i := range table.Len() {
			if key, err := store.ParseKey([]byte(table.Key(i))); err == nil && key.Help != "" {
				helps[spell(key)] = key.Help
			}
		}
	}
	var good, bad Totals
	for i := range table.Len() {
		hi, second := table.hi[i], table.second[i]
		key, err := store.ParseKey([]byte(table.Key(i)))
		if err != nil {
			bad.Add(space, []byte(table.Key(i)), hi, second, table.LastFold())
			continue
		}
		plain := spell(key)
		key.Help, key.NoHelp = helps[plain], d.NoHelp
		good.Add(space, store.AppendKey(nil, key), hi, second, table.LastFold())
	}
	return good.Table(space), bad.Table(space)
}

// Write writes the file into a directory. After nil its contents are durable, its name is not
// before SyncDir. After an error there may be a part of it.
func (f *SourceFile) Write(dir string) (err error) {
	path := filepath.Join(dir, f.Name)
	defer func() {
		if err != nil {
			err = fmt.Errorf("export to %q: %w", path, err)
		}
	}()
	w, err := store.OpenWriter(path, f.dialect.Writer)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, w.Close()); err == nil {
			err = syncFile(path)
		}
	}()
	recent := f.table.Space().Mode == metric.MostRecent
	for i := range f.table.Len() {
		slot, err := w.Slot([]byte(f.table.Key(i)))
		if err != nil {
			return err
		}
		value, stamp := f.table.Value(i)
		switch {
		case recent && stamp == 0:
			value = 0 // never set: as the client leaves it
		case !recent:
			stamp = f.dialect.Writer.NoStamp
		}
		w.Set(slot, value, stamp)
	}
	return nil
}

// syncFile makes a file's contents durable.
func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
