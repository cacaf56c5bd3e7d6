package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

// statLine is a real one, with a name in its place.
func statLine(name string) string {
	return "1234 (" + name +
		") S 1200 1234 1200 0 -1 4194560 12001 300 7 2 150 50 20 10 20 0 3 0 987654 45813760 9096 18446744073709551615 " +
		"1 1 0 0 0 0 0 16781312 134235651 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 9\n"
}

func TestParseStat(t *testing.T) {
	want := stat{
		state: 'S', ppid: 1200, utime: 150, stime: 50, cutime: 20, cstime: 10, majflt: 7, cmajflt: 2, threads: 3,
		start: 987654, vsize: 45813760, rss: 9096, exitCode: 9,
	}
	for name, comm := range map[string]string{
		"plain": "gunicorn", "empty": "", "brackets": ") R 1 (x", "line_feed": "a\nb) S 1 1", "bytes": "\xff\xfe)", "blank": " ",
		"titled": "gunicorn: worke",
	} {
		t.Run(name, func(t *testing.T) {
			want.comm = comm
			got, err := parseStat([]byte(statLine(comm)))
			if err != nil || got != want {
				t.Errorf("got %+v, %v\nwant %+v", got, err, want)
			}
		})
	}
	// A kernel that knows fewer fields than the last.
	short := statLine("x")
	short = short[:strings.LastIndex(short, " 17 ")]
	if got, err := parseStat([]byte(short)); err != nil || got.rss != 9096 || got.exitCode != 0 {
		t.Errorf("an older kernel's: %+v, %v", got, err)
	}
}

func TestParseStatDamaged(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "no_name": "1 S 2", "open_only": "1 (x S 2", "close_first": ") (", "cut": "1 (x) S 2 3 4",
		"state": strings.Replace(statLine("x"), ") S", ") SS", 1), "letters": strings.Replace(statLine("x"), " 150 ", " 15O ", 1),
		"too_large": strings.Replace(statLine("x"), " 150 ", " 18446744073709551616 ", 1),
		"parent":    strings.Replace(statLine("x"), " 1200 ", " x ", 1),
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := parseStat([]byte(text)); !errors.Is(err, errStat) {
				t.Errorf("%q gives %+v, %v", text, got, err)
			}
		})
	}
}

func TestDecimal(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want uint64
		ok   bool
	}{
		{"0", 0, true},
		{"18446744073709551615", 1<<64 - 1, true},
		{"18446744073709551616", 0, false},
		{"99999999999999999999", 0, false},
		{"-5", 0, true},
		{"-", 0, false},
		{"", 0, false},
		{"1 ", 0, false},
		{"0x1", 0, false},
		{"000000000000000000001", 0, false},
	} {
		if got, ok := decimal([]byte(tc.in)); got != tc.want || ok != tc.ok {
			t.Errorf("decimal(%q) = %d, %v; want %d, %v", tc.in, got, ok, tc.want, tc.ok)
		}
	}
}

func TestParseMapping(t *testing.T) {
	for name, tc := range map[string]struct {
		line     string
		ino      uint64
		writable bool
		base     string
	}{
		"source": {"7f0a1c000000-7f0a1c010000 rw-s 00000000 00:1b 4711       /dev/shm/app/counter_17.db\n", 4711, true, "counter_17.db"},
		"deleted": {
			"7f0a1c000000-7f0a1c010000 rw-s 00000000 00:1b 4711       /dev/shm/app/counter_17.db (deleted)\n", 4711, true,
			"counter_17.db",
		},
		"read_only": {"7f0a1c000000-7f0a1c010000 r--s 00000000 fe:01 5 /a b/c d.db\n", 5, false, "c d.db"},
		"private":   {"7f0a1c000000-7f0a1c010000 rw-p 00000000 fe:01 5 /x.db\n", 5, false, "x.db"},
		"anonymous": {"7f0a1c000000-7f0a1c010000 rw-p 00000000 00:00 0 \n", 0, false, ""},
		"line_feed": {`7f0a1c000000-7f0a1c010000 rw-s 00000000 00:1b 4711 /a\012b/counter_1.db`, 4711, true, "counter_1.db"},
	} {
		t.Run(name, func(t *testing.T) {
			m, ok := parseMapping([]byte(tc.line))
			if !ok || m.ino != tc.ino || m.writable() != tc.writable || string(baseOf(m.path)) != tc.base {
				t.Errorf("got %+v, %v, base %q", m, ok, baseOf(m.path))
			}
		})
	}
	if m, ok := parseMapping([]byte("1-2 rw-s 0 08:10 1 x")); !ok || m.dev != mkdev(8, 16) {
		t.Errorf("device %#x, %v", m.dev, ok)
	}
	for name, line := range map[string]string{
		"empty": "", "short": "1-2 rw-s 0", "perms": "1-2 rw 0 1:1 5 /x", "device": "1-2 rw-s 0 11 5 /x", "inode": "1-2 rw-s 0 1:1 x /x",
	} {
		if m, ok := parseMapping([]byte(line)); ok {
			t.Errorf("%s: %q gives %+v", name, line, m)
		}
	}
}

