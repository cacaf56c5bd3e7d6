package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"math"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/exp/api/remote"
	"go.uber.org/zap"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// staleNaN marks the end of a series. The bits are Prometheus' own (model/value).
var staleNaN = math.Float64frombits(0x7ff0000000000002)

// maxStale bounds the series that wait for their markers while a receiver is away. Without a
// marker a series ends five minutes later.
const maxStale = 200_000

// remoteWrite speaks Prometheus remote write, by the client of client_golang/exp. It encodes
// the messages itself: what stays the same of a series is encoded once for each layout.
//
// Which version a receiver understands is found out with the first request: one of 2.0 has
// to say in its answer what it has written. One of 1.0 says nothing, as it has found nothing
// that it knows in the message (or refuses it); then everything is sent again as 1.0.
type remoteWrite struct {
	spec    RemoteWriteSpec
	client  *http.Client
	api     *remote.API
	capture *capture
	log     *zap.Logger
	seed    maphash.Seed

	// v2 is what is spoken; settled says that the receiver is known to understand it, doubt
	// that it has refused a first request of 2.0 for reasons that may have been others.
	v2, settled, doubt bool
	perSend            int
	layouts            []*rwLayout
	// stale are series that are gone, and whose marker the receiver does not have yet.
	stale  map[uint64][]metric.Label
	lastAt int64
	buf    []byte
}

func newRemoteWrite(s *RemoteWriteSpec, client *http.Client, o senderOptions) (*remoteWrite, error) {
	r := &remoteWrite{
		spec: *s, client: client, log: o.log, seed: maphash.MakeSeed(), capture: &capture{next: client.Transport},
		v2: s.Protocol != Protocol1, settled: s.Protocol == Protocol1 || s.Protocol == Protocol2,
		perSend: s.SamplesPerSend, stale: map[uint64][]metric.Label{},
	}
	if r.perSend == 0 {
		r.perSend = DefaultSamplesPerSend
	}
	client.Transport = r.capture
	var err error
	r.api, err = remote.NewAPI(s.URL, remote.WithAPIHTTPClient(client), remote.WithAPIPath(""),
		// The least wait there is: a retry is not waited for, see send.
		remote.WithAPIBackoff(remote.BackoffConfig{Min: time.Millisecond, Max: time.Millisecond, MaxRetries: 1}))
	return r, err
}

// capture keeps the last answer, of which the client tells only part. It is used by one
// goroutine at a time.
type capture struct {
	next http.RoundTripper
	resp *http.Response
	body []byte
	err  error
}

// RoundTrip implements http.RoundTripper.
func (c *capture) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := req.Context().Err(); err != nil {
		return nil, err // a retry that nobody wants; the answer that is here is kept
	}
	c.resp, c.body = nil, nil
	resp, err := c.next.RoundTrip(req)
	if c.err = err; err != nil {
		return resp, err
	}
	c.body, c.err = io.ReadAll(resp.Body)
	if err := resp.Body.Close(); c.err == nil {
		c.err = err
	}
	resp.Body = io.NopCloser(bytes.NewReader(c.body))
	c.resp = resp
	return resp, nil
}

// CloseIdleConnections passes the call of http.Client on.
func (c *capture) CloseIdleConnections() {
	if next, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		next.CloseIdleConnections()
	}
}

// message is an encoded message, in the form that the client takes.
type message []byte

// SizeVT is part of what the client asks for.
func (m message) SizeVT() int { return len(m) }

// MarshalToSizedBufferVT is the other part.
func (m message) MarshalToSizedBufferVT(dst []byte) (int, error) { return copy(dst, m), nil }

func (r *remoteWrite) wantsStarts() bool { return r.v2 }

func (r *remoteWrite) skipsLast() bool { return false }

// errLess asks for smaller requests, errOlder for the older protocol.
var (
	errLess  = errors.New("the request was too large")
	errOlder = errors.New("the receiver does not speak 2.0")
)

