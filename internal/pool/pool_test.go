package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// process is a process of the test's own that writes one source file.
type process struct {
	t *testing.T
	w *store.Writer
}

// write opens the source file dir/base for writing, as a worker holds it.
func write(t *testing.T, dir, base string) *process {
	t.Helper()
	w, err := store.OpenWriter(filepath.Join(dir, base), store.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &process{t, w}
}

// set stores a value under a sample name, of the family it tells, and labels as name, value.
func (w *process) set(sample string, value float64, labels ...string) *process {
	w.t.Helper()
	return w.setAt(sample, value, 0, labels...)
}

// setAt is set with a timestamp.
func (w *process) setAt(sample string, value, stamp float64, labels ...string) *process {
	w.t.Helper()
	family := sample
	for _, suffix := range []string{"_total", "_sum", "_count"} {
		family = strings.TrimSuffix(family, suffix)
	}
	k := metric.Key{Family: family, Help: "Help.", Series: metric.Series{Sample: sample}}
	for i := 0; i < len(labels); i += 2 {
		k.Series.Labels = append(k.Series.Labels, metric.Label{Name: labels[i], Value: labels[i+1]})
	}
	slot, err := w.w.Slot(store.AppendKey(nil, k))
	if err != nil {
		w.t.Fatal(err)
	}
	w.w.Set(slot, value, stamp)
	return w
}

// die ends the process: nobody has the file open any more.
func (w *process) die() {
	w.t.Helper()
	if err := w.w.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// tmpfs returns a directory like those that pools use.
func tmpfs(t testing.TB) string {
	t.Helper()
	if info, err := os.Stat("/dev/shm"); err != nil || !info.IsDir() {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp("/dev/shm", "aggregatord-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// harness is a collector with its logs and metrics.
type harness struct {
	*Pool
	t    *testing.T
	logs *observer.ObservedLogs
	set  *telemetry.Set
}

func collect(t *testing.T, spec Spec) *harness {
	t.Helper()
	return collectWith(t, spec, ArchiveOptions{})
}

// collectWith is collect with options for the archive.
func collectWith(t *testing.T, spec Spec, o ArchiveOptions) *harness {
	t.Helper()
	o.Rest, o.GaugeRetention = -1, 1000*time.Hour
	core, logs := observer.New(zapcore.DebugLevel)
	set := telemetry.NewSet()
	c := New(spec, Options{Logger: zap.New(core), Metrics: NewMetrics(set), Archive: &o})
	c.partsEvery = 0
	if err := c.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	c.Tend(true)
	return &harness{c, t, logs, set}
}

// fold archives all that is dead, and removes all that is archived.
func (h *harness) fold() {
	h.t.Helper()
	foldAll(h.Pool)
}

// view returns the samples as text, one a line.
func (h *harness) view() string {
	h.t.Helper()
	snap, err := h.Gather()
	if err != nil {
		h.t.Fatal(err)
	}
	defer snap.Release()
	return text(snap)
}

func text(snap *view.Snapshot) string {
	var b strings.Builder
	i := 0
	for _, f := range snap.Layout.Families {
		for _, m := range f.Metrics {
			for _, p := range m.Points {
				b.WriteString(f.Name + p.Kind.Suffix())
				for _, l := range m.AllLabels() {
					b.WriteString(" " + l.Name + "=" + l.Value)
				}
				fmt.Fprintf(&b, " %v\n", snap.Values[i])
				i++
			}
		}
	}
	return b.String()
}

func (h *harness) want(lines ...string) {
	h.t.Helper()
	want := strings.Join(append(lines, ""), "\n")
	if got := h.view(); got != want {
		h.t.Fatalf("got:\n%swant:\n%s", got, want)
	}
}

// own returns the value of one of our own metrics, labels as name, value.
func (h *harness) own(name string, labels ...string) float64 {
	h.t.Helper()
	line := strings.TrimSuffix(name, "_total")
	if line != name {
		line += "_total"
	}
	for i := 0; i < len(labels); i += 2 {
		line += " " + labels[i] + "=" + labels[i+1]
	}
	h.mu.Lock()
	h.updateMetricsLocked()
	h.mu.Unlock()
	for l := range strings.SplitSeq(text(h.set.Snapshot()), "\n") {
		var v float64
		if rest, ok := strings.CutPrefix(l, line+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err == nil {
				return v
			}
		}
	}
	return 0
}

func (h *harness) logged(msg, path string) int {
	n := 0
	for _, e := range h.logs.All() {
		if strings.Contains(e.Message, msg) && (path == "" || e.ContextMap()["path"] == path) {
			n++
		}
	}
	return n
}

func TestWorkersComeAndGo(t *testing.T) {
	dir := tmpfs(t)
	a := write(t, dir, "counter_1.db").set("hits_total", 2)
	ag := write(t, dir, "gauge_livesum_1.db").set("busy", 1)
	h := collect(t, Spec{Path: dir})
	h.want("busy 1", "hits_total 2")

	// Every scrape is right by itself, without a call of Tend: new values, new entries,
	// new files, dead processes.
	a.set("hits_total", 3).set("hits_total", 1, "path", "/")
	b := write(t, dir, "counter_2.db").set("hits_total", 10)
	bg := write(t, dir, "gauge_livesum_2.db").set("busy", 5)
	h.want("busy 6", "hits_total 13", "hits_total path=/ 1")
	ag.die()
	a.set("hits_total", 4).die()
	h.want("busy 5", "hits_total 14", "hits_total path=/ 1")

	h.Tend(false)
	if got := h.logged("worker is dead", ""); got != 1 {
		t.Errorf("%d log lines say that a worker is dead, want 1", got)
	}
	for state, want := range map[string]float64{"alive": 1, "dead": 1} {
		if got := h.own("aggregatord_workers", "state", state); got != want {
			t.Errorf("%v workers %s, want %v", got, state, want)
		}
		if got := h.own("aggregatord_files", "dialect", "wide", "state", state); got != 2 {
			t.Errorf("%v files %s, want 2", got, state)
		}
	}

	// A process that gets the ID of a dead one goes on with its file.
	a = write(t, dir, "counter_1.db").set("hits_total", 100)
	h.want("busy 5", "hits_total 110", "hits_total path=/ 1")
	a.die()
	b.die()
	bg.die()
	h.want("hits_total 110", "hits_total path=/ 1")
	// Also if it is gone again before anybody looked.
	write(t, dir, "counter_1.db").set("hits_total", 101).die()
	h.want("hits_total 111", "hits_total path=/ 1")
}

// TestManyAtStart: where there are many files at first, it is not asked at once who writes to
// those of counters; what is served is right before and after.
func TestManyAtStart(t *testing.T) {
	dir := tmpfs(t)
	const each = unaskedFiles / 4
	var counters []*process
	for id := range 2 * each {
		c := write(t, dir, fmt.Sprintf("counter_%d.db", id)).set("hits_total", 1)
		g := write(t, dir, fmt.Sprintf("gauge_livesum_%d.db", id)).set("busy", 1)
		if id < each {
			counters = append(counters, c)
			continue
		}
		c.die()
		g.die()
	}
	h := collect(t, Spec{Path: dir})
	h.want(fmt.Sprint("busy ", each), fmt.Sprint("hits_total ", 2*each))
	files := func(state string) float64 {
		return h.own("aggregatord_files", "dialect", "wide", "state", state)
	}
	if alive, dead := files("alive"), files("dead"); alive != 3*each || dead != each {
		t.Errorf("%v files are alive and %v dead, want %v and %v", alive, dead, 3*each, each)
	}
	counters[0].set("hits_total", 2).set("hits_total", 5, "path", "/")
	counters[1].die()
	write(t, dir, fmt.Sprintf("counter_%d.db", each)).set("hits_total", 2).die()
	h.want(fmt.Sprint("busy ", each), fmt.Sprint("hits_total ", 2*each+2), "hits_total path=/ 5")

	h.Tend(false)
	h.want(fmt.Sprint("busy ", each), fmt.Sprint("hits_total ", 2*each+2), "hits_total path=/ 5")
	if alive, dead := files("alive"), files("dead"); alive != 2*each-1 || dead != 2*each+1 {
		t.Errorf("%v files are alive and %v dead, want %v and %v", alive, dead, 2*each-1, 2*each+1)
	}
	for _, f := range h.files {
		if f.file.Mapped() != f.isAlive() {
			t.Errorf("%s is mapped: %v, and alive: %v", f.path, f.file.Mapped(), f.isAlive())
		}
	}
	if n := h.logged("worker is dead", ""); n != 0 {
		t.Errorf("%d log lines say that a worker is dead that was never seen alive", n)
	}
	h.fold()
	h.want(fmt.Sprint("busy ", each), fmt.Sprint("hits_total ", 2*each+2), "hits_total path=/ 5")
	if n := len(h.files); n != 2*each-1 {
		t.Errorf("%d files are left, want %d", n, 2*each-1)
	}
}

func TestFileGrows(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db")
	h := collect(t, Spec{Path: dir})
	h.want()
	sum := 0.0
	for i := range 3000 { // several times the first size
		w.set("hits_total", float64(i), "i", fmt.Sprint(i))
		sum += float64(i)
		if i%500 != 0 {
			continue
		}
		snap, err := h.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := 0.0
		for _, v := range snap.Values {
			got += v
		}
		if len(snap.Values) != i+1 || got != sum {
			t.Errorf("after %d entries: %d samples that add up to %v, want %v", i+1, len(snap.Values), got, sum)
		}
		snap.Release()
	}
	w.die()
}

func TestRemovedByOthers(t *testing.T) {
	dir := tmpfs(t)
	dead := write(t, dir, "counter_1.db").set("hits_total", 2)
	alive := write(t, dir, "counter_2.db").set("hits_total", 40)
	gauge := write(t, dir, "gauge_all_2.db").set("temp", 7)
	dead.die()
	h := collect(t, Spec{Path: dir})
	h.want("hits_total 42", "temp pid=2 7")

	for _, base := range []string{"counter_1.db", "counter_2.db", "gauge_all_2.db"} {
		if err := os.Remove(filepath.Join(dir, base)); err != nil {
			t.Fatal(err)
		}
	}
	h.want("hits_total 42")
	// Whoever still has a removed file mapped can count on in it, and it counts.
	alive.set("hits_total", 50)
	h.want("hits_total 52")
	h.Tend(false)
	alive.set("hits_total", 60).die()
	gauge.die()
	h.want("hits_total 62")
	h.fold()
	h.want("hits_total 62")
	if got := h.own("aggregatord_files", "dialect", "wide", "state", "removed"); got != 0 {
		t.Errorf("%v removed files are still held", got)
	}
	// The ID comes back, from zero, and adds to what was.
	write(t, dir, "counter_2.db").set("hits_total", 1).die()
	h.want("hits_total 63")
}

func TestReplaced(t *testing.T) {
	dir := tmpfs(t)
	path := filepath.Join(dir, "counter_1.db")
	h := collect(t, Spec{Path: dir})
	total := 0
	for i := 1; i <= 5; i++ {
		write(t, dir, "counter_1.db").set("hits_total", float64(i)).die()
		total += i
		h.want(fmt.Sprintf("hits_total %d", total))
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	h.want(fmt.Sprintf("hits_total %d", total))
}

// TestMoved moves files, and the whole directory, to other names and back: nothing may be
// lost, and nothing counted twice.
func TestMoved(t *testing.T) {
	parent := tmpfs(t)
	dir := filepath.Join(parent, "a")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "counter_1.db").set("hits_total", 2).die()
	alive := write(t, dir, "counter_2.db").set("hits_total", 40)
	h := collect(t, Spec{Path: dir})
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(filepath.Join(parent, from), filepath.Join(parent, to)); err != nil {
			t.Fatal(err)
		}
	}
	tend := func() { h.Tend(false) }
	for name, between := range map[string]func(){
		"at once": func() {}, "tended": tend, "scraped": func() { h.view() },
		"both": func() { h.view(); tend() },
	} {
		t.Run(name, func(t *testing.T) {
			h.t = t
			rename("a/counter_1.db", "a/counter_3.db")
			between()
			h.want("hits_total 42")
			rename("a/counter_3.db", "a/foreign")
			between()
			h.want("hits_total 42")
			rename("a/foreign", "a/counter_1.db")
			between()
			h.want("hits_total 42")
			rename("a", "b")
			between()
			h.want("hits_total 42")
			rename("b", "a")
			between()
			h.want("hits_total 42")
		})
	}
	alive.die()
}

func TestSecondName(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 2).die()
	h := collect(t, Spec{Path: dir})
	if err := os.Link(filepath.Join(dir, "counter_1.db"), filepath.Join(dir, "counter_2.db")); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total 2")
	if got := h.own("aggregatord_file_errors_total", "reason", "duplicate"); got != 1 {
		t.Errorf("%v duplicates counted", got)
	}
}

func TestDirectoryComesAndGoes(t *testing.T) {
	parent := tmpfs(t)
	dir := filepath.Join(parent, "late")
	h := collect(t, Spec{Path: dir})
	h.want()
	h.Tend(true)
	h.Tend(true)
	if got := h.logged("does not exist", ""); got != 1 {
		t.Errorf("said %d times that the directory is not there, want once", got)
	}
	if h.own("aggregatord_directory_up") != 0 || h.Err() == nil {
		t.Error("a directory that is not there is up")
	}
	for i := 1; i <= 3; i++ {
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "counter_1.db").set("hits_total", 1).die()
		h.want(fmt.Sprintf("hits_total %d", i))
		if h.own("aggregatord_directory_up") != 1 {
			t.Error("a directory that is there is not up")
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		h.want(fmt.Sprintf("hits_total %d", i))
	}
}

func TestShrunkAndEmptied(t *testing.T) {
	dir := tmpfs(t)
	path := filepath.Join(dir, "counter_1.db")
	w := write(t, dir, "counter_1.db").set("hits_total", 5)
	h := collect(t, Spec{Path: dir})
	h.want("hits_total 5")
	if err := os.Truncate(path, 16); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total 5")
	h.Tend(true)
	h.want("hits_total 5")
	if got := h.own("aggregatord_file_errors_total", "reason", "shrunk"); got != 1 {
		t.Errorf("counted %v times", got)
	}
	if got := h.logged("what was read of it before still counts", path); got != 1 {
		t.Errorf("logged %d times", got)
	}
	w.die()
	// Emptied and written anew: the new values add to the old ones.
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	h.Tend(false)
	h.want("hits_total 5")
	write(t, dir, "counter_1.db").set("hits_total", 7).die()
	h.want("hits_total 12")
	if got := h.own("aggregatord_files", "state", "failed"); got != 0 {
		t.Errorf("%v files failed", got)
	}
}

func TestBadNeighbours(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(dir, "counter_2.db"), []byte("\xff\xff\xff\xff and more"), 0o666))
	must(os.Symlink("counter_1.db", filepath.Join(dir, "counter_3.db")))
	must(os.Mkdir(filepath.Join(dir, "counter_4.db"), 0o777))
	must(os.WriteFile(filepath.Join(dir, "gauge_median_5.db"), nil, 0o666))
	must(os.WriteFile(filepath.Join(dir, "counter_6.db"), nil, 0o666)) // empty: no failure
	must(os.WriteFile(filepath.Join(dir, "README"), nil, 0o666))
	odd := write(t, dir, "counter_7.db").set("x_total", 1)
	if _, err := odd.w.Slot([]byte(`["y", "z_total", {}, "Sample of another family."]`)); err != nil {
		t.Fatal(err)
	}
	odd.die()
	h := collect(t, Spec{Path: dir})
	for range 3 {
		h.want("hits_total 5", "x_total 1")
		h.Tend(true)
	}
	for reason, want := range map[string]float64{"used_negative": 1, "not_regular": 2, "unknown_mode": 1} {
		if got := h.own("aggregatord_file_errors_total", "reason", reason); got != want {
			t.Errorf("%s: %v, want %v", reason, got, want)
		}
	}
	if got := h.own("aggregatord_entry_errors_total", "reason", "bad_sample"); got != 1 {
		t.Errorf("bad_sample: %v, want 1", got)
	}
	for _, base := range []string{"counter_2.db", "counter_3.db", "counter_4.db", "gauge_median_5.db", "counter_7.db"} {
		if h.logged("", filepath.Join(dir, base)) != 1 {
			t.Errorf("%s: named in %d log lines, want 1", base, h.logged("", filepath.Join(dir, base)))
		}
	}
	if failed, foreign := h.own("aggregatord_files", "state", "failed"), h.own("aggregatord_files", "state", "foreign"); failed != 4 ||
		foreign != 1 {
		t.Errorf("%v failed, %v foreign files, want 4 and 1", failed, foreign)
	}
}

func TestConflictIsLoggedOnce(t *testing.T) {
	dir := tmpfs(t)
	old := write(t, dir, "gauge_all_1.db").set("x", 1)
	h := collect(t, Spec{Path: dir})
	h.want("x pid=1 1")
	time.Sleep(20 * time.Millisecond) // the clock of file systems ticks that slowly
	write(t, dir, "gauge_max_2.db").set("x", 2).die()
	for range 3 {
		h.want("x 2")
	}
	if got := h.logged("files disagree on a metric", ""); got != 1 {
		t.Errorf("logged %d times", got)
	}
	if got := len(h.State().Conflicts); got != 1 {
		t.Errorf("%v conflicts", got)
	}
	old.die()
	if err := os.Remove(filepath.Join(dir, "gauge_all_1.db")); err != nil {
		t.Fatal(err)
	}
	h.want("x 2")
	if got := h.logged("agree on a metric again", ""); got != 1 {
		t.Errorf("the end was logged %d times", got)
	}
}

// TestScrapesTogether checks that each of many scrapes sees everything that was counted before
// it asked.
func TestScrapesTogether(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db").set("hits_total", 0)
	h := collect(t, Spec{Path: dir})
	var count atomic.Int64
	stop := make(chan struct{})
	var writer, scrapers sync.WaitGroup
	writer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				w.set("hits_total", float64(count.Load()+1))
				count.Add(1)
			}
		}
	})
	const each = 300
	for range 8 {
		scrapers.Go(func() {
			last := 0.0
			for range each {
				atLeast := float64(count.Load())
				snap, err := h.Gather()
				if err != nil {
					t.Error(err)
					return
				}
				if got := snap.Values[0]; got < atLeast || got < last {
					t.Errorf("got %v after %v was counted and %v served", got, atLeast, last)
				} else {
					last = got
				}
				snap.Release()
			}
		})
	}
	scrapers.Wait()
	close(stop)
	writer.Wait()
	w.die()
}
