package mirror

import (
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"aggregatord/internal/store"
	"aggregatord/internal/watch"
)

const (
	// stall is how long a reader is waited for that does nothing: longer, and it has ended.
	stall = 2 * time.Second
	// parts is in how many slices the time is cut over which the least of what is missing is kept.
	parts = 8
	// pause is how long no file may have been read where somebody has listed the directory and did not
	// read: that may be a reader that has not begun, or one that was missed.
	pause = 250 * time.Millisecond
	// listingPause is how long the directory may not have been listed where a reader that was missed
	// would meet a file that is gone.
	listingPause = 100 * time.Millisecond
	// unseen is how long no file must have been read so that those who list the directory are taken for
	// such as read nothing.
	unseen = time.Hour
	// leastWindow and mostWindow bound the time over which the least of what is owed is kept.
	leastWindow = 5 * time.Second
	mostWindow  = 30 * time.Second
)

// Readers is what is known of others that read the directory. They are told by their reads of the
// mirror files: nobody else has a reason to open them.
type Readers struct {
	// Reads counts reads of the whole directory, Last is when the last one ended, and Longest how
	// long they took at most, if they did not overlap.
	Reads   uint64
	Last    time.Time
	Longest time.Duration
	// Resyncs is how often counts were given up that did not fit together: see the package comment.
	Resyncs uint64
}

// A tracker follows who reads the directory: see the package comment.
//
// Of a file, owed is how often it was listed and not read since. It is the sum of two numbers that
// cannot be told apart: the readers that are going to read it, and those that never will.
type tracker struct {
	// later is what is added to the clock, in nanoseconds. For tests.
	later atomic.Int64
	// mu guards all below.
	mu    sync.Mutex
	files map[string]*reads
	// listed counts the listings since the counts began; listing is when those began that have not ended.
	listed  int
	listing []time.Time
	// never is how many of them were no reader's, for files that are not in the map.
	never      int
	slice      int       // the number of the present slice
	sliceBegan time.Time // zero before the first event
	sliceTime  time.Duration
	least      time.Duration // leastWindow, but in tests
	listedAt   [parts]int    // listed at the beginning of a slice, by its number
	lastListed time.Time
	lastRead   time.Time
	lastOpen   time.Time
	// lost says that events were lost, so that no count is known to be right.
	lost bool
	// unequal is since when counts do not fit together, zero if they did.
	unequal time.Time

	mirrors map[string]bool
	seen    Readers
	// A session is readers that were not seen to be apart.
	session struct {
		began    time.Time
		listings int
		reads    int // the most of one mirror file
	}
}

// reads is what is known of one file.
type reads struct {
	// before is how many listings had ended when the file came to be: they did not have it.
	before int
	// n is how often it was read, never how often it was listed by somebody who will not read it.
	n, never int
	// created is when the file came to be, zero if it was there when the counts began.
	created time.Time
	// doubtful: somebody was listing the directory when the file came to be.
	doubtful bool
	// born is the slice in which it came to be, and session its reads in the session.
	born, session int
	// least is the least that was owed in each of the last slices, up to the slice at.
	least [parts]int
	at    int
}

func newTracker() *tracker {
	return &tracker{files: map[string]*reads{}, mirrors: map[string]bool{}, least: leastWindow, sliceTime: leastWindow / parts}
}

// mirror says that a file is a mirror file.
func (t *tracker) mirror(base string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mirrors[base] = true
}

func (t *tracker) now() time.Time { return time.Now().Add(time.Duration(t.later.Load())) }

// look takes note of an event.
func (t *tracker) look(l watch.Look) {
	if l.Name != "" && (!strings.HasSuffix(l.Name, store.Extension) || strings.HasPrefix(l.Name, ".")) {
		return
	}
	now := l.Seen.Add(time.Duration(t.later.Load()))
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	switch l.Kind {
	case watch.Listed:
		t.endSessionLocked(now)
		if t.session.began.IsZero() {
			t.session.began = now
		}
		t.session.listings++
		t.listed++
		t.listing = append(t.listing, now)
		t.lastListed = now
	case watch.ListingEnd:
		if len(t.listing) > 0 {
			t.listing = t.listing[1:]
		}
		t.lastListed = now
	case watch.ReadEnd:
		t.readLocked(l.Name, now)
	case watch.Opened:
		if r := t.files[l.Name]; r == nil || now.Sub(r.created) > listingPause {
			t.lastOpen = now // not a worker that has just made it
		}
	case watch.Created:
		t.files[l.Name] = &reads{
			created: now,
			before:  t.listed - len(t.listing), doubtful: len(t.listing) > 0, born: t.slice, at: t.slice,
		}
		t.files[l.Name].note(t)
	case watch.Removed:
		delete(t.files, l.Name)
	case watch.Lost:
		t.resetLocked(now)
		t.lost, t.lastRead, t.lastListed = true, now, now
	}
}

