package watch

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Readers tells of other processes that list a directory or open its files (inotify(7):
// IN_OPEN and the two of closing, which fsnotify does not pass on). An event has no process in
// it, so those that we raise ourselves must be marked: see Opening and Closing. Listing by
// a descriptor that stays open, as [Dir] does, raises none.
//
// The kernel queues an event before the call that raises it returns. So what Looks returns is
// all that happened before it was called, and a caller who has heard of no listing and opens
// nothing by itself knows that nobody began one.
//
// What is hidden: of equal events one after the other the kernel keeps one. Another's open
// of the very file that we open at that moment may pass for ours; the listing before it and the
// close after it are seen. Its queue is bounded (fs.inotify.max_queued_events), as is ours:
// Looks says when something was lost.
//
// Readers is safe for several goroutines.
type Readers struct {
	file *os.File // the inotify instance, not blocking
	fd   int

	// mu guards what follows, and reading from fd.
	mu     sync.Mutex
	closed bool
	looks  []Look
	lost   bool
	own    expected
	buf    [16 << 10]byte
}

// OpenReaders begins to watch the directory that is open as dir. It starts no goroutine; see
// Run. An error wraps that of the operating system: EMFILE and ENOSPC say that the limits of
// inotify are reached.
func OpenReaders(dir int) (*Readers, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch readers: %w", os.NewSyscallError("inotify_init1", err))
	}
	const events = unix.IN_OPEN | unix.IN_CLOSE_NOWRITE | unix.IN_CLOSE_WRITE | unix.IN_ONLYDIR
	// inotify takes a path only; this one leads to what dir is, wherever that is now.
	if _, err := unix.InotifyAddWatch(fd, "/proc/self/fd/"+strconv.Itoa(dir), events); err != nil {
		closeFd(fd)
		return nil, fmt.Errorf("watch readers: %w", os.NewSyscallError("inotify_add_watch", err))
	}
	return &Readers{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), own: expected{}}, nil
}

// Close ends the watch, and Run with it.
func (r *Readers) Close() error {
	if !r.end() {
		return os.ErrClosed
	}
	// It waits for Run, which may wait for mu.
	return r.file.Close()
}

// end reports whether it is the first to end the watch.
func (r *Readers) end() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	first := !r.closed
	r.closed = true
	return first
}

// Opening says that the caller is about to open the file with that name in the directory.
// Afterwards it calls done, with whether the file was opened.
func (r *Readers) Opening(name string) (done func(opened bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own.add(Opened, name)
	return func(opened bool) {
		if opened {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.pump()
		if !r.own.take(Opened, name) {
			// What has passed for ours was another's.
			r.add(Look{Opened, name, time.Now()})
		}
	}
}

// Closing says that the caller is about to close a file that it has open for reading and that
// has that name now; if it has mapped it, both, and this is about the later of the two.
func (r *Readers) Closing(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.own.add(ReadEnd, name)
}

// Looks appends to dst what others have done since the last call, up to this moment. lost says
// that there was more: take it as if everything had been looked at.
func (r *Readers) Looks(dst []Look) (looks []Look, lost bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pump()
	dst, lost = append(dst, r.looks...), r.lost
	clear(r.looks)
	r.looks, r.lost = r.looks[:0], false
	return dst, lost
}

// Run calls wake when there is something for Looks, until ctx is done (then it returns nil) or
// the Readers is closed. Wake must not block: let it put a token into a channel of size one. It
// may be called when another call of Looks was quicker.
func (r *Readers) Run(ctx context.Context, wake func()) error {
	conn, err := r.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watch readers: %w", err)
	}
	// It ends with the next event at the latest when the context is done: a deadline in the past
	// wakes whoever waits for one.
	stop := context.AfterFunc(ctx, func() { _ = r.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for ctx.Err() == nil {
		err := conn.Read(func(uintptr) bool {
			r.mu.Lock()
			defer r.mu.Unlock()
			return r.pump() || ctx.Err() != nil
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("watch readers: %w", err)
		}
		wake()
	}
	return nil
}

// pump reads what is in the kernel's queue. It reports whether there was something of
// interest. The caller holds mu.
func (r *Readers) pump() (some bool) {
	for !r.closed {
		n, err := unix.Read(r.fd, r.buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return some // EAGAIN: nothing more
		}
		now := time.Now()
		for raw := r.buf[:n]; len(raw) >= unix.SizeofInotifyEvent; {
			mask, size := binary.NativeEndian.Uint32(raw[4:]), int(binary.NativeEndian.Uint32(raw[12:]))
			name, _, _ := bytes.Cut(raw[unix.SizeofInotifyEvent:][:size], []byte{0})
			raw = raw[unix.SizeofInotifyEvent+size:]
			some = r.event(mask, string(name), now) || some
		}
	}
	return some
}

// event takes note of one event, unless it is our own.
func (r *Readers) event(mask uint32, name string, now time.Time) bool {
	var kind LookKind
	switch {
	case mask&(unix.IN_Q_OVERFLOW|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
		// After the last two nothing will be told any more. What was expected may be lost.
		r.lost = true
		clear(r.own)
		return true
	case mask&unix.IN_ISDIR != 0 && name != "":
		return false // a directory in the directory
	case mask&unix.IN_OPEN != 0:
		kind = Opened
	case mask&unix.IN_CLOSE_NOWRITE != 0:
		kind = ReadEnd
	default:
		kind = WriteEnd
	}
	if mask&unix.IN_ISDIR != 0 {
		if kind == Opened {
			kind = Listed
		} else {
			kind = ListingEnd
		}
	} else if r.own.take(kind, name) {
		return false
	}
	r.add(Look{kind, name, now})
	return true
}

func (r *Readers) add(l Look) {
	if len(r.looks) == maxLooks {
		r.lost = true
		return
	}
	r.looks = append(r.looks, l)
}
