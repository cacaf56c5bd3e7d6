package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"aggregatord/internal/daemon"
	"aggregatord/internal/status"
)

// clientOptions says where a running daemon is.
type clientOptions struct {
	url string
}

const urlFlag = "url"

func (o *clientOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.url, urlFlag, "http://localhost"+daemon.DefaultListenAddress, "`URL` of a running daemon, with USER:PASSWORD@ if it asks for them;\nor unix:PATH")
}

// client asks a running daemon.
type client struct {
	base *url.URL
	// socket is the path of a unix socket, empty for an address.
	socket    string
	http      *http.Client
	transport *http.Transport
}

// patience is how long an answer may take.
const patience = 30 * time.Second

func (o *clientOptions) client() (*client, error) {
	transport := &http.Transport{DisableKeepAlives: true, Proxy: http.ProxyFromEnvironment}
	text := o.url
	path, isSocket := strings.CutPrefix(text, daemon.UnixPrefix)
	if !isSocket {
		path = ""
	} else {
		text = "http://localhost"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	base, err := url.Parse(text)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, usagef("--%s %q: use http://HOST:PORT, https://HOST:PORT or unix:PATH", urlFlag, o.url)
	}
	return &client{base: base, socket: path, http: &http.Client{Transport: transport, Timeout: patience}, transport: transport}, nil
}

// keepConnections has connections kept from one question to the next, until the function
// returned is called. It comes before the first question.
func (c *client) keepConnections() (end func()) {
	c.transport.DisableKeepAlives = false
	return c.transport.CloseIdleConnections
}

// ask asks one question of /api/v1 and returns the answer as it came.
func (c *client) ask(ctx context.Context, question string, query url.Values) ([]byte, error) {
	u := c.base.JoinPath("/api/v1/", question)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		// The error names the whole question; the address is what matters.
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return nil, fmt.Errorf("ask the daemon at %s: %w; is it running, and is this its address? --%s says another one", c.base.Redacted(), err, urlFlag)
	}
	defer response.Body.Close() //nolint:errcheck // it is read to its end
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.base.Redacted(), err)
	}
	var r status.Response[json.RawMessage]
	if json.Unmarshal(body, &r) != nil || r.Status == "" {
		hint := "is that a daemon of this version?"
		if response.StatusCode == http.StatusUnauthorized {
			hint = "it asks for a user and a password"
		}
		return nil, fmt.Errorf("the answer of %s is none of an aggregatord (%s); %s", c.base.Redacted(), response.Status, hint)
	}
	if r.Status != "success" {
		return nil, errors.New(r.Error)
	}
	return r.Data, nil
}

// askFor asks one question of /api/v1 whose answer has a known shape.
func askFor[T any](ctx context.Context, c *client, question string, query url.Values) (answer T, err error) {
	data, err := c.ask(ctx, question, query)
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return answer, fmt.Errorf("the answer of %s to %q: %w", c.base.Redacted(), question, err)
	}
	return answer, nil
}
