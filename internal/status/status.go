// Package status has the shapes in which the daemon tells about itself: what /api/v1 of a
// running daemon answers, and what the page, top and explain show. docs/api.md describes
// them for people. They are plain values without methods that do anything; whoever has one
// owns it.
//
// Its one promise: fields are added, never renamed or given another meaning, as long as the
// address says v1. Times are Unix seconds, 0 or left out for never; sizes are bytes.
package status

import (
	"encoding/json"
	"fmt"
	"strconv"

	"aggregatord/internal/metric"
)

// A Number is a sample value. In JSON it is a string, as in Prometheus's own API, because
// JSON has no NaN and no infinity.
type Number float64

// MarshalJSON implements json.Marshaler.
func (n Number) MarshalJSON() ([]byte, error) {
	dst := append([]byte(nil), '"')
	dst = metric.AppendValue(dst, float64(n))
	return append(dst, '"'), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *Number) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("sample value %s: %w", data, err)
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return fmt.Errorf("sample value %q: %w", s, err)
	}
	*n = Number(f)
	return nil
}

// A Response is around every answer of /api/v1, as in Prometheus's own API.
type Response[T any] struct {
	Status string `json:"status"` // success or error
	Data   T      `json:"data,omitempty"`
	// ErrorType is bad_data, not_found, unavailable or internal, and Error says it in words.
	ErrorType string `json:"errorType,omitempty"`
	Error     string `json:"error,omitempty"`
}

// An Overview is the daemon as a whole.
type Overview struct {
	Build   Build   `json:"build"`
	Started float64 `json:"started"`
	// Ready says that the first look at all directories is done.
	Ready bool   `json:"ready"`
	Pools []Pool `json:"pools"`
	// Discovery is left out if no pools are looked for.
	Discovery *Discovery `json:"discovery,omitempty"`
	Merge     Merge      `json:"merge"`
	// Limits are those in force.
	Limits Limits `json:"limits"`
	// Problems is what an operator should look at now, in words; empty if all is well.
	Problems []Problem `json:"problems"`
}

// Discovery is how the search for pools went the last time.
type Discovery struct {
	// LeftOut is how many pools were found and are not served, because there may be Limit.
	LeftOut int `json:"left_out"`
	Limit   int `json:"limit"`
	// Problems are what could not be used, in words, and Hints say of sources that found nothing
	// why that may be.
	Problems []string `json:"problems"`
	Hints    []string `json:"hints"`
}

// A Build says which program this is.
type Build struct {
	Version   string `json:"version"`
	Revision  string `json:"revision"`
	GoVersion string `json:"go_version"`
}

// Merge is about the view that all files make together.
type Merge struct {
	Families int `json:"families"`
	// Samples are those of the workers in the last view, Entries the values it was made of.
	Samples int `json:"samples"`
	Entries int `json:"entries"`
	// Passes counts the views made.
	Passes      uint64  `json:"passes"`
	LastSeconds float64 `json:"last_seconds"` // that the last pass took
	Last        float64 `json:"last"`         // when it was
	// Conflicts is how many families files disagree on, Dropped and Expired how many series a
	// rule leaves out now.
	Conflicts int `json:"conflicts"`
	Dropped   int `json:"dropped"`
	Expired   int `json:"expired"`
}

// Limits bound what is taken from workers.
type Limits struct {
	SeriesPerPool    int   `json:"series_per_pool"`
	SeriesPerFamily  int   `json:"series_per_family"`
	FamiliesPerPool  int   `json:"families_per_pool"`
	BytesPerPool     int64 `json:"bytes_per_pool"`
	Labels           int   `json:"labels"`
	LabelNameLength  int   `json:"label_name_length,omitempty"`
	LabelValueLength int   `json:"label_value_length,omitempty"`
	FileBytes        int64 `json:"file_bytes"`
	KeyBytes         int   `json:"key_bytes"`
	OpenFiles        int   `json:"open_files"`
}

// A Problem is one thing that is not as it should be.
type Problem struct {
	Pool string `json:"pool,omitempty"`
	// Severity is warning or error.
	Severity string `json:"severity"`
	// Text says what is wrong, in a sentence, and Action what helps, where that is known.
	Text   string `json:"text"`
	Action string `json:"action,omitempty"`
}

