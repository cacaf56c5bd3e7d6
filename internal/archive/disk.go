package archive

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	bolt "go.etcd.io/bbolt"
)

// contents is what a file holds.
type contents struct {
	id      []byte
	txid    int    // the number of the last commit
	commit  []byte // tells it from all others
	stats   Stats
	totals  Totals
	records map[string][]float64
}

// load reads everything and checks it.
func load(tx *bolt.Tx) (*contents, error) {
	c := &contents{txid: tx.ID(), records: map[string][]float64{}}
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return nil, fmt.Errorf("%w: bucket %q is missing", ErrDamaged, bucketMeta)
	}
	version, err := unseal(metaFormat, meta.Get(metaFormat))
	if err == nil && len(version) != 4 {
		err = fmt.Errorf("%d bytes", len(version))
	}
	if err != nil {
		return nil, fmt.Errorf("%w: format: %w", ErrDamaged, err)
	}
	if v := binary.BigEndian.Uint32(version); v > Format {
		return nil, fmt.Errorf("%w: its format is %d, this program knows %d", ErrNewer, v, Format)
	}
	for _, name := range [][]byte{bucketSpaces, bucketKeys, bucketValues, bucketFolded} {
		if tx.Bucket(name) == nil {
			return nil, fmt.Errorf("%w: bucket %q is missing", ErrDamaged, name)
		}
	}
	read := func(what string, f func() error) {
		if err == nil {
			if err = f(); err != nil {
				err = fmt.Errorf("%w: %s: %w", ErrDamaged, what, err)
			}
		}
	}
	read("id", func() error {
		id, err := unseal(metaID, meta.Get(metaID))
		c.id = slices.Clone(id)
		return err
	})
	read("commit", func() error {
		commit, err := unseal(metaCommit, meta.Get(metaCommit))
		c.commit = slices.Clone(commit)
		return err
	})
	read("counters", func() error {
		data, err := unseal(metaStats, meta.Get(metaStats))
		if err != nil {
			return err
		}
		return json.Unmarshal(data, &c.stats)
	})
	byID := map[uint32]*Table{}
	read("spaces", func() error { return c.loadSpaces(tx, byID) })
	read("keys", func() error { return loadKeys(tx, byID) })
	read("values", func() error { return loadValues(tx, byID) })
	read("folded files", func() error {
		return tx.Bucket(bucketFolded).ForEach(func(k, v []byte) error {
			data, err := unseal(k, v)
			if err == nil {
				c.records[string(k)], err = readBaseline(data)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", k, err)
			}
			return nil
		})
	})
	return c, err
}

func (c *contents) loadSpaces(tx *bolt.Tx, byID map[uint32]*Table) error {
	return tx.Bucket(bucketSpaces).ForEach(func(k, v []byte) error {
		if len(k) != 4 {
			return fmt.Errorf("key of %d bytes", len(k))
		}
		id := binary.BigEndian.Uint32(k)
		data, err := unseal(k, v)
		if err != nil {
			return fmt.Errorf("space %d: %w", id, err)
		}
		space, folded, err := readSpace(data)
		if err != nil {
			return fmt.Errorf("space %d: %w", id, err)
		}
		if c.totals.tables[space] != nil || id == 0 {
			return fmt.Errorf("space %d is there twice", id)
		}
		t := c.totals.table(space)
		t.id, t.folded = id, folded
		byID[id] = t
		return nil
	})
}

// split2 reads a bucket key that key2 made.
func split2(k []byte, byID map[uint32]*Table) (*Table, uint32, error) {
	if len(k) != 8 {
		return nil, 0, fmt.Errorf("key of %d bytes", len(k))
	}
	t := byID[binary.BigEndian.Uint32(k)]
	if t == nil {
		return nil, 0, fmt.Errorf("space %d does not exist", binary.BigEndian.Uint32(k))
	}
	return t, binary.BigEndian.Uint32(k[4:]), nil
}

