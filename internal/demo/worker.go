package demo

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"time"
)

// orders are what the master tells a worker, as one line of JSON.
type orders struct {
	Dir               string
	RequestsPerSecond float64
	MaxRequests       int // 0: no limit
	Seed, Number      uint64
}

// maxLag is how far a worker may fall behind its timetable before it gives up what it
// missed. Without it, a machine that was asleep for an hour would make up for that hour.
const maxLag = time.Second

// Worker is a worker process: it reads its orders from the master's pipe and works until
// ctx is done, the pipe ends or it has answered as many requests as it should. All these
// are tidy ends, and nil.
func Worker(ctx context.Context, master io.Reader) error {
	in := bufio.NewReader(master)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the orders of the demo's master, which alone should start workers: %w", err)
	}
	var o orders
	if err := json.Unmarshal(line, &o); err != nil {
		return fmt.Errorf("read the orders of the demo's master: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Waits for the master to go. It ends with the pipe; a worker that is done before its
	// master ends with its process, so nobody waits for this.
	go func() {
		_, _ = io.Copy(io.Discard, in)
		stop()
	}()
	return work(ctx, o, strconv.Itoa(os.Getpid()))
}

// work answers requests, writing files with this ID.
func work(ctx context.Context, o orders, id string) (err error) {
	c := newClient(o.Dir, id)
	defer func() { err = errors.Join(err, c.Close()) }()
	rng := rand.New(rand.NewPCG(o.Seed, o.Number))
	s := newShop(c, rng)

	limit := o.MaxRequests
	if limit > 0 {
		limit += int((rng.Float64()*2 - 1) * float64(limit) / 5)
		limit = max(limit, 1)
	}
	// Requests come when they come, however long others take: arrivals and ends of requests
	// are events on one timetable, so several can be in progress without several threads.
	start := time.Now()
	gap := func() time.Duration {
		seconds := min(rng.ExpFloat64()/o.RequestsPerSecond, time.Hour.Seconds()) // a Duration has an end
		return time.Duration(seconds * float64(time.Second))
	}
	arrival := gap()
	for begun := 0; c.err == nil; {
		next, open := s.nextEnd()
		arrives := (limit == 0 || begun < limit) && (!open || arrival <= next)
		switch {
		case arrives:
			next = arrival
		case !open:
			return nil // answered all that it should
		}
		now := time.Since(start)
		if now-next > maxLag {
			start = start.Add(now - next)
		}
		if !sleep(ctx, next-now) {
			return nil
		}
		if arrives {
			s.begin(arrival)
			begun++
			arrival += gap()
		} else {
			s.end()
		}
	}
	return c.err
}
