package fold

import (
	"errors"
	"fmt"
	"slices"

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
	// Record is the name of the file's record in the archive; empty for an orphan. Staged says that
	// the file lies in the directory under that name; otherwise it is to be staged.
	Record string
	Staged bool
	// Orphan says that no name in the directory leads to the file.
	Orphan bool
	// Identity is for a record by what the file is, where names elsewhere may lead to it; nil for
	// none.
	Identity *archive.Identity
	// Linked says that it has its own name besides the hidden one.
	Linked bool
	// Ruby says that it is a file of the Ruby client, which nothing mirrors.
	Ruby bool
	// Alive says that a process may write to it, which orphans alone may be: it is not given up
	// by Swap, but counts on with what it gains over Values.
	Alive bool
	// Baseline is what of the file is archived already, nil for most: see archive.Baseline.
	Baseline []float64
	// Entries is how many entries the pool has met. Of a file that is Alive, what comes behind them
	// is a gain over the record.
	Entries int
	// Slots are the places of the entries that the pool serves, rising.
	Slots []uint32
	// LongKeys says that the pool has left out entries because of the length of their keys.
	LongKeys bool
	// Keep says whether to keep an entry that is at none of the Slots. Nil: all, as nobody may be able
	// to read them today.
	Keep func(e store.Entry) bool
	// Route decides where the entry with the k-th slot goes, or, with a k of -1, one that the pool has
	// not met. Nil: by the file's name.
	Route func(k int, e store.Entry) Route
	// Owner is the pool's own.
	Owner any

	// Served is the values of the entries at Slots, and Values, of a file that is Alive, all values in
	// the form of archive.Baseline. Collect sets them.
	Values, Served []float64
	recorded       bool
}

// A Route says under which key and where an entry is archived.
type Route struct {
	Key   []byte
	Space archive.Space
	// Stamp is when the value was set, in Unix seconds, for a space in which that matters.
	Stamp float64
	// Keep says that it is archived at all.
	Keep bool
}

// Expire has nothing of the file kept in the archive: its time is over.
func (f *File) Expire() {
	f.Keep = func(store.Entry) bool { return false }
	f.Route = func(_ int, e store.Entry) Route { return Route{Key: e.Key} }
}

// IdentityOf returns what a file is, nil where it cannot be told from others for ever.
func IdentityOf(f *store.File) *archive.Identity {
	if !f.Born() {
		return nil
	}
	id := f.Identity()
	return &archive.Identity{Dev: id.Dev, Ino: id.Ino, Born: f.Created().UnixNano()}
}

// source returns the file to read: the pool's own, of which every key is what it was when the pool
// learned it, or, where keys are longer than the pool reads, another that has them whole.
func (f *File) source() (*store.File, error) {
	if err := f.Source.Verify(); err != nil || !f.LongKeys {
		return f.Source, err
	}
	whole, err := store.Open(f.Path, f.Name, anyLimits)
	if err == nil && whole.Identity() != f.Source.Identity() {
		err = errors.Join(errors.New("its name leads to another file"), whole.Close())
	}
	return whole, err
}

// anyLimits are none: what was counted is archived, however large.
var anyLimits = store.Limits{FileBytes: 1 << 62, KeyBytes: 1 << 30}

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
		into = b.Part(space, f.Baseline)
	} else {
		into = b.File(space, f.Baseline, f.Source.Size())
	}
	// Workers may have had the same ID one after the other: the last one's gauges stay.
	began := float64(f.Source.Created().UnixNano()) / 1e9
	// second is what goes into a space beside a value. Nothing of the file does where values are added:
	// there it would count as a part of the sum.
	second := func(s archive.Space, stamp float64) float64 {
		switch s.Mode.Base() {
		case metric.MostRecent:
			return stamp
		case metric.All:
			return began
		}
		return 0
	}
	f.Served = slices.Grow(f.Served[:0], len(f.Slots))
	f.Values = f.Values[:0]
	entry, k := 0, 0
	stamped := f.Name.Mode.Base() == metric.MostRecent
	source, err := f.source()
	if err != nil {
		return fmt.Errorf("archive source file %q: %w", f.Path, err)
	}
	if source != f.Source {
		defer source.Close() //nolint:errcheck // it was only read
	}
	err = source.Walk(func(e store.Entry) {
		entry++
		if f.Alive {
			if entry > f.Entries {
				return // it came after the pool has met the others: a gain
			}
			f.Values = append(f.Values, e.Value)
			if stamped {
				f.Values = append(f.Values, e.Stamp)
			}
		}
		slot := -1
		switch {
		case k < len(f.Slots) && f.Slots[k] == e.Slot:
			slot = k
			k++
			f.Served = append(f.Served, e.Value)
		case entry <= f.Entries || f.Route == nil:
			// What nobody can read now is kept as it is: a later version, or another limit, may.
			if keep && (f.Keep == nil || f.Keep(e)) {
				into.AddTo(space, second(space, e.Stamp), e.Key, e.Value, e.Stamp)
			} else {
				into.Add(e.Key, e.Value, e.Stamp, false)
			}
			return
		}
		r := Route{Key: e.Key, Space: space, Stamp: e.Stamp, Keep: keep}
		if f.Route != nil {
			r = f.Route(slot, e)
		}
		if !r.Keep {
			into.Add(e.Key, e.Value, e.Stamp, false)
			return
		}
		f.recorded = true
		into.AddTo(r.Space, second(r.Space, r.Stamp), r.Key, e.Value, e.Stamp)
	})
	if err == nil && k != len(f.Slots) {
		err = fmt.Errorf("only %d of %d entries were found again", k, len(f.Slots))
	}
	if err != nil {
		return fmt.Errorf("archive source file %q: %w", f.Path, err)
	}
	if f.recorded = f.recorded || keep; !f.recorded {
		return nil
	}
	if f.Record != "" {
		into.Record(f.Record)
	}
	if f.Identity != nil {
		into.RecordIdentity(*f.Identity)
	}
	return nil
}
