//go:build !linux

package process

import (
	"errors"
	"strconv"
)

// There is no procfs to read elsewhere: an Observer sees nothing, and does nothing.

const clockTicks = 100

func mkdev(major, minor uint32) uint64 { return uint64(major)<<8 | uint64(minor) }

type kernel struct{}

func newKernel() kernel { return kernel{} }

var errNoProcfs = errors.New("this system has no procfs")

func (kernel) read(*[]byte, string, int) ([]byte, error)       { return nil, errNoProcfs }
func (kernel) readStat(*[]byte, string) ([]byte, error)        { return nil, errNoProcfs }
func (kernel) open(string) (int, error)                        { return -1, errNoProcfs }
func (kernel) readOpenStat(*[]byte, int) ([]byte, error)       { return nil, errNoProcfs }
func (kernel) hold(int) int                                    { return -1 }
func (kernel) release(int)                                     {}
func (kernel) ended(int) (status int, ok bool)                 { return 0, false }
func (kernel) descriptors(string, int, func(descriptor)) error { return errNoProcfs }
func (kernel) listeners() (map[uint64]listener, error)         { return nil, errNoProcfs }
func reasonOf(status int) string                               { return strconv.Itoa(status) }
func identity(string) (dev, ino uint64, ok bool)               { return 0, 0, false }
func countDescriptors(string) (int, error)                     { return 0, errNoProcfs }

func uptime() uint64 { return 0 }

type descriptor struct {
	dev, ino uint64
	writable bool
	socket   uint64
}

type listener struct {
	address        string
	waiting, limit uint32
}
