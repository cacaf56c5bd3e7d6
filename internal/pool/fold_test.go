package pool

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
	"aggregatord/internal/view"
)

// childEnv makes the test binary fold a directory and kill itself: see foldAndDie.
const childEnv = "AGGREGATORD_TEST_FOLD"

func TestMain(m *testing.M) {
	if order := os.Getenv(childEnv); order != "" {
		foldAndDie(order)
	}
	goleak.VerifyTestMain(m)
}

// order tells a child what to fold and when to die.
type order struct {
	Dir string
	// Step is the number of the step before which the child kills itself.
	Step int
	// Ruled has the child fold under ruledDead, Mirror beside a mirror.
	Ruled, Mirror bool
}

// compactAtOnce has the archive written anew as soon as all is folded.
func compactAtOnce(p *Pool) { p.folder.SetSpare(-1 << 40) }

// foldAndDie folds until the step, then dies as by SIGKILL. It exits with 0 if there was
// no such step any more.
func foldAndDie(text string) {
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(err)
	}
	opts := Options{Archive: &ArchiveOptions{Rest: -1, Mirror: o.Mirror}}
	if o.Ruled {
		opts.Policy = ruledDead()
	}
	c := New(Spec{Path: o.Dir}, opts)
	n := 0
	compactAtOnce(c)
	c.folder.Step = func(string) error {
		if n == o.Step {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		n++
		return nil
	}
	if err := c.Open(); err != nil {
		panic(err)
	}
	foldAll(c)
	os.Exit(0)
}

// foldAll archives what is dead and removes what is archived.
func foldAll(c *Pool) {
	for deadline := time.Now().Add(5 * time.Second); ; {
		c.Tend(true)
		for c.Fold() {
			c.Tend(true)
		}
		busy := len(c.staged) > 0 || c.folder.Busy()
		for _, t := range c.files {
			busy = busy || !t.isAlive() && (t.name.Mode != metric.All || !c.folder.Mirrors())
		}
		if !busy || time.Now().After(deadline) {
			return
		}
		advance(c)
		c.folder.MirrorLater(3 * time.Second) // nobody reads the directory all the time
		time.Sleep(time.Millisecond)
	}
}

// advance moves the collector's clock past every time to wait.
func advance(c *Pool) {
	later := c.now().Add(10 * time.Second)
	c.now = func() time.Time { return later }
}

// leave writes what dead workers 1 to 3 leave, of every kind that is kept, and an empty file. hit and peak are
// for each of a worker's number, and size gives the size by it.
func leave(t *testing.T, dir string, hit, peak float64, size func(worker float64) float64) {
	t.Helper()
	for i := 1; i <= 3; i++ {
		id, n := strconv.Itoa(i), float64(i)
		write(t, dir, "counter_"+id+".db").set("hits_total", hit*n).set("hits_total", n, "path", "/").die()
		write(t, dir, "summary_"+id+".db").set("size_sum", size(n)).set("size_count", 1).die()
		write(t, dir, "gauge_max_"+id+".db").set("peak", peak*n).die()
		write(t, dir, "gauge_sum_"+id+".db").set("balance", -n).die()
		write(t, dir, "gauge_all_"+id+".db").set("temp", n).die()
		write(t, dir, "gauge_livesum_"+id+".db").set("busy", 1).die()
		w := write(t, dir, "gauge_mostrecent_"+id+".db")
		slot, err := w.w.Slot([]byte(`["rate", "rate", {}, "Help."]`))
		if err != nil {
			t.Fatal(err)
		}
		w.w.Set(slot, 10*n, 100-n)
		w.die()
	}
	if err := os.WriteFile(filepath.Join(dir, "counter_4.db"), nil, 0o666); err != nil {
		t.Fatal(err)
	}
}

// leftBehind writes what dead workers left, and returns the view that must be served from then on. Its
// sums are not exact in floats.
func leftBehind(t *testing.T, dir string) []string {
	t.Helper()
	leave(t, dir, 0.1, 1, func(worker float64) float64 { return 1e16 / worker })
	return []string{
		"balance -6", "hits_total 0.6000000000000001", "hits_total path=/ 6", "peak 3", "rate 10",
		"size_sum 1.8333333333333332e+16", "size_count 3", "temp pid=1 1", "temp pid=2 2", "temp pid=3 3",
	}
}

