package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"time"

	"github.com/klauspost/compress/gzip"
	"go.uber.org/zap"
	"google.golang.org/protobuf/encoding/protowire"

	"aggregatord/internal/view"
)

const (
	// otlpRequestBytes is how large a request gets before it is compressed. The OpenTelemetry
	// Collector takes 20 MiB, gRPC gateways often 4.
	otlpRequestBytes = 3 << 20
	// otlpLeastBytes is how small it is made for a receiver that takes less.
	otlpLeastBytes = 16 << 10
)

// otlp speaks OTLP over HTTP, in protobuf with gzip.
type otlp struct {
	spec   OTLPSpec
	client *http.Client
	log    *zap.Logger
	gzip   *gzip.Writer
	// resource and scope are encoded ResourceMetrics.resource and ScopeMetrics.scope.
	resource, scope []byte
	limit           int
	layouts         []*otlpLayout
	buf, points     []byte
	body            bytes.Buffer
}

func newOTLP(s *OTLPSpec, client *http.Client, o senderOptions) (*otlp, error) {
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		return nil, fmt.Errorf("otlp: %w", err)
	}
	t := &otlp{spec: *s, client: client, log: o.log, gzip: w, limit: otlpRequestBytes}
	attributes := map[string]string{"service.name": "unknown_service:aggregatord"}
	if host, err := os.Hostname(); err == nil {
		attributes["service.instance.id"] = host
	}
	maps.Copy(attributes, o.environment)
	maps.Copy(attributes, s.Resource)
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		if attributes[name] != "" {
			t.resource = appendAttribute(t.resource, 1, clean(name), clean(attributes[name]))
		}
	}
	t.scope = protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "aggregatord")
	t.scope = protowire.AppendString(protowire.AppendTag(t.scope, 2, protowire.BytesType), o.version)
	return t, nil
}

func (t *otlp) wantsStarts() bool { return true }

func (t *otlp) skipsLast() bool { return false }

func (t *otlp) push(ctx context.Context, f *frame) (sent, error) {
	total := sent{}
	for {
		out, err := t.pushAll(ctx, f)
		total.bytes += out.bytes
		if errors.Is(err, errLess) && t.limit > otlpLeastBytes {
			t.limit /= 2
			t.log.Info("the receiver takes only smaller requests", zap.Int("bytes_per_request", t.limit))
			continue
		}
		total.samples, total.leftOut = out.samples, out.leftOut
		return total, err
	}
}

func (t *otlp) pushAll(ctx context.Context, f *frame) (out sent, err error) {
	t.buf = t.buf[:0]
	pending := 0 // samples in the buffer
	flush := func() error {
		if len(t.buf) == 0 {
			return nil
		}
		size, rejected, err := t.send(ctx)
		out.bytes += size
		if err != nil {
			return err
		}
		out.samples += pending
		out.leftOut += rejected
		pending, t.buf = 0, t.buf[:0]
		return nil
	}
	at := uint64(f.at.UnixNano())
	for i, p := range f.parts {
		t.layouts = kept(t.layouts, i, p.Layout, t.render)
		l := t.layouts[i]
		for j := range l.metrics {
			m := &l.metrics[j]
			for next := 0; next < len(m.metrics); {
				var n, lost int
				t.points, next, n, lost = m.appendPoints(t.points[:0], next, t.limit-len(t.buf), at, p)
				out.leftOut += lost
				pending += n
				if n > 0 {
					t.buf = m.append(t.buf, t.points)
				}
				if len(t.buf) >= t.limit || next < len(m.metrics) {
					if err := flush(); err != nil {
						return out, err
					}
				}
			}
		}
	}
	return out, flush()
}

// send sends the metrics in the buffer as one request. It returns the size of what was sent
// and how many points the receiver has refused.
func (t *otlp) send(ctx context.Context) (size, rejected int, err error) {
	field := func(dst []byte, num protowire.Number, size int) []byte {
		return protowire.AppendVarint(protowire.AppendTag(dst, num, protowire.BytesType), uint64(size))
	}
	// ExportMetricsServiceRequest resource_metrics = 1; ResourceMetrics resource = 1,
	// scope_metrics = 2; ScopeMetrics scope = 1, metrics = 2. Lengths come before what they
	// measure, so it is built from the inside.
	scope := append(field(nil, 1, len(t.scope)), t.scope...)
	resource := append(field(nil, 1, len(t.resource)), t.resource...)
	resource = field(resource, 2, len(scope)+len(t.buf))
	head := field(nil, 1, len(resource)+len(scope)+len(t.buf))
	t.body.Reset()
	t.gzip.Reset(&t.body)
	for _, part := range [][]byte{head, resource, scope, t.buf} {
		if _, err := t.gzip.Write(part); err != nil {
			panic("BUG: write to memory: " + err.Error())
		}
	}
	if err := t.gzip.Close(); err != nil {
		panic("BUG: write to memory: " + err.Error())
	}
	header := http.Header{"Content-Type": {"application/x-protobuf"}, "Content-Encoding": {"gzip"}}
	answer, resp, err := ask(ctx, t.client, http.MethodPost, t.spec.URL, header, t.body.Bytes())
	if err != nil {
		if resp != nil && resp.StatusCode == http.StatusRequestEntityTooLarge && t.limit > otlpLeastBytes {
			return t.body.Len(), 0, errLess
		}
		return t.body.Len(), 0, err
	}
	rejected, message := partialSuccess(answer)
	if message != "" || rejected > 0 {
		t.log.Warn("the receiver has refused part of a push", zap.Int("points", rejected), zap.String("message", message))
	}
	return t.body.Len(), rejected, nil
}

// partialSuccess reads ExportMetricsServiceResponse: partial_success = 1, with
// rejected_data_points = 1 and error_message = 2. What cannot be read says nothing.
func partialSuccess(answer []byte) (rejected int, message string) {
	eachField(answer, func(num protowire.Number, _ uint64, inner []byte) {
		if num != 1 {
			return
		}
		eachField(inner, func(num protowire.Number, n uint64, text []byte) {
			switch num {
			case 1:
				rejected = int(min(n, 1<<31))
			case 2:
				message = clean(string(text))
			}
		})
	})
	return rejected, message
}

// eachField yields the fields of a message that are numbers or bytes.
func eachField(b []byte, yield func(num protowire.Number, n uint64, bytes []byte)) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return
		}
		b = b[n:]
		switch typ {
		case protowire.VarintType:
			v, n := protowire.ConsumeVarint(b)
			if n < 0 {
				return
			}
			yield(num, v, nil)
			b = b[n:]
		case protowire.BytesType:
			v, n := protowire.ConsumeBytes(b)
			if n < 0 {
				return
			}
			yield(num, 0, v)
			b = b[n:]
		default:
			n := protowire.ConsumeFieldValue(num, typ, b)
			if n < 0 {
				return
			}
			b = b[n:]
		}
	}
}

func (t *otlp) leave(context.Context, bool) error { return nil }

func (t *otlp) close() { t.client.CloseIdleConnections() }

// startNano is a start in the unit of OTLP, 0 for an unknown one.
func startNano(p *view.Snapshot, v int) uint64 {
	if len(p.Starts) == 0 || p.Starts[v] <= 0 {
		return 0
	}
	return uint64(p.Starts[v]) * uint64(time.Millisecond)
}

func absent(v float64) bool { return view.IsAbsent(v) }
