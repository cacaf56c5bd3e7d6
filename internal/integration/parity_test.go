package integration

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// parity is a watched directory, and beside it the yardstick for what the daemon says of
// it: a directory that holds what the watched one would hold if nobody removed a file. A
// daemon that archives takes the files of the dead away, so their other names are there;
// for one that leaves them alone the watched directory is its own yardstick.
type parity struct {
	t        *testing.T
	archived bool
	// dir is the watched directory. It need not exist.
	dir string
	// shadow is nil unless archived.
	shadow *shadow
}

// bothModes runs a test as two: beside a daemon that archives dead workers' files, as it
// does unless told otherwise, and beside one that leaves them alone.
func bothModes(t *testing.T, test func(t *testing.T, archived bool)) {
	for _, archived := range []bool{true, false} {
		t.Run(fmt.Sprintf("archive=%v", archived), func(t *testing.T) {
			t.Parallel()
			test(t, archived)
		})
	}
}

// newParity returns the parity of a new directory.
func newParity(t *testing.T, archived bool) *parity {
	t.Helper()
	return newParityOf(t, sourceDir(t), archived)
}

// newParityOf is newParity for a directory that is, or will be, on the file system of
// those that sourceDir makes. No file may have been removed from it.
func newParityOf(t *testing.T, dir string, archived bool) *parity {
	t.Helper()
	p := &parity{t: t, archived: archived, dir: dir}
	if archived {
		p.shadow = newShadow(t, dir)
	}
	return p
}

// flags returns the daemon's flags for the directory.
func (p *parity) flags() []string {
	if p.archived {
		return []string{"--dir", p.dir}
	}
	return []string{"--dir", p.dir, "--archive.disable"}
}

// serve starts a daemon on the directory.
func (p *parity) serve() *daemon {
	p.t.Helper()
	return serve(p.t, p.flags()...)
}

// all returns the directory with every file there ever was.
func (p *parity) all() string {
	p.t.Helper()
	if !p.archived {
		return p.dir
	}
	p.shadow.sync()
	return p.shadow.dir
}

// count returns how many source files of a kind there ever were: one for each process.
func (p *parity) count(pattern string) int {
	p.t.Helper()
	return countFiles(p.t, p.all(), pattern)
}

// agree compares what the daemon serves with the client's collector on the yardstick, for
// which the processes are alive that have a file mapped.
func (p *parity) agree(d *daemon) error {
	p.t.Helper()
	return d.agree(p.all(), "--proc", p.dir)
}

// agreeAlive is agree for when the ids of the living are known. For strict see agreeAs.
func (p *parity) agreeAlive(d *daemon, strict bool, ids []string) error {
	p.t.Helper()
	return d.agreeAs(p.all(), strict, append([]string{"--alive"}, ids...)...)
}

// folded waits, with all workers dead, until the daemon has archived and removed every
// file, and checks that it says it did so to each once. Nothing to do without an archive.
func (p *parity) folded(d *daemon) {
	p.t.Helper()
	if !p.archived {
		return
	}
	awaitFolded(p.t, p.dir)
	p.shadow.sync()
	want := countFiles(p.t, p.shadow.dir, "*.db")
	v := d.mustText()
	const files, reopened = "aggregatord_archive_folded_files", "aggregatord_archive_reopened_files"
	if got := v.total(files, files+"_total"); got != float64(want) {
		p.t.Errorf("the daemon archived %v files, of %d there were", got, want)
	}
	if got := v.total(reopened, reopened+"_total"); got != 0 {
		p.t.Errorf("%v files were written to after they had been archived: by whom?", got)
	}
}

// awaitFolded waits until a directory holds no source file any more, and the staging
// neither.
func awaitFolded(t *testing.T, dir string) {
	t.Helper()
	eventually(t, patience, func() error {
		files, err := sourceFiles(dir)
		if err != nil {
			return err
		}
		if len(files) > 0 {
			return fmt.Errorf("%d files are not archived or not removed, such as %s", len(files), files[0])
		}
		return nil
	})
}

// stagedPrefix begins the names that a daemon gives the files of the dead while it archives
// them. The old name follows, a dot and something new.
const stagedPrefix = ".aggregatord.staged."

func isStaged(name string) bool { return strings.HasPrefix(filepath.Base(name), stagedPrefix) }

// stagedFiles lists the staged files of a directory.
func stagedFiles(dir string) ([]string, error) {
	paths, err := sourceFiles(dir)
	return slices.DeleteFunc(paths, func(path string) bool { return !isStaged(path) }), err
}