func loadKeys(tx *bolt.Tx, byID map[uint32]*Table) error {
	return tx.Bucket(bucketKeys).ForEach(func(k, v []byte) error {
		t, pos, err := split2(k, byID)
		if err != nil {
			return err
		}
		key, err := unseal(k, v)
		if err != nil {
			return fmt.Errorf("space %d, position %d: %w", t.id, pos, err)
		}
		if int(pos) != t.Len() {
			return fmt.Errorf("space %d: position %d follows %d keys", t.id, pos, t.Len())
		}
		if _, ok := t.keys[string(key)]; ok {
			return fmt.Errorf("space %d: key %q is there twice", t.id, key)
		}
		t.append(string(key))
		t.saved = t.Len()
		return nil
	})
}

func loadValues(tx *bolt.Tx, byID map[uint32]*Table) error {
	next := map[*Table]int{}
	err := tx.Bucket(bucketValues).ForEach(func(k, v []byte) error {
		t, chunk, err := split2(k, byID)
		if err != nil {
			return err
		}
		from := int(chunk) * chunkValues
		if from != next[t] || from >= t.Len() {
			return fmt.Errorf("space %d: chunk %d is out of place", t.id, chunk)
		}
		to := min(from+chunkValues, t.Len())
		next[t] = to
		data, err := unseal(k, v)
		if err == nil {
			err = readChunk(data, t.hi[from:to], t.second[from:to])
		}
		if err != nil {
			return fmt.Errorf("space %d, chunk %d: %w", t.id, chunk, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for id, t := range byID {
		if next[t] != t.Len() {
			return fmt.Errorf("space %d: %d values for %d keys", id, next[t], t.Len())
		}
	}
	return nil
}

// write is one commit. It changes nothing in memory.
type write struct {
	a    *Archive
	b    *Batch
	tx   *bolt.Tx
	txid int // w.tx does not know it any more when it is done
	// commit is what the file is to tell this commit by.
	commit []byte
	// tables are what the tables touched are to become: see Archive.commitDone.
	tables []*Table
	stats  Stats
}

func (w *write) run() error {
	for _, name := range [][]byte{bucketMeta, bucketSpaces, bucketKeys, bucketValues, bucketFolded} {
		if _, err := w.tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	touched := map[Space]bool{}
	for s := range w.b.totals.tables {
		touched[s] = true
	}
	for s := range w.a.unsaved.tables {
		touched[s] = true
	}
	for _, s := range slices.SortedFunc(maps.Keys(touched), compareSpaces) {
		if err := w.table(s); err != nil {
			return err
		}
	}
	for _, id := range w.a.dropped {
		if err := w.drop(id); err != nil {
			return err
		}
	}
	folded := w.tx.Bucket(bucketFolded)
	for name := range w.a.forgotten {
		if err := folded.Delete([]byte(name)); err != nil {
			return err
		}
	}
	record := func(name string, values []float64) error {
		return put(folded, []byte(name), appendBaseline(nil, values))
	}
	for name := range w.a.unsavedRecords {
		if err := record(name, w.a.records[name]); err != nil {
			return err
		}
	}
	for name, values := range w.b.records {
		if err := record(name, values); err != nil {
			return err
		}
	}
	w.stats = w.a.stats.with(w.b)
	stats, err := json.Marshal(w.stats)
	if err != nil {
		return err
	}
	meta := w.tx.Bucket(bucketMeta)
	return errors.Join(
		put(meta, metaFormat, binary.BigEndian.AppendUint32(nil, Format)),
		put(meta, metaID, slices.Clone(w.a.id)),
		put(meta, metaCommit, slices.Clone(w.commit)),
		put(meta, metaStats, stats),
	)
}

// put puts data, which it may change, and its checksum under a key.
func put(b *bolt.Bucket, key, data []byte) error { return b.Put(key, seal(key, data)) }

// table writes what the batch and the unsaved change in one table.
func (w *write) table(s Space) error {
	old := w.a.totals.tables[s]
	if old == nil {
		old = newTable(s)
	}
	t := &Table{
		space: s, keys: old.keys, id: old.id, saved: old.saved, folded: old.folded,
		raw: slices.Clip(old.raw), hi: slices.Clone(old.hi), second: slices.Clone(old.second),
	}
	dirty := map[int]bool{}
	touch := func(pos uint32) { dirty[int(pos)/chunkValues] = true }
	for pos := t.saved; pos < t.Len(); pos++ {
		touch(uint32(pos))
	}
	if u := w.a.unsaved.tables[s]; u != nil {
		for _, key := range u.raw {
			touch(t.keys[key])
		}
	}
	if b := w.b.totals.tables[s]; b != nil {
		fresh := uint32(t.Len())
		for i, key := range b.raw {
			pos, ok := t.keys[key]
			if !ok {
				pos = fresh
				fresh++
				t.raw = append(t.raw, key)
				zero := newTable(s)
				zero.append(key)
				t.hi, t.second = append(t.hi, zero.hi[0]), append(t.second, 0)
			}
			t.combine(pos, b.hi[i], b.second[i])
			touch(pos)
		}
		if b.folded.After(t.folded) {
			t.folded = b.folded
		}
	}
	spaces := w.tx.Bucket(bucketSpaces)
	if t.id == 0 {
		// Not by the bucket's own sequence, whose number no checksum covers.
		t.id = 1
		if last, _ := spaces.Cursor().Last(); last != nil {
			t.id = binary.BigEndian.Uint32(last) + 1
		}
	}
	id := binary.BigEndian.AppendUint32(nil, t.id)
	if err := put(spaces, id, appendSpace(nil, s, t.folded)); err != nil {
		return err
	}
	keys := w.tx.Bucket(bucketKeys)
	for pos := t.saved; pos < t.Len(); pos++ {
		if err := put(keys, key2(t.id, uint32(pos)), []byte(t.raw[pos])); err != nil {
			return err
		}
	}
	values := w.tx.Bucket(bucketValues)
	for _, chunk := range slices.Sorted(maps.Keys(dirty)) {
		from := chunk * chunkValues
		to := min(from+chunkValues, t.Len())
		if err := put(values, key2(t.id, uint32(chunk)), appendChunk(nil, t.hi[from:to], t.second[from:to])); err != nil {
			return err
		}
	}
	// commitDone adds the new keys to the map, which readers share until then.
	w.tables = append(w.tables, t)
	return nil
}

// drop removes a table.
func (w *write) drop(id uint32) error {
	prefix := binary.BigEndian.AppendUint32(nil, id)
	if err := w.tx.Bucket(bucketSpaces).Delete(prefix); err != nil {
		return err
	}
	for _, name := range [][]byte{bucketKeys, bucketValues} {
		c := w.tx.Bucket(name).Cursor()
		for k, _ := c.Seek(prefix); len(k) == 8 && binary.BigEndian.Uint32(k) == id; k, _ = c.Seek(prefix) {
			if err := c.Delete(); err != nil {
				return err
			}
		}
	}
	return nil
}

// The owner file tells people which process has the archive open. The lock is the truth;
// this only helps to find its holder, also from another pid namespace.
const ownerFile = "owner"

type owner struct {
	PID   int       `json:"pid"`
	Host  string    `json:"host"`
	Since time.Time `json:"since"`
}

// writeOwner says that this process has the archive. Failing to is no reason not to work.
func writeOwner(dir string) {
	host, _ := os.Hostname()
	data, err := json.Marshal(owner{os.Getpid(), host, time.Now().Truncate(time.Second)})
	if err != nil {
		return
	}
	// In one step for those who read it, and never through a link that somebody put there.
	path := filepath.Join(dir, ownerFile)
	tmp := path + ".new"
	os.Remove(tmp) //nolint:errcheck // it is seldom there
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return
	}
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp) //nolint:errcheck // see above
	}
}

// readOwner describes who has the archive.
func readOwner(dir string) string {
	var o owner
	data, err := os.ReadFile(filepath.Join(dir, ownerFile))
	if err != nil || json.Unmarshal(data, &o) != nil {
		return "another aggregatord has " + dir + " open"
	}
	return fmt.Sprintf("aggregatord with pid %d on host %s has %s open since %s", o.PID, o.Host, strings.TrimSuffix(dir, "/"), o.Since.Format(time.RFC3339))
}
