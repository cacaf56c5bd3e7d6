package archive

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// KeeperOptions say where an archive is kept, and how.
type KeeperOptions struct {
	// Watched is the watched directory. The archive lies in it, in hidden files, unless Dir says
	// another place. The Keeper never makes it.
	Watched string
	// Dir is a directory for this archive alone, which is made where it is missing; empty for none.
	Dir string
	// Retry is how long to wait after the archive could not be opened or written, 5 s by default;
	// after each failure in a row it is twice as long as before, up to RetryMost, 1 min by default.
	Retry, RetryMost time.Duration
	// SpareBytes of the archive's file may be out of use, besides three times what is in use,
	// before it is written anew; 1 MiB by default.
	SpareBytes int64
	// BallastBytes is the size of the file that is given up when the file system is full, 1 MiB by
	// default; never more than a sixteenth of the file system. Negative for none.
	BallastBytes int64
}

func (o KeeperOptions) withDefaults() KeeperOptions {
	o.Retry = cmp.Or(o.Retry, 5*time.Second)
	o.RetryMost = cmp.Or(o.RetryMost, time.Minute)
	o.SpareBytes = cmp.Or(o.SpareBytes, 1<<20)
	o.BallastBytes = cmp.Or(o.BallastBytes, 1<<20)
	return o
}

// Times of a Keeper.
const (
	// compactEvery is how long to wait after the archive was written anew, or could not be.
	compactEvery = 10 * time.Minute
	// quietTime is how long a directory that was emptied must not have changed before anything is
	// made there: whoever removes all of it, between listing it and removing it, must not meet what
	// was not there. wipeMost is after how long something is made all the same.
	quietTime, wipeMost = 2 * time.Second, 10 * time.Second
	// ballastPart is the part of a file system that a ballast may take at most.
	ballastPart = 16
)

// A KeeperState is what can be done with an archive.
//
//	          Open fails                Open succeeds
//	Closed ───────────────▶ Waiting ───────────────────▶ Ready
//	   │                       │  ▲                      │  │
//	   │                       ▼  │ (what can be read     │  │ the file was removed
//	   └──────────────────▶ ReadOnly  is served)          │  ▼
//	                           ▲──────────────────────────┘ Wiped ──▶ (as Closed)
//	                             it went bad while it was open
type KeeperState int

// The states of a Keeper.
const (
	// Closed: nothing was tried yet, or there is no directory to keep an archive for.
	Closed KeeperState = iota
	// Waiting: the archive could not be opened. It is tried again when the time has come.
	Waiting
	// ReadOnly is Waiting, and the archive in memory is what could be read of the file.
	ReadOnly
	// Wiped: the archive was removed while it was open. Nothing is made in the directory before it
	// was quiet for a moment: it may go next, or go once more.
	Wiped
	// Ready: the archive is open.
	Ready
)

func (s KeeperState) String() string {
	return [...]string{"closed", "waiting", "read only", "wiped", "ready"}[s]
}

// A Keeper keeps one archive open: it opens it and tries again, sets aside what is damaged,
// reads what it cannot open, gives up its ballast on a full file system, and makes the file
// smaller. It logs nothing; each method tells what it did. It knows no source files.
//
// It is for one goroutine, but for what Archive says of readers beside Commit. No method needs
// a lock, and none should be called under one: all may take as long as the file system does.
// After each of them the caller shows what Archive has now, if Generation has changed.
type Keeper struct {
	opts    KeeperOptions
	archive *Archive
	place   *Place // nil while none is open
	state   KeeperState

	err      error     // of the last attempt to open
	due      time.Time // when to open next
	failures int       // in a row, of Open or Commit

	writeErr error
	writeDue time.Time

	compactDue, ballastDue time.Time

	// wiped is when the archive was removed, or last the directory, zero if there is one in its
	// place; there is how the directory was then, and still since when it is so.
	wiped, still time.Time
	there        dirStat
}

// dirStat tells one directory from another, and a change of it.
type dirStat struct {
	dev, ino uint64
	changed  unix.Timespec // when a name came or went last
}

func statDir(path string) (s dirStat) {
	var st unix.Stat_t
	if unix.Stat(path, &st) == nil {
		s = dirStat{uint64(st.Dev), st.Ino, st.Mtim} //nolint:unconvert // Dev is an int32 on macOS
	}
	return s
}

