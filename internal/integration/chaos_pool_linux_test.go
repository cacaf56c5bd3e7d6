package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The chaos tests let everything happen that can: workers that live for milliseconds, exit
// or are killed wherever they are, and come again with the pid or the ID of one that has
// just died, whose files are being folded; a daemon that is killed wherever it is, and
// started again. See chaos_pool.py for the pool and its books.
//
// No violation is acceptable: at each scrape no total is more than was started, none has
// fallen, and none is behind what was acknowledged a while ago; in the end each lies
// between acknowledged and started, and nothing is left in the directory.

// The layout of the books, as chaos_pool.py has it.
const (
	bookHeader = 64
	bookSlots  = 16
)

// bookColumn is what one number of a row counts.
type bookColumn struct {
	Family string            `json:"family"`
	Sample string            `json:"sample"`
	Labels map[string]string `json:"labels"`
	Op     string            `json:"op"`
	// series is how views spell it, "" for what no single series shows.
	series string
}

// served returns what a view has of the column; ok is false where there is nothing.
func (c *bookColumn) served(v view) (x float64, ok bool) {
	if c.series == "" {
		return v.total(c.Family, c.Sample), v[c.Family] != nil
	}
	x = v.value(c.Family, c.series)
	return x, x == x
}

// books are what the workers write down of what they do.
type books struct {
	columns []bookColumn
	words   []uint64
}

func openBooks(t *testing.T, path string, columns []bookColumn) *books {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size := 8 * (bookHeader + (2+2*bookSlots)*len(columns))
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatalf("map the books: %v", err)
	}
	t.Cleanup(func() { unix.Munmap(mem) }) //nolint:errcheck // gone with the process anyway
	for i := range columns {
		if c := &columns[i]; c.Labels != nil {
			c.series = seriesOf(c.Sample, c.Labels)
		}
	}
	return &books{columns, unsafe.Slice((*uint64)(unsafe.Pointer(&mem[0])), size/8)}
}

func (b *books) at(i int) float64 { return math.Float64frombits(atomic.LoadUint64(&b.words[i])) }

// workers, killed, reused and opens are the counts of the header.
func (b *books) workers() float64 { return b.at(1) }
func (b *books) killed() float64  { return b.at(2) }
func (b *books) reused() float64  { return b.at(3) }
func (b *books) opens() float64   { return b.at(4) }

// rows adds up the rows of one kind, 0 for started and 1 for acknowledged.
func (b *books) rows(kind int) []float64 {
	for {
		version := b.at(0)
		sums := make([]float64, len(b.columns))
		for row := kind; row < 2+2*bookSlots; row += 2 {
			for i, c := range b.columns {
				x := b.at(bookHeader + row*len(b.columns) + i)
				if c.Op == "max" {
					sums[i] = max(sums[i], x)
				} else {
					sums[i] += x
				}
			}
		}
		// The master moves the numbers of a worker that is gone only under an odd version.
		if int(version)%2 == 0 && b.at(0) == version {
			return sums
		}
	}
}

func (b *books) started() []float64 { return b.rows(0) }
func (b *books) acked() []float64   { return b.rows(1) }

// between fails unless what is served lies between two rows.
func (b *books) between(v view, low, high []float64) error {
	var errs []error
	for i := range b.columns {
		c := &b.columns[i]
		if c.Family == "" {
			continue
		}
		x, ok := c.served(v)
		if !ok {
			x = 0
		}
		if x < low[i] || x > high[i] {
			name := c.series
			if name == "" {
				name = "all of " + c.Sample
			}
			errs = append(errs, fmt.Errorf("%s is %v, want %v to %v", name, x, low[i], high[i]))
		}
	}
	return errors.Join(errs...)
}

// chaosPool is a running chaos_pool.py.
type chaosPool struct {
	*process
	stdin *os.File
	books *books
	// namespace is a descriptor of the pool's pid namespace, -1 if it has none of its own.
	namespace int
	asked     int // how often ask was called
}

