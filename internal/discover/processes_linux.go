package discover

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"aggregatord/internal/pool"
)

// NewProcesses returns the source.
func NewProcesses(p Processes) Source {
	return &processSource{Processes: p, proc: "/proc", self: os.Getpid(), known: map[int]*proc{}, named: map[place]pool.Spec{}}
}

type processSource struct {
	Processes
	proc  string
	self  int
	known map[int]*proc
	// named keeps a directory's name and labels when its first process goes and others stay.
	named  map[place]pool.Spec
	rounds int
	hidden bool // some processes could not be looked at in the last round
}

// place is a directory as a process sees it.
type place struct {
	Node
	path string
}

// proc is what is known of a process.
type proc struct {
	pid                      int
	start, size              uint64 // fields 22 and 23 of proc_pid_stat(5)
	user, unit, command, cwd string
	container                string
	who                      credentials
	hints                    []hint
	places                   []place
	filtered                 bool // it has a directory, and the filters leave it out
}

// credentials say what a process may change.
type credentials struct {
	uid    uint32
	groups []uint32
}

// hint is a directory that a process seems to write to.
type hint struct {
	path string
	// file and ino are those of a mapped file in it; without one, the environment names it.
	file string
	ino  uint64
}

const (
	// lookAgain is after how many rounds what a process writes to is looked up again although its
	// memory has the same size.
	lookAgain = 5
	// maxNamed is how many directories are remembered by name.
	maxNamed = 10_000
	// maxProcFile is how much of a file in /proc is read.
	maxProcFile = 4 << 20
)

var errHidden = errors.New("some processes cannot be looked at, and their directories are not found; " +
	"run as root, or as the user of the workers, or grant CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH")

// String implements Source.
func (s *processSource) String() string { return "processes" }

// Find implements Source.
func (s *processSource) Find() ([]Found, []error) {
	pids, err := s.pids()
	if err != nil {
		return nil, []error{err}
	}
	s.rounds++
	var errs []error
	hidden := false
	living := make(map[int]*proc, len(pids))
	for _, pid := range pids {
		p, err := s.look(pid, &errs)
		if errors.Is(err, fs.ErrPermission) {
			hidden = true
		}
		if p != nil {
			living[pid] = p
		}
	}
	s.known, s.hidden = living, hidden
	if hidden {
		errs = append(errs, errHidden)
	}
	procs := make([]*proc, 0, len(living))
	for _, p := range living {
		if len(p.places) > 0 {
			procs = append(procs, p)
		}
	}
	// The oldest process is the one that the others come from.
	slices.SortFunc(procs, func(a, b *proc) int { return cmp.Or(cmp.Compare(a.start, b.start), cmp.Compare(a.pid, b.pid)) })
	var found []Found
	seen := map[Node]bool{}
	for _, p := range procs {
		for _, at := range p.places {
			if seen[at.Node] {
				continue
			}
			seen[at.Node] = true
			found = append(found, s.found(p, at))
		}
	}
	return found, errs
}

// Hint implements Source.
func (s *processSource) Hint() string {
	filtered := ""
	for _, p := range s.known {
		if p.filtered && (filtered == "" || p.command < filtered) {
			filtered = p.command
		}
	}
	switch {
	case filtered != "":
		return fmt.Sprintf("Processes such as %q write source files, and the filters (%s) leave all of them out.", filtered, s.filters())
	case s.hidden:
		return "No process that may be looked at writes source files."
	}
	return "No process writes source files."
}

