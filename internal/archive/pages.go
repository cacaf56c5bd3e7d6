package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// pageBytes is the size of a page in the files we make, whatever that of the machine is.
const pageBytes = 4096

// layoutOf is the version of bbolt whose layout this file knows. Before it is raised, compare
// internal/common of the two versions.
const layoutOf = "v1.5.0"

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
	// holeFactor is how many pages in use there may be for one that is really there: a copy of an
	// archive may have holes where pages are all zeros.
	holeFactor = 4
	// spareHoles is how many more there may be in any file.
	spareHoles = 64
)

// structure is what checkPages has found: where the buckets of a file begin.
type structure struct {
	meta
	buckets []bucketRef
}

// bucketRef is a bucket: the page of its root, or all of it if root is 0.
type bucketRef struct {
	name   string
	root   uint64
	inline []byte
}

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
//
// The file may be made by somebody. So each page is read once, and what it holds is given to
// load in the same breath; time and memory are bounded by what is really there of the file, in
// which holes do not count.
func checkPages(f io.ReaderAt, size int64) error {
	_, err := readPages(f, size, func(*pageReader, *structure) error { return nil })
	return err
}

// readPages is checkPages. Before it looks for pages that are not used it has load read
// what it likes of the buckets.
func readPages(f io.ReaderAt, size int64, load func(r *pageReader, s *structure) error) (*structure, error) {
	s, err := readAllPages(f, size, load)
	if err != nil && !errors.Is(err, ErrNewer) {
		err = fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	return s, err
}

func readAllPages(f io.ReaderAt, size int64, load func(r *pageReader, s *structure) error) (*structure, error) {
	s := &structure{}
	r, err := newPageReader(f, size, s)
	if err != nil {
		return nil, err
	}
	if err := r.root(s); err != nil {
		return nil, err
	}
	if err := load(r, s); err != nil {
		return nil, err
	}
	for i := range s.buckets { // those that load has not read
		if err := r.bucket(&s.buckets[i], nil); err != nil {
			return nil, err
		}
	}
	if err := r.freelist(s.freelist); err != nil {
		return nil, err
	}
	return s, r.allSeen()
}

// newPageReader reads the meta pages.
func newPageReader(f io.ReaderAt, size int64, s *structure) (*pageReader, error) {
	var err error
	if s.meta, err = lastMeta(f); err != nil {
		return nil, err
	}
	if s.high > uint64(size)/pageBytes {
		return nil, fmt.Errorf("%d pages in %d bytes", s.high, size)
	}
	// Before memory is taken for so many.
	if there := dataPages(f, int64(s.high)*pageBytes); s.high > holeFactor*there+spareHoles {
		return nil, fmt.Errorf("%d pages, of which no more than %d are there", s.high, there)
	}
	r := &pageReader{f: f, high: s.high, seen: make([]uint64, (s.high+63)/64)}
	r.seen[0] |= 1<<0 | 1<<1
	return r, nil
}

// dataPages returns how many pages of the first so many bytes of a file are not in holes, as
// far as the file system tells; enough to be believed is as good as all.
func dataPages(f io.ReaderAt, bytes int64) (pages uint64) {
	file, ok := f.(*os.File)
	if !ok {
		return uint64(bytes / pageBytes)
	}
	for at := int64(0); at < bytes; {
		from, to, err := nextData(file, at)
		if err != nil {
			return pages // there is none any more
		}
		if from, to = max(from, at), min(to, bytes); from < to {
			pages += uint64((to - from + pageBytes - 1) / pageBytes)
		}
		if holeFactor*pages >= uint64(bytes/pageBytes) {
			break
		}
		at = max(to, at+1)
	}
	return pages
}

// checkBranches looks at what bbolt follows when it writes: the meta pages, all branch pages and
// the heads of leaf pages. It is for a file that was good and in which somebody may have
// stored something through a mapping since, which no time of the file shows: a cycle of pages
// would overflow bbolt's stack, and a page that says it has a billion more keeps it busy for
// hours. Who stores something between this look and bbolt's can still do harm. Only an archive
// where nobody else can write is safe from that.
func checkBranches(f io.ReaderAt, size int64) error {
	s := &structure{}
	r, err := newPageReader(f, size, s)
	if err == nil {
		r.headsOnly = true
		if err = r.root(s); err == nil {
			for i := range s.buckets {
				if err = r.bucket(&s.buckets[i], nil); err != nil {
					break
				}
			}
		}
	}
	if err == nil {
		err = r.freelist(s.freelist)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
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

// pageReader reads the pages of a file, each once.
type pageReader struct {
	f    io.ReaderAt
	high uint64
	seen []uint64 // a bit a page
	// headsOnly leaves out what is in leaf pages of buckets.
	headsOnly bool
	// pages are the pages that lead to the one in hand, by depth, and that one. They are used
	// again for others.
	pages [][]byte
}

// visit is called with each element of a bucket in order. It must not keep key and value.
type visit func(k, v []byte) error

// use reads a page, with those that continue it, and marks it as seen. The bytes are good until
// the next page of this depth is read.
func (r *pageReader) use(id uint64, depth int) ([]byte, error) {
	if id >= r.high {
		return nil, fmt.Errorf("page %d of %d", id, r.high)
	}
	if depth > maxDepth {
		return nil, fmt.Errorf("page %d: too deep", id)
	}
	for len(r.pages) <= depth {
		r.pages = append(r.pages, nil)
	}
	page := r.pages[depth]
	if cap(page) < pageBytes {
		page = make([]byte, pageBytes)
	}
	page = page[:pageBytes]
	r.pages[depth] = page
	if _, err := r.f.ReadAt(page, int64(id)*pageBytes); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	overflow := uint64(u32(page[12:]))
	if u64(page) != id || overflow > maxOverflow || id+overflow >= r.high {
		return nil, fmt.Errorf("page %d says it is %d with %d more", id, u64(page), overflow)
	}
	for i := id; i <= id+overflow; i++ {
		if err := r.mark(i); err != nil {
			return nil, err
		}
	}
	if overflow == 0 || r.headsOnly && u16(page[8:]) == leafPage {
		return page, nil
	}
	if size := int(overflow+1) * pageBytes; cap(page) < size {
		page = append(make([]byte, 0, size), page...)
	}
	page = page[:(overflow+1)*pageBytes]
	r.pages[depth] = page
	if _, err := r.f.ReadAt(page[pageBytes:], int64(id+1)*pageBytes); err != nil {
		return nil, fmt.Errorf("page %d: %w", id, err)
	}
	return page, nil
}

func (r *pageReader) mark(id uint64) error {
	if id >= r.high {
		return fmt.Errorf("page %d of %d", id, r.high)
	}
	if r.seen[id/64]&(1<<(id%64)) != 0 {
		return fmt.Errorf("page %d is used twice", id)
	}
	r.seen[id/64] |= 1 << (id % 64)
	return nil
}

func (r *pageReader) allSeen() error {
	for id := range r.high {
		if r.seen[id/64]&(1<<(id%64)) == 0 {
			return fmt.Errorf("page %d is neither used nor free", id)
		}
	}
	return nil
}

// mostBuckets is how many buckets a file may have. Ours have half a dozen.
const mostBuckets = 64

// root finds the buckets, which are all that the root of the file holds.
func (r *pageReader) root(s *structure) error {
	return r.tree(s.root, nil, nil, 0, false, func(k, v []byte, flags uint32) error {
		if flags != bucketElement || len(v) < bucketHeader || len(s.buckets) == mostBuckets {
			return fmt.Errorf("element %q of kind %#x with %d bytes", k, flags, len(v))
		}
		b := bucketRef{name: string(k), root: u64(v)}
		if b.root == 0 {
			b.inline = bytes.Clone(v[bucketHeader:])
		} else if len(v) != bucketHeader {
			return fmt.Errorf("bucket %q: %d bytes", k, len(v))
		}
		s.buckets = append(s.buckets, b)
		return nil
	})
}

// find returns a bucket, nil if there is none of the name.
func (s *structure) find(name []byte) *bucketRef {
	for i := range s.buckets {
		if s.buckets[i].name == string(name) {
			return &s.buckets[i]
		}
	}
	return nil
}

// bucket reads all of a bucket, once. Nothing is in there but keys and values.
func (r *pageReader) bucket(b *bucketRef, visit visit) error {
	element := func(k, v []byte, flags uint32) error {
		if flags != 0 {
			return fmt.Errorf("element %q is of kind %#x", k, flags)
		}
		if visit == nil {
			return nil
		}
		return visit(k, v)
	}
	var err error
	switch page := b.inline; {
	case b.root != 0:
		err = r.tree(b.root, nil, nil, 1, r.headsOnly, element)
	case page == nil, r.headsOnly: // it was read before
	case len(page) < pageHeader || u64(page) != 0 || u16(page[8:]) != leafPage || u32(page[12:]) != 0:
		err = errors.New("no page")
	default:
		var end int
		if end, err = r.elements(page, nil, nil, 1, r.headsOnly, element); err == nil && end != len(page) {
			err = fmt.Errorf("%d bytes for elements of %d", len(page), end)
		}
	}
	b.root, b.inline = 0, nil
	if err != nil {
		return fmt.Errorf("bucket %q: %w", b.name, err)
	}
	return nil
}

type element func(k, v []byte, flags uint32) error

// tree reads the page and what is below it. Keys must be at least from and less than to,
// where they are not nil.
func (r *pageReader) tree(id uint64, from, to []byte, depth int, heads bool, visit element) error {
	page, err := r.use(id, depth)
	if err != nil {
		return err
	}
	if u16(page[10:]) == 0 {
		return fmt.Errorf("page %d is empty", id) // the buckets are made with the file
	}
	if _, err := r.elements(page, from, to, depth, heads, visit); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// elements reads the elements of a page, which lies in the pages of this depth or is a bucket
// in one page, and returns where the last one ends.
func (r *pageReader) elements(page, from, to []byte, depth int, heads bool, visit element) (end int, err error) {
	flags, count := u16(page[8:]), int(u16(page[10:]))
	if flags != branchPage && flags != leafPage {
		return 0, fmt.Errorf("kind %#x", flags)
	}
	if heads && flags == leafPage {
		return 0, nil
	}
	end = pageHeader + count*elementHeader
	if end > len(page) {
		return 0, fmt.Errorf("%d elements in %d bytes", count, len(page))
	}
	// A branch element is followed by its key, a leaf element by key and value. Before anything is
	// believed all of them are looked at.
	last := from
	for i := range count {
		pos, key, value := elementAt(page, i, flags)
		at := pageHeader + i*elementHeader
		if uint64(at)+uint64(pos) != uint64(end) || key == 0 || uint64(end)+uint64(key)+uint64(value) > uint64(len(page)) {
			return 0, fmt.Errorf("element %d is out of place", i)
		}
		k := page[end : end+int(key)]
		end += int(key) + int(value)
		if c := bytes.Compare(last, k); last != nil && (c > 0 || c == 0 && i > 0) {
			return 0, fmt.Errorf("element %d is out of order", i)
		}
		last = k
	}
	if count > 0 && to != nil && bytes.Compare(last, to) >= 0 {
		return 0, errors.New("the last key belongs further behind")
	}
	at := pageHeader + count*elementHeader
	for i := range count {
		_, key, value := elementAt(page, i, flags)
		k := page[at : at+int(key)]
		v := page[at+int(key) : at+int(key)+int(value)]
		at += int(key) + int(value)
		if flags == leafPage {
			if err := visit(k, v, u32(page[pageHeader+i*elementHeader:])); err != nil {
				return 0, err
			}
			continue
		}
		below := to
		if i+1 < count {
			_, next, _ := elementAt(page, i+1, flags)
			below = page[at : at+int(next)]
		}
		if err := r.tree(u64(page[pageHeader+i*elementHeader+8:]), k, below, depth+1, heads, visit); err != nil {
			return 0, err
		}
	}
	return end, nil
}

// elementAt returns where an element's bytes lie behind it, and how long its key and its value
// are.
func elementAt(page []byte, i int, flags uint16) (pos, key, value uint32) {
	e := page[pageHeader+i*elementHeader:][:elementHeader]
	if flags == leafPage {
		return u32(e[4:]), u32(e[8:]), u32(e[12:])
	}
	return u32(e), u32(e[4:]), 0
}

// freelist marks the free pages as seen.
func (r *pageReader) freelist(id uint64) error {
	page, err := r.use(id, 0)
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
		if err := r.mark(u64(ids[8*i:])); err != nil {
			return fmt.Errorf("list of free pages: %w", err)
		}
	}
	return nil
}
