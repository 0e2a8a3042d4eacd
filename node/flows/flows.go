// Package flows hears of the packets that the kernel drops by policy, from
// nfnetlink_log, and makes flow records of them. It owns the netlink protocol
// and the reading of packets. It does not own the rules that drop (node/firewall)
// or who has which address (node/agent).
//
// Where the kernel can't tell, or somebody else listens, enforcement is as it
// was and the status says why there are no records.
package flows

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/hauberk-mesh/hauberk/internal/flow"
	"github.com/hauberk-mesh/hauberk/internal/names"
	"github.com/hauberk-mesh/hauberk/node/firewall"
	"github.com/hauberk-mesh/hauberk/policy"
)

// retry is between attempts to listen.
const retry = 10 * time.Second

// Options of a Reader; all are needed unless said otherwise.
type Options struct {
	Log  *slog.Logger
	Node string
	Ring *flow.Ring
	// Dropped says what the id of a logged packet means.
	Dropped func(id string) (firewall.Drop, bool)
	// Who is the end of a flow that has an address; what is not known of it is
	// left empty.
	Who func(netip.Addr) flow.Endpoint
	// Told is called with each record; nil for nobody.
	Told func(*flow.Record)
	// Dial opens the socket in the network namespace of the rules; nil means the
	// process's own.
	Dial func() (*netlink.Conn, error)
}

// Reader makes records of dropped packets.
type Reader struct {
	Options

	mu      sync.Mutex
	problem string // why nothing is heard; empty while listening
	lost    uint64
}

// New is a Reader that does not listen yet.
func New(o Options) (*Reader, error) {
	if o.Log == nil || o.Ring == nil || o.Dropped == nil || o.Who == nil {
		return nil, errors.New("flows: Log, Ring, Dropped and Who are needed")
	}
	if o.Dial == nil {
		o.Dial = func() (*netlink.Conn, error) { return netlink.Dial(unix.NETLINK_NETFILTER, nil) }
	}
	return &Reader{Options: o, problem: "not listening yet"}, nil
}

// Problem says why drops are not heard of; empty when they are.
func (r *Reader) Problem() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.problem
}

// Lost is how many packets the kernel could not hand over because nobody took
// them in time.
func (r *Reader) Lost() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lost
}

func (r *Reader) set(problem string) (changed bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = r.problem != problem
	r.problem = problem
	return changed
}

// Run listens until ctx ends. That nobody can listen here is no failure of the
// node: it is said, and tried again.
func (r *Reader) Run(ctx context.Context) error {
	for {
		err := r.listen(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if r.set(fmt.Sprintf("drops of the kernel are not heard of: %v", err)) {
			r.Log.Warn("drops of the kernel are not heard of", "error", err, "retry_in", retry)
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *Reader) listen(ctx context.Context) error {
	c, err := r.Dial()
	if err != nil {
		return fmt.Errorf("open a netfilter socket: %w", err)
	}
	// It ends the Receive that waits; what it returns is told there.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer func() {
		if stop() {
			_ = c.Close()
		}
	}()
	if err := c.SetReadBuffer(receiveBuffer); err != nil {
		return fmt.Errorf("set the receive buffer: %w", err)
	}
	if err := bind(c, names.NFLogGroup); err != nil {
		if errors.Is(err, unix.EPERM) {
			err = fmt.Errorf("another program listens, or the agent lacks CAP_NET_ADMIN: %w", err)
		}
		return fmt.Errorf("listen to log group %d: %w (the kernel needs nfnetlink_log)", names.NFLogGroup, err)
	}
	r.set("")
	var last uint32
	seen := false
	for {
		messages, err := c.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			continue // the sequence tells how many were lost
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		for _, m := range messages {
			l, ok, err := parse(m)
			if err != nil {
				r.Log.Debug("a message of nfnetlink_log can't be read", "error", err)
				continue
			}
			if !ok {
				continue
			}
			var lost uint64
			if l.hasSeq {
				if seen {
					lost = uint64(l.seq - last - 1)
				}
				last, seen = l.seq, true
			}
			r.take(l, lost)
		}
	}
}

// take makes a record of a packet.
func (r *Reader) take(l logged, lost uint64) {
	if lost > 0 {
		r.mu.Lock()
		r.lost += lost
		r.mu.Unlock()
	}
	id, ours := strings.CutPrefix(l.prefix, firewall.LogPrefix)
	if !ours {
		return
	}
	id, reply := strings.CutSuffix(id, firewall.ReplySuffix)
	p, err := decode(l.payload)
	if err != nil && !p.src.IsValid() {
		r.Log.Debug("a dropped packet can't be read", "error", err)
		return
	}
	if reply {
		p = p.opposite()
	}
	rec := flow.Record{
		Time: l.time, Node: r.Node, Verdict: flow.Deny, Layer: flow.Kernel, Lost: lost,
		Source: r.Who(p.src), Destination: r.Who(p.dst), Protocol: p.protocol.String(), Port: p.dstPort,
	}
	if rec.Time.IsZero() {
		rec.Time = time.Now()
	}
	rec.Time = rec.Time.UTC()
	rec.Source.Address, rec.Destination.Address = p.src, p.dst
	if p.protocol == policy.AnyProtocol {
		rec.Protocol = "protocol 0" // IPv6 hop-by-hop that could not be followed
	}
	if p.hasICMP {
		rec.ICMPType, rec.ICMPCode = &p.icmpType, &p.icmpCode
	}
	if drop, ok := r.Dropped(id); ok {
		rec.Direction, rec.Decision = drop.Direction.String(), drop.Decision
	} else {
		rec.Reason = "dropped by a rule of the agent before this one"
	}
	r.Ring.Add(rec)
	if r.Told != nil {
		r.Told(&rec)
	}
}