// quiet reports whether something may be made in a directory that was emptied.
func (k *Keeper) quiet(now time.Time) bool {
	if k.wiped.IsZero() {
		return true
	}
	switch there := statDir(cmp.Or(k.opts.Dir, k.opts.Watched)); {
	case there.dev != k.there.dev || there.ino != k.there.ino:
		k.there, k.wiped, k.still = there, now, now
	case there != k.there:
		k.there, k.still = there, now
	}
	return now.Sub(k.still) >= quietTime || now.Sub(k.wiped) >= wipeMost
}

// NewKeeper returns a Keeper that has done nothing yet.
func NewKeeper(opts KeeperOptions) *Keeper {
	return &Keeper{opts: opts.withDefaults(), archive: New()}
}

// SetSpare changes KeeperOptions.SpareBytes; below 0 the archive is written anew whenever it can be.
func (k *Keeper) SetSpare(bytes int64) { k.opts.SpareBytes = bytes }

// Archive returns the archive. It is another one after Open has said Replaced.
func (k *Keeper) Archive() *Archive { return k.archive }

// State returns what can be done with the archive.
func (k *Keeper) State() KeeperState { return k.state }

// Rests reports whether the archive is open, and went well the last time.
func (k *Keeper) Rests() bool { return k.state == Ready && k.err == nil && k.writeErr == nil }

// Err returns why the archive is not open, or could not be written last; nil if neither is so.
func (k *Keeper) Err() error { return cmp.Or(k.err, k.writeErr) }

// Due returns when Open or Commit will try again; the zero time if nothing failed.
func (k *Keeper) Due() time.Time {
	if k.err != nil {
		return k.due
	}
	if k.writeErr != nil {
		return k.writeDue
	}
	return time.Time{}
}

// Path returns where the archive is, or will be.
func (k *Keeper) Path() string {
	p := &Place{path: k.opts.Watched, hidden: true}
	if k.opts.Dir != "" {
		p = &Place{path: k.opts.Dir}
	}
	return p.ArchivePath()
}

// Place returns the directory that is open, nil if none is. It is the Keeper's own.
func (k *Keeper) Place() *Place { return k.place }

// Opened tells what Open did.
type Opened struct {
	State KeeperState
	// Opened: the archive was opened now. Again: an attempt before this one had failed.
	Opened, Again bool
	// Replaced: Archive returns another archive now, which shows the file read only, or no longer
	// does.
	Replaced bool
	// Wiped: the archive that was open was found removed now. What it held is in memory, and is
	// written to the next one.
	Wiped bool
	// SetAside is the path under which a damaged archive was kept, "" if none was, and Damage what
	// was wrong with it.
	SetAside string
	Damage   error
	// TakenOver is what an earlier version had left.
	TakenOver TakenOver
	// Err is why the archive is not open. New says that it differs from that of the attempt before.
	Err error
	New bool
	// ReadErr is why what the archive holds is not even shown.
	ReadErr error
}

// Fatal reports whether an error of Open must keep a daemon from starting: another one has the
// archive, or a later version wrote it.
func Fatal(err error) bool { return errors.Is(err, ErrLocked) || errors.Is(err, ErrNewer) }

// Open opens the archive if it is not open, or no longer the one in its place, unless an attempt
// failed a short while ago. It is to be called often, and costs three system calls while all is
// well. What it changes in memory it changes inside of apply, as Archive.AttachTo does.
func (k *Keeper) Open(now time.Time, apply func(change func())) (o Opened) {
	defer func() { o.State = k.state }()
	if k.archive.Attached() {
		if k.archive.InPlace() {
			k.state = Ready
			return o
		}
		o.Wiped = true
		// What cannot be closed is gone all the same.
		k.archive.Detach() //nolint:errcheck // see above
		k.archive.lost.Store(true)
		k.leavePlace()
		k.state, k.due, k.err = Wiped, time.Time{}, nil
		k.wiped, k.still, k.there = now, now, statDir(cmp.Or(k.opts.Dir, k.opts.Watched))
		return o
	}
	if now.Before(k.due) {
		o.Err = k.err
		return o
	}
	if !k.quiet(now) {
		k.state = Wiped
		return o
	}
	if k.state == Ready { // a commit found it damaged
		k.state = Waiting
	}
	o.Again = k.err != nil
	err := k.open(now, &o, apply)
	if errors.Is(err, errNoDirectory) {
		k.state, k.err, k.due = Closed, nil, time.Time{}
		k.leavePlace()
		return o
	}
	if err == nil {
		k.state, k.err, k.due, k.failures = Ready, nil, time.Time{}, 0
		k.writeErr, k.writeDue = nil, time.Time{}
		k.wiped = time.Time{}
		o.Opened = true
		return o
	}
	o.New = k.err == nil || k.err.Error() != err.Error()
	o.Err, k.err, k.due = err, err, now.Add(k.backoff())
	if k.state != ReadOnly {
		k.state = Waiting
	}
	k.readForNow(&o)
	k.leavePlace()
	return o
}

