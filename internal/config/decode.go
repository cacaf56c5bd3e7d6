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
}

// parse reads the one document of a file; nil means that it holds none, or that it could
// not be read.
func (d *decoder) parse(data []byte) *yaml.Node {
	if len(data) > maxFileBytes {
		d.fail(Pos{}, "", "is larger than %d bytes; is it a configuration file?", maxFileBytes)
		return nil
	}
	// The library would also take UTF-16, in which nobody means to write.
	if !utf8.Valid(data) {
		d.fail(firstInvalid(data), "", "is not UTF-8 from here on; save the file as UTF-8")
		return nil
	}
	loader, err := yaml.NewLoader(strings.NewReader(string(data)))
	if err != nil {
		d.syntax(err)
		return nil
	}
	var doc, second yaml.Node
	if err := loader.Load(&doc); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		d.syntax(err)
		return nil
	}
	if err := loader.Load(&second); err == nil {
		d.fail(posOf(&second), "", "a second document begins here; write all keys into one")
		return nil
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
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
	problem := le.Message
	if le.ContextMsg != "" {
		problem = le.ContextMsg + ": " + problem
	}
	d.fail(Pos{le.Mark.Line, le.Mark.Column}, "", "is not YAML: %s", strings.TrimSpace(problem))
}

// fail records a mistake.
func (d *decoder) fail(pos Pos, key, format string, args ...any) {
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
	best, distance := "", len(word)/2+1
	for _, k := range known {
		if n := editDistance(strings.ToLower(word), k); n < distance {
			best, distance = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %s?", best)
	}
	return "; use one of " + strings.Join(known, ", ")
}

// editDistance is how many letters must be put in, left out, exchanged or swapped with
// their neighbour to make b of a.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
