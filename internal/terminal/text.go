package terminal

import (
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/width"
)

// Printable returns s with everything in it that a terminal does not simply show spelled as
// in a Go string: control characters, C1 among them, newlines and tabs too, characters that
// change the direction of writing, and bytes that are no UTF-8.
func Printable(s string) string {
	if first := strings.IndexFunc(s, isUnprintable); first < 0 && utf8.ValidString(s) {
		return s
	}
	return string(appendPrintable(make([]byte, 0, len(s)+16), s))
}

func isUnprintable(r rune) bool { return !unicode.IsGraphic(r) }

func appendPrintable(dst []byte, s string) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		if (r == utf8.RuneError && n == 1) || isUnprintable(r) {
			quoted := strconv.AppendQuote(nil, s[:n])
			dst = append(dst, quoted[1:len(quoted)-1]...)
		} else {
			dst = append(dst, s[:n]...)
		}
		s = s[n:]
	}
	return dst
}

// Columns returns how many columns of a terminal printable text takes. Terminals differ on
// some emoji; those that count as wide here are so by Unicode's East Asian Width.
func Columns(s string) int {
	n := 0
	for _, r := range s {
		n += columns(r)
	}
	return n
}

func columns(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// Cut returns printable text cut to at most so many columns, with … in the place of what is
// left out.
func Cut(s string, most int) string {
	if len(s) <= most || Columns(s) <= most {
		return s
	}
	if most <= 0 {
		return ""
	}
	used := 0
	for i, r := range s {
		if used += columns(r); used > most-1 {
			return s[:i] + "…"
		}
	}
	return s
}

// Lines returns a writer to w that makes all but newlines and tabs printable. Each Write
// must be given whole characters; it makes one Write to w.
func Lines(w io.Writer) io.Writer { return lines{w} }

type lines struct{ w io.Writer }

// Write implements io.Writer.
func (l lines) Write(p []byte) (int, error) {
	out := make([]byte, 0, len(p)+16)
	rest := string(p)
	for rest != "" {
		i := strings.IndexAny(rest, "\n\t")
		if i < 0 {
			out, rest = appendPrintable(out, rest), ""
			break
		}
		out = append(appendPrintable(out, rest[:i]), rest[i])
		rest = rest[i+1:]
	}
	if _, err := l.w.Write(out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Wrap breaks printable text into lines of at most so many columns, between words. A longer
// word has a line of its own. With columns of 0 there is one line.
func Wrap(s string, columns int) []string {
	if columns <= 0 || Columns(s) <= columns {
		return []string{s}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		if line != "" && Columns(line)+1+Columns(word) > columns {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
