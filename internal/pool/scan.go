package pool

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/fold"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// scanLocked takes up the files that appeared and lets go of those that went. What the last
// listing could not open is tried again if force is set or anything changed.
func (p *Pool) scanLocked(force bool) {
	listing, err := p.lister.Scan(force)
	if err != nil {
		p.scanFailedLocked(err)
		return
	}
	if p.scanErr != nil || !p.listed || listing.Replaced {
		p.logger.Info("watching directory", zap.Bool("replaced", listing.Replaced))
		p.scanErr = nil
		p.chooseMethodLocked()
	}
	if !listing.Changed && p.listed {
		return
	}
	p.metrics.rescans.With(p.spec.Name).Inc()
	p.stirLocked()
	reserved := p.reserveLocked(len(listing.Entries))
	opening := p.compareLocked(listing.Entries)
	before := p.deferred
	p.deferred = 0
	p.openAllLocked(opening)
	<-reserved
	if p.deferred > 0 && before == 0 {
		p.logger.Warn("there are more source files than may be open; the limit is RLIMIT_NOFILE (LimitNOFILE= of systemd, ulimit -n)",
			zap.Int("files", len(p.files)), zap.Int("not_open", p.deferred), zap.Int("limit", p.descriptors.Max()))
	} else if p.deferred == 0 && before > 0 {
		p.logger.Info("all source files are open")
	}
	if p.unread.files > 0 && !p.unreadTold {
		p.logger.Warn("files of a client that is not read yet; its metrics are not served",
			zap.String("client", p.unread.client), zap.String("first", p.unread.first), zap.Int("files", p.unread.files))
		p.unreadTold = true
	}
	if !p.listed {
		p.logger.Info("first scan done", zap.Int("files", len(p.files)), zap.Int("foreign", p.foreign))
		p.listed = true
	} else if len(opening) > 0 {
		p.logger.Debug("new source files", zap.Int("files", len(opening)))
	}
}

// chooseMethodLocked finds out how the death of a process can be known in this directory.
func (p *Pool) chooseMethodLocked() {
	choice, err := p.prober.Probe()
	if err != nil {
		p.logger.Warn("cannot find out whether read leases tell which processes are dead; trying again", zap.Error(err))
		return
	}
	fields := []zap.Field{zap.Stringer("method", choice.Method), zap.String("file_system", choice.FileSystem)}
	if choice.Reason != "" {
		fields = append(fields, zap.String("reason", choice.Reason))
	}
	switch {
	case choice.Method == p.method && p.methodKnown:
	case choice.Method == watch.MethodLease:
		p.logger.Info("dead processes are known by read leases", fields...)
	default:
		p.logger.Warn("dead processes cannot be known by read leases; in doubt a process counts as alive", fields...)
	}
	p.method, p.methodKnown = choice.Method, true
}

// ownPrefix begins the names of the daemon's own files.
const ownPrefix = ".aggregatord"

// compareLocked takes note of the files that a listing has and lets go of those that it has
// not. It returns those that are to be opened.
func (p *Pool) compareLocked(entries []watch.Dirent) (opening []*file) {
	if len(p.files) == 0 {
		p.files = make(map[string]*file, len(entries))
	}
	p.listings++
	p.foreign, p.unread.files = 0, 0
	entries = p.relinkLocked(entries)
	hidden := stagedIn(entries)
	for _, e := range entries {
		if strings.HasPrefix(e.Name, ownPrefix) {
			if record, ok := fold.RecordOf(e.Name); ok {
				p.compareStagedLocked(record)
			}
			continue
		}
		if p.isAlias(e, hidden[e.Name]) || p.folder.IsMirror(e.Name, e.Ino) {
			continue
		}
		t := p.files[e.Name]
		var replaced *file
		if t != nil && t.file != nil && !t.is(e.Ino) {
			replaced = t
			if t.state == folding {
				delete(p.files, e.Name) // it was renamed, and its old name is taken again
			} else {
				p.lostLocked(t)
			}
			t = nil
		}
		if t == nil {
			name, err := store.ParseName(e.Name)
			if errors.Is(err, store.ErrForeign) {
				p.foreignLocked(e.Name)
				continue
			}
			name.Base = e.Name
			t = &file{
				pool: p, name: name, nameErr: err, path: filepath.Join(p.spec.Path, e.Name), late: p.listed, replaced: replaced,
			}
			p.files[e.Name] = t
		}
		t.listing = p.listings
		if t.file != nil || t.state == absorbed {
			continue
		}
		if t.barren() {
			if t.hint == e.Ino {
				continue // retryLocked looks at it
			}
			t.retry, t.failure, t.failed = time.Time{}, "", nil // another file
		}
		t.hint = e.Ino
		if t.nameErr != nil {
			p.noteLocked(t, t.nameErr)
			continue
		}
		opening = append(opening, t)
	}
	for _, t := range p.files {
		if t.listing != p.listings {
			p.lostLocked(t)
		}
	}
	for _, t := range p.staged {
		if t.place == staged && t.listing != p.listings && !t.legacy() {
			p.lostLocked(t)
		}
	}
	if p.folder.ReadOnly() {
		p.takeLegacyLocked()
	}
	p.forgetRemovedLocked()
	return opening
}