// A Pool is one watched directory.
type Pool struct {
	Name string `json:"name"` // empty for a directory without a name
	Dir  string `json:"dir"`
	// Source is where the pool comes from: configuration (a flag, the environment or the file),
	// pattern, processes or kubelet.
	Source string `json:"source"`
	// Labels tell it apart, beside its name.
	Labels map[string]string `json:"labels,omitempty"`
	// Ready says that all its files were read once.
	Ready bool `json:"ready"`
	// Vanished is when its directory or its last process was found to be gone, and Until when it
	// will be removed unless that comes back; left out of pools that are there.
	Vanished float64 `json:"vanished,omitempty"`
	Until    float64 `json:"until,omitempty"`
	// Trouble is the worst severity of its problems, empty without any, and Problems counts them.
	Trouble  string `json:"trouble,omitempty"`
	Problems int    `json:"problems"`
	// Up says that the directory could be listed the last time; Error why it could not.
	Up         bool     `json:"up"`
	Error      string   `json:"error,omitempty"`
	Liveness   Liveness `json:"liveness"`
	Workers    Alive    `json:"workers"`
	Files      Files    `json:"files"`
	Entries    int      `json:"entries"`
	Series     int      `json:"series"`
	UsedBytes  int64    `json:"used_bytes"`  // of the source files, as their writers say
	SizeBytes  int64    `json:"size_bytes"`  // of the source files
	FileSystem *Space   `json:"file_system"` // null where it cannot be asked
	Archive    Archive  `json:"archive"`
	// OtherArchiver is when another archiver was last seen to merge files here; left out while
	// none is at work. Nothing is archived meanwhile.
	OtherArchiver float64 `json:"other_archiver,omitempty"`
	// FileErrors and EntryErrors count by reason since the daemon was started.
	FileErrors  map[string]uint64 `json:"file_errors"`
	EntryErrors map[string]uint64 `json:"entry_errors"`
}

// Liveness is how the death of workers is known.
type Liveness struct {
	Method     string `json:"method"` // lease, proc or none
	FileSystem string `json:"file_system"`
	Reason     string `json:"reason,omitempty"` // why no better method works
	// Files counts files by the method their own answer rests on.
	Files map[string]int `json:"files"`
}

// Alive counts the living and the dead.
type Alive struct {
	Alive int `json:"alive"`
	Dead  int `json:"dead"`
}

// Files counts source files by state; Foreign are files of other kinds beside them.
type Files struct {
	Alive   int `json:"alive"`
	Dead    int `json:"dead"`
	Staged  int `json:"staged"`
	Removed int `json:"removed"`
	Failed  int `json:"failed"`
	Foreign int `json:"foreign"`
}

// Space is the room on a file system.
type Space struct {
	TotalBytes  uint64 `json:"total_bytes"`
	FreeBytes   uint64 `json:"free_bytes"`
	TotalInodes uint64 `json:"total_inodes"`
	FreeInodes  uint64 `json:"free_inodes"`
}

// An Archive is what dead workers have left.
type Archive struct {
	// State is open, read-only (looked at, not kept), closed, or failing.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	Path  string `json:"path,omitempty"`
	Bytes int64  `json:"bytes"`
	// Series counts its keys, Unsaved those with values that are in memory alone.
	Series  int `json:"series"`
	Unsaved int `json:"unsaved"`
	// Folds, FoldedFiles and FoldedBytes count since the archive was made.
	Folds       uint64  `json:"folds"`
	FoldedFiles uint64  `json:"folded_files"`
	FoldedBytes uint64  `json:"folded_bytes"`
	Created     float64 `json:"created,omitempty"`
	LastFold    float64 `json:"last_fold,omitempty"`
	// Errors, Reopened and Expired count since the daemon was started.
	Errors   uint64 `json:"errors"`
	Reopened uint64 `json:"reopened"`
	Expired  uint64 `json:"expired"`
	// Awaiting are dead workers' files to be archived, Removing those archived and about to
	// be removed.
	Awaiting int `json:"awaiting"`
	Removing int `json:"removing"`
	// Mirror is nil where none is kept.
	Mirror *Mirror `json:"mirror,omitempty"`
}

// A Mirror is what others see who read the directory with the client's own collector.
type Mirror struct {
	// Open says that it is kept up to date.
	Open bool `json:"open"`
	// Reads counts reads of the directory by others since the daemon was started, LastRead is when the
	// last one ended, and LongestReadSeconds how long they took at most.
	Reads              uint64  `json:"reads"`
	LastRead           float64 `json:"last_read,omitempty"`
	LongestReadSeconds float64 `json:"longest_read_seconds,omitempty"`
	// WaitingFiles wait for a moment in which nobody reads, ForcedFiles have waited for too long.
	WaitingFiles int    `json:"waiting_files"`
	ForcedFiles  uint64 `json:"forced_files"`
}

