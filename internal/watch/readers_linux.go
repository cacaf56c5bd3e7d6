package watch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Readers tells of other processes that list a directory or read its files (inotify(7): IN_OPEN of
// the directory, and IN_CLOSE_NOWRITE), and of files that come and go. An event has no process in
// it, so those that we raise ourselves must be marked: see Closing. Listing by a descriptor that stays open,
// as [Dir] does, raises none.
//
// The kernel queues an event before the call that raises it returns. So after Drain all is told
// that happened before it was called.
//
// What is hidden: of equal events one after the other that nobody has taken from the queue yet the
// kernel keeps one. The queue is bounded (fs.inotify.max_queued_events): Lost says when something
// was lost.
//
// Readers is safe for several goroutines.
type Readers struct {
	looker *looker
	watch  int32
	each   func(Look)

	// mu guards what follows. Whoever holds it waits for nothing.
	mu     sync.Mutex
	closed bool
	own    map[string]int // ends that we raise ourselves, by name
}

// A looker is the inotify instance of a hub for readers. The one of fsnotify does not tell who opens a file.
type looker struct {
	file  *os.File // not blocking
	fd    int
	ended chan struct{} // closed when run has ended

	// mu guards what follows, and reading from fd. Events are told while it is held.
	mu      sync.Mutex
	closed  bool
	byWatch map[int32][]*Readers
	buf     [16 << 10]byte
}

// OpenReaders begins to watch the directory that is open as dir, and tells each look, one after the
// other, from a goroutine of the hub and from within Drain. All directories of a hub share one inotify
// instance and this goroutine. An error wraps that of the operating system: EMFILE and ENOSPC say that
// the limits of inotify are reached.
func (h *Hub) OpenReaders(dir int, each func(Look)) (*Readers, error) {
	h.looking.Lock()
	defer h.looking.Unlock()
	l := h.looker
	if l == nil {
		fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("watch readers: %w", os.NewSyscallError("inotify_init1", err))
		}
		l = &looker{fd: fd, file: os.NewFile(uintptr(fd), "inotify"), ended: make(chan struct{}), byWatch: map[int32][]*Readers{}}
		// Ends when the instance is closed, with the last Readers.
		go l.run()
		h.looker = l
	}
	r, err := l.add(dir, each)
	if err != nil && l.empty() {
		h.looker = nil
		l.end() //nolint:errcheck // nothing was written to it
	}
	return r, err
}

func (l *looker) add(dir int, each func(Look)) (*Readers, error) {
	const events = unix.IN_OPEN | unix.IN_CLOSE_NOWRITE | unix.IN_ONLYDIR |
		unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_DELETE | unix.IN_MOVED_FROM
	l.mu.Lock()
	defer l.mu.Unlock()
	// inotify takes a path only; this one leads to what dir is, wherever that is now.
	wd, err := unix.InotifyAddWatch(l.fd, "/proc/self/fd/"+strconv.Itoa(dir), events)
	if err != nil {
		return nil, fmt.Errorf("watch readers: %w", os.NewSyscallError("inotify_add_watch", err))
	}
	r := &Readers{looker: l, watch: int32(wd), each: each, own: map[string]int{}}
	l.byWatch[r.watch] = append(l.byWatch[r.watch], r)
	return r, nil
}

func (l *looker) empty() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.byWatch) == 0
}

// end closes the instance.
func (l *looker) end() error {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	err := l.file.Close() // wakes run, which may wait for mu
	<-l.ended
	return err
}

// CloseReaders ends a watch. The error is os.ErrClosed if it has ended.
func (h *Hub) CloseReaders(r *Readers) error {
	h.looking.Lock()
	defer h.looking.Unlock()
	r.mu.Lock()
	closed := r.closed
	r.closed = true
	r.mu.Unlock()
	if closed {
		return os.ErrClosed
	}
	l := r.looker
	l.mu.Lock()
	rest := slices.DeleteFunc(l.byWatch[r.watch], func(other *Readers) bool { return other == r })
	if l.byWatch[r.watch] = rest; len(rest) == 0 {
		delete(l.byWatch, r.watch)
		_, _ = unix.InotifyRmWatch(l.fd, uint32(r.watch)) // gone by itself where the directory is gone
	}
	l.mu.Unlock()
	if !l.empty() {
		return nil
	}
	h.looker = nil
	return l.end()
}

