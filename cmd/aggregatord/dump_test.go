package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"aggregatord/internal/exposition"
)

// samples is what an exposition says: each sample in PromQL's spelling, and its value.
type samples map[string]float64

func (s samples) add(t *testing.T, name string, labels map[string]string, value float64) {
	t.Helper()
	var pairs []string
	for _, label := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, fmt.Sprintf("%s=%q", label, labels[label]))
	}
	if len(pairs) > 0 {
		name += "{" + strings.Join(pairs, ",") + "}"
	}
	if _, ok := s[name]; ok {
		t.Errorf("%s appears twice", name)
	}
	s[name] = value
}

// with returns labels and one more.
func with(labels map[string]string, name, value string) map[string]string {
	all := maps.Clone(labels)
	if all == nil {
		all = map[string]string{}
	}
	all[name] = value
	return all
}

func boundText(bound float64) string { return strconv.FormatFloat(bound, 'g', -1, 64) }

// addFamily adds what a parser of Prometheus made of a family.
func (s samples) addFamily(t *testing.T, f *dto.MetricFamily) {
	t.Helper()
	name := f.GetName()
	for _, m := range f.GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		switch {
		case m.Counter != nil:
			s.add(t, name, labels, m.Counter.GetValue())
		case m.Gauge != nil:
			s.add(t, name, labels, m.Gauge.GetValue())
		case m.Untyped != nil:
			s.add(t, name, labels, m.Untyped.GetValue())
		case m.Summary != nil:
			s.add(t, name+"_sum", labels, m.Summary.GetSampleSum())
			s.add(t, name+"_count", labels, float64(m.Summary.GetSampleCount()))
		case m.Histogram != nil:
			for _, b := range m.Histogram.GetBucket() {
				s.add(t, name+"_bucket", with(labels, "le", boundText(b.GetUpperBound())), float64(b.GetCumulativeCount()))
			}
			if m.Histogram.SampleSum != nil {
				s.add(t, name+"_sum", labels, m.Histogram.GetSampleSum())
			}
			if m.Histogram.SampleCount != nil {
				s.add(t, name+"_count", labels, float64(m.Histogram.GetSampleCount()))
			}
		}
	}
}

// parseText reads text in which every family has the name of its samples.
func parseText(t *testing.T, body string) samples {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatalf("%v in\n%s", err, body)
	}
	s := samples{}
	for _, f := range families {
		s.addFamily(t, f)
	}
	return s
}

// parseOpenMetrics reads OpenMetrics, which ends in a line of its own and has families of
// counters without the suffix of their samples; for the rest it is like the older text.
func parseOpenMetrics(t *testing.T, body string) samples {
	t.Helper()
	body, ok := strings.CutSuffix(body, "# EOF\n")
	if !ok {
		t.Fatalf("no EOF at the end of\n%s", body)
	}
	var text strings.Builder
	for line := range strings.Lines(body) {
		if strings.HasPrefix(line, "# TYPE ") && strings.HasSuffix(line, " counter\n") {
			line = strings.Replace(line, " counter", "_total counter", 1)
		}
		text.WriteString(line)
	}
	return parseText(t, text.String())
}

func parseProtobuf(t *testing.T, body string) samples {
	t.Helper()
	s := samples{}
	decoder := expfmt.NewDecoder(strings.NewReader(body), expfmt.FmtProtoDelim)
	for {
		var f dto.MetricFamily
		err := decoder.Decode(&f)
		if errors.Is(err, io.EOF) {
			return s
		} else if err != nil {
			t.Fatal(err)
		}
		for _, m := range f.GetMetric() {
			// Protobuf leaves the last bucket out, as the count says the same.
			if h := m.Histogram; h != nil {
				h.Bucket = append(h.Bucket, &dto.Bucket{UpperBound: new(math.Inf(1)), CumulativeCount: h.SampleCount})
			}
		}
		s.addFamily(t, &f)
	}
}

