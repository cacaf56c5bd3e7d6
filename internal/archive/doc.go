// Package archive keeps what dead workers left: for each kind of source file one table of
// raw keys and combined values, durable across any crash. It knows no directory of source
// files and no liveness; who folds a file brings its entries, and removes the file.
//
// The invariant of the room, on which "every increment counts exactly once" rests: a
// commit adds the values of some files and the record that these files, by name, are
// folded, in one transaction. After any crash a file whose name is recorded counts only
// with what it has gained over the recorded values, and one whose name is not recorded
// counts in full. So names are never used twice.
//
// On disk it is a bbolt file with these buckets; integers in keys are big-endian, every
// value ends in the CRC-32C of what comes before it:
//
//	meta     format, id, counters                      one key each
//	spaces   space (4 bytes)                           type, mode, worker ID, last fold
//	keys     space (4 bytes), position (4 bytes)       raw key, written once
//	values   space (4 bytes), chunk (4 bytes)          512 values, dense: fold of a worker
//	                                                   rewrites a few pages
//	folded   name of a folded file                     its values, in file order
//
// A position is the number of a key in its space. A value has two halves, as
// merge.Combine makes them; the second half is left out of a chunk where all are 0.
package archive
