package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// entry is one record of a source file built by a test.
type entry struct {
	key   string
	value float64
}

// counterKey spells the key that a worker writes for a counter without labels.
func counterKey(family string) string {
	return fmt.Sprintf(`[%q, %q, {}, "Help."]`, family, family+"_total")
}

// loadDir makes a directory with the file of one worker that lives until the test ends, with so many
// series of load_total, each 3.
func loadDir(t *testing.T, series int) (dir string) {
	t.Helper()
	entries := make([]entry, series)
	for i := range entries {
		entries[i] = entry{fmt.Sprintf(`["load", "load_total", {"path": "/order/%d"}, "Help."]`, i), 3}
	}
	dir = sourceDir(t)
	worker, err := os.Create(filepath.Join(dir, "counter_1.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { worker.Close() })
	if _, err := worker.Write(sourceFile(1<<20, entries...)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// sourceFile lays out a source file as prometheus_client does to 0.17 (mmap_dict.py): used
// bytes, padding, then the entries, followed by zeros to the size.
func sourceFile(size int, entries ...entry) []byte {
	b := make([]byte, 8, size)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(e.key)))
		b = append(b, e.key...)
		b = append(b, strings.Repeat(" ", 8-(len(e.key)+4)%8)...)
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(e.value))
	}
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	return b[:size]
}

// put32 returns a copy of b with a number at an offset.
func put32(b []byte, offset int, n int32) []byte {
	b = append([]byte(nil), b...)
	binary.LittleEndian.PutUint32(b[offset:], uint32(n))
	return b
}

// good is a worker whose series must stay right beside any damage.
var good = program{
	Metrics: []declared{
		{Name: "good_total", Type: "counter", Help: "Count.", Labels: []string{"l"}},
		{Name: "good_seconds", Type: "histogram", Help: "Time.", Buckets: []string{"1", "2"}},
		{Name: "good_level", Type: "gauge", Help: "Level.", Mode: "livemax"},
	},
	Workers: []worker{{ID: "good", Steps: []step{
		{Metric: "good_total", Labels: []string{"x"}, Op: "inc", Value: "5"},
		{Metric: "good_seconds", Op: "observe", Value: "1.5"},
		{Metric: "good_level", Op: "set", Value: "7"},
	}}},
}

// checkGood fails unless the good worker's series are served, and right.
func checkGood(v view) error {
	for series, want := range map[string][2]any{
		`good_total{l="x"}`:              {"good", 5.0},
		`good_seconds_bucket{le="1"}`:    {"good_seconds", 0.0},
		`good_seconds_bucket{le="2"}`:    {"good_seconds", 1.0},
		`good_seconds_bucket{le="+Inf"}`: {"good_seconds", 1.0},
		"good_seconds_sum":               {"good_seconds", 1.5},
		"good_level":                     {"good_level", 7.0},
	} {
		if got := v.value(want[0].(string), series); got != want[1].(float64) {
			return fmt.Errorf("%s is %v, want %v", series, got, want[1])
		}
	}
	return nil
}

// ownTotal adds up a counter of the daemon over the series that carry a label.
func ownTotal(v view, family, label, value string) float64 {
	sum := 0.0
	if f := v[family]; f != nil {
		for series, x := range f.Samples {
			if strings.Contains(series, fmt.Sprintf("%s=%q", label, value)) {
				sum += x
			}
		}
	}
	return sum
}

