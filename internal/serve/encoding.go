package serve

import (
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

// The content codings a response can have.
const (
	identity = "identity"
	gzipped  = "gzip"
)

// negotiateEncoding chooses the content coding for the values of Accept-Encoding, by RFC
// 9110, section 12.5.3: the one with the greater weight, gzip if both weigh the same.
// Identity is acceptable unless it is refused, by name or by "*;q=0". It is not ok if
// neither is acceptable. Clauses that cannot be read are taken as absent.
func negotiateEncoding(values []string) (encoding string, ok bool) {
	const unset = -1
	gzipWeight, identityWeight, anyWeight := float64(unset), float64(unset), float64(unset)
	for _, value := range values {
		for clause := range strings.SplitSeq(value, ",") {
			coding, weight, ok := parseWeighted(clause)
			if !ok {
				continue
			}
			switch coding {
			case gzipped, "x-gzip":
				gzipWeight = max(gzipWeight, weight)
			case identity:
				identityWeight = max(identityWeight, weight)
			case "*":
				anyWeight = max(anyWeight, weight)
			}
		}
	}
	if gzipWeight == unset {
		gzipWeight = max(anyWeight, 0)
	}
	if identityWeight == unset {
		if identityWeight = anyWeight; anyWeight == unset {
			identityWeight = 1e-4 // less than any weight that can be given
		}
	}
	switch {
	case gzipWeight > 0 && gzipWeight >= identityWeight:
		return gzipped, true
	case identityWeight > 0:
		return identity, true
	}
	return "", false
}

// parseWeighted reads one clause of an Accept or Accept-Encoding header: what it names,
// in lower case and without parameters, and its weight.
func parseWeighted(clause string) (name string, weight float64, ok bool) {
	name, params, _ := strings.Cut(clause, ";")
	name = strings.ToLower(strings.TrimSpace(name))
	weight = 1
	for param := range strings.SplitSeq(params, ";") {
		key, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(key), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || !(q >= 0 && q <= 1) {
				return "", 0, false
			}
			weight = q
		}
	}
	return name, weight, name != ""
}

// wantsHTML reports whether a client asks for HTML, as browsers do and scrapers do not.
func wantsHTML(accept []string) bool {
	for _, value := range accept {
		for clause := range strings.SplitSeq(value, ",") {
			if name, weight, ok := parseWeighted(clause); ok && weight > 0 && name == "text/html" {
				return true
			}
		}
	}
	return false
}

// A buffer holds the bytes of a response. It is an io.Writer that appends.
type buffer struct{ b []byte }

func (b *buffer) Write(p []byte) (int, error) {
	b.b = append(b.b, p...)
	return len(p), nil
}

// A freeList keeps some things for their next use. Unlike a sync.Pool it keeps them as
// long as the process lives: responses are large, and a collection that took them away
// would make the next scrape allocate what soon makes the next collection due.
type freeList[T any] struct {
	mu   sync.Mutex
	free []T
}

// freeMost is how many things a freeList keeps: those of the two or three responses that
// are usually in the making or on their way.
const freeMost = 3

// get returns a thing that was put, if there is one.
func (l *freeList[T]) get() (thing T, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.free); n > 0 {
		thing, l.free = l.free[n-1], l.free[:n-1]
		return thing, true
	}
	return thing, false
}

func (l *freeList[T]) put(thing T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.free) < freeMost {
		l.free = append(l.free, thing)
	}
}

// plains, wires and compressors serve all responses. Compressed bodies, which are small,
// have buffers of their own.
var (
	plains, wires freeList[*buffer]
	compressors   freeList[*gzip.Writer]
)

func getCompressor() *gzip.Writer {
	if w, ok := compressors.get(); ok {
		return w
	}
	// Level 1: on merged metrics higher levels cost several times as much and save
	// little, and more than reading every source.
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(fmt.Sprintf("BUG: gzip level: %v", err))
	}
	return w
}

func getBuffer(from *freeList[*buffer]) *buffer {
	b, ok := from.get()
	if !ok {
		return new(buffer)
	}
	b.b = b.b[:0]
	return b
}

// compress appends the gzip form of plain to a buffer. The same input gives the same bytes.
func compress(dst *buffer, plain []byte) error {
	w := getCompressor()
	defer compressors.put(w)
	w.Reset(dst)
	if _, err := w.Write(plain); err != nil {
		return fmt.Errorf("compress response: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("compress response: %w", err)
	}
	return nil
}
