package doctor

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"aggregatord/internal/fold"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// dirOfProcess takes the directory from the environment of the process that was named.
func (e *examination) dirOfProcess() {
	for _, p := range e.processes {
		if p.pid == e.opts.PID {
			e.opts.Dir = p.dir()
		}
	}
}

// notNamed says that there is no directory to look at, and which ones processes were started
// with.
func (e *examination) notNamed() {
	advice := "use --dir DIR with the directory that PROMETHEUS_MULTIPROC_DIR names for the application, or --pid with one of its processes"
	var dirs []string
	for _, p := range e.processes {
		if dir := p.dir(); dir != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) > 0 && e.opts.PID == 0 {
		slices.Sort(dirs)
		advice += "; processes here have " + enumerate(dirs)
	}
	e.add(Problem, "directory", "no directory is named", advice)
}

// directory looks at the directory itself and reports whether it is there.
func (e *examination) directory() bool {
	dir := e.opts.Dir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.add(Problem, "directory", dir+" does not exist", "make it before the application starts: mkdir -p "+dir+" ; the clients do not make it")
		return false
	case err != nil:
		e.add(Problem, "directory", err.Error(), "run this as a user who may look there")
		return false
	case !info.IsDir():
		e.add(Problem, "directory", dir+" is not a directory", "name the directory that holds the source files")
		return false
	}
	f, err := os.Open(dir)
	if err != nil {
		e.add(Problem, "directory", err.Error(), "run this, and the daemon, as a user who may list the directory: best as that of the workers")
		return false
	}
	f.Close() //nolint:errcheck // it was not even read
	e.ok("directory", "%s is there, with mode %04o", dir, info.Mode().Perm())
	return true
}

// fileSystem looks at the room that is left.
func (e *examination) fileSystem() {
	var s unix.Statfs_t
	if err := unix.Statfs(e.opts.Dir, &s); err != nil {
		e.add(Warning, "space", fmt.Sprintf("look at the file system: %v", err), "")
		return
	}
	free, all := uint64(s.Bavail)*uint64(s.Bsize), uint64(s.Blocks)*uint64(s.Bsize) //nolint:unconvert // the types differ between systems
	// A worker takes some 64 KiB for each kind of metric; where it cannot have them it is
	// killed by SIGBUS.
	const need = 1 << 20
	advice := "make it larger (for /dev/shm of a container: docker run --shm-size, or a memory volume), or let aggregatord archive the files of dead workers"
	switch {
	case all == 0:
	case free < need:
		e.add(Problem, "space", fmt.Sprintf("the file system is full: %d of %d KiB are free; a worker that stores a value there is killed by SIGBUS", free>>10, all>>10), advice)
	case free < all/10:
		e.add(Warning, "space", fmt.Sprintf("the file system is almost full: %d of %d MiB are free", free>>20, all>>20), advice)
	default:
		e.ok("space", "%d of %d MiB are free", free>>20, all>>20)
	}
	switch {
	case s.Files == 0: // the file system does not count them
	case s.Ffree == 0:
		e.add(Problem, "inodes", "the file system has no inodes left, so that no file can be made", advice)
	case uint64(s.Ffree) < uint64(s.Files)/20: //nolint:unconvert // the types differ between systems
		e.add(Warning, "inodes", fmt.Sprintf("the file system has %d of %d inodes left", s.Ffree, s.Files), advice)
	}
}

// liveness asks how the daemon, started as we are, would know who is dead.
func (e *examination) liveness() {
	prober := watch.NewProber(e.opts.Dir)
	choice, err := prober.Probe()
	if err != nil {
		e.add(Problem, "liveness", err.Error(), "")
		return
	}
	if choice.Method == watch.MethodLease {
		e.ok("liveness", "on %s dead workers are known by read leases", choice.FileSystem)
		return
	}
	advice := "use a tmpfs or a local volume for the directory"
	if choice.Reason == "" || strings.Contains(choice.Reason, "permi") || strings.Contains(choice.Reason, "owner") {
		advice = "run the daemon as the user of the workers, or give it CAP_LEASE"
	}
	level, then := Problem, "no file is archived and live gauges of the dead stay"
	if choice.Method == watch.MethodProc {
		level, then = Warning, "the dead are known by /proc, but their files are not archived"
	}
	e.add(level, "liveness", fmt.Sprintf("on %s this user gets no proof of death: %s; %s", choice.FileSystem, choice.Reason, then), advice)
}

