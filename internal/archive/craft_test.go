package archive

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
)

// A crafter makes files as somebody would who knows the format: all numbers and checksums are
// right, as far as the test wants.
type crafter struct {
	pages                map[uint64][]byte
	root, freelist, high uint64
	size                 int64 // 0: as many bytes as pages
}

func newCrafter() *crafter { return &crafter{pages: map[uint64][]byte{}, root: 2, freelist: 3} }

func header(id uint64, flags uint16, count int, overflow uint32) []byte {
	b := binary.LittleEndian.AppendUint64(nil, id)
	b = binary.LittleEndian.AppendUint16(b, flags)
	b = binary.LittleEndian.AppendUint16(b, uint16(count))
	return binary.LittleEndian.AppendUint32(b, overflow)
}

// craftElement is an element of a page: a leaf has key and value, a branch key and child.
type craftElement struct {
	key, value []byte
	child      uint64
	flags      uint32
}

func elementBytes(flags uint16, elements []craftElement) (heads, tail []byte) {
	le := binary.LittleEndian
	for i, e := range elements {
		pos := uint32((len(elements)-i)*elementHeader + len(tail))
		if flags == leafPage {
			heads = le.AppendUint32(le.AppendUint32(heads, e.flags), pos)
			heads = le.AppendUint32(le.AppendUint32(heads, uint32(len(e.key))), uint32(len(e.value)))
			tail = append(append(tail, e.key...), e.value...)
			continue
		}
		heads = le.AppendUint64(le.AppendUint32(le.AppendUint32(heads, pos), uint32(len(e.key))), e.child)
		tail = append(tail, e.key...)
	}
	return heads, tail
}

// page puts a page, and returns how many pages it takes.
func (c *crafter) page(id uint64, flags uint16, elements ...craftElement) uint64 {
	heads, tail := elementBytes(flags, elements)
	n := (pageHeader + len(heads) + len(tail) + pageBytes - 1) / pageBytes
	c.pages[id] = slices.Concat(header(id, flags, len(elements), uint32(n-1)), heads, tail)
	return uint64(n)
}

// bucketOf is the value that stands for a bucket with this root.
func bucketOf(root uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, root), 0)
}

// inline is the value that stands for a bucket in one page.
func inline(elements ...craftElement) []byte {
	heads, tail := elementBytes(leafPage, elements)
	return slices.Concat(bucketOf(0), header(0, leafPage, len(elements), 0), heads, tail)
}

func sealed(key, data []byte) craftElement {
	return craftElement{key: key, value: seal(key, slices.Clone(data))}
}

// archive lays out a file with these elements in its buckets.
func (c *crafter) archive(buckets map[string][]craftElement) {
	next := uint64(4)
	var roots []craftElement
	for _, name := range slices.Sorted(maps.Keys(buckets)) {
		elements := slices.Clone(buckets[name])
		slices.SortStableFunc(elements, func(a, b craftElement) int { return bytes.Compare(a.key, b.key) })
		elements = slices.CompactFunc(elements, func(a, b craftElement) bool { return bytes.Equal(a.key, b.key) })
		if len(elements) == 0 {
			roots = append(roots, craftElement{key: []byte(name), value: inline(), flags: bucketElement})
			continue
		}
		roots = append(roots, craftElement{key: []byte(name), value: bucketOf(next), flags: bucketElement})
		next += c.page(next, leafPage, elements...)
	}
	c.page(2, leafPage, roots...)
	c.page(3, freelistPage)
	c.high = next
}

// goodMeta is what the bucket meta must have.
func goodMeta() []craftElement {
	return []craftElement{
		sealed(metaFormat, binary.BigEndian.AppendUint32(nil, Format)),
		sealed(metaID, []byte("0123456789abcdef")), sealed(metaCommit, []byte("x")),
		sealed(metaStats, []byte("{}")),
	}
}

// bytes is the file, without what lies behind the last page that was put.
func (c *crafter) bytes() []byte {
	end := uint64(2 * pageBytes)
	for id, p := range c.pages {
		end = max(end, (id+uint64(len(p)+pageBytes-1)/pageBytes)*pageBytes)
	}
	data := make([]byte, end)
	for id, p := range c.pages {
		copy(data[id*pageBytes:], p)
	}
	for i := range uint64(2) {
		copy(data[i*pageBytes:], c.meta(i))
	}
	return data
}

