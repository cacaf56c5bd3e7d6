package archive

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sortedNames(t testing.TB, dir string) []string {
	t.Helper()
	all := names(t, dir)
	slices.Sort(all)
	return all
}

// TestHiddenPlace: in a watched directory there are hidden regular files only, none of which
// ends in .db, and all that an archive does works with them.
func TestHiddenPlace(t *testing.T) {
	dir := t.TempDir()
	p := mustHidden(t, dir)
	a := New()
	mustDo(t, a.AttachTo(p, nil))
	mustCommit(t, a, mixed(1))
	mustDo(t, a.Compact())
	mustDo(t, p.makeBallast(1<<16))
	mustCommit(t, a, mixed(2))
	want := contentsOf(a)
	if !a.InPlace() || a.Path() != filepath.Join(dir, ".aggregatord.archive") {
		t.Errorf("%q, in place %v", a.Path(), a.InPlace())
	}
	v, err := p.Verify()
	mustDo(t, err)
	wantContents(t, v.Archive, want)
	if _, err := p.Reset(nil, at(0)); !errors.Is(err, ErrLocked) {
		t.Errorf("in use: %v", err)
	}
	mustDetach(t, a)
	kept, err := p.Reset(nil, at(0))
	mustDo(t, err)
	aside, err := p.SetAside(at(1))
	mustDo(t, err)
	wanted := []string{
		".aggregatord.archive.damaged-20231114T221321Z", ".aggregatord.archive.reset-20231114T221320Z",
		".aggregatord.ballast", ".aggregatord.owner",
	}
	if got := sortedNames(t, dir); !slices.Equal(got, wanted) || filepath.Base(aside) != wanted[0] || filepath.Base(kept) != wanted[1] {
		t.Errorf("%q, %q, %q", got, aside, kept)
	}
	for _, name := range wanted {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if list, err := p.SetAsides(); err != nil || len(list) != 2 {
		t.Errorf("%q, %v", list, err)
	}
}

// TestPlaceStaysWhatItIs: what was opened is reached by its descriptor, whatever its path leads
// to meanwhile.
func TestPlaceStaysWhatItIs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	other := t.TempDir()
	mustDo(t, os.Mkdir(dir, 0o700))
	p := mustHidden(t, dir)
	mustDo(t, os.Rename(dir, dir+".away"))
	mustDo(t, os.Symlink(other, dir))
	a := New()
	mustDo(t, a.AttachTo(p, nil))
	mustCommit(t, a, mixed(1))
	mustDo(t, p.makeBallast(4096))
	if a.InPlace() || p.InPlace() {
		t.Error("it is in place")
	}
	if got := names(t, other); len(got) != 0 {
		t.Errorf("it wrote %q elsewhere", got)
	}
	if err := a.Compact(); !errors.Is(err, errNotInPlace) {
		t.Errorf("compact: %v", err)
	}
	mustDetach(t, a)
	if got := sortedNames(t, dir+".away"); !slices.Equal(got,
		[]string{".aggregatord.archive", ".aggregatord.ballast", ".aggregatord.owner"}) {
		t.Errorf("%q", got)
	}
}

// TestUnsafeFiles: nothing is ever written through what somebody put in the way, and nobody
// waits for it.
func TestUnsafeFiles(t *testing.T) {
	for what, put := range map[string]func(t *testing.T, path, target string) error{
		"link":      func(_ *testing.T, path, target string) error { return os.Symlink(target, path) },
		"hard_link": func(_ *testing.T, path, target string) error { return os.Link(target, path) },
		"pipe":      func(_ *testing.T, path, _ string) error { return unix.Mkfifo(path, 0o666) },
		"directory": func(_ *testing.T, path, _ string) error { return os.Mkdir(path, 0o700) },
		"zeros":     func(_ *testing.T, path, _ string) error { return os.Symlink("/dev/zero", path) },
		"huge": func(_ *testing.T, path, _ string) error {
			return errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, 1<<40))
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir, target := memoryDir(t), ""
			target = filepath.Join(dir, "precious") // links need the same file system
			writeFile(t, target, "precious")
			p := mustHidden(t, dir)
			for _, name := range []string{archiveName, ballastName, ownerName, ownerName + ".new"} {
				mustDo(t, put(t, filepath.Join(dir, p.name(name)), target))
			}
			if who := p.Owner(); !strings.HasPrefix(who, "another aggregatord") {
				t.Errorf("owner: %s", who)
			}
			if err := p.makeBallast(1 << 16); !errors.Is(err, fs.ErrExist) {
				t.Errorf("ballast: %v", err)
			}
			p.WriteOwner()
			a := New()
			if err := a.AttachTo(p, nil); err == nil || a.Attached() || what != "huge" && what != "hard_link" &&
				errors.Is(err, ErrDamaged) {
				t.Errorf("attach: %v", err)
			}
			if data, err := os.ReadFile(target); err != nil || string(data) != "precious" {
				t.Errorf("%q, %v", data, err)
			}
		})
	}
	t.Run("archive_with_two_names", func(t *testing.T) {
		dir := t.TempDir()
		a := mustOpen(t, dir)
		mustCommit(t, a, mixed(1))
		want := contentsOf(a)
		mustDetach(t, a)
		mustDo(t, os.Link(archivePath(dir), archivePath(dir)+".backup"))
		if err := New().Attach(dir); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "has 2 names") {
			t.Errorf("%v", err)
		}
		wantContents(t, reread(t, dir).Archive, want)
	})
}

