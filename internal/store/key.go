package store

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"aggregatord/internal/metric"
)

// A KeyError says what is wrong with the key of one entry.
type KeyError struct {
	// Offset is where in the key, in bytes from its start.
	Offset int
	What   string
}

func (e *KeyError) Error() string { return fmt.Sprintf("key, byte %d: %s", e.Offset, e.What) }

// ParseKey parses the key of one entry, which is strict JSON (RFC 8259) in one of these shapes:
//
//	[family, sample, {label: value, …}, help]         client_python (mmap_key in its mmap_dict.py)
//	[family, sample, {label: value, …}]               client_python before 0.16, the postmates fork
//	[family, sample, [label, …], [value, …]]          very old client_python, the Ruby C extension
//	[family, sample, [label, …], [value, …], help]
//
// Labels come out sorted by name; of two with one name the last wins, as in Python.
// Values that are no strings keep their spelling, null is the empty string, and so is a
// help that is null. A lone surrogate becomes U+FFFD.
//
// Anything else is a [*KeyError]: invalid UTF-8, an empty family, sample or label name,
// a label named __name__, lists that differ in length, bytes after the end. Whether the
// sample belongs to the family is not checked here.
//
// The result owns its strings: raw may change or go away afterwards. The strings of the
// series share one piece of memory with each other and with nothing else.
func ParseKey(raw []byte) (metric.Key, error) {
	// Both buffers live on the stack for keys of usual size, so that a key costs only the
	// strings it ends up as. They never grow (an append into p would move them to the
	// heap): decoding makes no string longer, and every label name has two quotes.
	var text [512]byte
	var labels [16]labelSpans
	p := keyParser{raw: raw, text: text[:], labels: labels[:]}
	if len(raw) > len(text) {
		p.text = make([]byte, len(raw))
	}
	if n := bytes.Count(raw, []byte{'"'}) / 2; n > len(labels) {
		p.labels = make([]labelSpans, n)
	}
	help, err := p.array()
	if err != nil {
		return metric.Key{}, err
	}
	return p.build(help), nil
}

// RubyKey reports whether a key is spelled as prometheus-client-mmap does: as Python did in
// its early days, but without spaces. Its histograms hold cumulative buckets (lib/prometheus/
// client/histogram.rb counts an observation in each bucket it is below), Python's do not, so
// that one must not be taken for the other.
func RubyKey(raw []byte) bool {
	// It ends with the values of the labels, which is looked at first because it is cheap and
	// every key of a histogram is asked about.
	if !bytes.HasSuffix(raw, []byte("]]")) {
		return false
	}
	rest, ok := bytes.CutPrefix(raw, []byte(`["`))
	for range 2 { // family and sample
		i := bytes.IndexByte(rest, '"')
		for i > 0 && rest[i-1] == '\\' { // names have nothing else to escape
			next := bytes.IndexByte(rest[i+1:], '"')
			if next < 0 {
				return false
			}
			i += 1 + next
		}
		if !ok || i < 0 || !bytes.HasPrefix(rest[i:], []byte(`",`)) {
			return false
		}
		rest = bytes.TrimPrefix(rest[i+2:], []byte(`"`))
	}
	return bytes.HasPrefix(rest, []byte("["))
}

// span is where in keyParser.text a decoded string lies.
type span struct{ start, end int }

type labelSpans struct{ name, value span }

// keyParser reads raw from pos on. All strings are decoded into text one after another:
// family, sample, labels, help.
type keyParser struct {
	raw    []byte
	pos    int
	text   []byte
	n      int // how much of text is filled
	family int // where in text the family ends and the sample begins
	sample int // where in text the sample ends
	labels []labelSpans
	count  int // how many of labels are filled
	noHelp bool
}

