package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"
)

// cold measures a daemon that meets a directory of dead workers' files: its first
// response, and how it folds them.
func (b *bench) cold(ctx context.Context, sh shape) error {
	name := sh.String()
	var c coldRun
	for i := range b.opts.coldRounds {
		b.say("%v: cold start %d of %d", sh, i+1, b.opts.coldRounds)
		if err := b.coldOnce(ctx, sh, &c); err != nil {
			return err
		}
	}
	r := b.report
	r.note("%v: %d files of %s, %s used", sh, c.files, b.layout.name, mebibytes(c.bytes))
	r.time(name, "open and read every file", c.read, "", nil)
	r.time(name, "open, read, hash and look up every key", c.table, "", nil)
	r.time(name, "cold start to the first response", c.ready, "open, read, hash and look up", c.table)
	r.time(name, "from the start until all are folded", c.folded, "", nil)
	r.time(name, "from the start until their files are gone", c.gone, "", nil)
	r.time(name, "longest scrape while folding", c.longest, "", nil)
	r.number(name, fmt.Sprintf("scrapes answered while folding, one in %v", foldScrape), fmt.Sprint(c.scrapes),
		fmt.Sprintf("%d runs", b.opts.coldRounds))
	r.number(name, "RssAnon when all are folded", mebibytes(median(c.memory)), "")
	r.time(name, "plain scrape when all are folded", c.after, "of one living worker with the same series", c.one)

	r.atMost(name, "cold start to the first response", "≤ 2 × (open + read + hash + table)", median(c.ready)/median(c.table), times, 2)
	r.atMost(name, "all folded, serving all the while", "< 3 s", median(c.folded), duration, 3)
	r.atMost(name, "growth: plain scrape when all are folded", "≤ 1.5 × that of one living worker", median(c.after)/median(c.one), times,
		1.5)
	limit := 24<<20 + 1024*float64(sh.series)
	r.atMost(name, "RssAnon when all are folded", "≤ "+mebibytes(limit)+" (24 MiB + 1 KiB a series)", median(c.memory), mebibytes, limit)
	return nil
}

// A coldRun holds what the rounds found, in seconds and bytes.
type coldRun struct {
	files, scrapes                   int
	bytes                            float64
	read, table, ready, folded, gone []float64
	longest, memory, after, one      []float64
}

