package terminal

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"
)

// A Style is how a line is shown.
type Style int

// The styles. Without colour all are Plain.
const (
	Plain Style = iota
	Title
	Heading
	Faint
	Warning
	Alarm
	Good
)

// sgr are the sequences of ECMA-48 that select the styles.
var sgr = map[Style]string{
	Title: "\x1b[1m", Heading: "\x1b[7m", Faint: "\x1b[2m", Warning: "\x1b[33m", Alarm: "\x1b[1;31m", Good: "\x1b[32m",
}

// A Line is one line of a screen.
type Line struct {
	Text  string
	Style Style
}

// Keys that are no characters.
const (
	KeyCtrlC     = '\x03'
	KeyCtrlL     = '\x0c'
	KeySuspend   = '\x1a'
	KeyEscape    = '\x1b'
	KeyEnter     = '\r'
	KeyTab       = '\t'
	KeyBackspace = '\x7f'
	writeTimeout = 2 * time.Second
)

// Keys that send a sequence, as characters that nobody types (private use of Unicode).
const (
	KeyUp rune = '\uf700' + iota
	KeyDown
	KeyPageUp
	KeyPageDown
	KeyHome
	KeyEnd
)

// sequences are what terminals send for those keys, without the escape: in normal mode, in
// application mode, and those of the Linux console and rxvt.
var sequences = map[string]rune{
	"[A": KeyUp, "[B": KeyDown, "OA": KeyUp, "OB": KeyDown, "[5~": KeyPageUp, "[6~": KeyPageDown,
	"[H": KeyHome, "[F": KeyEnd, "OH": KeyHome, "OF": KeyEnd, "[1~": KeyHome, "[4~": KeyEnd, "[7~": KeyHome, "[8~": KeyEnd,
}

// enter switches to the alternate screen of xterm(1), which leaves what was there before
// alone, and hides the cursor; leave undoes it.
const (
	enter = "\x1b[?1049h\x1b[?25l\x1b[2J"
	leave = "\x1b[0m\x1b[2J\x1b[?25h\x1b[?1049l"
)

// Is reports whether f is a terminal, of whatever kind.
func Is(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// Interactive reports whether f is a terminal that can show a Screen: TERM=dumb, or none,
// means that it cannot.
func Interactive(f *os.File) bool {
	name := os.Getenv("TERM")
	return name != "" && name != "dumb" && Is(f)
}

// Width returns how many columns a terminal has, and 0 for what is none or does not know it.
func Width(f *os.File) int {
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return columns
}

// Colours reports whether f is a terminal that shows styles, and the user has nothing against
// them (NO_COLOR).
func Colours(f *os.File) bool { return Interactive(f) && os.Getenv("NO_COLOR") == "" }

// Paint returns text in a style, for a terminal that shows styles.
func (s Style) Paint(text string) string {
	if sgr[s] == "" {
		return text
	}
	return sgr[s] + text + "\x1b[0m"
}

// A Screen has the controlling terminal to itself, from Open to Close. Its methods are for
// one goroutine; only Close and Guard may be called by any.
type Screen struct {
	tty     *os.File
	colours bool
	keys    chan rune
	changed chan os.Signal
	quit    chan struct{}
	reading sync.WaitGroup

	// shown is what the terminal shows, nil if that is not known.
	shown         []Line
	width, height int

	// mu guards saved.
	mu sync.Mutex
	// saved is the terminal's mode before, nil while it has that.
	saved *term.State
}

// Open takes the controlling terminal. Whoever opens it must Close it, however the program
// goes on: until then the terminal echoes nothing, and Ctrl-C is a key. The environment's
// NO_COLOR turns the styles off.
func Open() (*Screen, error) {
	// Opened once more it can wait for keys without keeping the program from its end, and
	// without changing the mode of the descriptors that the shell shares with us.
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("open the terminal: %w", err)
	}
	s := &Screen{
		tty: tty, colours: os.Getenv("NO_COLOR") == "", keys: make(chan rune),
		changed: make(chan os.Signal, 1), quit: make(chan struct{}),
	}
	if err := s.take(); err != nil {
		return nil, errors.Join(err, tty.Close())
	}
	// SIGCONT: the shell that had the terminal meanwhile has set its mode.
	signal.Notify(s.changed, syscall.SIGWINCH, syscall.SIGCONT)
	// Ends when the terminal is closed, by Close.
	s.reading.Go(s.read)
	return s, nil
}

// Close gives the terminal back as it was. It may be called again.
func (s *Screen) Close() error {
	s.mu.Lock()
	select {
	case <-s.quit:
		s.mu.Unlock()
		return nil
	default:
		close(s.quit)
	}
	s.mu.Unlock()
	signal.Stop(s.changed)
	err := errors.Join(s.give(), s.tty.Close())
	s.reading.Wait()
	return err
}

