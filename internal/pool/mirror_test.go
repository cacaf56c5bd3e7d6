package pool

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"aggregatord/internal/archive"
	"aggregatord/internal/store"
)

// withMirror waits for readers as long as it takes: the clocks of tests run ahead.
var withMirror = ArchiveOptions{Mirror: true, MirrorWait: 1 << 62}

// leftExact is leftBehind with sums that are exact in floats, in whatever order they are added.
func leftExact(t *testing.T, dir string) []string {
	t.Helper()
	leave(t, dir, 0.25, -1, func(worker float64) float64 { return 1024 * worker })
	for i := 1; i <= 3; i++ {
		write(t, dir, "gauge_min_"+strconv.Itoa(i)+".db").set("least", float64(i)).die()
	}
	return []string{
		"balance -6", "hits_total 1.5", "hits_total path=/ 6", "least 1", "peak -1", "rate 10",
		"size_sum 6144", "size_count 3", "temp pid=1 1", "temp pid=2 2", "temp pid=3 3",
	}
}

// copyOf copies the files that a client reads to another directory.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := tmpfs(t)
	paths, err := filepath.Glob(filepath.Join(dir, "[^.]*.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(path)), data, 0o666)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// wantInApp checks what the client's own files add up to.
func wantInApp(t *testing.T, dir string, want ...string) {
	t.Helper()
	readOnly(t, copyOf(t, dir), nil, want...)
}

// nextStep returns the number of the step at which something is to happen next. There are about a hundred;
// all have their turn with AGGREGATORD_SOAK, otherwise those of a sample that is another one each time.
func nextStep(step int) int {
	if os.Getenv("AGGREGATORD_SOAK") != "" {
		return step + 1
	}
	return step + 1 + rand.IntN(9)
}

// later has time pass, in which nobody reads the directory.
func (h *harness) later() {
	advance(h.Pool)
	h.folder.MirrorLater(3 * time.Second)
}

// names lists the files in a directory that a client reads.
func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "[^.]*.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths {
		names = append(names, filepath.Base(path))
	}
	return names
}

// wantMirrored folds until only mirror files and those given are left.
func (h *harness) wantMirrored(dir string, others ...string) {
	h.t.Helper()
	done := func() bool {
		return len(stagedNames(h.t, dir)) == 0 && !slices.ContainsFunc(names(h.t, dir), func(base string) bool {
			return !strings.HasSuffix(base, "_00000000.db") && !strings.HasSuffix(base, "_0000000.db") && !slices.Contains(others, base)
		})
	}
	for deadline := time.Now().Add(20 * time.Second); !done() && time.Now().Before(deadline); {
		h.folder.MirrorLater(3 * time.Second)
		h.fold()
	}
	if !done() {
		h.t.Errorf("not folded: %v, %v", stagedNames(h.t, dir), names(h.t, dir))
	}
}

var allGauges = []string{"gauge_all_1.db", "gauge_all_2.db", "gauge_all_3.db"}

