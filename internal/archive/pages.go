package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
)

// pageBytes is the size of a page in the files we make, whatever that of the machine is.
const pageBytes = 4096

// Sizes and marks in bbolt's file (internal/common of go.etcd.io/bbolt: page.go, meta.go,
// bucket.go), which is in the byte order of the machine that wrote it.
const (
	pageHeader    = 16 // id, flags, count, overflow
	elementHeader = 16
	bucketHeader  = 16 // page of the root, sequence
	metaSummed    = 56 // bytes of a meta page that its checksum covers

	metaMagic   = 0xED0CDAED
	metaVersion = 2

	branchPage   = 0x01
	leafPage     = 0x02
	metaPage     = 0x04
	freelistPage = 0x10

	bucketElement = 0x01

	manyFree = 0xffff // in place of the count of free pages: it comes first in the list
)

// Bounds of what a file may claim. Ours stay far below them.
const (
	maxDepth    = 32
	maxOverflow = 1 << 16
)

// checkPages looks at all of a bbolt file that bbolt would believe without looking, so that
// a damaged one costs an error: bbolt itself panics, loops for ever, takes memory as a
// number on disk says, or goes on with an older state and overwrites pages in use.
//
// It holds if both meta pages are good and follow one another, each page below the mark
// that the later one sets is used exactly once, by a bucket or as a free one, and the
// elements of each page lie end to end with their keys in order. What the elements hold is
// covered by checksums of our own. Together they find any damage of one place.
//
// A bad meta page is not forgiven, although bbolt would: the other one leads to what was
// there before the last commit, and the files that this folded may be gone.
func checkPages(f io.ReaderAt, size int64) error {
	if err := checkAllPages(f, size); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return nil
}