// array parses the whole key.
func (p *keyParser) array() (help span, err error) {
	if err := p.delimiter('[', "the key is not an array"); err != nil {
		return help, err
	}
	if err := p.name("the family name"); err != nil {
		return help, err
	}
	p.family = p.n
	if err := p.comma(); err != nil {
		return help, err
	}
	if err := p.name("the sample name"); err != nil {
		return help, err
	}
	p.sample = p.n
	if err := p.comma(); err != nil {
		return help, err
	}
	switch p.peek() {
	case '{':
		err = p.object()
	case '[':
		err = p.lists()
	default:
		err = p.fail("the labels are neither an object nor a list")
	}
	if err != nil {
		return help, err
	}
	help = span{p.n, p.n}
	p.noHelp = true
	if p.peek() == ',' {
		p.pos++
		switch p.peek() {
		case '"':
			p.noHelp = false
			help, err = p.str()
		case 'n':
			err = p.literal("null")
		default:
			err = p.fail("the help is not a string")
		}
		if err != nil {
			return help, err
		}
	}
	if err := p.delimiter(']', "the array does not end where it should"); err != nil {
		return help, err
	}
	if p.space(); p.pos < len(p.raw) {
		return help, p.fail("bytes after the end of the array")
	}
	return help, nil
}

// build makes the strings: one for the family, one for the help, one for the series.
func (p *keyParser) build(help span) metric.Key {
	series := string(p.text[p.family:help.start])
	cut := func(s span) string { return series[s.start-p.family : s.end-p.family] }
	k := metric.Key{
		Family: string(p.text[:p.family]),
		Series: metric.Series{Sample: cut(span{p.family, p.sample})},
		Help:   string(p.text[help.start:help.end]),
		NoHelp: p.noHelp,
	}
	if p.count == 0 {
		return k
	}
	labels := make([]metric.Label, p.count)
	rising := true
	for i, s := range p.labels[:p.count] {
		labels[i] = metric.Label{Name: cut(s.name), Value: cut(s.value)}
		rising = rising && (i == 0 || labels[i-1].Name < labels[i].Name)
	}
	if !rising {
		// Stable, so that of equal names the one written last is the last.
		slices.SortStableFunc(labels, func(a, b metric.Label) int { return strings.Compare(a.Name, b.Name) })
		kept := labels[:0]
		for i, l := range labels {
			if i+1 == len(labels) || labels[i+1].Name != l.Name {
				kept = append(kept, l)
			}
		}
		labels = kept
	}
	k.Series.Labels = labels
	return k
}

// object parses {"name": value, …}.
func (p *keyParser) object() error {
	p.pos++ // the caller has seen '{'
	if p.peek() == '}' {
		p.pos++
		return nil
	}
	for {
		name, err := p.labelName()
		if err != nil {
			return err
		}
		if err := p.delimiter(':', "no colon after a label name"); err != nil {
			return err
		}
		value, err := p.scalar()
		if err != nil {
			return err
		}
		p.labels[p.count] = labelSpans{name, value}
		p.count++
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			return nil
		default:
			return p.fail("the labels do not end where they should")
		}
	}
}

// lists parses ["name", …], [value, …].
func (p *keyParser) lists() error {
	p.pos++ // the caller has seen '['
	if p.peek() == ']' {
		p.pos++
	} else {
		for more := true; more; {
			name, err := p.labelName()
			if err != nil {
				return err
			}
			p.labels[p.count] = labelSpans{name: name}
			p.count++
			if more, err = p.listGoesOn(); err != nil {
				return err
			}
		}
	}
	if err := p.comma(); err != nil {
		return err
	}
	if err := p.delimiter('[', "the label values are not a list"); err != nil {
		return err
	}
	next := 0 // the label whose value comes next
	if p.peek() == ']' {
		p.pos++
	} else {
		for more := true; more; next++ {
			value, err := p.scalar()
			if err != nil {
				return err
			}
			if next == p.count {
				return p.fail("more label values than names")
			}
			p.labels[next].value = value
			if more, err = p.listGoesOn(); err != nil {
				return err
			}
		}
	}
	if next < p.count {
		return p.fail("fewer label values than names")
	}
	return nil
}

