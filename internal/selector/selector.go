// Package selector reads what people write to name series: name{label="value"}, with the
// operators =, !=, =~ and !~ and the strings of PromQL. It knows no view; whoever has series
// asks whether one is meant.
package selector

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"aggregatord/internal/metric"
)

// A Selector says which series are meant. It never changes and may be used by several
// goroutines.
type Selector struct {
	// Name is the sample name where the selector gives one by itself or by __name__="…";
	// empty: any.
	Name     string
	matchers []matcher
	// exact are the only series that are meant, nil for all that the matchers let through.
	exact *exact
	// budget bounds the work of expressions, nil for no bound.
	budget *Budget
}

type matcher struct {
	label  string
	value  string
	re     *regexp.Regexp // nil: compare
	size   int            // of re, in instructions
	negate bool
}

func (m matcher) matches(value string) bool {
	if m.re != nil {
		return m.re.MatchString(value) != m.negate
	}
	return (value == m.value) != m.negate
}

const nameLabel = "__name__"

// Parse reads a selector. As in PromQL, names that are no plain words are written in quotes,
// inside the braces where it is the series': {"http.requests", path="/"}; a label that is not
// there is the same as an empty one; and regular expressions must match the whole value.
// Unlike there a selector may be empty, as {}, and then means everything.
//
// What a selector may cost is bounded: its length, the number of its conditions, and the length
// and the size of each expression.
func Parse(text string) (Selector, error) {
	if len(text) > maxText {
		return Selector{}, fmt.Errorf("selector: it has %d bytes, more than %d; name fewer series at once", len(text), maxText)
	}
	p := parser{text: text, rest: strings.TrimSpace(text)}
	s, err := p.selector()
	if err != nil {
		return Selector{}, fmt.Errorf("selector %q: %w; write it as name{label=\"value\"}", text, err)
	}
	return s, nil
}

// Matches reports whether a series is meant: its sample name and its labels, with bound as
// the value of one more label where boundLabel is not empty.
func (s Selector) Matches(sample string, labels []metric.Label, boundLabel, bound string) bool {
	if !s.budget.spend(1) || s.Name != "" && sample != s.Name {
		return false
	}
	if s.exact != nil {
		return s.exact.has(sample, labels, boundLabel, bound)
	}
	for _, m := range s.matchers {
		value := ""
		switch m.label {
		case nameLabel:
			value = sample
		case boundLabel:
			value = bound
		default:
			for _, l := range labels {
				if l.Name == m.label {
					value = l.Value
					break
				}
			}
		}
		if boundLabel != "" && m.label == boundLabel && m.re == nil && sameBound(m.value, bound) {
			value = m.value // le="1" means the bucket that is served as le="1.0"
		}
		if m.re != nil && !s.budget.spend((len(value)+1)*m.size) {
			return false
		}
		if !m.matches(value) {
			return false
		}
	}
	return true
}

func sameBound(a, b string) bool {
	x, okA := metric.ParseBound(a)
	y, okB := metric.ParseBound(b)
	return okA && okB && x == y
}

// Format spells a series so that Parse takes it: the name, if it is a plain word, in front
// of the braces.
func Format(sample string, labels []metric.Label, boundLabel, bound string) string {
	b := make([]byte, 0, 64)
	plain := isWord(sample, true)
	if plain {
		b = append(b, sample...)
	}
	open := false
	item := func() {
		if open {
			b = append(b, ',')
		} else {
			b = append(b, '{')
			open = true
		}
	}
	if !plain {
		item()
		b = strconv.AppendQuote(b, sample)
	}
	label := func(name, value string) {
		item()
		if isWord(name, false) {
			b = append(b, name...)
		} else {
			b = strconv.AppendQuote(b, name)
		}
		b = append(b, '=')
		b = strconv.AppendQuote(b, value)
	}
	for _, l := range labels {
		label(l.Name, l.Value)
	}
	if boundLabel != "" {
		label(boundLabel, bound)
	}
	if open {
		b = append(b, '}')
	}
	return string(b)
}

// isWord reports whether a name needs no quotes.
func isWord(s string, colon bool) bool {
	return s != "" && wordLength(s, colon) == len(s)
}