// startChaosPool starts a pool on a directory; flags are those of chaos_pool.py. In a pid
// namespace of its own it may choose the pids of its workers, which takes root.
func startChaosPool(t *testing.T, dir string, own bool, seed uint64, flags ...string) *chaosPool {
	t.Helper()
	ledger := filepath.Join(sourceDir(t), "ledger")
	args := append([]string{python(t, "prometheus_client"), app(t, "chaos_pool.py"), ledger, "--seed", strconv.FormatUint(seed, 10)},
		flags...)
	if own {
		needRoot(t)
		args = append([]string{peer(t, "unshare", "apt-get install util-linux"), "--pid", "--fork", "--mount-proc", "--kill-child"},
			args...)
	}
	in, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env, cmd.Stdin = appEnv(dir), in
	p := &chaosPool{process: start(t, cmd), stdin: out, namespace: -1}
	in.Close()
	t.Cleanup(func() { out.Close() })
	line := p.await("the columns of its books", func(line string) bool { return strings.HasPrefix(line, "columns ") })
	var columns []bookColumn
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "columns ")), &columns); err != nil {
		t.Fatal(err)
	}
	p.books = openBooks(t, ledger, columns)
	if own {
		// unshare(1) stays outside, its child is the first in the namespace.
		path := fmt.Sprintf("/proc/%d/ns/pid_for_children", p.pid())
		if p.namespace, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			t.Fatalf("open %s: %v", path, err)
		}
		t.Cleanup(func() { unix.Close(p.namespace) })
	}
	return p
}

// inside calls f so that the processes it starts are in the pool's pid namespace.
func (p *chaosPool) inside(f func()) {
	p.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	outside, err := unix.Open("/proc/thread-self/ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		p.t.Fatal(err)
	}
	defer unix.Close(outside)
	// setns(2): for a pid namespace it takes effect on children only, and by thread.
	if err := unix.Setns(p.namespace, unix.CLONE_NEWPID); err != nil {
		p.t.Fatalf("enter the pool's pid namespace: %v", err)
	}
	defer func() {
		if err := unix.Setns(outside, unix.CLONE_NEWPID); err != nil {
			panic(err) // this thread must not start anything else
		}
	}()
	f()
}

// stop ends the workers and returns what the gauge of mode all was set to last, by ID:
// acknowledged and started.
func (p *chaosPool) stop() map[string][]float64 {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, "stop\n"); err != nil {
		p.t.Fatal(err)
	}
	line := p.await("the end of its workers", func(line string) bool { return strings.HasPrefix(line, "stopped ") })
	var last map[string][]float64
	if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "stopped ")), &last); err != nil {
		p.t.Fatal(err)
	}
	return last
}

// pause ends the workers; then wipe empties the directory, in the way of that number, and the pool
// goes on.
func (p *chaosPool) pause() { p.t.Helper(); p.ask("pause", "paused") }

func (p *chaosPool) wipe(way int) { p.t.Helper(); p.ask(fmt.Sprint("wipe ", way), "wiped") }

func (p *chaosPool) ask(what, answer string) {
	p.t.Helper()
	if _, err := io.WriteString(p.stdin, what+"\n"); err != nil {
		p.t.Fatal(err)
	}
	p.asked++
	seen := 0
	p.await(answer, func(line string) bool {
		if line == answer {
			seen++
		}
		return line == answer && seen > (p.asked-1)/2
	})
}

// finish ends the master.
func (p *chaosPool) finish() {
	p.t.Helper()
	p.stdin.Close()
	if err := p.wait(); err != nil {
		p.t.Errorf("the pool's end: %v", err)
	}
	if said := p.out.String(); strings.Contains(said, "worker failed") {
		p.t.Errorf("workers failed:\n%s", p.out.tail())
	}
}

// murder kills the daemon as SIGKILL does and takes note that this was meant to be.
func (d *daemon) murder() {
	d.t.Helper()
	d.stopped = true
	d.kill()
	d.client.CloseIdleConnections()
	for _, bad := range []string{"WARNING: DATA RACE", "panic:", "fatal error:"} {
		if said := d.out.String(); strings.Contains(said, bad) {
			at := strings.Index(said, bad)
			d.t.Errorf("the daemon said %q:\n%s", bad, said[at:min(len(said), at+8192)])
		}
	}
	if !d.t.Failed() {
		// There are thousands of them in a long run.
		d.out.mu.Lock()
		d.out.buf = nil
		d.out.mu.Unlock()
	}
}

// A succession is a daemon and those that follow it when it is killed, on one directory.
type succession struct {
	t     *testing.T
	start func() *daemon
	// current is nil while there is none. generation changes before one is killed.
	current    atomic.Pointer[daemon]
	generation atomic.Int64
}

func succeed(t *testing.T, start func() *daemon) *succession {
	t.Helper()
	s := &succession{t: t, start: start}
	s.current.Store(start())
	return s
}

