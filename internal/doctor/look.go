package doctor

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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
	advice := "Give the directory that PROMETHEUS_MULTIPROC_DIR names for the application by --dir, or one of its processes by --pid."
	var dirs []string
	for _, p := range e.processes {
		if dir := p.dir(); dir != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) > 0 && e.opts.PID == 0 {
		slices.Sort(dirs)
		advice += " Processes here have " + enumerate(dirs) + "."
	}
	e.add(Problem, "directory", "No directory is given.", advice)
}

// directory looks at the directory itself and reports whether it is there.
func (e *examination) directory() bool {
	dir := e.opts.Dir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		e.add(Problem, "directory", dir+" does not exist.",
			"Make it before the application starts: mkdir -p "+dir+" (the clients do not make it).")
		return false
	case err != nil:
		e.add(Problem, "directory", err.Error()+".", "Run this as a user who may look there.")
		return false
	case !info.IsDir():
		e.add(Problem, "directory", dir+" is not a directory.", "Give the directory that holds the source files.")
		return false
	}
	f, err := os.Open(dir)
	if err != nil {
		e.add(Problem, "directory", err.Error()+".",
			"Run this, and the daemon, as a user who may list the directory: the user of the workers.")
		return false
	}
	f.Close() //nolint:errcheck // it was not even read
	e.ok("directory", "%s is there, with mode %04o.", dir, info.Mode().Perm())
	return true
}

// fileSystem looks at the room that is left.
func (e *examination) fileSystem() {
	var s unix.Statfs_t
	if err := unix.Statfs(e.opts.Dir, &s); err != nil {
		e.add(Warning, "space", fmt.Sprintf("The room cannot be asked for: %v.", err), "")
		return
	}
	free, all := uint64(s.Bavail)*uint64(s.Bsize), uint64(s.Blocks)*uint64(s.Bsize) //nolint:unconvert // the types differ between systems
	// A worker takes some 64 KiB for each kind of metric; where it cannot have them it is
	// killed by SIGBUS.
	const need = 1 << 20
	advice := "Make it larger (for /dev/shm of a container: docker run --shm-size, or a memory volume), or let aggregatord archive the files of dead workers."
	switch {
	case all == 0:
	case free < need:
		e.add(Problem, "space",
			fmt.Sprintf("The file system is full: %d of %d KiB are free. The next value that a worker stores kills it (SIGBUS).", free>>10,
				all>>10), advice)
	case free < all/10:
		e.add(Warning, "space", fmt.Sprintf("The file system is almost full: %d of %d MiB are free.", free>>20, all>>20), advice)
	default:
		e.ok("space", "%d of %d MiB are free.", free>>20, all>>20)
	}
	switch {
	case s.Files == 0: // the file system does not count them
	case s.Ffree == 0:
		e.add(Problem, "inodes", "The file system has no inodes left, so no worker can make a file.", advice)
	case uint64(s.Ffree) < uint64(s.Files)/20: //nolint:unconvert // the types differ between systems
		e.add(Warning, "inodes", fmt.Sprintf("The file system has %d of %d inodes left.", s.Ffree, s.Files), advice)
	}
}

// liveness says how the daemon knows who is dead or, where no daemon has told, how one that is
// started as we are would.
func (e *examination) liveness(a *answered) {
	if a != nil && a.pool != nil && a.pool.Up {
		l := a.pool.Liveness
		switch {
		case l.Files["none"] > 0 || l.Method == "none":
			advice := "Run the daemon as the user of the workers" + e.ownerOf() + ", or give it CAP_LEASE."
			if l.Reason != "" && !notAllowed(l.Reason) {
				advice = "Use a tmpfs or a local volume for the directory."
			}
			e.add(Problem, "liveness",
				fmt.Sprintf("The daemon cannot tell whether the workers of %s are alive%s. It archives none of these files, and live gauges of dead workers stay.",
					plural(l.Files["none"], "file"), because(l.Reason)), advice)
		case l.Method == "proc":
			e.add(Warning, "liveness", "The daemon knows dead workers by /proc, but does not archive their files"+because(l.Reason)+".",
				"Run the daemon as the user of the workers"+e.ownerOf()+", or give it CAP_LEASE.")
		default:
			e.ok("liveness", "The daemon knows dead workers by read leases (%s).", l.FileSystem)
		}
		return
	}
	prober := watch.NewProber(e.opts.Dir)
	choice, err := prober.Probe()
	if err != nil {
		e.add(Problem, "liveness", err.Error()+".", "Run this as the user of the workers.")
		return
	}
	if choice.Method == watch.MethodLease {
		e.ok("liveness", "A daemon of this user knows dead workers by read leases (%s).", choice.FileSystem)
		return
	}
	advice := "Use a tmpfs or a local volume for the directory."
	if notAllowed(choice.Reason) {
		advice = "Run the daemon as the user of the workers" + e.ownerOf() + ", or give it CAP_LEASE."
	}
	level, then := Problem, "It would archive no file, and live gauges of dead workers would stay."
	if choice.Method == watch.MethodProc {
		level, then = Warning, "It would know dead workers by /proc, but not archive their files."
	}
	e.add(level, "liveness", fmt.Sprintf("A daemon of this user gets no proof that a worker is dead%s. %s", because(choice.Reason), then),
		advice)
}

