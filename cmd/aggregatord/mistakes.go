package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"aggregatord/internal/nearest"
)

// unknownCommand says that a command has no command of the name, and which one was meant.
func unknownCommand(of *cobra.Command, name string) error {
	var names []string
	for _, c := range of.Commands() {
		if !c.Hidden {
			names = append(names, c.Name())
		}
	}
	if meant := nearest.Word(name, names); meant != "" {
		return usagef("unknown command %q; did you mean %s? %s --help lists all", name, meant, of.CommandPath())
	}
	return usagef("unknown command %q; %s --help lists all", name, of.CommandPath())
}

// flagError says in our words what is wrong with a flag.
func flagError(cmd *cobra.Command, err error) error {
	help := cmd.CommandPath() + " --help"
	if e, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := e.GetSpecifiedName()
		if e.GetSpecifiedShortnames() != "" {
			return usagef("unknown flag -%s; %s lists all", name, help)
		}
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		hint := ""
		if meant := nearest.Name(name, names); meant != "" {
			hint = fmt.Sprintf("did you mean --%s? ", meant)
		} else if holder := commandWith(cmd.Root(), name); holder != "" {
			hint = fmt.Sprintf("it is a flag of %s; ", holder)
		}
		return usagef("unknown flag --%s; %s%s lists all", name, hint, help)
	}
	if e, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		return usagef("--%s needs a value; see %s", e.GetSpecifiedName(), help)
	}
	if e, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		why := e.Unwrap().Error()
		if strings.HasPrefix(why, "strconv.") {
			why = map[string]string{
				"int": "write a whole number", "uint64": "write a whole number", "float64": "write a number",
				"bool": "write true or false",
			}[e.GetFlag().Value.Type()]
		}
		return usagef("--%s %q: %s; see %s", e.GetFlag().Name, e.GetValue(), why, help)
	}
	return usagef("%w; see %s", err, help)
}

// commandWith returns a command that has a flag.
func commandWith(root *cobra.Command, flag string) string {
	for _, c := range root.Commands() {
		if !c.Hidden && c.Flags().Lookup(flag) != nil {
			return c.CommandPath()
		}
	}
	return ""
}
