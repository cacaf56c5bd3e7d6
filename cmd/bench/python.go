package main

import (
	"bufio"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// collectProgram answers each line on its standard input with one scrape, as an
// application does that serves its metrics itself.
//
//go:embed collect.py
var collectProgram string

// A pythonClient is a process with the Python client's own collector.
type pythonClient struct {
	// version is the client's; layout is that of the files it reads.
	version string
	layout  layout

	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// errNoPython says that there is no Python, or no client.
var errNoPython = errors.New("no Python with prometheus_client")

// startPython runs the collector on a directory, which may be made later.
func startPython(ctx context.Context, program, dir string) (*pythonClient, error) {
	cmd := exec.CommandContext(ctx, program, "-c", collectProgram)
	cmd.Env = append(os.Environ(), "PROMETHEUS_MULTIPROC_DIR="+dir, "prometheus_multiproc_dir="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNoPython, err)
	}
	p := &pythonClient{cmd: cmd, in: in, out: bufio.NewReader(out)}
	var width int
	if _, err := fmt.Fscan(p.out, &p.version, &width); err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", errNoPython, err), p.stop())
	}
	p.layout = py8
	if width == py16.width {
		p.layout = py16
	}
	return p, nil
}

// scrape has it collect and render once. It returns how long that took, by the process's
// own clock, how many samples it found, and the most memory the process ever had.
func (p *pythonClient) scrape() (took time.Duration, samples int, peakBytes float64, err error) {
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		return 0, 0, 0, err
	}
	var seconds float64
	if _, err := fmt.Fscan(p.out, &seconds, &samples, &peakBytes); err != nil {
		return 0, 0, 0, fmt.Errorf("read from %s: %w", p.cmd.Path, err)
	}
	return time.Duration(seconds * float64(time.Second)), samples, peakBytes, nil
}

// stop ends the process.
func (p *pythonClient) stop() error {
	err := p.in.Close()
	if waitErr := p.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("%w: %w", errNoPython, waitErr))
	}
	return err
}