// TestDamagedFiles puts every kind of damage beside a good worker: half of it is there
// when the daemon starts, the other half, under other names, appears under its eyes.
func TestDamagedFiles(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	startWorkers(t, dir, good)

	whole := sourceFile(4096, entry{counterKey("damaged_a"), 1}, entry{counterKey("damaged_b"), 2}, entry{counterKey("damaged_c"), 3})
	used := int(binary.LittleEndian.Uint32(whole))
	second := 8 + 4 + len(counterKey("damaged_a")) + 8 - (4+len(counterKey("damaged_a")))%8 + 8
	n := seed(t)
	r := rand.New(rand.NewPCG(n, 1))
	random := make([]byte, 4096)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	// Random entries behind a header that looks right.
	likely := put32(random, 0, 4096)
	badUTF8 := sourceFile(4096, entry{"[\"a\xff\", \"a\xff_total\", {}, \"\"]", 1})
	target := filepath.Join(t.TempDir(), "counter_elsewhere.db")
	if err := os.WriteFile(target, sourceFile(4096, entry{counterKey("elsewhere"), 9}), 0o644); err != nil {
		t.Fatal(err)
	}
	file := func(b []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, b, 0o644) }
	}
	type damage struct {
		name string
		make func(path string) error
		// reason is what the failure is counted as; empty for what is no failure, "*" where
		// it depends on the random bytes. entry says that single entries are
		// left out, not the file.
		reason string
		entry  bool
	}
	damages := []damage{
		{"empty", file(nil), "", false},
		{"just-created", file(make([]byte, 4096)), "", false},
		{"initialised", file(sourceFile(4096)), "", false},
		{"short-header", file([]byte{24, 0, 0}), "short_header", false},
		{"truncated", file(whole[:used-20]), "used_past_end", false},
		{"used-negative", file(put32(whole, 0, -8)), "used_negative", false},
		{"used-huge", file(put32(whole, 0, math.MaxInt32-7)), "used_past_end", false},
		{"used-past-end", file(put32(whole, 0, 4104)), "used_past_end", false},
		{"used-odd", file(put32(whole, 0, int32(used-3))), "used_misaligned", false},
		{"key-length-zero", file(put32(whole, second, 0)), "bad_key_length", false},
		{"key-length-negative", file(put32(whole, second, -1)), "bad_key_length", false},
		{"key-length-huge", file(put32(whole, second, math.MaxInt32)), "bad_key_length", false},
		{"key-length-short", file(put32(whole, second, int32(len(counterKey("damaged_b"))-9))), "*", false},
		{"bad-json", file(sourceFile(4096, entry{`["a", "a_total", {"l": }, ""]`, 1})), "bad_key", true},
		{"json-shape", file(sourceFile(4096, entry{`[{"a": 1}, 2]`, 1})), "bad_key", true},
		{"bad-utf-8", file(badUTF8), "bad_key", true},
		{"random-bytes", file(random), "*", false},
		{"random-entries", file(likely), "*", false},
		{"symlink", func(path string) error { return os.Symlink(target, path) }, "not_regular", false},
		{"fifo", func(path string) error { return syscall.Mkfifo(path, 0o644) }, "not_regular", false},
		{"directory", func(path string) error { return os.Mkdir(path, 0o755) }, "not_regular", false},
		{"socket", func(path string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		}, "not_regular", false},
	}
	plant := func(prefix string) {
		t.Helper()
		for _, c := range damages {
			if err := c.make(filepath.Join(dir, prefix+c.name+".db")); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
	}
	// An unknown gauge mode is found out by the name alone.
	if err := os.WriteFile(filepath.Join(dir, "gauge_average_1.db"), whole, 0o644); err != nil {
		t.Fatal(err)
	}
	reasons := map[string]float64{"unknown_mode": 1}
	entries := map[string]float64{}
	for _, c := range damages {
		switch {
		case c.reason == "" || c.reason == "*":
		case c.entry:
			entries[c.reason]++
		default:
			reasons[c.reason]++
		}
	}

	check := func(when string, d *daemon, prefix string, times float64) {
		t.Helper()
		v := d.mustText()
		if err := checkGood(v); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if _, err := d.openMetrics(); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if v["elsewhere"] != nil {
			t.Errorf("%s: a symlink was followed", when)
		}
		for reason, n := range reasons {
			if reason != "unknown_mode" {
				n *= times
			}
			if got := ownTotal(v, "aggregatord_file_errors", "reason", reason); got < n {
				t.Errorf("%s: %v files failed as %s, want %v", when, got, reason, n)
			}
		}
		for reason, n := range entries {
			if got := ownTotal(v, "aggregatord_entry_errors", "reason", reason); got < n*times {
				t.Errorf("%s: %v entries left out as %s, want %v", when, got, reason, n*times)
			}
		}
		for _, c := range damages {
			name := prefix + c.name + ".db"
			if named := d.logNames("/" + name); named != (c.reason != "") {
				t.Errorf("%s: the log names %s: %v", when, name, named)
			}
		}
	}
	plant("counter_early-")
	d := serve(t, "--dir", dir)
	check("at start", d, "counter_early-", 1)
	plant("histogram_late-")
	d.mustText()
	check("while running", d, "histogram_late-", 2)
	// What failed is said once, not at every scrape.
	before := len(d.logs())
	for range 5 {
		d.mustText()
	}
	for _, entry := range d.logs()[before:] {
		if entry["level"] == "warn" || entry["level"] == "error" {
			t.Errorf("a scrape of what has failed before logs %v", entry)
		}
	}
	// Nobody can write to these files any more. Those of which everything was read are
	// archived and removed; what could not be read is kept, for somebody to look at: in the
	// directory, or in the staging if that is where the damage was found.
	eventually(t, patience, func() error {
		files, err := sourceFiles(dir)
		if err != nil {
			return err
		}
		left := map[string]bool{}
		for _, file := range files {
			left[baseOf(file)] = true
		}
		for _, c := range damages {
			for _, prefix := range []string{"counter_early-", "histogram_late-"} {
				name, failed := prefix+c.name+".db", c.reason != "" && !c.entry
				if c.reason != "*" && left[name] != failed {
					return fmt.Errorf("%s is still there: %v, want %v", name, left[name], failed)
				}
			}
		}
		return nil
	})
	if err := checkGood(d.mustText()); err != nil {
		t.Error(err)
	}
	if !d.logNames("gauge_average_1.db") {
		t.Error("the log does not name the file with an unknown mode")
	}
	d.stop()
}

