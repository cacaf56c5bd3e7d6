package mirror

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// Options of a Mirror.
type Options struct {
	// Logf tells of what went wrong and was got over. Default: nobody is told.
	Logf func(message string, err error)
	// Unwatched says that nobody needs to know who reads the directory.
	Unwatched bool
	// Hub tells who reads it; one is shared by many mirrors. Default: one of its own.
	Hub *watch.Hub
	// Hidden returns the name in the directory of the file with a record's name.
	Hidden func(record string) string
	// Step is called before each step of a move, with its name. An error ends the move there, as a
	// crash would. For tests; nil elsewhere.
	Step func(name string) error
}

// A Mirror is the mirror files of one directory. But for Readers it is for one goroutine.
type Mirror struct {
	opts    Options
	path    string
	dir     int
	totals  map[string]*total
	tracker *tracker
	readers *watch.Readers // nil where nobody tells of readers
	// keys and entries are those of the file that Move.Add learned last: memory that is used again.
	keys    []byte
	entries []learned
}

// learned is an entry of a worker's file, whose key ends at end.
type learned struct {
	end          int
	value, stamp float64
}

// Open opens the mirror of the directory that is open as dir, whose path is for messages and for
// opening files. The descriptor must stay open until Close. It makes nothing in the directory, and
// ends a move that a crash has interrupted. unwatched is why nobody tells of readers, nil if
// somebody does.
func Open(dir int, path string, opts Options) (m *Mirror, unwatched, err error) {
	if opts.Logf == nil {
		opts.Logf = func(string, error) {}
	}
	if opts.Hub == nil {
		opts.Hub = &watch.Hub{}
	}
	m = &Mirror{opts: opts, path: path, dir: dir, totals: map[string]*total{}, tracker: newTracker()}
	if err := m.recover(); err != nil {
		return nil, nil, errors.Join(err, m.closeTotals())
	}
	names, err := sourceFiles(dir, path)
	if err != nil {
		return nil, nil, errors.Join(err, m.closeTotals())
	}
	for _, base := range names {
		m.tracker.mirror(base)
	}
	if opts.Unwatched {
		return m, nil, nil
	}
	if m.readers, unwatched = m.opts.Hub.OpenReaders(dir, m.tracker.look); unwatched != nil {
		m.readers = nil
	}
	return m, unwatched, nil
}

// Close gives up the files. They stay.
func (m *Mirror) Close() error {
	var err error
	if m.readers != nil {
		err = m.opts.Hub.CloseReaders(m.readers)
	}
	return errors.Join(err, m.closeTotals())
}

func (m *Mirror) closeTotals() error {
	var errs []error
	for base, t := range m.totals {
		errs = append(errs, t.w.Close())
		delete(m.totals, base)
	}
	return errors.Join(errs...)
}

// Readers tells who else reads the directory. It may be called by any goroutine.
func (m *Mirror) Readers() Readers { return m.tracker.readers(m.tracker.now()) }

// Closing says that the caller is about to close a file that it has opened by that name.
func (m *Mirror) Closing(base string) {
	if m.readers != nil {
		m.readers.Closing(base)
	}
}

// head reads the header of a source file, and has nobody take that for a reader.
func (m *Mirror) head(base string) (store.Head, error) {
	fd, err := unix.Openat(m.dir, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return store.Head{}, err
	}
	defer unix.Close(fd) //nolint:errcheck // it was only read
	m.Closing(base)
	return store.ReadHead(fd)
}

func (m *Mirror) drain() {
	if m.readers != nil {
		m.readers.Drain()
	}
}

// Fits reports which files may be moved now: nobody is between one of them and its mirror files.
func (m *Mirror) Fits(files []string) []bool {
	m.drain()
	return m.tracker.fits(m.tracker.now(), m.pairs(files))
}

// pairs finds the mirror files to which the values of workers' files may be moved.
func (m *Mirror) pairs(files []string) []pair {
	var mirrors []string
	for base, t := range m.totals {
		if !t.gone() {
			mirrors = append(mirrors, base)
		}
	}
	pairs := make([]pair, len(files))
	for i, file := range files {
		pairs[i].file = file
		for _, base := range mirrors {
			if strings.HasPrefix(file, base[:strings.LastIndexByte(base, '_')+1]) {
				pairs[i].mirrors = append(pairs[i].mirrors, base)
			}
		}
	}
	return pairs
}

// Has reports whether there is a mirror file for a worker's file.
func (m *Mirror) Has(name store.SourceName) bool {
	return name.Mode.Base() == metric.All || len(m.pairs([]string{name.Base})[0].mirrors) > 0
}

// Settled reports which drained files may be removed: nobody has listed the directory who may still open
// them. The moment is for ListedSince.
func (m *Mirror) Settled(files []string) (settled []bool, last time.Time) {
	m.drain()
	now := m.tracker.now()
	m.tracker.fits(now, m.pairs(files)) // it learns who has ended
	return m.tracker.settled(now, files)
}

