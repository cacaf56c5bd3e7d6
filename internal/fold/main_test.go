package fold

import (
	"io/fs"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"aggregatord/internal/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// identity returns what a file is.
func identity(info fs.FileInfo) store.Identity {
	st := info.Sys().(*syscall.Stat_t)
	return store.Identity{Dev: uint64(st.Dev), Ino: st.Ino} //nolint:unconvert // Dev is an int32 on macOS
}
