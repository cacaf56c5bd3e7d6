// Command receiver runs a receivertest.Receiver until its standard input ends. It prints its
// address first, and what it has stored last: a JSON object of series, each a list of pairs of
// a time and a value, which is a text.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"aggregatord/internal/output/receivertest"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() (err error) {
	dir, err := os.MkdirTemp("", "receiver-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r, err := receivertest.Open(dir)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	// Ends with the process.
	go server.Serve(l)
	fmt.Println(l.Addr())
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	all, err := r.All()
	if err != nil {
		return err
	}
	out := map[string][][2]string{}
	for series, list := range all {
		for _, s := range list {
			v := strconv.FormatFloat(s.V, 'g', -1, 64)
			if s.Stale() {
				v = "stale"
			}
			out[series] = append(out[series], [2]string{strconv.FormatInt(s.T, 10), v})
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return err
	}
	return r.Close()
}
