package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// twelveKinds are the prefixes of the files that a worker has in a shape of pools: the three
// that grow with the application, and all gauge modes.
var twelveKinds = [...]string{
	"counter", "histogram", "summary",
	"gauge_all", "gauge_liveall", "gauge_sum", "gauge_livesum", "gauge_max", "gauge_livemax", "gauge_min",
	"gauge_mostrecent", "gauge_livemostrecent",
}

// gaugesEach is how many entries each file of gauges has.
const gaugesEach = 3

// A farm is the directories of a shape of pools. The files of living workers stay mapped for
// writing until remove.
type farm struct {
	path    string
	dirs    []string
	files   []*sourceFile
	entries int
	// total is the sum of all counters of one pool: all pools have the same.
	total float64
}

// newFarm makes the directories of a shape, with living workers.
func newFarm(path string, sh shape) (f *farm, err error) {
	f = &farm{path: path}
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.remove())
		}
	}()
	var keys [len(twelveKinds)][][]byte
	large := (sh.series - gaugesEach*(len(twelveKinds)-3)) / 3
	for k, kind := range twelveKinds {
		n := gaugesEach
		if k < 3 {
			n = large
		}
		for i := range n {
			keys[k] = append(keys[k], twelveKey(kind, i))
		}
	}
	var buf []byte
	for p := range sh.pools {
		dir := filepath.Join(path, fmt.Sprintf("pool%d", p))
		f.dirs = append(f.dirs, dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		for id := range sh.workers {
			for k, kind := range twelveKinds {
				buf = appendFile(buf[:0], keys[k], func(i int) float64 { return float64(i + id) })
				file := &sourceFile{}
				if err := file.create(filepath.Join(dir, fmt.Sprintf("%s_%d.db", kind, 1000+id)), buf, true); err != nil {
					return nil, err
				}
				f.files = append(f.files, file)
				f.entries += len(keys[k])
				if p == 0 && k == 0 {
					for i := range keys[k] {
						f.total += float64(i + id)
					}
				}
			}
		}
	}
	return f, nil
}

// twelveKey is the raw key of one entry. All workers of all pools have the same.
func twelveKey(kind string, i int) []byte {
	name := "kind_" + strings.ReplaceAll(kind, "gauge_", "g_")
	key := metric.Key{Family: name, Help: "Help text of some length, as they are.", Series: metric.Series{Sample: name}}
	path := metric.Label{Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i/8)}
	switch kind {
	case "counter":
		key.Series.Sample += "_total"
		key.Series.Labels = []metric.Label{{Name: "method", Value: "GET"}, {Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i)}}
	case "histogram":
		key.Series.Sample += "_bucket"
		key.Series.Labels = []metric.Label{{Name: "le", Value: fmt.Sprintf("%d.0", i%8+1)}, path}
	case "summary":
		key.Series.Sample += []string{"_sum", "_count"}[i%2]
		key.Series.Labels = []metric.Label{{Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i/2)}}
	default:
		key.Series.Labels = []metric.Label{path, {Name: "queue", Value: strconv.Itoa(i)}}
	}
	return store.AppendKey(nil, key)
}

// appendFile appends the used bytes of a file with these keys.
func appendFile(dst []byte, keys [][]byte, value func(i int) float64) []byte {
	begin := len(dst)
	dst = append(dst, "        "...)
	for i, key := range keys {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(len(key)))
		dst = append(dst, key...)
		for pad := 8 - (4+len(key))%8; pad > 0; pad-- {
			dst = append(dst, ' ')
		}
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(value(i)))
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(float64(i+1)))
	}
	binary.LittleEndian.PutUint64(dst[begin:], uint64(len(dst)-begin))
	return dst
}

func (f *farm) remove() error {
	var errs []error
	for _, file := range f.files {
		errs = append(errs, (&worker{file}).end())
	}
	f.files = nil
	return errors.Join(append(errs, os.RemoveAll(f.path))...)
}

