package watch

import (
	"errors"
	"time"
)

// ErrReadersUnsupported says that this operating system does not tell who else looks at a
// directory.
var ErrReadersUnsupported = errors.New("only Linux tells who else reads a directory")

// LookKind says what somebody has done.
type LookKind uint8

// The kinds of a Look.
const (
	// Listed: the directory was opened, to be listed; ListingEnd: it was closed.
	Listed LookKind = iota
	ListingEnd
	// Opened: a file of the directory was opened, to be read or written.
	Opened
	// ReadEnd: a file that was open for reading only was closed; WriteEnd: another one. The
	// last mapping of a file counts as open.
	ReadEnd
	WriteEnd
)

// A Look is something that another process has done in the directory.
type Look struct {
	Kind LookKind
	// Name is that of the file; empty for the directory itself.
	Name string
	// Seen is when we learned of it, which is no earlier than when it happened.
	Seen time.Time
}

// maxLooks is how many looks are kept for Looks.
const maxLooks = 4096

// expected are events that we raise ourselves, by name.
type expected map[LookKind]map[string]int

// take reports whether an event is one of them, which is then no longer expected.
func (e expected) take(kind LookKind, name string) bool {
	n := e[kind][name]
	switch n {
	case 0:
		return false
	case 1:
		delete(e[kind], name)
	default:
		e[kind][name] = n - 1
	}
	return true
}

func (e expected) add(kind LookKind, name string) {
	if e[kind] == nil {
		e[kind] = map[string]int{}
	}
	e[kind][name]++
}
