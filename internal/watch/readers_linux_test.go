package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openReaders(t *testing.T, dir string) *Readers {
	t.Helper()
	d, err := os.Open(dir)
	mustDo(t, err)
	defer d.Close()
	r, err := OpenReaders(int(d.Fd()))
	mustDo(t, err)
	t.Cleanup(func() {
		if err := r.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	r.Looks(nil) // our own open of the directory is closed later
	return r
}

func wantLooks(t *testing.T, r *Readers, want ...Look) {
	t.Helper()
	got, lost := r.Looks(nil)
	for i := range got {
		if time.Since(got[i].Seen) > time.Minute {
			t.Errorf("seen at %v", got[i].Seen)
		}
		got[i].Seen = time.Time{}
	}
	if !slices.Equal(got, want) || lost {
		t.Errorf("got %v, lost is %v, want %v", got, lost, want)
	}
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
	r := openReaders(t, dir)
	r.Looks(nil) // the end of the open above
	if _, lost := r.Looks(nil); lost {
		t.Fatal("lost")
	}

	_, err = lister.Scan(true)
	mustDo(t, err)
	wantLooks(t, r) // not by a descriptor that stays open

	_, err = os.ReadDir(dir)
	mustDo(t, err)
	_, err = os.ReadDir(filepath.Join(dir, "sub"))
	mustDo(t, err)
	wantLooks(t, r, Look{Kind: Listed}, Look{Kind: ListingEnd})

	_, err = os.ReadFile(path)
	mustDo(t, err)
	touch(t, path)
	wantLooks(t, r, Look{Kind: Opened, Name: "counter_1.db"}, Look{Kind: ReadEnd, Name: "counter_1.db"},
		Look{Kind: Opened, Name: "counter_1.db"}, Look{Kind: WriteEnd, Name: "counter_1.db"})

	// Ours.
	done := r.Opening("counter_1.db")
	f, err := os.Open(path)
	mustDo(t, err)
	done(true)
	wantLooks(t, r)
	r.Closing("counter_1.db")
	mustDo(t, f.Close())
	wantLooks(t, r)
	if len(r.own[Opened])+len(r.own[ReadEnd]) != 0 {
		t.Errorf("still expected: %v", r.own)
	}

	// Ours failed, and meanwhile somebody else opened the file.
	done = r.Opening("counter_1.db")
	f, err = os.Open(path)
	mustDo(t, err)
	wantLooks(t, r)
	done(false)
	wantLooks(t, r, Look{Kind: Opened, Name: "counter_1.db"})
	mustDo(t, f.Close())
	done = r.Opening("counter_1.db")
	done(false)
	wantLooks(t, r, Look{Kind: ReadEnd, Name: "counter_1.db"})

	if _, err := OpenReaders(-1); err == nil {
		t.Error("a bad descriptor is watched")
	}
}

func TestReadersOverflow(t *testing.T) {
	r := openReaders(t, t.TempDir())
	for i := range maxLooks + 1 {
		r.event(unix.IN_OPEN, fmt.Sprint(i), time.Now())
	}
	if got, lost := r.Looks(nil); len(got) != maxLooks || !lost {
		t.Errorf("%d looks, lost is %v", len(got), lost)
	}
	r.Opening("x")
	r.event(unix.IN_Q_OVERFLOW, "", time.Now())
	if got, lost := r.Looks(nil); len(got) != 0 || !lost {
		t.Errorf("%v, lost is %v", got, lost)
	}
	r.event(unix.IN_OPEN, "x", time.Now()) // ours may be among what was lost
	wantLooks(t, r, Look{Kind: Opened, Name: "x"})
}

// TestReadersRun ends by its context and by Close.
func TestReadersRun(t *testing.T) {
	for _, byClose := range []bool{false, true} {
		dir := t.TempDir()
		r := openReaders(t, dir)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		wake, ended := make(chan struct{}, 1), make(chan error, 1)
		// Ends below.
		go func() {
			ended <- r.Run(ctx, func() {
				select {
				case wake <- struct{}{}:
				default:
				}
			})
		}()
		for range 3 {
			_, err := os.ReadDir(dir)
			mustDo(t, err)
			<-wake
			if got, _ := r.Looks(nil); len(got) == 0 {
				<-wake // that was for the one before
			}
		}
		if byClose {
			mustDo(t, r.Close())
			if err := <-ended; err == nil {
				t.Error("no error, though it was closed")
			}
			if err := r.Close(); !errors.Is(err, os.ErrClosed) {
				t.Error(err)
			}
			if got, _ := r.Looks(nil); len(got) > 2 {
				t.Error(got)
			}
		} else {
			cancel()
			mustDo(t, <-ended)
		}
	}
}

func TestWriteLease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counter_1.db")
	touch(t, path)
	f, err := os.Open(path)
	mustDo(t, err)
	defer f.Close()
	fd := int(f.Fd())
	state := func(want Lease) {
		t.Helper()
		if got, err := LeaseState(fd); err != nil || got != want {
			t.Errorf("state %v, %v, want %v", got, err, want)
		}
	}
	state(NotHeld)
	other, err := os.Open(path)
	mustDo(t, err)
	if granted, err := TryWriteLease(fd); granted || err != nil {
		t.Fatalf("granted beside a reader: %v, %v", granted, err)
	}
	mustDo(t, other.Close())
	for name, test := range map[string]struct {
		flags   int
		waiting Lease
	}{
		"reader": {unix.O_RDONLY, HeldForReading},
		"writer": {unix.O_RDWR, NotHeld},
	} {
		granted, err := TryWriteLease(fd)
		if !granted || err != nil {
			t.Skipf("no leases here: %v, %v", granted, err)
		}
		state(HeldForWriting)
		// O_NONBLOCK: it does not wait, but the lease is being broken as if it did.
		if fd, err := unix.Open(path, test.flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err != unix.EWOULDBLOCK {
			t.Errorf("%s: open returns %d, %v", name, fd, err)
		}
		state(test.waiting)
		mustDo(t, ReleaseLease(fd))
		state(NotHeld)
		opened, err := unix.Open(path, test.flags|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		mustDo(t, err)
		mustDo(t, unix.Close(opened))
	}
	if _, err := LeaseState(-1); err == nil {
		t.Error("a bad descriptor has a lease")
	}
}
