//go:build !linux

package watch

import "golang.org/x/sys/unix"

// TryLease fails with [ErrLeaseUnsupported]: only Linux has leases.
func TryLease(int) (granted bool, err error) { return false, ErrLeaseUnsupported }

// AskLease fails with [ErrLeaseUnsupported]: only Linux has leases.
func AskLease(int) (granted bool, err error) { return false, ErrLeaseUnsupported }

// TryWriteLease fails with [ErrLeaseUnsupported]: only Linux has leases.
func TryWriteLease(int) (granted bool, err error) { return false, ErrLeaseUnsupported }

// LeaseBroken fails with [ErrLeaseUnsupported]: only Linux has leases.
func LeaseBroken(int) (bool, error) { return false, ErrLeaseUnsupported }

// ReleaseLease fails with [ErrLeaseUnsupported]: only Linux has leases.
func ReleaseLease(int) error { return ErrLeaseUnsupported }

type (
	selfTest   struct{}
	procProber struct{}
)

func (p *Prober) leaseProves(FileRef) bool { return false }

func (p *Prober) checkProc(FileRef) State { return Unknown }

func (p *Prober) probe() (Choice, selfTest, error) {
	var st unix.Stat_t
	if err := unix.Stat(p.dir, &st); err != nil {
		return Choice{}, selfTest{}, err
	}
	return Choice{Reason: "only Linux can tell whether a file is still written to"}, selfTest{}, nil
}
