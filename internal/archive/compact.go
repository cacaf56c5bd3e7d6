package archive

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// UsedBytes returns how much of the file is in use: bbolt keeps what it once needed, as for
// the records of thousands of files that were folded at once. 0 while detached, or if it
// cannot be told.
func (a *Archive) UsedBytes() int64 {
	if a.db == nil {
		return 0
	}
	last, err := lastMeta(a.handle)
	if err != nil {
		return 0
	}
	free, err := countFree(a.handle, last)
	if err != nil || free > last.high || last.high > math.MaxInt64/pageBytes {
		return 0
	}
	return int64(last.high-free) * pageBytes
}

// countFree returns how many pages are listed as free.
func countFree(f io.ReaderAt, last meta) (uint64, error) {
	var page [pageHeader + 8]byte
	if last.freelist >= last.high {
		return 0, fmt.Errorf("list of free pages: page %d of %d", last.freelist, last.high)
	}
	if _, err := f.ReadAt(page[:], int64(last.freelist)*pageBytes); err != nil {
		return 0, fmt.Errorf("list of free pages: %w", err)
	}
	if flags := u16(page[8:]); flags != freelistPage {
		return 0, fmt.Errorf("list of free pages: page %d of kind %#x", last.freelist, flags)
	}
	if count := u16(page[10:]); count != manyFree {
		return uint64(count), nil
	}
	return u64(page[pageHeader:]), nil
}

// Compact writes the archive anew, without what is not in use, to a file that takes the place
// of the one that is open in one step. While it does so there are both. It is for an archive
// of which nothing is waiting to be written: see Pending. After an error the archive is as it
// was before, in the file that is open then; readers may run beside it as beside Commit.
//
// The new file is locked before it gets its name, so that nobody finds one without a lock.
func (a *Archive) Compact() error {
	if a.db == nil {
		return ErrDetached
	}
	if a.Pending() || a.attempt != nil {
		return errPending
	}
	return guard(fmt.Sprintf("write archive %q anew", a.Path()), func() error {
		p := a.place
		fresh := a.unwritten()
		name, w, err := fresh.build(p, newID())
		if err != nil {
			return err
		}
		db, f, info, err := p.openBuilt(name)
		if err == nil {
			if err = a.replaceBy(name); err != nil {
				err = errors.Join(err, db.Close())
			}
		}
		if err != nil {
			return errors.Join(err, p.remove(name))
		}
		old := a.db
		a.db, a.handle, a.left, a.id, a.txid = db, f, info, fresh.id, w.txid
		a.size.Store(info.Size())
		for i := range w.tables {
			t := a.totals.tables[w.tables[i].space]
			t.id, t.saved = w.tables[i].id, t.Len()
		}
		// Until the directory is durable, what is committed to the new file could be gone with its
		// name: see Commit.
		a.unsynced = true
		return errors.Join(old.Close(), a.syncName())
	})
}

// replaceBy gives the file of this name the archive's, unless something else has it now.
func (a *Archive) replaceBy(name string) error {
	if !a.InPlace() {
		return errNotInPlace
	}
	return a.place.rename(name, a.place.name(archiveName))
}

var errPending = errors.New("something is waiting to be written")

var errNotInPlace = errors.New("the file that is open is not there any more")

// syncName makes it durable that the file has its name.
func (a *Archive) syncName() error {
	if !a.unsynced {
		return nil
	}
	err := a.place.sync()
	a.unsynced = err != nil
	return err
}

// unwritten is the archive for a file in which there is nothing yet. It shares what is in
// the tables.
func (a *Archive) unwritten() *Archive {
	fresh := New()
	fresh.records, fresh.stats = a.records, a.stats
	for name := range a.records {
		fresh.unsavedRecords[name] = true
	}
	fresh.totals.tables = make(map[Space]*Table, len(a.totals.tables))
	for s, t := range a.totals.tables {
		t := *t
		t.id, t.saved = 0, 0
		fresh.totals.tables[s] = &t
	}
	fresh.unsavedAll = !fresh.totals.Empty()
	return fresh
}

// openBuilt opens and locks a file that build has made.
func (p *Place) openBuilt(name string) (*bolt.DB, *os.File, os.FileInfo, error) {
	f, err := p.open(name, unix.O_RDWR, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	info, err := f.Stat()
	if err == nil {
		err = p.checkWritable(f)
	}
	if err == nil {
		err = ignoringEINTR(func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, f.Close())
	}
	db, err := openBolt(f, false)
	return db, f, info, err
}
