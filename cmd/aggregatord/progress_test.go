package main

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestProgress: a long work has a line, drawn now and then, that is away when something else is
// written and in the end.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out)
		p.visible = true
		for i := range 1000 {
			p.step("read", i+1, 1000)
			time.Sleep(time.Millisecond)
			if i == 700 {
				if _, err := p.Write([]byte("a line of the log\n")); err != nil {
					t.Fatal(err)
				}
			}
		}
		got := out.String()
		if n := strings.Count(got, " of 1000"); n < 4 || n > 7 {
			t.Errorf("drawn %d times: %q", n, got)
		}
		if !strings.HasPrefix(got, eraseLine+"read: 401 of 1000") || !strings.HasSuffix(got, eraseLine) {
			t.Errorf("it begins or ends otherwise: %q", got)
		}
		if !strings.Contains(got, eraseLine+"a line of the log\n") {
			t.Errorf("the log does not begin its line: %q", got)
		}
	})
}

// TestProgressDuring: a work of which nothing is known shows its time.
func TestProgressDuring(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out)
		p.visible = true
		end := p.during("check")
		time.Sleep(1050 * time.Millisecond)
		end()
		if got := out.String(); !strings.Contains(got, eraseLine+"check: 500ms"+eraseLine) ||
			!strings.HasSuffix(got, "check: 1s"+eraseLine) {
			t.Errorf("got %q", got)
		}
		out.Reset()
		p = newProgress(&out)
		p.visible = true
		end = p.during("check")
		time.Sleep(300 * time.Millisecond)
		end()
		if out.Len() > 0 {
			t.Errorf("a short work shows %q", out.String())
		}
	})
}

// TestProgressHidden: what is no terminal gets nothing.
func TestProgressHidden(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		p := newProgress(&out)
		end := p.during("check")
		time.Sleep(time.Minute)
		p.step("read", 1, 2)
		end()
		if out.Len() > 0 {
			t.Errorf("got %q", out.String())
		}
	})
}
