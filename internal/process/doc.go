// Package process shows the processes of a pool: those that can write its source files (the
// workers) and the one that started them (the master). It gives back the process metrics
// that a client serves when an application is one process, for the pool as if it were one,
// and adds what matters when there are many.
//
//	Pool.Files -> which processes hold them -> their numbers -> one view.Snapshot
//
// Everything is read from /proc (proc(5)), by Run, never by a scrape: a scrape gets the
// numbers of the last sample. A sample is cheap. What costs little is read of every process
// each time; what costs more is read of new processes at once and of the others in turn.
//
// Its invariant: a counter of a View never falls as long as its state is kept (State,
// Restore), whichever processes end. See account.go for how the counts of ended processes
// are kept.
//
// What cannot be seen is absent, is said once in the log, and disturbs nothing else.
package process
