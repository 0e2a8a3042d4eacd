// Package redirect sends a pod's TCP traffic through its sidecar. It owns the
// iptables rules inside the pod's network namespace and how that namespace is
// entered; it does not own policy (node/firewall) nor what the sidecar does
// with the connections.
//
// The rules are a handful and fixed, the same for IPv4 and IPv6:
//
//   - HAUBERK_OUTPUT (nat OUTPUT): new TCP connections of the pod go to the
//     sidecar's outbound port, except those of the sidecar's own user, those
//     that stay on loopback, and excluded ports and address ranges.
//   - HAUBERK_PREROUTING (nat PREROUTING): new TCP connections to the pod go to
//     the sidecar's inbound port, except those to its health and metrics ports
//     and to excluded ports.
//   - HAUBERK_GUARD (raw PREROUTING): nobody outside the pod may begin a
//     connection to the sidecar's own loopback ports, on which it would take
//     them for redirected ones.
//
// A process that runs as the sidecar's user inside the pod would pass by the
// sidecar; admission refuses such pods. A process with NET_ADMIN could remove
// the rules; the host side's policy holds all the same.
package redirect

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-iptables/iptables"
)

// lockSeconds bounds the wait for the xtables lock (legacy iptables only).
const lockSeconds = 5

// commandTimeout bounds one iptables-restore.
const commandTimeout = 10 * time.Second

// Options configures a Redirector.
type Options struct {
	Log *slog.Logger
	// IPTables and IP6Tables are the commands for each family; "iptables" and
	// "ip6tables" when empty. "-restore" is appended for the batch commands.
	IPTables, IP6Tables string
}

// Redirector programs pods. It is safe for concurrent use; it holds nothing of
// any pod.
type Redirector struct {
	log      *slog.Logger
	families []family
}

// family is iptables for one address family.
type family struct {
	name    string
	ipv6    bool
	restore string
	tables  *iptables.IPTables
}

// New finds the iptables commands.
func New(o Options) (*Redirector, error) {
	r := &Redirector{log: o.Log}
	for _, f := range []struct {
		name, command, fallback string
		proto                   iptables.Protocol
	}{
		{"IPv4", o.IPTables, "iptables", iptables.ProtocolIPv4},
		{"IPv6", o.IP6Tables, "ip6tables", iptables.ProtocolIPv6},
	} {
		command := f.command
		if command == "" {
			command = f.fallback
		}
		path, err := exec.LookPath(command)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w; install the iptables package in the node image", command, err)
		}
		tables, err := iptables.New(iptables.IPFamily(f.proto), iptables.Path(path), iptables.Timeout(lockSeconds))
		if err != nil {
			return nil, fmt.Errorf("use %s: %w", path, err)
		}
		r.families = append(r.families, family{
			name: f.name, ipv6: f.proto == iptables.ProtocolIPv6, restore: path + "-restore", tables: tables,
		})
	}
	return r, nil
}

// Program puts the rules in place. It may be repeated: the result is the same,
// and an already redirected pod stays redirected meanwhile.
func (r *Redirector) Program(ctx context.Context, netns string, rules Rules) error {
	if err := rules.validate(); err != nil {
		return err
	}
	return Enter(netns, func() error {
		for _, f := range r.families {
			if f.ipv6 && !kernelHasIPv6() {
				r.log.Debug("no ipv6 in this kernel, nothing to redirect", "netns", netns)
				continue
			}
			if err := f.program(ctx, rules); err != nil {
				return fmt.Errorf("redirect %s in %s: %w", f.name, netns, err)
			}
		}
		return nil
	})
}

// Check fails when the rules are not exactly those that Program makes.
func (r *Redirector) Check(ctx context.Context, netns string, rules Rules) error {
	return Enter(netns, func() error {
		for _, f := range r.families {
			if f.ipv6 && !kernelHasIPv6() {
				continue
			}
			if err := f.check(rules); err != nil {
				return fmt.Errorf("check %s redirection in %s: %w", f.name, netns, err)
			}
		}
		return ctx.Err()
	})
}

