package logs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// writerFunc is an io.Writer from a function.
type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestWriterKeepsOrder: every line arrives, whole and in its order.
func TestWriterKeepsOrder(t *testing.T) {
	var dst lockedBuffer
	w := NewWriter(&dst, 0)
	var running sync.WaitGroup
	running.Go(w.Run)
	var want strings.Builder
	for i := range 1000 {
		_, _ = fmt.Fprintf(w, "line %d\n", i)
		fmt.Fprintf(&want, "line %d\n", i)
		if i%100 == 0 {
			w.Sync() //nolint:errcheck // it has none
			if dst.String() != want.String() {
				t.Fatalf("after Sync of line %d it has %q", i, dst.String())
			}
		}
	}
	w.Close()
	running.Wait()
	if dst.String() != want.String() || w.Dropped() != 0 {
		t.Errorf("%d lines were dropped, or came in another order", w.Dropped())
	}
	_, _ = fmt.Fprintln(w, "too late")
	if w.Dropped() != 1 {
		t.Errorf("a line after Close: %d dropped", w.Dropped())
	}
}

// TestWriterNobodyReads: lines are dropped and counted, and nobody waits.
func TestWriterNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, pipe := io.Pipe()
		w := NewWriter(pipe, 100)
		var running sync.WaitGroup
		running.Go(w.Run)
		_, _ = fmt.Fprintln(w, "first")
		synctest.Wait() // it is being written now
		for range 50 {
			_, _ = fmt.Fprintln(w, "123456789")
		}
		if n := w.Dropped(); n != 40 {
			t.Errorf("%d lines were dropped, want 40", n)
		}
		before := time.Now()
		w.Sync() //nolint:errcheck // it has none
		if d := time.Since(before); d != time.Second {
			t.Errorf("Sync waited %v", d)
		}
		var got bytes.Buffer
		var reading sync.WaitGroup
		reading.Go(func() { io.Copy(&got, r) }) //nolint:errcheck // it ends with the pipe
		w.Close()
		running.Wait()
		pipe.Close()
		reading.Wait()
		if n := strings.Count(got.String(), "\n"); n != 11 || !strings.HasPrefix(got.String(), "first\n") {
			t.Errorf("%d lines arrived: %q", n, got.String())
		}
	})
}

// TestWriterFails: lines that cannot be written are dropped, and later ones are tried again.
func TestWriterFails(t *testing.T) {
	var dst bytes.Buffer
	fail := true
	w := NewWriter(writerFunc(func(p []byte) (int, error) {
		if fail {
			fail = false
			return 0, errors.New("broken pipe")
		}
		return dst.Write(p)
	}), 0)
	io.WriteString(w, "a\nb\n") //nolint:errcheck // it never fails
	var running sync.WaitGroup
	running.Go(w.Run)
	w.Sync()                 //nolint:errcheck // it has none
	io.WriteString(w, "c\n") //nolint:errcheck // it never fails
	w.Close()
	running.Wait()
	if dst.String() != "c\n" || w.Dropped() != 2 {
		t.Errorf("%q, %d dropped", dst.String(), w.Dropped())
	}
}

// TestCoreSamples: of a kind a few lines a minute are written, and the next tells of the rest.
func TestCoreSamples(t *testing.T) {
	next, logs := observer.New(zapcore.InfoLevel)
	c := NewCore(next)
	now := time.Unix(1e9, 0)
	c.state.now = func() time.Time { return now }
	log := zap.New(c).With(zap.String("pool", "web"))
	for range 1000 {
		log.Warn("a file is damaged")
	}
	log.Error("a file is damaged")
	if n := logs.FilterLevelExact(zapcore.WarnLevel).Len(); n != perMinute {
		t.Errorf("%d warnings were written", n)
	}
	if n := logs.FilterLevelExact(zapcore.ErrorLevel).Len(); n != 1 {
		t.Errorf("%d errors were written", n)
	}
	now = now.Add(time.Minute)
	log.Warn("a file is damaged")
	last := logs.All()[logs.Len()-1].ContextMap()
	if last["left_out"] != int64(1000-perMinute) || last["pool"] != "web" || c.LeftOut() != 1000-perMinute {
		t.Errorf("the next line has %v; %d were left out", last, c.LeftOut())
	}
	for i := range 10 * maxKinds {
		log.Info(fmt.Sprint("message ", i))
	}
	if n := len(c.state.kinds); n > maxKinds+1 {
		t.Errorf("%d kinds are kept", n)
	}
}

