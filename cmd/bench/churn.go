package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

// Churn, in which a worker dies and another one starts at each turn, and scrapes.
const (
	churnTurn   = 250 * time.Millisecond
	churnScrape = time.Second
	// churnLooks is how often the daemon's memory is looked at.
	churnLooks = 40
)

// churn watches the memory of a daemon whose workers are replaced all the time, each by one
// with another ID, and checks in the end that every count of every worker is there.
func (b *bench) churn(ctx context.Context, sh shape) (err error) {
	b.say("%v: churn for %v", sh, b.opts.churn)
	d, err := generate(b.path(sh.name+"-churn"), sh, b.layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.remove()) }()
	daemon, s, err := b.serve(ctx, d)
	if err != nil {
		return err
	}
	defer func() { s.close(); err = errors.Join(err, daemon.stop()) }()

	start := time.Now()
	var memory []float64
	replaced, scrapes := 0, 0
	nextScrape, nextLook := start, start
	for now := start; now.Sub(start) < b.opts.churn; now = time.Now() {
		if err := d.replace(replaced % sh.workers); err != nil {
			return err
		}
		replaced++
		if !now.Before(nextScrape) {
			nextScrape = now.Add(churnScrape)
			if _, err := s.scrape(ctx, scrapes%2 == 0); err != nil {
				return err
			}
			scrapes++
		}
		if !now.Before(nextLook) {
			nextLook = now.Add(b.opts.churn / churnLooks)
			memory = append(memory, rssAnon(daemon.cmd.Process.Pid))
		}
		if err := sleepUntil(ctx, now.Add(churnTurn)); err != nil {
			return err
		}
	}
	if _, err := s.scrape(ctx, false); err != nil {
		return err
	}
	if _, err := firstTotal(s, d); err != nil {
		return fmt.Errorf("after %d workers: %w", replaced+sh.workers, err)
	}

	// The first looks are at a daemon that has not seen everything yet.
	quarter := len(memory) / 4
	name, first, last := sh.String(), median(memory[quarter/2:quarter+quarter/2+1]), median(memory[len(memory)-quarter-1:])
	b.report.number(name, fmt.Sprintf("churn: workers replaced in %v, %d scrapes", b.opts.churn, scrapes), fmt.Sprint(replaced),
		"every count of every worker is in the totals")
	b.report.number(name, "RssAnon early in the churn, and late", mebibytes(first)+", "+mebibytes(last), "")
	b.report.judge(name, fmt.Sprintf("RssAnon after %v of churn against its beginning", b.opts.churn), "± 10 %",
		fmt.Sprintf("%+.1f %%", 100*(last/first-1)), known(last), math.Abs(last/first-1) <= .1)
	return nil
}
