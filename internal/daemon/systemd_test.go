package daemon

import (
	"context"
	"net"
	"path/filepath"
	"testing"
	"time"

	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
)

// TestSystemdNotify: systemd is told that the daemon is ready, lives and stops, in this order.
func TestSystemdNotify(t *testing.T) {
	address := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", address)
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	listening := false
	ended := make(chan error, 1)
	// Ends when ctx does.
	go func() {
		ended <- Run(ctx, Options{
			Fleet:           fleet.Options{Pools: []pool.Spec{{Path: t.TempDir()}}, TendInterval: 10 * time.Millisecond},
			ListenAddresses: []string{"127.0.0.1:0"},
			SystemdNotify:   true, OnListening: func() { listening = true },
		})
	}()
	var told []string
	buf := make([]byte, 256)
	for len(told) == 0 || told[len(told)-1] != "STOPPING=1" {
		if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", told, err)
		}
		told = append(told, string(buf[:n]))
		if len(told) == 4 {
			stop()
		}
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if !listening {
		t.Error("nobody was told that it listens")
	}
	if told[0] != "READY=1" {
		t.Errorf("the first word is %q", told[0])
	}
	for _, word := range told[1 : len(told)-1] {
		if word != "WATCHDOG=1" {
			t.Errorf("told %q", told)
		}
	}
}
