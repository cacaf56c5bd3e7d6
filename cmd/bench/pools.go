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
	r.note("%v: %s entries in %d files, %d lines of samples in %s", sh, digits(float64(f.entries)), len(f.files), series, mebibytes(float64(len(s.body))))
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

// archive measures the start of a daemon whose archive is large.
func (b *bench) archive(ctx context.Context, sh shape) (err error) {
	b.say("%v: generate and archive", sh)
	dir := b.path(sh.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	total := 0.0
	for w := range sh.workers {
		keys := make([][]byte, sh.series)
		for i := range keys {
			name := "kind_counter"
			if w > 0 {
				name = fmt.Sprintf("archived_%d", w)
			}
			keys[i] = store.AppendKey(nil, metric.Key{Family: name, Help: "Help text of some length, as they are.", Series: metric.Series{
				Sample: name + "_total",
				Labels: []metric.Label{{Name: "method", Value: "GET"}, {Name: "path", Value: fmt.Sprintf("/api/v1/resource/%d", i)}},
			}})
			if w == 0 {
				total += float64(i % 100)
			}
		}
		buf := appendFile(nil, keys, func(i int) float64 { return float64(i % 100) })
		if err := (&sourceFile{}).create(filepath.Join(dir, fmt.Sprintf("counter_%d.db", 1000+w)), buf, false); err != nil {
			return err
		}
	}
	daemon, s, err := b.serveArgs(ctx, "--dir", dir, "--web.self-metrics", "full")
	if err != nil {
		return err
	}
	err = b.untilFolded(ctx, s, sh.workers)
	s.close()
	if err = errors.Join(err, daemon.stop()); err != nil {
		return err
	}
	var starts, firsts, memory, later []float64
	for i := range b.opts.coldRounds {
		b.say("%v: start %d of %d", sh, i+1, b.opts.coldRounds)
		daemon, s, err := b.serveArgs(ctx, "--dir", dir)
		if err != nil {
			return err
		}
		ready := time.Since(daemon.started).Seconds()
		starts, firsts = append(starts, ready-s.last.Seconds()), append(firsts, s.last.Seconds())
		memory = append(memory, rssAnon(daemon.cmd.Process.Pid))
		err = s.mustCount(total)
		for range 3 {
			var took time.Duration
			if err == nil {
				took, err = s.scrape(ctx, false)
			}
			later = append(later, took.Seconds())
		}
		s.close()
		if err = errors.Join(err, daemon.stop()); err != nil {
			return err
		}
	}
	r, name := b.report, sh.String()
	r.time(name, "start until it can be scraped", starts, "", nil)
	r.time(name, "first scrape", firsts, "", nil)
	r.time(name, "later scrapes", later, "", nil)
	r.number(name, "RssAnon after the first scrape", mebibytes(median(memory)), "load "+load())
	r.atMost(name, "start until it can be scraped", "≤ 1.5 s", median(starts), duration, 1.5)
	r.atMost(name, "first scrape", "≤ 1 s", median(firsts), duration, 1)
	r.atMost(name, "RssAnon after the first scrape", "≤ 300 MiB", median(memory), mebibytes, 300<<20)
	return nil
}

// untilFolded waits until so many files are archived and gone.
func (b *bench) untilFolded(ctx context.Context, s *scraper, files int) error {
	return retry(ctx, 100*time.Millisecond, func() error {
		if _, err := s.scrape(ctx, false); err != nil {
			return err
		}
		if folded, left := s.value("aggregatord_archive_folded_files_total"), s.value("aggregatord_archive_removing_files"); folded != float64(files) || left != 0 {
			return fmt.Errorf("%v files are archived of %d, and %v are about to be removed", folded, files, left)
		}
		return nil
	})
}

// deathScrape is the time between two scrapes while workers die.
const deathScrape = 500 * time.Millisecond

// deaths lets workers die, many a second, and checks that every scrape has all that was
// counted before it began, and nothing that was not.
func (b *bench) deaths(ctx context.Context, sh shape) (err error) {
	b.say("%v: for %d s", sh, sh.workers)
	dir := b.path(sh.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	keys, each := make([][]byte, sh.series), 0.0
	for i := range keys {
		keys[i] = twelveKey("counter", i)
		each += float64(i + 1)
	}
	buf := appendFile(nil, keys, func(i int) float64 { return float64(i + 1) })
	died := 0
	die := func() error {
		died++
		return (&sourceFile{}).create(filepath.Join(dir, fmt.Sprintf("counter_%d.db", died)), buf, false)
	}
	if err := die(); err != nil {
		return err
	}
	daemon, s, err := b.serveArgs(ctx, "--dir", dir, "--web.self-metrics", "full")
	if err != nil {
		return err
	}
	defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()
	// Scrapes go on beside the deaths; what they found comes back in the end.
	type scraped struct {
		took float64
		sum  float64
		at   [2]int // how many had died when it began, and when it had ended
	}
	ask, answers := make(chan int, 1), make(chan scraped, 1)
	failed := make(chan error, 1)
	// Ends when ask is closed.
	go func() {
		defer close(answers)
		for before := range ask {
			took, err := s.scrape(ctx, false)
			a := scraped{took: took.Seconds(), at: [2]int{before, 0}}
			if err == nil {
				a.sum, err = counted(s.body)
			}
			if err != nil {
				failed <- err
				return
			}
			answers <- a
		}
	}()
	var samples []float64
	var errs []error
	took := func(a scraped) {
		samples = append(samples, a.took)
		if least, most := each*float64(a.at[0]), each*float64(died); a.sum < least || a.sum > most {
			errs = append(errs, fmt.Errorf("a scrape has %v, and between %v and %v is right", a.sum, least, most))
		}
	}
	start, memory, waiting := time.Now(), 0.0, false
	nextScrape := start
	for seconds := float64(sh.workers); time.Since(start).Seconds() < seconds; {
		for due := int(time.Since(start).Seconds() * float64(sh.deaths)); died < due; {
			if err := die(); err != nil {
				return errors.Join(err, closeAsk(ask, answers))
			}
		}
		select {
		case err := <-failed:
			return err
		case a := <-answers:
			waiting = false
			took(a)
			memory = max(memory, rssAnon(daemon.cmd.Process.Pid))
		case <-time.After(time.Millisecond):
		}
		if !waiting && !time.Now().Before(nextScrape) {
			nextScrape, waiting = time.Now().Add(deathScrape), true
			ask <- died
		}
	}
	close(ask)
	for a := range answers {
		took(a)
	}
	if err := b.untilFolded(ctx, s, died); err != nil {
		return err
	}
	if err := errors.Join(append(errs, s.mustCount(each*float64(died)))...); err != nil {
		return err
	}
	r, name := b.report, sh.String()
	r.number(name, "workers that died, every scrape exact", strconv.Itoa(died), fmt.Sprintf("%d scrapes", len(samples)))
	r.time(name, "scrape meanwhile", samples, "", nil)
	r.number(name, "scrape meanwhile, slowest", duration(quantile(samples, 1)), "load "+load())
	r.number(name, "RssAnon, highest", mebibytes(memory), "")
	return nil
}

// closeAsk ends who scrapes beside the deaths.
func closeAsk[T any](ask chan<- int, answers <-chan T) error {
	close(ask)
	for range answers {
	}
	return nil
}
