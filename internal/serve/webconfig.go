package serve

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/prometheus/exporter-toolkit/web"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.yaml.in/yaml/v4"
	"golang.org/x/time/rate"
)

// Refusal says why a request was kept from being served. It is short and constant, for use
// as a metric label.
type Refusal string

// The refusals.
const (
	// Unauthorized: no user, or a wrong password. Status 401.
	Unauthorized Refusal = "unauthorized"
	// AuthBusy: more passwords to check than are checked at once. Status 429.
	AuthBusy Refusal = "auth_busy"
	// RateLimited: more requests than rate_limit allows. Status 429.
	RateLimited Refusal = "rate_limited"
	// BadWebConfig: the file cannot be read any more. Status 500.
	BadWebConfig Refusal = "bad_web_config"
)

// Refusals lists all refusals, so that a counter can be made for each.
func Refusals() []Refusal { return []Refusal{Unauthorized, AuthBusy, RateLimited, BadWebConfig} }

// CheckWebConfig reports what is wrong with a WebConfigFile, or with the files that it
// names.
func CheckWebConfig(path string) error {
	if err := web.Validate(path); err != nil {
		return fmt.Errorf("web configuration %q: %w", path, err)
	}
	return nil
}

// accept serves one listener until its server is shut down.
func (s *Server) accept(server *http.Server, l net.Listener) error {
	if s.opts.WebConfigFile == "" {
		return server.Serve(l)
	}
	// The toolkit sets TLS up, and puts a handler around ours before it accepts anybody. That
	// handler reads and parses the file for each request, and lets good passwords wait behind
	// wrong ones, so ours takes its place.
	watched := &firstAccept{Listener: l, before: func() { server.Handler = s.newGuard() }}
	return web.Serve(watched, server, &web.FlagConfig{WebConfigFile: &s.opts.WebConfigFile}, slog.New(slogToZap{s.opts.Logger}))
}

// firstAccept is a listener that calls before once, when it is first asked for a
// connection, by the goroutine that asks.
type firstAccept struct {
	net.Listener
	once   sync.Once
	before func()
}

// Accept implements net.Listener.
func (l *firstAccept) Accept() (net.Conn, error) {
	l.once.Do(l.before)
	return l.Listener.Accept()
}

// A guard lets through to one listener what the web configuration allows: it does what the
// handler of exporter-toolkit does.
type guard struct {
	file      *webFile
	next      http.Handler
	onRefused func(Refusal)
	verifier  *verifier
	// limiter is nil without a rate limit. It is one for all clients of the listener.
	limiter *rate.Limiter
}

// newGuard returns what stands before a listener. The rate limit is that of now; all else is
// what the file says at each request.
func (s *Server) newGuard() *guard {
	g := &guard{file: s.webFile, next: s, onRefused: s.opts.OnRefused, verifier: s.verifier}
	if c := g.file.current(); c != nil && c.RateLimit.Interval > 0 {
		g.limiter = rate.NewLimiter(rate.Every(c.RateLimit.Interval), c.RateLimit.Burst)
	}
	return g
}

// A webFile is the web configuration as the file says it now. It is parsed when it changes.
type webFile struct {
	path    string
	explain func(path string, cause error) error
	log     *zap.Logger

	// mu guards what follows.
	mu sync.Mutex
	// content is what the file held when it was last looked at, and config what it says, nil if
	// it cannot be used.
	content []byte
	config  *webConfig
	// tried is when content was last looked at: what it names, such as a certificate, may be
	// there later.
	tried time.Time
	// failed is why the file could not be read or understood, "" if it could.
	failed string
}

// retryEvery is how often a file that cannot be used is tried again although it is the same.
const retryEvery = time.Second

// webConfig is the part of the file that concerns requests. The rest is about TLS.
type webConfig struct {
	HTTP struct {
		Headers map[string]string `yaml:"headers"`
	} `yaml:"http_server_config"`
	RateLimit struct {
		Interval time.Duration `yaml:"interval"`
		Burst    int           `yaml:"burst"`
	} `yaml:"rate_limit"`
	Users map[string]string `yaml:"basic_auth_users"`
}

