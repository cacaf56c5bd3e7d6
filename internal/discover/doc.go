// Package discover finds pools that come and go: directories that a pattern matches, those that
// running processes write to, and the volumes of a Kubernetes node's pods. A Source says what is
// there now; a Finder compares that with what is served, and has pools added and removed.
//
//	goroutine    started by  ends when            speaks through
//	Finder.Run   daemon.Run  its context is done  Options.Add and Options.Remove
//	a look       the finder  a source answers     a channel, which Finder.Round waits for a while
//	an addition  the finder  the pool is served   the same
//	a removal    the finder  the pool is closed   Finder.Run waits for all of them at its end
//
// The invariant of the room: no pool is served twice, and no directory that a process has named
// is opened unless that process may change it itself. What a source cannot use costs only itself,
// and is told once when it begins and once when it ends.
package discover
