package store

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"aggregatord/internal/metric"
)

// Extension is the end of every source file's name. Clients glob for it.
const Extension = ".db"

// ErrForeign is the error of [ParseName] for a name that no client gives to a source
// file. Test with errors.Is.
var ErrForeign = errors.New("not the name of a source file")

// ErrUnknownMode is the error of [ParseName] for the name of a gauge's source file
// with a mode that [metric.ParseMode] does not know. Test with errors.Is.
var ErrUnknownMode = errors.New("unknown gauge mode")

// SourceName is what the name of a source file alone tells. It is a plain value.
type SourceName struct {
	// Base is the name itself, without a directory.
	Base string
	Type metric.Type
	// Mode is NoMode unless Type is Gauge.
	Mode metric.Mode
	// ID names the process: its pid by default, but applications set worker numbers and
	// names of any kind, so it is an opaque string.
	ID string
	// Archive says that this is not a worker's file but one of those in which the
	// postmates fork keeps what its dead workers left. ID is empty then.
	Archive bool
}

// String returns the file's name.
func (n SourceName) String() string { return n.Base }

// archiveNames are all the archive files of the postmates fork (_get_archive_paths in
// its multiprocess.py). It folds no other type and no other mode.
var archiveNames = map[string]SourceName{
	"counter.db":      {Type: metric.Counter, Archive: true},
	"histogram.db":    {Type: metric.Histogram, Archive: true},
	"gauge_latest.db": {Type: metric.Gauge, Mode: metric.MostRecent, Archive: true},
	"gauge_max.db":    {Type: metric.Gauge, Mode: metric.Max, Archive: true},
	"gauge_min.db":    {Type: metric.Gauge, Mode: metric.Min, Archive: true},
}

// ParseName reads the name of a source file, without its directory:
//
//	counter_ID.db  histogram_ID.db  summary_ID.db  gauge_MODE_ID.db
//
// where ID may be any valid UTF-8 (client_python: values.py, MultiProcessValue), and the archive
// files of the postmates fork, which have no ID. It returns [ErrForeign] for every other
// name, without allocating: a directory may hold thousands of foreign files. The error
// for a gauge mode nobody knows wraps [ErrUnknownMode].
func ParseName(base string) (SourceName, error) {
	stem, ok := strings.CutSuffix(base, Extension)
	// An ID becomes the value of a label, and an invalid one would spoil every exposition.
	if !ok || strings.ContainsAny(base, "/\x00") || !utf8.ValidString(base) {
		return SourceName{}, ErrForeign
	}
	if n, ok := archiveNames[base]; ok {
		n.Base = base
		return n, nil
	}
	typ, id, ok := strings.Cut(stem, "_")
	if !ok {
		return SourceName{}, ErrForeign
	}
	t, ok := metric.ParseType(typ)
	if !ok {
		return SourceName{}, ErrForeign
	}
	if t != metric.Gauge {
		return SourceName{Base: base, Type: t, ID: id}, nil
	}
	name, id, ok := strings.Cut(id, "_")
	if !ok {
		return SourceName{}, ErrForeign
	}
	mode, ok := metric.ParseMode(name)
	if !ok {
		return SourceName{}, fmt.Errorf("source file name %q: %w %q (known: %s)", base, ErrUnknownMode, name,
			strings.Join(metric.ModeNames(), ", "))
	}
	return SourceName{Base: base, Type: t, Mode: mode, ID: id}, nil
}

// UnreadClient names the client that gives such names to its files, if that is one whose files
// are not read yet. For any other name it is empty. It does not allocate.
//
//	metric_FAMILY___PID.bin   client_ruby: lib/prometheus/client/data_stores/direct_file_store.rb
func UnreadClient(base string) string {
	stem, ok := strings.CutSuffix(base, ".bin")
	if !ok || !strings.HasPrefix(stem, "metric_") {
		return ""
	}
	if at := strings.LastIndex(stem, "___"); at < len("metric_") || at+len("___") == len(stem) {
		return ""
	}
	return "client_ruby (DirectFileStore)"
}
