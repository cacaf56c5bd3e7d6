package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/prometheus/common/config"
	"github.com/spf13/pflag"

	"aggregatord/internal/daemon"
	"aggregatord/internal/status"
)

// clientOptions says where a running daemon is, and how to ask it.
type clientOptions struct {
	url string
	// httpConfig is a file in Prometheus' format of HTTP clients, empty for none.
	httpConfig string
}

const (
	urlFlag        = "url"
	httpConfigFlag = "http.config.file"
	defaultURL     = "http://localhost" + daemon.DefaultListenAddress
)

func (o *clientOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&o.url, urlFlag, defaultURL, "`URL` of a running daemon: http://HOST:PORT, HOST:PORT or unix:PATH")
	f.StringVar(&o.httpConfig, httpConfigFlag, "",
		"`FILE` with the password, certificates and the like that the daemon\nasks for, in Prometheus' format for HTTP clients")
}

// client asks a running daemon.
type client struct {
	base *url.URL
	// name is what people call the daemon: its URL without a password, or unix:PATH.
	name string
	http *http.Client
}

// patience is how long an answer may take.
const patience = 30 * time.Second

// client returns what asks the daemon. The caller closes its idle connections, unless opts
// say that there are none.
func (o *clientOptions) client(opts ...config.HTTPClientOption) (*client, error) {
	how := &config.HTTPClientConfig{FollowRedirects: true, ProxyConfig: config.ProxyConfig{ProxyFromEnvironment: true}}
	if o.httpConfig != "" {
		var err error
		if how, _, err = config.LoadHTTPConfigFile(o.httpConfig); err != nil {
			return nil, o.unusable(err)
		}
	}
	c := &client{name: o.url}
	text := o.url
	path, isSocket := strings.CutPrefix(text, daemon.UnixPrefix)
	dial := dialLoopback
	if isSocket {
		text = "http://localhost"
		if how.TLSConfig != (config.TLSConfig{}) {
			text = "https://localhost"
		}
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	opts = append(opts, config.WithDialContextFunc(dial))
	base, err := url.Parse(withScheme(text))
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, usagef("--%s %q: use http://HOST:PORT, https://HOST:PORT, HOST:PORT or unix:PATH", urlFlag, o.url)
	}
	c.base = trimmed(base)
	if !isSocket {
		c.name = base.Redacted()
	}
	if c.http, err = config.NewClientFromConfig(*how, "aggregatord", opts...); err != nil {
		return nil, o.unusable(err)
	}
	c.http.Timeout = patience
	return c, nil
}

// withScheme takes HOST:PORT for http://HOST:PORT.
func withScheme(text string) string {
	if strings.Contains(text, "://") {
		return text
	}
	address, _, _ := strings.Cut(text, "/")
	if _, port, err := net.SplitHostPort(address); err != nil || port == "" {
		return text
	}
	return "http://" + text
}

// trimmed takes away what a pasted address has after the daemon's own: /metrics, or a path of
// the API or the page.
func trimmed(u *url.URL) *url.URL {
	base := *u
	base.RawQuery, base.Fragment, base.RawFragment = "", "", ""
	for _, ours := range []string{"/metrics", "/api/v1", "/-/", "/assets/"} {
		if i := strings.Index(base.Path, ours); i >= 0 {
			base.Path = base.Path[:i]
		}
	}
	base.RawPath = ""
	return &base
}

// dialLoopback connects to an address, and to localhost without asking who that is (RFC 6761,
// 6.3): an image may have no /etc/hosts.
func dialLoopback(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil || host != "localhost" {
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	if err == nil {
		return conn, nil
	}
	if conn, err6 := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("::1", port)); err6 == nil {
		return conn, nil
	}
	return nil, err
}

// unusable says what is wrong with the file of --http.config.file.
func (o *clientOptions) unusable(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok && pathErr.Path == o.httpConfig {
		return usagef("--%s: %v", httpConfigFlag, err)
	}
	return usagef("--%s %s: %v", httpConfigFlag, o.httpConfig, err)
}

// ask asks one question of /api/v1 and returns the answer as it came.
func (c *client) ask(ctx context.Context, question string, query url.Values) ([]byte, error) {
	u := c.base.JoinPath("/api/v1/", question)
	u.RawQuery = query.Encode()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	return c.do(request)
}

// post asks for something to be done, and returns the answer as it came.
func (c *client) post(ctx context.Context, question string, form url.Values) ([]byte, error) {
	u := c.base.JoinPath("/api/v1/", question)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return c.do(request)
}

func (c *client) do(request *http.Request) ([]byte, error) {
	response, err := c.http.Do(request)
	if err != nil {
		// The error names the whole question; the address is what matters.
		if inner, ok := errors.AsType[*url.Error](err); ok {
			err = inner.Err
		}
		return nil, c.unreachable(err)
	}
	defer response.Body.Close() //nolint:errcheck // it is read to its end
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", c.name, err)
	}
	var r status.Response[json.RawMessage]
	if json.Unmarshal(body, &r) != nil || r.Status == "" {
		hint := "check that --" + urlFlag + " is the address of an aggregatord of this version"
		switch response.StatusCode {
		case http.StatusUnauthorized:
			hint = "it wants a user and a password; put them into a file and give that by --" + httpConfigFlag
		case http.StatusBadRequest:
			hint = "if it serves TLS, use https:// in --" + urlFlag
		}
		return nil, fmt.Errorf("%s does not answer as an aggregatord does (%s); %s", c.name, response.Status, hint)
	}
	if r.Status != "success" {
		return nil, errors.New(r.Error)
	}
	return r.Data, nil
}

// unreachable says why there is no answer, and what to do.
func (c *client) unreachable(err error) error {
	what := fmt.Sprintf("start it, or give its address by --%s", urlFlag)
	var unknown x509.UnknownAuthorityError
	var name x509.HostnameError
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &unknown), errors.As(err, &name), errors.As(err, &invalid):
		what = fmt.Sprintf("the daemon is there, and its certificate is not trusted; name the authority (tls_config: {ca_file: FILE}) in a file for --%s", httpConfigFlag)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		what = fmt.Sprintf("it serves no TLS; use http:// in --%s", urlFlag)
	}
	return fmt.Errorf("ask the daemon at %s: %w; %s", c.name, err, what)
}

// askFor asks one question of /api/v1 whose answer has a known shape.
func askFor[T any](ctx context.Context, c *client, question string, query url.Values) (answer T, err error) {
	return answerTo[T](c, question, func() ([]byte, error) { return c.ask(ctx, question, query) })
}

// answerTo reads an answer of a known shape.
func answerTo[T any](c *client, question string, ask func() ([]byte, error)) (answer T, err error) {
	data, err := ask()
	if err != nil {
		return answer, err
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return answer, fmt.Errorf("the answer of %s to %q: %w", c.name, question, err)
	}
	return answer, nil
}