// TestResetStopped: a crash between the two steps of a reset leaves the archive as it was.
func TestResetStopped(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	want := contentsOf(a)
	mustDetach(t, a)
	_, err := mustPlace(t, dir).secondName("reset", at(0))
	mustDo(t, err)
	wantContents(t, mustOpen(t, dir), want)
	if list, err := SetAsides(dir); err != nil || len(list) != 0 {
		t.Errorf("%q, %v", list, err)
	}
}

// formerDir is a watched directory as an earlier version leaves it.
func formerDir(t *testing.T) (dir, want string) {
	t.Helper()
	dir = t.TempDir()
	hidden := filepath.Join(dir, HiddenDir)
	mustDo(t, os.MkdirAll(filepath.Join(hidden, formerStaged), 0o700))
	a := mustOpen(t, hidden)
	mustCommit(t, a, mixed(1))
	want = contentsOf(a)
	mustDetach(t, a)
	writeFile(t, filepath.Join(hidden, "ballast"), "zeros")
	writeFile(t, archivePath(hidden)+".damaged-20231114T221320Z", "damaged")
	writeFile(t, archivePath(hidden)+".new-123", "half")
	return dir, want
}

// TestTakeOver: what an earlier version left is moved, whole and once.
func TestTakeOver(t *testing.T) {
	dir, want := formerDir(t)
	p := mustHidden(t, dir)
	// Who only looks sees it where it lies.
	v, err := p.Read()
	mustDo(t, err)
	wantContents(t, v.Archive, want)
	if !v.Current() || v.Path() != filepath.Join(dir, HiddenDir, FileName) {
		t.Errorf("%q, current %v", v.Path(), v.Current())
	}
	staged := filepath.Join(dir, HiddenDir, formerStaged, "counter_1.db.run-1")
	writeFile(t, staged, "of a worker")

	got, err := p.TakeOver(at(0))
	mustDo(t, err)
	if !got.Archive || !got.Left || !slices.Equal(got.SetAside, []string{".aggregatord.archive.damaged-20231114T221320Z"}) {
		t.Errorf("%+v", got)
	}
	if v.Current() {
		t.Error("the view from before is current")
	}
	a := New()
	mustDo(t, a.AttachTo(p, nil))
	wantContents(t, a, want)
	mustDetach(t, a)
	// Once the staged files are gone, the directory goes.
	mustDo(t, os.RemoveAll(filepath.Dir(staged)))
	got, err = p.TakeOver(at(0))
	mustDo(t, err)
	if got.Archive || got.Left || len(got.SetAside) > 0 {
		t.Errorf("%+v", got)
	}
	if got := sortedNames(t, dir); !slices.Equal(got, []string{
		".aggregatord.archive", ".aggregatord.archive.damaged-20231114T221320Z",
		".aggregatord.owner",
	}) {
		t.Errorf("%q", got)
	}
	if got, err := p.TakeOver(at(0)); err != nil || got.Archive {
		t.Errorf("%+v, %v", got, err)
	}
	if got, err := mustPlace(t, dir).TakeOver(at(0)); err != nil || got.Archive {
		t.Errorf("a place of its own: %+v, %v", got, err)
	}
}

