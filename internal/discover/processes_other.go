//go:build !linux

package discover

import "errors"

type noProcesses struct{}

// NewProcesses returns a source that finds nothing and says why.
func NewProcesses(Processes) Source { return noProcesses{} }

func (noProcesses) Find() ([]Found, []error) {
	return nil, []error{errors.New("only Linux tells which processes write to which directories; name them by --dir")}
}

func (noProcesses) Hint() string { return "Processes are looked for on Linux only." }

func (noProcesses) String() string { return "processes" }
