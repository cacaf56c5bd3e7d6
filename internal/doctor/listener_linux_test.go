package doctor

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
)

// TestListener: whoever listens on a port is found, and nobody where nobody does.
func TestListener(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Logf("no listener on %s: %v", address, err)
			continue
		}
		port := l.Addr().(*net.TCPAddr).Port
		if got, want := Listener(port), fmt.Sprintf(" (%d)", os.Getpid()); !strings.HasSuffix(got, want) {
			t.Errorf("on %s listens %q, want one that ends in %q", l.Addr(), got, want)
		}
		l.Close()
		if got := Listener(port); got != "" {
			t.Errorf("nobody listens on %d, and it is %q", port, got)
		}
	}
}
