package discover

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"aggregatord/internal/metric"
	"aggregatord/internal/policy"
)

// Settings are what an application says of its own pool.
type Settings struct {
	// Labels are added to those of the pool; none has the name of one of them.
	Labels []metric.Label
	// Own is put into force for the pool alone: see pool.Spec.
	Own *policy.Policy
}

const (
	// MaxSettingsBytes is how large a file of settings may be.
	MaxSettingsBytes = 16 << 10
	// settingsRest is how long a file of settings must be as it is before it is read: whoever writes
	// it is done by then, and one that is written again and again does nothing.
	settingsRest = 2 * time.Second
	// settingsWait is how long a pool is not served at first because its file of settings is not at
	// rest: a pool that gets other labels at once would be another one.
	settingsWait = 10 * time.Second
	// maxSettingsError is how much is told of what is wrong in a file, in bytes.
	maxSettingsError = 400
)

// IsSettingsName reports whether a name can be that of a file of settings: no path, nothing hidden,
// which is ours, and no source file.
func IsSettingsName(name string) bool {
	return name != "" && !strings.HasPrefix(name, ".") && !strings.ContainsAny(name, "/\x00") && !isSource(name)
}

// settingsFile is the file of settings of a volume. Whoever can write to the volume may put anything
// there, so it is reached without following links, it must be regular with one name, and it is read
// to a bounded length. One that is wrong changes nothing: what was said before holds.
type settingsFile struct {
	begun time.Time // when it was seen first
	stamp settingsStamp
	said  Settings
	hash  uint64 // of the content that said it, 0 for none
	err   error
}

// settingsStamp tells one content of a file from another. The time is that of the inode's last change,
// which nobody can set.
type settingsStamp struct {
	dev, ino uint64
	size     int64
	changed  unix.Timespec
}

// look reads the file if it has changed and was left alone for rest, and reports whether the pool
// should wait for it.
func (f *settingsFile) look(volume, name string, read func(string, []byte) (Settings, error), rest time.Duration) (wait bool) {
	path := filepath.Join(volume, name)
	file, stamp, err := openSettings(volume, name)
	if errors.Is(err, unix.ENOENT) {
		*f = settingsFile{}
		return false
	}
	if f.begun.IsZero() {
		f.begun = time.Now()
	}
	if err != nil {
		f.stamp = settingsStamp{}
		f.refuse(fmt.Errorf("%s: %w", path, err))
		return false
	}
	defer file.Close() //nolint:errcheck // it was only read
	if stamp == f.stamp {
		return false
	}
	if time.Since(time.Unix(stamp.changed.Unix())) < rest {
		return f.stamp == settingsStamp{} && f.err == nil && time.Since(f.begun) < settingsWait
	}
	f.stamp, f.err = stamp, nil
	data, err := io.ReadAll(io.LimitReader(file, MaxSettingsBytes+1))
	var said Settings
	switch {
	case err != nil:
		err = fmt.Errorf("%s: %w", path, err)
	case len(data) > MaxSettingsBytes:
		err = fmt.Errorf("%s: it has more than %d bytes", path, MaxSettingsBytes)
	default:
		said, err = read(path, data)
	}
	if err != nil {
		f.refuse(err)
		return false
	}
	sum := fnv.New64a()
	sum.Write(data)
	f.said, f.hash = said, sum.Sum64()|1
	return false
}

// refuse takes note of what is wrong, in one line of a bounded length: a part of it is the file's.
func (f *settingsFile) refuse(err error) {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	f.err = fmt.Errorf("a pod's file of settings is left alone: %s", strings.ToValidUTF8(text[:min(len(text), maxSettingsError)], "\ufffd"))
}

// openSettings opens the file of settings of a volume.
func openSettings(volume, name string) (*os.File, settingsStamp, error) {
	dir, err := openDir(volume)
	if err != nil {
		return nil, settingsStamp{}, err
	}
	defer dir.Close() //nolint:errcheck // only a place
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ELOOP) {
		err = errors.New("it is a link; write the file itself")
	}
	if err != nil {
		return nil, settingsStamp{}, err
	}
	file := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, settingsStamp{}, errors.Join(err, file.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		return nil, settingsStamp{}, errors.Join(errors.New("it is not a regular file with one name"), file.Close())
	}
	return file, settingsStamp{uint64(st.Dev), st.Ino, st.Size, st.Ctim}, nil //nolint:unconvert // int32 on a Mac
}

// apply puts what the file says into the pool. Another content is another ID.
func (f *settingsFile) apply(to *Found) {
	if f.hash == 0 {
		return
	}
	to.ID += fmt.Sprintf("\x00%x", f.hash)
	to.Spec.Own = f.said.Own
	to.Spec.Labels = slices.Concat(to.Spec.Labels, f.said.Labels)
	metric.SortLabels(to.Spec.Labels)
}
