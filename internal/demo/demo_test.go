package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// patience is how long a test waits for what should take well under a second.
const patience = 20 * time.Second

// eventually waits until ok is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// workerFiles is what one worker wrote.
type workerFiles map[string]store.Inspection // by file name without the ID

// readDir reads all source files of a directory, by worker. They must be undamaged.
func readDir(t *testing.T, dir string) map[string]workerFiles {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	workers := map[string]workerFiles{}
	for _, e := range entries {
		name, err := store.ParseName(e.Name())
		if err != nil {
			t.Fatalf("%s: %v", e.Name(), err)
		}
		in, err := store.Inspect(filepath.Join(dir, e.Name()), store.Limits{})
		if err := errors.Join(err, in.Damage); err != nil {
			t.Fatal(err)
		}
		if workers[name.ID] == nil {
			workers[name.ID] = workerFiles{}
		}
		kind := strings.TrimSuffix(e.Name(), "_"+name.ID+store.Extension)
		workers[name.ID][kind] = in
	}
	return workers
}

// sum adds the values of a sample over all labels.
func (w workerFiles) sum(kind, sample string) float64 {
	total := 0.0
	for _, e := range w[kind].Entries {
		if e.Key.Series.Sample == sample {
			total += e.Value
		}
	}
	return total
}

func (w workerFiles) counted() (requests, durations, sizes float64) {
	return w.sum("counter", "http_requests_total"), w.sum("histogram", "http_request_duration_seconds_bucket"),
		w.sum("summary", "http_response_size_bytes_count")
}

// kinds are what the names of the files of a worker begin with that has answered a request.
func kinds() []string {
	all := []string{"counter", "histogram", "summary"}
	for mode := metric.All; mode <= metric.LiveMostRecent; mode++ {
		all = append(all, "gauge_"+mode.String())
	}
	slices.Sort(all)
	return all
}

func sortedKeys[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// TestRun lets a pool run until workers were recycled and killed, and reads what all of
// them left.
func TestRun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there yet")
	core, logs := observer.New(zapcore.DebugLevel)
	pids := func(message string) map[string]bool {
		found := map[string]bool{}
		for _, e := range logs.FilterMessage(message).All() {
			found[fmt.Sprint(e.ContextMap()["pid"])] = true
		}
		return found
	}
	const killed, recycled = "demo worker was killed; another takes its place", "demo worker has had its requests; another takes its place"
	opts := Options{
		Dir: dir, Workers: 3, RequestsPerSecond: 600, MaxRequests: 60, KillEvery: 150 * time.Millisecond, Seed: 7, Logger: zap.New(core),
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- Run(ctx, opts) }()
	eventually(t, "workers that were recycled and killed", func() bool {
		return len(pids(recycled)) >= 3 && len(pids(killed)) >= 3
	})
	eventually(t, "three workers at work in place of those", func() bool {
		return atWork(t, dir, func(id string) bool { return pids(recycled)[id] || pids(killed)[id] }) == opts.Workers
	})
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	workers := readDir(t, dir)
	for id := range pids(recycled) {
		if workers[id] == nil {
			t.Errorf("worker %s was recycled and left no files", id)
		}
	}
	wasKilled := pids(killed)
	complete, total := 0, 0.0
	for id, w := range workers {
		requests, durations, sizes := w.counted()
		total += requests
		switch {
		case !wasKilled[id] && (requests != durations || requests != sizes):
			t.Errorf("worker %s counted %v requests, %v durations, %v sizes", id, requests, durations, sizes)
		case wasKilled[id] && (requests > sizes || sizes > durations || durations > requests+1):
			t.Errorf("killed worker %s counted %v requests, %v sizes, %v durations", id, requests, sizes, durations)
		}
		if pids(recycled)[id] && (requests < 48 || requests > 72) {
			t.Errorf("worker %s was recycled after %v requests", id, requests)
		}
		if requests == 0 {
			continue
		}
		complete++
		if got := sortedKeys(w); !slices.Equal(got, kinds()) {
			t.Errorf("worker %s wrote %q, want %q", id, got, kinds())
		}
		for kind, in := range w {
			if in.Width != store.Wide {
				t.Errorf("worker %s, %s: width %d", id, kind, in.Width)
			}
		}
		// A worker that worked has drawn its files' labels and gauges from its requests.
		if w.sum("gauge_max", "queue_depth_peak") < 1 || w.sum("gauge_liveall", "worker_up") != 1 {
			t.Errorf("worker %s: peak %v, up %v", id, w.sum("gauge_max", "queue_depth_peak"), w.sum("gauge_liveall", "worker_up"))
		}
	}
	if complete < 3+opts.Workers {
		t.Errorf("only %d workers answered requests, %v in all", complete, total)
	}
	if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n > 0 {
		t.Errorf("%d warnings: %v", n, logs.FilterLevelExact(zapcore.WarnLevel).All())
	}
}

