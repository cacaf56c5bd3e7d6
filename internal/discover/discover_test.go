package discover

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
	"aggregatord/internal/pool"
	"aggregatord/internal/telemetry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mkdir(t *testing.T, parts ...string) string {
	t.Helper()
	path := filepath.Join(parts...)
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func touch(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "counter_1.db"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func list(found []Found) (all []string) {
	for _, f := range found {
		text := f.Spec.Name
		for _, l := range f.Spec.Labels {
			text += " " + l.Name + "=" + l.Value
		}
		all = append(all, text)
	}
	return all
}

func TestPatterns(t *testing.T) {
	root := t.TempDir()
	for _, app := range []string{"blog", "shop", ".hidden"} {
		touch(t, mkdir(t, root, app, "metrics"))
		touch(t, mkdir(t, root, app, "metrics", "group", "deep"))
	}
	mkdir(t, root, "empty")
	// What a star matches may be anything: nobody waits for the other end of a pipe.
	if err := unix.Mkfifo(filepath.Join(root, "bpipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	outside := mkdir(t, t.TempDir(), "metrics")
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(root, "thief")); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name    string
		pattern Pattern
		want    []string
	}{
		{
			"named",
			Pattern{Glob: "/*/metrics", Name: "jobs-$1", Labels: map[string]string{"app": "$1"}},
			[]string{"jobs-blog app=blog", "jobs-shop app=shop"},
		},
		{"unnamed", Pattern{Glob: "/*/metrics"}, []string{"blog", "shop"}},
		{"two stars", Pattern{Glob: "/b*/m*"}, []string{"log-etrics"}},
		{
			"recursive",
			Pattern{Glob: "/sho?", Name: "s", Recursive: true, Labels: map[string]string{"path": "$path"}},
			[]string{"s-metrics path=metrics", "s-metrics-group-deep path=metrics/group/deep"},
		},
		{"shallow", Pattern{Glob: "/sho?", Name: "s", Recursive: true, Depth: 1}, []string{"s-metrics"}},
		{"nothing yet", Pattern{Glob: "/later/*"}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.pattern.Glob = root + test.pattern.Glob
			if err := test.pattern.Check(); err != nil {
				t.Fatal(err)
			}
			found, errs := NewPattern(test.pattern).Find()
			if got := list(found); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			refused := len(errs) == 1 && strings.Contains(errs[0].Error(), "leads out of")
			if wanted := strings.HasPrefix(test.pattern.Glob, root+"/*"); refused != wanted || (!wanted && len(errs) > 0) {
				t.Errorf("errors %v", errs)
			}
		})
	}
}

func TestParsePattern(t *testing.T) {
	for _, in := range [][2]string{{"a-*-*", "/x/*"}, {"", "/x/?"}, {"$2", "/x/*"}, {"$app", "/x/*"}, {"a", "/x/**"}} {
		if _, err := ParsePattern(in[0], in[1]); err == nil {
			t.Errorf("%q: accepted", in)
		}
	}
	if p, err := ParsePattern("jobs-*", "/x/*"); err != nil || p.Name != "jobs-${1}" {
		t.Errorf("%+v, %v", p, err)
	}
}

// steps is a source that finds what a test says.
type steps struct{ found []Found }

func (s *steps) Find() ([]Found, []error) { return s.found, nil }
func (s *steps) Hint() string             { return "Nothing is found." }
func (s *steps) String() string           { return "the steps" }