func TestMirror(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	want := leftExact(t, dir)
	h := collectWith(t, Spec{Path: dir}, withMirror)
	both := func() {
		t.Helper()
		h.want(want...)
		wantInApp(t, dir, want...)
	}
	both()
	for range 10 {
		h.Tend(true)
		h.Fold()
		both()
		h.later()
	}
	h.wantMirrored(dir, allGauges...)
	both()
	mirrors := []string{
		"counter_00000000.db", "gauge_all_1.db", "gauge_all_2.db", "gauge_all_3.db", "gauge_max_00000000.db", "gauge_min_00000000.db",
		"gauge_mostrecent_00000000.db", "gauge_sum_00000000.db", "summary_00000000.db",
	}
	if got := names(t, dir); !slices.Equal(got, mirrors) {
		t.Errorf("files %v, want %v", got, mirrors)
	}
	// A worker with the ID of a dead one.
	w := write(t, dir, "counter_1.db").set("hits_total", 1, "path", "/")
	g := write(t, dir, "gauge_all_1.db").set("temp", 50)
	want[2], want[8] = "hits_total path=/ 7", "temp pid=1 50"
	both()
	w.die()
	g.die()
	h.fold()
	both()
	h.wantMirrored(dir, allGauges...)
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	readOnly(t, dir, nil, want...)
	h = collectWith(t, Spec{Path: dir}, withMirror)
	h.fold()
	both()

	// In a copy without an archive, the mirror is the archive: for who looks, and for a daemon.
	other := copyOf(t, dir)
	readOnly(t, other, nil, want...)
	for range 2 {
		c := collectWith(t, Spec{Path: other}, withMirror)
		c.want(want...)
		c.fold()
		c.want(want...)
		wantInApp(t, other, want...)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	readOnly(t, other, nil, want...)
	// Who does not want it any more loses nothing.
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	h = collect(t, Spec{Path: dir})
	h.want(want...)
	h.fold()
	h.want(want...)
	h.wantFolded(dir)
}

// TestMirrorKilled is TestKilledAtEachStep beside a mirror: after the next start, and all the time
// from then on, in-app readers see what we serve.
func TestMirrorKilled(t *testing.T) {
	t.Parallel()
	for step := nextStep(-1); ; step = nextStep(step) {
		dir := tmpfs(t)
		want := leftExact(t, dir)
		text, err := json.Marshal(order{dir, step, false, true})
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
		readOnly(t, dir, nil, want...)
		whole := tmpfs(t) // a copy of everything, taken at that moment, in which no two names are one file
		if out, err := exec.Command("cp", "-r", dir+"/.", whole).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		readOnly(t, whole, nil, want...)
		for at, o := range map[string]ArchiveOptions{dir: withMirror, whole: {Mirror: step%2 == 0, MirrorWait: 1 << 62}} {
			h := collectWith(t, Spec{Path: at}, o)
			h.want(want...)
			if o.Mirror {
				wantInApp(t, at, want...)
			}
			for range 4 {
				h.Tend(true)
				h.Fold()
				h.want(want...)
				if o.Mirror {
					wantInApp(t, at, want...)
				}
				h.later()
			}
			if o.Mirror {
				h.wantMirrored(at, allGauges...)
				wantInApp(t, at, want...)
			} else {
				h.wantFolded(at)
			}
			h.want(want...)
			if t.Failed() {
				t.Fatalf("after a crash before step %d, in %v", step, o.Mirror)
			}
			if err := h.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !killed {
			t.Logf("%d steps", step)
			if step < 30 {
				t.Fatalf("a fold has only %d steps", step)
			}
			return
		}
	}
}

// TestMirrorFails lets each step fail once.
func TestMirrorFails(t *testing.T) {
	t.Parallel()
	for step := nextStep(-1); ; step = nextStep(step) {
		dir := tmpfs(t)
		want := leftExact(t, dir)
		n, failed := 0, ""
		h := collectStepped(t, dir, func(name string) error {
			if n++; n-1 == step {
				failed = name
				return syscall.EIO
			}
			return nil
		})
		for range 12 {
			h.Tend(true)
			h.Fold()
			h.want(want...)
			wantInApp(t, dir, want...)
			h.later()
		}
		h.wantMirrored(dir, allGauges...)
		h.want(want...)
		wantInApp(t, dir, want...)
		if t.Failed() {
			t.Fatalf("after step %d (%s) failed", step, failed)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
		if failed == "" {
			t.Logf("%d steps", n)
			return
		}
	}
}

// collectStepped is collectWith a mirror and steps from the start.
func collectStepped(t *testing.T, dir string, step func(string) error) *harness {
	t.Helper()
	h := collectWith(t, Spec{Path: dir}, withMirror)
	h.folder.SetStep(step)
	return h
}

// TestMirrorOpened lets a worker with the ID of a dead one open its file at each step, and count in
// it, as the clients do: by its name.
func TestMirrorOpened(t *testing.T) {
	t.Parallel()
	for step := nextStep(-1); ; step = nextStep(step) {
		dir := tmpfs(t)
		want := leftExact(t, dir)
		n, name := 0, ""
		opened := make(chan *store.Writer, 1)
		h := collectStepped(t, dir, func(at string) error {
			if n++; n-1 == step {
				name = at
				// Ends when the file is open, which may have to wait for a lease.
				go func() {
					w, err := store.OpenWriter(filepath.Join(dir, "counter_1.db"), store.WriterOptions{})
					if err != nil {
						t.Error(err)
					}
					opened <- w
				}()
				select {
				case w := <-opened:
					opened <- w
				case <-time.After(20 * time.Millisecond):
				}
			}
			return nil
		})
		once := func() {
			h.Tend(true)
			for h.Fold() {
				h.Tend(true)
			}
			h.later()
		}
		for range 12 {
			if once(); name != "" {
				break
			}
		}
		if name == "" {
			t.Logf("%d steps", step)
			if step < 20 {
				t.Fatalf("a fold has only %d steps", step)
			}
			return
		}
		w := <-opened
		key := []byte(`["hits", "hits_total", {"path": "/"}, "Help."]`)
		slot, err := w.Slot(key)
		if err != nil {
			t.Fatal(err)
		}
		w.Add(slot, 1000)
		want[2] = "hits_total path=/ 1006"
		for range 3 {
			wantInApp(t, dir, want...)
			once()
		}
		h.Tend(true)
		h.want(want...)
		w.Add(slot, 1000)
		want[2] = "hits_total path=/ 2006"
		h.want(want...)
		wantInApp(t, dir, want...)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		h.wantMirrored(dir, allGauges...)
		h.want(want...)
		wantInApp(t, dir, want...)
		if t.Failed() {
			t.Fatalf("opened at step %d (%s)", step, name)
		}
		if err := h.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMirrorWiped: readers see a reset, and nothing that comes back; our totals go on.
func TestMirrorWiped(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	want := leftExact(t, dir)
	h := collectWith(t, Spec{Path: dir}, withMirror)
	h.fold()
	h.wantMirrored(dir, allGauges...)
	for _, base := range names(t, dir) {
		if err := os.Remove(filepath.Join(dir, base)); err != nil {
			t.Fatal(err)
		}
	}
	h.Tend(true)
	write(t, dir, "counter_7.db").set("hits_total", 4, "path", "/").die()
	h.fold()
	h.wantMirrored(dir)
	wantInApp(t, dir, "hits_total path=/ 4")
	want[2] = "hits_total path=/ 10"
	h.want(want[:8]...) // the gauges in mode all went with their files
}

// TestMirrorDialects: each width has mirror files of its own, with keys as they were.
func TestMirrorDialects(t *testing.T) {
	t.Parallel()
	for name, d := range map[string]struct {
		opt  store.WriterOptions
		base string
		want string
		none float64
		key  string
	}{
		"python":     {store.WriterOptions{}, "gauge_mostrecent_5.db", "counter_00000000.db", 0, `["hits", "hits_total", {}, "Help."]`},
		"python old": {store.WriterOptions{Width: store.Narrow}, "gauge_max_5.db", "counter_0000000.db", 0, `["hits", "hits_total", {}]`},
		"postmates":  {archive.Postmates.Writer, "gauge_latest_5.db", "counter_00000000.db", math.Inf(1), `["hits", "hits_total", {}]`},
	} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t)
			h := collectWith(t, Spec{Path: dir}, withMirror)
			for i := range 2 {
				for _, base := range []string{fmt.Sprintf("counter_%d.db", i), d.base} {
					w, err := store.OpenWriter(filepath.Join(dir, base), d.opt)
					if err != nil {
						t.Fatal(err)
					}
					key := d.key
					if base == d.base {
						key = strings.NewReplacer("hits_total", "rate", "hits", "rate").Replace(key)
					}
					slot, err := w.Slot([]byte(key))
					if err != nil {
						t.Fatal(err)
					}
					w.Set(slot, 2, d.opt.NoStamp)
					if base == d.base {
						w.Set(slot, 3, 100)
					}
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
				}
				h.Tend(true)
				h.fold()
				h.wantMirrored(dir)
			}
			w, err := store.OpenWriter(filepath.Join(dir, d.want), d.opt)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			if !w.Has([]byte(d.key)) {
				t.Errorf("the mirror has another key than %s", d.key)
			}
			slot, err := w.Slot([]byte(d.key))
			if err != nil || w.Value(slot) != 4 || d.opt.Width != store.Narrow && w.Stamp(slot) != d.none {
				t.Errorf("value %v, timestamp %v, %v", w.Value(slot), w.Stamp(slot), err)
			}
			wantInApp(t, dir, "hits_total 4", "rate 3")
		})
	}
}

// client reads a directory as the Python client does: it lists, then reads file after file, with a
// pause after each. A counter file that is gone is an error.
func client(dir string, pause time.Duration) (total float64, err error) {
	paths, err := filepath.Glob(filepath.Join(dir, "counter_*.db"))
	if err != nil {
		return 0, err
	}
	for _, path := range paths {
		name, err := store.ParseName(filepath.Base(path))
		if err != nil {
			return 0, err
		}
		f, err := os.Open(path) // waits for a lease
		if err != nil {
			return 0, err
		}
		data := make([]byte, 64<<10)
		n, _ := f.Read(data)
		if err := f.Close(); err != nil {
			return 0, err
		}
		if n == 0 {
			continue
		}
		temp, err := os.CreateTemp("", "aggregatord-test-")
		if err != nil {
			return 0, err
		}
		_, err = temp.Write(data[:n])
		if err == nil {
			var s *store.File
			if s, err = store.Open(temp.Name(), name, store.Limits{}); err == nil {
				err = errors.Join(s.Walk(func(e store.Entry) { total += e.Value }), s.Close())
			}
		}
		if err := errors.Join(err, temp.Close(), os.Remove(temp.Name())); err != nil {
			return 0, err
		}
		time.Sleep(pause)
	}
	return total, nil
}

// TestMirrorRead has clients read while workers die: none fails, and none sees less than it saw
// before.
func TestMirrorRead(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	write(t, dir, "counter_0.db").set("hits_total", 1).die()
	h := collectWith(t, Spec{Path: dir}, withMirror)
	stop := make(chan struct{})
	var readers sync.WaitGroup
	var mu sync.Mutex
	reads := 0
	for i := range 3 {
		// Ends when stop is closed.
		readers.Go(func() {
			last := 0.0
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(50+37*i+n*13%90) * time.Millisecond):
				}
				got, err := client(dir, time.Duration(i)*time.Millisecond)
				if err != nil || got < last {
					t.Errorf("reader %d: %v after %v, %v", i, got, last, err)
				}
				last = got
				mu.Lock()
				reads++
				mu.Unlock()
			}
		})
	}
	sum := 1.0
	for start, i := time.Now(), 0; time.Since(start) < 4*time.Second; i++ {
		id := strconv.Itoa(1 + i%7) // an ID comes again and again
		w := write(t, dir, "counter_"+id+".db")
		slot, err := w.w.Slot([]byte(`["hits", "hits_total", {}, "Help."]`))
		if err != nil {
			t.Fatal(err)
		}
		w.w.Add(slot, 1)
		sum++
		w.die()
		h.Tend(true)
		for h.Fold() {
			h.Tend(true)
		}
		advance(h.Pool)
		time.Sleep(time.Millisecond)
	}
	close(stop)
	readers.Wait()
	h.fold()
	h.wantMirrored(dir)
	want := "hits_total " + strconv.FormatFloat(sum, 'g', -1, 64)
	h.want(want)
	wantInApp(t, dir, want)
	if s := h.folder.Mirror(); !s.Open || s.Reads == 0 || reads == 0 {
		t.Errorf("%d reads, and the mirror tells %+v", reads, s)
	}
	t.Logf("%d reads, %v deaths, %v moved, %v waits, %+v", reads, sum, h.own("aggregatord_mirror_files_total"),
		h.own("aggregatord_mirror_waits_total"), h.folder.Mirror())
}

