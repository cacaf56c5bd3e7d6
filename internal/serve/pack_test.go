package serve

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
)

// readers are decompressors of other makes.
var readers = map[string]func(packed []byte) ([]byte, error){
	"compress/gzip": func(packed []byte) ([]byte, error) {
		r, err := stdgzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		r.Multistream(false)
		return io.ReadAll(r)
	},
	"klauspost": func(packed []byte) ([]byte, error) {
		r, err := gzip.NewReader(bytes.NewReader(packed))
		if err != nil {
			return nil, err
		}
		return io.ReadAll(r)
	},
}

// TestPack: whatever changes from one response to the next, each unpacks to what was packed.
func TestPack(t *testing.T) {
	const seed = 11
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	section := func() string {
		var b strings.Builder
		name := fmt.Sprintf("family_%d", r.IntN(1000))
		for i := range r.IntN(200) + 1 {
			fmt.Fprintf(&b, "%s{n=\"%d\"} %d\n", name, i, r.IntN(1<<(1+r.IntN(40))))
		}
		return b.String()
	}
	p := newPacker()
	var sections []string
	for round := range 300 {
		switch r.IntN(6) {
		case 0:
			i := r.IntN(len(sections) + 1)
			sections = append(sections[:i], append([]string{section()}, sections[i:]...)...)
		case 1:
			if len(sections) > 0 {
				i := r.IntN(len(sections))
				sections = append(sections[:i], sections[i+1:]...)
			}
		case 2: // nothing
		default:
			if len(sections) > 0 {
				sections[r.IntN(len(sections))] = section()
			}
		}
		var plain []byte
		p.ends = p.ends[:0]
		for _, s := range sections {
			plain = append(plain, s...)
			p.ends = append(p.ends, len(plain))
		}
		if r.IntN(2) == 0 {
			plain = append(plain, "# EOF\n"...)
		}
		dst := &buffer{}
		if err := p.pack(dst, plain); err != nil {
			t.Fatal(err)
		}
		for name, read := range readers {
			if got, err := read(dst.b); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("round %d, %s: %v, %d bytes, want %d", round, name, err, len(got), len(plain))
			}
		}
		if gz, err := exec.LookPath("gzip"); err == nil && round%30 == 0 {
			cmd := exec.Command(gz, "-dc")
			cmd.Stdin = bytes.NewReader(dst.b)
			if got, err := cmd.Output(); err != nil || !bytes.Equal(got, plain) {
				t.Fatalf("round %d, gzip: %v, %d bytes, want %d", round, err, len(got), len(plain))
			}
		}
	}
}

// TestPackKeepsParts: what has not changed is not compressed again, and a number that got
// longer moves nothing from part to part.
func TestPackKeepsParts(t *testing.T) {
	p := newPacker()
	texts := make([]string, 100)
	for i := range texts {
		texts[i] = strings.Repeat(fmt.Sprintf("family_%d 1\n", i), 100)
	}
	pack := func() (kept int) {
		var plain []byte
		p.ends = p.ends[:0]
		for _, s := range texts {
			plain = append(plain, s...)
			p.ends = append(p.ends, len(plain))
		}
		sums := make([]uint64, len(p.parts))
		for i := range p.parts {
			sums[i] = p.parts[i].sum
		}
		if err := p.pack(&buffer{}, plain); err != nil {
			t.Fatal(err)
		}
		for i := range p.parts {
			if i < len(sums) && p.parts[i].sum == sums[i] {
				kept++
			}
		}
		return kept
	}
	pack()
	parts := len(p.parts)
	if parts < 20 {
		t.Fatalf("there are %d parts", parts)
	}
	if kept := pack(); kept != parts {
		t.Errorf("nothing changed, and %d of %d parts were kept", kept, parts)
	}
	// What is kept is what is sent.
	whole := p.parts[7].deflated
	p.parts[7].deflated = []byte("in place of part 7")
	out := &buffer{}
	var plain []byte
	for _, s := range texts {
		plain = append(plain, s...)
	}
	if err := p.pack(out, plain); err != nil || !bytes.Contains(out.b, []byte("in place of part 7")) {
		t.Errorf("a part that is kept is not sent, %v", err)
	}
	p.parts[7].deflated = whole
	texts[5] += "family_5 100000000000000000000\n"
	if kept := pack(); kept != parts-1 {
		t.Errorf("one family changed, and %d of %d parts were kept", kept, parts)
	}
}