// ListedSince reports whether somebody has listed the directory after the moment that Settled has
// returned.
func (m *Mirror) ListedSince(last time.Time) bool {
	m.drain()
	return !m.tracker.listedLast().Equal(last)
}

// Files lists the mirror files.
func (m *Mirror) Files() ([]string, error) { return sourceFiles(m.dir, m.path) }

// Remove removes the mirror files of a directory, for one who does not want them.
func Remove(dir int, path string) (removed int, err error) {
	names, err := sourceFiles(dir, path)
	for _, base := range names {
		if unlinkErr := unix.Unlinkat(dir, base, 0); unlinkErr != nil {
			err = errors.Join(err, unlinkErr)
			continue
		}
		removed++
	}
	return removed, err
}

// A Move is the files whose values are moved at once.
type Move struct {
	m     *Mirror
	files []moving
	bases []string
	byKey int
}

// moving is one file, open for writing under a write lease.
type moving struct {
	record string
	fd     int
	used   int64
	tag    uint32
	gives  map[*total][]entry
	none   map[*total]float64
}

// Begin begins a move.
func (m *Mirror) Begin() *Move { return &Move{m: m} }

// Entries is how many entries are to be moved.
func (v *Move) Entries() int { return v.byKey }

// Files is how many files are to be drained.
func (v *Move) Files() int { return len(v.files) }

// postmatesBytes is the first size of files of the postmates fork.
const postmatesBytes = 1 << 20

// Add adds a file, staged under the name of a record, of which the caller holds a write lease, and
// which stays open until Apply has returned. It makes what entries the mirror lacks. After an error
// the file is not part of the move.
func (v *Move) Add(record string, f *store.File, each func(store.Entry)) error {
	m, name, fd := v.m, f.Name(), int(f.Fd())
	one := moving{record: record, fd: fd, gives: map[*total][]entry{}, none: map[*total]float64{}}
	keys, entries := m.keys[:0], m.entries[:0]
	if err := f.Learn(func(e store.Entry) {
		each(e)
		keys = append(keys, e.Key...)
		entries = append(entries, learned{len(keys), e.Value, e.Stamp})
	}); err != nil {
		return err
	}
	m.keys, m.entries = keys, entries
	switch h, err := store.ReadHead(fd); {
	case f.Size() == 0: // a worker that ended before it wrote anything
	case err != nil:
		return err
	default:
		one.used, one.tag = h.UsedBytes, h.Tag
	}
	if len(entries) > 0 && name.Mode.Base() != metric.All && !name.Mode.Live() {
		opt := store.WriterOptions{Width: f.Width()}
		if f.Size() >= postmatesBytes && f.Width() == store.Wide {
			if k, err := store.ParseKey(keys[:entries[0].end]); err == nil && k.NoHelp {
				opt.NoStamp, opt.FirstBytes = math.Inf(1), postmatesBytes
			}
		}
		t, err := m.total(baseOf(name, f.Width()), name, opt, fd)
		if err != nil {
			return err
		}
		start := 0
		gives := make([]entry, 0, len(entries))
		for _, e := range entries {
			key := keys[start:e.end]
			start = e.end
			if name.Mode.Base() == metric.MostRecent && e.stamp == 0 {
				continue // never set
			}
			slot, ok, err := t.slot(key, e.value, e.stamp, opt.NoStamp)
			if err != nil {
				return err
			}
			if ok {
				gives = append(gives, entry{slot, e.value, e.stamp})
			}
		}
		one.gives[t], one.none[t] = gives, opt.NoStamp
	}
	v.byKey += len(entries)
	v.files = append(v.files, one)
	v.bases = append(v.bases, name.Base)
	return nil
}

// Drop takes back the last Add.
func (v *Move) Drop() {
	last := len(v.files) - 1
	v.files, v.bases = v.files[:last], v.bases[:last]
}

// total returns an open mirror file. One that was removed is begun anew: what it held does not come
// back.
func (m *Mirror) total(base string, name store.SourceName, opt store.WriterOptions, like int) (*total, error) {
	t := m.totals[base]
	if t != nil && t.gone() {
		m.opts.Logf("mirror file was removed by somebody else; it begins anew", nil)
		t.w.Close() //nolint:errcheck // it is gone
		delete(m.totals, base)
		t = nil
	}
	if t != nil {
		return t, nil
	}
	t, err := m.openTotal(base, name, opt, like)
	if err != nil {
		return nil, err
	}
	m.totals[base] = t
	m.tracker.mirror(base)
	return t, nil
}

// ErrBusy says that somebody reads the files just now.
var ErrBusy = errors.New("the directory is being read")

