package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// lockHolder is an open archive, as a daemon has it, to be closed by the test.
func lockHolder(t *testing.T, dir string) *archive.Archive {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	a, err := archive.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Detach() }) //nolint:errcheck // most tests have closed it
	return a
}

// hiddenHolder is lockHolder for an archive in a watched directory.
func hiddenHolder(t *testing.T, dir string) *archive.Archive {
	t.Helper()
	place, err := archive.OpenHiddenPlace(dir)
	if err != nil {
		t.Fatal(err)
	}
	a := archive.New()
	if err := a.AttachTo(place, nil); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		a.Detach() //nolint:errcheck // most tests have closed it
		place.Close()
	})
	return a
}

// hiddenPath is where the archive of a watched directory is.
func hiddenPath(dir string) string { return filepath.Join(dir, archive.HiddenPrefix+"archive") }

func detach(t *testing.T, a *archive.Archive) {
	t.Helper()
	if err := a.Detach(); err != nil {
		t.Fatal(err)
	}
}

var (
	counters   = archive.Space{Type: metric.Counter}
	histograms = archive.Space{Type: metric.Histogram}
	summaries  = archive.Space{Type: metric.Summary}
)

func gauges(mode metric.Mode, worker string) archive.Space {
	return archive.Space{Type: metric.Gauge, Mode: mode, Worker: worker}
}

// foldedAt is when the files of the test archive were folded.
var foldedAt = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)

// archiveFile adds a file to a batch, recorded under a name if it has one.
func archiveFile(t *testing.T, b *archive.Batch, space archive.Space, name string, entries ...entry) {
	t.Helper()
	f := b.File(space, nil, 65536)
	for _, e := range entries {
		f.Add(e.key(t), e.value, e.stamp, true)
	}
	if name != "" {
		f.Record(name)
	}
}

// archived fills an archive with something of every kind, closes it, and returns what must be
// served of it.
func archived(t *testing.T, a *archive.Archive) samples {
	t.Helper()
	defer detach(t, a)
	for i := 1; i <= 2; i++ {
		n, v := strconv.Itoa(i), float64(i)
		b := archive.NewBatch(foldedAt)
		archiveFile(t, b, counters, "counter_"+n+".db.run-"+n,
			entry{"hits", "hits_total", labels("path", "/"), 0.1 * v, 0},
			entry{"hits", "hits_total", labels("path", "żółć\n\"\\"), v, 0},
			entry{"jobs", "jobs_total", nil, 1e15, 0})
		archiveFile(t, b, histograms, "",
			entry{"size", "size_sum", nil, 7, 0},
			entry{"size", "size_bucket", labels("le", "1.0"), v, 0},
			entry{"size", "size_bucket", labels("le", "10.0"), 1, 0},
			entry{"size", "size_bucket", labels("le", "+Inf"), 2, 0})
		archiveFile(t, b, summaries, "", entry{"wait", "wait_sum", nil, 0.5, 0}, entry{"wait", "wait_count", nil, 3, 0})
		archiveFile(t, b, gauges(metric.Sum, ""), "", entry{"balance", "balance", nil, -v, 0})
		archiveFile(t, b, gauges(metric.Max, ""), "", entry{"peak", "peak", nil, v, 0})
		archiveFile(t, b, gauges(metric.Min, ""), "", entry{"low", "low", nil, v, 0})
		archiveFile(t, b, gauges(metric.MostRecent, ""), "",
			entry{"rate", "rate", nil, v, 1_700_000_000.5 + v}, entry{"unset", "unset", nil, 0, 0})
		archiveFile(t, b, gauges(metric.All, "pod-"+n), "", entry{"temp", "temp", labels("core", "0"), 20 + v, 0})
		if err := a.Commit(b, nil); err != nil {
			t.Fatal(err)
		}
	}
	s := samples{}
	s.add(t, "hits_total", labels("path", "/"), 0.30000000000000004)
	s.add(t, "hits_total", labels("path", "żółć\n\"\\"), 3)
	s.add(t, "jobs_total", nil, 2e15)
	s.add(t, "size_bucket", labels("le", "1"), 3)
	s.add(t, "size_bucket", labels("le", "10"), 5)
	s.add(t, "size_bucket", labels("le", "+Inf"), 9)
	s.add(t, "size_sum", nil, 14)
	s.add(t, "size_count", nil, 9)
	s.add(t, "wait_sum", nil, 1)
	s.add(t, "wait_count", nil, 6)
	s.add(t, "balance", nil, -3)
	s.add(t, "peak", nil, 2)
	s.add(t, "low", nil, 1)
	s.add(t, "rate", nil, 2)
	s.add(t, "temp", labels("core", "0", "pid", "pod-1"), 21)
	s.add(t, "temp", labels("core", "0", "pid", "pod-2"), 22)
	return s
}

