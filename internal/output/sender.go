package output

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/view"
)

// A frame is what is sent at once: the part of the views that an output selects.
type frame struct {
	// at is when the views were taken.
	at time.Time
	// parts are what is selected of each view. Who sends must not keep them.
	parts []*view.Snapshot
}

func (f *frame) release() {
	for _, snap := range f.parts {
		snap.Release()
	}
	f.parts = f.parts[:0]
}

// sent says what went out in a push.
type sent struct {
	// bytes is the size of what was sent, compressed.
	bytes int
	// samples is how many were taken by the receiver, leftOut how many cannot be said in its
	// protocol, or were refused.
	samples, leftOut int
}

// A sender speaks one protocol. It is used by one goroutine at a time.
type sender interface {
	// push sends the frame. An error is a *PushError.
	push(ctx context.Context, f *frame) (sent, error)
	// wantsStarts reports whether the parts of a frame should have Starts.
	wantsStarts() bool
	// skipsLast reports whether a last push would be undone at once by leave.
	skipsLast() bool
	// leave does what is to be done in the end, after the last push. pushed says that there
	// was one and it went well.
	leave(ctx context.Context, pushed bool) error
	// close frees what the sender holds; it may be called twice.
	close()
}

// senderOptions are what senders have in common.
type senderOptions struct {
	log   *zap.Logger
	agent string
	// environment is OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME, already read.
	environment map[string]string
	version     string
}

// late is a sender that cannot be made, because a file with a certificate or the like is
// missing or wrong. Each push tries again: such files may come later than the daemon.
type late struct {
	spec Spec
	opts senderOptions
	made sender
}

func (l *late) wantsStarts() bool { return l.made != nil && l.made.wantsStarts() }

func (l *late) skipsLast() bool { return l.made != nil && l.made.skipsLast() }

func (l *late) push(ctx context.Context, f *frame) (sent, error) {
	if l.made == nil {
		made, err := newSender(&l.spec, l.opts)
		if err != nil {
			return sent{}, &PushError{Result: Misconfigured, Retry: true, Err: err}
		}
		l.made = made
	}
	return l.made.push(ctx, f)
}

func (l *late) leave(ctx context.Context, pushed bool) error {
	if l.made == nil {
		return nil
	}
	return l.made.leave(ctx, pushed)
}

func (l *late) close() {
	if l.made != nil {
		l.made.close()
	}
}

// newSender returns the sender of a Spec, which was checked.
func newSender(s *Spec, o senderOptions) (sender, error) {
	switch {
	case s.Textfile != nil:
		return newTextfile(s.Textfile, o)
	case s.Graphite != nil:
		return newGraphite(s.Graphite), nil
	}
	var headers map[string]string
	switch {
	case s.RemoteWrite != nil:
		headers = s.RemoteWrite.Headers
	case s.OTLP != nil:
		headers = s.OTLP.Headers
	}
	client, err := newHTTPClient(s.HTTP, headers, o.agent)
	if err != nil {
		return nil, fmt.Errorf("http_config: %w", err)
	}
	switch {
	case s.Pushgateway != nil:
		return newPushgateway(s.Pushgateway, client, o)
	case s.RemoteWrite != nil:
		return newRemoteWrite(s.RemoteWrite, client, o)
	default:
		return newOTLP(s.OTLP, client, o)
	}
}
