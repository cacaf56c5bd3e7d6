package output

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	httpconfig "github.com/prometheus/common/config"
)

// maxAnswer is how much of an answer is read: receivers say in a few words what is wrong.
const maxAnswer = 64 << 10

// newHTTPClient returns the client of an output. Its connections are closed by
// CloseIdleConnections.
func newHTTPClient(cfg *httpconfig.HTTPClientConfig, headers map[string]string, agent string) (*http.Client, error) {
	if cfg == nil {
		c := httpconfig.DefaultHTTPClientConfig
		c.ProxyFromEnvironment = true
		cfg = &c
	}
	client, err := httpconfig.NewClientFromConfig(*cfg, "aggregatord",
		httpconfig.WithIdleConnTimeout(2*time.Minute), httpconfig.WithUserAgent(agent), httpconfig.WithDialContextFunc(dialPatient))
	if err != nil {
		return nil, err
	}
	follow := client.CheckRedirect
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		// A 301 turns a push into a request to read, which many receivers would answer with 200.
		if next.Method != via[0].Method {
			return redirects(next.URL)
		}
		if follow != nil {
			return follow(next, via)
		}
		if len(via) >= 10 {
			return fmt.Errorf("the receiver redirects in a circle, at last to %s", next.URL.Redacted())
		}
		return nil
	}
	client.Transport = &bounded{next: client.Transport, headers: headers}
	return client, nil
}

// redirects is the error of an answer that sends us elsewhere.
func redirects(to *url.URL) *PushError {
	return &PushError{Result: Rejected, Err: fmt.Errorf("the receiver redirects to %s", to.Redacted()), Hint: "write that address"}
}

// bounded sets headers and bounds how much of an answer is read.
type bounded struct {
	next    http.RoundTripper
	headers map[string]string
}

// RoundTrip implements http.RoundTripper.
func (b *bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	if len(b.headers) > 0 {
		req = req.Clone(req.Context())
		for name, value := range b.headers {
			req.Header.Set(name, value)
		}
	}
	resp, err := b.next.RoundTrip(req)
	if resp != nil && resp.Body != nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxAnswer), resp.Body}
	}
	return resp, err
}

// CloseIdleConnections passes the call of http.Client on.
func (b *bounded) CloseIdleConnections() {
	if c, ok := b.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// ask sends one request and returns the answer's body, or why it is no good.
func ask(ctx context.Context, client *http.Client, method, target string, header http.Header, body []byte) ([]byte, *http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, nil, &PushError{Result: Rejected, Err: err}
	}
	maps.Copy(req.Header, header)
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, classify(ctx, err)
	}
	defer resp.Body.Close() //nolint:errcheck // it is read as far as it is wanted
	answer, err := io.ReadAll(resp.Body)
	if p := refusal(resp, answer); p != nil {
		return nil, resp, p
	}
	if err != nil {
		// It said yes, and went silent: whether it has everything nobody knows.
		return nil, resp, classify(ctx, fmt.Errorf("read the answer: %w", err))
	}
	return answer, resp, nil
}

// joinPath puts a path behind a URL, which may end in a slash and have a query.
func joinPath(base, path string) string {
	base, query, ok := strings.Cut(base, "?")
	out := strings.TrimRight(base, "/") + path
	if ok {
		out += "?" + query
	}
	return out
}
