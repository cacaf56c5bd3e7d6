package output

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.uber.org/zap"

	"aggregatord/internal/exposition"
)

// textfile writes a file that is replaced in one step: whoever reads it sees the old or the
// new content whole. It does not promise that the new one survives a crash of the machine.
//
// The new content is first in a hidden file beside it, whose name does not end in .prom, so
// that the collector of node_exporter never reads it. The name is always the same: what a
// kill leaves there is written over by the next push.
type textfile struct {
	path, hidden string
	format       exposition.Format
	remove       bool
	encoder      exposition.Encoder
	buf          []byte
}

func newTextfile(s *TextfileSpec, o senderOptions) (*textfile, error) {
	path, err := filepath.Abs(s.Path)
	if err != nil {
		return nil, fmt.Errorf("textfile %q: %w", s.Path, err)
	}
	t := &textfile{path: path, hidden: filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".aggregatord"), remove: s.RemoveOnExit}
	name := s.Format
	if name == "" {
		name = exposition.FormatNames()[0]
	}
	if t.format, err = exposition.ParseFormat(name); err != nil {
		return nil, err
	}
	t.encoder.OnReport = omissions(o.log)
	return t, nil
}

// omissions logs what an encoder must leave out.
func omissions(log *zap.Logger) func(exposition.Report) {
	return func(r exposition.Report) {
		for i, o := range r.Omissions {
			if i == 20 {
				log.Warn("more is left out of the output", zap.Int("families", len(r.Omissions)-i))
				break
			}
			log.Warn("left out of the output, which would be invalid with it", zap.Stringer("what", o))
		}
	}
}

func (t *textfile) wantsStarts() bool { return false }

func (t *textfile) skipsLast() bool { return t.remove }

func (t *textfile) push(_ context.Context, f *frame) (sent, error) {
	t.buf = t.encoder.Append(t.buf[:0], t.format, exposition.Filter{}, f.parts...)
	if err := t.replace(t.buf); err != nil {
		p := &PushError{Result: Unavailable, Retry: true, Err: err}
		if errors.Is(err, fs.ErrPermission) {
			p.Result, p.Retry, p.Hint = Unauthorized, false, "let the daemon's user write into the directory"
		} else if errors.Is(err, fs.ErrNotExist) {
			p.Hint = "make the directory"
		}
		return sent{}, p
	}
	return sent{bytes: len(t.buf), samples: samplesOf(f)}, nil
}

// replace is: unlink(hidden) if it is there, open(hidden, O_CREAT|O_EXCL), write, fchmod(0644),
// close, rename(hidden, path). O_EXCL follows no link that somebody has put there.
func (t *textfile) replace(data []byte) (err error) {
	if err := os.Remove(t.hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %q: %w", t.path, err)
	}
	file, err := os.OpenFile(t.hidden, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return fmt.Errorf("replace %q: %w", t.path, err)
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Chmod(0o644) // whatever the umask says: node_exporter is another user
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(t.hidden, t.path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replace %q: %w", t.path, err), os.Remove(t.hidden))
	}
	return nil
}

func (t *textfile) leave(context.Context, bool) error {
	if !t.remove {
		return nil
	}
	if err := os.Remove(t.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the file: %w", err)
	}
	return nil
}

func (t *textfile) close() {}
