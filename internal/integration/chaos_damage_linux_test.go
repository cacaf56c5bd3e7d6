package integration

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// ofPool returns the part of a view that is of one pool, without the label.
func ofPool(v view, pool string) view {
	part := view{}
	label := fmt.Sprintf("pool=%q", pool)
	for name, f := range v {
		for series, x := range f.Samples {
			if !strings.Contains(series, label) {
				continue
			}
			if part[name] == nil {
				part[name] = &family{Type: f.Type, Help: f.Help, Samples: map[string]float64{}}
			}
			// The label may stand alone, first, or behind others.
			for _, cut := range []string{"{" + label + "}", label + ",", "," + label} {
				series = strings.Replace(series, cut, "", 1)
			}
			part[name].Samples[series] = x
		}
	}
	return part
}

// damageOf changes an archive in some way that seed decides, and says how.
func damageOf(r *rand.Rand, archive []byte) (damaged []byte, how string) {
	const page = 4096
	b := bytes.Clone(archive)
	at := r.IntN(len(b))
	from := at / page * page
	switch r.IntN(9) {
	case 0, 1, 2:
		b[at] ^= byte(1 + r.IntN(255))
		return b, fmt.Sprintf("byte %d changed", at)
	case 3:
		b[at] ^= 1 << r.IntN(8)
		return b, fmt.Sprintf("bit of byte %d changed", at)
	case 4:
		clear(b[from:min(from+page, len(b))])
		return b, fmt.Sprintf("page %d zeroed", at/page)
	case 5:
		for i := range b[from:min(from+page, len(b))] {
			b[from+i] = byte(r.Uint32())
		}
		return b, fmt.Sprintf("page %d random", at/page)
	case 6:
		return b[:at], fmt.Sprintf("cut to %d bytes", at)
	case 7:
		return b[:at/page*page], fmt.Sprintf("cut to %d pages", at/page)
	default:
		to := r.IntN(len(b)) / page * page
		copy(b[to:min(to+page, len(b))], archive[from:])
		return b, fmt.Sprintf("page %d is a copy of page %d", to/page, at/page)
	}
}

// settings runs one daemon on many directories, each of which is a pool.
type settings struct {
	t     *testing.T
	dirs  []string
	herds []*herd
}

// name is the pool's.
func (s *settings) name(i int) string { return fmt.Sprintf("d%02d", i) }

func (s *settings) flags() []string {
	var flags []string
	for i, dir := range s.dirs {
		flags = append(flags, "--dir", s.name(i)+"="+dir)
	}
	return flags
}

func (s *settings) archive(i int) string {
	return filepath.Join(s.dirs[i], ".aggregatord.archive")
}

// asides lists the archives that were set aside in a directory.
func (s *settings) asides(i int) []string {
	s.t.Helper()
	paths, err := filepath.Glob(s.archive(i) + ".damaged-*")
	if err != nil {
		s.t.Fatal(err)
	}
	return paths
}

