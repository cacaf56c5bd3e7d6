package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
)

// TestUnixSocket: the daemon serves on a unix socket with the mode that it was given, and
// takes the socket away in the end.
func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	d := startReady(t, Options{Fleet: only(sourceDir(t)), ListenAddresses: []string{"unix:" + path}, SocketMode: 0o606})
	if got := d.addresses()[0]; got != "unix:"+path {
		t.Errorf("it listens on %q", got)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != fs.ModeSocket|0o606 {
		t.Errorf("the socket is %v: %v", info.Mode(), err)
	}
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	resp, err := (&http.Client{Transport: transport}).Get("http://localhost/-/ready")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	transport.CloseIdleConnections()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("status %s", resp.Status)
	}
	if err := d.end(); err != nil {
		t.Errorf("Run: %v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// TestListenElsewhere: an address of another machine is told as that.
func TestListenElsewhere(t *testing.T) {
	const address = "192.0.2.1:9500" // of no machine, by RFC 5737
	l, err := listenAll(Options{ListenAddresses: []string{address}, Logger: zap.NewNop()})
	for _, opened := range l {
		opened.Close()
	}
	if err == nil || !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), "this machine does not have the address") {
		t.Errorf("listening there: %v", err)
	}
}

// TestUnixSocketInTheWay: a dead daemon's socket makes way; what is in use, and what is no
// socket, does not.
func TestUnixSocketInTheWay(t *testing.T) {
	dir := t.TempDir()
	listen := func(path string) error {
		l, err := listenAll(Options{ListenAddresses: []string{"unix:" + path}, SocketMode: DefaultSocketMode, Logger: zap.NewNop()})
		if err == nil {
			l[0].Close()
		}
		return err
	}
	stale := filepath.Join(dir, "stale")
	l, err := net.Listen("unix", stale)
	if err != nil {
		t.Fatal(err)
	}
	if err := listen(stale); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), `"unix:`+stale+`"`) {
		t.Errorf("where somebody listens: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if err := listen(stale); err != nil {
		t.Errorf("where nobody listens any more: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := listen(file); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("where a file is: %v", err)
	}
	if data, err := os.ReadFile(file); err != nil || string(data) != "precious" {
		t.Errorf("the file holds %q: %v", data, err)
	}
	if err := listen(filepath.Join(dir, "none", "s")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a directory that is not there: %v", err)
	}
}

// TestSystemdSocketMissing: without sockets from systemd the error says how to get some.
func TestSystemdSocketMissing(t *testing.T) {
	d := start(t, Options{Fleet: only(sourceDir(t)), SystemdSocket: true})
	if err := d.wait(); err == nil || !strings.Contains(err.Error(), ".socket unit") {
		t.Errorf("Run: %v", err)
	}
}

// TestNoListen: without an address the daemon archives, and ends when it is told to.
func TestNoListen(t *testing.T) {
	opts := Options{Fleet: only(sourceDir(t)), NoListen: true}
	opts.Fleet.TendInterval = 10 * time.Millisecond
	d := startReady(t, opts)
	d.await("serving at no address")
	if n := d.logs.FilterMessage("listening").Len(); n > 0 {
		t.Errorf("it listens at %d addresses", n)
	}
	d.stop()
	if <-d.done; d.err != nil {
		t.Error(d.err)
	}
}
