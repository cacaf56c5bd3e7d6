package discover

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"aggregatord/internal/pool"
	"aggregatord/internal/store"
)

// A Pattern finds the directories that a path with stars leads to. A * stands for any part of
// one name in a path, a ? for one sign; a name that begins with a dot is matched only by a
// pattern that does.
type Pattern struct {
	// Glob is the path.
	Glob string
	// Name is the name of the pools. $1 is what the first * of Glob stands for, $2 the second, and
	// so on. Default: all of them, with a - between.
	Name string
	// Labels are those of the pools; their values may have $1, too.
	Labels map[string]string
	// Recursive finds directories with source files below those that Glob matches, too. The name
	// of such a pool ends in its path below, with - for /; $path is the path in labels.
	Recursive bool
	// Depth is how far below, 0 for DefaultDepth.
	Depth int
}

// DefaultDepth is how far Recursive looks.
const DefaultDepth = 3

// maxListed is how many names a pattern looks at in one round.
const maxListed = 100_000

// HasStar reports whether a path is a pattern.
func HasStar(path string) bool { return strings.ContainsAny(path, "*?") }

// ParsePattern reads what --dir takes as a pattern: a path with stars and, if there is one, the
// name before it, where a * is what the * of the same place in the path stands for.
func ParsePattern(name, glob string) (Pattern, error) {
	p := Pattern{Glob: glob}
	n := 0
	p.Name = regexp.MustCompile(`\*`).ReplaceAllStringFunc(name, func(string) string {
		n++
		return "${" + strconv.Itoa(n) + "}"
	})
	return p, p.Check()
}

// Check tells what is wrong with a pattern.
func (p *Pattern) Check() error {
	stars := strings.Count(p.Glob, "*")
	switch {
	case p.Glob == "":
		return errors.New("the pattern is empty")
	case strings.Contains(p.Glob, "**"):
		return fmt.Errorf("pattern %q: ** is not known; set recursive: true in the configuration for directories below", p.Glob)
	case stars == 0 && p.Name == "" && !p.Recursive:
		return fmt.Errorf("pattern %q has no *, so its pools need a name; write one", p.Glob)
	case p.Depth < 0:
		return fmt.Errorf("pattern %q: depth %d is negative", p.Glob, p.Depth)
	case strings.ContainsAny(strings.ReplaceAll(p.Name, "$path", ""), "/\x00"):
		return fmt.Errorf("pattern %q: the name %q has a /", p.Glob, p.Name)
	}
	var errs []error
	check := func(what, template string) {
		os.Expand(template, func(v string) string {
			n, err := strconv.Atoi(v)
			switch {
			case err != nil && (v != "path" || !p.Recursive):
				errs = append(errs, fmt.Errorf("pattern %q: %s %q has $%s; $1 to $%d are known", p.Glob, what, template, v, stars))
			case err == nil && (n < 1 || n > stars):
				errs = append(errs, fmt.Errorf("pattern %q: %s %q asks for $%d, but the path has %d *", p.Glob, what, template, n, stars))
			}
			return ""
		})
	}
	check("the name", p.Name)
	for _, label := range slices.Sorted(maps.Keys(p.Labels)) {
		check("label "+label, p.Labels[label])
	}
	return errors.Join(errs...)
}

// patternSource is a Pattern that is looked for.
type patternSource struct {
	Pattern
	prefix   string // the part without stars: matches must not lead out of it
	segments []segment
	left     int // names that may still be listed in this round
	errs     []error
}

// segment is one name in the path.
type segment struct {
	literal string         // without stars
	re      *regexp.Regexp // with stars
	dots    bool           // names that begin with a dot are meant
}

// NewPattern returns the source of a pattern that has been checked.
func NewPattern(p Pattern) Source {
	s := &patternSource{Pattern: p}
	if s.Depth == 0 {
		s.Depth = DefaultDepth
	}
	if s.Name == "" {
		var all []string
		for i := range strings.Count(p.Glob, "*") {
			all = append(all, fmt.Sprintf("${%d}", i+1))
		}
		s.Name = strings.Join(all, "-")
	}
	path, err := filepath.Abs(p.Glob)
	if err != nil {
		path = p.Glob
	}
	s.prefix = "/"
	for name := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if len(s.segments) == 0 && !HasStar(name) {
			s.prefix = filepath.Join(s.prefix, name)
			continue
		}
		seg := segment{literal: name}
		if HasStar(name) {
			expr := regexp.QuoteMeta(name)
			expr = strings.ReplaceAll(strings.ReplaceAll(expr, `\*`, `(.*)`), `\?`, `.`)
			seg.re = regexp.MustCompile("(?s)^" + expr + "$")
			seg.dots = strings.HasPrefix(name, ".")
		}
		s.segments = append(s.segments, seg)
	}
	return s
}

// String implements Source.
func (s *patternSource) String() string { return "the pattern " + s.Glob }