// read returns a file's contents.
func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestDamagedArchive damages archives in many ways before a start. Each is either used and
// has exactly the right totals, then and after more was added to it, or it is set aside,
// loudly and untouched. No damage keeps the daemon from serving the other directories.
func TestDamagedArchive(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(seed(t), 10))
	root := sourceDir(t)
	// The pattern has had several commits, free pages, and files in the staging that are
	// recorded as folded, because the daemon was killed before it removed them.
	pattern := filepath.Join(root, "pattern")
	if err := os.Mkdir(pattern, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &herd{t: t, dir: pattern, fresh: true}
	d := serve(t, "--dir", pattern)
	for range 3 {
		h.mustBorn(3)
		h.die()
		eventually(t, patience, func() error { return empty(pattern) })
	}
	h.mustBorn(3)
	h.die()
	eventually(t, patience, func() error {
		if names := sources(t, pattern); len(names) > 0 {
			return fmt.Errorf("files are left: %v", names)
		}
		if n := own(d.mustText(), "aggregatord_archive_removing_files"); n != 6 {
			return fmt.Errorf("%v files are being removed, want 6", n)
		}
		return nil
	})
	d.murder()
	names, err := left(pattern)
	if err != nil || len(names) != 6 {
		t.Fatalf("in the staging there are %v, %v, want 6 files", names, err)
	}
	h.mustCheck("undamaged", func() *daemon { d := serve(t, "--dir", copyTree(t, pattern, filepath.Join(root, "copy"))); return d }())

	s := &settings{t: t}
	whole := read(t, filepath.Join(pattern, ".aggregatord.archive"))
	const pools = 60
	how, damaged := make([]string, pools), make([][]byte, pools)
	for i := range pools {
		s.dirs = append(s.dirs, copyTree(t, pattern, filepath.Join(root, s.name(i))))
		damaged[i], how[i] = damageOf(r, whole)
		if err := os.WriteFile(s.archive(i), damaged[i], 0o600); err != nil {
			t.Fatal(err)
		}
		mine := *h
		mine.dir = s.dirs[i]
		s.herds = append(s.herds, &mine)
	}
	d = serve(t, s.flags()...)
	v := d.mustText()
	aside := 0
	for i, h := range s.herds {
		part := ofPool(v, s.name(i))
		kept := s.asides(i)
		if len(kept) == 0 {
			if err := h.check(part); err != nil {
				t.Errorf("%s (%s): not set aside, but: %v", s.name(i), how[i], err)
			}
			continue
		}
		aside++
		if len(kept) != 1 || !bytes.Equal(read(t, kept[0]), damaged[i]) {
			t.Errorf("%s (%s): set aside as %v, which is not what was there", s.name(i), how[i], kept)
		}
		if n := own(part, "aggregatord_archive_set_aside_total"); n != 1 {
			t.Errorf("%s (%s): aggregatord_archive_set_aside_total is %v, want 1", s.name(i), how[i], n)
		}
		if !slices.ContainsFunc(d.logs(), func(entry map[string]any) bool {
			return entry["level"] == "error" && entry["pool"] == s.name(i) && entry["kept_as"] == kept[0]
		}) {
			t.Errorf("%s (%s): the log does not say at level error where it is", s.name(i), how[i])
		}
		// What is in the staging counts in full now: there is no record of it any more.
		x := part.total("herd", "herd_total")
		if x <= 0 || x >= h.total {
			t.Errorf("%s (%s): herd_total is %v, want what the 3 last of %d workers counted", s.name(i), how[i], x, h.next)
		}
		h.total = x
	}
	t.Logf("of %d damaged archives %d were set aside; the others have the right totals", pools, aside)

	// An archive that was used must stay right: a page that is wrongly taken for a free
	// one is overwritten now.
	for range 2 {
		for _, h := range s.herds {
			h.mustBorn(2)
			h.die()
		}
		check := func(when string) {
			t.Helper()
			v := d.mustText()
			for i, h := range s.herds {
				if err := h.check(ofPool(v, s.name(i))); err != nil {
					t.Errorf("%s (%s), %s: %v", s.name(i), how[i], when, err)
				}
			}
		}
		check("before a fold")
		for i := range s.dirs {
			eventually(t, patience, func() error {
				if err := empty(s.dirs[i]); err != nil {
					return fmt.Errorf("%s (%s): %w", s.name(i), how[i], err)
				}
				return nil
			})
		}
		check("after it")
		d.murder()
		d = serve(t, s.flags()...)
		check("after a restart")
	}
}

