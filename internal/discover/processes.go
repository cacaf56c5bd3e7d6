package discover

import "strings"

// Processes finds the directories that running processes write to: those of source files that
// they have mapped for writing, and those that their environment names. Each field is a pattern
// with * for any text; an empty one matches everything.
type Processes struct {
	// Path is that of the directory, as the process sees it.
	Path string
	// User is the name or the number of the process' user.
	User string
	// Unit is its systemd unit, and Command its command, without arguments.
	Unit, Command string
}

// filters spells the patterns that are set.
func (p *Processes) filters() string {
	var set []string
	for _, f := range [][2]string{{"path", p.Path}, {"user", p.User}, {"unit", p.Unit}, {"command", p.Command}} {
		if f[1] != "" {
			set = append(set, f[0]+": "+f[1])
		}
	}
	return strings.Join(set, ", ")
}

// like reports whether text matches a pattern.
func like(pattern, text string) bool {
	if pattern == "" {
		return true
	}
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	text, ok := strings.CutPrefix(text, first)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "*")
	for i, part := range parts {
		if i == len(parts)-1 {
			return strings.HasSuffix(text, part)
		}
		_, after, ok := strings.Cut(text, part)
		if !ok {
			return false
		}
		text = after
	}
	return true
}
