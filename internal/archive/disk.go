package archive

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// contents is what a file holds.
type contents struct {
	id      []byte
	txid    int    // the number of the last commit
	commit  []byte // tells it from all others
	stats   Stats
	totals  Totals
	records map[string]*record
}

// load reads everything in a file of this size and checks it, its pages, too. It does not read
// with bbolt: each page is read once, so what was checked is what is believed.
func load(f io.ReaderAt, size int64) (*contents, error) {
	c := &contents{}
	s, err := readPages(f, size, c.load)
	if err != nil {
		return nil, err
	}
	c.txid = int(s.txid)
	return c, nil
}

func (c *contents) load(r *pageReader, s *structure) error {
	if err := c.loadMeta(r, s); err != nil {
		return err
	}
	byID := map[uint32]*Table{}
	records := recordReader{records: map[string]*record{}}
	for _, step := range []struct {
		bucket []byte
		what   string
		visit  visit
		end    func() error
	}{
		{bucketSpaces, "spaces", func(k, v []byte) error { return c.loadSpace(k, v, byID) }, nil},
		{bucketKeys, "keys", func(k, v []byte) error { return loadKey(k, v, byID) }, func() error { return indexKeys(byID) }},
		{bucketValues, "values", valueLoader(byID), func() error { return allValues(byID) }},
		{bucketFolded, "folded files", records.read, records.end},
	} {
		b := s.find(step.bucket)
		if b == nil {
			return fmt.Errorf("bucket %q is missing", step.bucket)
		}
		err := r.bucket(b, step.visit)
		if err == nil && step.end != nil {
			err = step.end()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	c.records = records.records
	return nil
}

// mostMeta is how many bytes there are of anything in the bucket meta.
const mostMeta = 4096

func (c *contents) loadMeta(r *pageReader, s *structure) error {
	b := s.find(bucketMeta)
	if b == nil {
		return fmt.Errorf("bucket %q is missing", bucketMeta)
	}
	found := map[string][]byte{}
	if err := r.bucket(b, func(k, v []byte) error {
		for _, known := range [][]byte{metaFormat, metaID, metaCommit, metaStats} {
			if bytes.Equal(k, known) && len(v) <= mostMeta {
				found[string(k)] = slices.Clone(v)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	version, err := unseal(metaFormat, found[string(metaFormat)])
	if err == nil && len(version) != 4 {
		err = fmt.Errorf("%d bytes", len(version))
	}
	if err != nil {
		return fmt.Errorf("format: %w", err)
	}
	if v := binary.BigEndian.Uint32(version); v > Format {
		return fmt.Errorf("%w: its format is %d, this program knows %d", ErrNewer, v, Format)
	}
	if c.id, err = unseal(metaID, found[string(metaID)]); err != nil {
		return fmt.Errorf("id: %w", err)
	}
	if c.commit, err = unseal(metaCommit, found[string(metaCommit)]); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	stats, err := unseal(metaStats, found[string(metaStats)])
	if err == nil {
		err = json.Unmarshal(stats, &c.stats)
	}
	if err != nil {
		return fmt.Errorf("counters: %w", err)
	}
	return nil
}

func (c *contents) loadSpace(k, v []byte, byID map[uint32]*Table) error {
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

func loadKey(k, v []byte, byID map[uint32]*Table) error {
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
	t.keys.appendUnindexed(key)
	return nil
}

// indexKeys ends the reading of keys.
func indexKeys(byID map[uint32]*Table) error {
	for _, t := range byID {
		if pos, unique := t.keys.indexAll(t.Len()); !unique {
			return fmt.Errorf("space %d: key %q is there twice", t.id, t.Key(int(pos)))
		}
		t.saved = t.Len()
		t.hi, t.second = make([]float64, t.Len()), make([]float64, t.Len())
	}
	return nil
}

// valueLoader returns what reads a chunk. Chunks come in order, one table after the other.
func valueLoader(byID map[uint32]*Table) visit {
	var of *Table
	next := 0
	return func(k, v []byte) error {
		t, chunk, err := split2(k, byID)
		if err != nil {
			return err
		}
		if t != of {
			if of != nil && next != of.Len() {
				return fmt.Errorf("space %d: %d values for %d keys", of.id, next, of.Len())
			}
			of, next = t, 0
		}
		from := int(chunk) * chunkValues
		if from != next || from >= t.Len() {
			return fmt.Errorf("space %d: chunk %d is out of place", t.id, chunk)
		}
		next = min(from+chunkValues, t.Len())
		data, err := unseal(k, v)
		if err == nil {
			err = readChunk(data, t.hi[from:next], t.second[from:next])
		}
		if err != nil {
			return fmt.Errorf("space %d, chunk %d: %w", t.id, chunk, err)
		}
		t.loaded = next
		return nil
	}
}

// allValues ends the reading of values.
func allValues(byID map[uint32]*Table) error {
	for _, t := range byID {
		if t.loaded != t.Len() {
			return fmt.Errorf("space %d: %d values for %d keys", t.id, t.loaded, t.Len())
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
	// tables are what is to become of the tables touched: see Archive.commitDone.
	tables []tableWrite
	// records are the keys of the records that were written.
	records map[string]bool
	stats   Stats
}

// A tableWrite is what a commit changes in one table: some values, and keys at its end.
type tableWrite struct {
	space Space
	id    uint32
	// chunks are those written; length is how many keys there are now.
	chunks []int
	length int
	change
}

// A change is values by position, in order. The last of them are new, with these keys.
type change struct {
	pos        []uint32
	hi, second []float64
	keys       []string
	now        *Batch
}

func (w *write) run() error {
	for _, name := range allBuckets {
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
	if w.a.unsavedAll {
		for s := range w.a.totals.tables {
			touched[s] = true
		}
	}
	doubts := map[Space]*tableWrite{}
	if d := w.a.doubt; d != nil {
		for i := range d.tables {
			doubts[d.tables[i].space] = &d.tables[i]
			touched[d.tables[i].space] = true
		}
	}
	for _, s := range slices.SortedFunc(maps.Keys(touched), compareSpaces) {
		if err := w.table(s, doubts[s]); err != nil {
			return err
		}
	}
	for _, id := range w.a.dropped {
		if err := w.drop(id); err != nil {
			return err
		}
	}
	if err := w.folded(); err != nil {
		return err
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

// folded writes the records.
func (w *write) folded() error {
	folded := w.tx.Bucket(bucketFolded)
	if w.a.doubt != nil {
		for key := range w.a.doubt.records {
			if r := w.a.records[key]; r != nil { // it may have been written over
				if err := putRecord(folded, key, r); err != nil {
					return err
				}
			} else if err := deleteRecord(folded, key); err != nil {
				return err
			}
		}
	}
	for key := range w.a.forgotten {
		if err := deleteRecord(folded, key); err != nil {
			return err
		}
	}
	w.records = map[string]bool{}
	for key := range w.a.unsavedRecords {
		w.records[key] = true
		if err := putRecord(folded, key, w.a.records[key]); err != nil {
			return err
		}
	}
	for key, r := range w.b.records {
		w.records[key] = true
		if err := putRecord(folded, key, r); err != nil {
			return err
		}
	}
	return nil
}

// and returns what either of two commits in doubt may have left.
func (w *write) and(other *write) *write {
	sum := &write{tables: slices.Clone(w.tables), records: w.records}
	if sum.records == nil {
		sum.records = map[string]bool{}
	}
	if other == nil {
		return sum
	}
	maps.Copy(sum.records, other.records)
	for _, o := range other.tables {
		i := slices.IndexFunc(sum.tables, func(t tableWrite) bool { return t.space == o.space })
		if i < 0 {
			sum.tables = append(sum.tables, o)
			continue
		}
		t := &sum.tables[i]
		t.chunks = append(slices.Clone(t.chunks), o.chunks...)
		t.length = max(t.length, o.length)
	}
	return sum
}

// put puts data, which it may change, and its checksum under a key.
func put(b *bolt.Bucket, key, data []byte) error { return b.Put(key, seal(key, data)) }

// table writes what the batch and the unsaved change in one table, and over what a commit in
// doubt may have changed.
func (w *write) table(s Space, doubt *tableWrite) error {
	t := w.a.totals.tables[s]
	fresh := w.b.totals.tables[s]
	if doubt != nil && (t == nil || t.id != doubt.id) {
		// It made the table, or the table was dropped since: nothing in memory has its number.
		if err := w.drop(doubt.id); err != nil {
			return err
		}
		doubt = nil
	}
	if t == nil {
		if fresh == nil {
			return nil
		}
		t = newTable(s)
	}
	tw := tableWrite{space: s, id: t.id, change: changeOf(t, fresh, w.b)}
	tw.length = t.Len() + len(tw.keys)
	dirty := map[int]bool{}
	touch := func(pos int) { dirty[pos/chunkValues] = true }
	for pos := t.saved; pos < tw.length; pos += chunkValues {
		touch(pos)
	}
	if t.saved < tw.length {
		touch(tw.length - 1)
	}
	if u := w.a.unsaved.tables[s]; u != nil {
		var raw []byte
		for i := range u.Len() {
			raw = u.AppendKey(raw[:0], i)
			if pos, ok := t.keys.find(raw); ok {
				touch(int(pos))
			}
		}
	}
	for _, pos := range tw.pos {
		touch(int(pos))
	}
	keys, values := w.tx.Bucket(bucketKeys), w.tx.Bucket(bucketValues)
	if doubt != nil {
		for _, chunk := range doubt.chunks {
			dirty[chunk] = true
		}
		for pos := tw.length; pos < doubt.length; pos++ {
			if err := keys.Delete(key2(t.id, uint32(pos))); err != nil {
				return err
			}
		}
	}
	spaces := w.tx.Bucket(bucketSpaces)
	if tw.id == 0 {
		tw.id = freeSpaceID(spaces)
	}
	folded := t.folded
	if fresh != nil && fresh.folded.After(folded) {
		folded = fresh.folded
	}
	if err := put(spaces, binary.BigEndian.AppendUint32(nil, tw.id), appendSpace(nil, s, folded)); err != nil {
		return err
	}
	for pos := t.saved; pos < tw.length; pos++ {
		key := ""
		if pos < t.Len() {
			key = t.Key(pos)
		} else {
			key = tw.keys[pos-t.Len()]
		}
		if err := put(keys, key2(tw.id, uint32(pos)), []byte(key)); err != nil {
			return err
		}
	}
	tw.chunks = slices.Sorted(maps.Keys(dirty))
	for _, chunk := range tw.chunks {
		from := chunk * chunkValues
		if from >= tw.length { // only of a commit in doubt
			if err := values.Delete(key2(tw.id, uint32(chunk))); err != nil {
				return err
			}
			continue
		}
		var hi, second [chunkValues]float64
		n := tw.fill(t, from, hi[:], second[:])
		if err := put(values, key2(tw.id, uint32(chunk)), appendChunk(nil, hi[:n], second[:n])); err != nil {
			return err
		}
	}
	// commitDone adds the new keys to the table, which readers share until then.
	w.tables = append(w.tables, tw)
	return nil
}

// freeSpaceID returns a number that no space on disk has: not by the bucket's own sequence, which
// no checksum covers. In an archive that somebody made, the last number may be the greatest that
// there is; then a gap is looked for.
func freeSpaceID(spaces *bolt.Bucket) uint32 {
	c := spaces.Cursor()
	last, _ := c.Last()
	if last == nil {
		return 1
	}
	if id := binary.BigEndian.Uint32(last); id < math.MaxUint32 {
		return id + 1
	}
	id := uint32(1)
	for k, _ := c.First(); k != nil && binary.BigEndian.Uint32(k) == id; k, _ = c.Next() {
		id++
	}
	return id
}

// changeOf returns what a batch changes in a table.
func changeOf(t, fresh *Table, b *Batch) change {
	var c change
	if fresh == nil {
		return c
	}
	c.now = b
	type at struct{ pos, in uint32 }
	order := make([]at, fresh.Len())
	var raw []byte
	for i := range order {
		raw = fresh.AppendKey(raw[:0], i)
		pos, ok := t.keys.find(raw)
		if !ok {
			pos = uint32(t.Len() + len(c.keys))
			c.keys = append(c.keys, string(raw))
		}
		order[i] = at{pos, uint32(i)}
	}
	slices.SortFunc(order, func(a, b at) int { return int(a.pos) - int(b.pos) })
	zero := t.space.zero()
	for _, o := range order {
		hi, second := zero, 0.0
		if int(o.pos) < t.Len() {
			hi, second = t.hi[o.pos], t.second[o.pos]
		}
		hi, second = t.space.combine(hi, second, fresh.hi[o.in], fresh.second[o.in])
		c.pos, c.hi, c.second = append(c.pos, o.pos), append(c.hi, hi), append(c.second, second)
	}
	return c
}

// fill fills in the values of a chunk as they are to be and returns how many there are.
func (w *tableWrite) fill(t *Table, from int, hi, second []float64) (n int) {
	to := min(from+chunkValues, w.length)
	if from < t.Len() {
		copy(hi, t.hi[from:min(to, t.Len())])
		copy(second, t.second[from:min(to, t.Len())])
	}
	i, _ := slices.BinarySearch(w.pos, uint32(from))
	for ; i < len(w.pos) && int(w.pos[i]) < to; i++ {
		hi[int(w.pos[i])-from], second[int(w.pos[i])-from] = w.hi[i], w.second[i]
	}
	return to - from
}

// apply makes the table in memory what was written.
func (w *tableWrite) apply(totals *Totals) {
	t := totals.table(w.space)
	for _, key := range w.keys {
		t.append([]byte(key))
	}
	for i, pos := range w.pos {
		t.hi[pos], t.second[pos], t.changed = w.hi[i], w.second[i], true
	}
	if w.now != nil {
		if folded := w.now.totals.tables[w.space].folded; folded.After(t.folded) {
			t.folded = folded
		}
	}
	t.id, t.saved = w.id, t.Len()
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
