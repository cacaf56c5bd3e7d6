package main

import (
	"os"
	"path/filepath"
	"testing"
)

// named returns the shape of that name.
func named(tb testing.TB, name string) shape {
	tb.Helper()
	list, err := parseShapes(name)
	if err != nil {
		tb.Fatal(err)
	}
	return list[0]
}

// generated makes a directory below base, which is removed in the end.
func generated(tb testing.TB, base string, sh shape, lay layout) *directory {
	tb.Helper()
	d, err := generate(filepath.Join(base, sh.name), sh, lay)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.remove(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// roomyDir is a directory where the tools make theirs.
func roomyDir(tb testing.TB, need int64) string {
	tb.Helper()
	base, err := baseDir("", need)
	if err != nil {
		tb.Skip(err)
	}
	tb.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			tb.Error(err)
		}
	})
	return base
}