// TestFileChangesUnderReader does to files that the daemon has mapped what no worker does.
// Counters must not fall: what was read of a file counts on.
func TestFileChangesUnderReader(t *testing.T) {
	t.Parallel()
	bothModes(t, changeFiles)
}

func changeFiles(t *testing.T, archived bool) {
	// No shadow: a file has to be gone when its last name in the directory is.
	p := &parity{t: t, archived: archived, dir: sourceDir(t)}
	dir := p.dir
	startWorkers(t, dir, good)
	d := p.serve()
	path := func(id string) string { return filepath.Join(dir, "counter_"+id+".db") }
	family := func(id string) string { return strings.ReplaceAll(id, "-", "_") }
	// Several pages, so that shrinking to one leaves the reader with a mapping that faults.
	fill := make([]entry, 500)
	for i := range fill {
		fill[i] = entry{counterKey(fmt.Sprintf("fill_%d", i)), 1}
	}
	// write leaves the file open for writing until the function it returns is called: a
	// file in use, as far as the daemon can know.
	write := func(id string, value float64) (release func()) {
		t.Helper()
		f, err := os.Create(path(id))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		entries := append(append([]entry{}, fill...), entry{counterKey(family(id)), value})
		if _, err := f.Write(sourceFile(65536, entries...)); err != nil {
			t.Fatal(err)
		}
		return func() { f.Close() }
	}
	expect := func(when, id string, want float64) {
		t.Helper()
		v := d.mustText()
		if got := v.value(family(id), family(id)+"_total"); got != want {
			t.Errorf("%s: %s_total is %v, want %v", when, family(id), got, want)
		}
		if err := checkGood(v); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}

	sizes := []struct {
		id   string
		size int64
	}{{"shrunk-to-nothing", 0}, {"shrunk-to-a-page", 4096}, {"shrunk-within-a-page", 4100}}
	for _, c := range sizes {
		write(c.id, 11)
		expect("written", c.id, 11)
		if err := os.Truncate(path(c.id), c.size); err != nil {
			t.Fatal(err)
		}
		expect("truncated", c.id, 11)
	}
	if got := ownTotal(d.mustText(), "aggregatord_file_errors", "reason", "shrunk"); got != float64(len(sizes)) {
		t.Errorf("%v files counted as shrunk, want %d", got, len(sizes))
	}
	for _, c := range sizes {
		if !d.logNames(path(c.id)) {
			t.Errorf("the log does not name %s", path(c.id))
		}
	}
	// The same to a file whose process has ended: its values are known for good. The daemon
	// may have archived the file by now, under whatever name.
	mayBeGone := func(err error) {
		t.Helper()
		if archived && errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	write("shrunk-when-dead", 12)()
	expect("written", "shrunk-when-dead", 12)
	mayBeGone(os.Truncate(path("shrunk-when-dead"), 8))
	expect("truncated", "shrunk-when-dead", 12)

	// Replaced by another inode: the old one's values count on, as those of any counter
	// file that somebody else removed, and the new one's are added, whether its
	// process is still there or not.
	for _, alive := range []bool{true, false} {
		id := fmt.Sprintf("replaced-alive-%v", alive)
		release := write(id, 5)
		expect("written", id, 5)
		temp := filepath.Join(dir, "temporary")
		if err := os.WriteFile(temp, sourceFile(65536, entry{counterKey(family(id)), 3}), 0o644); err != nil {
			t.Fatal(err)
		}
		if !alive {
			release()
		}
		if err := os.Rename(temp, path(id)); err != nil {
			t.Fatal(err)
		}
		expect("replaced", id, 8)
		release()
		expect("replaced and released", id, 8)

		id = fmt.Sprintf("removed-alive-%v", alive)
		release = write(id, 6)
		expect("written", id, 6)
		if !alive {
			release()
		}
		if alive {
			if err := os.Remove(path(id)); err != nil {
				t.Fatal(err)
			}
		} else {
			mayBeGone(os.Remove(path(id)))
		}
		expect("removed", id, 6)
		release()
		expect("removed and released", id, 6)
	}
	d.stop()
}

// TestShrinkingWhileScraped shrinks files and writes them again while the daemon reads them,
// so that now and then a read faults half way. It must cost at most a file's news: what was
// read of it counts on, and the others' series stay right.
func TestShrinkingWhileScraped(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	startWorkers(t, dir, good)
	// A file that was found shrunk is not trusted again, so each gives one chance of a fault.
	const files, each = 16, 300
	entries := make([]entry, each)
	for i := range entries {
		entries[i] = entry{fmt.Sprintf(`["shrinking", "shrinking_total", {"i": "%d"}, "Help."]`, i), 1}
	}
	whole := sourceFile(1<<16, entries...)
	var open []*os.File
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("counter_shrinking-%d.db", i)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(whole, 0); err != nil {
			t.Fatal(err)
		}
		open = append(open, f)
	}
	d := serve(t, "--dir", dir)
	v := d.mustText()
	if got := v.total("shrinking", "shrinking_total"); got != files*each {
		t.Fatalf("before: %v, want %d", got, files*each)
	}
	stop, stopped := make(chan struct{}), make(chan error, 1)
	// Ends when stop is closed, below.
	go func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			f := open[i%files]
			if err := f.Truncate(4096); err != nil {
				stopped <- err
				return
			}
			if _, err := f.WriteAt(whole, 0); err != nil {
				stopped <- err
				return
			}
		}
	}()
	for range 50 {
		after := d.mustText()
		if err := errors.Join(checkGood(after), monotone(v.workers(), after)); err != nil {
			t.Error(err)
			break
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	v = d.mustText()
	if got := v.total("shrinking", "shrinking_total"); got != files*each {
		t.Errorf("after: %v, want %d", got, files*each)
	}
	t.Logf("%v of %d files were found shrunk", ownTotal(v, "aggregatord_file_errors", "reason", "shrunk"), files)
	d.stop()
}

// TestNoPermission runs the daemon as a user who owns nothing here: without the right to
// one file, and without the right to take leases on any.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := sourceDir(t)
	startWorkers(t, dir, good)
	secret := filepath.Join(dir, "counter_secret.db")
	if err := os.WriteFile(secret, sourceFile(4096, entry{counterKey("secret"), 1}), 0o600); err != nil {
		t.Fatal(err)
	}
	d := serveAs(t, &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, "--dir", dir)
	v := d.mustText()
	if err := checkGood(v); err != nil {
		t.Error(err)
	}
	if v["secret"] != nil {
		t.Error("a file is served that the daemon may not read")
	}
	if got := ownTotal(v, "aggregatord_file_errors", "reason", "permission"); got != 1 {
		t.Errorf("%v files failed for lack of permission, want 1", got)
	}
	if !d.logNames(secret) {
		t.Errorf("the log does not name %s", secret)
	}
	// It is tried again when its mode has changed, though nothing tells.
	if err := os.Chmod(secret, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, func() error {
		if got := d.mustText().value("secret", "secret_total"); got != 1 {
			return fmt.Errorf("secret_total is %v, want 1", got)
		}
		return nil
	})
	d.stop()
}

// TestForeignFiles hides a worker's files among ten thousand that are none.
func TestForeignFiles(t *testing.T) {
	t.Parallel()
	dir := sourceDir(t)
	const foreign = 10_000
	names := []string{
		"notes_%d.db", "%d", "counter.%d.db", "COUNTER_%d.db", "gauge_%d.txt", ".hidden_%d", "counter_%d.db.tmp",
		"histogram%d.db",
	}
	for i := range foreign {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf(names[i%len(names)], i)), []byte("foreign"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	startWorkers(t, dir, good)
	d := serve(t, "--dir", dir)
	begin := time.Now()
	v := d.mustText()
	t.Logf("first scrape: %v", time.Since(begin))
	if err := checkGood(v); err != nil {
		t.Error(err)
	}
	if got := ownTotal(v, "aggregatord_files", "state", "foreign"); got != foreign {
		t.Errorf("%v foreign files, want %d", got, foreign)
	}
	for _, reason := range []string{"foreign", "bad_key", "short_header", "io"} {
		if got := ownTotal(v, "aggregatord_file_errors", "reason", reason); got != 0 {
			t.Errorf("%v foreign files failed as %s: they are none of ours", got, reason)
		}
	}
	d.stop()
}