// Remove takes the rules out. It succeeds when there are none, or no namespace.
func (r *Redirector) Remove(ctx context.Context, netns string) error {
	if !Exists(netns) {
		return nil
	}
	return Enter(netns, func() error {
		var errs []error
		for _, f := range r.families {
			if f.ipv6 && !kernelHasIPv6() {
				continue
			}
			if err := f.remove(); err != nil {
				errs = append(errs, fmt.Errorf("remove %s redirection in %s: %w", f.name, netns, err))
			}
		}
		return errors.Join(append(errs, ctx.Err())...)
	})
}

// program fills the chains in one transaction a table and then makes sure of
// the jumps to them. The chains are replaced whole, so rules of an older
// version never linger.
func (f family) program(ctx context.Context, rules Rules) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, f.restore, "--noflush")
	command.Stdin = strings.NewReader(rules.restoreText(f.ipv6))
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", f.restore, err, strings.TrimSpace(string(output)))
	}
	for _, j := range jumps {
		if err := f.tables.InsertUnique(j.table, j.from, 1, j.spec()...); err != nil {
			return fmt.Errorf("jump from %s %s to %s: %w", j.table, j.from, j.to, err)
		}
	}
	return nil
}

func (f family) check(rules Rules) error {
	want := rules.chains(f.ipv6)
	for _, j := range jumps {
		exists, err := f.tables.ChainExists(j.table, j.to)
		if err != nil {
			return fmt.Errorf("look for chain %s: %w", j.to, err)
		}
		if !exists {
			return fmt.Errorf("chain %s is missing in table %s; delete the pod to have it made again", j.to, j.table)
		}
		got, err := f.tables.List(j.table, j.to)
		if err != nil {
			return fmt.Errorf("list chain %s: %w", j.to, err)
		}
		got = slices.DeleteFunc(got, func(line string) bool { return !strings.HasPrefix(line, "-A ") })
		if !slices.Equal(got, want[j.to]) {
			return fmt.Errorf("chain %s was changed: it is %q and should be %q", j.to, got, want[j.to])
		}
		// The jump must come first: a rule before it could accept what it should
		// see.
		base, err := f.tables.List(j.table, j.from)
		if err != nil {
			return fmt.Errorf("list chain %s: %w", j.from, err)
		}
		first := ""
		for _, line := range base {
			if strings.HasPrefix(line, "-A ") {
				first = line
				break
			}
		}
		if first != j.String() {
			return fmt.Errorf("table %s chain %s does not begin with %q but with %q", j.table, j.from, j, first)
		}
	}
	return nil
}

func (f family) remove() error {
	var errs []error
	for _, j := range jumps {
		exists, err := f.tables.ChainExists(j.table, j.to)
		if err != nil {
			errs = append(errs, fmt.Errorf("look for chain %s: %w", j.to, err))
			continue
		}
		if !exists {
			continue
		}
		if err := f.tables.DeleteIfExists(j.table, j.from, j.spec()...); err != nil {
			errs = append(errs, fmt.Errorf("delete jump to %s: %w", j.to, err))
			continue
		}
		if err := f.tables.ClearAndDeleteChain(j.table, j.to); err != nil {
			errs = append(errs, fmt.Errorf("delete chain %s: %w", j.to, err))
		}
	}
	return errors.Join(errs...)
}

// kernelHasIPv6 asks about the namespace that the thread is in. Only a kernel
// without IPv6 lacks the file; a pod whose interfaces have IPv6 turned off
// keeps its rules, so that turning it on is no way out.
func kernelHasIPv6() bool {
	_, err := os.Stat("/proc/thread-self/net/if_inet6")
	return !errors.Is(err, fs.ErrNotExist)
}