// Find implements Source.
func (s *patternSource) Find() ([]Found, []error) {
	s.left, s.errs = maxListed, nil
	var found []Found
	s.walk(s.prefix, s.segments, nil, func(path string, captures []string, info fs.FileInfo) {
		if s.Recursive {
			found = s.below(found, path, "", captures, info, s.Depth)
		} else {
			found = append(found, s.found(path, "", captures, info))
		}
	})
	if s.left < 0 {
		s.errs = append(s.errs, fmt.Errorf("pattern %q leads past more than %d names; the others are not looked at; use a narrower pattern",
			s.Glob, maxListed))
	}
	return found, s.errs
}

// Hint implements Source.
func (s *patternSource) Hint() string {
	return fmt.Sprintf("The pattern %s leads to no directory now.", s.Glob)
}

// walk calls use with each directory that the segments lead to.
func (s *patternSource) walk(dir string, segments []segment, captures []string, use func(string, []string, fs.FileInfo)) {
	if len(segments) == 0 {
		info, err := os.Stat(dir)
		if err == nil && info.IsDir() {
			use(dir, captures, info)
		}
		return
	}
	seg := segments[0]
	if seg.re == nil {
		if path := filepath.Join(dir, seg.literal); s.inside(path) {
			s.walk(path, segments[1:], captures, use)
		}
		return
	}
	for _, name := range s.names(dir) {
		match := seg.re.FindStringSubmatch(name)
		if match == nil || (strings.HasPrefix(name, ".") && !seg.dots) {
			continue
		}
		if path := filepath.Join(dir, name); s.inside(path) {
			s.walk(path, segments[1:], slices.Concat(captures, match[1:]), use)
		}
	}
}

// openDir opens a directory, and nothing else: to open a pipe that somebody put there would wait for
// whoever writes into it.
func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0)
}

// names lists a directory, sorted. One that is not there has none.
func (s *patternSource) names(dir string) []string {
	if s.left < 0 {
		return nil
	}
	f, err := openDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil // a file that is matched by a star in the middle of the path is none of ours
	}
	if err != nil {
		s.errs = append(s.errs, fmt.Errorf("pattern %q: %w", s.Glob, err))
		return nil
	}
	defer f.Close() //nolint:errcheck // it was only read
	names, err := f.Readdirnames(s.left + 1)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, fs.ErrNotExist) {
		s.errs = append(s.errs, fmt.Errorf("pattern %q: %w", s.Glob, err))
	}
	s.left -= len(names)
	slices.Sort(names)
	return names
}

// inside reports whether a path stays below the part of the pattern without stars: an
// application that owns a directory there must not lead us to another one's.
func (s *patternSource) inside(path string) bool {
	info, err := os.Lstat(path)
	if err != nil {
		return false
	}
	if info.Mode()&fs.ModeSymlink == 0 {
		return true
	}
	root, err := filepath.EvalSymlinks(s.prefix)
	if err != nil {
		return false
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return false
	}
	if rel, err := filepath.Rel(root, target); err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		s.errs = append(s.errs,
			fmt.Errorf("pattern %q: %q is a link that leads out of %q, and is refused; name its target by a --dir of its own", s.Glob, path,
				s.prefix))
		return false
	}
	return true
}

// below adds a directory and those below it, as far as they have source files.
func (s *patternSource) below(found []Found, dir, rel string, captures []string, info fs.FileInfo, depth int) []Found {
	names := s.names(dir)
	if slices.ContainsFunc(names, isSource) {
		found = append(found, s.found(dir, rel, captures, info))
	}
	if depth == 0 {
		return found
	}
	for _, name := range names {
		path := filepath.Join(dir, name)
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, store.Extension) {
			continue
		}
		// No links: they may lead in a circle.
		if info, err := os.Lstat(path); err == nil && info.IsDir() {
			found = s.below(found, path, filepath.Join(rel, name), captures, info, depth-1)
		}
	}
	return found
}

func isSource(name string) bool {
	_, err := store.ParseName(name)
	return err == nil
}

func (s *patternSource) found(path, rel string, captures []string, info fs.FileInfo) Found {
	expand := func(template string) string {
		return os.Expand(template, func(v string) string {
			if v == "path" {
				return rel
			}
			if n, err := strconv.Atoi(v); err == nil && n >= 1 && n <= len(captures) {
				return captures[n-1]
			}
			return ""
		})
	}
	name := expand(s.Name)
	if rel != "" && !strings.Contains(s.Name, "path") {
		name = strings.TrimPrefix(name+"-"+rel, "-")
	}
	labels := map[string]string{}
	for label, template := range s.Labels {
		labels[label] = expand(template)
	}
	return Found{
		Spec: pool.Spec{Name: strings.ReplaceAll(name, "/", "-"), Path: path, Settings: s.Glob, Labels: labelsOf(labels)},
		ID:   path, Node: nodeOf(info), From: FromPattern,
	}
}
