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
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
)

// FileName is the name of the archive in its directory.
const FileName = "archive.bolt"

// format is the version of what is on disk. Whoever changes the layout raises it.
const format = 1

var (
	bucketMeta   = []byte("meta")
	bucketSpaces = []byte("spaces")
	bucketKeys   = []byte("keys")
	bucketValues = []byte("values")
	bucketFolded = []byte("folded")

	metaFormat = []byte("format")
	metaID     = []byte("id")
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
	// ErrForeign: it is not the archive that was open before. See Reopen.
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
	file fs.FileInfo
	id   []byte
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
	stats   Stats
	// known says that id is that of a file that was attached once.
	known      bool
	generation int
}

// New returns an empty archive that is not attached to a file.
func New() *Archive {
	id := make([]byte, 16)
	rand.Read(id) //nolint:errcheck // crypto/rand.Read never fails
	return &Archive{
		id: id, records: map[string][]float64{}, unsavedRecords: map[string]bool{}, forgotten: map[string]bool{},
		stats: Stats{Created: time.Now().Truncate(time.Second)},
	}
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
		db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockTimeout, NoStatistics: true})
		if err != nil {
			return openError(dir, err)
		}
		a.db, a.path = db, path
		if a.file, err = os.Stat(path); err != nil {
			return err
		}
		writeOwner(dir)
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

// lockTimeout is how long Open waits for another process to let go: a daemon that is being
// replaced by the next one.
const lockTimeout = 500 * time.Millisecond

// openError says what an error of bolt.Open means.
func openError(dir string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%w: %s", ErrLocked, readOwner(dir))
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch),
		errors.Is(err, berrors.ErrInvalidMapping):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrDamaged, err)
}

// adopt makes memory agree with the file.
func (a *Archive) adopt(c *contents) error {
	switch {
	case c.id == nil:
		// A new file: all that is in memory must go to it.
		a.allUnsaved()
	case a.known && !slices.Equal(c.id, a.id):
		return ErrForeign
	default:
		// What is on disk is what was committed, and memory is that and the unsaved.
		a.id, a.stats = c.id, c.stats
		a.totals = c.totals
		a.totals.merge(&a.unsaved)
		for name := range a.unsavedRecords {
			c.records[name] = a.records[name]
		}
		for name := range a.forgotten {
			delete(c.records, name)
		}
		a.records = c.records
		for _, id := range a.dropped {
			for s, t := range a.totals.tables {
				if t.id == id {
					delete(a.totals.tables, s)
				}
			}
		}
	}
	a.known = true
	a.generation++
	return nil
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
}

// Generation changes when Attach has replaced the tables, so that positions seen before
// mean nothing any more.
func (a *Archive) Generation() int { return a.generation }

// InPlace reports whether the file that is open is still the one at its path: a directory
// that is removed and made anew takes the archive with it.
func (a *Archive) InPlace() bool {
	now, err := os.Stat(a.path)
	return a.db != nil && err == nil && os.SameFile(now, a.file)
}

// Attached reports whether there is a file to write to.
func (a *Archive) Attached() bool { return a.db != nil }

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
	if a.db == nil {
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

// Add adds the file's next entry, in file order. The key is not kept. A keep of false
// leaves the entry out, as one that no view shows, but keeps its place.
func (f *FoldedFile) Add(key []byte, value, second float64, keep bool) {
	i := len(f.values)
	f.values = append(f.values, value)
	if f.space.stamped() {
		f.values = append(f.values, second)
	}
	if !keep {
		return
	}
	if i < len(f.baseline) {
		value = Gain(f.space, value, f.baseline[i])
	}
	f.batch.totals.Add(f.space, key, value, second, f.batch.now)
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
// durable; after an error the archive is as it was before, in memory and on disk, and the
// next Commit may succeed.
//
// While it writes it only reads what is in memory, so that another goroutine may read
// Totals meanwhile. To change memory afterwards it calls apply with a function that does
// it, for the caller to call under a lock that keeps the readers out; without apply it
// does so itself.
func (a *Archive) Commit(b *Batch, apply func(change func())) error {
	if a.db == nil {
		return ErrDetached
	}
	var w write
	err := guard(fmt.Sprintf("write archive %q", a.path), func() error {
		return a.db.Update(func(tx *bolt.Tx) error {
			w = write{a: a, b: b, tx: tx}
			return w.run()
		})
	})
	if err != nil {
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
	a.unsaved = Totals{}
	maps.Copy(a.records, w.b.records)
	clear(a.unsavedRecords)
	clear(a.forgotten)
	a.dropped = nil
	a.stats = w.stats
}

// Detach closes the file and lets go of the lock. What is in memory stays.
func (a *Archive) Detach() error {
	if a.db == nil {
		return nil
	}
	db := a.db
	a.db = nil
	return guard(fmt.Sprintf("close archive %q", a.path), db.Close)
}

// Abandon gives up a file that went bad under us, without touching it: all that is in
// memory counts as unsaved, to be written to the next file.
func (a *Archive) Abandon() {
	a.db = nil // its lock stays held until the process ends, or somebody moves the file away
	a.id = New().id
	a.allUnsaved()
}

// SetAside renames an archive that cannot be used, under a name with the time that is not
// used yet, and returns that name. Nothing is lost that somebody could still read.
func SetAside(dir string, now time.Time) (string, error) {
	from := filepath.Join(dir, FileName)
	for i := range 1000 {
		to := fmt.Sprintf("%s.damaged-%s", from, now.UTC().Format("20060102T150405Z"))
		if i > 0 {
			to += fmt.Sprintf("-%d", i)
		}
		if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Rename(from, to); err != nil {
			return "", fmt.Errorf("set archive aside: %w", err)
		}
		return to, nil
	}
	return "", fmt.Errorf("set archive %q aside: no free name", from)
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
