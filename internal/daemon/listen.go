package daemon

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"
	"go.uber.org/zap"
)

// UnixPrefix begins the address of a unix socket.
const UnixPrefix = "unix:"

// listenAll opens all listeners of the options. An error names the address, and leaves
// none open.
func listenAll(opts Options) (listeners []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range listeners {
				l.Close() //nolint:errcheck // the error that led here is the one to tell
			}
			listeners = nil
		}
	}()
	opened := func(l net.Listener) {
		listeners = append(listeners, l)
		opts.Logger.Info("listening", zap.String("address", addressOf(l)), zap.String("path", opts.TelemetryPath))
	}
	if opts.NoListen {
		opts.Logger.Info("serving at no address")
		return nil, nil
	}
	if opts.SystemdSocket {
		inherited, err := activation.Listeners()
		if err != nil {
			return nil, fmt.Errorf("take the sockets of systemd: %w", err)
		}
		for _, l := range inherited {
			if l != nil { // a socket of another kind
				opened(l)
			}
		}
		if len(listeners) == 0 {
			return nil,
				errors.New("take the sockets of systemd: it passed none; start this from a .socket unit, or leave --web.systemd-socket out")
		}
		return listeners, nil
	}
	for _, addr := range opts.ListenAddresses {
		var l net.Listener
		var err error
		if path, ok := strings.CutPrefix(addr, UnixPrefix); ok {
			l, err = listenUnix(path, opts.SocketMode)
		} else {
			l, err = net.Listen("tcp", addr)
		}
		if err != nil {
			if errors.Is(err, syscall.EADDRNOTAVAIL) {
				err = fmt.Errorf("%w; this machine does not have the address", err)
			}
			return listeners, fmt.Errorf("listen on %q: %w", addr, err)
		}
		opened(l)
	}
	return listeners, nil
}

// addressOf is the address of a listener as --web.listen-address takes it.
func addressOf(l net.Listener) string {
	if l.Addr().Network() == "unix" {
		return UnixPrefix + l.Addr().String()
	}
	return l.Addr().String()
}

// listenUnix listens on a unix socket that nobody beyond mode can connect to, at no time.
// A socket that a killed daemon has left there makes way; one that somebody listens on,
// and whatever is no socket, does not.
func listenUnix(path string, mode fs.FileMode) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// unix(7): bind gives the file all permissions less the umask, so it has the right ones from
	// the moment it has a name. To change them afterwards by the name could change another file
	// that somebody has put there meanwhile. The umask is the whole process's; it forbids more
	// than before to what is made elsewhere in that moment.
	before := syscall.Umask(0o777 &^ int(mode.Perm()))
	defer syscall.Umask(before)
	return net.Listen("unix", path)
}

// removeStale removes a socket that nobody listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return errors.New("a file that is no socket is there; remove it, or use another path")
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		return errors.Join(syscall.EADDRINUSE, conn.Close())
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		return os.Remove(path)
	}
	return err
}