// next ends the daemon by a function of it, and starts another one.
func (s *succession) next(end func(*daemon)) {
	s.t.Helper()
	s.generation.Add(1)
	end(s.current.Swap(nil))
	s.current.Store(s.start())
}

// freeze stops the daemon again and again for a moment, wherever it is, until quit is
// closed: who opens a file just then meets it between any two steps of being archived.
func (s *succession) freeze(r *rand.Rand, quit <-chan struct{}) {
	pause := func(most time.Duration) bool {
		select {
		case <-quit:
			return false
		case <-time.After(time.Duration(r.Int64N(int64(most)))):
			return true
		}
	}
	for pause(30 * time.Millisecond) {
		d := s.current.Load()
		if d == nil {
			continue
		}
		// It may be killed meanwhile, which is fine: nobody else gets the pid of a child that
		// was not waited for, and os.Process knows when it was.
		if d.cmd.Process.Signal(syscall.SIGSTOP) == nil {
			pause(25 * time.Millisecond)
			d.cmd.Process.Signal(syscall.SIGCONT)
		}
	}
}

// scrape returns what the current daemon serves. Both results are nil if there is none, or
// it was ended meanwhile.
func (s *succession) scrape() (view, error) {
	g := s.generation.Load()
	d := s.current.Load()
	if d == nil {
		return nil, nil
	}
	v, err := d.text()
	if s.generation.Load() != g {
		return nil, nil
	}
	return v, err
}

// A span is a time on the monotonic clock, in seconds.
type span struct{ from, to float64 }

func monotonic() float64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return float64(ts.Sec) + float64(ts.Nsec)/1e9
}

// stop stops the daemon now and then for up to a second, as a paused container is, until quit is
// closed. It returns when.
func (s *succession) stop(r *rand.Rand, quit <-chan struct{}) (stops []span) {
	for {
		select {
		case <-quit:
			return stops
		case <-time.After(time.Duration(r.Int64N(int64(4 * time.Second)))):
		}
		d := s.current.Load()
		from := monotonic()
		if d == nil || d.cmd.Process.Signal(syscall.SIGSTOP) != nil {
			continue
		}
		time.Sleep(time.Duration(r.Int64N(int64(time.Second))))
		d.cmd.Process.Signal(syscall.SIGCONT)
		stops = append(stops, span{from, monotonic()})
	}
}

// slowOpens returns how many of the opens that were told as slow cannot be laid to a stop of the
// daemon.
func slowOpens(said string, stops []span) (slow int) {
	for line := range strings.Lines(said) {
		var o span
		if n, _ := fmt.Sscanf(line, "slow open %f %f", &o.from, &o.to); n < 2 {
			continue
		}
		// A thread that goes on after a stop may have to wait for the processor.
		if !slices.ContainsFunc(stops, func(stop span) bool { return o.from < stop.to && stop.from < o.to && o.to < stop.to+0.25 }) {
			slow++
		}
	}
	return slow
}

// An inspector scrapes a succession of daemons all the while, from a goroutine of its own.
type inspector struct {
	s    *succession
	quit chan struct{}
	done chan struct{}
	// books, if there are any, tell the bounds of each total. wiped says that gauges may go with
	// their files.
	books *books
	wiped bool
	// These may be read after finish.
	scrapes int
	err     error
	last    view
}

// lateness is how far a total may be behind what was acknowledged: what is added to a file
// that was opened in the moment before its name was taken away counts when its lease is
// asked for again, some two seconds later on an idle machine.
const lateness = 15 * time.Second

// inspect begins to scrape. Without books only what must hold for any pool is checked.
func (s *succession) inspect(b *books, options ...func(*inspector)) *inspector {
	i := &inspector{s: s, quit: make(chan struct{}), done: make(chan struct{}), books: b}
	for _, option := range options {
		option(i)
	}
	// Ends when finish closes quit, or at the first violation.
	go func() {
		defer close(i.done)
		i.err = i.run()
	}()
	return i
}

// gaugesGo is for directories that are emptied.
func gaugesGo(i *inspector) { i.wiped = true }