// pids lists the processes, without ourselves.
func (s *processSource) pids() ([]int, error) {
	dir, err := os.Open(s.proc)
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	defer dir.Close() //nolint:errcheck // it was only read
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid != s.self {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

func (s *processSource) read(pid int, name string) ([]byte, error) {
	f, err := os.Open(filepath.Join(s.proc, strconv.Itoa(pid), name))
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	return io.ReadAll(io.LimitReader(f, maxProcFile))
}

// look returns what is known of a process, nil if it has gone. A process whose memory has the
// size that it had maps the same files.
func (s *processSource) look(pid int, errs *[]error) (*proc, error) {
	stat, err := s.read(pid, "stat")
	if err != nil {
		return nil, err
	}
	// The command is in brackets, and may have any sign but the last bracket.
	_, rest, ok := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
	fields := bytes.Fields(rest)
	if !ok || len(fields) < 21 {
		return nil, nil
	}
	start, _ := strconv.ParseUint(string(fields[19]), 10, 64)
	size, _ := strconv.ParseUint(string(fields[20]), 10, 64)
	if size == 0 {
		return nil, nil // of the kernel, or dead
	}
	p := s.known[pid]
	if p == nil || p.start != start || p.size != size {
		if p, err = s.examine(pid, start); err != nil {
			return &proc{pid: pid, start: start, size: 0}, err
		}
		p.size = size
	} else if len(p.hints) == 0 || (len(p.places) == len(p.hints) && (s.rounds+pid)%lookAgain != 0) {
		return p, nil
	}
	p.places = p.places[:0]
	for _, h := range p.hints {
		at, err := s.resolve(p, h)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESRCH) {
			continue
		}
		if err != nil {
			*errs = append(*errs, fmt.Errorf("directory %q of a process %q of user %s: %w", h.path, p.command, p.user, err))
			continue
		}
		p.places = append(p.places, at)
	}
	return p, nil
}

var (
	containerID = regexp.MustCompile(`[0-9a-f]{64}`)
	unitName    = regexp.MustCompile(`/([^/]+\.service)(?:/|$)`)
)

// examine reads what a process is and what it writes to.
func (s *processSource) examine(pid int, start uint64) (*proc, error) {
	p := &proc{pid: pid, start: start}
	environ, err := s.read(pid, "environ")
	if err != nil {
		return nil, err
	}
	maps, err := s.read(pid, "maps")
	if err != nil {
		return nil, err
	}
	dirs := map[string]hint{}
	for line := range bytes.Lines(maps) {
		if h, ok := mappedSource(string(bytes.TrimSuffix(line, []byte("\n")))); ok {
			dirs[h.path] = h
		}
	}
	cwd, _ := os.Readlink(filepath.Join(s.proc, strconv.Itoa(pid), "cwd"))
	for entry := range bytes.SplitSeq(environ, []byte{0}) {
		name, dir, _ := strings.Cut(string(entry), "=")
		if (name != "PROMETHEUS_MULTIPROC_DIR" && name != "prometheus_multiproc_dir") || dir == "" {
			continue
		}
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cwd, dir)
		}
		if dir = filepath.Clean(dir); dirs[dir].path == "" {
			dirs[dir] = hint{path: dir}
		}
	}
	if len(dirs) == 0 {
		return p, nil
	}
	p.cwd = cwd
	if err := s.describe(p); err != nil {
		return nil, err
	}
	if p.command == "aggregatord" {
		return p, nil
	}
	if !like(s.Unit, p.unit) || !like(s.Command, p.command) ||
		(!like(s.User, p.user) && !like(s.User, strconv.Itoa(int(p.who.uid)))) {
		p.filtered = true
		return p, nil
	}
	for _, h := range dirs {
		if like(s.Path, h.path) {
			p.hints = append(p.hints, h)
		}
	}
	p.filtered = len(p.hints) == 0
	slices.SortFunc(p.hints, func(a, b hint) int { return strings.Compare(a.path, b.path) })
	return p, nil
}

// mappedSource reads a line of proc_pid_maps(5), and reports whether it is a source file that is
// mapped so that stores reach the file.
func mappedSource(line string) (hint, bool) {
	if !strings.HasSuffix(line, ".db") {
		return hint{}, false
	}
	at := strings.IndexByte(line, '/')
	if at < 0 {
		return hint{}, false
	}
	fields := strings.Fields(line[:at])
	if len(fields) != 5 || len(fields[1]) != 4 || fields[1][1] != 'w' || fields[1][3] != 's' {
		return hint{}, false
	}
	dir, file := filepath.Split(line[at:])
	ino, err := strconv.ParseUint(fields[4], 10, 64)
	if err != nil || !isSource(file) {
		return hint{}, false
	}
	return hint{filepath.Clean(dir), file, ino}, true
}

// describe reads who a process is.
func (s *processSource) describe(p *proc) error {
	status, err := s.read(p.pid, "status")
	if err != nil {
		return err
	}
	numbers := func(key string) (all []uint32) {
		for line := range strings.Lines(string(status)) {
			if rest, ok := strings.CutPrefix(line, key+":"); ok {
				for f := range strings.FieldsSeq(rest) {
					if n, err := strconv.ParseUint(f, 10, 32); err == nil {
						all = append(all, uint32(n))
					}
				}
			}
		}
		return all
	}
	uids, gids := numbers("Uid"), numbers("Gid")
	if len(uids) < 4 || len(gids) < 4 {
		return fmt.Errorf("process %d has no user", p.pid)
	}
	// Those that the kernel asks of who opens a file.
	p.who = credentials{uids[3], append(numbers("Groups"), gids[3])}
	p.user = strconv.Itoa(int(p.who.uid))
	if u, err := user.LookupId(p.user); err == nil {
		p.user = u.Username
	}
	if cgroup, err := s.read(p.pid, "cgroup"); err == nil {
		if m := unitName.FindSubmatch(bytes.ReplaceAll(cgroup, []byte("\n"), []byte("/\n"))); m != nil {
			p.unit = string(m[1])
		}
		p.container = string(containerID.Find(cgroup))
	}
	args, err := s.read(p.pid, "cmdline")
	if err != nil {
		return err
	}
	p.command = commandOf(strings.Split(strings.TrimRight(string(args), "\x00"), "\x00"))
	return nil
}