func TestKeyValue(t *testing.T) {
	text := "nr_periods 5\nthrottled_usec 1234\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\noom_kill_disable 0\noom_kill 2\nbad x\n"
	for key, want := range map[string]uint64{
		"throttled_usec": 1234, "voluntary_ctxt_switches:": 150, "nonvoluntary_ctxt_switches:": 7,
		"oom_kill": 2,
	} {
		if got, ok := keyValue([]byte(text), key); !ok || got != want {
			t.Errorf("%s = %d, %v; want %d", key, got, ok, want)
		}
	}
	for _, key := range []string{"throttled", "bad", "absent"} {
		if got, ok := keyValue([]byte(text), key); ok {
			t.Errorf("%s = %d", key, got)
		}
	}
}

func TestCommandOf(t *testing.T) {
	for name, tc := range map[string]struct{ cmdline, want string }{
		"options_may_hold_secrets": {
			"/usr/bin/python3\x00/usr/bin/gunicorn\x00--env\x00TOKEN=secret\x00app:app\x00",
			"/usr/bin/python3 /usr/bin/gunicorn",
		},
		"module":      {"python3\x00-m\x00celery\x00-A\x00tasks\x00", "python3 -m celery"},
		"title":       {"gunicorn: worker [app]\x00\x00\x00\x00", "gunicorn: worker [app]"},
		"kernel_name": {"", "comm"},
		"bytes":       {"a\xffb\x00", "a\uFFFDb"},
		"long":        {strings.Repeat("x", 10_000), strings.Repeat("x", maxCommand)},
	} {
		if got := commandOf([]byte(tc.cmdline), "comm"); got != tc.want {
			t.Errorf("%s: got %q, want %q", name, got, tc.want)
		}
	}
}

func TestNameRuntime(t *testing.T) {
	for name, want := range map[string]runtime{
		"python3.11": {"python", "CPython", "3.11"}, "libpython3.11.so.1.0": {"python", "CPython", "3.11"},
		"python":  {"python", "CPython", ""},
		"python3": {"python", "CPython", ""}, "pypy3.9": {"python", "PyPy", "3.9"}, "libpypy3.9-c.so": {"python", "PyPy", "3.9"},
		"ruby3.1": {"ruby", "ruby", "3.1"}, "libruby-3.1.so.3.1.2": {"ruby", "ruby", "3.1.2"}, "libruby.so.3.2": {"ruby", "ruby", "3.2"},
		"ruby":       {"ruby", "ruby", ""},
		"uwsgi-core": {}, "libpythonic.so": {}, "bash": {}, "rubyist": {}, "": {},
	} {
		if got := nameRuntime(name); got != want {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	got := fmt.Sprint(runtime{"python", "CPython", "3.11.2"}.labels())
	if want := "[{implementation CPython} {major 3} {minor 11} {patchlevel 2} {version 3.11.2}]"; got != want {
		t.Errorf("labels %s, want %s", got, want)
	}
	if got := fmt.Sprint(runtime{"python", "CPython", ""}.labels()); got != "[{implementation CPython}]" {
		t.Errorf("labels of an unknown version: %s", got)
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte(statLine("x")))
	f.Add([]byte(statLine(") (")))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseStat(data)
		if err != nil {
			return
		}
		// The name is what stands between the first and the last bracket, whatever it is.
		open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
		if s.comm != string(data[open+1:end]) {
			t.Errorf("name %q of %q", s.comm, data)
		}
	})
}