// copyTree copies a directory with cp, which keeps holes, and returns the copy's path.
func copyTree(t *testing.T, from, to string) string {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

// TestDamagedUnderDaemon damages archives that a daemon has open. What it serves stays
// right, from memory; in the end it archives again or says that it cannot; and what it then
// says is archived is there after a restart, or was set aside.
func TestDamagedUnderDaemon(t *testing.T) {
	t.Parallel()
	root := sourceDir(t)
	r := rand.New(rand.NewPCG(seed(t), 11))
	overwrite := func(change func(b []byte)) func(path string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return err
			}
			b := make([]byte, info.Size())
			if _, err := f.ReadAt(b, 0); err != nil {
				return err
			}
			change(b)
			_, err = f.WriteAt(b, 0)
			return err
		}
	}
	cut := func(bytes int64) func(string) error {
		return func(path string) error { return os.Truncate(path, bytes) }
	}
	random := func(b []byte) {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	var old, foreign string // paths of archives
	replace := func(from *string) func(string) error {
		return func(path string) error {
			if err := os.WriteFile(path+".copy", read(t, *from), 0o600); err != nil {
				return err
			}
			return os.Rename(path+".copy", path)
		}
	}
	cases := []struct {
		name string
		do   func(path string) error
		// stuck says that there is no way out for the daemon without somebody's help.
		stuck bool
	}{
		{"cut_to_nothing", cut(0), false},
		{"cut_within_meta", cut(100), false},
		{"cut_to_one_page", cut(4096), false},
		{"cut_to_two_pages", cut(8192), false},
		{"cut_to_five_pages", cut(5 * 4096), false},
		{"random", overwrite(random), false},
		{"metas_zeroed", overwrite(func(b []byte) { clear(b[:8192]) }), false},
		{"all_but_metas_zeroed", overwrite(func(b []byte) { clear(b[8192:]) }), false},
		{"all_but_metas_random", overwrite(func(b []byte) { random(b[8192:]) }), false},
		{"a_page_zeroed", overwrite(func(b []byte) { at := (2 + r.IntN(len(b)/4096-2)) * 4096; clear(b[at : at+4096]) }), false},
		{"bytes_flipped", overwrite(func(b []byte) {
			for range 20 {
				b[r.IntN(len(b))] ^= 0xff
			}
		}), false},
		{"removed", os.Remove, false},
		{"moved", func(path string) error { return os.Rename(path, path+".moved") }, false},
		{"a_directory_in_its_place", func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) }, true},
		{"an_older_copy_in_its_place", replace(&old), true},
		{"another_archive_in_its_place", replace(&foreign), true},
		{"hidden_files_removed", func(path string) error {
			hidden, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".aggregatord*"))
			for _, file := range hidden {
				err = errors.Join(err, os.RemoveAll(file))
			}
			return err
		}, false},
	}
	s := &settings{t: t}
	for i, c := range cases {
		dir := filepath.Join(root, s.name(i)+"_"+c.name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		s.dirs = append(s.dirs, dir)
		s.herds = append(s.herds, &herd{t: t, dir: dir, fresh: true})
	}
	d := serve(t, s.flags()...)
	check := func(when string, d *daemon, but ...int) {
		t.Helper()
		v := d.mustText()
		for i, h := range s.herds {
			if slices.Contains(but, i) {
				continue
			}
			if err := h.check(ofPool(v, s.name(i))); err != nil {
				t.Errorf("%s, %s: %v", cases[i].name, when, err)
			}
		}
	}
	grow := func() {
		t.Helper()
		for _, h := range s.herds {
			h.mustBorn(4)
			h.die()
		}
	}
	folded := func() {
		t.Helper()
		for _, dir := range s.dirs {
			eventually(t, patience, func() error { return empty(dir) })
		}
	}
	grow()
	folded()
	for i, c := range cases {
		if strings.HasPrefix(c.name, "an_older") {
			old = filepath.Join(root, "old")
			if err := os.WriteFile(old, read(t, s.archive(i)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	foreign = s.archive(0)
	grow()
	folded()
	check("undamaged", d)
	for i, c := range slices.Backward(cases) {
		if err := c.do(s.archive(i)); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
	}
	check("damaged", d)
	grow()
	check("with more dead", d)
	// A few rounds of trying.
	for range 7 {
		time.Sleep(time.Second)
		check("while it tries", d)
	}
	grow()
	check("with still more dead", d)
	var stuck []int
	for i, c := range cases {
		eventually(t, patience, func() error {
			up := own(ofPool(d.mustText(), s.name(i)), "aggregatord_archive_up")
			if up == 0 && c.stuck {
				stuck = append(stuck, i)
				return nil
			}
			if err := empty(s.dirs[i]); err != nil || up != 1 {
				return fmt.Errorf("%s: aggregatord_archive_up is %v and %w", c.name, up, err)
			}
			return nil
		})
		if !c.stuck {
			continue
		}
		if !slices.ContainsFunc(d.logs(), func(entry map[string]any) bool {
			return entry["level"] == "error" && entry["pool"] == s.name(i)
		}) {
			t.Errorf("%s: the log does not say that nothing can be archived", c.name)
		}
	}
	check("in the end", d)
	d.murder()
	d = serve(t, s.flags()...)
	v := d.mustText()
	for i, h := range s.herds {
		if slices.Contains(stuck, i) {
			continue // it had said so
		}
		part := ofPool(v, s.name(i))
		if err := h.check(part); err != nil && own(part, "aggregatord_archive_set_aside_total") == 0 {
			t.Errorf("%s, after a restart: %v", cases[i].name, err)
		} else if err != nil {
			t.Logf("%s, after a restart: the archive was set aside", cases[i].name)
		}
	}
}