func (c *crafter) meta(id uint64) []byte {
	le := binary.LittleEndian
	b := header(id, metaPage, 0, 0)
	for _, v := range []uint32{metaMagic, metaVersion, pageBytes, 0} {
		b = le.AppendUint32(b, v)
	}
	for _, v := range []uint64{c.root, 0, c.freelist, c.high, 2 + id} {
		b = le.AppendUint64(b, v)
	}
	h := fnv.New64a()
	h.Write(b[pageHeader:])
	return le.AppendUint64(b, h.Sum64())
}

// write makes the file, with holes where there is nothing.
func (c *crafter) write(t testing.TB, path string) {
	t.Helper()
	f, err := os.Create(path)
	mustDo(t, err)
	defer f.Close()
	size := c.size
	if size == 0 {
		size = int64(c.high) * pageBytes
	}
	if err := f.Truncate(size); err != nil {
		t.Skipf("no file of %d bytes here: %v", size, err)
	}
	for id, p := range c.pages {
		_, err := f.WriteAt(p, int64(id)*pageBytes)
		mustDo(t, err)
	}
	for i := range uint64(2) {
		_, err := f.WriteAt(c.meta(i), int64(i)*pageBytes)
		mustDo(t, err)
	}
}

// allocated returns how many bytes f takes from the heap, all in all.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestCrafter: what it makes is an archive.
func TestCrafter(t *testing.T) {
	c := newCrafter()
	c.archive(map[string][]craftElement{
		"meta":   goodMeta(),
		"spaces": {sealed([]byte{0, 0, 0, 1}, appendSpace(nil, counters, at(1)))},
		"keys":   {sealed(key2(1, 0), []byte("a")), sealed(key2(1, 1), []byte("b"))},
		"values": {sealed(key2(1, 0), appendChunk(nil, []float64{1, 2}, []float64{0, 0}))},
		"folded": {sealed([]byte("file"), appendBaseline(nil, []float64{1}))},
	})
	dir := t.TempDir()
	c.write(t, archivePath(dir))
	a := mustOpen(t, dir)
	if got := a.Totals().Table(counters); got == nil || got.Len() != 2 || got.Key(1) != "b" || got.Values()[1] != 2 {
		t.Fatal(contentsOf(a))
	}
	mustCommit(t, a, mixed(1))
	wantContents(t, reread(t, dir).Archive, contentsOf(a))
}

// TestLastSpace: an archive whose spaces have the last number that there is can be written on.
func TestLastSpace(t *testing.T) {
	c := newCrafter()
	last := binary.BigEndian.AppendUint32(nil, math.MaxUint32)
	c.archive(map[string][]craftElement{
		"meta":   goodMeta(),
		"spaces": {sealed([]byte{0, 0, 0, 1}, appendSpace(nil, worker("x"), at(1))), sealed(last, appendSpace(nil, worker("y"), at(1)))},
		"keys":   nil,
		"values": nil,
		"folded": nil,
	})
	dir := t.TempDir()
	c.write(t, archivePath(dir))
	a := mustOpen(t, dir)
	mustCommit(t, a, mixed(1))
	mustCommit(t, a, mixed(2))
	wantContents(t, reread(t, dir).Archive, contentsOf(a))
}

