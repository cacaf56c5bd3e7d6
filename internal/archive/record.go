package archive

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A record is the values that a file had when it was folded. In memory and on disk they are
// packed, and no more than recordPart of them lie together, so that no file makes one value
// of the database that is larger than what its pages may be.
type record struct {
	// folded is when, in Unix seconds, of a record by identity; 0 of others.
	folded int64
	parts  [][]byte
	count  int
}

// recordPart is how many values are together: up to 10 pages.
const recordPart = 4096

// values unpacks them.
func (r *record) values() []float64 {
	values := make([]float64, 0, r.count)
	for _, part := range r.parts {
		var err error
		if values, err = appendValues(values, part); err != nil {
			panic("BUG: " + err.Error()) // load has read it
		}
	}
	return values
}

// recordWriter packs values one by one.
type recordWriter struct {
	part  []float64
	parts [][]byte
	count int
}

// add returns about how many bytes it took.
func (w *recordWriter) add(v float64) int64 {
	if len(w.part) == recordPart {
		w.flush()
	}
	w.part = append(w.part, v)
	w.count++
	return packedBytes(v)
}

func (w *recordWriter) flush() {
	w.parts = append(w.parts, appendBaseline(nil, w.part))
	w.part = w.part[:0]
}

func (w *recordWriter) done(folded int64) *record {
	if len(w.part) > 0 || len(w.parts) == 0 {
		w.flush()
	}
	return &record{folded: folded, parts: w.parts, count: w.count}
}

// An Identity tells a file from all others of its machine, whatever its name: device, inode and
// the time it was made in nanoseconds since 1970, 0 where the file system does not keep that.
type Identity struct {
	Dev, Ino uint64
	Born     int64
}

// A key of a record is a file's name, in which there is no byte 0, or a byte 0 and an identity.
const identityKeyBytes = 1 + 3*8

func (id Identity) key() string {
	b := make([]byte, 1, identityKeyBytes)
	b = binary.BigEndian.AppendUint64(b, id.Dev)
	b = binary.BigEndian.AppendUint64(b, id.Ino)
	return string(binary.BigEndian.AppendUint64(b, uint64(id.Born)))
}

func isIdentity(key string) bool { return len(key) == identityKeyBytes && key[0] == 0 }

func identityOf(key string) Identity {
	return Identity{
		Dev:  binary.BigEndian.Uint64([]byte(key[1:])),
		Ino:  binary.BigEndian.Uint64([]byte(key[9:])),
		Born: int64(binary.BigEndian.Uint64([]byte(key[17:]))),
	}
}

// BaselineOf is Baseline for a file that was folded by its identity.
func (a *Archive) BaselineOf(id Identity) ([]float64, bool) { return a.Baseline(id.key()) }

// ForgetIdentity is Forget for a file that was folded by its identity.
func (a *Archive) ForgetIdentity(id Identity) { a.Forget(id.key()) }

// Bounds of the records by identity, which nobody may ever ask for again. Whatever is more is
// forgotten, the oldest first: such a file would count in full if it came back.
const (
	MaxIdentities     = 4096
	MaxIdentityValues = 1 << 20
	MaxIdentityAge    = 30 * 24 * time.Hour
)

// Identities lists the files that are folded by their identities, the last first.
func (a *Archive) Identities() []Identity {
	keys := a.identityKeys()
	ids := make([]Identity, len(keys))
	for i, key := range keys {
		ids[i] = identityOf(key)
	}
	return ids
}

func (a *Archive) identityKeys() []string {
	return slices.SortedFunc(func(yield func(string) bool) {
		for key := range a.records {
			if isIdentity(key) && !yield(key) {
				return
			}
		}
	}, func(x, y string) int {
		return cmp.Or(cmp.Compare(a.records[y].folded, a.records[x].folded), strings.Compare(x, y))
	})
}

// ExpireIdentities forgets records by identity that are too old, or too many. It returns how
// many. It takes effect on disk at the next Commit.
func (a *Archive) ExpireIdentities(now time.Time) (forgotten int) {
	values := 0
	for i, key := range a.identityKeys() {
		r := a.records[key]
		values += r.count
		if i >= MaxIdentities || values > MaxIdentityValues || now.Sub(time.Unix(r.folded, 0)) > MaxIdentityAge {
			a.Forget(key)
			forgotten++
		}
	}
	return forgotten
}