// fakeHash is checked for a user that there is not, so that the time tells nothing about users.
const fakeHash = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"

// ServeHTTP implements http.Handler.
func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	config := g.file.current()
	if config == nil {
		g.refuse(w, BadWebConfig, http.StatusInternalServerError)
		return
	}
	if g.limiter != nil && !g.limiter.Allow() {
		g.refuse(w, RateLimited, http.StatusTooManyRequests)
		return
	}
	for name, value := range config.HTTP.Headers {
		w.Header().Set(name, value)
	}
	if len(config.Users) == 0 {
		g.next.ServeHTTP(w, r)
		return
	}
	result := wrong
	if user, password, ok := r.BasicAuth(); ok {
		hash, known := config.Users[user]
		if !known {
			hash = fakeHash
		}
		result = g.verifier.check(r.Context(), clientOf(r.RemoteAddr), user, hash, password)
		if result == right && !known {
			result = wrong
		}
	}
	switch result {
	case right:
		g.next.ServeHTTP(w, r)
	case busy:
		w.Header().Set("Retry-After", "1")
		g.refuse(w, AuthBusy, http.StatusTooManyRequests)
	default:
		w.Header().Set("WWW-Authenticate", "Basic")
		g.refuse(w, Unauthorized, http.StatusUnauthorized)
	}
}

func (g *guard) refuse(w http.ResponseWriter, why Refusal, code int) {
	http.Error(w, http.StatusText(code), code)
	g.onRefused(why)
}

// current returns what the file says now, nil if it cannot be read or understood. That it
// cannot is logged once, and once when it can again.
func (f *webFile) current() *webConfig {
	content, err := os.ReadFile(f.path)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.content != nil && bytes.Equal(content, f.content) && (f.config != nil || time.Since(f.tried) < retryEvery) {
		return f.config
	}
	f.tried = time.Now()
	config := new(webConfig)
	if err == nil {
		err = web.Validate(f.path)
	}
	if err == nil {
		err = yaml.Unmarshal(content, config)
	}
	f.content, f.config = content, config
	switch {
	case err != nil:
		f.config = nil
		err = f.explain(f.path, err)
		if f.failed != err.Error() {
			f.failed = err.Error()
			f.log.Error("the web configuration cannot be used; requests get status 500 until it can", zap.String("file", f.path),
				zap.Error(err))
		}
	case f.failed != "":
		f.failed = ""
		f.log.Info("the web configuration can be used again", zap.String("file", f.path))
	}
	return f.config
}

// slogToZap is what the toolkit logs to.
type slogToZap struct{ logger *zap.Logger }

func zapLevel(l slog.Level) zapcore.Level {
	switch {
	case l >= slog.LevelError:
		return zap.ErrorLevel
	case l >= slog.LevelWarn:
		return zap.WarnLevel
	case l >= slog.LevelInfo:
		return zap.InfoLevel
	}
	return zap.DebugLevel
}

// Enabled implements slog.Handler.
func (h slogToZap) Enabled(_ context.Context, l slog.Level) bool {
	return h.logger.Core().Enabled(zapLevel(l))
}

// Handle implements slog.Handler.
func (h slogToZap) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "Listening on" {
		return nil // the daemon has said so
	}
	if e := h.logger.Check(zapLevel(r.Level), r.Message); e != nil {
		var fields []zap.Field
		r.Attrs(func(a slog.Attr) bool {
			fields = append(fields, zap.Any(a.Key, a.Value.Any()))
			return true
		})
		e.Write(fields...)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (h slogToZap) WithAttrs(attrs []slog.Attr) slog.Handler {
	var fields []zap.Field
	for _, a := range attrs {
		fields = append(fields, zap.Any(a.Key, a.Value.Any()))
	}
	return slogToZap{h.logger.With(fields...)}
}

// WithGroup implements slog.Handler. The toolkit uses none.
func (h slogToZap) WithGroup(name string) slog.Handler { return slogToZap{h.logger.Named(name)} }
