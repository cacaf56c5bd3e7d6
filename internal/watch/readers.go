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
	// Opened: a file was opened, for whatever.
	Opened
	// ReadEnd: a file that was open for reading only was closed. The last mapping of a file counts
	// as open.
	ReadEnd
	// Created: a file came to be, or got this name. Removed: it went, or got another name.
	Created
	Removed
	// Lost: events were lost. Take it as if everything had been looked at.
	Lost
)

// A Look is something that another process has done in the directory.
type Look struct {
	Kind LookKind
	// Name is that of the file; empty for the directory itself.
	Name string
	// Seen is when we learned of it, which is no earlier than when it happened.
	Seen time.Time
}