// atWork counts the workers that have answered a request and are not gone. The files may
// be half made.
func atWork(t *testing.T, dir string, gone func(id string) bool) int {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "counter_*"+store.Extension))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range paths {
		name, err := store.ParseName(filepath.Base(path))
		if err != nil {
			t.Fatal(err)
		}
		if gone(name.ID) {
			continue
		}
		in, err := store.Inspect(path, store.Limits{})
		if err == nil && (workerFiles{"counter": in}).sum("counter", "http_requests_total") > 0 {
			n++
		}
	}
	return n
}

// workerPIDs returns the IDs that have files.
func workerPIDs(t *testing.T, dir string) (pids []int) {
	t.Helper()
	for id := range readDir(t, dir) {
		pid, err := strconv.Atoi(id)
		if err != nil {
			t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

func nobody(string) bool { return false }

// TestMasterKilled kills a master so that it cannot do anything about its workers.
func TestMasterKilled(t *testing.T) {
	dir := t.TempDir()
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	opts, err := json.Marshal(map[string]any{"Dir": dir, "Workers": 3, "RequestsPerSecond": 300})
	if err != nil {
		t.Fatal(err)
	}
	// Every process that the master starts inherits the writing end, as it has no flag to
	// close on exec; so the reading end tells when the last of them is gone.
	family, inherited, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer family.Close()
	master := exec.Command(executable, "test-master", string(opts))
	master.ExtraFiles = []*os.File{inherited}
	master.Stderr = os.Stderr
	if err := master.Start(); err != nil {
		t.Fatal(err)
	}
	inherited.Close()
	t.Cleanup(func() {
		master.Process.Kill()
		if t.Failed() { // the workers may be orphans now
			for _, pid := range workerPIDs(t, dir) {
				syscall.Kill(pid, syscall.SIGKILL) // an error says that it is gone
			}
		}
	})
	eventually(t, "three workers at work", func() bool { return atWork(t, dir, nobody) == 3 })
	// With the master alive the pipe must not end, or the test would prove nothing.
	expectFamily(t, family, 50*time.Millisecond, os.ErrDeadlineExceeded)

	if err := master.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = master.Wait()
	expectFamily(t, family, patience, io.EOF)
}

func expectFamily(t *testing.T, family *os.File, within time.Duration, want error) {
	t.Helper()
	if err := family.SetReadDeadline(time.Now().Add(within)); err != nil {
		t.Fatal(err)
	}
	if _, err := family.Read(make([]byte, 1)); !errors.Is(err, want) {
		t.Fatalf("reading what all workers hold: %v, want %v", err, want)
	}
}

// TestWorkerFailure is a directory that goes: workers fail, and Run says so and goes on.
func TestWorkerFailure(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	core, logs := observer.New(zapcore.InfoLevel)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Dir: dir, Workers: 1, RequestsPerSecond: 1000, MaxRequests: 5, Logger: zap.New(core)})
	}()
	eventually(t, "a worker", func() bool { return atWork(t, dir, nobody) > 0 })
	eventually(t, "the directory to go", func() bool { return os.RemoveAll(dir) == nil })
	const message = "demo worker failed; another will take its place"
	eventually(t, "a failure", func() bool { return logs.FilterMessage(message).Len() > 0 })
	if said := fmt.Sprint(logs.FilterMessage(message).All()[0].ContextMap()["stderr"]); !strings.Contains(said, dir) {
		t.Errorf("the worker's last words are %q", said)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	eventually(t, "workers again", func() bool { return atWork(t, dir, nobody) > 1 })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestRunErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, opts := range map[string]Options{
		"directory_is_a_file": {Dir: file},
		"negative_workers":    {Dir: t.TempDir(), Workers: -1},
		"negative_rate":       {Dir: t.TempDir(), RequestsPerSecond: -1},
		"negative_limit":      {Dir: t.TempDir(), MaxRequests: -1},
		"negative_kill_every": {Dir: t.TempDir(), KillEvery: -time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			if err := Run(context.Background(), opts); err == nil {
				t.Error("no error")
			}
		})
	}
	t.Run("done_before_it_began", func(t *testing.T) {
		ctx, stop := context.WithCancel(context.Background())
		stop()
		if err := Run(ctx, Options{Dir: t.TempDir()}); err != nil {
			t.Error(err)
		}
	})
}