func (i *inspector) run() error {
	type moment struct {
		at    time.Time
		acked []float64
	}
	var past []moment
	tick := time.NewTicker(4 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-i.quit:
			return nil
		case <-tick.C:
		}
		if i.books != nil && (len(past) == 0 || time.Since(past[len(past)-1].at) > time.Second/2) {
			past = append(past, moment{time.Now(), i.books.acked()})
		}
		v, err := i.s.scrape()
		if v == nil && err == nil {
			continue
		}
		if err == nil {
			v = v.workers()
			err = errors.Join(monotone(i.last, v), ascending(v))
			if i.books != nil && !i.wiped {
				err = errors.Join(err, rising(i.last, v))
			}
			i.last = v
		}
		if err == nil && i.books != nil {
			low := make([]float64, len(i.books.columns))
			for len(past) > 1 && time.Since(past[1].at) > lateness {
				past = past[1:]
			}
			if len(past) > 0 && time.Since(past[0].at) > lateness {
				low = past[0].acked
			}
			err = i.books.between(v, low, i.books.started())
		}
		if err != nil {
			return fmt.Errorf("scrape %d, daemon %d: %w", i.scrapes, i.s.generation.Load(), err)
		}
		i.scrapes++
	}
}

// finish ends the scraping and fails the test if something was wrong. It returns the
// number of scrapes.
func (i *inspector) finish() int {
	i.s.t.Helper()
	select {
	case <-i.quit:
	default:
		close(i.quit)
	}
	<-i.done
	if i.err != nil {
		i.s.t.Error(i.err)
	}
	return i.scrapes
}

// failed reports whether something was wrong so far.
func (i *inspector) failed() bool {
	select {
	case <-i.done:
		return i.err != nil
	default:
		return false
	}
}

// rising is monotone for the gauges of a chaos pool that only ever rise, as long as nobody
// removes their files.
func rising(before, after view) error {
	for name, f := range before {
		if f.Type != "gauge" || !strings.HasSuffix(name, "_level_sum") && !strings.HasSuffix(name, "_level_max") {
			continue
		}
		for series, x := range f.Samples {
			if y := after.value(name, series); !(y >= x) {
				return fmt.Errorf("%s fell from %v to %v", series, x, y)
			}
		}
	}
	return nil
}

// ascending fails when a bucket of a histogram holds less than one below it, or when the
// count is not the last bucket.
func ascending(v view) error {
	type bucket struct{ bound, count float64 }
	for name, f := range v {
		if f.Type != "histogram" {
			continue
		}
		groups := map[string][]bucket{}
		for series, x := range f.Samples {
			at := boundLabel.FindStringSubmatchIndex(series)
			if sample, _, _ := strings.Cut(series, "{"); sample != name+"_bucket" || at == nil {
				continue
			}
			bound, err := strconv.ParseFloat(series[at[4]:at[5]], 64)
			if err != nil {
				return fmt.Errorf("%s: %w", series, err)
			}
			rest := series[:at[4]] + series[at[5]:]
			groups[rest] = append(groups[rest], bucket{bound, x})
		}
		for rest, buckets := range groups {
			slices.SortFunc(buckets, func(a, b bucket) int { return int(math.Copysign(1, a.bound-b.bound)) })
			for i, b := range buckets[1:] {
				if b.count < buckets[i].count {
					return fmt.Errorf("%s: %v up to %v, but %v up to %v", rest, buckets[i].count, buckets[i].bound, b.count, b.bound)
				}
			}
		}
	}
	return cumulative(v)
}

// mirrorPause is how long nobody must look at a directory so that those who did are taken to have ended, and a
// round of the daemon that finds that, too.
const mirrorPause = 3500 * time.Millisecond

// stays matches the files that stay beside a mirror: its own, and gauges that are served for each worker.
var stays = regexp.MustCompile(`_0000000?0\.db$|^gauge_all_`)

