//go:build !linux

package watch

// Readers does not exist outside of Linux.
type Readers struct{}

type looker struct{}

// OpenReaders fails with [ErrReadersUnsupported].
func (*Hub) OpenReaders(int, func(Look)) (*Readers, error) { return nil, ErrReadersUnsupported }

// CloseReaders does nothing.
func (*Hub) CloseReaders(*Readers) error { return nil }

// Closing does nothing.
func (*Readers) Closing(string) {}

// Drain does nothing.
func (*Readers) Drain() {}