func (t *tracker) readLocked(base string, now time.Time) {
	r := t.fileLocked(base)
	r.n++
	if r.owed(t) < 0 {
		// The reader's listing was not told apart from that of another one. He is going to read the
		// other files, too.
		t.listed++
	}
	r.note(t)
	t.lastRead = now
	if !t.mirrors[base] {
		return
	}
	r.session++
	if r.session > t.session.reads {
		t.session.reads = r.session
		t.seen.Reads++
	}
	t.seen.Last = now
}

// fileLocked returns what is known of a file. One of which nothing is known was there when the counts
// began.
func (t *tracker) fileLocked(base string) *reads {
	r := t.files[base]
	if r == nil {
		r = &reads{never: t.never, born: t.slice - parts, at: t.slice - parts}
		t.files[base] = r
	}
	r.turn(t)
	return r
}

// turnLocked begins the slices that begin up to now.
func (t *tracker) turnLocked(now time.Time) {
	last := t.lastRead
	if t.lastListed.After(last) {
		last = t.lastListed
	}
	if t.sliceBegan.IsZero() || now.Sub(last) >= stall {
		// Nobody was seen for so long that nobody is at work.
		t.endSessionLocked(now)
		t.resetLocked(now)
		return
	}
	for len(t.listing) > 0 && now.Sub(t.listing[0]) >= stall {
		t.listing = t.listing[1:] // the directory was opened for something else
	}
	for n := 0; now.Sub(t.sliceBegan) >= t.sliceTime; n++ {
		t.slice++
		t.listedAt[t.slice%parts] = t.listed
		t.sliceBegan = t.sliceBegan.Add(t.sliceTime)
		if n >= parts {
			t.sliceBegan = now
		}
	}
}

// resetLocked begins the counts anew: nobody is at work.
func (t *tracker) resetLocked(now time.Time) {
	clear(t.files)
	t.listed, t.listing, t.never = 0, nil, 0
	t.lost, t.unequal = false, time.Time{}
	t.slice += parts
	t.listedAt = [parts]int{}
	t.sliceBegan = now
	// Where readers take long, it takes long to see who has ended.
	t.sliceTime = max(t.least, min(8*t.seen.Longest, mostWindow)) / parts
}

// window is the time over which the least of what is owed is known.
func (t *tracker) window() time.Duration { return parts * t.sliceTime }

// endSessionLocked ends a session if nothing has come for a while.
func (t *tracker) endSessionLocked(now time.Time) {
	s := &t.session
	if s.began.IsZero() || now.Sub(t.lastRead) < listingPause || now.Sub(t.lastListed) < listingPause {
		return
	}
	if s.reads > 0 && t.lastRead.After(s.began) {
		t.seen.Longest = max(t.seen.Longest, t.lastRead.Sub(s.began)/time.Duration(s.reads))
	}
	s.began, s.listings, s.reads = time.Time{}, 0, 0
	for base := range t.mirrors {
		if r := t.files[base]; r != nil {
			r.session = 0
		}
	}
}

// owed is how many have listed the file and not read it, not counting those that never will.
func (r *reads) owed(t *tracker) int { return t.listed - r.before - r.n - r.never }

// turn notes what was owed at the beginning of slices in which nothing was noted.
func (r *reads) turn(t *tracker) {
	if t.slice-r.at > parts {
		r.at = t.slice - parts
	}
	for r.at < t.slice {
		r.at++
		r.least[r.at%parts] = t.listedAt[r.at%parts] - r.before - r.n
	}
}

