package output

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"sync"
	"time"

	"go.uber.org/zap"
)

// A pusher is one output.
type pusher struct {
	outputs *Outputs
	spec    Spec
	sender  sender
	log     *zap.Logger

	// started, cancel and done are of the goroutine that run is in.
	started bool
	cancel  context.CancelFunc
	done    chan struct{}
	// ending is closed when there are no more regular pushes; quit closes it once.
	ending chan struct{}
	quit   sync.Once

	// What follows belongs to the goroutine, and after it to who waits for its end.

	selections [parts]*selection
	// failures counts the pushes since the last success, failing is why the last one failed.
	failures int
	failing  string

	// mu guards state.
	mu    sync.Mutex
	state Status
}

func newPusher(o *Outputs, s Spec) *pusher {
	p := &pusher{outputs: o, spec: s, done: make(chan struct{}), ending: make(chan struct{})}
	full := s.withDefaults()
	p.log = o.opts.Logger.With(zap.String("output", s.Name), zap.String("type", s.Kind()), zap.String("to", s.Target()))
	opts := senderOptions{
		log: p.log, agent: "aggregatord/" + o.opts.Version, version: o.opts.Version, environment: environment(o.opts.Environ),
	}
	if made, err := newSender(&full, opts); err == nil {
		p.sender = made
	} else {
		p.sender = &late{spec: full, opts: opts}
	}
	for part := range p.selections {
		p.selections[part] = newSelection(&full, part)
	}
	p.state = Status{
		Name: s.Name, Type: s.Kind(), Target: s.Target(), Interval: full.Interval.Seconds(), Results: map[string]uint64{},
	}
	o.opts.Metrics.begin(&s)
	return p
}

// retire ends the regular pushes, the one that is under way too. One that was never started
// is done.
func (p *pusher) retire() {
	p.quit.Do(func() { close(p.ending) })
	if !p.started {
		close(p.done)
		return
	}
	p.cancel()
}

// notReady is how long to wait for a source that is not ready.
const notReady = 250 * time.Millisecond

// maxBackoff bounds the time between two attempts, unless the interval is longer.
const maxBackoff = time.Minute

// run pushes until ctx is done or p is told to end. The first push comes at a random moment of
// the first seconds, so that daemons that are started together do not push together.
func (p *pusher) run(ctx context.Context) {
	full := p.spec.withDefaults()
	next := time.Now().Add(rand.N(min(full.Interval, 5*time.Second)))
	timer := time.NewTimer(time.Until(next))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.ending:
			return
		case <-timer.C:
		}
		pushCtx, cancel := context.WithTimeout(ctx, full.Timeout)
		err := p.push(pushCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		if errors.Is(err, errNotReady) {
			timer.Reset(notReady)
			continue
		}
		// The next regular moment; those that have passed meanwhile are left out.
		if late := now.Sub(next); late >= 0 {
			next = next.Add((late/full.Interval + 1) * full.Interval)
		}
		p.setNext(p.delay(err, full.Interval, time.Until(next)), timer)
	}
}

// delay is how long to wait after a push that ended with err.
func (p *pusher) delay(err error, interval, regular time.Duration) time.Duration {
	e, failed := errors.AsType[*PushError](err)
	if !failed {
		return regular
	}
	d := backoff(p.outputs.opts.MinBackoff, max(interval, maxBackoff), p.failures)
	if !e.Retry {
		return max(d, regular) // sooner would not help
	}
	return max(d, e.After)
}

// backoff doubles from least to most with the number of failures, and is somewhere in the upper
// half of that.
func backoff(least, most time.Duration, failures int) time.Duration {
	d := least
	for i := 1; i < failures && d < most; i++ {
		d *= 2
	}
	d = min(d, most)
	return d/2 + rand.N(d/2+1)
}

func (p *pusher) setNext(d time.Duration, timer *time.Timer) {
	timer.Reset(d)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.state.Next = unixSeconds(time.Now().Add(d))
}

// push takes the newest view and sends it. An error is a *PushError, or says that the source
// is not ready.
func (p *pusher) push(ctx context.Context) error {
	begin := time.Now()
	f, err := p.outputs.gather(ctx, p)
	if errors.Is(err, errNotReady) {
		return err
	}
	var out sent
	if err != nil {
		err = &PushError{Result: NoView, Retry: true, Err: fmt.Errorf("take the view: %w", err)}
	} else {
		out, err = p.sender.push(ctx, f)
		for _, s := range p.selections {
			out.leftOut += s.leftOut
		}
		f.release()
	}
	var failure *PushError
	if err != nil {
		failure = classify(ctx, err)
		err = failure
	}
	p.note(begin, out, failure)
	return err
}

