package archive

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
)

// FileName is the name of the archive in its directory.
const FileName = "archive.bolt"

// Format is the version of what is on disk. Whoever changes the layout raises it, and keeps
// where it is written as it is. 2 has gauges of single workers in other modes than all, too. 3 has
// records in several parts and records of files by identity. What reads it reads 1 and 2.
const Format = 3

var (
	bucketMeta   = []byte("meta")
	bucketSpaces = []byte("spaces")
	bucketKeys   = []byte("keys")
	bucketValues = []byte("values")
	bucketFolded = []byte("folded")
	allBuckets   = [][]byte{bucketMeta, bucketSpaces, bucketKeys, bucketValues, bucketFolded}

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

// Errors of Commit. Test with errors.Is.
var (
	// ErrDetached: there is no file to write to.
	ErrDetached = errors.New("archive is not open")
	// ErrTooLarge: the batch is larger than one transaction may be. Nothing was written; try fewer
	// files, or fewer entries of one: see FoldedFile.Record.
	ErrTooLarge = errors.New("too much for one transaction")
)

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
	// place is where the archive lies, which is ours to close if owned says so.
	place *Place
	owned bool
	path  atomic.Pointer[string] // of the file that is, or was, open
	db    *bolt.DB               // nil while detached
	// attached says that db is not nil, to readers that Commit runs beside.
	attached atomic.Bool
	// lost says that the file was removed, so that all there is is in memory.
	lost atomic.Bool
	// handle is the file that db has open, and left how we left it.
	handle *os.File
	left   fs.FileInfo
	id     []byte
	// unsynced says that the file's name may not be durable, as that of a file that another
	// process made in its last moment.
	unsynced bool
	// size is that of the file after the last commit.
	size atomic.Int64
	// heldSince is since when readers have asked for the file to be left as it is, without a gap.
	heldSince time.Time
	// txid is the number of the last commit to the file, as far as we know.
	txid int
	// attempt is what a commit that failed was to be told by, should it be on disk after all.
	attempt []byte
	// doubt is a commit that failed and may be on disk all the same: the next one writes over all
	// that it has touched.
	doubt *write
	// totals is everything, unsaved that part of it which is not on disk yet; unsavedAll says that
	// this is all.
	totals     Totals
	unsaved    Totals
	unsavedAll bool
	// records are the folded files that may still exist, by what they are known by.
	records map[string]*record
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
		id: newID(), records: map[string]*record{}, unsavedRecords: map[string]bool{}, forgotten: map[string]bool{},
		stats: Stats{Created: time.Now().Truncate(time.Second)},
	}
}

func newID() []byte {
	id := make([]byte, 16)
	rand.Read(id)
	return id
}

// Open opens the archive in dir, or makes one, and locks it against other processes. On
// error nothing is left open, and the error is, or wraps, ErrLocked, ErrNewer, ErrDamaged,
// ErrUnsafe or one of the operating system.
func Open(dir string) (*Archive, error) {
	a := New()
	return a, a.Attach(dir)
}

// Attach is AttachTo for a directory that is for the archive alone.
func (a *Archive) Attach(dir string) error {
	p, err := OpenPlace(dir)
	if err != nil {
		return err
	}
	err = a.AttachTo(p, nil)
	if a.db == nil {
		return errors.Join(err, p.Close())
	}
	a.owned = true
	return err
}