func FuzzParseMapping(f *testing.F) {
	f.Add([]byte("7f0a1c000000-7f0a1c010000 rw-s 00000000 00:1b 4711       /dev/shm/app/counter_17.db (deleted)\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if m, ok := parseMapping(line); ok {
			if len(m.path) > len(line) || bytes.IndexByte(baseOf(m.path), '/') >= 0 || len(m.perms) != 4 {
				t.Errorf("%q gives %+v", line, m)
			}
			m.writable()
		}
	})
}

func FuzzKeyValue(f *testing.F) {
	f.Add([]byte("throttled_usec 12\n"), "throttled_usec")
	f.Fuzz(func(t *testing.T, data []byte, key string) {
		if v, ok := keyValue(data, key); ok && !bytes.Contains(data, []byte(key)) {
			t.Errorf("%q of %q is %d", key, data, v)
		}
	})
}

// FuzzCommand reads /proc/PID/cmdline and the link /proc/PID/exe, both of which a process may choose.
func FuzzCommand(f *testing.F) {
	f.Add([]byte("gunicorn: worker [app]\x00\x00\x00"), "x")
	f.Add([]byte("/usr/bin/python3\x00-m\x00celery\x00--broker=redis://:secret@host\x00"), "celery")
	f.Add([]byte(""), ") R 1 (")
	f.Fuzz(func(t *testing.T, cmdline []byte, comm string) {
		command := commandOf(cmdline, comm)
		if len(command) > 3*maxCommand || !utf8.ValidString(command) {
			t.Errorf("command %q of %q", command, cmdline)
		}
		// Options may hold secrets: none is shown but -m.
		args := bytes.Split(bytes.TrimRight(cmdline, "\x00"), []byte{0})
		if i := slices.IndexFunc(args, func(a []byte) bool { return bytes.HasPrefix(a, []byte("-")) }); i > 0 && string(args[i]) != "-m" {
			if shown := strings.ToValidUTF8(string(bytes.Join(args[:i], []byte(" "))), "\uFFFD"); len(command) > len(shown) &&
				strings.TrimSpace(shown) != "" {
				t.Errorf("command %q shows more than %q of %q", command, shown, cmdline)
			}
		}
		if r := nameRuntime(comm); r.kind != "" && !strings.Contains(comm, r.version) {
			t.Errorf("%q is %+v", comm, r)
		}
	})
}

func TestVersionIn(t *testing.T) {
	long := strings.Repeat("x", 256<<10-3)
	for name, tc := range map[string]struct {
		content string
		r       runtime
		want    string
	}{
		"python":         {"abc\x003.11\x003.11.2\x00def", runtime{"python", "CPython", "3.11"}, "3.11.2"},
		"two_windows":    {long + "\x003.11.2\x00", runtime{"python", "CPython", "3.11"}, "3.11.2"},
		"candidate":      {"\x003.14.0rc2\x00", runtime{"python", "CPython", "3.14"}, "3.14.0rc2"},
		"plain_name":     {"\x003.x\x003.9.1\x00", runtime{"python", "CPython", ""}, "3.9.1"},
		"other_versions": {"\x003.1.1\x00\x003.110.2\x00 3.11.2 ", runtime{"python", "CPython", "3.11"}, ""},
		"ruby":           {"xruby 3.2.2 (2023-03-30 revision e51014f9c0) [x86_64-linux]", runtime{"ruby", "ruby", "3.2"}, "3.2.2"},
		"old_ruby":       {"ruby 3.1.2p20 (2022-04-12 revision 4491bb740a)", runtime{"ruby", "ruby", ""}, "3.1.2"},
		"not_ruby":       {"ruby 3.1.2", runtime{"ruby", "ruby", "3.1"}, ""},
		"empty":          {"", runtime{"python", "CPython", "3.11"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "program")
			if err := os.WriteFile(path, []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := versionIn(path, tc.r); got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	if got := versionIn(t.TempDir(), runtime{"python", "CPython", "3.11"}); got != "" {
		t.Errorf("version of a directory: %q", got)
	}
}
