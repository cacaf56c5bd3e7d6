package serve

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// The content codings a response can have.
const (
	identity = "identity"
	gzipped  = "gzip"
)

// negotiateEncoding chooses the content coding for the values of Accept-Encoding, by RFC
// 9110, section 12.5.3: the one with the greater weight, gzip if both weigh the same.
// Identity is acceptable unless it is refused, by name or by "*;q=0". It is not ok if
// neither is acceptable. Clauses that cannot be read are taken as absent.
func negotiateEncoding(values []string) (encoding string, ok bool) {
	const unset = -1
	gzipWeight, identityWeight, anyWeight := float64(unset), float64(unset), float64(unset)
	for _, value := range values {
		for clause := range strings.SplitSeq(value, ",") {
			coding, weight, ok := parseWeighted(clause)
			if !ok {
				continue
			}
			switch coding {
			case gzipped, "x-gzip":
				gzipWeight = max(gzipWeight, weight)
			case identity:
				identityWeight = max(identityWeight, weight)
			case "*":
				anyWeight = max(anyWeight, weight)
			}
		}
	}
	if gzipWeight == unset {
		gzipWeight = max(anyWeight, 0)
	}
	if identityWeight == unset {
		if identityWeight = anyWeight; anyWeight == unset {
			identityWeight = 1e-4 // less than any weight that can be given
		}
	}
	switch {
	case gzipWeight > 0 && gzipWeight >= identityWeight:
		return gzipped, true
	case identityWeight > 0:
		return identity, true
	}
	return "", false
}

// parseWeighted reads one clause of an Accept or Accept-Encoding header: what it names,
// in lower case and without parameters, and its weight.
func parseWeighted(clause string) (name string, weight float64, ok bool) {
	name, params, _ := strings.Cut(clause, ";")
	name = strings.ToLower(strings.TrimSpace(name))
	weight = 1
	for param := range strings.SplitSeq(params, ";") {
		key, value, _ := strings.Cut(param, "=")
		if strings.EqualFold(strings.TrimSpace(key), "q") {
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil || !(q >= 0 && q <= 1) {
				return "", 0, false
			}
			weight = q
		}
	}
	return name, weight, name != ""
}

// wantsHTML reports whether a client would rather have HTML than metrics, as browsers do and
// scrapers do not: text/html must be named, with a weight that is above that of every format
// of metrics that is named, or the same and named first. A range such as */* names nothing.
func wantsHTML(accept []string) bool {
	html, htmlFirst := 0.0, false
	best := 0.0
	for _, value := range accept {
		for clause := range strings.SplitSeq(value, ",") {
			name, weight, ok := parseWeighted(clause)
			switch {
			case !ok:
			case name == "text/html":
				if weight > html {
					html, htmlFirst = weight, best < weight
				}
			case name == "text/plain" || name == "application/openmetrics-text" || name == "application/vnd.google.protobuf" ||
				name == "application/json":
				best = max(best, weight)
			}
		}
	}
	return html > 0 && (html > best || html == best && htmlFirst)
}

// newCompressor returns what compresses one response after the other.
func newCompressor() *gzip.Writer {
	// Level 1: on merged metrics higher levels cost several times as much and save
	// little, and more than reading every source.
	w, err := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	if err != nil {
		panic(fmt.Sprintf("BUG: gzip level: %v", err))
	}
	return w
}

// compress appends the gzip form of plain to a buffer. The same input gives the same bytes.
func (s *Server) compress(dst *buffer, plain []byte) error {
	w, ok := s.compressors.get()
	if !ok {
		w = newCompressor()
	}
	defer s.compressors.put(w)
	w.Reset(dst)
	if _, err := w.Write(plain); err != nil {
		return fmt.Errorf("compress response: %w", err)
	}
	if err := w.Close(); err != nil {
		return fmt.Errorf("compress response: %w", err)
	}
	return nil
}
