package config

import (
	"encoding"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"aggregatord/internal/nearest"
)

// Pos is a place in a file. Line and column begin at 1, and 0 is an unknown one.
type Pos struct{ Line, Column int }

// An Error is one mistake in a configuration file.
type Error struct {
	// File is the name of the file as it was given.
	File string
	Pos  Pos
	// Key is the path to the key that is wrong, as metrics[2].gauge_mode; empty where the
	// file is not even YAML.
	Key string
	// Problem says what is wrong and what to write instead.
	Problem string
}

// Error is in the form that editors can jump to: file:line:column: key: problem.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Pos.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Pos.Line)
		if e.Pos.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Pos.Column)
		}
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

// Errors are all the mistakes that were found in one file, in the order of the file.
type Errors []*Error

// Error has one line for each.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Bounds on what is read. A ConfigMap has at most 1 MiB.
const (
	maxFileBytes = 1 << 20
	// maxNodes bounds what aliases can make of a small file.
	maxNodes = 1 << 18
	// maxErrors is how many mistakes are told at once.
	maxErrors = 20
)

// decoder fills Go values from YAML nodes and remembers where each key was.
//
// A YAML library can do the filling, too. It cannot say where a mistake is that only shows
// afterwards, such as a rule without match, nor which key was meant by one that it does
// not know.
type decoder struct {
	file  string
	errs  Errors
	nodes int
	pos   map[string]Pos
	// lines are those of the file.
	lines []string
	// unread are the keys with values that could not be read, once all was tried: what is said
	// of them afterwards would only be about what is not there.
	unread []string
}

// parse reads the one document of a file, nil if it holds none; ok says that it could be read.
func (d *decoder) parse(data []byte) (root *yaml.Node, ok bool) {
	if len(data) > maxFileBytes {
		d.fail(Pos{}, "", "is larger than %d bytes; is it a configuration file?", maxFileBytes)
		return nil, false
	}
	// The library would also take UTF-16, in which nobody means to write.
	if !utf8.Valid(data) {
		d.fail(firstInvalid(data), "", "is not UTF-8 from here on; save the file as UTF-8")
		return nil, false
	}
	d.lines = strings.Split(string(data), "\n")
	loader, err := yaml.NewLoader(strings.NewReader(string(data)))
	if err != nil {
		d.syntax(err)
		return nil, false
	}
	var doc, second yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil, true
	} else if err != nil {
		d.syntax(err)
		return nil, false
	}
	if err := loader.Load(&second); err == nil {
		d.fail(posOf(&second), "", "a second document begins here; write all keys into one")
		return nil, false
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return nil, false
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return nil, true
	}
	return doc.Content[0], true
}

// firstInvalid returns where the first bytes are that are not UTF-8.
func firstInvalid(data []byte) Pos {
	pos := Pos{Line: 1, Column: 1}
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if r == utf8.RuneError && size == 1 {
			break
		}
		pos.Column++
		if r == '\n' {
			pos = Pos{Line: pos.Line + 1, Column: 1}
		}
		data = data[size:]
	}
	return pos
}

// syntax records what the YAML library could not read.
func (d *decoder) syntax(err error) {
	var le *yaml.LoadError
	if !errors.As(err, &le) {
		d.fail(Pos{}, "", "is not YAML: %v", err)
		return
	}
	if at := tabAt(d.lines, le.Mark.Line); at > 0 {
		d.fail(Pos{le.Mark.Line, at}, "", "has a tab; indent with spaces: YAML takes no tabs there")
		return
	}
	problem := le.Message
	if le.ContextMsg != "" {
		problem = le.ContextMsg + ": " + problem
	}
	d.fail(Pos{le.Mark.Line, le.Mark.Column}, "", "is not YAML: %s", strings.TrimSpace(problem))
}

// tabAt returns the column of the first tab before the text of a line, or after its - or key:,
// and 0 if there is none.
func tabAt(lines []string, line int) int {
	if line < 1 || line > len(lines) {
		return 0
	}
	text := lines[line-1]
	at := strings.IndexByte(text, '\t')
	if at < 0 || strings.Trim(text[:at], " -") != "" && !strings.HasSuffix(strings.TrimRight(text[:at], " "), ":") {
		return 0
	}
	return at + 1
}

// quotes are those that a word processor puts where " or ' was typed.
const openingQuotes, closingQuotes = "\u201c\u201d\u201e\u2018\u2019\u201a\u00ab", "\u201c\u201d\u2018\u2019\u00bb"

