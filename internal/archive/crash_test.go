package archive

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The steps of these tests are batches of which the n-th adds 1 to every old key and brings
// a new one, folds the file "file-n" and forgets file-(n-recent). So any state says how many
// commits made it, and in many places. Now and then the archive is written anew before.
const recent = 5

func stepKey(n int) string { return fmt.Sprintf(`["steps", "steps_total", {"n": "%d"}, ""]`, n) }

// step makes the next commit.
func step(a *Archive) error {
	n := len(a.stepKeys())
	if n%5 == 2 {
		if err := a.Compact(); err != nil {
			return err
		}
	}
	b := NewBatch(at(int64(n)))
	f := b.File(counters, nil, 100)
	for i := range n + 1 {
		f.Add([]byte(stepKey(i)), 1, 0, true)
	}
	f.Record("file-" + strconv.Itoa(n))
	fold(b, worker(strconv.Itoa(n%7)), "", nil, entry{"n", float64(n), 0})
	a.Forget("file-" + strconv.Itoa(n-recent))
	if n%3 == 0 {
		a.Drop(worker(strconv.Itoa((n + 1) % 7)))
	}
	if n%4 == 0 { // some come this way
		left := NewBatch(at(int64(n)))
		fold(left, summaries, "", nil, entry{"left", 1, 0})
		a.Absorb(left)
	}
	return a.Commit(b, nil)
}

func (a *Archive) stepKeys() []string {
	if t := a.totals.tables[counters]; t != nil {
		keys := make([]string, t.Len())
		for i := range keys {
			keys[i] = t.Key(i)
		}
		return keys
	}
	return nil
}

// checkSteps returns after how many steps the archive is as it is, or an error if that was
// after none.
func checkSteps(a *Archive) (n int, err error) {
	keys := a.stepKeys()
	n = len(keys)
	for i, key := range keys {
		if v := a.totals.tables[counters].hi[i]; key != stepKey(i) || v != float64(n-i) {
			return n, fmt.Errorf("after %d steps key %q is %v", n, key, v)
		}
	}
	var records []string
	for i := max(0, n-recent); i < n; i++ {
		name := "file-" + strconv.Itoa(i)
		records = append(records, name)
		if v, _ := a.Baseline(name); len(v) != i+1 || slices.Max(v) != 1 || slices.Min(v) != 1 {
			return n, fmt.Errorf("after %d steps the record of %s is %v", n, name, v)
		}
	}
	slices.Sort(records)
	if got := a.Records(); !slices.Equal(got, records) {
		return n, fmt.Errorf("after %d steps there are records of %q, want %q", n, got, records)
	}
	left := 0.0
	if t := a.totals.tables[summaries]; t != nil {
		left = t.hi[0]
	}
	if want := (n + 3) / 4; left != float64(want) || a.Stats().Folds != uint64(n+want) || a.Stats().Bytes != uint64(4196*n+4096*want) {
		return n, fmt.Errorf("after %d steps %v are left by others, %+v", n, left, a.Stats())
	}
	workers := map[string]bool{}
	for i := range n {
		if i%3 == 0 {
			delete(workers, strconv.Itoa((i+1)%7))
		}
		workers[strconv.Itoa(i%7)] = true
	}
	for s, t := range a.Totals().Spaces() {
		if s.Worker == "" {
			continue
		}
		if last := int(t.hi[0]); !workers[s.Worker] || last%7 != int(s.Worker[0]-'0') || last < n-7 {
			return n, fmt.Errorf("after %d steps worker %s has %d", n, s.Worker, last)
		}
		delete(workers, s.Worker)
	}
	if len(workers) > 0 {
		return n, fmt.Errorf("after %d steps workers %v are missing", n, workers)
	}
	return n, nil
}

func init() {
	children["steps"] = func(args []string) error {
		a, err := Open(args[0])
		if err != nil {
			return err
		}
		var pause time.Duration
		if len(args) > 1 {
			if pause, err = time.ParseDuration(args[1]); err != nil {
				return err
			}
		}
		for {
			if err := step(a); err != nil {
				return err
			}
			fmt.Println(len(a.stepKeys()))
			time.Sleep(pause)
		}
	}
}

// TestKilled kills a process that commits all the time, again and again: each commit is
// there or not, and none that it could tell of is missing.
func TestKilled(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, seed))
	for where, dir := range map[string]string{"memory": memoryDir(t), "disk": t.TempDir()} {
		acknowledged := 0
		// A busy machine may leave a process no time to begin: then the next has more.
		for round := range 200 {
			if round >= 12 && acknowledged >= 12 {
				break
			}
			c := startChild(t, "steps", dir)
			time.Sleep(time.Duration(r.IntN(60_000+5_000*round)) * time.Microsecond)
			c.Process.Kill()
			var said bytes.Buffer
			said.ReadFrom(c.out) //nolint:errcheck // it says what it has said
			c.kill()
			if lines := strings.Fields(said.String()); len(lines) > 0 {
				var err error
				acknowledged, err = strconv.Atoi(lines[len(lines)-1])
				mustDo(t, err)
			}
			v := reread(t, dir)
			n, err := checkSteps(v.Archive)
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			if n != acknowledged && n != acknowledged+1 {
				t.Fatalf("%s: %d steps are there, the last that was acknowledged is %d", where, n, acknowledged)
			}
			if acknowledged = n; r.IntN(2) == 0 { // go on with it from here
				a := mustOpen(t, dir)
				mustDo(t, step(a))
				mustDetach(t, a)
				acknowledged++
			}
		}
		if acknowledged < 12 {
			t.Errorf("%s: only %d steps", where, acknowledged)
		}
	}
}

