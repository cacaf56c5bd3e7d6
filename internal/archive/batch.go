package archive

import (
	"fmt"
	"math"
	"time"
)

// Bounds of a batch: what is larger, Commit refuses. They keep what one transaction needs of
// memory and disk within reason; who folds several files at once should stay far below. One file of
// 1 GiB, which is the default limit, may have 44 million entries and a record of 9 bytes for each.
const (
	MaxBatchBytes   = 512 << 20
	MaxBatchEntries = 48 << 20
	// MaxKeyBytes is the length of the longest raw key.
	MaxKeyBytes = 16 << 20
)

// mostNaNKeys is how many keys of values that are not a number a batch tells.
const mostNaNKeys = 10

// A Batch is the files of one commit.
type Batch struct {
	now     time.Time
	totals  Totals
	records map[string]*record
	files   int
	bytes   int64

	entries int
	size    int64
	longest int
	nans    int
	nanKeys []string
}

// NewBatch returns an empty batch.
func NewBatch(now time.Time) *Batch {
	return &Batch{now: now, records: map[string]*record{}}
}

// Entries is how many entries of files were added.
func (b *Batch) Entries() int { return b.entries }

// Bytes is about how much a commit writes for the batch when none of its keys is in the archive
// yet. Where all are, it writes less, but for each key of which no neighbour is in the batch
// up to two pages.
func (b *Batch) Bytes() int64 { return b.size }

// NaNs is how many values were left out of sums because they are not a number, and some of
// their keys.
func (b *Batch) NaNs() (n int, keys []string) { return b.nans, b.nanKeys }

// fits reports whether one transaction may have the batch.
func (b *Batch) fits() error {
	switch {
	case b.entries > MaxBatchEntries:
		return fmt.Errorf("%w: %d entries or more of %d", ErrTooLarge, b.entries, MaxBatchEntries)
	case b.size > MaxBatchBytes:
		return fmt.Errorf("%w: %d bytes or more of %d", ErrTooLarge, b.size, MaxBatchBytes)
	case b.longest > MaxKeyBytes:
		return fmt.Errorf("%w: a key of %d bytes, of at most %d", ErrTooLarge, b.longest, MaxKeyBytes)
	}
	return nil
}

// What a key and a value take on disk besides the key: element headers, the key in the bucket,
// a checksum, both halves.
const keyOverhead = 48

// A FoldedFile collects the entries of one file of a batch.
type FoldedFile struct {
	batch    *Batch
	space    Space
	baseline []float64 // before, nil for most
	entries  int
	record   recordWriter
}

// File begins a file of the given size, whose values go to a space. baseline is what
// Archive.Baseline said of it, or nil.
func (b *Batch) File(space Space, baseline []float64, size int64) *FoldedFile {
	b.files++
	b.bytes += size
	return &FoldedFile{batch: b, space: space, baseline: baseline}
}

// Part is File for one that goes on: it begins what the file has gained so far, and counts as no
// file.
func (b *Batch) Part(space Space, baseline []float64) *FoldedFile {
	return &FoldedFile{batch: b, space: space, baseline: baseline}
}

// Add adds the file's next entry, in file order. The key is not kept. A keep of false
// leaves the entry out, as one that no view shows and no later version could, but keeps its
// place. A key that cannot be read is kept like any other: what it means may be known later.
func (f *FoldedFile) Add(key []byte, value, second float64, keep bool) {
	i := f.note(value, second)
	if keep {
		f.keep(f.space, key, i, value, second)
	}
}

// AddTo is Add for an entry that is kept in another space than the file's, where its second
// half is there.
func (f *FoldedFile) AddTo(space Space, there float64, key []byte, value, second float64) {
	f.keep(space, key, f.note(value, second), value, there)
}

// Entries is how many entries were added.
func (f *FoldedFile) Entries() int { return f.entries }

// note takes note of what an entry was, and returns where in the record that is.
func (f *FoldedFile) note(value, second float64) int {
	f.entries++
	f.batch.entries++
	if f.batch.over() {
		return math.MaxInt // no commit will have it: do not take more memory
	}
	i := f.record.count
	f.batch.size += f.record.add(value)
	if f.space.stamped() {
		f.batch.size += f.record.add(second)
	}
	return i
}

func (b *Batch) over() bool { return b.entries > MaxBatchEntries || b.size > MaxBatchBytes }

func (f *FoldedFile) keep(space Space, key []byte, i int, value, second float64) {
	b := f.batch
	if b.over() {
		return
	}
	if i < len(f.baseline) {
		value = Gain(space, value, f.baseline[i])
	}
	if space.summed() && math.IsNaN(value) {
		b.nans++
		if len(b.nanKeys) < mostNaNKeys {
			b.nanKeys = append(b.nanKeys, string(key))
		}
		value = 0 // the series is there
	}
	b.longest = max(b.longest, len(key))
	if b.longest <= MaxKeyBytes && b.totals.add(space, key, value, second, b.now) {
		b.size += int64(len(key)) + keyOverhead
	}
}

// Record says that the file, under this name, is folded: after the commit it counts with
// its gains only. Without it the file must not exist any more.
//
// A file need not be folded at once: entries that were not added to the batch are not in the
// record, and count in full. So a file that is too large for one transaction goes in several,
// each with the entries of those before and some more.
func (f *FoldedFile) Record(name string) { f.batch.records[name] = f.record.done(0) }

// RecordIdentity is Record for a file that has left the directory, but may be somewhere else
// and come back: it is known by what it is, not by its name.
func (f *FoldedFile) RecordIdentity(id Identity) {
	f.batch.records[id.key()] = f.record.done(f.batch.now.Unix())
}