// workers looks for the processes that write, or should.
func (e *examination) workers(there bool) {
	if len(e.processes) == 0 {
		e.add(Warning, "workers", "there is no /proc to find them in", "")
		return
	}
	dir := e.opts.Dir
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	same := func(d string) bool {
		if d == "" { // to EvalSymlinks that is the working directory
			return false
		}
		if resolved, err := filepath.EvalSymlinks(d); err == nil {
			d = resolved
		}
		return d == dir
	}
	var named, servers, readers []process
	family := e.family()
	for _, p := range e.processes {
		if p.pid == os.Getpid() {
			continue
		}
		for used, writes := range p.uses() {
			switch {
			case used != dir:
			case writes:
				e.writers = append(e.writers, p)
			case !strings.HasPrefix(p.name, "aggregatord"):
				readers = append(readers, p)
			}
		}
		switch {
		case e.opts.PID != 0 && !family[p.pid]:
		case p.known && same(p.dir()):
			named = append(named, p)
		case p.known && p.server():
			servers = append(servers, p)
		}
	}
	if len(e.writers) > 0 {
		e.ok("workers", "%s writing there: %s", plural(len(e.writers), "process"), list(e.writers))
	}
	switch {
	case e.opts.PID != 0:
		e.named(same)
	case len(named) == 0 && len(e.writers) == 0:
		advice := "set PROMETHEUS_MULTIPROC_DIR=" + e.opts.Dir + " in the environment that the server is started with, and restart it"
		if len(servers) > 0 {
			with := servers[0].dir()
			if with == "" {
				with = "none"
			}
			e.add(Problem, "environment", fmt.Sprintf("no process was started with this directory: not %s; the first of them has %s as PROMETHEUS_MULTIPROC_DIR", list(servers), with), advice)
		} else {
			e.add(Warning, "environment", "no process that can be seen was started with this directory: they are not running, belong to another user, or are in another container", advice+"; or give one of its processes by --pid")
		}
	case len(e.writers) == 0:
		e.add(Warning, "environment", fmt.Sprintf("%s %s the variable, and nothing is written: %s", plural(len(named), "process"), verb(len(named), "has", "have"), list(named)),
			"no metric of prometheus_client was made there yet: call the application once, and see that it imports prometheus_client after the variable is set")
	}
	if there {
		e.writable(append(named, e.writers...))
	}
	if len(readers) > 0 {
		e.add(Warning, "readers", fmt.Sprintf("%s %s the files besides the daemon: %s", plural(len(readers), "process"), verb(len(readers), "reads", "read"), list(readers)),
			"an in-application /metrics on this directory no longer sees dead workers; take it away, or start aggregatord with --archive.disable while both are used")
	}
}

// family returns the process that was named and its descendants.
func (e *examination) family() map[int]bool {
	family := map[int]bool{e.opts.PID: true}
	for grown := true; grown; {
		grown = false
		for _, p := range e.processes {
			if family[p.parent] && !family[p.pid] {
				family[p.pid], grown = true, true
			}
		}
	}
	return family
}

// named looks at the process that was given.
func (e *examination) named(same func(string) bool) {
	i := slices.IndexFunc(e.processes, func(p process) bool { return p.pid == e.opts.PID })
	if i < 0 {
		e.add(Problem, "process", fmt.Sprintf("there is no process %d here", e.opts.PID), "give the pid that it has in this container or on this machine, as ps shows it")
		return
	}
	p, family := e.processes[i], e.family()
	writes := slices.ContainsFunc(e.writers, func(w process) bool { return family[w.pid] })
	var elsewhere []string
	for _, f := range e.processes {
		if family[f.pid] {
			for dir, w := range f.uses() {
				if w && !same(dir) && !slices.Contains(elsewhere, dir) {
					elsewhere = append(elsewhere, dir)
				}
			}
		}
	}
	set := "set PROMETHEUS_MULTIPROC_DIR=" + cmp.Or(e.opts.Dir, "DIR") + " in the environment that the server is started with, and restart it"
	switch {
	case e.opts.Dir == "" && len(elsewhere) > 0:
		e.add(Problem, "environment", fmt.Sprintf("%s was started without PROMETHEUS_MULTIPROC_DIR, and writes to %s", list([]process{p}), enumerate(elsewhere)), "use --dir "+elsewhere[0])
	case !p.known:
		e.add(Warning, "environment", fmt.Sprintf("the environment of %s may not be read", list([]process{p})), "run this as root or as that user")
	case writes && p.dir() == "":
		e.ok("environment", "%s was started without PROMETHEUS_MULTIPROC_DIR, but writes there: the application sets it early enough itself", list([]process{p}))
	case writes:
		e.ok("environment", "%s was started with this directory, and writes there", list([]process{p}))
	case p.dir() == "" && len(elsewhere) == 0:
		e.add(Problem, "environment", fmt.Sprintf("%s was started without PROMETHEUS_MULTIPROC_DIR, and writes nothing: if the application sets it, that is after prometheus_client was imported, and too late", list([]process{p})), set)
	case !same(p.dir()) && p.dir() != "":
		e.add(Problem, "environment", fmt.Sprintf("%s was started with PROMETHEUS_MULTIPROC_DIR=%s, not with %s", list([]process{p}), p.dir(), e.opts.Dir), "give the same directory to the application and to aggregatord")
	case len(elsewhere) > 0:
		e.add(Problem, "environment", fmt.Sprintf("%s writes to %s, not to %s", list([]process{p}), strings.Join(elsewhere, ", "), e.opts.Dir), "give the same directory to the application and to aggregatord")
	default:
		e.add(Warning, "environment", fmt.Sprintf("%s was started with this directory, and nothing is written", list([]process{p})),
			"no metric of prometheus_client was made there yet: call the application once")
	}
}

