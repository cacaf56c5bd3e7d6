package serve

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// allowedHost reports whether a request names a host by which the API may be asked for. A
// browser that was led here by a name of somebody else sends that name.
func (s *Server) allowedHost(r *http.Request) bool {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && a.Network() == "unix" {
		return true
	}
	host := hostName(r.Host)
	if host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return slices.ContainsFunc(s.opts.AllowedHosts, func(allowed string) bool { return allowed == "*" || hostName(allowed) == host })
}

// hostName is a host without port and brackets, in lower case.
func hostName(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return strings.ToLower(strings.TrimSuffix(host, "."))
}
