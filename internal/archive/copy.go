package archive

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ErrBusy says that an archive changed faster than it could be read.
var ErrBusy = errors.New("archive is being written all the time")

// A View is what an archive held at one moment, read without a lock that keeps anybody out, and
// without changing anything: beside a daemon that has it open, or where one has crashed.
type View struct {
	// Archive is detached; it has what was in the file.
	*Archive
	place *Place
	name  string
	path  string
	// meta is what the meta pages were, and info whose they are.
	meta []byte
	info fs.FileInfo
	// held is the file, with the request to leave it as it is: see Hold.
	held *os.File
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

// Read returns a view of the archive in dir, which is for it alone, empty where there is none.
// For errors see Open; none is ErrLocked, but it may be ErrBusy. There is a view, then an
// empty one, with an error, too.
func Read(dir string) (*View, error) {
	return readDir(dir, func(p *Place) (*View, error) { return p.Read() })
}

// ReadHeld is Read, and asks the daemon that has the archive to leave it as it is until
// View.Release: see Place.Hold.
func ReadHeld(dir string) (*View, error) {
	return readDir(dir, func(p *Place) (*View, error) { return p.Hold() })
}

// ReadHidden is ReadHeld for an archive in hidden files of a watched directory.
func ReadHidden(dir string) (*View, error) {
	none := &Place{path: dir, hidden: true}
	p, err := OpenHiddenPlace(dir)
	if errors.Is(err, fs.ErrNotExist) {
		v := newView(none)
		v.place = nil
		return v, nil
	}
	if err != nil {
		return newView(none), fmt.Errorf("read archive %q: %w", none.ArchivePath(), err)
	}
	defer p.Close() //nolint:errcheck // it was only read
	v, err := p.Hold()
	v.place = nil
	return v, err
}

// Verify is Read that has bbolt check its file, too, as far as it can. The error is, or
// wraps, ErrDamaged if anything is wrong with the file.
func Verify(dir string) (*View, error) {
	return readDir(dir, func(p *Place) (*View, error) { return p.Verify() })
}

func readDir(dir string, read func(p *Place) (*View, error)) (*View, error) {
	none := &Place{path: dir}
	p, err := OpenPlace(dir)
	if errors.Is(err, fs.ErrNotExist) {
		v := newView(none)
		v.place = nil
		return v, nil
	}
	if err != nil {
		return newView(none), fmt.Errorf("read archive %q: %w", none.ArchivePath(), err)
	}
	defer p.Close() //nolint:errcheck // it was only read
	v, err := read(p)
	v.place = nil
	return v, err
}

func newView(p *Place) *View {
	return &View{Archive: New(), place: p, name: p.name(archiveName), path: p.ArchivePath()}
}

// Read returns a view of the archive of the place, empty where there is none; also of one that
// an earlier version left and TakeOver has not moved yet. For errors see Open; none is
// ErrLocked, but it may be ErrBusy. There is a view, then an empty one, with an error, too.
//
// It reads the pages of the last commit. bbolt never overwrites them before the next commit is
// done and another begins; so what was read is whole if no more than one commit was done
// meanwhile. That holds within one file: Compact puts another one in its place.
func (p *Place) Read() (*View, error) { return p.read(false, false) }

// Verify is Read that has bbolt check its file, too, as far as it can. The error is, or
// wraps, ErrDamaged if anything is wrong with the file.
func (p *Place) Verify() (*View, error) { return p.read(false, true) }

// Hold is Read for somebody who reads the files of workers, too, and must see both as they
// are at one moment. It asks the daemon that has the archive to leave it as it is, which a
// daemon heeds for a time: see Archive.Held. Whether it was heeded, View.Current tells; if not,
// Release the view and try again. One that had just begun to write when it was asked is the
// only reason for a second attempt while no reader takes longer than MaxHold.
func (p *Place) Hold() (*View, error) { return p.read(true, false) }

// Release says that the archive may be written again.
func (v *View) Release() {
	if v.held != nil {
		v.held.Close() //nolint:errcheck // it was only read
		v.held = nil
	}
}

func (p *Place) read(hold, verify bool) (*View, error) {
	v := newView(p)
	if p.hidden && !p.exists(v.name) {
		// What an earlier version left, if it is there.
		if former, err := p.former(); err == nil {
			defer former.Close() //nolint:errcheck // it was only read
			if former.exists(FileName) {
				p = former
				v.place, v.name, v.path = former, FileName, former.ArchivePath()
			}
		}
	}
	err := guard(fmt.Sprintf("read archive %q", v.path), func() error {
		c, err := v.read(hold)
		if err == nil && c != nil && verify {
			err = v.check()
		}
		if err != nil || c == nil {
			return err
		}
		return v.adopt(c)
	})
	v.place = nil
	if err != nil {
		v.Release()
		v.meta = nil
	}
	return v, err
}

// former opens the directory in which an earlier version kept its files.
func (p *Place) former() (*Place, error) {
	fd, err := unix.Openat(p.fd(), HiddenDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: p.pathOf(HiddenDir), Err: err}
	}
	path := p.pathOf(HiddenDir)
	return &Place{dir: os.NewFile(uintptr(fd), path), path: path}, nil
}

