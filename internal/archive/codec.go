package archive

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"aggregatord/internal/metric"
)

// chunkValues is how many values share a chunk: one or two pages of 4 KiB.
const chunkValues = 512

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errChecksum = errors.New("checksum does not match")

// sum is the checksum of what a bucket holds under a key. It covers the key, too: the
// values of a folded file are wrong under the name of another one.
func sum(key, data []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, data)
}

// seal appends the checksum to what is to be put under a key.
func seal(key, data []byte) []byte {
	return binary.BigEndian.AppendUint32(data, sum(key, data))
}

// unseal returns the data in front of its checksum.
func unseal(key, sealed []byte) ([]byte, error) {
	n := len(sealed) - 4
	if n < 0 || binary.BigEndian.Uint32(sealed[n:]) != sum(key, sealed[:n]) {
		return nil, errChecksum
	}
	return sealed[:n], nil
}

// key2 is a bucket key of two numbers.
func key2(a, b uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, a), b)
}

// appendChunk appends up to chunkValues values.
func appendChunk(dst []byte, hi, second []float64) []byte {
	halves := byte(1)
	if slices.ContainsFunc(second, func(v float64) bool { return math.Float64bits(v) != 0 }) {
		halves = 2
	}
	dst = append(dst, halves)
	for _, v := range hi {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
	}
	if halves == 2 {
		for _, v := range second {
			dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
		}
	}
	return dst
}

// readChunk fills hi and second, which have the chunk's length.
func readChunk(data []byte, hi, second []float64) error {
	n := len(hi)
	if len(data) == 0 || data[0] < 1 || data[0] > 2 || len(data) != 1+8*n*int(data[0]) {
		return fmt.Errorf("chunk of %d bytes for %d values", len(data), n)
	}
	floats := func(data []byte, dst []float64) {
		for i := range dst {
			dst[i] = math.Float64frombits(binary.LittleEndian.Uint64(data[8*i:]))
		}
	}
	floats(data[1:], hi)
	clear(second)
	if data[0] == 2 {
		floats(data[1+8*n:], second)
	}
	return nil
}

// appendSpace appends a space and when a file was last folded into it.
func appendSpace(dst []byte, s Space, folded time.Time) []byte {
	dst = append(dst, byte(s.Type), byte(s.Mode))
	dst = binary.BigEndian.AppendUint64(dst, uint64(folded.Unix()))
	return append(dst, s.Worker...)
}

func readSpace(data []byte) (s Space, folded time.Time, err error) {
	if len(data) < 10 {
		return s, folded, fmt.Errorf("space of %d bytes", len(data))
	}
	s = Space{Type: metric.Type(data[0]), Mode: metric.Mode(data[1]), Worker: string(data[10:])}
	if s.Type < metric.Counter || s.Type > metric.Summary || (s.Type == metric.Gauge) != (s.Mode.String() != "") || s.Mode.Live() ||
		(s.Worker != "" && s.Type != metric.Gauge) || !utf8.ValidString(s.Worker) || strings.ContainsAny(s.Worker, "/\x00") {
		return s, folded, fmt.Errorf("space of type %d and mode %d", data[0], data[1])
	}
	return s, time.Unix(int64(binary.BigEndian.Uint64(data[2:])), 0), nil
}

// appendBaseline appends the values of a folded file. Most are small whole numbers, which
// take one to three bytes; others take nine.
func appendBaseline(dst []byte, values []float64) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(values)))
	for _, v := range values {
		// 0 begins any float; n+1 is the whole number n.
		if n, ok := wholeNumber(v); ok {
			dst = binary.AppendUvarint(dst, n+1)
			continue
		}
		dst = append(dst, 0)
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
	}
	return dst
}

// wholeNumber reports whether a value is one that is packed as a number.
func wholeNumber(v float64) (n uint64, ok bool) {
	if !(v >= 0 && v < 1<<53) {
		return 0, false
	}
	n = uint64(v)
	return n, float64(n) == v && !(n == 0 && math.Signbit(v))
}

// packedBytes is how long a value is in a baseline.
func packedBytes(v float64) int64 {
	n, ok := wholeNumber(v)
	if !ok {
		return 9
	}
	return int64(bits.Len64(n+1)+6) / 7
}

// appendValues appends what appendBaseline has packed.
func appendValues(dst []float64, data []byte) ([]float64, error) {
	count, n := binary.Uvarint(data)
	if n <= 0 || count > uint64(len(data)) {
		return nil, errors.New("baseline without a count")
	}
	data = data[n:]
	for range count {
		v, n := binary.Uvarint(data)
		switch {
		case n <= 0:
			return nil, errors.New("baseline cut short")
		case v > 0:
			dst = append(dst, float64(v-1))
			data = data[n:]
		case len(data) < 9:
			return nil, errors.New("baseline cut short")
		default:
			dst = append(dst, math.Float64frombits(binary.LittleEndian.Uint64(data[1:])))
			data = data[9:]
		}
	}
	if len(data) > 0 {
		return nil, fmt.Errorf("%d bytes after a baseline", len(data))
	}
	return dst, nil
}

// countValues checks a baseline and returns how many values it has, without unpacking them.
func countValues(data []byte) (int, error) {
	count, n := binary.Uvarint(data)
	if n <= 0 || count > uint64(len(data)) {
		return 0, errors.New("baseline without a count")
	}
	data = data[n:]
	for range count {
		v, n := binary.Uvarint(data)
		if n > 0 && v == 0 {
			n = 9
		}
		if n <= 0 || n > len(data) {
			return 0, errors.New("baseline cut short")
		}
		data = data[n:]
	}
	if len(data) > 0 {
		return 0, fmt.Errorf("%d bytes after a baseline", len(data))
	}
	return int(count), nil
}
