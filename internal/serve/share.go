package serve

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/exposition"
	"aggregatord/internal/view"
)

// Scrapes that ask for the same (format, coding, pools, names) share their responses: while
// one is made, all who ask for another wait for the next, which is made once for all of them.
// So every answer is as new as its question, and the work does not grow with the scrapers.
//
// A response belongs to nobody. It never changes once it is made, whoever leaves takes nobody
// along, and sending it needs nothing but the client's own connection: a client that reads
// slowly keeps its response in memory and nothing else. How much may be kept in that way is
// bounded, see outgoing.

// A lane makes responses of one kind, one after the other.
type lane struct {
	laneKey
	// busy has room for one: the response that is being made.
	busy chan struct{}
	// packer compresses the lane's responses. Nil in a lane that is not kept.
	packer *packer

	// Server.lanesMu guards what follows.

	// next is the response that has not been begun yet, for scrapes to join; nil if none
	// waits.
	next *rendering
	// making is how many responses are being made or wait for their turn.
	making int
	// used is when the lane was last asked.
	used time.Time
}

// laneKey is what responses of one kind have in common.
type laneKey struct {
	accept   exposition.Accept
	encoding string
	// selection spells the Request and the names.
	selection string
}

// A question is what a scrape asks for.
type question struct {
	accept   exposition.Accept
	encoding string
	request  Request
	names    []string // of name[], sorted
}

func (q *question) key() laneKey {
	var b strings.Builder
	if len(q.request.Pools)+len(q.names) > 0 || q.request.SelfOnly {
		fmt.Fprintf(&b, "%t %q %t %q", q.request.SelfOnly, q.request.Pools, q.request.BarePools, q.names)
	}
	return laneKey{q.accept, q.encoding, b.String()}
}

// isWhole reports whether a key is that of everything there is.
func (k laneKey) isWhole() bool { return k.selection == "" }

// The lanes that are kept when nobody asks have a memory of what they compressed, see packer.
const (
	// keptLanes is how many lanes are kept.
	keptLanes = 8
	// keptFor is how long a lane is kept without being asked.
	keptFor = 15 * time.Minute
)

