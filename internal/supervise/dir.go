package supervise

import (
	"errors"
	"fmt"
	"os"
)

// DirPrefix begins the names of the directories that MakeDir makes.
const DirPrefix = "aggregatord-run-"

// MakeDir makes a new directory for source files that only this user may enter: in memory,
// if $XDG_RUNTIME_DIR or /dev/shm are there, else where temporary files are. inMemory
// tells which it is. Whoever calls it removes it.
func MakeDir() (dir string, inMemory bool, err error) {
	for _, base := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/dev/shm"} {
		if base == "" || !onTmpfs(base) {
			continue
		}
		// It may be somebody else's, as after su, or be full.
		if dir, err := os.MkdirTemp(base, DirPrefix); err == nil {
			return dir, true, nil
		}
	}
	dir, err = os.MkdirTemp("", DirPrefix)
	if err != nil {
		return "", false, fmt.Errorf("make a directory for source files: %w", err)
	}
	return dir, onTmpfs(dir), nil
}

// Environ returns env with the directory in both variables that clients look for: those
// before 0.10 know the one in lower case only.
func Environ(env []string, dir string) []string {
	result := make([]string, 0, len(env)+2)
	for _, e := range env {
		if !hasName(e, "PROMETHEUS_MULTIPROC_DIR") && !hasName(e, "prometheus_multiproc_dir") {
			result = append(result, e)
		}
	}
	return append(result, "PROMETHEUS_MULTIPROC_DIR="+dir, "prometheus_multiproc_dir="+dir)
}

// hasName reports whether e is NAME=VALUE with this name.
func hasName(e, name string) bool {
	return len(e) > len(name) && e[:len(name)] == name && e[len(name)] == '='
}

// ClaimDir makes the directory if it is not there, for this user only.
func ClaimDir(dir string) (made bool, err error) {
	info, err := os.Stat(dir)
	switch {
	case err == nil && info.IsDir():
		return false, nil
	case err == nil:
		return false, fmt.Errorf("%q is not a directory", dir)
	case !errors.Is(err, os.ErrNotExist):
		return false, fmt.Errorf("look at directory %q: %w", dir, errors.Unwrap(err))
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, fmt.Errorf("make directory %q: %w", dir, errors.Unwrap(err))
	}
	return true, nil
}
