package serve

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"go.uber.org/zap"

	"aggregatord/internal/exposition"
)

// Scrapes of one format and coding share their responses: while one is made, all who ask
// for another wait for the next, which is made once for all of them. So every answer is
// as new as its question, and the work does not grow with the scrapers. A scrape that
// selects with name[] has its response for itself.

// A lane makes responses of one kind, one after the other.
type lane struct {
	// busy has room for one: the response that is being made.
	busy chan struct{}
	// packer compresses the lane's responses. Nil in a lane for one response.
	packer *packer
	// next is the response that has not been begun yet, for scrapes to join; nil if none
	// waits. Server.lanesMu guards it.
	next *rendering
}

func newLane() *lane { return &lane{busy: make(chan struct{}, 1)} }

// newSharedLane returns a lane that is used again and again.
func newSharedLane(key laneKey) *lane {
	l := newLane()
	if key.encoding == gzipped {
		l.packer = newPacker()
	}
	return l
}

// laneKey is what responses of one kind have in common.
type laneKey struct {
	accept   exposition.Accept
	encoding string
}

// maxLanes bounds the lanes that are kept: a client may name formats in hundreds of ways.
const maxLanes = 32

// A rendering is a response in the making, and those who wait for it.
type rendering struct {
	laneKey
	filter exposition.Filter
	cancel context.CancelFunc
	ctx    context.Context // done when nobody waits any more
	// done is closed when what follows it is there, which never changes from then on.
	done chan struct{}
	// format is the one that was chosen of those that are accepted.
	format exposition.Format
	// plain is the exposition, wire the body to send.
	plain, wire *buffer
	err         error
	panicked    *laneError

	// users is how many wait for the response or send it. Server.lanesMu guards it. The last
	// one gives the buffers back.
	users int
}

// A laneError is a panic on its way to the requests that waited for its outcome.
type laneError struct {
	value any
	stack []byte
}

func (e *laneError) Error() string { return fmt.Sprintf("panic while making a response: %v", e.value) }

// errNobody says that a rendering was given up because nobody waited for it any more.
var errNobody = errors.New("nobody waits for the response")

// render returns a response, shared with those who ask for the same at the same time,
// unless the filter selects. The caller must call done with it. The error is that of ctx,
// or what went wrong.
func (s *Server) render(ctx context.Context, key laneKey, filter exposition.Filter) (r *rendering, shared bool, err error) {
	s.lanesMu.Lock()
	l := s.lanes[key]
	switch {
	case !filter.All() || (l == nil && len(s.lanes) >= maxLanes):
		l = newLane()
	case l == nil:
		l = newSharedLane(key)
		s.lanes[key] = l
	}
	r, shared = l.next, l.next != nil
	if !shared {
		r = &rendering{laneKey: key, filter: filter, done: make(chan struct{})}
		r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
		l.next = r
		s.handlers.Add(1)
		// Ends when the response is there, or nobody waits for it: Gather promises to return
		// early then.
		go s.fill(l, r)
	}
	r.users++
	s.lanesMu.Unlock()

	select {
	case <-r.done:
	case <-ctx.Done():
		s.done(r)
		return nil, shared, ctx.Err()
	}
	if r.panicked != nil {
		s.done(r)
		panic(r.panicked)
	}
	if r.err != nil || ctx.Err() != nil {
		err := r.err
		s.done(r)
		return nil, shared, errors.Join(err, ctx.Err())
	}
	return r, shared, nil
}

// done ends one request's use of a rendering.
func (s *Server) done(r *rendering) {
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	if r.users--; r.users == 0 {
		r.cancel()
		select {
		case <-r.done:
			r.giveBack()
		default: // fill does, when it is done
		}
	}
}

// fill makes a response when its turn has come.
func (s *Server) fill(l *lane, r *rendering) {
	defer s.handlers.Add(-1)
	l.busy <- struct{}{}
	defer func() { <-l.busy }()
	s.lanesMu.Lock()
	l.next = nil // who comes now must not get what was gathered before
	wanted := r.users > 0
	s.lanesMu.Unlock()
	if wanted {
		s.make(r, l.packer)
	} else {
		r.err = errNobody
	}
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	close(r.done)
	if r.users == 0 {
		r.giveBack()
	}
}

// make gathers, encodes and compresses, by the lane's packer if it has one.
func (s *Server) make(r *rendering, p *packer) {
	defer func() {
		if v := recover(); v != nil {
			r.panicked = &laneError{v, debug.Stack()}
		}
	}()
	r.plain = getBuffer(&plains)
	r.wire = r.plain
	if r.err = s.encode(r, p); r.err != nil || r.encoding != gzipped {
		return
	}
	r.wire = getBuffer(&wires)
	if p != nil {
		r.err = p.pack(r.wire, r.plain.b)
	} else {
		r.err = compress(r.wire, r.plain.b)
	}
}

func (r *rendering) giveBack() {
	if r.wire != nil && r.wire != r.plain {
		wires.put(r.wire)
	}
	if r.plain != nil {
		plains.put(r.plain)
	}
	r.plain, r.wire = nil, nil
}

// panicFields describes a panic for the log, where it happened.
func panicFields(v any) []zap.Field {
	if e, ok := v.(*laneError); ok {
		return []zap.Field{zap.Any("panic", e.value), zap.ByteString("stack", e.stack)}
	}
	return []zap.Field{zap.Any("panic", v), zap.Stack("stack")}
}
