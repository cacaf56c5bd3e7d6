package mirror

import (
	"bytes"
	"encoding/gob"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

// A journal says what a move was about to do. It outlives a killed daemon, not a machine that went
// down: then its workers are gone, too, and clients make nothing durable either.
type journal struct {
	Before []journalBefore
	Files  []journalFile
}

// journalBefore is what entries of a mirror file were.
type journalBefore struct {
	Base    string
	Type    metric.Type
	Mode    metric.Mode
	NoStamp float64
	Entries []entry
}

// journalFile is what a worker's file gives.
type journalFile struct {
	Record string
	Gives  []journalGives
}

type journalGives struct {
	Base    string
	Entries []entry
}

func (m *Mirror) writeJournal(p plan) error {
	var b bytes.Buffer
	if err := gob.NewEncoder(&b).Encode(p.journal); err != nil {
		return fmt.Errorf("write journal of mirror: %w", err)
	}
	temp := filepath.Join(m.path, journalName+tempSuffix)
	err := os.WriteFile(temp, b.Bytes(), 0o600)
	if err == nil {
		err = unix.Renameat(m.dir, journalName+tempSuffix, m.dir, journalName)
	}
	if err != nil {
		unix.Unlinkat(m.dir, journalName+tempSuffix, 0) //nolint:errcheck // it is written over next time
		return fmt.Errorf("write journal of mirror: %w", err)
	}
	return nil
}

func (m *Mirror) removeJournal() {
	if err := unix.Unlinkat(m.dir, journalName, 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.opts.Logf("journal of mirror cannot be removed", err)
	}
}

// recover ends the move that the journal is of, file by file: one that was drained, or can be now, is
// in the mirror, another one is not.
func (m *Mirror) recover() error {
	raw, err := os.ReadFile(filepath.Join(m.path, journalName))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read journal of mirror: %w", err)
	}
	var j journal
	if err := gob.NewDecoder(bytes.NewReader(raw)).Decode(&j); err != nil {
		m.opts.Logf("journal of mirror cannot be read", err)
		m.removeJournal()
		return nil
	}
	totals := map[string]*total{}
	defer m.closeTotals() //nolint:errcheck // see below
	for _, b := range j.Before {
		t, err := m.reopen(b)
		if err != nil {
			// Somebody has removed it, and with it what the journal is about.
			m.opts.Logf("mirror file of the journal is missing", err)
			m.removeJournal()
			return nil
		}
		m.totals[b.Base], totals[b.Base] = t, t
	}
	values := map[string]map[int]entry{}
	for _, b := range j.Before {
		values[b.Base] = map[int]entry{}
		for _, e := range b.Entries {
			values[b.Base][e.Slot] = e
		}
	}
	for _, f := range j.Files {
		if !m.drained(f.Record) {
			continue
		}
		for _, g := range f.Gives {
			for _, e := range g.Entries {
				values[g.Base][e.Slot] = totals[g.Base].combine(values[g.Base][e.Slot], e)
			}
		}
	}
	for _, b := range j.Before {
		for _, e := range values[b.Base] {
			totals[b.Base].set(e, b.NoStamp)
		}
	}
	m.removeJournal()
	return nil
}

// reopen opens a mirror file of a journal, and checks that all entries are there.
func (m *Mirror) reopen(b journalBefore) (*total, error) {
	h, err := store.ReadHeadAt(m.dir, b.Base)
	if err != nil {
		return nil, err
	}
	width := store.Wide
	if strings.HasSuffix(b.Base, "_"+idNarrow+store.Extension) {
		width = store.Narrow
	}
	for _, e := range b.Entries {
		if int64(e.Slot)*8+int64(width) > h.UsedBytes || h.Tag != FileTag {
			return nil, fmt.Errorf("%q has not the entries of the journal", b.Base)
		}
	}
	w, err := store.OpenWriter(filepath.Join(m.path, b.Base), store.WriterOptions{Width: width, NoStamp: b.NoStamp})
	if err != nil {
		return nil, err
	}
	return &total{base: b.Base, typ: b.Type, mode: b.Mode, w: w}, nil
}

// drained reports whether a file was drained, or drains it if nobody can write to it.
func (m *Mirror) drained(record string) bool {
	hidden := m.opts.Hidden(record)
	fd, err := unix.Openat(m.dir, hidden, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		// It is removed only when it was drained.
		return errors.Is(err, fs.ErrNotExist)
	}
	defer unix.Close(fd) //nolint:errcheck // what was written is in memory
	if h, err := store.ReadHead(fd); err == nil && h.Tag == Tag(record, true) {
		return true
	}
	granted, err := watch.TryWriteLease(fd)
	return err == nil && granted && store.Drain(fd, Tag(record, true)) == nil
}
