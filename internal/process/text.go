package process

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// stat is what is needed of /proc/PID/stat (proc_pid_stat(5)). The package procfs reads it,
// too, at several times the cost; this one is read of every process at every sample.
type stat struct {
	comm  string // what the process calls itself: any bytes, at most 15 of them or so
	state byte
	ppid  int
	// Clock ticks: its own, and those of the children it has waited for, with theirs.
	utime, stime, cutime, cstime uint64
	majflt, cmajflt              uint64
	threads                      uint64
	start                        uint64 // clock ticks after boot
	vsize                        uint64 // bytes
	rss                          uint64 // pages
	exitCode                     int    // as wait(2) has it; 0 also where we may not know
}

var errStat = errors.New("not in the form of proc_pid_stat(5)")

// The fields of /proc/PID/stat by their numbers in the manual page.
const (
	fieldState    = 3
	fieldPpid     = 4
	fieldMajflt   = 12
	fieldCmajflt  = 13
	fieldUtime    = 14
	fieldStime    = 15
	fieldCutime   = 16
	fieldCstime   = 17
	fieldThreads  = 20
	fieldStart    = 22
	fieldVsize    = 23
	fieldRss      = 24
	fieldExitCode = 52
)

// parseStat reads /proc/PID/stat. The name stands in brackets and may hold brackets, blanks
// and line feeds itself, so it ends at the last bracket.
func parseStat(data []byte) (stat, error) {
	var s stat
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	if open < 0 || end < open {
		return s, errStat
	}
	s.comm = string(data[open+1 : end])
	rest := data[end+1:]
	field := fieldState
	for ; ; field++ {
		rest = bytes.TrimLeft(rest, " \n")
		if len(rest) == 0 {
			break
		}
		n := bytes.IndexAny(rest, " \n")
		if n < 0 {
			n = len(rest)
		}
		word := rest[:n]
		rest = rest[n:]
		var to *uint64
		switch field {
		case fieldState:
			if len(word) != 1 {
				return s, fmt.Errorf("field %d: %w", field, errStat)
			}
			s.state = word[0]
		case fieldPpid, fieldExitCode:
			v, err := strconv.Atoi(string(word))
			if err != nil {
				return s, fmt.Errorf("field %d: %w", field, errStat)
			}
			if field == fieldPpid {
				s.ppid = v
			} else {
				s.exitCode = v
			}
		case fieldMajflt:
			to = &s.majflt
		case fieldCmajflt:
			to = &s.cmajflt
		case fieldUtime:
			to = &s.utime
		case fieldStime:
			to = &s.stime
		case fieldCutime:
			to = &s.cutime
		case fieldCstime:
			to = &s.cstime
		case fieldThreads:
			to = &s.threads
		case fieldStart:
			to = &s.start
		case fieldVsize:
			to = &s.vsize
		case fieldRss:
			to = &s.rss
		}
		if to != nil {
			v, ok := decimal(word)
			if !ok {
				return s, fmt.Errorf("field %d: %w", field, errStat)
			}
			*to = v
		}
	}
	if field <= fieldRss {
		return s, fmt.Errorf("%d fields: %w", field-1, errStat)
	}
	return s, nil
}

// decimal reads a number, without an allocation. Where the kernel prints a signed number
// that happens to be negative (rss may be, for a moment), it is 0.
func decimal(word []byte) (uint64, bool) {
	negative := len(word) > 1 && word[0] == '-'
	if negative {
		word = word[1:]
	}
	if len(word) == 0 || len(word) > 20 {
		return 0, false
	}
	var v uint64
	for _, c := range word {
		if c < '0' || c > '9' {
			return 0, false
		}
		next := v*10 + uint64(c-'0')
		if v > (1<<64-1)/10 || next < v*10 {
			return 0, false
		}
		v = next
	}
	if negative {
		v = 0
	}
	return v, true
}

// mapping is one line of /proc/PID/maps (proc_pid_maps(5)).
type mapping struct {
	perms []byte
	dev   uint64 // as unix.Mkdev
	ino   uint64
	path  []byte // as the kernel spells it: a line feed is \012, and " (deleted)" may follow
}

// writable reports whether the process may store through the mapping into the file.
func (m *mapping) writable() bool { return m.perms[1] == 'w' && m.perms[3] == 's' }

// parseMapping reads a line, which the result refers to. The package procfs reads maps,
// too, but makes a struct of every line, of which a process may have tens of thousands; we
// want a few.
func parseMapping(line []byte) (m mapping, ok bool) {
	line = bytes.TrimSuffix(line, []byte("\n"))
	var addr, offset, dev, inode []byte
	addr, line = cut(line)
	m.perms, line = cut(line)
	offset, line = cut(line)
	dev, line = cut(line)
	inode, line = cut(line)
	if len(addr) == 0 || len(offset) == 0 || len(m.perms) != 4 {
		return m, false
	}
	if m.ino, ok = decimal(inode); !ok {
		return m, false
	}
	major, minor, ok := bytes.Cut(dev, []byte(":"))
	if !ok {
		return m, false
	}
	high, err1 := strconv.ParseUint(string(major), 16, 32)
	low, err2 := strconv.ParseUint(string(minor), 16, 32)
	if err1 != nil || err2 != nil {
		return m, false
	}
	m.dev = mkdev(uint32(high), uint32(low))
	m.path = bytes.TrimLeft(line, " ")
	return m, true
}

// cut returns the first word of a line and what follows it.
func cut(line []byte) (word, rest []byte) {
	line = bytes.TrimLeft(line, " ")
	n := bytes.IndexByte(line, ' ')
	if n < 0 {
		return line, nil
	}
	return line[:n], line[n:]
}

// baseOf is the last part of a path as /proc spells it.
func baseOf(path []byte) []byte {
	path = bytes.TrimSuffix(path, []byte(" (deleted)"))
	return path[bytes.LastIndexByte(path, '/')+1:]
}

// keyValue returns a number of a file with a name and a number in each line, such as
// cpu.stat and memory.events of a cgroup.
func keyValue(data []byte, key string) (uint64, bool) {
	for line := range bytes.Lines(data) {
		// A name and a blank, or a tab.
		if rest, ok := bytes.CutPrefix(line, []byte(key)); ok && len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') {
			return decimal(bytes.Trim(rest, " \t\n"))
		}
	}
	return 0, false
}
