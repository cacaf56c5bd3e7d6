package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
)

// FileName is the name of the archive in its directory.
const FileName = "archive.bolt"

// Format is the version of what is on disk. Whoever changes the layout raises it, and keeps
// where it is written as it is. 2 has gauges of single workers in other modes than all, too; what
// reads it reads 1.
const Format = 2

var (
	bucketMeta   = []byte("meta")
	bucketSpaces = []byte("spaces")
	bucketKeys   = []byte("keys")
	bucketValues = []byte("values")
	bucketFolded = []byte("folded")

	metaFormat = []byte("format")
	metaID     = []byte("id")
	metaCommit = []byte("commit")
	metaStats  = []byte("stats")
)

// Errors of Open. Test with errors.Is.
var (
	// ErrLocked: another process has the archive open. The error names it where it can.
	ErrLocked = errors.New("archive is in use")
	// ErrNewer: a later version of this program wrote the archive.
	ErrNewer = errors.New("archive was written by a newer version")
	// ErrDamaged: what is in the file cannot be relied on. SetAside it and open a new one.
	ErrDamaged = errors.New("archive is damaged")
	// ErrForeign: it is not the archive that was open before, or an older copy of it. See
	// Attach.
	ErrForeign = errors.New("archive belongs to another directory")
)

// ErrDetached is the error of Commit while there is no file to write to.
var ErrDetached = errors.New("archive is not open")

// Stats count what was done since the archive was made.
type Stats struct {
	// Folds is the number of commits that folded files, Files and Bytes (on disk, before)
	// what they folded.
	Folds, Files, Bytes uint64
	// Created is when the archive was made, LastFold when a file was last folded; zero if
	// never.
	Created, LastFold time.Time
}

// An Archive is the totals of the dead, in memory and, while it is attached to a file,
// durable. It is not safe for concurrent use, but what Commit needs time for can run beside
// readers of Totals: see Commit.
type Archive struct {
	path string
	db   *bolt.DB // nil while detached
	// attached says that db is not nil, to readers that Commit runs beside.
	attached atomic.Bool
	// handle is the file that db has open, file what it is, and left how we left it.
	handle *os.File
	file   fs.FileInfo
	left   fs.FileInfo
	id     []byte
	// unsynced says that the file's name may not be durable, as that of a file that another
	// process made in its last moment.
	unsynced bool
	// txid is the number of the last commit to the file, as far as we know.
	txid int
	// attempt is what a commit that failed was to be told by, should it be on disk after all.
	attempt []byte
	// totals is everything, unsaved that part of it which is not on disk yet.
	totals  Totals
	unsaved Totals
	// records are the folded files that may still exist, with their values at the fold.
	records map[string][]float64
	// unsavedRecords are those not on disk; forgotten those that are on disk still.
	unsavedRecords map[string]bool
	forgotten      map[string]bool
	// dropped are the tables on disk that are to go.
	dropped []uint32
	// stats are the counts, saved what they were when memory and disk last agreed.
	stats, saved Stats
	// known says that id is that of a file that was attached once.
	known      bool
	generation int
}

// New returns an empty archive that is not attached to a file.
func New() *Archive {
	return &Archive{
		id: newID(), records: map[string][]float64{}, unsavedRecords: map[string]bool{}, forgotten: map[string]bool{},
		stats: Stats{Created: time.Now().Truncate(time.Second)},
	}
}

func newID() []byte {
	id := make([]byte, 16)
	rand.Read(id)
	return id
}

// Open opens the archive in dir, or makes one, and locks it against other processes. On
// error nothing is left open, and the error is, or wraps, ErrLocked, ErrNewer, ErrDamaged
// or one of the operating system.
func Open(dir string) (*Archive, error) {
	a := New()
	return a, a.Attach(dir)
}