// note records how a push ended, and logs what is new about that.
func (p *pusher) note(begin time.Time, out sent, failure *PushError) {
	now := time.Now()
	took := now.Sub(begin)
	result := OK
	if failure != nil {
		result = failure.Result
	}
	m, name, kind := p.outputs.opts.Metrics, p.spec.Name, p.spec.Kind()
	m.pushes.With(name, kind, string(result)).Inc()
	m.duration.With(name, kind).Set(took.Seconds())
	m.seconds.With(name, kind).Add(took.Seconds())
	m.bytes.With(name, kind).Add(float64(out.bytes))
	m.samples.With(name, kind).Set(float64(out.samples))
	m.leftOut.With(name, kind).Set(float64(out.leftOut))
	up := 0.0
	if failure == nil {
		up = 1
		m.lastSuccess.With(name, kind).Set(unixSeconds(now))
	}
	m.up.With(name, kind).Set(up)
	p.noteStatus(now, took, out, result, failure)

	if failure == nil {
		if p.failures > 0 {
			p.log.Info("output works again", zap.Int("failures", p.failures))
		}
		p.failures, p.failing = 0, ""
		return
	}
	p.failures++
	if result == Canceled {
		return
	}
	// What goes on failing in the same way is told once: the metrics have the rest.
	if text := string(result) + failure.Hint; text != p.failing {
		p.failing = text
		p.log.Warn("a push failed", zap.String("result", string(result)), zap.Duration("duration", took), zap.Error(failure))
	} else {
		p.log.Debug("a push failed again", zap.String("result", string(result)), zap.Int("failures", p.failures), zap.Error(failure))
	}
}

func (p *pusher) noteStatus(now time.Time, took time.Duration, out sent, result Result, failure *PushError) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &p.state
	s.Results[string(result)]++
	s.LastTry, s.Duration, s.Bytes, s.Samples, s.LeftOut = unixSeconds(now), took.Seconds(), out.bytes, out.samples, out.leftOut
	if failure == nil {
		s.LastSuccess, s.Failures, s.Error = unixSeconds(now), 0, ""
		return
	}
	s.Failures++
	s.Error = failure.Error()
}

func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// status is a copy of the state.
func (p *pusher) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.state
	s.Results = make(map[string]uint64, len(p.state.Results))
	maps.Copy(s.Results, p.state.Results)
	return s
}

// delivered reports whether the last push went well.
func (p *pusher) delivered() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state.LastSuccess > 0 && p.state.Failures == 0
}

// lastRetry bounds the time between two attempts at the end, when time is short.
const lastRetry = 2 * time.Second

// last waits for the regular pushes to end, pushes once more until that has succeeded or there
// is no more time, and takes its leave.
func (p *pusher) last(ctx context.Context) error {
	p.quit.Do(func() { close(p.ending) })
	if p.started {
		select {
		case <-p.done:
		case <-time.After(min(inFlight, p.outputs.opts.ExitTimeout/4)):
			p.cancel()
			<-p.done
		}
	}
	pushed := p.delivered()
	if !p.spec.SkipOnExit && !p.sender.skipsLast() {
		begin := time.Now()
		err := p.lastPush(ctx)
		if err != nil {
			p.log.Error("the last push failed; what was counted since the last success is not there",
				zap.Duration("after", time.Since(begin)), zap.Error(err))
			return fmt.Errorf("output %s: the last push: %w", p.spec.Name, err)
		}
		pushed = true
		p.log.Info("pushed for the last time", zap.Duration("duration", time.Since(begin)))
	}
	if err := p.leave(ctx, pushed); err != nil {
		return fmt.Errorf("output %s: %w", p.spec.Name, err)
	}
	return nil
}

// lastPush pushes until that has succeeded, was refused for good, or there is no more time.
func (p *pusher) lastPush(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, p.outputs.opts.ExitTimeout)
	defer cancel()
	full := p.spec.withDefaults()
	for tries := 1; ; tries++ {
		pushCtx, cancel := context.WithTimeout(ctx, full.Timeout)
		err := p.push(pushCtx)
		cancel()
		if err == nil {
			return nil
		}
		wait := backoff(p.outputs.opts.MinBackoff/2, lastRetry, tries)
		if e, ok := errors.AsType[*PushError](err); ok {
			if !e.Retry {
				return err
			}
			wait = max(wait, e.After)
		}
		if deadline, ok := ctx.Deadline(); ok && time.Now().Add(wait).After(deadline) {
			return err // there is no time for another
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
	}
}

// leave has the sender take its leave.
func (p *pusher) leave(ctx context.Context, pushed bool) error {
	extra := time.Duration(0)
	if g := p.spec.Pushgateway; g != nil && g.DeleteOnExit && pushed {
		extra = g.DeleteAfter
	}
	ctx, cancel := context.WithTimeout(ctx, extra+p.spec.withDefaults().Timeout)
	defer cancel()
	if err := p.sender.leave(ctx, pushed); err != nil {
		p.log.Error("an output could not be tidied up", zap.Error(classify(ctx, err)))
		return err
	}
	return nil
}

// unescaped decodes the percent encoding of the environment's attributes.
func unescaped(s string) string {
	if out, err := url.PathUnescape(s); err == nil {
		return out
	}
	return s
}