// On disk a record of one part is that part, with the time before it if it is by identity. Of one
// in several parts only their number and the number of values are there, after a count of
// values of 0; the parts follow under the same key with a byte 0 and their number.

func partKey(key string, part int) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(key), 0), uint32(part))
}

func putRecord(b *bolt.Bucket, key string, r *record) error {
	if err := deleteRecord(b, key); err != nil { // it may have had more parts
		return err
	}
	var head []byte
	if isIdentity(key) {
		head = binary.BigEndian.AppendUint64(nil, uint64(r.folded))
	}
	if len(r.parts) == 1 {
		return put(b, []byte(key), append(head, r.parts[0]...))
	}
	head = binary.AppendUvarint(append(head, 0), uint64(len(r.parts)))
	if err := put(b, []byte(key), binary.AppendUvarint(head, uint64(r.count))); err != nil {
		return err
	}
	for i, part := range r.parts {
		if err := put(b, partKey(key, i), slices.Clone(part)); err != nil {
			return err
		}
	}
	return nil
}

func deleteRecord(b *bolt.Bucket, key string) error {
	if err := b.Delete([]byte(key)); err != nil {
		return err
	}
	prefix := string(append([]byte(key), 0))
	c := b.Cursor()
	for k, _ := c.Seek([]byte(prefix)); len(k) == len(prefix)+4 && string(k[:len(prefix)]) == prefix; k, _ = c.Seek([]byte(prefix)) {
		if err := c.Delete(); err != nil {
			return err
		}
	}
	return nil
}

// recordReader reads records from the elements of their bucket in order.
type recordReader struct {
	records map[string]*record
	// key and r are the one whose parts follow, as long as some are missing.
	key          string
	r            *record
	parts, count int
}

func (l *recordReader) read(k, v []byte) error {
	data, err := unseal(k, v)
	if err == nil {
		err = l.element(string(k), data)
	}
	if err != nil {
		return fmt.Errorf("record %q: %w", k, err)
	}
	return nil
}

func (l *recordReader) element(key string, data []byte) error {
	if l.r != nil {
		if want := partKey(l.key, len(l.r.parts)); key != string(want) {
			return fmt.Errorf("part %d of %q is missing", len(l.r.parts), l.key)
		}
		n, err := countValues(data)
		if err != nil {
			return err
		}
		l.r.parts = append(l.r.parts, slices.Clone(data))
		l.r.count += n
		return l.done()
	}
	r := &record{}
	switch {
	case isIdentity(key):
		if len(data) < 8 {
			return errors.New("no time")
		}
		r.folded, data = int64(binary.BigEndian.Uint64(data)), data[8:]
	case strings.ContainsRune(key, 0):
		return errors.New("a part of nothing")
	}
	if len(data) > 1 && data[0] == 0 {
		parts, n := binary.Uvarint(data[1:])
		if n <= 0 {
			return errors.New("no number of parts")
		}
		count, m := binary.Uvarint(data[1+n:])
		if m <= 0 || len(data) != 1+n+m || parts < 2 || parts > 1<<31 || count > 1<<40 {
			return errors.New("no number of values")
		}
		l.key, l.r, l.parts, l.count = key, r, int(parts), int(count)
		return nil
	}
	n, err := countValues(data)
	if err != nil {
		return err
	}
	r.parts, r.count = [][]byte{slices.Clone(data)}, n
	l.records[key] = r
	return nil
}

// done ends a record when all of its parts are there.
func (l *recordReader) done() error {
	if len(l.r.parts) < l.parts {
		return nil
	}
	if l.r.count != l.count {
		return fmt.Errorf("%d values of %d", l.r.count, l.count)
	}
	l.records[l.key] = l.r
	l.r = nil
	return nil
}

// end reports whether something is missing after the last element.
func (l *recordReader) end() error {
	if l.r != nil {
		return fmt.Errorf("record %q: parts are missing", l.key)
	}
	return nil
}