// Attach opens the archive in dir, or makes one, for an Archive that has no file. What the
// file holds is added to what is in memory, unless it is this archive's own file that was
// open before: then memory is right. A file that holds something else, while memory is not
// empty, is left alone: ErrForeign. What memory has more than the file is written at the
// next Commit. For errors see Open.
func (a *Archive) Attach(dir string) (err error) {
	if a.db != nil {
		panic("BUG: archive attached twice")
	}
	path := filepath.Join(dir, FileName)
	defer func() {
		if err != nil && a.db != nil {
			err = errors.Join(err, a.Detach())
		}
	}()
	return guard(fmt.Sprintf("open archive %q", path), func() error {
		f, err := open(dir)
		if err != nil {
			return err
		}
		info, err := f.Stat()
		if err != nil {
			return errors.Join(err, f.Close())
		}
		db, err := openBolt(f, false)
		if err != nil {
			return err
		}
		a.db, a.handle, a.file, a.left, a.path, a.unsynced = db, f, info, info, path, true
		a.attached.Store(true)
		writeOwner(dir)
		removeHalfMade(dir)
		var loaded *contents
		err = db.View(func(tx *bolt.Tx) error {
			loaded, err = load(tx)
			return err
		})
		if err != nil {
			return err
		}
		return a.adopt(loaded)
	})
}

// adopt makes memory agree with the file.
func (a *Archive) adopt(c *contents) error {
	switch {
	case len(c.commit) == 0:
		// A new file, in which nobody has written yet, whoever has made it.
		// All that is in memory must go to it. It has an id of its own, because the file that
		// was open before may be somewhere still and come back.
		a.id = c.id
		if a.blank() {
			a.stats.Created = c.stats.Created
		}
		a.allUnsaved()
	case a.known && !slices.Equal(c.id, a.id) && !a.blank():
		return ErrForeign
	case a.known && slices.Equal(c.id, a.id) && c.txid < a.txid:
		return fmt.Errorf("%w: it is an older copy of the one that was open", ErrForeign)
	default:
		// What is on disk is what was committed, and memory is that and the unsaved.
		if !slices.Equal(c.id, a.id) {
			a.forgotten, a.dropped = map[string]bool{}, nil
		}
		if a.attempt != nil && slices.Equal(c.commit, a.attempt) {
			a.settled() // a commit that failed has come to the disk all the same
		}
		a.attempt = nil
		a.id, a.totals = c.id, c.totals
		for s, t := range a.totals.tables {
			if slices.Contains(a.dropped, t.id) {
				delete(a.totals.tables, s)
			}
		}
		a.totals.merge(&a.unsaved)
		for name := range a.unsavedRecords {
			c.records[name] = a.records[name]
		}
		for name := range a.forgotten {
			delete(c.records, name)
		}
		a.records = c.records
		a.stats, a.saved = c.stats.and(a.stats, a.saved), c.stats
	}
	a.known, a.txid = true, c.txid
	a.generation++
	return nil
}

// blank reports whether there is nothing in memory that another file would lack.
func (a *Archive) blank() bool {
	return a.totals.Empty() && a.unsaved.Empty() && len(a.records) == 0
}

// settled takes note that everything in memory is on disk.
func (a *Archive) settled() {
	a.unsaved = Totals{}
	clear(a.unsavedRecords)
	clear(a.forgotten)
	a.dropped = nil
	a.saved = a.stats
}

// allUnsaved takes note that nothing in memory is on disk.
func (a *Archive) allUnsaved() {
	a.unsaved = Totals{}
	a.unsaved.merge(&a.totals)
	for _, t := range a.totals.tables {
		t.id, t.saved = 0, 0
	}
	for name := range a.records {
		a.unsavedRecords[name] = true
	}
	clear(a.forgotten)
	a.dropped = nil
	a.saved = Stats{}
}

// Generation changes when Attach has replaced the tables, so that positions seen before
// mean nothing any more.
func (a *Archive) Generation() int { return a.generation }