// AttachTo opens the archive in a place, or makes one, for an Archive that has no file. What the
// file holds is added to what is in memory, unless it is this archive's own file that was
// open before: then memory is right. A file that holds something else, while memory is not
// empty, is left alone: ErrForeign. What memory has more than the file is written at the
// next Commit. The place must stay open as long as the archive is attached. For errors see
// Open.
//
// As with Commit, apply is called with a function that changes memory, for the caller to call
// under the lock of those who read it; without apply AttachTo does so itself.
func (a *Archive) AttachTo(p *Place, apply func(change func())) (err error) {
	if a.db != nil {
		panic("BUG: archive attached twice")
	}
	defer func() {
		if err != nil && a.db != nil {
			err = errors.Join(err, a.Detach())
		}
	}()
	return guard(fmt.Sprintf("open archive %q", p.ArchivePath()), func() error {
		f, c, err := p.openArchive()
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
		path := p.ArchivePath()
		a.place, a.owned = p, false
		a.path.Store(&path)
		a.db, a.handle, a.left, a.unsynced = db, f, info, true
		a.size.Store(info.Size())
		a.attached.Store(true)
		a.lost.Store(false)
		p.WriteOwner()
		p.removeHalfMade()
		if apply == nil {
			return a.adopt(c)
		}
		var adoptErr error
		apply(func() { adoptErr = a.adopt(c) })
		return adoptErr
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
		if a.unsavedAll { // and somebody else has written to the file
			a.unsaved, a.unsavedAll = a.totals, false
		}
		a.attempt, a.doubt = nil, nil
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
	return a.totals.Empty() && len(a.records) == 0
}

// settled takes note that everything in memory is on disk.
func (a *Archive) settled() {
	a.unsaved, a.unsavedAll = Totals{}, false
	clear(a.unsavedRecords)
	clear(a.forgotten)
	a.dropped = nil
	a.saved = a.stats
}

// allUnsaved takes note that nothing in memory is on disk.
func (a *Archive) allUnsaved() {
	a.unsaved, a.unsavedAll = Totals{}, !a.totals.Empty()
	a.doubt = nil
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
	if a.db == nil || !a.place.InPlace() {
		return false
	}
	same, err := a.place.leadsTo(a.place.name(archiveName), a.handle)
	return same && err == nil
}

// Attached reports whether there is a file to write to.
func (a *Archive) Attached() bool { return a.attached.Load() }

// Path returns the path of the file, "" before the first Attach.
func (a *Archive) Path() string {
	if path := a.path.Load(); path != nil {
		return *path
	}
	return ""
}

// Totals returns what is archived, saved or not. It is the archive's own: see Commit.
func (a *Archive) Totals() *Totals { return &a.totals }

// Unsaved is the number of keys with values that are in memory alone.
func (a *Archive) Unsaved() int {
	if a.unsavedAll || a.lost.Load() {
		return a.totals.Series()
	}
	return a.unsaved.Series()
}

// Pending reports whether a Commit of nothing would write something.
func (a *Archive) Pending() bool {
	return a.unsavedAll || !a.unsaved.Empty() || a.doubt != nil || len(a.unsavedRecords) > 0 || len(a.forgotten) > 0 || len(a.dropped) > 0
}

// Stats returns the counts.
func (a *Archive) Stats() Stats { return a.stats }

// SizeBytes returns the size of the file, 0 while detached.
func (a *Archive) SizeBytes() int64 {
	if !a.Attached() {
		return 0
	}
	return a.size.Load()
}

// Baseline returns the values a file had when it was folded, in file order, and whether it
// was: what counts of it is what it has gained since. There may be fewer values than entries:
// those that follow are not folded.
func (a *Archive) Baseline(name string) ([]float64, bool) {
	r := a.records[name]
	if r == nil {
		return nil, false
	}
	return r.values(), true
}

// Records lists the names of the files that are folded and not forgotten.
func (a *Archive) Records() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for key := range a.records {
			if !isIdentity(key) && !yield(key) {
				return
			}
		}
	})
}

