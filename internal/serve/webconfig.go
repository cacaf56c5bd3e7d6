package serve

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/prometheus/exporter-toolkit/web"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Refusal says why a request was kept from being served. It is short and constant, for use
// as a metric label.
type Refusal string

// The refusals.
const (
	// Unauthorized: no user, or a wrong password. Status 401.
	Unauthorized Refusal = "unauthorized"
	// RateLimited: more requests than rate_limit allows. Status 429.
	RateLimited Refusal = "rate_limited"
	// BadWebConfig: the file cannot be read any more. Status 500.
	BadWebConfig Refusal = "bad_web_config"
)

// Refusals lists all refusals, so that a counter can be made for each.
func Refusals() []Refusal { return []Refusal{Unauthorized, RateLimited, BadWebConfig} }

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
	// The toolkit puts its handler around that of the server before it accepts anybody, and
	// refuses requests there without telling us: so ours goes around both.
	watched := &firstAccept{Listener: l, before: func() { server.Handler = s.countRefusals(server.Handler) }}
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

// servedKey is the context key of a *bool that ServeHTTP sets.
type servedKey struct{}

// countRefusals returns a handler that tells OnRefused of the requests that next answers
// without asking us.
func (s *Server) countRefusals(next http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		served := false
		w := &response{ResponseWriter: rw}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), servedKey{}, &served)))
		if served {
			return
		}
		switch w.code {
		case http.StatusUnauthorized:
			s.opts.OnRefused(Unauthorized)
		case http.StatusTooManyRequests:
			s.opts.OnRefused(RateLimited)
		default:
			s.opts.OnRefused(BadWebConfig)
		}
	})
}

// markServed notes that a request has come through to us.
func markServed(r *http.Request) {
	if served, ok := r.Context().Value(servedKey{}).(*bool); ok {
		*served = true
	}
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