// notAllowed reports whether the reason why there is no better way is a lack of rights.
func notAllowed(reason string) bool {
	return reason == "" || strings.Contains(reason, "permi") || strings.Contains(reason, "owner")
}

// because is a reason as a part of a sentence.
func because(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + reason + ")"
}

// workers looks for the processes that write, or should.
func (e *examination) workers(there bool) {
	if len(e.processes) == 0 {
		e.add(Warning, "workers", "There is no /proc here, so the workers cannot be looked at.", "")
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
	var named, servers, readers, removed []process
	family := e.family()
	for _, p := range e.processes {
		if p.pid == os.Getpid() {
			continue
		}
		if p.writesRemoved(dir) {
			removed = append(removed, p)
		}
		for used, writes := range p.uses() {
			switch {
			case used != dir:
			case writes:
				e.writers = append(e.writers, p)
			case !p.ours():
				readers = append(readers, p)
			}
		}
		switch {
		case e.opts.PID != 0 && !family[p.pid]:
		case p.ours(): // it reads
		case p.known && same(p.dir()):
			named = append(named, p)
		case p.known && p.server():
			servers = append(servers, p)
		}
	}
	if len(e.writers) > 0 {
		e.ok("workers", "%s writing there: %s.", plural(len(e.writers), "process"), list(e.writers))
	}
	switch {
	case e.opts.PID != 0:
		e.named(same)
	case len(named) == 0 && len(e.writers) == 0 && e.unreadOnly():
		// The files say who writes here: files() names the client.
	case len(named) == 0 && len(e.writers) == 0:
		advice := "Set PROMETHEUS_MULTIPROC_DIR=" + e.opts.Dir + " in the environment of the server, and restart it."
		if len(servers) > 0 {
			with := servers[0].dir()
			if with == "" {
				with = "none"
			}
			e.add(Problem, "environment",
				fmt.Sprintf("No process was started with this directory. %s was not; PROMETHEUS_MULTIPROC_DIR of the first is %s.",
					list(servers), with), advice)
		} else {
			e.add(Warning, "environment",
				"No process that can be seen was started with this directory: the workers are not running, belong to another user, or are in another container.", advice+" Or give one of its processes by --pid.")
		}
	case len(e.writers) == 0:
		e.add(Warning, "environment", fmt.Sprintf("%s %s this directory in the environment, and nothing is written: %s.",
			plural(len(named), "process"), verb(len(named), "has", "have"), list(named)),
			"No metric was made there yet. Call the application once, and make sure that it imports prometheus_client after the variable is set.")
	}
	if len(removed) > 0 {
		e.add(Warning, "removed files",
			fmt.Sprintf("%s to files that were removed from the directory: %s. Only a daemon that had them open before still counts their values.", plural(len(removed), "process")+verb(len(removed), " writes", " write"), list(removed)),
			"Restart the workers, and do not empty the directory while they run.")
	}
	if there {
		e.writable(append(named, e.writers...))
	}
	if len(readers) > 0 {
		e.add(Warning, "readers", fmt.Sprintf("%s %s the files besides the daemon: %s.", plural(len(readers), "process"),
			verb(len(readers), "reads", "read"), list(readers)),
			"A /metrics of the application that reads this directory no longer sees dead workers. Remove it, or start aggregatord with --archive.disable as long as you use both.")
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
		e.add(Problem, "process", fmt.Sprintf("There is no process %d here.", e.opts.PID),
			"Give the pid that ps shows in this container or on this machine.")
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
	set := "Set PROMETHEUS_MULTIPROC_DIR=" + cmp.Or(e.opts.Dir, "DIR") + " in the environment of the server, and restart it."
	switch {
	case e.opts.Dir == "" && len(elsewhere) > 0:
		e.add(Problem, "environment", fmt.Sprintf("%s was started without PROMETHEUS_MULTIPROC_DIR, and writes to %s.", list([]process{p}),
			enumerate(elsewhere)), "Use --dir "+elsewhere[0]+".")
	case !p.known:
		e.add(Warning, "environment", fmt.Sprintf("The environment of %s may not be read.", list([]process{p})),
			"Run this as root or as that user.")
	case writes && p.dir() == "":
		e.ok("environment",
			"%s was started without PROMETHEUS_MULTIPROC_DIR, but writes there: the application sets it early enough itself.",
			list([]process{p}))
	case writes:
		e.ok("environment", "%s was started with this directory, and writes there.", list([]process{p}))
	case p.dir() == "" && len(elsewhere) == 0:
		e.add(Problem, "environment",
			fmt.Sprintf("%s was started without PROMETHEUS_MULTIPROC_DIR, and writes nothing. If the application sets it after prometheus_client was imported, that is too late.", list([]process{p})), set)
	case !same(p.dir()) && p.dir() != "":
		e.add(Problem, "environment", fmt.Sprintf("%s was started with PROMETHEUS_MULTIPROC_DIR=%s, not with %s.", list([]process{p}),
			p.dir(), e.opts.Dir), "Give the same directory to the application and to aggregatord.")
	case len(elsewhere) > 0:
		e.add(Problem, "environment", fmt.Sprintf("%s writes to %s, not to %s.", list([]process{p}), strings.Join(elsewhere, ", "),
			e.opts.Dir), "Give the same directory to the application and to aggregatord.")
	default:
		e.add(Warning, "environment", fmt.Sprintf("%s was started with this directory, and nothing is written.", list([]process{p})),
			"No metric was made there yet. Call the application once.")
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
			e.add(Problem, "permissions",
				fmt.Sprintf("%s, user %d, may not make files in %s, which belongs to user %d and group %d with mode %04o.",
					list([]process{p}), p.uid, e.opts.Dir, stat.Uid, stat.Gid, info.Mode().Perm()),
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

// unreadOnly reports whether the directory has files of a client that is not read yet, and no
// source files.
func (e *examination) unreadOnly() bool {
	entries, _ := os.ReadDir(e.opts.Dir) // files() tells the error
	unread := false
	for _, d := range entries {
		if _, err := store.ParseName(d.Name()); err == nil {
			return false
		}
		unread = unread || store.UnreadClient(d.Name()) != ""
	}
	return unread
}

// files looks at what was written.
func (e *examination) files() {
	entries, err := os.ReadDir(e.opts.Dir)
	if err != nil {
		e.add(Problem, "files", err.Error()+".", "Run this as a user who may list the directory.")
		return
	}
	var sources, entriesRead, helpless, empty int
	var foreign, unread, damaged, forbidden []string
	for _, d := range entries {
		if strings.HasPrefix(d.Name(), ".") {
			continue
		}
		name, err := store.ParseName(d.Name())
		if err != nil && store.UnreadClient(d.Name()) != "" {
			unread = append(unread, d.Name())
			continue
		}
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
		case errors.Is(err, fs.ErrPermission):
			forbidden = append(forbidden, d.Name())
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
	if len(unread) > 0 {
		e.add(Warning, "client", fmt.Sprintf("%s %s written by %s, which is not read yet. The first: %q.",
			plural(len(unread), "file"), verb(len(unread), "was", "were"), store.UnreadClient(unread[0]), unread[0]),
			"Its metrics are not served. Go on serving them by the application, or write them by prometheus-client-mmap, which is read.")
	}
	switch {
	case sources == 0 && len(unread) > 0: // told
	case sources == 0 && len(e.writers) == 0:
		e.add(Warning, "files", "There are no source files: no worker has made a metric here, or all of them are archived.",
			"Call the application once, then look again.")
	case sources == 0:
		e.add(Warning, "files", "There are no source files, but processes write: somebody removed the files while they were in use.",
			"Do not empty the directory while the application runs.")
	default:
		e.ok("files", "%s with %s.", plural(sources, "source file"), plural(entriesRead, "value"))
	}
	if entriesRead > 0 && helpless == entriesRead {
		e.add(Warning, "client", "No metric has a help text: the client is older than 0.16, or a fork.",
			"Everything else is served. Update prometheus_client for help texts.")
	}
	if empty > 0 && len(e.writers) == 0 {
		e.add(Warning, "files", fmt.Sprintf("%s %s nothing: the worker was killed before it wrote anything.", plural(empty, "file"),
			verb(empty, "holds", "hold")), "")
	}
	if len(forbidden) > 0 {
		e.add(Warning, "files", fmt.Sprintf("This user may not read %s, the first: %s.", plural(len(forbidden), "file"), forbidden[0]),
			"Run this as the user of the workers"+e.ownerOf()+", or as root, to learn more.")
	}
	if len(damaged) > 0 {
		e.add(Problem, "files", fmt.Sprintf("%s cannot be read, the first: %s.", plural(len(damaged), "file"), damaged[0]),
			"aggregatord inspect FILE shows what is in it. Do not remove a file of which something can be read: it counts.")
	}
	if len(foreign) > 0 {
		advice := "They are left alone. If the directory is the right one, nothing is to be done."
		e.add(Warning, "files", fmt.Sprintf("%s %s no source file, the first: %q.", plural(len(foreign), "file"),
			verb(len(foreign), "is", "are"), foreign[0]), advice)
	}
}

// holder looks for a daemon that has the directory.
func (e *examination) holder(a *answered) {
	if a != nil && a.pool != nil && a.pool.Archive.State == "read-only" {
		return // told already
	}
	who, held, err := fold.Holder(e.opts.Dir)
	switch {
	case err != nil:
		e.add(Warning, "daemon", err.Error()+".", "Run this as the user of the daemon.")
	case held:
		e.ok("daemon", "This directory is archived by %s.", who)
	default:
		e.add(Warning, "daemon", "No daemon archives this directory.", "Start one: aggregatord serve --dir "+e.opts.Dir)
	}
}