// Forget drops the record of a folded file that is gone for good: its removal must be
// durable. It takes effect on disk at the next Commit.
func (a *Archive) Forget(name string) {
	if a.records[name] == nil {
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
	if !a.unsavedAll {
		a.unsaved.merge(&b.totals)
	}
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
// changes nothing. What counts (all but gauges) never gains less than 0: after a power loss a
// file may have an older value than its durable record. Only a value below 0, as the sum of
// observations may be, is one that falls.
func Gain(s Space, value, folded float64) float64 {
	switch {
	case !s.summed():
		return value
	case value == folded: // infinities too
		return 0
	case s.counted() && value < folded && value >= 0:
		return 0
	}
	return value - folded
}

// Commit writes the batch, with all that is unsaved, in one transaction. After nil it is
// durable. After an error memory is as it was before, and the next Commit may succeed; so
// there is no need to detach or to read anything again. The file is as it was before, too, or,
// if the very last step failed, perhaps has the batch: readers of the file see it then, and
// the next Commit begins by writing over it. Only where the file went bad under us, with
// ErrDamaged, is the archive detached now.
//
// While it writes it only reads what is in memory, so that another goroutine may read
// Totals, Attached and SizeBytes meanwhile. To change memory afterwards it calls apply with
// a function that does it, for the caller to call under a lock that keeps the readers out;
// without apply it does so itself. What that function does takes time for the keys of the
// batch, not for those of the archive.
func (a *Archive) Commit(b *Batch, apply func(change func())) error {
	if a.db == nil {
		return ErrDetached
	}
	if err := b.fits(); err != nil {
		return fmt.Errorf("write archive %q: %w", a.Path(), err)
	}
	if err := a.syncName(); err != nil {
		return fmt.Errorf("write archive %q: %w", a.Path(), err)
	}
	if err := a.checkLeft(); err != nil {
		return errors.Join(fmt.Errorf("write archive %q: %w", a.Path(), err), a.letGo())
	}
	a.attempt = newID()
	w := &write{a: a, b: b, commit: a.attempt}
	err := guard(fmt.Sprintf("write archive %q", a.Path()), func() error {
		return a.db.Update(func(tx *bolt.Tx) error {
			w.tx, w.txid = tx, tx.ID()
			return w.run()
		})
	})
	w.tx = nil
	a.leave()
	if errors.Is(err, ErrDamaged) {
		return errors.Join(err, a.letGo())
	}
	if err != nil {
		switch undone, undoneErr := a.undone(w.txid); {
		case undoneErr != nil:
			return errors.Join(err, a.letGo())
		case !undone:
			a.doubt = w.and(a.doubt)
		}
		return err
	}
	change := func() { a.commitDone(w) }
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
		a.size.Store(info.Size())
	}
}

// checkLeft looks at the pages again before bbolt believes what they say, all of them if somebody
// else has written to the file. What is stored through a mapping shows in no time of the file:
// see checkBranches. Where others may do that, all that leads to pages is looked at each time.
func (a *Archive) checkLeft() error {
	now, err := a.handle.Stat()
	switch {
	case err != nil:
		return err
	case now.Size() != a.left.Size() || !now.ModTime().Equal(a.left.ModTime()):
		return checkPages(a.handle, now.Size())
	case a.place.hidden:
		return checkBranches(a.handle, now.Size())
	}
	return nil
}

// undone reports whether a transaction that failed has left nothing behind. bbolt writes
// the meta page before it makes it durable, and believes it if only that fails.
func (a *Archive) undone(txid int) (undone bool, err error) {
	err = guard("", func() error {
		return a.db.View(func(tx *bolt.Tx) error {
			undone = tx.ID() < txid
			return nil
		})
	})
	return undone, err
}

// commitDone brings memory to what was written.
func (a *Archive) commitDone(w *write) {
	for i := range w.tables {
		w.tables[i].apply(&a.totals)
	}
	maps.Copy(a.records, w.b.records)
	a.stats, a.txid = w.stats, w.txid
	a.attempt, a.doubt = nil, nil
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
	err := guard(fmt.Sprintf("close archive %q", a.Path()), db.Close)
	return errors.Join(err, a.leavePlace())
}

// leavePlace closes the place if it is ours.
func (a *Archive) leavePlace() error {
	p := a.place
	a.place = nil
	if !a.owned {
		return nil
	}
	a.owned = false
	return p.Close()
}

// letGo is Detach for a file that bbolt may have panicked over: then its locks may be held
// for good, and to close it would hang. What it has mapped stays so, and would keep our
// lock on the file with it.
func (a *Archive) letGo() error {
	handle := a.handle
	a.db, a.handle = nil, nil
	a.attached.Store(false)
	return errors.Join(unix.Flock(int(handle.Fd()), unix.LOCK_UN), handle.Close(), a.leavePlace())
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