// InPlace reports whether the file that is open is still the one at its path: a directory
// that is removed and made anew takes the archive with it.
func (a *Archive) InPlace() bool {
	if a.db == nil {
		return false
	}
	now, err := os.Lstat(a.path)
	return err == nil && os.SameFile(now, a.file)
}

// Attached reports whether there is a file to write to.
func (a *Archive) Attached() bool { return a.attached.Load() }

// Path returns the path of the file, "" before the first Attach.
func (a *Archive) Path() string { return a.path }

// Totals returns what is archived, saved or not. It is the archive's own: see Commit.
func (a *Archive) Totals() *Totals { return &a.totals }

// Unsaved is the number of keys with values that are in memory alone.
func (a *Archive) Unsaved() int { return a.unsaved.Series() }

// Pending reports whether a Commit of nothing would write something.
func (a *Archive) Pending() bool {
	return !a.unsaved.Empty() || len(a.unsavedRecords) > 0 || len(a.forgotten) > 0 || len(a.dropped) > 0
}

// Stats returns the counts.
func (a *Archive) Stats() Stats { return a.stats }

// SizeBytes returns the size of the file, 0 while detached.
func (a *Archive) SizeBytes() int64 {
	if !a.Attached() {
		return 0
	}
	info, err := os.Stat(a.path)
	if err != nil {
		return 0
	}
	return info.Size()
}

// Baseline returns the values a file had when it was folded, in file order, and whether it
// was: what counts of it is what it has gained since.
func (a *Archive) Baseline(name string) ([]float64, bool) {
	v, ok := a.records[name]
	return v, ok
}

// Records lists the names of the files that are folded and not forgotten.
func (a *Archive) Records() []string { return slices.Sorted(maps.Keys(a.records)) }

// Forget drops the record of a folded file that is gone for good: its removal must be
// durable. It takes effect on disk at the next Commit.
func (a *Archive) Forget(name string) {
	if _, ok := a.records[name]; !ok {
		return
	}
	delete(a.records, name)
	if a.unsavedRecords[name] {
		delete(a.unsavedRecords, name)
		return
	}
	a.forgotten[name] = true
}

// Absorb adds what a file left that no longer exists, so that it need not be kept in
// another way until it can be written. It is durable after the next Commit that succeeds.
func (a *Archive) Absorb(b *Batch) {
	if len(b.records) > 0 {
		panic("BUG: absorbed a batch with records")
	}
	a.totals.merge(&b.totals)
	a.unsaved.merge(&b.totals)
	a.stats = a.stats.with(b)
}

// with returns the counts after a batch.
func (s Stats) with(b *Batch) Stats {
	if b.files > 0 {
		s.Folds++
		s.Files += uint64(b.files)
		s.Bytes += uint64(b.bytes)
		s.LastFold = b.now
	}
	return s
}

// and adds to the counts on disk what memory has counted since they were last written.
func (s Stats) and(memory, saved Stats) Stats {
	s.Folds += memory.Folds - saved.Folds
	s.Files += memory.Files - saved.Files
	s.Bytes += memory.Bytes - saved.Bytes
	if memory.LastFold.After(saved.LastFold) && memory.LastFold.After(s.LastFold) {
		s.LastFold = memory.LastFold
	}
	return s
}

// Drop removes a table, in memory at once and on disk at the next Commit.
func (a *Archive) Drop(s Space) {
	t := a.totals.tables[s]
	if t == nil {
		return
	}
	delete(a.totals.tables, s)
	delete(a.unsaved.tables, s)
	if t.id != 0 {
		a.dropped = append(a.dropped, t.id)
	}
}

// A Batch is the files of one commit.
type Batch struct {
	now     time.Time
	totals  Totals
	records map[string][]float64
	files   int
	bytes   int64
}

// NewBatch returns an empty batch.
func NewBatch(now time.Time) *Batch {
	return &Batch{now: now, records: map[string][]float64{}}
}

// A FoldedFile collects the entries of one file of a batch.
type FoldedFile struct {
	batch    *Batch
	space    Space
	baseline []float64 // before, nil for most
	values   []float64
}

