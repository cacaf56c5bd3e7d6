package store

// Guesses make learning many files with the same keys cheap: after a key, the next one is
// most likely the one that followed it in the file before. Where the bytes are those of the
// guess, nothing is parsed, checked or hashed. Where they are not, one look into a table of
// all keys that were met finds the record, or makes one.
//
// The caller keeps a number with each key, through [Entry.Tag]: for example where its index
// has the key. It must mean the same for all files that are learned with these Guesses.
//
// The zero value is ready for use. It is not safe for several goroutines at once. It holds a
// copy of each key, up to a few MiB; let it go when the files of a start are learned.
type Guesses struct {
	text []byte // all keys, with their lengths and paddings
	keys []guessed
	// byHash finds a key by its hash. Of two keys with one hash only the first is there.
	byHash map[uint64]uint32
	// last is the key met last, at first a key before the first of all files.
	last uint32
	// none takes the tag of a key for which there is no room.
	none uint32
}

// guessed is one key: where in text it is, its hash, the key that followed it last (0 for
// none) and what the caller keeps with it.
type guessed struct {
	from, to  uint32
	next, tag uint32
	hash      uint64
}

const (
	maxGuesses     = 1 << 16
	maxGuessedText = 8 << 20
)

// start says that a file begins.
func (g *Guesses) start() {
	if g.keys == nil {
		g.keys = make([]guessed, 1, 64)
		g.byHash = map[uint64]uint32{}
	}
	g.last = 0
}

// guess returns the text of the key that comes next, most likely; empty for none.
func (g *Guesses) guess() []byte {
	k := &g.keys[g.keys[g.last].next]
	return g.text[k.from:k.to]
}

// right says that the guess was right. It returns the hash of the key and where its tag is.
func (g *Guesses) right() (hash uint64, tag *uint32) {
	g.last = g.keys[g.last].next
	k := &g.keys[g.last]
	return k.hash, &k.tag
}

// wrong says which text came in place of the guess, and its hash.
func (g *Guesses) wrong(text []byte, hash uint64) (tag *uint32) {
	i, known := g.byHash[hash]
	if known {
		if k := &g.keys[i]; string(g.text[k.from:k.to]) != string(text) {
			return g.unknown()
		}
	} else {
		if len(g.keys) == maxGuesses || len(g.text)+len(text) > maxGuessedText {
			return g.unknown()
		}
		i = uint32(len(g.keys))
		from := uint32(len(g.text))
		g.text = append(g.text, text...)
		g.keys = append(g.keys, guessed{from: from, to: uint32(len(g.text)), hash: hash})
		g.byHash[hash] = i
	}
	g.keys[g.last].next = i
	g.last = i
	return &g.keys[i].tag
}

func (g *Guesses) unknown() *uint32 {
	g.none = 0
	return &g.none
}