// listGoesOn reads what stands after an element of a list, a comma or the end.
func (p *keyParser) listGoesOn() (bool, error) {
	switch p.peek() {
	case ',':
		p.pos++
		return true, nil
	case ']':
		p.pos++
		return false, nil
	}
	return false, p.fail("a list does not end where it should")
}

// name parses a string that must not be empty; what names it in the error.
func (p *keyParser) name(what string) error {
	if p.peek() != '"' {
		return p.fail(what + " is not a string")
	}
	s, err := p.str()
	if err == nil && s.start == s.end {
		return p.fail(what + " is empty")
	}
	return err
}

func (p *keyParser) labelName() (span, error) {
	if p.peek() != '"' {
		return span{}, p.fail("a label name is not a string")
	}
	s, err := p.str()
	if err != nil {
		return span{}, err
	}
	switch string(p.text[s.start:s.end]) {
	case "":
		return span{}, p.fail("a label name is empty")
	case "__name__":
		return span{}, p.fail("a label is named __name__")
	}
	return s, nil
}

// scalar parses a label value: a string, or the spelling of a number, true or false, or null.
func (p *keyParser) scalar() (span, error) {
	start := p.n
	var err error
	c := p.peek()
	from := p.pos
	switch {
	case c == '"':
		return p.str()
	case c == 'n':
		return span{start, start}, p.literal("null")
	case c == 't':
		err = p.literal("true")
	case c == 'f':
		err = p.literal("false")
	case c == '-' || isDigit(c):
		err = p.number()
	default:
		return span{}, p.fail("a label value is not a scalar")
	}
	if err != nil {
		return span{}, err
	}
	p.n += copy(p.text[p.n:], p.raw[from:p.pos])
	return span{start, p.n}, nil
}

func (p *keyParser) literal(word string) error {
	end := p.pos + len(word)
	if end > len(p.raw) || string(p.raw[p.pos:end]) != word {
		return p.fail("not a JSON value")
	}
	p.pos = end
	return nil
}

// number passes over -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?.
func (p *keyParser) number() error {
	if p.at() == '-' {
		p.pos++
	}
	if p.at() == '0' {
		p.pos++
	} else if !p.digits() {
		return p.fail("not a JSON number")
	}
	if p.at() == '.' {
		p.pos++
		if !p.digits() {
			return p.fail("not a JSON number")
		}
	}
	if c := p.at(); c == 'e' || c == 'E' {
		p.pos++
		if c := p.at(); c == '+' || c == '-' {
			p.pos++
		}
		if !p.digits() {
			return p.fail("not a JSON number")
		}
	}
	return nil
}

// digits passes over digits and reports whether there was one.
func (p *keyParser) digits() bool {
	start := p.pos
	for isDigit(p.at()) {
		p.pos++
	}
	return p.pos > start
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// str decodes a string, whose opening quote the caller has seen, to the end of text.
func (p *keyParser) str() (span, error) {
	p.pos++
	start := p.n
	for {
		// The hot loop: bytes that need no decoding are copied in runs.
		run, high := p.pos, byte(0)
		i := run
		for i < len(p.raw) {
			c := p.raw[i]
			if c == '"' || c == '\\' || c < ' ' {
				break
			}
			high |= c
			i++
		}
		p.pos = i
		// A run ends at ASCII bytes, so it is valid exactly if its part of the string is.
		if high >= utf8.RuneSelf && !utf8.Valid(p.raw[run:i]) {
			p.pos = run
			return span{}, p.fail("invalid UTF-8")
		}
		p.n += copy(p.text[p.n:], p.raw[run:i])
		if i == len(p.raw) {
			return span{}, p.fail("a string does not end")
		}
		switch p.raw[i] {
		case '"':
			p.pos++
			return span{start, p.n}, nil
		case '\\':
			if err := p.escape(); err != nil {
				return span{}, err
			}
		default:
			return span{}, p.fail("a control character in a string")
		}
	}
}

// escape decodes one escape sequence, at whose backslash pos stands.
func (p *keyParser) escape() error {
	if p.pos+1 == len(p.raw) {
		return p.fail("a string does not end")
	}
	c := p.raw[p.pos+1]
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		r, ok := p.hex4(p.pos)
		if !ok {
			return p.fail("not four hexadecimal digits after \\u")
		}
		p.pos += 6
		if utf16.IsSurrogate(r) {
			// The second half is consumed only if it makes a pair: it may be half of the next.
			second, _ := p.hex4(p.pos)
			r = utf16.DecodeRune(r, second)
			if r != utf8.RuneError {
				p.pos += 6
			}
		}
		p.n += utf8.EncodeRune(p.text[p.n:], r)
		return nil
	default:
		return p.fail("unknown escape sequence")
	}
	p.pos += 2
	p.text[p.n] = c
	p.n++
	return nil
}