// TestTakeOverBeside: an archive that is there already stays, the other is kept; a daemon of the
// earlier version keeps what it has; and what is no directory is left alone.
func TestTakeOverBeside(t *testing.T) {
	t.Run("both", func(t *testing.T) {
		dir, _ := formerDir(t)
		p := mustHidden(t, dir)
		a := New()
		mustDo(t, a.AttachTo(p, nil))
		mustCommit(t, a, mixed(7))
		want := contentsOf(a)
		mustDetach(t, a)
		got, err := p.TakeOver(at(0))
		mustDo(t, err)
		if got.Archive || !slices.Contains(got.SetAside, ".aggregatord.archive.former-20231114T221320Z") {
			t.Errorf("%+v", got)
		}
		v, err := p.Read()
		mustDo(t, err)
		wantContents(t, v.Archive, want)
	})
	for _, what := range []string{FileName, formerStaged} {
		t.Run("locked_"+what, func(t *testing.T) {
			dir, _ := formerDir(t)
			f, err := os.Open(filepath.Join(dir, HiddenDir, what))
			mustDo(t, err)
			defer f.Close()
			mustDo(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
			if _, err := mustHidden(t, dir).TakeOver(at(0)); !errors.Is(err, ErrLocked) {
				t.Errorf("%v", err)
			}
			if _, err := os.Stat(archivePath(filepath.Join(dir, HiddenDir))); err != nil {
				t.Errorf("it was moved: %v", err)
			}
		})
	}
	for what, put := range map[string]func(path string) error{
		"link": func(path string) error { return os.Symlink(t.TempDir(), path) },
		"file": func(path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			mustDo(t, put(filepath.Join(dir, HiddenDir)))
			if got, err := mustHidden(t, dir).TakeOver(at(0)); err != nil || got.Archive || got.Left {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestMakePlace(t *testing.T) {
	top := t.TempDir()
	watched := filepath.Join(top, "watched")
	for _, dir := range []string{filepath.Join(top, "a", "b"), watched + "-archive"} {
		p, err := MakePlace(dir, watched)
		mustDo(t, err)
		if !p.InPlace() || p.Dir() != dir || p.Hidden() {
			t.Errorf("%q", p.Dir())
		}
		mustDo(t, p.Close())
	}
	inside := filepath.Join(watched, "archive", "web")
	if _, err := MakePlace(inside, watched); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it made the watched directory: %v", err)
	}
	mustDo(t, os.Mkdir(watched, 0o700))
	p, err := MakePlace(inside, watched)
	mustDo(t, err)
	mustDo(t, p.Close())
}

// TestFormatTwo: an archive that the version before this one wrote is taken over as it is.
func TestFormatTwo(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("testdata", "format2", "archive.bolt"))
	mustDo(t, err)
	contents, err := os.ReadFile(filepath.Join("testdata", "format2", "contents.txt"))
	mustDo(t, err)
	dir := t.TempDir()
	mustDo(t, os.WriteFile(archivePath(dir), data, 0o600))
	wantContents(t, reread(t, dir).Archive, string(contents))
	a := mustOpen(t, dir)
	wantContents(t, a, string(contents))
	mustCommit(t, a, mixed(3))
	want := contentsOf(a)
	wantContents(t, reread(t, dir).Archive, want)
	mustDo(t, a.Compact())
	wantContents(t, reread(t, dir).Archive, want)
}

// TestHeld: a reader that asks keeps a daemon from writing for a time, and no longer.
func TestHeld(t *testing.T) {
	dir := t.TempDir()
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	now := at(0)
	if a.Held(now) {
		t.Error("nobody has asked")
	}
	v, err := mustPlace(t, dir).Hold()
	mustDo(t, err)
	for _, tc := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {MaxHold - 1, true}, {MaxHold, false}, {2 * MaxHold, false}} {
		if got := a.Held(now.Add(tc.after)); got != tc.want {
			t.Errorf("after %v: %v", tc.after, got)
		}
	}
	wantContents(t, v.Archive, contentsOf(a))
	if !v.Current() {
		t.Error("it is not current")
	}
	v.Release()
	v.Release()
	if a.Held(now) {
		t.Error("nobody asks any more")
	}
	reread(t, dir)
	if a.Held(now) {
		t.Error("one who only reads still holds it")
	}
	v, err = ReadHeld(dir)
	mustDo(t, err)
	defer v.Release()
	if !a.Held(now.Add(3 * MaxHold)) {
		t.Error("another one is not heard")
	}
}
