package doctor

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// process is what proc(5) tells of a process, as far as we may look.
type process struct {
	pid, parent int
	// name is how people would call it: the first words of its command line.
	name string
	// environ is its environment when it began; known says that we may read it.
	environ map[string]string
	known   bool
	// uid is its file system user, and groups are its file system group and the others.
	uid    uint32
	groups []uint32
	// root is where proc(5) has it.
	root string
}

// readProcesses returns all processes that can be seen, none where there is no /proc.
func readProcesses(root string) []process {
	names, err := os.ReadDir(root)
	if err != nil {
		return nil
	}
	var all []process
	for _, n := range names {
		pid, err := strconv.Atoi(n.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(root, pid); ok {
			all = append(all, p)
		}
	}
	return all
}

// readProcess returns one process, unless it has ended or is one of the kernel's own.
func readProcess(root string, pid int) (process, bool) {
	p := process{pid: pid, root: filepath.Join(root, strconv.Itoa(pid))}
	command, err := os.ReadFile(filepath.Join(p.root, "cmdline"))
	if err != nil || len(command) == 0 {
		return p, false
	}
	words := strings.Split(strings.TrimRight(string(command), "\x00"), "\x00")
	words[0] = filepath.Base(words[0])
	if len(words) > 1 {
		words[1] = filepath.Base(words[1]) // python3 /usr/bin/gunicorn
	}
	p.name = strings.Join(words[:min(2, len(words))], " ")
	status, err := os.ReadFile(filepath.Join(p.root, "status"))
	if err != nil {
		return p, false
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch {
		case key == "PPid" && len(fields) > 0:
			p.parent, _ = strconv.Atoi(fields[0])
		case key == "Uid" && len(fields) == 4:
			p.uid = number(fields[3])
		case key == "Gid" && len(fields) == 4:
			p.groups = append(p.groups, number(fields[3]))
		case key == "Groups":
			for _, f := range fields {
				p.groups = append(p.groups, number(f))
			}
		}
	}
	if env, err := os.ReadFile(filepath.Join(p.root, "environ")); err == nil {
		p.known, p.environ = true, map[string]string{}
		for e := range bytes.SplitSeq(env, []byte{0}) {
			if name, value, ok := strings.Cut(string(e), "="); ok {
				p.environ[name] = value
			}
		}
	}
	return p, true
}

func number(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 1<<32 - 1 // nobody
	}
	return uint32(n)
}

// dir returns the directory for source files that the process was started with, "" without
// one.
func (p process) dir() string {
	for _, name := range []string{"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} {
		if dir := p.environ[name]; dir != "" {
			if !filepath.IsAbs(dir) {
				if cwd, err := os.Readlink(filepath.Join(p.root, "cwd")); err == nil {
					dir = filepath.Join(cwd, dir)
				}
			}
			return filepath.Clean(dir)
		}
	}
	return ""
}

// uses tells how the process uses source files in directories: for each directory whether
// it writes there. Another mount namespace may give directories other names.
func (p process) uses() map[string]bool {
	found := map[string]bool{}
	note := func(path string, writes bool) {
		if strings.HasSuffix(path, ".db") {
			dir := filepath.Dir(path)
			found[dir] = found[dir] || writes
		}
	}
	maps, err := os.ReadFile(filepath.Join(p.root, "maps"))
	if err != nil {
		return found
	}
	for line := range strings.Lines(string(maps)) {
		// proc_pid_maps(5): address perms offset dev inode path
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 6)
		if len(fields) == 6 && len(fields[1]) == 4 {
			note(strings.TrimLeft(fields[5], " "), fields[1][1] == 'w' && fields[1][3] == 's')
		}
	}
	fds, err := os.ReadDir(filepath.Join(p.root, "fd"))
	if err != nil {
		return found
	}
	for _, fd := range fds {
		path, err := os.Readlink(filepath.Join(p.root, "fd", fd.Name()))
		if err != nil || !strings.HasSuffix(path, ".db") {
			continue
		}
		info, err := os.ReadFile(filepath.Join(p.root, "fdinfo", fd.Name()))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			if value, ok := strings.CutPrefix(line, "flags:"); ok {
				flags, err := strconv.ParseInt(strings.TrimSpace(value), 8, 64)
				note(path, err == nil && flags&syscall.O_ACCMODE != syscall.O_RDONLY)
			}
		}
	}
	return found
}

// writesRemoved reports whether the process has a source file of a directory mapped for
// writing that has no name any more.
func (p process) writesRemoved(dir string) bool {
	maps, err := os.ReadFile(filepath.Join(p.root, "maps"))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(maps)) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 6)
		if len(fields) != 6 || len(fields[1]) != 4 || fields[1][1] != 'w' || fields[1][3] != 's' {
			continue
		}
		path, ok := strings.CutSuffix(strings.TrimLeft(fields[5], " "), " (deleted)")
		// What begins with a dot is on its way into the archive.
		if ok && filepath.Dir(path) == dir && strings.HasSuffix(path, ".db") && !strings.HasPrefix(filepath.Base(path), ".") {
			return true
		}
	}
	return false
}

// ownerOf returns to whom a file belongs.
func ownerOf(info os.FileInfo) (uint32, bool) {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false
	}
	return stat.Uid, true
}

// mayWrite reports whether the process may make files in a directory, going by its owner
// and mode alone: what access lists, read-only mounts and security modules say is not known.
func (p process) mayWrite(mode os.FileMode, uid, gid uint32) bool {
	perm := mode.Perm()
	switch {
	case p.uid == 0:
		return true
	case p.uid == uid:
		return perm&0o300 == 0o300
	case slices.Contains(p.groups, gid):
		return perm&0o030 == 0o030
	}
	return perm&0o003 == 0o003
}

// servers are programs that run pools of workers, by a word of their name.
var servers = []string{"gunicorn", "uwsgi", "celery", "uvicorn", "hypercorn", "puma", "unicorn", "sidekiq", "rq"}

// ours reports whether the process is an aggregatord that reads, and none that runs the
// application. A daemon may have the directory from its environment, as workers do.
func (p process) ours() bool {
	program, command, _ := strings.Cut(p.name, " ")
	return program == "aggregatord" && command != "demo"
}

// server reports whether the process looks like one of a pool of workers.
func (p process) server() bool {
	for _, word := range strings.FieldsFunc(strings.ToLower(p.name), func(r rune) bool { return r < 'a' || r > 'z' }) {
		if slices.Contains(servers, word) {
			return true
		}
	}
	return false
}
