// Package fleet has the set of pools: it adds and removes them while it runs, tends each of
// them in a goroutine of its own, and joins their views into one: of all pools, of some, or of
// one. What the configuration says of the merged samples, whichever pool they are from (info,
// metric_relabel_configs), happens here.
//
//	goroutine      started by        ends when                         speaks through
//	tend loop      Run or Add        its pool is removed, ctx is done  nothing: it logs what goes wrong
//	event watcher  the tend loop     its tend loop ends                a channel that wakes the tend loop
//
// The invariant of the room: two pools never wait for each other. One that hangs delays the view of
// all by pool.Options.Patience, once, and is left out of it until it answers. One that is removed gives
// back everything: descriptors, mappings, memory, goroutines, and the lock on its directory.
package fleet