// ruledDead is rules for what dead writes: other modes for gauges, and counters with a label
// less.
func ruledDead() *policy.Policy {
	p, err := policy.Compile(policy.Spec{Rules: []policy.Rule{
		{Match: "temp", GaugeMode: metric.Sum},
		{Match: "peak", GaugeMode: metric.LiveMax},
		{Match: "balance", GaugeMode: metric.All},
		{Match: "busy", GaugeMode: metric.Max},
		{Match: "rate", GaugeMode: metric.Min, Retention: 1000 * time.Hour},
		{Match: "hits", DropLabels: []string{"path"}},
	}})
	if err != nil {
		panic(err)
	}
	return p
}

// wantRuled is what must be served under ruledDead of what dead has written.
var wantRuled = []string{
	"balance pid=1 -1", "balance pid=2 -2", "balance pid=3 -3", "busy 1", "hits_total 6.6", "rate 10",
	"size_sum 1.8333333333333332e+16", "size_count 3", "temp 6",
}

// bothWays runs a test without a policy and under ruledDead.
func bothWays(t *testing.T, test func(t *testing.T, p *policy.Policy)) {
	t.Run("plain", func(t *testing.T) { test(t, nil) })
	t.Run("ruled", func(t *testing.T) { test(t, ruledDead()) })
}

// waiting lists the files in a directory that are not our own, staged ones too.
func waiting(t *testing.T, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && (!strings.HasPrefix(e.Name(), archive.HiddenPrefix) || strings.HasPrefix(e.Name(), fold.Prefix)) {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return paths
}

// folded reports whether nothing is left to fold, remove or forget.
func folded(t *testing.T, dir string) bool {
	t.Helper()
	view, err := archive.ReadHidden(dir)
	if err != nil {
		t.Fatal(err)
	}
	return len(waiting(t, dir)) == 0 && len(view.Records()) == 0
}

// wantFolded folds until nothing is left. Processes of other tests may hold a file for a
// moment, between fork and exec, so it may take a while.
func (h *harness) wantFolded(dir string) {
	t := h.t
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !folded(t, dir) && time.Now().Before(deadline); {
		h.fold()
	}
	if !folded(t, dir) {
		t.Errorf("not folded: %v, or their records were not forgotten", waiting(t, dir))
	}
}

func TestFold(t *testing.T) {
	dir := tmpfs(t)
	want := leftBehind(t, dir)
	h := collect(t, Spec{Path: dir})
	h.want(want...)
	h.fold()
	h.want(want...)
	h.wantFolded(dir)
	if got := h.own("aggregatord_archive_folded_files_total"); got != 22 {
		t.Errorf("%v files folded, want 22", got)
	}
	// What comes adds to it; a worker with the ID of a dead one replaces its gauge.
	w := write(t, dir, "counter_1.db").set("hits_total", 1, "path", "/")
	g := write(t, dir, "gauge_all_1.db").set("temp", 50)
	want[2], want[7] = "hits_total path=/ 7", "temp pid=1 50"
	h.want(want...)
	w.die()
	g.die()
	h.want(want...)
	h.fold()
	h.want(want...)
	h.wantFolded(dir)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	collect(t, Spec{Path: dir}).want(want...)
}

// TestFoldStamps: clients store a timestamp only where it matters, but there is room for one beside
// every value, and what is there must not count.
func TestFoldStamps(t *testing.T) {
	for name, rules := range map[string]*policy.Policy{"plain": nil, "ruled": ruledDead()} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t)
			for id := range 3 {
				for _, f := range []struct{ kind, sample string }{
					{"counter", "jobs_total"}, {"summary", "age_sum"}, {"gauge_sum", "size"}, {"gauge_max", "most"}, {"gauge_all", "temp"},
				} {
					write(t, dir, fmt.Sprintf("%s_%d.db", f.kind, id)).setAt(f.sample, float64(id+1), 1.7e9).die()
				}
			}
			h := collect(t, Spec{Path: dir})
			if rules != nil {
				h.force(rules)
			}
			want := h.view()
			if !strings.Contains(want, "jobs_total 6\n") {
				t.Fatalf("before:\n%s", want)
			}
			h.fold()
			if got := h.view(); got != want {
				t.Errorf("archived:\n%s\nbefore:\n%s", got, want)
			}
			h.wantFolded(dir)
		})
	}
}