// note notes what is owed now.
func (r *reads) note(t *tracker) {
	owed := t.listed - r.before - r.n
	if r.born == t.slice {
		r.least[t.slice%parts] = owed
		return
	}
	r.least[t.slice%parts] = min(r.least[t.slice%parts], owed)
}

// neverLocked is the least that was owed over the window. If nobody was in the middle of the files at
// any moment of it, that is how many will never read the file. ok is false if the file is younger.
func (t *tracker) neverLocked(r *reads) (n int, ok bool) {
	if t.slice-r.born < parts {
		return 0, false
	}
	n = math.MaxInt
	for _, x := range r.least {
		n = min(n, x)
	}
	return n, true
}

// A pair is a worker's file and the mirror files to which its values may be moved.
type pair struct {
	file    string
	mirrors []string
}

// fits reports which of the pairs nobody is between: each reader has read all of its files, or none.
func (t *tracker) fits(now time.Time, pairs []pair) (fit []bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	fit, rest := t.fitsLocked(now, pairs)
	if rest {
		t.unequal = time.Time{}
		return fit
	}
	if t.unequal.IsZero() {
		t.unequal = now
	}
	if now.Sub(t.unequal) >= t.window() && t.resyncLocked(pairs) {
		t.unequal = time.Time{}
		fit, _ = t.fitsLocked(now, pairs)
	}
	return fit
}

// fitsLocked also reports whether all fit, and nobody has anything left to read.
func (t *tracker) fitsLocked(now time.Time, pairs []pair) (fit []bool, rest bool) {
	rest = true
	fit = make([]bool, len(pairs))
	for i, p := range pairs {
		if t.lost {
			return fit, false
		}
		owed, ok := t.fileLocked(p.file).owed(t), true
		for _, base := range p.mirrors {
			r := t.fileLocked(base)
			ok = ok && !r.doubtful && r.owed(t) == owed
		}
		// Whoever has listed the directory and read neither may have been missed.
		fit[i] = ok && (owed <= 0 || now.Sub(t.lastRead) >= pause)
		rest = rest && ok && owed <= 0
	}
	return fit, rest
}

// resyncLocked takes it that at some moment of the window nobody was in the middle of the files, and
// then, that nobody is now, if what is owed is the least again.
func (t *tracker) resyncLocked(pairs []pair) bool {
	known := false
	for _, p := range pairs {
		more, ok := t.moreLocked(p.file)
		for _, base := range p.mirrors {
			if n, known := t.moreLocked(base); ok && known && n != more {
				return false
			}
		}
		known = known || ok
	}
	if !known {
		return false
	}
	for _, r := range t.files {
		r.turn(t)
		if n, ok := t.neverLocked(r); ok {
			r.never, r.doubtful = n, false
		}
	}
	t.never = math.MaxInt
	for _, n := range t.listedAt {
		t.never = min(t.never, n)
	}
	t.lost = false
	t.seen.Resyncs++
	return true
}

// allFit reports whether nobody is between the files of any of the pairs.
func (t *tracker) allFit(now time.Time, pairs []pair) bool {
	return !slices.Contains(t.fits(now, pairs), false)
}

// moreLocked is how much more than the least is owed of a file.
func (t *tracker) moreLocked(base string) (more int, ok bool) {
	r := t.fileLocked(base)
	never, ok := t.neverLocked(r)
	return t.listed - r.before - r.n - never, ok
}

// settled reports of which files nobody is going to open one because he has listed it. It also returns when
// the directory was listed last.
func (t *tracker) settled(now time.Time, files []string) (settled []bool, last time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.turnLocked(now)
	settled = make([]bool, len(files))
	since := now.Sub(t.lastListed)
	unread := t.lastRead.Before(now.Add(-unseen)) && t.lastOpen.Before(t.lastListed)
	for i, base := range files {
		switch {
		case t.lost:
		case unread: // who reads nothing needs no file
			settled[i] = since >= pause
		default:
			settled[i] = since >= listingPause && t.fileLocked(base).owed(t) <= 0
		}
	}
	return settled, t.lastListed
}

// listedLast is when the directory was listed last.
func (t *tracker) listedLast() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lastListed
}

func (t *tracker) readers(now time.Time) Readers {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endSessionLocked(now)
	return t.seen
}
