//go:build !linux

package watch

import "context"

// Readers does not exist outside of Linux.
type Readers struct{}

// OpenReaders fails with [ErrReadersUnsupported].
func OpenReaders(int) (*Readers, error) { return nil, ErrReadersUnsupported }

// Close does nothing.
func (*Readers) Close() error { return nil }

// Opening does nothing.
func (*Readers) Opening(string) (done func(opened bool)) { return func(bool) {} }

// Closing does nothing.
func (*Readers) Closing(string) {}

// Looks says that everything may have been looked at.
func (*Readers) Looks(dst []Look) (looks []Look, lost bool) { return dst, true }

// Run fails with [ErrReadersUnsupported].
func (*Readers) Run(context.Context, func()) error { return ErrReadersUnsupported }
