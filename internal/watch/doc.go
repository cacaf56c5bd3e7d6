// Package watch answers two questions about a directory of source files: which files
// exist ([Dir], [Notifier]), and is anybody still able to write to one ([Prober]).
//
// Its one invariant is that a file is called [Dead] only when nobody can write to it
// any more. A false death loses increments for ever, a false life costs tidiness: so
// whatever is in doubt counts as alive.
//
// A Notifier only says that it is worth looking; what a Dir lists is the truth. Neither
// tells of new values: stores through a shared mapping raise no inotify event and
// change no mtime (inotify(7), "Limitations and caveats"), so values are read at scrape
// time, by others.
//
// The package knows nothing of names, formats or metrics. Outside Linux there are no
// leases and no /proc: directories are listed and watched, and every file counts as alive.
package watch
