package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"aggregatord/internal/config"
	"aggregatord/internal/discover"
	"aggregatord/internal/fleet"
	"aggregatord/internal/pool"
)

// dirOptions says which directories to read.
type dirOptions struct {
	dirs []string
	// configured are the pools of the configuration file, for when the flags name none.
	configured []config.Pool
	// discovers says that pools are found by other means, too.
	discovers bool
	// sources are those other means, for a command that reads once.
	sources []discover.Source
}

func (o *dirOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.dirs, "dir", nil,
		"`[NAME=]DIR` with the source files; repeat it, with names, to serve several\nunder a label pool; with * in DIR, and in NAME for what it stands for,\nall that are there or come (default: $PROMETHEUS_MULTIPROC_DIR)")
}

// dirOfEnvironment returns the directory that the environment names, and the variable that
// does. Clients before 0.10 read it in lower case only.
func dirOfEnvironment() (path, variable string) {
	for _, name := range []string{"PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir"} {
		if path := os.Getenv(name); path != "" {
			return path, "$" + name
		}
	}
	return "", ""
}

// specs is given with the directories that patterns lead to now.
func (o *dirOptions) specs() ([]pool.Spec, error) {
	specs, patterns, err := o.given()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, p := range patterns {
		found, wrong := discover.NewPattern(p).Find()
		errs = append(errs, wrong...)
		for _, f := range found {
			specs = append(specs, f.Spec)
		}
	}
	if len(errs) > 0 {
		return nil, usageError{errors.Join(errs...)}
	}
	if len(specs) == 0 && len(patterns) > 0 {
		return nil, usagef("no directory is there that %s leads to", patterns[0].Glob)
	}
	return specs, distinct(specs)
}

// found is existing with the directories that are found by other means. They stay reachable until
// close is called. What is found and cannot be read is told, and left out.
func (o *dirOptions) found(tell func(problem string)) (specs []pool.Spec, closeAll func() error, err error) {
	specs, err = o.existing()
	if err != nil || len(o.sources) == 0 {
		return specs, func() error { return nil }, err
	}
	more, report, closeAll := discover.Once(discover.Options{Sources: o.sources, Static: specs})
	for _, problem := range report.Problems {
		tell(problem)
	}
	if specs = append(specs, more...); len(specs) == 0 {
		return nil, nil, errors.Join(usagef("no directory is found: %s", strings.Join(report.Hints, " ")), closeAll())
	}
	return specs, closeAll, nil
}

// given returns the directories and patterns of the flags or, without any, of the configuration
// file or, without any there, of the environment.
func (o *dirOptions) given() (specs []pool.Spec, patterns []discover.Pattern, err error) {
	dirs := o.dirs
	if len(dirs) == 0 && len(o.configured) > 0 {
		for _, p := range o.configured {
			if p.Glob != "" {
				patterns = append(patterns, p.Pattern())
			} else {
				specs = append(specs, pool.Spec{Name: p.Name, Path: p.Dir})
			}
		}
		return specs, patterns, distinct(specs)
	}
	if len(dirs) == 0 && o.discovers {
		return nil, nil, nil
	}
	if len(dirs) == 0 {
		if path, _ := dirOfEnvironment(); path != "" {
			return []pool.Spec{{Path: path}}, nil, nil
		}
		return nil, nil, usagef("no directory given: use --dir DIR, or set PROMETHEUS_MULTIPROC_DIR as for the application")
	}
	names := map[string]bool{}
	for _, d := range dirs {
		spec, err := fleet.ParseSpec(d)
		if err != nil {
			return nil, nil, usageError{err}
		}
		if isPattern(spec.Path) {
			p, err := discover.ParsePattern(spec.Name, spec.Path)
			if err != nil {
				return nil, nil, usagef("--dir %s: %w", d, err)
			}
			patterns = append(patterns, p)
			continue
		}
		if spec.Name == "" && (len(dirs) > 1 || o.discovers) {
			return nil, nil, usagef("--dir %s has no name: with several directories each needs one, as in --dir web=%s", d, d)
		}
		if names[spec.Name] {
			return nil, nil, usagef("two --dir have the name %q", spec.Name)
		}
		names[spec.Name] = true
		specs = append(specs, spec)
	}
	return specs, patterns, distinct(specs)
}

// isPattern reports whether a path stands for others. A directory may have a star in its name.
func isPattern(path string) bool {
	if !discover.HasStar(path) {
		return false
	}
	_, err := os.Stat(path)
	return err != nil
}

// distinct refuses a directory that is there twice, by whatever names: its metrics would be
// served twice. One that is not there yet is compared by its path.
func distinct(specs []pool.Spec) error {
	paths := map[string]string{}
	for _, s := range specs {
		path, err := filepath.Abs(s.Path)
		if err != nil {
			return usageError{err}
		}
		if target, err := filepath.EvalSymlinks(path); err == nil {
			path = target
		}
		if first, ok := paths[path]; ok {
			return usagef("pools %q and %q have the same directory, %s; name it once", first, s.Name, path)
		}
		paths[path] = s.Name
	}
	return nil
}

// watchable is specs for a command that waits: a directory may come later, but where a
// file has its name it never will.
func (o *dirOptions) watchable() ([]pool.Spec, []discover.Pattern, error) {
	specs, patterns, err := o.given()
	for _, s := range specs {
		if info, statErr := os.Stat(s.Path); statErr == nil && !info.IsDir() {
			return nil, nil, usagef("%q is not a directory; give the one that holds the source files", s.Path)
		}
	}
	return specs, patterns, err
}

// existing is specs for a command that reads once: a directory that is not there is a
// mistake, not something to wait for.
func (o *dirOptions) existing() ([]pool.Spec, error) {
	specs, err := o.specs()
	for _, s := range specs {
		if info, statErr := os.Stat(s.Path); statErr != nil {
			return nil, usagef("directory %q cannot be read: %w; give the one that holds the source files", s.Path, errors.Unwrap(statErr))
		} else if !info.IsDir() {
			return nil, usagef("%q is not a directory; give the one that holds the source files", s.Path)
		}
	}
	return specs, err
}
