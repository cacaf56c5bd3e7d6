package output

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"time"

	"aggregatord/internal/metric"
	"aggregatord/internal/view"
)

// graphite writes the plaintext protocol as prometheus_client.bridge.graphite does: one line
// for each sample, PATH VALUE TIME, over a connection of its own for each push.
type graphite struct {
	spec GraphiteSpec
	// layouts are those of the last push, with the beginnings of their lines.
	layouts []*graphiteLayout
	buf     []byte
}

// graphiteLayout has for each value of a layout the beginning of its line: PATH and a space.
type graphiteLayout struct {
	layout *view.Layout
	blob   []byte
	ends   []int
}

func newGraphite(s *GraphiteSpec) *graphite { return &graphite{spec: *s} }

func (g *graphite) wantsStarts() bool { return false }

func (g *graphite) skipsLast() bool { return false }

func (g *graphite) push(ctx context.Context, f *frame) (sent, error) {
	out := sent{}
	g.buf = g.buf[:0]
	stamp := strconv.AppendInt(nil, f.at.Unix(), 10)
	for i, p := range f.parts {
		g.layouts = kept(g.layouts, i, p.Layout, g.render)
		l := g.layouts[i]
		start := 0
		for j, end := range l.ends {
			value := p.Values[j]
			if !view.IsAbsent(value) {
				g.buf = append(g.buf, l.blob[start:end]...)
				g.buf = appendPythonFloat(g.buf, value)
				g.buf = append(g.buf, ' ')
				g.buf = append(g.buf, stamp...)
				g.buf = append(g.buf, '\n')
				out.samples++
			}
			start = end
		}
	}
	out.bytes = len(g.buf)
	if err := g.send(ctx); err != nil {
		out.samples = 0
		return out, classify(ctx, err)
	}
	return out, nil
}

// of reports which layout it is for.
func (l *graphiteLayout) of() *view.Layout { return l.layout }

// kept returns the list with what is made of a layout at place i: what is there, if it is of
// this layout, else a new one.
func kept[T interface{ of() *view.Layout }](list []T, i int, l *view.Layout, render func(*view.Layout) T) []T {
	if i < len(list) && list[i].of() == l {
		return list
	}
	made := render(l)
	if i < len(list) {
		list[i] = made
		return list
	}
	return append(list, made)
}

func (g *graphite) render(l *view.Layout) *graphiteLayout {
	out := &graphiteLayout{layout: l, ends: make([]int, 0, l.Points)}
	separator, equals := byte('.'), byte('.')
	if g.spec.Tags {
		separator, equals = ';', '='
	}
	eachSample(l, func(_ int, name string, labels []metric.Label) {
		if g.spec.Prefix != "" {
			out.blob = append(out.blob, g.spec.Prefix...)
			out.blob = append(out.blob, '.')
		}
		out.blob = appendGraphite(out.blob, name)
		for _, l := range labels {
			out.blob = append(out.blob, separator)
			out.blob = appendGraphite(out.blob, l.Name)
			out.blob = append(out.blob, equals)
			out.blob = appendGraphite(out.blob, l.Value)
		}
		out.blob = append(out.blob, ' ')
		out.ends = append(out.ends, len(out.blob))
	})
	return out
}

// eachSample yields the samples of a layout in order, with all their labels, le and quantile
// among them, sorted by name. The labels are valid until the next one.
func eachSample(l *view.Layout, yield func(family int, name string, labels []metric.Label)) {
	var labels []metric.Label
	for i := range l.Families {
		f := &l.Families[i]
		for j := range f.Metrics {
			m := &f.Metrics[j]
			for _, p := range m.Points {
				labels = m.AppendLabels(labels[:0])
				if bound := p.BoundLabel(); bound != "" {
					labels = append(labels, metric.Label{Name: bound, Value: string(p.AppendBound(nil))})
					metric.SortLabels(labels)
				}
				yield(i, f.Name+p.Kind.Suffix(), labels)
			}
		}
	}
}

// appendGraphite replaces each character that is none of a-z, A-Z, 0-9, _ and - by _: a dot
// would make another level, and anything else may not be part of a file name.
func appendGraphite(dst []byte, s string) []byte {
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-':
			dst = append(dst, byte(r))
		default:
			dst = append(dst, '_')
		}
	}
	return dst
}

// appendPythonFloat spells a number as Python's repr does.
func appendPythonFloat(dst []byte, f float64) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "nan"...)
	case math.IsInf(f, 1):
		return append(dst, "inf"...)
	case math.IsInf(f, -1):
		return append(dst, "-inf"...)
	}
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	start := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if bytes.IndexByte(dst[start:], '.') >= 0 {
		return dst
	}
	return append(dst, ".0"...)
}

// patienceForEnd is how long a receiver may take to close a connection that we have ended.
const patienceForEnd = 2 * time.Second

// send writes the buffer. The protocol has no answer; that the receiver closes the connection
// after the end says that it has read everything, and that it resets it, that it has not.
func (g *graphite) send(ctx context.Context) (err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", g.spec.Address)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	// A receiver that does not read must not keep us longer than the context says.
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // the connection may be closed already
	defer func() {
		stop()
		if closeErr := conn.Close(); err == nil && closeErr != nil {
			err = fmt.Errorf("close: %w", closeErr)
		}
	}()
	if _, err := conn.Write(g.buf); err != nil {
		return errors.Join(fmt.Errorf("write: %w", err), ctx.Err())
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	if err := tcp.CloseWrite(); err != nil {
		return fmt.Errorf("end the connection: %w", err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patienceForEnd)); err != nil {
		return fmt.Errorf("end the connection: %w", err)
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(conn, maxAnswer)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("wait for the receiver to have read everything: %w", err)
	}
	return ctx.Err()
}

func (g *graphite) leave(context.Context, bool) error { return nil }

func (g *graphite) close() { g.layouts, g.buf = nil, nil }

// samplesOf counts the samples of a frame.
func samplesOf(f *frame) int {
	n := 0
	for _, p := range f.parts {
		n += len(p.Values)
		if slices.ContainsFunc(p.Layout.Families, func(f view.Family) bool { return f.Sparse }) {
			for _, v := range p.Values {
				if view.IsAbsent(v) {
					n--
				}
			}
		}
	}
	return n
}
