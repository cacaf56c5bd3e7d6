package store

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/deltas"
)

// TestNoPermission opens a file that another user may not read.
func TestNoPermission(t *testing.T) {
	path := write(t, wide().add(k1, 1, now).honest())
	if err := errors.Join(os.Chmod(path, 0), os.Chmod(filepath.Dir(path), 0o755),
		os.Chmod(filepath.Dir(filepath.Dir(path)), 0o755)); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		// Root may read everything. The file system's idea of who asks belongs to the
		// thread (setfsuid(2)), and takes the capability away with it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if _, err := unix.SetfsuidRetUid(65534); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _, err := unix.SetfsuidRetUid(0); err != nil {
				t.Error(err)
			}
		}()
	}
	_, err := Open(path, SourceName{}, Limits{})
	if ReasonOf(err) != Permission || !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), path) {
		t.Errorf("Open: %v", err)
	}
	if _, err := Inspect(path, Limits{}); ReasonOf(err) != Permission {
		t.Errorf("Inspect: %v", err)
	}
}

func init() { children["no_mappings_left"] = noMappingsLeft }

// TestNoMappingsLeft reads a file in a process that has as many mappings as it may have.
func TestNoMappingsLeft(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err != nil {
		t.Skip("no vm.max_map_count:", err)
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	if limit > 300_000 {
		t.Skipf("it would take too long to use up %d mappings", limit)
	}
	path := write(t, bigImage(Wide, 500).honest())
	cmd := exec.Command(os.Args[0], path)
	cmd.Env = append(os.Environ(), childVariable+"=no_mappings_left")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "read without a mapping, then mapped") {
		t.Errorf("%v\n%s", err, out)
	}
}

// keepRuntimeFromMapping has the runtime map beforehand what the program may need until it
// ends. A runtime that cannot map what it needs ends the program.
func keepRuntimeFromMapping() {
	// With one P nobody else has what a sync.Pool keeps, and fewer threads are started.
	runtime.GOMAXPROCS(1)
	var wg sync.WaitGroup
	locked := make(chan struct{})
	for range 16 { // threads, which stay when their goroutines end
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			<-locked
		})
	}
	time.Sleep(10 * time.Millisecond)
	close(locked)
	wg.Wait()
	var spans [][]byte // and what describes them: small ones, large ones
	for i := range 4096 {
		spans = append(spans, make([]byte, 4<<10<<(i%5)))
	}
	runtime.KeepAlive(spans)
	runtime.GC() // here they are no longer in use
	debug.SetGCPercent(-1)
}

func noMappingsLeft() {
	check := func(ok bool, what ...any) {
		if !ok {
			fmt.Println(what...)
			os.Exit(1)
		}
	}
	keepRuntimeFromMapping()
	f, err := Open(os.Args[1], SourceName{}, Limits{})
	check(err == nil, err)
	slots := &deltas.List{}
	check(f.Learn(func(e Entry) { slots.Append(e.Slot) }) == nil, "learn")
	values, stamps := make([]float64, slots.Len()), make([]float64, slots.Len())
	want := make([]float64, slots.Len())
	for i := range want {
		want[i] = float64(i)
	}
	// Enough of them that some remain where the race detector throws away what is put.
	for range 64 {
		windows.Put(windows.New())
	}

	// Neighbouring pages of different protection are mappings of their own.
	page := os.Getpagesize()
	mem, err := unix.Mmap(-1, 0, 1<<18*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	check(err == nil, err)
	for i := 0; ; i += 2 * page {
		check(i < len(mem), "mappings without end")
		if err := unix.Mprotect(mem[i:i+page], unix.PROT_READ); err != nil {
			check(errors.Is(err, unix.ENOMEM), err)
			break
		}
	}
	// The last one may split in two where there was room for one.
	for {
		if _, err := unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANON); err != nil {
			break
		}
	}
	errLoad := errors.Join(f.Load(slots, values), f.LoadStamped(slots, values, stamps))
	mapped := f.Mapped()
	errUnmap := unix.Munmap(mem)

	check(errLoad == nil, errLoad)
	check(errUnmap == nil, errUnmap)
	check(!mapped, "it was mapped")
	check(slices.Equal(values, want), "wrong values", values)
	check(stamps[7] == 1007, "wrong timestamp", stamps[7])
	for range retryAfter {
		check(f.Load(slots, values) == nil, "load")
	}
	check(f.Mapped(), "it was not mapped when it could be")
	check(slices.Equal(values, want), "wrong values", values)
	fmt.Println("read without a mapping, then mapped")
}
