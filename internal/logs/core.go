package logs

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// perMinute is how many lines of a kind are written in a minute: of a level and a message,
	// since messages are constant.
	perMinute = 20
	// maxKinds bounds the kinds that are told apart; the rest are one.
	maxKinds = 512
	// maxText and maxStack bound a string of a line, in bytes.
	maxText, maxStack = 512, 8 << 10
)

// A Core is a zapcore.Core before another one. Where lines of level debug are
// written, somebody looks for something, so no line is left out.
type Core struct {
	zapcore.Core
	state *state
}

// state is shared by a Core and those made by With.
type state struct {
	now     func() time.Time
	leftOut atomic.Uint64

	// mu guards kinds.
	mu    sync.Mutex
	kinds map[kind]*count
}

type kind struct {
	level   zapcore.Level
	message string
}

type count struct {
	since time.Time
	// written is since then, left is how many were left out since the last that was written.
	written, left int
}

// NewCore returns a Core before next.
func NewCore(next zapcore.Core) *Core {
	return &Core{next, &state{now: time.Now, kinds: map[kind]*count{}}}
}

// LeftOut returns how many lines were left out.
func (c *Core) LeftOut() uint64 { return c.state.leftOut.Load() }

// With implements zapcore.Core.
func (c *Core) With(fields []zapcore.Field) zapcore.Core {
	return &Core{c.Core.With(shorten(fields)), c.state}
}

// Check implements zapcore.Core.
func (c *Core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if !c.Enabled(e.Level) {
		return ce
	}
	return ce.AddCore(e, c)
}

// Write implements zapcore.Core.
func (c *Core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	left := 0
	if !c.Enabled(zapcore.DebugLevel) {
		var ok bool
		if left, ok = c.state.allow(e); !ok {
			return nil
		}
	}
	fields = shorten(fields)
	if left > 0 {
		fields = append(fields, zap.Int("left_out", left))
	}
	return c.Core.Write(e, fields)
}

// allow reports whether a line may be written, and how many of its kind were left out before.
func (s *state) allow(e zapcore.Entry) (left int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := kind{e.Level, e.Message}
	k := s.kinds[id]
	if k == nil && len(s.kinds) >= maxKinds {
		id = kind{level: e.Level}
		k = s.kinds[id]
	}
	now := s.now()
	if k == nil {
		k = &count{since: now}
		s.kinds[id] = k
	}
	if now.Sub(k.since) >= time.Minute {
		k.since, k.written = now, 0
	}
	if k.written >= perMinute {
		k.left++
		s.leftOut.Add(1)
		return 0, false
	}
	k.written++
	left, k.left = k.left, 0
	return left, true
}

// shorten returns fields whose texts are bounded. Those that are not it leaves as they are.
func shorten(fields []zapcore.Field) []zapcore.Field {
	out := fields
	copied := false
	set := func(i int, f zapcore.Field) {
		if !copied {
			out, copied = append([]zapcore.Field(nil), fields...), true
		}
		out[i] = f
	}
	for i, f := range fields {
		most := maxText
		if strings.Contains(f.Key, "stack") {
			most = maxStack
		}
		switch f.Type {
		case zapcore.StringType:
			if len(f.String) > most {
				set(i, zap.String(f.Key, Cut(f.String, most)))
			}
		case zapcore.ByteStringType:
			if b, ok := f.Interface.([]byte); ok && len(b) > most {
				set(i, zap.String(f.Key, Cut(string(b), most)))
			}
		case zapcore.ErrorType, zapcore.StringerType, zapcore.ReflectType:
			if text, ok := textOf(f.Interface); ok && len(text) > most {
				set(i, zap.String(f.Key, Cut(text, most)))
			}
		}
	}
	return out
}

// textOf returns what an error or a Stringer says, if it can say it.
func textOf(v any) (text string, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false // a nil pointer in an interface: zap knows what to do
		}
	}()
	switch v := v.(type) {
	case error:
		return v.Error(), true
	case fmt.Stringer:
		return v.String(), true
	case string:
		return v, true
	}
	return "", false
}

// Cut returns s with its middle left out, so that it has at most so many bytes: of a path both
// ends matter. Characters stay whole.
func Cut(s string, most int) string {
	const gap = "…"
	if len(s) <= most {
		return s
	}
	head := max(0, (most-len(gap))/2)
	tail := len(s) - max(0, most-len(gap)-head)
	for head > 0 && !utf8.RuneStart(s[head]) {
		head--
	}
	for tail < len(s) && !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + gap + s[tail:]
}
