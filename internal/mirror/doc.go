// Package mirror keeps the totals of dead workers as files of the client itself, so that whoever
// reads the directory with the client's own collector misses nothing when a dead worker's file
// goes. It knows client files, leases and who reads the directory; which files are folded, and
// when, is fold's.
//
// A mirror file is a source file like any other: its name has an ID that no worker has, its tag
// (see store.Head) says what it is. There is one for each type, gauge mode and width.
//
// # Moving
//
// What a dead worker's file holds is moved to the mirror in one instant:
//
//	append   Make the entries that the mirror lacks: sums as 0, others as what they will be,
//	         which changes no total. This may fail for want of room; nothing was done then.
//	journal  Write what is to be done to a hidden file.
//	lease    Take write leases on the mirror files. The caller has them on the workers' files.
//	         They are granted while nobody else has the file open, and whoever opens it from
//	         now on waits until they are given up.
//	look     Is somebody between the first and the last of these files? Then give up the
//	         leases, and try again later.
//	set      Store the new values in the mirror.
//	drain    Store 8 as the used bytes of each worker's file: it is there, and has no entries.
//	release  Give up the leases.
//
// So a reader of the directory reads each value either in the worker's file or in the mirror. It
// needs no file that is gone. After a crash anywhere in it the next start does what the journal
// says: a file that was drained counts in the mirror, one that was not does not. Only until then
// may a reader see values that were stored when the workers' files were not drained yet: twice.
//
// A drained file is removed when nobody owes it a read. A
// worker that gets the same ID before that opens a file to which nothing was written.
//
// # Readers
//
// Who reads the directory is known by inotify only: listings, and the end of each read of a file. No
// event says whose it is. So it is counted: how often was each file listed, and not read since? A
// worker's file and its mirror file are moved between only if that is the same number for both, as each
// reader has then read both or none. That holds for readers that read in the same order, as all do that
// take the order of the listing; if nobody owes anything, it holds in any order. If somebody does, no
// file may have been read for a pause: a reader may have been missed.
//
// Of equal events one after the other the kernel keeps one, if we were too slow to take the first. A file
// that is read more often than it was listed shows that a listing was missed. What else was missed, and
// readers that have ended in the middle, leave counts that do not fit together. Then files wait until
// nobody was seen for two seconds, and the counts begin anew; or until the least that was owed over some
// seconds is owed again, which is taken for what nobody is going to read. That is wrong only if the
// directory was read without any gap for all of that time. Resyncs counts how often.
//
// A mirror file that is new is in no listing of those who have begun before; the counts show that, too.
//
// The invariant of the room: whatever is killed, no value is missing from all of the files.
package mirror