func (r *remoteWrite) push(ctx context.Context, f *frame) (sent, error) {
	r.lastAt = max(r.lastAt, f.at.UnixMilli())
	total := sent{}
	for {
		out, err := r.pushAll(ctx, f)
		total.bytes += out.bytes
		switch {
		case errors.Is(err, errLess):
			r.perSend = max(r.perSend/2, 1)
			r.log.Info("the receiver takes only smaller requests", zap.Int("samples_per_send", r.perSend))
			r.recut()
		case errors.Is(err, errOlder):
			r.v2 = false
			r.recut()
		case r.doubt && isRefusal(err):
			// It was not the protocol.
			r.v2, r.doubt = true, false
			r.recut()
			total.leftOut = out.leftOut
			return total, err
		default:
			total.samples, total.leftOut = out.samples, out.leftOut
			return total, err
		}
	}
}

// recut has layouts cut anew, with what is known of their series.
func (r *remoteWrite) recut() {
	for i, l := range r.layouts {
		made := r.render(l.layout)
		made.sent = l.sent
		r.layouts[i] = made
	}
}

func (r *remoteWrite) pushAll(ctx context.Context, f *frame) (out sent, err error) {
	at := f.at.UnixMilli()
	var refused error
	for i, p := range f.parts {
		l := r.layoutOf(i, p)
		out.leftOut += l.leftOut
		for c := range l.chunks {
			chunk := &l.chunks[c]
			var n int
			r.buf, n = chunk.append(r.buf[:0], r.v2, at, p.Values, p.Starts)
			if n == 0 {
				continue
			}
			size, taken, err := r.send(ctx, n)
			out.bytes += size
			switch {
			case err == nil:
				out.samples += taken
				out.leftOut += n - taken
			case isRefusal(err):
				// The others may be all right.
				refused = err
				out.samples += taken
				out.leftOut += n - taken
				continue
			default:
				return out, err
			}
			r.mark(l, chunk, p.Values)
		}
	}
	if err := r.sendStale(ctx, at, &out); err != nil {
		return out, err
	}
	return out, refused
}

// layoutOf returns what was made of the layout of part i. Series that the layout before had
// and this one has not are marked as ended.
func (r *remoteWrite) layoutOf(i int, snap *view.Snapshot) *rwLayout {
	if i < len(r.layouts) && r.layouts[i].layout == snap.Layout {
		l := r.layouts[i]
		if l.gaps {
			for at, sent := range l.sent {
				if sent && view.IsAbsent(snap.Values[at]) {
					r.endOf(l, func(v int) bool { return l.sent[v] && view.IsAbsent(snap.Values[v]) })
					break
				}
			}
		}
		return l
	}
	l := r.render(snap.Layout)
	if i == len(r.layouts) {
		r.layouts = append(r.layouts, l)
		return l
	}
	before := r.layouts[i]
	r.layouts[i] = l
	present := make(map[uint64]int, len(l.hashes))
	for v, h := range l.hashes {
		if h != 0 && !view.IsAbsent(snap.Values[v]) {
			present[h] = v
		}
	}
	r.endOf(before, func(v int) bool {
		at, ok := present[before.hashes[v]]
		if ok && before.sent[v] {
			l.sent[at] = true
		}
		return before.sent[v] && !ok
	})
	return l
}

// endOf has a marker sent for the values of a layout that ended reports.
func (r *remoteWrite) endOf(l *rwLayout, ended func(v int) bool) {
	v, lost := -1, 0
	eachSample(l.layout, func(_ int, name string, labels []metric.Label) {
		v++
		if !ended(v) {
			return
		}
		l.sent[v] = false
		if len(r.stale) >= maxStale {
			lost++
			return
		}
		if spelled, ok := spellSeries(nil, name, labels, r.v2); ok {
			r.stale[l.hashes[v]] = spelled
		}
	})
	if lost > 0 {
		r.log.Warn("too many series wait for the marker of their end; the receiver ends them later", zap.Int("series", lost))
	}
}

// mark notes that the receiver has the values of a chunk.
func (r *remoteWrite) mark(l *rwLayout, c *rwChunk, values []float64) {
	for v := c.first; v < c.last; v++ {
		if l.hashes[v] != 0 && !view.IsAbsent(values[v]) {
			l.sent[v] = true
			if len(r.stale) > 0 {
				delete(r.stale, l.hashes[v]) // it is back
			}
		}
	}
}