// writable looks whether the workers may make files in the directory.
func (e *examination) writable(workers []process) {
	info, err := os.Stat(e.opts.Dir)
	if err != nil {
		return
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return
	}
	for _, p := range workers {
		if !p.mayWrite(info.Mode(), stat.Uid, stat.Gid) {
			e.add(Problem, "permissions", fmt.Sprintf("%s, user %d, may not make files in %s, which belongs to user %d and group %d with mode %04o", list([]process{p}), p.uid, e.opts.Dir, stat.Uid, stat.Gid, info.Mode().Perm()),
				fmt.Sprintf("chown %d %s", p.uid, e.opts.Dir))
			return
		}
	}
}

// list names the first processes.
func list(ps []process) string {
	names := make([]string, len(ps))
	for i, p := range ps {
		names[i] = fmt.Sprintf("%s (%d)", p.name, p.pid)
	}
	return enumerate(names)
}

// enumerate lists the first names.
func enumerate(names []string) string {
	const most = 3
	if len(names) > most {
		names = append(slices.Clone(names[:most]), fmt.Sprintf("%d more", len(names)-most))
	}
	return strings.Join(names, ", ")
}

// files looks at what was written.
func (e *examination) files() {
	entries, err := os.ReadDir(e.opts.Dir)
	if err != nil {
		e.add(Problem, "files", err.Error(), "")
		return
	}
	var sources, entriesRead, helpless, empty int
	var foreign, damaged []string
	for _, d := range entries {
		if strings.HasPrefix(d.Name(), ".") {
			continue
		}
		name, err := store.ParseName(d.Name())
		if err != nil {
			foreign = append(foreign, d.Name())
			continue
		}
		sources++
		if sources > 1000 {
			continue // it is counted, and the first ones tell the rest
		}
		in, err := store.Inspect(filepath.Join(e.opts.Dir, d.Name()), store.Limits{})
		switch {
		case errors.Is(err, fs.ErrNotExist): // archived meanwhile
		case err != nil:
			damaged = append(damaged, err.Error())
		case in.Damage != nil:
			damaged = append(damaged, fmt.Sprintf("%s: %v", name.Base, in.Damage))
		case len(in.Entries) == 0:
			empty++
		}
		for _, entry := range in.Entries {
			entriesRead++
			if entry.KeyErr == nil && entry.Key.Help == "" {
				helpless++
			}
		}
	}
	switch {
	case sources == 0 && len(e.writers) == 0:
		e.add(Warning, "files", "there are no source files: no worker has made a metric here since its last ones were archived", "call the application once, then look again")
	case sources == 0:
		e.add(Warning, "files", "there are no source files, but processes write: somebody has removed the files from under them", "do not empty the directory while the application runs")
	default:
		e.ok("files", "%s with %s", plural(sources, "source file"), plural(entriesRead, "value"))
	}
	if entriesRead > 0 && helpless == entriesRead {
		e.add(Warning, "client", "no metric has a help text: the client is older than 0.16, or a fork", "everything else is served; for help texts update prometheus_client")
	}
	if empty > 0 && len(e.writers) == 0 {
		e.add(Warning, "files", fmt.Sprintf("%s %s nothing: the worker was killed before it had written anything", plural(empty, "file"), verb(empty, "holds", "hold")), "")
	}
	if len(damaged) > 0 {
		e.add(Problem, "files", fmt.Sprintf("%s cannot be read, the first: %s", plural(len(damaged), "file"), damaged[0]), "aggregatord inspect shows what is in a file; remove it when its worker is gone")
	}
	if len(foreign) > 0 {
		advice := "they are left alone"
		if slices.ContainsFunc(foreign, func(n string) bool { return strings.HasSuffix(n, ".bin") }) {
			advice = "files of the Ruby client's DirectFileStore are not read"
		}
		e.add(Warning, "files", fmt.Sprintf("%s %s no source file, the first: %q", plural(len(foreign), "file"), verb(len(foreign), "is", "are"), foreign[0]), advice)
	}
}

