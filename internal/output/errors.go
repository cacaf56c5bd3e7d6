package output

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/oauth2"
)

// A Result says how a push ended. It is short and constant, for use as a metric label.
type Result string

// The results.
const (
	// OK: the receiver has taken all of it.
	OK Result = "ok"
	// Rejected: the receiver understood, and refused all or part of it for good.
	Rejected Result = "rejected"
	// Unauthorized: it wants another password, or none of ours.
	Unauthorized Result = "unauthorized"
	// Certificate: it has, or wants, another certificate.
	Certificate Result = "certificate"
	// Misconfigured: a file that the configuration names, as a certificate, is of no use.
	Misconfigured Result = "misconfigured"
	// Throttled: it asks for patience (429, or 503 with Retry-After).
	Throttled Result = "throttled"
	// Unavailable: it cannot be reached, or says that it has a problem.
	Unavailable Result = "unavailable"
	// TimedOut: it did not answer in time.
	TimedOut Result = "timeout"
	// NoView: there was nothing to send, because the view could not be made.
	NoView Result = "no_view"
	// Canceled: the daemon ended meanwhile.
	Canceled Result = "canceled"
)

// A PushError is why a push failed.
type PushError struct {
	Result Result
	// Retry says that trying again soon may help.
	Retry bool
	// After is how long the receiver asked to wait, 0 if it did not.
	After time.Duration
	// Hint says what to do, if anything is known.
	Hint string
	Err  error
}

// Error implements error.
func (e *PushError) Error() string {
	if e.Hint == "" {
		return e.Err.Error()
	}
	return e.Err.Error() + "; " + e.Hint
}

// Unwrap returns the cause.
func (e *PushError) Unwrap() error { return e.Err }

// classify makes a PushError of what went wrong while talking to a receiver.
func classify(ctx context.Context, err error) *PushError {
	if p, ok := errors.AsType[*PushError](err); ok {
		return p
	}
	// The error of http.Client repeats method and address.
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	p := &PushError{Result: Unavailable, Retry: true, Err: err}
	if result, hint := certificateProblem(err); hint != "" {
		p.Result, p.Hint, p.Retry = result, hint, false
		return p
	}
	if token, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		p.Result, p.Retry, p.Hint = Unauthorized, token.Response != nil && token.Response.StatusCode/100 == 5,
			"no token can be had: see http_config.oauth2"
		return p
	}
	netErr, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		p.Result = Canceled
	case errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil || isNet && netErr.Timeout():
		p.Result, p.Hint = TimedOut, "the receiver takes longer than timeout"
	case errors.Is(err, syscall.ECONNREFUSED):
		p.Hint = "nothing listens there; is the receiver running, and is this its address?"
	}
	return p
}

// certificateProblem says what to do about a certificate, if that is what is wrong.
func certificateProblem(err error) (Result, string) {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return Certificate, "the receiver's certificate is not signed by anyone known; set http_config.tls_config.ca_file"
	}
	if e, ok := errors.AsType[x509.HostnameError](err); ok {
		return Certificate,
			fmt.Sprintf("the receiver's certificate is for another name than %s; set http_config.tls_config.server_name, or use the right address", e.Host)
	}
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		if e.Reason == x509.Expired {
			return Certificate, "the receiver's certificate has expired, or the clock of this machine is wrong"
		}
		return Certificate, "the receiver's certificate is not valid"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return Certificate, "the receiver's certificate is not valid"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok ||
		strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return Certificate, "the receiver does not speak TLS; write http:// in its address"
	}
	if alert, ok := errors.AsType[tls.AlertError](err); ok {
		return Certificate,
			fmt.Sprintf("the receiver refuses our side of TLS (%v); it may want a certificate, http_config.tls_config.cert_file and key_file", alert)
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return Certificate, "the receiver refuses our side of TLS; it may want a certificate, http_config.tls_config.cert_file and key_file"
	}
	return "", ""
}

// refusal makes a PushError of an answer that is not 2xx; nil if it is.
func refusal(resp *http.Response, body []byte) *PushError {
	code := resp.StatusCode
	if code/100 == 2 {
		return nil
	}
	p := &PushError{Result: Rejected, Err: fmt.Errorf("the receiver answers %s%s", statusText(resp), excerpt(body))}
	if to, err := resp.Location(); err == nil && code/100 == 3 {
		return redirects(to)
	}
	after, asked := retryAfter(resp.Header.Get("Retry-After"), time.Now())
	switch {
	case code == http.StatusUnauthorized:
		p.Result, p.Hint = Unauthorized,
			"it wants a password or token, or another one: see http_config.basic_auth, authorization and oauth2"
	case code == http.StatusForbidden:
		p.Result, p.Hint = Unauthorized, "the user or token of http_config may not write there"
	case code == http.StatusProxyAuthRequired:
		p.Result, p.Hint = Unauthorized, "the proxy wants a password: see http_config.proxy_url"
	case code == http.StatusTooManyRequests:
		p.Result, p.Retry, p.After = Throttled, true, after
	case code/100 == 5 && asked:
		p.Result, p.Retry, p.After = Throttled, true, after
	case code/100 == 5, code == http.StatusRequestTimeout, code == http.StatusTooEarly:
		p.Result, p.Retry = Unavailable, true
	case code == http.StatusNotFound, code == http.StatusMethodNotAllowed:
		p.Hint = "is the path of the address right?"
	case code == http.StatusRequestEntityTooLarge:
		p.Hint = "it takes only smaller requests"
	case code == http.StatusBadRequest && strings.Contains(string(body), "HTTP request to an HTTPS server"):
		p.Result, p.Hint = Certificate, "the receiver speaks TLS; write https:// in its address"
	}
	return p
}

// statusText is the status of an answer; what servers make up for a reason is left out.
func statusText(resp *http.Response) string {
	if text := http.StatusText(resp.StatusCode); text != "" {
		return fmt.Sprintf("%d %s", resp.StatusCode, text)
	}
	return strconv.Itoa(resp.StatusCode)
}

// excerpt is the beginning of an answer's text, for an error.
func excerpt(body []byte) string {
	const most = 256
	text := strings.TrimSpace(string(body))
	if text == "" {
		return ""
	}
	if strings.HasPrefix(text, "<") {
		return "" // a page for people
	}
	if len(text) > most {
		text = text[:most] + "…"
	}
	return ": " + strconv.Quote(clean(text))
}

// maxRetryAfter bounds what a receiver can ask for.
const maxRetryAfter = time.Hour

// retryAfter reads the header (RFC 9110, 10.2.3), which has seconds or a date.
func retryAfter(text string, now time.Time) (time.Duration, bool) {
	if text == "" {
		return 0, false
	}
	var d time.Duration
	if seconds, err := strconv.ParseUint(text, 10, 31); err == nil {
		d = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = at.Sub(now)
	} else {
		return 0, false
	}
	return min(max(d, 0), maxRetryAfter), true
}