func parseJSON(t *testing.T, body string) samples {
	t.Helper()
	var families []struct {
		Name, Help, Type string
		Metrics          []struct {
			Labels, Buckets   map[string]string
			Value, Count, Sum string
		}
	}
	d := json.NewDecoder(strings.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&families); err != nil {
		t.Fatalf("%v in\n%s", err, body)
	}
	s := samples{}
	add := func(name string, labels map[string]string, value string) {
		if value == "" {
			return
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatal(err)
		}
		s.add(t, name, labels, v)
	}
	for _, f := range families {
		for _, m := range f.Metrics {
			add(f.Name, m.Labels, m.Value)
			add(f.Name+"_sum", m.Labels, m.Sum)
			add(f.Name+"_count", m.Labels, m.Count)
			for le, n := range m.Buckets {
				bound, err := strconv.ParseFloat(le, 64)
				if err != nil {
					t.Fatal(err)
				}
				add(f.Name+"_bucket", with(m.Labels, "le", boundText(bound)), n)
			}
		}
	}
	return s
}

// parsers are by the names that --format takes.
var parsers = map[string]func(*testing.T, string) samples{
	"text":        parseText,
	"text-1.0.0":  parseText,
	"openmetrics": parseOpenMetrics,
	"protobuf":    parseProtobuf,
	"json":        parseJSON,
}

func labels(pairs ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = pairs[i+1]
	}
	return m
}

const oddLabel = "a \"quoted\" \\ path\nof two lines, crème"

// shop fills a directory with every type, of a worker that lives and of one that is dead,
// and returns what is to be served for it.
func shop(t *testing.T, dir string) samples {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("it takes Linux to tell who is dead")
	}
	bucket := func(le string, n float64) entry {
		return entry{family: "latency_seconds", sample: "latency_seconds_bucket", labels: labels("le", le), value: n}
	}
	write(t, dir, "counter_1.db",
		entry{family: "requests", sample: "requests_total", labels: labels("path", "/"), value: 3},
		entry{family: "requests", sample: "requests_total", labels: labels("path", oddLabel), value: 1},
	)
	bury(t, dir, "counter_2.db", entry{family: "requests", sample: "requests_total", labels: labels("path", "/"), value: 4.5})
	write(t, dir, "histogram_1.db", bucket("0.5", 2), bucket("2.0", 1), bucket("+Inf", 1),
		entry{family: "latency_seconds", sample: "latency_seconds_sum", value: 9.25})
	bury(t, dir, "histogram_2.db", bucket("0.5", 1), bucket("2.0", 0), bucket("+Inf", 1),
		entry{family: "latency_seconds", sample: "latency_seconds_sum", value: 7})
	write(t, dir, "summary_1.db",
		entry{family: "size_bytes", sample: "size_bytes_count", value: 2},
		entry{family: "size_bytes", sample: "size_bytes_sum", value: 300},
	)
	write(t, dir, "gauge_livesum_1.db", entry{family: "busy", sample: "busy", value: 2})
	bury(t, dir, "gauge_livesum_2.db", entry{family: "busy", sample: "busy", value: 40})
	write(t, dir, "gauge_all_1.db", entry{family: "memory_bytes", sample: "memory_bytes", value: 1e9})
	write(t, dir, "gauge_max_1.db", entry{family: "peak", sample: "peak", value: -1})
	bury(t, dir, "gauge_max_2.db", entry{family: "peak", sample: "peak", value: -2})
	return samples{
		`requests_total{path="/"}`:                       7.5,
		fmt.Sprintf("requests_total{path=%q}", oddLabel): 1,
		`latency_seconds_bucket{le="0.5"}`:               3,
		`latency_seconds_bucket{le="2"}`:                 4,
		`latency_seconds_bucket{le="+Inf"}`:              6,
		`latency_seconds_sum`:                            16.25,
		`latency_seconds_count`:                          6,
		`size_bytes_count`:                               2,
		`size_bytes_sum`:                                 300,
		`busy`:                                           2,
		`memory_bytes{pid="1"}`:                          1e9,
		`peak`:                                           -1,
	}
}