// File begins a file of the given size, whose values go to a space. baseline is what
// Archive.Baseline said of it, or nil.
func (b *Batch) File(space Space, baseline []float64, size int64) *FoldedFile {
	b.files++
	b.bytes += size
	return &FoldedFile{batch: b, space: space, baseline: baseline}
}

// Since says what of the file is archived already: baseline is what Archive.Baseline said, or
// nil.
func (f *FoldedFile) Since(baseline []float64) { f.baseline = baseline }

// Values returns what the entries added so far were, as Archive.Baseline would.
func (f *FoldedFile) Values() []float64 { return f.values }

// Part begins what a file has gained so far that goes on. It counts as no file.
func (b *Batch) Part(space Space) *FoldedFile { return &FoldedFile{batch: b, space: space} }

// Add adds the file's next entry, in file order. The key is not kept. A keep of false
// leaves the entry out, as one that no view shows, but keeps its place.
func (f *FoldedFile) Add(key []byte, value, second float64, keep bool) {
	i := f.record(value, second)
	if keep {
		f.keep(f.space, key, i, value, second)
	}
}

// AddTo is Add for an entry that is kept in another space than the file's, where its second
// half is there.
func (f *FoldedFile) AddTo(space Space, there float64, key []byte, value, second float64) {
	f.keep(space, key, f.record(value, second), value, there)
}

// record takes note of what an entry was, and returns where in values that is.
func (f *FoldedFile) record(value, second float64) int {
	i := len(f.values)
	f.values = append(f.values, value)
	if f.space.stamped() {
		f.values = append(f.values, second)
	}
	return i
}

func (f *FoldedFile) keep(space Space, key []byte, i int, value, second float64) {
	if i < len(f.baseline) {
		value = Gain(space, value, f.baseline[i])
	}
	f.batch.totals.Add(space, key, value, second, f.batch.now)
}

// stamped reports whether timestamps matter.
func (s Space) stamped() bool { return s.Mode.Base() == metric.MostRecent }

// A Comparison tells whether a file still is what it was when it was folded.
type Comparison struct {
	baseline []float64
	stamped  bool
	at       int
	differs  bool
}

// Compare begins to compare a file of a space with what Baseline said of it.
func Compare(s Space, baseline []float64) *Comparison {
	return &Comparison{baseline: baseline, stamped: s.stamped()}
}

// Add looks at the file's next entry, in file order.
func (c *Comparison) Add(value, second float64) {
	c.one(value)
	if c.stamped {
		c.one(second)
	}
}

func (c *Comparison) one(v float64) {
	c.differs = c.differs || c.at >= len(c.baseline) || math.Float64bits(c.baseline[c.at]) != math.Float64bits(v)
	c.at++
}

// Equal reports whether all entries were the same.
func (c *Comparison) Equal() bool { return !c.differs && c.at == len(c.baseline) }

// BaselineAt returns the value that the entry with this number had.
func BaselineAt(s Space, baseline []float64, entry int) (value float64, ok bool) {
	if s.stamped() {
		entry *= 2
	}
	if entry >= len(baseline) {
		return 0, false
	}
	return baseline[entry], true
}

// Gain returns what a value adds to its archived total when it was already folded as
// another one: the difference where values are added, the value where to fold it twice
// changes nothing.
func Gain(s Space, value, folded float64) float64 {
	if merge.Zero(s.Type, s.Mode) != 0 {
		return value
	}
	if value == folded { // infinities too
		return 0
	}
	return value - folded
}

// Record says that the file, under this name, is folded: after the commit it counts with
// its gains only. Without it the file must not exist any more.
func (f *FoldedFile) Record(name string) { f.batch.records[name] = f.values }