// archivedDir is a watched directory with such an archive and nothing else.
func archivedDir(t *testing.T) (dir string, want samples) {
	t.Helper()
	dir = sourceDir(t)
	return dir, archived(t, hiddenHolder(t, dir))
}

func TestArchiveStat(t *testing.T) {
	dir, _ := archivedDir(t)
	path := hiddenPath(dir)
	for _, name := range []string{
		filepath.Join(dir, fold.FileName("counter_2.db.run-2")), filepath.Join(dir, fold.FileName("counter_3.db.run-3")),
		path + ".damaged-20260101T000000Z", path + ".reset-20260101T000000Z", filepath.Join(dir, "notes"),
	} {
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	var got archiveStat
	if err := json.Unmarshal([]byte(must(t, "archive", "stat", "--dir", dir, "--format", "json")), &got); err != nil {
		t.Fatal(err)
	}
	if age := time.Since(got.Created); age < 0 || age > time.Minute {
		t.Errorf("created %v ago", age)
	}
	if got.LastFold == nil || !got.LastFold.Equal(foldedAt) {
		t.Errorf("last fold %v", got.LastFold)
	}
	created := got.Created
	got.Created, got.LastFold = time.Time{}, nil
	want := archiveStat{
		Path: path, SizeBytes: info.Size(), Format: archive.Format, Folds: 2, Files: 16, FileBytes: 16 * 65536, Families: 10, Series: 16,
		Records: 2,
		Kinds: []archiveKind{
			{"counter", "", 0, 2, 3},
			{"gauge", "all", 2, 1, 2},
			{"gauge", "sum", 0, 1, 1},
			{"gauge", "max", 0, 1, 1},
			{"gauge", "min", 0, 1, 1},
			{"gauge", "mostrecent", 0, 2, 2},
			{"histogram", "", 0, 1, 4},
			{"summary", "", 0, 1, 2},
		},
		Staged:   []archiveStagedRow{{"counter_2.db.run-2", true}, {"counter_3.db.run-3", false}},
		SetAside: []string{".aggregatord.archive.damaged-20260101T000000Z", ".aggregatord.archive.reset-20260101T000000Z"},
	}
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		t.Errorf("got\n%+v\nwant\n%+v", got, want)
	}

	text := must(t, "archive", "stat", "--dir", dir)
	wantText := path + `
  size       SIZE bytes, format 3
  created    CREATED
  last fold  LAST
  folded     16 files of 1048576 bytes, in 2 folds
  contents   10 families, 16 series
             counter           2 families, 3 series
             gauge all         1 families, 2 series of 2 workers
             gauge sum         1 families, 1 series
             gauge max         1 families, 1 series
             gauge min         1 families, 1 series
             gauge mostrecent  2 families, 2 series
             histogram         1 families, 4 series
             summary           1 families, 2 series
  staged     1 files to be folded, 1 folded and to be removed
  records    2 of folded files
  set aside  .aggregatord.archive.damaged-20260101T000000Z
  set aside  .aggregatord.archive.reset-20260101T000000Z
`
	for name, value := range map[string]string{
		"SIZE": strconv.FormatInt(info.Size(), 10), "CREATED": created.Local().Format(time.RFC3339),
		"LAST": foldedAt.Local().Format(time.RFC3339),
	} {
		wantText = strings.Replace(wantText, name, value, 1)
	}
	if text != wantText {
		t.Errorf("got\n%s\nwant\n%s", text, wantText)
	}
}