// commandOf names a command: of an interpreter, the script.
func commandOf(args []string) string {
	base := func(arg string) string {
		arg, _, _ = strings.Cut(arg, " ") // gunicorn: master [app]
		return strings.TrimSuffix(filepath.Base(arg), ":")
	}
	name := base(args[0])
	if strings.HasPrefix(name, "python") || strings.HasPrefix(name, "ruby") {
		for i, arg := range args[1:] {
			if arg == "-m" && i+2 < len(args) {
				return base(args[i+2])
			}
			if arg == "-c" || arg == "-e" {
				break
			}
			if arg != "" && !strings.HasPrefix(arg, "-") {
				return base(arg)
			}
		}
	}
	return name
}

// open opens a directory as a process sees it. No link in the path leads out of the process'
// root: the kernel resolves all of them below it.
func (s *processSource) open(pid int, path string, flags uint64) (*os.File, error) {
	root, err := unix.Open(filepath.Join(s.proc, strconv.Itoa(pid), "root"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open the root of", Path: path, Err: err}
	}
	defer unix.Close(root) //nolint:errcheck // only a place
	fd, err := unix.Openat2(root, path, &unix.OpenHow{
		Flags: flags | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOSYS) {
		return nil, errors.New("discovery of processes needs openat2(2), Linux 5.6")
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

// resolve returns which directory a hint means, if the process may change it.
func (s *processSource) resolve(p *proc, h hint) (place, error) {
	dir, err := s.open(p.pid, h.path, unix.O_PATH)
	if err != nil {
		return place{}, err
	}
	defer dir.Close() //nolint:errcheck // only a place
	var st, file unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return place{}, err
	}
	if h.file != "" {
		err := unix.Fstatat(int(dir.Fd()), h.file, &file, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil || file.Ino != h.ino {
			// Another directory has the path now, or the file was moved by whoever archives.
			if err == nil || !errors.Is(err, unix.ENOENT) {
				return place{}, fs.ErrNotExist
			}
		}
	}
	if !p.who.mayChange(&st) {
		return place{}, errors.New("the process may not write to it, so it is refused; a pool's directory must be writable for its workers")
	}
	return place{Node{st.Dev, st.Ino}, h.path}, nil
}

// mayChange reports whether a process may make and remove files in a directory, by its mode.
func (c credentials) mayChange(st *unix.Stat_t) bool {
	switch {
	case c.uid == 0:
		return true
	case c.uid == st.Uid:
		return st.Mode&0o300 == 0o300
	case slices.Contains(c.groups, st.Gid):
		return st.Mode&0o030 == 0o030
	}
	return st.Mode&0o003 == 0o003
}

// found makes a pool of a directory.
func (s *processSource) found(p *proc, at place) Found {
	spec, ok := s.named[at]
	if !ok {
		if len(s.named) >= maxNamed {
			clear(s.named) // the next names are the same unless the first process has gone
		}
		sum := fnv.New32a()
		sum.Write([]byte(p.container + "\x00" + p.unit + "\x00" + at.path))
		base := cmp.Or(strings.TrimSuffix(p.unit, ".service"), p.container[:min(12, len(p.container))], p.command)
		base = strings.ToValidUTF8(strings.ReplaceAll(base, "/", "-"), "_")
		spec = pool.Spec{
			Name: fmt.Sprintf("%.60s-%08x", base, sum.Sum32()), Origin: at.path,
			Labels: labelsOf(map[string]string{"container": p.container, "unit": p.unit, "command": p.command}),
		}
		s.named[at] = spec
	}
	pid := p.pid
	return Found{
		Spec: spec, ID: fmt.Sprintf("%d:%d", at.Dev, at.Ino), Node: at.Node,
		Open: func() (*os.File, error) {
			dir, err := s.open(pid, at.path, unix.O_RDONLY)
			if err != nil {
				return nil, err
			}
			info, err := dir.Stat()
			if err == nil && nodeOf(info) != at.Node {
				err = errors.New("another directory has just taken its place")
			}
			if err != nil {
				return nil, errors.Join(err, dir.Close())
			}
			return dir, nil
		},
		From: FromProcesses,
		Meta: map[string]string{"__meta_aggregatord_cwd": p.cwd, "__meta_aggregatord_user": p.user},
	}
}