// relinkLocked adds staged files to a listing that were not there any more, and are again.
func (p *Pool) relinkLocked(entries []watch.Dirent) []watch.Dirent {
	if !p.folder.HasLinked() {
		return entries
	}
	inode := make(map[string]uint64, len(entries))
	for _, e := range entries {
		inode[e.Name] = e.Ino
	}
	relinked := p.folder.Relink(func(name string) bool { _, ok := inode[name]; return ok })
	for base, name := range relinked {
		entries = append(entries, watch.Dirent{Name: name, Ino: inode[base]})
	}
	return entries
}

// stagedIn returns the staged files of a listing by the names that they had.
func stagedIn(entries []watch.Dirent) map[string][]stagedName {
	var hidden map[string][]stagedName
	for _, e := range entries {
		record, ok := fold.RecordOf(e.Name)
		if !ok {
			continue
		}
		base, ok := fold.BaseOf(record)
		if !ok {
			continue
		}
		if hidden == nil {
			hidden = map[string][]stagedName{}
		}
		hidden[base] = append(hidden[base], stagedName{record, e.Ino})
	}
	return hidden
}

// stagedName is a staged file in a listing.
type stagedName struct {
	record string
	ino    uint64
}

// isAlias reports whether a source file is one of the staged ones, which has its own name, too.
func (p *Pool) isAlias(e watch.Dirent, staged []stagedName) bool {
	return slices.ContainsFunc(staged, func(s stagedName) bool { return p.folder.IsAlias(e.Name, s.record, e.Ino, s.ino) })
}

// foreignLocked takes note of a file that is no source file.
func (p *Pool) foreignLocked(base string) {
	p.foreign++
	if client := store.UnreadClient(base); client != "" {
		if p.unread.files == 0 {
			p.unread.client, p.unread.first = client, base
		}
		p.unread.files++
	}
}

// compareStagedLocked is compareLocked for a staged file.
func (p *Pool) compareStagedLocked(record string) {
	switch t := p.staged[record]; {
	case t != nil:
		t.listing = p.listings
		if t.file == nil && t.place == staged {
			p.noteLocked(t, p.openLocked(t))
		}
	case !p.folder.Removing(record):
		p.takeLocked(record, filepath.Join(p.spec.Path, fold.FileName(record)))
	}
}

// takeLocked makes a staged file a source, of its gains if it has a record in the archive.
func (p *Pool) takeLocked(record, path string) {
	base, ok := fold.BaseOf(record)
	name, err := store.ParseName(base)
	if !ok || err != nil {
		p.foreign++
		return
	}
	t := &file{pool: p, name: name, path: path, place: staged, record: record, listing: p.listings}
	p.staged[record] = t
	p.noteLocked(t, p.openLocked(t))
}

// legacyStaging is where an earlier version staged files. A daemon moves them at its start; who
// only looks reads them where they are.
func (p *Pool) legacyStaging() string { return filepath.Join(p.spec.Path, archive.HiddenDir, "staged") }

func (t *file) legacy() bool { return filepath.Dir(t.path) == t.pool.legacyStaging() }

func (p *Pool) takeLegacyLocked() {
	entries, err := os.ReadDir(p.legacyStaging())
	if err != nil {
		return
	}
	for _, e := range entries {
		if p.staged[e.Name()] == nil {
			p.takeLocked(e.Name(), filepath.Join(p.legacyStaging(), e.Name()))
		}
	}
}

// forgetRemovedLocked forgets the records of staged files that were removed before the archive
// could forget them, as by a crash. It is called with a complete listing.
func (p *Pool) forgetRemovedLocked() {
	a := p.folder.Archive()
	if !p.forget || !a.Attached() {
		return
	}
	p.forget = false
	for _, record := range a.Records() {
		if p.staged[record] == nil && !p.folder.Removing(record) {
			a.Forget(record)
		}
	}
}

