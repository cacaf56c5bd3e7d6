package output

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"syscall"
)

// patient is a connection to a receiver that may answer, and hang up, before it has read all of a
// request: because the request is too large, has no password, or comes without a certificate. What
// is written after that fails, and http.Transport would tell that failure in place of the answer,
// which is there to be read.
//
// So a write that fails because the other side has hung up says that all was written. Reading then
// gives the answer and, where there is none, the end of the connection: nothing is taken for
// delivered because of it.
type patient struct {
	net.Conn
	// asking says that something was written since something was last read. If it is not, the
	// connection was idle, and http.Transport may send the request by another one.
	asking atomic.Bool
}

// dialPatient is net.Dialer.DialContext for connections to receivers.
func dialPatient(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &patient{Conn: conn}, nil
}

// Read implements net.Conn.
func (c *patient) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.asking.Store(false)
	}
	return n, err
}

// Write implements net.Conn.
func (c *patient) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if err != nil && c.asking.Load() && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)) {
		return len(p), nil
	}
	if n > 0 {
		c.asking.Store(true)
	}
	return n, err
}
