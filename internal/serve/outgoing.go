package serve

import (
	"container/list"
	"errors"
	"net/http"
	"sync"
	"time"
)

// outgoing bounds the memory of responses on their way. One that many clients receive counts
// once. When there are too many bytes, the connections of those who still receive the oldest
// response are closed: a client that reads slowly costs itself.
type outgoing struct {
	// most is the least bound in bytes; the size of the newest response, four times, may be more.
	most int

	// mu guards what follows.
	mu    sync.Mutex
	bytes int
	// parcels are the responses on their way, oldest first.
	parcels list.List // of *parcel
	byKey   map[any]*list.Element
}

// defaultOutgoing is how many bytes of responses may always be on their way.
const defaultOutgoing = 64 << 20

// A parcel is a response on its way to some clients.
type parcel struct {
	key     any
	bytes   int
	senders map[*sender]struct{}
}

// A sender is one client's connection while a response is sent. Its deadline is moved on as
// long as the client reads.
type sender struct {
	rc *http.ResponseController
	// mu guards what follows.
	mu sync.Mutex
	// end is when the response must be sent, zero for no limit.
	end time.Time
	// over says that no deadline may be set any more, deaf that the writer knows none, as in tests.
	over, deaf bool
}

const (
	// chunkBytes is how much a client must take within stallTime.
	chunkBytes = 64 << 10
	stallTime  = 10 * time.Second
)

// setDeadlineLocked sets the deadline of the connection, if it has any: to be told each time that it
// has none would allocate for every chunk.
func (c *sender) setDeadlineLocked(deadline time.Time) {
	if !c.deaf {
		c.deaf = errors.Is(c.rc.SetWriteDeadline(deadline), errors.ErrUnsupported)
	}
}

// advance gives the client time for the next chunk.
func (c *sender) advance(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	deadline := now.Add(stallTime)
	if !c.end.IsZero() && c.end.Before(deadline) {
		deadline = c.end
	}
	c.setDeadlineLocked(deadline)
}

// cut ends the sending, or the right to touch the connection after it.
func (c *sender) cut(abort bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return
	}
	c.over = true
	deadline := c.end // for what net/http has yet to write, and none for the next response
	if abort {
		deadline = time.Unix(1, 0)
	}
	c.setDeadlineLocked(deadline)
}

// begin notes that a response of so many bytes is sent to a client, and makes room for it. The
// key is the same for all who are sent the same memory. It returns how many others were cut off.
func (o *outgoing) begin(key any, size int, c *sender) (cut int) {
	var slow []*sender
	func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.byKey == nil {
			o.byKey = map[any]*list.Element{}
		}
		e := o.byKey[key]
		if e == nil {
			e = o.parcels.PushBack(&parcel{key: key, bytes: size, senders: map[*sender]struct{}{}})
			o.byKey[key] = e
			o.bytes += size
		}
		e.Value.(*parcel).senders[c] = struct{}{}
		for o.bytes > max(o.most, 4*size) && o.parcels.Front() != e {
			oldest := o.parcels.Front().Value.(*parcel)
			for c := range oldest.senders {
				slow = append(slow, c)
			}
			o.forgetLocked(oldest)
		}
	}()
	for _, c := range slow {
		c.cut(true)
	}
	return len(slow)
}

// end notes that a client has the response, or never will.
func (o *outgoing) end(key any, c *sender) {
	c.cut(false)
	o.mu.Lock()
	defer o.mu.Unlock()
	e := o.byKey[key]
	if e == nil {
		return // it was cut
	}
	p := e.Value.(*parcel)
	if delete(p.senders, c); len(p.senders) == 0 {
		o.forgetLocked(p)
	}
}

func (o *outgoing) forgetLocked(p *parcel) {
	o.bytes -= p.bytes
	o.parcels.Remove(o.byKey[p.key])
	delete(o.byKey, p.key)
}

// sendBody sends a response in pieces, so that a client must go on reading to keep its
// connection. The key tells bodies in the same memory from others; size is that of the memory.
func (s *Server) sendBody(w http.ResponseWriter, r *http.Request, code int, key any, size int, body []byte) error {
	c := &sender{rc: http.NewResponseController(w)}
	if s.opts.WriteTimeout > 0 {
		c.end = time.Now().Add(s.opts.WriteTimeout)
	}
	setLength(w, len(body))
	w.WriteHeader(code)
	if r.Method == http.MethodHead {
		return nil
	}
	for range s.outgoing.begin(key, size, c) {
		s.opts.OnConnectionClosed(ClosedSlow)
	}
	defer s.outgoing.end(key, c)
	for len(body) > 0 {
		n := min(len(body), chunkBytes)
		c.advance(time.Now())
		if _, err := w.Write(body[:n]); err != nil {
			return err
		}
		body = body[n:]
	}
	return nil
}
