package serve

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forgetPages gives the kernel back the pages that lie whole in b, whose bytes are 0 from then on. The
// memory stays b's: whoever writes to it gets new pages. Unlike memory that the runtime gives back, this
// takes no collection of garbage.
func forgetPages(b []byte) {
	page := uintptr(os.Getpagesize())
	b = b[:cap(b)]
	start := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % page
	if end := uintptr(len(b)) - (uintptr(len(b))-start)%page; start < end {
		unix.Madvise(b[start:end], unix.MADV_DONTNEED) //nolint:errcheck // then it keeps them
		unix.Madvise(b[start:end], unix.MADV_HUGEPAGE) //nolint:errcheck // then it takes longer
	}
}
