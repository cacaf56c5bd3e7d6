package store

import (
	"errors"
	"fmt"
	"io/fs"
)

// A Reason says in one word why a file, or the end of one, could not be read. It is a
// closed set of short names, fit for the label of a metric.
type Reason string

// The reasons.
const (
	// ShortHeader: the file has 1 to 7 bytes.
	ShortHeader Reason = "short_header"
	// UsedNegative: the header's used bytes are below zero.
	UsedNegative Reason = "used_negative"
	// UsedMisaligned: they are neither 0 nor a multiple of 8.
	UsedMisaligned Reason = "used_misaligned"
	// UsedPastEnd: they are more than the file has.
	UsedPastEnd Reason = "used_past_end"
	// UsedShrunk: they are fewer than they were. Such a File is lost: see [File].
	UsedShrunk Reason = "used_shrunk"
	// BadKeyLength: a key's length is zero, negative or more than the file has.
	BadKeyLength Reason = "bad_key_length"
	// BadPadding: a key is followed by something else than spaces.
	BadPadding Reason = "bad_padding"
	// KeyTooLong: a key is longer than Limits.KeyBytes. It costs its own entry only.
	KeyTooLong Reason = "key_too_long"
	// BadKey: a key is not the JSON it should be, which costs its own entry; or it has zero
	// bytes in it while somebody may write to the file.
	BadKey Reason = "bad_key"
	// TornEntry: an entry runs past the used bytes.
	TornEntry Reason = "torn_entry"
	// Overwritten: the bytes of entries are not what they were, or what looks like a value is a
	// part of a key. It is what several processes make of a file that all of them write. If
	// known entries are concerned, the File is lost: see [File].
	Overwritten Reason = "overwritten"
	// Shrunk: the file was truncated under the reader. Such a File is lost: see [File].
	Shrunk Reason = "shrunk"
	// NotRegular: a symbolic link, directory, FIFO, socket or device.
	NotRegular Reason = "not_regular"
	// TooLarge: the file is larger than Limits.FileBytes.
	TooLarge Reason = "too_large"
	// Permission: the operating system does not let us read it.
	Permission Reason = "permission"
	// Gone: there is no such file any more.
	Gone Reason = "gone"
	// UnknownMode: the file's name holds a gauge mode nobody knows.
	UnknownMode Reason = "unknown_mode"
	// Foreign: the file's name is none of ours.
	Foreign Reason = "foreign"
	// IO: any other error of the operating system.
	IO Reason = "io"
)

// Reasons lists all reasons, so that a counter by reason can be there before it counts.
func Reasons() []Reason {
	return []Reason{
		ShortHeader, UsedNegative, UsedMisaligned, UsedPastEnd, UsedShrunk, BadKeyLength, BadPadding, KeyTooLong, BadKey, TornEntry,
		Overwritten, Shrunk, NotRegular, TooLarge, Permission, Gone, UnknownMode, Foreign, IO,
	}
}

// Errors of [Open] and [Inspect] beside those of the operating system. Test with errors.Is.
var (
	ErrNotRegular = errors.New("not a regular file")
	ErrTooLarge   = errors.New("larger than the limit")
)

// A CorruptionError says that the bytes of a source file are not what its writer wrote,
// or went away under the reader. What was read before it stays good.
type CorruptionError struct {
	Path string
	// Offset is where the damage begins, in bytes from the start of the file.
	Offset int64
	Reason Reason
	// Err says it in words.
	Err error
}

func (e *CorruptionError) Error() string {
	return fmt.Sprintf("source file %q is damaged at byte %d (%s): %v", e.Path, e.Offset, e.Reason, e.Err)
}

// Unwrap returns the cause.
func (e *CorruptionError) Unwrap() error { return e.Err }

// A KeyTooLongError says that a key is longer than Limits.KeyBytes. Its entry is left out;
// those behind it are not. See [File.SetLimits] for what a higher limit changes.
type KeyTooLongError struct {
	// Offset is where the entry begins, in bytes from the start of the file.
	Offset int64
	// KeyBytes is how long the key is, Limit how long it may be.
	KeyBytes, Limit int
}

func (e *KeyTooLongError) Error() string {
	return fmt.Sprintf("the key at byte %d has %d bytes; limits.key_length allows %d", e.Offset, e.KeyBytes, e.Limit)
}

// ReasonOf returns the reason of an error of this package, IO for any other error and ""
// for nil.
func ReasonOf(err error) Reason {
	var damaged *CorruptionError
	var key *KeyError
	var long *KeyTooLongError
	switch {
	case err == nil:
		return ""
	case errors.As(err, &damaged):
		return damaged.Reason
	case errors.As(err, &key):
		return BadKey
	case errors.As(err, &long):
		return KeyTooLong
	case errors.Is(err, ErrNotRegular):
		return NotRegular
	case errors.Is(err, ErrTooLarge):
		return TooLarge
	case errors.Is(err, ErrUnknownMode):
		return UnknownMode
	case errors.Is(err, ErrForeign):
		return Foreign
	case errors.Is(err, fs.ErrNotExist):
		return Gone
	case errors.Is(err, fs.ErrPermission):
		return Permission
	}
	return IO
}
