package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"aggregatord/internal/metric"
)

// A Source is a server that tells about its workers what /proc does not.
type Source struct {
	// Pool is whose server it is.
	Pool string
	// Server is Gunicorn or UWSGI.
	Server string
	// Address is the path of a unix socket or, for UWSGI, also host:port. An abstract unix
	// socket begins with @.
	Address string
}

// The servers that can be asked.
const (
	// Gunicorn has a control socket since version 25.1 (--control-socket).
	Gunicorn = "gunicorn"
	// UWSGI has a stats socket (--stats).
	UWSGI = "uwsgi"
)

const (
	// askTimeout bounds one question. The control server of gunicorn stops while it forks.
	askTimeout = 2 * time.Second
	// maxAnswer bounds an answer, in bytes: uWSGI tells some 1 KB for each worker, and more
	// with many threads.
	maxAnswer = 4 << 20
)

// source asks one server.
type source struct {
	Source
	o *Observer

	// mu guards what follows.
	mu   sync.Mutex
	rows []row
	down bool // and that was said
}

// run asks until ctx is done.
func (s *source) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		s.ask(ctx)
		timer.Reset(s.o.wait(10))
	}
}

// ask asks once. A server that does not answer has its metrics absent.
func (s *source) ask(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var rows []row
	var err error
	if s.Server == Gunicorn {
		rows, err = askGunicorn(ctx, s.Address)
	} else {
		rows, err = askUWSGI(ctx, s.Address)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = rows
	up := 1.0
	if err != nil {
		up = 0
		if !s.down && !errors.Is(ctx.Err(), context.Canceled) {
			s.o.logger.Warn("the server does not tell how busy it is; check that the daemon may connect to the socket",
				zap.String("server", s.Server), zap.String("pool", s.Pool), zap.String("address", s.Address), zap.Error(err))
		}
	} else if s.down {
		s.o.logger.Info("the server tells how busy it is again", zap.String("server", s.Server), zap.String("pool", s.Pool))
	}
	s.down = err != nil
	s.o.opts.Metrics.sourcesUp.With(s.Pool, s.Server).Set(up)
}

// told returns what the server has told last.
func (s *source) told() []row {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows
}

// dial connects to a source.
func dial(ctx context.Context, address string) (net.Conn, error) {
	network := "unix"
	if rest, ok := strings.CutPrefix(address, "unix:"); ok {
		address = rest
	} else if !strings.HasPrefix(address, "/") && !strings.HasPrefix(address, "@") && strings.Contains(address, ":") {
		network = "tcp"
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline) //nolint:errcheck // then reading fails
	}
	return conn, nil
}

// The control socket of gunicorn (gunicorn/ctl/protocol.py): each message is a length, 4
// bytes, big-endian, and as many bytes of JSON.
//
//	{"id": 1, "command": "show stats", "args": []}
//	{"id": 1, "status": "ok", "data": {...}} or {"id": 1, "status": "error", "error": "..."}

// gunicornStats is the data of "show stats".
type gunicornStats struct {
	Current float64 `json:"workers_current"`
	Target  float64 `json:"workers_target"`
	Spawned float64 `json:"workers_spawned"`
	Killed  float64 `json:"workers_killed"`
	Reloads float64 `json:"reloads"`
}

// gunicornWorkers is the data of "show workers".
type gunicornWorkers struct {
	Workers []struct {
		LastHeartbeat *float64 `json:"last_heartbeat"` // seconds ago
	} `json:"workers"`
}

var (
	famGunicornWorkers = family{"gunicorn_workers", "Workers of gunicorn's arbiter (workers_current).", metric.Gauge}
	famGunicornTarget  = family{"gunicorn_workers_target", "Workers that gunicorn's arbiter wants (workers_target).", metric.Gauge}
	famGunicornSpawned = family{
		"gunicorn_workers_spawned", "Workers that gunicorn's arbiter has started (workers_spawned).",
		metric.Counter,
	}
	famGunicornKilled = family{
		"gunicorn_workers_killed", "Workers that gunicorn's arbiter has seen end (workers_killed).",
		metric.Counter,
	}
	famGunicornReloads   = family{"gunicorn_reloads", "Times gunicorn has reloaded.", metric.Counter}
	famGunicornHeartbeat = family{
		"gunicorn_oldest_heartbeat_seconds",
		"Seconds since the heartbeat of the worker of gunicorn that has been silent longest. A sync worker is silent while it is busy, and up to half of its timeout while it waits.", metric.Gauge,
	}
)

// askGunicorn asks the control socket of gunicorn.
func askGunicorn(ctx context.Context, address string) ([]row, error) {
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // all was read
	var stats gunicornStats
	if err := command(conn, 1, "show stats", &stats); err != nil {
		return nil, err
	}
	var workers gunicornWorkers
	if err := command(conn, 2, "show workers", &workers); err != nil {
		return nil, err
	}
	silent := -1.0
	for _, w := range workers.Workers {
		if w.LastHeartbeat != nil {
			silent = max(silent, *w.LastHeartbeat)
		}
	}
	rows := []row{
		{famGunicornWorkers, nil, stats.Current},
		{famGunicornTarget, nil, stats.Target},
		{famGunicornSpawned, nil, stats.Spawned},
		{famGunicornKilled, nil, stats.Killed},
		{famGunicornReloads, nil, stats.Reloads},
	}
	if silent >= 0 {
		rows = append(rows, row{famGunicornHeartbeat, nil, silent})
	}
	return rows, nil
}

