package policy

import "fmt"

// An Error is one thing that is wrong in a Spec. Compile returns all of them joined.
type Error struct {
	// InPool says that the place is in the settings of the pool called Pool.
	InPool bool
	Pool   string
	// Path is the place as the configuration file has it, such as metrics[2], from the pool's
	// settings on if InPool. Empty: those settings themselves.
	Path string
	// Key is the key there that is wrong; empty: it is about the whole.
	Key string
	// Name is that of the rule, if it has one.
	Name string
	// Err says what is wrong and what to do.
	Err error
}

// place spells where it is.
func (e *Error) place() string {
	place := join(e.Path, e.Key)
	if e.InPool {
		place = join("pools."+e.Pool, place)
	}
	return place
}

func (e *Error) Error() string {
	place := e.place()
	if e.Name != "" {
		place += " (" + e.Name + ")"
	}
	return fmt.Sprintf("%s: %v", place, e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

func join(path, key string) string {
	if path == "" || key == "" {
		return path + key
	}
	return path + "." + key
}

// place is where the checks of a part of the Spec are: they tell the key and what is wrong.
type place struct {
	Error
	all *[]error
}

// at is a place below this one.
func (p place) at(path string) place {
	p.Path = join(p.Path, path)
	return p
}

// wrong takes note of a mistake.
func (p place) wrong(key, format string, args ...any) {
	e := p.Error
	e.Key, e.Err = key, fmt.Errorf(format, args...)
	*p.all = append(*p.all, &e)
}