func checkAllPages(f io.ReaderAt, size int64) error {
	last, err := lastMeta(f)
	if err != nil {
		return err
	}
	if last.high > uint64(size)/pageBytes {
		return fmt.Errorf("%d pages in %d bytes", last.high, size)
	}
	c := pageChecker{f: f, seen: make([]bool, last.high)}
	c.seen[0], c.seen[1] = true, true
	if err := c.tree(last.root, nil, nil, 0); err != nil {
		return err
	}
	if err := c.freelist(last.freelist); err != nil {
		return err
	}
	for id, seen := range c.seen {
		if !seen {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return nil
}

// meta is what a meta page says. No page from high on is in use.
type meta struct{ root, freelist, high, txid uint64 }

// lastMeta returns the meta page of the last commit, if both are good.
func lastMeta(f io.ReaderAt) (meta, error) {
	var metas [2]meta
	for i := range metas {
		var err error
		if metas[i], err = readMeta(f, i); err != nil {
			return meta{}, fmt.Errorf("meta page %d: %w", i, err)
		}
	}
	last := metas[0]
	switch metas[1].txid {
	case metas[0].txid + 1:
		last = metas[1]
	case metas[0].txid - 1:
	default:
		return meta{}, fmt.Errorf("meta pages of commits %d and %d", metas[0].txid, metas[1].txid)
	}
	if last.high < 4 {
		return meta{}, fmt.Errorf("%d pages", last.high)
	}
	return last, nil
}

func readMeta(f io.ReaderAt, at int) (m meta, err error) {
	var page [pageHeader + metaSummed + 8]byte
	if _, err := f.ReadAt(page[:], int64(at)*pageBytes); err != nil {
		return m, err
	}
	if id, flags := u64(page[:]), u16(page[8:]); id != uint64(at) || flags != metaPage {
		return m, fmt.Errorf("page %d of kind %#x", id, flags)
	}
	b := page[pageHeader:]
	h := fnv.New64a()
	h.Write(b[:metaSummed])
	m = meta{root: u64(b[16:]), freelist: u64(b[32:]), high: u64(b[40:]), txid: u64(b[48:])}
	switch {
	case u32(b) != metaMagic:
		return m, errors.New("not of a bbolt file")
	case h.Sum64() != u64(b[metaSummed:]):
		return m, errChecksum
	case u32(b[4:]) != metaVersion || u32(b[8:]) != pageBytes:
		return m, fmt.Errorf("version %d with pages of %d bytes", u32(b[4:]), u32(b[8:]))
	case m.txid%2 != uint64(at):
		return m, fmt.Errorf("of commit %d", m.txid)
	}
	return m, nil
}

func u16(b []byte) uint16 { return binary.LittleEndian.Uint16(b) }
func u32(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }
func u64(b []byte) uint64 { return binary.LittleEndian.Uint64(b) }

// pageChecker walks through a file.
type pageChecker struct {
	f    io.ReaderAt
	seen []bool // by page
}

// use reads a page, with those that continue it, and marks it as seen.
func (c *pageChecker) use(id uint64) ([]byte, error) {
	var header [pageHeader]byte
	if id >= uint64(len(c.seen)) {
		return nil, fmt.Errorf("page %d of %d", id, len(c.seen))
	}
	if _, err := c.f.ReadAt(header[:], int64(id)*pageBytes); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	overflow := uint64(u32(header[12:]))
	if u64(header[:]) != id || overflow > maxOverflow {
		return nil, fmt.Errorf("page %d says it is %d with %d more", id, u64(header[:]), overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if err := c.mark(i); err != nil {
			return nil, err
		}
	}
	data := make([]byte, (overflow+1)*pageBytes)
	if _, err := c.f.ReadAt(data, int64(id)*pageBytes); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return data, nil
}

func (c *pageChecker) mark(id uint64) error {
	if id >= uint64(len(c.seen)) {
		return fmt.Errorf("page %d of %d", id, len(c.seen))
	}
	if c.seen[id] {
		return fmt.Errorf("page %d is used twice", id)
	}
	c.seen[id] = true
	return nil
}

// tree checks the page and what is below it. Keys must be at least from and less than to,
// where they are not nil.
func (c *pageChecker) tree(id uint64, from, to []byte, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("page %d: too deep", id)
	}
	page, err := c.use(id)
	if err != nil {
		return err
	}
	if u16(page[10:]) == 0 {
		return fmt.Errorf("page %d is empty", id) // the buckets are made with the file
	}
	if _, err := c.elements(page, from, to, depth); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements checks the elements of a page and returns where the last one ends.
func (c *pageChecker) elements(page, from, to []byte, depth int) (end int, err error) {
	flags, count := u16(page[8:]), int(u16(page[10:]))
	if flags != branchPage && flags != leafPage {
		return 0, fmt.Errorf("kind %#x", flags)
	}
	end = pageHeader + count*elementHeader
	if end > len(page) {
		return 0, fmt.Errorf("%d elements in %d bytes", count, len(page))
	}
	// A branch element is followed by its key, a leaf element by key and value.
	children := make([]uint64, 0, count)
	keys := make([][]byte, 0, count)
	for i := range count {
		at := pageHeader + i*elementHeader
		e := page[at : at+elementHeader]
		pos, key, value := u32(e), u32(e[4:]), uint32(0)
		if flags == leafPage {
			pos, key, value = u32(e[4:]), u32(e[8:]), u32(e[12:])
		}
		if uint64(at)+uint64(pos) != uint64(end) || key == 0 || uint64(end)+uint64(key)+uint64(value) > uint64(len(page)) {
			return 0, fmt.Errorf("element %d is out of place", i)
		}
		k := page[end : end+int(key)]
		v := page[end+int(key) : end+int(key)+int(value)]
		end += int(key) + int(value)
		if i > 0 {
			if bytes.Compare(keys[i-1], k) >= 0 {
				return 0, fmt.Errorf("element %d is out of order", i)
			}
		} else if from != nil && bytes.Compare(from, k) > 0 {
			return 0, errors.New("the first key belongs further ahead")
		}
		keys = append(keys, k)
		if flags == branchPage {
			children = append(children, u64(e[8:]))
			continue
		}
		switch u32(e) {
		case 0:
		case bucketElement:
			if err := c.bucket(v, depth); err != nil {
				return 0, fmt.Errorf("bucket %q: %w", k, err)
			}
		default:
			return 0, fmt.Errorf("element %d is of kind %#x", i, u32(e))
		}
	}
	if count > 0 && to != nil && bytes.Compare(keys[count-1], to) >= 0 {
		return 0, errors.New("the last key belongs further behind")
	}
	for i, child := range children {
		below := to
		if i+1 < count {
			below = keys[i+1]
		}
		if err := c.tree(child, keys[i], below, depth+1); err != nil {
			return 0, err
		}
	}
	return end, nil
}

// bucket checks a bucket, given the value that stands for it: a small one is all in there.
func (c *pageChecker) bucket(v []byte, depth int) error {
	if len(v) < bucketHeader {
		return fmt.Errorf("%d bytes", len(v))
	}
	root := u64(v)
	if root != 0 {
		if len(v) != bucketHeader {
			return fmt.Errorf("%d bytes", len(v))
		}
		return c.tree(root, nil, nil, depth+1)
	}
	page := v[bucketHeader:]
	if len(page) < pageHeader || u64(page) != 0 || u16(page[8:]) != leafPage || u32(page[12:]) != 0 || depth > maxDepth {
		return errors.New("no page")
	}
	end, err := c.elements(page, nil, nil, depth+1)
	if err == nil && end != len(page) {
		err = fmt.Errorf("%d bytes for elements of %d", len(page), end)
	}
	return err
}

// freelist marks the free pages as seen.
func (c *pageChecker) freelist(id uint64) error {
	page, err := c.use(id)
	if err != nil {
		return fmt.Errorf("list of free pages: %w", err)
	}
	ids := page[pageHeader:]
	count := uint64(u16(page[10:]))
	if count == manyFree {
		count, ids = u64(ids), ids[8:]
	}
	if flags := u16(page[8:]); flags != freelistPage || count > uint64(len(ids)/8) {
		return fmt.Errorf("list of free pages: page %d of kind %#x with %d", id, flags, count)
	}
	for i := range count {
		if err := c.mark(u64(ids[8*i:])); err != nil {
			return fmt.Errorf("list of free pages: %w", err)
		}
	}
	return nil
}
