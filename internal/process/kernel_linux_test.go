package process

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzNetlink reads what the kernel answers about sockets.
func FuzzNetlink(f *testing.F) {
	message := func(body []byte) []byte {
		return append([]byte{byte(unix.SizeofNlMsghdr + len(body)), 0, 0, 0, unix.SOCK_DIAG_BY_FAMILY, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
			body...)
	}
	inet := make([]byte, inetMessage)
	inet[0], inet[1] = unix.AF_INET, stateListen
	f.Add(message(inet))
	socket := append(make([]byte, unixMessage), 9, 0, unixDiagName, 0, 0, 'a', 0, 0, 'b', 0, 0, 0, 12, 0, unixDiagRqlen, 0, 1, 0, 0, 0, 2,
		0, 0, 0)
	socket[0], socket[2] = unix.AF_UNIX, stateListen
	f.Add(message(socket))
	f.Add([]byte{20, 0, 0, 0, unix.NLMSG_ERROR, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 254, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		n := 0
		_, err := eachMessage(data, func(b []byte) {
			n++
			if _, l, ok := parseDiag(b); ok && l.address == "" {
				t.Errorf("a socket without an address in %q", b)
			}
		})
		if n*unix.SizeofNlMsghdr > len(data) {
			t.Errorf("%d messages in %d bytes, %v", n, len(data), err)
		}
	})
}
