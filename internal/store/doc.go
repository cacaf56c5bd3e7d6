// Package store turns the names and bytes of source files into entries: the files in
// which the processes of a prefork server keep their samples, one or more per process,
// written through a shared mapping by the process's Prometheus client.
//
// The one invariant: bytes of another process are claims. Whatever a file holds, and
// whatever is done to it while it is read, costs that file and nothing else: no panic,
// no memory beyond the limits, no byte touched past the used ones, and what was read
// from it before stays good.
//
// # Layout
//
// Little-endian on every machine we support. The reference writer is
// prometheus_client/mmap_dict.py of prometheus/client_python.
//
//	0  int32   used bytes of the file: 0 when just created, 8 when initialised and empty
//	4  int32   padding
//	8  entries up to the used bytes, each:
//	   int32   key length in bytes, padding not counted
//	   bytes   key: UTF-8, a JSON array (see [ParseKey])
//	   spaces  1 to 8 of them, so that 4 + key + padding is a multiple of 8
//	   float64 value, so always 8-byte aligned
//	   float64 timestamp, in wide files only: Unix seconds; 0, or +Inf in the
//	           postmates fork, for none
//
// The writer grows a file by truncating it to twice its size, writes a new entry first
// and the used bytes after it, and from then on stores values in place. Entries are
// never moved or removed, so the used bytes only ever rise, and they are a multiple of
// 8 with every writer known: client_python, the postmates fork (same code), and both
// Ruby clients, which pad alike.
//
// Nothing in a file says whether it is narrow (a value, client_python to 0.17) or wide
// (value and timestamp, client_python from 0.18 and the postmates fork). Only one width
// makes the walk over the entries end exactly at the used bytes with every key well
// formed: a length that fits, spaces behind. What the key says does not matter: one that
// [ParseKey] does not understand is an entry, too. If neither does, the file is damaged and
// read with the width that finds more entries, up to the damage. The first entry's value lies at the same place in both.
//
// Files of prometheus-client-mmap, for Ruby, are narrow, spell their keys as Python did
// before labels were an object, and have cumulative buckets, which [File] turns into those
// of Python's clients.
//
// # Cost
//
// Learn reads each used byte once, plus the first 4096 entries once more for each width where
// the first two do not tell it. Where a value may be text, it reads two windows of 64 KiB
// more, and one for each key that is too long. It keeps 8 bytes of memory for each 4 KiB of
// entries, whatever they are, and one buffer for all files that are read at one time: 64 KiB, or
// as long as the longest key that the limit allows. [File.LearnSome] bounds what one call
// walks over. Damage that stays is looked at a few times and then only when the used bytes
// change. What the caller keeps of an entry is the caller's.
//
// At a scrape, a mapped file costs no system call. A file that is not mapped is read: by
// one pread for each 64 KiB.
//
// # Use
//
// [ParseName] says what a file's name tells, [OpenAt] opens the file, [File.Learn] yields
// the entries that appeared since it was last called, [ParseKey] reads their keys, and
// [File.Load] reads the values of many entries at once. [Inspect] reads a file of which
// nothing is known, for people. [Writer] writes source files, for tests and exports.
package store