// leaseTries is how often a lease is asked for, leaseWait apart: a reader has a file open for a
// moment.
const (
	leaseTries = 4
	leaseWait  = time.Millisecond
)

// Apply moves the values. The error is ErrBusy if somebody reads the files just now, unless it is
// forced; then nothing has changed, as after any other error.
func (v *Move) Apply(forced bool) error {
	m := v.m
	plan := v.plan()
	if err := m.step("journal"); err != nil {
		return err
	}
	if err := m.writeJournal(plan); err != nil {
		return err
	}
	done := false
	defer func() {
		if done {
			m.removeJournal()
		}
	}()
	var leased []*total
	release := func() {
		for _, t := range leased {
			watch.ReleaseLease(t.w.Fd()) //nolint:errcheck // it is given up in any case
		}
		leased = nil
	}
	defer release()
	busy := false
	for t := range plan.values {
		switch granted, err := leaseSoon(t.w.Fd()); {
		case granted:
			leased = append(leased, t)
		case forced:
		case err != nil && !errors.Is(err, watch.ErrLeaseUnsupported) && !errors.Is(err, watch.ErrLeasePermission):
			done = true
			return err
		default:
			busy = true
		}
	}
	// Whoever opens one of the files from now on waits, and what anybody has opened before is told
	// now. So if nobody is between them, nobody will be.
	m.drain()
	if busy || !m.tracker.allFit(m.tracker.now(), m.pairs(v.bases)) && !forced {
		done = true
		return ErrBusy
	}
	if err := v.apply(plan); err != nil {
		done = true
		return err
	}
	release()
	done = true
	return nil
}

// apply sets the values and drains the files. After an error everything is as it was before.
func (v *Move) apply(plan plan) (err error) {
	m, drained := v.m, 0
	defer func() {
		if err != nil {
			v.undo(plan, drained)
		}
	}()
	if err := m.step("set"); err != nil {
		return err
	}
	for t, values := range plan.values {
		for _, e := range values {
			t.set(e, plan.none[t])
		}
		if err := m.step("set " + t.base); err != nil {
			return err
		}
	}
	for _, f := range v.files {
		if err := m.step("drain"); err != nil {
			return err
		}
		if err := store.Drain(f.fd, Tag(f.record, true)); err != nil {
			return err
		}
		drained++
	}
	return m.step("release")
}

func leaseSoon(fd int) (granted bool, err error) {
	for range leaseTries {
		if granted, err = watch.TryWriteLease(fd); granted || err != nil {
			return granted, err
		}
		time.Sleep(leaseWait)
	}
	return false, nil
}

// undo has everything as it was before: values, and the headers of the first n files.
func (v *Move) undo(p plan, n int) {
	for _, f := range v.files[:n] {
		if err := store.Restore(f.fd, store.Head{UsedBytes: f.used, Tag: f.tag}); err != nil {
			v.m.opts.Logf("drained file cannot be restored", err)
		}
	}
	for t, values := range p.before {
		for _, e := range values {
			t.set(e, p.none[t])
		}
	}
}

func (m *Mirror) step(name string) error {
	if m.opts.Step == nil {
		return nil
	}
	if err := m.opts.Step(name); err != nil {
		return fmt.Errorf("mirror: %s: %w", name, err)
	}
	return nil
}

// a plan is the values of mirror files before and after a move.
type plan struct {
	before, values map[*total][]entry
	none           map[*total]float64
	journal        journal
}

func (v *Move) plan() plan {
	p := plan{before: map[*total][]entry{}, values: map[*total][]entry{}, none: map[*total]float64{}}
	index := map[*total]map[int]int{}
	for _, f := range v.files {
		jf := journalFile{Record: f.record}
		for t, gives := range f.gives {
			p.none[t] = f.none[t]
			if index[t] == nil {
				index[t] = make(map[int]int, len(gives))
				p.values[t] = []entry{}
			}
			for _, e := range gives {
				i, ok := index[t][e.Slot]
				if !ok {
					i = len(p.values[t])
					index[t][e.Slot] = i
					p.before[t] = append(p.before[t], t.entry(e.Slot))
					p.values[t] = append(p.values[t], t.entry(e.Slot))
				}
				p.values[t][i] = t.combine(p.values[t][i], e)
			}
			jf.Gives = append(jf.Gives, journalGives{t.base, gives})
		}
		p.journal.Files = append(p.journal.Files, jf)
	}
	for t, before := range p.before {
		p.journal.Before = append(p.journal.Before, journalBefore{t.base, t.typ, t.mode, p.none[t], before})
	}
	return p
}

// SetStep sets Options.Step. For tests.
func (m *Mirror) SetStep(step func(name string) error) { m.opts.Step = step }

// Later has the clock by which readers are told to have ended go forward. For tests.
func (m *Mirror) Later(d time.Duration) { m.tracker.later.Add(int64(d)) }
