// Package view has the form in which everything that can be served is passed on: what is
// served at one moment is a Snapshot, a Layout (families, series and their order, which
// never changes once built) and the values of its points. A pool, the daemon's own metrics
// and the workers as processes each yield one.
//
// Its invariant: nothing that was handed out ever changes. A Layout may be kept for as long
// as one likes, and its address used as a version; a Snapshot belongs to its holders until
// the last of them calls Release.
package view
