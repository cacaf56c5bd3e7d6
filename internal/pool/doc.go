// Package pool keeps one directory of source files merged: it knows which files there are,
// keeps them open, tells its index of their entries, loads their values for every view and
// notices when a process is gone. The daemon and the read-only commands use it alike, so there
// is one way to read a directory.
//
// Its invariant: a counter, histogram or summary file that was once read counts until its
// values are archived, whether it becomes unreadable, is replaced or is removed by somebody
// else; no total falls for a reason that lies in the file system.
//
// One lock guards a pool: Pool.mu. Two pools share nothing but a budget of descriptors, so
// none ever waits for another.
//
//	who                                             the lock
//	exported methods of Pool                        take it; must not be called with it held
//	methods that end in Locked, methods of file     need it held
//	Tend, Fold, SetPolicy                           take turns by Pool.turn, taken before the lock
//	file.load, Pool.ask                             are for several goroutines at once while one holds the lock
//	fold.Folder                                     never holds it: it calls Offer, Staged, Swap …, which take it
//
// A file is in one of the states below. What of a file is served depends on its state and on
// nothing else.
//
//	          opened, at a start with many files
//	closed ───────────────────────────▶ unasked
//	 │  ▲                                  │ asked
//	 │  │ cannot be opened                 ▼
//	 └──┴─────────▶ alive ◀───────────▶ dead ────offered────▶ folding ──swapped──▶ forgotten
//	                      lease granted   │ ▲                    │
//	                      or refused      │ └────returned────────┘
//	                                      ▼
//	                                    stuck: it cannot be folded, and counts on
//
//	any open state ──a read-only pool needs its descriptor──▶ absorbed
//
// Where a file is, is told apart from its state: under its own name, staged under a hidden one
// by the fold, or an orphan: no name in the directory leads to it.
package pool
