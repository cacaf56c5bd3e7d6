package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
)

// python is the interpreter that Debian's python3-prometheus-client is for.
const python = "/usr/bin/python3"

// runPython runs a script with the real client in multiprocess mode on dir, and decodes the
// JSON that it prints into result.
func runPython(t *testing.T, dir, script string, result any) {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import prometheus_client.mmap_dict").CombinedOutput(); err != nil {
		msg := fmt.Sprintf("needs the real client: apt-get install python3-prometheus-client (%v)\n%s", err, out)
		if os.Getenv("CI") == "true" {
			t.Fatal(msg)
		}
		t.Skip(msg)
	}
	cmd := exec.Command(python, "-c", script)
	cmd.Env = append(os.Environ(), "PROMETHEUS_MULTIPROC_DIR="+dir, "PYTHONIOENCODING=utf-8")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	if err := json.Unmarshal(out, result); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
}

// A peerEntry is an entry as Python reads it.
type peerEntry struct {
	Key    string
	Family string
	Sample string
	Labels map[string]string
	Help   string
	Hex    string // the value by float.hex
}

// readAll prints what the client reads in the directory: file name, then its entries. The
// tuples of later clients have a timestamp between value and position.
const readAll = `
import glob, json, os
from prometheus_client.mmap_dict import MmapedDict
result = {}
for path in glob.glob(os.path.join(os.environ['PROMETHEUS_MULTIPROC_DIR'], '*.db')):
    result[os.path.basename(path)] = entries = []
    for key, value, *_ in MmapedDict.read_all_values_from_file(path):
        family, sample, labels, help = json.loads(key)
        entries.append(dict(Key=key, Family=family, Sample=sample, Labels=labels, Help=help, Hex=float(value).hex()))
print(json.dumps(result))
`

func comparePeer(t *testing.T, dir string, want map[string][]peerEntry) {
	t.Helper()
	for base, entries := range want {
		if _, err := ParseName(base); err != nil {
			t.Error(err)
		}
		f := open(t, filepath.Join(dir, base))
		records, err := learn(f)
		if err != nil || len(records) != len(entries) {
			t.Errorf("%s: %d entries, want %d, %v", base, len(records), len(entries), err)
			continue
		}
		for i, e := range entries {
			r := records[i]
			if r.Key != e.Key {
				t.Errorf("%s: key %q, want %q", base, r.Key, e.Key)
			}
			k, err := ParseKey([]byte(r.Key))
			if err != nil {
				t.Errorf("%s: %v", base, err)
				continue
			}
			labels := map[string]string{}
			for _, l := range k.Series.Labels {
				labels[l.Name] = l.Value
			}
			if k.Family != e.Family || k.Series.Sample != e.Sample || k.Help != e.Help || !reflect.DeepEqual(labels, e.Labels) {
				t.Errorf("%s: %+v, want %+v", base, k, e)
			}
			if again := string(AppendKey(nil, k)); again != e.Key {
				t.Errorf("%s: written again as %q, want %q", base, again, e.Key)
			}
			if value, err := parseHex(e.Hex); err != nil || !same(value, r.Value) {
				t.Errorf("%s: %s is %v, want %s (%v)", base, e.Key, r.Value, e.Hex, err)
			}
		}
	}
}

// parseHex reads what Python's float.hex writes.
func parseHex(s string) (float64, error) {
	if s == "nan" {
		// struct.pack gives Python's one NaN.
		return math.Float64frombits(0x7ff8_0000_0000_0000), nil
	}
	return strconv.ParseFloat(s, 64)
}

// TestRealClient lets the real client write, and reads what it reads.
func TestRealClient(t *testing.T) {
	dir := t.TempDir()
	var want map[string][]peerEntry
	runPython(t, dir, `
from prometheus_client import Counter, Gauge, Histogram, Summary
odd = ['', ' ', '"', '\\', '\n', '\t', '\x00', '\x1f', '\x7f', '\x80', 'żółć', '日本語', '😀', '\U0010ffff', '\uffff', '\ufeff',
       '\u2028', '/', '</script>', '{}', '["a"]', "'", 'x' * 3000, 'a\\u0041', '\r\n', 'null', '1.0', '\\']
c = Counter('odd', 'Help: "quotes", \\ and\nnew lines, żółć 😀', ['v'])
for i, v in enumerate(odd):
    c.labels(v).inc(i + 0.1)
pairs = Counter('pairs', 'Two labels.', ['zeta', 'alpha'], namespace='shop', subsystem='cart')
for a in odd[:8]:
    for b in odd[8:16]:
        pairs.labels(a, b).inc()
Counter('untouched', '')
for mode in ['all', 'liveall', 'sum', 'livesum', 'max', 'livemax', 'min', 'livemin']:
    g = Gauge('g_' + mode, 'Gauge.', ['n'], multiprocess_mode=mode)
    for i, v in enumerate([0.0, -0.0, 1e308, 5e-324, float('inf'), float('-inf'), float('nan'), 0.1, 2.0**53, -1]):
        g.labels(i).set(v)
h = Histogram('h', 'Histogram.', ['path'], buckets=[-1.5, 0, 1e-9, 2.5, 1e9])
s = Summary('s', 'Summary.', ['path'])
for v in odd:
    for x in range(-2, 30):
        h.labels(v).observe(x * 1.1)
        s.labels(v).observe(x)
`+readAll, &want)
	if len(want) != 11 {
		t.Errorf("the client wrote %d files, not 11", len(want))
	}
	comparePeer(t, dir, want)
}

// TestRealClientReadsOurs lets the real client read what we wrote, go on with it, and
// reads that.
func TestRealClientReadsOurs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "counter_1.db")
	// Which width the installed client has is seen from what it writes.
	var probe map[string][]peerEntry
	probeDir := t.TempDir()
	runPython(t, probeDir, `
from prometheus_client import Counter
Counter('f', 'Help.').inc()
`+readAll, &probe)
	width := 0
	for base := range probe {
		width = inspect(t, filepath.Join(probeDir, base)).Width
	}
	w, err := OpenWriter(path, WriterOptions{Width: width, FirstBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		slot, err := w.Slot(AppendKey(nil, key("f", "f_total", "Help żółć 😀", "a", fmt.Sprintf("%d\n\"", i), "b", "\x7f\u2028")))
		if err != nil {
			t.Fatal(err)
		}
		w.Add(slot, float64(i)/10)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	var read map[string][]peerEntry
	runPython(t, dir, readAll, &read)
	if len(read["counter_1.db"]) != 100 {
		t.Fatalf("the client read %d entries, not 100", len(read["counter_1.db"]))
	}
	comparePeer(t, dir, read)

	runPython(t, dir, `
import os
from prometheus_client import values
values.ValueClass = values.MultiProcessValue(lambda: 1)
from prometheus_client import Counter
c = Counter('f', 'Help żółć 😀', ['b', 'a'])
for i in range(50, 200):
    c.labels('\x7f\u2028', '%d\n"' % i).inc(1000)
`+readAll, &read)
	entries := read["counter_1.db"]
	if len(entries) != 200 {
		t.Fatalf("the client left %d entries, not 200: it did not find ours", len(entries))
	}
	comparePeer(t, dir, read)
	if v, err := parseHex(entries[99].Hex); err != nil || v != 9.9+1000 {
		t.Errorf("entry 99 is %v, %v", v, err)
	}
}
