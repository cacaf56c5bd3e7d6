package output

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/status"
	"aggregatord/internal/telemetry"
	"aggregatord/internal/view"
)

// A Source gives the views to send. It must allow several callers at once. The caller
// releases what it gets.
type Source interface {
	// Gather returns the view of now, with the starts of its values if they are wanted.
	Gather(ctx context.Context, withStarts bool) (*view.Snapshot, error)
}

// Options of Outputs. Source is needed.
type Options struct {
	// Source gives what workers have counted.
	Source Source
	// Beside gives what a scrape has beside the source's view: the metrics of workers as processes,
	// without those that workers, the layout of the source's view, have written themselves. The caller
	// releases what it gets. Default: nothing.
	Beside func(workers *view.Layout) *view.Snapshot
	// Own gives the daemon's own metrics, for outputs that want them, as Source does. Default: none.
	Own func(withStarts bool) *view.Snapshot
	// Ready reports whether the source has seen everything it knows of. Before that nothing is
	// sent: totals would be too low. Default: always.
	Ready func() bool
	// Metrics are kept up to date. Default: nobody sees them.
	Metrics *Metrics
	// ExitTimeout bounds the last push of each output, with its retries. Default:
	// DefaultExitTimeout.
	ExitTimeout time.Duration
	// MinBackoff is how long to wait after a first failure. Default: 1 s.
	MinBackoff time.Duration
	// OnPrimed is called once by Run, if there are outputs, when it has looked at the source
	// for the first time: series that appear later are known to be new. Default: nothing.
	OnPrimed func()
	// Version is told to receivers. Default: unknown.
	Version string
	// Environ is where OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME are read. Default:
	// os.Environ.
	Environ []string
	// Logger may be nil.
	Logger *zap.Logger
}

// DefaultExitTimeout is how long the last push of an output may take unless told otherwise.
const DefaultExitTimeout = 10 * time.Second

func (o *Options) fill() {
	if o.Ready == nil {
		o.Ready = func() bool { return true }
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(telemetry.NewSet())
	}
	if o.ExitTimeout == 0 {
		o.ExitTimeout = DefaultExitTimeout
	}
	if o.MinBackoff == 0 {
		o.MinBackoff = time.Second
	}
	if o.Version == "" {
		o.Version = "unknown"
	}
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
}

// Status tells about one output.
type Status = status.Output

// Outputs are the outputs of a daemon. Its methods may be called by several goroutines; Run
// and Last once each.
type Outputs struct {
	opts Options

	// mu guards what follows.
	mu sync.Mutex
	// list has the outputs in the order in which they were asked for.
	list []*pusher
	// running is Run's context, nil before it.
	running context.Context
	// ended says that Last has begun: nothing is started any more.
	ended bool
	// loops are the goroutines of outputs, and of those that take their leave.
	loops sync.WaitGroup
}

// New returns Outputs without any output. It starts nothing.
func New(opts Options) *Outputs {
	opts.fill()
	return &Outputs{opts: opts}
}

// Apply has exactly these outputs from now on, or leaves all as it was and returns what is
// wrong with a Spec. What is wrong with a file that a Spec names, such as a certificate, costs
// the pushes of that output until it is right. An output whose Spec is the same goes on as it is. One that is no longer asked for
// takes its leave as at the end, without a last push; one that has changed begins anew.
func (o *Outputs) Apply(specs []Spec) error {
	if err := Check(specs); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return nil
	}
	next := make([]*pusher, 0, len(specs))
	for _, s := range specs {
		i := slices.IndexFunc(o.list, func(p *pusher) bool { return p.spec.equal(&s) })
		if i >= 0 {
			next = append(next, o.list[i])
			continue
		}
		next = append(next, newPusher(o, s))
	}
	before := o.list
	o.list = next
	ctx := o.running
	if ctx == nil {
		ctx = context.Background()
	}
	for _, p := range before {
		if slices.Contains(next, p) {
			continue
		}
		// One that has changed goes on in the same place, and must not find it tidied up.
		changed := slices.ContainsFunc(next, func(n *pusher) bool { return n.spec.Name == p.spec.Name })
		p.retire()
		o.loops.Go(func() {
			<-p.done
			if !changed {
				_ = p.leave(ctx, p.delivered()) // it is in the log and the metrics
				o.opts.Metrics.forget(p.spec.Name)
			}
			p.sender.close()
		})
	}
	for _, p := range next {
		if o.running != nil && !slices.Contains(before, p) {
			o.startLocked(p)
		}
	}
	return nil
}

// startLocked starts the goroutine of an output, which ends with Run's context, or when the
// output is retired.
func (o *Outputs) startLocked(p *pusher) {
	p.started = true
	ctx, cancel := context.WithCancel(o.running)
	p.cancel = cancel
	o.loops.Go(func() {
		defer close(p.done)
		defer cancel()
		p.run(ctx)
	})
}