// plain refuses a text in typographic quotes, which YAML takes as part of it.
func (d *decoder) plain(n *yaml.Node, key string) bool {
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return true
	}
	first, _ := utf8.DecodeRuneInString(n.Value)
	last, _ := utf8.DecodeLastRuneInString(n.Value)
	if !strings.ContainsRune(openingQuotes, first) || !strings.ContainsRune(closingQuotes, last) || len(n.Value) < 2 {
		return true
	}
	d.fail(posOf(n), key, "is in typographic quotes (%c%c), which become part of it; write \" or ' instead", first, last)
	return false
}

// related reports whether one key is the other one, or above it.
func related(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	rest, ok := strings.CutPrefix(b, a)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

// fail records a mistake, unless it is about what could not be read and was told already.
func (d *decoder) fail(pos Pos, key, format string, args ...any) {
	if key != "" && slices.ContainsFunc(d.unread, func(unread string) bool { return related(unread, key) }) {
		return
	}
	d.errs = append(d.errs, &Error{File: d.file, Pos: pos, Key: key, Problem: fmt.Sprintf(format, args...)})
}

// has reports whether the file has a key.
func (d *decoder) has(key string) bool {
	_, ok := d.pos[key]
	return ok
}

// result returns what was recorded, or nil.
func (d *decoder) result() error {
	if len(d.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(d.errs, func(a, b *Error) int {
		if a.Pos.Line != b.Pos.Line {
			return a.Pos.Line - b.Pos.Line
		}
		return a.Pos.Column - b.Pos.Column
	})
	if more := len(d.errs) - maxErrors; more > 0 {
		d.errs = append(d.errs[:maxErrors:maxErrors], &Error{File: d.file, Problem: fmt.Sprintf("and %d more mistakes", more)})
	}
	return d.errs
}

func posOf(n *yaml.Node) Pos { return Pos{n.Line, n.Column} }

// decode fills v, which must be settable, from the node. key is the path to it.
func (d *decoder) decode(n *yaml.Node, key string, v reflect.Value) {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if d.nodes++; d.nodes == maxNodes {
		d.fail(posOf(n), key, "aliases make the file too large; write out what is meant")
	}
	if d.nodes >= maxNodes {
		return
	}
	if _, ok := d.pos[key]; !ok {
		d.pos[key] = posOf(n)
	}
	if tag := n.ShortTag(); strings.HasPrefix(tag, "!") && !strings.HasPrefix(tag, "!!") {
		d.fail(posOf(n), key, "has the tag %s, which means nothing here; leave it out", tag)
		return
	}
	if v.Kind() == reflect.Pointer {
		fresh := reflect.New(v.Type().Elem())
		before := len(d.errs)
		d.decode(n, key, fresh.Elem())
		if len(d.errs) == before {
			v.Set(fresh)
		}
		return
	}
	if u, ok := reflect.TypeAssert[nodeDecoder](v.Addr()); ok {
		u.decodeNode(d, n, key)
		return
	}
	if u, ok := reflect.TypeAssert[encoding.TextUnmarshaler](v.Addr()); ok {
		if text, ok := d.scalar(n, key, kindOf(v)); ok {
			if err := u.UnmarshalText([]byte(text)); err != nil {
				d.fail(posOf(n), key, "%v", err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, key, v)
	case reflect.Map:
		d.table(n, key, v)
	case reflect.Slice:
		d.sequence(n, key, v)
	case reflect.String:
		if text, ok := d.scalar(n, key, kindOf(v)); ok {
			v.SetString(text)
		}
	case reflect.Bool:
		if text, ok := d.scalar(n, key, kindOf(v)); ok {
			if n.ShortTag() != "!!bool" {
				d.fail(posOf(n), key, "%q is neither true nor false", text)
				return
			}
			v.SetBool(strings.EqualFold(text, "true"))
		}
	case reflect.Int:
		if text, ok := d.scalar(n, key, kindOf(v)); ok {
			i, err := strconv.ParseInt(text, 10, 63)
			if n.ShortTag() != "!!int" || err != nil {
				d.fail(posOf(n), key, "%q is not a whole number", text)
				return
			}
			v.SetInt(i)
		}
	case reflect.Float64:
		if text, ok := d.scalar(n, key, kindOf(v)); ok {
			f, err := strconv.ParseFloat(text, 64)
			if tag := n.ShortTag(); (tag != "!!int" && tag != "!!float") || err != nil {
				d.fail(posOf(n), key, "%q is not a number", text)
				return
			}
			v.SetFloat(f)
		}
	default:
		panic(fmt.Sprintf("BUG: a configuration key of type %v", v.Type()))
	}
}

// A nodeDecoder reads a node by itself, because its keys are not ours.
type nodeDecoder interface {
	decodeNode(d *decoder, n *yaml.Node, key string)
}

// kindOf says in a user's words what v takes.
func kindOf(v reflect.Value) string {
	switch v.Addr().Interface().(type) {
	case *Duration:
		return "a duration such as 30s or 1h"
	case *Size:
		return "a size such as 64KiB"
	}
	switch v.Kind() {
	case reflect.Struct, reflect.Map:
		return "keys with values"
	case reflect.Slice:
		return "a list"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Float64:
		return "a number"
	}
	return "text"
}

// found says in a user's words what a node is.
func found(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys with values"
	case yaml.SequenceNode:
		return "a list"
	}
	if isNull(n) {
		return "nothing"
	}
	const most = 40 // of a file that is something else, all may be one value
	if value := []rune(n.Value); len(value) > most {
		return strconv.Quote(string(value[:most])) + "…"
	}
	return strconv.Quote(n.Value)
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// scalar returns the text of a scalar node.
func (d *decoder) scalar(n *yaml.Node, key, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.fail(posOf(n), key, "wants %s, not %s", want, found(n))
		return "", false
	}
	if n.ShortTag() == "!!binary" {
		d.fail(posOf(n), key, "wants %s, not binary data", want)
		return "", false
	}
	if !d.plain(n, key) {
		return "", false
	}
	return n.Value, true
}

// keys yields the keys of a mapping node once each; doubles are told.
func (d *decoder) keys(n *yaml.Node, key string, yield func(k, v *yaml.Node)) {
	seen := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		for k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		switch {
		case k.Kind != yaml.ScalarNode || isNull(k):
			d.fail(posOf(k), key, "has a key that is %s; write a name", found(k))
		case k.Value == "<<" && k.ShortTag() == "!!merge":
			d.fail(posOf(k), join(key, "<<"), "merge keys are not known here; write the keys out")
		case !d.plain(k, join(key, k.Value)):
		case seen[k.Value] != nil:
			d.fail(posOf(k), join(key, k.Value), "is given twice, first in line %d; leave one of them out", seen[k.Value].Line)
		default:
			seen[k.Value] = k
			yield(k, v)
		}
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// mapping fills a struct. Keys are the names in its yaml tags.
func (d *decoder) mapping(n *yaml.Node, key string, v reflect.Value) {
	if isNull(n) {
		return // all that was below it is a comment
	}
	if n.Kind != yaml.MappingNode {
		d.fail(posOf(n), key, "wants keys with values (%s), not %s", strings.Join(keysOf(v.Type()), ", "), found(n))
		return
	}
	fields := fieldsOf(v.Type())
	d.keys(n, key, func(k, child *yaml.Node) {
		i, ok := fields[k.Value]
		if !ok {
			d.fail(posOf(k), join(key, k.Value), "is not a key%s", didYouMean(k.Value, keysOf(v.Type())))
			return
		}
		path := join(key, k.Value)
		d.pos[path] = posOf(k)
		d.decode(child, path, v.Field(i))
	})
}

// fieldsOf returns the indexes of a struct's fields by their YAML names.
func fieldsOf(t reflect.Type) map[string]int {
	fields := map[string]int{}
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" && name != "-" {
			fields[name] = i
		}
	}
	return fields
}

// keysOf returns a struct's YAML names in the order of its fields.
func keysOf(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		if name, _, _ := strings.Cut(field.Tag.Get("yaml"), ","); name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// table fills a map from names to anything.
func (d *decoder) table(n *yaml.Node, key string, v reflect.Value) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.fail(posOf(n), key, "wants names with values, not %s", found(n))
		return
	}
	v.Set(reflect.MakeMap(v.Type()))
	d.keys(n, key, func(k, child *yaml.Node) {
		path := join(key, k.Value)
		d.pos[path] = posOf(k)
		value := reflect.New(v.Type().Elem()).Elem()
		d.decode(child, path, value)
		v.SetMapIndex(reflect.ValueOf(k.Value), value)
	})
}

// sequence fills a slice.
func (d *decoder) sequence(n *yaml.Node, key string, v reflect.Value) {
	if isNull(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.fail(posOf(n), key, "wants a list, not %s", found(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), 0, len(n.Content)))
	for i, child := range n.Content {
		if d.nodes >= maxNodes {
			return
		}
		value := reflect.New(v.Type().Elem()).Elem()
		d.decode(child, fmt.Sprintf("%s[%d]", key, i), value)
		v.Set(reflect.Append(v, value))
	}
}

// didYouMean ends a complaint about a word with the known one nearest to it or, where none
// is near, with all of them.
func didYouMean(word string, known []string) string {
	if best := nearest.Word(word, known); best != "" {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return "; use one of " + strings.Join(known, ", ")
}