// counted is the sum of all samples of the family of counters in a response.
func counted(body []byte) (sum float64, err error) {
	for line := range bytes.Lines(body) {
		if !bytes.HasPrefix(line, []byte("kind_counter_total{")) {
			continue
		}
		v, err := strconv.ParseFloat(string(bytes.TrimSpace(line[bytes.LastIndexByte(line, ' '):])), 64)
		if err != nil {
			return 0, err
		}
		sum += v
	}
	return sum, nil
}

func (s *scraper) mustCount(want float64) error {
	got, err := counted(s.body)
	if err == nil && got != want {
		err = fmt.Errorf("the counters at %s add up to %v, and %v is right", s.url, got, want)
	}
	return err
}

// pools measures scrapes of many pools, or of one with many workers, whose workers live.
func (b *bench) pools(ctx context.Context, sh shape) (err error) {
	b.say("%v: generate", sh)
	f, err := newFarm(b.path(sh.name), sh)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.remove()) }()
	var args []string
	for _, dir := range f.dirs {
		args = append(args, "--dir", filepath.Base(dir)+"="+dir)
	}
	daemon, s, err := b.serveArgs(ctx, args...)
	if err != nil {
		return err
	}
	defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()
	pid, r, name := daemon.cmd.Process.Pid, b.report, sh.String()
	ready := time.Since(daemon.started).Seconds()
	series := bytes.Count(s.body, []byte("\n")) - bytes.Count(s.body, []byte("\n# "))
	r.note("%v: %s entries in %d files, %d lines of samples in %s", sh, digits(float64(f.entries)), len(f.files), series,
		mebibytes(float64(len(s.body))))
	r.number(name, "cold start to the first response", duration(ready), "")

	one := newScraper(strings.TrimSuffix(daemon.url, "/metrics") + "/pools/pool0/metrics")
	defer one.close()
	get := func(s *scraper, total float64) func() (float64, error) {
		return func() (float64, error) {
			took, err := s.scrape(ctx, false)
			if err == nil {
				err = s.mustCount(total)
			}
			return took.Seconds(), err
		}
	}
	whole := &measurement{name: "scrape of all", run: get(s, f.total*float64(sh.pools))}
	list := []*measurement{whole}
	part := &measurement{name: "scrape of one pool", run: get(one, f.total)}
	if _, err := one.scrape(ctx, false); err == nil && sh.pools > 1 {
		list = append(list, part)
	}
	if err := inTurns(ctx, 2, list...); err != nil {
		return err
	}
	whole.samples, part.samples = nil, nil
	b.say("%v: %d rounds", sh, b.opts.rounds)
	if err := inTurns(ctx, b.opts.rounds, list...); err != nil {
		return err
	}
	for _, m := range list {
		r.time(name, m.name, m.samples, "", nil)
		r.number(name, m.name+": fastest, slowest", duration(quantile(m.samples, 0))+", "+duration(quantile(m.samples, 1)), "load "+load())
	}
	memory := rssAnon(pid)
	r.number(name, "RssAnon", mebibytes(memory), fmt.Sprintf("after %d scrapes", len(whole.samples)+3))
	share := nan
	if b.opts.idle > 0 {
		b.say("%v: idle for %v, without scrapes", sh, b.opts.idle)
		start, before := time.Now(), cpuTime(pid)
		if err := sleepUntil(ctx, start.Add(b.opts.idle)); err != nil {
			return err
		}
		share = (cpuTime(pid) - before) / time.Since(start).Seconds()
		r.number(name, "one core's share, not scraped", percent(share), "")
	}

	if sh.pools == 1 {
		r.atMost(name, "scrape of all", "≤ 12 ms", median(whole.samples), duration, .012)
		return nil
	}
	r.atMost(name, "scrape of all", "≤ 60 ms", median(whole.samples), duration, .06)
	r.atMost(name, "scrape of all, slowest", "≤ 3 × median", quantile(whole.samples, 1)/median(whole.samples), times, 3)
	r.atMost(name, "scrape of one pool", "≤ 1 ms", median(part.samples), duration, .001)
	r.atMost(name, "idle: one core's share, not scraped", "≤ 2 %", share, percent, .02)
	r.atMost(name, "RssAnon", "≤ 90 MiB", memory, mebibytes, 90<<20)
	return nil
}

func percent(v float64) string { return digits(100*v) + " %" }