// coldOnce generates the directory, since each daemon leaves an empty one, and measures
// everything once.
func (b *bench) coldOnce(ctx context.Context, sh shape, c *coldRun) (err error) {
	d, err := generate(b.path(sh.name), sh, b.layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	c.files, c.bytes = d.files, float64(d.bytes)
	if err := b.coldFloor(d, c); err != nil {
		return err
	}

	daemon, s, err := b.serve(ctx, d)
	if err != nil {
		return err
	}
	defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()
	c.ready = append(c.ready, time.Since(daemon.started).Seconds())
	total, err := firstTotal(s, d)
	if err != nil {
		return err
	}

	folded, gone, longest, err := b.watchFold(ctx, d, s, daemon.started, total, c)
	if err != nil {
		return err
	}
	c.gone = append(c.gone, gone)
	c.folded = append(c.folded, folded)
	c.longest = append(c.longest, longest)
	c.memory = append(c.memory, rssAnon(daemon.cmd.Process.Pid))
	return b.afterwards(ctx, sh, s, c)
}

// foldScrape is the time between two scrapes while the dead are folded: far more often
// than anybody scrapes, and yet rare enough not to be what keeps the daemon busy.
const foldScrape = 250 * time.Millisecond

// watchFold scrapes a daemon that folds until all is done, and checks each response. It
// returns when all were folded and when their files were gone, in seconds since started,
// and the longest scrape.
func (b *bench) watchFold(ctx context.Context, d *directory, s *scraper, started time.Time, total knownTotal, c *coldRun) (folded, gone,
	longest float64, err error,
) {
	scrape := func() error {
		took, err := s.scrape(ctx, false)
		if err != nil {
			return fmt.Errorf("while folding: %w", err)
		}
		c.scrapes++
		longest = max(longest, took.Seconds())
		if now := s.value(total.sample); now != total.value {
			return fmt.Errorf("%s was %v and is %v while folding", total.sample, total.value, now)
		}
		return nil
	}
	for next := time.Now(); ; {
		since := time.Since(started).Seconds()
		left, err := count(d.path)
		switch {
		case err != nil:
			return 0, 0, 0, err
		case since > 2*patience.Seconds():
			return 0, 0, 0, fmt.Errorf("after %v there are %d files left of %d", 2*patience, left, d.files)
		case left == 0:
			// What is in no directory any more may yet be on its way into the archive.
			if err := scrape(); err != nil {
				return 0, 0, 0, err
			}
			if folded == 0 && s.value("aggregatord_archive_folded_files_total") == float64(d.files) {
				folded = since
			}
			if folded > 0 && s.value("aggregatord_archive_removing_files") == 0 {
				return folded, since, longest, nil
			}
		case !time.Now().Before(next):
			next = time.Now().Add(foldScrape)
			if err := scrape(); err != nil {
				return 0, 0, 0, err
			}
		}
		if err := sleepUntil(ctx, time.Now().Add(20*time.Millisecond)); err != nil {
			return 0, 0, 0, err
		}
	}
}

// count returns how many source files are in a directory.
func count(dir string) (int, error) {
	list, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer list.Close() //nolint:errcheck // only read
	names, err := list.Readdirnames(-1)
	n := 0
	for _, name := range names {
		n += b2i(filepath.Ext(name) == ".db")
	}
	return n, err
}

// A knownTotal must not change while the files that make it are folded.
type knownTotal struct {
	sample string
	value  float64
}

// firstTotal takes a total from the response in s and checks it against the generator.
func firstTotal(s *scraper, d *directory) (knownTotal, error) {
	family, child := d.schema.witness()
	t := knownTotal{sample: string(appendLabels([]byte(family+"_total"), child.labels))}
	if t.value = s.value(t.sample); t.value != d.total {
		return t, fmt.Errorf("%s is %v, and %v is right", t.sample, t.value, d.total)
	}
	return t, nil
}

// coldFloor does plainly what a cold start must: open and read every file, and look up
// every key in one table.
func (b *bench) coldFloor(d *directory, c *coldRun) error {
	buf := make([]byte, 1<<20)
	for warm := range 2 {
		start := time.Now()
		if err := readAll(d.path, buf, func([]byte) error { return nil }); err != nil {
			return err
		}
		read := time.Since(start).Seconds()
		start = time.Now()
		table := map[string]int{}
		var sums []float64
		entries := 0
		err := readAll(d.path, buf, func(used []byte) error {
			n, err := lookUp(used, b.layout.width, table, &sums)
			entries += n
			return err
		})
		if err != nil {
			return err
		}
		if entries != d.shape.entries() || len(table) != d.shape.series {
			return fmt.Errorf("found %d entries of %d series", entries, len(table))
		}
		// The first time brings the directory into the kernel's caches, where the daemon will
		// find it, too.
		if warm == 1 {
			c.read, c.table = append(c.read, read), append(c.table, time.Since(start).Seconds())
		}
	}
	return nil
}

// readAll opens every file of a directory and gives the used bytes to f.
func readAll(dir string, buf []byte, f func(used []byte) error) error {
	list, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer list.Close() //nolint:errcheck // only read
	names, err := list.Readdirnames(-1)
	if err != nil {
		return err
	}
	one := func(name string) error {
		file, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		defer file.Close() //nolint:errcheck // only read
		// A file of this shape fits into its first size, so one read finds it all.
		n, err := file.ReadAt(buf[:32<<10], 0)
		if err != nil {
			return err
		}
		used := int(binary.LittleEndian.Uint32(buf))
		if used > n {
			return fmt.Errorf("%s: %d bytes used, more than expected", name, used)
		}
		return f(buf[:used])
	}
	for _, name := range names {
		if err := one(name); err != nil {
			return err
		}
	}
	return nil
}

// lookUp walks the entries of a file, looks each key up in the table and adds its value.
func lookUp(used []byte, width int, table map[string]int, sums *[]float64) (entries int, err error) {
	for at := 8; at < len(used); {
		n := int(binary.LittleEndian.Uint32(used[at:]))
		value := at + 4 + n
		value += 8 - value%8
		if value+width > len(used) {
			return entries, fmt.Errorf("entry at byte %d is cut short", at)
		}
		key := used[at+4 : at+4+n]
		i, ok := table[string(key)]
		if !ok {
			i = len(*sums)
			table[string(key)] = i
			*sums = append(*sums, 0)
		}
		(*sums)[i] += math.Float64frombits(binary.LittleEndian.Uint64(used[value:]))
		at = value + width
		entries++
	}
	return entries, nil
}

// afterwards compares a scrape of what is folded with that of one living worker with the
// same series, in turns.
func (b *bench) afterwards(ctx context.Context, sh shape, s *scraper, c *coldRun) (err error) {
	sh.workers, sh.name = 1, sh.name+"-one"
	live := sh
	live.dead = false
	d, err := generateAs(b.path(sh.name), live, newSchema(sh), b.layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	daemon, one, err := b.serve(ctx, d)
	if err != nil {
		return err
	}
	defer func() { one.close(); err = errors.Join(err, daemon.stop()) }()
	get := func(s *scraper) func() (float64, error) {
		return func() (float64, error) {
			took, err := s.scrape(ctx, false)
			return took.Seconds(), err
		}
	}
	mine, other := &measurement{name: "folded", run: get(s)}, &measurement{name: "living", run: get(one)}
	if err := inTurns(ctx, max(b.opts.rounds, 10), mine, other); err != nil {
		return err
	}
	c.after, c.one = append(c.after, mine.samples...), append(c.one, other.samples...)
	return nil
}