var errNoDirectory = errors.New("there is no directory to keep an archive for")

func (k *Keeper) backoff() time.Duration {
	d := k.opts.Retry << min(k.failures, 20)
	k.failures++
	if d <= 0 || d > k.opts.RetryMost {
		d = k.opts.RetryMost
	}
	return d
}

// open opens the place and attaches the archive.
func (k *Keeper) open(now time.Time, o *Opened, apply func(change func())) error {
	if info, err := os.Stat(k.opts.Watched); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return errNoDirectory
	}
	k.leavePlace()
	var err error
	if k.opts.Dir != "" {
		k.place, err = MakePlace(k.opts.Dir, k.opts.Watched)
	} else if k.place, err = OpenHiddenPlace(k.opts.Watched); errors.Is(err, fs.ErrNotExist) {
		err = errNoDirectory
	}
	if err != nil {
		k.place = nil
		return err
	}
	if o.TakenOver, err = k.place.TakeOver(now); err != nil {
		return err
	}
	a := k.archive
	if k.state == ReadOnly {
		// What was read is in the file, which may have changed since.
		a = New()
		a.generation = k.archive.generation
	}
	err = a.AttachTo(k.place, apply)
	if errors.Is(err, ErrDamaged) {
		kept, asideErr := k.place.SetAside(now)
		if asideErr != nil {
			return errors.Join(err, asideErr)
		}
		o.SetAside, o.Damage = kept, err
		if k.state == ReadOnly {
			a = k.archive // it has what could once be read
		}
		err = a.AttachTo(k.place, apply)
	}
	if err == nil && a != k.archive {
		k.archive, o.Replaced = a, true
	}
	return err
}

// readForNow shows what is in an archive that can be read but not opened for writing, if there is
// nothing in memory that is better.
func (k *Keeper) readForNow(o *Opened) {
	if Fatal(o.Err) || k.place == nil || !k.archive.blank() {
		return
	}
	v, err := k.place.Read()
	if err != nil || v.blank() {
		o.ReadErr = err
		return
	}
	v.generation += k.archive.generation
	k.archive, k.state, o.Replaced = v.Archive, ReadOnly, true
}

// leavePlace closes the directory.
func (k *Keeper) leavePlace() {
	if k.place != nil {
		k.place.Close() //nolint:errcheck // nothing was written through it
		k.place = nil
	}
}

// CanWrite reports whether to try a Commit now: the archive is open, no attempt failed a short
// while ago, and no reader asks for it to be left as it is.
func (k *Keeper) CanWrite(now time.Time) bool {
	return k.state == Ready && k.archive.Attached() && !now.Before(k.writeDue) && !k.archive.Held(now)
}

// Committed tells what Commit did.
type Committed struct {
	// Err is why the batch is not in the archive. New says that it differs from the last one,
	// Again that there was one before, and none now.
	Err        error
	New, Again bool
	// Full: the file system, or a quota, is full. A smaller batch may fit.
	Full bool
	// Ballast: the room that was kept in reserve was given up, so try again at once.
	Ballast bool
}

// Commit is Archive.Commit. After an error memory is as it was, and CanWrite says when to try
// again. Where the file system is full it gives up the ballast.
func (k *Keeper) Commit(now time.Time, b *Batch, apply func(change func())) (c Committed) {
	return k.note(now, k.archive.Commit(b, apply), b.files)
}

// Failed is Commit of so many files that could not even be tried, because of an error of the same
// file system.
func (k *Keeper) Failed(now time.Time, err error, files int) Committed {
	return k.note(now, err, files)
}

func (k *Keeper) note(now time.Time, err error, files int) (c Committed) {
	if c.Err = err; err == nil {
		c.Again = k.writeErr != nil
		k.writeErr, k.writeDue, k.failures = nil, time.Time{}, 0
		return c
	}
	c.New = k.writeErr == nil || k.writeErr.Error() != c.Err.Error()
	k.writeErr = c.Err
	c.Full = k.IsFull(c.Err)
	switch {
	case errors.Is(c.Err, ErrTooLarge): // it is the batch, not the archive
		k.writeDue = now
	case c.Full && k.dropBallast(now):
		c.Ballast, k.writeDue = true, now
	case c.Full && files > 1: // a smaller batch is worth a try at once
		k.writeDue = now
	default:
		k.writeDue = now.Add(k.backoff())
	}
	return c
}

