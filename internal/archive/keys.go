package archive

import (
	"encoding/binary"
	"hash/maphash"
	"math"
	"unsafe"
)

// keySet is the raw keys of a table, each with its position. The bytes of all keys lie end to
// end in a few large blocks, which are written once and never again, so that a key costs 14 to
// 20 bytes besides its own, and the strings that are given out stay good for ever.
type keySet struct {
	// blocks hold, for each key, its length as a varint and its bytes.
	blocks [][]byte
	// at is where a key begins, by position: the block in the upper half, the byte in it below.
	at []uint64
	// index is a hash table with open addressing: position + 1, or 0. Its length is a power of two.
	// It is behind while keys were appended without it: see indexAll.
	index []uint32
	bytes int64
}

// hashSeed makes it a secret which keys meet in an index.
var hashSeed = maphash.MakeSeed()

const (
	firstBlockBytes = 512
	blockBytes      = 1 << 20
)

func (k *keySet) len() int { return len(k.at) }

// get returns the key at a position.
func (k *keySet) get(pos int) string {
	at := k.at[pos]
	block := k.blocks[at>>32][uint32(at):]
	n, w := binary.Uvarint(block)
	return unsafe.String(unsafe.SliceData(block[w:]), int(n))
}

// find returns the position of a key.
func (k *keySet) find(key []byte) (uint32, bool) {
	if len(k.index) == 0 {
		return 0, false
	}
	mask := uint64(len(k.index) - 1)
	for i := maphash.Bytes(hashSeed, key) & mask; ; i = (i + 1) & mask {
		switch pos := k.index[i]; {
		case pos == 0:
			return 0, false
		case k.get(int(pos-1)) == string(key):
			return pos - 1, true
		}
	}
}

// findString is find. It does not change the bytes.
func (k *keySet) findString(key string) (uint32, bool) {
	return k.find(unsafe.Slice(unsafe.StringData(key), len(key)))
}

// append adds a key that is not there yet.
func (k *keySet) append(key []byte) uint32 {
	pos := k.appendUnindexed(key)
	if 4*k.len() > 3*len(k.index) {
		k.indexAll(2 * k.len())
	} else {
		k.enter(pos)
	}
	return pos
}

// appendUnindexed adds a key that find does not see before indexAll.
func (k *keySet) appendUnindexed(key []byte) uint32 {
	if k.len() == math.MaxUint32-1 {
		panic("BUG: more keys in a table than positions") // that would be 100 GiB of them
	}
	need := binary.MaxVarintLen32 + len(key)
	last := len(k.blocks) - 1
	if last < 0 || cap(k.blocks[last])-len(k.blocks[last]) < need {
		size := firstBlockBytes
		if last >= 0 {
			size = min(2*cap(k.blocks[last]), blockBytes)
		}
		k.blocks = append(k.blocks, make([]byte, 0, max(size, need)))
		last++
	}
	block := k.blocks[last]
	k.at = append(k.at, uint64(last)<<32|uint64(len(block)))
	block = binary.AppendUvarint(block, uint64(len(key)))
	k.blocks[last] = append(block, key...)
	k.bytes += int64(len(key))
	return uint32(k.len() - 1)
}

// enter enters a position into the index, unless an equal key is there.
func (k *keySet) enter(pos uint32) (fresh bool) {
	key := k.get(int(pos))
	mask := uint64(len(k.index) - 1)
	i := maphash.String(hashSeed, key) & mask
	for ; k.index[i] != 0; i = (i + 1) & mask {
		if k.get(int(k.index[i]-1)) == key {
			return false
		}
	}
	k.index[i] = pos + 1
	return true
}

// indexAll makes the index anew, with room for so many keys. It reports the first position
// whose key was there before.
func (k *keySet) indexAll(room int) (twice uint32, unique bool) {
	size := 8
	for 3*size < 4*max(room, k.len()) {
		size *= 2
	}
	k.index = make([]uint32, size)
	for pos := range k.len() {
		if !k.enter(uint32(pos)) {
			return uint32(pos), false
		}
	}
	return 0, true
}