// command sends a command to gunicorn and reads its answer into data.
func command(conn io.ReadWriter, id int, command string, data any) error {
	request, err := json.Marshal(map[string]any{"id": id, "command": command, "args": []string{}})
	if err != nil {
		panic(fmt.Sprintf("BUG: %q has no JSON: %v", command, err))
	}
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(request))), request...)); err != nil {
		return fmt.Errorf("send %q: %w", command, err)
	}
	body, err := readFrame(conn)
	if err != nil {
		return fmt.Errorf("answer to %q: %w", command, err)
	}
	var answer struct {
		ID     int             `json:"id"`
		Status string          `json:"status"`
		Error  string          `json:"error"`
		Data   json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("answer to %q: %w", command, err)
	}
	if answer.Status != "ok" || answer.ID != id {
		return fmt.Errorf("answer to %q: status %q: %s", command, answer.Status, answer.Error)
	}
	if err := json.Unmarshal(answer.Data, data); err != nil {
		return fmt.Errorf("answer to %q: %w", command, err)
	}
	return nil
}

// readFrame reads one message of gunicorn's control socket.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxAnswer {
		return nil, fmt.Errorf("a message of %d bytes; the limit is %d", size, maxAnswer)
	}
	// The length is a claim: room is made for what comes.
	body, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err == nil && len(body) < int(size) {
		err = io.ErrUnexpectedEOF
	}
	return body, err
}

// uwsgiStats is what uWSGI's stats socket tells to whoever connects, as one JSON document
// (core/stats.c).
type uwsgiStats struct {
	ListenQueue       float64 `json:"listen_queue"`
	ListenQueueErrors float64 `json:"listen_queue_errors"`
	Workers           []struct {
		Requests   float64 `json:"requests"`
		Exceptions float64 `json:"exceptions"`
		Harakiri   float64 `json:"harakiri_count"`
		Respawns   float64 `json:"respawn_count"`
		Status     string  `json:"status"`
	} `json:"workers"`
}

var (
	famUWSGIWorkers = family{
		"uwsgi_workers", "Workers of uWSGI by status: idle, busy, cheap (not started), pause, or signal.",
		metric.Gauge,
	}
	famUWSGIRequests   = family{"uwsgi_requests", "Requests that uWSGI's workers have answered (requests).", metric.Counter}
	famUWSGIExceptions = family{"uwsgi_exceptions", "Exceptions that the application has raised (exceptions).", metric.Counter}
	famUWSGIHarakiri   = family{
		"uwsgi_harakiri", "Workers that were killed because a request took too long (harakiri_count).",
		metric.Counter,
	}
	famUWSGIRespawns = family{"uwsgi_respawns", "Times workers were started again (respawn_count).", metric.Counter}
	famUWSGIQueue    = family{
		"uwsgi_listen_queue", "Connections that wait to be accepted, as uWSGI tells them (listen_queue).",
		metric.Gauge,
	}
	famUWSGIQueueErrors = family{
		"uwsgi_listen_queue_errors", "Times uWSGI could not find out how many wait (listen_queue_errors).",
		metric.Counter,
	}
)

// askUWSGI asks the stats socket of uWSGI.
func askUWSGI(ctx context.Context, address string) ([]row, error) {
	conn, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close() //nolint:errcheck // all was read
	text, err := io.ReadAll(io.LimitReader(conn, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxAnswer {
		return nil, fmt.Errorf("more than %d bytes of statistics", maxAnswer)
	}
	return parseUWSGI(text)
}

func parseUWSGI(text []byte) ([]row, error) {
	if bytes.HasPrefix(text, []byte("HTTP/")) { // with --stats-http
		_, text, _ = bytes.Cut(text, []byte("\r\n\r\n"))
	}
	var stats uwsgiStats
	if err := json.Unmarshal(text, &stats); err != nil {
		return nil, fmt.Errorf("statistics of uWSGI: %w", err)
	}
	byStatus := map[string]float64{"idle": 0, "busy": 0, "cheap": 0, "pause": 0}
	var requests, exceptions, harakiri, respawns float64
	for _, w := range stats.Workers {
		status := w.Status
		if _, ok := byStatus[status]; !ok {
			status = "signal" // sig1 and so on: it handles a signal
		}
		byStatus[status]++
		requests, exceptions = requests+w.Requests, exceptions+w.Exceptions
		harakiri, respawns = harakiri+w.Harakiri, respawns+w.Respawns
	}
	rows := []row{
		{famUWSGIRequests, nil, requests},
		{famUWSGIExceptions, nil, exceptions},
		{famUWSGIHarakiri, nil, harakiri},
		{famUWSGIRespawns, nil, respawns},
		{famUWSGIQueue, nil, stats.ListenQueue},
		{famUWSGIQueueErrors, nil, stats.ListenQueueErrors},
	}
	for status, n := range byStatus {
		rows = append(rows, row{famUWSGIWorkers, []metric.Label{{Name: "status", Value: status}}, n})
	}
	return rows, nil
}