// IsFull reports whether an error may come of a full file system or quota. bbolt tells the cause
// of some errors in words only, so the file system is asked as well.
func (k *Keeper) IsFull(err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return true
	}
	if k.place == nil || errors.Is(err, ErrTooLarge) || errors.Is(err, ErrDamaged) {
		return false
	}
	room, roomErr := k.place.Room()
	return roomErr == nil && (room.FreeBytes < 1<<20 || room.TotalInodes > 0 && room.FreeInodes == 0)
}

// Room asks the file system of the archive. The error wraps fs.ErrClosed where no directory is
// open.
func (k *Keeper) Room() (Room, error) {
	if k.place == nil {
		return Room{}, fmt.Errorf("free space for the archive: %w", fs.ErrClosed)
	}
	return k.place.Room()
}

// Tidied tells what Tidy did.
type Tidied struct {
	// Compacted: the archive was written anew, from Before bytes to After. Err is why it could not
	// be; it is tried again some minutes later.
	Compacted     bool
	Before, After int64
	Err           error
	// Ballast: room was put in reserve.
	Ballast bool
	// Forgotten is how many records of files by identity went: see ExpireIdentities.
	Forgotten int
}

// Tidy does what can wait: it writes the archive anew if that makes its file much smaller, for
// in a tmpfs the room that a large backlog once took would be gone for ever, and makes a
// ballast if there is none and much more room than it takes. It is for a moment in which nothing
// waits to be folded or removed. What it forgets it forgets inside of apply.
func (k *Keeper) Tidy(now time.Time, apply func(change func())) (t Tidied) {
	if k.state != Ready || !k.archive.InPlace() {
		return t
	}
	k.compact(now, &t)
	forget := func() { t.Forgotten = k.archive.ExpireIdentities(now) }
	switch {
	case len(k.archive.records) == 0: // as most of the time
	case apply == nil:
		forget()
	default:
		apply(forget)
	}
	if !now.Before(k.ballastDue) {
		k.ballastDue = now.Add(k.opts.Retry)
		t.Ballast = k.keepBallast()
	}
	return t
}

// Spares reports whether Tidy would write the archive anew now.
func (k *Keeper) Spares(now time.Time) bool {
	a := k.archive
	if k.state != Ready || a.Pending() || now.Before(k.compactDue) || a.Held(now) {
		return false
	}
	size := a.SizeBytes()
	if size <= k.opts.SpareBytes {
		return false // however little of it is in use
	}
	used := a.UsedBytes()
	return used > 0 && size-used > k.opts.SpareBytes+3*used
}

func (k *Keeper) compact(now time.Time, t *Tidied) {
	if !k.Spares(now) {
		return
	}
	a, size := k.archive, k.archive.SizeBytes()
	k.compactDue = now.Add(compactEvery)
	t.Before = size
	if t.Err = a.Compact(); t.Err == nil {
		t.Compacted, t.After = true, a.SizeBytes()
	}
}

// keepBallast makes a ballast, a file that only takes up room: so there is some to give back when
// a directory is full of dead workers' files and the archive needs a few pages to take them.
func (k *Keeper) keepBallast() bool {
	if k.opts.BallastBytes < 0 || k.place.exists(k.place.name(ballastName)) {
		return false
	}
	room, err := k.place.Room()
	if err != nil {
		return false
	}
	size := min(k.opts.BallastBytes, room.TotalBytes/ballastPart)
	return room.FreeBytes >= 4*size && k.place.makeBallast(size) == nil
}

// dropBallast gives the ballast's room back and reports whether there was one.
func (k *Keeper) dropBallast(now time.Time) bool {
	if k.place == nil || k.place.remove(k.place.name(ballastName)) != nil {
		return false
	}
	k.ballastDue = now.Add(k.opts.Retry)
	return true
}

// Hurry has the next Open make an archive in a directory that was emptied, however that changes:
// for one who is about to end. It reports whether there is anything to hurry for.
func (k *Keeper) Hurry() bool {
	hurry := !k.wiped.IsZero() && !k.archive.Attached()
	k.wiped = time.Time{}
	return hurry
}

// Close lets go of the archive and the directory.
func (k *Keeper) Close() error {
	err := k.archive.Detach()
	k.leavePlace()
	k.state, k.err, k.writeErr = Closed, nil, nil
	k.due, k.writeDue = time.Time{}, time.Time{}
	return err
}