func TestWorkerOrders(t *testing.T) {
	dir := t.TempDir()
	order := func(o orders) string {
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return string(b) + "\n"
	}
	t.Run("no_master", func(t *testing.T) {
		if err := Worker(context.Background(), strings.NewReader("")); !errors.Is(err, io.EOF) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("not_orders", func(t *testing.T) {
		if err := Worker(context.Background(), strings.NewReader("hello\n")); err == nil {
			t.Error("no error")
		}
	})
	t.Run("no_directory", func(t *testing.T) {
		in, out := io.Pipe()
		defer in.Close()
		go io.WriteString(out, order(orders{Dir: filepath.Join(dir, "none"), RequestsPerSecond: 1})) //nolint:errcheck // the worker tells
		if err := Worker(context.Background(), in); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("master_gone", func(t *testing.T) {
		// Whoever has no limit and no signal ends only with the pipe.
		err := Worker(context.Background(), strings.NewReader(order(orders{Dir: dir, RequestsPerSecond: 1000})))
		if err != nil {
			t.Error(err)
		}
		in, err := store.Inspect(filepath.Join(dir, "gauge_liveall_"+strconv.Itoa(os.Getpid())+store.Extension), store.Limits{})
		if err != nil || len(in.Entries) != 1 || in.Entries[0].Value != 1 {
			t.Errorf("gauge %+v, %v", in.Entries, err)
		}
	})
}

// workOnce has a worker answer its requests in a new directory, fast.
func workOnce(t *testing.T, o orders) workerFiles {
	t.Helper()
	o.Dir = t.TempDir()
	o.RequestsPerSecond = 5000
	if err := work(context.Background(), o, "w_1"); err != nil {
		t.Fatal(err)
	}
	return readDir(t, o.Dir)["w_1"]
}

// TestSeed: the same seed and number make the same requests, others make others.
func TestSeed(t *testing.T) {
	list := func(w workerFiles) string {
		var b bytes.Buffer
		for _, kind := range kinds() {
			for _, e := range w[kind].Entries {
				fmt.Fprintln(&b, kind, string(e.RawKey), e.Value)
			}
		}
		return b.String()
	}
	o := orders{MaxRequests: 50, Seed: 3, Number: 1}
	one := list(workOnce(t, o))
	if again := list(workOnce(t, o)); again != one {
		t.Errorf("seed and number are the same, the files are not:\n%s\n%s", one, again)
	}
	o.Number++
	if other := list(workOnce(t, o)); other == one {
		t.Error("another worker got the same requests")
	}
	o.Seed++
	o.Number--
	if other := list(workOnce(t, o)); other == one {
		t.Error("with another seed the requests are the same")
	}
}

// TestLayout holds what prometheus_client writes for such metrics.
func TestLayout(t *testing.T) {
	w := workOnce(t, orders{MaxRequests: 300, Seed: 5})
	if got := sortedKeys(w); !slices.Equal(got, kinds()) {
		t.Fatalf("files %q, want %q", got, kinds())
	}
	for kind, in := range w {
		if in.Size != 64<<10 {
			t.Errorf("%s: %d bytes", kind, in.Size)
		}
		for _, e := range in.Entries {
			if mostRecent := strings.HasSuffix(kind, "mostrecent"); (e.Stamp != 0) != mostRecent {
				t.Errorf("%s: %s has timestamp %v", kind, e.RawKey, e.Stamp)
			} else if mostRecent && time.Since(time.Unix(int64(e.Stamp), 0)).Abs() > patience {
				t.Errorf("%s: timestamp %v is not the present", kind, e.Stamp)
			}
			if kind != "counter" && kind != "histogram" && kind != "summary" &&
				!strings.HasSuffix(e.Key.Help, "(mode "+strings.TrimPrefix(kind, "gauge_")+").") {
				t.Errorf("%s: help %q does not tell the mode", kind, e.Key.Help)
			}
		}
	}
	has := func(kind, key string) {
		t.Helper()
		if !slices.ContainsFunc(w[kind].Entries, func(e store.InspectedEntry) bool { return string(e.RawKey) == key }) {
			t.Errorf("%s has no entry %s", kind, key)
		}
	}
	has("counter", `["orders", "orders_total", {}, "Orders placed."]`)
	has("counter", `["http_requests", "http_requests_total", {"method": "GET", "path": "/search", "status": "200"}, "Requests answered."]`)
	has("summary", `["http_response_size_bytes", "http_response_size_bytes_count", {}, "Size of response bodies."]`)
	has("summary", `["http_response_size_bytes", "http_response_size_bytes_sum", {}, "Size of response bodies."]`)
	has("gauge_livesum", `["inprogress_requests", "inprogress_requests", {}, "Requests in progress, over living workers (mode livesum)."]`)

	// One child of the histogram: the sum and then the buckets, in this order, and no count.
	var samples []string
	buckets := map[string]float64{}
	for _, e := range w["histogram"].Entries {
		labels := map[string]string{}
		for _, l := range e.Key.Series.Labels {
			labels[l.Name] = l.Value
		}
		if labels["path"] == "/products" {
			samples = append(samples, strings.TrimPrefix(e.Key.Series.Sample, "http_request_duration_seconds")+labels["le"])
			buckets[labels["le"]] = e.Value
		}
	}
	want := []string{"_sum"}
	for _, le := range []string{
		"0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1.0", "2.5", "5.0", "7.5", "10.0",
		"+Inf",
	} {
		want = append(want, "_bucket"+le)
	}
	if !slices.Equal(samples, want) {
		t.Errorf("histogram has %q, want %q", samples, want)
	}
	// The median is 12 ms: with cumulative buckets all the later ones would hold everything.
	if buckets["0.01"] == 0 || buckets["0.025"] == 0 || buckets["+Inf"] != 0 {
		t.Errorf("buckets %v", buckets)
	}

	// The histogram's mean is that of the latencies, a few milliseconds to seconds.
	_, durations, _ := w.counted()
	if mean := w.sum("histogram", "http_request_duration_seconds_sum") / durations; mean < 0.004 || mean > 0.25 {
		t.Errorf("mean latency %v s", mean)
	}
}

// TestBuckets: a value on a bound belongs to its bucket, and none is lost.
func TestBuckets(t *testing.T) {
	c := newClient(t.TempDir(), "1")
	h := c.histogram("h", "")
	if c.err != nil {
		t.Fatal(c.err)
	}
	defer c.Close()
	for _, x := range []float64{-1, 0.005, 0.0051, 10, 10.1, 1e9} {
		h.observe(x)
	}
	want := map[int]float64{0: 2, 1: 1, 13: 1, 14: 2}
	for i, v := range h.buckets {
		if v.get() != want[i] {
			t.Errorf("bucket to %v has %v, want %v", h.bounds[i], v.get(), want[i])
		}
	}
}
