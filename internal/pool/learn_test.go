package pool

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"aggregatord/internal/store"
)

// learning reports whether a file has more entries than were learned yet.
func (p *Pool) learning() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for t := range p.allLocked() {
		if t.more {
			return true
		}
	}
	return false
}

// put makes a file that holds just these bytes, in one step.
func put(t *testing.T, dir, base string, content []byte) {
	t.Helper()
	tmp := filepath.Join(t.TempDir(), base)
	if err := os.WriteFile(tmp, content, 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(dir, base)
	if err := os.Rename(tmp, to); err == nil {
		return
	}
	// Another file system.
	_ = os.Remove(to)
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// badKeys is a file of n entries of 16 bytes that nobody can read.
func badKeys(n int) []byte {
	b := binary.LittleEndian.AppendUint32(nil, uint32(8+16*n))
	b = append(b, 0, 0, 0, 0)
	for range n {
		b = append(b, 3, 0, 0, 0, 'b', 'a', 'd', ' ')
		b = append(b, make([]byte, 8)...)
	}
	return b
}

// TestFilesThatYieldNothing: files of which nothing can be read hold no descriptors once they are not
// young any more, keep none from others before, and are looked at again.
func TestFilesThatYieldNothing(t *testing.T) {
	dir := tmpfs(t)
	c := New(Spec{Path: dir}, Options{Archive: &ArchiveOptions{Rest: -1}})
	c.descriptors.max = 30
	h := &harness{Pool: c, t: t}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range 200 {
		put(t, dir, fmt.Sprintf("counter_bad%d.db", i), []byte("bad"))
	}
	write(t, dir, "counter_1.db").set("hits_total", 1)
	h.Tend(true)
	if !h.Ready() {
		t.Error("not ready, though all files that hold something were read")
	}
	h.want("hits_total 1")
	if used := h.descriptors.Used(); used > 30 {
		t.Errorf("%d files are open, want at most 30", used)
	}
	advance(c) // they are not young any more
	h.Tend(true)
	if used := h.descriptors.Used(); used != 1 {
		t.Errorf("%d files are open, want 1", used)
	}
	for i := 2; i < 30; i++ {
		write(t, dir, fmt.Sprintf("counter_%d.db", i)).set("hits_total", 1)
	}
	h.Tend(true)
	h.want("hits_total 29")

	// Another file of the same name is looked at when it is listed.
	write(t, dir, "counter_new.db").set("hits_total", 10).die()
	if err := os.Rename(filepath.Join(dir, "counter_new.db"), filepath.Join(dir, "counter_bad7.db")); err != nil {
		t.Fatal(err)
	}
	h.Tend(true)
	h.want("hits_total 39")

	// One that is mended is looked at after a while.
	write(t, dir, "counter_new.db").set("hits_total", 100).die()
	good, err := os.ReadFile(filepath.Join(dir, "counter_new.db"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "counter_new.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "counter_bad8.db"), good, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Fold() // makes room
	advance(c)
	h.Tend(false)
	h.want("hits_total 139")
}

// TestHalfMadeFile: a file that is seen before its writer has made it whole counts from the moment
// it is, though it is removed right after.
func TestHalfMadeFile(t *testing.T) {
	for name, half := range map[string][]byte{"empty": nil, "short": []byte("abc")} {
		t.Run(name, func(t *testing.T) {
			dir := tmpfs(t)
			h := collect(t, Spec{Path: dir})
			path := filepath.Join(dir, "counter_1.db")
			if err := os.WriteFile(path, half, 0o600); err != nil {
				t.Fatal(err)
			}
			h.Tend(true)
			h.Tend(true)
			elsewhere := t.TempDir()
			write(t, elsewhere, "counter_1.db").set("hits_total", 5).die()
			whole, err := os.ReadFile(filepath.Join(elsewhere, "counter_1.db"))
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			h.want("hits_total 5")
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			h.Tend(true)
			h.want("hits_total 5")
		})
	}
}

// TestEmptyFilesWait: files in which nothing is yet hold no descriptors that others need.
func TestEmptyFilesWait(t *testing.T) {
	dir := tmpfs(t)
	c := New(Spec{Path: dir}, Options{Archive: &ArchiveOptions{Rest: -1}})
	c.descriptors.max = 10
	h := &harness{Pool: c, t: t}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	var empty []*process
	for i := range 100 {
		empty = append(empty, write(t, dir, fmt.Sprintf("counter_e%d.db", i)))
	}
	for i := range 9 {
		write(t, dir, fmt.Sprintf("counter_%d.db", i)).set("hits_total", 1)
	}
	h.Tend(true)
	h.Tend(true)
	h.want("hits_total 9")
	if !h.Ready() {
		t.Error("not ready")
	}
	// What comes into one of them is found.
	empty[50].set("hits_total", 10)
	advance(c)
	h.Tend(false)
	h.want("hits_total 19")
}

// TestLearnsInSlices: a scrape learns a bounded part of a large file, rounds the rest, and each
// entry is looked at once.
func TestLearnsInSlices(t *testing.T) {
	dir := tmpfs(t)
	write(t, dir, "counter_1.db").set("hits_total", 1)
	h := collect(t, Spec{Path: dir})
	h.learnFor = 0
	const n = 2 * roundBytes / 16
	put(t, dir, "counter_2.db", badKeys(n))
	h.want("hits_total 1")
	bad := func() float64 { return h.own("aggregatord_entry_errors_total", "reason", string(store.BadKey)) }
	if got := bad(); got == 0 || got > scrapeBytes/16+1 {
		t.Errorf("a scrape has looked at %v entries, want about %d", got, scrapeBytes/16)
	}
	rounds := 0
	for ; h.learning(); rounds++ {
		before := bad()
		h.Tend(true)
		if got := bad() - before; got > (roundBytes+sliceBytes)/16 {
			t.Fatalf("a round has looked at %v entries", got)
		}
	}
	h.Tend(true)
	h.want("hits_total 1")
	if got := bad(); got != n || rounds < 2 {
		t.Errorf("%v entries were looked at in %d rounds, want each of %d once", got, rounds, n)
	}
}

// TestLearnsForATime: as long as it does not take long, a round learns all of a large file.
func TestLearnsForATime(t *testing.T) {
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	h.learnFor = time.Hour
	const n = 3 * roundBytes / 16
	put(t, dir, "counter_2.db", badKeys(n))
	h.Tend(true)
	if got := h.own("aggregatord_entry_errors_total", "reason", string(store.BadKey)); got != n || h.learning() {
		t.Errorf("a round has looked at %v entries, want all %d", got, n)
	}
}

// TestBadFileDelaysNobody: files that break before they are folded cost the others nothing.
func TestBadFileDelaysNobody(t *testing.T) {
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	for i := range 50 {
		write(t, dir, fmt.Sprintf("counter_%d.db", i)).set("hits_total", 1).die()
	}
	h.Tend(true)
	h.want("hits_total 50")
	for i := range 10 {
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprintf("counter_%d.db", 5*i)), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(make([]byte, 4), 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	h.Fold()
	if got := h.own("aggregatord_archive_folded_files_total"); got != 40 {
		t.Errorf("%v files were folded at once, want the 40 good ones", got)
	}
	h.want("hits_total 50")
}

// TestUnreadableKeys has a file with many of the shortest entries that cannot be read. They cost more
// than their bytes, so a scrape looks at fewer; what is behind them is found all the same.
func TestUnreadableKeys(t *testing.T) {
	dir := tmpfs(t)
	h := collect(t, Spec{Path: dir})
	h.view()
	const n = 70_000
	b := make([]byte, 8)
	add := func(key string) {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(key)))
		b = append(b, key...)
		b = append(b, strings.Repeat(" ", 8-(len(key)+4)%8)...)
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(3))
	}
	for range n {
		add("x")
	}
	add(`["behind","behind_total",{},""]`)
	binary.LittleEndian.PutUint32(b, uint32(len(b)))
	if err := os.WriteFile(filepath.Join(dir, "counter_1.db"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	refused := func() float64 { return h.own("aggregatord_entry_errors_total", "reason", "bad_key") }
	if h.view(); refused() == 0 || refused() > scrapeBytes/refusedBytes+1 {
		t.Errorf("a scrape has looked at %v entries that cannot be read", refused())
	}
	for h.Tend(true); h.learning(); {
		h.Tend(true)
	}
	h.want("behind_total 3")
	if refused() != n {
		t.Errorf("%v refused, want each once", refused())
	}
}