// TestSecondLifeUnseen: a process takes the ID of a dead one, counts in its file what was not in
// it before, and dies before anybody asks for it. That counts from when the file is folded, whoever
// removes it then.
func TestSecondLifeUnseen(t *testing.T) {
	for name, when := range map[string]func(*harness, func()){
		"before the fold": func(h *harness, count func()) {
			count()
			h.Fold()
		},
		"in the fold": func(h *harness, count func()) {
			h.folder.Step = func(step string) error {
				if step == "stage" {
					count()
				}
				return nil
			}
			h.Fold()
			h.folder.Step = nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, p *policy.Policy) {
				dir := tmpfs(t)
				h := collect(t, Spec{Path: dir})
				want := []string{"hits_total 2", "hits_total path=/ 3"}
				if p != nil {
					h.force(p)
					want = []string{"hits_total 5"} // without the label
				}
				write(t, dir, "counter_1.db").set("hits_total", 1).die()
				h.want("hits_total 1")
				h.Tend(true)
				when(h, func() { write(t, dir, "counter_1.db").set("hits_total", 2).set("hits_total", 3, "path", "/").die() })
				h.want(want...)
				for _, file := range stagedNames(t, dir) {
					if err := os.Remove(filepath.Join(dir, file)); err != nil {
						t.Fatal(err)
					}
				}
				h.Tend(true)
				h.fold()
				h.want(want...)
			})
		})
	}
}

// TestKilledAtEachStep kills a process that folds before its first step, its second, and
// so on until a run has no such step, and checks after each what the next one serves.
func TestKilledAtEachStep(t *testing.T) {
	t.Parallel()
	bothWays(t, killedAtEachStep)
}

func killedAtEachStep(t *testing.T, p *policy.Policy) {
	for step := 0; ; step++ {
		dir := tmpfs(t)
		want := leftBehind(t, dir)
		if p != nil {
			want = wantRuled
		}
		text, err := json.Marshal(order{dir, step, p != nil, false})
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childEnv+"="+string(text))
		out, err := child.CombinedOutput()
		var exit *exec.ExitError
		killed := errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL
		if err != nil && !killed {
			t.Fatalf("step %d: %v\n%s", step, err, out)
		}
		// One who only looks sees it as it lies there.
		before := tree(t, dir)
		readOnly(t, dir, p, want...)
		if after := tree(t, dir); after != before {
			t.Fatalf("step %d: looking changed the directory from\n%s to\n%s", step, before, after)
		}
		h := collect(t, Spec{Path: dir})
		h.force(p)
		h.want(want...)
		h.fold()
		h.want(want...)
		h.wantFolded(dir)
		if t.Failed() {
			t.Fatalf("after a crash before step %d", step)
		}
		if !killed {
			if step < 10 {
				t.Fatalf("a fold has only %d steps", step)
			}
			return
		}
	}
}

// tree describes everything below a directory: names, sizes, times and contents.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d %v", path, info.Mode(), info.Size(), info.ModTime())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", data)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestFailsAtEachStep lets each step of a fold fail once, then all from it on for a while,
// and checks that totals stay and that it goes on afterwards.
func TestFailsAtEachStep(t *testing.T) {
	t.Parallel()
	bothWays(t, failsAtEachStep)
}

