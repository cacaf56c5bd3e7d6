// Package api answers questions about a running daemon, in JSON: what /api/v1 serves.
// docs/api.md describes the answers for people, package status their shapes.
//
// Its invariant: an answer costs a bounded part of the daemon. Values are read at most
// twice a second however many ask, lists are given out in pages, and what is sorted or
// counted is done once for each question.
package api
