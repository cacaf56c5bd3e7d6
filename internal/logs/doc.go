// Package logs keeps the log from costing what it tells about. A Writer never blocks: lines
// wait in a bounded buffer for whoever reads them, and what does not fit is dropped and
// counted. A Core writes the first lines of a kind in each minute and counts the rest, and
// shortens what workers or clients may make long.
//
// Its invariant: to log takes a bounded time and bounded memory, whoever reads the log and
// whatever it is about.
package logs
