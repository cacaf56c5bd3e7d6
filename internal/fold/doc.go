// Package fold moves what dead workers counted from their files into the archive, so that
// each increment counts exactly once whatever dies, and when. It knows the protocol, the
// watched directory as a place of names, and the archive; which files there are, and what is
// served meanwhile, is known by the pool, which it asks through the interface Pool.
//
// The protocol, for each batch of files:
//
//	wait     The pool offers files that had no writer for a rest of some seconds. Hooks that
//	         run at a worker's death, and readers that have just listed the directory, are
//	         done with them by then.
//	stage    Rename each file to a hidden name in the same directory that was never used
//	         before. A worker that gets the same ID makes a fresh file; only one that looked
//	         the old name up a moment before can still open this one.
//	collect  Read the file. What the pool serves of it stays as it is.
//	sync     Make the renames durable.
//	commit   Write the values, and the record that the file with this name has these values
//	         in the archive, in one transaction.
//	swap     In one step under the pool's lock, let the archive's values count in place of
//	         the file's.
//	remove   A second later take a lease on the file. If it is granted and the file is as it
//	         was recorded, remove it, and let the archive forget the record.
//
// A lease is taken only to remove, on a name that nobody can find, so no opener waits for a
// disk. Whoever looked the old name up before stage may still write to the file. Then the
// lease is refused or the values differ from the record, and the file becomes a source of
// what it has gained over the record. It goes through collect to remove again when it is
// dead. So no step depends on seeing that opener in time.
//
// A file that somebody else removed or moved away has no name to stage. What it holds is
// archived all the same. If a name elsewhere may lead to it, the record has what the file is
// (device, inode, time of birth) in place of a name: if it comes back, it counts with what it
// has gained.
//
// After a crash everything follows from what lies there. A staged file without a record is a
// source in full, one with a record a source of its gains; both go through the steps that are
// left.
//
// The invariant of the room: a file is removed only when everything in it is durably in the
// archive, and nobody can write to it.
package fold
