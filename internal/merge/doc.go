// Package merge makes one view out of what many processes wrote: it knows which values
// belong to one series and how they combine. It knows no file, no clock and no HTTP.
//
// An Index is the long-lived table. Each source file is one Source in it: a list of
// (slot, cell), where a slot is the place of a value in the file and a cell the place of
// a series in the index, so that equal keys of two processes share one cell. A scrape
// parses nothing: the owner has the values at the slots loaded into Source.Values, and
// Snapshot adds them up cell by cell.
//
// The invariant of the room: a source counts with the last values that were loaded into
// it until it is removed, whatever has become of its file. So a file that can
// no longer be read never makes a total fall.
//
// What an operator says of a family comes as a Ruling, which the owner is asked for once. An
// entry that it has combined in another way than its source's other entries, because of
// another mode, is in a part of the source, and in the list that the loops of every scrape
// pass it stands for nothing: so rulings cost those loops nothing.
//
// The order of addition does not matter, although floats are added: sums carry the
// rounding error of every addition along and apply it at the end (the compensated sum of
// Knuth and Neumaier). Without that, a total could fall by one unit in the last place
// whenever a value moves from a file to the archive, and Prometheus reads any fall of a
// counter as a reset.
package merge
