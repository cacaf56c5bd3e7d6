package integration

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// workersText scrapes the text format and returns it without the daemon's own metrics.
func (d *daemon) workersText() []byte {
	d.t.Helper()
	body, _, err := d.get("/metrics", acceptText)
	if err != nil {
		d.t.Fatal(err)
	}
	var own []byte
	for line := range bytes.Lines(body) {
		rest := line
		for _, comment := range []string{"# HELP ", "# TYPE "} {
			rest = bytes.TrimPrefix(rest, []byte(comment))
		}
		if !bytes.HasPrefix(rest, []byte("aggregatord_")) {
			own = append(own, line...)
		}
	}
	return own
}

// dump runs aggregatord dump in the text format.
func dump(t *testing.T, flags ...string) []byte {
	t.Helper()
	out, err := output(t.Context(), nil, builtDaemon(t), append([]string{"dump", "--format", "text"}, flags...)...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tree describes all there is in directories: names, inodes, modes, times of the last
// change, contents.
func tree(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := e.Info()
			if err != nil {
				return err
			}
			id, err := identity(path)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("%v %v %v", id, info.Mode(), info.ModTime())
			if e.Type().IsRegular() {
				content, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				text += fmt.Sprintf(" %x", sha256.Sum256(content))
			}
			all[path] = text
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// unchanged fails unless two trees are equal, and names what is not.
func unchanged(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	for _, path := range slices.Sorted(maps.Keys(before)) {
		if before[path] != after[path] {
			t.Errorf("%s: %s was %q, is %q", when, path, before[path], after[path])
		}
		delete(after, path)
	}
	for _, path := range slices.Sorted(maps.Keys(after)) {
		t.Errorf("%s: %s is new", when, path)
	}
}

// TestDump compares dump with what the daemon serves, byte for byte: beside the daemon
// with workers alive, then with everything archived, and when the daemon is gone as well. It
// must leave everything as it was.
func TestDump(t *testing.T) {
	t.Parallel()
	for name, elsewhere := range map[string]bool{"archive_in_directory": false, "archive_elsewhere": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := sourceDir(t)
			dirs, flags := []string{dir}, []string{"--dir", dir}
			if elsewhere {
				archive := sourceDir(t)
				dirs, flags = append(dirs, archive), append(flags, "--archive.dir", archive)
			}
			// What processes use is the daemon's to tell, and dump has none.
			d := serve(t, append([]string{"--process.disable"}, flags...)...)
			w := startWorkers(t, dir, readable)
			// Byte for byte the daemon's answer, which is not empty and has what it must.
			check := func(when string, served []byte, series ...string) {
				t.Helper()
				dumped := dump(t, flags...)
				if !bytes.Equal(served, dumped) {
					t.Errorf("%s: the daemon serves\n%s\nbut dump prints\n%s", when, served, dumped)
				}
				for _, line := range append(series, "app_requests_total{path=\"/\"} 38", "app_latency_seconds_sum 20.625") {
					if !strings.Contains(string(dumped), "\n"+line+"\n") {
						t.Errorf("%s: dump does not print %s:\n%s", when, line, dumped)
					}
				}
			}
			levels := []string{fmt.Sprintf("app_level{pid=%q} -1.5", w.id(0)), fmt.Sprintf("app_level{pid=%q} 2", w.id(1))}
			check("workers alive", d.workersText(), append(levels, "app_in_progress 3")...)

			w.processes[0].kill()
			eventually(t, patience, func() error {
				files, err := sourceFiles(dir)
				if err != nil {
					return err
				}
				for _, file := range files {
					if strings.HasSuffix(baseOf(file), "_"+w.id(0)+".db") {
						return fmt.Errorf("%s is still there", file)
					}
				}
				return nil
			})
			check("one worker archived", d.workersText(), append(levels, "app_in_progress 2")...)

			w.finish(1)
			awaitFolded(t, dir)
			served := d.workersText()
			check("all archived", served, levels...)

			d.stop()
			before := tree(t, dirs...)
			check("no daemon", served, levels...)
			unchanged(t, "dump with nobody alive", before, tree(t, dirs...))
		})
	}
}

// TestDumpInTheMiddle kills the daemon in the middle of its work on many dead workers'
// files, again and again, and has dump add up what is left: files, staged files, of which
// some are archived already, and the archive. Then it lets a daemon go on, and has dump
// look while it does.
func TestDumpInTheMiddle(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(seed(t), 1))
	dir := sourceDir(t)
	files, total := 0, 0.0 // that were ever written
	there, before := 0, 0  // files still there, and staged ones, after the last crash
	write := func(n int) {
		t.Helper()
		for range n {
			files++
			there++
			total += float64(files)
			path := filepath.Join(dir, fmt.Sprintf("counter_%d.db", files))
			if err := os.WriteFile(path, sourceFile(4096, entry{counterKey("crash"), float64(files)}), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	for crash := range 4 {
		write(250)
		removing := crash%2 == 1
		d := start(t, exec.Command(builtDaemon(t), "serve", "--dir", dir, "--archive.rest", "0", "--web.listen-address", "127.0.0.1:0"))
		eventually(t, patience, func() error {
			left, err := sourceFiles(dir)
			if err != nil {
				return err
			}
			staged := slices.IndexFunc(left, isStaged)
			switch {
			case removing && len(left) >= there: // a file that moves meanwhile is seen twice
				return errors.New("nothing is removed")
			case !removing && (staged < 0 || len(left)-staged == before):
				return errors.New("nothing is staged")
			}
			return nil
		})
		if !removing { // which is quick
			<-time.After(time.Duration(r.IntN(50)) * time.Millisecond)
		}
		d.kill()

		found := tree(t, dir)
		v, err := parseText(dump(t, "--dir", dir))
		if err != nil {
			t.Fatal(err)
		}
		if got := v.value("crash", "crash_total"); got != total {
			t.Errorf("crash %d: crash_total is %v, want %v", crash, got, total)
		}
		unchanged(t, "dump after a crash", found, tree(t, dir))
		left, err := sourceFiles(dir)
		if err != nil {
			t.Fatal(err)
		}
		staged, err := stagedFiles(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("crash %d: %d of %d files left, %d of them staged", crash, len(left), files, len(staged))
		there, before = len(left), len(staged)
	}
	// And the next daemon ends what the others began. Whoever looks meanwhile finds each
	// value once, wherever it is just then.
	write(1000)
	d := serve(t, "--dir", dir)
	if got := d.mustText().value("crash", "crash_total"); got != total {
		t.Errorf("right after ready: crash_total is %v, want %v", got, total)
	}
	dumps := 0
	eventually(t, patience, func() error {
		v, err := parseText(dump(t, "--dir", dir))
		if err != nil {
			t.Fatal(err)
		}
		if got := v.value("crash", "crash_total"); got != total {
			t.Errorf("beside a daemon at work: crash_total is %v, want %v", got, total)
		}
		dumps++
		left, err := sourceFiles(dir)
		if err == nil && len(left) > 0 {
			err = fmt.Errorf("%d files are not archived or not removed", len(left))
		}
		return err
	})
	t.Logf("%d dumps beside the daemon at work", dumps)
	served := d.workersText()
	if v, err := parseText(served); err != nil || v.value("crash", "crash_total") != total {
		t.Errorf("all archived: the daemon serves\n%s\nwant crash_total %v: %v", served, total, err)
	}
	if dumped := dump(t, "--dir", dir); !bytes.Equal(served, dumped) {
		t.Errorf("the daemon serves\n%s\nbut dump prints\n%s", served, dumped)
	}
	d.stop()
}
