package mirror

import (
	"hash/fnv"
	"strings"

	"aggregatord/internal/store"
)

// The IDs of mirror files, by width. They are numbers, as tools that read IDs expect. No process has
// a number with leading zeros, and none has 0; who asks kill(2) whether process 0 exists asks for
// its own process group, which does. So a tool that removes the files of the dead leaves these.
// Clients of one width cannot read files of the other, so each has its own.
const (
	idWide   = "00000000"
	idNarrow = "0000000"
)

// FileTag is the tag of a mirror file: "agmr" in the file.
const FileTag = 0x726d6761

// Prefix begins the names of the hidden files of the room.
const Prefix = ".aggregatord.mirror."

const (
	journalName = Prefix + "journal"
	tempSuffix  = ".tmp"
)

// IsName reports whether a mirror file may have this name. Whether it is one its tag says: see Is.
func IsName(base string) bool {
	stem, ok := strings.CutSuffix(base, store.Extension)
	return ok && (strings.HasSuffix(stem, "_"+idWide) || strings.HasSuffix(stem, "_"+idNarrow))
}

// Is reports whether the file of that name, in the directory that is open as dir, is a mirror file.
func Is(dir int, base string) bool {
	if !IsName(base) {
		return false
	}
	h, err := store.ReadHeadAt(dir, base)
	return err == nil && h.Tag == FileTag
}

// Tag returns the tag of a staged file with this record, which says by what name it is hidden.
// Drained is its tag after Drain.
func Tag(record string, drained bool) uint32 {
	h := fnv.New32a()
	h.Write([]byte(record))
	tag := h.Sum32() &^ 1
	if tag == 0 || tag == FileTag&^1 {
		tag = 2
	}
	if drained {
		tag |= 1
	}
	return tag
}