// Check returns what Apply would find wrong with the Specs.
func Check(specs []Spec) error {
	var errs []error
	names := map[string]bool{}
	for i := range specs {
		if err := specs[i].Check(); err != nil {
			errs = append(errs, fmt.Errorf("output %q: %w", specs[i].Name, err))
		}
		if names[specs[i].Name] {
			errs = append(errs, fmt.Errorf("two outputs have the name %q; give each its own", specs[i].Name))
		}
		names[specs[i].Name] = true
	}
	return errors.Join(errs...)
}

// Run sends until ctx is done, or Last has begun. It returns when ctx is done and nothing is
// being sent any more.
func (o *Outputs) Run(ctx context.Context) {
	if o.any() && o.prime(ctx) && o.opts.OnPrimed != nil {
		o.opts.OnPrimed()
	}
	o.start(ctx)
	<-ctx.Done()
	o.loops.Wait()
}

func (o *Outputs) any() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.list) > 0
}

// prime looks at the source once it is ready.
func (o *Outputs) prime(ctx context.Context) bool {
	for !o.opts.Ready() {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(primePoll):
		}
	}
	if !o.wantStarts() {
		return true
	}
	snap, err := o.opts.Source.Gather(ctx, true)
	if err != nil {
		o.opts.Logger.Warn("the first look at what is sent failed; start times of series that are new are not known", zap.Error(err))
		return ctx.Err() == nil
	}
	snap.Release()
	return true
}

// wantStarts reports whether any output has a use for start times.
func (o *Outputs) wantStarts() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.ContainsFunc(o.list, func(p *pusher) bool { return p.sender.wantsStarts() })
}

// primePoll is how often a source that is not ready is asked again at the start.
const primePoll = 10 * time.Millisecond

func (o *Outputs) start(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.running = ctx
	if o.ended {
		return
	}
	for _, p := range o.list {
		o.startLocked(p)
	}
}

// inFlight is how long a push that is under way when the end comes may take: a receiver that
// has all of it, and handles it late, would else put old values over the last ones.
const inFlight = time.Second

// Last ends the regular pushes and sends once more, all outputs side by side: each until it
// has succeeded, was refused for good, or Options.ExitTimeout is over. Then each takes its
// leave: deletes what it was asked to delete, marks its series as ended. When ctx is done it
// gives up. The error says what could not be sent.
func (o *Outputs) Last(ctx context.Context) error {
	list := o.end()
	errs := make([]error, len(list))
	var all sync.WaitGroup
	for i, p := range list {
		all.Go(func() { errs[i] = p.last(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// end has nothing started any more, and returns the outputs.
func (o *Outputs) end() []*pusher {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	return o.list
}

// Close frees what outputs hold. Call it after Run and Last.
func (o *Outputs) Close() {
	for _, p := range o.end() {
		p.sender.close()
	}
}

// Status tells about each output, in the order in which they were asked for.
func (o *Outputs) Status() []Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := make([]Status, 0, len(o.list))
	for _, p := range o.list {
		list = append(list, p.status())
	}
	return list
}

// gather takes the views that the Spec wants.
func (o *Outputs) gather(ctx context.Context, p *pusher) (*frame, error) {
	if !o.opts.Ready() {
		return nil, errNotReady
	}
	f := &frame{at: time.Now()}
	wants := p.sender.wantsStarts()
	snap, err := o.opts.Source.Gather(ctx, wants)
	if err != nil {
		return nil, err
	}
	workers := snap.Layout
	f.parts = append(f.parts, p.selections[ofWorkers].apply(snap))
	if p.spec.Processes != ProcessesNone && o.opts.Beside != nil {
		if beside := o.opts.Beside(workers); beside != nil {
			f.parts = append(f.parts, p.selections[ofProcesses].apply(beside))
		}
	}
	if p.spec.OwnMetrics && o.opts.Own != nil {
		f.parts = append(f.parts, p.selections[ofDaemon].apply(o.opts.Own(wants)))
	}
	return f, nil
}

var errNotReady = errors.New("not ready: not all sources have been read yet")

// Once sends the frame of one view once, without a goroutine and without a retry.
func Once(ctx context.Context, s Spec, source Source, opts Options) (Status, error) {
	if err := s.Check(); err != nil {
		return Status{}, err
	}
	opts.Source = source
	o := New(opts)
	p := newPusher(o, s)
	defer p.sender.close()
	err := p.push(ctx)
	return p.status(), err
}

// environment reads what OpenTelemetry says in the environment about the resource.
func environment(environ []string) map[string]string {
	attributes := map[string]string{}
	name := ""
	for _, e := range environ {
		key, value, _ := strings.Cut(e, "=")
		switch key {
		case "OTEL_RESOURCE_ATTRIBUTES":
			for pair := range strings.SplitSeq(value, ",") {
				k, v, ok := strings.Cut(pair, "=")
				if k = unescaped(strings.TrimSpace(k)); ok && k != "" {
					attributes[k] = unescaped(strings.TrimSpace(v))
				}
			}
		case "OTEL_SERVICE_NAME":
			name = value
		}
	}
	if name != "" {
		attributes["service.name"] = name
	}
	return attributes
}
