package mirror

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"aggregatord/internal/merge"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// A total is one mirror file, open for writing.
type total struct {
	base string
	typ  metric.Type
	mode metric.Mode
	w    *store.Writer
	// refused are keys that no reader understands: they stay out.
	refused map[string]bool
}

// baseOf returns the name of the mirror file for the values of a worker's file.
func baseOf(name store.SourceName, width int) string {
	id := idWide
	if width == store.Narrow {
		id = idNarrow
	}
	// What is before the ID is as the client spells it: latest or mostrecent.
	return strings.TrimSuffix(name.Base, name.ID+store.Extension) + id + store.Extension
}

// openTotal opens a mirror file, and makes one that has owner and mode of the file that is open as
// like if there is none.
func (m *Mirror) openTotal(base string, name store.SourceName, opt store.WriterOptions, like int) (*total, error) {
	path := filepath.Join(m.path, base)
	t := &total{base: base, typ: name.Type, mode: name.Mode, refused: map[string]bool{}}
	h, err := m.head(base)
	switch {
	case err == nil && h.Tag == FileTag:
		if t.w, err = store.OpenWriter(path, opt); err == nil {
			return t, nil
		}
		// What is in it no client can read either.
		m.opts.Logf("mirror file is damaged and begun anew", err)
		if err := unix.Unlinkat(m.dir, base, 0); err != nil {
			return nil, fmt.Errorf("remove mirror file %q: %w", path, err)
		}
	case err == nil || !errors.Is(err, fs.ErrNotExist):
		return nil, errors.Join(fmt.Errorf("make mirror file %q: another file has its name", path), err)
	}
	temp := Prefix + base + tempSuffix
	unix.Unlinkat(m.dir, temp, 0) //nolint:errcheck // of a start that has crashed
	opt.Tag = FileTag
	if t.w, err = store.OpenWriter(filepath.Join(m.path, temp), opt); err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err = unix.Fstat(like, &st); err == nil {
		// Only root may give files away; who shares a group needs no more than the mode.
		unix.Fchown(t.w.Fd(), int(st.Uid), int(st.Gid))          //nolint:errcheck // see above
		err = unix.Fchmod(t.w.Fd(), uint32(st.Mode&0o666|0o600)) //nolint:unconvert // Mode is a uint16 on macOS
	}
	if err == nil {
		err = unix.Linkat(m.dir, temp, m.dir, base, 0) // replaces nothing
	}
	err = errors.Join(err, unix.Unlinkat(m.dir, temp, 0))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make mirror file %q: %w", path, err), t.w.Close())
	}
	return t, nil
}

// gone reports whether somebody has removed the file.
func (t *total) gone() bool {
	var st unix.Stat_t
	return unix.Fstat(t.w.Fd(), &st) != nil || st.Nlink == 0
}

func (t *total) sums() bool { return merge.Zero(t.typ, t.mode) == 0 }

// slot returns the handle of an entry, which it makes so that no total changes.
func (t *total) slot(key []byte, value, stamp, none float64) (slot int, ok bool, err error) {
	if !t.w.Has(key) {
		if t.refused[string(key)] {
			return 0, false, nil
		}
		if _, err := store.ParseKey(key); err != nil {
			t.refused[string(key)] = true
			return 0, false, nil
		}
	}
	switch {
	case t.sums():
		slot, err = t.w.SlotWith(key, 0, none)
	case t.mode.Base() == metric.MostRecent:
		slot, err = t.w.SlotWith(key, value, stamp)
	default:
		slot, err = t.w.SlotWith(key, value, none)
	}
	return slot, err == nil, err
}

// combine returns what an entry is with another value.
func (t *total) combine(old, value entry) entry {
	v, stamp := merge.Combine(t.typ, t.mode, old.Value, old.Stamp, value.Value, value.Stamp)
	switch {
	case t.mode.Base() == metric.MostRecent:
		return entry{old.Slot, v, stamp}
	case math.IsNaN(v):
		return old
	}
	return entry{old.Slot, v, old.Stamp}
}

// an entry of a mirror file.
type entry struct {
	Slot         int
	Value, Stamp float64
}

func (t *total) entry(slot int) entry {
	e := entry{slot, t.w.Value(slot), t.w.Stamp(slot)}
	if t.sums() {
		e.Stamp = 0 // the rounding error that Combine would carry
	}
	return e
}

// none is the timestamp that stands for none in an entry.
func (t *total) set(e entry, none float64) {
	if t.mode.Base() != metric.MostRecent {
		e.Stamp = none
	}
	t.w.Set(e.Slot, e.Value, e.Stamp)
}

// sourceFiles lists the mirror files of the directory that is open as dir.
func sourceFiles(dir int, path string) ([]string, error) {
	names, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, n := range names {
		if Is(dir, n.Name()) {
			found = append(found, n.Name())
		}
	}
	return found, nil
}