func failsAtEachStep(t *testing.T, p *policy.Policy) {
	for _, lasting := range []bool{false, true} {
		for step := 0; ; step++ {
			dir := tmpfs(t)
			want := leftBehind(t, dir)
			h := collect(t, Spec{Path: dir})
			if p != nil {
				want = wantRuled
				h.force(p)
			}
			n, failed := 0, ""
			compactAtOnce(h.Pool)
			h.folder.Step = func(name string) error {
				n++
				if n-1 == step || lasting && n-1 > step && n-1 < step+5 {
					failed = name
					return syscall.ENOSPC
				}
				return nil
			}
			for range 14 {
				h.Tend(true)
				h.Fold()
				h.want(want...)
				advance(h.Pool)
			}
			h.wantFolded(dir)
			if t.Failed() {
				t.Fatalf("after step %d (%s) failed", step, failed)
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			if failed == "" {
				if step < 10 {
					t.Fatalf("a fold has only %d steps", step)
				}
				break
			}
			metric, says := "aggregatord_archive_fold_errors_total", "cannot be archived"
			if failed == "compact" {
				metric, says = "aggregatord_archive_compaction_errors_total", "archive cannot be written anew"
			}
			if got := h.own(metric); got == 0 || h.logged(says, "") == 0 {
				t.Errorf("step %d (%s) failed unseen: %v errors counted", step, failed, got)
			}
		}
	}
}

// TestOpenedAtEachStep lets a worker that had looked up a file's old name open it at each
// step of its fold, and count on in it for a while.
func TestOpenedAtEachStep(t *testing.T) {
	t.Parallel()
	bothWays(t, openedAtEachStep)
}

func openedAtEachStep(t *testing.T, p *policy.Policy) {
	for step := 0; ; step++ {
		dir := tmpfs(t)
		want := leftBehind(t, dir)
		h := collect(t, Spec{Path: dir})
		hits := 2 // which of want they are
		if p != nil {
			want, hits = slices.Clone(wantRuled), slices.Index(wantRuled, "hits_total 6.6")
			h.force(p)
		}
		path := filepath.Join(dir, "counter_1.db")
		// An open descriptor stands for the name that was looked up: what is opened through
		// it is the same file wherever it is now.
		held, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		opened := make(chan *os.File, 1)
		n := 0
		removed := false
		h.folder.Step = func(string) error {
			if n == step {
				// Who comes after the file was removed has looked its name up more than a second
				// ago, and could not be helped.
				info, err := held.Stat()
				if removed = err == nil && info.Sys().(*syscall.Stat_t).Nlink == 0; removed {
					n++
					return nil
				}
				go func() {
					w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", held.Fd()), os.O_RDWR, 0)
					if err != nil {
						t.Errorf("step %d: %v", step, err)
					}
					opened <- w
				}()
				waitOpened(t, info, func() bool { return len(opened) > 0 })
			}
			n++
			return nil
		}
		foldOnce := func() {
			h.Tend(true)
			for h.Fold() {
				h.Tend(true)
			}
			advance(h.Pool)
		}
		for n <= step && n >= 0 {
			before := n
			foldOnce()
			if n > step {
				break
			}
			h.want(want...)
			if n == before {
				n = -1 - n // no such step
			}
		}
		if n > step && !removed {
			w := <-opened // at the latest when the fold let go
			if w == nil {
				t.FailNow()
			}
			h.want(want...)
			if got := addLate(t, w, 1000); got != 1 {
				t.Fatalf("step %d: the worker found %v, want 1", step, got)
			}
			foldOnce()
			addLate(t, w, 2000)
			foldOnce()
			h.Tend(true)
			want[hits] = strings.NewReplacer(" 6", " 3006").Replace(want[hits])
			h.want(want...)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			h.want(want...)
		}
		if err := held.Close(); err != nil {
			t.Fatal(err)
		}
		h.wantFolded(dir)
		h.want(want...)
		if t.Failed() {
			t.Fatalf("opened at step %d", step)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		h = collect(t, Spec{Path: dir})
		h.force(p)
		h.want(want...)
		if n < 0 {
			if step < 10 {
				t.Fatalf("a fold has only %d steps", step)
			}
			return
		}
	}
}

// waitOpened waits until a file is open or somebody waits in open for its lease to end, as
// proc_locks(5) shows.
func waitOpened(t *testing.T, info fs.FileInfo, opened func() bool) {
	t.Helper()
	inode := fmt.Sprintf(":%d ", info.Sys().(*syscall.Stat_t).Ino)
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		locks, err := os.ReadFile("/proc/locks")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(locks)) {
			if strings.Contains(line, "LEASE") && strings.Contains(line, "BREAKING") && strings.Contains(line, inode) {
				return
			}
		}
		if opened() {
			return
		}
	}
	t.Fatal("the file was not opened")
}

