package serve

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"slices"

	"github.com/klauspost/compress/flate"
)

// A packer compresses the responses of one lane, and keeps what it has compressed: most
// families have not changed since the last scrape, and to find that out costs a tenth of
// compressing them again.
//
// A response is one gzip member (RFC 1952). Its deflate stream (RFC 1951) is a sequence of
// parts, each of one large section of the exposition or of several small ones. A part begins
// with an empty window and ends with a full flush, an empty stored block, so that it stands
// for itself wherever it is put.
//
// Whether a part has changed is told by a 64-bit hash with a seed that nobody knows: that
// one is taken for another happens once in 10^19 times.
type packer struct {
	seed maphash.Seed
	w    *flate.Writer
	// sections is how many sections the responses have for which parts were made.
	sections int
	parts    []packedPart
	ends     []int // of the sections, reused
}

// A packedPart is a run of sections.
type packedPart struct {
	// last is the number of sections up to its end.
	last int
	// sum and size are of the plain bytes that deflated holds; deflated is nil at first.
	sum      uint64
	size     int
	deflated []byte
}

// partBytes is how large a part is at least, if there are more sections. A smaller one
// compresses worse, a larger one changes more often.
const partBytes = 4 << 10

// The frame of a gzip member.
var (
	// RFC 1952, 2.3: magic, deflate, no flags, no time, fastest algorithm, unknown system.
	gzipHeader = []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 4, 255}
	// RFC 1951, 3.2.3 and 3.2.6: a last block of fixed codes that holds nothing.
	lastBlock = []byte{3, 0}
)

func newPacker() *packer {
	// Level 1: on merged metrics higher levels cost several times as much and save
	// little, and more than reading every source.
	w, err := flate.NewWriter(nil, flate.BestSpeed)
	if err != nil {
		panic(fmt.Sprintf("BUG: deflate level: %v", err))
	}
	return &packer{seed: maphash.MakeSeed(), w: w}
}

// pack appends the gzip form of plain, whose sections end at p.ends. How it comes out may
// depend on what was packed before; what it unpacks to does not.
func (p *packer) pack(dst *buffer, plain []byte) error {
	if p.sections != len(p.ends) || p.parts == nil {
		p.divide()
	}
	dst.b = append(dst.b, gzipHeader...)
	start := 0
	for i := range p.parts {
		part := &p.parts[i]
		end := len(plain)
		if i < len(p.parts)-1 {
			end = p.ends[part.last-1]
		}
		text := plain[start:end]
		start = end
		sum := maphash.Bytes(p.seed, text)
		if part.deflated == nil || part.sum != sum || part.size != len(text) {
			from := len(dst.b)
			p.w.Reset(dst)
			if _, err := p.w.Write(text); err != nil {
				return fmt.Errorf("compress response: %w", err)
			}
			if err := p.w.Flush(); err != nil {
				return fmt.Errorf("compress response: %w", err)
			}
			part.sum, part.size = sum, len(text)
			part.deflated = append(part.deflated[:0], dst.b[from:]...)
			continue
		}
		dst.b = append(dst.b, part.deflated...)
	}
	dst.b = append(dst.b, lastBlock...)
	dst.b = binary.LittleEndian.AppendUint32(dst.b, crc32.ChecksumIEEE(plain))
	dst.b = binary.LittleEndian.AppendUint32(dst.b, uint32(len(plain)))
	return nil
}

// divide decides which sections make a part. That stays so until there are more or fewer
// of them, so that a number with one digit more does not move what follows from part to
// part.
func (p *packer) divide() {
	p.sections = len(p.ends)
	p.parts = slices.Delete(p.parts, 0, len(p.parts))
	start := 0
	for i, end := range p.ends {
		if end-start >= partBytes || i == len(p.ends)-1 {
			p.parts = append(p.parts, packedPart{last: i + 1})
			start = end
		}
	}
	if len(p.parts) == 0 {
		p.parts = append(p.parts, packedPart{})
	}
}