// wordLength is how many bytes at the front of s are a plain name.
func wordLength(s string, colon bool) int {
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_', c == ':' && colon, c >= '0' && c <= '9' && i > 0:
		default:
			return i
		}
	}
	return len(s)
}

type parser struct{ text, rest string }

func (p *parser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

func (p *parser) take(prefix string) bool {
	rest, ok := strings.CutPrefix(p.rest, prefix)
	if ok {
		p.rest = rest
	}
	return ok
}

// name takes a plain name or one in quotes.
func (p *parser) name(colon bool) (name string, quoted bool, err error) {
	if p.rest != "" && strings.ContainsRune("\"'`", rune(p.rest[0])) {
		name, err = p.quoted()
		return name, true, err
	}
	n := wordLength(p.rest, colon)
	name, p.rest = p.rest[:n], p.rest[n:]
	return name, false, nil
}

// quoted takes a string: in double or single quotes with the escapes of Go, in backquotes
// without any.
func (p *parser) quoted() (string, error) {
	quote := p.rest[0]
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '\\' && quote != '`':
			i++
		case c == quote:
			s := p.rest[1:i]
			p.rest = p.rest[i+1:]
			return unquote(s, quote)
		}
	}
	return "", fmt.Errorf("the string that begins with %s has no end", p.rest)
}

func unquote(s string, quote byte) (string, error) {
	if quote == '`' {
		return s, nil
	}
	var b strings.Builder
	for rest := s; rest != ""; {
		r, multibyte, tail, err := strconv.UnquoteChar(rest, quote)
		if err != nil {
			return "", fmt.Errorf("the string %c%s%c has an escape that is not known", quote, s, quote)
		}
		if r < utf8.RuneSelf || !multibyte {
			b.WriteByte(byte(r))
		} else {
			b.WriteRune(r)
		}
		rest = tail
	}
	return b.String(), nil
}

func (p *parser) selector() (s Selector, err error) {
	if s.Name, _, err = p.name(true); err != nil {
		return s, err
	}
	p.space()
	switch {
	case p.rest == "" && s.Name != "":
		return s, nil
	case !p.take("{"):
		if p.rest == "" {
			return s, errors.New("it is empty")
		}
		return s, fmt.Errorf("expected { at %q", p.rest)
	}
	for {
		if p.space(); p.take("}") {
			break
		}
		if err := p.item(&s); err != nil {
			return s, err
		}
		if p.space(); p.take(",") {
			continue
		}
		if !p.take("}") {
			return s, fmt.Errorf("expected , or } at %q", p.rest)
		}
		break
	}
	if p.space(); p.rest != "" {
		return s, fmt.Errorf("nothing may follow the braces, found %q", p.rest)
	}
	return s, nil
}

// item takes what stands between two commas.
func (p *parser) item(s *Selector) error {
	label, quoted, err := p.name(false)
	if err != nil {
		return err
	}
	if label == "" {
		return fmt.Errorf("expected the name of a label at %q", p.rest)
	}
	p.space()
	if quoted && (p.rest == "" || p.rest[0] == ',' || p.rest[0] == '}') {
		if s.Name != "" {
			return fmt.Errorf("it has two names, %q and %q", s.Name, label)
		}
		s.Name = label
		return nil
	}
	m := matcher{label: label}
	expression := false
	switch {
	case p.take("=~"):
		expression = true
	case p.take("!~"):
		expression, m.negate = true, true
	case p.take("!="):
		m.negate = true
	case p.take("="):
	default:
		return fmt.Errorf("expected =, !=, =~ or !~ after %q, found %q", label, p.rest)
	}
	p.space()
	if p.rest == "" || !strings.ContainsRune("\"'`", rune(p.rest[0])) {
		return fmt.Errorf("the value of %q must be in quotes, found %q", label, p.rest)
	}
	if m.value, err = p.quoted(); err != nil {
		return err
	}
	if expression {
		if m.re, m.size, err = compile(m.value); err != nil {
			return fmt.Errorf("the regular expression of %q: %w", label, err)
		}
	}
	if label == nameLabel && !expression && !m.negate && s.Name == "" {
		s.Name = m.value
		return nil
	}
	if len(s.matchers) == maxMatchers {
		return fmt.Errorf("it has more than %d conditions", maxMatchers)
	}
	s.matchers = append(s.matchers, m)
	return nil
}