// addLate adds to hits_total{path="/"} in an open source file, and returns what it was.
func addLate(t *testing.T, f *os.File, delta float64) float64 {
	t.Helper()
	data, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	if err != nil {
		t.Fatal(err)
	}
	key := []byte(`["hits", "hits_total", {"path": "/"}, "Help."]`)
	at := bytes.Index(data, key) + len(key)
	at += 8 - at%8 // the padding: 1 to 8 spaces up to where values are aligned
	old := math.Float64frombits(binary.LittleEndian.Uint64(data[at:]))
	if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, math.Float64bits(old+delta)), int64(at)); err != nil {
		t.Fatal(err)
	}
	return old
}

// TestFoldEqualsMerge folds random subsets in random order, with restarts in between: the
// view never changes, to the last bit.
func TestFoldEqualsMerge(t *testing.T) {
	t.Parallel()
	for range 8 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 3))
			dir := tmpfs(t)
			var alive []*process
			for id := range 20 {
				for _, kind := range []string{"counter", "summary", "gauge_sum", "gauge_max", "gauge_min", "gauge_all"} {
					sample := map[string]string{"counter": "c_total", "summary": "s_sum", "gauge_sum": "g"}[kind]
					if sample == "" {
						sample = kind
					}
					w := write(t, dir, fmt.Sprintf("%s_%d.db", kind, id))
					for i := range r.IntN(6) {
						w.set(sample, r.NormFloat64()*float64(int(1)<<r.IntN(60)), "i", strconv.Itoa(i))
					}
					alive = append(alive, w)
				}
			}
			h := collect(t, Spec{Path: dir})
			want := h.view()
			r.Shuffle(len(alive), func(i, j int) { alive[i], alive[j] = alive[j], alive[i] })
			for len(alive) > 0 {
				n := 1 + r.IntN(len(alive))
				for _, w := range alive[:n] {
					w.die()
				}
				alive = alive[n:]
				h.fold()
				if got := h.view(); got != want {
					t.Fatalf("after a fold: got\n%s\nwant\n%s", got, want)
				}
				if r.IntN(2) == 0 {
					if err := h.Close(); err != nil {
						t.Fatal(err)
					}
					h = collect(t, Spec{Path: dir})
					if got := h.view(); got != want {
						t.Fatalf("after a restart: got\n%s\nwant\n%s", got, want)
					}
				}
			}
			h.wantFolded(dir)
		})
	}
}