func (p *Pool) scanFailedLocked(err error) {
	p.metrics.scanErrors.With(p.spec.Name).Inc()
	p.stirLocked()
	if p.scanErr == nil || p.scanErr.Error() != err.Error() {
		if missing(err) {
			p.logger.Warn("directory does not exist; waiting for it")
		} else {
			p.logger.Error("directory cannot be listed; what is known of its files still counts", zap.Error(err))
		}
	}
	p.scanErr = err
	p.listed = p.listed || missing(err)
	if missing(err) {
		p.foreign = 0
		for _, t := range p.files {
			p.lostLocked(t)
		}
		for _, t := range p.staged {
			if t.place == staged {
				p.lostLocked(t)
			}
		}
	}
}

// parallelFiles is how many files make opening them on several cores worth the while.
const parallelFiles = 64

// unaskedFiles is how many files make it worth the while to ask for some of them later: asking
// takes some microseconds each.
const unaskedFiles = 1024

// openAllLocked opens many files and learns what is in them, by several goroutines: they make
// their system calls side by side, and tell the index one after the other.
func (p *Pool) openAllLocked(opening []*file) {
	if len(opening) < parallelFiles {
		for _, t := range opening {
			p.noteLocked(t, p.openLocked(t))
		}
		return
	}
	p.guesses, p.guessed = map[guessKey]*store.Guesses{}, p.index.Freed()
	defer func() { p.guesses = nil }()
	room := min(len(opening), p.descriptors.Room())
	// Do not defer when descriptors are short: folding the dead frees them.
	mayAskLater := !p.folder.ReadOnly() && !p.listed && len(opening) >= unaskedFiles && room == len(opening)
	// one holds what only one of them may do at a time: to tell the index.
	var one sync.Mutex
	var next atomic.Int64
	done := 0
	work := func() {
		for i := next.Add(1) - 1; int(i) < room; i = next.Add(1) - 1 {
			t := opening[i]
			var answer watch.State
			method := watch.MethodNone
			// No value of a gauge's kin depends on whether its process lives: a daemon that starts is
			// ready sooner if it asks later. Until then the file counts as alive, and is read without
			// a mapping.
			later := mayAskLater && t.name.Type != metric.Gauge
			f, err := store.Open(t.path, t.name, p.limits)
			if err == nil {
				if !later {
					answer, method = p.ask(t, f)
				}
				f.Prefetch()
			}
			one.Lock()
			if err == nil {
				err = p.adoptLocked(t, f)
			}
			if err == nil {
				if later {
					t.state = unasked
					err = f.SetSettled(true)
				} else {
					t.method = method
					p.setAliveLocked(t, answer.MayWrite())
				}
				t.asked = p.looks
				t.retry = time.Time{}
				slice := int64(sliceBytes)
				if !p.ready.Load() {
					slice = firstBytes
				}
				p.learnLocked(t, slice)
				if t.learnErr != nil && t.entries == 0 {
					p.closeBarrenLocked(t, p.shortOfDescriptorsLocked())
				}
			}
			if t.file != nil || !t.barren() {
				p.noteLocked(t, err)
			}
			if done++; p.onProgress != nil && !p.listed {
				p.onProgress(done, len(opening))
			}
			one.Unlock()
		}
	}
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) - 1 {
		// Ends when all files are opened.
		workers.Go(work)
	}
	work()
	workers.Wait()
	for i, t := range opening[room:] {
		p.enterLocked(t) // where some could not be opened there is room for others
		if p.onProgress != nil && !p.listed {
			p.onProgress(room+i+1, len(opening))
		}
	}
}

// reserveLocked begins to reserve descriptors for files that are about to be opened, if there
// may be many, and closes the channel when that is done.
func (p *Pool) reserveLocked(files int) <-chan struct{} {
	done := make(chan struct{})
	more := min(files-len(p.files), p.descriptors.Room())
	if more < parallelFiles {
		close(done)
		return done
	}
	wanted := p.descriptors.Used() + more
	go func() { // ends when the kernel has done it
		defer close(done)
		reserveDescriptors(wanted)
	}()
	return done
}

// reserveDescriptors makes the process' table of descriptors large enough for so many at
// once. It would double as it fills, and each time every thread that needs a descriptor
// would wait for the kernel to see that nobody looks at the old table any more (Linux,
// fs/file.c, expand_fdtable: synchronize_rcu), some ten milliseconds.
func reserveDescriptors(n int) {
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // what fails for a better reason will say so
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	if high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, n); err == nil {
		unix.Close(high) //nolint:errcheck // the same
	}
}