// TestMirrorWaits: files are moved when a reader that is in the middle has ended, or when they have
// waited for too long.
func TestMirrorWaits(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 1).die()
	h := collectWith(t, Spec{Path: dir}, withMirror)
	h.fold()
	h.wantMirrored(dir)
	write(t, dir, "counter_2.db").set("hits_total", 1).die()
	for range 2 {
		h.Tend(true)
		h.Fold()
	}
	advance(h.Pool)
	read := func(base string) {
		t.Helper()
		if _, err := os.ReadFile(filepath.Join(dir, base)); err != nil {
			t.Fatal(err)
		}
	}
	read("counter_00000000.db")
	h.Fold()
	if got := h.own("aggregatord_mirror_waits_total"); got == 0 || !slices.Contains(names(t, dir), "counter_2.db") {
		t.Errorf("%v waits, and files %v", got, names(t, dir))
	}
	read("counter_2.db")
	for deadline := time.Now().Add(20 * time.Second); h.own("aggregatord_mirror_files_total") != 2; h.Fold() {
		if time.Now().After(deadline) {
			t.Fatal("the file was not moved when the reader had ended")
		}
	}
	h.wantMirrored(dir)
	if got := h.own("aggregatord_mirror_forced_files_total"); got != 0 {
		t.Errorf("%v files forced", got)
	}
	// Somebody reads without end.
	h.folder.SetMirrorWait(time.Minute)
	write(t, dir, "counter_3.db").set("hits_total", 1).die()
	read("counter_00000000.db")
	for i := 0; h.own("aggregatord_mirror_forced_files_total") == 0; i++ {
		if i == 20 {
			t.Fatal("nothing was forced")
		}
		h.Tend(true)
		h.Fold()
		advance(h.Pool)
	}
	if h.logged("the directory is read all the time; dead workers' files were archived all the same, and readers may have seen values twice or not at all", "") == 0 {
		t.Error("it was not told")
	}
	h.wantMirrored(dir)
	h.want("hits_total 3")
	wantInApp(t, dir, "hits_total 3")
}