// sendStale sends the markers that are due.
func (r *remoteWrite) sendStale(ctx context.Context, at int64, out *sent) error {
	if len(r.stale) == 0 {
		return nil
	}
	var b rwBuilder
	var hashes []uint64
	flush := func() error {
		if len(hashes) == 0 {
			return nil
		}
		chunk := b.finish(0, len(hashes), r.v2)
		values := make([]float64, len(hashes))
		for i := range values {
			values[i] = staleNaN
		}
		var n int
		r.buf, n = chunk.append(r.buf[:0], r.v2, at, values, nil)
		size, _, err := r.send(ctx, n)
		out.bytes += size
		if err != nil && !isRefusal(err) {
			return err
		}
		for _, h := range hashes {
			delete(r.stale, h)
		}
		hashes = hashes[:0]
		return nil
	}
	for h, labels := range r.stale {
		if len(hashes) == 0 {
			b = rwBuilder{}
		}
		b.add(labels, nil, r.v2)
		if hashes = append(hashes, h); len(hashes) == r.perSend {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (r *remoteWrite) leave(ctx context.Context, pushed bool) error {
	if r.spec.KeepOnExit || !pushed {
		return nil
	}
	for _, l := range r.layouts {
		r.endOf(l, func(v int) bool { return l.sent[v] })
	}
	var out sent
	for {
		err := r.sendStale(ctx, max(time.Now().UnixMilli(), r.lastAt+1), &out)
		switch {
		case errors.Is(err, errLess):
			r.perSend = max(r.perSend/2, 1)
		case err != nil:
			return fmt.Errorf("mark the series as ended: %w", err)
		default:
			return nil
		}
	}
}

// isRefusal reports whether the receiver has refused the content of a request.
func isRefusal(err error) bool {
	p, ok := errors.AsType[*PushError](err)
	return ok && p.Result == Rejected && p.Hint == ""
}

// send sends the buffer, which has n samples, in one attempt. It returns the size of what was
// sent and how many samples the receiver took.
func (r *remoteWrite) send(ctx context.Context, n int) (size, taken int, err error) {
	typ := remote.WriteV1MessageType
	if r.v2 {
		typ = remote.WriteV2MessageType
	}
	once, cancel := context.WithCancel(ctx)
	defer cancel()
	r.capture.resp, r.capture.body, r.capture.err = nil, nil, nil
	stats, err := r.api.Write(once, typ, message(r.buf), remote.WithWriteRetryCallback(func(error) {
		cancel() // a newer view is better than this one again
	}))
	resp := r.capture.resp
	if resp == nil {
		if r.capture.err != nil {
			err = r.capture.err
		}
		if ctx.Err() == nil && errors.Is(err, context.Canceled) {
			err = errors.New("the connection ended")
		}
		return 0, 0, classify(ctx, err)
	}
	size = int(resp.Request.ContentLength)
	p := refusal(resp, r.capture.body)
	auto := r.spec.Protocol == "" || r.spec.Protocol == ProtocolAuto
	switch {
	case p == nil && err == nil:
		if !r.settled && !r.v2 {
			r.log.Info("the receiver speaks remote write 1.0 only: no start times")
		}
		r.settled, r.doubt = true, false
		taken = n
		if r.v2 {
			taken = min(stats.Samples, n)
		}
		return size, taken, nil
	case r.v2 && auto && !r.settled && (p == nil || resp.StatusCode == http.StatusUnsupportedMediaType ||
		resp.StatusCode == http.StatusBadRequest && stats.NoDataWritten()):
		r.doubt = p != nil && resp.StatusCode == http.StatusBadRequest
		return size, 0, errOlder
	case p == nil && r.capture.err != nil:
		return size, 0, classify(ctx, fmt.Errorf("read the answer: %w", r.capture.err))
	case p == nil:
		return size, 0, &PushError{
			Result: Rejected, Err: errors.New("the receiver says that it has written nothing"),
			Hint: "does it speak remote write 2.0? Use protocol: auto",
		}
	case resp.StatusCode == http.StatusUnsupportedMediaType:
		p.Hint = "does it speak this version of remote write? Use protocol: auto"
	case resp.StatusCode == http.StatusRequestEntityTooLarge && n > 1:
		return size, 0, errLess
	case resp.StatusCode == http.StatusRequestEntityTooLarge:
		p.Hint = "" // the others are smaller
	}
	if r.v2 {
		taken = min(stats.Samples, n)
	}
	return size, taken, p
}

func (r *remoteWrite) close() { r.client.CloseIdleConnections() }
