//go:build !linux

package store

import (
	"os"
	"time"
)

// created returns the time of modification.
func created(f *os.File) (time.Time, error) { return modified(f) }