// TestFinder: pools come, go, come back, make room and take each other's names.
func TestFinder(t *testing.T) {
	source, set, now := &steps{}, telemetry.NewSet(), time.Unix(1000, 0)
	var mu sync.Mutex // of have
	have := map[string]string{}
	broken := ""
	f := New(Options{
		Sources: []Source{source}, Static: []pool.Spec{{Name: "static", Path: "/nowhere"}}, MaxPools: 3, Retention: time.Minute, Set: set,
		Now: func() time.Time { return now },
		Add: func(s pool.Spec) error {
			if s.Name == broken {
				return errors.New("locked")
			}
			mu.Lock()
			defer mu.Unlock()
			have[s.Name] = s.Path
			return nil
		},
		Remove: func(name string) error {
			mu.Lock()
			defer mu.Unlock()
			delete(have, name)
			return nil
		},
	})
	at := func(name, path string, ino uint64) Found {
		return Found{Spec: pool.Spec{Name: name, Path: path}, ID: path, Node: Node{1, ino}}
	}
	a, b, c := at("a", "/a", 1), at("b", "/b", 2), at("c", "/c", 3)
	for _, step := range []struct {
		name     string
		pass     time.Duration
		broken   string
		found    []Found
		want     string
		problems int
	}{
		{"two come", 0, "", []Found{a, b}, "map[a:/a b:/b]", 0},
		{"no room", 0, "", []Found{a, b, c}, "map[a:/a b:/b]", 0},
		{"one goes", 0, "", []Found{a}, "map[a:/a b:/b]", 0},
		{"it is back", 50 * time.Second, "", []Found{a, b}, "map[a:/a b:/b]", 0},
		{"it goes again", 0, "", []Found{a}, "map[a:/a b:/b]", 0},
		{"retention ends", time.Minute, "", []Found{a}, "map[a:/a]", 0},
		{"a static name", 0, "", []Found{a, at("static", "/s", 4)}, "map[a:/a]", 1},
		{"one name twice", 0, "", []Found{at("a", "/0", 5), a}, "map[a:/a]", 1},
		{"one directory twice", 0, "", []Found{a, at("z", "/link", 1)}, "map[a:/a]", 0},
		{"a bad name", 0, "", []Found{a, at("..", "/x", 6)}, "map[a:/a]", 1},
		{"another directory", 0, "", []Found{at("a", "/new", 7)}, "map[]", 0},
		{"takes the name", 0, "", []Found{at("a", "/new", 7)}, "map[a:/new]", 0},
		{"cannot be added", 0, "b", []Found{at("a", "/new", 7), b}, "map[a:/new]", 1},
		{"waits", 0, "", []Found{at("a", "/new", 7), b}, "map[a:/new]", 1},
		{"is added", time.Second, "", []Found{at("a", "/new", 7), b}, "map[a:/new b:/b]", 0},
		{"the vanished make room", 0, "", []Found{b, c}, "map[b:/b]", 0},
		{"for the new", 0, "", []Found{b, c}, "map[b:/b c:/c]", 0},
	} {
		now = now.Add(step.pass)
		source.found, broken = step.found, step.broken
		f.Round()
		f.work.Wait()
		if got := fmt.Sprint(have); got != step.want || len(f.problems) != step.problems {
			t.Fatalf("%s: got %s and problems %v, want %s and %d", step.name, got, f.problems, step.want, step.problems)
		}
	}
	if why, ok := f.Gone("a"); !ok || !strings.Contains(why, "no room") {
		t.Errorf("a: %q", why)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestKubelet(t *testing.T) {
	root, logs := t.TempDir(), t.TempDir()
	volumes := filepath.Join("volumes", "kubernetes.io~empty-dir")
	for _, uid := range []string{"11111111-aaaa", "22222222-bbbb"} {
		touch(t, mkdir(t, root, "pods", uid, volumes, "metrics"))
		mkdir(t, root, "pods", uid, volumes, "cache")
		mkdir(t, logs, "prod_web-0_"+uid)
	}
	s := NewKubelet(Kubelet{Root: root, Logs: logs})
	found, errs := s.Find()
	want := []string{
		"prod_web-0_metrics_11111111 namespace=prod pod=web-0 uid=11111111-aaaa volume=metrics",
		"prod_web-0_metrics_22222222 namespace=prod pod=web-0 uid=22222222-bbbb volume=metrics",
	}
	if got := list(found); !slices.Equal(got, want) || len(errs) > 0 {
		t.Errorf("got %q, %v", got, errs)
	}
	if err := os.RemoveAll(filepath.Join(root, "pods", "11111111-aaaa")); err != nil {
		t.Fatal(err)
	}
	if found, _ := s.Find(); len(found) != 1 {
		t.Errorf("got %q", list(found))
	}
	// A volume without source files is let go: the kubelet wants to unmount it.
	if err := os.Remove(filepath.Join(root, "pods", "22222222-bbbb", volumes, "metrics", "counter_1.db")); err != nil {
		t.Fatal(err)
	}
	if found, _ := s.Find(); len(found) != 0 {
		t.Errorf("got %q", list(found))
	}
	if want := "No emptyDir volume of the 1 pods below " + root + " has source files."; s.Hint() != want {
		t.Errorf("hint %q", s.Hint())
	}
}

// TestReport: what is left out, refused or not found at all is told, and so is where pools came from
// and how long they stay.
func TestReport(t *testing.T) {
	source, now, writing := &steps{}, time.Unix(1000, 0), false
	f := New(Options{
		Sources: []Source{source, &steps{}}, MaxPools: 1, Retention: time.Minute,
		Now: func() time.Time { return now }, Writing: func(string) bool { return writing },
		Add: func(pool.Spec) error { return nil }, Remove: func(string) error { return nil },
	})
	found := Found{Spec: pool.Spec{Name: "a", Path: "/a"}, Node: Node{1, 1}, From: FromKubelet}
	source.found = []Found{found, {Spec: pool.Spec{Name: "b", Path: "/b"}, Node: Node{1, 2}}, {Spec: pool.Spec{Name: ".", Path: "/c"}}}
	f.Round()
	want := Report{[]string{`directory "/c": "." cannot be the name of a pool; rename the directory`}, 1, 1, []string{"Nothing is found."}}
	if got := f.Report(); !reflect.DeepEqual(got, want) {
		t.Errorf("report %+v", got)
	}
	if got := f.Origins(); !reflect.DeepEqual(got, map[string]Origin{"a": {From: FromKubelet}}) {
		t.Errorf("origins %+v", got)
	}
	source.found, writing = nil, true
	for range 2 {
		f.Round()
		now = now.Add(time.Hour)
	}
	if got := f.Origins(); !reflect.DeepEqual(got, map[string]Origin{"a": {From: FromKubelet}}) {
		t.Errorf("a pool that processes write to goes: %+v", got)
	}
	writing = false
	f.Round()
	if got := f.Origins(); !reflect.DeepEqual(got, map[string]Origin{"a": {FromKubelet, now, now.Add(time.Minute)}}) {
		t.Errorf("origins %+v", got)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestLike(t *testing.T) {
	for in, want := range map[[2]string]bool{
		{"", "x"}: true, {"x", "x"}: true, {"x", "xy"}: false, {"x*", "xy"}: true, {"*.service", "a.service"}: true,
		{"a*b*c", "a1b2c"}: true, {"a*b*c", "a1c"}: false, {"*", ""}: true,
	} {
		if got := like(in[0], in[1]); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

// hanging is a source that does not answer until it may.
type hanging struct {
	steps
	may chan struct{}
}

func (h *hanging) Find() ([]Found, []error) {
	<-h.may
	return h.steps.Find()
}
func (h *hanging) String() string { return "the slow steps" }

// TestSlowDirectory: a directory that does not answer, to a source or when it is opened, holds up what
// the same source finds, and nothing else: others come and go, and questions are answered.
func TestSlowDirectory(t *testing.T) {
	slow, quick := &hanging{may: make(chan struct{}, 10)}, &steps{}
	opened, opens := make(chan struct{}), make(chan struct{})
	var mu sync.Mutex // of have
	have := map[string]bool{}
	f := New(Options{
		Sources: []Source{slow, quick}, Retention: time.Nanosecond, Patience: 20 * time.Millisecond,
		Add: func(s pool.Spec) error {
			if s.Name == "stuck" {
				close(opened)
				<-opens
			}
			mu.Lock()
			defer mu.Unlock()
			have[s.Name] = true
			return nil
		},
		Remove: func(name string) error {
			mu.Lock()
			defer mu.Unlock()
			delete(have, name)
			return nil
		},
	})
	found := func(names ...string) (all []Found) {
		for _, name := range names {
			all = append(all, Found{Spec: pool.Spec{Name: name, Path: "/" + name}, ID: name})
		}
		return all
	}
	round := func(want string, problems ...string) {
		t.Helper()
		f.Round()
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			mu.Lock()
			got := fmt.Sprint(have)
			mu.Unlock()
			if got == want {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s are served, want %s", got, want)
			}
		}
		r := f.Report()
		if len(r.Problems) != len(problems) {
			t.Fatalf("problems %q, want %q", r.Problems, problems)
		}
		for i, p := range problems {
			if !strings.Contains(r.Problems[i], p) {
				t.Errorf("problem %q, want %q", r.Problems[i], p)
			}
		}
	}
	const hangs, opening = "look at the slow steps takes longer than 200ms", `pool "stuck" of directory "/stuck" is not served yet`
	slow.may <- struct{}{}
	slow.found, quick.found = found("a"), found("b")
	round("map[a:true b:true]")
	// The source hangs. What it found before stays, and another one's come and go.
	quick.found = found("c")
	round("map[a:true b:true c:true]") // a look that is slow is told only when it is so for long
	for deadline := time.Now().Add(10 * time.Second); len(f.Report().Problems) == 0 && time.Now().Before(deadline); {
		f.Round()
	}
	round("map[a:true c:true]", hangs)
	// A directory hangs, too.
	quick.found = found("stuck", "d")
	round("map[a:true c:true d:true]", opening, hangs)
	<-opened
	quick.found = found("stuck", "e")
	round("map[a:true d:true e:true]", opening, hangs)
	if o := f.Origins(); len(o) != 3 {
		t.Errorf("origins %v", o)
	}
	slow.may <- struct{}{}
	slow.may <- struct{}{}
	close(opens)
	f.work.Wait()
	round("map[a:true e:true stuck:true]")
	slow.may <- struct{}{}
	f.work.Wait()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// TestSettings: what an application says of its pool in a file of its volume is taken if it is a file
// like any other, and its pool is made anew; whatever else lies there is told, and changes nothing.
func TestSettings(t *testing.T) {
	root := t.TempDir()
	volume := mkdir(t, root, "pods", "11111111-aaaa", "volumes", "kubernetes.io~empty-dir", "metrics")
	touch(t, volume)
	reads := 0
	s := &kubeletSource{Kubelet: Kubelet{
		Root: root, Settings: "metrics.yml",
		ReadSettings: func(file string, data []byte) (Settings, error) {
			reads++
			if file != filepath.Join(volume, "metrics.yml") || string(data) == "bad" {
				return Settings{}, errors.New("bad\nin two lines" + strings.Repeat("!", 1000))
			}
			return Settings{Labels: []metric.Label{{Name: "app_text", Value: string(data[:min(len(data), 10)])}}}, nil
		},
	}}
	path := filepath.Join(volume, "metrics.yml")
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(text string) func() error { return func() error { return os.WriteFile(path, []byte(text), 0o600) } }
	const bare = "metrics_11111111 uid=11111111-aaaa volume=metrics"
	id := ""
	for _, step := range []struct {
		name      string
		make      func() error
		want      string
		anew      bool // the pool is
		complains string
	}{
		{"none", func() error { return nil }, "", true, ""},
		{"some", write("a"), "a", true, ""},
		{"the_same", func() error { return nil }, "a", false, ""},
		{"others", write("bb"), "bb", true, ""},
		{"bad", write("bad"), "bb", false, "bad; in two lines!!!"},
		{"good_again", write("bb"), "bb", false, ""},
		{"largest", write(strings.Repeat("c", MaxSettingsBytes)), "cccccccccc", true, ""},
		{"too_large", write(strings.Repeat("c", MaxSettingsBytes+1)), "cccccccccc", false, "more than 16384 bytes"},
		{"holes", func() error { return os.Truncate(path, 1<<40) }, "cccccccccc", false, "more than 16384 bytes"},
		{"link", func() error { return os.Symlink(secret, path) }, "cccccccccc", false, "it is a link"},
		{"pipe", func() error { return unix.Mkfifo(path, 0o600) }, "cccccccccc", false, "not a regular file"},
		{"directory", func() error { return os.Mkdir(path, 0o700) }, "cccccccccc", false, "not a regular file"},
		{
			"two_names", func() error { return errors.Join(os.WriteFile(path, []byte("d"), 0o600), os.Link(path, path+".2")) }, "cccccccccc",
			false, "one name",
		},
		{"removed", func() error { return nil }, "", true, ""},
	} {
		switch step.name {
		case "the_same", "bad", "good_again", "too_large", "holes", "others", "largest": // writes on
		default:
			if err := os.RemoveAll(path); err != nil {
				t.Fatal(err)
			}
		}
		if err := step.make(); err != nil {
			t.Fatal(step.name, err)
		}
		want := bare
		if step.want != "" {
			want = strings.Replace(bare, "uid=", "app_text="+step.want+" uid=", 1)
		}
		found, errs := s.Find()
		if got := list(found); len(got) != 1 || got[0] != want {
			t.Fatalf("%s: found %q, want %q", step.name, got, want)
		}
		if anew := found[0].ID != id; anew != step.anew {
			t.Errorf("%s: the pool is made anew: %v", step.name, anew)
		}
		id = found[0].ID
		said := fmt.Sprint(errs)
		if (len(errs) > 0) != (step.complains != "") || !strings.Contains(said, step.complains) || len(said) > 700 {
			t.Errorf("%s: complaints %v, want %q", step.name, errs, step.complains)
		}
		before := reads
		s.Find()
		if reads != before {
			t.Errorf("%s: an unchanged file is read again", step.name)
		}
	}
	// One that is being written is waited for.
	s.rest = time.Hour
	if err := write("e")(); err != nil {
		t.Fatal(err)
	}
	s.settings = nil
	if found, _ := s.Find(); len(found) != 0 {
		t.Errorf("it is served at once: %q", list(found))
	}
	s.settings[volume].begun = time.Now().Add(-settingsWait)
	if found, _ := s.Find(); len(found) != 1 || list(found)[0] != bare {
		t.Errorf("it is waited for without end: %q", list(found))
	}
	for _, name := range []string{"", ".hidden", "../up", "a/b", "counter_1.db"} {
		if IsSettingsName(name) {
			t.Errorf("%q is taken", name)
		}
	}
}

// TestSettingsChange: other settings of a directory are put into force while its pool is served; another
// directory of the same name, or settings that cannot be put into force, make it anew.
func TestSettingsChange(t *testing.T) {
	var mu sync.Mutex
	var calls []string
	refuse := false
	call := func(what string, s pool.Spec) error {
		mu.Lock()
		defer mu.Unlock()
		calls = append(calls, strings.TrimSpace(fmt.Sprint(what, " ", s.Name, " ", s.Labels)))
		if what == "change" && refuse {
			return errors.New("refused")
		}
		return nil
	}
	source := &settingsSource{}
	f := New(Options{
		Sources: []Source{source}, Add: func(s pool.Spec) error { return call("add", s) },
		Change: func(s pool.Spec) error { return call("change", s) },
		Remove: func(name string) error { return call("remove", pool.Spec{Name: name}) },
	})
	for _, step := range []struct {
		name, id, text string
		node           Node
		refuse         bool
		want           string
	}{
		{"new", "1", "a", Node{1, 1}, false, "add a [{app_text a}]"},
		{"same", "1", "a", Node{1, 1}, false, ""},
		{"settings", "2", "b", Node{1, 1}, false, "change a [{app_text b}]"},
		{"same_settings", "2", "b", Node{1, 1}, false, ""},
		{"refused", "3", "c", Node{1, 1}, true, "change a [{app_text c}]; remove a []; add a [{app_text c}]"},
		{"directory", "4", "c", Node{1, 2}, false, "remove a []; add a [{app_text c}]"},
	} {
		source.found = Found{
			Spec: pool.Spec{Name: "a", Path: "/a", Labels: []metric.Label{{Name: "app_text", Value: step.text}}},
			ID:   step.id, Node: step.node,
		}
		mu.Lock()
		refuse = step.refuse
		mu.Unlock()
		for range 3 { // what is removed in one round is added in the next
			f.Round()
			f.work.Wait()
		}
		mu.Lock()
		if got := strings.Join(calls, "; "); got != step.want {
			t.Errorf("%s: %s, want %s", step.name, got, step.want)
		}
		calls = nil
		mu.Unlock()
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

type settingsSource struct{ found Found }

func (s *settingsSource) String() string           { return "the settings" }
func (s *settingsSource) Find() ([]Found, []error) { return []Found{s.found}, nil }
func (s *settingsSource) Hint() string             { return "" }