// TestArchiveStatNew: an archive into which nothing was folded.
func TestArchiveStatNew(t *testing.T) {
	dir := sourceDir(t)
	detach(t, hiddenHolder(t, dir))
	contains(t, must(t, "archive", "stat", "--dir", dir), "last fold  never", "contents   0 families, 0 series")
	contains(t, must(t, "archive", "stat", "--format", "json", "--dir", dir), `"last_fold":null`, `"kinds":[]`, `"staged":[]`,
		`"set_aside":[]`)
	if out := must(t, "archive", "list", "--dir", dir); out != "" {
		t.Errorf("it lists %q", out)
	}
}

func TestArchiveList(t *testing.T) {
	dir, _ := archivedDir(t)
	const all = `balance (gauge sum)
  balance  -3
hits (counter)
  hits_total{path="/"}  0.30000000000000004
  hits_total{path="żółć\n\"\\"}  3
jobs (counter)
  jobs_total  2e+15
low (gauge min)
  low  1
peak (gauge max)
  peak  2
rate (gauge mostrecent)
  rate  2  set 2023-11-14T22:13:22.5Z
size (histogram)
  size_sum  14
  size_bucket{le="1.0"}  3
  size_bucket{le="10.0"}  2
  size_bucket{le="+Inf"}  4
temp (gauge all of worker pod-1)
  temp{core="0"}  21
temp (gauge all of worker pod-2)
  temp{core="0"}  22
unset (gauge mostrecent)
  unset  never set
wait (summary)
  wait_sum  1
  wait_count  6
`
	if got := must(t, "archive", "list", "--dir", dir); got != all {
		t.Errorf("got\n%s\nwant\n%s", got, all)
	}
	for filter, want := range map[string]string{
		"jobs":            "jobs (counter)\n  jobs_total  2e+15\n",
		"jobs_total peak": "jobs (counter)\n  jobs_total  2e+15\npeak (gauge max)\n  peak  2\n",
		"*_sum":           "size (histogram)\n  size_sum  14\nwait (summary)\n  wait_sum  1\n",
		"[lp]*":           "low (gauge min)\n  low  1\npeak (gauge max)\n  peak  2\n",
		"none":            "",
	} {
		if got := must(t, append([]string{"archive", "list", "--dir", dir}, strings.Fields(filter)...)...); got != want {
			t.Errorf("%s: got\n%s\nwant\n%s", filter, got, want)
		}
	}
}

func TestArchiveVerify(t *testing.T) {
	dir, _ := archivedDir(t)
	path := hiddenPath(dir)
	contains(t, must(t, "archive", "verify", "--dir", dir), path+" is whole: ", " bytes, 16 series, 2 records of folded files\n")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"flipped": strings.ReplaceAll(string(whole), "jobs_total", "Jobs_total"),
		"short":   string(whole[:9000]),
		"empty":   "",
		"text":    "not an archive",
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"verify", "stat", "list", "export"} {
				call(t, "archive", command, "--dir", dir).oneLine(t, exitFailure, path, "archive is damaged", "aggregatord archive reset")
			}
			if got, err := os.ReadFile(path); err != nil || string(got) != bad {
				t.Errorf("it was changed, %v", err)
			}
		})
	}
}

func TestArchiveExport(t *testing.T) {
	dir, want := archivedDir(t)
	for format, parse := range parsers {
		got := must(t, "archive", "export", "--dir", dir, "--format", format)
		if s := parse(t, got); !maps.Equal(s, want) {
			t.Errorf("%s: got\n%v\nwant\n%v", format, s, want)
		}
		// With nothing but the archive it is what is served.
		if dump := must(t, "dump", "--dir", dir, "--format", format); dump != got {
			t.Errorf("%s: dump prints\n%s\nexport\n%s", format, dump, got)
		}
	}
	if got := parseText(t, must(t, "archive", "export", "--dir", dir, "--name", "jobs", "--name", "low")); len(got) != 2 {
		t.Errorf("selected %v", got)
	}
	path := filepath.Join(t.TempDir(), "out.prom")
	if out := must(t, "archive", "export", "--dir", dir, "--output", path); out != "" {
		t.Errorf("it prints %q", out)
	}
	onlyFile(t, path, must(t, "archive", "export", "--dir", dir))

	// An archive elsewhere, of a directory with a name, that is away.
	elsewhere := t.TempDir()
	archived(t, lockHolder(t, filepath.Join(elsewhere, "web")))
	args := []string{"--dir", "web=" + filepath.Join(dir, "away"), "--archive.dir", elsewhere}
	contains(t, must(t, append([]string{"archive", "export"}, args...)...), `jobs_total{pool="web"} 2e+15`)
	contains(t, must(t, append([]string{"archive", "stat"}, args...)...), filepath.Join(elsewhere, "web", archive.FileName))
}

