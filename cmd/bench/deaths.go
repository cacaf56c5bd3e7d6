package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"
)

// Times of a shape of deaths: when the next workers die, and when it is scraped.
const (
	deathTurn   = 10 * time.Millisecond
	deathScrape = 500 * time.Millisecond
)

// deaths measures scrapes while many workers die all the time, each with an ID of its own and one
// file of counters, and checks in the end that every count of every worker is there.
func (b *bench) deaths(ctx context.Context, sh shape) (err error) {
	b.say("%v: for %v", sh, b.opts.deaths)
	path := b.path(sh.name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(path)) }()
	daemon, s, err := b.serveArgs(ctx, "--dir", path)
	if err != nil {
		return err
	}
	defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()

	keys := make([][]byte, sh.series)
	for i := range keys {
		keys[i] = twelveKey("counter", i)
	}
	used := appendFile(nil, keys, func(int) float64 { return 1 })
	var begun, made atomic.Int64
	writing, stop := context.WithTimeout(ctx, b.opts.deaths)
	defer stop()
	written := make(chan error, 1)
	start := time.Now()
	go func() { written <- dieAll(writing, path, used, sh.deaths, &begun, &made) }() // ends with writing
	var samples, memory []float64
	total, late := 0.0, 0.0
	look := func() error {
		before := float64(made.Load()) * float64(sh.series)
		took, err := s.scrape(ctx, false)
		if err != nil {
			return err
		}
		after := float64(begun.Load()) * float64(sh.series)
		got, err := counted(s.body)
		if err != nil {
			return err
		}
		if got < total || got > after {
			return fmt.Errorf("the counters add up to %v after %v, and to %v at most", got, total, after)
		}
		total, late = got, max(late, before-got)
		samples = append(samples, took.Seconds())
		return nil
	}
	var took time.Duration
	for next := start; took == 0; next = next.Add(deathScrape) {
		select {
		case err := <-written:
			if err != nil {
				return err
			}
			took = time.Since(start)
		case <-time.After(time.Until(next)):
			if err := look(); err != nil {
				return err
			}
			memory = append(memory, rssAnon(daemon.cmd.Process.Pid))
		}
	}
	dead := made.Load()
	want := float64(dead) * float64(sh.series)
	if err := look(); err != nil {
		return err
	}
	samples = samples[:len(samples)-1] // nobody died meanwhile
	// Files for which there was no descriptor wait until others are archived.
	for deadline := time.Now().Add(patience); total != want; {
		if time.Now().After(deadline) {
			return fmt.Errorf("the counters add up to %v, and %v is right", total, want)
		}
		if err := sleepUntil(ctx, time.Now().Add(100*time.Millisecond)); err != nil {
			return err
		}
		before := total
		if err := look(); err != nil {
			return err
		}
		samples = samples[:len(samples)-1]
		if total > before {
			deadline = time.Now().Add(patience)
		}
	}
	exact := time.Since(start) - took
	name, r := sh.String(), b.report
	r.number(name, "workers that died", fmt.Sprintf("%d in %s", dead, duration(took.Seconds())),
		"every count of every one is in the totals")
	r.number(name, "from the last death until all are in a scrape", duration(exact.Seconds()), "")
	r.time(name, "scrape", samples, "", nil)
	r.number(name, "scrape: slowest", duration(quantile(samples, 1)), "load "+load())
	r.number(name, "counts of the dead that a scrape lacked, at most", fmt.Sprintf("%.0f", late), "they are in a later one")
	r.number(name, "RssAnon, largest", mebibytes(quantile(memory, 1)), "")
	rate := float64(dead) / took.Seconds()
	r.judge(name, "deaths a second", fmt.Sprintf("%d", sh.deaths), digits(rate), true, rate >= .95*float64(sh.deaths))
	return nil
}

// dieAll leaves behind files of the dead, so many a second, until ctx is done. It counts those that it has
// begun, and those that are there.
func dieAll(ctx context.Context, dir string, used []byte, perSecond int, begun, made *atomic.Int64) error {
	for start := time.Now(); ; {
		for due := int64(float64(perSecond) * time.Since(start).Seconds()); made.Load() < due && ctx.Err() == nil; {
			n := begun.Add(1)
			if err := (&sourceFile{}).create(filepath.Join(dir, fmt.Sprintf("counter_%d.db", 1000+n)), used, false); err != nil {
				return err
			}
			made.Add(1)
		}
		if sleepUntil(ctx, time.Now().Add(deathTurn)) != nil {
			return nil
		}
	}
}