// A Page is one part of a long list.
type Page[T any] struct {
	// Total is how many there are in all, Matching how many of them were asked for.
	Total    int `json:"total"`
	Matching int `json:"matching"`
	Offset   int `json:"offset"`
	Items    []T `json:"items"`
}

// A Worker is a process, or several that had one ID.
type Worker struct {
	Pool  string `json:"pool,omitempty"`
	ID    string `json:"id"`
	Alive bool   `json:"alive"`
	// KnownBy is how that is known: lease, proc, or none, which counts as alive.
	KnownBy string `json:"known_by"`
	// Created is when the oldest of its files was made, Changed when one of its values was
	// last seen to be another one, or a file to have grown.
	Created   float64 `json:"created"`
	Changed   float64 `json:"changed,omitempty"`
	Files     int     `json:"files"`
	Failed    int     `json:"failed"` // files of it that cannot be read
	Entries   int     `json:"entries"`
	UsedBytes int64   `json:"used_bytes"`
	SizeBytes int64   `json:"size_bytes"`
	// Process is the one that holds its files, where that can be seen.
	Process *Process `json:"process,omitempty"`
}

// A File is one source file.
type File struct {
	Pool   string `json:"pool,omitempty"`
	Worker string `json:"worker"`
	Path   string `json:"path"`
	Type   string `json:"type"`
	Mode   string `json:"mode,omitempty"`
	// State is alive, dead, staged, removed or failed.
	State     string  `json:"state"`
	KnownBy   string  `json:"known_by"`
	Dialect   string  `json:"dialect,omitempty"`
	Entries   int     `json:"entries"`
	UsedBytes int64   `json:"used_bytes"`
	SizeBytes int64   `json:"size_bytes"`
	Created   float64 `json:"created,omitempty"`
	Changed   float64 `json:"changed,omitempty"`
	// Reason and Error say why it cannot be read, if it cannot; LeftOut for which reasons
	// single entries of it are left out.
	Reason  string   `json:"reason,omitempty"`
	Error   string   `json:"error,omitempty"`
	LeftOut []string `json:"left_out,omitempty"`
}

// A WorkerValue is what a worker's file holds of one series, less what of it is archived. A bucket
// counts its own observations alone, not those below it.
type WorkerValue struct {
	Pool   string `json:"pool,omitempty"`
	Worker string `json:"worker"`
	// Series is spelled as in a Sample.
	Series string `json:"series"`
	Type   string `json:"type"`
	Mode   string `json:"mode,omitempty"`
	Value  Number `json:"value"`
	Path   string `json:"path"`
}

// Errors is what could not be read or is not served.
type Errors struct {
	// Files are those that cannot be read or have entries left out, at most as many as were
	// asked for; FilesTotal is how many there are.
	Files      []File     `json:"files"`
	FilesTotal int        `json:"files_total"`
	Conflicts  []Conflict `json:"conflicts"`
}

// A Conflict says that files disagree on what a family is.
type Conflict struct {
	Family string `json:"family"`
	Pool   string `json:"pool,omitempty"`
	Served string `json:"served"`
	// LeftOut is what other files say it is, and Series how many series of theirs are not
	// served.
	LeftOut string `json:"left_out"`
	Series  int    `json:"series"`
}

// A Family is a metric family as it is served.
type Family struct {
	Name string `json:"name"`
	Type string `json:"type"`
	Mode string `json:"mode,omitempty"` // of a gauge
	// ModeSource is where the mode comes from: "file name", or "rule".
	ModeSource string `json:"mode_source,omitempty"`
	// Rule names the rule of the configuration that is in force for it, if any.
	Rule string `json:"rule,omitempty"`
	Unit string `json:"unit,omitempty"`
	Help string `json:"help"`
	// Series counts label sets, Samples the lines they make.
	Series  int `json:"series"`
	Samples int `json:"samples"`
	// Total is the sum of all counters, or the number of all observations: its rate tells how
	// busy the family is. Left out for gauges.
	Total *Number `json:"total,omitempty"`
	// Own says that it is one of the daemon's own.
	Own bool `json:"own,omitempty"`
}

