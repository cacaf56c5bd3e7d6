package output

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/prometheus/common/model"
	"go.uber.org/zap"

	"aggregatord/internal/exposition"
)

func (s *PushgatewaySpec) check(fail func(key, format string, args ...any)) {
	checkURL(fail, "pushgateway.url", s.URL, "http://HOST:9091")
	if s.Job == "" {
		fail("pushgateway.job", "is missing; give the job a name")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Grouping)) {
		switch {
		case name == "job":
			fail("pushgateway.grouping_key", "job has a key of its own; write it there")
		case !model.UTF8Validation.IsValidLabelName(name) || strings.HasPrefix(name, "__") || strings.ContainsAny(name, "/@"):
			fail("pushgateway.grouping_key", "%q is not the name of a label; choose another", name)
		case name == "instance" && s.InstanceIP:
			fail("pushgateway.grouping_key", "instance is set by instance_ip already; leave one of them out")
		}
	}
	switch s.Method {
	case "", http.MethodPut, http.MethodPost:
	default:
		fail("pushgateway.method", "%q is unknown; use PUT, which replaces the group, or POST, which replaces families of the same name",
			s.Method)
	}
	if s.DeleteAfter < 0 {
		fail("pushgateway.delete_after", "%v is negative; use 0 or more", s.DeleteAfter)
	}
}

// pushgateway sends protobuf, as the Go client does, if it carries everything. A Pushgateway takes a
// text that breaks off at the end of a line for a whole one (at least up to version 1.5): a daemon that
// is killed in the middle of a push would leave a group with a part of its series. A message of
// protobuf that breaks off is refused.
type pushgateway struct {
	spec    PushgatewaySpec
	client  *http.Client
	log     *zap.Logger
	encoder exposition.Encoder
	// accept is what the receiver takes, as far as is known.
	accept exposition.Accept
	buf    []byte
}

// gatewayAccepts is what a Pushgateway takes, and textOnly what others do that are asked in the same
// way and refuse protobuf.
var (
	gatewayAccepts = exposition.ParseAccept(protobufHeader + ";q=1.0, text/plain;version=0.0.4;q=0.5")
	textOnly       = exposition.AcceptOnly(exposition.Format{Kind: exposition.Text004, Escaping: exposition.Underscores})
)

const protobufHeader = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"

func newPushgateway(s *PushgatewaySpec, client *http.Client, o senderOptions) (*pushgateway, error) {
	p := &pushgateway{spec: *s, client: client, log: o.log, accept: gatewayAccepts}
	if p.spec.Method == "" {
		p.spec.Method = http.MethodPut
	}
	p.encoder.OnReport = omissions(o.log)
	return p, nil
}

func (p *pushgateway) wantsStarts() bool { return false }

func (p *pushgateway) skipsLast() bool { return p.spec.DeleteOnExit && p.spec.DeleteAfter == 0 }

func (p *pushgateway) push(ctx context.Context, f *frame) (sent, error) {
	target, err := p.url(ctx)
	if err != nil {
		return sent{}, classify(ctx, err)
	}
	asText, resp, err := p.send(ctx, target, p.accept, f)
	if err != nil && !asText && resp != nil && slices.Contains(refusesFormat, resp.StatusCode) {
		if _, _, err = p.send(ctx, target, textOnly, f); err == nil {
			p.log.Info("the receiver refuses protobuf and takes text: if a push breaks off, the group may have a part of its series until the next one")
			p.accept = textOnly
		}
	}
	if err != nil {
		return sent{bytes: len(p.buf)}, err
	}
	return sent{bytes: len(p.buf), samples: samplesOf(f)}, nil
}

// refusesFormat are the answers of receivers that do not know a format.
var refusesFormat = []int{http.StatusBadRequest, http.StatusNotAcceptable, http.StatusUnsupportedMediaType}

// send sends the frame once.
func (p *pushgateway) send(ctx context.Context, target string, accept exposition.Accept, f *frame) (asText bool, resp *http.Response,
	err error,
) {
	body, format := p.encoder.Encode(p.buf[:0], nil, accept, exposition.Filter{}, f.parts...)
	p.buf = body
	contentType := protobufHeader
	if asText = format.Kind != exposition.Protobuf; asText {
		contentType = "text/plain; version=0.0.4; charset=utf-8"
	}
	_, resp, err = ask(ctx, p.client, p.spec.Method, target, http.Header{"Content-Type": {contentType}}, body)
	return asText, resp, err
}

// url is that of the group.
func (p *pushgateway) url(ctx context.Context) (string, error) {
	grouping := p.spec.Grouping
	if p.spec.InstanceIP {
		ip, err := ownAddress(ctx, p.spec.URL)
		if err != nil {
			return "", fmt.Errorf("find the address of this host: %w", err)
		}
		grouping = maps.Clone(grouping)
		if grouping == nil {
			grouping = map[string]string{}
		}
		grouping["instance"] = ip
	}
	return joinPath(p.spec.URL, groupPath(p.spec.Job, grouping)), nil
}

// groupPath spells a grouping key as a path: /metrics/job/JOB/NAME/VALUE….
func groupPath(job string, grouping map[string]string) string {
	var b strings.Builder
	b.WriteString("/metrics")
	appendGroup(&b, "job", job)
	for _, name := range slices.Sorted(maps.Keys(grouping)) {
		appendGroup(&b, name, grouping[name])
	}
	return b.String()
}

// appendGroup spells one label. A value that no part of a path can be gets the form that the
// Pushgateway has for it: base64, and one = for the empty value.
func appendGroup(b *strings.Builder, name, value string) {
	b.WriteByte('/')
	b.WriteString(url.PathEscape(name))
	switch {
	case value == "":
		b.WriteString("@base64/=")
	case strings.Contains(value, "/") || value == "." || value == ".." || !utf8.ValidString(value):
		b.WriteString("@base64/")
		b.WriteString(base64.RawURLEncoding.EncodeToString([]byte(value)))
	default:
		b.WriteByte('/')
		b.WriteString(url.PathEscape(value))
	}
}

// ownAddress is the address of this host from which the receiver is reached. Nothing is sent:
// a UDP socket that is connected has one.
func ownAddress(ctx context.Context, target string) (string, error) {
	u, err := url.Parse(target)
	if err != nil {
		return "", errors.New("the receiver's address cannot be read")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "udp", net.JoinHostPort(u.Hostname(), "9"))
	if err != nil {
		return "", err
	}
	defer conn.Close() //nolint:errcheck // nothing was written
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

func (p *pushgateway) leave(ctx context.Context, pushed bool) error {
	if !p.spec.DeleteOnExit {
		return nil
	}
	if pushed && p.spec.DeleteAfter > 0 {
		select {
		case <-time.After(p.spec.DeleteAfter):
		case <-ctx.Done(): // what is left of the time is for deleting
			return ctx.Err()
		}
	}
	target, err := p.url(ctx)
	if err == nil {
		_, _, err = ask(ctx, p.client, http.MethodDelete, target, nil, nil)
	}
	if err != nil {
		return fmt.Errorf("delete the group: %w", err)
	}
	return nil
}

func (p *pushgateway) close() { p.client.CloseIdleConnections() }