// readTries is how often an archive is read that is written meanwhile. A daemon that is asked to
// leave it as it is lets the second attempt succeed. One that does not heed that commits for
// some milliseconds at a time, with pauses in between.
const readTries = 20

// read reads the file; there are no contents if there is none.
func (v *View) read(hold bool) (*contents, error) {
	for i := range readTries {
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		c, again, err := v.once(hold)
		if !again {
			return c, err
		}
	}
	return nil, ErrBusy
}

func (v *View) once(hold bool) (c *contents, again bool, err error) {
	f, err := v.place.open(v.name, unix.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		v.meta, v.info = nil, nil
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer func() {
		if v.held != f {
			f.Close() //nolint:errcheck // it was only read
		}
	}()
	// As long as it is open, no other file can be taken for it.
	info, err := f.Stat()
	if err != nil {
		return nil, false, err
	}
	askToHold(f) // for as long as this takes, if no longer
	meta, err := metaPages(f)
	if err != nil {
		return nil, false, err
	}
	c, loadErr := load(f, info.Size())
	after, err := metaPages(f)
	if err != nil {
		return nil, false, err
	}
	there, err := v.place.leadsTo(v.name, f)
	if err != nil {
		return nil, false, err
	}
	same := there && bytes.Equal(meta, after)
	switch {
	case loadErr == nil && there && (same || c.stillWhole(after)):
		v.meta, v.info = meta, info
		if !same {
			v.meta = metaOf(c, meta, after)
		}
		if hold {
			v.Release()
			v.held = f
		}
		return c, false, nil
	case loadErr != nil && same:
		return nil, false, loadErr
	}
	return nil, true, nil
}

// stillWhole reports whether pages that were read while the meta pages became these were all
// of the commit that was read.
func (c *contents) stillWhole(meta []byte) bool {
	last, err := lastMeta(bytes.NewReader(meta))
	return err == nil && last.txid <= uint64(c.txid)+1
}

// metaOf returns the meta pages as they were when the commit that was read was the last one, as
// far as that is known: nil bytes never match those of a file, so the view is not current.
func metaOf(c *contents, before, after []byte) []byte {
	if last, err := lastMeta(bytes.NewReader(before)); err == nil && last.txid == uint64(c.txid) {
		return before
	}
	if last, err := lastMeta(bytes.NewReader(after)); err == nil && last.txid == uint64(c.txid) {
		return after
	}
	return []byte{}
}

// check has bbolt check a copy of the file. Pages that make no sense were found before: about
// those it would panic, in a goroutine of its own.
func (v *View) check() error {
	for range readTries {
		f, err := v.place.open(v.name, unix.O_RDONLY, 0)
		if err != nil {
			return err
		}
		tmp, err := v.copy(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		if tmp == nil {
			continue
		}
		db, err := openBolt(tmp, true)
		if err != nil {
			return err
		}
		defer db.Close() //nolint:errcheck // it was only read
		return db.View(check)
	}
	return ErrBusy
}

// check goes through all that bbolt has to say.
func check(tx *bolt.Tx) (err error) {
	for found := range tx.Check() {
		if err == nil { // it goes on until all is read
			err = fmt.Errorf("%w: %w", ErrDamaged, found)
		}
	}
	return err
}

// copy copies what is in use of the file, without holes, to one without a name. There is none if
// the file changed meanwhile.
func (v *View) copy(f *os.File) (tmp *os.File, err error) {
	askToHold(f)
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	meta, err := metaPages(f)
	if err != nil {
		return nil, err
	}
	last, err := lastMeta(bytes.NewReader(meta))
	if err != nil || last.high > uint64(info.Size())/pageBytes {
		return nil, nil //nolint:nilnil,nilerr // it is being written: it was good a moment ago
	}
	if tmp, err = scratch(); err != nil {
		return nil, err
	}
	size := int64(last.high) * pageBytes
	err = tmp.Truncate(size)
	for at := int64(0); at < size && err == nil; {
		from, to, dataErr := nextData(f, at)
		if dataErr != nil {
			break // there is no more than a hole
		}
		from, to = max(from, at), min(to, size)
		if from < to {
			_, err = io.Copy(io.NewOffsetWriter(tmp, from), io.NewSectionReader(f, from, to-from))
		}
		at = max(to, at+1)
	}
	after, metaErr := metaPages(f)
	if err = errors.Join(err, metaErr); err == nil && bytes.Equal(meta, after) && checkPages(tmp, size) == nil {
		return tmp, nil
	}
	return nil, errors.Join(err, tmp.Close())
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
	f, err := os.OpenFile(v.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
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

// MaxHold is how long readers can keep a daemon from writing its archive.
const MaxHold = 10 * time.Second

// Held reports whether somebody reads the archive and asks for it to be left as it is: a
// daemon then begins no fold and asks again soon. After MaxHold in one go the answer is no, until
// nobody has asked for once, so that no reader keeps files from being folded for ever. It is
// for the goroutine that commits.
func (a *Archive) Held(now time.Time) bool {
	if a.handle == nil || !askedToHold(a.handle) {
		a.heldSince = time.Time{}
		return false
	}
	if a.heldSince.IsZero() {
		a.heldSince = now
	}
	return now.Sub(a.heldSince) < MaxHold
}