func TestGaugeRetention(t *testing.T) {
	dir := tmpfs(t)
	for i := 1; i <= 5; i++ {
		write(t, dir, fmt.Sprintf("gauge_all_%d.db", i)).set("temp", float64(i)).die()
	}
	write(t, dir, "gauge_max_1.db").set("peak", 1).die()
	h := collect(t, Spec{Path: dir})
	h.archiving.GaugeWorkers = 3
	at := time.Now()
	h.now = func() time.Time { return at }
	h.Tend(true)
	h.Fold()
	h.Fold()
	if got := strings.Count(h.view(), "temp pid="); got != 3 {
		t.Errorf("%d dead workers' gauges are served, want 3:\n%s", got, h.view())
	}
	at = at.Add(h.archiving.GaugeRetention - time.Minute)
	h.Fold()
	if got := strings.Count(h.view(), "temp pid="); got != 3 {
		t.Errorf("before their time: %d dead workers' gauges are served, want 3", got)
	}
	at = at.Add(2 * time.Minute)
	h.Fold()
	h.want("peak 1")
	if got := h.own("aggregatord_archive_expired_workers_total"); got != 5 {
		t.Errorf("%v expired, want 5", got)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	collect(t, Spec{Path: dir}).want("peak 1")
}

// TestLastOfAnID folds the gauges of several workers that had one ID, the last one first.
func TestLastOfAnID(t *testing.T) {
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	path := filepath.Join(dir, "gauge_all_1.db")
	first := write(t, dir, "gauge_all_1.db").set("temp", 1).set("only_first", 7)
	h.Tend(true)
	// It is moved to where a crash leaves such files, still open, so that it is folded last.
	if err := os.Rename(path, h.folder.Path("gauge_all_1.db.earlier-1")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond) // the clock of file systems ticks that slowly
	write(t, dir, "gauge_all_1.db").set("temp", 2).die()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	h.want("only_first pid=1 7", "temp pid=1 2")
	h.Fold()
	h.want("only_first pid=1 7", "temp pid=1 1") // what lives replaces what the dead left
	first.die()
	h.wantFolded(dir)
	h.want("only_first pid=1 7", "temp pid=1 2")
}

// TestWiped removes everything, the archive too, as scripts do before they start an
// application: nothing falls, and the new archive has it all.
func TestWiped(t *testing.T) {
	dir := filepath.Join(tmpfs(t), "d")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	h := collect(t, Spec{Path: dir})
	h.fold()
	write(t, dir, "counter_2.db").set("hits_total", 6).die()
	h.want("hits_total 11")
	for i := range 3 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			h.Tend(false)
		}
		if err := os.Mkdir(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		write(t, dir, "counter_1.db").set("hits_total", 100).die()
		h.want(fmt.Sprintf("hits_total %d", 111+100*i))
		h.fold()
		h.want(fmt.Sprintf("hits_total %d", 111+100*i))
		h.wantFolded(dir)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	collect(t, Spec{Path: dir}).want("hits_total 311")
}

// TestWipedBeforeTheEnd: what is in memory alone, because the directory was emptied a moment ago, is
// written by a daemon that ends.
func TestWipedBeforeTheEnd(t *testing.T) {
	for name, wipe := range map[string]func(dir string) error{
		"replaced": func(dir string) error { return errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o777)) },
		"emptied": func(dir string) error {
			entries, err := os.ReadDir(dir)
			for _, e := range entries {
				err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(tmpfs(t), "d")
			if err := os.Mkdir(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			write(t, dir, "counter_1.db").set("hits_total", 5).die()
			h := collect(t, Spec{Path: dir})
			h.fold()
			write(t, dir, "counter_2.db").set("hits_total", 6).die()
			h.want("hits_total 11")
			if err := wipe(dir); err != nil {
				t.Fatal(err)
			}
			h.Tend(true)
			h.Fold()
			h.Tend(true)
			h.want("hits_total 11")
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("it has made %v at once, %v", entries, err)
			}
			if got := h.own("aggregatord_archive_unsaved_series"); got != 1 {
				t.Errorf("%v series are said to be in memory alone", got)
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
			collect(t, Spec{Path: dir}).want("hits_total 11")
		})
	}
}