// TestArchiveExportFiles writes source files and reads them as those of a pool.
func TestArchiveExportFiles(t *testing.T) {
	dir, want := archivedDir(t)
	for _, tc := range []struct {
		dialect archive.Dialect
		files   int
		names   string
	}{
		{archive.Python, 9, `^((counter|histogram|summary|gauge_(sum|max|min|mostrecent))_archive|gauge_all_pod-[12])\.db$`},
		{archive.PythonOld, 8, `^((counter|histogram|summary|gauge_(sum|max|min))_archive|gauge_all_pod-[12])\.db$`},
		{archive.Postmates, 9, `^(counter|histogram|summary_archive|gauge_(sum_archive|max|min|latest)|gauge_all_pod-[12])\.db$`},
	} {
		t.Run(tc.dialect.Name, func(t *testing.T) {
			to := filepath.Join(sourceDir(t), "new")
			c := call(t, "archive", "export", "--dir", dir, "--to", to, "--dialect", tc.dialect.Name)
			if c.code != 0 || c.stdout != fmt.Sprintf("%d source files written to %s\n", tc.files, to) {
				t.Fatalf("%+v", c)
			}
			want := maps.Clone(want)
			if tc.dialect.Writer.Width == store.Narrow {
				delete(want, "rate")
				contains(t, c.stderr, "mostrecent are left out")
			} else if c.stderr != "" {
				t.Error(c.stderr)
			}
			if got := parseText(t, must(t, "dump", "--dir", to)); !maps.Equal(got, want) {
				t.Errorf("got\n%v\nwant\n%v", got, want)
			}
			files, err := os.ReadDir(to)
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				if !regexp.MustCompile(tc.names).MatchString(f.Name()) {
					t.Errorf("file %s", f.Name())
				}
				in, err := store.Inspect(filepath.Join(to, f.Name()), store.Limits{})
				if err != nil || in.Damage != nil || in.Width != tc.dialect.Writer.Width {
					t.Errorf("%s: width %d, %v, %v", f.Name(), in.Width, in.Damage, err)
				}
				for _, e := range in.Entries {
					if key, err := store.ParseKey(e.RawKey); err != nil || key.NoHelp != tc.dialect.NoHelp {
						t.Errorf("%s: key %s, %v", f.Name(), e.RawKey, err)
					}
				}
			}
			// Never set is still that.
			if tc.dialect.Name == archive.Python.Name {
				contains(t, must(t, "inspect", filepath.Join(to, "gauge_mostrecent_archive.db")), "unset  0\n")
			}
		})
	}
}

// TestArchiveExportNarrow: what has no room is told once, however many workers it is of.
func TestArchiveExportNarrow(t *testing.T) {
	var totals archive.Totals
	for _, worker := range []string{"1", "2", "3"} {
		space := archive.Space{Type: metric.Gauge, Mode: metric.MostRecent, Worker: worker}
		totals.Add(space, []byte(`["g", "g", {}, "Help."]`), 1, 1, time.Unix(1, 0))
	}
	var log strings.Builder
	logger, err := (&logOptions{level: "warn", format: "console"}).logger(&log)
	if err != nil {
		t.Fatal(err)
	}
	files, err := exportFiles(t.TempDir(), &totals, archive.PythonOld, logger)
	if err != nil || files != 0 {
		t.Errorf("%d files, %v", files, err)
	}
	if n := strings.Count(log.String(), "\n"); n != 1 || !strings.Contains(log.String(), `"series": 3`) {
		t.Errorf("%d lines:\n%s", n, log.String())
	}
}