// TestHostileFiles: files that claim to be much, in little, with right checksums. Each is found
// to be damaged, by all who read it, without much memory.
func TestHostileFiles(t *testing.T) {
	for name, craft := range map[string]func(c *crafter){
		"half_a_petabyte": func(c *crafter) { c.high, c.size = 1<<37, 1<<49 },
		"eight_gigabytes_of_branches": func(c *crafter) {
			id := uint64(4)
			c.root = id
			for range maxDepth + 1 {
				c.page(id, branchPage, craftElement{key: []byte("k"), child: id + maxOverflow + 1})
				binary.LittleEndian.PutUint32(c.pages[id][12:], maxOverflow)
				id += maxOverflow + 1
			}
			c.high = id + 10
		},
		"one_page_with_many_more": func(c *crafter) {
			c.page(2, leafPage, craftElement{key: []byte("k"), value: inline(), flags: bucketElement})
			binary.LittleEndian.PutUint32(c.pages[2][12:], maxOverflow)
			c.high = maxOverflow + 10
		},
		"page_leads_to_itself": func(c *crafter) {
			c.page(2, branchPage, craftElement{key: []byte("k"), child: 2})
			c.page(3, freelistPage)
			c.high = 4
		},
		"cycle_of_three": func(c *crafter) {
			c.page(2, branchPage, craftElement{key: []byte("k"), child: 4})
			c.page(4, branchPage, craftElement{key: []byte("k"), child: 5})
			c.page(5, branchPage, craftElement{key: []byte("k"), child: 2})
			c.page(3, freelistPage)
			c.high = 6
		},
		"bucket_in_a_cycle": func(c *crafter) {
			c.page(2, leafPage, craftElement{key: []byte("keys"), value: bucketOf(4), flags: bucketElement})
			c.page(4, leafPage, craftElement{key: []byte("k"), value: bucketOf(2), flags: bucketElement})
			c.page(3, freelistPage)
			c.high = 5
		},
		"too_deep": func(c *crafter) {
			c.page(2, branchPage, craftElement{key: []byte("k"), child: 4})
			for id := range uint64(1000) {
				c.page(4+id, branchPage, craftElement{key: []byte("k"), child: 5 + id})
			}
			c.page(3, freelistPage)
			c.high = 1005
		},
		"buckets_in_buckets": func(c *crafter) {
			v := inline()
			for range 200 {
				v = inline(craftElement{key: []byte("k"), value: v, flags: bucketElement})
			}
			c.page(2, leafPage, craftElement{key: []byte("k"), value: v, flags: bucketElement})
			c.page(3, freelistPage)
			c.high = 10
		},
		"many_buckets": func(c *crafter) {
			var all []craftElement
			for i := range 1000 {
				all = append(all, craftElement{key: fmt.Appendf(nil, "%04d", i), value: inline(), flags: bucketElement})
			}
			c.archive(nil)
			c.high = 4 + c.page(4, leafPage, all...)
			c.root = 4
		},
		"free_pages_beyond_count": func(c *crafter) {
			c.archive(map[string][]craftElement{"meta": goodMeta(), "spaces": nil, "keys": nil, "values": nil, "folded": nil})
			c.pages[3] = binary.LittleEndian.AppendUint64(header(3, freelistPage, manyFree, 0), 1<<60)
		},
		"a_billion_values_in_a_record": func(c *crafter) {
			c.archive(map[string][]craftElement{"meta": goodMeta(), "spaces": nil, "keys": nil, "values": nil, "folded": {
				sealed([]byte("file"), binary.AppendUvarint(nil, 1<<30)),
			}})
		},
		"a_billion_parts_of_a_record": func(c *crafter) {
			c.archive(map[string][]craftElement{"meta": goodMeta(), "spaces": nil, "keys": nil, "values": nil, "folded": {
				sealed([]byte("file"), binary.AppendUvarint(binary.AppendUvarint([]byte{0}, 1<<30), 1<<39)),
				sealed(partKey("file", 0), appendBaseline(nil, []float64{1})),
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCrafter()
			craft(c)
			dir := memoryDir(t)
			c.write(t, archivePath(dir))
			used := allocated(func() {
				if _, err := Open(dir); !errors.Is(err, ErrDamaged) {
					t.Errorf("open: %v", err)
				}
				if _, err := Verify(dir); !errors.Is(err, ErrDamaged) {
					t.Errorf("read: %v", err)
				}
			})
			if used > 4<<20 {
				t.Errorf("it took %d bytes of memory", used)
			}
			if entries, err := os.ReadDir(os.TempDir()); err == nil {
				for _, e := range entries {
					if strings.HasPrefix(e.Name(), "aggregatord-archive-") {
						t.Errorf("it left %s", e.Name())
					}
				}
			}
			// Set aside, it is as any other.
			if _, err := SetAside(dir, at(0)); err != nil {
				t.Error(err)
			}
			mustCommit(t, mustOpen(t, dir), mixed(1))
		})
	}
}

// TestCopyWithHoles: an archive copied by a tool that makes holes of zeros is as good as the
// original.
func TestCopyWithHoles(t *testing.T) {
	dir := memoryDir(t)
	a := mustOpen(t, dir)
	b := NewBatch(at(0))
	f := b.File(counters, nil, 0)
	for i := range 3000 {
		f.Add(fmt.Append(nil, i), 0, 0, true) // chunks of zeros
	}
	mustCommit(t, a, b)
	want := contentsOf(a)
	mustDetach(t, a)
	data, err := os.ReadFile(archivePath(dir))
	mustDo(t, err)
	mustDo(t, os.Remove(archivePath(dir)))
	to, err := os.Create(archivePath(dir))
	mustDo(t, err)
	holes := 0
	for at := 0; at < len(data); at += 512 {
		part := data[at:min(at+512, len(data))]
		if !slices.ContainsFunc(part, func(b byte) bool { return b != 0 }) {
			holes++
			continue
		}
		_, err := to.WriteAt(part, int64(at))
		mustDo(t, err)
	}
	mustDo(t, errors.Join(to.Truncate(int64(len(data))), to.Close()))
	wantContents(t, reread(t, dir).Archive, want)
	if holes < 10 {
		t.Errorf("only %d holes", holes)
	}
}

// TestBranchesChangedThroughMapping: a cycle of pages that somebody makes in the file that is
// open, without a trace in its times, is found before bbolt walks into it.
func TestBranchesChangedThroughMapping(t *testing.T) {
	dir := t.TempDir()
	p := mustHidden(t, dir)
	a := New()
	mustDo(t, a.AttachTo(p, nil))
	defer a.Detach() //nolint:errcheck // only looked at
	b := NewBatch(at(0))
	f := b.File(counters, nil, 0)
	for i := range 3000 {
		f.Add(fmt.Append(nil, "a key that is long enough to fill pages ", i), 1, 0, true)
	}
	mustCommit(t, a, b)
	before := contentsOf(a)
	data, err := os.ReadFile(p.ArchivePath())
	mustDo(t, err)
	info, err := os.Stat(p.ArchivePath())
	mustDo(t, err)
	branches := 0
	for id := uint64(2); id < uint64(len(data)/pageBytes); id++ {
		page := data[id*pageBytes:]
		if u16(page[8:]) == branchPage && u64(page) == id {
			branches++
			binary.LittleEndian.PutUint64(page[pageHeader+8:], id) // its first child is itself
		}
	}
	if branches == 0 {
		t.Fatal("that is no test: there is no branch")
	}
	mustDo(t, os.WriteFile(p.ArchivePath(), data, 0o600))
	mustDo(t, os.Chtimes(p.ArchivePath(), info.ModTime(), info.ModTime()))
	if err := a.Commit(mixed(1), nil); !errors.Is(err, ErrDamaged) || a.Attached() {
		t.Errorf("%v, attached %v", err, a.Attached())
	}
	wantContents(t, a, before)
	_, err = p.SetAside(at(0))
	mustDo(t, err)
	mustDo(t, a.AttachTo(p, nil))
	mustCommit(t, a, mixed(1))
	v, err := p.Verify()
	mustDo(t, err)
	wantContents(t, v.Archive, contentsOf(a))
}

// TestLayoutOf: pages.go knows the layout of one version of bbolt. Who raises it in go.mod must
// compare the two, and say so there.
func TestLayoutOf(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "go.mod"))
	mustDo(t, err)
	_, rest, ok := strings.Cut(string(data), "go.etcd.io/bbolt ")
	if version, _, _ := strings.Cut(rest, "\n"); !ok || strings.TrimSpace(version) != layoutOf {
		t.Errorf("go.mod has bbolt %s, pages.go knows the layout of %s: compare internal/common of the two, then change layoutOf", version,
			layoutOf)
	}
}

