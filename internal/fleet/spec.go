package fleet

import (
	"fmt"
	"strings"

	"aggregatord/internal/pool"
)

// ParseSpec reads what --dir takes: a path, or NAME=PATH.
func ParseSpec(s string) (pool.Spec, error) {
	d := pool.Spec{Path: s}
	if name, path, ok := strings.Cut(s, "="); ok && !strings.Contains(name, "/") {
		d = pool.Spec{Name: name, Path: path}
		if name == "" {
			return d, fmt.Errorf("directory %q: the name before = is empty", s)
		}
	}
	if d.Path == "" {
		return d, fmt.Errorf("directory %q: the path is empty", s)
	}
	return d, nil
}