// left lists what is in a watched directory and should not be there when nobody lives.
func left(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if mirrored && stays.MatchString(e.Name()) {
			continue
		}
		if !strings.HasPrefix(e.Name(), ".aggregatord") || isStaged(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// empty fails unless nothing is left in a directory.
func empty(dir string) error {
	if mirrored {
		time.Sleep(mirrorPause) // who lists a directory without a pause keeps its files
	}
	names, err := left(dir)
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("%d files are left, among them %v", len(names), names[:min(5, len(names))])
	}
	return err
}

// dumped is what aggregatord dump says of a directory.
func dumped(t *testing.T, dir string, flags ...string) view {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := output(ctx, nil, builtDaemon(t), append([]string{"dump", "--dir", dir, "--format", "text"}, flags...)...)
	if err != nil {
		t.Fatalf("dump: %.2000v", err)
	}
	v, err := parseText(out)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// soak returns how long a chaos test runs: short, or what AGGREGATORD_SOAK says.
func soak(t *testing.T, short time.Duration) time.Duration {
	t.Helper()
	s := os.Getenv("AGGREGATORD_SOAK")
	if s == "" {
		return short
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatalf("AGGREGATORD_SOAK: %v", err)
	}
	return d
}

// TestChaos is the proof of the archive's promise: every increment exactly once.
func TestChaos(t *testing.T) {
	t.Parallel()
	if os.Getenv("AGGREGATORD_SOAK") != "" {
		t.Log("soaking: each variant runs for a third of the time at a time")
	}
	variants := []struct {
		name string
		// inside puts the daemon into the pool's pid namespace.
		inside bool
		flags  []string
	}{
		// The master has files of its own open when it forks, as with gunicorn --preload.
		{"pids", false, []string{"--reuse", "--preload"}},
		{"daemon_in_same_namespace", true, []string{"--reuse"}},
		{"fixed_ids", false, []string{"--ids", "fixed", "--live", "4"}},
	}
	each := soak(t, 27*time.Second) / time.Duration(len(variants))
	for _, c := range variants {
		t.Run(c.name, func(t *testing.T) { runChaos(t, c.inside, each, c.flags) })
	}
}

func runChaos(t *testing.T, inside bool, lasts time.Duration, flags []string) {
	n := seed(t)
	r := rand.New(rand.NewPCG(n, 7))
	dir := sourceDir(t)
	builtDaemon(t)
	begin := time.Now()
	pool := startChaosPool(t, dir, true, n%(1<<62), flags...)
	s := succeed(t, func() (d *daemon) {
		run := func() { d = serve(t, "--dir", dir, "--log.level", "info") }
		if inside {
			pool.inside(run)
		} else {
			run()
		}
		return d
	})
	i := s.inspect(pool.books)
	defer i.finish()

	quit, frozen := make(chan struct{}), make(chan struct{})
	// Ends when quit is closed.
	go func() { defer close(frozen); s.freeze(rand.New(rand.NewPCG(n, 8)), quit) }()
	thaw := sync.OnceFunc(func() { close(quit); <-frozen })
	defer thaw()

	kills := 0
	reopened := 0.0
	for time.Since(begin) < lasts && !i.failed() && !t.Failed() {
		// Long enough for a few folds, or hardly long enough to begin one.
		wait := time.Duration(r.Float64() * r.Float64() * float64(4*time.Second))
		select {
		case <-time.After(wait):
		case <-i.done:
		}
		if v, err := s.scrape(); err == nil && v != nil {
			reopened += v.total("aggregatord_archive_reopened_files", "aggregatord_archive_reopened_files_total")
		}
		s.next((*daemon).murder)
		kills++
	}
	thaw()
	t.Logf("%v workers, %v of them killed, %v with the ID of one just dead; %d daemons killed; %v archived files opened again, %v",
		pool.books.workers(), pool.books.killed(), pool.books.reused(), kills, reopened, time.Since(begin).Round(time.Millisecond))
	if t.Failed() || i.failed() {
		t.Logf("found after %v", time.Since(begin).Round(time.Millisecond))
		return
	}
	last := pool.stop()
	if !inside {
		pool.finish()
	}
	low, high := pool.books.acked(), pool.books.started()
	verify := func(when string, v view) {
		t.Helper()
		if err := errors.Join(pool.books.between(v, low, high), chaosGauges(v, last)); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	// While files are left they count; so the totals are right long before all is folded.
	eventually(t, lateness, func() error { return pool.books.between(s.current.Load().mustText(), low, high) })
	eventually(t, patience, func() error { return empty(dir) })
	verify("when all is folded", s.current.Load().mustText())
	t.Logf("%d scrapes", i.finish())
	before := s.current.Load().mustText().workers()
	s.current.Load().stop()
	if err := differences(before, dumped(t, dir)); err != nil {
		t.Errorf("dump and what the daemon has served: %v", err)
	}
	d := s.start()
	verify("after a restart", d.mustText())
	if inside {
		d.stop() // it would die with its namespace
		pool.finish()
	}
}

// TestChaosOfGuests has what else others do in the directory: a hook calls mark_process_dead at each
// death, start scripts empty the directory, and the daemon is stopped for up to a second. Nothing of
// that raises an exception in the application, each total is right, and no open of a file waits but
// for a stop.
func TestChaosOfGuests(t *testing.T) {
	t.Parallel()
	for name, elsewhere := range map[string]bool{"archive_in_the_directory": false, "archive_elsewhere": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runGuests(t, elsewhere, soak(t, 20*time.Second))
		})
	}
}

func runGuests(t *testing.T, elsewhere bool, lasts time.Duration) {
	n := seed(t)
	r := rand.New(rand.NewPCG(n, 9))
	dir := filepath.Join(sourceDir(t), "metrics")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--dir", dir, "--log.level", "info", "--archive.rest", "3s"}
	if elsewhere {
		flags = append(flags, "--archive.dir", t.TempDir())
	}
	builtDaemon(t)
	pool := startChaosPool(t, dir, false, n%(1<<62), "--ids", "fixed", "--live", "4", "--mark", "--time-opens")
	// Gauges go with their files, unless they were archived.
	for j := range pool.books.columns {
		if c := &pool.books.columns[j]; strings.HasPrefix(c.Family, "chaos_level") {
			c.Family = ""
		}
	}
	s := succeed(t, func() *daemon { return serve(t, flags...) })
	i := s.inspect(pool.books, gaugesGo)
	defer i.finish()

	quit, stopped := make(chan struct{}), make(chan []span, 1)
	// Ends when quit is closed.
	go func() { stopped <- s.stop(rand.New(rand.NewPCG(n, 10)), quit) }()
	thaw := sync.OnceValue(func() []span { close(quit); return <-stopped })
	defer thaw()

	wipes, kills := 0, 0
	for begin := time.Now(); (time.Since(begin) < lasts || wipes == 0) && !i.failed() && !t.Failed(); wipes++ {
		for range r.IntN(3) {
			time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
			s.next((*daemon).murder)
			kills++
		}
		// Whoever lists the directory and then removes what is in it must not meet a file that is just
		// being archived. So it is emptied when all is archived, and again before any file has rested.
		counted := func() error {
			return pool.books.between(s.current.Load().mustText(), pool.books.acked(), pool.books.started())
		}
		archived := func() error { return errors.Join(empty(dir), counted()) }
		pool.pause()
		eventually(t, patience, archived)
		pool.wipe(r.IntN(4))
		again := time.Now()
		time.Sleep(time.Second/2 + time.Duration(r.Int64N(int64(time.Second))))
		pool.pause()
		eventually(t, patience, counted)
		if time.Since(again) > 2*time.Second {
			eventually(t, patience, archived)
		}
		pool.wipe(wipes)
		// Only what is saved outlives the daemon.
		s.current.Load().awaitSaved()
	}
	stops := thaw()
	pool.stop()
	pool.finish()
	said := pool.out.String()
	low, high := pool.books.acked(), pool.books.started()
	eventually(t, patience, func() error { return empty(dir) })
	s.current.Load().awaitSaved()
	if err := pool.books.between(s.current.Load().mustText(), low, high); err != nil {
		t.Errorf("when all is archived: %v", err)
	}
	t.Logf("%v workers, %d wipes, %d daemons killed, %d stops, %d scrapes", pool.books.workers(), 2*wipes, kills, len(stops), i.finish())
	s.next((*daemon).murder)
	if err := pool.books.between(s.current.Load().mustText(), low, high); err != nil {
		t.Errorf("after a restart: %v", err)
	}
	opens, slow := pool.books.opens(), slowOpens(said, stops)
	t.Logf("of %v opens %d have waited for over 100 ms, not counting those during a stop", opens, slow)
	if opens < 100 || float64(slow) > max(1, opens/1000) {
		t.Errorf("of %v opens %d have waited for over 100 ms", opens, slow)
	}
}

// chaosGauges checks the gauges of a pool that is gone: that in mode all shows what was
// set last, by workers that retention has not dropped; a live one nothing.
func chaosGauges(v view, last map[string][]float64) error {
	var errs []error
	for id, want := range last {
		x := v.value("chaos_serial", seriesOf("chaos_serial", map[string]string{"pid": id}))
		if !math.IsNaN(x) && !slices.Contains(want, x) {
			errs = append(errs, fmt.Errorf("chaos_serial of %s is %v, want one of %v", id, x, want))
		}
	}
	if v["chaos_alive"] != nil {
		errs = append(errs, fmt.Errorf("chaos_alive is %v, but nobody is", v["chaos_alive"].Samples))
	}
	return errors.Join(errs...)
}