// TestReadBeside reads beside a process that commits without a pause, and beside one in
// this process for the race detector. Every view is the state between two commits.
func TestReadBeside(t *testing.T) {
	t.Run("process", func(t *testing.T) {
		dir := memoryDir(t)
		c := startChild(t, "steps", dir)
		c.line(t)
		go func() { // lets the child go on; ends with it
			c.out.WriteTo(discard{}) //nolint:errcheck // see above
		}()
		readSteps(t, dir, 60)
		c.kill()
	})
	t.Run("goroutine", func(t *testing.T) {
		dir := memoryDir(t)
		a := mustOpen(t, dir)
		mustDo(t, step(a))
		stop, done := make(chan struct{}), make(chan error)
		go func() {
			for {
				select {
				case <-stop:
					done <- nil
					return
				default:
				}
				if err := step(a); err != nil {
					done <- err
					return
				}
			}
		}()
		readSteps(t, dir, 30)
		close(stop)
		mustDo(t, <-done)
	})
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

func readSteps(t *testing.T, dir string, views int) {
	t.Helper()
	last, changed := 0, 0
	// More views than that as long as nothing was written meanwhile, but not for ever.
	deadline := time.Now().Add(20 * time.Second)
	for n := 0; n < views || changed < 2 && time.Now().Before(deadline); n++ {
		v, err := Read(dir)
		if err != nil {
			t.Fatal(err)
		}
		n, err := checkSteps(v.Archive)
		if err != nil || n < last {
			t.Fatalf("%v; %d steps, before it were %d", err, n, last)
		}
		if n != last {
			changed++
		}
		last = n
	}
	t.Logf("%d views of %d states, the last after %d steps", views, changed, last)
	if changed < 2 {
		t.Error("nothing was written meanwhile")
	}
}

// TestCurrentOfAnotherFile: a file that was written anew is another one, even if it is the
// same byte for byte.
func TestCurrentOfAnotherFile(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustDo(t, step(a))
	mustDetach(t, a)
	v := reread(t, dir)
	if !v.Current() {
		t.Error("it is not current although nobody has written")
	}
	b, err := os.ReadFile(archivePath(dir))
	mustDo(t, err)
	writeFile(t, archivePath(dir)+".other", string(b))
	mustDo(t, os.Rename(archivePath(dir)+".other", archivePath(dir)))
	if v.Current() {
		t.Error("another file is taken for the one that was read")
	}
}

// TestReadChangesNothing: byte for byte, name for name, also of what a crash has left.
func TestReadChangesNothing(t *testing.T) {
	dir := t.TempDir()
	c := startChild(t, "steps", dir)
	for range 10 {
		c.line(t)
	}
	c.kill()
	writeFile(t, archivePath(dir)+".new-1", "half an archive")
	before := fingerprint(t, dir)
	v := reread(t, dir)
	if _, err := checkSteps(v.Archive); err != nil || !v.Exists() || !v.Current() || v.Attached() {
		t.Errorf("%v, exists %v, current %v", err, v.Exists(), v.Current())
	}
	if info, err := os.Stat(archivePath(dir)); err != nil || v.SizeBytes() != info.Size() || v.Path() != archivePath(dir) {
		t.Errorf("%q of %d bytes, %v", v.Path(), v.SizeBytes(), err)
	}
	if after := fingerprint(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
	a := mustOpen(t, dir)
	mustDo(t, step(a))
	if v.Current() {
		t.Error("a commit later, it is current")
	}
	before = fingerprint(t, dir)
	reread(t, dir) // beside one that has it open
	if after := fingerprint(t, dir); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}

	none := filepath.Join(t.TempDir(), "none")
	v, err := Read(none)
	if err != nil || v.Exists() || !v.Current() || !v.Totals().Empty() || v.SizeBytes() != 0 {
		t.Errorf("none: %v, exists %v", err, v.Exists())
	}
	if _, err := os.Stat(none); !os.IsNotExist(err) {
		t.Errorf("it was made: %v", err)
	}
}

// fingerprint is everything about the files of a directory but when they were last read.
func fingerprint(t testing.TB, dir string) string {
	t.Helper()
	var s strings.Builder
	for _, name := range append(names(t, dir), ".") {
		var st unix.Stat_t
		mustDo(t, unix.Lstat(filepath.Join(dir, name), &st))
		info, err := os.Lstat(filepath.Join(dir, name))
		mustDo(t, err)
		fmt.Fprintf(&s, "%s: inode %d, %v, %d bytes, %v\n", name, st.Ino, info.Mode(), info.Size(), info.ModTime())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(filepath.Join(dir, name))
			mustDo(t, err)
			fmt.Fprintf(&s, "%x\n", data)
		}
	}
	return s.String()
}

