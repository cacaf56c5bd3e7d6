package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"aggregatord/internal/archive"
	"aggregatord/internal/metric"
	"aggregatord/internal/store"
)

// perFamily is how many series each family of counters in the shape archive has.
const perFamily = 4000

// archive measures a daemon that finds no files but a large archive: its start, its first scrape and
// its memory.
func (b *bench) archive(ctx context.Context, sh shape) error {
	name, r := sh.String(), b.report
	path := b.path(sh.name)
	b.say("%v: generate", sh)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(path) //nolint:errcheck // run removes what is around it
	total, keyBytes, err := writeArchive(path, sh.series)
	if err != nil {
		return err
	}
	var open, ready, first, later, memory, peak, cpu []float64
	for i := range b.opts.coldRounds {
		b.say("%v: start %d of %d", sh, i+1, b.opts.coldRounds)
		if err := func() (err error) {
			daemon, s, err := b.serveArgs(ctx, "--dir", path)
			if err != nil {
				return err
			}
			defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()
			took := time.Since(daemon.started).Seconds()
			cpu = append(cpu, cpuTime(daemon.cmd.Process.Pid))
			first = append(first, s.last.Seconds())
			ready = append(ready, took-s.last.Seconds())
			open = append(open, took)
			if lines := bytes.Count(s.body, []byte("\n")) - bytes.Count(s.body, []byte("\n# ")); lines < sh.series {
				return fmt.Errorf("%d lines of samples, and there are %d series", lines, sh.series)
			}
			if got := s.value(`archived_0_total` + witnessLabels); got != total {
				return fmt.Errorf("a counter is %v, and %v is right", got, total)
			}
			for range 5 {
				took, err := s.scrape(ctx, false)
				if err != nil {
					return err
				}
				later = append(later, took.Seconds())
			}
			pid := daemon.cmd.Process.Pid
			peak = append(peak, rssAnon(pid))
			// The daemon gives back what the start has left a second after it is ready.
			if err := sleepUntil(ctx, time.Now().Add(3*time.Second)); err != nil {
				return err
			}
			memory = append(memory, rssAnon(pid))
			return nil
		}(); err != nil {
			return err
		}
	}
	r.note("%v: keys of %s", sh, mebibytes(float64(keyBytes)))
	r.time(name, "start until the first scrape is asked for", ready, "", nil)
	r.time(name, "first scrape", first, "", nil)
	r.time(name, "start to the first response", open, "", nil)
	r.time(name, "the daemon's processor time until then", cpu, "", nil)
	r.time(name, "later scrapes", later, "", nil)
	r.number(name, "RssAnon after some scrapes", mebibytes(median(peak)), "")
	r.number(name, "RssAnon three seconds later", mebibytes(median(memory)), "")
	r.atMost(name, "start until the first scrape is asked for", "≤ 1.5 s", median(ready), duration, 1.5)
	r.atMost(name, "first scrape", "≤ 1 s", median(first), duration, 1)
	r.atMost(name, "RssAnon three seconds later", "≤ 300 MiB", median(memory), mebibytes, 300<<20)
	return nil
}

// witnessLabels are those of the first series of a family.
var witnessLabels = string(appendLabels(nil, labelsOf(0, 0)))

// writeArchive makes an archive in a directory: half of its series are counters, the others the
// buckets and sums of histograms. It returns the value of the first counter, and how long all keys
// are.
func writeArchive(dir string, series int) (witness float64, keyBytes int64, err error) {
	place, err := archive.OpenHiddenPlace(dir)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, place.Close()) }()
	a := archive.New()
	if err := a.AttachTo(place, nil); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, a.Detach()) }()
	now := time.Now()
	var raw []byte
	batch := archive.NewBatch(now)
	files := map[metric.Type]*archive.FoldedFile{}
	commit := func(least int) error {
		if batch.Entries() <= least {
			return nil
		}
		err := a.Commit(batch, nil)
		batch = archive.NewBatch(now)
		clear(files)
		return err
	}
	add := func(typ metric.Type, key metric.Key, value float64) {
		if files[typ] == nil {
			space, _ := archive.SpaceOf(typ, metric.NoMode, "")
			files[typ] = batch.File(space, nil, 0)
		}
		raw = store.AppendKey(raw[:0], key)
		keyBytes += int64(len(raw))
		files[typ].Add(raw, value, 0, true)
	}
	const bounds = 10 // and a sum
	left, histograms := series, series/2/(bounds+1)
	for i := range histograms {
		family := fmt.Sprintf("archived_%d_seconds", i/(perFamily/8))
		labels := labelsOf(i%(perFamily/8), 0)
		for k := range bounds {
			bound := math.Ldexp(1, k)
			if k == bounds-1 {
				bound = math.Inf(1)
			}
			all := append([]metric.Label{{Name: "le", Value: string(metric.AppendBound(nil, bound))}}, labels...)
			metric.SortLabels(all)
			add(metric.Histogram, metric.Key{
				Family: family, Help: "How long it took.",
				Series: metric.Series{Sample: family + "_bucket", Labels: all},
			}, float64(i+k))
		}
		add(metric.Histogram, metric.Key{
			Family: family, Help: "How long it took.",
			Series: metric.Series{Sample: family + "_sum", Labels: labels},
		}, float64(i)/3)
		left -= bounds + 1
		if err := commit(50_000); err != nil {
			return 0, 0, err
		}
	}
	for i := range left {
		family := fmt.Sprintf("archived_%d", i/perFamily)
		add(metric.Counter, metric.Key{
			Family: family, Help: "How often, by outcome.",
			Series: metric.Series{Sample: family + "_total", Labels: labelsOf(i%perFamily, 0)},
		}, float64(i+1))
		if err := commit(50_000); err != nil {
			return 0, 0, err
		}
	}
	return 1, keyBytes, commit(0)
}
