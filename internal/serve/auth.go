package serve

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// A verifier checks passwords. bcrypt is slow by design, so that guessing is slow; here it is
// slow for those who guess:
//
//   - A user and password that were right once are known by a keyed hash, and cost nothing.
//     So are those that were wrong.
//   - One password is checked at a time for clients that have not failed of late, and one for
//     those that have. The latter is followed by a pause as long as the check, so that guessers
//     have at most half a processor, whatever their number.
//   - Few may wait; more are told to come back.
type verifier struct {
	key [32]byte
	// calm and suspect have room for one check each.
	calm, suspect chan struct{}

	// mu guards what follows.
	mu      sync.Mutex
	good    map[[32]byte]struct{}
	bad     map[[32]byte]struct{}
	clients map[string]*guesser
	// waiting is how many wait in each line.
	waiting map[chan struct{}]int
}

// guesser is what is known of one client.
type guesser struct {
	waiting int
	// failed is when it was last wrong, zero for never.
	failed time.Time
}

const (
	// maxKnown bounds the users and passwords that are remembered.
	maxKnown = 1024
	// maxGuessers bounds the clients that are told apart.
	maxGuessers = 1024
	// suspectFor is how long a client that was wrong waits in the other line.
	suspectFor = 10 * time.Minute
	// maxWaiting is how many checks may wait in a line, and maxWaitingEach how many of one client.
	maxWaiting, maxWaitingEach = 64, 4
)

func newVerifier() *verifier {
	v := &verifier{
		calm: make(chan struct{}, 1), suspect: make(chan struct{}, 1),
		good: map[[32]byte]struct{}{}, bad: map[[32]byte]struct{}{}, clients: map[string]*guesser{},
		waiting: map[chan struct{}]int{},
	}
	rand.Read(v.key[:])
	return v
}

// verdict is what comes of a check.
type verdict int

const (
	wrong verdict = iota
	right
	busy // come back later
)

// check compares a password with its hash for a client.
func (v *verifier) check(ctx context.Context, client, user, hash, password string) verdict {
	id := v.id(user, hash, password)
	known, line, done := v.enter(id, client)
	if line == nil {
		return known
	}
	result := busy
	defer func() { done(result) }()
	select {
	case line <- struct{}{}:
	case <-ctx.Done():
		return result
	}
	start := time.Now()
	result = wrong
	if bcrypt.CompareHashAndPassword([]byte(hash), []byte(password)) == nil {
		result = right
	}
	if line == v.suspect && result == wrong {
		time.AfterFunc(time.Since(start), func() { <-line })
	} else {
		<-line
	}
	return result
}

// id tells a user and a password from all others, and tells nobody what they are.
func (v *verifier) id(parts ...string) (id [32]byte) {
	h := hmac.New(sha256.New, v.key[:])
	for _, p := range parts {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
		h.Write([]byte(p))
	}
	h.Sum(id[:0])
	return id
}

// enter returns what is known already, or in which line to wait and what to call when it is
// over.
func (v *verifier) enter(id [32]byte, client string) (known verdict, line chan struct{}, done func(verdict)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.good[id]; ok {
		return right, nil, nil
	}
	if _, ok := v.bad[id]; ok {
		return wrong, nil, nil
	}
	c := v.clientLocked(client)
	line = v.calm
	if !c.failed.IsZero() && time.Since(c.failed) < suspectFor {
		line = v.suspect
	}
	if v.waiting[line] >= maxWaiting || c.waiting >= maxWaitingEach {
		return busy, nil, nil
	}
	v.waiting[line]++
	c.waiting++
	return wrong, line, func(result verdict) { v.leave(id, c, line, result) }
}

// clientLocked returns what is known of a client. Those that there is no room for are one.
func (v *verifier) clientLocked(client string) *guesser {
	c := v.clients[client]
	if c == nil && len(v.clients) >= maxGuessers {
		for name, old := range v.clients {
			if old.waiting == 0 && time.Since(old.failed) >= suspectFor {
				delete(v.clients, name)
			}
		}
		if len(v.clients) >= maxGuessers {
			client = ""
			c = v.clients[client]
		}
	}
	if c == nil {
		c = &guesser{}
		v.clients[client] = c
	}
	return c
}

func (v *verifier) leave(id [32]byte, c *guesser, line chan struct{}, result verdict) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.waiting[line]--
	c.waiting--
	remember := func(m map[[32]byte]struct{}) {
		if len(m) >= maxKnown {
			clear(m)
		}
		m[id] = struct{}{}
	}
	switch result {
	case right:
		c.failed = time.Time{}
		remember(v.good)
	case wrong:
		c.failed = time.Now()
		remember(v.bad)
	}
}
