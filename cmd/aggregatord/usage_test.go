package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestWrongCalls makes mistakes. Each is told in one line that says what to do, with an
// exit code that is not that of a failure, and before anything is begun.
func TestWrongCalls(t *testing.T) {
	dir := sourceDir(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	webConfig := filepath.Join(dir, "web.yml")
	if err := os.WriteFile(webConfig, []byte("tls_config: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	password := filepath.Join(dir, "password.yml")
	if err := os.WriteFile(password, []byte("basic_auth_users:\n  me: secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	serve := func(args ...string) []string {
		return append([]string{"serve", "--dir", dir, "--web.listen-address", "127.0.0.1:0"}, args...)
	}
	dump := func(args ...string) []string { return append([]string{"dump", "--dir", dir}, args...) }
	for name, tc := range map[string]struct {
		args []string
		says []string
	}{
		"unknown_command": {[]string{"sevre"}, []string{`"sevre"`, "did you mean serve?", "aggregatord --help"}},
		"unknown_archive_command": {
			[]string{"archive", "stats"},
			[]string{`"stats"`, "did you mean stat?", "aggregatord archive --help lists all"},
		},
		"command_like_none":       {[]string{"xyzzy"}, []string{`"xyzzy"`, "aggregatord --help lists all"}},
		"mistyped_flag":           {[]string{"serve", "--dri", dir}, []string{"--dri", "did you mean --dir?"}},
		"part_of_a_flag":          {serve("--listen-address", ":1"), []string{"--listen-address", "did you mean --web.listen-address?"}},
		"flag_of_another":         {[]string{"version", "--dir", dir}, []string{"--dir", "it is a flag of aggregatord "}},
		"not_a_number":            {serve("--web.max-requests", "many"), []string{`--web.max-requests "many"`, "write a whole number"}},
		"duration_without_unit":   {serve("--web.idle-timeout", "90"), []string{`--web.idle-timeout "90"`, "30s, 5m, 1h30m or 7d"}},
		"inspect_format":          {[]string{"inspect", "--format", "xml", file}, []string{"--format", `"xml"`, "text or json"}},
		"url_with_a_bad_scheme":   {[]string{"top", "--url", "ftp://localhost:9500"}, []string{"--url", "HOST:PORT"}},
		"unknown_flag_of_root":    {[]string{"--verbose"}, []string{"--verbose", "aggregatord --help"}},
		"unknown_flag":            {serve("--port", "1"), []string{"--port", "aggregatord serve --help"}},
		"unknown_short_flag":      {dump("-x"), []string{"-x", "aggregatord dump --help"}},
		"flag_without_value":      {[]string{"serve", "--dir"}, []string{"--dir", "aggregatord serve --help"}},
		"not_a_duration":          {serve("--web.shutdown-timeout", "soon"), []string{"--web.shutdown-timeout", "soon", "7d"}},
		"argument_of_serve":       {serve("now"), []string{`"now"`, "aggregatord serve --help"}},
		"argument_of_dump":        {dump("now"), []string{`"now"`, "aggregatord dump --help"}},
		"argument_of_version":     {[]string{"version", "3"}, []string{`"3"`}},
		"unknown_shell":           {[]string{"completion", "tcsh"}, []string{`"tcsh"`}},
		"argument_of_completion":  {[]string{"completion", "bash", "5"}, []string{`"5"`}},
		"help_on_unknown_command": {[]string{"help", "serv"}, []string{`"serv"`}},
		"top_interval":            {[]string{"top", "--interval", "1ms"}, []string{"--interval", "500ms"}},
		"top_iterations":          {[]string{"top", "--iterations", "-1"}, []string{"--iterations"}},
		"top_rows":                {[]string{"top", "--rows", "-1"}, []string{"--rows"}},
		"top_url":                 {[]string{"top", "--url", "nowhere"}, []string{"--url", "unix:PATH"}},
		"inspect_nothing":         {[]string{"inspect"}, []string{"aggregatord inspect DIR/counter_*.db"}},

		"serve_no_directory":   {[]string{"serve"}, []string{"--dir DIR", "PROMETHEUS_MULTIPROC_DIR"}},
		"dump_no_directory":    {[]string{"dump"}, []string{"--dir DIR", "PROMETHEUS_MULTIPROC_DIR"}},
		"serve_file":           {[]string{"serve", "--dir", file}, []string{file, "not a directory"}},
		"dump_file":            {[]string{"dump", "--dir", file}, []string{file, "not a directory"}},
		"dump_missing":         {[]string{"dump", "--dir", missing}, []string{missing, "no such file or directory"}},
		"empty_directory_name": {[]string{"serve", "--dir", ""}, []string{"path is empty"}},
		"empty_pool_name":      {[]string{"serve", "--dir", "=" + dir}, []string{"name before = is empty"}},
		"pool_without_path":    {[]string{"serve", "--dir", "web="}, []string{"path is empty"}},
		"several_unnamed":      {[]string{"dump", "--dir", dir, "--dir", missing}, []string{dir, "--dir web=" + dir}},
		"one_of_two_unnamed":   {[]string{"serve", "--dir", "web=" + dir, "--dir", missing}, []string{missing, "--dir web=" + missing}},
		"duplicate_names":      {[]string{"serve", "--dir", "web=" + dir, "--dir", "web=" + missing}, []string{`"web"`}},

		"log_level":        {serve("--log.level", "loud"), []string{"--log.level", `"loud"`, "debug, info, warn or error"}},
		"log_level_fatal":  {dump("--log.level", "fatal"), []string{"--log.level", `"fatal"`}},
		"log_format":       {serve("--log.format", "xml"), []string{"--log.format", `"xml"`, "console or json"}},
		"dump_log_format":  {dump("--log.format", "xml"), []string{"--log.format", `"xml"`}},
		"address_port":     {serve("--web.listen-address", "9500"), []string{"--web.listen-address", `"9500"`, "host:port"}},
		"address_no_port":  {serve("--web.listen-address", "localhost:"), []string{"--web.listen-address", `"localhost:"`}},
		"address_bad_port": {serve("--web.listen-address", "localhost:nope"), []string{"--web.listen-address", `"localhost:nope"`}},
		"address_range":    {serve("--web.listen-address", ":65536"), []string{"--web.listen-address", `":65536"`}},
		"unix_no_path":     {serve("--web.listen-address", "unix:"), []string{"--web.listen-address", "unix:PATH"}},
		"unix_too_long":    {serve("--web.listen-address", "unix:/"+strings.Repeat("x", 200)), []string{"--web.listen-address", "103"}},
		"socket_mode":      {serve("--web.socket-mode", "rw"), []string{"--web.socket-mode", "0660"}},
		"socket_mode_9":    {serve("--web.socket-mode", "0690"), []string{"--web.socket-mode", "0660"}},
		"web_config_none":  {serve("--web.config.file", missing), []string{"--web.config.file", missing, "no such file"}},
		"web_config_bad":   {serve("--web.config.file", webConfig), []string{"--web.config.file", webConfig, "tls_config"}},
		"web_config_password": {
			serve("--web.config.file", password),
			[]string{"--web.config.file", password + ":2:7: basic_auth_users.me: is not a bcrypt hash", "htpasswd -nBC 10 me"},
		},
		"two_kinds":       {serve("--web.systemd-socket"), []string{"--web.systemd-socket", "--web.listen-address"}},
		"max_requests":    {serve("--web.max-requests", "-1"), []string{"--web.max-requests"}},
		"read_timeout":    {serve("--web.read-timeout", "-1s"), []string{"--web.read-timeout"}},
		"write_timeout":   {serve("--web.write-timeout", "-1s"), []string{"--web.write-timeout"}},
		"idle_timeout":    {serve("--web.idle-timeout", "-1s"), []string{"--web.idle-timeout"}},
		"demo_unix":       {[]string{"demo", "--web.listen-address", "unix:/x"}, []string{"--web.listen-address", "host:port"}},
		"path_relative":   {serve("--web.telemetry-path", "metrics"), []string{"--web.telemetry-path", `"metrics"`}},
		"path_root":       {serve("--web.telemetry-path", "/"), []string{"--web.telemetry-path", "taken"}},
		"path_taken":      {serve("--web.telemetry-path", "/-/ready"), []string{"--web.telemetry-path", "taken"}},
		"path_taken_api":  {serve("--web.telemetry-path", "/api/v1/status"), []string{"--web.telemetry-path", "taken"}},
		"path_query":      {serve("--web.telemetry-path", "/m?a=b"), []string{"--web.telemetry-path", `"/m?a=b"`}},
		"no_time_to_stop": {serve("--web.shutdown-timeout", "0"), []string{"--web.shutdown-timeout", "above 0"}},
		"negative_time":   {serve("--web.shutdown-timeout", "-1s"), []string{"--web.shutdown-timeout", "above 0"}},
		"dump_format":     {dump("--format", "xml"), []string{"--format", `"xml"`, "openmetrics"}},
	} {
		t.Run(name, func(t *testing.T) { call(t, tc.args...).oneLine(t, exitUsage, tc.says...) })
	}
}

// TestDirectories is about which directories a call means.
func TestDirectories(t *testing.T) {
	dirs := map[string]string{}
	for _, name := range []string{"new", "old", "flag", "second"} {
		dirs[name] = sourceDir(t)
		bury(t, dirs[name], "counter_1.db", entry{family: "from", sample: "from_total", labels: map[string]string{"dir": name}, value: 1})
	}
	for name, tc := range map[string]struct {
		new, old string
		flags    []string
		want     []string
	}{
		"flag":         {flags: []string{dirs["flag"]}, want: []string{`from_total{dir="flag"} 1`}},
		"new_spelling": {new: dirs["new"], want: []string{`from_total{dir="new"} 1`}},
		"old_spelling": {old: dirs["old"], want: []string{`from_total{dir="old"} 1`}},
		"both_spellings": {
			new: dirs["new"], old: dirs["old"],
			want: []string{`from_total{dir="new"} 1`},
		},
		"flag_wins": {
			new: dirs["new"], old: dirs["old"], flags: []string{dirs["flag"]},
			want: []string{`from_total{dir="flag"} 1`},
		},
		"named": {
			flags: []string{"web=" + dirs["flag"]},
			want:  []string{`from_total{dir="flag",pool="web"} 1`},
		},
		"several": {
			new: dirs["new"], flags: []string{"web=" + dirs["flag"], "jobs=" + dirs["second"]},
			want: []string{`from_total{dir="flag",pool="web"} 1`, `from_total{dir="second",pool="jobs"} 1`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PROMETHEUS_MULTIPROC_DIR", tc.new)
			t.Setenv("prometheus_multiproc_dir", tc.old)
			args := []string{"dump"}
			for _, f := range tc.flags {
				args = append(args, "--dir", f)
			}
			var got []string
			for line := range strings.Lines(must(t, args...)) {
				if !strings.HasPrefix(line, "#") {
					got = append(got, strings.TrimSuffix(line, "\n"))
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

// brokenWriter is a standard output that nobody can write to.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// TestOutputFails: what could not be printed was not done.
func TestOutputFails(t *testing.T) {
	dir := sourceDir(t)
	bury(t, dir, "counter_1.db", entry{family: "c", sample: "c_total", value: 1})
	for name, args := range map[string][]string{
		"dump":    {"dump", "--dir", dir},
		"inspect": {"inspect", filepath.Join(dir, "counter_1.db")},
		"json":    {"inspect", "--format", "json", filepath.Join(dir, "counter_1.db")},
		"version": {"version"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr lockedBuffer
			code := run(t.Context(), args, brokenWriter{}, &stderr)
			called{code: code, stderr: stderr.String()}.oneLine(t, exitFailure, "broken pipe")
		})
	}
}
