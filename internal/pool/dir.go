package pool

import (
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"aggregatord/internal/archive"
	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// dir is one directory and what is known of its files. Guarded by Collector.mu.
type dir struct {
	c      *Collector
	spec   DirSpec
	limits store.Limits
	logger *zap.Logger
	lister *watch.Dir
	prober *watch.Prober
	// method is what the prober chose, once methodKnown.
	method      watch.Method
	methodKnown bool

	// files are the source files in the directory, by name; also those that failed.
	files map[string]*tracked
	// orphans are files that are no longer in the directory but still exist, because a
	// process can write to them or they were only moved. They count as before.
	orphans []*tracked
	// staged are the files of dead workers that were moved out of the way, by their names
	// there, and what a crash left in that state.
	staged map[string]*tracked
	// open finds the files of all three by what they are.
	open map[store.Identity]*tracked
	// deferred is how many files could not be opened for want of descriptors.
	deferred int
	foreign  int
	listings uint64 // how many there were
	scanErr  error
	listed   bool // at least once
	workers  map[string]bool
	// gauges are the label values that updateMetrics has set, to be removed when unused.
	gauges map[fileGauge]bool
	// refusals are the families that a limit was reached for.
	refusals map[refusal]bool

	archiving
}

// tracked is one source file.
type tracked struct {
	dir     *dir
	name    store.SourceName
	nameErr error // what is wrong with the name
	path    string
	hint    uint64        // the inode number that the listing gives
	listing uint64        // the last one that has it, of dir.listings
	file    *store.File   // nil if it could not be opened
	source  *merge.Source // nil exactly if file is
	alive   bool
	method  watch.Method
	// checked says that alive and method are as new as the file, or that the file is unasked:
	// the next probe skips it.
	checked bool
	// unasked says that they are not known yet: see asksLater.
	unasked bool
	// failure is why the file cannot be read at present, "" if it can.
	failure store.Reason
	// seen are the reasons for which an entry of the file was left out and logged.
	seen map[store.Reason]bool
	// staged is the file's name in the staging, "" if it is not there.
	staged string
	// baseline is what of the file is archived already, nil for most: see archive.Baseline.
	// gained is what counts of it: raw has the values as they are, base what to take off.
	baseline  []float64
	base, raw []float64
	entries   int // that were learned or refused
	// absorbed says that makeRoom has taken what the file holds, and closed it.
	absorbed bool
	// unfoldable says that archiving the file has failed in a way that would fail again.
	unfoldable bool
	// recorded says that the archive has a record of the file's values from the fold.
	recorded bool
	// folding says that the file's entries are being archived: its values are the last ones,
	// and it must neither be read nor probed, because we hold a lease on it.
	folding  bool
	learnErr error
	loadErr  error
	// failed is the error that failure is the reason of.
	failed error
	looked look
}

func newDir(c *Collector, spec DirSpec, opts *Options) *dir {
	logger := c.logger.With(zap.String("dir", spec.Path))
	if spec.Pool != "" {
		logger = logger.With(zap.String("pool", spec.Pool))
	}
	d := &dir{
		c: c, spec: spec, logger: logger, refusals: map[refusal]bool{},
		lister: watch.NewDir(spec.Path), prober: watch.NewProber(spec.Path),
		archiving: newArchiving(spec, opts),
		files:     map[string]*tracked{}, staged: map[string]*tracked{}, open: map[store.Identity]*tracked{}, workers: map[string]bool{}, gauges: map[fileGauge]bool{},
	}
	d.limits = d.limitsBy(opts.Policy)
	return d
}

// scan takes up the files that appeared and lets go of those that went. What the last
// listing could not open is tried again if force is set or anything changed.
func (d *dir) scan(force bool) {
	listing, err := d.lister.Scan(force)
	if err != nil {
		d.scanFailed(err)
		return
	}
	if d.scanErr != nil || !d.listed || listing.Replaced {
		d.logger.Info("watching directory", zap.Bool("replaced", listing.Replaced))
		d.scanErr = nil
		d.chooseMethod()
	}
	if !listing.Changed && d.listed {
		return
	}
	d.c.metrics.rescans.With(d.spec.Pool).Inc()
	reserved := d.reserve(len(listing.Entries))
	opening := d.compare(listing.Entries)
	before := d.deferred
	d.deferred = 0
	d.takeAll(opening)
	<-reserved
	if d.deferred > 0 && before == 0 {
		d.logger.Warn("there are more source files than may be open; the limit is RLIMIT_NOFILE (LimitNOFILE= of systemd, ulimit -n)",
			zap.Int("files", len(d.files)), zap.Int("not_open", d.deferred), zap.Int("limit", d.c.maxFiles))
	} else if d.deferred == 0 && before > 0 {
		d.logger.Info("all source files are open")
	}
	if !d.listed {
		d.logger.Info("first scan done", zap.Int("files", len(d.files)), zap.Int("foreign", d.foreign))
		d.listed = true
	} else if len(opening) > 0 {
		d.logger.Debug("files taken up", zap.Int("files", len(opening)))
	}
}

// chooseMethod finds out how the death of a process can be known in this directory.
func (d *dir) chooseMethod() {
	choice, err := d.prober.Probe()
	if err != nil {
		d.logger.Warn("cannot find out how to know dead processes", zap.Error(err))
		return
	}
	fields := []zap.Field{zap.Stringer("method", choice.Method), zap.String("file_system", choice.FileSystem)}
	if choice.Reason != "" {
		fields = append(fields, zap.String("reason", choice.Reason))
	}
	switch {
	case choice.Method == d.method && d.methodKnown:
	case choice.Method == watch.MethodLease:
		d.logger.Info("dead processes are known by read leases", fields...)
	default:
		d.logger.Warn("dead processes cannot be known by read leases; in doubt a process counts as alive", fields...)
	}
	d.method, d.methodKnown = choice.Method, true
}

// compare takes note of the files that a listing has and lets go of those that it has not. It
// returns those that are to be opened.
func (d *dir) compare(entries []watch.Dirent) (opening []*tracked) {
	if len(d.files) == 0 {
		d.files = make(map[string]*tracked, len(entries))
	}
	d.listings++
	d.foreign = 0
	for _, e := range entries {
		t := d.files[e.Name]
		if t != nil && t.file != nil && !t.is(e.Ino) {
			d.letGo(t)
			t = nil
		}
		if t == nil {
			name, err := store.ParseName(e.Name)
			if errors.Is(err, store.ErrForeign) {
				if e.Name != archive.HiddenDir {
					d.foreign++
				}
				continue
			}
			name.Base = e.Name
			t = &tracked{dir: d, name: name, nameErr: err, path: filepath.Join(d.spec.Path, e.Name)}
			d.files[e.Name] = t
		}
		t.listing = d.listings
		if t.file != nil || t.absorbed {
			continue
		}
		t.hint = e.Ino
		if t.nameErr != nil {
			d.note(t, t.nameErr)
			continue
		}
		opening = append(opening, t)
	}
	for _, t := range d.files {
		if t.listing != d.listings {
			d.letGo(t)
		}
	}
	return opening
}

func (d *dir) scanFailed(err error) {
	d.c.metrics.scanErrors.With(d.spec.Pool).Inc()
	if d.scanErr == nil || d.scanErr.Error() != err.Error() {
		if missing(err) {
			d.logger.Warn("directory does not exist; waiting for it")
		} else {
			d.logger.Error("directory cannot be listed; its files count as they are", zap.Error(err))
		}
	}
	d.scanErr = err
	d.listed = d.listed || missing(err)
	if missing(err) {
		d.foreign = 0
		for _, t := range d.files {
			d.letGo(t)
		}
	}
}

// is reports whether the name still leads to the file that is open, given the inode
// number in the listing. Some file systems (overlayfs) list other numbers than stat gives,
// so a difference is looked into: to take a file for a new one would count it twice.
func (t *tracked) is(ino uint64) bool {
	if ino == t.hint && ino != 0 {
		return true
	}
	var st unix.Stat_t
	if unix.Lstat(t.path, &st) != nil || t.file.Identity() != (store.Identity{Dev: uint64(st.Dev), Ino: st.Ino}) { //nolint:unconvert // Dev is an int32 on macOS
		return false
	}
	t.hint = ino
	return true
}

// errTooMany says that there are more files than may be open at once. Those of dead
// workers make room when they are archived.
var errTooMany = errors.New("too many open files")

// errDuplicate says that a file has a second name in the directory.
var errDuplicate = errors.New("the same file as another one")

// parallelFiles is how many files make opening them on several cores worth the while.
const parallelFiles = 64

// patientFiles is how many files make it worth the while to ask for some of them later: asking
// takes some microseconds each.
const patientFiles = 1024

// takeAll is take and learn for many files, by several goroutines: they make their system
// calls side by side, and tell the index one after the other.
func (d *dir) takeAll(opening []*tracked) {
	if len(opening) < parallelFiles {
		for _, t := range opening {
			d.note(t, d.take(t))
		}
		return
	}
	room := min(len(opening), d.room())
	// Not if files wait for room: the dead, who can make it, must be known as such.
	mayAskLater := d.opts != nil && !d.listed && len(opening) >= patientFiles && room == len(opening)
	// one holds what only one of them may do at a time: to tell the index.
	var one sync.Mutex
	var next atomic.Int64
	taken := 0
	work := func() {
		for i := next.Add(1) - 1; int(i) < room; i = next.Add(1) - 1 {
			t := opening[i]
			var state watch.State
			file, err := store.Open(t.path, t.name, d.limits)
			if err == nil {
				if t.unasked = mayAskLater && asksLater(t); !t.unasked {
					state, t.method = d.ask(t, file)
				}
				file.Prefetch()
			}
			one.Lock()
			if err == nil {
				err = d.adopt(t, file)
			}
			if err == nil {
				if t.unasked {
					err = file.SetSettled(true)
				} else {
					d.setAlive(t, state.MayWrite())
				}
				t.checked = true
				d.learn(t)
			}
			d.note(t, err)
			if taken++; d.c.onProgress != nil && !d.listed {
				d.c.onProgress(taken, len(opening))
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
		d.note(t, d.take(t)) // where some could not be opened there is room for others
		if d.c.onProgress != nil && !d.listed {
			d.c.onProgress(room+i+1, len(opening))
		}
	}
}

// asksLater reports whether a daemon that starts need not know at once if the file's process
// lives, because no value depends on that: so it is ready the sooner. Until the next probe of
// all files this one counts as alive, and is read without a mapping.
func asksLater(t *tracked) bool { return t.name.Type != metric.Gauge }

// room is how many more source files may be open.
func (d *dir) room() int { return max(0, d.c.maxFiles-d.c.openFiles) }

// reserve begins to reserve descriptors for files that are about to be opened, if there may be
// many, and closes the channel when that is done.
func (d *dir) reserve(files int) <-chan struct{} {
	done := make(chan struct{})
	more := min(files-len(d.files), d.room())
	if more < parallelFiles {
		close(done)
		return done
	}
	wanted := d.c.openFiles + more
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

// take opens a file and adds its source to the index.
func (d *dir) take(t *tracked) error {
	if d.c.openFiles >= d.c.maxFiles {
		d.deferred++
		return fmt.Errorf("source file %q: %w", t.path, errTooMany) // the limit is told once, by scan
	}
	file, err := store.Open(t.path, t.name, d.limits)
	if err != nil {
		return err
	}
	return d.adopt(t, file)
}

// adopt adds the source of an open file to the index. The file is the tracked one's from
// then on, or closed if that is an error.
func (d *dir) adopt(t *tracked, file *store.File) error {
	if old := d.open[file.Identity()]; old != nil {
		i := slices.Index(d.orphans, old)
		if i < 0 {
			return errors.Join(fmt.Errorf("source file %q: %w: %q", t.path, errDuplicate, old.path), file.Close())
		}
		// It was moved here, or the whole directory was away for a while. Its values are
		// read again before the next snapshot.
		d.orphans = slices.Delete(d.orphans, i, i+1)
		d.drop(old)
	}
	d.c.openFiles++
	t.file = file
	t.entries, t.base = 0, nil
	t.alive = true
	t.source = d.c.index.Add(merge.SourceSpec{
		Pool: d.spec.Pool, Name: t.name.Base, Type: t.name.Type, Mode: t.name.Mode, ID: t.name.ID,
		Created: file.Created().UnixNano(), ParseKey: t.name.ParseKey,
	})
	d.open[file.Identity()] = t
	return nil
}

// learn tells the index of entries that appeared since the last time.
func (d *dir) learn(t *tracked) {
	t.learnErr = t.file.Learn(func(e store.Entry) {
		entry := t.entries
		if entry == 0 {
			d.identify(t, e.Key)
		}
		t.entries++
		if err := d.c.index.Learn(t.source, e.Key, e.Slot); err != nil {
			d.refused(t, e, err)
			return
		}
		if t.baseline != nil {
			t.base = append(t.base, d.baselineOf(t, e.Key, entry))
		}
	})
	t.source.Compact()
}

// identify gives the file the ID that its first key shows to be the worker's.
func (d *dir) identify(t *tracked, key []byte) {
	id := t.name.WorkerID(key)
	if id == t.name.ID {
		return
	}
	t.name.ID = id
	spec := t.source.Spec()
	spec.ID = id
	d.c.index.Remove(t.source)
	t.source = d.c.index.Add(spec)
	d.c.index.SetAlive(t.source, t.alive)
}

// learnNew is learn unless the next load tells whether there is anything to learn. Where
// nothing is to be loaded, it tells nothing.
func (d *dir) learnNew(t *tracked) {
	if t.learnErr != nil || !t.file.Complete() || t.source.Entries() == 0 {
		d.learn(t)
	}
}

// Reasons beside those of store.
const (
	reasonDuplicate store.Reason = "duplicate"
	reasonTooMany   store.Reason = "too_many_open_files"
	reasonSample    store.Reason = "bad_sample"
	reasonSeries    store.Reason = "series_limit"
	reasonFamily    store.Reason = "family_limit"
	reasonFamilies  store.Reason = "families_limit"
	reasonLabels    store.Reason = "label_limit"
	reasonLength    store.Reason = "label_length"
)

// fileReasons are why a file cannot be read, entryReasons why an entry is left out.
func fileReasons() []store.Reason {
	return append(slices.DeleteFunc(store.Reasons(), func(r store.Reason) bool {
		return r == store.BadKey || r == store.Foreign || r == store.Gone
	}), reasonDuplicate, reasonTooMany)
}

func entryReasons() []store.Reason {
	return []store.Reason{store.BadKey, reasonSample, reasonSeries, reasonFamily, reasonFamilies, reasonLabels, reasonLength}
}

// reasonOf extends store.ReasonOf.
func reasonOf(err error) store.Reason {
	switch {
	case errors.Is(err, merge.ErrSample):
		return reasonSample
	case errors.Is(err, merge.ErrSeriesLimit):
		return reasonSeries
	case errors.Is(err, merge.ErrFamilyLimit):
		return reasonFamily
	case errors.Is(err, merge.ErrFamiliesLimit):
		return reasonFamilies
	case errors.Is(err, merge.ErrLabelLimit):
		return reasonLabels
	case errors.Is(err, merge.ErrLabelLength):
		return reasonLength
	case errors.Is(err, errDuplicate):
		return reasonDuplicate
	case errors.Is(err, errTooMany):
		return reasonTooMany
	}
	return store.ReasonOf(err)
}

// refused counts an entry that is left out and names the first of each file and reason.
func (d *dir) refused(t *tracked, e store.Entry, err error) {
	reason := reasonOf(err)
	d.c.metrics.entryErrors.With(d.spec.Pool, string(reason)).Inc()
	if limit := asLimit(err); limit != nil {
		d.limitReached(t.path, limit)
		return
	}
	if t.seen[reason] {
		return
	}
	if t.seen == nil {
		t.seen = map[store.Reason]bool{}
	}
	t.seen[reason] = true
	d.logger.Warn("entry left out, and others of this file for the same reason", zap.String("path", t.path),
		zap.Int64("offset", int64(e.Slot)*8), zap.String("reason", string(reason)), zap.Error(err))
}

// load brings the values in the index up to date with the file. It touches nothing but
// its own file and source, so several may run at once.
func (t *tracked) load() error {
	if t.source.Entries() == 0 {
		return nil
	}
	values := t.source.Values()
	if t.baseline != nil {
		t.raw = slices.Grow(t.raw[:0], len(values))[:len(values)]
		values = t.raw
	}
	var err error
	if stamps := t.source.Stamps(); stamps != nil {
		err = t.file.LoadStamped(t.source.Slots(), values, stamps)
	} else {
		err = t.file.Load(t.source.Slots(), values)
	}
	if t.baseline != nil && err == nil {
		added := t.added()
		for i, v := range values {
			t.source.Values()[i] = archive.Gain(added, v, t.base[i])
		}
	}
	return err
}

// space is where the file's values are archived.
func (t *tracked) space() archive.Space {
	s, _ := archive.SpaceOf(t.name.Type, t.name.Mode, t.name.ID)
	return s
}

// all iterates over all files, also those that could not be opened.
func (d *dir) all() iter.Seq[*tracked] {
	return func(yield func(*tracked) bool) {
		for _, t := range d.files {
			if !yield(t) {
				return
			}
		}
		for _, t := range d.staged {
			if !yield(t) {
				return
			}
		}
		for _, t := range d.orphans {
			if !yield(t) {
				return
			}
		}
	}
}

// note keeps account of whether the file can be read; each change is logged and each
// failure counted once.
func (d *dir) note(t *tracked, err error) {
	if err == nil {
		if t.failure != "" {
			t.failure = ""
			d.logger.Info("file can be read again", zap.String("path", t.path))
		}
		return
	}
	reason := reasonOf(err)
	if reason == store.Gone && t.file == nil {
		// Removed between the listing and the opening: the next listing will tell.
		delete(d.files, t.name.Base)
		return
	}
	if reason == t.failure {
		return
	}
	t.failure, t.failed = reason, err
	d.c.metrics.fileErrors.With(d.spec.Pool, string(reason)).Inc()
	if reason == reasonTooMany {
		return
	}
	msg := "file cannot be opened; its values are missing"
	if t.file != nil {
		msg = "file cannot be read; what was read of it before still counts"
	}
	d.logger.Warn(msg, zap.String("path", t.path), zap.String("reason", string(reason)), zap.Error(err))
}

// letGo handles a file that is no longer in the directory under its name. Gauges go with
// it; what else it holds counts on.
func (d *dir) letGo(t *tracked) {
	delete(d.files, t.name.Base)
	switch {
	case t.file == nil:
	case t.name.Type == metric.Gauge:
		d.drop(t)
	default:
		d.orphans = append(d.orphans, t)
	}
}

func (d *dir) close(t *tracked) {
	delete(d.open, t.file.Identity())
	d.c.openFiles--
	if err := t.file.Close(); err != nil {
		d.logger.Warn("close file", zap.String("path", t.path), zap.Error(err))
	}
	t.file = nil
}

// settle gives a second life to files that were emptied.
func (d *dir) settle() {
	for _, t := range d.files {
		// What was read of a file that shrank still counts, and what is in it now may be the
		// same values or others; only when it was seen empty must all that comes be new.
		if t.file != nil && t.failure == store.Shrunk && t.emptied() {
			d.logger.Warn("file was emptied by somebody else; its last values still count", zap.String("path", t.path))
			d.absorb(t)
			t.failure = ""
			d.note(t, d.take(t))
		}
	}
}

// drop closes a file and takes what it counted out of the view.
func (d *dir) drop(t *tracked) {
	d.c.index.Remove(t.source)
	d.close(t)
}

// linked reports whether any name leads to the open file. In doubt one does.
func (t *tracked) linked() bool {
	var st unix.Stat_t
	return unix.Fstat(int(t.file.Fd()), &st) != nil || st.Nlink > 0
}

// emptied reports whether the open file has no bytes.
func (t *tracked) emptied() bool {
	var st unix.Stat_t
	return unix.Fstat(int(t.file.Fd()), &st) == nil && st.Size == 0
}

// probe finds out which processes live: all, or only those that live gauges depend on.
func (d *dir) probe(liveGaugesOnly bool) {
	for t := range d.all() {
		if t.checked {
			t.checked = false // a moment ago, when it was opened
			continue
		}
		if t.file != nil && !t.folding && (!liveGaugesOnly || t.source.Live()) {
			d.check(t)
		}
	}
}

// check asks whether anybody can still write to one file. That of a dead process is read
// on: between two checks another one with the same ID may have counted in it and died.
func (d *dir) check(t *tracked) {
	var state watch.State
	state, t.method = d.ask(t, t.file)
	t.unasked = false
	d.setAlive(t, state.MayWrite())
}

// ask is for several goroutines.
func (d *dir) ask(t *tracked, file *store.File) (watch.State, watch.Method) {
	id := file.Identity()
	return d.prober.Check(watch.FileRef{Fd: file.Fd(), Dev: id.Dev, Ino: id.Ino, ID: t.name.ID})
}

func (d *dir) setAlive(t *tracked, alive bool) {
	if alive != t.alive {
		t.alive = alive
		d.c.index.SetAlive(t.source, alive)
	}
	if t.file.Settled() == alive {
		if err := t.file.SetSettled(!alive); err != nil {
			d.note(t, err)
		}
	}
}

// countWorkers logs which workers came and went since the last time.
func (d *dir) countWorkers() {
	now := make(map[string]bool, len(d.workers))
	for t := range d.all() {
		if t.file != nil && !t.name.Archive && !t.folding && !t.unasked {
			now[t.name.ID] = now[t.name.ID] || t.alive
		}
	}
	for id, alive := range now {
		was, known := d.workers[id]
		switch {
		case alive && !known:
			d.logger.Debug("worker found", zap.String("worker", id))
		case !alive && was:
			d.logger.Info("worker is dead; what it counted stays in the totals", zap.String("worker", id))
		case alive && known && !was:
			d.logger.Info("worker writes again to the files of a dead one", zap.String("worker", id))
		}
	}
	d.workers = now
}

// fileGauge is the labels of a series of aggregatord_files.
type fileGauge struct{ state, dialect string }

func (d *dir) updateMetrics() {
	m, pool := d.c.metrics, d.spec.Pool
	files := make(map[fileGauge]int, len(d.gauges))
	for g := range d.gauges {
		files[g] = 0
	}
	files[fileGauge{"failed", ""}] = 0
	files[fileGauge{"foreign", ""}] = d.foreign
	methods := map[watch.Method]int{}
	entries := 0
	count := func(t *tracked, state string) {
		switch {
		case t.failure != "" || t.file == nil:
			files[fileGauge{"failed", ""}]++
		default:
			files[fileGauge{state, dialect(t)}]++
		}
		if t.file != nil {
			entries += t.source.Entries()
			methods[t.method]++
		}
	}
	for _, t := range d.files {
		if t.alive {
			count(t, "alive")
		} else {
			count(t, "dead")
		}
	}
	for _, t := range d.staged {
		count(t, "staged")
	}
	for _, t := range d.orphans {
		count(t, "removed")
	}
	for g, n := range files {
		m.files.With(pool, g.state, g.dialect).Set(float64(n))
		d.gauges[g] = true
	}
	for method := range watch.Method(watch.Methods) {
		m.liveness.With(pool, method.String()).Set(float64(methods[method]))
	}
	alive := 0
	for _, a := range d.workers {
		if a {
			alive++
		}
	}
	m.workers.With(pool, "alive").Set(float64(alive))
	m.workers.With(pool, "dead").Set(float64(len(d.workers) - alive))
	m.entries.With(pool).Set(float64(entries))
	up := 1.0
	if d.scanErr != nil || !d.listed {
		up = 0
	}
	m.directoryUp.With(pool).Set(up)
	d.updateArchiveMetrics()
}

// dialect names how a file is laid out, as far as it shows.
func dialect(t *tracked) string {
	switch {
	case t.name.Archive:
		return "postmates-archive"
	case t.file.Width() == 0:
		return "empty"
	case t.file.Width() == 16:
		return "wide"
	}
	return "narrow"
}

// String is for logs.
func (d DirSpec) String() string {
	return strings.TrimPrefix(d.Pool+"="+d.Path, "=")
}