// Closing says that the caller is about to close a file that it has opened for reading by that
// name; if it has mapped it, both, and this is about the later of the two.
func (r *Readers) Closing(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.closed {
		r.own[name]++
	}
}

// Drain tells of everything that others have done up to this moment, in all directories of the hub.
func (r *Readers) Drain() {
	r.looker.mu.Lock()
	defer r.looker.mu.Unlock()
	r.looker.pump()
}

// run tells of looks as they come, until the instance is closed.
func (l *looker) run() {
	defer close(l.ended)
	conn, err := l.file.SyscallConn()
	for err == nil {
		err = conn.Read(func(uintptr) bool {
			l.mu.Lock()
			defer l.mu.Unlock()
			return l.pump()
		})
	}
}

// pump reads what is in the kernel's queue, and reports whether there was something. The caller
// holds mu.
func (l *looker) pump() (some bool) {
	for !l.closed {
		n, err := unix.Read(l.fd, l.buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return some // EAGAIN: nothing more
		}
		some = true
		now := time.Now()
		for raw := l.buf[:n]; len(raw) >= unix.SizeofInotifyEvent; {
			wd, mask := int32(binary.NativeEndian.Uint32(raw)), binary.NativeEndian.Uint32(raw[4:])
			size := int(binary.NativeEndian.Uint32(raw[12:]))
			name, _, _ := bytes.Cut(raw[unix.SizeofInotifyEvent:][:size], []byte{0})
			raw = raw[unix.SizeofInotifyEvent+size:]
			l.event(wd, mask, name, now)
		}
	}
	return some
}

// event tells of one event those whom it is for. The caller holds mu.
func (l *looker) event(wd int32, mask uint32, name []byte, now time.Time) {
	if mask&unix.IN_Q_OVERFLOW == 0 {
		for _, r := range l.byWatch[wd] {
			r.event(mask, name, now)
		}
		return
	}
	for _, all := range l.byWatch {
		for _, r := range all {
			r.event(mask, nil, now)
		}
	}
}

// event tells of one event, unless it is our own.
func (r *Readers) event(mask uint32, name []byte, now time.Time) {
	directory := mask&unix.IN_ISDIR != 0
	switch {
	case mask&(unix.IN_Q_OVERFLOW|unix.IN_IGNORED|unix.IN_UNMOUNT) != 0:
		// After the last two nothing will be told any more. What was expected may be lost.
		r.forget()
		r.each(Look{Kind: Lost, Seen: now})
	case directory && len(name) > 0: // a directory in the directory
	case directory && mask&unix.IN_OPEN != 0:
		r.each(Look{Kind: Listed, Seen: now})
	case directory:
		r.each(Look{Kind: ListingEnd, Seen: now})
	case mask&(unix.IN_CREATE|unix.IN_MOVED_TO) != 0:
		r.each(Look{Kind: Created, Name: string(name), Seen: now})
	case mask&(unix.IN_DELETE|unix.IN_MOVED_FROM) != 0:
		r.each(Look{Kind: Removed, Name: string(name), Seen: now})
	case mask&unix.IN_CLOSE_NOWRITE == 0:
		r.each(Look{Kind: Opened, Name: string(name), Seen: now})
	case !r.isOwn(name):
		r.each(Look{Kind: ReadEnd, Name: string(name), Seen: now})
	}
}

// forget drops what was expected.
func (r *Readers) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.own)
}

// isOwn reports whether the end of a read is one that we raised ourselves, of which there is one less
// from then on.
func (r *Readers) isOwn(name []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.own[string(name)]
	switch {
	case n > 1:
		r.own[string(name)] = n - 1
	case n > 0:
		delete(r.own, string(name))
	}
	return n > 0
}
