package starts

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
)

// What State returns; integers are little-endian:
//
//	0   8 bytes  magic, with the version of this form
//	8   entries, of 16 bytes each: identity, start in Unix milliseconds (0: unknown)
//	…   4 bytes  CRC-32C of what comes before
const (
	magic      = "starts\x00\x01"
	entryBytes = 16
	crcBytes   = 4
)

// MaxState is how long a state may be, in bytes; there is room for a million series.
const MaxState = len(magic) + 1<<20*entryBytes + crcBytes

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Changed reports whether State would return something new that matters: that a series is new,
// or was reset.
func (s *Starts) Changed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// State returns what the next daemon must know: the starts of the present series, and after them
// those of series that are gone, as many as there is room for.
func (s *Starts) State() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changed = false
	most := (MaxState - len(magic) - crcBytes) / entryBytes
	data := append(make([]byte, 0, len(magic)+min(len(s.series), most)*entryBytes+crcBytes), magic...)
	add := func(id uint64, known *started) {
		if most > 0 {
			data = binary.LittleEndian.AppendUint64(data, id)
			data = binary.LittleEndian.AppendUint64(data, uint64(known.start))
			most--
		}
	}
	for id, known := range s.series {
		if known.round == s.round {
			add(id, known)
		}
	}
	for id, known := range s.series {
		if known.round != s.round {
			add(id, known)
		}
	}
	return binary.LittleEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
}

// ErrState is wrapped by what Restore says of a state that cannot be read.
var ErrState = errors.New("state of start times")

// Restore takes over what State has returned, before the first view. Series that the state does
// not know, and that are in the first view, have an unknown start: they may be new, and may have
// another name by other rules. No state is an empty one. After an error, which wraps ErrState,
// nothing is taken over.
func (s *Starts) Restore(data []byte) error {
	if len(data) == 0 {
		return nil
	}
	entries := len(data) - len(magic) - crcBytes
	switch {
	case entries < 0 || string(data[:len(magic)]) != magic:
		return fmt.Errorf("%w: it is of another form", ErrState)
	case entries%entryBytes != 0 || len(data) > MaxState:
		return fmt.Errorf("%w: it has %d bytes", ErrState, len(data))
	}
	body := data[:len(data)-crcBytes]
	if sum := crc32.Checksum(body, castagnoli); binary.LittleEndian.Uint32(data[len(body):]) != sum {
		return fmt.Errorf("%w: its checksum is wrong", ErrState)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := len(magic); at < len(body); at += entryBytes {
		start := int64(binary.LittleEndian.Uint64(body[at+8:]))
		s.series[binary.LittleEndian.Uint64(body[at:])] = &started{start: max(start, 0), value: math.NaN()}
	}
	return nil
}