// Families is a page of families and the moment their totals are of.
type Families struct {
	Page[Family]
	Time float64 `json:"time"`
}

// A Sample is one line of the exposition.
type Sample struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	// Series is name and labels in the spelling that explain takes.
	Series string `json:"series"`
	Value  Number `json:"value"`
}

// Samples is a page of samples and the moment they are of.
type Samples struct {
	Page[Sample]
	Time float64 `json:"time"`
}

// Config is the configuration in force.
type Config struct {
	// Settings are those of the command line and the environment.
	Settings []Setting `json:"settings"`
	// File is the configuration file, if there is one, and YAML what of it is in force.
	File string `json:"file,omitempty"`
	YAML string `json:"yaml,omitempty"`
	// Loaded is when that was read, Error why the file as it is now is not in force, and
	// RestartKeys are changed keys that take effect at the next start.
	Loaded      float64  `json:"loaded,omitempty"`
	Error       string   `json:"error,omitempty"`
	RestartKeys []string `json:"restart_keys,omitempty"`
}

// A Setting is one name and value.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// An Explanation says what made one number.
type Explanation struct {
	Sample
	Family string `json:"family"`
	Type   string `json:"type"`
	Help   string `json:"help"`
	// Mode, ModeSource and Rule are as in Family.
	Mode       string `json:"mode,omitempty"`
	ModeSource string `json:"mode_source,omitempty"`
	Rule       string `json:"rule,omitempty"`
	// Operation is what is done with the contributions: sum, max, min, mostrecent or all.
	Operation string `json:"operation"`
	// Cumulative says that the sample is a bucket that contains those below it, or a count
	// made of all buckets: then each contribution is, too.
	Cumulative bool `json:"cumulative,omitempty"`
	// Absent says that the series exists and is not served now, and why; Value means nothing
	// then.
	Absent string `json:"absent,omitempty"`
	// RelabeledFrom is the series before metric_relabel_configs, where they changed it.
	RelabeledFrom string `json:"relabeled_from,omitempty"`
	// Contributions are all values that were looked at. Those that count add up to Value,
	// whatever the operation: where it picks one, only that one counts.
	Contributions []Contribution `json:"contributions"`
}

// A Contribution is what one place adds to a number.
type Contribution struct {
	// Kind is file, archive, or configuration.
	Kind   string `json:"kind"`
	Pool   string `json:"pool,omitempty"`
	Worker string `json:"worker,omitempty"`
	Path   string `json:"path,omitempty"`
	// State of a file: alive, dead, staged, removed or failed.
	State   string `json:"state,omitempty"`
	KnownBy string `json:"known_by,omitempty"`
	// Gains says that the file's earlier values are in the archive already, and Value is what
	// it has gained since.
	Gains bool `json:"gains,omitempty"`
	// Value is what the place holds; Set when it was set, where the mode asks for that.
	Value Number  `json:"value"`
	Set   float64 `json:"set,omitempty"`
	// Counts says that it is part of the number, and Why not, if it is not.
	Counts bool   `json:"counts"`
	Why    string `json:"why,omitempty"`
}

// Explanations is a list of them, and how many series there were to explain.
type Explanations struct {
	Matching int           `json:"matching"`
	Time     float64       `json:"time"`
	Items    []Explanation `json:"items"`
}

// An Output is one place to which the daemon sends views. Times are Unix seconds, 0 for never.
type Output struct {
	Name string `json:"name"`
	// Type is textfile, pushgateway, graphite, remote_write or otlp.
	Type string `json:"type"`
	// Target is the file or the address, without passwords.
	Target   string  `json:"target"`
	Interval float64 `json:"interval"`
	// LastTry and LastSuccess are when the last push ended, and the last that was taken.
	LastTry     float64 `json:"last_try"`
	LastSuccess float64 `json:"last_success"`
	// Next is when the next push is due.
	Next float64 `json:"next,omitempty"`
	// Failures counts the pushes that failed since the last success; Error says why the last
	// one did, and what to do.
	Failures int    `json:"failures"`
	Error    string `json:"error,omitempty"`
	// Duration (seconds), Bytes, Samples and LeftOut are of the last push.
	Duration float64 `json:"duration"`
	Bytes    int     `json:"bytes"`
	Samples  int     `json:"samples"`
	LeftOut  int     `json:"left_out"`
	// Results counts pushes by how they ended.
	Results map[string]uint64 `json:"results"`
}