// TestMirrorUnhidden: somebody removes the hidden names, but not those that the client reads, at any time
// before the values are moved. They count once.
func TestMirrorUnhidden(t *testing.T) {
	t.Parallel()
	for rounds := 1; rounds <= 4; rounds++ {
		dir := tmpfs(t)
		want := leftExact(t, dir)
		h := collectWith(t, Spec{Path: dir}, withMirror)
		for range rounds {
			h.Tend(true)
			h.Fold()
		}
		for _, base := range stagedNames(t, dir) {
			if err := os.Remove(filepath.Join(dir, base)); err != nil {
				t.Fatal(err)
			}
		}
		for range 3 {
			h.Tend(true)
			h.want(want...)
			wantInApp(t, dir, want...)
			h.later()
			h.Fold()
		}
		h.wantMirrored(dir, allGauges...)
		h.want(want...)
		wantInApp(t, dir, want...)
		if t.Failed() {
			t.Fatalf("removed after %d rounds", rounds)
		}
	}
}

// TestMirrorGauges: the gauges in mode all of a dead worker stay as long as in the archive.
func TestMirrorGauges(t *testing.T) {
	t.Parallel()
	dir := tmpfs(t)
	for i := 1; i <= 3; i++ {
		write(t, dir, fmt.Sprintf("gauge_all_%d.db", i)).set("temp", float64(i)).die()
	}
	h := collectWith(t, Spec{Path: dir}, ArchiveOptions{Mirror: true, MirrorWait: 1 << 62, GaugeWorkers: 2})
	h.fold()
	for range 5 {
		h.fold()
		advance(h.Pool)
	}
	if got := names(t, dir); len(got) != 2 {
		t.Errorf("%v left", got)
	}
	if got := strings.Count(h.view(), "temp"); got != 2 {
		t.Errorf("%d served", got)
	}
	later := h.now().Add(1001 * time.Hour)
	h.now = func() time.Time { return later }
	h.wantMirrored(dir)
	h.want()
	wantInApp(t, dir, "")
}