// TestFewDescriptors folds more files than may be open at once.
func TestFewDescriptors(t *testing.T) {
	dir := tmpfs(t)
	for i := range 100 {
		write(t, dir, fmt.Sprintf("counter_%d.db", i)).set("hits_total", 1).die()
	}
	c := New(Spec{Path: dir}, Options{Archive: &ArchiveOptions{Rest: -1}})
	c.descriptors.max = 30
	h := &harness{Pool: c, t: t}
	h.Tend(true)
	if h.Ready() {
		t.Error("ready without most of the files")
	}
	for range 5 {
		h.Fold()
		h.Tend(true)
	}
	if !h.Ready() {
		t.Error("not ready")
	}
	h.want("hits_total 100")
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSecondDaemon(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	h := collect(t, Spec{Path: dir})
	second := New(Spec{Path: dir}, Options{Archive: &ArchiveOptions{Rest: -1}})
	err := second.Open()
	if !errors.Is(err, archive.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("a second daemon: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	h.fold()
	readOnly(t, dir, nil, "hits_total 5")
}

// readOnly checks what one who only looks sees.
func readOnly(t *testing.T, dir string, p *policy.Policy, want ...string) {
	t.Helper()
	for {
		c := New(Spec{Path: dir}, Options{Policy: p})
		err := c.ReadOnce()
		var got []string
		if err == nil {
			var snap *view.Snapshot
			if snap, err = c.Gather(); err == nil {
				got = strings.Split(strings.TrimSuffix(text(snap), "\n"), "\n")
				snap.Release()
				err = c.Moved()
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if errors.Is(err, ErrAgain) {
			continue
		}
		if err != nil {
			t.Error(err)
		} else if !slices.Equal(got, want) {
			t.Errorf("read only: got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		return
	}
}

// TestLongName: a file whose name leaves no room for what a staged one has more keeps no
// other file from being archived.
// stagedNames lists the staged files.
func stagedNames(t *testing.T, dir string) (names []string) {
	t.Helper()
	for _, path := range waiting(t, dir) {
		if _, ok := fold.RecordOf(filepath.Base(path)); ok {
			names = append(names, filepath.Base(path))
		}
	}
	return names
}

func TestLongName(t *testing.T) {
	dir := tmpfs(t)
	long := "counter_" + strings.Repeat("x", 244) + ".db"
	write(t, dir, long).set("hits_total", 5).die()
	h := collect(t, Spec{Path: dir})
	for n := range 20 {
		write(t, dir, fmt.Sprintf("counter_%d.db", n)).set("hits_total", 1).die()
	}
	h.want("hits_total 25")
	h.fold()
	h.want("hits_total 25")
	names, err := filepath.Glob(filepath.Join(dir, "*.db"))
	if err != nil || len(names) != 1 || filepath.Base(names[0]) != long {
		t.Errorf("left are %v, %v, want the one with the long name", names, err)
	}
}

// TestRemovedWhileAlive: a file that was removed while its worker lives counts on, and what
// it has counted outlives the daemon that has it open, in parts.
func TestRemovedWhileAlive(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db").set("hits_total", 5)
	h := collect(t, Spec{Path: dir})
	h.want("hits_total 5")
	if err := os.Remove(filepath.Join(dir, "counter_1.db")); err != nil {
		t.Fatal(err)
	}
	h.want("hits_total 5")
	h.fold()
	h.want("hits_total 5")
	w.set("hits_total", 7).set("others_total", 1)
	h.want("hits_total 7", "others_total 1")
	h.fold()
	h.want("hits_total 7", "others_total 1")
	readOnly(t, dir, nil, "hits_total 7", "others_total 1")
	w.set("hits_total", 8).set("others_total", 3)
	h.want("hits_total 8", "others_total 3")
	w.die()
	h.fold()
	h.want("hits_total 8", "others_total 3")
	if n := len(h.orphans); n != 0 {
		t.Errorf("%d files without a name are open still", n)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	collect(t, Spec{Path: dir}).want("hits_total 8", "others_total 3")
}

// TestRemovedWhileAliveThenStopped: what a file without a name has gained since its gains were last
// archived is archived when the daemon ends, however long ago that was.
func TestRemovedWhileAliveThenStopped(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db").set("hits_total", 5)
	defer w.die()
	h := collect(t, Spec{Path: dir})
	h.partsEvery = time.Hour
	h.want("hits_total 5")
	if err := os.Remove(filepath.Join(dir, "counter_1.db")); err != nil {
		t.Fatal(err)
	}
	h.fold()
	readOnly(t, dir, nil, "hits_total 5")
	w.set("hits_total", 7)
	h.want("hits_total 7")
	h.fold()
	readOnly(t, dir, nil, "hits_total 5")
	h.FoldLast()
	readOnly(t, dir, nil, "hits_total 7")
}

// TestWrittenBeforeRemoval: a worker that opened a folded file late, added to it and was
// gone again before the file was to be removed, leaves only the changed values to tell.
func TestWrittenBeforeRemoval(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	h := collect(t, Spec{Path: dir})
	h.Fold()
	names := stagedNames(t, dir)
	if len(names) != 1 || h.folder.RemovingFiles() != 1 {
		t.Fatalf("%v, of which %d wait to be removed", names, h.folder.RemovingFiles())
	}
	for _, name := range names {
		late := write(t, dir, name)
		late.set("hits_total", 7)
		late.die()
	}
	advance(h.Pool)
	h.Tend(true)
	h.Fold()
	h.want("hits_total 7")
	h.wantFolded(dir)
	h.want("hits_total 7")
}

// TestWrittenAfterRefusals: a dead worker's file of which every entry was refused is asked for
// new ones at each scrape, although no value of it is read that would tell of them.
func TestWrittenAfterRefusals(t *testing.T) {
	dir := tmpfs(t)
	w := write(t, dir, "counter_1.db")
	if _, err := w.w.Slot([]byte(`["hits", "other", {}, "Help."]`)); err != nil {
		t.Fatal(err)
	}
	w.die()
	h := collect(t, Spec{Path: dir})
	h.want()
	write(t, dir, "counter_1.db").set("hits_total", 5).die()
	h.want("hits_total 5")
}

// TestStagedWhileReading: who looks once notices that files were moved into the staging, and not
// yet archived, while he looked.
func TestStagedWhileReading(t *testing.T) {
	for _, base := range []string{"counter_1.db", "gauge_max_1.db"} {
		dir := tmpfs(t)
		write(t, dir, base).set("x", 1).die()
		place := fold.NewPlace(dir)
		if err := place.Take(); err != nil {
			t.Fatal(err)
		}
		defer place.Close()
		c := New(Spec{Path: dir}, Options{})
		defer c.Close()
		c.Tend(true)
		if err := place.Stage(base, place.NewName(base)); err != nil {
			t.Fatal(err)
		}
		snap, err := c.Gather()
		if err != nil {
			t.Fatal(err)
		}
		seen := text(snap) == "x 1\n"
		snap.Release()
		if err := c.Moved(); err == nil != seen {
			t.Errorf("%s: seen %v, %v", base, seen, err)
		}
		readOnly(t, dir, nil, "x 1")
	}
}

// TestBadFilesDelayNoFold: with every round two files come that are bad, each in another way, one that
// is damaged when it was read already, and ten good ones of dead workers. The good ones are archived in the
// round after theirs, whatever becomes of the bad.
func TestBadFilesDelayNoFold(t *testing.T) {
	const rounds, good = 40, 10
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	number := 0
	bad := func(name string, create func(path string) error) {
		t.Helper()
		number++
		if err := create(filepath.Join(dir, fmt.Sprintf(name, number))); err != nil {
			t.Fatal(err)
		}
	}
	content := func(b []byte) func(string) error {
		return func(path string) error { return os.WriteFile(path, b, 0o600) }
	}
	used := func(n uint32, rest ...byte) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, n), append([]byte{0, 0, 0, 0}, rest...)...)
	}
	kinds := []func(){
		func() { bad("counter_b%d.db", content([]byte("garbage that is no file of anybody"))) },
		func() { bad("counter_b%d.db", content(used(1<<31-1, 1, 2, 3))) },
		func() { bad("counter_b%d.db", content(used(64, bytes.Repeat([]byte{255}, 56)...))) },
		func() { bad("counter_b%d.db", content(badKeys(50))) },
		func() { bad("counter_b%d.db", content(nil)) },
		func() { bad("counter_"+strings.Repeat("b", 240)+"%d.db", content(badKeys(1))) },
		func() { bad("counter_b%d.db", func(path string) error { return os.Mkdir(path, 0o700) }) },
		func() { bad("counter_b%d.db", func(path string) error { return syscall.Mkfifo(path, 0o600) }) },
		func() { bad("counter_b%d.db", func(path string) error { return os.Symlink("/dev/zero", path) }) },
		func() {
			bad("counter_b%d.db", func(path string) error {
				return errors.Join(os.WriteFile(path, used(1<<20), 0o600), os.Truncate(path, 2<<30))
			})
		},
	}
	damage := []func(path string) error{
		func(path string) error { return os.Truncate(path, 20) },
		func(path string) error { return os.Truncate(path, 0) },
		func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt(bytes.Repeat([]byte{255}, 40), 8)
			return errors.Join(err, f.Close())
		},
	}
	waiting := func() (n int) {
		names, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range names {
			if strings.HasPrefix(e.Name(), "counter_good") {
				n++
			}
		}
		return n
	}
	for round := range rounds {
		kinds[2*round%len(kinds)]()
		kinds[(2*round+1)%len(kinds)]()
		for i := range good {
			write(t, dir, fmt.Sprintf("counter_good%d_%d.db", round, i)).set("hits_total", 1).die()
		}
		late := fmt.Sprintf("counter_a%d.db", round) // the first of its batch
		write(t, dir, late).set("late_total", 1).die()
		h.Tend(true)
		if err := damage[round%len(damage)](filepath.Join(dir, late)); err != nil {
			t.Fatal(err)
		}
		h.Fold() // one step a round, as slow as folding ever is
		advance(h.Pool)
		if n := waiting(); n > good {
			t.Fatalf("round %d: %d good files are not archived", round, n)
		}
	}
	h.Tend(true)
	h.Fold()
	if n := waiting(); n > 0 {
		t.Errorf("%d good files are left", n)
	}
	if got := h.view(); !strings.Contains(got, fmt.Sprintf("hits_total %d\n", rounds*good)) {
		t.Errorf("served: %.500s", got)
	}
}