// TestArchiveExportDialects: keys as old clients wrote them are spelled as today's read them,
// and those that then are equal are one.
func TestArchiveExportDialects(t *testing.T) {
	dir := sourceDir(t)
	a := hiddenHolder(t, dir)
	b := archive.NewBatch(foldedAt)
	f := b.File(counters, nil, 0)
	for _, raw := range []string{
		`["old", "old_total", ["a"], ["1"]]`, `["old", "old_total", {"a": "1"}]`,
		`["old","old_total",{"a":"1"},""]`, `["old", "old_total", {"a": "1"}, "Help."]`,
	} {
		f.Add([]byte(raw), 1.5, 0, true)
	}
	f.Add([]byte(`not a key`), 1, 0, true)
	if err := a.Commit(b, nil); err != nil {
		t.Fatal(err)
	}
	detach(t, a)
	to := filepath.Join(t.TempDir(), "new")
	c := call(t, "archive", "export", "--dir", dir, "--to", to)
	odd := filepath.Join(to, "counter_archive-unreadable.db")
	if c.code != 0 || strings.Count(c.stderr, "\n") != 1 || !strings.Contains(c.stderr, "not a key") || !strings.Contains(c.stderr, odd) {
		t.Errorf("%+v", c)
	}
	contains(t, must(t, "inspect", filepath.Join(to, "counter_archive.db")), "entries 1\n", `old_total{a="1"}  6`)
	in, err := store.Inspect(odd, store.Limits{})
	if err != nil || len(in.Entries) != 1 || string(in.Entries[0].RawKey) != "not a key" || in.Entries[0].Value != 1 {
		t.Errorf("unreadable: %+v, %v", in, err)
	}
	if c := call(t, "dump", "--dir", to); c.code != 0 || !strings.Contains(c.stdout, `old_total{a="1"} 6`) ||
		!strings.Contains(c.stderr, odd) {
		t.Errorf("%+v", c)
	}
	contains(t, must(t, "archive", "list", "--dir", dir, "not a key"), "not a key (counter)\n  not a key  1\n")
	contains(t, must(t, "archive", "stat", "--dir", dir), "2 families, 5 series")
}

