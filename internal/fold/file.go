package fold

import (
	"fmt"
	"slices"
	"time"

	"aggregatord/internal/archive"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// A File is a file that a pool offers. From Offer until Swap or Return only the fold reads it;
// the pool leaves what it serves of it as it is.
type File struct {
	Name store.SourceName
	// Path is for messages.
	Path string
	// Source is the open file. It stays the pool's to close.
	Source *store.File
	// Record is the name of the file's record in the archive. Staged says that the file lies in
	// the directory under that name; otherwise it is to be staged, or it is an orphan.
	Record string
	Staged bool
	// Also is the name of one more record of the same values, by what the file is; empty unless
	// other names than the one that is staged lead to the file.
	Also string
	// Orphan says that no name in the directory leads to the file. Its record is by what the
	// file is, and empty where no other name can lead to it.
	Orphan bool
	// Alive says that a process may write to it, which orphans alone may be: it is not given up
	// by Swap, but counts on with what it gains over Values.
	Alive bool
	// Baseline is what of the file is archived already, nil for most: see archive.Baseline.
	Baseline []float64
	// Entries is how many entries the pool has met. What comes behind them is a gain over the
	// record.
	Entries int
	// Slots are the places of the entries that the pool serves, rising.
	Slots []uint32
	// Route decides where the entry with the k-th slot goes. Nil: by the file's name.
	Route func(k int, e store.Entry) Route
	// Owner is the pool's own.
	Owner any

	// Values is what was recorded, or would be, in the form of archive.Baseline; Served is the
	// values of the entries at Slots. Collect sets them.
	Values, Served []float64
	recorded       bool
}

// A Route says under which key and where an entry is archived.
type Route struct {
	Key   []byte
	Space archive.Space
	// Stamp is the second half of the value there: see merge.Combine.
	Stamp float64
	// Keep says that it is archived at all.
	Keep bool
}

// identityPrefix begins the names of records by identity. No source file's name begins so.
const identityPrefix = "="

// IdentityRecord returns the name of the record of a file that left the directory. born is
// its time of birth: with it, no other file is ever taken for this one.
func IdentityRecord(id store.Identity, born time.Time) string {
	return fmt.Sprintf("%s%x-%x-%x", identityPrefix, id.Dev, id.Ino, born.UnixNano())
}

// ByIdentity reports whether a record is of a file that left the directory.
func ByIdentity(record string) bool { return record[:min(1, len(record))] == identityPrefix }

// Collect reads a file and adds its values to the batch. After an error the batch is of no
// use any more.
func (f *File) Collect(b *archive.Batch) error {
	space, keep := archive.SpaceOf(f.Name.Type, f.Name.Mode, f.Name.ID)
	f.recorded = false
	if !keep && f.Route == nil {
		return nil
	}
	var into *archive.FoldedFile
	if f.Alive {
		into = b.Part(space)
	} else {
		into = b.File(space, nil, f.Source.Size())
	}
	into.Since(f.Baseline)
	// Workers may have had the same ID one after the other: the last one's gauges stay.
	began := float64(f.Source.Created().UnixNano()) / 1e9
	f.Served = slices.Grow(f.Served[:0], len(f.Slots))
	entry, k := 0, 0
	var tooLong error
	err := f.Source.Walk(func(e store.Entry) {
		if entry++; entry > f.Entries {
			return // it came after the pool has met the others: a gain
		}
		if e.Err != nil {
			tooLong = e.Err
			return
		}
		if k == len(f.Slots) || f.Slots[k] != e.Slot {
			into.Add(e.Key, e.Value, e.Stamp, false)
			return
		}
		f.Served = append(f.Served, e.Value)
		r := Route{Key: e.Key, Space: space, Stamp: e.Stamp, Keep: keep}
		if f.Route != nil {
			r = f.Route(k, e)
		}
		if r.Space.Mode == metric.All {
			r.Stamp = began
		}
		k++
		if !r.Keep {
			into.Add(e.Key, e.Value, e.Stamp, false)
			return
		}
		f.recorded = true
		into.AddTo(r.Space, r.Stamp, r.Key, e.Value, e.Stamp)
	})
	if err == nil && k != len(f.Slots) {
		err = fmt.Errorf("only %d of %d entries were found again", k, len(f.Slots))
	}
	if tooLong != nil {
		err = fmt.Errorf("an entry is not read, so the file stays: %w", tooLong)
	}
	if err != nil {
		return fmt.Errorf("archive source file %q: %w", f.Path, err)
	}
	f.Values = into.Values()
	f.recorded = f.recorded || keep
	for _, record := range []string{f.Record, f.Also} {
		if f.recorded && record != "" {
			into.Record(record)
		}
	}
	return nil
}
