package archive

import (
	"bufio"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"aggregatord/internal/metric"
)

// childVariable makes the test program play a part in a test as another process: its value
// is the name of one of the children.
const childVariable = "AGGREGATORD_ARCHIVE_TEST_CHILD"

// children are the parts, by name. Each says what it has to say line by line.
var children = map[string]func(args []string) error{}

func TestMain(m *testing.M) {
	if name := os.Getenv(childVariable); name != "" {
		if err := children[name](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, name+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// A child is a process that a test started.
type child struct {
	*exec.Cmd
	out  *bufio.Reader
	done bool
}

func startChild(t testing.TB, name string, args ...string) *child {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := &child{Cmd: exec.Command(exe, args...)}
	// The race detector would let each process sleep for a second at its end.
	c.Env = append(os.Environ(), childVariable+"="+name, "GORACE=atexit_sleep_ms=0")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewReader(out)
	t.Cleanup(c.kill)
	return c
}

// line returns the next line that the child says.
func (c *child) line(t testing.TB) string {
	t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { c.Process.Kill() })
	defer timer.Stop()
	s, err := c.out.ReadString('\n')
	if err != nil {
		t.Fatalf("child said %q, then %v", s, err)
	}
	return strings.TrimSpace(s)
}

// rest waits until the child has ended and returns all that it has said since.
func (c *child) rest(t testing.TB) string {
	t.Helper()
	timer := time.AfterFunc(30*time.Second, func() { c.Process.Kill() })
	defer timer.Stop()
	s, err := io.ReadAll(c.out)
	if err != nil {
		t.Fatal(err)
	}
	c.done = true
	if err := c.Wait(); err != nil {
		t.Fatalf("child: %v, said %q", err, s)
	}
	return string(s)
}

// kill ends the child with SIGKILL and waits until it is gone.
func (c *child) kill() {
	if !c.done {
		c.done = true
		c.Process.Kill()
		c.Wait() //nolint:errcheck // it says that it was killed
	}
}

// skipUnlessCI skips a test that the machine does not allow. In CI it must allow it.
func skipUnlessCI(t *testing.T, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// The spaces of most tests.
var (
	counters  = Space{Type: metric.Counter}
	summaries = Space{Type: metric.Summary}
	newest    = Space{Type: metric.Gauge, Mode: metric.MostRecent}
	peaks     = Space{Type: metric.Gauge, Mode: metric.Max}
)

func worker(id string) Space { return Space{Type: metric.Gauge, Mode: metric.All, Worker: id} }

// at is a time in whole seconds, as the archive keeps them.
func at(second int64) time.Time { return time.Unix(1_700_000_000+second, 0) }

// entry is one value of a file.
type entry struct {
	key           string
	value, second float64
}

// fold adds a file to a batch, recorded under a name unless that is "".
func fold(b *Batch, s Space, name string, baseline []float64, entries ...entry) {
	f := b.File(s, baseline, 4096)
	for _, e := range entries {
		f.Add([]byte(e.key), e.value, e.second, true)
	}
	if name != "" {
		f.Record(name)
	}
}

// mustOpen opens an archive that is closed at the end of the test.
func mustOpen(t testing.TB, dir string) *Archive {
	t.Helper()
	a, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Detach(); err != nil {
			t.Error(err)
		}
	})
	return a
}

// mustPlace opens a directory that is closed at the end of the test.
func mustPlace(t testing.TB, dir string) *Place {
	t.Helper()
	p, err := OpenPlace(dir)
	mustDo(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// mustHidden is mustPlace for a watched directory.
func mustHidden(t testing.TB, dir string) *Place {
	t.Helper()
	p, err := OpenHiddenPlace(dir)
	mustDo(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

func mustCommit(t testing.TB, a *Archive, b *Batch) {
	t.Helper()
	if err := a.Commit(b, nil); err != nil {
		t.Fatal(err)
	}
}

func mustDetach(t testing.TB, a *Archive) {
	t.Helper()
	if err := a.Detach(); err != nil {
		t.Fatal(err)
	}
}

func mustDo(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// contentsOf spells out all that counts of an archive, values bit by bit.
func contentsOf(a *Archive) string {
	var s strings.Builder
	bits := func(v float64) string { return fmt.Sprintf("%v (%x)", v, math.Float64bits(v)) }
	for space, table := range a.Totals().Spaces() {
		fmt.Fprintf(&s, "%v %v %q folded %d\n", space.Type, space.Mode, space.Worker, table.LastFold().Unix())
		for i := range table.Len() {
			fmt.Fprintf(&s, "  %q = %s, %s\n", table.Key(i), bits(table.Values()[i]), bits(table.Stamps()[i]))
		}
	}
	for _, name := range a.Records() {
		values, _ := a.Baseline(name)
		fmt.Fprintf(&s, "record %q", name)
		for _, v := range values {
			s.WriteString(" " + bits(v))
		}
		s.WriteByte('\n')
	}
	st := a.Stats()
	fmt.Fprintf(&s, "folds %d, files %d, bytes %d, last %d\n", st.Folds, st.Files, st.Bytes, st.LastFold.Unix())
	return s.String()
}

// wantContents compares an archive with what contentsOf said of it earlier.
func wantContents(t testing.TB, a *Archive, want string) {
	t.Helper()
	if got := contentsOf(a); got != want {
		t.Fatalf("contents are\n%s\nwant\n%s", got, want)
	}
}

// reread returns what a new process would find.
func reread(t testing.TB, dir string) *View {
	t.Helper()
	v, err := Verify(dir)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// names lists a directory.
func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func archivePath(dir string) string { return filepath.Join(dir, FileName) }

// mixed is a batch with something of everything. n makes it differ from others.
func mixed(n int) *Batch {
	b := NewBatch(at(int64(n)))
	v := float64(n)
	fold(b, counters, fmt.Sprintf("counter_%d.db.run-%d", n, n), nil,
		entry{`["hits", "hits_total", {}, ""]`, 1, 0}, entry{`["hits", "hits_total", {"n": "` + fmt.Sprint(n) + `"}, ""]`, 0.1 * v, 0})
	fold(b, summaries, "", nil, entry{`["size", "size_sum", {}, ""]`, 1e16 / (v + 1), 0}, entry{`["size", "size_count", {}, ""]`, 1, 0})
	fold(b, newest, fmt.Sprintf("gauge_mostrecent_%d.db.run-%d", n, n), nil, entry{`["rate", "rate", {}, ""]`, v, 100 - v},
		entry{`["never", "never", {}, ""]`, 0, 0})
	fold(b, peaks, "", nil, entry{`["peak", "peak", {}, ""]`, v, 0})
	fold(b, worker(fmt.Sprint(n)), "", nil, entry{`["temp", "temp", {}, ""]`, -v, 0})
	return b
}