// sourceFiles returns the paths of a directory's source files, the staged ones last: a file
// that is staged meanwhile is not missed. The directory need not exist.
func sourceFiles(dir string) ([]string, error) {
	var paths []string
	for _, staged := range []bool{false, true} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		for _, e := range entries {
			if staged && isStaged(e.Name()) || !staged && strings.HasSuffix(e.Name(), ".db") {
				paths = append(paths, filepath.Join(dir, e.Name()))
			}
		}
	}
	return paths, nil
}

// baseOf returns the name that a file of sourceFiles was made under.
func baseOf(path string) string {
	base := strings.TrimPrefix(filepath.Base(path), stagedPrefix)
	if at := strings.LastIndex(base, ".db."); at >= 0 && isStaged(path) {
		base = base[:at+len(".db")]
	}
	return base
}

// A shadow gives every file that appears in a watched directory a second name in a
// directory of its own, under which its bytes stay when the daemon has removed it. It is
// looked at far more often than a daemon removes what it has staged, which takes a second.
type shadow struct {
	t            *testing.T
	watched, dir string
	// mu guards known.
	mu sync.Mutex
	// known are the device and inode numbers of the files that are in dir. As they are there,
	// no other file can get the same.
	known map[[2]uint64]bool
}

// newShadow begins to shadow a directory, until the test ends.
func newShadow(t *testing.T, watched string) *shadow {
	t.Helper()
	s := &shadow{t: t, watched: watched, dir: sourceDir(t), known: map[[2]uint64]bool{}}
	stop, stopped := make(chan struct{}), make(chan struct{})
	// Ends when stop is closed.
	go func() {
		defer close(stopped)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				s.sync()
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-stopped })
	return s
}

// sync takes up what is in the watched directory now. It may be called from any goroutine.
func (s *shadow) sync() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for moved := true; moved; {
		moved = false
		paths, err := sourceFiles(s.watched)
		if err != nil {
			s.t.Errorf("shadow: %v", err)
		}
		for _, path := range paths {
			switch err := s.takeLocked(path); {
			case errors.Is(err, fs.ErrNotExist):
				moved = true // since it was listed; look again
			case err != nil:
				s.t.Errorf("shadow: %v", err)
			}
		}
	}
}

func (s *shadow) takeLocked(path string) error {
	id, err := identity(path)
	if err != nil || s.known[id] {
		return err
	}
	base := baseOf(path)
	// Between the look and the link the name may have passed to another file; so link
	// first, and look at what was linked.
	link := filepath.Join(s.dir, base)
	for n := 2; ; n++ {
		err := os.Link(path, link)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		// The ID was used again, by another process with a file of its own.
		link = filepath.Join(s.dir, fmt.Sprintf("%s.%d.db", strings.TrimSuffix(base, ".db"), n))
	}
	if id, err = identity(link); err != nil {
		return err
	}
	if s.known[id] {
		return os.Remove(link)
	}
	s.known[id] = true
	return nil
}

// identity returns the device and inode number of what a path leads to.
func identity(path string) ([2]uint64, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return [2]uint64{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return [2]uint64{uint64(st.Dev), st.Ino}, nil //nolint:unconvert // Dev is an int32 on macOS
}

// TestShadow moves files as a daemon does, and takes names for new ones.
func TestShadow(t *testing.T) {
	t.Parallel()
	watched := filepath.Join(sourceDir(t), "later")
	s := newShadow(t, watched)
	s.sync()
	if err := os.MkdirAll(watched, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(watched, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stage := func(name, number string) {
		t.Helper()
		if err := os.Rename(filepath.Join(watched, name), filepath.Join(watched, stagedPrefix+name+".0123-"+number)); err != nil {
			t.Fatal(err)
		}
	}
	write("counter_1.db", "seen, staged, removed")
	write("notes.txt", "none of ours")
	s.sync()
	stage("counter_1.db", "1")
	s.sync()
	if err := os.Remove(filepath.Join(watched, stagedPrefix+"counter_1.db.0123-1")); err != nil {
		t.Fatal(err)
	}
	write("counter_1.db", "the same ID once more")
	s.sync()
	write("gauge_all_a.b.db", "staged before it was seen")
	stage("gauge_all_a.b.db", "2")
	s.sync()
	got := map[string]string{}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(s.dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		got[e.Name()] = string(text)
	}
	if want := map[string]string{
		"counter_1.db":     "seen, staged, removed",
		"counter_1.2.db":   "the same ID once more",
		"gauge_all_a.b.db": "staged before it was seen",
	}; !maps.Equal(got, want) {
		t.Errorf("the shadow holds %q, want %q", got, want)
	}
}