// allocatedAbout is allocated without stopping the world for an exact number: what is allocated
// from the spans at hand may be missing, which is less than a MiB.
func allocatedAbout(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}

// fuzzedLoad loads what somebody may have made: it is refused or taken, in memory bounded by its
// length, and what is taken can be written on.
func fuzzedLoad(t *testing.T, data []byte) {
	var c *contents
	var err error
	read := func() {
		err = guard("load", func() (err error) {
			c, err = load(openBytes(data), int64(len(data)))
			return err
		})
		guard("branches", func() error { return checkBranches(openBytes(data), int64(len(data))) }) //nolint:errcheck // it must end
	}
	if bound := uint64(1<<20 + 40*len(data)); allocatedAbout(read) > bound-1<<20 {
		if used := allocated(read); used > bound {
			t.Fatalf("%d bytes took %d bytes of memory, more than %d", len(data), used, bound)
		}
	}
	if err != nil {
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
			t.Fatal(err)
		}
		return
	}
	path := archivePath(memoryDir(t))
	writeFile(t, path, string(data))
	a, err := Open(filepath.Dir(path))
	mustDo(t, err)
	mustCommit(t, a, mixed(1))
	want := contentsOf(a)
	mustDetach(t, a)
	wantContents(t, reread(t, filepath.Dir(path)).Archive, want)
	if c == nil {
		t.Fatal("no contents")
	}
}