// A rendering is a response in the making, and those who wait for it.
type rendering struct {
	question
	lane   *lane
	cancel context.CancelFunc
	ctx    context.Context // done when nobody waits any more
	// done is closed when what follows it is there, which never changes from then on.
	done chan struct{}
	// format is the one that was chosen of those that are accepted.
	format exposition.Format
	// wire is the body to send, and plainBytes how long the exposition is.
	wire       *buffer
	plainBytes int
	err        error
	panicked   *laneError

	// users is how many wait for the response or send it. Server.lanesMu guards it. The last
	// one gives the buffer back.
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

// errTooMany says that there are too many responses in the making to begin another.
var errTooMany = errors.New("too many scrapes at once")

// render returns a response, shared with those who ask for the same at the same time. The
// caller must call done with it. The error is that of ctx, errTooMany, or what went wrong.
func (s *Server) render(ctx context.Context, q question) (r *rendering, shared bool, err error) {
	if r, shared, err = s.join(ctx, q); err != nil {
		return nil, false, err
	}
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

// join makes the caller a user of the response that is made next, which it begins if nobody
// else has. To join costs nothing and is never refused. What selects a part is bounded in
// number, because there are so many ways to select.
func (s *Server) join(ctx context.Context, q question) (r *rendering, shared bool, err error) {
	key := q.key()
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	l := s.lanes[key]
	if l == nil {
		l = &lane{laneKey: key, busy: make(chan struct{}, 1)}
	}
	r, shared = l.next, l.next != nil
	if !shared {
		if !key.isWhole() {
			if most := s.opts.MaxScrapesInFlight; most > 0 && s.selections >= most {
				return nil, false, errTooMany
			}
			s.selections++
		}
		r = &rendering{question: q, lane: l, done: make(chan struct{})}
		r.ctx, r.cancel = context.WithCancel(context.WithoutCancel(ctx))
		l.next = r
		l.making++
		s.lanes[key] = l
		s.keepLocked(l)
		s.handlers.Add(1)
		// Ends when the response is there, or nobody waits for it: Gather promises to return
		// early then.
		go s.fill(l, r)
	}
	l.used = time.Now()
	r.users++
	return r, shared, nil
}

// keepLocked gives a lane that may be kept its packer, if there are not too many of them.
func (s *Server) keepLocked(l *lane) {
	if l.packer != nil || l.encoding != gzipped || len(l.names()) > 0 {
		return
	}
	kept := 0
	var oldest *lane
	for _, other := range s.lanes {
		if other.packer == nil {
			continue
		}
		kept++
		if other.making == 0 && (oldest == nil || other.used.Before(oldest.used)) {
			oldest = other
		}
	}
	if kept >= keptLanes {
		if oldest == nil || time.Since(oldest.used) < time.Minute {
			return
		}
		delete(s.lanes, oldest.laneKey)
	}
	l.packer = newPacker()
}

// names returns the names that the lane's next response selects.
func (l *lane) names() []string { return l.next.names }

// done ends one request's use of a rendering.
func (s *Server) done(r *rendering) {
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	if r.users--; r.users > 0 {
		return
	}
	r.cancel()
	if r.lane.next == r {
		// It is given up: who comes now must not join it.
		r.lane.next = nil
	}
	select {
	case <-r.done:
		s.giveBack(r)
	default: // fill does, when it is done
	}
}

// fill makes a response when its turn has come.
func (s *Server) fill(l *lane, r *rendering) {
	defer s.handlers.Add(-1)
	select {
	case l.busy <- struct{}{}:
		defer func() { <-l.busy }()
	case <-r.ctx.Done(): // nobody waits, and nobody can have joined since
	}
	s.lanesMu.Lock()
	if l.next == r {
		l.next = nil // who comes now must not get what was gathered before
	}
	wanted := r.users > 0
	s.lanesMu.Unlock()
	if wanted {
		s.make(r, l.packer)
	} else {
		r.err = errNobody
	}
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	if l.making--; l.making == 0 && l.packer == nil && s.lanes[l.laneKey] == l {
		delete(s.lanes, l.laneKey)
	}
	if !l.isWhole() {
		s.selections--
	}
	close(r.done)
	if r.users == 0 {
		s.giveBack(r)
	}
}

// make gathers, encodes and compresses, by the lane's packer if it has one. Few do the latter
// two at once, for the sake of memory and processors; those that select do not keep the others
// waiting.
func (s *Server) make(r *rendering, p *packer) {
	defer func() {
		if v := recover(); v != nil {
			r.panicked = &laneError{v, debug.Stack()}
		}
	}()
	var snaps []*view.Snapshot
	if s.opts.Gatherer != nil {
		r.request.Starts = s.opts.Encoder.WantsStarts(r.accept)
		snaps, r.err = s.opts.Gatherer.Gather(r.ctx, r.request)
		defer func() {
			for _, snap := range snaps {
				snap.Release()
			}
		}()
		if r.err != nil {
			return
		}
	}
	slots := s.encodingParts
	if r.lane.isWhole() {
		slots = s.encodingWhole
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-r.ctx.Done():
		r.err = errNobody
		return
	}
	plain := s.plains.get()
	s.encode(plain, r, p, snaps)
	r.plainBytes = len(plain.b)
	if r.encoding != gzipped {
		r.wire = plain
		return
	}
	defer s.plains.put(plain)
	r.wire = s.wires.get()
	if p != nil {
		r.err = p.pack(r.wire, plain.b)
	} else {
		r.err = s.compress(r.wire, plain.b)
	}
}

// encode appends the exposition. If there is a packer, it is told of the sections.
func (s *Server) encode(dst *buffer, r *rendering, p *packer, snaps []*view.Snapshot) {
	var ends *[]int
	if p != nil {
		p.ends = p.ends[:0]
		ends = &p.ends
	}
	e := s.opts.Encoder
	if len(r.request.Pools) > 0 || r.request.SelfOnly {
		e = &s.partial // what is rendered of everything must not go for a part
	}
	dst.b, r.format = e.Encode(dst.b, ends, r.accept, exposition.NewFilter(r.names), snaps...)
}

// giveBack returns the buffer of a response that nobody uses any more.
func (s *Server) giveBack(r *rendering) {
	if r.wire == nil {
		return
	}
	if r.encoding == gzipped {
		s.wires.put(r.wire)
	} else {
		s.plains.put(r.wire)
	}
	r.wire = nil
	s.trimLaterLocked()
}

// trimEvery is how often memory is given back after a response, until there is no more.
const trimEvery = needFor + time.Second

// trimLaterLocked has trim called some time after a response, and soon after a large one.
func (s *Server) trimLaterLocked() {
	if s.stopping.Load() {
		return
	}
	after := trimEvery
	if s.plains.large() || s.wires.large() {
		after = largeFor
	}
	at := time.Now().Add(after)
	if s.trimming && !at.Before(s.trimAt) {
		return
	}
	s.trimming, s.trimAt = true, at
	if s.trimTimer == nil {
		s.trimTimer = time.AfterFunc(after, s.trim)
		return
	}
	s.trimTimer.Reset(after)
}

// largeTrim is how many bytes given back are worth a garbage collection of their own.
const largeTrim = 32 << 20

// trim gives memory back that was needed once.
func (s *Server) trim() {
	plain, morePlains := s.plains.trim()
	wire, moreWires := s.wires.trim()
	func() {
		s.lanesMu.Lock()
		defer s.lanesMu.Unlock()
		s.trimming = false
		for key, l := range s.lanes {
			if l.making == 0 && time.Since(l.used) > keptFor {
				delete(s.lanes, key)
			}
		}
		if morePlains || moreWires || len(s.lanes) > 0 {
			s.trimLaterLocked()
		}
	}()
	if plain+wire >= largeTrim {
		debug.FreeOSMemory()
	}
}

// stopTrimming ends what trimLaterLocked has begun.
func (s *Server) stopTrimming() {
	s.lanesMu.Lock()
	defer s.lanesMu.Unlock()
	if s.trimTimer != nil {
		s.trimTimer.Stop()
	}
}

// sortedSet sorts a list and removes doubles, in place.
func sortedSet(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// panicFields describes a panic for the log, where it happened.
func panicFields(v any) []zap.Field {
	if e, ok := v.(*laneError); ok {
		return []zap.Field{zap.Any("panic", e.value), zap.ByteString("stack", e.stack)}
	}
	return []zap.Field{zap.Any("panic", v), zap.Stack("stack")}
}
