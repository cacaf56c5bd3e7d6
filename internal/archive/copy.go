package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
)

// ErrBusy says that an archive changed faster than it could be copied.
var ErrBusy = errors.New("archive is being written all the time")

// A View is what an archive held at one moment, read without a lock and without changing
// anything: beside a daemon that has it open, or where one has crashed.
type View struct {
	// Archive is detached; it has what was in the file.
	*Archive
	path string
	// meta is what the meta pages were, and info whose they are.
	meta []byte
	info fs.FileInfo
}

// Exists reports whether there was an archive.
func (v *View) Exists() bool { return v.meta != nil }

// Path returns where the archive is, or would be.
func (v *View) Path() string { return v.path }

// SizeBytes returns the size of the file, 0 if there was none.
func (v *View) SizeBytes() int64 {
	if v.info == nil {
		return 0
	}
	return v.info.Size()
}

// Read returns a view of the archive in dir, empty where there is none. For errors see
// Open; none is ErrLocked, but it may be ErrBusy. There is a view, then an empty one, with
// an error, too.
//
// It copies the file. bbolt never overwrites a page that the last commit refers to before
// the next one is done, and each commit changes one of the two meta pages at the front of
// the file; so a copy with equal meta pages before and after is whole. That holds within one
// file: Compact puts another one in its place, whose meta pages may be the same.
func Read(dir string) (*View, error) { return read(dir, false) }

// Verify is Read that has bbolt check its file, too, as far as it can. The error is, or
// wraps, ErrDamaged if anything is wrong with the file.
func Verify(dir string) (*View, error) { return read(dir, true) }

func read(dir string, verify bool) (*View, error) {
	v := &View{Archive: New(), path: filepath.Join(dir, FileName)}
	err := guard(fmt.Sprintf("read archive %q", v.path), func() error {
		tmp, err := scratch()
		if err != nil {
			return err
		}
		used, err := v.copy(tmp)
		if err == nil && v.meta != nil {
			err = checkPages(tmp, used)
		}
		if err != nil || v.meta == nil {
			return errors.Join(err, tmp.Close())
		}
		db, err := openBolt(tmp, true)
		if err != nil {
			return err
		}
		defer db.Close() //nolint:errcheck // it was only read
		return db.View(func(tx *bolt.Tx) error {
			c, err := load(tx)
			if err == nil && verify {
				err = check(tx)
			}
			if err != nil {
				return err
			}
			return v.adopt(c)
		})
	})
	return v, err
}

// check has bbolt check its file. Pages that make no sense were found before: about those it
// would panic, in a goroutine of its own.
func check(tx *bolt.Tx) (err error) {
	for found := range tx.Check() {
		if err == nil { // it goes on until all is read
			err = fmt.Errorf("%w: %w", ErrDamaged, found)
		}
	}
	return err
}

// scratch makes a file that has no name and goes when it is closed, also where no directory
// for temporary files can be written.
func scratch() (*os.File, error) {
	f, err := os.CreateTemp("", "aggregatord-archive-*")
	if err != nil {
		if m, memErr := memoryFile(); memErr == nil {
			return m, nil
		}
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// copy copies what is in use of the file and returns how much that is; meta stays nil if
// there is no file.
func (v *View) copy(to *os.File) (used int64, err error) {
	const tries = 200
	var bad []byte
	var badIn fs.FileInfo
	once := func() (done bool, err error) {
		f, err := openRegular(v.path, os.O_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		// As long as it is open, no other file can be taken for it.
		defer f.Close() //nolint:errcheck // it was only read
		info, err := f.Stat()
		if err != nil {
			return false, err
		}
		meta, err := metaPages(f)
		if err != nil {
			return false, err
		}
		last, err := lastMeta(bytes.NewReader(meta))
		if err != nil {
			// Twice the same is no page that is just being written.
			if bytes.Equal(meta, bad) && os.SameFile(info, badIn) {
				return false, fmt.Errorf("%w: %w", ErrDamaged, err)
			}
			bad, badIn = meta, info
			return false, nil
		}
		used, err = copyOnce(to, f, int64(min(last.high, math.MaxInt64/pageBytes))*pageBytes)
		if err != nil {
			return false, err
		}
		after, err := metaPages(f)
		if err != nil || !bytes.Equal(meta, after) {
			return false, err
		}
		if there, err := leadsTo(v.path, f); err != nil || !there {
			return false, err
		}
		v.meta, v.info = meta, info
		return true, nil
	}
	for i := range tries {
		// One that commits without a pause leaves no gap that is long enough for sure, but
		// gaps differ.
		time.Sleep(time.Duration(i) * 50 * time.Microsecond)
		if done, err := once(); done || err != nil {
			return used, err
		}
	}
	return 0, ErrBusy
}

// copyOnce copies so many bytes of the file, or as many as there are.
func copyOnce(to, from *os.File, bytes int64) (n int64, err error) {
	if _, err := from.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	if _, err := to.Seek(0, io.SeekStart); err != nil {
		return 0, err
	}
	if err := to.Truncate(0); err != nil {
		return 0, err
	}
	return io.Copy(to, io.LimitReader(from, bytes))
}

// metaPages returns the two meta pages, or what is there of them.
func metaPages(f *os.File) ([]byte, error) {
	meta := make([]byte, 2*pageBytes)
	n, err := f.ReadAt(meta, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return meta[:n], nil
}

// Current reports whether the archive has not changed since Read: whoever has read the
// source files in between has seen each value either there or in the view, and none twice.
func (v *View) Current() bool {
	f, err := openRegular(v.path, os.O_RDONLY)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) && v.meta == nil
	}
	defer f.Close() //nolint:errcheck // it was only read
	info, err := f.Stat()
	if err != nil || v.info == nil || !os.SameFile(info, v.info) {
		return false
	}
	meta, err := metaPages(f)
	return err == nil && bytes.Equal(meta, v.meta)
}