// FuzzPages makes files of pages as the input says: kinds, counts, children and sizes are its,
// the checksums are right.
func FuzzPages(f *testing.F) {
	f.Add([]byte{2, 1, 4, 'k', 4, 1, 5, 'k', 5, 1, 2, 'k'})
	f.Add([]byte{2, 2, 4, 'k', 4, 2, 5, 'a', 4, 2, 5, 'b', 3, 16, 6, 7})
	f.Fuzz(func(t *testing.T, program []byte) {
		c := newCrafter()
		elements := map[uint64][]craftElement{}
		flags := map[uint64]uint16{}
		for ; len(program) >= 4; program = program[4:] { // a page, its kind, a child or value, a key
			id := uint64(program[0]%30) + 2
			flags[id] = uint16(program[1]) & (branchPage | leafPage | freelistPage)
			e := craftElement{key: []byte{program[3]}, child: uint64(program[2])}
			switch program[1] >> 6 {
			case 1:
				e.flags, e.value = bucketElement, bucketOf(uint64(program[2]))
			case 2:
				e.flags, e.value = bucketElement, inline(sealed([]byte{program[2]}, []byte{program[3]}))
			case 3:
				e.value = bytes.Repeat([]byte{program[2]}, int(program[2])*64)
			}
			elements[id] = append(elements[id], e)
		}
		for id, all := range elements {
			c.page(id, flags[id], all...)
			c.high = max(c.high, id+1)
		}
		c.high = max(c.high, 4)
		data := c.bytes()
		fuzzedLoad(t, append(data, make([]byte, max(0, int(c.high)*pageBytes-len(data)))...))
	})
}

// FuzzContents puts what the input says into the buckets of an archive, with right checksums.
func FuzzContents(f *testing.F) {
	f.Add([]byte("\x00\x04\x00\x00\x00\x01\x0b\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01a"))
	f.Add([]byte("\x03\x04file\x02\x01\x02\x03\x04file\x03\x00\x02\x02"))
	f.Fuzz(func(t *testing.T, program []byte) {
		buckets := map[string][]craftElement{"meta": goodMeta(), "spaces": nil, "keys": nil, "values": nil, "folded": nil}
		names := []string{"spaces", "keys", "values", "folded", "meta"}
		take := func() (b []byte) {
			if len(program) > 0 {
				n := min(int(program[0]), len(program)-1)
				b, program = program[1:1+n], program[1+n:]
			}
			return b
		}
		for len(program) > 2 {
			name := names[int(program[0])%len(names)]
			program = program[1:]
			if key, value := take(), take(); len(key) > 0 {
				buckets[name] = append(buckets[name], sealed(key, value))
			}
		}
		c := newCrafter()
		c.archive(buckets)
		data := c.bytes()
		fuzzedLoad(t, append(data, make([]byte, max(0, int(c.high)*pageBytes-len(data)))...))
	})
}
