package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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
	meta []byte
}

// Read returns a view of the archive in dir, empty where there is none.
//
// It copies the file. bbolt never overwrites a page that the last commit refers to before
// the next one is done, and each commit changes one of the two meta pages at the front of
// the file; so a copy with equal meta pages before and after is whole.
func Read(dir string) (*View, error) {
	v := &View{Archive: New(), path: filepath.Join(dir, FileName)}
	err := guard(fmt.Sprintf("read archive %q", v.path), func() error {
		tmp, err := os.CreateTemp("", "aggregatord-archive-*")
		if err != nil {
			return err
		}
		defer os.Remove(tmp.Name()) //nolint:errcheck // nothing depends on it
		defer tmp.Close()           //nolint:errcheck // it was only a copy
		if err := v.copy(tmp); err != nil {
			return err
		}
		if v.meta == nil {
			return nil
		}
		db, err := bolt.Open(tmp.Name(), 0o600, &bolt.Options{ReadOnly: true, NoStatistics: true, Timeout: lockTimeout})
		if err != nil {
			return openError(dir, err)
		}
		defer db.Close() //nolint:errcheck // it was only read
		return db.View(func(tx *bolt.Tx) error {
			c, err := load(tx)
			if err != nil || c.id == nil {
				return err
			}
			return v.adopt(c)
		})
	})
	return v, err
}

// copy copies the file; meta stays nil if there is none.
func (v *View) copy(to *os.File) error {
	for range 100 {
		meta, err := v.readMeta()
		if meta == nil || err != nil {
			return err
		}
		from, err := os.Open(v.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err = to.Seek(0, io.SeekStart); err == nil {
			if err = to.Truncate(0); err == nil {
				_, err = io.Copy(to, from)
			}
		}
		if err = errors.Join(err, from.Close()); err != nil {
			return err
		}
		if after, err := v.readMeta(); err != nil {
			return err
		} else if bytes.Equal(meta, after) {
			v.meta = meta
			return nil
		}
	}
	return ErrBusy
}

// readMeta returns the two meta pages, nil where there is no file or an empty one.
func (v *View) readMeta() ([]byte, error) {
	f, err := os.Open(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // it was only read
	meta := make([]byte, 2*os.Getpagesize())
	n, err := io.ReadFull(f, meta)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, err
	}
	if n == 0 {
		return nil, nil
	}
	return meta[:n], nil
}

// Current reports whether the archive has not changed since Read: whoever has read the
// source files in between has seen each value either there or in the view, and none twice.
func (v *View) Current() bool {
	meta, err := v.readMeta()
	return err == nil && bytes.Equal(meta, v.meta)
}
