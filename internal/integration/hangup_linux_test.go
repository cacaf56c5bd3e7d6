package integration

import (
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestHangupAtTheStart: a SIGHUP that comes as soon as a program in Go can catch it, which is when
// os/signal is there, does not end the daemon, and neither does one at any time after.
func TestHangupAtTheStart(t *testing.T) {
	t.Parallel()
	plain, err := buildPlain()
	if err != nil {
		t.Fatal(err)
	}
	// The runtime writes a line when each package has been initialized.
	const line, first, ours = "init ", "init os/signal @", "init aggregatord/internal/hangup @"
	for range 10 {
		cmd := exec.Command(plain, "serve", "--dir", sourceDir(t), "--web.listen-address", "127.0.0.1:0", "--log.format", "json")
		cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
		p := start(t, cmd)
		before := ""
		at := p.await("the package behind os/signal", func(text string) bool {
			next := strings.HasPrefix(before, first) && strings.HasPrefix(text, line)
			before = text
			return next
		})
		p.signal(syscall.SIGHUP)
		if !strings.HasPrefix(at, ours) {
			t.Errorf("behind os/signal comes %q, want %q", at, ours)
		}
		time.Sleep(time.Duration(rand.Int64N(int64(20 * time.Millisecond))))
		p.signal(syscall.SIGHUP)
		p.await("the listening address", func(text string) bool { return strings.Contains(text, `"msg":"listening"`) })
		if err := p.terminate(); err != nil {
			t.Fatalf("the daemon's end: %v\n%s", err, p.out.tail())
		}
	}
}
