package process

import (
	"net/netip"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
)

// maxSockets is how many listening sockets of a pool are told, by address.
const maxSockets = 64

// queuesLocked finds out how many connections wait at the listening sockets of each pool.
func (o *Observer) queuesLocked() {
	listens := slices.ContainsFunc(o.groups, func(g *group) bool {
		return g.pool != nil && slices.ContainsFunc(g.living(), func(p *proc) bool { return len(p.sockets) > 0 })
	})
	if !listens {
		return
	}
	here, err := o.kernel.listeners()
	if err != nil {
		o.opts.Metrics.errors.With("sockets").Inc()
	}
	for _, g := range o.groups {
		if g.pool != nil {
			g.readQueues(here)
		}
	}
}

// readQueues takes from the listening sockets of our network namespace those of the group,
// and looks for the others in the namespaces of its processes.
func (g *group) readQueues(here map[uint64]listener) {
	found := map[uint64]listener{}
	asked := map[uint64]bool{}
	for _, p := range g.living() {
		tables := here
		if (p.network != g.o.network && p.network != 0) || here == nil {
			if !asked[p.network] {
				asked[p.network] = true
				// Without credit the last answer stands.
				spend(&g.o.credit.dear, func() { g.tables[p.network] = g.o.tcpOf(p.pid) })
			}
			tables = g.tables[p.network]
		}
		for _, ino := range p.sockets {
			if l, ok := tables[ino]; ok {
				found[ino] = l
			}
		}
	}
	byAddress := map[string]listener{}
	for _, l := range found {
		// With SO_REUSEPORT each worker may have its own.
		sum := byAddress[l.address]
		byAddress[l.address] = listener{l.address, sum.waiting + l.waiting, sum.limit + l.limit}
	}
	g.queues = g.queues[:0]
	for _, l := range byAddress {
		g.queues = append(g.queues, l)
	}
	slices.SortFunc(g.queues, func(a, b listener) int { return strings.Compare(a.address, b.address) })
	g.queues = g.queues[:min(len(g.queues), maxSockets)]
}

// tcpOf returns the listening TCP sockets of the network namespace of a process. The text
// does not tell how many connections may wait.
func (o *Observer) tcpOf(pid int) map[uint64]listener {
	fs, err := procfs.NewFS(o.path(pid, ""))
	if err != nil {
		return nil
	}
	found := map[uint64]listener{}
	for _, read := range []func() (procfs.NetTCP, error){fs.NetTCP, fs.NetTCP6} { //nolint:staticcheck // netlink tells of our own network namespace only
		lines, err := read()
		if err != nil {
			o.failed("net", err)
			continue
		}
		for _, l := range lines {
			addr, ok := netip.AddrFromSlice(l.LocalAddr)
			if l.St == stateListen && ok {
				found[l.Inode] = listener{
					address: netip.AddrPortFrom(addr, uint16(l.LocalPort)).String(),
					waiting: uint32(min(l.RxQueue, 1<<31)),
				}
			}
		}
	}
	return found
}

// stateListen is TCP_LISTEN of include/net/tcp_states.h, for unix sockets, too.
const stateListen = 10