// TestArchiveExportClient lets the Python client's own collector read the export.
func TestArchiveExportClient(t *testing.T) {
	const python = "/usr/bin/python3" // what Debian's python3-prometheus-client is for
	const script = `
import json, sys
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
found = []
for family in MultiProcessCollector(CollectorRegistry(), path=sys.argv[1]).collect():
    for s in family.samples:
        found.append([s.name, s.labels, repr(float(s.value)), family.type])
print(json.dumps(found))
`
	if out, err := exec.Command(python, "-c", "import prometheus_client.multiprocess").CombinedOutput(); err != nil {
		msg := fmt.Sprintf("needs the real client: apt-get install python3-prometheus-client (%v)\n%s", err, out)
		if os.Getenv("CI") == "true" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	dir, want := archivedDir(t)
	delete(want, "rate")
	to := filepath.Join(t.TempDir(), "new")
	call(t, "archive", "export", "--dir", dir, "--to", to, "--dialect", "python-old", "--log.level", "error")

	// The application goes on beside it, with the pid of one of the dead.
	bury := func(base string, e entry) {
		w, err := store.OpenWriter(filepath.Join(to, base), store.WriterOptions{Width: store.Narrow})
		if err != nil {
			t.Fatal(err)
		}
		slot, err := w.Slot(e.key(t))
		if err != nil {
			t.Fatal(err)
		}
		w.Set(slot, e.value, 0)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	bury("counter_77.db", entry{"hits", "hits_total", labels("path", "/"), 100, 0})
	bury("gauge_max_77.db", entry{"peak", "peak", nil, 9, 0})
	want[`hits_total{path="/"}`] += 100
	want["peak"] = 9

	out, err := exec.Command(python, "-c", script, to).Output()
	if err != nil {
		t.Fatal(err)
	}
	var found [][]any
	if err := json.Unmarshal(out, &found); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	got := samples{}
	for _, f := range found {
		labels := map[string]string{}
		for name, value := range f[1].(map[string]any) {
			labels[name] = value.(string)
		}
		if le, ok := labels["le"]; ok {
			bound, _ := metric.ParseBound(le)
			labels["le"] = boundText(bound)
		}
		value, err := strconv.ParseFloat(f[2].(string), 64)
		if err != nil {
			t.Fatal(err)
		}
		got.add(t, f[0].(string), labels, value)
	}
	if !maps.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
}

func TestArchiveExportErrors(t *testing.T) {
	dir, _ := archivedDir(t)
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, ".hidden"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(full, ".hidden")
	for name, tc := range map[string]struct {
		args []string
		says []string
	}{
		"not_empty":       {[]string{"--to", full}, []string{full, "new or an empty directory"}},
		"watched":         {[]string{"--to", dir}, []string{dir, "new or an empty directory"}},
		"file":            {[]string{"--to", file}, []string{file, "not a directory"}},
		"no_parent":       {[]string{"--to", filepath.Join(full, "a", "b")}, []string{"no such file or directory"}},
		"dialect":         {[]string{"--to", full, "--dialect", "ruby"}, []string{"--dialect", `"ruby"`, "python-old", "postmates"}},
		"dialect_alone":   {[]string{"--dialect", "postmates"}, []string{"--dialect", "--to"}},
		"format_with_to":  {[]string{"--to", full, "--format", "json"}, []string{"--format", "--to"}},
		"output_with_to":  {[]string{"--to", full, "-o", file}, []string{"--output", "--to"}},
		"unknown_format":  {[]string{"--format", "xml"}, []string{"--format", `"xml"`}},
		"unknown_level":   {[]string{"--log.level", "loud"}, []string{"--log.level"}},
		"argument":        {[]string{"now"}, []string{`"now"`, "aggregatord archive export --help"}},
		"several":         {[]string{"--dir", "x=" + dir}, []string{"--dir"}},
		"several_archive": {[]string{"--archive.dir", dir, "--dir", "x=" + dir}, []string{"--dir"}},
	} {
		t.Run(name, func(t *testing.T) {
			call(t, append([]string{"archive", "export", "--dir", dir}, tc.args...)...).oneLine(t, exitUsage, tc.says...)
			onlyFile(t, file, "x")
		})
	}
	call(t, "archive", "list", "--dir", dir, "[").oneLine(t, exitUsage, `"["`, "pattern")
	call(t, "archive", "fold").oneLine(t, exitUsage, `"fold"`, "aggregatord archive --help")
	call(t, "archive", "stat").oneLine(t, exitUsage, "--dir DIR")
	call(t, "archive", "stat", "--dir", "a="+dir, "--dir", "b="+full).oneLine(t, exitUsage, "one --dir only")
	contains(t, must(t, "archive"), "reset")

	none := sourceDir(t)
	for _, command := range [][]string{
		{"stat"},
		{"list"},
		{"verify"},
		{"export"},
		{"export", "--to", filepath.Join(full, "to")},
		{"reset", "--yes"},
	} {
		call(t, append(append([]string{"archive"}, command...), "--dir", none)...).oneLine(t, exitFailure, none, "there is no archive")
		call(t, append(append([]string{"archive"}, command...), "--dir", filepath.Join(none, "x"))...).oneLine(t, exitUsage,
			"no such file or directory")
	}
	onlyFile(t, file, "x")

	for _, command := range []string{"stat", "list", "verify", "export"} {
		var stderr lockedBuffer
		code := run(t.Context(), []string{"archive", command, "--dir", dir}, brokenWriter{}, &stderr)
		called{code: code, stderr: stderr.String()}.oneLine(t, exitFailure, "broken pipe")
	}
}

// TestArchiveReadOnly: what only looks changes nothing, beside one that has the archive open
// and without.
func TestArchiveReadOnly(t *testing.T) {
	dir, _ := archivedDir(t)
	for _, open := range []bool{false, true} {
		if open {
			hiddenHolder(t, dir)
		}
		before := states(t, dir)
		for _, args := range [][]string{
			{"stat"},
			{"stat", "--format", "json"},
			{"list"},
			{"verify"},
			{"export"},
			{"export", "--to", filepath.Join(t.TempDir(), "to")},
		} {
			if out := must(t, append(append([]string{"archive"}, args...), "--dir", dir)...); out == "" {
				t.Errorf("%q prints nothing", args)
			}
			unchanged(t, dir, before)
		}
	}
}

func TestArchiveReset(t *testing.T) {
	dir, want := archivedDir(t)
	staging := fold.NewPlace(dir)
	if err := staging.Take(); err != nil {
		t.Fatal(err)
	}
	// One staged file is in the archive, the other one not yet.
	for name, value := range map[string]float64{"counter_2.db": 2, "counter_9.db": 9} {
		bury(t, dir, name,
			entry{"hits", "hits_total", labels("path", "/"), 0.1 * value, 0},
			entry{"hits", "hits_total", labels("path", "żółć\n\"\\"), value, 0}, entry{"jobs", "jobs_total", nil, 1e15, 0})
	}
	for from, to := range map[string]string{"counter_2.db": "counter_2.db.run-2", "counter_9.db": "counter_9.db.run-9"} {
		if err := staging.Stage(from, to); err != nil {
			t.Fatal(err)
		}
	}
	before := states(t, dir)
	call(t, "archive", "reset", "--dir", dir).oneLine(t, exitUsage, "--yes")
	unchanged(t, dir, before)
	a := hiddenHolder(t, dir)
	before = states(t, dir)
	call(t, "archive", "reset", "--dir", dir, "--yes").oneLine(t, exitFailure, "archive is in use", strconv.Itoa(os.Getpid()),
		"stop it first")
	unchanged(t, dir, before)
	detach(t, a)
	// Nor while a daemon has the directory that had to let go of the archive.
	call(t, "archive", "reset", "--dir", dir, "--yes").oneLine(t, exitFailure, "is in use", strconv.Itoa(os.Getpid()), "stop it first")
	unchanged(t, dir, before)
	if err := staging.Close(); err != nil {
		t.Fatal(err)
	}

	out := must(t, "archive", "reset", "--dir", dir, "--yes")
	kept := regexp.MustCompile(`kept as (\S+/\.aggregatord\.archive\.reset-\d{8}T\d{6}Z)\n`).FindStringSubmatch(out)
	if kept == nil {
		t.Fatalf("it says %q", out)
	}
	contains(t, must(t, "archive", "stat", "--dir", dir), "contents   0 families, 0 series", "records    1 of",
		"staged     1 files to be folded, 1 folded", filepath.Base(kept[1]))
	got := parseText(t, must(t, "dump", "--dir", dir))
	maps.DeleteFunc(got, func(_ string, v float64) bool { return v == 0 }) // what the folded file has gained
	left := samples{`hits_total{path="/"}`: 0.9, `hits_total{path="żółć\n\"\\"}`: 9, "jobs_total": 1e15}
	for name, v := range left {
		if math.Abs(got[name]-v) > 1e-12 {
			t.Errorf("%s is %v, want %v", name, got[name], v)
		}
	}
	if len(got) != len(left) {
		t.Errorf("it has %v", got)
	}
	// What was reset is kept whole.
	old := sourceDir(t)
	if err := os.Rename(kept[1], filepath.Join(old, archive.FileName)); err != nil {
		t.Fatal(err)
	}
	if got := parseText(t, must(t, "archive", "export", "--dir", dir, "--archive.dir", old)); !maps.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	// A damaged one can be reset, too.
	if err := os.WriteFile(hiddenPath(dir), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "archive", "reset", "--dir", dir, "--yes")
	contains(t, must(t, "archive", "verify", "--dir", dir), "is whole")
}

// TestArchiveBesideDaemon: the commands beside a daemon that archives, and the whole way out
// of aggregatord.
func TestArchiveBesideDaemon(t *testing.T) {
	dir := sourceDir(t)
	for i := range 5 {
		n := strconv.Itoa(i)
		bury(t, dir, "counter_"+n+".db", entry{"hits", "hits_total", nil, float64(i), 0})
		bury(t, dir, "gauge_all_"+n+".db", entry{"temp", "temp", nil, float64(i), 0})
	}
	s := startServe(t, "--dir", dir, "--web.listen-address", "127.0.0.1:0")
	var st archiveStat
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if c := call(t, "archive", "stat", "--format", "json", "--dir", dir); c.code == 0 {
			if err := json.Unmarshal([]byte(c.stdout), &st); err != nil {
				t.Fatal(err)
			}
			if st.Files == 10 && len(st.Staged) == 0 && st.Records == 0 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not archived: %+v\n%s", st, s.stderr.String())
		}
	}
	if st.Families != 2 || st.Series != 6 || len(st.Kinds) != 2 || st.Kinds[1].Workers != 5 {
		t.Errorf("%+v", st)
	}
	contains(t, must(t, "archive", "list", "--dir", dir, "hits"), "hits_total  10\n")
	contains(t, must(t, "archive", "verify", "--dir", dir), "is whole")
	call(t, "archive", "reset", "--yes", "--dir", dir).oneLine(t, exitFailure, "archive is in use")
	_, metrics := s.get("/metrics")
	contains(t, metrics, "hits_total 10\n")
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	want := parseText(t, must(t, "dump", "--dir", dir))
	to := filepath.Join(sourceDir(t), "new")
	must(t, "archive", "export", "--dir", dir, "--to", to)
	files, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(files) > 0 {
		t.Errorf("left are %q, %v", files, err)
	}
	if got := parseText(t, must(t, "dump", "--dir", to)); !maps.Equal(got, want) || len(got) != 6 {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	must(t, "archive", "reset", "--yes", "--dir", dir)
	if got := parseText(t, must(t, "dump", "--dir", dir)); len(got) != 0 {
		t.Errorf("after the reset %v", slices.Sorted(maps.Keys(got)))
	}
}

// TestArchiveExportStaged: what is not in the archive yet is named.
func TestArchiveExportStaged(t *testing.T) {
	dir, _ := archivedDir(t)
	for _, name := range []string{"counter_2.db.run-2", "counter_3.db.run-3"} {
		if err := os.WriteFile(filepath.Join(dir, fold.FileName(name)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c := call(t, "archive", "export", "--dir", dir, "--to", filepath.Join(t.TempDir(), "to"))
	if c.code != 0 || strings.Count(c.stderr, "\n") != 1 {
		t.Errorf("%+v", c)
	}
	contains(t, c.stderr, "counter_3.db.run-3", "let a daemon run for a moment")
}

// TestArchiveFormer: the commands work on what an earlier version has left, which kept its archive
// in a directory of its own.
func TestArchiveFormer(t *testing.T) {
	dir := sourceDir(t)
	want := archived(t, lockHolder(t, filepath.Join(dir, archive.HiddenDir)))
	before := states(t, dir)
	contains(t, must(t, "archive", "stat", "--dir", dir), "10 families, 16 series")
	contains(t, must(t, "archive", "verify", "--dir", dir), "is whole")
	if got := parseText(t, must(t, "archive", "export", "--dir", dir)); !maps.Equal(got, want) {
		t.Errorf("got\n%v\nwant\n%v", got, want)
	}
	unchanged(t, dir, before)
	if out := must(t, "archive", "drop", "--dir", dir, "jobs", "--yes"); out != "1 series removed from the archive\n" {
		t.Errorf("%q", out)
	}
	delete(want, "jobs_total")
	if got := parseText(t, must(t, "dump", "--dir", dir)); !maps.Equal(got, want) {
		t.Errorf("after drop: got\n%v\nwant\n%v", got, want)
	}

	other := sourceDir(t)
	archived(t, lockHolder(t, filepath.Join(other, archive.HiddenDir)))
	contains(t, must(t, "archive", "reset", "--dir", other, "--yes"), hiddenPath(other)+".reset-")
	if got := parseText(t, must(t, "dump", "--dir", other)); len(got) != 0 {
		t.Errorf("after reset: %v", got)
	}
}