// holder looks for a daemon that has the directory.
func (e *examination) holder() {
	who, held, err := fold.Holder(e.opts.Dir)
	switch {
	case err != nil:
		e.add(Warning, "daemon", err.Error(), "run this as the user of the daemon")
	case held:
		e.ok("daemon", "%s; a second daemon would not start", who)
	default:
		e.add(Warning, "daemon", "no daemon archives this directory", "start one: aggregatord serve --dir "+e.opts.Dir)
	}
}

// daemon asks the daemon how it is.
func (e *examination) daemon(ctx context.Context) {
	ctx, stop := context.WithTimeout(ctx, e.opts.Timeout)
	defer stop()
	daemon := e.opts.Daemon
	get := func(path string, metrics url.Values) (*http.Response, error) {
		u := daemon.URL.JoinPath(path)
		u.RawQuery = metrics.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, err
		}
		return daemon.Client.Do(req)
	}
	resp, err := get("/-/ready", nil)
	if err != nil {
		level := Warning
		if daemon.Given {
			level = Problem
		}
		e.add(level, "endpoint", fmt.Sprintf("nobody answers: %v", err), "see whether the daemon runs and which --web.listen-address it has, and give that by --url")
		return
	}
	resp.Body.Close() //nolint:errcheck // nothing was read
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusServiceUnavailable:
		e.add(Problem, "endpoint", daemon.Name+" is not ready", "it is reading the files, or cannot: its log says which")
		return
	case http.StatusUnauthorized:
		e.add(Warning, "endpoint", daemon.Name+" asks for a password, so no more is known", "give a file with it by --http.config.file")
		return
	default:
		e.add(Problem, "endpoint", fmt.Sprintf("%s answers %s: that is not aggregatord", daemon.Name, resp.Status), "give the daemon's own address by --url")
		return
	}
	resp, err = get("/metrics", url.Values{"name[]": {"aggregatord_directory_up", "aggregatord_archive_up", "aggregatord_series", "aggregatord_workers"}})
	if err != nil {
		e.add(Warning, "endpoint", fmt.Sprintf("%s is ready, but gives no metrics: %v", daemon.Name, err), "see its log; if the machine is busy, ask again")
		return
	}
	defer resp.Body.Close() //nolint:errcheck // it was read
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		e.add(Warning, "endpoint", daemon.Name+" is ready; its metrics are at another path than /metrics", "")
		return
	default:
		e.add(Warning, "endpoint", fmt.Sprintf("%s is ready, but answers %s when asked for metrics", daemon.Name, resp.Status), "see its log, and aggregatord_scrapes_total when it answers again")
		return
	}
	series, alive := 0.0, 0.0
	up := map[string]float64{}
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		sample, value, ok := strings.Cut(lines.Text(), " ")
		v, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil {
			continue
		}
		name, labels, _ := strings.Cut(sample, "{")
		switch name {
		case "aggregatord_directory_up", "aggregatord_archive_up":
			if old, ok := up[name]; !ok || v < old {
				up[name] = v
			}
		case "aggregatord_series":
			series += v
		case "aggregatord_workers":
			if strings.Contains(labels, `"alive"`) {
				alive += v
			}
		}
	}
	switch dir, ok := up["aggregatord_directory_up"]; {
	case !ok:
		e.add(Problem, "endpoint", daemon.Name+" has no metrics of aggregatord", "give the daemon's own address by --url")
		return
	case dir == 0:
		e.add(Problem, "endpoint", daemon.Name+" is ready, but a directory of its cannot be listed", "compare its --dir with the directory of the application")
	default:
		e.ok("endpoint", "%s is ready, with %v samples of %v workers", daemon.Name, series, alive)
	}
	if archive, ok := up["aggregatord_archive_up"]; ok && archive == 0 {
		e.add(Problem, "archive", "the daemon cannot archive: files of the dead stay", "its log says why")
	}
}
