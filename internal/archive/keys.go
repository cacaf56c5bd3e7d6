package archive

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"math"
	"unsafe"
)

// keySet is the raw keys of a table, each with its position. A key is three texts, of which each is
// there once: what comes before the labels, the labels, and what comes after them. Keys of one family
// have the first and the last in common, and often other families' series have the same labels. So a
// key costs 17 to 23 bytes besides those of its texts that no other key has.
type keySet struct {
	texts textSet
	keys  []key
	// index is a hash table with open addressing: position + 1, or 0. Its length is a power of two.
	// It is behind while keys were appended without it: see indexAll.
	index []uint32
	bytes int64
}

// A key is its three texts, by their numbers.
type key struct{ head, labels, tail uint32 }

// split cuts a raw key into three texts, whatever is in it.
func split(raw []byte) (head, labels, tail []byte) {
	from := bytes.IndexByte(raw, '{')
	to := bytes.LastIndexByte(raw, '}') + 1
	if from < 0 || to < from {
		// In very old keys and those of other clients labels are lists: see store.ParseKey.
		from, to = bytes.IndexByte(raw[min(1, len(raw)):], '[')+1, len(raw)
	}
	return raw[:from], raw[from:to], raw[to:]
}

func (k *keySet) len() int { return len(k.keys) }

// appendKey appends the key at a position.
func (k *keySet) appendKey(dst []byte, pos int) []byte {
	at := k.keys[pos]
	dst = append(dst, k.texts.get(at.head)...)
	dst = append(dst, k.texts.get(at.labels)...)
	return append(dst, k.texts.get(at.tail)...)
}

// get returns a copy of the key at a position.
func (k *keySet) get(pos int) string {
	at := k.keys[pos]
	return k.texts.get(at.head) + k.texts.get(at.labels) + k.texts.get(at.tail)
}

// find returns the position of a key.
func (k *keySet) find(raw []byte) (uint32, bool) {
	if len(k.index) == 0 {
		return 0, false
	}
	i := k.slot(raw)
	return k.index[i] - 1, k.index[i] != 0
}

// slot returns where in the index a key is, or is to be.
func (k *keySet) slot(raw []byte) uint64 {
	mask := uint64(len(k.index) - 1)
	for i := maphash.Bytes(hashSeed, raw) & mask; ; i = (i + 1) & mask {
		if pos := k.index[i]; pos == 0 || k.is(int(pos-1), raw) {
			return i
		}
	}
}

// is reports whether the key at a position is this one.
func (k *keySet) is(pos int, raw []byte) bool {
	at := k.keys[pos]
	head, labels, tail := k.texts.get(at.head), k.texts.get(at.labels), k.texts.get(at.tail)
	if len(raw) != len(head)+len(labels)+len(tail) {
		return false
	}
	from, to := len(head), len(head)+len(labels)
	return string(raw[from:to]) == labels && string(raw[:from]) == head && string(raw[to:]) == tail
}

// append adds a key that is not there yet.
func (k *keySet) append(raw []byte) uint32 {
	pos := k.appendUnindexed(raw)
	if 4*k.len() > 3*len(k.index) {
		k.indexAll(2 * k.len())
	} else {
		k.enter(pos, raw)
	}
	return pos
}

// appendUnindexed adds a key that find does not see before indexAll.
func (k *keySet) appendUnindexed(raw []byte) uint32 {
	if k.len() == math.MaxUint32-1 {
		panic("BUG: more keys in a table than positions") // that would be 100 GiB of them
	}
	head, labels, tail := split(raw)
	var last key // most keys have the head and the tail of the one before
	if k.len() > 0 {
		last = k.keys[k.len()-1]
	}
	k.keys = append(k.keys, key{k.texts.add(head, last.head), k.texts.add(labels, last.labels), k.texts.add(tail, last.tail)})
	k.bytes += int64(len(raw))
	return uint32(k.len() - 1)
}

// enter enters the position of a key into the index, unless an equal key is there.
func (k *keySet) enter(pos uint32, raw []byte) (fresh bool) {
	i := k.slot(raw)
	if k.index[i] != 0 {
		return false
	}
	k.index[i] = pos + 1
	return true
}

// indexAll makes the index anew, with room for so many keys. It reports the first position
// whose key was there before.
func (k *keySet) indexAll(room int) (twice uint32, unique bool) {
	k.index = make([]uint32, slotsFor(max(room, k.len())))
	var raw []byte
	for pos := range k.len() {
		raw = k.appendKey(raw[:0], pos)
		if !k.enter(uint32(pos), raw) {
			return uint32(pos), false
		}
	}
	return 0, true
}

// slotsFor is how long an index of so many is: a power of two, three quarters full at most.
func slotsFor(n int) int {
	size := 8
	for 3*size < 4*n {
		size *= 2
	}
	return size
}

// hashSeed makes it a secret what meets in an index.
var hashSeed = maphash.MakeSeed()

// textSet is texts, each with its number. The bytes of all lie end to end in a few large blocks, which
// are written once and never again, so that a text costs 14 to 20 bytes besides its own, and the strings
// that are given out stay good for ever.
type textSet struct {
	// blocks hold, for each text, its length as a varint and its bytes.
	blocks [][]byte
	// at is where a text begins, by number: the block in the upper half, the byte in it below.
	at []uint64
	// index is a hash table with open addressing: number + 1, or 0. Its length is a power of two.
	index []uint32
}

const (
	firstBlockBytes = 512
	blockBytes      = 1 << 20
)

// get returns the text with a number.
func (t *textSet) get(number uint32) string {
	at := t.at[number]
	block := t.blocks[at>>32][uint32(at):]
	n, w := binary.Uvarint(block)
	return unsafe.String(unsafe.SliceData(block[w:]), int(n))
}

// slot returns where in the index a text is, or is to be.
func (t *textSet) slot(text []byte, hash uint64) uint64 {
	mask := uint64(len(t.index) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		if n := t.index[i]; n == 0 || t.get(n-1) == string(text) {
			return i
		}
	}
}

// add returns the number of a text, which it adds if it is not there. likely is one that it may have.
func (t *textSet) add(text []byte, likely uint32) uint32 {
	if int(likely) < len(t.at) && t.get(likely) == string(text) {
		return likely
	}
	if 4*(len(t.at)+1) > 3*len(t.index) {
		t.index = make([]uint32, slotsFor(2*(len(t.at)+1)))
		for n := range t.at {
			other := t.get(uint32(n))
			raw := unsafe.Slice(unsafe.StringData(other), len(other))
			t.index[t.slot(raw, maphash.Bytes(hashSeed, raw))] = uint32(n) + 1
		}
	}
	i := t.slot(text, maphash.Bytes(hashSeed, text))
	if t.index[i] == 0 {
		t.append(text)
		t.index[i] = uint32(len(t.at))
	}
	return t.index[i] - 1
}

func (t *textSet) append(text []byte) {
	need := binary.MaxVarintLen32 + len(text)
	last := len(t.blocks) - 1
	if last < 0 || cap(t.blocks[last])-len(t.blocks[last]) < need {
		size := firstBlockBytes
		if last >= 0 {
			size = min(2*cap(t.blocks[last]), blockBytes)
		}
		t.blocks = append(t.blocks, make([]byte, 0, max(size, need)))
		last++
	}
	block := t.blocks[last]
	t.at = append(t.at, uint64(last)<<32|uint64(len(block)))
	block = binary.AppendUvarint(block, uint64(len(text)))
	t.blocks[last] = append(block, text...)
}
