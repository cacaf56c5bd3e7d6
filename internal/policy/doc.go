// Package policy is what the operator says about metrics that the application has named
// otherwise: gauge modes, labels, limits. A Spec is what he writes; Compile turns it into a
// Policy, which never changes and may be shared by any number of goroutines.
//
// The room decides and does nothing: it is asked what holds for a family, and told of no
// value. Its invariant: the same question gets the same answer from one Policy for ever, so
// that whoever has merged by it can go on without asking again.
package policy
