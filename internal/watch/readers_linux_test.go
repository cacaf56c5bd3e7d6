package watch

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openReaders(t *testing.T, h *Hub, dir string, each func(Look)) *Readers {
	t.Helper()
	d, err := os.Open(dir)
	mustDo(t, err)
	defer d.Close()
	r, err := h.OpenReaders(int(d.Fd()), each)
	mustDo(t, err)
	t.Cleanup(func() {
		if err := h.CloseReaders(r); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return r
}

func TestReaders(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "counter_1.db")
	touch(t, path)
	mustDo(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
	lister := NewDir(dir)
	defer lister.Close()
	_, err := lister.Scan(true)
	mustDo(t, err)
	var mu sync.Mutex
	var looks []Look
	r := openReaders(t, &Hub{}, dir, func(l Look) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(l.Seen) > time.Minute {
			t.Errorf("seen at %v", l.Seen)
		}
		l.Seen = time.Time{}
		looks = append(looks, l)
	})
	want := func(want ...Look) {
		t.Helper()
		r.Drain()
		mu.Lock()
		defer mu.Unlock()
		if !slices.Equal(looks, want) {
			t.Errorf("got %v, want %v", looks, want)
		}
		looks = nil
	}
	want(Look{Kind: ListingEnd}) // of our own open of the directory

	_, err = lister.Scan(true)
	mustDo(t, err)
	want() // not by a descriptor that stays open

	_, err = os.ReadDir(dir)
	mustDo(t, err)
	_, err = os.ReadDir(filepath.Join(dir, "sub"))
	mustDo(t, err)
	want(Look{Kind: Listed}, Look{Kind: ListingEnd})

	_, err = os.ReadFile(path)
	mustDo(t, err)
	touch(t, path) // a writer
	opened, read := Look{Kind: Opened, Name: "counter_1.db"}, Look{Kind: ReadEnd, Name: "counter_1.db"}
	want(opened, read, opened)

	f, err := os.Open(path)
	mustDo(t, err)
	r.Closing("counter_1.db")
	mustDo(t, f.Close())
	want(opened)
	_, err = os.ReadFile(path)
	mustDo(t, err)
	want(opened, read) // only once it was ours

	r.Closing("counter_1.db")
	r.event(unix.IN_Q_OVERFLOW, nil, time.Now())
	_, err = os.ReadFile(path)
	mustDo(t, err)
	want(Look{Kind: Lost}, opened, read)

	other := filepath.Join(dir, "counter_2.db")
	touch(t, other)
	mustDo(t, os.Rename(other, path))
	mustDo(t, os.Remove(path))
	want(Look{Kind: Created, Name: "counter_2.db"}, Look{Kind: Opened, Name: "counter_2.db"}, Look{Kind: Removed, Name: "counter_2.db"},
		Look{Kind: Created, Name: "counter_1.db"}, Look{Kind: Removed, Name: "counter_1.db"})

	if _, err := (&Hub{}).OpenReaders(-1, nil); err == nil {
		t.Error("a bad descriptor is watched")
	}
}

// TestReadersShared has many directories watched by one instance, which ends with the last of them.
func TestReadersShared(t *testing.T) {
	var h Hub
	looks := make(chan string, 64)
	tell := func(who string) func(Look) {
		return func(l Look) {
			if l.Kind == Listed || l.Kind == Lost {
				looks <- who + strconv.Itoa(int(l.Kind))
			}
		}
	}
	var dirs []string
	var all []*Readers
	for i := range 3 {
		dirs = append(dirs, t.TempDir())
		all = append(all, openReaders(t, &h, dirs[i], tell(strconv.Itoa(i))))
	}
	d, err := os.Open(dirs[0])
	mustDo(t, err)
	defer d.Close()
	if got := <-looks; got != "00" {
		t.Errorf("told %q", got)
	}
	twice, err := h.OpenReaders(int(d.Fd()), tell("twice"))
	mustDo(t, err)
	list := func(i int, want ...string) {
		t.Helper()
		_, err := os.ReadDir(dirs[i])
		mustDo(t, err)
		for _, want := range want {
			if got := <-looks; got != want { // told by the goroutine of the hub
				t.Errorf("told %q, want %q", got, want)
			}
		}
	}
	list(0, "00", "twice0")
	mustDo(t, h.CloseReaders(twice))
	if err := h.CloseReaders(twice); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	list(0, "00")
	list(2, "20")
	l := h.looker
	l.mu.Lock()
	l.event(-1, unix.IN_Q_OVERFLOW, nil, time.Now())
	l.mu.Unlock()
	lost := []string{<-looks, <-looks, <-looks}
	if slices.Sort(lost); !slices.Equal(lost, []string{"06", "16", "26"}) {
		t.Errorf("told %v", lost)
	}
	for _, r := range all {
		mustDo(t, h.CloseReaders(r))
		r.Drain()
	}
	if h.looker != nil {
		t.Error("the instance is open")
	}
	if _, err := h.OpenReaders(-1, nil); err == nil || h.looker != nil {
		t.Errorf("a bad descriptor is watched: %v", err)
	}
}

func TestWriteLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counter_1.db")
	touch(t, path)
	f, err := os.Open(path)
	mustDo(t, err)
	defer f.Close()
	fd := int(f.Fd())
	other, err := os.Open(path)
	mustDo(t, err)
	if granted, err := TryWriteLease(fd); granted || err != nil {
		t.Fatalf("granted beside a reader: %v, %v", granted, err)
	}
	mustDo(t, other.Close())
	for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
		granted, err := TryWriteLease(fd)
		if !granted || err != nil {
			t.Skipf("no leases here: %v, %v", granted, err)
		}
		// O_NONBLOCK: it does not wait, but the lease is being broken as if it did.
		if fd, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != unix.EWOULDBLOCK {
			t.Errorf("open returns %d, %v", fd, err)
		}
		mustDo(t, ReleaseLease(fd))
		opened, err := unix.Open(path, flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		mustDo(t, err)
		mustDo(t, unix.Close(opened))
	}
	if _, err := TryWriteLease(-1); err == nil {
		t.Error("a bad descriptor has a lease")
	}
}