// TestDump: every format can be read by its own parser and says the same.
func TestDump(t *testing.T) {
	dir := sourceDir(t)
	want := shop(t, dir)
	if got := slices.Sorted(maps.Keys(parsers)); !slices.Equal(got, slices.Sorted(slices.Values(exposition.FormatNames()))) {
		t.Fatalf("there are other formats than those tested here, %q", got)
	}
	for format, parse := range parsers {
		t.Run(format, func(t *testing.T) {
			out := must(t, "dump", "--dir", dir, "--format", format)
			if got := parse(t, out); !maps.Equal(got, want) {
				t.Errorf("got\n%v\nwant\n%v", got, want)
			}
			if again := must(t, "dump", "--dir", dir, "--format", format); again != out {
				t.Errorf("the second time it is\n%s\nafter\n%s", again, out)
			}
		})
	}
	if must(t, "dump", "--dir", dir) != must(t, "dump", "--dir", dir, "--format", "text") {
		t.Error("text is not the default format")
	}
}

// TestDumpUnknownNames: a name that there is not is a mistake, not an empty answer.
func TestDumpUnknownNames(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	call(t, "dump", "--dir", dir, "--name", "request_total").oneLine(t, exitFailure,
		"no metric named request_total; did you mean requests_total?")
	call(t, "dump", "--dir", dir, "--name", "busy", "--name", "nobody").oneLine(t, exitFailure, "no metric named nobody")
}

// TestDumpNames selects with --name.
func TestDumpNames(t *testing.T) {
	dir := sourceDir(t)
	want := shop(t, dir)
	for name, tc := range map[string]struct {
		args []string
		keep []string // beginnings of the samples that stay
	}{
		"counter":    {[]string{"--name", "requests_total"}, []string{"requests_total"}},
		"family":     {[]string{"--name", "requests"}, []string{"requests_total"}},
		"histogram":  {[]string{"--name", "latency_seconds"}, []string{"latency_seconds"}},
		"one_sample": {[]string{"--name", "latency_seconds_sum"}, []string{"latency_seconds_sum"}},
		"several":    {[]string{"--name", "busy", "--name", "peak"}, []string{"busy", "peak"}},
	} {
		t.Run(name, func(t *testing.T) {
			keep := samples{}
			for sample, value := range want {
				if slices.ContainsFunc(tc.keep, func(k string) bool { return strings.HasPrefix(sample, k) }) {
					keep[sample] = value
				}
			}
			got := parseText(t, must(t, append([]string{"dump", "--dir", dir}, tc.args...)...))
			if !maps.Equal(got, keep) {
				t.Errorf("got %v, want %v", got, keep)
			}
		})
	}
}

// TestDumpEmpty: a directory without source files is no mistake.
func TestDumpEmpty(t *testing.T) {
	if got := must(t, "dump", "--dir", sourceDir(t)); got != "" {
		t.Errorf("got %q", got)
	}
}