// Guard gives the terminal back if the goroutine that defers it panics, so that what the
// panic says can be read.
func (s *Screen) Guard() {
	if p := recover(); p != nil {
		_ = s.give()
		panic(p)
	}
}

// Keys are what is typed. The channel is closed when the terminal is gone.
func (s *Screen) Keys() <-chan rune { return s.keys }

// Changed tells when the screen must be drawn again, as its size may be another, or as
// somebody else had the terminal. What it tells goes to Adapt.
func (s *Screen) Changed() <-chan os.Signal { return s.changed }

// Adapt takes the terminal again if somebody else had it, as told by Changed.
func (s *Screen) Adapt(what os.Signal) error {
	if what == syscall.SIGCONT {
		return s.take()
	}
	return nil
}

// Forget has the next Draw draw everything.
func (s *Screen) Forget() { s.shown = nil }

// control does something with the terminal's descriptor. Fd would make it a blocking one.
func (s *Screen) control(f func(fd int) error) error {
	raw, err := s.tty.SyscallConn()
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) { err = f(int(fd)) }), err)
}

// take puts the terminal into raw mode and shows an empty screen.
func (s *Screen) take() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.control(func(fd int) (err error) {
		state, err := term.MakeRaw(fd)
		if err == nil && s.saved == nil {
			s.saved = state
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("set the mode of the terminal: %w", err)
	}
	s.shown = nil
	return s.write([]byte(enter))
}

// give undoes take.
func (s *Screen) give() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.saved == nil {
		return nil
	}
	err := s.write([]byte(leave))
	err = errors.Join(err, s.control(func(fd int) error { return term.Restore(fd, s.saved) }))
	s.saved = nil
	return err
}

// write writes to the terminal. One that takes nothing, because nobody reads what it shows,
// must not keep the program from its end.
func (s *Screen) write(b []byte) error {
	// A terminal that does not know deadlines is written to without one.
	_ = s.tty.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := s.tty.Write(b)
	return err
}

// read passes on what is typed. Of a key that sends a sequence that is not known nothing is.
func (s *Screen) read() {
	defer close(s.keys)
	buf := make([]byte, 64)
	for {
		n, err := s.tty.Read(buf)
		if err != nil {
			return
		}
		typed := string(buf[:n])
		keys := []rune(typed)
		if n > 1 && typed[0] == KeyEscape {
			if keys = keys[:0]; sequences[typed[1:]] != 0 {
				keys = append(keys, sequences[typed[1:]])
			}
		}
		for _, key := range keys {
			select {
			case s.keys <- key:
			case <-s.quit:
				return
			}
		}
	}
}

// Suspend stops the program as Ctrl-Z does, and returns when it is continued.
func (s *Screen) Suspend() error {
	if err := s.give(); err != nil {
		return err
	}
	// The whole group, as the terminal would: the shell's job may have other processes.
	if err := syscall.Kill(0, syscall.SIGTSTP); err != nil {
		return err
	}
	return s.take()
}

// Size returns the number of columns and of lines, 80 and 24 if the terminal does not know.
func (s *Screen) Size() (columns, lines int) {
	err := s.control(func(fd int) (err error) {
		columns, lines, err = term.GetSize(fd)
		return err
	})
	if err != nil || columns <= 0 || lines <= 0 {
		return 80, 24
	}
	return columns, lines
}

// Draw shows the lines, cut to the size of the screen, and nothing else. Only what has
// changed since the last time is written.
func (s *Screen) Draw(frame []Line) error {
	columns, height := s.Size()
	var out []byte
	if s.shown == nil || columns != s.width || height != s.height {
		out = append(out, "\x1b[0m\x1b[2J"...)
		s.shown = make([]Line, height)
		s.width, s.height = columns, height
	}
	for i := range height {
		var line Line
		if i < len(frame) {
			line = Line{Cut(Printable(frame[i].Text), columns), frame[i].Style}
		}
		if line == s.shown[i] {
			continue
		}
		s.shown[i] = line
		// Cleared before it is written: in the last column that would clear a character.
		out = append(strconv.AppendInt(append(out, "\x1b["...), int64(i+1), 10), ";1H\x1b[2K"...)
		style := sgr[line.Style]
		if !s.colours {
			style = ""
		}
		out = append(append(out, style...), line.Text...)
		if style != "" {
			out = append(out, "\x1b[0m"...)
		}
	}
	if len(out) == 0 {
		return nil
	}
	if err := s.write(out); err != nil {
		s.shown = nil // who knows how much of it has arrived
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // it may take the next one
		}
		return fmt.Errorf("draw the screen: %w", err)
	}
	return nil
}
