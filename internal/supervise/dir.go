package supervise

import (
	"errors"
	"fmt"
	"os"
	"time"
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

// patience is how long RemoveDir waits for processes to follow the command: gunicorn's workers
// look once a second whether their master lives.
const patience = 3 * time.Second

// RemoveDir removes a directory that MakeDir made, unless processes that were started with it
// as Environ says go on without the command, such as a server that went to the background or
// was replaced: their next metric would be an error to whoever uses them. It waits a moment
// for these to end. If they do not, users are their process ids, and the directory is left.
// Where there is no /proc, and as PID 1, whose end is that of all, it is removed.
func RemoveDir(dir string) (users []int, err error) {
	for deadline := time.Now().Add(patience); os.Getpid() != 1; time.Sleep(50 * time.Millisecond) {
		// Twice: a process that ended during the first look may have left a child behind it.
		if users = startedWith(dir); len(users) == 0 {
			if users = startedWith(dir); len(users) == 0 {
				break
			}
		}
		if time.Now().After(deadline) {
			return users, nil
		}
	}
	return nil, os.RemoveAll(dir)
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