// hex4 reads \uXXXX at position at.
func (p *keyParser) hex4(at int) (rune, bool) {
	if at+6 > len(p.raw) || p.raw[at] != '\\' || p.raw[at+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range p.raw[at+2 : at+6] {
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

func (p *keyParser) space() {
	for p.pos < len(p.raw) {
		switch p.raw[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// peek passes over white space and returns the byte there, 0 at the end.
func (p *keyParser) peek() byte {
	p.space()
	return p.at()
}

// at returns the byte at pos, 0 at the end. No byte 0 is part of any token.
func (p *keyParser) at() byte {
	if p.pos < len(p.raw) {
		return p.raw[p.pos]
	}
	return 0
}

func (p *keyParser) comma() error { return p.delimiter(',', "the array ends too early") }

func (p *keyParser) delimiter(c byte, otherwise string) error {
	if p.peek() != c {
		return p.fail(otherwise)
	}
	p.pos++
	return nil
}

func (p *keyParser) fail(what string) error { return &KeyError{Offset: p.pos, What: what} }

// AppendKey appends the key as client_python 0.16 and later writes it, byte for byte what
// Python's json.dumps([family, sample, labels, help], sort_keys=True) makes; without the help,
// as earlier ones do, if the key has none.
func AppendKey(dst []byte, k metric.Key) []byte {
	dst = append(dst, '[')
	dst = appendString(dst, k.Family)
	dst = append(dst, ", "...)
	dst = appendString(dst, k.Series.Sample)
	dst = append(dst, ", {"...)
	for i, l := range k.Series.Labels {
		if i > 0 {
			dst = append(dst, ", "...)
		}
		dst = appendString(dst, l.Name)
		dst = append(dst, ": "...)
		dst = appendString(dst, l.Value)
	}
	dst = append(dst, '}')
	if !k.NoHelp {
		dst = append(dst, ", "...)
		dst = appendString(dst, k.Help)
	}
	return append(dst, ']')
}

// appendString appends s as Python's json does with ensure_ascii: everything outside
// printable ASCII is escaped, in UTF-16 and lower-case hexadecimal.
func appendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	unit := func(dst []byte, u rune) []byte {
		return append(dst, '\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15])
	}
	dst = append(dst, '"')
	run := 0 // what comes before i and is not yet appended needs no escape
	for i := 0; i < len(s); {
		c := s[i]
		if ' ' <= c && c <= '~' && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[run:i]...)
		size := 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\b':
			dst = append(dst, '\\', 'b')
		default:
			var r rune
			r, size = utf8.DecodeRuneInString(s[i:])
			if r1, r2 := utf16.EncodeRune(r); r1 != utf8.RuneError {
				dst = unit(unit(dst, r1), r2)
			} else {
				dst = unit(dst, r)
			}
		}
		i += size
		run = i
	}
	dst = append(dst, s[run:]...)
	return append(dst, '"')
}