// TestCoreAtDebug: whoever asks for lines of level debug gets all lines.
func TestCoreAtDebug(t *testing.T) {
	next, logs := observer.New(zapcore.DebugLevel)
	c := NewCore(next)
	log := zap.New(c)
	for range 10 * perMinute {
		log.Warn("a file is damaged")
		log.Debug("a file is damaged")
	}
	if n := logs.Len(); n != 20*perMinute || c.LeftOut() != 0 {
		t.Errorf("%d lines were written, %d left out", n, c.LeftOut())
	}
}

type stringer string

func (s stringer) String() string { return string(s) }

// TestCoreShortens: no text of a line is long, whatever type it has.
func TestCoreShortens(t *testing.T) {
	next, logs := observer.New(zapcore.DebugLevel)
	long := "/dev/shm/" + strings.Repeat("\x01é", 3000) + "/counter_1.db"
	var null *stringer
	log := zap.New(NewCore(next))
	for name, field := range map[string]zap.Field{
		"string":      zap.String("path", long),
		"byte_string": zap.ByteString("path", []byte(long)),
		"error":       zap.NamedError("path", errors.New(long)),
		"stringer":    zap.Stringer("path", stringer(long)),
		"any":         zap.Any("path", stringer(long)),
		"with":        zap.Skip(),
	} {
		l := log
		if name == "with" {
			l = log.With(zap.String("path", long))
		}
		l.Debug(name, field)
		got, _ := logs.TakeAll()[0].ContextMap()["path"].(string)
		if len(got) > maxText || !strings.HasPrefix(got, "/dev/shm/") || !strings.HasSuffix(got, "/counter_1.db") ||
			!utf8.ValidString(got) {
			t.Errorf("%s: %d bytes: %q", name, len(got), got)
		}
	}
	log.Debug("stack", zap.String("stack", long), zap.Stringer("null", null))
	if got := logs.TakeAll()[0].ContextMap()["stack"].(string); got != Cut(long, maxStack) || len(got) <= maxText {
		t.Errorf("a stack has %d bytes", len(got))
	}
}

// FuzzCut: the result is as short as asked, begins and ends as the text, and keeps characters
// whole.
func FuzzCut(f *testing.F) {
	f.Add("", 0)
	f.Add("counter_1.db", 5)
	f.Add(strings.Repeat("日本", 100), 17)
	f.Add("\xff\xfe\xfd\x80\x80", 3)
	f.Fuzz(func(t *testing.T, s string, most int) {
		most = max(3, most%4096)
		got := Cut(s, most)
		if len(got) > most {
			t.Fatalf("Cut(%q, %d) has %d bytes", s, most, len(got))
		}
		if utf8.ValidString(s) && !utf8.ValidString(got) {
			t.Fatalf("Cut(%q, %d) = %q", s, most, got)
		}
		if len(s) <= most && got != s {
			t.Fatalf("Cut(%q, %d) = %q", s, most, got)
		}
	})
}

// FuzzLine: whatever a file is called, and whatever an error says, a line of the log is one line of
// bounded length, without control characters, and of the JSON format valid JSON.
func FuzzLine(f *testing.F) {
	f.Add("/dev/shm/counter_1.db", "no such file")
	f.Add("/a\nFATAL  made up\r\x1b[2J\x00", "\u2028\x85\"}\n{")
	f.Add(strings.Repeat("\x01", 300), strings.Repeat("\xff\\", 1000))
	encoding := zap.NewProductionEncoderConfig()
	var out bytes.Buffer
	encoders := map[string]zapcore.Encoder{"json": zapcore.NewJSONEncoder(encoding), "text": zapcore.NewConsoleEncoder(encoding)}
	f.Fuzz(func(t *testing.T, path, text string) {
		for name, encoder := range encoders {
			out.Reset()
			log := zap.New(NewCore(zapcore.NewCore(encoder, zapcore.AddSync(&out), zap.InfoLevel)))
			log.With(zap.String("dir", path)).Warn("file is left out", zap.String("path", path), zap.Error(errors.New(text)))
			line := out.String()
			if strings.Count(line, "\n") != 1 || !strings.HasSuffix(line, "\n") || !utf8.ValidString(line) {
				t.Fatalf("%s: %q", name, line)
			}
			if i := strings.IndexFunc(line[:len(line)-1], func(r rune) bool { return r < ' ' && r != '\t' }); i >= 0 {
				t.Fatalf("%s: a control character at %d of %q", name, i, line)
			}
			if most := 3*6*maxText + 512; len(line) > most { // each byte may be spelled as \u0001
				t.Fatalf("%s: %d bytes", name, len(line))
			}
			if name == "json" && !json.Valid([]byte(line)) {
				t.Fatalf("%q is not JSON", line)
			}
		}
	})
}