// TestDumpDamagedNeighbour: the file that cannot be read is named, the others are served.
func TestDumpDamagedNeighbour(t *testing.T) {
	dir := sourceDir(t)
	want := shop(t, dir)
	damaged := filepath.Join(dir, "counter_3.db")
	if err := os.WriteFile(damaged, bytes.Repeat([]byte{0xff}, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"console", "json"} {
		c := call(t, "dump", "--dir", dir, "--log.format", format)
		if c.code != 0 || !strings.Contains(c.stderr, damaged) || !strings.Contains(c.stderr, "used_negative") {
			t.Errorf("exit code %d, standard error %q", c.code, c.stderr)
		}
		if strings.Count(c.stderr, "\n") != 1 {
			t.Errorf("more than one line: %q", c.stderr)
		}
		if got := parseText(t, c.stdout); !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	if c := call(t, "dump", "--dir", dir, "--log.level", "error"); c.stderr != "" {
		t.Errorf("a warning at level error: %q", c.stderr)
	}
}

// fileState is all of a file that a reader must leave alone.
type fileState struct {
	mode    fs.FileMode
	size    int64
	mtime   time.Time
	content string
	info    fs.FileInfo // for os.SameFile
}

// states returns the state of a directory and of everything in it. What goes away while it
// looks, as a daemon may do with what is its own, is not part of it.
func states(t *testing.T, dir string) map[string]fileState {
	t.Helper()
	all := map[string]fileState{}
	look := func(path string, d fs.DirEntry) error {
		info, err := d.Info()
		if err != nil {
			return err
		}
		s := fileState{mode: info.Mode(), size: info.Size(), mtime: info.ModTime(), info: info}
		switch {
		case info.Mode().IsRegular():
			var b []byte
			b, err = os.ReadFile(path)
			s.content = string(b)
		case info.Mode()&fs.ModeSymlink != 0:
			s.content, err = os.Readlink(path)
		}
		if err == nil {
			all[path] = s
		}
		return err
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = look(path, d)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) == 0 {
		t.Fatalf("%s is gone", dir)
	}
	return all
}

// TestReadOnly: the commands that read leave the directory byte for byte as it was, with
// files that a worker holds, files of the dead, damaged ones and others.
func TestReadOnly(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	for name, content := range map[string]string{
		"counter_3.db":         "",
		"counter_4.db":         "short",
		"histogram_5.db":       strings.Repeat("\xff", 4096),
		"gauge_sideways_1.db":  strings.Repeat("\x00", 64),
		"notes.txt":            "not ours",
		"counter.db":           "an archive of somebody else",
		".hidden/counter_9.db": "x",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("counter_1.db", filepath.Join(dir, "counter_7.db")); err != nil {
		t.Fatal(err)
	}
	// Long ago, so that whatever is touched shows, however coarse the clock of the system.
	for path, s := range states(t, dir) {
		if s.mode&fs.ModeSymlink == 0 {
			if err := os.Chtimes(path, time.Time{}, time.Unix(1_000_000_000, 123_000_000)); err != nil {
				t.Fatal(err)
			}
		}
	}
	before := states(t, dir)
	files, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(files) < 10 {
		t.Fatalf("%q, %v", files, err)
	}
	output := filepath.Join(t.TempDir(), "out.prom")
	for _, args := range [][]string{
		{"dump", "--dir", dir},
		{"dump", "--dir", dir, "--format", "text-1.0.0", "--output", output},
		{"dump", "--dir", dir, "--format", "openmetrics", "--name", "busy"},
		{"dump", "--dir", dir, "--format", "protobuf"},
		{"dump", "--dir", dir, "--format", "json"},
		append([]string{"inspect"}, files...),
		append([]string{"inspect", "--json"}, files...),
	} {
		if c := call(t, args...); c.stdout == "" && args[len(args)-1] != output {
			t.Errorf("%q prints nothing: %s", args, c.stderr)
		}
		unchanged(t, dir, before)
	}
}

// unchanged checks that a directory is as it was.
func unchanged(t *testing.T, dir string, before map[string]fileState) {
	t.Helper()
	after := states(t, dir)
	for path, was := range before {
		is, ok := after[path]
		if !ok {
			t.Errorf("%s was removed", path)
			continue
		}
		if !os.SameFile(was.info, is.info) {
			t.Errorf("%s was replaced", path)
		}
		was.info, is.info = nil, nil
		if was != is {
			t.Errorf("%s was changed: mode %v to %v, %d bytes to %d, modified %v, then %v, same content: %t",
				path, was.mode, is.mode, was.size, is.size, was.mtime, is.mtime, was.content == is.content)
		}
	}
	for path := range after {
		if _, ok := before[path]; !ok {
			t.Errorf("%s is new", path)
		}
	}
}

// TestReadOnlyArchive: dump shows what a daemon shows, beside it and after it, with the
// dead in its archive, and leaves that as it was, too.
func TestReadOnlyArchive(t *testing.T) {
	dir := sourceDir(t)
	want := shop(t, dir)
	// The directory is looked at until the daemon is through with it: its hidden files and
	// those of the living are all there is, and nothing has moved for a while.
	settled := func(s *served) map[string]fileState {
		for deadline, last, since := time.Now().Add(20*time.Second), "", time.Now(); ; time.Sleep(20 * time.Millisecond) {
			now := states(t, dir)
			var names strings.Builder
			staged := false
			for _, path := range slices.Sorted(maps.Keys(now)) {
				fmt.Fprintln(&names, path, now[path].mtime)
				staged = staged || strings.Contains(path, "_2.db")
			}
			if staged || names.String() != last {
				last, since = names.String(), time.Now()
			}
			if time.Since(since) > 200*time.Millisecond {
				return now
			}
			if time.Now().After(deadline) {
				t.Fatalf("the dead are not archived: %s\n%s", names.String(), s.stderr.String())
			}
		}
	}
	dumped := func(when string, before map[string]fileState) {
		for format, parse := range parsers {
			if got := parse(t, must(t, "dump", "--dir", dir, "--format", format)); !maps.Equal(got, want) {
				t.Errorf("%s, %s: got\n%v\nwant\n%v", when, format, got, want)
			}
		}
		unchanged(t, dir, before)
	}
	s := startServe(t, "--dir", dir, "--web.listen-address", "127.0.0.1:0")
	dumped("beside the daemon", settled(s))
	if code := s.end(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	dumped("after it", settled(s))
}

// onlyFile checks that a directory holds one file, with this content and mode.
func onlyFile(t *testing.T, path, content string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			t.Errorf("there is also %s", e.Name())
		}
	}
	got, err := os.ReadFile(path)
	if err != nil || string(got) != content {
		t.Errorf("%s holds %d bytes, want %d (%v)", path, len(got), len(content), err)
	}
}

// TestDumpOutput writes a file, for everybody to read, in place of the one that was there.
func TestDumpOutput(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	want := must(t, "dump", "--dir", dir)
	for name, prepare := range map[string]func(path string) error{
		"new":     func(string) error { return nil },
		"old":     func(path string) error { return os.WriteFile(path, []byte(strings.Repeat("old\n", 10_000)), 0o600) },
		"symlink": func(path string) error { return os.Symlink("/nowhere", path) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "shop.prom")
			if err := prepare(path); err != nil {
				t.Fatal(err)
			}
			if out := must(t, "dump", "--dir", dir, "-o", path); out != "" {
				t.Errorf("it prints %q", out)
			}
			onlyFile(t, path, want)
			if info, err := os.Lstat(path); err != nil || info.Mode() != 0o644 {
				t.Errorf("mode %v, %v", info.Mode(), err)
			}
		})
	}
}