// Commit writes the batch, with all that is unsaved, in one transaction. After nil it is
// durable. After an error memory is as it was before, and the next Commit may succeed. So
// is the file; where that is not certain, because the very last step failed or the file
// went bad under us, the archive is detached now, and Attach finds out what is in the file.
//
// While it writes it only reads what is in memory, so that another goroutine may read
// Totals, Attached and SizeBytes meanwhile. To change memory afterwards it calls apply with
// a function that does it, for the caller to call under a lock that keeps the readers out;
// without apply it does so itself.
func (a *Archive) Commit(b *Batch, apply func(change func())) error {
	if a.db == nil {
		return ErrDetached
	}
	if err := a.syncName(); err != nil {
		return fmt.Errorf("write archive %q: %w", a.path, err)
	}
	if err := a.checkLeft(); err != nil {
		return errors.Join(fmt.Errorf("write archive %q: %w", a.path, err), a.letGo())
	}
	a.attempt = newID()
	var w write
	txid := 0
	err := guard(fmt.Sprintf("write archive %q", a.path), func() error {
		return a.db.Update(func(tx *bolt.Tx) error {
			txid = tx.ID()
			w = write{a: a, b: b, tx: tx, txid: txid, commit: a.attempt}
			return w.run()
		})
	})
	a.leave()
	switch {
	case errors.Is(err, ErrDamaged):
		return errors.Join(err, a.letGo())
	case err != nil && !a.undone(txid):
		return errors.Join(err, a.Detach())
	case err != nil:
		return err
	}
	change := func() { a.commitDone(&w) }
	if apply != nil {
		apply(change)
	} else {
		change()
	}
	return nil
}

// leave takes note of how the file is after we wrote to it.
func (a *Archive) leave() {
	if info, err := a.handle.Stat(); err == nil {
		a.left = info
	}
}

// checkLeft looks at all pages again if somebody else has written to the file: bbolt believes
// what they say, and a page that says it has a billion more keeps it busy for hours.
func (a *Archive) checkLeft() error {
	now, err := a.handle.Stat()
	if err != nil || now.Size() == a.left.Size() && now.ModTime().Equal(a.left.ModTime()) {
		return err
	}
	return checkPages(a.handle, now.Size())
}

// undone reports whether a transaction that failed has left nothing behind. bbolt writes
// the meta page before it makes it durable, and believes it if only that fails.
func (a *Archive) undone(txid int) (undone bool) {
	err := guard("", func() error {
		return a.db.View(func(tx *bolt.Tx) error {
			undone = tx.ID() < txid
			return nil
		})
	})
	return undone && err == nil
}

// commitDone brings memory to what was written.
func (a *Archive) commitDone(w *write) {
	for _, t := range w.tables {
		for i, key := range t.raw[t.saved:] {
			t.keys[key] = uint32(t.saved + i)
		}
		t.saved = len(t.raw)
		a.totals.table(t.space)
		a.totals.tables[t.space] = t
	}
	maps.Copy(a.records, w.b.records)
	a.stats, a.txid = w.stats, w.txid
	a.attempt = nil
	a.settled()
}

// Detach closes the file and lets go of the lock. What is in memory stays.
func (a *Archive) Detach() error {
	if a.db == nil {
		return nil
	}
	db := a.db
	a.db, a.handle = nil, nil
	a.attached.Store(false)
	return guard(fmt.Sprintf("close archive %q", a.path), db.Close)
}

// letGo is Detach for a file that bbolt may have panicked over: then its locks may be held
// for good, and to close it would hang. What it has mapped stays so, and would keep our
// lock on the file with it.
func (a *Archive) letGo() error {
	handle := a.handle
	a.db, a.handle = nil, nil
	a.attached.Store(false)
	return errors.Join(unix.Flock(int(handle.Fd()), unix.LOCK_UN), handle.Close())
}

// guard runs what touches a bbolt file and turns a panic into an error: bbolt panics on
// pages that make no sense, and a mapping of a file that was cut faults.
func guard(what string, f func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, p)
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", what, err)
		}
	}()
	return f()
}
