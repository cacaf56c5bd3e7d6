package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// byName is the values of rows without labels but one, by name.
func byName(rows []row) map[string]float64 {
	m := map[string]float64{}
	for _, r := range rows {
		name := r.family.name
		for _, l := range r.labels {
			name += " " + l.Value
		}
		m[name] = r.value
	}
	return m
}

// fakeGunicorn answers as gunicorn's control server does (gunicorn 25.1, gunicorn/ctl), or
// with what answer gives for a command.
func fakeGunicorn(t *testing.T, answer func(command string) []byte) (address string) {
	t.Helper()
	address = filepath.Join(t.TempDir(), "gunicorn.ctl")
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() { // ends when the listener is closed
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			for {
				var head [4]byte
				if _, err := io.ReadFull(conn, head[:]); err != nil {
					break
				}
				body := make([]byte, binary.BigEndian.Uint32(head[:]))
				if _, err := io.ReadFull(conn, body); err != nil {
					break
				}
				var request struct {
					ID      int    `json:"id"`
					Command string `json:"command"`
				}
				if err := json.Unmarshal(body, &request); err != nil {
					break
				}
				data := answer(request.Command)
				if !bytes.HasPrefix(data, []byte("raw:")) {
					data = []byte(strings.Replace(string(data), "ID", string(rune('0'+request.ID)), 1))
					data = append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...)
				} else {
					data = data[4:]
				}
				if _, err := conn.Write(data); err != nil || bytes.HasSuffix(data, []byte("END")) {
					break
				}
			}
			conn.Close()
		}
	})
	return address
}

func TestGunicornControl(t *testing.T) {
	address := fakeGunicorn(t, func(command string) []byte {
		switch command {
		case "show stats":
			return []byte(`{"id": ID, "status": "ok", "data": {"uptime": 3.5, "pid": 7, "workers_current": 3, "workers_target": 4, "workers_spawned": 9, "workers_killed": 6, "reloads": 1, "dirty_arbiter_pid": null}}`)
		case "show workers":
			return []byte(`{"id": ID, "status": "ok", "data": {"workers": [{"pid": 8, "age": 1, "booted": true, "aborted": false, "last_heartbeat": 0.25}, {"pid": 9, "age": 2, "booted": true, "aborted": false, "last_heartbeat": 7.5}, {"pid": 10, "age": 3, "booted": false, "aborted": false, "last_heartbeat": null}], "count": 3}}`)
		}
		return []byte(`{"id": ID, "status": "error", "error": "Command failed"}`)
	})
	for _, spelled := range []string{address, "unix:" + address} {
		rows, err := askGunicorn(context.Background(), spelled)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]float64{
			"gunicorn_workers": 3, "gunicorn_workers_target": 4, "gunicorn_workers_spawned": 9,
			"gunicorn_workers_killed": 6, "gunicorn_reloads": 1, "gunicorn_oldest_heartbeat_seconds": 7.5,
		}
		if got := byName(rows); !maps.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func TestGunicornControlDamaged(t *testing.T) {
	for name, answer := range map[string]string{
		"error":      `{"id": ID, "status": "error", "error": "no"}`,
		"other_id":   `{"id": 99, "status": "ok", "data": {}}`,
		"not_json":   `hello`,
		"no_data":    `{"id": ID, "status": "ok"}`,
		"data_type":  `{"id": ID, "status": "ok", "data": [1]}`,
		"too_large":  "raw:\xff\xff\xff\xffEND",
		"cut_length": "raw:\x00\x00END"[:7] + "END",
		"cut_body":   "raw:\x00\x00\x00\x50{END",
	} {
		t.Run(name, func(t *testing.T) {
			address := fakeGunicorn(t, func(string) []byte { return []byte(answer) })
			if rows, err := askGunicorn(context.Background(), address); err == nil {
				t.Errorf("got %v", byName(rows))
			}
		})
	}
	if _, err := askGunicorn(context.Background(), filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error without a server")
	}
}

func TestParseUWSGI(t *testing.T) {
	const document = `{"version":"2.0.21","listen_queue":5,"listen_queue_errors":1,"signal_queue":0,"load":2,"workers":[
		{"id":1,"pid":11,"accepting":1,"requests":100,"exceptions":2,"harakiri_count":1,"status":"busy","respawn_count":3},
		{"id":2,"pid":12,"accepting":1,"requests":50,"exceptions":0,"harakiri_count":0,"status":"idle","respawn_count":1},
		{"id":3,"pid":0,"accepting":0,"requests":1,"exceptions":0,"harakiri_count":0,"status":"cheap","respawn_count":0},
		{"id":4,"pid":13,"accepting":0,"requests":0,"exceptions":0,"harakiri_count":0,"status":"sig17","respawn_count":0}]}`
	want := map[string]float64{
		"uwsgi_requests": 151, "uwsgi_exceptions": 2, "uwsgi_harakiri": 1, "uwsgi_respawns": 4, "uwsgi_listen_queue": 5,
		"uwsgi_listen_queue_errors": 1,
		"uwsgi_workers busy":        1, "uwsgi_workers idle": 1, "uwsgi_workers cheap": 1, "uwsgi_workers signal": 1,
		"uwsgi_workers pause": 0,
	}
	for name, text := range map[string]string{"plain": document, "http": "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n" +
		document} {
		rows, err := parseUWSGI([]byte(text))
		if got := byName(rows); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: got %v, %v; want %v", name, got, err, want)
		}
	}
	for name, text := range map[string]string{"empty": "", "cut": document[:100], "type": `{"workers": 3}`, "list": "[]"} {
		if rows, err := parseUWSGI([]byte(text)); err == nil {
			t.Errorf("%s: got %v", name, byName(rows))
		}
	}
}

func FuzzParseUWSGI(f *testing.F) {
	f.Add([]byte(`{"workers":[{"status":"busy","requests":1}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		rows, err := parseUWSGI(text)
		if err == nil && len(rows) != 10 && len(rows) != 11 {
			t.Errorf("%d rows of %q", len(rows), text)
		}
	})
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Add([]byte("\x00\x3f\xff\xff{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		body, err := readFrame(bytes.NewReader(text))
		if err == nil && !slices.Equal(text[4:4+len(body)], body) {
			t.Errorf("%q of %q", body, text)
		}
	})
}