// TestReadWithoutTemporaryFiles: where none can be made, memory will do.
func TestReadWithoutTemporaryFiles(t *testing.T) {
	if f, err := memoryFile(); err != nil {
		t.Skip(err)
	} else {
		f.Close()
	}
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	t.Setenv("TMPDIR", filepath.Join(dir, "none"))
	wantContents(t, reread(t, dir).Archive, contentsOf(a))
}

// TestFileSizeLimit: commits that fail at some write leave memory and file as they were, and
// the next one that has room succeeds. The limit holds for a process, so a child sets it.
func TestFileSizeLimit(t *testing.T) {
	c := startChild(t, "limited", t.TempDir())
	out := strings.Fields(c.rest(t))
	if len(out) != 2 {
		t.Fatalf("%q", out)
	}
	failed, _ := strconv.Atoi(out[0])
	succeeded, _ := strconv.Atoi(out[1])
	t.Logf("%d commits failed, %d succeeded", failed, succeeded)
	if failed < 5 || succeeded < 3 {
		t.Error("that is no test")
	}
}

func init() {
	children["limited"] = func(args []string) error {
		signal.Ignore(syscall.SIGXFSZ)
		limit := func(bytes uint64) error {
			return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: bytes, Max: unix.RLIM_INFINITY})
		}
		dir := args[0]
		// First, not even an empty archive fits. Nothing stays behind.
		if err := limit(pageBytes); err != nil {
			return err
		}
		if _, err := Open(dir); !errors.Is(err, syscall.EFBIG) || errors.Is(err, ErrDamaged) {
			return fmt.Errorf("open: %w", err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			return fmt.Errorf("left %v, %w", entries, err)
		}
		if err := limit(unix.RLIM_INFINITY); err != nil {
			return err
		}
		a, err := Open(dir)
		if err != nil {
			return err
		}
		return failing(dir, a, func(n int) error {
			// Some way into the file or a little beyond its end.
			return limit(uint64(a.SizeBytes()) / 3 * uint64(n%5))
		}, func() error { return limit(unix.RLIM_INFINITY) })
	}
}

// failing tries commits while there is little room, and prints how many failed and how many
// succeeded at the first attempt. After a failure there is room again.
func failing(dir string, a *Archive, squeeze func(n int) error, relieve func() error) error {
	failed, succeeded := 0, 0
	for n := range 25 {
		before := contentsOf(a)
		batch := func() *Batch {
			b := NewBatch(at(int64(n)))
			f := b.File(counters, nil, 10)
			for i := range 60 {
				f.Add(fmt.Appendf(nil, "key %d of %d", i, n), float64(n), 0, true)
			}
			f.Record(fmt.Sprint("file-", n))
			return b
		}
		if n%2 == 0 {
			b := batch()
			b.records = nil
			a.Absorb(b)
			before = contentsOf(a)
		}
		if err := squeeze(n); err != nil {
			return err
		}
		err := a.Commit(batch(), nil)
		if relieveErr := relieve(); relieveErr != nil {
			return relieveErr
		}
		if err == nil {
			succeeded++
		} else {
			failed++
			// bbolt does not wrap the error when it cannot enlarge the file.
			full := errors.Is(err, syscall.EFBIG) || errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.EFBIG.Error())
			if !full || errors.Is(err, ErrDamaged) || !a.Attached() {
				return fmt.Errorf("commit %d: %w, attached %v", n, err, a.Attached())
			}
			if got := contentsOf(a); got != before {
				return fmt.Errorf("commit %d: %w, and it left\n%s\nof\n%s", n, err, got, before)
			}
			v, err := Verify(dir)
			if err != nil {
				return fmt.Errorf("after commit %d: %w", n, err)
			}
			if _, ok := v.Baseline(fmt.Sprint("file-", n)); ok {
				return fmt.Errorf("commit %d failed and is on disk", n)
			}
			if n%3 == 0 { // go on with what is on disk and what is in memory
				if err := errors.Join(a.Detach(), a.Attach(dir)); err != nil {
					return err
				}
				if got := contentsOf(a); got != before {
					return fmt.Errorf("after commit %d and Attach it has\n%s\nof\n%s", n, got, before)
				}
			}
			if err := a.Commit(batch(), nil); err != nil {
				return fmt.Errorf("commit %d with room: %w", n, err)
			}
		}
		v, err := Verify(dir)
		if err != nil {
			return fmt.Errorf("after commit %d: %w", n, err)
		}
		if got, want := contentsOf(v.Archive), contentsOf(a); got != want {
			return fmt.Errorf("after commit %d there is\n%s\nof\n%s", n, got, want)
		}
	}
	fmt.Println(failed, succeeded)
	return nil
}
