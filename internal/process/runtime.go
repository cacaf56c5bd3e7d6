package process

import (
	"bytes"
	"io"
	"os"
	"path"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
)

// A runtime is what interprets the program of a process. The zero value is an unknown one.
type runtime struct {
	kind           string // python or ruby
	implementation string // CPython, PyPy; ruby
	version        string // as far as it is known: 3.11.2, or 3.11
}

func (r runtime) key() string { return r.kind + " " + r.implementation + " " + r.version }

func (r runtime) family() family {
	if r.kind == "ruby" {
		return famRuby
	}
	return famPython
}

// labels are those of the Python client's PlatformCollector. Ruby's client has none; they
// are RUBY_ENGINE and RUBY_VERSION.
func (r runtime) labels() []metric.Label {
	if r.kind == "ruby" {
		return labelled("engine", r.implementation, "version", r.version)
	}
	parts := append(strings.SplitN(r.version, ".", 3), "", "")
	return labelled("implementation", r.implementation, "major", parts[0], "minor", parts[1], "patchlevel", parts[2], "version", r.version)
}

// labelled makes labels of names, which are in order, and values. One without a value is
// left out.
func labelled(pairs ...string) []metric.Label {
	var labels []metric.Label
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			labels = append(labels, metric.Label{Name: pairs[i], Value: pairs[i+1]})
		}
	}
	return labels
}

var (
	// The names of programs and libraries: python3.11, libpython3.11.so.1.0, pypy3.9,
	// libpypy3.9-c.so, ruby3.1, libruby-3.1.so.3.1.2, libruby.so.3.2.
	pythonName = regexp.MustCompile(`^(?:lib)?(python|pypy)(?:(\d+\.\d+)[a-z]*|\d+)?(?:-c)?(?:\.so[0-9.]*|-dbg)?$`)
	rubyName   = regexp.MustCompile(`^(?:lib)?ruby-?(\d+\.\d+)?(?:\.so)?(?:\.(\d+\.\d+(?:\.\d+)?))?$`)
	// What their bytes say: PY_VERSION stands alone, RUBY_DESCRIPTION begins with the version.
	pythonVersion = regexp.MustCompile(`^\x00([23]\.\d{1,2}\.\d{1,3}(?:(?:a|b|rc)\d+)?\+?)\x00`)
	rubyVersion   = regexp.MustCompile(`^ruby (\d\.\d{1,2}\.\d{1,2})(?:p\d+|[a-z0-9]*) \(\d{4}-`)
)

// nameRuntime tells a runtime by the name of a program or library.
func nameRuntime(name string) runtime {
	if m := pythonName.FindStringSubmatch(name); m != nil {
		r := runtime{"python", "CPython", m[2]}
		if m[1] == "pypy" {
			r.implementation = "PyPy"
		}
		return r
	}
	if m := rubyName.FindStringSubmatch(name); m != nil {
		version := m[1]
		if len(m[2]) > len(version) {
			version = m[2]
		}
		return runtime{"ruby", "ruby", version}
	}
	return runtime{}
}

// maxRuntimes bounds what is remembered of programs.
const maxRuntimes = 256

// runtimeOf tells the runtime of a process by its program or, where that is a server such
// as uwsgi, by the libraries it has mapped. What was found out of a program once is not
// looked for again.
func (o *Observer) runtimeOf(p *proc) runtime {
	if r, ok := o.runtimes[p.program]; ok && p.program[1] != 0 {
		return r
	}
	file := o.path(p.pid, "exe")
	target, err := os.Readlink(file)
	if err != nil {
		return runtime{}
	}
	r := nameRuntime(path.Base(strings.TrimSuffix(target, " (deleted)")))
	// A program linked to a library knows less than the library.
	if lib, where := o.mappedRuntime(p.pid); lib.kind != "" && (r.kind == "" || r.kind == lib.kind) {
		r, file = lib, where
	}
	if r.kind != "" && strings.Count(r.version, ".") < 2 {
		if full := versionIn(file, r); full != "" {
			r.version = full
		}
	}
	if len(o.runtimes) >= maxRuntimes {
		clear(o.runtimes)
	}
	o.runtimes[p.program] = r
	return r
}

// mappedRuntime finds the mapped library of a runtime, and where it can be read.
func (o *Observer) mappedRuntime(pid int) (runtime, string) {
	maps, err := o.readFile(o.path(pid, "maps"), maxMaps)
	if err != nil {
		return runtime{}, ""
	}
	for line := range bytes.Lines(maps) {
		if !bytes.Contains(line, []byte("/lib")) {
			continue
		}
		m, ok := parseMapping(line)
		if !ok || m.ino == 0 {
			continue
		}
		if r := nameRuntime(string(baseOf(m.path))); r.kind != "" && bytes.Contains(baseOf(m.path), []byte(".so")) {
			return r, o.path(pid, "root") + string(m.path)
		}
	}
	return runtime{}, ""
}

// maxProgram is how much of a program is searched for its version, in bytes.
const maxProgram = 64 << 20

// versionIn searches a program for the version that it tells when it is asked, and that its
// name has the beginning of. It returns "" if there is none.
func versionIn(file string, r runtime) string {
	// Its owner may have put a pipe in the place of a library since it was mapped: nobody is waited for.
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // nothing was written
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	if r.implementation == "PyPy" {
		return "" // it has versions of its own in it, too
	}
	// Regular expressions would take a second for a program.
	mark, pattern := []byte("\x00"+r.version), pythonVersion
	if r.kind == "ruby" {
		mark, pattern = []byte("ruby "+r.version), rubyVersion
	}
	if r.kind == "python" && r.version == "" {
		mark = []byte("\x003.")
	}
	const window, overlap = 256 << 10, 64
	buf := make([]byte, window)
	kept := 0
	for total := 0; total < maxProgram; {
		n, err := io.ReadFull(f, buf[kept:])
		total += n
		have := buf[:kept+n]
		for at := 0; ; at++ {
			next := bytes.Index(have[at:], mark)
			if next < 0 {
				break
			}
			at += next
			m := pattern.FindSubmatch(have[at:min(at+overlap, len(have))])
			if m != nil && (r.version == "" || strings.HasPrefix(string(m[1]), r.version+".")) {
				return string(m[1])
			}
		}
		if err != nil {
			return ""
		}
		kept = copy(buf, buf[len(buf)-overlap:])
	}
	return ""
}