// TestDumpOutputDevice: as root, the machine would be without its /dev/null.
func TestDumpOutputDevice(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	want := must(t, "dump", "--dir", dir)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	read := make(chan string, 1)
	go func() { // ends when dump has closed the FIFO
		data, err := os.ReadFile(path)
		if err != nil {
			t.Error(err)
		}
		read <- string(data)
	}()
	must(t, "dump", "--dir", dir, "--output", path)
	if info, err := os.Lstat(path); err != nil || info.Mode().Type() != os.ModeNamedPipe {
		t.Fatalf("it is no FIFO any more: %v, %v", info, err)
	}
	if got := <-read; got != want {
		t.Errorf("got %q", got)
	}
}

// TestDumpOutputAtomic: who reads the file while it is replaced gets the old or the new
// content, and always all of it.
func TestDumpOutputAtomic(t *testing.T) {
	big, small := sourceDir(t), sourceDir(t)
	var entries []entry
	for i := range 2000 {
		entries = append(entries, entry{family: "c", sample: "c_total", labels: labels("i", strconv.Itoa(i)), value: float64(i)})
	}
	bury(t, big, "counter_1.db", entries...)
	bury(t, small, "counter_1.db", entries[:3]...)
	bigText, smallText := must(t, "dump", "--dir", big), must(t, "dump", "--dir", small)

	path := filepath.Join(t.TempDir(), "c.prom")
	must(t, "dump", "--dir", small, "--output", path)
	done := make(chan struct{})
	type counts struct{ big, small, other int }
	result := make(chan counts)
	// Reads until done is closed.
	go func() {
		var n counts
		for {
			switch got, err := os.ReadFile(path); {
			case err == nil && string(got) == bigText:
				n.big++
			case err == nil && string(got) == smallText:
				n.small++
			default:
				n.other++
			}
			select {
			case <-done:
				result <- n
				return
			default:
			}
		}
	}()
	for range 40 {
		must(t, "dump", "--dir", big, "--output", path)
		must(t, "dump", "--dir", small, "--output", path)
	}
	close(done)
	n := <-result
	if n.other > 0 || n.big == 0 || n.small == 0 {
		t.Errorf("read the big one %d times, the small one %d times and something else %d times", n.big, n.small, n.other)
	}
	onlyFile(t, path, smallText)
}

// TestDumpOutputFails: nothing is left of a file that could not be written.
func TestDumpOutputFails(t *testing.T) {
	dir := sourceDir(t)
	shop(t, dir)
	t.Run("missing_directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "missing", "x.prom")
		call(t, "dump", "--dir", dir, "--output", path).oneLine(t, exitFailure, path, "no such file or directory")
	})
	t.Run("directory_in_its_place", func(t *testing.T) {
		parent := t.TempDir()
		path := filepath.Join(parent, "x.prom")
		if err := os.MkdirAll(filepath.Join(path, "sub"), 0o700); err != nil {
			t.Fatal(err)
		}
		call(t, "dump", "--dir", dir, "--output", path).oneLine(t, exitFailure, path)
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
			t.Errorf("in the directory: %v, %v", entries, err)
		}
	})
	t.Run("nothing_is_written_of_a_missing_source", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "x.prom")
		if err := os.WriteFile(path, []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
		call(t, "dump", "--dir", filepath.Join(dir, "missing"), "--output", path).oneLine(t, exitUsage, "missing")
		onlyFile(t, path, "old")
	})
}

// TestDumpDiscovered: what is found without being named is printed with its labels, and a command
// that finds nothing says where it looked.
func TestDumpDiscovered(t *testing.T) {
	root := sourceDir(t)
	volume := filepath.Join(root, "pods", "11111111-aaaa", "volumes", "kubernetes.io~empty-dir", "metrics")
	for _, dir := range []string{volume, filepath.Join(root, "logs", "prod_web-0_11111111-aaaa")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := filepath.Join(root, "aggregatord.yml")
	text := fmt.Sprintf("discovery: [{kubelet: {root: %s, logs: %s/logs}}]\n", root, root)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	call(t, "dump", "--config.file", config).oneLine(t, exitUsage, "no directory is found: No emptyDir volume of the 1 pods below "+root)
	write(t, volume, "counter_1.db", entry{"hits", "hits_total", nil, 7, 0})
	want := samples{`hits_total{namespace="prod",pod="web-0",pool="prod_web-0_metrics_11111111",uid="11111111-aaaa",volume="metrics"}`: 7}
	if got := parseText(t, must(t, "dump", "--config.file", config)); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	// A directory that is named is the only one.
	if got := parseText(t, must(t, "dump", "--config.file", config, "--dir", volume)); !maps.Equal(got, samples{"hits_total": 7}) {
		t.Errorf("got %v", got)
	}
}
